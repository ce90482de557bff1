"""Records: what is known of a chunk of a layer at one choice, as one sealed file (schema: docs/run-folder.md)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from layerbounds.certify.solution_file import read_sealed
from layerbounds.exceptions import FileFormatError
from layerbounds.network.entries import Entry

#: In the metadata of a solution file: what a run adds to the solution.
ABOUT = "run"


def about_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a run has added to a solution."""
    about: dict[str, Any] = read_sealed(path)[1][ABOUT]
    return about


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The numbers of a record, without weights and without its layer.

    Returns
    -------
    dict
        ``lower``, ``upper``, ``limit``, ``seconds`` (ndarray), ``status``, ``bound_kind`` (list), ``methods`` (label to
        errors, feasible, seconds, given), ``yardsticks``, and what it is about: ``entry``, ``sets``, ``fingerprint``,
        ``version``, ``seed``.

    Raises
    ------
    FileFormatError
        If it is damaged or no record; the message is a reason without the file.
    """
    try:
        tensors, about = read_sealed(path)
        run = about[ABOUT]
        record = {
            "lower": tensors["solution.lower_bound"],
            "upper": tensors["solution.upper_bound"],
            "limit": np.asarray(run["limit"], dtype=np.float64),
            "seconds": tensors["solution.seconds"],
            "status": list(about["intervals"]["status"]),
            "bound_kind": list(about["intervals"]["bound_kind"]),
            "methods": {
                label: {**score, "errors": np.asarray(score["errors"], dtype=np.float64)}
                for label, score in run["methods"].items()
            },
            "yardsticks": dict(run["yardsticks"]),
            "entry": tuple(run["entry"]),
            "sets": about["sets"],
            "fingerprint": about["problem"]["fingerprint"],
            "version": about["layerbounds"],
            "seed": run["seed"],
        }
        count = len(record["lower"])
        lengths = [len(record[name]) for name in ("upper", "limit", "seconds", "status", "bound_kind", "sets")]
        lengths += [len(score["errors"]) for score in record["methods"].values()]
        if any(length != count for length in lengths):
            raise ValueError("its parts have different lengths")
        # NaN fails too.
        if not np.all((record["lower"] >= 0) & (record["lower"] <= record["upper"])):
            raise ValueError("its bounds are none")
    except FileFormatError as error:
        raise FileFormatError(_without(str(error), path)) from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"it is no whole record: {error!r}") from error
    return record


def foreign(record: Mapping[str, Any], entry: Entry, chunk: int, manifest: Mapping[str, Any]) -> str | None:
    """Why a record says nothing about a chunk of an entry; None if it does.

    Parameters
    ----------
    record : mapping
        As `read_record` gives it.
    entry : Entry
    chunk : int
    manifest : mapping
        Of the run.
    """
    first, last = entry.chunks[chunk]
    if record["version"] != manifest["layerbounds"]:
        return f"it is of version {record['version']} of layerbounds"
    if record["fingerprint"] != entry.fingerprint or record["entry"] != entry.number:
        return "it is of another layer or another compression"
    if record["sets"] != entry.sets[first:last]:
        return "it is of other channels"
    if record["seed"] != manifest["seed"]:
        return "it is of a run with another seed"
    for label, score in record["methods"].items():
        if manifest["given"].get(label, score["given"]) != score["given"]:
            return f"its weights {label!r} are others than those of the run"
    return None


def _without(message: str, path: str | os.PathLike[str]) -> str:
    """What a sentence on a file says, without the name of the file and the advice at its end."""
    reason = message.removeprefix(f"{path}")
    reason = reason[2:] if reason.startswith(": ") else f"it{reason}" if reason.startswith(" ") else reason
    return reason.rpartition(";")[0] or reason.rstrip(".")
