"""The cases and the split of a store as an nnU-Net (version 2) raw dataset, so that both can be compared.

    OUT/nnUNet_raw/Dataset501_NAME/           imagesTr/<case>_0000.nii.gz  labelsTr/<case>.nii.gz   train and validation
                                              imagesTs/<case>_0000.nii.gz  labelsTs/<case>.nii.gz   our test part
                                              dataset.json (written last)  iris_export.json (what it was made from)
    OUT/nnUNet_preprocessed/Dataset501_NAME/  splits_final.json

Scans stay on their own grid; axes that are not at right angles, which ITK refuses, are turned to the nearest that are.
Labels are renumbered to nnU-Net's consecutive values; dataset.json names them, nnU-Net copies it beside its
predictions, and `iris_evaluate` matches classes by name, which undoes the renumbering. nnU-Net learns its own plan.
Fold 0 is our train and validation part; folds 1 to 5 are our folds 0 to 4.

With references, nnU-Net is given what an in-context model is given, a few labelled cases and no more: they are all of
imagesTr, fold 0 trains and validates on them, and imagesTs holds the test cases of other subjects.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from iris_pipeline.nnunet.folders import check_former, check_sources, choose_folders, remove_former
from preprocessing.adapters import Case
from preprocessing.case import check_same_grid, on_grid_of_image
from preprocessing.errors import ExportError
from preprocessing.findings import skew
from preprocessing.fingerprint import case_digest, check_label_values
from preprocessing.formats.nifti_files import GZIP_MAGIC
from preprocessing.nnunet import RECORD
from preprocessing.run import made_of
from preprocessing.runtime.files import file_digest, replaced, text_digest, write_json
from preprocessing.runtime.lock import only_run_in
from preprocessing.runtime.parallel import parallel_map
from preprocessing.sources.mending import nearest_rotation
from preprocessing.sources.source import FileSource, Source
from preprocessing.spec import FOLDS, DatasetSpec
from preprocessing.splits import Split
from preprocessing.store import Store
from preprocessing.volume import Volume, write_volume

WAIT = "wait until it has ended, then run this command again"
LONGEST_NAME = 100  # letters; file systems take 255 for a folder's name, with what nnU-Net adds
CHANNELS = {"CT": "CT", "MR": "MRI", "PET": "PET"}
"""nnU-Net normalises a channel named CT by the training set's intensities, any other by each scan's own."""


@dataclass(frozen=True)
class Export:
    """What was written. dataset: its folder's name; split: who is trained on, validates, tests; values: class -> value
    in nnU-Net's labels; skipped: were there; unvalidated: the folds that validate on their own training cases alone."""

    dataset: str
    split: Split
    raw: Path
    splits: Path
    values: Mapping[str, int]
    written: int
    skipped: int
    unvalidated: tuple[int, ...]


@dataclass(frozen=True)
class _Job:
    case: Case
    image: Path
    labels: Path
    spec: DatasetSpec
    table: tuple[int, ...]
    overwrite: bool


