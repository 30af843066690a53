"""Task files on the command line: tuned, listed, merged, refused; every strategy of iris_predict; iris_advise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from scans import UNSEARCHED, load, save
from test_cli_predict import write_run

from iris_pipeline.cli.advise import advise_main
from iris_pipeline.cli.predict import predict_main
from iris_pipeline.cli.tasks import encode_main, tasks_main
from iris_pipeline.search.showing import SEARCH_RULES
from iris_pipeline.tasks.task_file import load_task
from preprocessing.store import Store

COARSE = ["--overlap", "0"]  # fewer windows, so that the tests take less time


@pytest.fixture(scope="module")
def root(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    (root / "preprocessed").symlink_to(tiny_store.folder.parent)
    write_run(root / "results" / "run", tiny_store, 0, "2026-01-01 10:00:00")
    write_run(root / "results" / "other", tiny_store, 1, "2025-01-01 10:00:00")
    return root


def references(folder: Path, raw: Path, cases: list[str]) -> Path:
    """A folder of references with named classes."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
        for case in cases:
            shutil.copy(raw / f"{kind}Tr" / f"{case}.nii.gz", folder / kind / f"{case}.nii.gz")
    (folder / "classes.json").write_text(json.dumps({"left": 1, "right": 2, "core": 5}))
    return folder


@pytest.fixture
def refs(tiny_raw: Any, tmp_path: Path) -> Path:
    return references(tmp_path / "refs", tiny_raw.dataset, ["s1_a", "s4_a"])


@pytest.fixture
def scan(tiny_raw: Any) -> str:
    return str(tiny_raw.dataset / "imagesTr" / "s3_a.nii.gz")


