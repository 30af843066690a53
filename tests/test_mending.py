"""Quirks of raw files: each mended value is computed by hand or by another way."""

from __future__ import annotations

import pickle
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from preprocessing.adapters import Case
from preprocessing.errors import LabelValueError, RawDataError
from preprocessing.fingerprint import case_digest
from preprocessing.sources.mending import (
    DoubtfulSpacing,
    NearestRotation,
    OnGridOf,
    PlacedAs,
    SidesByPlace,
    ValuesMapped,
    WithSpacing,
    nearest_rotation,
)
from preprocessing.sources.source import FileSource, FrameSource, Unreadable
from preprocessing.sources.source_kinds import natural

AFFINE = np.diag([-1.0, 2.0, 3.0, 1.0])


def saved(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> FileSource:
    nib.save(nib.Nifti1Image(array, affine), path)
    return FileSource(path)


def test_values_are_mapped_once_and_ignored_ones_vanish(tmp_path: Path) -> None:
    array = np.zeros((2, 3, 4), np.uint8)
    array[0, 0], array[0, 1], array[1, 2] = [1, 2, 255, 14], 2, 1
    source = ValuesMapped(saved(tmp_path / "l.nii", array), ((1, 2), (2, 1), (255, 3)), (14,))
    read = source.read_labels()
    expected = array.copy()
    expected[0, 0], expected[0, 1], expected[1, 2] = [2, 1, 3, 0], 1, 2  # 1 and 2 change places
    assert np.array_equal(read.array, expected.T)
    assert read.repairs == (
        "the label value 1 is read as 2",
        "the label value 2 is read as 1",
        "the label value 255 is read as 3",
    )
    plain = ValuesMapped(saved(tmp_path / "p.nii", array * 0), ((255, 1),)).read_labels()
    assert plain.repairs == () and not plain.array.any()


def test_labels_come_to_the_images_grid_by_the_nearest_voxel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = saved(tmp_path / "i.nii", np.ones((6, 5, 4), np.int16))
    labels = rng.integers(0, 4, (9, 8, 7)).astype(np.uint8)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [4, -7, 5], degrees=True).as_matrix() @ np.diag(
        [-1.1, 1.3, 2.2]
    )
    affine[:3, 3] = [1.3, -0.7, -1.9]
    read = OnGridOf(saved(tmp_path / "l.nii", labels, affine), image).read_labels()
    stored = nib.load(tmp_path / "l.nii").affine
    for i, j, k in np.ndindex(6, 5, 4):
        at = np.linalg.solve(stored, AFFINE @ [i, j, k, 1])[:3]
        nearest = np.floor(at + 0.5).astype(int)
        inside = (nearest >= 0).all() and (nearest < labels.shape).all()
        assert read.array[k, j, i] == (labels[tuple(nearest)] if inside else 0)
    assert np.allclose(read.affine, AFFINE) and "it had another size" in read.repairs[0]
    near = saved(tmp_path / "n.nii", np.ones((6, 5, 4), np.uint8), AFFINE + np.eye(4, k=3) * 0.1)
    assert OnGridOf(near, image).read_labels().repairs == ()


def test_a_label_map_that_lost_its_header_lies_where_the_image_does(tmp_path: Path) -> None:
    image = saved(tmp_path / "i.nii", np.ones((6, 5, 4), np.int16))
    array = np.random.default_rng(0).integers(0, 4, (6, 5, 4)).astype(np.uint8)
    lost = PlacedAs(saved(tmp_path / "l.nii", array, np.eye(4)), image).read_labels()
    assert np.array_equal(lost.array, array.T) and np.allclose(lost.affine, AFFINE)
    furthest = max(
        np.linalg.norm((AFFINE - np.eye(4)) @ [*corner, 1]) for corner in product((0, 5), (0, 4), (0, 3))
    )
    assert lost.repairs == (
        f"the label's corners lay up to {furthest:.1f} mm from the image's, which places it",
    )
    # The same voxels in other axes are known by their own header, which is right.
    turn = nib.orientations.inv_ornt_aff([[2, 1], [0, -1], [1, 1]], (6, 5, 4))
    other = nib.orientations.apply_orientation(array, [[2, 1], [0, -1], [1, 1]])
    turned = PlacedAs(saved(tmp_path / "t.nii", other, AFFINE @ turn), image).read_labels()
    assert np.array_equal(turned.array, array.T) and np.allclose(turned.affine, AFFINE)
    assert "axes are turned to the image's" in turned.repairs[0]
    # Of another size it is left to be refused, and one that fits is left alone.
    smaller = PlacedAs(saved(tmp_path / "s.nii", array[1:], np.eye(4)), image).read_labels()
    assert smaller.shape == (4, 5, 5) and smaller.repairs == ()
    assert PlacedAs(saved(tmp_path / "f.nii", array, AFFINE), image).read_labels().repairs == ()


