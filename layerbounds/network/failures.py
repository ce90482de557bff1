"""What a run could not work on, in a file of its folder: it is tried again when the run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from layerbounds.exceptions import FileFormatError, first_line
from layerbounds.layers.files import atomic_path
from layerbounds.network.entries import Entry
from layerbounds.network.manifest import FULL

FAILURES = "failures.json"
#: Why a chunk could not be worked on, by numbers of layer, choice and chunk.
Failures = dict[tuple[int, int, int], str]


def write_failures(folder: Path, grid: Sequence[Sequence[Entry]], failures: Mapping[tuple[int, int, int], str]) -> None:
    """Write the file anew.

    Raises
    ------
    InputError
        If it cannot be written: what was there stays.
    """
    about = [
        {"problem": grid[layer][choice].fingerprint, "chunk": chunk, "reason": reason}
        for (layer, choice, chunk), reason in failures.items()
    ]
    with atomic_path(folder / FAILURES, advice=FULL) as temporary:
        temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")


def read_failures(folder: Path, grid: Sequence[Sequence[Entry]]) -> Failures:
    """Read the file; nothing where there is none.

    Raises
    ------
    FileFormatError
        If it is damaged.
    """
    path = folder / FAILURES
    numbers = {entry.fingerprint: entry.number for of_layer in grid for entry in of_layer}
    try:
        found = json.loads(path.read_bytes())
        return {(*numbers[f["problem"]], int(f["chunk"])): str(f["reason"]) for f in found}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise FileFormatError(f"{path} cannot be read ({first_line(error)}); delete it.") from error
