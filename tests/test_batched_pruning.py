"""The batched backend on pruning: intervals that hold on every pattern and matrix, and sets that stand comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matrices import correlated
from test_rows_of_supports import KINDS, best_weights, exact_error, layer_of, tasks_of

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.bounds.minorants.diagonal import is_minorant
from layerbounds.bounds.pruning.perspective import centre
from layerbounds.kernels.arithmetic import CPU
from layerbounds.kernels.batched.support import mask_step, refit_step
from layerbounds.problems.patterns import Structure, parse_pattern
from layerbounds.proofs import BoundKind
from layerbounds.solvers.batched.support_layout import lay_out
from layerbounds.solvers.batched.support_minorant import Ascent
from layerbounds.solvers.batched.support_sets import SetSearch, doubtful, largest_units, refit_rows

PATTERNS: list[dict[str, Any]] = [
    {"k": 0}, {"k": 3}, {"k": 7}, {"pattern": "2:4"}, {"pattern": "1:3"}, {"pattern": "block:3", "k": 6},
]  # fmt: skip


@pytest.mark.parametrize("first", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_intervals_hold_on_every_kind_of_matrix(kind: str, first: int) -> None:
    for seed, rule in list(enumerate(PATTERNS))[(first + KINDS.index(kind)) % 3 :: 3]:
        layer = layer_of(kind, 7, 3, seed)
        if "k" in rule:
            rule = {**rule, "k": min(rule["k"], layer.in_features)}
        for refit in (True, False):
            problem = lb.pruning_problem(layer, refit=refit, **rule)
            found = lb.solve(problem, "batched")
            assert np.all(lb.evaluate(problem, found.weights).feasible)
            assert set(found.status) <= {lb.Status.RELAXED, lb.Status.OPTIMAL}
            for row, task in enumerate(tasks_of(layer, refit, **rule)):
                best = min(exact_error(task.gram, task.target, v) for v in best_weights(task))
                assert found.lower_bound[row] <= max(best, 0)
                size = 1e-12 * task.energy
                assert found.upper_bound[row] >= float(best) * (1 - 1e-12) - size
                if rule.get("k") == layer.in_features:
                    assert found.upper_bound[row] <= size


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("rule", [{"k": 12}, {"pattern": "2:4"}, {"pattern": "block:4", "k": 12}])
def test_sets_are_nearly_the_best_and_bounds_useful(
    rng: np.random.Generator, refit: bool, rule: dict[str, Any]
) -> None:
    inputs = rng.normal(size=(100, 24)) @ (np.eye(24) + 0.1 * rng.normal(size=(24, 24)))
    problem = lb.pruning_problem(lb.Layer.from_activations(rng.normal(size=(12, 24)), inputs), refit=refit, **rule)
    batched = lb.solve(problem, "batched")
    native = lb.solve(problem, "native", time_limit=1.0)
    assert np.all(batched.lower_bound <= native.upper_bound) and np.all(native.lower_bound <= batched.upper_bound)
    # Blocks are only eliminated backwards.
    most = 1.1 if refit and "block" in str(rule) else 1.02
    assert batched.upper_bound.sum() <= most * native.upper_bound.sum()
    assert batched.lower_bound.sum() >= 0.3 * native.upper_bound.sum()
    assert all(kind == BoundKind.DUAL for kind in batched.bound_kind)


def test_warm_starts_are_never_lost(rng: np.random.Generator) -> None:
    problem = lb.pruning_problem(lb.Layer(rng.normal(size=(3, 16)), correlated(rng, 16)), pattern="block:4", k=8)
    exact = lb.solve(problem, "native", time_limit=20.0)
    batched = lb.solve(problem, "batched", warm_start=exact.weights)
    assert np.all(batched.upper_bound <= exact.upper_bound * (1 + 1e-9))


def test_without_time_there_are_weights(rng: np.random.Generator) -> None:
    problem = lb.pruning_problem(lb.Layer(rng.normal(size=(5, 30)), correlated(rng, 30)), k=10)
    found = lb.solve(problem, "batched", time_limit=0.0)
    assert np.all(lb.evaluate(problem, found.weights).feasible)
    assert np.all(found.upper_bound <= found.energy * (1 + 1e-9))


@pytest.mark.slow
def test_threads_change_nothing_but_the_time(rng: np.random.Generator) -> None:
    problem = lb.pruning_problem(lb.Layer(rng.normal(size=(40, 30)), correlated(rng, 30)), pattern="2:4")
    one, two = (lb.solve(problem, "batched", jobs=jobs) for jobs in (1, 2))
    np.testing.assert_allclose(one.lower_bound, two.lower_bound, rtol=1e-3)
    np.testing.assert_allclose(one.upper_bound, two.upper_bound, rtol=0.02)


@pytest.mark.slow
def test_real_rows(reference_data: Path) -> None:
    layer = lb.load_layers(reference_data / "minilm_layers.safetensors")["encoder.layer.2.attention.output.dense"]
    for how, least in (({"density": 0.5}, 0.62), ({"pattern": "2:4"}, 0.58)):
        found = lb.solve(lb.pruning_problem(layer, **how), "batched", channels=range(16), jobs=1)  # type: ignore[arg-type]
        assert found.lower_bound.sum() >= least * found.upper_bound.sum()


def exact_shares(slope: Float, offset: Float, capacity: int, most: float) -> Float:
    """clip(slope·θ + offset, 0, 1) of sum ``capacity``, by bisection."""

    def at(theta: float) -> Float:
        return np.asarray(np.clip(slope * theta + offset, 0.0, 1.0))

    low, high = -1e6, min(most, 1e6)
    if at(high).sum() <= capacity:
        return at(high)
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if at(middle).sum() > capacity else (middle, high)
    return at(low)


@pytest.mark.parametrize("pattern", ["2:4", "block:3", "unstructured"])
def test_proximal_steps_are_those_of_the_formulas(rng: np.random.Generator, pattern: str) -> None:
    n, rows = 13, 6
    layout = lay_out(parse_pattern(pattern).structure((n,), 7))
    units, unit = len(layout.inputs) - 1, layout.unit
    e, w, original = (rng.normal(size=(rows, n)).astype(np.float32) for _ in range(3))
    d = rng.uniform(0.1, 1.0, size=n).astype(np.float32)
    kappa = rng.uniform(0.5, 3.0, size=units).astype(np.float32)
    p = kappa[unit] * d
    for refit in (True, False):
        y, t = (rng.normal(size=(rows, n)).astype(np.float32) for _ in range(2))
        q = (1.6 * (w + e) - 0.6 * y + t).astype(np.float64)
        share, theta = np.zeros((rows, units), np.float32), np.zeros((rows, len(layout.capacity)), np.float32)
        right = np.zeros((rows, n), np.float32)
        pattern_of = layout.inputs, layout.units, layout.capacity
        state = theta, y, t, share, right, 0, rows
        if refit:
            refit_step(e, w, d, kappa, *pattern_of, *state)
        else:
            mask_step(e, w, d, p, original, *pattern_of, *state)
        for r in range(rows):
            if refit:
                slope, offset, most = np.sqrt(np.bincount(unit, weights=d * q[r] ** 2)), -1.0 / kappa, np.inf
            else:
                curve = np.bincount(unit, weights=p * original[r] ** 2)
                pull = np.bincount(unit, weights=p * original[r] * q[r] - 0.5 * d * original[r] ** 2)
                slope, offset, most = 1.0 / curve, pull / curve, 0.0
            expected = np.concatenate(
                [
                    exact_shares(slope[a:b], offset[a:b], int(c), most)
                    for a, b, c in zip(layout.units[:-1], layout.units[1:], layout.capacity, strict=True)
                ]
            )
            np.testing.assert_allclose(share[r], expected, atol=2e-4)
            scaled = kappa[unit] * expected[unit]
            point = q[r] * scaled / (1.0 + scaled) if refit else original[r] * expected[unit]
            np.testing.assert_allclose(y[r], point, atol=2e-3)
        np.testing.assert_allclose(t, q - y, atol=1e-5)
        np.testing.assert_allclose(right, d * w + p * (y - t - w), atol=1e-4)


def test_layouts_sort_groups_and_units() -> None:
    structure = Structure(np.array([2, 0, 1, 1, 3, 2]), np.array([1, 0, 1, 0]), np.array([1, 9], dtype=np.int64))
    layout = lay_out(structure)
    assert layout.order.tolist() == [2, 3, 4, 1, 0, 5]
    assert layout.inputs.tolist() == [0, 2, 3, 4, 6]
    assert layout.units.tolist() == [0, 2, 4]
    assert layout.capacity.tolist() == [1, 2]
    kept = largest_units(np.array([[1.0, 2.0, 0.5, 0.1]], dtype=np.float32), layout)
    assert kept.tolist() == [[False, True, True, True]]


@pytest.mark.parametrize("floor", [1e-2, 1e-6, 1e-10])
def test_minorants_are_feasible_whatever_single_precision_makes_of_them(rng: np.random.Generator, floor: float) -> None:
    n = 60
    basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
    gram = basis @ np.diag(np.geomspace(floor, 1.0, n)) @ basis.T
    norm = np.sqrt(np.diag(gram))
    gram = gram / np.outer(norm, norm)
    gram = 0.5 * (gram + gram.T)
    ascent = Ascent(CPU.put(gram), gram.copy, CPU)
    assert ascent.usable
    for _ in range(10):
        ascent.step(np.ones(n))
        ascent.mu = 1.0
    ascent.sharpen(lambda d: is_minorant(gram, d), np.ones(n), None)
    assert is_minorant(gram, ascent.d)
    reference = centre(gram)

    def value(d: Float) -> float:
        return float(np.log(d).sum() + np.linalg.slogdet(gram - np.diag(d))[1])

    if floor > 1e-8:
        assert value(ascent.d) > value(reference) - 0.5 * n


def test_refits_and_exchanges(rng: np.random.Generator) -> None:
    n, rows = 40, 5
    gram = correlated(rng, n)
    norm = np.sqrt(np.diag(gram))
    matrix = (gram / np.outer(norm, norm)).astype(np.float32)
    w = rng.normal(size=(rows, n)).astype(np.float32)
    kept = rng.random((rows, n)) < 0.5
    e, h = refit_rows(w, kept, w, lambda x: x @ matrix, lambda: False)
    np.testing.assert_allclose(h, e @ matrix, atol=1e-3)
    wide = matrix.astype(np.float64)
    errors = np.einsum("ri,ij,rj->r", e, wide, e)
    for r in range(rows):
        s = np.flatnonzero(kept[r])
        exact = np.zeros(n)
        exact[s] = np.linalg.solve(wide[np.ix_(s, s)], (wide @ w[r])[s])
        least = float((exact - w[r]) @ wide @ (exact - w[r]))
        assert least * (1 - 1e-4) <= errors[r] <= 1.01 * least
        assert np.all(e[r][~kept[r]] == -w[r][~kept[r]])
    layout = lay_out(Structure(np.arange(n), np.zeros(n, dtype=np.int64), np.array([n // 2])))
    search = SetSearch(matrix, matrix, layout, np.full(n, 0.1), CPU, 0, lambda: False)
    sets, better = search.refitted(w, w**2, w)
    first = refit_rows(w, largest_units(w**2, layout), w, lambda x: x @ matrix, lambda: False)[0]
    before, after = (np.einsum("ri,ij,rj->r", x, wide, x) for x in (first, better))
    assert np.all(sets.sum(axis=1) == n // 2)
    assert np.all(after <= before * (1 + 1e-4)) and after.sum() < 0.95 * before.sum()


def test_doubtful_inputs_meet_within_their_groups() -> None:
    loss, gain = np.array([1.0, 5.0, 0.0, 0.0, 3.0, 0.0]), np.array([0.0, 0.0, 4.0, 2.0, 0.0, 9.0])
    kept = loss > 0
    group = np.array([0, 0, 0, 0, 1, 1])
    assert doubtful(loss, gain, kept, group, 2).tolist() == [4, 5]
    assert doubtful(loss, gain, kept, group, 4).tolist() == [0, 2, 4, 5]
    assert doubtful(loss, gain, kept, group, 9).tolist() == [0, 1, 2, 3, 4, 5]
    assert doubtful(loss, gain, np.ones(6, dtype=bool), group, 9).tolist() == []
