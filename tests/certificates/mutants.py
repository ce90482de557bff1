"""Certificates with a few numbers changed at random, and the truth about them by trying everything."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from zoo import brute_force

import layerbounds as lb
from certificates import correct, scales
from certificates.incorrect import forge
from layerbounds.certify.solution_file import SOLUTIONS
from layerbounds.layers.gram import GramReport, ValidatedGram
from layerbounds.layers.tensor_files import read_tensors
from layerbounds.problems.problem import Problem
from layerbounds.problems.stored import restored_problem

_LAYER = correct.layer(5, 1, dead=False, seed=4)
_ROWS = correct.layer(5, 2, dead=False, seed=6)


_TILE = correct.layer(4, 2, dead=False, seed=3)


def _filters() -> Problem:
    metric = np.array([[2.0, 0.5], [0.5, 1.0]])
    layer = lb.Layer(_ROWS.weight, _ROWS.gram)
    return lb.pruning_problem(layer, k=1, pattern="filter", refit=True, output_metric=metric)


def _zero_points() -> Problem:
    return lb.quantization_problem(correct.layer(4, 1, dead=False, seed=4), 1, scale="free", zero_point="free")


def _kinds() -> dict[str, Callable[[], lb.Solution]]:
    grid, refit = lb.quantization_problem(_LAYER, 2), lb.pruning_problem(_LAYER, k=2)
    mask, joint = lb.pruning_problem(_LAYER, k=2, refit=False), lb.joint_problem(_LAYER, 1, k=3)
    two_of_four = lb.pruning_problem(_LAYER, pattern="2:4")
    codebook = lb.quantization_problem(_LAYER, 1, codebook="free")
    tiles = lb.pruning_problem(_ROWS, pattern="transposable:1:2")
    columns = lb.pruning_problem(_ROWS, pattern="venom:2:1:5", refit=False)
    free = lb.quantization_problem(_LAYER, 2, scale="free")
    return {
        "levels, dual": lambda: correct.by_dual(grid, correct.diagonal),
        "levels, forms": lambda: correct.by_dual(grid, correct.forms),
        "levels, blocks": lambda: correct.by_dual(grid, correct.blocks),
        "levels, blocks and forms": lambda: correct.by_dual(grid, correct.blocks_and_forms),
        "levels, search": lambda: correct.by_search(grid),
        "mask, dual": lambda: correct.by_dual(mask, correct.diagonal),
        "mask, search": lambda: correct.by_search(mask),
        "refit, blocks": lambda: correct.by_dual(refit, correct.blocks),
        "refit, search": lambda: correct.by_search(refit),
        "2:4, search": lambda: correct.by_search(two_of_four),
        "joint, search": lambda: correct.by_search(joint),
        "tiles, prices": lambda: correct.by_dual(tiles, correct.prices),
        "tiles, search": lambda: correct.by_search(tiles),
        "tiles mask, search": lambda: correct.by_search(columns),
        "scales, dual": lambda: correct.by_dual(free, scales.dual_points),
        "scales, search": lambda: correct.by_search(free),
        "free codebook, dual": lambda: correct.by_dual(codebook, correct.diagonal),
        "units, refit": lambda: correct.by_search(lb.pruning_problem(_LAYER, k=2, pattern="block:2")),
        "units, mask": lambda: correct.by_search(lb.pruning_problem(_LAYER, k=2, pattern="block:2", refit=False)),
        "shared, refit": lambda: correct.by_search(lb.pruning_problem(_ROWS, k=2, share="all")),
        "shared, mask": lambda: lb.solve(lb.pruning_problem(_ROWS, k=2, share="all", refit=False), jobs=1),
        "filters": lambda: correct.by_search(_filters()),
        "tiles, refit": lambda: correct.by_search(lb.pruning_problem(_TILE, pattern="transposable:1:2")),
        "tiles, mask": lambda: correct.by_search(lb.pruning_problem(_TILE, pattern="transposable:1:2", refit=False)),
        "scales, zero points": lambda: correct.by_search(_zero_points()),
    }


#: Certificates of one set of rows, small enough to try everything.
KINDS = _kinds()
#: What a mutation may do to a number.
MUTATIONS: list[Callable[[float], float]] = [
    lambda x: 0.0,
    lambda x: -x,
    lambda x: 2.0 * x,
    lambda x: x + 0.1,
    lambda x: x + 1.0,
    lambda x: x - 1.0,
    lambda x: np.nextafter(x, np.inf),
    lambda x: x * (1 + 1e-7),
    lambda x: x * (1 - 1e-7),
]
#: Numbers that are no part of what is claimed.
_TOLD = ("trace", "seconds", "energy", "claimed", "nodes")


@cache
def content(kind: str) -> bytes:
    """The bytes of a right certificate."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "c.safetensors"
        KINDS[kind]().save_certificate(path)
        return path.read_bytes()


