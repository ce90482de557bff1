"""Diagonal minorants: proven in exact arithmetic, and close to the best ones."""

from __future__ import annotations

import os
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.bounds.minorants.diagonal import certified_minorant, interior_start, is_minorant, maximize_minorant
from layerbounds.kernels.factorization import cholesky
from layerbounds.search.quantization.preparation import minorant_schedule, schedule

#: Set LAYERBOUNDS_FUZZ for a longer run with other examples.
FUZZ = settings(
    max_examples=int(os.environ.get("LAYERBOUNDS_FUZZ", "150")),
    deadline=None,
    derandomize="LAYERBOUNDS_FUZZ" not in os.environ,
)


def is_psd(matrix: list[list[Fraction]]) -> bool:
    """Exact test by symmetric elimination (LDLᵀ)."""
    rows = [row[:] for row in matrix]
    n = len(rows)
    for k in range(n):
        pivot = rows[k][k]
        if pivot < 0 or (pivot == 0 and any(rows[k][k + 1 :])):
            return False
        if pivot == 0:
            continue
        for i in range(k + 1, n):
            factor = rows[i][k] / pivot
            if factor:
                for j in range(k, n):
                    rows[i][j] -= factor * rows[k][j]
    return True


def lies_below(d: Float, gram: Float) -> bool:
    """Whether diag(d) ⪯ gram holds exactly."""
    n = len(d)
    rows = [
        [Fraction(float(gram[i, j])) - (Fraction(float(d[i])) if i == j else 0) for j in range(n)] for i in range(n)
    ]
    return is_psd(rows)


def test_the_exact_test_knows_its_job() -> None:
    one, zero = Fraction(1), Fraction(0)
    assert is_psd([[one, one], [one, one]])
    assert is_psd([[zero, zero], [zero, one]])
    assert not is_psd([[zero, one], [one, one]])
    assert not is_psd([[one, one], [one, one - Fraction(1, 10**40)]])
    assert not is_psd([[one, zero], [zero, -one]])


# --- is_minorant -----------------------------------------------------------------------------------------------------


@st.composite
def boundary_cases(draw: st.DrawFn) -> tuple[Float, Float]:
    """A Gram matrix and a diagonal that touches the boundary of the cone: H = XᵀX + diag(d), exactly."""
    n = draw(st.integers(1, 6))
    rows = draw(st.integers(0, n))
    # Products of such integers, and their sums with d, are exact in float64.
    entry = st.integers(-(2**12), 2**12)
    x = np.array(draw(st.lists(st.lists(entry, min_size=n, max_size=n), min_size=rows, max_size=rows)), dtype=np.int64)
    d = np.array(draw(st.lists(st.integers(0, 2**24), min_size=n, max_size=n)), dtype=np.float64)
    scale = 2.0 ** draw(st.integers(-30, 30))
    x = x.reshape(rows, n)
    return scale * ((x.T @ x).astype(np.float64) + np.diag(d)), scale * d


@FUZZ
@given(boundary_cases(), st.data())
def test_what_is_proven_is_true_at_the_boundary(case: tuple[Float, Float], data: st.DataObject) -> None:
    gram, d = case
    assert lies_below(d, gram)
    steps = data.draw(st.sampled_from([0, 1, 2, 3, 10, 100, 10**4]))
    above = d.copy()
    i = data.draw(st.integers(0, len(d) - 1))
    above[i] += steps * np.spacing(max(above[i], gram[i, i]))
    for candidate in (d, above, np.nextafter(d, np.inf), d * (1 + 1e-15), d * (1 - 1e-15)):
        if is_minorant(gram, candidate):
            assert lies_below(candidate, gram)


@FUZZ
@given(boundary_cases())
def test_what_is_true_by_a_margin_is_proven(case: tuple[Float, Float]) -> None:
    gram, d = case
    # XᵀX + 1e-9·diag is farther from the boundary than the rounding of one factorization.
    inside = d - 1e-9 * np.diag(gram)
    if np.all(inside >= 0) and np.all(np.diag(gram) > 0):
        assert lies_below(inside, gram)
        assert is_minorant(gram, inside)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("condition", [1.0, 1e6, 1e12, 1e15])
def test_rounded_boundary_of_real_matrices(n: int, condition: float, rng: np.random.Generator) -> None:
    proven = 0
    for _ in range(20):
        q = np.linalg.qr(rng.normal(size=(n, n)))[0]
        gram = (q * np.logspace(0, -np.log10(condition), n)) @ q.T
        gram = 0.5 * (gram + gram.T)
        direction = rng.uniform(0.1, 1.0, n)
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if lies_below(middle * direction, gram) else (low, middle)
        for factor in (1 - 1e-10, 1 - 1e-15, 1.0, 1 + 1e-15, 1 + 1e-10):
            d = low * factor * direction
            if is_minorant(gram, d):
                proven += 1
                assert lies_below(d, gram)
            assert is_minorant(gram, 0.5 * d) or condition > 1e6
    assert proven >= 20 or condition > 1


