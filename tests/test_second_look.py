"""A second look: surroundings against naive means, grey values matched exactly, their way through tasks and files, and
a scan that lost its surroundings.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stub_model import GreyModel, loaded_with, make_task
from torch import Tensor

from iris_pipeline.confidence.disagreement import gather_signs
from iris_pipeline.inference.focus import label_volume
from iris_pipeline.inference.pool import Embedded
from iris_pipeline.inference.retrieval import RetrievalSettings, retrieve_classes
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import PreparedReference, ensemble
from iris_pipeline.prediction.predict import describe, digest
from iris_pipeline.prediction.rivals import found_dice
from iris_pipeline.scans.scan import Wanted, segment_scan
from iris_pipeline.search.second_look import (
    AS_IT_IS,
    UNSURE,
    Matching,
    look_twice,
    matching,
    surroundings_of,
    with_surroundings,
)
from iris_pipeline.search.showing import AS_PLANNED, SEARCH_RULES, Showing
from iris_pipeline.tasks.task import Surroundings, TaskEmbedding, merge
from iris_pipeline.tasks.task_file import load_task, save_task
from preprocessing.case import preprocess_case
from preprocessing.errors import PredictionError, TaskError
from preprocessing.normalise import Normalisation
from preprocessing.volume import Volume

SHAPE = (20, 18, 16)
CLASSES = {"ball": 1, "speck": 2, "absent": 3}


def scene(seed: int = 0) -> PreparedReference:
    """A block of 6^3 voxels near a corner, brighter than what is round it, and a speck of 8 voxels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:8, 5:11, 6:12] = 1
    labels[15:17, 12:14, 2:4] = 2
    image = (rng.normal(0, 0.1, SHAPE) + 2.0 * (labels == 1)).astype(np.float32)
    return PreparedReference("a", image, labels, CLASSES)


def test_surroundings_are_the_box_of_a_class_and_four_voxels_more() -> None:
    shown = scene()
    around = shown.image[0:12, 1:15, 2:16].astype(float)  # cut where the scan ends
    assert surroundings_of(shown, ["absent", "ball", "speck"]) == (
        (0.0, 0.0),
        (pytest.approx(around.mean()), pytest.approx(around.std())),
        (0.0, 0.0),  # of 8 voxels a box says little
    )


@pytest.mark.parametrize("gain", [0.6, 1.0, 1.9])
def test_what_was_stretched_and_shifted_is_as_it_was(gain: float) -> None:
    shown = scene()
    task = make_task([2.0], ("ball",), surroundings=surroundings_of(shown, ["ball"]))
    other = (gain * shown.image + 0.7).astype(np.float32)
    found = matching(other, shown.labels, task)
    assert (found.gain, found.shift) == (
        pytest.approx(1 / gain, rel=1e-5),
        pytest.approx(-0.7 / gain, rel=1e-4),
    )
    assert found(other).dtype == np.float32
    np.testing.assert_allclose(found(other), shown.image, atol=1e-5)


def test_grey_values_are_at_most_doubled_or_halved() -> None:
    shown = scene()
    task = make_task([2.0], ("ball",), surroundings=surroundings_of(shown, ["ball"]))
    for gain, kept in ((5.0, 2.5), (0.1, 0.2)):
        found = matching(gain * shown.image, shown.labels, task)(gain * shown.image)
        mean, spread = surroundings_of(replace(shown, image=found), ["ball"])[0]
        assert (mean, spread) == pytest.approx(
            (task.surroundings[0][0], kept * task.surroundings[0][1]), rel=1e-4
        )


