"""Tuning: tokens go downhill on references alone, a held-out reference says how far, the model stays as it is."""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from blobs import CLASSES, PATCH, PLAN, blob_reference, draw_blobs
from stub_model import tiny_model

from iris_pipeline.inference import tuning
from iris_pipeline.inference.examples import crop_start, draw_example
from iris_pipeline.inference.focus import wide_task
from iris_pipeline.inference.pool import embed
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import PreparedReference, ensemble, halved_reference
from iris_pipeline.inference.tuning import TuningSettings, held_out_subject, tune
from iris_pipeline.search.grey_weights import grey_evidence
from iris_pipeline.tasks.task import TaskEmbedding
from iris_pipeline.training.losses import episode_loss
from preprocessing.errors import TaskError

QUICK = TuningSettings(steps=8, learning_rate=0.05, check_every=4, judges=2, gain_alone=0.0)


def tasks_of(loaded, references: list[PreparedReference]) -> list[TaskEmbedding]:
    return [embed(loaded, reference, PLAN).task for reference in references]


def loss_on(loaded, task: TaskEmbedding, reference: PreparedReference) -> float:
    """The training loss on the whole reference, which is one patch."""
    masks = np.stack([reference.labels == value for value in task.class_values])
    with torch.inference_mode():
        logits = loaded.model.segment(torch.from_numpy(reference.image)[None, None], task.tokens)
        return float(episode_loss(logits, torch.from_numpy(masks).float()[None]).total)


def test_the_loss_falls_and_the_model_stays() -> None:
    loaded = tiny_model()
    references = [blob_reference(seed) for seed in (1, 2)]
    tasks = tasks_of(loaded, references)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    task = tune(loaded, references, tasks, settings=QUICK)
    (record,) = task.tuned
    assert record.judged_by == "held-out reference" and 0 < record.steps <= 8
    assert record.loss < record.loss_before - 0.01
    untuned = ensemble(tasks)
    for reference in [*references, blob_reference(7)]:
        assert loss_on(loaded, task, reference) < loss_on(loaded, untuned, reference) - 0.01
    assert all(torch.equal(before[name], t) for name, t in loaded.model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in loaded.model.parameters())
    assert (task.made_by, task.references, task.classes) == ("tuning", 2, CLASSES)
    assert task.reference_hashes == ("hash1", "hash2")
    assert not any(level.requires_grad for level in task.tokens)


def test_one_reference_is_judged_by_augmented_copies() -> None:
    loaded, reference = tiny_model(), blob_reference(1)
    tasks = tasks_of(loaded, [reference])
    task = tune(loaded, [reference], tasks, settings=QUICK)
    assert task.tuned[0].judged_by == "augmented reference"
    assert task.tuned[0].loss < task.tuned[0].loss_before
    assert loss_on(loaded, task, reference) < loss_on(loaded, tasks[0], reference)
    # two scans of one person cannot judge one another either
    # nor can the same scan under two names
    for other in (blob_reference(2, subject="person 1"), blob_reference(2, image_hash="hash1")):
        twice = [reference, other]
        assert tune(loaded, twice, tasks_of(loaded, twice), settings=QUICK).tuned[0].judged_by == (
            "augmented reference"
        )


def test_the_judge_asks_for_the_classes_in_the_order_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, both = tiny_model(), blob_reference(1)
    names = list(CLASSES)
    second, first = (
        blob_reference(
            seed,
            classes={name: CLASSES[name]},
            labels=np.where(draw_blobs(seed)[1] == CLASSES[name], CLASSES[name], 0),
        )
        for seed, name in ((2, names[1]), (3, names[0]))
    )
    references = [
        both,
        second,
        first,
    ]  # the others, without their judge, name the classes the other way round
    tasks = tasks_of(loaded, references)
    begun = []
    descend = tuning._Tutor.descend

    def spy(self, start, task, references, judges, steps, progress):  # type: ignore[no-untyped-def]
        if judges:
            begun.append([level.clone() for level in start[0]])
        return descend(self, start, task, references, judges, steps, progress)

    monkeypatch.setattr(tuning._Tutor, "descend", spy)
    task = tune(loaded, references, tasks, settings=QUICK)
    assert list(task.class_names) == names and task.tuned[0].judged_by == "held-out reference"
    assert ensemble(tasks[1:]).class_names == tuple(reversed(names))
    for level, one, other in zip(begun[0], tasks[2].tokens, tasks[1].tokens, strict=True):
        assert torch.allclose(level, torch.cat([one, other], dim=1))


