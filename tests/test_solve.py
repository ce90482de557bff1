"""The native branch and bound against brute force, an independent enumeration, and properties of optima."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

import layerbounds as lb
from layerbounds.arrays import Float, Int
from layerbounds.exceptions import InputError
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, RawSolve
from layerbounds.search.quantization import channel_search as quantization
from layerbounds.search.quantization import preparation
from layerbounds.solvers.native import NativeBackend

#: Set LAYERBOUNDS_FUZZ for a longer run with other examples.
FUZZ = settings(
    max_examples=int(os.environ.get("LAYERBOUNDS_FUZZ", "120")),
    deadline=None,
    derandomize="LAYERBOUNDS_FUZZ" not in os.environ,
)
CLOSED = (lb.Status.OPTIMAL, lb.Status.GAP_REACHED)


def generator(*words: object) -> np.random.Generator:
    """A generator that depends on a test's parameters and nothing else."""
    return np.random.default_rng(crc32(repr(words).encode()))


def gram_of(x: Float) -> Float:
    return np.asarray(x.T @ x / len(x))


def exact_error(gram: Float, target: Float, weights: Float) -> Fraction:
    """(v − w)ᵀH(v − w) as a rational number."""
    deviation = [Fraction(float(v)) - Fraction(float(w)) for v, w in zip(weights, target, strict=True)]
    rows = range(len(deviation))
    return sum((Fraction(float(gram[i, j])) * deviation[i] * deviation[j] for i in rows for j in rows), Fraction(0))


def brute_force(gram: Float, target: Float, levels: Float) -> Fraction:
    """Smallest error over all assignments: extended precision first, the best ones exactly."""
    n, count = levels.shape
    choices = np.indices([count] * n).reshape(n, -1)
    points = levels[np.arange(n)[:, None], choices].T
    deviation = points.astype(np.longdouble) - target.astype(np.longdouble)
    errors = np.einsum("ki,ki->k", deviation @ gram.astype(np.longdouble), deviation)
    return min(exact_error(gram, target, points[k]) for k in np.argsort(errors, kind="stable")[:12])


def rounding_size(problem: lb.QuantizationProblem, c: int) -> float:
    """Optima below this are too small for a closed interval to be expected."""
    layer = problem.layer
    farthest = np.abs(problem.grid.levels(c) - layer.target[c][:, None]).max(axis=1)
    magnitude = farthest @ np.abs(layer.channel_gram(c)) @ farthest
    return float(max(1e-6 * layer.energy()[c], 1e-10 * magnitude))


def check_by_brute_force(problem: lb.QuantizationProblem, **options: object) -> lb.Solution:
    """Every channel's interval must hold the optimum, and be closed where the optimum is not of rounding size."""
    solution = lb.solve(problem, jobs=1, **options)  # type: ignore[arg-type]
    layer = problem.layer
    judged = lb.evaluate(problem, solution.weights)
    assert judged.feasible.all()
    for c in range(layer.out_features):
        constant = Fraction(float(layer.constant[c]))
        optimum = brute_force(layer.channel_gram(c), layer.target[c], problem.grid.levels(c)) + constant
        lower, upper = float(solution.lower_bound[c]), float(solution.upper_bound[c])
        # A stored singular Gram may have eigenvalues of rounding size below zero, and errors too.
        assert Fraction(lower) <= max(optimum, constant)
        assert Fraction(upper) >= optimum
        assert lower <= upper
        if optimum > Fraction(rounding_size(problem, c)):
            assert upper == pytest.approx(float(optimum), rel=1e-9)
            assert judged.error[c] == pytest.approx(float(optimum), rel=1e-9)
            assert solution.status[c] in CLOSED
            if not options.get("gap"):
                assert solution.status[c] == lb.Status.OPTIMAL
                assert lower == pytest.approx(float(optimum), rel=1.1e-6)
    return solution


# --- brute force -----------------------------------------------------------------------------------------------------


def _spectrum(rng: np.random.Generator, n: int, condition: float) -> Float:
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
    return gram_of((left * np.logspace(0, -0.5 * np.log10(condition), n)) @ right)


def _dead(rng: np.random.Generator, n: int) -> Float:
    x = rng.normal(size=(20, n))
    x[:, ::2] = 0.0
    return gram_of(x)


def _duplicated(rng: np.random.Generator, n: int) -> Float:
    x = rng.normal(size=(20, n))
    x[:, -1] = x[:, 0]
    return gram_of(x)


