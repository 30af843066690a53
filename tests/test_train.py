"""The training loop: both directions of a group, resuming bit for bit, what a run leaves behind."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from iris_pipeline.checkpoints.checkpoint import hash_weights, load_model
from iris_pipeline.checkpoints.memory_bank import MemoryBank
from iris_pipeline.cli.train import train_main
from iris_pipeline.model import build_iris
from iris_pipeline.sampling.episode import Sample, stack_episodes
from iris_pipeline.sampling.episodes import EpisodeSampler
from iris_pipeline.training.curriculum import shrink_group
from iris_pipeline.training.losses import episode_loss
from iris_pipeline.training.run_log import RunLog
from iris_pipeline.training.train import (
    TrainSettings,
    group_forward,
    progress_of,
    train,
    update_bank,
    validate,
)
from iris_pipeline.training.train_start import dataset_weights
from preprocessing.errors import CheckpointError, ModelError, StoreError
from preprocessing.runtime.files import save_json
from preprocessing.store import Store

CPU = torch.device("cpu")
SHORT = TrainSettings(size="tiny", iterations=4, validate_every=2, validation_episodes=2, precision="fp32")


def test_both_ways_is_two_episodes_with_reference_and_query_swapped(tiny_store: Store) -> None:
    model = build_iris("tiny", seed=0)
    episodes = EpisodeSampler({"tiny": tiny_store}, seed=1).batch(0, 1)
    (episode,) = episodes
    r, q = episode.reference, episode.query
    forward = model(r.image[None], r.masks[None], q.image[None])
    backward = model(q.image[None], q.masks[None], r.image[None])
    shown = q.masks.flatten(1).any(-1)[None]
    masks = torch.stack([q.masks, r.masks])
    valid = torch.cat([torch.ones_like(shown), shown])
    expected = episode_loss(torch.cat([forward, backward]), masks, valid)
    result = group_forward(model, episodes, CPU, both_ways=True)
    torch.testing.assert_close(result.loss.total, expected.total, rtol=1e-4, atol=1e-5)
    one_way = group_forward(model, episodes, CPU, both_ways=False)
    torch.testing.assert_close(
        one_way.loss.total, episode_loss(forward, q.masks[None]).total, rtol=1e-4, atol=1e-5
    )
    for a, b in zip(result.tokens, model.encode_task(r.image[None], r.masks[None]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_share_of_the_edge_is_the_shrunken_episode(tiny_store: Store) -> None:
    model = build_iris("tiny", seed=0)
    (drawn,) = EpisodeSampler({"tiny": tiny_store}, seed=1).batch(0, 1)

    def doubled(sample: Sample) -> Sample:  # the tiny store's crops have no room to shrink
        image, masks = (F.interpolate(x[None], scale_factor=2)[0] for x in (sample.image, sample.masks))
        return replace(sample, image=image, masks=masks)

    episodes = [replace(drawn, reference=doubled(drawn.reference), query=doubled(drawn.query))]
    small = shrink_group(stack_episodes(episodes), 0.5)
    assert small.query_images.shape == drawn.query.image[None].shape
    logits = model(small.reference_images, small.reference_masks, small.query_images)
    result = group_forward(model, episodes, CPU, both_ways=False, share=0.5)
    torch.testing.assert_close(result.loss.total, episode_loss(logits, small.query_masks).total)


def test_the_bank_receives_the_references_tokens(tiny_store: Store) -> None:
    model = build_iris("tiny", seed=0)
    episodes = EpisodeSampler({"tiny": tiny_store}, seed=1).batch(0, 1)
    bank = MemoryBank()
    tokens = group_forward(model, episodes, CPU, both_ways=True).tokens
    update_bank(bank, episodes, tokens)
    names = episodes[0].class_names
    assert bank.keys() == sorted(f"tiny/{name}" for name in names)
    stored = bank.get([f"tiny/{name}" for name in names])
    for a, b in zip(stored, tokens, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("both_ways", [True, False])
def test_a_class_that_the_reference_does_not_show_counts_nowhere(both_ways: bool, tiny_store: Store) -> None:
    model = build_iris("tiny", seed=0)
    drawn = (EpisodeSampler({"tiny": tiny_store}, seed=1).batch(i, 1) for i in range(99))
    episodes = next(each for each in drawn if len(each[0].class_names) > 1)
    (episode,) = episodes
    emptied = episode.reference.masks.clone()
    emptied[0] = 0
    (gone,) = lacking = [replace(episode, reference=replace(episode.reference, masks=emptied))]
    result = group_forward(model, lacking, CPU, both_ways)
    names = episode.class_names
    assert result.shown.tolist() == [[False] + [True] * (len(names) - 1)]
    shown = torch.stack([gone.query.masks.flatten(1).any(-1), result.shown[0]])
    r, q = gone.reference, gone.query
    forward = model(r.image[None], r.masks[None], q.image[None])
    if both_ways:
        backward = model(q.image[None], q.masks[None], r.image[None])
        expected = episode_loss(torch.cat([backward, forward]), torch.stack([r.masks, q.masks]), shown)
    else:
        expected = episode_loss(forward, q.masks[None], result.shown)
        assert expected.total != episode_loss(forward, q.masks[None]).total
    torch.testing.assert_close(result.loss.total, expected.total, rtol=1e-4, atol=1e-5)
    bank = MemoryBank()
    update_bank(bank, lacking, result.tokens, result.shown)
    assert bank.keys() == sorted(f"tiny/{name}" for name in names[1:])


def test_validation_is_the_mean_dice_of_the_dataset(tiny_store: Store) -> None:
    episodes = [e for e in EpisodeSampler({"tiny": tiny_store}, seed=1).batch(0, 2)]

    class Oracle(torch.nn.Module):
        """Answers with the left half of the true mask: Dice 2*|half|/(|half|+|all|)."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = iter(episodes)

        def forward(self, *_: torch.Tensor) -> torch.Tensor:
            masks = next(self.calls).query.masks.clone()
            masks[..., masks.shape[-1] // 2 :] = 0
            return (masks * 2 - 1)[None]

    expected = []
    for e in episodes:
        for mask in e.query.masks:
            half, whole = float(mask[..., : mask.shape[-1] // 2].sum()), float(mask.sum())
            if whole:
                expected.append(2 * half / (half + whole))
    scores = validate(Oracle(), episodes, CPU, "fp32")  # type: ignore[arg-type]
    assert scores == {"tiny": pytest.approx(sum(expected) / len(expected))}


@pytest.mark.parametrize(("weight_momentum", "groups"), [(0.0, 1), (0.5, 2)])
def test_interrupted_and_resumed_equals_unbroken(
    weight_momentum: float, groups: int, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores, settings = {"tiny": tiny_store}, replace(SHORT, weight_momentum=weight_momentum, groups=groups)
    train(settings, stores, tmp_path / "whole", device=CPU, show_progress=False)
    original = RunLog.step

    def stop_at_three(self: RunLog, iteration: int, *rest: object) -> None:
        original(self, iteration, *rest)  # type: ignore[arg-type]
        if iteration == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunLog, "step", stop_at_three)
    with pytest.raises(KeyboardInterrupt):
        train(settings, stores, tmp_path / "broken", device=CPU, show_progress=False)
    monkeypatch.undo()
    assert json.loads((tmp_path / "broken" / "run.json").read_text(encoding="utf-8"))["status"] == "stopped"
    assert load_model(tmp_path / "broken").state.iteration == 3
    train(settings, stores, tmp_path / "broken", device=CPU, resume=True, show_progress=False)
    whole, resumed = load_model(tmp_path / "whole"), load_model(tmp_path / "broken")
    assert whole.state.iteration == resumed.state.iteration == 4
    assert whole.model_hash == resumed.model_hash
    for a, b in zip(whole.bank.get(whole.bank.keys()), resumed.bank.get(whole.bank.keys()), strict=True):
        assert torch.equal(a, b)


def test_a_run_leaves_weights_plans_curve_and_log(tiny_store: Store, tmp_path: Path) -> None:
    train(SHORT, {"tiny": tiny_store}, tmp_path, device=CPU, show_progress=False)
    loaded = load_model(tmp_path)
    assert loaded.plans == {"tiny": tiny_store.plan}
    assert loaded.specs["tiny"]["classes"] == tiny_store.manifest.classes
    assert "raw" not in loaded.specs["tiny"], "a model that is given away tells nobody's folders"
    assert loaded.state.settings["iterations"] == 4
    run = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert run["status"] == "finished" and run["iterations"] == 4 and set(run["validation"]) == {"tiny"}
    rows = list(csv.DictReader((tmp_path / "train.csv").open(encoding="utf-8")))
    assert [int(r["iteration"]) for r in rows if r["validation_dice"]] == [2, 4]
    assert [int(r["iteration"]) for r in rows if r["loss"]] == [
        4
    ]  # fewer steps than a row gathers are not lost
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert "Finished: 4 iterations" in (tmp_path / "train.log").read_text(encoding="utf-8")


def test_start_from_takes_the_weights_and_nothing_else(tiny_store: Store, tmp_path: Path) -> None:
    stores = {"tiny": tiny_store}
    train(SHORT, stores, tmp_path / "first", device=CPU, show_progress=False)
    # One step at the foot of the warm-up moves the weights by a hair: what is left is where they began.
    one = TrainSettings(
        size="tiny", iterations=1, learning_rate=1e-9, validation_episodes=1, precision="fp32"
    )
    train(one, stores, tmp_path / "second", device=CPU, start_from=tmp_path / "first", show_progress=False)
    first, second = load_model(tmp_path / "first"), load_model(tmp_path / "second")
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert second.state.iteration == 1 and all(n == 1 for n in second.bank.counts().values())
    with pytest.raises(ModelError, match="has another network than this one"):
        small = TrainSettings(size="small", iterations=1)
        train(
            small, stores, tmp_path / "third", device=CPU, start_from=tmp_path / "first", show_progress=False
        )


def test_what_has_no_wide_view_is_said_and_the_others_are_kept(tiny_store: Store, tmp_path: Path) -> None:
    plan = tiny_store.plan.model_copy(update={"patch_size": (16, 16, 32)})
    large = Store(
        tiny_store.folder, tiny_store.manifest.model_copy(update={"plan": plan, "dataset": "large"})
    )
    settings = replace(SHORT, wide=1.0, groups=3)
    train(settings, {"tiny": tiny_store, "large": large}, tmp_path / "both", device=CPU, show_progress=False)
    both = load_model(tmp_path / "both")
    assert both.state.wide_datasets == ("large",) and both.knows_wide_view
    says = "No wide view of tiny: the scans are hardly larger than a crop."
    assert says in (tmp_path / "both" / "train.log").read_text(encoding="utf-8")
    train(replace(SHORT, wide=1.0), {"tiny": tiny_store}, tmp_path / "tiny", device=CPU, show_progress=False)
    assert load_model(tmp_path / "tiny").state.wide_datasets == ()
    assert not load_model(tmp_path / "tiny").knows_wide_view
    train(
        replace(settings, iterations=5, wide=0.0),
        {"tiny": tiny_store, "large": large},
        tmp_path / "both",
        device=CPU,
        resume=True,
        show_progress=False,
    )
    assert load_model(tmp_path / "both").state.wide_datasets == ("large",), "what was met before still is"


def test_training_lowers_the_loss(tiny_store: Store, tmp_path: Path) -> None:
    settings = TrainSettings(
        size="tiny", iterations=30, validate_every=1000, validation_episodes=1, precision="fp32"
    )
    train(settings, {"tiny": tiny_store}, tmp_path, device=CPU, show_progress=False)
    losses = [
        float(r["loss"]) for r in csv.DictReader((tmp_path / "train.csv").open(encoding="utf-8")) if r["loss"]
    ]
    assert len(losses) == 2 and losses[-1] < losses[0] - 0.05


def test_progress_by_steps_time_or_both() -> None:
    by_both = TrainSettings(iterations=100, minutes=10)
    assert progress_of(by_both, 50, 60) == pytest.approx(0.5)
    assert progress_of(by_both, 1, 480) == pytest.approx(0.8)
    assert progress_of(TrainSettings(iterations=None, minutes=1), 10**6, 30) == pytest.approx(0.5)


def test_weights_default_to_one_and_name_known_datasets() -> None:
    assert dataset_weights(None, ["a", "b"]) is None
    assert dataset_weights({"a": 2.0}, ["a", "b"]) == {"a": 2.0, "b": 1.0}
    with pytest.raises(ModelError, match="may name a, b; got c: add it to -d or drop it"):
        dataset_weights({"c": 1.0}, ["a", "b"])


def test_no_iterations_leave_the_untrained_model(tiny_store: Store, tmp_path: Path) -> None:
    settings = TrainSettings(size="tiny", iterations=0, seed=5, validation_episodes=1, precision="fp32")
    train(settings, {"tiny": tiny_store}, tmp_path, device=CPU, show_progress=False)
    loaded = load_model(tmp_path)
    assert loaded.model_hash == hash_weights(build_iris("tiny", seed=5))
    assert loaded.state.iteration == 0 and len(loaded.bank) == 0
    assert (tmp_path / "curve.png").is_file()


def test_errors(tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="Training needs an end"):
        TrainSettings(iterations=None)
    with pytest.raises(ModelError, match="must be auto, bf16 or fp32; got 'fp16'"):
        TrainSettings(precision="fp16")
    with pytest.raises(CheckpointError, match="Nothing to resume"):
        train(SHORT, {"tiny": tiny_store}, tmp_path, device=CPU, resume=True, show_progress=False)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds a run already: add --resume"):
        train(SHORT, {"tiny": tiny_store}, tmp_path, device=CPU, show_progress=False)
    assert train_main(["paper", "--root", str(tmp_path / "nowhere")]) == 1
    assert "run iris_plan_and_preprocess" in capsys.readouterr().err
    (tmp_path / "root" / "preprocessed").mkdir(parents=True)
    (tmp_path / "root" / "preprocessed" / "tiny").symlink_to(tiny_store.folder)
    assert train_main(["paper", "--root", str(tmp_path / "root"), "--name", "w", "--weights", "tiny:2"]) == 1
    assert "takes NAME=NUMBER, such as openkbp=2; got 'tiny:2'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("iterations", -3, "--iterations must be 0 or more; got -3"),
        ("minutes", float("nan"), "--minutes must be 0 or more; got nan"),
        ("groups", 0, "--groups must be 1 or more; got 0"),
        ("group_size", 0, "--group-size must be 1 or more; got 0"),
        ("validate_every", 0, "--validate-every must be 1 or more; got 0"),
        ("workers", -1, "--workers must be 0 or more; got -1"),
        ("seed", -1, "--seed must be 0 or more; got -1"),
        ("learning_rate", 0.0, "--learning-rate must be above 0; got 0.0"),
        ("bank_momentum", 1.0, "--bank-momentum must be 0 or more and under 1; got 1.0"),
        ("weight_momentum", 1.0, "--weight-momentum must be 0 or more and under 1; got 1.0"),
    ],
)
def test_numbers_that_cannot_be(option: str, value: float, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        TrainSettings(**{option: value})


def test_two_datasets_of_the_same_people_are_not_trained_on_together(
    tiny_store: Store, tmp_path: Path
) -> None:
    spec = tiny_store.manifest.spec.model_copy(update={"overlaps": ("other",)})
    one = Store(tiny_store.folder, tiny_store.manifest.model_copy(update={"spec": spec}))
    with pytest.raises(StoreError, match="tiny and other show the same people under other names"):
        train(SHORT, {"tiny": one, "other": tiny_store}, tmp_path / "run", device=CPU)
    assert not (tmp_path / "run").exists()


def test_a_held_out_dataset_is_never_trained_on(
    tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tiny_store.manifest.model_copy(update={"role": "held-out"})
    with pytest.raises(StoreError, match="tiny is held out: it is never trained on"):
        train(SHORT, {"tiny": Store(tiny_store.folder, manifest)}, tmp_path / "run", device=CPU)
    assert not (tmp_path / "run").exists()
    shutil.copytree(tiny_store.folder, tmp_path / "preprocessed" / "tiny")
    save_json(tmp_path / "preprocessed" / "tiny" / "manifest.json", manifest)
    assert train_main(["paper", "-d", "tiny", "--root", str(tmp_path)]) == 1
    assert "tiny is held out: it is never trained on" in capsys.readouterr().err
    assert train_main(["paper", "--root", str(tmp_path)]) == 1  # left out where nobody names it
    assert "No finished dataset" in capsys.readouterr().err


def test_ctrl_c_in_the_last_validation_loses_nothing(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "preprocessed").symlink_to(tiny_store.folder.parent)
    command = ["paper", "-d", "tiny", "--size", "tiny", "--iterations", "2", "--root", str(tmp_path)]
    monkeypatch.setattr("iris_pipeline.training.train.validate", stop)
    assert train_main(command) == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "Interrupted; run the same command with --resume to go on from where it was."
    )
    assert load_model(tmp_path / "results" / "tiny_tiny_paper").state.iteration == 2


def test_a_run_is_resumed_on_the_stores_it_was_trained_on(tiny_store: Store, tmp_path: Path) -> None:
    none = TrainSettings(size="tiny", iterations=0, validation_episodes=1, precision="fp32")
    train(none, {"tiny": tiny_store}, tmp_path, device=CPU, show_progress=False)
    plan = tiny_store.plan.model_copy(update={"spacing_mm": (2.0, 2.0, 2.0)})
    other = Store(tiny_store.folder, tiny_store.manifest.model_copy(update={"plan": plan}))
    for stores in ({"tiny": other}, {"tiny": tiny_store, "more": tiny_store}):
        with pytest.raises(CheckpointError, match="was trained on tiny, each with its plan of then"):
            train(none, stores, tmp_path, device=CPU, resume=True, show_progress=False)


def test_a_gpu_that_is_not_there(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train_main(["paper", "--device", "cuda", "--root", str(tmp_path)]) == 1
    assert "--device cuda needs a CUDA device and there is none" in capsys.readouterr().err
