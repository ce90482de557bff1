"""All methods of quantization and pruning side by side: the comparison tables of docs/heuristics.md.

    python -m benchmarks.methods [--family quantization,pruning,masks] [--bits 2,3,4] [--channels 8] [--time-limit 5]

Mean errors relative to the energy of the output, and the largest processor seconds of a channel. The last rows are the
best weights of a solve and its certified lower bounds after ``--time-limit`` seconds of the clock a channel, one
thread. ``masks`` are problems whose kept weights stay as they are. Layers of a CIFAR-10 ResNet-20 from the folder that
the environment variable LAYERBOUNDS_DATA names, or ``../shared/data``.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.methods.specs import parse_method

DATA = Path(os.environ.get("LAYERBOUNDS_DATA") or Path(__file__).resolve().parent.parent.parent / "shared" / "data")
LAYERS = ("linear", "layer1.0.conv1")
PATTERNS: tuple[dict[str, Any], ...] = ({"density": 0.5}, {"pattern": "2:4"})
QUANTIZATION = (
    "rtn", "gptq", "gptq:act_order=true", "qronos", "qronos:act_order=true", "ldlq",
    "ldlq:reorder=true:greedy_passes=10", "obq", "adaround", "quantease", "coordinate_descent",
    "coordinate_descent:start=gptq", "babai_klein", "babai_klein:samples=100",
    "beam:width=5:order=activations:damp=0.01:polish=false", "beam:width=256:order=activations:damp=0.01:polish=false",
    "beam:polish=false", "beam", "admm_q:polish=false", "admm_q", "lns:time_limit=0.5",
)  # fmt: skip
PRUNING = (
    "magnitude:refit=false", "magnitude", "wanda", "wanda:refit=true", "sparseswaps", "sparseswaps:refit=true",
    "sparsegpt", "sparsegpt:refit=true", "thanos", "thanos:block_size=8", "thanos:block_size=8:refit=true",
    "fistapruner", "fistapruner:refit=true", "hard_thresholding", "admm", "obs", "swap:kicks=0", "swap",
)  # fmt: skip
MASKS = (
    "magnitude", "wanda", "sparsegpt", "thanos", "obs", "admm", "fistapruner", "sparseswaps",
    "sparseswaps:start=obs", "swap:start=wanda", "swap",
)  # fmt: skip


def energies(layer: lb.Layer, channels: Sequence[int]) -> Float:
    """Mean energy of each channel's output, w̃ᵀHw̃."""
    rows = layer.target[list(channels)]
    return np.asarray([row @ layer.channel_gram(c) @ row for row, c in zip(rows, channels, strict=True)])


def measured(problem: Any, method: str, channels: Sequence[int], energy: Float) -> tuple[float, float]:
    """Mean relative error of a method, and the largest processor seconds of a channel."""
    spec = parse_method(method)
    name, options = spec.heuristic.name, spec.options
    # The first run compiles, and derives what channels share.
    lb.run_heuristic(name, problem, channels=channels[:1], **options)
    errors, most = [], 0.0
    for channel, scale in zip(channels, energy, strict=True):
        begin = time.process_time()
        weights = lb.run_heuristic(name, problem, channels=[channel], **options)
        most = max(most, time.process_time() - begin)
        errors.append(float(lb.evaluate(problem, weights, [channel]).error[0]) / scale)
    return float(np.mean(errors)), most


def table(methods: Sequence[str], problems: dict[str, Any], channels: Sequence[int], limit: float) -> list[str]:
    """Lines of a markdown table: a row for each method, a column for each problem."""
    energy = {name: energies(problem.layer, channels) for name, problem in problems.items()}
    lines = [f"| method | {' | '.join(problems)} | s per channel |", "|---" * (len(problems) + 2) + "|"]
    for method in methods:
        found = [measured(problem, method, channels, energy[name]) for name, problem in problems.items()]
        cells = " | ".join(f"{error:.3g}" for error, _ in found)
        lines.append(f"| `{parse_method(method).label}` | {cells} | {max(most for _, most in found):.2g} |")
    solved = {
        name: lb.solve(problem, channels=channels, time_limit=limit, jobs=1) for name, problem in problems.items()
    }
    for title, bound in (("best known (solve)", "upper_bound"), ("certified lower bound", "lower_bound")):
        means = (float(np.mean(getattr(solved[name], bound) / energy[name])) for name in problems)
        lines.append(f"| {title} | {' | '.join(f'{mean:.3g}' for mean in means)} | {limit:g} |")
    return lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else None)
    parser.add_argument("--family", default="quantization,pruning,masks")
    parser.add_argument("--bits", default="2,3,4")
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--time-limit", type=float, default=5.0)
    arguments = parser.parse_args()
    layers = lb.load_layers(DATA / "resnet20_layers.safetensors")
    chosen = list(range(arguments.channels))
    families = arguments.family.split(",")
    if "quantization" in families:
        problems = {
            f"{name}, {bits} bits": lb.quantization_problem(layers[name], bits=int(bits), range="mse")
            for name in LAYERS
            for bits in arguments.bits.split(",")
        }
        print("\n".join(table(QUANTIZATION, problems, chosen, arguments.time_limit)), end="\n\n", flush=True)
    for family, methods in (("pruning", PRUNING), ("masks", MASKS)):
        if family in families:
            problems = {
                f"{name}, {how.get('pattern', '½')}": lb.pruning_problem(layers[name], refit=family == "pruning", **how)
                for name in LAYERS
                for how in PATTERNS
            }
            print("\n".join(table(methods, problems, chosen, arguments.time_limit)), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
