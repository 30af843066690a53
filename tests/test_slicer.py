"""Segmentations of 3D Slicer's: what their headers tell, and layers that become one label map.

Arrays are [D,H,W] = (z,y,x).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scans import affine_of
from segmentations import save_segmentation

from preprocessing.errors import LabelValueError, RawDataError
from preprocessing.formats.slicer import Segmentation, is_segmentation
from preprocessing.volume import case_id_of, is_image_path, read_labels, read_raw, stem_of

AFFINE = affine_of("LPS", (3.0, 1.5, 0.8), degrees=17)
SHAPE = (2, 3, 4)


def layer(**voxels: int) -> np.ndarray:
    """Zeros but for the voxels that are named by their indices: _012=5 is [0, 1, 2]."""
    array = np.zeros(SHAPE, np.uint8)
    for place, value in voxels.items():
        array[tuple(map(int, place[1:]))] = value
    return array


def test_the_whole_ending_is_taken_off() -> None:
    assert stem_of(Path("x/case_1.seg.nrrd")) == stem_of(Path("case_1.SEG.NRRD")) == "case_1"
    assert case_id_of(Path("case_1_0000.seg.nhdr")) == "case_1"
    assert stem_of(Path("case_1.segment.nrrd")) == "case_1.segment" and stem_of(Path("seg.nrrd")) == "seg"
    assert is_image_path(Path("a.seg.nrrd")) and is_segmentation(Path("a.Seg.nrrd"))
    assert not is_segmentation(Path("a.nrrd")) and not is_segmentation(Path("a.seg.nii.gz"))


def test_one_layer_is_read_with_the_names_of_its_values(tmp_path: Path) -> None:
    array = layer(_000=1, _012=3, _123=2)
    path = save_segmentation(
        tmp_path / "a.seg.nrrd", array, AFFINE, [("Léber", 3), (" left kidney ", 1), ("cyst", 2)]
    )
    volume = read_labels(path)
    assert np.array_equal(volume.array, array) and volume.array.dtype == np.uint8
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-9)
    assert volume.segments == Segmentation((("Léber", 3), ("left kidney", 1), ("cyst", 2)))
    assert volume.partial and volume.repairs == () and volume.header is None


def test_a_plain_nrrd_is_no_segmentation_whatever_its_header_says(tmp_path: Path) -> None:
    path = save_segmentation(tmp_path / "a.nrrd", layer(_000=1), AFFINE, [("liver", 1)])
    assert not read_labels(path).partial


def test_a_file_of_that_name_without_segments_is_a_label_map_of_a_part(tmp_path: Path) -> None:
    volume = read_labels(save_segmentation(tmp_path / "a.seg.nrrd", layer(_000=4), AFFINE))
    assert volume.partial and volume.segments == Segmentation() and volume.array[0, 0, 0] == 4


def test_layers_become_one_label_map_and_the_later_segment_wins(tmp_path: Path) -> None:
    lower, upper = layer(_000=1, _001=1, _002=1, _100=3), layer(_001=2, _002=2, _111=2, _100=4)
    segments = [("body", 1, 0), ("liver", 2, 1), ("lung", 4, 1), ("skin", 3, 0)]
    volume = read_labels(save_segmentation(tmp_path / "a.seg.nrrd", [lower, upper], AFFINE, segments))
    assert np.array_equal(volume.array, layer(_000=1, _001=2, _002=2, _111=2, _100=3))
    assert volume.repairs == ("3 voxels lie in several segments and go to the later one",)
    assert volume.segments == Segmentation((("body", 1), ("liver", 2), ("lung", 4), ("skin", 3)))
    apart = save_segmentation(tmp_path / "b.seg.nrrd", [layer(_000=1), layer(_001=2)], AFFINE, segments[:2])
    assert read_labels(apart).repairs == ()


def test_values_that_layers_share_are_of_use_with_names_only(tmp_path: Path) -> None:
    segments = [("liver", 1, 0), ("tumour", 1, 1), ("lung", 2, 0)]
    path = save_segmentation(
        tmp_path / "a.seg.nrrd", [layer(_000=1, _001=1, _123=2), layer(_001=1)], AFFINE, segments
    )
    volume = read_raw(path)
    assert np.array_equal(volume.array, layer(_000=1, _001=2, _123=3))
    assert volume.segments == Segmentation((("liver", 1), ("tumour", 2), ("lung", 3)), by_order=True)
    said = (
        r"The segments of \S+a\.seg\.nrrd \(liver, tumour, lung\) share label values, so they need the names of the "
        r"classes: rename them in 3D Slicer, or export them to a label map there"
    )
    with pytest.raises(LabelValueError, match=said):
        read_labels(path)


OLDER = """\
NRRD0004
# as Slicer 4 wrote it
type: unsigned char
dimension: 4
space: left-posterior-superior
sizes: {sizes}
space directions: {directions}
kinds: {kinds}
encoding: raw
space origin: (5,6,7)
Segment0_Name:=liver
Segment0_ID:=Segment_1
Segment1_Name:=tumour
Segmentation_ReferenceImageExtentOffset:=2 1 0

