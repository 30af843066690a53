"""Task files: what goes in comes out, equal tasks are equal bytes, another models task is refused."""

from __future__ import annotations

import errno
import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from stub_model import HASH, make_task

from iris_pipeline.tasks.task import TaskEmbedding, Tuned, merge, same_footing
from iris_pipeline.tasks.task_file import load_task, save_task
from preprocessing.errors import TaskError
from preprocessing.normalise import Normalisation
from preprocessing.orientation import Pose


@pytest.fixture
def task() -> TaskEmbedding:
    generator = torch.Generator().manual_seed(0)
    return TaskEmbedding(
        class_names=("liver", "left kidney", "Milz (größer)"),
        tokens=(torch.randn(1, 3, 11, 8, generator=generator), torch.randn(1, 3, 11, 4, generator=generator)),
        spacing_mm=(1.5, 1.25, 2.0),
        patch_size=(64, 48, 32),
        normalisation=Normalisation.for_modality("CT"),
        intensity_offset=-1000.0,
        modality="CT",
        references=3,
        model_hash=HASH,
        made_by="ensemble",
        created="2026-01-02T03:04:05+0000",
        reference_hashes=("aa", "bb", "cc"),
        class_values=(1, 7, 200),
    )


def assert_same(first: TaskEmbedding, second: TaskEmbedding) -> None:
    for field in fields(TaskEmbedding):
        if field.name == "tokens":
            assert len(first.tokens) == len(second.tokens)
            assert all(torch.equal(a, b) for a, b in zip(first.tokens, second.tokens, strict=True))
        else:
            assert getattr(first, field.name) == getattr(second, field.name), field.name


def test_round_trip(tmp_path: Path, task: TaskEmbedding) -> None:
    save_task(tmp_path / "new folder" / "liver.task", task)
    assert_same(load_task(tmp_path / "new folder" / "liver.task", HASH), task)
    assert [p.name for p in (tmp_path / "new folder").iterdir()] == ["liver.task"], "a temporary file stayed"


def test_equal_tasks_are_equal_bytes(tmp_path: Path, task: TaskEmbedding) -> None:
    for name in "ab":
        for _ in range(3):
            save_task(tmp_path / name, replace(task, tokens=tuple(t.clone() for t in task.tokens)))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    save_task(tmp_path / "b", replace(task, intensity_offset=0.0))
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


def test_bfloat16_and_strided_tokens_are_saved_as_float32(tmp_path: Path, task: TaskEmbedding) -> None:
    odd = replace(task, tokens=tuple(t.bfloat16().transpose(2, 3) for t in task.tokens))
    save_task(tmp_path / "x.task", odd)
    for saved, given in zip(load_task(tmp_path / "x.task").tokens, odd.tokens, strict=True):
        assert saved.dtype == torch.float32 and torch.equal(saved, given.float())


def test_another_models_task_is_refused(tmp_path: Path, task: TaskEmbedding) -> None:
    save_task(tmp_path / "x.task", task)
    text = "is of model 0123456789ab, the model in use is fedcba987654; encode the references again"
    with pytest.raises(TaskError, match=text):
        load_task(tmp_path / "x.task", "fedcba9876543210")


def test_missing_and_damaged_files_are_refused(tmp_path: Path, task: TaskEmbedding) -> None:
    with pytest.raises(
        TaskError, match=r"no task file .*x\.task; make one with iris_encode -r REFS -o x\.task"
    ):
        load_task(tmp_path / "x.task")
    (tmp_path / "refs").mkdir()
    with pytest.raises(
        TaskError, match=r"a file that iris_encode made; \S+refs is a folder: references go with -r"
    ):
        load_task(tmp_path / "refs")
    save_task(tmp_path / "x.task", task)
    content = (tmp_path / "x.task").read_bytes()
    (tmp_path / "x.task").write_bytes(content[: len(content) // 2])
    with pytest.raises(TaskError, match="is not a readable task file"):
        load_task(tmp_path / "x.task")
    (tmp_path / "x.task").write_bytes(b"liver")
    with pytest.raises(TaskError, match="is not a readable task file"):
        load_task(tmp_path / "x.task")


def test_a_task_file_that_may_not_be_read_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.task"
    path.write_bytes(b"")

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        TaskError, match=r"a\.task cannot be read \(Permission denied\): mend its permissions\.$"
    ):
        load_task(path)


def test_other_safetensors_are_no_tasks(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "x.task")
    with pytest.raises(TaskError, match="is a safetensors file but no task file"):
        load_task(tmp_path / "x.task")


def rewrite(path: Path, task: TaskEmbedding, **changes: object) -> None:
    """A task file with changed metadata."""
    save_task(path, task)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = json.loads(header["__metadata__"]["iris_task"]) | changes
    save_file(
        {f"tokens.{i}": t for i, t in enumerate(task.tokens)}, path, {"iris_task": json.dumps(metadata)}
    )


def test_other_schemas_are_refused_by_name(tmp_path: Path, task: TaskEmbedding) -> None:
    rewrite(tmp_path / "x.task", task, schema_version=9, a_key_of_tomorrow=1)
    with pytest.raises(TaskError, match=r"reads task files of schema 8; .*x\.task is of schema 9"):
        load_task(tmp_path / "x.task")
    rewrite(tmp_path / "x.task", task, schema_version=7)
    with pytest.raises(TaskError, match=r"reads task files of schema 8; .*x\.task is of schema 7"):
        load_task(tmp_path / "x.task")
    rewrite(tmp_path / "x.task", task, references="many")
    with pytest.raises(TaskError, match=r"unreadable metadata \(references: .*\); encode it again"):
        load_task(tmp_path / "x.task")
    rewrite(tmp_path / "x.task", task, levels=3)
    with pytest.raises(
        TaskError, match="should hold tokens.0, tokens.1, tokens.2 and holds tokens.0, tokens.1"
    ):
        load_task(tmp_path / "x.task")
    rewrite(tmp_path / "x.task", task, levels=1, wide_levels=0)
    with pytest.raises(TaskError, match=r"should hold tokens\.0 and holds tokens\.0, tokens\.1"):
        load_task(tmp_path / "x.task")


def test_nothing_is_written_where_nothing_can_be(tmp_path: Path, task: TaskEmbedding) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TaskError, match=r"cannot be written to .* choose another -o"):
        save_task(tmp_path / "file" / "x.task", task)


