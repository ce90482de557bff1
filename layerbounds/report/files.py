"""JSON and CSV output: valid, atomic, and checked for a place to go before anything is computed."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from layerbounds.exceptions import InputError
from layerbounds.layers.files import atomic_path

#: In place of a file name: standard output.
STDOUT = "-"


def check_output(path: str | os.PathLike[str], *, special: bool = False) -> None:
    """Make sure that a file can be written, before the work whose result it will hold.

    Parameters
    ----------
    path : path-like
    special : bool
        Whether it may also be a device or a pipe.

    Raises
    ------
    InputError
        If the folder is missing or not writable, or the path is not that of a file.
    """
    target = Path(path)
    if special and target.exists() and not target.is_file() and not target.is_dir():
        if not os.access(target, os.W_OK):
            raise InputError(f"cannot write {target}: permission denied; choose another file.")
        return
    if target.exists() and not target.is_file():
        raise InputError(f"cannot write {target}: it is not a regular file; choose another name.")
    folder = target.parent
    if not folder.is_dir():
        raise InputError(f"cannot write {target}: the folder {folder} does not exist; create it first.")
    try:
        # Permission bits do not tell all (read-only mounts, quotas, the superuser): try it.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write {target}: the folder {folder} is not writable ({error.strerror}); choose another one."
        ) from error


def write_json(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Write a value as JSON, to a file atomically or with ``"-"`` to standard output.

    Numbers that JSON cannot hold (NaN, infinity) become null.

    Parameters
    ----------
    path : path-like
    value : mapping

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if os.fspath(path) == STDOUT:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    target = Path(path)
    if not target.exists() or target.is_file():
        with atomic_path(target) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return
    try:
        # A device or a pipe cannot be replaced by a file, only written to.
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {target} ({error.strerror}); choose another file.") from error


def write_csv(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same keys as comma-separated values, atomically; what is undefined stays empty.

    Parameters
    ----------
    path : path-like
    rows : sequence of mapping

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows([{key: "" if value is None else value for key, value in row.items()} for row in rows])
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def plain(value: Any) -> Any:
    """Turn NumPy values, tuples and sets into what `json` knows, and NaN and infinity into None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)