def test_a_diagonal_above_the_gram_in_one_entry_is_no_minorant() -> None:
    assert not is_minorant(np.diag([1.0, 2.0]), np.array([1.0 + 1e-15, 0.0]))
    assert not is_minorant(np.diag([1.0, 2.0]), np.array([0.5, 3.0]))


def test_certified_minorants_are_minorants(rng: np.random.Generator) -> None:
    for rank in (1, 2, 4, 8):
        x = rng.normal(size=(rank, 4))
        gram = x.T @ x
        for d in (np.diag(gram), 1e9 * np.diag(gram), np.full(4, np.linalg.eigvalsh(gram)[0]), np.zeros(4)):
            lowered = certified_minorant(gram, np.maximum(d, 0.0))
            assert np.all((lowered >= 0) & (lowered <= np.maximum(d, 0.0)))
            assert lies_below(lowered, gram) or not lowered.any()


def test_a_minorant_is_not_lowered_without_need(rng: np.random.Generator) -> None:
    x = rng.normal(size=(8, 4))
    gram = x.T @ x
    d = np.full(4, 0.99 * np.linalg.eigvalsh(gram)[0])
    np.testing.assert_array_equal(certified_minorant(gram, d), d)
    # One that is just above the boundary is lowered only a little.
    d = np.full(4, (1 + 1e-13) * np.linalg.eigvalsh(gram)[0])
    np.testing.assert_allclose(certified_minorant(gram, d), d, rtol=1e-9)


@FUZZ
@given(boundary_cases())
def test_the_interior_start_is_inside(case: tuple[Float, Float]) -> None:
    gram = case[0] + np.diag(1e-6 * np.diag(case[0]))
    if np.all(np.diag(gram) > 0):
        d = interior_start(gram)
        assert np.all(d > 0)
        assert lies_below(d, gram)


# --- maximize_minorant -----------------------------------------------------------------------------------------------


def largest_value(gram: Float, objective: Float) -> tuple[float, float]:
    """The maximum of Σ a_i d_i over 0 ⪯ D ⪯ H from below and from above.

    From below: a fine barrier with plain Newton steps. From above: weak duality, since for X ⪰ 0 with diag(X) ≥ a every
    such D has Σ a_i d_i ≤ tr(XD) ≤ tr(XH); X is a multiple of (H − D)⁻¹.
    """
    n = len(gram)
    d = interior_start(gram)
    for mu in float(objective @ d) * 10.0 ** -np.arange(0.0, 7.0, 0.5):
        for _ in range(50):
            inverse = np.linalg.inv(gram - np.diag(d))
            gradient = objective - mu * np.diag(inverse) + mu / d
            step = np.linalg.solve(mu * inverse**2 + np.diag(mu / d**2), gradient)
            while np.any(d + step <= 0) or cholesky(gram - np.diag(d + step)) is None:
                step *= 0.5
            d = d + step
            if gradient @ step < 1e-8 * mu:
                break
    inverse = np.linalg.inv(gram - np.diag(d))
    x = inverse * np.max(objective / np.diag(inverse))
    assert n == 1 or np.linalg.eigvalsh(x)[0] > 0
    return float(objective @ d), float(np.sum(x * gram))


def gram_of(rng: np.random.Generator, n: int, samples: int) -> Float:
    x = rng.normal(size=(samples, n)) @ rng.normal(size=(n, n))
    return np.asarray(x.T @ x / samples)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_the_maximum_is_nearly_reached(n: int, rng: np.random.Generator) -> None:
    for _ in range(5):
        gram = gram_of(rng, n, 3 * n)
        objective = rng.uniform(0.1, 2.0, n)
        tight = maximize_minorant(gram, objective, relative_gap=1e-3)
        loose = maximize_minorant(gram, objective)
        reached, limit = largest_value(gram, objective)
        assert reached <= limit * (1 + 1e-9) and reached >= 0.99 * limit
        assert lies_below(tight, gram) and lies_below(loose, gram)
        assert 0.99 * limit <= objective @ tight <= limit
        assert 0.75 * limit <= objective @ loose <= limit


def test_two_variables_have_a_closed_form() -> None:
    # (H₁₁ − d₁)(H₂₂ − d₂) = H₁₂² with d₁ + d₂ largest: both differences are |H₁₂|.
    gram = np.array([[3.0, -1.0], [-1.0, 2.0]])
    np.testing.assert_allclose(maximize_minorant(gram, np.ones(2), relative_gap=1e-5), [2.0, 1.0], rtol=1e-3)


