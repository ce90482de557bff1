"""Certification: whatever a backend returns, the interval is valid or there is an error."""

from __future__ import annotations

import os
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.bounds.minorants.diagonal import certified_minorant
from layerbounds.certify.interval import certify, dual_bound, objective_interval
from layerbounds.exceptions import CertificationError
from layerbounds.problems.levels import Levels
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import DualPoint, RawSolve, SearchProof

#: Set LAYERBOUNDS_FUZZ for a longer run with other examples.
FUZZ = settings(
    max_examples=int(os.environ.get("LAYERBOUNDS_FUZZ", "150")),
    deadline=None,
    derandomize="LAYERBOUNDS_FUZZ" not in os.environ,
)


def exact_error(gram: Float, target: Float, weights: Float) -> Fraction:
    """(v − w)ᵀH(v − w) as a rational number."""
    deviation = [Fraction(float(v)) - Fraction(float(w)) for v, w in zip(weights, target, strict=True)]
    h = [[Fraction(float(x)) for x in row] for row in gram]
    product_ = [sum((a * b for a, b in zip(row, deviation, strict=True)), Fraction(0)) for row in h]
    return sum((a * b for a, b in zip(product_, deviation, strict=True)), Fraction(0))


def optimum_of(task: Task[Levels]) -> Fraction:
    """Smallest error over the grid without the constant, by trying everything in rational arithmetic."""
    return min(exact_error(task.gram, task.target, np.array(v)) for v in product(*task.allowed.values.tolist()))


def best_weights(task: Task[Levels]) -> Float:
    points = [np.array(v) for v in product(*task.allowed.values.tolist())]
    return min(points, key=lambda v: exact_error(task.gram, task.target, v))


def task_of(gram: Float, target: Float, bits: int = 2, constant: float = 0.0) -> Task[Levels]:
    layer = lb.Layer(np.atleast_2d(target), gram, constant=[constant])
    return make_task(lb.quantization_problem(layer, bits=bits), 0, None, None)


