"""What the first solve of each kind costs: it compiles kernels, of which the second one finds the results on disk.

    python -m benchmarks.cold_start [--kinds "bits;2:4"] [--time-limit 5]

Each kind of problem starts from an empty cache of its own and is solved in two processes, one after the other. The
processor's seconds include the start of Python, the imports and the search, of one channel in one thread.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time

#: Arguments of ``layerbounds solve`` for each kind of problem.
KINDS = {
    "bits": "--layer conv3 --bits 3",
    "bits, 92 inputs": "--layer fc --bits 3",
    "all channels at once": "--layer conv3 --bits 3 --backend batched",
    "codebook": "--layer conv3 --codebook nf4",
    "free scale": "--layer conv3 --bits 3 --scale free",
    "free scale, 92 inputs": "--layer fc --bits 3 --scale free",
    "free zero point": "--layer conv3 --bits 2 --scale free --zero-point free",
    "free codebook": "--layer conv3 --bits 3 --codebook free",
    "unstructured": "--layer conv3 --density 0.25",
    "unstructured, 144 inputs": "--layer conv2 --density 0.25",
    "2:4": "--layer conv3 --pattern 2:4",
    "2:4, 144 inputs": "--layer conv2 --pattern 2:4",
    "blocks": "--layer conv3 --pattern block:4 --density 0.5",
    "joint": "--layer conv3 --bits 3 --density 0.25",
    "joint, 92 inputs": "--layer fc --bits 3 --density 0.25",
    "joint 2:4": "--layer conv3 --bits 3 --pattern 2:4",
    "joint blocks": "--layer conv3 --bits 3 --pattern block:4 --density 0.5",
    "joint codebook": "--layer conv3 --codebook binary --density 0.5",
    "joint, all channels at once": "--layer conv3 --bits 3 --density 0.25 --backend batched",
    "mask only": "--layer conv3 --density 0.25 --mask-only",
}


def measure(arguments: str, time_limit: float, folder: str) -> tuple[float, float]:
    """Seconds of the processor and of the clock that one solve takes, with a folder for compiled kernels."""
    command = [sys.executable, "-m", "layerbounds", "solve", *arguments.split(), "--channels", "0", "--jobs", "1"]
    command += ["--time-limit", str(time_limit), "--json", os.devnull]
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "NUMBA_CACHE_DIR": folder})
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - begin
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    """Print a line for each kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", default=";".join(KINDS), help=f"of {'; '.join(KINDS)}, separated by semicolons")
    parser.add_argument("--time-limit", type=float, default=5.0, help="seconds of search; less calls fewer kernels")
    options = parser.parse_args()
    print(f"{'kind':26} {'first, CPU s':>12} {'wall s':>8} {'second, CPU s':>14} {'wall s':>8}")
    for kind in options.kinds.split(";"):
        with tempfile.TemporaryDirectory() as folder:
            (cpu, wall), (cpu2, wall2) = (measure(KINDS[kind], options.time_limit, folder) for _ in range(2))
        print(f"{kind:26} {cpu:12.1f} {wall:8.1f} {cpu2:14.1f} {wall2:8.1f}", flush=True)


if __name__ == "__main__":
    main()
