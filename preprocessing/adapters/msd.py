"""The Medical Segmentation Decathlon's folder form: imagesTr/<id>.nii.gz, labelsTr/<id>.nii.gz.

nnU-Net's raw folders are the same with `_0000` behind the id of an image; `dataset.json` is not needed, since
the specification says all that matters here.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from preprocessing.adapters.base import Case
from preprocessing.errors import RawDataError
from preprocessing.layouts import FolderFiles
from preprocessing.slicer import is_segmentation
from preprocessing.source import FileSource, Source, one_of
from preprocessing.spec import DatasetSpec
from preprocessing.volume import case_id_of, is_image_path, stem_of

IMAGES, LABELS = "imagesTr", "labelsTr"


def find_msd_cases(raw: Path, spec: DatasetSpec) -> list[Case]:
    """All cases under `raw`, sorted by id. A missing label is None, a missing image stays a path.

    RawDataError where there is no imagesTr or nothing in it.
    """
    form = spec.raw_files
    assert isinstance(form, FolderFiles)
    raw = spec.settled_folder(raw)
    labels = _by_id(raw / LABELS, are_labels=True)
    images = _by_id(raw / IMAGES, form.channel, others=labels)
    if not images:
        raise RawDataError(
            f"{raw / IMAGES} holds no image: the layout 'msd' of dataset {spec.name} needs "
            f"{IMAGES}/<case>.nii.gz and {LABELS}/<case>.nii.gz there."
        )
    return [
        Case(
            id=case_id,
            subject=spec.subject_of(case_id),
            # A label without an image names the file that should be there, and is then refused by name.
            image=images.get(case_id, FileSource(raw / IMAGES / f"{case_id}.nii.gz")),
            labels=labels.get(case_id),
            modality=spec.modality,
        )
        for case_id in sorted(images.keys() | labels.keys())
    ]


def _by_id(
    folder: Path, channel: int | None = None, others: Collection[str] = (), are_labels: bool = False
) -> dict[str, Source]:
    """Case id -> its file, or its copies; of `channel`, if given, whose number the names end in.

    others: the ids of the label maps, whose names are whole.
    """
    if not folder.is_dir():
        return {}
    found: dict[str, list[Source]] = {}
    for path in sorted(folder.iterdir()):
        # "._x.nii.gz" are resource forks of macOS inside many public archives.
        if path.name.startswith(".") or not is_image_path(path):
            continue
        if is_segmentation(path) and not are_labels:
            continue  # 3D Slicer saves it beside the scan
        case_id = stem_of(path) if are_labels else case_id_of(path, others)
        if channel is not None:
            whole, ending = path.name.partition(".")[0], f"_{channel:04d}"
            if not whole.endswith(ending):
                continue
            case_id = whole.removesuffix(ending)
        found.setdefault(case_id, []).append(FileSource(path))
    return {case_id: one_of(sources) for case_id, sources in found.items()}
