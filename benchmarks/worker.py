"""One solve in a process of its own: reads a job (JSON) from standard input, writes a record (JSON) to standard output.

echo '{"instance": {…}, "backend": "scip", "time_limit": 10, "memory_mb": 6144, "options": {}}' \
        | python -m benchmarks.worker
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import layerbounds as lb
from benchmarks import el0ps_peer, peers
from benchmarks.instances import Instance


def main() -> None:
    """Solve the job; solvers that print write to standard error."""
    job = json.load(sys.stdin)
    out = os.dup(1)
    os.dup2(2, 1)
    _limit_memory(job["memory_mb"])
    record = run(job)
    record["peak_memory_mb"] = _peak_memory()
    with os.fdopen(out, "w") as stream:
        json.dump(record, stream)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """The record of a job: certified interval, claim, trace; ``error`` says why there is none."""
    peers.register()
    instance = Instance(**job["instance"])
    searching = job["backend"] == "el0ps"
    problem = instance.problem()
    try:
        solution = lb.solve(
            problem,
            job["backend"],
            channels=[instance.channel],
            time_limit=job["time_limit"] * (el0ps_peer.LIMITS if searching else 1.0),
            jobs=1,
            options=job["options"],
        )
    except lb.LayerboundsError as error:
        return {"error": "refused", "message": " ".join(str(error).split())}
    except MemoryError:
        return {"error": "memory", "message": "the memory limit was reached"}
    row = solution.to_dict()["channels"][0]
    fields = ("lower_bound", "upper_bound", "claimed_lower_bound", "energy", "status", "seconds", "nodes", "notes")
    if searching and el0ps_peer.El0psBackend.counted is not None:
        # Compilation and the search for a price do not count, so that nothing took longer than it may.
        row["seconds"], row["notes"] = el0ps_peer.El0psBackend.counted, []
    return {
        "error": None,
        **{field: row[field] for field in fields},
        "trace": [[p[0], p[2], p[3]] for p in row["trace"]],
        "preparation_seconds": solution.preparation_seconds,
        "fingerprint": problem.fingerprint(),
    }


def _limit_memory(megabytes: int) -> None:
    try:
        import resource
    except ImportError:  # not on this system
        return
    resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20, megabytes * 2**20))


def _peak_memory() -> float | None:
    try:
        import resource
    except ImportError:
        return None
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