def export_dataset(
    store: Store,
    cases: list[Case],
    out: Path,
    *,
    references: Sequence[str] = (),
    number: int | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> Export:
    """Write the dataset of `store` from its raw cases (`find_cases`); files that are there already are kept.

    overwrite: the files of a former export are removed first, those of cases that it no longer has among them.
    references: train on these cases alone, so that a held-out dataset can be exported too; number: nnU-Net's, by
    default that of a former export of the same name, else the first free one from 501 on. Raises ExportError for a
    held-out dataset without references, for a reference that the store lacks or that is a test case of a dataset
    with a train part, if a raw file is missing or changed since the store was made, if the number belongs to another
    dataset or to a folder that no export made, if the scans lie in it, or if it holds an export of other cases,
    classes or splits; LockError while another export writes there.
    """
    manifest = store.manifest
    splits = _splits_of_references(store, references) if references else manifest.splits
    if not splits["paper"]["train"]:
        raise ExportError(
            f"nnU-Net has to be trained, and dataset {manifest.dataset} ({manifest.role}) has no train case: export "
            "one that has, or name references to train on with --references."
        )
    raw = {case.id: case for case in cases if case.labels is not None}
    needed = list(
        dict.fromkeys(case for part in ("train", "validation", "test") for case in splits["paper"][part])
    )
    missing = [case for case in needed if case not in raw]
    if missing:
        raise ExportError(
            f"The raw scan or label of {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''} is not there: put "
            "it back, or run iris_plan_and_preprocess again."
        )
    name = dataset_name(manifest.dataset, references)
    folder, preprocessed = choose_folders(out, manifest.dataset, name, number)
    check_sources((folder, preprocessed), cases)
    values = consecutive_values(manifest.classes)
    identity = {
        "dataset": manifest.dataset,
        "classes": manifest.classes,
        "values": values,
        "splits": text_digest(json.dumps(splits, sort_keys=True)),
        "sources": _sources(store, [raw[case] for case in sorted(needed)]),
    }
    check_former(folder, identity, overwrite)
    folds, test = nnunet_splits(splits), set(splits["paper"]["test"])
    table = _renumbering(manifest.classes, values)
    jobs = [
        _Job(
            raw[case],
            folder / ("imagesTs" if case in test else "imagesTr") / f"{case}_0000.nii.gz",
            folder / ("labelsTs" if case in test else "labelsTr") / f"{case}.nii.gz",
            manifest.spec,
            table,
            overwrite,
        )
        for case in needed
    ]
    with only_run_in(folder, WAIT):
        # It comes last: its presence says that all is there.
        (folder / "dataset.json").unlink(missing_ok=True)
        remove_former(folder, overwrite)
        write_json(folder / RECORD, {"schema_version": 1, "made_from": identity})
        done = list(parallel_map(_export_case, jobs, workers, f"{manifest.dataset} -> nnU-Net", progress))
        write_json(preprocessed / "splits_final.json", folds)
        write_json(folder / "dataset.json", dataset_json(manifest.spec, values, len(needed) - len(test)))
    return Export(
        folder.name,
        splits["paper"],
        folder,
        preprocessed / "splits_final.json",
        values,
        sum(done),
        len(done) - sum(done),
        tuple(number for number, fold in enumerate(folds) if fold["val"] == fold["train"]),
    )


def _splits_of_references(store: Store, references: Sequence[str]) -> dict[str, Split]:
    """One split: the references train and validate, the test cases of other subjects are the test part."""
    manifest = store.manifest
    subjects = {entry.id: entry.subject for entry in manifest.cases}
    unknown = [case for case in references if case not in subjects]
    if unknown:
        raise ExportError(
            f"References are cases of dataset {manifest.dataset}, and {', '.join(unknown)} is none: name some of "
            f"{', '.join(sorted(subjects)[:5])}{', ...' if len(subjects) > 5 else ''}."
        )
    paper = manifest.splits["paper"]
    scored = [case for case in references if case in paper["test"]]
    if scored and paper["train"]:
        raise ExportError(
            f"{', '.join(scored)} is of the test part of dataset {manifest.dataset}: take references from its train "
            "part."
        )
    shown = {subjects[case] for case in references}
    tests = [case for case in paper["test"] if subjects[case] not in shown]
    if not tests:
        raise ExportError(
            f"No test case of dataset {manifest.dataset} is of another subject than the references "
            f"{', '.join(references)}: name fewer."
        )
    few = sorted(set(references))
    return {"paper": {"train": few, "validation": few, "test": tests}}


def consecutive_values(classes: Mapping[str, int]) -> dict[str, int]:
    """Class name -> 1, 2, ... in the order of our values, as nnU-Net wants them."""
    ordered = sorted(classes, key=lambda name: classes[name])
    return {name: number for number, name in enumerate(ordered, 1)}


def nnunet_splits(splits: Mapping[str, Split]) -> list[dict[str, list[str]]]:
    """splits_final.json: fold 0 is our "paper" split, folds 1 to 5 are our folds 0 to 4. No test case is in any.

    nnU-Net cannot train a fold that validates on nobody: such a one validates on what it trains on.
    """
    ours = ["paper", *(str(number) for number in range(FOLDS))]
    kept = [splits[name] for name in ours if name in splits]
    return [{"train": each["train"], "val": each["validation"] or each["train"]} for each in kept]


def dataset_json(spec: DatasetSpec, values: Mapping[str, int], training_cases: int) -> dict[str, Any]:
    """nnU-Net version 2's dataset.json."""
    return {
        "channel_names": {"0": CHANNELS[spec.modality]},
        "labels": {"background": 0, **values},
        "numTraining": training_cases,
        "file_ending": ".nii.gz",
        "name": spec.name,
        "description": spec.title,
        "reference": spec.source,
        "licence": spec.licence,
    }


def dataset_name(name: str, references: Sequence[str] = ()) -> str:
    """A dataset's name, and of which references, as part of a folder's: letters, digits and '_' only."""
    few = sorted(set(references))
    whole = "_".join([name, "from", *few]) if few else name
    if few and len(whole) > LONGEST_NAME:
        whole = f"{name}_from_{len(few)}_references_{text_digest(json.dumps(few))[:8]}"
    return re.sub(r"[^A-Za-z0-9]", "_", whole)


def _sources(store: Store, cases: Sequence[Case]) -> dict[str, str]:
    """Case id -> a digest of its raw files and of what is made of them.

    ExportError where they are others than those that the store was made of: its classes and splits may no longer fit,
    and both tools would be compared on two different things.
    """
    sources, changed = {}, []
    for case in cases:
        assert case.labels is not None
        files = file_digest([*case.image.contents, *case.labels.contents])
        sources[case.id] = text_digest(f"{files}{case.image.recipe}|{case.labels.recipe}")
        if not made_of(store, case, case_digest(case, files)):
            changed.append(case.id)
    if changed:
        raise ExportError(
            f"The raw scan or label of {', '.join(changed[:5])}{', ...' if len(changed) > 5 else ''} changed since the "
            f"store was made: run iris_plan_and_preprocess -d {store.manifest.dataset} again."
        )
    return sources


def _export_case(job: _Job) -> bool:
    """Write a case's two files, the labels last; False where both are there already."""
    if not job.overwrite and job.labels.is_file() and job.image.is_file():
        return False
    assert job.case.labels is not None
    image = job.case.image.read_image()
    labels = on_grid_of_image(image, job.case.labels.read_labels())
    check_same_grid(image, labels)
    check_label_values(labels.array, job.case.labels, job.spec)
    if _is_plain_nifti(job.case.image):
        _copy(job.case.image.files[0], job.image)
    else:
        image = replace(image, affine=nearest_rotation(image.affine, image.shape)[0])
        write_volume(job.image, image)
    renumbered = np.array(job.table, np.uint8)[labels.array.astype(np.uint8)]
    # The image's own header places the labels, so that nnU-Net's check of both geometries finds one.
    write_volume(job.labels, Volume(renumbered, image.affine, image.header))
    return True


def _renumbering(classes: Mapping[str, int], values: Mapping[str, int]) -> tuple[int, ...]:
    """For each of our values 0..255 nnU-Net's; no case has a value that is of no class (`check_label_values`)."""
    table = [0] * 256
    for name, value in classes.items():
        table[value] = values[name]
    return tuple(table)


def _is_plain_nifti(image: Source) -> bool:
    """Whether nnU-Net can take the file as it is: compressed NIfTI with three axes, lengths in mm, nothing to mend.

    Compressed in truth: our reader takes a plain file named .nii.gz, nnU-Net's does not. Nor does it (ITK) take axes
    that are not at right angles.
    """
    if not isinstance(image, FileSource) or not image.path.name.endswith(".nii.gz"):
        return False
    with image.path.open("rb") as stream:
        if stream.read(len(GZIP_MAGIC)) != GZIP_MAGIC:
            return False
    header = nib.load(image.path).header
    simple = len(header.get_data_shape()) == 3 and header.get_xyzt_units()[0] in ("mm", "unknown")
    return simple and skew(header.get_best_affine()) is None


def _copy(source: Path, target: Path) -> None:
    with replaced(target) as temporary:
        shutil.copyfile(source, temporary)