def large_reference(seed: int) -> PreparedReference:
    """Both blobs in a volume that holds sixteen patches."""
    image, labels = draw_blobs(seed, (96, 64, 64))
    return blob_reference(seed, image=image, labels=labels)


def test_the_wide_view_is_tuned_where_somebody_looks_through_it() -> None:
    loaded = tiny_model()
    loaded.knows_wide_view = True
    references = [large_reference(seed) for seed in (1, 2)]
    tasks = [embed(loaded, reference, PLAN).task for reference in references]
    task, untuned = tune(loaded, references, tasks, settings=QUICK), ensemble(tasks)
    assert [record.view for record in task.tuned] == ["whole resolution", "half the resolution"]
    assert all(record.loss < record.loss_before - 0.01 for record in task.tuned)
    for reference in map(halved_reference, [*references, large_reference(7)]):
        views = [wide_task(each, reference.image.shape) for each in (task, untuned)]
        after, before = (loss_on(loaded, each, reference) for each in views)
        assert after < before - 0.01
    # the whole view does not hang on the other one
    narrow = tune(loaded, references, [replace(each, wide_tokens=()) for each in tasks], settings=QUICK)
    assert all(torch.equal(a, b) for a, b in zip(task.tokens, narrow.tokens, strict=True))
    assert len(narrow.tuned) == 1 and narrow.wide_tokens == ()
    # a reference that a window shows as a whole: its wide tokens stay
    small = [blob_reference(seed) for seed in (1, 2)]
    tasks = [embed(loaded, reference, PLAN).task for reference in small]
    kept = tune(loaded, small, tasks, settings=QUICK)
    assert len(kept.tuned) == 1 and kept.wide_tokens
    assert all(torch.equal(a, b) for a, b in zip(kept.wide_tokens, ensemble(tasks).wide_tokens, strict=True))


def test_equal_references_and_seed_give_equal_tokens() -> None:
    loaded, references = tiny_model(), [blob_reference(1)]
    tasks, short = tasks_of(loaded, references), replace(QUICK, steps=4, judges=1)
    first, again = (tune(loaded, references, tasks, settings=short) for _ in range(2))
    other = tune(loaded, references, tasks, settings=replace(short, seed=1))
    assert all(torch.equal(a, b) for a, b in zip(first.tokens, again.tokens, strict=True))
    assert not torch.equal(first.tokens[0], other.tokens[0])


