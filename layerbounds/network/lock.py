"""The lock of a run's folder: one process works in it; when that ends, however it does, the lock is free."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from layerbounds.exceptions import InputError

#: Seconds in which a process that has just got the lock writes who it is.
_INTRODUCTION = 0.5
#: How the content of a lock begins.
_MARK = b'{"pid"'

if sys.platform == "win32":
    import msvcrt

    #: Behind the content, because others cannot read bytes that are locked.
    _LOCKED_BYTE = 1 << 20

    def _seize(handle: int) -> None:
        os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
else:
    import fcntl

    def _seize(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


class FolderLock:
    """A lock that is held; `hold` gets one.

    Parameters
    ----------
    path : Path
        Its file.
    handle : int
        The open file.
    """

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self._handle = path, handle

    def check(self) -> None:
        """Make sure that the folder is still the one that was locked.

        Raises
        ------
        InputError
            If it was deleted or replaced, so that another process may work in what has its name now.
        """
        if not _same_file(self.path, self._handle):
            raise InputError(
                f"{self.path.parent} was deleted or replaced while the run worked in it; repeat the command."
            )


@contextmanager
def hold(path: Path) -> Iterator[FolderLock]:
    """Hold a lock while the block runs.

    The operating system forgets it with the process, so that nothing has to be cleaned up after a crash. On network
    drives it keeps out other machines where the drive has locks for them (NFS has, unless it is mounted without).

    Parameters
    ----------
    path : Path
        The file; it says who holds the lock, and stays, empty, when the block ends.

    Raises
    ------
    InputError
        If another process or thread holds it, or the file system has no locks.
    """
    handle = _acquired(path)
    try:
        _introduce(path, handle)
        yield FolderLock(path, handle)
    finally:
        with suppress(OSError):
            _leave(handle)
        os.close(handle)


def _acquired(path: Path) -> int:
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(f"cannot write {path} ({error.strerror}); choose another folder.") from error
        try:
            _seize(handle)
            if _same_file(path, handle):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise InputError(
                f"{path.parent} is in use by {_holder(path)}; wait for its end, or choose another folder."
            ) from None
        except OSError as error:
            os.close(handle)
            raise InputError(
                f"cannot lock {path} ({error.strerror}); choose a folder on a drive that has locks."
            ) from error
        # It was deleted before it was locked.
        os.close(handle)


def _introduce(path: Path, handle: int) -> None:
    """Write who holds the lock."""
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        before = os.read(handle, 64)
        if before.strip(b"\0") and not before.startswith(_MARK):
            raise InputError(f"{path} is no lock of a run; move it away, or choose another folder.")
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}); free space or choose another folder.") from error


def _leave(handle: int) -> None:
    """Take back what `_introduce` wrote."""
    os.lseek(handle, 0, os.SEEK_SET)
    if os.read(handle, len(_MARK)) == _MARK:
        os.ftruncate(handle, 0)


def _holder(path: Path) -> str:
    """Who holds a lock."""
    until = time.monotonic() + _INTRODUCTION
    while True:
        try:
            about = json.loads(path.read_bytes())
            if about["pid"] == os.getpid() and about["host"] == socket.gethostname():
                return "another run of this process"
            return f"process {about['pid']} on {about['host']}"
        except (OSError, ValueError, LookupError, TypeError):
            if time.monotonic() > until:
                return "another process"
            time.sleep(0.02)


def _same_file(path: Path, handle: int) -> bool:
    """Whether a path is still that of an open file."""
    try:
        named, held = os.stat(path), os.fstat(handle)
    except OSError:
        return False
    return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)
