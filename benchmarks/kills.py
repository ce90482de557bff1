"""Kill runs over the demo network at random moments, and look at what they leave.

    python -m benchmarks.kills [--count N] [--seed S] [--longest SECONDS] [--jobs J]

A run is begun in a process group of its own, in threads and in processes in turn, and the whole group is killed
(SIGKILL) after a random time. Then its folder must be as docs/run-folder.md says: every record is whole, everything
that was announced is there, nothing that was there is worked on again, and nobody holds the lock. The next run goes on
in the same folder, until one ends by itself.

The exit code is 1 where anything is wrong. 200 kills take half an hour or more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import layerbounds as lb
from layerbounds.network import survey
from layerbounds.network.entries import Entry
from layerbounds.network.folder import RunFolder
from layerbounds.network.job import Job
from layerbounds.report.network import write_report

#: What is run: some tens of pieces of first bounds, then searches.
OPTIONS: dict[str, Any] = {"bits": [2, 3], "density": 0.25, "pattern": ["unstructured", "2:4"], "time_limit": 0.5}
PARALLEL = ("threads", "processes")
#: Kills between two lines of output.
EVERY = 10
#: Share of the runs whose time counts from the first record that they write.
LATE = 0.75


def work(folder: Path, log: Path, parallel: str, jobs: int) -> None:
    """Run, and write down what is written and what is announced."""
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(**line: Any) -> None:
        os.write(stream, json.dumps(line).encode() + b"\n")

    put, announce = RunFolder.put, Job._announce

    def writing(self: RunFolder, entry: Entry, chunk: int, record: bytes) -> None:
        first, last = entry.chunks[chunk]
        before = entry.limit[first:last].copy()
        put(self, entry, chunk, record)
        # A piece either gives first bounds, or searches for longer than before.
        say(written=list(entry.number), again=bool(np.all(entry.limit[first:last] <= before)))

    def announcing(self: Job, entry: Entry) -> None:
        announce(self, entry)
        say(announced=numbers(entry))

    def reporting(state: lb.NetworkRun) -> None:
        write_report(state)

    RunFolder.put, Job._announce = writing, announcing  # type: ignore[method-assign]
    # Small chunks: more is written.
    survey.LEAST_ROWS, survey.ROWS_PER_INPUT = 8, 0.0
    say(begun=True)
    run = lb.run(None, out=folder, parallel=parallel, jobs=jobs, listener=reporting, **OPTIONS)
    write_report(run)


def numbers(entry: Entry) -> dict[str, Any]:
    """What a run says of a layer at a choice."""
    return {
        "number": list(entry.number), "lower": entry.lower.tolist(), "upper": entry.upper.tolist(),
        "limit": entry.limit.tolist(),
        "methods": {label: score.errors.tolist() for label, score in entry.methods.items()},
    }  # fmt: skip


def killed(folder: Path, log: Path, parallel: str, jobs: int, after: float, *, late: bool) -> int:
    """Begin a run and kill it so many seconds after it has begun, or has written a record; its exit code."""
    command = [sys.executable, "-m", "benchmarks.kills", "--work", str(folder), str(log), parallel, str(jobs)]
    process = subprocess.Popen(command, start_new_session=True)
    sign = b"written" if late else b"begun"
    try:
        while process.poll() is None and not (log.exists() and sign in log.read_bytes()):
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def faults(folder: Path, lines: list[dict[str, Any]]) -> list[str]:
    """What is wrong with what a run has left."""
    found = [f"{line['written']} was worked on again" for line in lines if line.get("again")]
    if not (folder / "run.json").exists():
        return found + ["the manifest is gone" for line in lines if "announced" in line]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = lb.load_run(folder)
    found += run.left_out
    last = {tuple(line["announced"]["number"]): line["announced"] for line in lines if "announced" in line}
    for number, said in last.items():
        entry = run.grid[number[0]][number[1]]
        # Later records may have come without an announcement: they narrow.
        narrower = (
            np.all(entry.lower >= np.array(said["lower"]))
            and np.all(entry.upper <= np.array(said["upper"]))
            and np.all(entry.limit >= np.array(said["limit"]))
        )
        scored = (
            np.isnan(errors) | (entry.methods[label].errors == errors)
            for label, errors in ((label, np.array(e, dtype=float)) for label, e in said["methods"].items())
        )
        if not narrower or not all(map(np.all, scored)):
            found.append(f"layer {entry.layer.name}, {entry.choice.name} lost what was announced")
    return found


def contradictions(first: lb.NetworkRun, second: lb.NetworkRun) -> list[str]:
    """Entries whose intervals in two runs exclude each other."""
    return [
        f"layer {a.layer.name}, {a.choice.name}: two runs contradict each other"
        for a, b in zip(first.entries, second.entries, strict=True)
        if np.any(a.lower > b.upper) or np.any(b.lower > a.upper)
    ]


def main() -> int:
    """Kill runs, and say what was wrong."""
    parser = argparse.ArgumentParser(description="Kill runs at random moments, and look at what they leave.")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=8.0, help="seconds after which a run is killed")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        folder, log, parallel, jobs = options.work
        work(Path(folder), Path(log), parallel, int(jobs))
        return 0
    rng = np.random.default_rng(options.seed)
    wrong, kills, runs, pieces, first = 0, 0, 0, 0, None
    with tempfile.TemporaryDirectory() as base:
        while kills < options.count:
            folder = Path(base) / f"run{runs}"
            parallel = PARALLEL[(kills + runs) % 2]
            log = Path(base) / f"{runs}-{kills}.log"
            after = float(rng.uniform(0.0, options.longest))
            # Most of a short run is its beginning.
            code = killed(folder, log, parallel, options.jobs, after, late=rng.random() < LATE)
            lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
            found = faults(folder, lines)
            if code not in (0, -signal.SIGKILL):
                found.append(f"a run in {parallel} failed with code {code}")
            pieces += sum("written" in line for line in lines)
            kills += code != 0
            if code == 0:
                run = lb.load_run(folder)
                found += [] if run.complete else ["a run that ended has not worked on everything"]
                found += contradictions(first, run) if first is not None else []
                first, runs = first or run, runs + 1
            for fault in found:
                print(f"kill {kills} ({parallel}): {fault}", flush=True)
            wrong += len(found)
            if code != 0 and kills % EVERY == 0:
                print(f"{kills} kills, {runs} runs ended, {pieces} pieces of work, {wrong} faults", flush=True)
    print(f"{kills} kills, {runs} runs went on to their end, {pieces} pieces of work, {wrong} faults")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
