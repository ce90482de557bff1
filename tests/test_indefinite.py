"""Gram matrices that rounding leaves indefinite, and dual points that are no minorants: bounds hold all the same."""

from __future__ import annotations

import threading
from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.bounds.pruning.dual import pruning_bound
from layerbounds.exceptions import InputError
from layerbounds.kernels import exact
from layerbounds.layers.gram import raise_diagonal, semidefinite_share
from layerbounds.problems.pruning import PruningProblem
from layerbounds.problems.tasks import make_task
from layerbounds.proofs import Control
from layerbounds.search.pruning.mask_root import lowest_diagonal
from layerbounds.search.quantization.exact_levels import ExactLevels


def uneven_layer(seed: int, n: int = 16) -> lb.Layer:
    """A layer of one huge input, beside which the negative eigenvalue of the last two is rounding.

    Keeping both of these lowers the error, keeping one of them raises it.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((40, n - 2))
    gram = np.zeros((n, n))
    gram[: n - 2, : n - 2] = x.T @ x / 40
    gram[0], gram[:, 0] = 0.0, 0.0
    gram[0, 0] = 1e14
    gram[-2:, -2:] = [[1.0, 1.05], [1.05, 1.0]]
    weights = rng.choice([-1.0, 1.0], n) * (1.0 + rng.random(n))
    weights[0], weights[-2], weights[-1] = 1e-7, 0.3, -0.3
    target = weights.copy()
    target[0] *= 2.0
    target[4:] = 0.0
    return lb.Layer(weights[None], gram, target=target[None])


def least_error(problem: PruningProblem) -> Fraction:
    """The smallest error of a mask, in exact arithmetic: all masks whose computed error comes near it."""
    layer = problem.layer
    weights, target, gram = layer.matrix[0], layer.target[0], layer.gram[0]
    masks = np.array(list(product([False, True], repeat=len(weights))))
    masks = masks[problem.structure.excess(masks.astype(np.float64)) == 0]
    deviation = np.where(masks, weights, 0.0).astype(np.longdouble) - target
    errors = np.sum((deviation @ gram) * deviation, axis=1)
    near = errors <= errors.min() + 1e-12 * np.abs(errors).max()
    return min(exact.quadratic_form(gram, target, np.where(mask, weights, 0.0)) for mask in masks[near])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("how", [{"k": 10}, {"pattern": "8:16"}])
def test_masks_of_an_indefinite_matrix(seed: int, how: dict) -> None:
    problem = lb.pruning_problem(uneven_layer(seed), refit=False, **how)
    assert problem.layer.gram_reports[0].min_eigenvalue < 0.0 and not problem.layer.gram_reports[0].projected
    solution = lb.solve(problem)
    least = least_error(problem)
    assert Fraction(solution.lower_bound[0]) <= least <= Fraction(solution.upper_bound[0])
    assert solution.lower_bound[0] > 0.9 * float(least)


def test_masks_where_zero_weights_have_a_negative_form() -> None:
    """What the form of the target falls below zero must not be added to the errors of others."""
    layer = uneven_layer(0)
    target = layer.target[0].copy()
    target[-2:] = [2.0, -2.0]
    problem = lb.pruning_problem(lb.Layer(layer.weight, layer.gram[0], target=target[None]), k=10, refit=False)
    solution = lb.solve(problem)
    assert Fraction(solution.lower_bound[0]) <= max(least_error(problem), Fraction(0))


@pytest.mark.parametrize("seconds", [10.0, 0.0])
def test_lowest_diagonal_lies_below_the_matrix(seconds: float) -> None:
    rng = np.random.default_rng(0)
    half = rng.standard_normal((6, 8))
    for matrix in (half.T @ half, np.array([[1.0, 1.05], [1.05, 1.0]]), np.eye(3), np.zeros((2, 2))):
        d = lowest_diagonal(matrix, seconds)
        assert np.all(d <= 0.0)
        # The sum is rounded: a little more than that on the diagonal makes up for it.
        assert exact.is_positive_semidefinite(matrix - np.diag(d * (1.0 + 1e-12)) + 1e-300 * np.eye(len(d)))


def test_concave_terms_prove_nothing_about_free_weights() -> None:
    gram, target = np.eye(3), np.array([1.0, 2.0, 3.0])
    structure = lb.pruning_problem(lb.Layer(target[None], gram), k=2).structure
    below: Float = np.diag([-1e-3, 0.5, 0.5])
    assert pruning_bound(gram, target, None, structure, np.zeros(3), np.arange(3), below) <= 1.0
    assert pruning_bound(gram, target, None, structure, np.zeros(3), np.arange(3), -1e-3 * np.eye(3)) <= 1.0
    # Masks are bounded: the same terms prove something.
    bound = pruning_bound(gram, target, target, structure, np.zeros(3), np.arange(3), below)
    assert -100.0 < bound <= 1.0


@pytest.mark.parametrize("factor", [1e-300, 1e300])
def test_entries_that_float64_cannot_compute_with_are_refused(factor: float) -> None:
    with pytest.raises(InputError, match="rescale the inputs"):
        lb.Layer(np.ones((1, 2)), factor * np.eye(2))
    with pytest.raises(InputError, match="rescale the inputs"):
        lb.Layer(np.ones((1, 2)), np.diag([factor, 1.0]))


def test_infinite_errors_are_not_called_optimal() -> None:
    layer = lb.Layer(np.full((1, 3), 1e100), 1e200 * (np.eye(3) + 0.1))
    with np.errstate(all="ignore"):
        solution = lb.solve(lb.pruning_problem(layer, k=1))
    assert solution.upper_bound[0] == np.inf
    assert solution.status[0] == lb.Status.UNRESOLVED


def test_an_input_of_no_energy_hides_no_indefinite_rest() -> None:
    """Where the matrix of the live inputs is indefinite its diagonal is raised, whatever beside it is dead."""
    rest = np.array([[1.0, 1.0, 0.5], [1.0, np.nextafter(1.0, 0.0), 0.5], [0.5, 0.5, 1.0]])
    gram = np.zeros((4, 4))
    gram[:3, :3] = rest
    alone = lb.Layer(np.ones((1, 3)), rest).gram_reports[0].raised
    assert alone > 0.0
    gram[0, 3] = gram[3, 0] = 1e-17
    assert lb.Layer(np.ones((1, 4)), gram).gram_reports[0].raised == alone


@pytest.mark.parametrize("seed", range(12))
def test_exact_levels_charge_all_that_the_raised_diagonal_adds(seed: int) -> None:
    """The raised diagonal is rounded by about as much as it is raised."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 4))
    layer = lb.Layer.from_activations(rng.standard_normal((1, 4)), x)
    task = make_task(lb.quantization_problem(layer, 2), 0, None, None)
    gram = raise_diagonal(task.gram, semidefinite_share(task.gram))
    control = Control(1.0, 0.0, None, 0, 1, threading.Event())
    farthest = np.abs(task.allowed.values - task.target[:, None]).max(axis=1)
    added = sum(
        (Fraction(a) - Fraction(b)) * Fraction(f) ** 2
        for a, b, f in zip(np.diag(gram).tolist(), np.diag(task.gram).tolist(), farthest.tolist(), strict=True)
    )
    assert ExactLevels(task, control, task.allowed.nearest(task.target)).charge >= added


