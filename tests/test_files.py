"""Writing under a temporary name that no other process takes, and the sentence for what the system refuses."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from preprocessing.errors import RawDataError
from preprocessing.runtime import files as module
from preprocessing.runtime.files import (
    append_log,
    plain_name,
    refusal,
    replaced,
    sweep,
    text_digest,
    write_bytes,
    write_text,
)


def test_two_processes_may_write_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one writes the whole of its file between our writing and our renaming."""
    path, real, met = tmp_path / "a.json", os.replace, []

    def meanwhile(temporary: Path, target: Path) -> None:
        if not met:
            met.append(temporary)
            with monkeypatch.context() as other:
                other.setattr(module.os, "getpid", lambda: 7)
                write_text(path, "theirs")
            assert path.read_text(encoding="utf-8") == "theirs"
        real(temporary, target)

    monkeypatch.setattr(module.os, "replace", meanwhile)
    write_text(path, "ours")
    assert path.read_text(encoding="utf-8") == "ours"
    assert list(tmp_path.iterdir()) == [path] and met[0].name == f".a.json.{os.getpid()}.tmp"


def test_a_writer_that_breaks_off_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "curve.png"
    with replaced(path, ".png") as temporary:
        assert temporary.name == f".curve.png.{os.getpid()}.png" and temporary.parent == path.parent
        temporary.write_text("first")
    with pytest.raises(ValueError, match="half way"), replaced(path) as temporary:
        temporary.write_text("half")
        raise ValueError("half way")
    assert list(path.parent.iterdir()) == [path] and path.read_text() == "first"


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a.json"
    folder.mkdir()
    with pytest.raises(OSError) as caught:
        write_bytes(folder, b"no file goes where a folder is")
    assert caught.value.errno in (errno.EISDIR, errno.EACCES, errno.EEXIST)
    assert list(tmp_path.iterdir()) == [folder]


def test_each_reason_is_one_sentence() -> None:
    assert refusal(RawDataError("a.nii is damaged."), "Case c") == "a.nii is damaged."
    assert refusal(PermissionError(errno.EACCES, "Permission denied", "raw/a.nii"), "Case c") == (
        "raw/a.nii cannot be read or written (Permission denied): mend its permissions, or make room where the disk is "
        "full, then run again."
    )
    unnamed = refusal(OSError(errno.EIO, "Input/output error"), "Dataset liver")
    assert unnamed.startswith("A file of dataset liver cannot be read or written (Input/output error): ")
    assert refusal(MemoryError(), "Case c") == (
        "Case c needs more memory than is free: make some free or give fewer --workers, then run again; its files may "
        "be sound."
    )
    full = refusal(OSError(errno.ENOSPC, "No space left on device", "out/a.nii.gz"), "Case c")
    assert full == (
        "out/a.nii.gz cannot be read or written (No space left on device): make room on its disk, then run again."
    )
    long = refusal(OSError(errno.ENAMETOOLONG, "File name too long", "out/aa.nii.gz"), "Case c")
    assert long == (
        "out/aa.nii.gz cannot be read or written (File name too long): give the scan a shorter name, then run again."
    )


def test_a_name_that_just_fits_is_written(tmp_path: Path) -> None:
    for letters in ("n" * 251, "n" * 250 + "m", "ü" * 125 + "n"):
        write_text(tmp_path / f"{letters}.txt", letters)
        assert (tmp_path / f"{letters}.txt").read_text(encoding="utf-8") == letters
    with replaced(tmp_path / ("n" * 251 + ".one")) as one, replaced(tmp_path / ("n" * 251 + ".two")) as two:
        assert one != two and max(len(os.fsencode(path.name)) for path in (one, two)) <= 255
        one.write_text("1")
        two.write_text("2")
    assert len(list(tmp_path.iterdir())) == 5


def test_errors_name_the_file_that_was_to_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, replaced(tmp_path / "a.nii.gz"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a.nii.gz")
    with pytest.raises(OSError) as caught:
        write_text(tmp_path / ("n" * 256), "too long")
    assert caught.value.filename == str(tmp_path / ("n" * 256))
    with pytest.raises(OSError) as caught, replaced(tmp_path / "a.nii.gz"):
        raise PermissionError(errno.EACCES, "Permission denied", "another")
    assert caught.value.filename == "another"


def test_names_that_are_no_text_can_be_logged_and_told_apart(tmp_path: Path) -> None:
    name = os.fsdecode(b"lat\xfc1")
    append_log(tmp_path / "a.log", f"{name}: refused")
    assert "lat\\udcfc1: refused" in (tmp_path / "a.log").read_text(encoding="utf-8")
    assert text_digest(name) != text_digest("lat1") and len(text_digest(name)) == 16
    assert plain_name(name) == "lat\\xfc1" and plain_name("Müller") == "Müller"


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    left = [".a.json.12.tmp", ".a.nii.gz.12.part.nii.gz", ".a.nii.12.part.nii"]
    others = [".a.tmp", "a.json.12.tmp", ".a.part.nii.gz", ".a.12.txt"]
    for name in [*left, *others]:
        (tmp_path / name).touch()
    sweep(tmp_path, "b*")
    assert len(list(tmp_path.iterdir())) == len([*left, *others])
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)
