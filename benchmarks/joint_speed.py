"""Time to proof, or the certified ratio at the time limit, of pruning and quantizing real layers at once.

    python -m benchmarks.joint_speed [--time-limit 10] [--channels 0:3] [--sizes 32,48,64] [--bits 2,3,4]
                                     [--patterns 0.125,0.25,0.5,2:4] [--backend native]

Layers come from ``resnet20_layers.safetensors`` in the folder that the environment variable LAYERBOUNDS_DATA names.
Instances are their leading live inputs, renumbered, with 1e-6 of the mean diagonal added to the diagonal so that every
solver gets the same positive definite instance; the grid is symmetric with the scales that the file stores for the
dense weights. 32, 48 and 126 inputs are those of layer1.0.conv1, 64 of linear, 279 of layer2.1.conv1. The tables at the
end are those of docs/joint-engine.md: seconds to the proof, or lower/upper in brackets.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import layerbounds as lb
from benchmarks.pruning_speed import definite
from layerbounds.arrays import Float

FILE = "resnet20_layers.safetensors"
#: The layer of which the first live inputs are taken, by their number.
LAYERS = {32: "layer1.0.conv1", 48: "layer1.0.conv1", 64: "linear", 126: "layer1.0.conv1", 279: "layer2.1.conv1"}


def instance(
    layers: dict[str, lb.Layer], scales: dict[str, Float], size: int, bits: int, pattern: str
) -> lb.JointProblem:
    """The problem of all channels of a layer's first live inputs."""
    name = LAYERS[size]
    layer = definite(layers[name], size)
    scale = scales[f"{name}.scale_{bits}bit"]
    if ":" in pattern:
        return lb.joint_problem(layer, bits, scale=scale, pattern=pattern)
    return lb.joint_problem(layer, bits, scale=scale, density=float(pattern))


def main() -> None:
    """Run and print one line per channel, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--time-limit", type=float, default=10.0)
    parser.add_argument("--channels", default="0:3")
    parser.add_argument("--sizes", default="32,48,64")
    parser.add_argument("--bits", default="2,3,4")
    parser.add_argument("--patterns", default="0.125,0.25,2:4,0.5")
    parser.add_argument("--backend", default="native")
    options = parser.parse_args()
    first, last = (int(x) for x in options.channels.split(":"))
    path = Path(os.environ.get("LAYERBOUNDS_DATA") or "../shared/data") / FILE
    if not path.is_file():
        print(f"LAYERBOUNDS_DATA names no folder with {FILE}: nothing to measure.")
        return
    layers, scales = lb.load_layers(path), load_file(path)
    patterns = options.patterns.split(",")
    sizes, every = [int(x) for x in options.sizes.split(",")], [int(x) for x in options.bits.split(",")]
    print(f"layerbounds {lb.__version__}, Python {platform.python_version()}, {platform.machine()}")
    # What is compiled, or loaded from the cache, does not count.
    for pattern in patterns:
        lb.solve(instance(layers, scales, 32, 4, pattern), options.backend, channels=[0], time_limit=2.0)
    print(
        f"{'n':>4} {'bits':>4} {'pattern':>7} {'ch':>2} {'root':>6} {'lo/up':>8} {'rel.err':>10} {'nodes':>7} {'s':>6}"
    )
    cells: dict[tuple[int, int, str], list[str]] = {}
    for size in sizes:
        for bits in every:
            for pattern in patterns:
                problem = instance(layers, scales, size, bits, pattern)
                for channel in range(first, last):
                    begin = time.perf_counter()
                    solution = lb.solve(
                        problem, options.backend, channels=[channel], time_limit=options.time_limit, jobs=1
                    )
                    seconds = time.perf_counter() - begin
                    lower, upper = float(solution.lower_bound[0]), float(solution.upper_bound[0])
                    trace = solution.trace[0]
                    root = trace[0].lower / upper if trace else np.nan
                    proven = solution.status[0] == lb.Status.OPTIMAL
                    cells.setdefault((size, bits, pattern), []).append(
                        f"{seconds:.2f}" if proven else f"({lower / upper:.2f})"
                    )
                    nodes = trace[-1].nodes if trace else 0
                    print(
                        f"{size:4} {bits:4} {pattern:>7} {channel:2} {root:6.3f} {lower / upper:8.5f} "
                        f"{upper / float(solution.energy[0]):10.4g} {nodes:7} {seconds:6.2f}",
                        flush=True,
                    )
    print(f"\nSeconds to the proof, or (lower/upper) at {options.time_limit:g} s, of each channel\n")
    print("| n | bits | " + " | ".join(patterns) + " |\n|" + "---|" * (len(patterns) + 2))
    for size in sizes:
        for bits in every:
            print(f"| {size} | {bits} | " + " | ".join(" ".join(cells[size, bits, p]) for p in patterns) + " |")


if __name__ == "__main__":
    main()
