"""The benchmark suite: every backend on real layers, one process for each solve.

    python -m benchmarks.run --suite quick|standard|full|scales|joint [--input FILE] [--out DIR] [--docs PAGE]

Records go to DIR/results.jsonl as they come; the same command goes on where an interrupted run ended. At the end the
report is printed (`python -m benchmarks.report DIR` prints it again). With ``--budget SECONDS`` no solve is started
after that time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import layerbounds as lb
from benchmarks import peers
from benchmarks.instances import Instance, suite
from benchmarks.native_speed import DATA, machine
from benchmarks.report import print_report, read_records
from layerbounds.cli.options import parse_options
from layerbounds.solvers.base import Backend, read_options
from layerbounds.solvers.registry import get_backend

#: Seconds of search by suite.
LIMITS = {"quick": 10.0, "standard": 60.0, "full": 60.0, "scales": 20.0, "joint": 20.0}
#: Beside its search a process may spend this long on starting, compiling and certifying before it is killed.
PATIENCE = 240.0
#: The standard suite leaves a relaxation in n² variables out above this many inputs: it takes longer than the limit.
MOST_INPUTS = {"sdp": 64}
#: Ways of running the native searches that are no peers.
LEFT_OUT = frozenset({"batched"})
THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}


def key(instance: Instance, backend: str, time_limit: float) -> str:
    """What makes a record the answer to a job."""
    return f"{instance.name} | {backend} | {time_limit:g}"


def plan(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The jobs: every instance with every backend that is there and can treat it."""
    available = [row.name for row in lb.backends() if row.available]
    if options.suite == "standard":
        available = [name for name in available if name not in LEFT_OUT]
        print("".join(f"{row.name} is left out: {row.reason}\n" for row in lb.backends() if not row.available), end="")
    else:
        available = [name for name in available if name not in peers.PEERS]
    chosen = [read_backend(text) for text in (options.backends.split(",") if options.backends else available)]
    for instance in suite(options.suite, options.data, options.input):
        if options.only not in instance.name:
            continue
        requirement = instance.problem().requirement
        for label, backend, settings in chosen:
            if options.suite == "standard" and instance.inputs > MOST_INPUTS.get(backend.name, instance.inputs):
                continue
            if requirement in backend.capabilities and peers.treats(backend.name, instance):
                yield {
                    "key": key(instance, label, options.time_limit),
                    "instance": instance.to_dict(),
                    "name": instance.name,
                    "kind": instance.kind,
                    "label": label,
                    "backend": backend.name,
                    "time_limit": options.time_limit,
                    "memory_mb": options.memory,
                    "options": settings,
                }


def read_backend(text: str) -> tuple[str, Backend, dict[str, str]]:
    """Read ``NAME`` or ``NAME:KEY=VALUE``: what tables call it, the backend, and its options."""
    name, _, setting = text.partition(":")
    backend, settings = get_backend(name), parse_options([setting] if setting else [])
    read_options(backend, settings)
    return text, backend, settings


def solve(
    job: dict[str, Any], running: set[subprocess.Popen[str]], until: float = float("inf")
) -> dict[str, Any] | None:
    """Run a job in its process; a crash or a kill becomes a record, too. None once the clock is at `until`."""
    if time.monotonic() >= until:
        return None
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **THREADS},
    )
    running.add(process)
    errors = ""
    try:
        out, errors = process.communicate(
            json.dumps(job), timeout=1.5 * job["time_limit"] + job.get("patience", PATIENCE)
        )
        record = json.loads(out) if process.returncode == 0 else None
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        record = {"error": "killed", "message": "the process did not end in time"}
    except ValueError:
        record = None
    finally:
        running.discard(process)
    if record is None:
        last = (errors.strip().splitlines() or ["it printed nothing"])[-1]
        record = {"error": "crashed", "message": f"the process ended with code {process.returncode}: {last}"}
    kept = {field: job[field] for field in ("key", "name", "kind", "time_limit")}
    return {
        **kept,
        "backend": job["label"],
        "inputs": job["instance"]["inputs"],
        **record,
        "process_seconds": time.perf_counter() - begin,
    }