def with_losses(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """The judge says these numbers, look by look."""
    said = iter(losses)
    monkeypatch.setattr(tuning._Tutor, "loss", lambda *_: next(said))


def test_tuning_that_does_not_help_leaves_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model()
    references = [blob_reference(seed) for seed in (1, 2)]
    tasks = tasks_of(loaded, references)
    # the look before, two looks that are no better; the descent of all references takes no step, and one look
    with_losses(monkeypatch, [0.5, 0.5, 0.6, float("nan")])
    task = tune(loaded, references, tasks, settings=replace(QUICK, steps=8, check_every=1))
    assert (task.tuned[0].steps, task.tuned[0].loss_before, task.tuned[0].loss) == (0, 0.5, 0.5)
    untuned = ensemble(tasks)
    assert all(torch.equal(a, b) for a, b in zip(task.tokens, untuned.tokens, strict=True))


@pytest.mark.parametrize(("least", "kept"), [(0.86, False), (0.84, True)])
def test_one_reference_has_to_gain_more_as_its_own_copies_flatter(
    monkeypatch: pytest.MonkeyPatch, least: float, kept: bool
) -> None:
    """15 per cent of the loss; two people judge each other, and there any gain counts."""
    loaded, reference = tiny_model(), blob_reference(1)
    tasks = tasks_of(loaded, [reference])
    settings = TuningSettings(steps=2, check_every=1, judges=2)
    with_losses(monkeypatch, [1.0, 0.95, least])
    task = tune(loaded, [reference], tasks, settings=settings)
    assert (task.tuned[0].steps, task.tuned[0].loss) == ((2, least) if kept else (0, 1.0))
    same = all(torch.equal(a, b) for a, b in zip(task.tokens, tasks[0].tokens, strict=True))
    assert same != kept and task.made_by == "tuning"
    with_losses(monkeypatch, [1.0, 0.95, least])
    assert tune(loaded, [reference], tasks, settings=replace(settings, gain_alone=0.0)).tuned[0].steps == 2
    pair = [reference, blob_reference(2)]
    with_losses(monkeypatch, [1.0, 0.95, least, float("nan")])
    assert tune(loaded, pair, tasks_of(loaded, pair), settings=settings).tuned[0].steps == 2
    with pytest.raises(TaskError, match=r"a share of the loss, 0 or more and under 1; got 1\.5"):
        TuningSettings(gain_alone=1.5)


def test_tuning_stops_and_goes_back_when_the_judged_loss_falls_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded, reference = tiny_model(), blob_reference(1)
    tasks = tasks_of(loaded, [reference])
    settings = replace(QUICK, steps=100, check_every=2, patience=2)
    kept = tune(loaded, [reference], tasks, settings=replace(settings, steps=4, check_every=4)).tokens
    loaded.model.encoded.clear()
    with_losses(monkeypatch, [0.9, 0.8, 0.7, 0.75, 0.7])
    task = tune(loaded, [reference], tasks, settings=settings)
    assert len(loaded.model.encoded) == settings.judges + 8, (
        "two looks without a better loss end it, two steps each"
    )
    assert (task.tuned[0].steps, task.tuned[0].loss_before, task.tuned[0].loss) == (4, 0.9, 0.7)
    assert all(torch.equal(a, b) for a, b in zip(task.tokens, kept, strict=True))


def watch(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> tuple[list[tuple[str, bool]], list]:
    """References in the order in which examples are drawn of them, each with "was it augmented?"; and each look of
    the judge: the tokens it was shown, and how many crops it had. The judge says these losses, look by look.
    """
    draws: list[tuple[str, bool]] = []
    looks: list[tuple[tuple[torch.Tensor, ...], int]] = []
    said, draw = iter(losses), tuning.draw_example

    def drawn(reference: PreparedReference, *args, augmented: bool, **more):
        draws.append((reference.id, augmented))
        return draw(reference, *args, augmented=augmented, **more)

    def loss(_tutor, learned: tuning.Lesson, _grey: object, judges: list) -> float:
        looks.append((tuple(level.detach().clone() for level in learned[0]), len(judges)))
        return next(said)

    monkeypatch.setattr(tuning, "draw_example", drawn)
    monkeypatch.setattr(tuning._Tutor, "loss", loss)
    return draws, looks


def assert_mean(tokens: tuple[torch.Tensor, ...], tasks: list[TaskEmbedding]) -> None:
    """The tokens are the plain mean of those of the tasks, level by level."""
    for level, *parts in zip(tokens, *(task.tokens for task in tasks), strict=True):
        assert torch.allclose(level, sum(parts) / len(parts), atol=1e-6)


def test_steps_are_counted_without_the_held_out_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model()
    references = [blob_reference(seed) for seed in (1, 2, 3)]
    tasks = tasks_of(loaded, references)
    # before, then a look a step: the third is the best, two more end it; the second descent has nobody to judge it
    draws, looks = watch(monkeypatch, [0.9, 0.8, 0.7, 0.6, 0.65, 0.65, float("nan")])
    settings = replace(QUICK, steps=100, check_every=1, patience=2, judges=2)
    task = tune(loaded, references, tasks, settings=settings)
    assert (task.tuned[0].judged_by, task.tuned[0].steps) == ("held-out reference", 3)
    judging, counting, again = draws[:2], draws[2:7], draws[7:]
    assert judging == [("r3", False)] * 2, "person 3 judges, as it is"
    assert counting == [(name, True) for name in ("r1", "r2", "r1", "r2", "r1")], "never trained on"
    assert again == [(name, True) for name in ("r1", "r2", "r3")], "as many steps on all of them"
    # where the first descent begins, the judge knows nothing of r3; where the second does, all have their say
    assert [crops for _, crops in looks] == [2] * 6 + [0]
    assert_mean(looks[0][0], tasks[:2])
    assert_mean(looks[-1][0], tasks)
    assert not torch.allclose(ensemble(tasks[:2]).tokens[0], ensemble(tasks).tokens[0], atol=1e-3)


def test_all_scans_of_the_judging_person_are_held_out_in_both_views(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model()
    loaded.knows_wide_view = True
    people = ["a", "b", "b"]
    references = [
        replace(large_reference(seed), subject=person) for seed, person in zip((1, 2, 3), people, strict=True)
    ]
    tasks = [embed(loaded, reference, PLAN).task for reference in references]
    nobody = float("nan")
    draws, looks = watch(monkeypatch, [0.9, 0.8, nobody, 0.9, 0.8, nobody])
    tune(loaded, references, tasks, settings=replace(QUICK, steps=2, check_every=2, judges=2))
    view = [("r2", False), ("r3", False), ("r1", True), ("r1", True), ("r1", True), ("r2", True)]
    assert draws == view * 2, "b judges with both scans, a alone is trained on; then two steps on all"
    for (begin, _), tokens in zip(looks[::3], (tasks[0].tokens, tasks[0].wide_tokens), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(begin, tokens, strict=True))


def test_a_class_that_only_the_judge_shows_starts_from_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model()
    references = [blob_reference(1, classes={"ball": 1}), blob_reference(2)]
    tasks = tasks_of(loaded, references)
    _, looks = watch(monkeypatch, [0.9, 0.8, float("nan")])
    task = tune(loaded, references, tasks, settings=replace(QUICK, steps=2, check_every=2, judges=1))
    assert task.class_names == ("ball", "disc") and task.tuned[0].judged_by == "held-out reference"
    for begin, first, second in zip(looks[0][0], tasks[0].tokens, tasks[1].tokens, strict=True):
        assert torch.equal(begin[:, 0], first[:, 0]), "the ball: of the reference that is trained on"
        assert torch.equal(begin[:, 1], second[:, 1]), "the disc: nobody else shows it"


def test_grey_evidence_stays_and_the_judge_has_that_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, short = tiny_model(), replace(QUICK, steps=2, check_every=2)
    references = [blob_reference(seed) for seed in (1, 2, 3)]
    bare = tasks_of(loaded, references)
    tasks = [
        replace(task, grey=grey_evidence(reference, task.class_names, PATCH).weighed([2.0, 0.5]))
        for task, reference in zip(bare, references, strict=True)
    ]
    heard, loss = [], tuning._Tutor.loss

    def judged(tutor, learned, grey, judges):  # type: ignore[no-untyped-def]
        heard.append((grey, len(judges)))
        return loss(tutor, learned, grey, judges)

    monkeypatch.setattr(tuning._Tutor, "loss", judged)
    task, plain = (tune(loaded, references, each, settings=short) for each in (tasks, bare))
    *looks, everybody = heard[: len(heard) // 2]
    others, mean = ensemble(tasks[:2]).grey, ensemble(tasks).grey
    assert others is not None and mean is not None and task.grey is not None
    assert len(looks) == 2 and everybody[1] == 0
    for grey, judges in looks:
        assert judges and torch.equal(grey.ratios, others.ratios), "not that of the judge"
        assert grey.weights.tolist() == [2.0, 0.5]
    assert torch.equal(everybody[0].ratios, mean.ratios)
    assert all(torch.equal(a, b) for a, b in zip(task.grey.parts, mean.parts, strict=True))
    assert plain.grey is None and all(grey is None for grey, _ in heard[len(heard) // 2 :])
    assert task.tuned[0].loss_before < plain.tuned[0].loss_before - 0.05, "grey values alone tell these blobs"
    assert not torch.equal(task.tokens[0], plain.tokens[0]), "tokens learn what is left to be learned"


def test_no_function_of_tuning_takes_a_query() -> None:
    functions = [
        f for _, f in inspect.getmembers(tuning, inspect.isfunction) if f.__module__ == tuning.__name__
    ]
    methods = [f for _, f in inspect.getmembers(tuning._Tutor, inspect.isfunction)]
    names = {name for function in functions + methods for name in inspect.signature(function).parameters}
    assert {"references", "tasks"} <= names
    assert not {name for name in names if "query" in name or "truth" in name or "case" in name}
    assert list(inspect.signature(tune).parameters) == [
        "loaded",
        "references",
        "tasks",
        "options",
        "settings",
        "progress",
    ]


def test_a_class_that_a_reference_lacks_is_neither_right_nor_wrong_there() -> None:
    loaded = tiny_model()
    full, ball_only = blob_reference(1), blob_reference(2, classes={"ball": 1})
    references = [full, ball_only]
    tutor = tuning._Tutor(loaded, ensemble(tasks_of(loaded, references)), InferenceOptions(), QUICK)
    for reference, valid in ((full, [1.0, 1.0]), (ball_only, [1.0, 0.0])):
        example = tutor.example(reference, np.random.default_rng(0), augmented=False)
        assert example.valid.tolist() == [valid]
        assert float(example.masks[0, 1].sum()) == ((reference.labels == 4).sum() if valid[1] else 0)
    task = tune(loaded, references, tasks_of(loaded, references), settings=replace(QUICK, steps=4))
    assert task.classes == CLASSES


@pytest.mark.parametrize(
    ("subjects", "classes", "judge"),
    [
        (["a"], ["xy"], None),
        (["a", "a"], ["xy", "x"], None),
        (["a", "b"], ["x", "y"], None),
        (["a", "b"], ["xy", "xy"], "b"),
        (["a", "b", "c"], ["xy", "xy", "x"], "b"),  # with c held out nobody would judge y
        (["a", "b", "a"], ["x", "xy", "y"], "b"),
    ],
)
def test_who_is_held_out(subjects: list[str], classes: list[str], judge: str | None) -> None:
    assert held_out_subject(subjects, classes) == judge


def test_crops_roam_over_a_class_and_sometimes_over_the_volume() -> None:
    rng = np.random.default_rng(0)
    boxes = {"a": ((50, 60), (20, 30), (40, 44))}
    starts = np.array([crop_start(rng, boxes, (100, 90, 80), (32, 16, 16)) for _ in range(400)])
    low, high = np.array([50, 20, 40]), np.array([60, 30, 44])
    ends = starts + np.array((32, 16, 16))
    whole = np.all((starts <= low) & (ends >= high), axis=1)
    assert 0.7 < whole.mean() < 0.85, "three quarters hold the class, which fits the patch"
    assert (starts >= 0).all() and (ends <= (100, 90, 80)).all()
    assert starts[~whole].std(0).min() > 10
    assert crop_start(rng, {}, (10, 90, 80), (32, 16, 16))[0] == -11, "a smaller volume lies in the middle"


def test_examples_of_a_small_reference_are_padded_with_its_minimum() -> None:
    image, labels = draw_blobs(1, (20, 32, 32))
    reference = blob_reference(1, image=image + 5, labels=labels)
    example = draw_example(reference, list(CLASSES), PATCH, np.random.default_rng(0), augmented=False)
    assert np.array_equal(example.image[0, 0, 6:26].numpy(), reference.image)
    assert (example.image[0, 0, :6] == float(reference.image.min())).all()


def test_settings_and_references_that_cannot_be() -> None:
    loaded, reference = tiny_model(), blob_reference(1)
    with pytest.raises(TaskError, match="needs references and the task of each; got 0 and 0 tasks"):
        tune(loaded, [], [])
    with pytest.raises(TaskError, match="needs references and the task of each; got 1 and 2 tasks"):
        tune(loaded, [reference], tasks_of(loaded, [reference]) * 2)
    with pytest.raises(TaskError, match=r"counts of 1 or more and learning rates above 0; got .*\(0, 1, "):
        TuningSettings(steps=0)
    with pytest.raises(TaskError, match=r"and -1, 0\.02"):
        TuningSettings(learning_rate=-1)
