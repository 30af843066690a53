"""The Medical Segmentation Decathlon's folder form: imagesTr/<id>.nii.gz, labelsTr/<id>.nii.gz.

nnU-Net's raw folders are the same with `_0000` behind the id of an image; `dataset.json` is not needed, since
the specification says all that matters here. Of several channels nnU-Net has a file each (`_0000`, `_0001`), the
Decathlon one file with four axes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from preprocessing.adapters.base import Case
from preprocessing.errors import RawDataError
from preprocessing.formats.slicer import is_segmentation
from preprocessing.layouts import FolderFiles
from preprocessing.sources.source import FileSource, Source, one_of
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
    images, labels = _images_and_labels(raw, form.channel)
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


def msd_case_ids(raw: Path, channel: int | None = None) -> list[str]:
    """The ids of `find_msd_cases`, sorted; none where the folder `raw` holds no scans."""
    images, labels = _images_and_labels(raw, channel)
    return sorted(images.keys() | labels.keys())


def _images_and_labels(raw: Path, channel: int | None) -> tuple[dict[str, Source], dict[str, Source]]:
    """Case id -> its image, of `channel` if given; case id -> its label map, whose names are whole."""
    labels = _by_id({path: stem_of(path) for path in _image_files(raw / LABELS)})
    # 3D Slicer saves its segmentations beside the scans.
    images = {path: stem_of(path) for path in _image_files(raw / IMAGES) if not is_segmentation(path)}
    if channel is None:
        return _by_id({path: case_id_of(path, labels) for path in images}), labels
    ending = f"_{channel:04d}"
    if _is_file_a_channel(set(images.values()), labels.keys(), ending):
        chosen = {path: stem.removesuffix(ending) for path, stem in images.items() if stem.endswith(ending)}
        return _by_id(chosen), labels
    return _by_id({path: case_id_of(path, labels) for path in images}, channel), labels


def _is_file_a_channel(images: Collection[str], labels: Collection[str], ending: str) -> bool:
    """Whether each channel has a file of its own, as nnU-Net has it, or all are in one, as the Decathlon has it.

    Label maps named as the images are say the latter, also where the cases' own numbers look like channels.
    """
    if any(f"{label}{ending}" in images for label in labels):
        return True
    return not any(label in images for label in labels) and any(image.endswith(ending) for image in images)


def _image_files(folder: Path) -> list[Path]:
    # "._x.nii.gz" are resource forks of macOS inside many public archives.
    return [path for path in sorted(folder.iterdir()) if is_image_path(path)] if folder.is_dir() else []


def _by_id(ids: Mapping[Path, str], channel: int | None = None) -> dict[str, Source]:
    """Case id -> its file, or its copies; `ids`: file -> case id; channel: of files that hold several."""
    found: dict[str, list[Source]] = {}
    for path, case_id in ids.items():
        found.setdefault(case_id, []).append(FileSource(path, channel))
    return {case_id: one_of(sources) for case_id, sources in found.items()}