def test_sides_are_told_by_where_they_lie(tmp_path: Path) -> None:
    array = np.zeros((9, 3, 3), np.uint8)
    array[1, 1, 1], array[4, 1, 1], array[7, 1, 1] = 2, 1, 3
    names = ("left hip", "right hip", "sacrum")
    # The first axis runs to the patient's left: index 1 lies right of index 7.
    source = SidesByPlace(saved(tmp_path / "l.nii", array), 2, 3, 1, names)
    read = source.read_labels()
    assert (read.array[1, 1, 1], read.array[1, 1, 4], read.array[1, 1, 7]) == (3, 1, 2)
    assert read.repairs == ("the label values of left hip and right hip are exchanged, by where they lie",)
    right = SidesByPlace(saved(tmp_path / "r.nii", array, np.eye(4)), 2, 3, 1, names).read_labels()
    assert right.repairs == () and np.array_equal(right.array, array.T)
    array[4], array[8, 1, 1] = 0, 1
    with pytest.raises(
        LabelValueError, match=r"but in .*l\.nii their centres are at -1, -7 and -8 mm from left"
    ):
        SidesByPlace(saved(tmp_path / "l.nii", array), 2, 3, 1, names).read_labels()
    # One alone is told by the sacrum: at -1 mm it lies right of one at -8 mm; without the sacrum nobody knows.
    array[7] = 0
    alone = SidesByPlace(saved(tmp_path / "l.nii", array), 2, 3, 1, names).read_labels()
    assert (alone.array[1, 1, 1], alone.array[1, 1, 8]) == (3, 1) and alone.repairs == read.repairs
    array[1, 1, 1] = 3
    kept = SidesByPlace(saved(tmp_path / "l.nii", array), 2, 3, 1, names).read_labels()
    assert kept.array[1, 1, 1] == 3 and kept.repairs == ()
    array[1, 1, 1], array[8] = 2, 0
    assert SidesByPlace(saved(tmp_path / "l.nii", array), 2, 3, 1, names).read_labels().repairs == ()


def test_the_nearest_rotation_keeps_spacing_and_middle(tmp_path: Path) -> None:
    turn = Rotation.from_euler("xyz", [10, 20, -5], degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[1, 0.04, 0], [0, 1, 0], [0, 0, 1]]) @ np.diag([1.5, 2.0, 8.0])
    affine[:3, 3] = [5, 6, 7]
    shape = (4, 6, 8)
    mended, degrees = nearest_rotation(affine, shape)
    cosines = mended[:3, :3] / np.linalg.norm(mended[:3, :3], axis=0)
    assert np.allclose(cosines.T @ cosines, np.eye(3), atol=1e-12) and np.linalg.det(cosines) > 0
    assert np.allclose(np.linalg.norm(mended[:3, :3], axis=0), np.linalg.norm(affine[:3, :3], axis=0))
    middle = [3.5, 2.5, 1.5, 1]
    assert np.allclose(mended @ middle, affine @ middle)
    # of all rotations none is nearer: a turn about any axis makes the distance to the given cosines larger
    given = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    best = np.linalg.norm(cosines - given)
    for axis in np.eye(3):
        for angle in (-0.01, 0.01):
            assert np.linalg.norm(Rotation.from_rotvec(angle * axis).as_matrix() @ cosines - given) > best
    assert degrees == pytest.approx(np.degrees(0.04) / 2, rel=0.05)  # half of the shear falls on each axis
    same, degrees = nearest_rotation(AFFINE, shape)
    assert np.array_equal(same, AFFINE) and degrees == 0
    source = NearestRotation(saved(tmp_path / "i.nii", np.ones((8, 6, 4), np.int16), affine))
    assert "the axes were not at right angles (up to 1.1 degrees)" in source.read_image().repairs[0]