"""
AXES = "(0.5,0,0) (0,0.5,0) (0,0,2)"


@pytest.mark.parametrize("list_first", [True, False])
def test_older_files_have_a_layer_a_segment_and_one_value(tmp_path: Path, list_first: bool) -> None:
    layers = np.stack([layer(_000=1, _001=1), layer(_001=1, _123=1)])
    if list_first:
        said = {"sizes": "2 4 3 2", "directions": f"none {AXES}", "kinds": "list domain domain domain"}
        voxels = np.moveaxis(layers, 0, 3)
    else:
        said = {"sizes": "4 3 2 2", "directions": f"{AXES} none", "kinds": "domain domain domain list"}
        voxels = layers
    path = tmp_path / "a.seg.nrrd"
    path.write_bytes(OLDER.format(**said).encode() + np.ascontiguousarray(voxels).tobytes())
    volume = read_raw(path)
    assert np.array_equal(volume.array, layer(_000=1, _001=2, _123=2))
    assert volume.segments == Segmentation((("liver", 1), ("tumour", 2)), by_order=True)
    assert volume.repairs == ("1 voxels lie in several segments and go to the later one",)
    np.testing.assert_allclose(
        volume.affine, [[-0.5, 0, 0, -5], [0, -0.5, 0, -6], [0, 0, 2, 7], [0, 0, 0, 1]]
    )


def test_an_older_file_of_one_segment_needs_no_values(tmp_path: Path) -> None:
    path = save_segmentation(tmp_path / "a.seg.nrrd", layer(_000=1), AFFINE, keys={"Segment0_Name": "liver"})
    assert read_labels(path).segments == Segmentation((("liver", 1),))
    nameless = save_segmentation(
        tmp_path / "b.seg.nrrd", layer(_000=1), AFFINE, keys={"Segment0_ID": "Segment_1"}
    )
    assert read_labels(nameless).segments == Segmentation((("Segment_1", 1),))


@pytest.mark.parametrize(
    ("layers", "keys", "error", "says"),
    [
        (2, {}, RawDataError, "names its segments, but .* has 2 layers without a name: save it again in 3D"),
        (
            1,
            {"Segment0_Name": "liver", "Segment0_LabelValue": "0"},
            RawDataError,
            r"label value from 1 on and one of the file's 1 layers \(from 0\), but 'liver' in .*'LabelValue': '0'",
        ),
        (1, {"Segment0_Name": "liver", "Segment0_Layer": "1"}, RawDataError, "'liver' in .*'Layer': '1'"),
        (1, {"Segment0_Name": "liver", "Segment0_LabelValue": "one"}, RawDataError, "'LabelValue': 'one'"),
        (
            1,
            {"Segment0_Name": "liver", "Segment1_Name": "spleen"},
            RawDataError,
            "of one layer have values of their own, but 'liver' and 'spleen' in .* both have 1: save",
        ),
        (
            1,
            {"Segment0_Name": "liver", "Segment0_LabelValue": "2"},
            LabelValueError,
            "is a segment's, but .* holds the value 1, which none of liver has: save it again",
        ),
    ],
)
def test_headers_that_cannot_be_meant(
    tmp_path: Path, layers: int, keys: dict[str, str], error: type[Exception], says: str
) -> None:
    array = layer(_000=1)
    path = tmp_path / "a.seg.nrrd"
    save_segmentation(path, array if layers == 1 else [array] * layers, AFFINE, keys=keys)
    with pytest.raises(error, match=says) as caught:
        read_raw(path)
    assert re.search(r"a\.seg\.nrrd", str(caught.value)) and "\n" not in str(caught.value)


def test_a_damaged_or_missing_file_is_told_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "a.seg.nrrd").write_bytes(b"NRRD0004\nnothing more\n\n")
    with pytest.raises(RawDataError, match=r"a\.seg\.nrrd cannot be read .*: the file is damaged"):
        read_raw(tmp_path / "a.seg.nrrd")
    with pytest.raises(RawDataError, match=r"b\.seg\.nrrd does not exist"):
        read_raw(tmp_path / "b.seg.nrrd")
