"""One run at a time in one folder: two that write the same files would spoil both.

A file `.lock` in the folder says who works there, and the system's lock on it (flock) counts, not that the file is
there: however a process ends, its lock ends with it, so that what a killed run leaves behind is taken over. Where the
system or the disk knows no such locks (Windows, some network disks) nothing is locked.

A folder may be moved or removed under a run, and its lock goes with it: whoever writes for hours asks now and then
whether the folder still is the one.
"""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from preprocessing.errors import LockError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE = ".lock"
UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)  # no locks on this disk
LONGEST = 200  # bytes that are read of who holds it


@contextmanager
def only_run_in(folder: Path, remedy: str) -> Iterator[Callable[[], None]]:
    """Nobody else is in this context of the same folder, which is made where it is missing, and goes if left empty.

    Gives a check that raises LockError once the folder, or its lock, was moved away or removed, also where another one
    has its name by now. LockError with `remedy` where another run is, or where the folder cannot be written.
    """
    made = not folder.exists()
    try:
        lock = _take(folder, remedy)
        place = os.stat(folder)
    except OSError as error:
        raise LockError(
            f"{folder} cannot be written ({error.strerror}): give another folder or mend its permissions."
        ) from error

    def check() -> None:
        if not _is_ours(folder, lock, place):
            raise LockError(
                f"{folder} is no longer the folder that this run began in, as it (or {FILE} in it) was moved away or "
                "removed: put it back or give another folder, then run again."
            )

    try:
        yield check
    finally:
        with suppress(OSError):  # the folder may be gone or read-only by now; the lock ends all the same
            if _is_ours(folder, lock, place):  # never the lock of a run that began in a folder of this name
                (folder / FILE).unlink()  # before it is let go, so that it is surely ours
                if made:
                    folder.rmdir()  # as a rule it is not empty
        os.close(lock)


def _take(folder: Path, remedy: str) -> int:
    """The open and locked file, with our name in it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _locked(lock):
                who = os.read(lock, LONGEST).decode("utf-8", "replace").strip() or "just begun"
                raise LockError(f"Another run works in {folder} ({who}): {remedy}.")
            if _is_at(lock, folder / FILE):
                since = datetime.now().isoformat(" ", timespec="seconds")
                with suppress(OSError):  # of a full disk the run itself will tell
                    os.ftruncate(lock, 0)
                    os.write(lock, f"process {os.getpid()} on {platform.node()} since {since}\n".encode())
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # its owner ended and removed it between our two steps: once more


def _locked(lock: int) -> bool:
    """Whether the lock is ours now; True too where there are no locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise
    return True


def _is_at(lock: int, path: Path) -> bool:
    """Whether the open file still is the one of that name."""
    return _is_same(os.fstat(lock), path)


def _is_same(known: os.stat_result, path: Path) -> bool:
    try:
        return os.path.samestat(known, os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _is_ours(folder: Path, lock: int, place: os.stat_result) -> bool:
    """Whether the folder is the one that was locked. Where locks are unknown, two runs share the file and the first one
    to end takes it away: there the folder itself decides.
    """
    return _is_at(lock, folder / FILE) or (not _knows_locks(lock) and _is_same(place, folder))


def _knows_locks(lock: int) -> bool:
    """Whether the disk knows locks at all; ours is taken a second time for it, which changes nothing."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in UNKNOWN
    return True
