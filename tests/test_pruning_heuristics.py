"""The pruning heuristics: feasible, never below the optimum, right on easy instances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.exceptions import InputError, UnsupportedProblemError
from layerbounds.methods.fistapruner import _fista

NAMES = ["magnitude", "wanda", "obs", "sparsegpt", "thanos", "fistapruner", "sparseswaps", "swap"]
NAMES += ["hard_thresholding", "admm"]
SINGLE_ONLY = {"sparsegpt", "thanos", "fistapruner"}


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:3"])
@pytest.mark.parametrize("name", NAMES)
def test_feasible_and_above_the_lower_bound(
    name: str, pattern: str, refit: bool, rng: np.random.Generator, random_gram: Callable[..., Float]
) -> None:
    gram = random_gram(14)
    gram[3] = gram[:, 3] = 0.0
    layer = lb.Layer(rng.normal(size=(2, 14)), gram)
    count = {} if pattern == "2:4" else {"k": 6}
    problem = lb.pruning_problem(layer, pattern=pattern, refit=refit, **count)
    if pattern.startswith("block") and name in SINGLE_ONLY:
        with pytest.raises(UnsupportedProblemError):
            lb.run_heuristic(name, problem)
        return
    evaluation = lb.evaluate(problem, lb.run_heuristic(name, problem))
    assert np.all(evaluation.feasible)
    assert np.all(evaluation.error >= lb.solve(problem, time_limit=5, jobs=1).lower_bound)


@pytest.mark.parametrize("name", NAMES)
def test_optimal_where_inputs_are_uncorrelated(name: str, rng: np.random.Generator) -> None:
    layer = lb.Layer(rng.normal(size=(3, 12)), np.eye(12))
    problem = lb.pruning_problem(layer, k=5)
    options: dict[str, Any] = {"sparsegpt": {"damp": 0.0}, "thanos": {"damp": 0.0}, "fistapruner": {"refit": True}}.get(
        name, {}
    )
    error = lb.evaluate(problem, lb.run_heuristic(name, problem, **options)).error
    best = np.sort(layer.matrix**2, axis=1)[:, :7].sum(axis=1)
    np.testing.assert_allclose(error, best, rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_singular_gram(name: str, rng: np.random.Generator, random_gram: Callable[..., Float]) -> None:
    layer = lb.Layer(rng.normal(size=(2, 12)), random_gram(12, 5))
    problem = lb.pruning_problem(layer, k=4)
    evaluation = lb.evaluate(problem, lb.run_heuristic(name, problem))
    assert np.all(evaluation.feasible)
    assert np.all(np.isfinite(evaluation.error))


def test_a_method_for_another_kind_of_problem_is_refused(small_layer: lb.Layer) -> None:
    with pytest.raises(UnsupportedProblemError, match="these can: magnitude"):
        lb.run_heuristic("gptq", lb.pruning_problem(small_layer, k=3))
    with pytest.raises(UnsupportedProblemError, match="these can: rtn"):
        lb.run_heuristic("wanda", lb.quantization_problem(small_layer, bits=3))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("admm", {"growth": 1.0}),
        ("hard_thresholding", {"steps": 0}),
        ("swap", {"start": "x"}),
        ("sparsegpt", {"damp": -1}),
        ("thanos", {"damp": -1}),
        ("thanos", {"block_size": 0}),
        ("fistapruner", {"ratio": 1.5}),
        ("fistapruner", {"steps": 0}),
        ("fistapruner", {"start": "x"}),
        ("sparseswaps", {"start": "x"}),
        ("sparseswaps", {"iterations": -1}),
    ],
)
def test_options_are_checked(name: str, options: dict[str, object], small_layer: lb.Layer) -> None:
    with pytest.raises(InputError):
        lb.run_heuristic(name, lb.pruning_problem(small_layer, k=3), **options)


# --- what the papers say ---------------------------------------------------------------------------------------------


@pytest.fixture
def correlated(rng: np.random.Generator, random_gram: Callable[..., Float]) -> lb.Layer:
    """Three channels of sixteen inputs, whose best real weights are not the dense ones."""
    target = rng.normal(size=(3, 16))
    return lb.Layer(target + 0.1 * rng.normal(size=(3, 16)), random_gram(16), target=target, constant=np.zeros(3))


@pytest.mark.parametrize("damp", [0.0, 0.01])
@pytest.mark.parametrize(("pattern", "block_size"), [("unstructured", 5), ("unstructured", 16), ("2:4", 4), ("2:4", 6)])
def test_thanos_removes_all_weights_of_a_block_at_the_least_cost(
    pattern: str, block_size: int, damp: float, correlated: lb.Layer
) -> None:
    count = {} if pattern == "2:4" else {"k": 7}
    problem = lb.pruning_problem(correlated, pattern=pattern, **count)
    weights = lb.run_heuristic("thanos", problem, damp=damp, block_size=block_size)
    gram = correlated.gram[0]
    steered = gram + damp * np.mean(np.diag(gram)) * np.eye(16)
    size = {6: 8}.get(block_size, block_size)
    for c in range(3):
        w, begin, removed = correlated.target[c].copy(), 0, 0
        while begin < 16:
            end = min(begin + size, 16)
            score = np.abs(w) * np.sqrt(np.diag(gram))
            if pattern == "2:4":
                dropped = np.concatenate([g + np.argsort(score[g : g + 4])[:2] for g in range(begin, end, 4)])
            else:
                worst = begin + np.argsort(score[begin:])[: 9 - removed]
                dropped = worst[worst < end]
                removed += len(dropped)
            # Least change of the output of what is left, without the dropped ones: a regression, no inverse of OBS.
            left = np.arange(begin, 16)
            free = np.setdiff1d(left, dropped)
            change = -np.linalg.solve(steered[np.ix_(free, free)], steered[np.ix_(free, dropped)] @ -w[dropped])
            w[free] += change
            w[dropped] = 0.0
            begin = end
        np.testing.assert_allclose(weights[c], w, rtol=1e-8, atol=1e-12)


def test_thanos_with_one_block_is_wanda_with_a_refit(
    random_gram: Callable[..., Float], rng: np.random.Generator
) -> None:
    for pattern, count in (("unstructured", {"k": 6}), ("2:4", {})):
        problem = lb.pruning_problem(lb.Layer(rng.normal(size=(3, 16)), random_gram(16)), pattern=pattern, **count)
        expected = lb.run_heuristic("wanda", problem, refit=True)
        np.testing.assert_allclose(lb.run_heuristic("thanos", problem, damp=0.0), expected, rtol=1e-8, atol=1e-12)


def test_fistapruner_follows_the_convex_model(correlated: lb.Layer) -> None:
    # One λ, many steps: the start of the rounding is the minimum, whose subgradient is in λ times [−1, 1].
    gram = correlated.gram[0]
    for row in correlated.target:
        correlation = gram @ row
        price = 0.05 * float(np.abs(correlation).max())
        length = 1.0 / np.linalg.eigvalsh(gram)[-1]
        v = _fista(gram, correlation, row, price, length, 20_000)
        slope = correlation - gram @ v
        assert np.any(v == 0.0) and np.any(v != 0.0)
        np.testing.assert_allclose(slope[v != 0.0], price * np.sign(v[v != 0.0]), rtol=1e-6)
        assert np.all(np.abs(slope[v == 0.0]) <= price * (1 + 1e-9))


def test_fistapruner_bisects_on_the_price_and_keeps_the_best(correlated: lb.Layer) -> None:
    problem = lb.pruning_problem(correlated, pattern="2:4")
    gram = correlated.gram[0]
    length = 1.0 / np.linalg.eigvalsh(gram)[-1]
    for c, weights in enumerate(lb.run_heuristic("fistapruner", problem, start="dense", rounds=12, steps=9)):
        target = correlated.target[c]

        def root(v: Float, target: Float = target) -> float:
            return float(np.sqrt((v - target) @ gram @ (v - target)))

        def rounded(v: Float) -> Float:
            worst = np.argsort(np.abs(v).reshape(4, 4), axis=1)[:, :2]
            v = v.reshape(4, 4).copy()
            np.put_along_axis(v, worst, 0.0, axis=1)
            return v.ravel()

        best, low, high = rounded(target), 0.0, float(np.abs(gram @ target).max())
        price = 1e-3 * high
        for _ in range(12):
            x, y, t = best.copy(), best.copy(), 1.0
            for _ in range(9):
                before, z = x, y - length * gram @ (y - target)
                x = np.where(
                    z > price * length, z - price * length, np.where(z < -price * length, z + price * length, 0)
                )
                after = (1 + np.sqrt(1 + 4 * t**2)) / 2
                y, t = x + (t - 1) / after * (x - before), after
            candidate = rounded(x)
            if root(candidate) < root(best):
                best = candidate
            if root(candidate) - root(x) > 0.3 * root(candidate):
                low = price
            else:
                high = price
            price = (low + high) / 2
        np.testing.assert_allclose(weights, best, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("start", ["dense", "wanda", "sparsegpt"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_fistapruner_is_never_worse_than_its_start(pattern: str, start: str, correlated: lb.Layer) -> None:
    problem = lb.pruning_problem(correlated, pattern=pattern, **({} if pattern == "2:4" else {"k": 6}))
    before = {"dense": "magnitude", "wanda": "wanda", "sparsegpt": "sparsegpt"}[start]
    options = {"refit": False} if before == "magnitude" else {}
    error = lb.evaluate(problem, lb.run_heuristic("fistapruner", problem, start=start)).error
    if start == "dense":
        # The largest weights of the target, which magnitude pruning of such a layer keeps.
        problem = lb.pruning_problem(
            lb.Layer(correlated.target, correlated.gram), pattern=pattern, **({} if pattern == "2:4" else {"k": 6})
        )
    assert np.all(error <= lb.evaluate(problem, lb.run_heuristic(before, problem, **options)).error * (1 + 1e-9))


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("refit", [True, False])
def test_sparseswaps_are_the_best_exchanges_one_by_one(pattern: str, refit: bool, correlated: lb.Layer) -> None:
    problem = lb.pruning_problem(correlated, pattern=pattern, refit=refit, **({} if pattern == "2:4" else {"k": 6}))
    swapped = 0
    for iterations in (0, 1, 2, 1000):
        weights = lb.run_heuristic("sparseswaps", problem, iterations=iterations)
        for c, w in enumerate(correlated.matrix):
            kept = lb.run_heuristic("wanda", problem, channels=[c])[0] != 0.0
            for _ in range(iterations):
                # All exchanges, by the error of the weights themselves.
                best, least = None, _mask_error(correlated, c, kept)
                for out in np.flatnonzero(kept):
                    for into in np.flatnonzero(~kept):
                        if pattern == "2:4" and out // 4 != into // 4:
                            continue
                        other = kept.copy()
                        other[out], other[into] = False, True
                        if _mask_error(correlated, c, other) < least * (1 - 1e-12):
                            best, least = other, _mask_error(correlated, c, other)
                if best is None:
                    break
                kept, swapped = best, swapped + 1
            np.testing.assert_array_equal(weights[c], np.where(kept, w, 0.0))
    assert swapped > 3


def _mask_error(layer: lb.Layer, channel: int, kept: Float) -> float:
    deviation = np.where(kept, layer.matrix[channel], 0.0) - layer.target[channel]
    return float(deviation @ layer.gram[0] @ deviation)


def test_sparseswaps_lower_the_error_of_wanda_and_keep_as_many(correlated: lb.Layer) -> None:
    problem = lb.pruning_problem(correlated, k=6, refit=False)
    swapped = lb.evaluate(problem, lb.run_heuristic("sparseswaps", problem)).error
    wanda = lb.evaluate(problem, lb.run_heuristic("wanda", problem)).error
    assert np.all(swapped <= wanda) and np.any(swapped < 0.9 * wanda)
    assert np.all(np.count_nonzero(lb.run_heuristic("sparseswaps", problem), axis=1) == 6)