def test_constants_of_several_rows_are_enclosed() -> None:
    task = make_task(lb.quantization_problem(lb.Layer(np.ones((1, 2)), np.eye(2)), 2), 0, None, None)
    for constants in ([0.0, 0.0], [0.1, 0.2, 0.3], [1e16, 1.0, 1.0], [0.1]):
        several = replace(task, constants=np.array(constants))
        total = sum(map(Fraction, constants), Fraction(0))
        assert several.constant >= 0.0 and Fraction(several.constant) <= total <= Fraction(several.constant_above)
        assert several.constant_above <= np.nextafter(several.constant, np.inf)


def test_blocks_of_a_mask_are_kept_whole() -> None:
    """Weights that drop half of a kept block are not what the bound is about: evaluation says so, too."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 8))
    x[:, 7] = 0.0
    layer = lb.Layer.from_activations(rng.standard_normal((1, 8)), x)
    problem = lb.pruning_problem(layer, k=4, pattern="block:2", refit=False)
    half = np.where(np.arange(8) < 4, layer.matrix, 0.0)
    assert lb.evaluate(problem, half).feasible.all()
    half[0, 1] = 0.0
    evaluation = lb.evaluate(problem, half)
    assert not evaluation.feasible.any() and evaluation.violation[0] == abs(layer.matrix[0, 1])
    whole = problem.project(half, [0])
    assert lb.evaluate(problem, whole).feasible.all() and whole[0, 1] == layer.matrix[0, 1]
    # An input without energy may be dropped from a kept block.
    last = np.where(np.arange(8) >= 4, layer.matrix, 0.0)
    for value in (layer.matrix[0, 7], 0.0):
        last[0, 7] = value
        assert lb.evaluate(problem, last).feasible.all()
    assert lb.evaluate(problem, lb.solve(problem).weights).feasible.all()


def test_weights_along_a_negative_direction_are_not_below_the_bound() -> None:
    # Rounding has left the stored matrix with a negative direction along which no refit would have a least error.
    found = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(2, 4))
        layer = lb.Layer(rng.normal(size=(1, 4)), x.T @ x / 2)
        if not layer.gram_reports[0].raised:
            continue
        found += 1
        problem = lb.pruning_problem(layer, k=3)
        solution = lb.solve(problem, jobs=1)
        _, vectors = np.linalg.eigh(layer.gram[0])
        for size in (1e2, 1e5, 1e8, 1e10):
            for direction in vectors.T[:2]:
                weights = problem.project(layer.matrix + size * direction, [0])
                assert lb.evaluate(problem, weights).error[0] >= solution.lower_bound[0] * (1 - 1e-9)
    assert found >= 5