def test_the_mean_is_over_the_classes_that_both_show() -> None:
    shown = scene()
    known: tuple[Surroundings, ...] = ((5.0, 2.0), (9.0, 1.0), (7.0, 4.0))
    names = ("ball", "speck", "absent")
    one = matching(shown.image, shown.labels, make_task([2.0, 0.0, 0.0], names, surroundings=known))
    assert one == matching(shown.image, shown.labels, make_task([2.0], ("ball",), surroundings=known[:1]))
    two = {"ball": 1, "rest": 2}
    labels = np.where(shown.labels == 1, 1, 0).astype(np.uint8)
    labels[12:18, 3:9, 3:9] = 2
    scan = PreparedReference("b", shown.image, labels, two)
    (a, s), (b, t) = surroundings_of(scan, ["ball", "rest"])
    task = make_task([2.0, 0.0], ("ball", "rest"), surroundings=((a + 1, s), (b + 2, t)))
    found = matching(scan.image, labels, task)
    assert (found.gain, found.shift) == (pytest.approx(1.0), pytest.approx(1.5))


def test_a_scan_stays_as_it_is_where_nothing_is_known_or_found() -> None:
    shown = scene()
    nothing = np.zeros(SHAPE, np.uint8)
    known = surroundings_of(shown, ["ball"])
    assert matching(shown.image, nothing, make_task([2.0], ("ball",), surroundings=known)) == AS_IT_IS
    assert matching(shown.image, shown.labels, make_task([2.0], ("ball",))) == AS_IT_IS
    unknown = make_task([2.0], ("ball",), surroundings=((0.0, 0.0),))
    assert matching(shown.image, shown.labels, unknown) == AS_IT_IS
    flat = np.full(SHAPE, 3.0, np.float32)
    assert matching(flat, shown.labels, make_task([2.0], ("ball",), surroundings=known)) == AS_IT_IS
    assert AS_IT_IS(flat) is flat
    model = GreyModel()
    assert look_twice(model, shown.image, make_task([2.0], ("ball",)), InferenceOptions()) == AS_IT_IS
    assert not model.images, "no look without surroundings"


@pytest.mark.parametrize(
    ("usual", "gain", "shift"),
    [((0.51, 0.11), 1.0, 0.0), ((0.49, 0.11), 1.1, 0.5), ((0.51, 0.09), 1.1, 0.5), ((0.0, 0.0), 1.1, 0.5)],
)
def test_a_scan_that_is_no_farther_off_than_is_usual_stays_as_it_is(
    usual: tuple[float, float], gain: float, shift: float
) -> None:
    """The logarithm of 1.1 is 0.095."""
    shown = scene()
    mean, spread = surroundings_of(shown, ["ball"])[0]
    task = make_task([2.0], ("ball",), surroundings=((mean + 0.5, 1.1 * spread),), usual=usual)
    found = matching(shown.image, shown.labels, task)
    assert found.gain == pytest.approx(gain)
    assert found.gain * mean + found.shift == pytest.approx(mean + shift)
    model = GreyModel()
    look_twice(model, shown.image, task, InferenceOptions())
    windows = 4  # of a look at this scan
    assert len(model.images) == (windows if shift == 0 else 2 * windows)


class Sure(GreyModel):
    """Finds the ball in any scan, and is as sure of it (logit) as the scan's mean grey value there is bright."""

    def segment(self, image: Tensor, tokens: tuple[Tensor, ...]) -> Tensor:
        return torch.where(image > 1.0, image, -9.0)


@pytest.mark.parametrize("brighter", [True, False])
def test_what_the_network_is_surer_of_is_taken(brighter: bool) -> None:
    shown = scene()
    mean, spread = surroundings_of(shown, ["ball"])[0]
    task = make_task([2.0], ("ball",), surroundings=((mean + (0.5 if brighter else -0.5), spread),))
    found = look_twice(Sure(), shown.image, task, InferenceOptions())
    assert found == (Matching(pytest.approx(1.0), pytest.approx(0.5)) if brighter else AS_IT_IS)


class Two(GreyModel):
    """Of two classes the second is found in brighter scans only, where the first is found with less certainty."""

    def __init__(self, rest: float):
        super().__init__()
        self.rest = rest

    def segment(self, image: Tensor, tokens: tuple[Tensor, ...]) -> Tensor:
        brighter = image.max() > 2.4
        ball = torch.where(image > 1.0, 1.0 if brighter else 4.0, -9.0)
        return torch.cat([ball, torch.where((image < 1.0) & brighter, self.rest, -9.0)], dim=1)