def mutate(path: Path, rng: np.random.Generator) -> str:
    """Change one number or two of a file, or exchange two; returns what was done."""
    done: list[str] = []

    def change(tensors: dict[str, Any], about: dict[str, Any]) -> None:
        names = [name for name in sorted(tensors) if tensors[name].size and not any(s in name for s in _TOLD)]
        for _ in range(rng.integers(1, 3)):
            array = tensors[name := names[rng.integers(len(names))]]
            place, how = rng.integers(array.size), rng.integers(len(MUTATIONS) + 1)
            if how == len(MUTATIONS):
                other = rng.integers(array.size)
                array.flat[[place, other]] = array.flat[[other, place]]
            else:
                array.flat[place] = MUTATIONS[how](float(array.flat[place]))
            if name == "layer.gram" and rng.random() < 0.9:
                i, j = divmod(int(place), array.shape[-1])
                array[j % len(array), i % len(array)] = array[i % len(array), j]
            done.append(f"{name}[{place}]: {how}")

    forge(path, change)
    return ", ".join(done)


def optimum(path: Path) -> float:
    """The least error of the problem in a file of one set of rows, by trying everything.

    Raises
    ------
    InputError
        If the package takes the problem for none.
    """
    tensors, metadata = read_tensors(path)
    about = json.loads(metadata[SOLUTIONS.key])
    parts = {name: tensors[f"layer.{name}"] for name in ("target", "constant") if f"layer.{name}" in tensors}
    reports = [GramReport(**report) for report in about["layer"]["reports"]]
    gram = np.array(tensors["layer.gram"]).reshape(-1, *tensors["layer.gram"].shape[-2:])
    layer = lb.Layer(tensors["layer.weight"], ValidatedGram.stored(gram, reports, "gram"), "toy", **parts)
    own = {name: array for name, array in tensors.items() if name.startswith("problem.")}
    if "grid" in about["problem"]:
        # Changed codes need not be consecutive.
        about["problem"]["grid"]["uniform"] = False
    return brute_force(restored_problem(layer, own, about["problem"]))


def holds(path: Path, least: float) -> bool:
    """Whether the ends in a file of one set of rows enclose the optimum."""
    tensors, metadata = read_tensors(path)
    lower, upper = (float(tensors[f"solution.{end}_bound"][0]) for end in ("lower", "upper"))
    slack = _slack(json.loads(metadata[SOLUTIONS.key])) * least
    return lower <= least + slack and least <= upper + slack


def claim_more(path: Path, least: float) -> None:
    """Move the lower end of a file of one set of rows just above the optimum, and the upper end far above it."""

    def change(tensors: dict[str, Any], about: dict[str, Any]) -> None:
        tensors["solution.lower_bound"][0] = least * (1 + 2 * _slack(about) + 1e-12) + 1e-300
        tensors["solution.upper_bound"][0] = 1e3 * (least + 1.0)

    forge(path, change)


def _slack(about: dict[str, Any]) -> float:
    """Of weights of any value the optimum is known to float64's accuracy alone."""
    return 1e-15 if about["problem"]["family"] in ("quantization", "joint") else 1e-9