def test_equal_references_give_equal_bytes_unless_dated(root: Path, refs: Path, tmp_path: Path) -> None:
    arguments = ["-r", str(refs), "--root", str(root), *UNSEARCHED]
    for name in "ab":
        assert encode_main([*arguments, "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert encode_main([*arguments, "-o", str(tmp_path / "c"), "--dated"]) == 0
    assert load_task(tmp_path / "c").created.startswith("20")


def test_a_tuned_task_is_stored_listed_and_used(
    root: Path, refs: Path, scan: str, tmp_path: Path, capsys: Any
) -> None:
    file = tmp_path / "tuned.task"
    arguments = ["-r", str(refs), "-o", str(file), "--root", str(root), "--strategy", "tuning", *UNSEARCHED]
    assert encode_main([*arguments, "--steps", "3", "--learning-rate", "0.03"]) == 0
    assert "Tuned: at whole resolution, 3 steps of 0.03, loss " in capsys.readouterr().out
    task = load_task(file)
    assert task.made_by == "tuning" and task.tuned[0].steps == 3
    assert task.tuned[0].loss < task.tuned[0].loss_before
    assert tasks_main(["show", str(file)]) == 0
    said = capsys.readouterr().out
    assert "left, right, core from 2 references (core from 1) at " in said and ", tuning, model " in said
    assert "    1  left: 2 references\n" in said and "    5  core: 1 reference\n" in said
    assert "  tuned: at whole resolution, 3 steps of 0.03, loss " in said
    assert " on the held-out reference\n" in said
    predict = ["-t", str(file), "-i", scan, "-o", str(tmp_path / "out"), "--root", str(root), *COARSE]
    assert predict_main(predict) == 0
    assert load(tmp_path / "out" / "s3_a.nii.gz")[0].shape == load(Path(scan))[0].shape


def test_tasks_are_merged_on_one_grid(root: Path, tiny_raw: Any, tmp_path: Path, capsys: Any) -> None:
    files = {}
    for name, case in (("one", "s1_a"), ("two", "s3_a")):
        folder = references(tmp_path / name, tiny_raw.dataset, [case])
        files[name] = tmp_path / f"{name}.task"
        like = ["--like", str(files["one"])] if name == "two" else UNSEARCHED
        assert encode_main(["-r", str(folder), "-o", str(files[name]), "--root", str(root), *like]) == 0
    merged = tmp_path / "both.task"
    command = ["merge", *map(str, files.values()), "-o", str(merged)]
    assert tasks_main(command) == 0
    assert "Task: left, right, core from 2 references at " in capsys.readouterr().out
    one, two, both = load_task(files["one"]), load_task(files["two"]), load_task(merged)
    assert both.classes == one.classes == {"left": 1, "right": 2, "core": 5}
    for level, a, b in zip(both.tokens, one.tokens, two.tokens, strict=True):
        assert torch.allclose(level, (a + b) / 2, atol=1e-6)
    first = merged.read_bytes()
    assert tasks_main(command) == 0 and merged.read_bytes() == first
    # the same reference twice, another model's task, another grid: one sentence each
    assert tasks_main(["merge", str(files["one"]), str(merged), "-o", str(tmp_path / "x")]) == 1
    assert "they share a reference image" in capsys.readouterr().err
    foreign = str(tmp_path / "foreign.task")
    encode = ["-r", str(tmp_path / "two"), "--root", str(root)]
    assert encode_main([*encode, "-o", foreign, "-m", "other", *UNSEARCHED]) == 0
    assert tasks_main(["merge", str(files["one"]), foreign, "-o", str(tmp_path / "x")]) == 1
    assert (
        "merged only if they share model, spacing, patch size, pose and intensities; "
        in capsys.readouterr().err
    )
    assert tasks_main([foreign, "-m", "run", "--root", str(root)]) == 1
    assert "serves only the model that encoded it" in capsys.readouterr().err
    like = ["--like", foreign, "-o", str(tmp_path / "x"), "-m", "run"]
    assert encode_main([*encode, *like]) == 1
    assert "serves only the model that encoded it" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


OWN_OPTIONS = {
    "image-retrieval": [],
    "object-retrieval": ["--top", "1"],
    "tuning": ["--steps", "2"],
    "refining": ["--steps", "2"],
    "best": ["--steps", "2"],
}


def test_the_tip_names_nothing_that_would_be_refused(
    root: Path, refs: Path, tiny_raw: Any, scan: str, tmp_path: Path, capsys: Any
) -> None:
    """best compares people: of one reference alone it has nothing to leave out."""
    plain = ["-i", scan, "--root", str(root), *UNSEARCHED, *COARSE]
    alone = references(tmp_path / "alone", tiny_raw.dataset, ["s1_a"])
    for given, tip in ((refs, "--strategy best tries on"), (alone, "--strategy refining learns from")):
        assert predict_main([*plain, "-r", str(given), "-o", str(tmp_path / f"out_{given.name}")]) == 0
        assert f"Where the masks disappoint: {tip} the references" in capsys.readouterr().out
    assert predict_main([*plain, "-r", str(alone), "-o", str(tmp_path / "x"), "--strategy", "best"]) == 1
    assert "two or more people who share a class" in capsys.readouterr().err


@pytest.mark.parametrize("other", [["--overlap", "0.5"], ["--one-pass"]])
def test_results_that_were_made_otherwise_are_refused_before_a_task_is_made(
    root: Path, refs: Path, scan: str, tmp_path: Path, other: list[str], capsys: Any
) -> None:
    predict = ["-i", scan, "-r", str(refs), "-o", str(tmp_path), "--root", str(root), "--pose", "upright"]
    predict += ["--scale", "1", "--grey", "0", "--overlap", "0"]
    assert predict_main(predict) == 0 and "Task: " in capsys.readouterr().out
    names = refs / "classes.json"  # one that no reference shows changes no result
    names.write_text(names.read_text(encoding="utf-8").replace("{", '{"ghost": 9, ', 1), encoding="utf-8")
    assert predict_main(predict) == 0 and "0 segmented, 1 skipped" in capsys.readouterr().out
    assert predict_main([*predict, *other]) == 1
    told = capsys.readouterr()
    assert f"those in {tmp_path.resolve()} were made otherwise" in told.err and "Task: " not in told.out


@pytest.mark.parametrize("strategy", OWN_OPTIONS)
def test_strategies_with_given_references(
    root: Path, refs: Path, scan: str, tmp_path: Path, strategy: str, capsys: Any
) -> None:
    arguments = ["-r", str(refs), "-i", scan, "-o", str(tmp_path / "out"), "--root", str(root), *COARSE]
    searched = strategy == "image-retrieval"  # one of them is enough: a search takes most of a minute
    arguments += ["--tones", "never"] if searched else UNSEARCHED
    assert predict_main([*arguments, "--strategy", strategy, *OWN_OPTIONS[strategy]]) == 0
    assert "Task: left, right, core from 2 references (core from 1) at " in capsys.readouterr().out
    assert load(tmp_path / "out" / "s3_a.nii.gz")[0].shape == load(Path(scan))[0].shape
    record = json.loads((tmp_path / "out" / "predict.json").read_text(encoding="utf-8"))
    assert record["made_from"].get("search_rules") == (SEARCH_RULES if searched else None)
    # the same scan among the references is refused, whatever is retrieved
    image, affine = load(refs / "images" / "s1_a.nii.gz")
    own = save(tmp_path / "renamed.nii.gz", image, affine)
    arguments[3], arguments[5] = str(own), str(tmp_path / "refused")
    assert predict_main([*arguments, "--strategy", strategy, *OWN_OPTIONS[strategy]]) == 1
    assert "A reference is never its own query" in capsys.readouterr().err


@pytest.mark.parametrize("strategy", OWN_OPTIONS)
def test_strategies_over_a_split(root: Path, tiny_raw: Any, tiny_store: Store, strategy: str) -> None:
    arguments = ["--split", "paper", "-d", "tiny", "--root", str(root), "--raw", str(tiny_raw.root)]
    count = 3 if strategy == "best" else 2  # the two that are drawn are of one person
    arguments += ["--strategy", strategy, "-k", str(count), "--draw", "3", *OWN_OPTIONS[strategy], *COARSE]
    assert predict_main(arguments) == 0
    out = root / "results" / "run" / "predictions" / "tiny" / f"{strategy}_k{count}_draw3"
    parts = tiny_store.manifest.splits["paper"]
    assert sorted(path.name for path in out.glob("*.nii.gz")) == [f"{i}.nii.gz" for i in parts["test"]]
    made_from = json.loads((out / "predict.json").read_text(encoding="utf-8"))["made_from"]
    assert (made_from["strategy"], made_from["references"], made_from["seed"]) == (strategy, count, 3)
    settings = made_from.get("settings", {})
    assert settings.get("top") == (1 if strategy == "object-retrieval" else None)
    assert settings.get("steps") == (2 if strategy in ("tuning", "refining", "best") else None)
    assert settings.get("refine") == {"tuning": False, "refining": True, "best": False}.get(strategy)
    used = json.loads((out / "references.json").read_text(encoding="utf-8"))
    subjects = {entry.id: entry.subject for entry in tiny_store.manifest.cases}
    for query, given in used.items():
        drawn = given["references"]
        made_by = ("ensemble", "tuning", "refining") if strategy == "best" else (strategy,)
        assert given["made_by"] in made_by
        assert given["pose"] == "SAR", "datasets that the model was trained on are not searched"
        assert set(drawn) <= set(parts["train"]) and len(drawn) >= min(2, len(parts["train"]))
        assert subjects[query] not in {subjects[name] for name in drawn}


def test_options_that_would_be_lost_are_refused(
    root: Path, refs: Path, scan: str, tmp_path: Path, capsys: Any
) -> None:
    file, out = str(tmp_path / "x.task"), tmp_path / "out"
    encode = ["-r", str(refs), "-o", file, "--root", str(root)]
    assert encode_main([*encode, "--steps", "2"]) == 1
    assert (
        "--steps goes with --strategy tuning or refining or best; got no --strategy: add it, or leave --steps out."
        in capsys.readouterr().err
    )
    assert encode_main([*encode, "--strategy", "refining", "--steps", "2", *UNSEARCHED]) == 0
    capsys.readouterr()
    assert load_task(file).made_by == "refining" and load_task(file).head is not None
    predict = ["-i", scan, "-o", str(out), "--root", str(root)]
    assert predict_main([*predict, "-t", file, "--steps", "2", "-k", "1", "--scale", "1.6"]) == 1
    assert (
        "A task file is used as it was made: -k, --scale, --steps go with references (-r)"
        in capsys.readouterr().err
    )
    assert predict_main([*predict, "-r", str(refs), "--strategy", "ensemble", "--top", "2"]) == 1
    assert "--top goes with --strategy object-retrieval; got --strategy ensemble" in capsys.readouterr().err
    assert not out.exists()


USELESS = ["-k", "3", "--draw", "1", "--modality", "CT", "--subject-pattern", "x", "--pose", "LIP"]
USELESS += ["--grey", "2", "--looks", "1"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["-d", "tiny", *USELESS],
            "The memory bank takes no references: -k, --draw, --modality, --subject-pattern, --pose, --grey "
            "would change nothing; leave them out.",
        ),
        (
            ["--strategy", "bank", "-k", "3", "--draw", "1", "--confidence"],  # whose witnesses are drawn
            "The memory bank takes no references: -k would change nothing; leave it out.",
        ),
        (["--scale", "1.6"], "The memory bank takes no references: --scale would change nothing"),
        (
            ["-d", "tiny", "--strategy", "ensemble", *USELESS, "--reference-channel", "1"],
            "References of -d are taken as they are in the store: --modality, --reference-channel, --subject-pattern, "
            "--pose, --grey, --looks would change nothing; leave them out.",
        ),
        (
            ["-d", "tiny", "--strategy", "one-shot", "-k", "3"],
            "One-shot takes one reference; got -k 3: leave -k out (--draw says which), or take ensemble for several.",
        ),
        (["--steps", "2"], "--steps goes with --strategy tuning or refining or best; got no --strategy"),
    ],
)
def test_options_that_the_source_of_the_task_makes_nothing_of_are_refused(
    root: Path, scan: str, tmp_path: Path, arguments: list[str], says: str, capsys: Any
) -> None:
    out = tmp_path / "out"
    assert predict_main(["-i", scan, "-o", str(out), "--root", str(root), *arguments]) == 1
    assert f"Error: {says}" in capsys.readouterr().err and not out.exists()
    split = ["--split", "paper", "--root", str(root), *arguments]
    says = (
        says.replace(", --pose, --grey, --looks", "") if "ensemble" in arguments else says
    )  # it may be a held-out dataset
    assert predict_main(split) == 1
    assert f"Error: {says}" in capsys.readouterr().err