@pytest.mark.parametrize(("rest", "taken"), [(4.0, 0.5), (0.1, 0.0)])
def test_a_class_that_one_look_lost_counts_as_unsure(rest: float, taken: float) -> None:
    """0.98 and 0.5 for the lost one are less than 0.73 and 0.98, and more than 0.73 and 0.52."""
    shown = scene()
    mean, spread = surroundings_of(shown, ["ball"])[0]
    task = make_task([2.0, 0.0], ("ball", "rest"), surroundings=((mean + 0.5, spread), (0.0, 0.0)))
    found = look_twice(Two(rest), shown.image, task, InferenceOptions())
    assert UNSURE == 0.5 and found.shift == pytest.approx(taken)


def test_a_first_look_keeps_the_largest_piece_of_what_is_one_piece() -> None:
    shown = scene()
    known = surroundings_of(shown, ["ball"])
    scan = (shown.image + 0.3).astype(np.float32)
    scan[15:18, 12:15, 2:5] = 2.3  # a crumb as grey as the ball, which widens its box
    task = make_task([2.0], ("ball",), surroundings=known, largest_pieces=(1.0,))
    found = look_twice(GreyModel(), scan, task, InferenceOptions())
    crumbless = label_volume(GreyModel(), scan, task, InferenceOptions())
    crumbless[12:] = 0
    assert found == matching(scan, crumbless, task) != AS_IT_IS
    assert surroundings_of(replace(shown, image=found(scan)), ["ball"])[0] == pytest.approx(
        known[0], abs=0.01
    )
    loose = look_twice(GreyModel(), scan, replace(task, largest_pieces=()), InferenceOptions())
    assert abs(loose.gain - found.gain) > 0.05 or loose == AS_IT_IS


def drawn(mean: float, *around: Surroundings, names: tuple[str, ...] = ("a", "b")) -> TaskEmbedding:
    hashes = (f"hash {mean} {around} {names}",)
    return make_task([mean] * len(names), names, surroundings=around, reference_hashes=hashes)


def test_a_task_of_several_references_has_their_mean_where_they_know() -> None:
    tasks = [drawn(1.0, (1.0, 2.0), (5.0, 1.0)), drawn(2.0, (3.0, 4.0), (0.0, 0.0)), drawn(3.0)]
    assert ensemble(tasks).surroundings == ((2.0, 3.0), (5.0, 1.0))
    assert ensemble([drawn(1.0), drawn(2.0)]).surroundings == ()
    merged = merge(
        [ensemble(tasks[:2]), drawn(4.0, (8.0, 9.0), names=("a",)), drawn(1.0, (4.0, 4.0), names=("c",))]
    )
    assert merged.class_names == ("a", "b", "c")
    assert merged.surroundings == (pytest.approx((4.0, 5.0)), (5.0, 1.0), (4.0, 4.0))
    chosen = merged.select(["c", "a"])
    assert chosen.surroundings == ((4.0, 4.0), merged.surroundings[0])
    assert drawn(1.0).select(["b"]).surroundings == ()


def test_with_tasks_of_references_every_scan_is_compared() -> None:
    """What is usual is the least of what those that know surroundings say."""
    one = replace(drawn(1.0, (2.0, 3.0), (5.0, 1.0)), usual=(0.5, 0.1), reference_hashes=("r1",))
    two = replace(drawn(2.0, (4.0, 3.0), (5.0, 1.0)), usual=(0.3, 0.2), reference_hashes=("r2",))
    assert ensemble([one, two, drawn(3.0)]).usual == (0.3, 0.1)
    assert merge([one, replace(two, usual=(0.0, 0.0))]).usual == (0.0, 0.0)
    assert ensemble([drawn(1.0), drawn(2.0)]).usual == (0.0, 0.0)
    assert one.select(["b"]).usual == one.usual