def run(options: argparse.Namespace) -> None:
    """Solve what is not in the results yet."""
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.jsonl"
    _check_header(folder / "suite.json", options)
    done = {record["key"] for record in read_records(folder)}
    jobs = [job for job in plan(options) if job["key"] not in done]
    print(f"{len(jobs)} solves to go, {len(done)} done; {options.jobs} at a time, records in {results}", flush=True)
    until = time.monotonic() + (options.budget or float("inf"))
    running: set[subprocess.Popen[str]] = set()
    lock = threading.Lock()
    left = 0
    with ThreadPoolExecutor(max_workers=options.jobs) as pool, results.open("a", encoding="utf-8") as stream:
        if stream.tell() and not results.read_text(encoding="utf-8").endswith("\n"):
            # A line that was cut off must not spoil the next one.
            stream.write("\n")
        if len(jobs) > options.jobs:
            _compile(jobs, pool, running)
        futures = [pool.submit(solve, job, running, until) for job in jobs]
        try:
            for count, future in enumerate(as_completed(futures), 1):
                record = future.result()
                if record is None:
                    left += 1
                    continue
                with lock:
                    stream.write(json.dumps(record) + "\n")
                    stream.flush()
                    os.fsync(stream.fileno())
                outcome = record["error"] or record["status"]
                print(f"{count}/{len(jobs)}  {record['key']}  {outcome}  {record['process_seconds']:.1f} s", flush=True)
        except KeyboardInterrupt:
            for future in futures:
                future.cancel()
            for process in list(running):
                process.kill()
            print(f"interrupted: run the same command again to go on ({results} keeps what is done)")
            raise SystemExit(130) from None
    if left:
        print(f"the budget is spent: {left} solves are left, the same command goes on with them", flush=True)


def _compile(jobs: list[dict[str, Any]], pool: ThreadPoolExecutor, running: set[subprocess.Popen[str]]) -> None:
    """Short solves of the smallest and the largest instance of each kind: no measured one waits for compilers."""
    chosen = {}
    for job in jobs:
        inputs = job["instance"]["inputs"]
        for size in (inputs, -inputs):
            key = (job["kind"], job["label"] if job["backend"] != "native" else "native", size > 0)
            if key not in chosen or size < chosen[key][0]:
                chosen[key] = (size, job)
    # The native backend's kernels are the most; other solvers need those of the incumbents, at one size.
    short = [{**job, "time_limit": 1.0} for (_, label, small), (_, job) in chosen.items() if small or label == "native"]
    print(f"{len(short)} short solves first, so that kernels are compiled", flush=True)
    list(pool.map(lambda job: solve({**job, "patience": 4 * PATIENCE}, running), short))


def _check_header(path: Path, options: argparse.Namespace) -> None:
    """Records of another machine, version or suite must not be mixed with these."""
    mine = [row for row in lb.backends() if options.suite == "standard" or row.name not in peers.PEERS]
    versions = {row.name: row.version for row in mine if row.available}
    header = {"suite": options.suite, "time_limit": options.time_limit, "machine": machine(), "versions": versions}
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name in header if stored.get(name) != header[name]]
        if different:
            raise SystemExit(
                f"error: {path.parent} holds results with another {' and '.join(different)}; pass another --out."
            )
    else:
        extra = {"jobs": options.jobs, "note": options.note}
        path.write_text(json.dumps({**header, **extra}, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Run the suite and print its report."""
    parser = argparse.ArgumentParser(description="Benchmark suite: every backend on real layers.")
    parser.add_argument("--suite", choices=sorted(LIMITS), default="quick")
    parser.add_argument("--input", type=Path, help="a layer file of your own, added to the suite")
    parser.add_argument(
        "--data", type=Path, default=DATA, help="folder of the reference layers; default: ../shared/data"
    )
    parser.add_argument("--out", type=Path, help="folder of the results; default: benchmark-SUITE")
    parser.add_argument("--docs", type=Path, help="a page whose results section is replaced by the report")
    parser.add_argument(
        "--backends", help="comma-separated NAME or NAME:KEY=VALUE, e.g. native,scip:formulation=dense; default: all"
    )
    parser.add_argument("--note", metavar="TEXT", help="a sentence for the report, e.g. what else ran on the machine")
    parser.add_argument("--only", metavar="TEXT", default="", help="only instances whose name contains this")
    parser.add_argument(
        "--time-limit",
        type=float,
        help="seconds of search; default: 10 (quick), 60 (standard, full), 20 (scales, joint)",
    )
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help="start no solve after this time; the same command goes on later"
    )
    parser.add_argument("--memory", type=int, default=6144, help="limit of each process, MB of address space")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    options = parser.parse_args()
    options.time_limit = LIMITS[options.suite] if options.time_limit is None else options.time_limit
    options.out = options.out or Path(f"benchmark-{options.suite}")
    peers.register()
    try:
        run(options)
    except lb.LayerboundsError as error:
        raise SystemExit(f"error: {error}") from error
    print_report(options.out, options.docs)


if __name__ == "__main__":
    main()