@pytest.fixture
def task(rng: np.random.Generator) -> Task[Levels]:
    x = rng.normal(size=(9, 4))
    return task_of(x.T @ x / 9, rng.normal(size=4), constant=0.125)


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights_off_the_grid_are_refused(task: Task[Levels]) -> None:
    v = best_weights(task)
    for change in (1e-6, 0.5, -1e9):
        wrong = v.copy()
        wrong[1] += change * task.allowed.scale[1]
        with pytest.raises(CertificationError, match="not on the grid"):
            certify(task, RawSolve(wrong, lb.Status.OPTIMAL), 0.0)


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros(5), np.zeros((4, 1)), np.zeros(0), np.zeros((2, 4))])
def test_weights_of_a_wrong_shape_are_refused(task: Task[Levels], wrong: Float) -> None:
    with pytest.raises(CertificationError, match="wrong shape"):
        certify(task, RawSolve(wrong, lb.Status.OPTIMAL), 0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(task: Task[Levels], value: float) -> None:
    wrong = best_weights(task)
    wrong[2] = value
    with pytest.raises(CertificationError, match="NaN"):
        certify(task, RawSolve(wrong, lb.Status.OPTIMAL), 0.0)


def test_rounding_of_a_solver_is_undone(task: Task[Levels]) -> None:
    v = best_weights(task)
    certified = certify(task, RawSolve(v * (1 + 1e-13), lb.Status.TIME_LIMIT), 0.0)
    np.testing.assert_array_equal(certified.weights, v)
    assert Fraction(certified.upper) >= exact_error(task.gram, task.target, v) + Fraction(task.constant)


def test_without_weights_rounding_gives_the_upper_bound(task: Task[Levels]) -> None:
    certified = certify(task, RawSolve(None, lb.Status.TIME_LIMIT), 0.0)
    nearest = task.allowed.values[np.arange(4), np.argmin(np.abs(task.allowed.values - task.target[:, None]), axis=1)]
    np.testing.assert_array_equal(certified.weights, nearest)
    assert certified.lower == task.constant
    assert certified.bound_kind == lb.BoundKind.TRIVIAL
    assert certified.status == lb.Status.TIME_LIMIT


# --- proofs and claims -----------------------------------------------------------------------------------------------


def test_claims_without_a_proof_are_recorded_and_not_believed(task: Task[Levels]) -> None:
    raw = RawSolve(best_weights(task), lb.Status.OPTIMAL, claimed_lower_bound=1e9)
    certified = certify(task, raw, 0.0)
    assert certified.lower == task.constant
    assert certified.claimed_lower == 1e9
    assert certified.status not in (lb.Status.OPTIMAL, lb.Status.GAP_REACHED)
    assert np.isnan(certify(task, RawSolve(None, lb.Status.TIME_LIMIT), 0.0).claimed_lower)


@pytest.mark.parametrize("factor", [1 + 1e-9, 2.0, 1e12])
def test_a_proof_above_the_optimum_is_an_error(task: Task[Levels], factor: float) -> None:
    wrong = SearchProof(factor * float(optimum_of(task)), 0.0)
    with pytest.raises(CertificationError, match="exceeds the error"):
        certify(task, RawSolve(best_weights(task), lb.Status.OPTIMAL, proof=wrong), 0.0)


def test_a_proof_gives_its_cut_less_the_allowance(task: Task[Levels]) -> None:
    optimum = float(optimum_of(task))
    proof = SearchProof(0.75 * optimum, 0.25 * optimum)
    certified = certify(task, RawSolve(best_weights(task), lb.Status.NODE_LIMIT, proof=proof), 0.0)
    assert certified.lower == pytest.approx(0.5 * optimum + task.constant, rel=1e-14)
    assert certified.lower <= 0.5 * optimum + task.constant
    assert certified.bound_kind == lb.BoundKind.SEARCH
    assert certified.status == lb.Status.NODE_LIMIT


def test_a_proof_that_rounding_may_have_spoilt_is_worth_nothing(task: Task[Levels]) -> None:
    proof = SearchProof(1.0, 2.0)
    certified = certify(task, RawSolve(best_weights(task), lb.Status.OPTIMAL, proof=proof), 0.0)
    assert certified.lower == task.constant
    assert certified.bound_kind == lb.BoundKind.TRIVIAL
    assert certified.status != lb.Status.OPTIMAL


def test_leaves_below_the_cut_replace_it(task: Task[Levels]) -> None:
    best = best_weights(task)
    optimum = optimum_of(task)
    other = task.allowed.values[:, 0]
    proof = SearchProof(1e9, 0.0, np.array([other, best]))
    certified = certify(task, RawSolve(best, lb.Status.OPTIMAL, proof=proof), 0.0)
    assert certified.status == lb.Status.OPTIMAL
    assert Fraction(certified.lower) <= optimum + Fraction(task.constant) <= Fraction(certified.upper)
    assert certified.upper - certified.lower <= 1e-14 * certified.upper


def test_the_better_of_two_bounds_counts(task: Task[Levels]) -> None:
    optimum = float(optimum_of(task))
    dual = DualPoint(task.target, np.full(4, 0.5 * np.linalg.eigvalsh(task.gram)[0]))
    derived = dual_bound(task, dual)
    assert 0 < derived < optimum
    for cut, kind in ((0.5 * derived, lb.BoundKind.DUAL), (0.5 * (derived + optimum), lb.BoundKind.SEARCH)):
        raw = RawSolve(best_weights(task), lb.Status.TIME_LIMIT, SearchProof(cut, 0.0), dual)
        certified = certify(task, raw, 0.0)
        assert certified.bound_kind == kind
        assert certified.lower == pytest.approx(max(cut, derived) + task.constant, rel=1e-12)


def test_a_gap_is_reached_only_when_it_is(task: Task[Levels]) -> None:
    value = float(optimum_of(task)) + task.constant
    proof = SearchProof(0.95 * value - task.constant, 0.0)
    raw = RawSolve(best_weights(task), lb.Status.GAP_REACHED, proof=proof)
    assert certify(task, raw, 0.06).status == lb.Status.GAP_REACHED
    assert certify(task, raw, 0.04).status not in (lb.Status.OPTIMAL, lb.Status.GAP_REACHED)


def test_an_exact_zero_is_optimal(rng: np.random.Generator) -> None:
    x = rng.normal(size=(9, 3))
    task = task_of(x.T @ x, np.zeros(3), constant=0.5)
    certified = certify(task, RawSolve(np.zeros(3), lb.Status.TIME_LIMIT), 0.0)
    assert (certified.lower, certified.upper, certified.status) == (0.5, 0.5, lb.Status.OPTIMAL)


# --- dual points -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("z", "d"),
    [
        (np.zeros(3), np.zeros(3)),
        (np.zeros(4), np.zeros(3)),
        (np.zeros((4, 1)), np.zeros(4)),
        (np.array([0.0, np.nan, 0.0, 0.0]), np.zeros(4)),
        (np.array([0.0, np.inf, 0.0, 0.0]), np.zeros(4)),
        (np.zeros(4), np.array([0.1, 0.1, np.nan, 0.1])),
        (np.zeros(4), np.array([0.1, 0.1, np.inf, 0.1])),
    ],
)
def test_invalid_dual_points_are_refused(task: Task[Levels], z: Float, d: Float) -> None:
    with pytest.raises(CertificationError, match="invalid dual point"):
        certify(task, RawSolve(best_weights(task), lb.Status.OPTIMAL, dual=DualPoint(z, d)), 0.0)