def test_a_diagonal_gram_is_its_own_minorant(rng: np.random.Generator) -> None:
    gram = np.diag(rng.uniform(1e-3, 1e3, 8))
    d = maximize_minorant(gram, np.ones(8), relative_gap=1e-6)
    assert lies_below(d, gram)
    np.testing.assert_allclose(d, np.diag(gram), rtol=1e-3)


@FUZZ
@given(boundary_cases(), st.data())
def test_the_result_is_always_a_minorant(case: tuple[Float, Float], data: st.DataObject) -> None:
    gram, start = case
    n = len(gram)
    gram = gram + np.diag(data.draw(st.sampled_from([1e-12, 1e-6, 1.0])) * np.diag(gram))
    if np.any(np.diag(gram) == 0):
        return
    objective = np.array(data.draw(st.lists(st.floats(0.0, 1e6), min_size=n, max_size=n)))
    first = data.draw(st.sampled_from([None, start, 1e6 * start, np.zeros(n)]))
    d = maximize_minorant(gram, objective, first, data.draw(st.sampled_from([0.5, 0.2, 1e-4])))
    assert d.shape == (n,) and np.all(d >= 0)
    assert lies_below(d, gram) or not d.any()


@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e12])
def test_units_do_not_matter(factor: float, rng: np.random.Generator) -> None:
    gram = gram_of(rng, 6, 20)
    objective = rng.uniform(0.1, 2.0, 6)
    expected = maximize_minorant(gram, objective)
    np.testing.assert_allclose(maximize_minorant(factor * gram, objective), factor * expected, rtol=1e-6)
    np.testing.assert_allclose(maximize_minorant(gram, factor * objective), expected, rtol=1e-6)
    size = np.array([1.0, 1e-3, 1e3, 1.0, 1.0, 1e2])
    scaled = maximize_minorant(gram * np.outer(size, size), objective / size**2)
    np.testing.assert_allclose(scaled / size**2, expected, rtol=1e-6)


def test_a_start_from_a_larger_block_serves(rng: np.random.Generator) -> None:
    gram = gram_of(rng, 6, 20)
    objective = np.ones(6)
    whole = maximize_minorant(gram, objective)
    block = maximize_minorant(gram[:5, :5].copy(), objective[:5], whole[:5])
    cold = maximize_minorant(gram[:5, :5].copy(), objective[:5])
    assert lies_below(block, gram[:5, :5])
    assert block.sum() >= 0.8 * cold.sum()


def test_a_singular_gram_gives_a_minorant_or_nothing(rng: np.random.Generator) -> None:
    for rank in (1, 2, 3):
        x = rng.integers(-3, 4, size=(rank, 5)).astype(np.float64)
        x[:, x.any(axis=0) == 0] = 1.0
        d = maximize_minorant(x.T @ x, np.ones(5))
        assert lies_below(d, x.T @ x)


# --- minorant_schedule -----------------------------------------------------------------------------------------------


def test_every_row_of_the_schedule_is_a_minorant_of_its_block(rng: np.random.Generator) -> None:
    gram = gram_of(rng, 6, 20)
    rows = minorant_schedule(gram, np.ones(6))
    assert rows.shape == (7, 6)
    for k in range(7):
        assert not rows[k, k:].any()
        assert np.all(rows[k, :k] > 0)
        assert lies_below(rows[k, :k], gram[:k, :k])
    # Fewer variables leave more room.
    assert all(rows[k, :k].sum() >= 0.7 * rows[k + 1, :k].sum() for k in range(1, 6))
    assert rows[1, 0] == pytest.approx(gram[0, 0], rel=0.2)


@pytest.mark.parametrize("n", [1, 2, 160, 161, 400, 401, 800, 801, 1536])
def test_the_schedule_goes_from_all_variables_to_one(n: int) -> None:
    depths = schedule(n)
    assert depths[0] == n and depths[-1] == 1
    assert all(before > after for before, after in pairwise(depths))


@pytest.mark.slow
def test_rows_between_the_depths_of_the_schedule_are_minorants() -> None:
    n = 170
    rng = np.random.default_rng(0)
    gram = gram_of(rng, n, 2 * n)
    rows = minorant_schedule(gram, np.ones(n))
    assert len(schedule(n)) < n
    for k in (1, 2, 50, 97, 98, 99, 100, 101, 102, 103, 169, 170):
        assert is_minorant(np.ascontiguousarray(gram[:k, :k]), rows[k, :k])
        assert np.linalg.eigvalsh(gram[:k, :k] - np.diag(rows[k, :k]))[0] > 0
        assert np.all(rows[k, :k] > 0) and not rows[k, k:].any()


def test_the_gram_of_the_demo_has_a_minorant_worth_its_name() -> None:
    gram = lb.demo_layers()["conv1"].gram[0]
    d = maximize_minorant(gram, np.ones(len(gram)))
    assert is_minorant(gram, d)
    smallest = np.linalg.eigvalsh(gram)[0]
    assert d.sum() > 1.2 * len(gram) * smallest
