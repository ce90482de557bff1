"""Certified minima over sparsity structures for many rows at once: valid in exact arithmetic, near the single rows."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.bounds.least import least
from layerbounds.bounds.objective import UNDERFLOW
from layerbounds.bounds.pruning.rows import diagonal, equal_groups, largest_totals
from layerbounds.exceptions import CertificationError
from layerbounds.problems.patterns import Structure, parse_pattern
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import DualPoint, FormTerms
from layerbounds.search.pruning.refit import refit as refitted

KINDS = (
    "plain", "one input", "few positions", "negated", "doubled", "millionth", "rank one", "huge", "tiny",
    "mixed scales", "zero weights", "cancelling",
)  # fmt: skip
PATTERNS = ({"k": 0}, {"k": 3}, {"k": 8}, {"pattern": "2:4"}, {"pattern": "1:3"}, {"pattern": "block:3", "k": 6})


def layer_of(kind: str, n: int, rows: int, seed: int) -> lb.Layer:
    rng = np.random.default_rng([n, seed])
    n = 1 if kind == "one input" else n
    x, w = rng.normal(size=(3 * n + 3, n)), rng.normal(size=(rows, n))
    if kind == "few positions":
        x = x[: n // 2]
    elif kind in ("negated", "doubled", "millionth"):
        x[:, 1] = {"negated": -1.0, "doubled": 2.0, "millionth": 1 + 1e-6}[kind] * x[:, 0]
    elif kind == "rank one":
        x = np.outer(x[:, 0], x[0])
    elif kind in ("huge", "tiny"):
        x *= 1e120 if kind == "huge" else 1e-120
    elif kind == "mixed scales":
        x *= 10.0 ** rng.integers(-40, 40, size=n)
    elif kind == "zero weights":
        w[rng.random((rows, n)) < 0.5] = 0.0
        w[0] = 0.0
    elif kind == "cancelling":
        x[:, 1] = x[:, 0]
        w[:, 1] = -w[:, 0]
    return lb.Layer.from_activations(w, x, kind)


def tasks_of(layer: lb.Layer, refit: bool, **rule: object) -> list[Task[Support]]:
    if "k" in rule:
        rule = {**rule, "k": min(int(str(rule["k"])), layer.in_features)}
    problem = lb.pruning_problem(layer, refit=refit, **rule)  # type: ignore[arg-type]
    return [make_task(problem, row, None, None) for row in range(layer.out_features)]


def exact_error(gram: Float, target: Float, weights: Float) -> Fraction:
    e = [Fraction(float(v)) - Fraction(float(w)) for v, w in zip(weights, target, strict=True)]
    rows = [[Fraction(float(h)) for h in row] for row in gram]
    return sum((e[i] * e[j] * rows[i][j] for i in range(len(e)) for j in range(len(e))), Fraction(0))


def best_weights(task: Task[Support], many: int = 4) -> list[Float]:
    """The best choices of every kept set, as far as float64 tells."""
    points = []
    for offset, directions, _ in task.allowed.pieces():
        kept = np.flatnonzero(directions.any(axis=1)) if task.allowed.refit else np.zeros(0, dtype=np.int64)
        weights = np.zeros(len(offset)) if task.allowed.refit else offset
        if len(kept):
            weights[kept] = refitted(task.gram, task.gram @ task.target, kept)
        points.append(weights)
    errors = [float((v - task.target) @ task.gram @ (v - task.target)) for v in points]
    return [points[i] for i in np.argsort(errors)[:many]]


def minorant(gram: Float, rng: np.random.Generator, share: float) -> Float:
    """A random diagonal about as large as the matrix allows, or too large."""
    norm = np.sqrt(np.diag(gram))
    weight = np.exp(rng.normal(size=len(gram)))
    inside = gram / np.outer(norm, norm) / np.sqrt(np.outer(weight, weight))
    return share * max(float(np.linalg.eigvalsh(inside)[0]), 0.0) * weight * norm**2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("refit", [True, False])
def test_no_bound_exceeds_the_error_of_allowed_weights(kind: str, refit: bool) -> None:
    for seed, rule in list(enumerate(PATTERNS))[KINDS.index(kind) % 2 :: 2]:
        tasks = tasks_of(layer_of(kind, 7, 3, seed), refit, **rule)
        rng = np.random.default_rng(seed)
        gram = tasks[0].gram
        best = [best_weights(task) for task in tasks]
        exact = [min(exact_error(gram, task.target, v) for v in own) for task, own in zip(tasks, best, strict=True)]
        for share in (0.0, 0.999999, 3.0):
            d = minorant(gram, rng, share)
            for points in (
                [task.target for task in tasks],
                [own[0] for own in best],
                [
                    0.5 * (task.target + own[0]) + 0.1 * rng.normal(size=len(d)) * np.abs(own[0])
                    for task, own in zip(tasks, best, strict=True)
                ],
            ):
                duals = [DualPoint(z, d) for z in points]
                bounds = diagonal(gram, np.array([t.target for t in tasks]), [t.allowed for t in tasks], duals)
                for bound, task, dual, value in zip(bounds, tasks, duals, exact, strict=True):
                    single = least(gram, task.target, task.allowed, dual)
                    if bound == -np.inf:
                        assert single == -np.inf
                        continue
                    assert Fraction(float(bound)) <= max(value, Fraction(0))
                    size = task.energy + float(np.sum(np.abs(dual.z) * np.sqrt(np.diag(gram)))) ** 2
                    assert single - 1e-10 * size - 2 * UNDERFLOW <= bound
                    # A single row proves nothing where an entry of d is 0, even if the input may not be kept.
                    assert bound <= single + 1e-15 * size or single == -np.inf


def test_converged_points_come_close_to_the_optimum() -> None:
    # With H diagonal the bound of z = w is the optimum itself.
    rng = np.random.default_rng(3)
    gram, targets = np.diag(rng.uniform(0.5, 2.0, size=8)), rng.normal(size=(4, 8))
    structure = parse_pattern("2:4").structure((8,), 8)
    for refit in (True, False):
        alloweds = [Support(structure, w, refit) for w in targets]
        d = np.diag(gram) * (1 - 1e-12)
        bounds = diagonal(gram, targets, alloweds, [DualPoint(w, d) for w in targets])
        loss = np.sort((targets**2 * np.diag(gram)).reshape(4, 2, 4), axis=2)[:, :, :2].sum(axis=(1, 2))
        np.testing.assert_allclose(bounds, loss, rtol=1e-9)
        assert np.all(bounds <= loss)


def test_rows_may_differ_in_their_structures_and_rules() -> None:
    rng = np.random.default_rng(5)
    layer = layer_of("plain", 8, 4, 1)
    rules = ({"k": 3}, {"pattern": "2:4"}, {"pattern": "block:3", "k": 6}, {"k": 5})
    tasks = [tasks_of(layer, row != 3, **rule)[row] for row, rule in enumerate(rules)]
    d = minorant(tasks[0].gram, rng, 0.9)
    duals = [DualPoint(0.9 * task.target, d) for task in tasks]
    bounds = diagonal(tasks[0].gram, layer.target, [task.allowed for task in tasks], duals)
    for bound, task, dual in zip(bounds, tasks, duals, strict=True):
        np.testing.assert_allclose(bound, least(task.gram, task.target, task.allowed, dual), rtol=1e-9)


def test_points_that_overflow_prove_nothing() -> None:
    task = tasks_of(layer_of("plain", 6, 1, 0), True, k=3)[0]
    d = 0.5 * np.full(6, np.linalg.eigvalsh(task.gram)[0])
    for z in (np.full(6, 1e300), np.full(6, 1e160)):
        assert diagonal(task.gram, task.targets, [task.allowed], [DualPoint(z, d)])[0] == -np.inf


def test_diagonals_are_shared_and_have_no_forms() -> None:
    task = tasks_of(layer_of("plain", 6, 1, 0), True, k=3)[0]
    d = np.zeros(6)
    forms = FormTerms(np.zeros((6, 1)), np.zeros(1), np.zeros(1))
    for duals in ([DualPoint(task.target, d), DualPoint(task.target, d.copy())], [DualPoint(task.target, d, forms)]):
        with pytest.raises(CertificationError, match="common diagonal"):
            diagonal(task.gram, np.repeat(task.targets, len(duals), 0), [task.allowed] * len(duals), duals)
    with pytest.raises(CertificationError, match="integer forms"):
        least(task.gram, task.target, task.allowed, DualPoint(task.target, d, forms))
    assert diagonal(task.gram, np.zeros((0, 6)), [], []).shape == (0,)


def test_largest_totals() -> None:
    rng = np.random.default_rng(2)
    # Units of several inputs in any order, groups of different sizes and capacities.
    structure = Structure(
        np.array([2, 0, 1, 1, 3, 4, 4, 5, 2]), np.array([0, 1, 0, 1, 1, 2]), np.array([1, 2, 0], dtype=np.int64)
    )
    saving = rng.normal(size=(20, 9))
    found = largest_totals(structure, saving)
    for row, value in zip(saving, found, strict=True):
        unit = np.bincount(structure.unit, weights=row, minlength=6)
        expected = max(unit[0], unit[2], 0.0) + np.sort(np.maximum(unit[[1, 3, 4]], 0.0))[1:].sum()
        np.testing.assert_allclose(value, expected, atol=1e-14)
    sizes = [(index.shape, capacity) for index, capacity in equal_groups(structure)]
    assert sizes == [((1, 1), 0), ((1, 2), 1), ((1, 3), 2)]


@pytest.mark.parametrize("refit", [True, False])
def test_squares_of_small_weights_do_not_underflow(refit: bool) -> None:
    """The energies are far from underflow, and the squares of the weights are not."""
    weights = np.array([[3e-324**0.5], [1e-162], [1.6e-162], [1e-170]])
    tasks = tasks_of(lb.Layer(weights, np.array([[1e200]])), refit, k=0)
    duals = [DualPoint(task.target, np.array([1e200])) for task in tasks]
    duals = [DualPoint(dual.z, duals[0].d) for dual in duals]
    bounds = diagonal(tasks[0].gram, weights, [task.allowed for task in tasks], duals)
    for bound, task in zip(bounds, tasks, strict=True):
        exact = exact_error(task.gram, task.target, np.zeros(1))
        assert 0.99 * float(exact) <= bound <= exact
