"""The root relaxation, the multipliers of the box, and the large-neighbourhood search."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from matrices import never

import layerbounds as lb
from layerbounds.bounds.minorants.diagonal import maximize_minorant, proven_minorant
from layerbounds.bounds.quantization.box import box_multipliers
from layerbounds.bounds.quantization.relaxation import evaluate_relaxation, maximize_relaxation, refine
from layerbounds.problems.tasks import make_task
from layerbounds.search.quantization.grid_units import make_units
from layerbounds.search.quantization.preparation import prepare
from layerbounds.search.quantization.tree import Tree
from layerbounds.solvers.native import NativeBackend

#: Thorough and long: CI runs them, and ``--slow``.
pytestmark = pytest.mark.slow


def instance(seed: int, n: int, levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3 * n, n)) @ (np.eye(n) + 0.7 * rng.normal(size=(n, n)))
    gram = x.T @ x / len(x)
    table = np.sort(rng.normal(size=(levels, n)) * 1.5, axis=0) if seed % 2 else np.tile(np.arange(levels)[:, None], n)
    return gram, rng.uniform(-1.5, levels + 0.5, n), np.ascontiguousarray(table, dtype=np.float64)


def optimum(gram: np.ndarray, origin: np.ndarray, table: np.ndarray) -> float:
    points = np.array(list(itertools.product(*table.T))) - origin
    return float(np.einsum("ij,ij->i", points @ gram, points).min())


@pytest.mark.parametrize("seed", range(24))
def test_every_step_of_the_relaxation_stays_below_the_optimum(seed: int) -> None:
    gram, origin, table = instance(seed, n=5, levels=2 + seed % 3)
    best = optimum(gram, origin, table)
    count = np.full(5, len(table))
    d = maximize_minorant(gram, np.ones(5))
    rng = np.random.default_rng(seed)
    for _ in range(20):
        assert evaluate_relaxation(gram, origin, table, origin + rng.normal(size=5), d).value <= best
    fixed = maximize_relaxation(gram, origin, table, count, d, origin, never)
    refined = refine(gram, origin, table, count, d, origin, 4, never)
    start = evaluate_relaxation(gram, origin, table, np.clip(origin, table[0], table[-1]), d)
    assert start.value <= fixed.value <= refined.value <= best
    # The terms price every level: no point is undercut.
    choice = rng.integers(0, len(table), 5)
    point = table[choice, np.arange(5)] - origin
    priced = refined.value + np.sum(refined.terms[choice, np.arange(5)] - refined.terms.min(axis=0))
    assert priced <= point @ gram @ point * (1 + 1e-12)


def test_the_relaxation_solves_its_convex_problem() -> None:
    # For d = 0 it is the quadratic program over the box; compare with projected gradient.
    gram, origin, table = instance(2, n=6, levels=3)
    z = np.clip(origin, table[0], table[-1])
    for _ in range(20_000):
        z = np.clip(z - gram @ (z - origin) / np.linalg.norm(gram, 2), table[0], table[-1])
    value = float((z - origin) @ gram @ (z - origin))
    found = maximize_relaxation(gram, origin, table, np.full(6, 3), np.zeros(6), origin, never)
    assert found.value == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_box_multipliers_satisfy_the_optimality_conditions(seed: int) -> None:
    gram, origin, table = instance(seed, n=9, levels=4)
    low, high = table[0].copy(), table[-1].copy()
    if seed % 3 == 0:
        high[0] = low[0]
    h, sides = box_multipliers(np.linalg.inv(gram), origin, low, high, np.zeros(9, dtype=np.int64))
    z = origin + np.linalg.solve(gram, h)
    assert np.all(z >= low - 1e-7)
    assert np.all(z <= high + 1e-7)
    free = low < high
    assert np.all(h[free & (sides < 0)] >= 0)
    assert np.all(h[free & (sides > 0)] <= 0)
    assert np.all(h[sides == 0] == 0)


@pytest.mark.parametrize("bits", [2, 3])
def test_tightening_keeps_every_point_below_the_cut(bits: int) -> None:
    rng = np.random.default_rng(bits)
    x = rng.normal(size=(20, 5)) @ rng.normal(size=(5, 5))
    problem = lb.quantization_problem(lb.Layer.from_activations(2.0 * rng.normal(size=(4, 5)), x), bits=bits)
    preparation = NativeBackend().prepare(problem, 0, 1)
    dropped = 0
    for channel in range(4):
        unit = make_units(make_task(problem, channel, preparation, None), preparation)
        points = np.array(list(itertools.product(range(2**bits), repeat=5)))
        deviation = points - unit.origin
        values = np.einsum("ij,ij->i", deviation @ unit.gram, deviation)
        for cut in np.quantile(values, [0.002, 0.02, 0.2]):
            tree = Tree(unit)
            assert tree.restart(cut) <= values.min() * (1 + 1e-9)
            kept = points[values < cut]
            assert np.all(kept >= tree.low)
            assert np.all(kept <= tree.high)
            dropped += int(np.sum(2**bits - tree.count))
            assert tree.run(10**6)
            assert tree.cut == pytest.approx(values.min(), rel=1e-9)
    assert dropped > 0


def test_proven_minorant_of_a_singular_matrix_needs_a_shift() -> None:
    gram = np.array([[1.0, 1.0, 0.5], [1.0, 1.0, 0.5], [0.5, 0.5, 1.0]])
    proven = proven_minorant(gram, np.array([0.0, 0.0, 0.5]))
    assert proven is not None
    d, shift = proven
    assert np.all(shift >= 0)
    assert np.max(shift) < 1e-10
    assert np.linalg.eigvalsh(gram + np.diag(shift) - np.diag(d))[0] >= -1e-15
    definite = proven_minorant(np.diag([1.0, 2.0]), np.array([0.5, 0.5]))
    assert definite is not None
    assert not np.any(definite[1])


def test_preparations_are_computed_once() -> None:
    gram = np.diag([1.0, 2.0, 3.0])
    assert prepare(gram, 1.0) is prepare(gram.copy(), 1.0)
    assert prepare(gram, 1.0) is not prepare(2 * gram, 1.0)


def test_lns_beats_its_start_and_repeats() -> None:
    problem = lb.quantization_problem(lb.demo_layers()["conv2"], bits=2)
    beam = lb.evaluate(problem, lb.run_heuristic("beam", problem, channels=[0, 1]), [0, 1]).error
    runs = [lb.run_heuristic("lns", problem, channels=[0, 1], seed=3, rounds=100) for _ in range(2)]
    result = lb.evaluate(problem, runs[0], [0, 1])
    np.testing.assert_array_equal(runs[0], runs[1])
    assert result.feasible.all()
    assert np.all(result.error <= beam)
    assert np.any(result.error < 0.99 * beam)
    with pytest.raises(lb.LayerboundsError, match="rounds"):
        lb.run_heuristic("lns", problem, channels=[0], rounds=-1)


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_trace_plot(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    from layerbounds.report.plots import plot_trace, trace_figure

    solution = lb.solve(lb.quantization_problem(lb.demo_layers()["conv1"], bits=2), channels=[0, 1], node_limit=10_000)
    path = tmp_path / f"trace.{suffix}"
    plot_trace(solution, path)
    head = path.read_bytes()[:200]
    assert head.startswith(b"\x89PNG") if suffix == "png" else b"<?xml" in head
    with pytest.raises(lb.LayerboundsError, match=r"\.svg"):
        plot_trace(solution, tmp_path / "trace.bmp")
    legend = [text.get_text() for text in trace_figure(solution).legends[0].get_texts()]
    assert legend == [
        "lower bound: nothing is better", "upper bound: weights that are known", "channel 0", "channel 1",
    ]  # fmt: skip