def test_retrieval_takes_them_from_the_references_it_chose() -> None:
    """Of a class nobody shows, and of one the query seems to lack, the start's stay."""
    pool = [
        Embedded("x", "x", drawn(1.0, (1.0, 1.0), (2.0, 2.0))),
        Embedded("y", "y", drawn(1.0, (3.0, 3.0), (4.0, 4.0))),
    ]
    start = make_task([1.0] * 3, ("a", "b", "c"), surroundings=((9.0, 9.0),) * 3)
    seen = make_task([1.0], ("a",))
    found, choices = retrieve_classes(pool, seen, start, RetrievalSettings(top=2))
    assert [choice.weight for choice in choices["a"]] == [0.5, 0.5]
    assert found.surroundings == ((2.0, 2.0), (9.0, 9.0), (9.0, 9.0))


def test_a_task_knows_those_of_all_classes_or_of_none() -> None:
    with pytest.raises(
        TaskError, match=r"knows the surroundings of each of its 2 classes or of none; got \[\(1"
    ):
        drawn(1.0, (1.0, 1.0))


def test_they_are_in_the_file_and_in_what_a_result_depends_on(tmp_path: Path) -> None:
    task = replace(drawn(1.0, (0.1, 1 / 3), (0.0, 0.0)), usual=(0.2, 2 / 3))
    save_task(tmp_path / "a.task", task)
    assert load_task(tmp_path / "a.task").surroundings == task.surroundings
    assert load_task(tmp_path / "a.task").usual == task.usual
    assert (describe(task)["surroundings"], describe(task)["usual"]) == (task.surroundings, task.usual)
    others = [
        replace(task, surroundings=()),
        replace(task, usual=(0.2, 0.5)),
        replace(task, surroundings=((0.1, 0.4), (0.0, 0.0))),
    ]
    assert len({digest(each) for each in [task, *others]}) == 4


def test_references_are_read_once_more_for_it_unless_one_look_is_wanted() -> None:
    shown, read = scene(), []

    def prepare(name: str) -> PreparedReference:
        read.append(name)
        return shown

    pool = [Embedded("a", "a", make_task([2.0], ("ball",)))]
    assert with_surroundings(pool, prepare, 1) == pool and not read
    assert with_surroundings(pool, prepare)[0].task.surroundings == surroundings_of(shown, ["ball"])
    assert read == ["a"]


BALL = (slice(9, 32),) * 3
"""the ball and next to nothing beside it"""


def body() -> Volume:
    """A bright ball in a darker body in much air; noise tells its grey values apart."""
    z, y, x = np.mgrid[:40, :40, :40] - 20.0
    radius = np.sqrt(z**2 + y**2 + x**2)
    noise = np.random.default_rng(1).normal(0, 8, radius.shape)
    grey = 100.0 * (radius < 17) + 300.0 * (radius < 9) + noise * (radius < 17)
    return Volume(grey.astype(np.float32), np.eye(4))


def body_and_task() -> tuple[Volume, TaskEmbedding]:
    """The whole scan and what it shows as a reference."""
    whole = body()
    truth = (whole.array > 300).astype(np.uint8)
    mr = Normalisation.for_modality("MR")
    prepared = preprocess_case(whole, (1.0, 1.0, 1.0), mr, Volume(truth, whole.affine))
    assert prepared.labels is not None
    shown = PreparedReference("whole", prepared.image, prepared.labels, {"ball": 1})
    token = float(prepared.image[truth > 0].mean())
    return whole, make_task([token], ("ball",), surroundings=surroundings_of(shown, ["ball"]))