GRAMS: dict[str, Callable[[np.random.Generator, int], Float]] = {
    "random": lambda rng, n: gram_of(rng.normal(size=(3 * n, n))),
    "nonnegative inputs": lambda rng, n: gram_of(np.maximum(rng.normal(1.0, 1.0, size=(40, n)), 0.0)),
    "orthogonal": lambda rng, n: np.diag(rng.uniform(0.1, 3.0, n)),
    "fewer samples than inputs": lambda rng, n: gram_of(rng.normal(size=(max(n // 2, 1), n))),
    "rank one": lambda rng, n: gram_of(rng.normal(size=(1, n))),
    "dead inputs": _dead,
    "duplicated inputs": _duplicated,
    "integers": lambda rng, n: gram_of(rng.integers(-2, 3, size=(n, n)).astype(np.float64)) + np.eye(n),
    "condition 1e12": lambda rng, n: _spectrum(rng, n, 1e12),
    "inputs of very different size": lambda rng, n: gram_of(rng.normal(size=(30, n)) * np.logspace(-3, 3, n)),
}

#: Name → number of inputs, and the grid of a weight.
GRIDS: dict[str, tuple[int, Callable[[Float], lb.Grid]]] = {
    "1 bit": (6, lambda w: lb.uniform_grid(w, 1)),
    "2 bits": (6, lambda w: lb.uniform_grid(w, 2)),
    "3 bits": (5, lambda w: lb.uniform_grid(w, 3)),
    "2 bits asymmetric": (6, lambda w: lb.uniform_grid(w, 2, symmetric=False)),
    "3 bits asymmetric": (5, lambda w: lb.uniform_grid(w + 0.5, 3, symmetric=False)),
    "3 bits minmax": (5, lambda w: lb.uniform_grid(w, 3, range="minmax")),
    "2 bits per tensor": (5, lambda w: lb.uniform_grid(w, 2, granularity="tensor")),
    "2 bits in groups of 4": (6, lambda w: lb.uniform_grid(w * np.logspace(-2, 2, 6), 2, granularity=4)),
    "3 bits in groups of 2": (5, lambda w: lb.uniform_grid(w, 3, granularity=2)),
    "2 bits asymmetric in groups of 2": (5, lambda w: lb.uniform_grid(w, 2, symmetric=False, granularity=2)),
    "binary in groups of 3": (5, lambda w: lb.codebook_grid(w, "binary", granularity=3)),
    "ternary": (6, lambda w: lb.codebook_grid(w, "ternary")),
    "nf4": (3, lambda w: lb.codebook_grid(w, "nf4")),
    "fp4 in groups of 2": (3, lambda w: lb.codebook_grid(w, "fp4", granularity=2)),
    "irregular codebook": (5, lambda w: lb.codebook_grid(w, [-1.0, -0.15, 0.1, 0.13, 2.0])),
    "one level": (4, lambda w: lb.codebook_grid(w, [0.5])),
    "box active everywhere": (5, lambda w: explicit_grid(0.02 * np.abs(w).max(axis=1), 3, w.shape[1])),
    "box active nearly everywhere": (5, lambda w: explicit_grid(0.3 * np.abs(w).max(axis=1), 2, w.shape[1])),
    "far away": (5, lambda w: explicit_grid(1e-7 * np.abs(w).max(axis=1), 2, w.shape[1])),
    "coarse": (5, lambda w: explicit_grid(7.0 * np.abs(w).max(axis=1), 2, w.shape[1])),
}


def explicit_grid(scale: Float, bits: int, n: int, codes: Float | None = None) -> lb.Grid:
    """Symmetric levels with given scales, or any codes with them."""
    levels = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).astype(np.float64) if codes is None else codes
    step = np.asarray(scale, dtype=np.float64).reshape(-1, 1)
    uniform = bool(np.all(np.diff(levels) == 1.0))
    return lb.Grid(levels, step, np.zeros_like(step), n, n, uniform, "given scale")


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("gram", GRAMS)
def test_interval_holds_the_brute_force_optimum(gram: str, grid: str) -> None:
    n, make_grid = GRIDS[grid]
    rng = generator(gram, grid)
    weight = rng.normal(size=(2, n))
    layer = lb.Layer(weight, GRAMS[gram](rng, n))
    check_by_brute_force(lb.quantization_problem(layer, grid=make_grid(weight)))


@pytest.mark.parametrize("w_scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("h_scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("gram", ["random", "fewer samples than inputs", "condition 1e12"])
def test_brute_force_in_any_units(gram: str, h_scale: float, w_scale: float) -> None:
    rng = generator(gram)
    weight = rng.normal(size=(2, 5)) * w_scale
    layer = lb.Layer(weight, GRAMS[gram](rng, 5) * h_scale)
    for grid in (lb.uniform_grid(weight, 3), lb.uniform_grid(weight, 2, granularity=2)):
        check_by_brute_force(lb.quantization_problem(layer, grid=grid))
    check_by_brute_force(lb.quantization_problem(layer, grid=lb.codebook_grid(weight, "ternary")))


@pytest.mark.parametrize("difference", [1e-5, 1e-6, 1e-7, 1e-8, 1e-10, 1e-14])
def test_nearly_duplicated_inputs(difference: float) -> None:
    # Conditions from 1e10 to beyond the reach of float64; the optima are of the size of the energy.
    rng = generator("near", difference)
    for _ in range(10):
        x = rng.normal(size=(12, 4))
        x[:, -1] = x[:, 0] + difference * rng.normal(size=12)
        weight = rng.normal(size=(2, 4))
        check_by_brute_force(lb.quantization_problem(lb.Layer(weight, gram_of(x)), bits=2))


def test_scales_of_the_groups_may_differ_by_many_orders() -> None:
    rng = generator("scales")
    sizes = np.array([1e-6, 1e-6, 1.0, 1.0, 1e6])
    weight = rng.normal(size=(2, 5)) * sizes
    for gram in (gram_of(rng.normal(size=(20, 5))), gram_of(rng.normal(size=(20, 5)) / sizes)):
        problem = lb.quantization_problem(lb.Layer(weight, gram), bits=3, granularity=2)
        check_by_brute_force(problem)


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_one_variable(bits: int) -> None:
    layer = lb.Layer([[0.7], [-1e-3], [0.0]], [[2.5]])
    check_by_brute_force(lb.quantization_problem(layer, bits=bits))
    check_by_brute_force(lb.quantization_problem(layer, bits=max(bits, 2), scale=[0.4, 0.4, 0.4]))


@pytest.mark.parametrize("grid", ["1 bit", "2 bits", "3 bits asymmetric", "nf4", "box active everywhere"])
def test_zero_weights(grid: str) -> None:
    n, make_grid = GRIDS[grid]
    rng = generator(grid)
    shape = np.zeros((2, n)) if grid != "box active everywhere" else np.ones((2, n))
    layer = lb.Layer(np.zeros((2, n)), gram_of(rng.normal(size=(10, n))))
    solution = check_by_brute_force(lb.quantization_problem(layer, grid=make_grid(shape)))
    if grid != "1 bit" and grid != "3 bits asymmetric":
        assert solution.upper_bound.tolist() == [0.0, 0.0]
    assert np.isnan(solution.relative_upper_bound).all()


def test_all_inputs_dead() -> None:
    rng = generator("dead")
    weight = rng.normal(size=(2, 4))
    layer = lb.Layer(weight, np.zeros((4, 4)), constant=[0.0, 0.25])
    problem = lb.quantization_problem(layer, bits=2)
    solution = lb.solve(problem, jobs=1)
    assert solution.lower_bound.tolist() == [0.0, 0.25]
    assert solution.upper_bound.tolist() == [0.0, 0.25]
    assert solution.status == [lb.Status.OPTIMAL] * 2
    np.testing.assert_array_equal(solution.weights, problem.grid.nearest(weight))


def test_dead_inputs_take_the_nearest_level() -> None:
    rng = generator("dead inputs")
    weight = rng.normal(size=(3, 6))
    layer = lb.Layer(weight, _dead(rng, 6), target=np.where(np.arange(6) % 2, weight, 9.0))
    problem = lb.quantization_problem(layer, bits=2)
    solution = check_by_brute_force(problem)
    np.testing.assert_array_equal(solution.weights[:, ::2], problem.grid.nearest(weight)[:, ::2])


@pytest.mark.parametrize("rank", [5, 2])
def test_other_inputs_of_the_compressed_layer(rank: int) -> None:
    rng = generator("compressed", rank)
    x = rng.normal(size=(40, rank)) @ rng.normal(size=(rank, 5))
    compressed = np.round(2.0 * x) / 2.0
    weight = rng.normal(size=(2, 5))
    layer = lb.Layer.from_activations(weight, x, compressed_inputs=compressed)
    assert np.all(layer.constant > 0) and not np.allclose(layer.target, weight)
    solution = check_by_brute_force(lb.quantization_problem(layer, bits=3))
    measured = np.mean((compressed @ solution.weights.T - x @ weight.T) ** 2, axis=0)
    np.testing.assert_allclose(solution.upper_bound, measured, rtol=1e-9)
    assert np.all(solution.lower_bound >= layer.constant)


def test_target_and_constant_as_given() -> None:
    rng = generator("target")
    target = rng.normal(size=(2, 5))
    layer = lb.Layer(np.ones((2, 5)), gram_of(rng.normal(size=(9, 5))), target=target, constant=[1e-3, 10.0])
    check_by_brute_force(lb.quantization_problem(layer, grid=lb.uniform_grid(target, 3)))


def test_convolution_weights_keep_their_shape() -> None:
    rng = generator("convolution")
    weight = rng.normal(size=(2, 1, 2, 3)).astype(np.float32)
    layer = lb.Layer(weight, gram_of(rng.normal(size=(20, 6))))
    solution = check_by_brute_force(lb.quantization_problem(layer, bits=2))
    assert solution.weights.shape == weight.shape


@st.composite
def small_problems(draw: st.DrawFn) -> lb.QuantizationProblem:
    """Integer inputs (with many ties, duplicates and dead inputs) or real ones, targets on and off the grid."""
    n = draw(st.integers(1, 4))
    rows = draw(st.integers(1, 6))
    x = np.array(draw(st.lists(st.lists(st.integers(-2, 2), min_size=n, max_size=n), min_size=rows, max_size=rows)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        x = x + draw(st.sampled_from([1e-7, 1e-3, 1.0])) * rng.normal(size=x.shape)
    x = x.astype(np.float64) * draw(st.sampled_from([1e-6, 1.0, 1e6]))
    unit = draw(st.sampled_from([1e-6, 1.0, 1e6]))
    weight = np.array(draw(st.lists(st.integers(-24, 24), min_size=n, max_size=n)))[None] * (unit / 8)
    if draw(st.booleans()):
        weight = weight + unit * rng.normal(size=weight.shape)
    layer = lb.Layer(weight, gram_of(x), constant=[draw(st.sampled_from([0.0, 0.5]))])
    kind = draw(st.sampled_from(["uniform", "asymmetric", "scale", "binary", "ternary", "levels"]))
    granularity = draw(st.sampled_from(["channel", 1, 2, 3]))
    if kind == "scale":
        return lb.quantization_problem(layer, bits=draw(st.sampled_from([2, 3])), scale=[unit / 2])
    if kind == "levels":
        codes = draw(st.lists(st.integers(-8, 8), min_size=1, max_size=6, unique=True))
        return lb.quantization_problem(layer, grid=lb.codebook_grid(weight, codes, granularity=granularity))
    if kind in ("binary", "ternary"):
        return lb.quantization_problem(layer, grid=lb.codebook_grid(weight, kind, granularity=granularity))
    bits = draw(st.integers(1, 3))
    return lb.quantization_problem(layer, bits=bits, symmetric=kind == "uniform", granularity=granularity)


@FUZZ
@given(small_problems())
def test_fuzzed_intervals_hold_the_brute_force_optimum(problem: lb.QuantizationProblem) -> None:
    check_by_brute_force(problem)


# --- an independent enumeration --------------------------------------------------------------------------------------


@njit
def _schnorr_euchner(r: Float, target: Float, levels: Float) -> float:
    """Smallest ‖R(v − w)‖² over the levels, R upper triangular: depth first, levels by their distance, no bounds."""
    n, count = levels.shape
    best = np.inf
    order = np.zeros((n, count), np.int64)
    place = np.zeros(n, np.int64)
    centre = np.zeros(n)
    deviation = np.zeros(n)
    cost = np.zeros(n + 1)
    k = n - 1
    centre[k] = target[k]
    order[k] = np.argsort(np.abs(levels[k] - centre[k]))
    while k < n:
        if place[k] == count:
            place[k] = 0
            k += 1
            continue
        v = levels[k, order[k, place[k]]]
        place[k] += 1
        total = cost[k + 1] + (r[k, k] * (v - centre[k])) ** 2
        if total >= best:
            # The other levels are farther away.
            place[k] = count
            continue
        if k == 0:
            best = total
            continue
        deviation[k] = v - target[k]
        cost[k] = total
        k -= 1
        shift = 0.0
        for j in range(k + 1, n):
            shift += r[k, j] * deviation[j]
        centre[k] = target[k] - shift / r[k, k]
        order[k] = np.argsort(np.abs(levels[k] - centre[k]))
    return best


def enumerated(problem: lb.QuantizationProblem, channel: int) -> float:
    layer = problem.layer
    r = np.ascontiguousarray(np.linalg.cholesky(layer.channel_gram(channel)).T)
    value = _schnorr_euchner(r, layer.target[channel], np.ascontiguousarray(problem.grid.levels(channel)))
    return float(value + layer.constant[channel])


MEDIUM: dict[str, tuple[int, Callable[[Float], lb.Grid]]] = {
    "1 bit": (16, lambda w: lb.uniform_grid(w, 1)),
    "2 bits": (14, lambda w: lb.uniform_grid(w, 2)),
    "3 bits": (18, lambda w: lb.uniform_grid(w, 3)),
    "4 bits": (18, lambda w: lb.uniform_grid(w, 4)),
    "4 bits minmax": (16, lambda w: lb.uniform_grid(w, 4, range="minmax")),
    "3 bits asymmetric": (16, lambda w: lb.uniform_grid(w, 3, symmetric=False)),
    "3 bits in groups of 5": (17, lambda w: lb.uniform_grid(w, 3, granularity=5)),
    "2 bits asymmetric in groups of 4": (14, lambda w: lb.uniform_grid(w, 2, symmetric=False, granularity=4)),
    "ternary": (14, lambda w: lb.codebook_grid(w, "ternary")),
    "nf4": (16, lambda w: lb.codebook_grid(w, "nf4")),
    "fp4 in groups of 6": (16, lambda w: lb.codebook_grid(w, "fp4", granularity=6)),
    "box active everywhere": (9, lambda w: explicit_grid(0.1 * np.abs(w).max(axis=1), 3, w.shape[1])),
}


@pytest.mark.slow
@pytest.mark.parametrize("gram", ["random", "nonnegative inputs", "condition 1e12"])
@pytest.mark.parametrize("grid", MEDIUM)
def test_medium_problems_agree_with_a_plain_enumeration(grid: str, gram: str) -> None:
    n, make_grid = MEDIUM[grid]
    rng = generator(gram, grid)
    weight = rng.normal(size=(2, n))
    h = _spectrum(rng, n, 1e5) if gram == "condition 1e12" else GRAMS[gram](rng, n)
    problem = lb.quantization_problem(lb.Layer(weight, h), grid=make_grid(weight))
    solution = lb.solve(problem, jobs=1)
    optimum = np.array([enumerated(problem, c) for c in range(2)])
    np.testing.assert_allclose(solution.upper_bound, optimum, rtol=1e-9)
    np.testing.assert_allclose(solution.lower_bound, optimum, rtol=1.1e-6)
    assert np.all(solution.lower_bound <= optimum * (1 + 1e-12))
    assert solution.status == [lb.Status.OPTIMAL] * 2


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("conv1", "conv3")), "fc"])
def test_leading_inputs_of_the_demo_agree_with_a_plain_enumeration(name: str) -> None:
    layer = lb.demo_layers()[name]
    live = np.flatnonzero(layer.live())[:16]
    part = lb.Layer(layer.matrix[:3][:, live], layer.gram[0][np.ix_(live, live)] + 1e-9 * np.eye(len(live)))
    for bits in (2, 3, 4):
        problem = lb.quantization_problem(part, bits=bits)
        solution = lb.solve(problem, jobs=1)
        np.testing.assert_allclose(solution.upper_bound, [enumerated(problem, c) for c in range(3)], rtol=1e-8)
        assert solution.status == [lb.Status.OPTIMAL] * 3


# --- properties of optima --------------------------------------------------------------------------------------------


def optima(problem: lb.QuantizationProblem, **options: object) -> Float:
    """Errors of proven optima."""
    solution = lb.solve(problem, jobs=1, **options)  # type: ignore[arg-type]
    assert solution.status == [lb.Status.OPTIMAL] * len(solution.channels)
    return solution.upper_bound


@pytest.fixture
def layer() -> lb.Layer:
    """Three channels of twelve correlated inputs."""
    rng = generator("layer")
    x = np.maximum(rng.normal(size=(60, 12)) @ rng.normal(size=(12, 12)), 0.0)
    return lb.Layer(rng.normal(size=(3, 12)), gram_of(x))


def grids_of(layer: lb.Layer) -> list[lb.Grid]:
    return [
        lb.uniform_grid(layer.weight, 3),
        lb.uniform_grid(layer.weight, 2, symmetric=False),
        lb.codebook_grid(layer.weight, "nf4"),
    ]


def test_the_order_of_the_inputs_does_not_matter(layer: lb.Layer) -> None:
    order = generator("order").permutation(12)
    permuted = lb.Layer(layer.matrix[:, order], layer.gram[0][np.ix_(order, order)])
    for grid in grids_of(layer):
        first = optima(lb.quantization_problem(layer, grid=grid))
        np.testing.assert_allclose(optima(lb.quantization_problem(permuted, grid=grid)), first, rtol=1e-9)


@pytest.mark.parametrize(("h_scale", "w_scale"), [(3.7e9, 1.0), (1.0, 1.3e-5), (2.0**-30, 2.0**20)])
def test_errors_scale_with_the_gram_and_the_square_of_the_weights(
    layer: lb.Layer, h_scale: float, w_scale: float
) -> None:
    scaled = lb.Layer(layer.matrix * w_scale, layer.gram * h_scale)
    for first, second in zip(grids_of(layer), grids_of(scaled), strict=True):
        expected = optima(lb.quantization_problem(layer, grid=first)) * h_scale * w_scale**2
        np.testing.assert_allclose(optima(lb.quantization_problem(scaled, grid=second)), expected, rtol=1e-9)


def test_signs_of_inputs_do_not_matter_on_a_grid_with_as_many_levels_on_both_sides(layer: lb.Layer) -> None:
    sign = np.where(np.arange(12) % 3, 1.0, -1.0)
    mirrored = lb.Layer(layer.matrix * sign, layer.gram[0] * np.outer(sign, sign))
    for name in ("ternary", "fp4"):
        first, second = (lb.quantization_problem(x, grid=lb.codebook_grid(x.weight, name)) for x in (layer, mirrored))
        np.testing.assert_allclose(optima(second), optima(first), rtol=1e-9)


def test_a_dead_input_changes_nothing(layer: lb.Layer) -> None:
    gram = np.zeros((13, 13))
    live = np.arange(13) != 5
    gram[np.ix_(live, live)] = layer.gram[0]
    matrix = np.zeros((3, 13))
    matrix[:, live] = layer.matrix
    matrix[:, 5] = 0.1
    for grid in grids_of(layer):
        wide = lb.Grid(grid.codes, grid.scale, grid.zero_point, 13, 13, grid.uniform, grid.label)
        problem = lb.quantization_problem(lb.Layer(matrix, gram), grid=wide)
        np.testing.assert_allclose(optima(problem), optima(lb.quantization_problem(layer, grid=grid)), rtol=1e-9)


def test_a_duplicated_input_never_raises_the_error(layer: lb.Layer) -> None:
    # The weight of an input may be shared by its two copies: with levels v and 0 the old optimum is still allowed.
    index = np.r_[np.arange(12), 0]
    matrix = layer.matrix[:, index]
    matrix[:, -1] = 0.0
    twice = lb.Layer(matrix, layer.gram[0][np.ix_(index, index)])
    grid = lb.uniform_grid(layer.weight, 2)
    first = optima(lb.quantization_problem(layer, grid=grid))
    wide = lb.Grid(grid.codes, grid.scale, grid.zero_point, 13, 13, True, grid.label)
    assert np.all(optima(lb.quantization_problem(twice, grid=wide)) <= first * (1 + 1e-9))


def test_more_levels_never_raise_and_fewer_never_lower_the_error(layer: lb.Layer) -> None:
    scale = 0.3 * np.abs(layer.matrix).max(axis=1)
    errors = [optima(lb.quantization_problem(layer, bits=bits, scale=scale)) for bits in (2, 3, 4)]
    for few, many in pairwise(errors):
        assert np.all(many <= few * (1 + 1e-9))
    codes = np.arange(-4.0, 4.0)
    full = errors[1]
    for kept in (codes[1:], codes[:-1], codes[2:6], codes[::2], np.delete(codes, 4)):
        tight = optima(lb.quantization_problem(layer, grid=explicit_grid(scale, 3, 12, kept)))
        assert np.all(tight >= full * (1 - 1e-9))
    refined = optima(lb.quantization_problem(layer, grid=explicit_grid(scale, 3, 12, np.arange(-4.0, 3.25, 0.25))))
    assert np.all(refined <= full * (1 + 1e-9))
    assert np.any(refined < 0.9 * full)


def test_a_uniform_grid_is_a_codebook(layer: lb.Layer) -> None:
    scale = 0.25 * np.abs(layer.matrix).max(axis=1)
    for bits in (2, 3):
        uniform = explicit_grid(scale, bits, 12)
        table = lb.Grid(uniform.codes, uniform.scale, uniform.zero_point, 12, 12, False, "table")
        first, second = (lb.quantization_problem(layer, grid=g) for g in (uniform, table))
        np.testing.assert_allclose(optima(second), optima(first), rtol=1e-9)


def test_groups_of_a_convolution_are_separate_layers() -> None:
    rng = generator("groups")
    grams = np.stack([gram_of(rng.normal(size=(20, 8))) for _ in range(2)])
    weight = rng.normal(size=(4, 8))
    together = optima(lb.quantization_problem(lb.Layer(weight, grams), bits=3))
    apart = [optima(lb.quantization_problem(lb.Layer(weight[2 * g : 2 * g + 2], grams[g]), bits=3)) for g in range(2)]
    np.testing.assert_array_equal(together, np.concatenate(apart))


def test_a_block_diagonal_gram_separates() -> None:
    rng = generator("blocks")
    grams = [gram_of(rng.normal(size=(20, 7))) for _ in range(2)]
    weight = rng.normal(size=(2, 14))
    gram = np.zeros((14, 14))
    gram[:7, :7], gram[7:, 7:] = grams
    whole = optima(lb.quantization_problem(lb.Layer(weight, gram), bits=3, granularity=7))
    parts = [optima(lb.quantization_problem(lb.Layer(weight[:, 7 * b : 7 * b + 7], grams[b]), bits=3)) for b in (0, 1)]
    np.testing.assert_allclose(whole, np.sum(parts, axis=0), rtol=1e-9)


def test_channels_do_not_influence_each_other(layer: lb.Layer) -> None:
    problem = lb.quantization_problem(layer, bits=3)
    everything = lb.solve(problem, jobs=1)
    picked = lb.solve(problem, channels=[2, 0], jobs=1)
    assert picked.channels == [2, 0]
    # Nodes are not compared: loops over arrays of few bytes may add in another order where the arrays lie side by side.
    for name in ("lower_bound", "upper_bound", "weights", "energy"):
        np.testing.assert_array_equal(getattr(picked, name), getattr(everything, name)[[2, 0]])


# --- limits, gaps, determinism ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hard() -> lb.QuantizationProblem:
    """Two channels of a layer of the demo network that a few nodes do not close."""
    layer = lb.demo_layers()["conv2"]
    return lb.quantization_problem(lb.Layer(layer.matrix[:2], layer.gram[0], "hard"), bits=3)


def same(first: lb.Solution, second: lb.Solution) -> None:
    for name in ("lower_bound", "upper_bound", "weights", "nodes"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.status == second.status
    assert first.bound_kind == second.bound_kind


@pytest.mark.slow
def test_same_seed_jobs_and_node_limit_give_the_same_result(hard: lb.QuantizationProblem) -> None:
    results = []
    for _ in range(2):
        preparation._cache.clear()
        results.append(lb.solve(hard, jobs=1, node_limit=60_000, time_limit=60.0, seed=3))
    same(*results)
    traces = [[[(p.nodes, p.lower, p.upper) for p in trace] for trace in r.trace] for r in results]
    assert traces[0] == traces[1]


@pytest.mark.slow
def test_the_number_of_jobs_does_not_matter(hard: lb.QuantizationProblem) -> None:
    results = []
    for jobs in (1, 2):
        preparation._cache.clear()
        results.append(lb.solve(hard, jobs=jobs, node_limit=60_000, time_limit=60.0))
    same(*results)


@pytest.mark.slow
@pytest.mark.parametrize("node_limit", [1, 10, 1_000, 40_000])
def test_few_nodes_still_give_an_interval(hard: lb.QuantizationProblem, node_limit: int) -> None:
    solution = lb.solve(hard, jobs=1, node_limit=node_limit, time_limit=60.0)
    better = lb.solve(hard, jobs=1, node_limit=400_000, time_limit=60.0)
    assert np.all(solution.nodes <= node_limit)
    assert solution.status == [lb.Status.NODE_LIMIT] * 2
    assert np.all(solution.lower_bound > 0)
    assert np.all(solution.lower_bound <= better.upper_bound)
    assert np.all(better.lower_bound <= solution.upper_bound)
    assert lb.evaluate(hard, solution.weights).feasible.all()


def test_the_node_limit_holds_to_the_end_of_a_search() -> None:
    # Ill-conditioned: after the proof the best points are collected, which costs nodes as well.
    for seed in range(3):
        rng = np.random.default_rng(seed)
        layer = lb.Layer(rng.normal(size=(1, 8)), _spectrum(rng, 8, 1e11))
        problem = lb.quantization_problem(layer, bits=3)
        limit = int(lb.solve(problem, jobs=1).nodes[0]) - 1
        assert lb.solve(problem, jobs=1, node_limit=limit).nodes[0] <= limit


@pytest.mark.parametrize("gram", ["random", "fewer samples than inputs", "dead inputs", "condition 1e12"])
def test_no_time_still_gives_an_interval(gram: str) -> None:
    rng = generator(gram, "no time")
    weight = rng.normal(size=(2, 5))
    problem = lb.quantization_problem(lb.Layer(weight, GRAMS[gram](rng, 5)), bits=3)
    solution = lb.solve(problem, jobs=1, time_limit=0.0)
    for c in range(2):
        optimum = brute_force(problem.layer.gram[0], weight[c], problem.grid.levels(c))
        assert Fraction(float(solution.lower_bound[c])) <= max(optimum, Fraction(0))
        assert optimum <= Fraction(float(solution.upper_bound[c]))
        assert solution.status[c] in (lb.Status.TIME_LIMIT, lb.Status.OPTIMAL)
    assert np.all(solution.nodes == 0)


def test_certification_is_part_of_the_time_limit(hard: lb.QuantizationProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []
    search = NativeBackend.solve

    def watched(self: NativeBackend, task: Task, control: Control) -> RawSolve:
        limits.append(control.time_limit)
        return search(self, task, control)

    monkeypatch.setattr(NativeBackend, "solve", watched)
    lb.solve(hard, jobs=1, time_limit=0.5)
    assert len(limits) == 2
    assert all(0.35 <= limit < 0.5 for limit in limits)


def test_a_root_that_cannot_be_relaxed_in_time(hard: lb.QuantizationProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "RELAX_CUBIC", 1e9)
    solution = lb.solve(hard, jobs=1, time_limit=0.5)
    better = lb.solve(hard, jobs=1, node_limit=400_000, time_limit=60.0)
    assert np.all((solution.lower_bound > 0) & (solution.lower_bound <= better.upper_bound))
    assert np.all(better.lower_bound <= solution.upper_bound)


def test_no_time_on_a_large_problem(hard: lb.QuantizationProblem) -> None:
    solution = lb.solve(hard, jobs=1, time_limit=0.0)
    assert solution.status == [lb.Status.TIME_LIMIT] * 2
    assert np.all((solution.lower_bound > 0) & (solution.lower_bound < solution.upper_bound))


@pytest.mark.parametrize("gap", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("gram", ["random", "nonnegative inputs", "duplicated inputs", "condition 1e12"])
def test_a_gap_is_reached_or_the_optimum_proven(gram: str, gap: float) -> None:
    rng = generator(gram, "gap")
    weight = rng.normal(size=(4, 12))
    problem = lb.quantization_problem(lb.Layer(weight, GRAMS[gram](rng, 12)), bits=3)
    solution = lb.solve(problem, jobs=1, gap=gap)
    exact = lb.solve(problem, jobs=1)
    assert set(solution.status) <= set(CLOSED), solution.status
    assert np.all(solution.gap <= gap)
    assert np.all(solution.lower_bound <= exact.upper_bound)
    assert np.all(exact.lower_bound <= solution.upper_bound)


@pytest.mark.parametrize("grid", ["3 bits", "2 bits in groups of 4", "ternary", "box active nearly everywhere"])
@pytest.mark.parametrize("gram", ["random", "fewer samples than inputs", "duplicated inputs", "integers"])
def test_brute_force_with_a_gap(gram: str, grid: str) -> None:
    n, make_grid = GRIDS[grid]
    rng = generator(gram, grid, "gap")
    weight = rng.normal(size=(3, n))
    problem = lb.quantization_problem(lb.Layer(weight, GRAMS[gram](rng, n)), grid=make_grid(weight))
    solution = lb.solve(problem, jobs=1, gap=0.2)
    for c in range(3):
        optimum = brute_force(problem.layer.gram[0], weight[c], problem.grid.levels(c))
        lower, upper = float(solution.lower_bound[c]), float(solution.upper_bound[c])
        assert Fraction(lower) <= max(optimum, Fraction(0))
        assert optimum <= Fraction(upper)
        if optimum > Fraction(rounding_size(problem, c)):
            assert solution.status[c] in CLOSED
            assert lower >= 0.8 * upper * (1 - 1e-12)


@pytest.mark.slow
def test_a_warm_start_never_hurts(hard: lb.QuantizationProblem) -> None:
    limits = {"jobs": 1, "node_limit": 20_000, "time_limit": 60.0}
    cold = lb.solve(hard, **limits)
    good = lb.solve(hard, jobs=1, node_limit=2_000_000, time_limit=60.0)
    assert np.all(lb.solve(hard, warm_start=good.weights, **limits).upper_bound <= good.upper_bound)
    worst = np.stack([hard.grid.levels(c)[:, 0] for c in range(2)])
    assert np.all(lb.solve(hard, warm_start=worst, **limits).upper_bound <= cold.upper_bound)
    single = lb.solve(hard, channels=[1], warm_start=good.weights, **limits)
    assert single.upper_bound[0] <= good.upper_bound[1]


def test_a_warm_start_off_the_grid_is_rounded(layer: lb.Layer) -> None:
    problem = lb.quantization_problem(layer, bits=3)
    np.testing.assert_allclose(optima(problem, warm_start=layer.weight * 1.7), optima(problem), rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"time_limit": -1.0}, "time_limit"),
        ({"time_limit": np.nan}, "time_limit"),
        ({"gap": 1.0}, "gap"),
        ({"gap": -0.1}, "gap"),
        ({"jobs": 0}, "jobs"),
        ({"node_limit": 0}, "node_limit"),
        ({"channels": [3]}, "channels"),
        ({"channels": []}, "channels"),
        ({"channels": [1, 1]}, "channels"),
        ({"warm_start": np.ones((2, 12))}, "warm_start has shape"),
        ({"warm_start": np.full((3, 12), np.nan)}, "warm_start holds 36 NaN"),
        ({"backend": "nativ"}, "did you mean native"),
    ],
)
def test_wrong_options_are_refused(layer: lb.Layer, options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        lb.solve(lb.quantization_problem(layer, bits=2), **options)  # type: ignore[arg-type]


def test_progress_is_reported(layer: lb.Layer) -> None:
    seen: list[tuple[int, int, int, float]] = []
    problem = lb.quantization_problem(layer, bits=2)
    solution = lb.solve(problem, jobs=2, progress=lambda done, of, c, result: seen.append((done, of, c, result.upper)))
    assert [s[0] for s in seen] == [1, 2, 3]
    assert {s[1] for s in seen} == {3}
    assert dict((s[2], s[3]) for s in seen) == dict(enumerate(solution.upper_bound))


def test_trace_narrows(layer: lb.Layer, hard: lb.QuantizationProblem) -> None:
    closed = lb.solve(lb.quantization_problem(layer, bits=3), jobs=1)
    for solution in (closed, lb.solve(hard, jobs=1, node_limit=400_000, time_limit=60.0)):
        for trace in solution.trace:
            for before, after in pairwise(trace):
                assert before.nodes <= after.nodes and before.seconds <= after.seconds
                assert before.lower <= after.lower * (1 + 1e-12)
                assert after.lower <= after.upper <= before.upper * (1 + 1e-12)
    for trace, upper in zip(closed.trace, closed.upper_bound, strict=True):
        assert trace[0].lower < trace[-1].lower
        assert trace[-1].lower == pytest.approx(upper, rel=1e-6)


# --- real layers -----------------------------------------------------------------------------------------------------

REAL = [
    ("resnet20_layers", "linear"),
    ("resnet20_layers", "layer1.0.conv1"),
    ("resnet20_layers", "layer2.1.conv1"),
    ("resnet20_layers", "layer3.2.conv2"),
    ("minilm_layers", "encoder.layer.0.attention.self.query"),
    ("minilm_layers", "encoder.layer.2.attention.output.dense"),
]


def feasible_points(problem: lb.QuantizationProblem, start: Int, rng: np.random.Generator) -> Float:
    """Level indices of roundings of perturbed weights, and of random walks around a start, shape (points, n)."""
    levels = problem.grid.levels(0)
    n, count = levels.shape
    points = []
    for size in (0.0, 0.1, 0.5, 2.0):
        for _ in range(100):
            near = problem.layer.target[0] + size * np.abs(levels[:, 1] - levels[:, 0]) * rng.normal(size=n)
            points.append(np.argmin(np.abs(levels - near[:, None]), axis=1))
    for _ in range(16):
        walk = start.copy()
        for _ in range(100):
            i = rng.integers(n, size=rng.integers(1, 4))
            walk[i] = np.clip(walk[i] + rng.choice([-1, 1], size=len(i)), 0, count - 1)
            points.append(walk.copy())
    return np.array(points)


@pytest.mark.slow
@pytest.mark.parametrize(("file", "name"), REAL)
def test_no_feasible_point_of_a_real_layer_is_below_the_bound(reference_data: Path, file: str, name: str) -> None:
    path = reference_data / f"{file}.safetensors"
    if not path.is_file():
        pytest.skip(f"the reference data has no {path.name}")
    whole = lb.load_layers(path)[name]
    layer = lb.Layer(whole.matrix[:1], whole.gram[0], name)
    rng = generator(name)
    # Small layers with all grids; the first incumbents of large ones take seconds for each.
    for bits in (2, 3, 4) if layer.in_features < 300 else (3,):
        problem = lb.quantization_problem(layer, bits=bits)
        solution = lb.solve(problem, jobs=1, node_limit=30_000, time_limit=60.0)
        lower, upper = solution.lower_bound[0], solution.upper_bound[0]
        assert 0 < lower <= upper <= layer.energy()[0]
        assert lb.evaluate(problem, solution.weights).error[0] == pytest.approx(upper, rel=1e-9)
        levels = problem.grid.levels(0)
        start = np.argmin(np.abs(levels - solution.weights[0][:, None]), axis=1)
        points = feasible_points(problem, start, rng)
        deviation = levels[np.arange(layer.in_features), points] - layer.target[0]
        errors = np.einsum("ki,ki->k", deviation @ layer.gram[0], deviation)
        assert len(errors) == 2000 and np.all(errors >= lower * (1 - 1e-12))
        for heuristic in ("rtn", "gptq", "coordinate_descent", "beam"):
            found = lb.evaluate(problem, lb.run_heuristic(heuristic, problem))
            assert found.feasible.all()
            assert found.error[0] >= lower * (1 - 1e-9), heuristic
