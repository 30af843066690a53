"""Each of the nineteen downloads broken in three ways: a file missing, a value unknown, grids different.

One sentence of one case, and the other cases do not suffer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from raw_trees import TREES, write_tree

from preprocessing.adapters import Case, find_cases
from preprocessing.fingerprint import measure_case
from preprocessing.spec import DatasetSpec, load_spec

Change = Callable[[Path], None]


@contextmanager
def changed(path: Path, change: Change) -> Iterator[None]:
    """The file changed, and whole again afterwards."""
    content = path.read_bytes()
    change(path)
    try:
        yield
    finally:
        path.write_bytes(content)


def rewritten(edit: Callable[[np.ndarray], np.ndarray]) -> Change:
    """A NIfTI or PNG file with another array on the same affine."""

    def change(path: Path) -> None:
        if path.suffix == ".png":
            Image.fromarray(edit(np.asarray(Image.open(path)).copy())).save(path)
            return
        image = nib.load(path)
        array, affine = np.asarray(image.dataobj).copy(), image.affine.copy()
        path.unlink()
        nib.save(nib.Nifti1Image(edit(array), affine), path)

    return change


def with_value(value: int) -> Change:
    def edit(array: np.ndarray) -> np.ndarray:
        array[0, 0] = value
        return array

    return rewritten(edit)


def cropped(array: np.ndarray) -> np.ndarray:
    return array[:-1]


def refused(case: Case, spec: DatasetSpec, verdict: str = "refused") -> str:
    found = measure_case(case, spec)
    assert found.verdict == verdict, found.why
    assert "\n" not in found.why and found.why.count(". ") == 0
    return found.why


@pytest.mark.parametrize("name", sorted(TREES))
def test_three_ways_to_break_a_download(name: str, tmp_path: Path) -> None:
    write_tree(name, tmp_path)
    spec = load_spec(name)
    folder = spec.raw_folder(tmp_path)
    cases = find_cases(folder, spec)
    case, other = cases[0], cases[-1]
    assert case.labels is not None
    label_file, image_file = case.labels.files[0], case.image.files[0]
    kind = {"chaos_mr": "masks", "brain": "maps"}.get(name, "file")
    if kind == "masks":
        label_file = sorted(label_file.glob("*.png"))[3]

    def listed() -> Case:
        return next(each for each in find_cases(folder, spec) if each.id == case.id)

    # a file is missing
    with changed(label_file, Path.unlink):
        why = refused(listed(), spec)
        expected = {
            "masks": r"Each slice has one mask, but .*Ground holds 21 PNG files for 22 slices: copy",
            "maps": r"Case dlbs_\d+ lacks the probability map of grey matter: all 3 are needed",
            "file": rf"Case {case.id} has an image \({re.escape(case.image.name)}\) but no label file",
        }[kind]
        assert re.search(expected, why), why
        assert measure_case(other, spec).accepted
    if kind == "file":
        with changed(image_file, Path.unlink):
            why = refused(listed(), spec)
            no_image = f"Case {case.id} has labels ({label_file.name}) but no image"
            assert (f"{image_file.name} does not exist" if spec.layout == "msd" else no_image) in why
    # a value is unknown
    with changed(label_file, with_value(100)):
        why = refused(listed(), spec)
        expected = {
            "masks": r"png holds unknown grey values \(100\): allowed are 0 \(background\), 56-70 \(1\), 111-135",
            "maps": r"Probabilities lie in 0\.\.1, but .*graymatter\.nii holds 0 to 100: give the probability maps",
            "file": rf"holds unknown label values \(100\): dataset {name} allows 0 \(background\), \d+ \(",
        }[kind]
        assert re.search(expected, why), why
    # grids differ
    with changed(label_file, rewritten(cropped)):
        resampled = spec.quirks.label_grid == "resample"
        why = refused(listed(), spec, "repaired" if resampled else "refused")
        expected = {
            "masks": r"must have the same grid, but .*png has \(27, 25\) pixels \(y,x\) and a slice \(28, 25\)",
            "maps": r"The probability maps of a case must have the same grid, but .*whitematter\.nii has another",
            "file": r"brought to the image's grid by the nearest voxel \(it had another size\)"
            if resampled
            else r"Image and label must have the same grid, but the image has \d+ x \d+ x \d+ voxels and the",
        }[kind]
        assert re.search(expected, why), why


def test_frames_that_nobody_names(tmp_path: Path) -> None:
    """ACDC without Info.cfg, M&Ms without a row, with a wrong frame, without its table."""
    write_tree("acdc", tmp_path)
    write_tree("mnms", tmp_path)
    acdc, mnms = load_spec("acdc"), load_spec("mnms")
    (tmp_path / "ACDC/database/training/patient001/Info.cfg").unlink()
    cases = find_cases(acdc.raw_folder(tmp_path), acdc)
    assert [case.id for case in cases][:2] == ["patient001_frame00", "patient002_frame01"]
    assert refused(cases[0], acdc) == (
        "patient001 has no Info.cfg, which says which frames are labelled: copy the case again."
    )
    (table,) = (tmp_path / "OpenDataset").glob("*.csv")
    rows = table.read_text(encoding="utf-8-sig").splitlines()
    code = rows[1].split(",")[1]

    def first(changed_row: str) -> str:
        table.write_text("\n".join([rows[0], changed_row, *rows[2:]]), encoding="utf-8-sig")
        cases = find_cases(mnms.raw_folder(tmp_path), mnms)
        return refused(next(case for case in cases if case.id.startswith(code)), mnms)

    assert first("") == (
        f"{code} has no row in the table *M&Ms_Dataset_information_diagnosis_opendataset.csv, which says "
        "which frames are labelled: add one."
    )
    assert first(f"0,{code},Siemens,A,1,,0,40,NOR,M") == (
        f"A frame number is a whole number from 0 on, but ED of {code} is '': correct it."
    )
    assert "is 'nan': correct it" in first(f"0,{code},Siemens,A,1,nan,0,40,NOR,M")
    assert "Frame 2 (from 0) of" in first(f"0,{code},Siemens,A,1,2,0,40,NOR,M")
    assert "should be labelled and is empty" in first(f"0,{code},Siemens,A,1,2,0,40,NOR,M")
    assert "Frame 7 (from 0) is wanted of" in first(f"0,{code},Siemens,A,1,7,0,40,NOR,M")
    table.write_text("External code;ED\nx;1\n", encoding="utf-8")
    with pytest.raises(Exception, match="lacks the column ES; it has External code, ED: give the table"):
        find_cases(mnms.raw_folder(tmp_path), mnms)
    table.unlink()
    with pytest.raises(Exception, match="lacks the table .*opendataset.csv, which says which frames"):
        find_cases(mnms.raw_folder(tmp_path), mnms)


def test_masks_without_the_slices_names_are_put_in_order_and_their_direction_is_checked(
    tmp_path: Path,
) -> None:
    truths = write_tree("chaos_mr", tmp_path)
    spec = load_spec("chaos_mr")
    case = next(case for case in find_cases(spec.raw_folder(tmp_path), spec) if case.id.endswith("_t2"))
    assert case.labels is not None
    masks = sorted(case.labels.files[0].glob("*.png"))
    for number, path in enumerate(masks):
        path.rename(path.with_name(f"mask_{number}.png"))  # 10 stands before 9 in plain order
    labels = case.labels.read_labels()
    np.testing.assert_array_equal(labels.array, truths[case.id].labels.transpose(2, 1, 0))
    for number in range(len(masks)):
        path = masks[0].with_name(f"mask_{number}.png")
        path.rename(path.with_name(f"turned_{len(masks) - number}.png"))
    assert "fit the image better in the opposite order" in refused(case, spec)
    dicom = sorted(case.image.files[0].glob("*.dcm"))
    dicom[4].unlink()
    assert "slices lie" in refused(case, spec).lower() or "lie evenly" in refused(case, spec)


def test_the_heart_cannot_be_a_cord(tmp_path: Path) -> None:
    """Another order of StructSeg's thoracic labels, as some public lists have it, is not believed."""
    write_tree("structseg_thorax", tmp_path)
    spec = load_spec("structseg_thorax")
    case = find_cases(spec.raw_folder(tmp_path), spec)[0]
    assert case.labels is not None

    def exchange(array: np.ndarray) -> np.ndarray:
        return np.choose(array, [0, 1, 2, 6, 4, 5, 3]).astype(np.uint8)

    with changed(case.labels.files[0], rewritten(exchange)):
        why = refused(case, spec)
    assert re.search(
        r"'heart' of dataset structseg_thorax has 150 to 2000 ml, but 7\.\d+ ml in case \d+:", why
    ), why


def test_hips_on_one_side_of_the_sacrum_are_refused(tmp_path: Path) -> None:
    write_tree("pelvic", tmp_path)
    spec = load_spec("pelvic")
    case = find_cases(spec.raw_folder(tmp_path), spec)[0]
    assert case.labels is not None

    def exchange(array: np.ndarray) -> np.ndarray:
        return np.choose(array, [0, 2, 1, 3, 4]).astype(np.uint8)

    with changed(case.labels.files[0], rewritten(exchange)):
        why = refused(case, spec)
    assert "'left hip' and 'right hip' lie on either side of 'sacrum', but in" in why