def test_select_takes_names_values_and_tokens(task: TaskEmbedding) -> None:
    chosen = task.select(["Milz (größer)", "liver"])
    assert chosen.classes == {"Milz (größer)": 200, "liver": 1}
    for level, whole in zip(chosen.tokens, task.tokens, strict=True):
        assert torch.equal(level[0, 0], whole[0, 2]) and torch.equal(level[0, 1], whole[0, 0])
    with pytest.raises(TaskError, match=r"knows the classes liver, .*; asked for heart"):
        task.select(["liver", "heart"])


def test_merge_is_the_inverse_of_select(task: TaskEmbedding) -> None:
    parts = [task.select(["liver"]), task.select(["left kidney", "Milz (größer)"])]
    assert_same(merge(parts), task)
    assert_same(merge([task]), task)


def test_merge_averages_a_class_by_its_references() -> None:
    # a: (3 * 1.0 + 1 * 5.0) / 4 = 2.0; b: 10.0 as it came, of 2 references; c: 7.0, of 1
    first = make_task([1.0, 10.0], ("a", "b"), references=3, class_references=(3, 2))
    first = replace(first, reference_hashes=("x", "y", "z"))
    second = make_task([7.0, 5.0], ("c", "a"), class_values=(3, 1), reference_hashes=("w",))
    merged = merge([first, second])
    assert merged.classes == {"a": 1, "b": 2, "c": 3}
    assert merged.tokens[0].flatten().tolist() == [2.0, 10.0, 7.0]
    assert (merged.references, merged.class_references) == (4, (4, 2, 1))
    assert merged.reference_hashes == ("x", "y", "z", "w")
    # once more: (4 * 2.0 + 1 * 12.0) / 5 = 4.0, whatever the order
    third = make_task([12.0], ("a",), reference_hashes=("v",))
    for tasks in ([merged, third], [third, merged], [third, second, first]):
        again = merge(tasks).select(["a", "b", "c"])
        assert again.tokens[0].flatten().tolist() == pytest.approx([4.0, 10.0, 7.0])
        assert again.class_references == (5, 2, 1)


def test_merge_keeps_the_records_of_tuning() -> None:
    tuned = [record(steps) for steps in (20, 30)]
    parts = [
        make_task([1.0], (name,), class_values=(k + 1,), made_by="tuning", tuned=(tuned[k],))
        for k, name in enumerate("ab")
    ]
    merged = merge([*parts, make_task([3.0], ("c",), class_values=(3,))])
    assert (merged.tuned, merged.made_by) == (tuple(tuned), "tuning + one-shot")
    assert merge([merged.select([name]) for name in "abc"]).tuned == tuple(tuned), "each once"


def test_a_tuned_task_comes_back(tmp_path: Path, task: TaskEmbedding) -> None:
    tuned = replace(task, tuned=(record(40),), class_references=(1, 2, 3), created="")
    save_task(tmp_path / "x.task", tuned)
    assert_same(load_task(tmp_path / "x.task"), tuned)


def record(steps: int) -> Tuned:
    return Tuned(
        view="whole resolution",
        steps=steps,
        learning_rate=0.01,
        seed=0,
        loss_before=0.5,
        loss=0.25,
        judged_by="held-out reference",
    )