@pytest.mark.parametrize("size", [1e-12, 0.1, 10.0, 1e6])
def test_a_diagonal_may_have_negative_entries(task: Task[Levels], size: float) -> None:
    optimum = optimum_of(task)
    d = certified_minorant(task.gram, np.full(4, 0.5 * np.linalg.eigvalsh(task.gram)[0]))
    for i in range(4):
        signed = d.copy()
        signed[i] = -size
        for z in (task.target, best_weights(task), task.allowed.values[:, 0]):
            assert Fraction(dual_bound(task, DualPoint(z, signed))) <= optimum


def test_a_diagonal_above_the_gram_is_lowered(task: Task[Levels]) -> None:
    optimum = optimum_of(task)
    for factor in (1.5, 10.0, 1e9):
        d = factor * np.diag(task.gram)
        values = [dual_bound(task, DualPoint(z, d)) for z in (task.target, best_weights(task))]
        assert all(Fraction(v) <= optimum for v in values)
        assert max(values) > 0


def test_the_bound_of_a_diagonal_gram_is_the_optimum(rng: np.random.Generator) -> None:
    task = task_of(np.diag(rng.uniform(0.5, 2.0, 4)), rng.normal(size=4))
    optimum = optimum_of(task)
    bound = dual_bound(task, DualPoint(task.target, np.diag(task.gram)))
    assert Fraction(bound) <= optimum
    assert bound == pytest.approx(float(optimum), rel=1e-10)


@st.composite
def tasks(draw: st.DrawFn) -> Task[Levels]:
    """Tasks of up to three variables, with Grams from benign to singular."""
    n = draw(st.integers(1, 3))
    rows = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.normal(size=(rows, n)) if draw(st.booleans()) else rng.integers(-2, 3, size=(rows, n)).astype(np.float64)
    if draw(st.booleans()):
        x[:, -1] = x[:, 0] * (1 + draw(st.sampled_from([0.0, 1e-8, 1e-4])) * rng.normal(size=rows))
    x *= draw(st.sampled_from([1e-6, 1.0, 1e6]))
    x[:, np.all(x == 0, axis=0)] = 1.0
    return task_of(x.T @ x / rows, rng.normal(size=n) * draw(st.sampled_from([1e-6, 1.0, 1e6])))


