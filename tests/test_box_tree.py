"""The best-first tree of relaxations with split cuts: valid at any time, exact at the end."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from matrices import never
from scipy.sparse import csr_array

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.bounds.minorants.alternating import AlternatingDirections
from layerbounds.bounds.quantization.block_forms import refine_block_forms
from layerbounds.bounds.quantization.block_relaxation import BlockRelaxation
from layerbounds.bounds.quantization.split_relaxation import (
    SplitRelaxation,
    SplitWeights,
    evaluate_split,
    maximize_split,
)
from layerbounds.problems.tasks import make_task
from layerbounds.search.quantization import channel_search as quantization
from layerbounds.search.quantization.box_tree import BoxTree
from layerbounds.search.quantization.grid_units import UnitProblem, make_units
from layerbounds.search.quantization.split_forms import prepare_split
from layerbounds.solvers.native import NativeBackend

#: Thorough and long: CI runs them, and ``--slow``.
pytestmark = pytest.mark.slow


def channel(seed: int, n: int, bits: int, scale: float = 1.0) -> UnitProblem:
    rng = np.random.default_rng([n, bits, seed])
    mixing = rng.normal(size=(n, n)) + 2.0 * rng.normal(size=(n, 1)) @ np.ones((1, n))
    inputs = scale * rng.normal(size=(4 * n, n)) @ mixing
    problem = lb.quantization_problem(lb.Layer.from_activations(rng.normal(size=(1, n)), inputs), bits=bits)
    preparation = NativeBackend().prepare(problem, 0, 1)
    assert preparation is not None
    return make_units(make_task(problem, 0, preparation, None), preparation)


def root_of(unit: UnitProblem, blocks: bool = False) -> SplitRelaxation | BlockRelaxation:
    split = prepare_split(unit.prep)
    if split is None:
        split = SplitWeights(np.zeros((unit.size, 0)), unit.minorants[unit.size], np.zeros(0))
    if blocks:
        members = [np.arange(i, min(i + 3, unit.size)) for i in range(0, unit.size, 3)]
        root = refine_block_forms(
            unit.gram, unit.covariance, unit.origin, unit.levels, unit.count, split, unit.origin, members, 6
        )
        assert root is not None
        return root
    return maximize_split(unit.gram, unit.origin, unit.levels, split, unit.origin, never)


def all_values(unit: UnitProblem) -> Float:
    points = np.array(list(itertools.product(range(int(unit.high[0]) + 1), repeat=unit.size))) - unit.origin
    return np.asarray(np.einsum("ij,ij->i", points @ unit.gram, points))


@pytest.mark.parametrize("scale", [1.0, 1e-7, 1e6])
@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_bound_rises_to_the_optimum_and_never_above(seed: int, bits: int, scale: float, blocks: bool) -> None:
    unit = channel(seed, 6 if bits == 2 else 4, bits, scale)
    optimum = float(all_values(unit).min())
    tree = BoxTree(unit, root_of(unit, blocks))
    last = tree.value
    while not tree.full:
        asked = iter([False, True])
        # One branching a call.
        proven = tree.grow(1.5 * optimum, lambda asked=asked: next(asked))
        assert last <= proven <= optimum
        last = proven
    assert tree.point is not None
    assert last == pytest.approx(optimum, rel=1e-9)
    deviation = tree.point - unit.origin
    assert deviation @ unit.gram @ deviation == pytest.approx(optimum, rel=1e-9)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_a_cut_below_the_optimum_is_proven(seed: int, blocks: bool) -> None:
    unit = channel(seed, 8, 2)
    optimum = float(all_values(unit).min())
    tree = BoxTree(unit, root_of(unit, blocks))
    assert tree.grow(0.97 * optimum, never) == 0.97 * optimum
    assert tree.full
    assert tree.nodes > 0


@pytest.mark.parametrize("blocks", [False, True])
def test_dropped_levels_and_closed_boxes_hold_nothing_below_the_cut(blocks: bool) -> None:
    unit = channel(3, 7, 2)
    points = np.array(list(itertools.product(range(4), repeat=7)), dtype=np.float64)
    values = all_values(unit)
    for cut in np.quantile(values, [0.0005, 0.005, 0.05]):
        tree = BoxTree(unit, root_of(unit, blocks))
        asked = iter([False] * 12 + [True])
        tree.grow(cut, lambda asked=asked: next(asked))
        below = points[values < cut]
        held = np.zeros(len(below), dtype=bool)
        for _, _, node in tree._heap:
            inside = np.all((below >= node.low) & (below <= node.high), axis=1)
            assert np.all(values[values < cut][inside] >= node.value)
            held |= inside
        assert np.all(held)


def test_the_kernel_follows_the_same_path_as_the_method() -> None:
    unit = channel(1, 10, 3)
    root = root_of(unit)
    assert isinstance(root, SplitRelaxation)
    tree = BoxTree(unit, root)
    _, _, node = tree._heap[0]
    z = np.clip(root.z, unit.low, unit.high)
    split = root.split
    method = AlternatingDirections(
        unit.gram, unit.origin, unit.levels, split.units, z, csr_array(split.forms), split.weights
    )
    method.iterate(400)
    found = evaluate_split(unit.gram, unit.origin, unit.levels, split, node.z, method.multipliers)
    assert np.allclose(node.z, method.z, atol=1e-6)
    assert node.value == pytest.approx(max(found.value, root.value), rel=1e-6)


def test_memory_ends_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerbounds.search.quantization.box_tree.BYTES", 8 * 5 * 200 * 6)
    unit = channel(0, 14, 3)
    tree = BoxTree(unit, root_of(unit))
    bound = tree.grow(np.inf, never)
    assert tree.full
    assert root_of(unit).value <= bound < np.inf


@pytest.mark.slow
def test_a_large_channel_is_proven_by_boxes(monkeypatch: pytest.MonkeyPatch, reference_data: Path) -> None:
    whole = lb.load_layers(reference_data / "resnet20_layers.safetensors")["layer1.0.conv1"]
    problem = lb.quantization_problem(whole, bits=2)
    # As if the layer were too large for enumeration.
    monkeypatch.setattr(quantization, "TREE_DECIDES", 100)
    monkeypatch.setattr(quantization, "SMALL_FIRST_BUDGET", 0.0)
    solution = lb.solve(problem, channels=[1], time_limit=2.0, jobs=1)
    assert solution.bound_kind[0] == lb.BoundKind.SEARCH
    lowers = [p.lower for p in solution.trace[0]]
    assert lowers == sorted(lowers)
    assert solution.lower_bound[0] <= solution.upper_bound[0]
    rng = np.random.default_rng(0)
    levels = problem.grid.levels(1)
    nearest = np.abs(levels - whole.matrix[1][:, None]).argmin(axis=1)
    for _ in range(300):
        choice = np.clip(nearest + rng.integers(-1, 2, len(nearest)) * (rng.random(len(nearest)) < 0.1), 0, 3)
        weights = levels[np.arange(len(nearest)), choice]
        assert lb.evaluate(problem, np.tile(weights, (whole.out_features, 1))).error[1] >= solution.lower_bound[0]
