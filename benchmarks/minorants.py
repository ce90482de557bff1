"""Minorants of real Gram matrices: value and seconds of each method, both sides in one run.

    python -m benchmarks.minorants [--data DIR] [--inputs N] [--steps N] [--block N]

For each layer with at most so many live inputs Σ d_i of the barrier in double precision and of Newton's method in
single, from the same matrix; then Σ tr B_g of block coordinate ascent and of Newton's method with blocks of so many
inputs. Seconds are those of the processor. Without the reference layers the embedded demo network is measured.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.bounds.minorants.blocks import improve_blocks, make_minorant
from layerbounds.bounds.minorants.clusters import make_clusters
from layerbounds.bounds.minorants.diagonal import certified_minorant, maximize_minorant
from layerbounds.bounds.minorants.newton import ascend_newton
from layerbounds.bounds.minorants.newton_blocks import ascend_newton_blocks
from layerbounds.bounds.minorants.semidefinite import semidefinite_shift

DATA = Path(os.environ.get("LAYERBOUNDS_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
FILES = ("resnet20_layers.safetensors", "minilm_layers.safetensors", "smollm2_layers.safetensors")
#: Weights of the barrier of block coordinate ascent, sweep by sweep, and Newton steps against them.
SWEEPS, BLOCK_STEPS = (0.5, 0.3, 0.15, 0.08, 0.04, 0.02), 10

Result = TypeVar("Result")


def grams(data: Path) -> Iterator[tuple[str, Float]]:
    """Names and Gram matrices of live inputs, shifted where they are singular."""
    files = [data / name for name in FILES if (data / name).is_file()]
    for layers in [lb.load_layers(path) for path in files] or [lb.demo_layers()]:
        for name, layer in layers.items():
            live = layer.live()
            shifted = semidefinite_shift(np.ascontiguousarray(layer.gram[0][np.ix_(live, live)]))
            if shifted is not None:
                yield name, shifted[0]


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """What the work returns, and its seconds."""
    begin = time.process_time()
    result = work()
    return result, time.process_time() - begin


def compare_diagonals(name: str, gram: Float, steps: int) -> Float:
    """Print both diagonals; returns the second one."""
    ones = np.ones(len(gram))
    old, old_seconds = timed(lambda: maximize_minorant(gram, ones, relative_gap=0.2))
    new, new_seconds = timed(lambda: ascend_newton(gram, ones, steps=steps))
    proven = certified_minorant(gram, new)
    print(
        f"{name:40s} {len(gram):5d} diagonal {old.sum():10.5g} {old_seconds:7.2f} s | "
        f"{proven.sum():10.5g} {new_seconds:7.2f} s | value {proven.sum() / old.sum():.3f}x, "
        f"time {new_seconds / max(old_seconds, 1e-9):.2f}x",
        flush=True,
    )
    return proven


def compare_blocks(name: str, gram: Float, diagonal: Float, size: int) -> None:
    """Print both block-diagonal minorants, each proven."""
    n = len(gram)
    members = make_clusters(gram, size, np.zeros(n, dtype=np.int64), np.arange(n))
    if members is None:
        return
    ones = [np.eye(len(m)) for m in members]

    def sweep() -> float:
        minorant = make_minorant(gram, members, np.diag(0.98 * diagonal))
        for barrier in SWEEPS:
            following = None if minorant is None else improve_blocks(gram, members, minorant, ones, barrier)
            minorant = minorant if following is None else following
        return 0.0 if minorant is None else float(np.trace(minorant.matrix))

    def newton() -> float:
        blocks = ascend_newton_blocks(gram, members, ones, steps=BLOCK_STEPS)
        if blocks is None:
            return 0.0
        matrix = np.zeros((n, n))
        for m, block in zip(members, blocks, strict=True):
            matrix[np.ix_(m, m)] = block
        proven = make_minorant(gram, members, matrix)
        return 0.0 if proven is None else float(np.trace(proven.matrix))

    (old, old_seconds), (new, new_seconds) = timed(sweep), timed(newton)
    print(
        f"{name:40s} {n:5d} blocks {size:d} {old:10.5g} {old_seconds:7.2f} s | {new:10.5g} {new_seconds:7.2f} s | "
        f"value {new / old if old else np.inf:.3f}x, time {new_seconds / max(old_seconds, 1e-9):.2f}x",
        flush=True,
    )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--inputs", type=int, default=600)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--block", type=int, default=4)
    options = parser.parse_args()
    print("Σ of the minorant's diagonal and seconds: today's method | Newton's in single precision | second over first")
    for name, gram in grams(options.data):
        if len(gram) <= options.inputs:
            diagonal = compare_diagonals(name, gram, options.steps)
            compare_blocks(name, gram, diagonal, options.block)


if __name__ == "__main__":
    main()