@FUZZ
@given(tasks(), st.data())
def test_no_dual_point_gives_more_than_the_optimum(task: Task[Levels], data: st.DataObject) -> None:
    n = len(task.target)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    size = data.draw(st.sampled_from([0.0, 1e-3, 1.0, 10.0, 1e3])) * task.allowed.scale[0]
    z = data.draw(st.sampled_from([task.target, task.allowed.values[:, 0], best_weights(task)])) + size * rng.normal(
        size=n
    )
    kind = data.draw(st.sampled_from(["zero", "small", "barrier", "too large", "signed"]))
    spectrum = np.linalg.eigvalsh(task.gram)
    d = {
        "zero": np.zeros(n),
        "small": np.full(n, max(spectrum[0], 0.0)),
        "barrier": rng.uniform(0.0, 1.0, n) * np.diag(task.gram),
        "too large": rng.uniform(1.0, 100.0, n) * np.diag(task.gram),
        "signed": rng.normal(size=n) * np.diag(task.gram),
    }[kind]
    assert Fraction(dual_bound(task, DualPoint(z, d))) <= max(optimum_of(task), Fraction(0))


@pytest.mark.parametrize("distance", [1.0, 1e3, 1e6, 1e9])
def test_a_dual_point_far_along_a_null_direction(distance: float) -> None:
    # Stored singular Grams have eigenvalues of rounding size on both sides of zero. The targets lie on the grid, so
    # that the smallest error is 0 and no bound may be positive.
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(2, 4))
        layer = lb.Layer(rng.integers(-2, 2, size=(1, 4)), x.T @ x / 2)
        task = make_task(lb.quantization_problem(layer, bits=2, scale=[1.0]), 0, None, None)
        _, vectors = np.linalg.eigh(task.gram)
        for direction in (vectors[:, 0], vectors[:, 1]):
            assert dual_bound(task, DualPoint(task.target + distance * direction, np.zeros(4))) <= 0.0


# --- the objective ---------------------------------------------------------------------------------------------------


def check_enclosure(gram: Float, target: Float, weights: Float, tightness: float) -> None:
    low, high = objective_interval(gram, target, weights)
    exact = exact_error(gram, target, weights)
    assert Fraction(low) <= max(exact, Fraction(0))
    assert exact <= Fraction(high)
    size = np.abs(weights - target)
    # Below the normal numbers one step of float64 is all that can be had.
    assert high - low <= tightness * float(size @ np.abs(gram) @ size) + 1e-320


@FUZZ
@given(st.data())
def test_the_objective_is_enclosed(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 6))
    # Squares of smaller numbers leave the range of float64.
    number = st.floats(-1e6, 1e6).map(lambda value: value if abs(value) > 1e-100 else 0.0)
    rows = data.draw(st.lists(st.lists(number, min_size=n, max_size=n), min_size=1, max_size=4))
    x = np.array(rows)
    target, weights = (np.array(data.draw(st.lists(number, min_size=n, max_size=n))) for _ in range(2))
    check_enclosure(x.T @ x, target, weights, 1e-14)


@pytest.mark.parametrize("n", [2, 5, 12])
def test_the_objective_of_an_ill_conditioned_gram_is_enclosed(n: int, rng: np.random.Generator) -> None:
    i = np.arange(n)
    hilbert = 1.0 / (i[:, None] + i[None, :] + 1.0)
    _, vectors = np.linalg.eigh(hilbert)
    for target in (rng.normal(size=n), 1e8 * rng.normal(size=n)):
        for k in range(n):
            # Along the eigenvectors of the smallest eigenvalues nearly everything cancels.
            check_enclosure(hilbert, target, target + vectors[:, k], 1e-14)
        check_enclosure(hilbert, target, np.nextafter(target, np.inf), 1e-14)


def test_no_deviation_has_no_error(rng: np.random.Generator) -> None:
    gram = np.diag(rng.uniform(1.0, 2.0, 5))
    w = rng.normal(size=5)
    assert objective_interval(gram, w, w) == (0.0, 0.0)
    assert objective_interval(np.zeros((0, 0)), np.zeros(0), np.zeros(0)) == (0.0, 0.0)