def test_a_scan_that_was_cropped_is_found_as_the_whole_one_is() -> None:
    """Cropped to the ball, a scan has other standard deviations than its reference, with the air and the body."""
    whole, twice = body_and_task()
    truth = whole.array > 300
    cropped = Volume(whole.array[BALL].copy(), whole.affine)
    # The ball lies 3.9 standard deviations above the mean of the whole scan, 1.8 above that of the cropped one.
    loaded: Any = loaded_with(GreyModel(width=2.2))
    once = segment_scan(loaded, [replace(twice, surroundings=())], cropped).labels
    assert 20 <= np.count_nonzero(once[truth[BALL]]) < 0.8 * truth.sum()
    assert np.array_equal(segment_scan(loaded, [twice], cropped).labels, truth[BALL])
    assert np.array_equal(segment_scan(loaded, [twice], whole).labels, truth)


def test_doubts_are_told_from_the_grey_values_that_the_mask_was_made_from() -> None:
    """Of the same scan, as it is, other windows make another mask."""
    whole, task = body_and_task()
    scan = Volume(whole.array[BALL].copy(), whole.affine)
    loaded: Any = loaded_with(GreyModel(width=2.2))
    result = segment_scan(loaded, [task], scan, wanted=Wanted(certainty=True))
    signs = gather_signs(loaded, [task], scan, result, InferenceOptions())["ball"]
    assert signs["windows"] == 1.0
    other = gather_signs(loaded, [task], scan, replace(result, matchings={}), InferenceOptions())["ball"]
    assert other["windows"] < 0.95


def test_a_left_out_reference_is_judged_as_prediction_would_segment_it() -> None:
    shown = scene()
    task = make_task([2.0], ("ball",), surroundings=surroundings_of(shown, ["ball"]))
    darker = replace(shown, image=(shown.image - 0.4).astype(np.float32), classes={"ball": 1})
    loaded: Any = loaded_with(GreyModel(width=0.5))
    plain = found_dice(loaded, darker, ["ball"], replace(task, surroundings=()), InferenceOptions())
    assert found_dice(loaded, darker, ["ball"], task, InferenceOptions())["ball"] > plain["ball"] + 0.05


@pytest.mark.parametrize("looks", [0, 3, "auto"])
def test_a_scan_is_looked_at_once_or_twice(looks: Any) -> None:
    with pytest.raises(
        PredictionError, match=rf"`looks`, how often a scan is looked at, is 1 or 2; got {looks!r}\."
    ):
        Showing.of("auto", "auto", "auto", looks)
    assert Showing.of("auto", "auto", "auto", 1).looks == 1 and Showing().looks == 2
    assert Showing(looks=1).describe() == {"grey": "auto", "looks": 1, "search_rules": SEARCH_RULES}
    assert "search_rules" not in AS_PLANNED.describe(), "nothing is searched for there"


def test_the_mask_of_two_looks_is_that_of_the_matched_scan() -> None:
    """Against the same steps, one by one."""
    shown = scene()
    scan = Volume((30 * shown.image + 100).astype(np.float32), np.eye(4))
    prepared = preprocess_case(scan, (1.0, 1.0, 1.0), Normalisation.for_modality("MR"))
    ball = float(prepared.image[shown.labels == 1].mean())
    mean, spread = surroundings_of(replace(shown, image=prepared.image), ["ball"])[0]
    task = make_task([ball + 0.4], ("ball",), surroundings=((mean + 0.4, spread),))
    match = look_twice(GreyModel(0.5), prepared.image, task, InferenceOptions())
    assert (match.gain, match.shift) == (pytest.approx(1.0, abs=0.02), pytest.approx(0.4, abs=0.1))
    expected = label_volume(GreyModel(0.5), match(prepared.image), task, InferenceOptions())
    loaded: Any = loaded_with(GreyModel(0.5))
    result = segment_scan(loaded, [task], scan)
    assert expected.any() and result.matchings == {"ball": match}
    np.testing.assert_array_equal(result.labels, prepared.trace.undo_labels(expected))
    once = segment_scan(loaded, [replace(task, surroundings=())], scan)
    assert once.matchings == {"ball": AS_IT_IS} and not np.array_equal(once.labels, result.labels)