def test_a_draw_with_the_bank_and_its_confidence_is_not_refused(
    root: Path, scan: str, tmp_path: Path, capsys: Any
) -> None:
    command = ["-i", scan, "-o", str(tmp_path / "out"), "--root", str(root), "--draw", "1", "--confidence"]
    assert predict_main(command) == 1
    assert "make it with iris_calibrate" in (told := capsys.readouterr().err) and "--draw" not in told


def test_a_weight_of_grey_values_goes_with_like_and_not_with_a_task_file(
    root: Path, tiny_raw: Any, scan: str, tmp_path: Path, capsys: Any
) -> None:
    files = [tmp_path / "one.task", tmp_path / "two.task"]
    for file, case, more in (
        (files[0], "s1_a", ["--pose", "upright", "--scale", "1", "--grey", "1"]),
        (files[1], "s3_a", ["--like", str(files[0]), "--grey", "2.5", "--looks", "1"]),
    ):
        folder = references(tmp_path / case, tiny_raw.dataset, [case])
        assert encode_main(["-r", str(folder), "-o", str(file), "--root", str(root), *more]) == 0
    assert tasks_main(["merge", *map(str, files), "-o", str(tmp_path / "both.task")]) == 0
    for file, weight in ((files[0], 1.0), (files[1], 2.5), (tmp_path / "both.task", 1.75)):
        grey = load_task(file).grey
        assert grey is not None and grey.weights.tolist() == [weight] * 3 and grey.ratios.any(1).all()
        assert len(load_task(file).surroundings) == (0 if file == files[1] else 3)
    assert "pose" not in (said := capsys.readouterr().out) and said.count("grey values weighed") == 3
    assert said.count(", two looks;") == 2
    names = load_task(files[1]).class_names
    assert ", grey values weighed " + ", ".join(f"{name} 2.5" for name in names) in said
    predict = ["-t", str(files[0]), "-i", scan, "-o", str(tmp_path / "out"), "--root", str(root)]
    assert predict_main([*predict, "--grey", "1", "--looks", "1"]) == 1
    assert "it was made: --grey, --looks go with references (-r)" in capsys.readouterr().err


