"""Kill a run at each of its write points, and look at what it leaves: ``python kill_points.py FOLDER COUNT``.

A process that has everything imported forks a child for each point; the child works in a folder of its own until it
kills itself there. Each result is a line of JSON.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import layerbounds as lb
from layerbounds.layers import files
from layerbounds.network import dispatch, lock, pieces, survey
from layerbounds.network.entries import Entry
from layerbounds.network.job import Job
from layerbounds.network.pieces import Piece
from layerbounds.report.network import write_report

OPTIONS: dict[str, Any] = {
    "bits": 2, "density": 0.5, "methods": ["rtn", "magnitude"], "time_limit": 0.0, "parallel": "threads", "jobs": 1,
}  # fmt: skip


def make_layers() -> dict[str, lb.Layer]:
    rng = np.random.default_rng(1)
    layers = {}
    for name in ("first", "second"):
        x = rng.normal(size=(24, 6))
        layers[name] = lb.Layer(rng.normal(size=(4, 6)), x.T @ x / 24, name)
    return layers


class Points:
    """Counts the points that a run passes, and kills it at one of them.

    Parameters
    ----------
    folder : Path
        Of the run: what happens elsewhere is no point.
    log : Path
        Gets a line for each piece that is begun and each one that is announced.
    target : int or None
    """

    def __init__(self, folder: Path, log: Path, target: int | None) -> None:
        self.folder, self.target = folder, target
        self.names: list[str] = []
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(self, **line: Any) -> None:
        os.write(self._log, json.dumps(line).encode() + b"\n")

    def reach(self, name: str) -> None:
        if len(self.names) == self.target:
            os.kill(os.getpid(), signal.SIGKILL)
        self.names.append(name)

    def around(self, owner: Any, attribute: str, what: str, place: Callable[..., Any] | None = None) -> None:
        """Make a point before and one after each call that is about something in the folder."""
        original = getattr(owner, attribute)

        def passing(*args: Any, **kwargs: Any) -> Any:
            subject = "" if place is None else self._short(place(*args, **kwargs))
            if subject is None:
                return original(*args, **kwargs)
            self.reach(f"before {what} {subject}".strip())
            result = original(*args, **kwargs)
            self.reach(f"after {what} {subject}".strip())
            return result

        setattr(owner, attribute, passing)

    def _short(self, place: Any) -> str | None:
        """The kind of file that a path, or an open file, is; None outside of the folder."""
        path = Path(os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else place)
        if path != self.folder and self.folder not in path.parents:
            return None
        kind = "record" if path.parent.name == "records" else path.name.partition(".")[0]
        return f"{kind}.part" if path.suffix == ".part" else kind

    def install(self) -> None:
        self.around(os, "mkdir", "mkdir", lambda path, *_: path)
        self.around(os, "fsync", "fsync", lambda handle: handle)
        self.around(os, "replace", "replace", lambda _, target: target)
        self.around(os, "unlink", "unlink", lambda path, **_: path)
        self.around(tempfile, "mkstemp", "mkstemp", lambda **named: Path(named["dir"]) / f"{named['prefix']}.part")
        self.around(files, "_write_safetensors", "write", lambda stream, *_: stream.name)
        self.around(lock, "_seize", "lock")
        self.around(lock, "_introduce", "name the holder")
        self.around(lock, "_leave", "unlock")
        self.around(Entry, "absorb", "absorb")
        for attribute in ("write_bytes", "write_text"):
            self._halves(attribute)
        points, work, announce = self, dispatch.carry_out, Job._announce

        def begun(*args: Any) -> Any:
            points.say(begun=True)
            return work(*args)

        def announced(job: Job, entry: Entry) -> None:
            announce(job, entry)
            points.say(announced=numbers(entry))

        dispatch.carry_out = begun
        Job._announce = announced  # type: ignore[method-assign]
        self.around(Job, "_announce", "announce")

    def _halves(self, attribute: str) -> None:
        """A point amid what is written, with the first half of it on the disk."""
        original = getattr(Path, attribute)

        def written(path: Path, data: Any, **kwargs: Any) -> Any:
            subject = self._short(path)
            if subject is None:
                return original(path, data, **kwargs)
            original(path, data[: len(data) // 2], **kwargs)
            self.reach(f"amid {subject}")
            return original(path, data, **kwargs)

        setattr(Path, attribute, written)


def numbers(entry: Entry) -> dict[str, Any]:
    """What a run says of a layer at a choice."""
    return {
        "number": list(entry.number),
        "lower": entry.lower.tolist(), "upper": entry.upper.tolist(), "limit": entry.limit.tolist(),
        "errors": {
            label: [None if math.isnan(e) else e for e in score.errors.tolist()]
            for label, score in entry.methods.items()
        },
    }  # fmt: skip


def remembering() -> Callable[..., Any]:
    """Workers that return at once what they have returned before: it is the writing that is looked at."""
    known: dict[Any, Any] = {}

    def carry_out(piece: Piece, problem: lb.QuantizationProblem | lb.PruningProblem) -> Any:
        key = (piece.entry, piece.fingerprint, tuple(piece.rows), piece.methods, tuple(piece.digests.items()))
        if piece.search or piece.previous:
            return pieces.carry_out(piece, problem)
        if key not in known:
            known[key] = pieces.carry_out(piece, problem)
        return known[key]

    return carry_out


def carry_out(folder: Path, log: Path, target: int | None, *, report: bool) -> list[str]:
    """Run, in this process, with points; returns their names."""
    points = Points(folder, log, target)
    points.install()

    def reporting(run: lb.NetworkRun) -> None:
        write_report(run)

    lb.run(make_layers(), out=folder, listener=reporting if report else None, **OPTIONS)
    return points.names


def forked(work: Callable[[], Any]) -> tuple[int, Any]:
    """Do something in a child: how it ended, and what it returned."""
    ear, mouth = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(mouth, json.dumps(work()).encode())
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(mouth)
    with os.fdopen(ear, "rb") as stream:
        said = stream.read()
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status), json.loads(said) if said else None


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def state(folder: Path) -> list[dict[str, Any]] | None:
    """What is on the disk; None where there is no run yet."""
    if not (folder / "run.json").exists():
        return None
    return [numbers(entry) for entry in lb.load_run(folder).entries]


def group(number: int) -> list[int]:
    """The processes of a process group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and fields[2] == str(number):
            found.append(int(stat.parent.name))
    return found


