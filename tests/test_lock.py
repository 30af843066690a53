"""One run at a time in a folder: a second one is refused with one sentence, a dead one's lock is taken over."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TinyRaw

from iris_pipeline.cli.prepare import plan_and_preprocess_main
from iris_pipeline.cli.train import train_main
from preprocessing import fingerprint
from preprocessing.errors import LockError
from preprocessing.runtime import lock
from preprocessing.runtime.lock import FILE, only_run_in
from preprocessing.store import Store

pytestmark = pytest.mark.skipif(lock.fcntl is None, reason="this system has no flock")
HOLD = """
import sys
from pathlib import Path
from preprocessing.runtime.lock import only_run_in
with only_run_in(Path(sys.argv[1]), "wait"):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder until its input ends."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def is_free(folder: Path) -> bool:
    try:
        with only_run_in(folder, "wait"):
            return True
    except LockError:
        return False


def test_a_second_run_is_refused_and_the_first_one_leaves_nothing(tmp_path: Path) -> None:
    with only_run_in(tmp_path, "wait"):
        who = rf"process {os.getpid()} on .* since 20.*"
        says = rf"^Another run works in {re.escape(str(tmp_path))} \({who}\): give way\.$"
        with pytest.raises(LockError, match=says), only_run_in(tmp_path, "give way"):
            pytest.fail("two runs in one folder")
        assert not is_free(tmp_path), "the refused one has taken nothing away"
        assert is_free(tmp_path / "other")
    assert list(tmp_path.iterdir()) == [] and is_free(tmp_path)
    with pytest.raises(KeyboardInterrupt), only_run_in(tmp_path, "wait"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_stays_empty_goes_if_it_was_made_for_the_lock(tmp_path: Path) -> None:
    with only_run_in(tmp_path / "a" / "new", "wait"):
        assert [path.name for path in (tmp_path / "a" / "new").iterdir()] == [FILE]
    assert not (tmp_path / "a" / "new").exists()
    with only_run_in(tmp_path / "used", "wait"):
        (tmp_path / "used" / "result").touch()
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["result"]


def test_another_process_holds_it_until_it_ends(tmp_path: Path) -> None:
    process = holder(tmp_path)
    with pytest.raises(LockError, match=rf"\(process {process.pid} on "), only_run_in(tmp_path, "wait"):
        pytest.fail("two runs in one folder")
    process.communicate("")
    assert not (tmp_path / FILE).exists() and is_free(tmp_path)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="processes are not killed by a signal here")
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    process = holder(tmp_path)
    assert not is_free(tmp_path)
    process.kill()
    process.communicate()
    assert (tmp_path / FILE).read_text().startswith(f"process {process.pid} on "), "it could not clear up"
    with only_run_in(tmp_path, "wait"):
        assert re.fullmatch(
            rf"process {os.getpid()} on .* since [-0-9]+ [:0-9]+\n", (tmp_path / FILE).read_text()
        )
    assert not (tmp_path / FILE).exists()


def test_a_file_that_its_owner_removes_meanwhile_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking the owner may end: the lock is then on a file that nobody else can find."""
    real, calls = lock._locked, []

    def ends_meanwhile(number: int) -> bool:
        calls.append(number)
        if len(calls) == 1:
            (tmp_path / FILE).unlink()
        return real(number)

    monkeypatch.setattr(lock, "_locked", ends_meanwhile)
    with only_run_in(tmp_path, "wait"):
        assert len(calls) == 2 and not is_free(tmp_path)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(*_: object) -> int:
        raise OSError(number, os.strerror(number), str(tmp_path / FILE))

    monkeypatch.setattr(lock.os, "open", refused)
    says = rf"^{re.escape(str(tmp_path))} cannot be written \({os.strerror(number)}\): give another folder or mend"
    with pytest.raises(LockError, match=says), only_run_in(tmp_path, "wait"):
        pytest.fail("nothing can be written there")


def test_a_disk_without_locks_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", unknown)
    with only_run_in(tmp_path, "wait"):
        assert is_free(tmp_path)
    monkeypatch.setattr(lock, "fcntl", None)
    assert is_free(tmp_path) and list(tmp_path.iterdir()) == []


def test_a_folder_on_a_disk_without_locks_is_known_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There another run of the same folder takes the file along as it ends."""
    monkeypatch.setattr(lock, "fcntl", None)
    with only_run_in(tmp_path / "out", "wait") as check:
        (tmp_path / "out" / ".lock").unlink()
        check()
        (tmp_path / "out").rename(tmp_path / "archived")
        (tmp_path / "out").mkdir()
        with pytest.raises(LockError, match="no longer the folder"):
            check()
    assert (tmp_path / "out").is_dir()


def test_two_preparations_of_one_dataset(
    tiny_raw: TinyRaw, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other dataset of the same command is prepared; nothing is written where the other run works."""
    text = tiny_raw.spec_path.read_text(encoding="utf-8")
    (tmp_path / "second.yaml").write_text(
        text.replace("name: tiny", f"name: second\nraw: {tiny_raw.dataset}")
    )
    names = [str(tiny_raw.spec_path), str(tmp_path / "second.yaml")]
    few = ["--raw", str(tiny_raw.root), "--root", str(tmp_path), "--crop", "32", "32", "32", "--workers", "1"]
    folder = tmp_path / "preprocessed" / "tiny"
    with only_run_in(folder, "wait"):
        assert plan_and_preprocess_main(["-d", *names, *few, "--quiet"]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"Error: Another run works in {folder} (process ") and error.count("\n") == 1
        assert error.endswith("): wait until it has ended, then run this command again.\n")
        assert [path.name for path in folder.iterdir()] == [FILE]
        assert fingerprint.main(["-d", names[0], *few[:4], "--workers", "1", "--quiet"]) == 1
        assert capsys.readouterr().err.startswith(f"Error: Another run works in {folder} (process ")
    store = tmp_path / "preprocessed" / "second"
    assert (store / "manifest.json").is_file() and not (store / FILE).exists()
    assert plan_and_preprocess_main(["-d", names[0], *few, "--quiet"]) == 0


def test_two_trainings_in_one_folder(
    tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "preprocessed").symlink_to(tiny_store.folder.parent)
    command = ["paper", "--root", str(tmp_path), "--size", "tiny", "--iterations", "0", "--name", "night"]
    folder = tmp_path / "results" / "night"
    assert train_main([*command, "--resume"]) == 1
    assert "Nothing to resume in" in capsys.readouterr().err and not folder.exists()
    with only_run_in(folder, "wait"):
        for more in ([], ["--resume"]):
            assert train_main([*command, *more]) == 1
            error = capsys.readouterr().err
            assert error.startswith(f"Error: Another run works in {folder} (process ")
            assert error.endswith("): wait until it has ended, or give another --name.\n")
        assert [path.name for path in folder.iterdir()] == [FILE]
    assert train_main(command) == 0
    assert (folder / "run.json").is_file() and not (folder / FILE).exists()