def test_like_leaves_nothing_to_be_said_of_the_grid(
    root: Path, refs: Path, tmp_path: Path, capsys: Any
) -> None:
    command = ["-r", str(refs), "-o", str(tmp_path / "x.task"), "--root", str(root), "--like", "liver.task"]
    assert encode_main([*command, "--pose", "LIP", "--scale", "2", "--modality", "CT", "-k", "1"]) == 1
    assert (
        "Error: --like takes modality, pose, scale and tones of its task: --modality, --pose, --scale would change "
        "nothing; "
        "leave them out." in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("main", "arguments", "says"),
    [
        (predict_main, ["-i", "a", "-o", "b", "--part", "test"], "--part is a part of --split: leave it out"),
        (
            predict_main,
            ["--split", "paper", "--channel", "1"],
            "--channel is of the scans of -i: leave it out",
        ),
        (predict_main, ["-i", "a", "-o", "b", "--draw", "-1"], "a whole number from 0 on, not '-1'"),
        (
            encode_main,
            ["-r", "a", "-o", "b", "--seed", "x"],
            "--seed: takes a whole number from 0 on, not 'x'",
        ),
        (
            encode_main,
            ["-r", "a", "-o", "b", "--grey", "11"],
            "argument --grey: The weight of grey values is auto, or 0 (none) to 10 (1: as Bayes' rule says); got '11'",
        ),
        (advise_main, ["-r", "a", "--seed", "-1"], "--seed: takes a whole number from 0 on, not '-1'"),
    ],
)
def test_options_that_cannot_be_are_refused_at_once(
    main: Any, arguments: list[str], says: str, capsys: Any
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and says in capsys.readouterr().err


def test_advice_on_references(
    root: Path, tiny_raw: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = references(tmp_path / "refs", tiny_raw.dataset, ["s1_a", "s3_a", "s4_a"])
    out = tmp_path / "advice"
    plain = [*COARSE, *UNSEARCHED]
    assert advise_main(["-r", str(folder), "-o", str(out), "--root", str(root), *plain]) == 0
    said = capsys.readouterr().out
    assert "3 references, 9 trials; each reference is encoded once." in said
    assert "left: " in said and "core: " in said
    assert sorted(p.name for p in out.iterdir()) == ["advice.csv", "advice.md", "advice.png", "trials.json"]
    rows = (out / "advice.csv").read_text(encoding="utf-8").splitlines()
    # left and right in all nine; core is in two, each of which is tried on the other
    assert len(rows) == 1 + 9 + 9 + 2 + 1 and rows[-1].startswith("# Made by `iris_advise -r ")
    pair = references(tmp_path / "pair", tiny_raw.dataset, ["s1_a", "s4_a"])
    compare = ["--compare-strategies", "--steps", "2", *plain]
    assert advise_main(["-r", str(pair), "-o", str(out), "--root", str(root), *compare]) == 0
    assert "Mean Dice on 2 references, each segmented from the others: ensemble 0." in capsys.readouterr().out
    tried = [row.split(",")[:2] for row in (out / "strategies.csv").read_text(encoding="utf-8").splitlines()]
    assert {tuple(row) for row in tried[1:-1]} == {
        (query, strategy) for query in ("s1_a", "s4_a") for strategy in ("ensemble", "tuning", "refining")
    }
    assert advise_main(["-r", str(pair), "-o", str(out), "--root", str(root), "--steps", "2"]) == 1
    assert "--steps goes with --compare-strategies" in capsys.readouterr().err
    assert "## Which strategy" in (out / "advice.md").read_text(encoding="utf-8")
    alone = references(tmp_path / "alone", tiny_raw.dataset, ["s1_a"])
    search = "iris_pipeline.scans.references.settle_showing"
    monkeypatch.setattr(search, lambda *_, **__: pytest.fail("searched"))
    assert advise_main(["-r", str(alone), "-o", str(out), "--root", str(root)]) == 1
    assert "needs two or more; got 1 of 1: give more references" in capsys.readouterr().err


def test_references_of_one_person_are_no_judges(
    root: Path, refs: Path, tiny_raw: Any, tmp_path: Path, capsys: Any
) -> None:
    """By their names, as --subject-pattern finds it, or as the same scan: in tuning and in advice."""
    command = ["-r", str(refs), "--root", str(root), *UNSEARCHED]
    tuned = [*command, "-o", str(tmp_path / "x.task"), "--strategy", "tuning", "--steps", "2"]
    for pattern, judge in (("^(?P<subject>s)", "augmented"), ("", "held-out")):
        assert encode_main([*tuned, "--subject-pattern", pattern]) == 0
        assert load_task(tmp_path / "x.task").tuned[0].judged_by == f"{judge} reference"
        said = capsys.readouterr().out
        assert ("Of one person, by their names or as the same scan: s1_a and s4_a;" in said) == bool(pattern)
    advice = ["-o", str(tmp_path / "advice"), "--overlap", "0"]
    assert advise_main([*command, *advice, "--subject-pattern", "^(?P<subject>s)"]) == 1
    assert "needs two or more; got 2 of 1: give more references" in capsys.readouterr().err
    scan = ["-i", str(tiny_raw.dataset / "imagesTr" / "s3_a.nii.gz"), "-o", str(tmp_path / "out")]
    assert predict_main([*command, *scan, "--subject-pattern", "("]) == 1
    assert "--subject-pattern takes a regular expression; '(' is none" in capsys.readouterr().err
    for kind in ("images", "labels"):
        (refs / kind / "s4_a.nii.gz").unlink()
        shutil.copy(refs / kind / "s1_a.nii.gz", refs / kind / "again.nii.gz")
    assert advise_main([*command, *advice]) == 1
    told = capsys.readouterr()
    assert "The same scan under several names: again and s1_a;" in told.out
    assert "needs two or more; got 2 of 1" in told.err
