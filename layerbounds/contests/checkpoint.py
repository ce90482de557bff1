"""Bounds on disk while a comparison runs: one small JSON file for each layer, replaced as a whole."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from layerbounds.arguments import as_path
from layerbounds.contests.match import Contender
from layerbounds.contests.work import Work
from layerbounds.exceptions import FileFormatError, InputError, first_line
from layerbounds.layers.files import atomic_path
from layerbounds.names import file_part

SCHEMA_VERSION = 1


class Checkpoint:
    """Saved bounds of the layers of a run.

    A file belongs to its problems, not to the options of the search: after a change of the time limit the bounds still
    hold and the work goes on from them.

    Parameters
    ----------
    folder : path-like
        Is created if only its last part is missing.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = as_path(folder, "checkpoint")
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot create the folder {self.folder} ({error.strerror}); choose another one."
            ) from error

    def path(self, contest: Work[Any], fingerprint: str) -> Path:
        """The file of a layer."""
        safe = file_part(contest.layer.name, 80)
        return self.folder / f"{safe}-{fingerprint[:16]}.json"

    def attach(self, contest: Work[Any]) -> None:
        """Restore what was saved of a contest, and save every improvement from now on.

        Raises
        ------
        FileFormatError
            If the saved file is damaged or of other problems.
        """
        fingerprint = contest.fingerprint()
        path = self.path(contest, fingerprint)
        if path.exists():
            self._restore(contest, path, fingerprint)

        def save(state: Work[Any]) -> None:
            record = _record(state, fingerprint)
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(record, allow_nan=False), encoding="utf-8")

        contest.listeners.append(save)

    def _restore(self, contest: Work[Any], path: Path, fingerprint: str) -> None:
        hint = "delete it to start this layer anew"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["schema"] != SCHEMA_VERSION or record["fingerprint"] != fingerprint:
                raise FileFormatError(f"{path} was written for other problems or by another version; {hint}.")
            for (about, contenders), saved in zip(contest.sections(), record["compressions"], strict=True):
                if any(saved[key] != value for key, value in about.items()):
                    raise FileFormatError(f"{path} was written for other compressions; {hint}.")
                for name, contender in contenders.items():
                    _merge(contender, saved[name])
            completed = float(record["completed"])
            if math.isnan(completed):
                raise ValueError("a time that is none")
            contest.completed = completed
        except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
            if isinstance(error, FileFormatError):
                raise
            raise FileFormatError(f"{path} cannot be read as a checkpoint ({first_line(error)}); {hint}.") from error


def _record(contest: Work[Any], fingerprint: str) -> dict[str, Any]:
    return {
        "schema": SCHEMA_VERSION,
        "fingerprint": fingerprint,
        "layer": contest.layer.name,
        "channels": contest.channels,
        "completed": contest.completed,
        "compressions": [
            {**about, **{name: _plain(contender) for name, contender in contenders.items()}}
            for about, contenders in contest.sections()
        ],
    }


def _plain(contender: Contender[Any]) -> dict[str, Any]:
    return {
        "problem": contender.problem.label,
        "lower": contender.bounds[:, 0].tolist(),
        "upper": [u if math.isfinite(u) else None for u in contender.bounds[:, 1].tolist()],
        "visited": contender.visited.tolist(),
        "closed": contender.closed.tolist(),
        "seconds": contender.seconds.tolist(),
    }


def _merge(contender: Contender[Any], saved: dict[str, Any]) -> None:
    count = len(contender.bounds)
    if any(len(saved[key]) != count for key in ("lower", "upper", "visited", "closed", "seconds")):
        raise ValueError("a wrong number of channels")
    for row in range(count):
        lower, upper = float(saved["lower"][row]), saved["upper"][row]
        upper = math.inf if upper is None else float(upper)
        # NaN fails too: it would otherwise be compared with nothing and stay.
        if not 0 <= lower <= upper or math.isinf(lower):
            raise ValueError("bounds that are none")
        contender.merge(row, lower, upper, None)
    contender.visited[:] = np.asarray(saved["visited"], dtype=bool)
    contender.closed[:] = np.asarray(saved["closed"], dtype=bool)
    contender.seconds[:] = np.asarray(saved["seconds"], dtype=np.float64)
