"""Write a certificate of every layer of a network, and check all of them as a reader of the files would.

python examples/certify_network.py [--input LAYERS] [--out FOLDER] [--time-limit SECONDS] [--node-limit N]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import layerbounds as lb

#: What is done to each layer.
PROBLEMS: dict[str, Callable[[lb.Layer], lb.Problem]] = {
    "3 bits": lambda layer: lb.quantization_problem(layer, 3),
    "half of the inputs": lambda layer: lb.pruning_problem(layer, density=0.5),
    "2:4, 3 bits": lambda layer: lb.joint_problem(layer, 3, pattern="2:4"),
    "3 bits, any scales": lambda layer: lb.quantization_problem(layer, 3, scale="free"),
    "half of the columns": lambda layer: lb.pruning_problem(layer, density=0.5, pattern="column"),
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Certificates of all layers of a network.")
    parser.add_argument("--input", type=Path, help="layer file (default: the embedded demo network)")
    parser.add_argument("--out", type=Path, default=Path("certificates"), help="folder of the files")
    parser.add_argument("--time-limit", type=float, default=0.3, help="seconds of search per channel")
    parser.add_argument("--node-limit", type=int, help="nodes per channel")
    options = parser.parse_args()
    layers = lb.demo_layers() if options.input is None else lb.load_layers(options.input)
    options.out.mkdir(exist_ok=True)
    limits = {"time_limit": options.time_limit, "node_limit": options.node_limit}
    taken = {"solved": 0.0, "written": 0.0, "verified": 0.0}
    print(f"{'layer':20} {'problem':20} {'channels':>8} {'optimal':>7} {'lower/upper':>11} {'MB':>6}   seconds")
    for layer in layers.values():
        for name, make in PROBLEMS.items():
            path = options.out / f"{layer.name.replace('/', '.')}, {name.replace(':', ' of ')}.safetensors"
            begin = time.perf_counter()
            solution = lb.solve(make(layer), **limits)
            solved = time.perf_counter()
            solution.save_certificate(path)
            written = time.perf_counter()
            report = lb.verify(path)
            seconds = [solved - begin, written - solved, time.perf_counter() - written]
            taken = {what: taken[what] + more for what, more in zip(taken, seconds, strict=True)}
            totals, size = solution.totals(), path.stat().st_size / 1e6
            ratio = sum(c.lower_bound for c in report.channels) / sum(c.upper_bound for c in report.channels)
            times = ", ".join(f"{s:.1f} {what}" for what, s in zip(taken, seconds, strict=True))
            counts = f"{totals['channels']:8} {totals['optimal']:7} {ratio:11.3f} {size:6.1f}"
            print(f"{layer.name:20} {name:20} {counts}   {times}", flush=True)
            if not report:
                raise SystemExit(f"{path} is refused:\n{report.text()}")
    print(", ".join(f"{seconds:.1f} s {what}" for what, seconds in taken.items()))


if __name__ == "__main__":
    main()