def test_merge_refuses_what_does_not_fit(task: TaskEmbedding) -> None:
    with pytest.raises(TaskError, match="'liver' is in several of these tasks, and they share a reference"):
        merge([task, task.select(["liver"])])
    with pytest.raises(TaskError, match="class 'a' comes from the memory bank in one of the tasks"):
        merge([make_task([1.0], ("a",)), make_task([1.0], ("a",), class_references=(0,))])
    other = replace(task.select(["liver"]), class_names=("heart",), spacing_mm=(1.0, 1.0, 1.0))
    with pytest.raises(
        TaskError,
        match=r"share model, spacing.*1.5 x 1.25 x 2 mm.*heart \(.*1 x 1 x 1 mm.*iris_encode --like",
    ):
        merge([task, other])
    with pytest.raises(TaskError, match=r"model 0123456789ab.*model fedcba987654.*differ"):
        merge([task, replace(other, spacing_mm=task.spacing_mm, model_hash="fedcba9876543210")])
    with pytest.raises(TaskError, match="at least one task; got none"):
        merge([])


def test_largest_pieces_go_with_their_classes_and_the_least_counts() -> None:
    first = make_task(
        [1.0, 2.0, 3.0], ("a", "b", "c"), largest_pieces=(1.0, 0.6, 0.9), reference_hashes=("x",)
    )
    other = make_task([3.0, 2.0], ("c", "b"), largest_pieces=(0.8, 0.7), reference_hashes=("y",))
    assert first.select(["c", "a"]).largest_pieces == (0.9, 1.0)
    assert merge([first, other]).largest_pieces == (1.0, 0.6, 0.8)


@pytest.mark.parametrize(
    "change",
    [
        {"model_hash": "fedcba9876543210"},
        {"spacing_mm": (1.5, 1.25, 2.5)},
        {"patch_size": (64, 64, 32)},
        {"pose": Pose("AIR")},
        {"normalisation": Normalisation(modality="CT", clip=(-100.0, 100.0))},
        {"intensity_offset": 0.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_tasks_share_a_footing_only_where_all_of_it_is_one(
    task: TaskEmbedding, change: dict[str, object]
) -> None:
    other = replace(task, class_names=("a", "b", "c"), reference_hashes=("another",))
    assert same_footing(task, other)
    assert not same_footing(task, replace(other, **change))  # type: ignore[arg-type]
    with pytest.raises(
        TaskError, match="only if they share model, spacing, patch size, pose and intensities"
    ):
        merge([task, replace(other, **change)])  # type: ignore[arg-type]


def test_merge_renumbers_where_values_clash() -> None:
    first, second = make_task([1.0], ("a",)), make_task([2.0], ("b",))
    assert first.classes == {"a": 1} and second.classes == {"b": 1}
    assert merge([first, second]).classes == {"a": 1, "b": 2}


def test_a_task_checks_itself(task: TaskEmbedding) -> None:
    with pytest.raises(TaskError, match=r"must be \[1,3,m\+1,C\] .*; got \[1, 2, 11, 8\]"):
        replace(task, tokens=(task.tokens[0][:, :2],))
    with pytest.raises(TaskError, match=r"a value of its own in 1..255; .* got \[1, 1, 2\]"):
        replace(task, class_values=(1, 1, 2))
    for values in ((1, 2, 256), (0, 1, 2)):
        with pytest.raises(TaskError, match=re.escape(f"got {list(values)}")):
            replace(task, class_values=values)
    with pytest.raises(TaskError, match=r"counts the references of each of its 3 classes; got \[1\]"):
        replace(task, class_references=(1,))
    with pytest.raises(TaskError, match="one or more classes"):
        replace(task, class_names=(), tokens=())


# --- tokens of the wide view ------------------------------------------------------------------------


def test_wide_tokens_are_kept_selected_and_written(tmp_path: Path, task: TaskEmbedding) -> None:
    wide = tuple(level + 1 for level in task.tokens)
    both = replace(task, wide_tokens=wide)
    save_task(tmp_path / "x.task", both)
    read = load_task(tmp_path / "x.task")
    assert all(torch.equal(a, b) for a, b in zip(read.wide_tokens, wide, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(read.tokens, task.tokens, strict=True))
    name = task.class_names[-1]
    assert torch.equal(both.select([name]).wide_tokens[0], wide[0][:, -1:])
    with pytest.raises(TaskError, match=r"Each level of a task's tokens must be \[1,"):
        replace(task, wide_tokens=(wide[0][:, :1, :, :].expand(1, 9, -1, -1),))


def test_merging_means_wide_tokens_where_all_have_them(task: TaskEmbedding) -> None:
    first = replace(task, wide_tokens=task.tokens, reference_hashes=("a",))
    second = replace(task, wide_tokens=tuple(t + 2 for t in task.tokens), reference_hashes=("b",))
    merged = merge([first, second])
    for level, old in zip(merged.wide_tokens, task.tokens, strict=True):
        torch.testing.assert_close(level, old + 1)
    assert merge([first, replace(second, wide_tokens=())]).wide_tokens == ()
