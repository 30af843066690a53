"""The phantoms against their own anatomy: place, side, contrast and repeatability, whatever axes a file has.

Points and centres are (x,y,z) in RAS+ mm; arrays are [D,H,W] = (z,y,x) along the file's axes.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from preprocessing.adapters import find_cases
from preprocessing.phantom_anatomy import Blob, Tube, draw_anatomy
from preprocessing.phantoms import (
    KINDS,
    MAX_OBLIQUE_DEGREES,
    Kind,
    draw_grid,
    grid_points,
    main,
    make_case,
    make_phantoms,
    subject_anatomy,
)
from preprocessing.spec import load_spec
from preprocessing.volume import Volume

KIND = {kind.name: kind for kind in KINDS}
CT, MR, PET = (KIND[f"phantom_{name}"] for name in ("ct", "mr", "pet"))
ALL_CASES = [pytest.param(kind, case, id=kind.case_id(case)) for kind in KINDS for case in (0, 1, 2, 3)]


def classes_of(kind: Kind) -> dict[str, int]:
    return dict(load_spec(kind.name).classes)


@functools.cache
def scan(kind: Kind, case: int) -> tuple[Volume, Volume]:
    """The case of seed 0, made once for all tests."""
    return make_case(kind, case, 0, classes_of(kind))


def centre_mm(volume: Volume, value: int) -> np.ndarray:
    """Mean place of a label in RAS+ mm, by nibabel's convention: affine times (x,y,z,1)."""
    index_xyz = np.argwhere(volume.array == value)[:, ::-1]
    return nib.affines.apply_affine(volume.affine, index_xyz).mean(axis=0)


def likeness_of_neighbours(kind: Kind) -> float:
    """Correlation of muscle voxels with the next along W: near 0 for white noise, near 1 where blurred."""
    image, labels = scan(kind, 1)
    anatomy = subject_anatomy(kind, 1, 0)
    muscle = anatomy.label_map(grid_points(labels.array.shape[::-1], labels.affine), {"muscle": 1}) == 1
    muscle = binary_erosion(muscle, iterations=3)
    pairs = muscle[..., 1:] & muscle[..., :-1]
    return float(np.corrcoef(image.array[..., 1:][pairs], image.array[..., :-1][pairs])[0, 1])


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    assert main([str(folder), "--seed", "3", "--cases", "3"]) == 0
    return folder


@pytest.mark.parametrize(("kind", "case"), ALL_CASES)
def test_centres_agree_with_the_anatomy_on_an_upright_lattice(kind: Kind, case: int) -> None:
    """Against the anatomy on a 3 mm lattice along x, y and z: no file axis, flip or angle takes part."""
    classes = classes_of(kind)
    _, labels = scan(kind, case)
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = [-138.0, -111.0, -147.0]
    upright = subject_anatomy(kind, kind.subject(case), 0).label_map(
        grid_points((93, 75, 99), affine), classes
    )
    for name, value in classes.items():
        if name != "spine":  # the grid cuts it off at both ends
            expected = centre_mm(Volume(upright, affine), value)
            np.testing.assert_allclose(centre_mm(labels, value), expected, atol=1.2, err_msg=name)
            ml = np.count_nonzero(labels.array == value) * abs(np.linalg.det(labels.affine[:3, :3])) / 1000
            assert ml == pytest.approx(np.count_nonzero(upright == value) * 0.027, rel=0.12), name


@pytest.mark.parametrize(("kind", "case"), [p for p in ALL_CASES if p.values[0] is not PET])
def test_sides(kind: Kind, case: int) -> None:
    """x grows toward the patient's right: the left kidney and the spleen lie at negative x."""
    classes = classes_of(kind)
    _, labels = scan(kind, case)
    x = {name: centre_mm(labels, value)[0] for name, value in classes.items()}
    assert x["left_kidney"] < -30 and x["spleen"] < -30 and x["right_kidney"] > 30 and x["liver"] > 20
    assert abs(x["spine"]) < 20


def test_signed_distance_of_a_ball_a_turned_blob_and_a_tube() -> None:
    ball = Blob((1.0, 2.0, 3.0), (10.0, 10.0, 10.0))
    points = np.array([[1.0, 2.0, 3.0], [1.0, 7.0, 3.0], [11.0, 2.0, 3.0], [1.0, 2.0, 18.0]])
    np.testing.assert_allclose(ball.distance_mm(points), [-10.0, -5.0, 0.0, 5.0], atol=1e-12)
    upright = Blob((0.0, 0.0, 0.0), (30.0, 10.0, 10.0), roll_degrees=90.0)  # the long axis along z now
    np.testing.assert_allclose(
        upright.distance_mm(np.array([[0, 0, 30.0], [10.0, 0, 0], [0, 10.0, 0]])), 0, atol=1e-9
    )
    bitten = Blob((0.0, 0.0, 0.0), (10.0, 10.0, 10.0), bite=((8.0, 0.0, 0.0), (4.0, 4.0, 4.0)))
    assert (bitten.distance_mm(np.array([[8.0, 0, 0], [0.0, 8.0, 0]])) > 0).tolist() == [True, False]
    tube = Tube((5.0, 0.0), (3.0, 3.0), bend_mm=2.0)
    half_turn = 55.0 * np.pi
    np.testing.assert_allclose(
        tube.distance_mm(np.array([[5.0, 5.0, 0.0], [5.0, 1.0, half_turn]])), 0, atol=1e-12
    )


