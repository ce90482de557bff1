"""Compiled loops on their own: ties, costs, and a search that stops and goes on."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Float, Int
from layerbounds.kernels.quantization.enumeration import ascend
from layerbounds.kernels.quantization.rounding import beam, coordinate_descent, nearest, successive_rounding
from layerbounds.problems.levels import nearest_levels
from layerbounds.problems.tasks import make_task
from layerbounds.search.quantization.grid_units import make_units
from layerbounds.search.quantization.incumbents import first_incumbents
from layerbounds.search.quantization.preparation import prepare
from layerbounds.search.quantization.tree import Tree


def gram_of(rng: np.random.Generator, n: int) -> Float:
    x = rng.normal(size=(3 * n, n))
    return np.asarray(x.T @ x / len(x))


def tables_of(rng: np.random.Generator, n: int, most: int) -> tuple[Float, Int]:
    """Sorted level tables of different lengths, padded with the last level."""
    count = rng.integers(1, most + 1, size=n)
    levels = np.sort(rng.normal(size=(n, most)), axis=1)
    for i in range(n):
        levels[i, count[i] :] = levels[i, count[i] - 1]
    return levels, count


def error_of(gram: Float, target: Float, levels: Float, choice: Int) -> float:
    deviation = levels[np.arange(len(choice)), choice] - target
    return float(deviation @ gram @ deviation)


@pytest.mark.parametrize(
    ("x", "expected"),
    [(-9.0, 0), (-2.0, 0), (-1.5, 0), (-1.4, 1), (-0.5, 1), (0.0, 2), (1.5, 2), (1.6, 3), (3.0, 3), (9.0, 3)],
)
def test_nearest_level_and_ties(x: float, expected: int) -> None:
    levels = np.array([-2.0, -1.0, 0.0, 3.0])
    assert nearest(levels, 4, x) == expected
    assert nearest_levels(levels[None], np.array([x]))[0] == levels[expected]


def test_nearest_looks_at_the_given_number_of_levels_only() -> None:
    levels = np.array([0.0, 1.0, 2.0, 2.0])
    assert nearest(levels, 3, 99.0) == 2
    assert nearest(levels, 2, 99.0) == 1
    assert nearest(levels, 1, 99.0) == 0


def test_nearest_agrees_with_a_scan(rng: np.random.Generator) -> None:
    for most in (1, 2, 3, 4, 7, 16):
        levels = np.sort(rng.integers(-20, 20, size=most).astype(np.float64))
        for x in rng.integers(-50, 50, size=50) / 2.0:
            assert levels[nearest(levels, most, x)] == levels[np.argmin(np.abs(levels - x))]


def test_successive_rounding_is_a_beam_of_one(rng: np.random.Generator) -> None:
    for n in (1, 2, 9):
        prep = prepare(gram_of(rng, n), 0.0)
        levels, count = tables_of(rng, n, 5)
        target = rng.normal(size=n)
        first, second = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        successive_rounding(prep.shifts, target, levels, count, first)
        cost = beam(1, prep.pivots, prep.shifts, target, levels, count, second)
        np.testing.assert_array_equal(first, second)
        assert cost == pytest.approx(error_of(prep.gram, target, levels, first), rel=1e-9)


@pytest.mark.parametrize("width", [1, 2, 5, 100, 10_000])
def test_the_cost_of_a_beam_is_the_error_of_its_choice(rng: np.random.Generator, width: int) -> None:
    prep = prepare(gram_of(rng, 8), 1.0)
    levels, count = tables_of(rng, 8, 4)
    target = rng.normal(size=8)
    choice = np.zeros(8, dtype=np.int64)
    cost = beam(width, prep.pivots, prep.shifts, target, levels, count, choice)
    assert np.all(choice < count)
    assert cost == pytest.approx(error_of(prep.gram, target, levels, choice), rel=1e-9)


def test_a_beam_with_ties_keeps_its_width() -> None:
    # All assignments cost the same: whichever is kept, it is a whole one.
    n = 6
    levels = np.tile([-1.0, 1.0], (n, 1))
    choice = np.full(n, -1, dtype=np.int64)
    count = np.full(n, 2, dtype=np.int64)
    assert beam(5, np.ones(n), np.zeros((n, n)), np.zeros(n), levels, count, choice) == n
    assert np.all((choice == 0) | (choice == 1))


@pytest.mark.parametrize("pairs", [False, True])
def test_coordinate_descent_reports_the_error_it_reached(rng: np.random.Generator, pairs: bool) -> None:
    for _ in range(20):
        gram = gram_of(rng, 8)
        levels, count = tables_of(rng, 8, 5)
        target = rng.normal(size=8)
        choice = np.array([rng.integers(c) for c in count])
        before = error_of(gram, target, levels, choice)
        value, moves = coordinate_descent(gram, target, levels, count, choice, pairs, 1000)
        assert np.all((choice >= 0) & (choice < count))
        assert value == pytest.approx(error_of(gram, target, levels, choice), rel=1e-9)
        assert value <= before * (1 + 1e-12)
        assert moves < 1000


def test_coordinate_descent_stops_after_the_given_moves(rng: np.random.Generator) -> None:
    gram = gram_of(rng, 8)
    levels = np.tile(np.arange(-8.0, 8.0), (8, 1))
    choice = np.zeros(8, dtype=np.int64)
    _, moves = coordinate_descent(gram, np.zeros(8), levels, np.full(8, 16), choice, True, 3)
    assert moves == 3
    assert np.count_nonzero(choice) <= 6


def test_tilts_climb_to_the_minimum_over_the_box(rng: np.random.Generator) -> None:
    n = 8
    gram = gram_of(rng, n)
    covariance = np.linalg.inv(gram)
    origin = 3.0 * rng.normal(size=n)
    low, high = np.full(n, -1.0), np.full(n, 1.0)
    z, tilt = origin.copy(), np.zeros(n)
    floor = -np.inf
    psi = 0.0
    for _ in range(60):
        psi, taken = ascend(n, 5, 0.0, psi, z, tilt, np.zeros(n), covariance, low, high)
        # The minimiser of f(z) − 2 hᵀz, and its value.
        np.testing.assert_allclose(z, origin + covariance @ tilt, atol=1e-9)
        deviation = z - origin
        assert psi == pytest.approx(deviation @ gram @ deviation - 2 * tilt @ z, rel=1e-6, abs=1e-9)
        bound = psi + 2 * np.minimum(tilt * low, tilt * high).sum()
        assert bound >= floor - 1e-9
        floor = bound
        if taken == 0:
            break
    # The minimum over the box by projected gradient steps.
    x = np.clip(origin, low, high)
    for _ in range(20_000):
        x = np.clip(x - (gram @ (x - origin)) / np.linalg.norm(gram, 2), low, high)
    assert floor == pytest.approx((x - origin) @ gram @ (x - origin), rel=1e-6)


@pytest.mark.parametrize("grid", ["2 bits", "3 bits in groups", "ternary", "binary", "small box"])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_a_search_in_pieces_is_the_search_in_one_go(rng: np.random.Generator, grid: str, chunk: int) -> None:
    # Rows of 256 bytes and more: compiled loops over arrays that lie closer to each other may add in another order.
    n = 34
    weight = rng.normal(size=(2, n))
    x = rng.normal(size=(30 * n, n))
    problem = {
        "2 bits": lambda layer: lb.quantization_problem(layer, bits=2),
        "3 bits in groups": lambda layer: lb.quantization_problem(layer, bits=3, granularity=8),
        "ternary": lambda layer: lb.quantization_problem(layer, grid=lb.codebook_grid(weight, "ternary")),
        "binary": lambda layer: lb.quantization_problem(layer, bits=1),
        "small box": lambda layer: lb.quantization_problem(layer, bits=2, scale=[0.2, 0.02]),
    }[grid](lb.Layer(weight, x.T @ x / len(x)))
    preparation = prepare(problem.layer.gram[0], 1.0)
    for channel in range(2):
        unit = make_units(make_task(problem, channel, preparation, None), preparation)
        whole = Tree(unit)
        whole.restart(1.02 * first_incumbents(unit, None)[0])
        # Copied when its root is set: linear algebra may round otherwise where arrays lie otherwise.
        pieces = copy.deepcopy(whole)
        assert whole.run(10**9)
        calls = 1
        while not pieces.run(chunk):
            calls += 1
        np.testing.assert_array_equal(pieces.found, whole.found)
        assert pieces.cut == whole.cut
        nodes = int(whole.nodes[0])
        assert int(pieces.nodes[0]) == nodes >= n
        assert calls >= nodes // chunk