def test_a_spacing_of_the_specification_replaces_the_headers(tmp_path: Path) -> None:
    lost = np.diag([-1.0, -1.0, 1.0, 1.0])
    lost[:3, 3] = [10, 20, 30]
    source = saved(tmp_path / "i.nii", np.ones((3, 4, 5), np.int16), lost)
    read = WithSpacing(source, (2.5, 0.7, 0.8)).read_image()
    assert read.spacing_mm == pytest.approx((2.5, 0.7, 0.8))
    assert np.allclose(read.affine, [[-0.8, 0, 0, 10], [0, -0.7, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
    assert read.repairs == (
        "the spacing is 2.5 x 0.7 x 0.8 mm (z,y,x) by the specification; the header says 1 x 1 x 1",
    )
    assert WithSpacing(source, (1.0, 1.0, 1.0)).read_image().repairs == ()
    doubtful = DoubtfulSpacing(source, (1.0, 1.0, 1.0)).read_image()
    assert doubtful.repairs == () and "is a known placeholder; it is kept" in doubtful.doubts[0]
    assert DoubtfulSpacing(source, (2.0, 1.0, 1.0)).read_image().doubts == ()


def test_a_frame_of_a_series_is_an_image_of_its_own(tmp_path: Path) -> None:
    array = np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(2, 3, 4, 5)
    nib.save(nib.Nifti1Image(array, AFFINE), tmp_path / "s.nii.gz")
    read = FrameSource(tmp_path / "s.nii.gz", 3).read_image()
    assert np.array_equal(read.array, array[..., 3].T) and np.allclose(read.affine, AFFINE)
    with pytest.raises(RawDataError, match=r"Frame 5 \(from 0\) is wanted of .* shape is \(2, 3, 4, 5\)"):
        FrameSource(tmp_path / "s.nii.gz", 5).read()
    saved(tmp_path / "flat.nii", array[..., 0])
    with pytest.raises(RawDataError, match="give a 4D file that has it"):
        FrameSource(tmp_path / "flat.nii", 0).read()


def test_what_is_done_to_the_files_counts_for_the_digest(tmp_path: Path) -> None:
    """A changed rule must make a stored case anew; sources travel between processes and compare by value."""
    array = np.ones((2, 2, 2), np.uint8)
    image, labels = saved(tmp_path / "i.nii", array.astype(np.int16)), saved(tmp_path / "l.nii", array)
    variants = [
        labels,
        ValuesMapped(labels, ((1, 2),)),
        ValuesMapped(labels, ((1, 3),)),
        OnGridOf(labels, image),
        NearestRotation(labels),
        WithSpacing(labels, (1.0, 1.0, 2.0)),
        SidesByPlace(labels, 1, 2, 3),
        Unreadable("There is none."),
    ]
    digests = {case_digest(Case("c", "c", image, each, "CT")) for each in variants}
    assert len(digests) == len(variants)
    assert [pickle.loads(pickle.dumps(each)) for each in variants] == variants
    assert str(variants[1]) == str(tmp_path / "l.nii") and variants[1].files == (tmp_path / "l.nii",)


def test_numbers_in_names_sort_by_size() -> None:
    names = ["a.png", "IMG-0004-00010.png", "IMG-0004-00009.png", "IMG-0004-2.png"]
    assert sorted(names, key=natural) == [
        "IMG-0004-2.png",
        "IMG-0004-00009.png",
        "IMG-0004-00010.png",
        "a.png",
    ]
