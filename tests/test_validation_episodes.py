"""Validation episodes: the same list in every run, references from training, queries from validation.

Arrays are [D,H,W] = (z,y,x). In the stores of memory_store.py the image is 10 * case + label.
"""

import torch
from memory_store import CLASSES, make_store

from iris_pipeline.sampling.episodes import validation_episodes


def test_every_run_and_every_version_validates_on_the_same_episodes() -> None:
    """Losses of two runs are compared; Python's own hash of a name is another one in every process."""
    drawn = validation_episodes({"a": make_store(10)}, "paper", per_dataset=6, seed=1, max_classes=1)
    found = [(*e.class_names, e.reference.case_id, e.query.case_id) for e in drawn]
    assert found == [
        ("liver", "case1", "case8"),
        ("spleen", "case6", "case9"),
        ("tumour", "case4", "case8"),
        ("liver", "case5", "case9"),
        ("spleen", "case5", "case8"),
        ("tumour", "case6", "case8"),
    ]


def test_validation_takes_references_from_training_and_queries_from_validation() -> None:
    stores = {"a": make_store(8), "b": make_store(6)}
    drawn = validation_episodes(stores, "paper", per_dataset=6, seed=1)
    assert [e.dataset for e in drawn] == ["a"] * 6 + ["b"] * 6
    assert [e.index for e in drawn] == list(range(12))
    for e in drawn:
        held = {"a": ("case6", "case7"), "b": ("case4", "case5")}[e.dataset]
        assert e.query.case_id in held and e.reference.case_id not in held
        assert float(e.reference.masks.flatten(1).sum(1).min()) > 0
        assert e.query.masks.any()
    assert {e.query.case_id for e in drawn[:6]} == {"case6", "case7"}
    assert {n for e in drawn[:6] for n in e.class_names} == set(CLASSES)
    for first, second in zip(drawn[:2], drawn[3:5], strict=True):  # liver, spleen; then both once more
        assert first.query.case_id != second.query.case_id, "each class must go round its cases"


def test_validation_asks_for_all_classes_in_view_up_to_the_limit() -> None:
    stores = {"a": make_store(8, patch=(48, 48, 48))}  # everything is in view
    every = validation_episodes(stores, "paper", per_dataset=12)
    for e in every:
        both_even = all(int(s.case_id[4:]) % 2 == 0 for s in (e.reference, e.query))
        assert e.class_names == (tuple(CLASSES) if both_even else ("liver", "spleen"))
    limited = validation_episodes(stores, "paper", per_dataset=4, max_classes=2)
    assert [len(e.class_names) for e in limited] == [2, 2, 2, 2]


def test_validation_asks_for_what_the_references_crop_shows_well() -> None:
    """Crops hold one organ of three, and slivers of others; a fifth of a class has to be in view."""
    store = make_store(8, patch=(16, 16, 16))
    for e in validation_episodes({"a": store}, "paper", per_dataset=12):
        classes = store.entry(e.reference.case_id).classes
        for name, mask in zip(e.class_names, e.reference.masks, strict=True):
            assert int(mask.sum()) >= classes[name].voxels / 5


def test_validation_is_fixed_and_does_not_depend_on_the_other_datasets() -> None:
    alone = validation_episodes({"b": make_store(6)}, "paper", 4, seed=1)
    beside = validation_episodes({"a": make_store(8), "b": make_store(6)}, "paper", 4, seed=1)[4:]
    for x, y in zip(alone, beside, strict=True):
        assert x.class_names == y.class_names and x.reference.case_id == y.reference.case_id
        assert torch.equal(x.reference.image, y.reference.image) and torch.equal(x.query.image, y.query.image)


def test_a_split_without_validation_cases_gives_no_validation_episodes() -> None:
    assert validation_episodes({"a": make_store()}, "all", 4) == []


def test_validation_looks_at_the_middle_of_the_class_in_turn() -> None:
    """Of the query; every class fits the patch, and the volume is six times as long."""
    store = make_store(8, shape=(90, 90, 90), patch=(16, 16, 16))
    for e in validation_episodes({"a": store}, "paper", per_dataset=6, max_classes=1):
        (name,) = e.class_names
        assert int(e.query.masks.sum()) == store.entry(e.query.case_id).classes[name].voxels
