"""Roots of quantization and best-first trees on them: each part alone and both in one, in one run.

    python -m benchmarks.roots [--data DIR] [--layers layer2.1.conv1] [--bits 3,4] [--channels 1] [--seconds 4]

For each channel the lower bound as a share of the least error found by large-neighbourhood search in ``--seconds``, and
seconds of the processor: the tangent relaxation with the layer's diagonal, with a refitted one, with blocks of inputs,
with split cuts, with both in one relaxation; then trees of boxes that grow for ``--seconds`` from the last two.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

import layerbounds as lb
from benchmarks.native_speed import DATA, compile_kernels, machine
from benchmarks.quantization_engine import instances
from layerbounds.bounds.quantization.block_forms import refine_block_forms
from layerbounds.bounds.quantization.block_relaxation import ROUNDS, BlockRelaxation, refine_blocks
from layerbounds.bounds.quantization.relaxation import Relaxation, refine
from layerbounds.bounds.quantization.split_relaxation import SplitRelaxation, SplitWeights, refine_split
from layerbounds.cli.options import parse_channels
from layerbounds.problems.tasks import make_task
from layerbounds.search.quantization.block_choice import block_members
from layerbounds.search.quantization.box_tree import BoxTree
from layerbounds.search.quantization.grid_units import UnitProblem, make_units
from layerbounds.search.quantization.incumbents import first_incumbents
from layerbounds.search.quantization.neighbourhoods import Neighbourhoods
from layerbounds.search.quantization.preparation import order_exponent, prepare
from layerbounds.search.quantization.split_forms import prepare_split

#: What a tree is called, and its root.
Start = tuple[str, SplitRelaxation | BlockRelaxation | None]
Found = TypeVar("Found", Relaxation, SplitRelaxation, BlockRelaxation | None)

#: Refits of a diagonal, and of split cuts.
REFITS, SPLIT_REFITS = 5, 60


def least_error(unit: UnitProblem, seconds: float) -> float:
    """The best error that the large-neighbourhood search finds, in grid units."""
    value, choice = first_incumbents(unit, None)
    search = Neighbourhoods(
        unit.gram, unit.origin, unit.levels.T, unit.count, choice, value, np.random.default_rng(0), unit.covariance
    )
    begin = time.process_time()
    while time.process_time() - begin < seconds:
        search.improve()
    return float(search.value)


def roots(unit: UnitProblem, show: Callable[[str, float, float], None]) -> list[Start]:
    """Show each root; returns those from which trees grow."""
    n, problem = unit.size, (unit.gram, unit.origin, unit.levels)
    d, members, split = unit.minorants[n], block_members(unit.prep), prepare_split(unit.prep)
    if split is None:
        split = SplitWeights.without_forms(d)

    def timed(label: str, relax: Callable[[], Found]) -> Found:
        begin = time.process_time()
        found = relax()
        show(label, np.nan if found is None else found.value, time.process_time() - begin)
        return found

    def never() -> bool:
        return False

    plain = timed("the layer's diagonal", lambda: refine(*problem, unit.count, d, unit.origin, 0, never))
    timed("a refitted diagonal", lambda: refine(*problem, unit.count, d, unit.origin, REFITS, never))
    if members is None:
        return []
    timed("blocks", lambda: refine_blocks(*problem, unit.count, d, plain.z, members, ROUNDS))
    forms = timed(
        "split cuts",
        lambda: refine_split(unit.gram, unit.covariance, *problem[1:], split, plain.z, SPLIT_REFITS, never),
    )
    both = timed(
        "both in one",
        lambda: refine_block_forms(unit.gram, unit.covariance, *problem[1:], unit.count, split, plain.z, members),
    )
    return [("a tree from split cuts", forms), ("a tree from both", both)]


def trees(
    unit: UnitProblem,
    found: list[Start],
    seconds: float,
    show: Callable[[str, float, float], None],
) -> None:
    """Grow the trees and show where they are after a quarter of the time, a half, and all of it."""
    for label, root in found:
        if root is None:
            continue
        begin = time.process_time()
        tree = BoxTree(unit, root)
        for share in (0.25, 0.5, 1.0):
            end = begin + share * seconds
            tree.grow(np.inf, lambda end=end: time.process_time() >= end)  # type: ignore[misc]
            show(f"{label} ({tree.nodes} nodes)", tree.value, time.process_time() - begin)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(DATA))
    parser.add_argument("--layers", default="layer2.1.conv1", help="short names of benchmarks.quantization_engine")
    parser.add_argument("--bits", default="3,4")
    parser.add_argument("--channels", default="1")
    parser.add_argument("--seconds", type=float, default=4.0)
    arguments = parser.parse_args()
    print(machine())
    compile_kernels()
    for name, layer, whole, _ in instances(Path(arguments.data), arguments.layers.split(",")):
        for bits in map(int, arguments.bits.split(",")):
            scales = lb.uniform_grid(whole.weight, bits).scale[:, 0]
            problem = lb.quantization_problem(layer, bits=bits, scale=scales)
            for channel in parse_channels(arguments.channels, layer.out_features) or range(layer.out_features):
                task = make_task(problem, channel, None, None)
                unit = make_units(task, prepare(task.gram, order_exponent(len(task.target))))
                least = least_error(unit, arguments.seconds)
                print(f"{name}, {unit.size} inputs, {bits} bits, channel {channel}")

                def show(label: str, value: float, seconds: float, least: float = least) -> None:
                    print(f"  {label:38} {value / least:7.3f} {seconds:8.2f} s", flush=True)

                # Once before, so that nothing that is measured loads kernels.
                found = roots(unit, lambda *_: None)
                found = roots(unit, show)
                trees(unit, found, arguments.seconds, show)


if __name__ == "__main__":
    main()
