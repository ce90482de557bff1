"""Folders that do not exist before they are complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layerbounds.exceptions import InputError


def check_free(out: Path) -> None:
    """Make sure that a folder can be made here, before the work whose result it will hold.

    Raises
    ------
    InputError
        If it holds something already, or its parent cannot be written to.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists already and is not an empty folder; name one that does not exist yet.")
    parent = out.absolute().parent
    if not parent.is_dir():
        raise InputError(f"cannot write {out}: the folder {parent} does not exist; create it first.")
    if not os.access(parent, os.W_OK):
        raise InputError(f"cannot write {out}: the folder {parent} is not writable; choose another one.")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder to fill, which gets its name when the block ends without an error.

    Raises
    ------
    InputError
        If it cannot be written, a full disk included.
    """
    check_free(out)
    temporary: Path | None = None
    try:
        temporary = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f"{out.name}.", suffix=".part"))
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o777 & ~mask)
        if out.is_dir():
            out.rmdir()
        os.replace(temporary, out)
    except BaseException as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise InputError(
                f"cannot write {out} ({error.strerror or error}); free space or choose another place."
            ) from error
        raise