@pytest.mark.parametrize("codes", sorted({codes for kind in KINDS for codes in kind.axcodes}))
def test_grid_has_the_axes_it_is_asked_for_and_its_middle(codes: str) -> None:
    kind = Kind("any", "CT", (50, 40, 54), (2.0, 3.0, 4.0), (5.0, -6.0, 7.0), (codes,))
    shape, straight = draw_grid(np.random.default_rng(0), kind, codes, oblique=False)
    assert "".join(nib.aff2axcodes(straight)) == codes
    assert np.count_nonzero(straight[:3, :3]) == 3
    along = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
    assert shape == tuple(kind.voxels[along[letter]] for letter in codes)
    np.testing.assert_allclose(np.abs(straight[:3, :3]) @ np.array(shape), [100, 120, 216])
    same_shape, oblique = draw_grid(np.random.default_rng(0), kind, codes, oblique=True)
    assert same_shape == shape and "".join(nib.aff2axcodes(oblique)) == codes
    turn = oblique[:3, :3] @ np.linalg.inv(straight[:3, :3])
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    angle = np.degrees(np.arccos((np.trace(turn) - 1) / 2))
    assert 0.3 * MAX_OBLIQUE_DEGREES <= angle <= MAX_OBLIQUE_DEGREES
    for affine in (straight, oblique):
        np.testing.assert_allclose(grid_points(shape, affine).mean(axis=(0, 1, 2)), [5, -6, 7], atol=1e-9)


def test_files_are_mixed_in_orientation_and_spacing() -> None:
    thickest = {}
    for kind in KINDS:
        affines = [scan(kind, case)[1].affine for case in range(4)]
        assert len({nib.aff2axcodes(affine) for affine in affines}) == 4
        assert min(kind.voxels) >= 25 and max(kind.voxels) <= 50
        assert max(kind.spacing_mm) / min(kind.spacing_mm) > 1.2
        thickest[kind.name] = "xyz"[np.argmax(kind.spacing_mm)]
    assert thickest == {"phantom_ct": "z", "phantom_mr": "x", "phantom_pet": "z"}


def test_the_same_seed_writes_the_same_arrays_and_another_seed_others(raw: Path, tmp_path: Path) -> None:
    make_phantoms(tmp_path / "again", seed=3, cases_per_dataset=2)
    make_phantoms(tmp_path / "other", seed=4, cases_per_dataset=1)
    for kind in KINDS:
        for part in ("imagesTr", "labelsTr"):
            for case in (0, 1):
                name = f"{kind.name}/{part}/{kind.case_id(case)}.nii.gz"
                first, again = (nib.load(folder / name) for folder in (raw, tmp_path / "again"))
                assert first.dataobj[:].tobytes() == again.dataobj[:].tobytes()
                assert first.affine.tobytes() == again.affine.tobytes()
            name = f"{kind.name}/{part}/{kind.case_id(0)}.nii.gz"
            assert not np.array_equal(
                nib.load(raw / name).dataobj, nib.load(tmp_path / "other" / name).dataobj
            )


def test_a_case_does_not_depend_on_the_others() -> None:
    classes = classes_of(MR)
    alone = make_case(MR, 9, 0, classes)[0].array
    make_case(MR, 3, 0, classes)
    assert make_case(MR, 9, 0, classes)[0].array.tobytes() == alone.tobytes()


def test_layout_on_disk(raw: Path) -> None:
    for kind in KINDS:
        spec = load_spec(kind.name)
        folder = raw / kind.name
        written = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        assert written["labels"] == {"0": "background"} | {str(v): k for k, v in spec.classes.items()}
        assert [Path(pair["image"]).name for pair in written["training"]] == [
            path.name for path in sorted((folder / "imagesTr").iterdir())
        ]
        cases = find_cases(folder, spec)
        assert [case.id for case in cases] == [kind.case_id(number) for number in range(3)]
        assert [case.subject for case in cases] == ["s00", "s01", "s02"]
        image, labels = nib.load(cases[1].image.files[0]), nib.load(cases[1].labels.files[0])
        expected_image, expected_labels = make_case(kind, 1, 3, dict(spec.classes))
        np.testing.assert_array_equal(image.get_fdata().T, expected_image.array)
        np.testing.assert_array_equal(np.asarray(labels.dataobj).T, expected_labels.array)
        np.testing.assert_allclose(image.affine, expected_image.affine, atol=1e-4)
        assert set(np.unique(labels.dataobj)) == {0, *spec.classes.values()}