def main(base: Path, count: int) -> None:
    """Kill runs at ``count`` points of different kinds, the last ones."""
    survey.LEAST_ROWS, survey.ROWS_PER_INPUT = 2, 0.0
    dispatch.carry_out = remembering()
    # Imported and compiled before the first fork.
    write_report(lb.run(make_layers(), out=base / "warm", **OPTIONS))
    code, names = forked(lambda: carry_out(base / "whole", base / "whole.log", None, report=True))
    print(json.dumps({"code": code, "names": names, "lines": lines(base / "whole.log")}), flush=True)
    # Of each kind the one in the middle: something has been announced by then, and something is left.
    kinds = {name: [i for i, other in enumerate(names) if other == name] for name in names}
    targets = sorted(places[len(places) // 2] for places in kinds.values())
    for target in targets[len(targets) - 1 :: -1][:count]:
        folder, log = base / f"{target}", base / f"{target}.log"
        code, _ = forked(lambda: carry_out(folder, log, target, report=True))  # noqa: B023
        before = state(folder)
        for part in folder.glob("*.part"):
            # As if the kill had been long ago.
            os.utime(part, (0, 0))
        again = base / f"{target}-again.log"
        resumed, _ = forked(lambda: carry_out(folder, again, None, report=False))  # noqa: B023
        print(
            json.dumps(
                {
                    "point": names[target], "code": code, "lines": lines(log), "state": before,
                    "resumed": resumed, "more": lines(again), "end": state(folder),
                    "parts": [path.name for path in folder.rglob("*.part")],
                }
            ),
            flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