def test_specs_match_the_kinds() -> None:
    for kind in KINDS:
        spec = load_spec(kind.name)
        assert (spec.modality, spec.role, spec.expected_cases) == (kind.modality, "phantom", kind.cases)
        subjects = {spec.subject_of(kind.case_id(case)) for case in range(kind.cases)}
        assert len(subjects) == kind.cases - len(kind.visits)
    assert classes_of(CT).keys() == classes_of(MR).keys() and classes_of(CT) != classes_of(MR)
    assert "lesion" in classes_of(PET) and not classes_of(PET).keys() & classes_of(CT).keys()


def test_a_second_visit_shows_the_same_body_in_another_scan() -> None:
    assert MR.case_id(12) == "mr_s02_v2" and MR.case_id(2) == "mr_s02_v1"
    classes = classes_of(MR)
    (first, first_labels), (second, second_labels) = (scan(MR, case) for case in (2, 12))
    _, stranger = scan(MR, 3)
    for value in (classes["liver"], classes["spleen"]):
        home = centre_mm(first_labels, value)
        np.testing.assert_allclose(centre_mm(second_labels, value), home, atol=1.0)
        assert np.abs(centre_mm(stranger, value) - home).max() > 2.0
    assert first.array.shape != second.array.shape or not np.array_equal(first.array, second.array)


def test_one_subject_lacks_a_kidney() -> None:
    classes = classes_of(CT)
    present = [set(np.unique(scan(CT, case)[1].array)) for case in range(CT.cases)]
    assert present[5] == {0, 1, 2, 3, 4, 5} - {classes["left_kidney"]}
    assert all(found == {0, 1, 2, 3, 4, 5} for case, found in enumerate(present) if case != 5)


def test_anatomies_differ_but_are_bodies() -> None:
    """Every class keeps its millilitres within a factor of three over subjects, and stays off the border."""
    for kind in KINDS:
        classes = classes_of(kind)
        volumes = []
        for case in range(kind.cases):
            labels = scan(kind, case)[1]
            counts = np.bincount(labels.array.ravel(), minlength=len(classes) + 1)[1:]
            volumes.append(counts * abs(np.linalg.det(labels.affine[:3, :3])) / 1000)
            inner = labels.array[1:-1, 1:-1, 1:-1]
            for name, value in classes.items():
                assert name == "spine" or np.count_nonzero(inner == value) == counts[value - 1], (case, name)
        table = np.array(volumes)
        for name, value in classes.items():
            column = table[:, value - 1][table[:, value - 1] > 0]
            assert 1.2 < column.max() / column.min() < (8 if name == "lesion" else 3), (
                kind.name,
                name,
                column,
            )


def test_hounsfield_units() -> None:
    image, labels = scan(CT, 1)
    assert image.array.dtype == np.int16
    mean = {
        name: image.array[binary_erosion(labels.array == value)].mean()  # without partial volumes
        for name, value in classes_of(CT).items()
    }
    assert mean["liver"] == pytest.approx(110, abs=8) and mean["spleen"] == pytest.approx(135, abs=12)
    assert mean["spine"] > 200 and mean["right_kidney"] > mean["spleen"]
    assert image.array[0, 0, 0] == pytest.approx(-1000, abs=80)  # air in the corner


def test_coil_shading_tilts_the_muscle_of_mr() -> None:
    """One tissue is brighter in one quarter of the trunk than in another, beyond what noise and grain do."""
    ratios = []
    for case in range(4):
        image, labels = scan(MR, case)
        assert image.array.dtype == np.uint16
        points = grid_points(labels.array.shape[::-1], labels.affine)
        anatomy = subject_anatomy(MR, MR.subject(case), 0)
        muscle = anatomy.label_map(points, {"muscle": 1}) == 1
        blocks = [
            np.median(image.array[muscle & (points[..., 0] * x > 40) & (points[..., 2] * z > 40)])
            for x in (-1, 1)
            for z in (-1, 1)
        ]
        ratios.append(max(blocks) / min(blocks))
    assert max(ratios) > 1.2


def test_pet_is_smooth_and_its_lesions_are_hot() -> None:
    classes = classes_of(PET)
    for case in range(4):
        image, labels = scan(PET, case)
        assert image.array.dtype == np.float32 and image.array.min() >= 0
        rest = np.median(image.array[(labels.array == 0) & (image.array > 0.2)])
        assert image.array[labels.array == classes["lesion"]].mean() > 5 * rest
        assert image.array[labels.array == classes["bladder"]].mean() > 10 * rest
    assert likeness_of_neighbours(PET) > 0.5 > 0.3 > likeness_of_neighbours(CT)


def test_lesions_are_nowhere_in_particular() -> None:
    places = np.array([centre_mm(scan(PET, case)[1], classes_of(PET)["lesion"]) for case in range(PET.cases)])
    assert (np.ptp(places, axis=0) > (50, 25, 35)).all()


def test_draw_anatomy_repeats_itself() -> None:
    points = np.array([[10.0, 20.0, 30.0], [-60.0, -36.0, -4.0]])
    first, again, other = (draw_anatomy(np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.to_canonical(points), again.to_canonical(points))
    assert np.abs(first.to_canonical(points) - other.to_canonical(points)).max() > 1.0
    assert np.abs(first.to_canonical(points) - points).max() < 40
