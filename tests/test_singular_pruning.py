"""Singular and nearly singular Gram matrices: every interval closes, and holds in exact arithmetic."""

from __future__ import annotations

import itertools
import threading
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.bounds.minorants.diagonal import interior_start
from layerbounds.certify.interval import certify
from layerbounds.kernels import exact
from layerbounds.kernels.factorization import cholesky, inverse_diagonal, symmetric_inverse
from layerbounds.layers.gram import raise_diagonal
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import OPTIMAL_ABSOLUTE, OPTIMAL_RELATIVE, Control, RawSolve, Status
from layerbounds.search.pruning import dispatch, exchanges, family
from layerbounds.search.pruning.independent_sets import search_supports

#: Thorough and long: CI runs them, and ``--slow``.
pytestmark = pytest.mark.slow

#: Second input as a multiple of the first one.
MULTIPLES = {"negated": -1.0, "doubled": 2.0, "thousandth": 1.001, "millionth": 1 + 1e-6, "billionth": 1 + 1e-9}
OTHERS = ("few positions", "rank one", "zero weights", "huge", "tiny", "mixed scales", "cancelling weights")
PATTERNS = ({"k": 0}, {"k": 2}, {"k": 5}, {"pattern": "2:4"}, {"pattern": "1:3"}, {"pattern": "block:2", "k": 4})


def make_layer(kind: str, n: int, seed: int) -> lb.Layer:
    rng = np.random.default_rng([n, seed])
    x, w = rng.normal(size=(2 * n + 3, n)), rng.normal(size=(1, n))
    if kind in MULTIPLES:
        x[:, 1] = MULTIPLES[kind] * x[:, 0]
    elif kind == "few positions":
        x = x[: max(n // 2, 1)]
    elif kind == "rank one":
        x = np.outer(x[:, 0], x[0])
    elif kind == "zero weights":
        w[0, rng.random(n) < 0.5] = 0.0
        x[:, 1] = -x[:, 0]
    elif kind in ("huge", "tiny"):
        x *= 1e120 if kind == "huge" else 1e-120
        x[:, 1] = 1.001 * x[:, 0]
    elif kind == "mixed scales":
        x *= 10.0 ** rng.integers(-40, 40, size=n)
        x[:, -1] = 1.001 * x[:, 0]
    else:
        x[:, 1] = x[:, 0]
        w[0, 1] = -w[0, 0]
    return lb.Layer.from_activations(w, x, kind)


def fractions(values: np.ndarray) -> list[Fraction]:
    return [Fraction(float(v)) for v in values]


def least_error(gram: np.ndarray, target: np.ndarray, support: list[int]) -> Fraction:
    """Least error of weights on a support, by elimination in fractions; dependent inputs are passed over."""
    h = [fractions(row) for row in gram]
    w = fractions(target)
    b = [sum(x * y for x, y in zip(row, w, strict=True)) for row in h]
    value = sum(x * y for x, y in zip(b, w, strict=True))
    rows = [[h[i][j] for j in support] + [b[i]] for i in support]
    while rows:
        top = rows.pop(0)
        if top[0] == 0:
            assert not any(top)
        else:
            value -= top[-1] ** 2 / top[0]
            rows = [[y - row[0] * x / top[0] for x, y in zip(top, row, strict=True)] for row in rows]
        rows = [row[1:] for row in rows]
    return value


def supports(problem: lb.PruningProblem) -> list[list[int]]:
    """Every support that the pattern allows; with refit only the largest ones."""
    structure = problem.structure
    groups = [np.flatnonzero(structure.group == g).tolist() for g in range(len(structure.capacity))]
    choices = []
    for units, capacity in zip(groups, structure.capacity.tolist(), strict=True):
        sizes = [capacity] if problem.refit else range(capacity + 1)
        choices.append([c for size in sizes for c in itertools.combinations(units, size)])
    return [
        [i for i in range(len(structure.unit)) if structure.unit[i] in set(itertools.chain(*choice))]
        for choice in itertools.product(*choices)
    ]


def optimum(problem: lb.PruningProblem) -> Fraction:
    """The smallest error by brute force in fractions."""
    layer = problem.layer
    gram, target = layer.channel_gram(0), layer.target[0]
    if problem.refit:
        gram = raise_diagonal(gram, layer.gram_reports[0].raised)
        return min(least_error(gram, target, s) for s in supports(problem))
    values = []
    for s in supports(problem):
        kept = np.zeros(len(target))
        kept[s] = layer.matrix[0][s]
        values.append(exact_error(gram, target, kept))
    return min(values)


def exact_error(gram: np.ndarray, target: np.ndarray, weights: np.ndarray) -> Fraction:
    d = [a - b for a, b in zip(fractions(weights), fractions(target), strict=True)]
    rows = [sum(x * y for x, y in zip(fractions(row), d, strict=True)) for row in gram]
    return sum((x * y for x, y in zip(rows, d, strict=True)), Fraction(0))


def check(problem: lb.PruningProblem | lb.QuantizationProblem, solution: lb.Solution, best: Fraction) -> None:
    lower, upper = solution.lower_bound[0], solution.upper_bound[0]
    # Errors are means of squares, although rounding may have left the stored matrix indefinite.
    assert Fraction(float(lower)) <= max(best, Fraction(0)) <= Fraction(float(upper))
    weights = solution.weights.reshape(-1)
    assert exact_error(problem.layer.channel_gram(0), problem.layer.target[0], weights) <= Fraction(float(upper))
    assert lb.evaluate(problem, solution.weights, [0]).feasible.all()
    assert solution.status == [Status.OPTIMAL]
    assert upper - lower <= max(OPTIMAL_RELATIVE * upper, OPTIMAL_ABSOLUTE * solution.energy[0])


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("kind", [*MULTIPLES, *OTHERS])
def test_intervals_close_in_exact_arithmetic(kind: str, refit: bool) -> None:
    for number, pattern in enumerate(PATTERNS):
        layer = make_layer(kind, 6 + number % 3, number)
        problem = lb.pruning_problem(layer, refit=refit, **pattern)
        check(problem, lb.solve(problem, time_limit=20.0, jobs=1), optimum(problem))


def control(time_limit: float = 20.0) -> Control:
    return Control(time_limit, 0.0, None, 0, 1, threading.Event())


@pytest.mark.parametrize("pattern", [{"k": 3}, {"k": 7}, {"pattern": "2:4"}, {"pattern": "2:3"}])
@pytest.mark.parametrize("kind", [*MULTIPLES, "few positions", "cancelling weights"])
def test_every_support_is_tried(kind: str, pattern: dict[str, Any]) -> None:
    # Two of three and seven of eight inputs: most supports hold the dependent pair.
    for seed in range(3):
        problem = lb.pruning_problem(make_layer(kind, 8, 100 + seed), **pattern)
        task = make_task(problem, 0, None, None)
        assert isinstance(task.allowed, Support)
        raw = search_supports(task, control())
        if raw is not None:
            certified = certify(task, raw, 0.0)
            assert Fraction(certified.lower) <= optimum(problem) <= Fraction(certified.upper)
            if kind not in ("few positions", "cancelling weights"):
                assert certified.status == Status.OPTIMAL


def test_a_positive_bound_with_fewer_positions_than_inputs() -> None:
    rng = np.random.default_rng(0)
    layer = lb.Layer.from_activations(rng.normal(size=(1, 32)), rng.normal(size=(24, 32)))
    solution = lb.solve(lb.pruning_problem(layer, k=8), time_limit=60.0)
    assert solution.status == [Status.OPTIMAL]
    assert solution.relative_lower_bound[0] > 0.08


@pytest.mark.parametrize("multiple", [*MULTIPLES.values(), 1.0])
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_quantization_closes(multiple: float, bits: int) -> None:
    for n in (2, 4):
        rng = np.random.default_rng([bits, n])
        x, w = rng.normal(size=(9, n)), rng.normal(size=(1, n))
        x[:, 1] = multiple * x[:, 0]
        problem = lb.quantization_problem(lb.Layer.from_activations(w, x), bits=bits)
        solution = lb.solve(problem, time_limit=20.0, jobs=1)
        levels = problem.grid.levels(0)
        if levels.shape[1] ** n <= 600:
            gram = problem.layer.channel_gram(0)
            check(problem, solution, min(exact_error(gram, w[0], np.array(v)) for v in itertools.product(*levels)))
        assert solution.status == [Status.OPTIMAL]


def test_levels_of_tiny_inputs_tie() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(12, 5)) * 10.0 ** np.array([0, -30, 12, -9, 25])
    problem = lb.quantization_problem(lb.Layer.from_activations(rng.normal(size=(1, 5)), x), bits=5)
    assert lb.solve(problem, time_limit=20.0, jobs=1).status == [Status.OPTIMAL]


def test_no_status_names_a_limit_that_nobody_set() -> None:
    for number, kind in enumerate([*MULTIPLES, *OTHERS]):
        layer = make_layer(kind, 13, number)
        for problem in (
            lb.pruning_problem(layer, k=6),
            lb.pruning_problem(layer, k=6, pattern="block:3"),
            lb.pruning_problem(layer, k=6, refit=False),
            lb.quantization_problem(layer, bits=2),
        ):
            solution = lb.solve(problem, time_limit=60.0, jobs=1)
            assert solution.status[0] in (Status.OPTIMAL, Status.UNRESOLVED)
            assert solution.lower_bound[0] <= solution.upper_bound[0]


def test_what_a_search_leaves_open_is_unresolved() -> None:
    problem = lb.pruning_problem(make_layer("negated", 6, 0), k=3)
    task = make_task(problem, 0, None, None)
    for termination in (Status.OPTIMAL, Status.GAP_REACHED):
        assert certify(task, RawSolve(None, termination), 0.0).status == Status.UNRESOLVED
    assert certify(task, RawSolve(None, Status.TIME_LIMIT), 0.0).status == Status.TIME_LIMIT


def test_a_broken_factorization_costs_one_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(task: Task[Support], limits: Control) -> RawSolve:
        raise np.linalg.LinAlgError("Singular matrix")

    monkeypatch.setattr(family, "search_pruning", broken)
    solution = lb.solve(lb.pruning_problem(make_layer("negated", 6, 0), k=3), jobs=1)
    assert solution.status == [Status.UNRESOLVED]
    assert "Singular matrix" in solution.notes[0][0]
    assert solution.lower_bound[0] == 0.0


@pytest.mark.parametrize("method", ["sparsegpt", "obs"])
def test_methods_without_damping_survive(method: str) -> None:
    for kind in ("zero weights", "tiny", "mixed scales", "thousandth"):
        problem = lb.pruning_problem(make_layer(kind, 9, 1), pattern="1:3", refit=False)
        weights = lb.run_heuristic(method, problem, damp=0.0)
        assert lb.evaluate(problem, weights).feasible.all()


def test_nothing_is_factorized_that_has_no_rows(capfd: pytest.CaptureFixture[str]) -> None:
    empty = np.zeros((0, 0))
    factor = cholesky(empty)
    assert factor is not None
    assert symmetric_inverse(factor).shape == (0, 0)
    assert inverse_diagonal(factor).shape == interior_start(empty).shape == (0,)
    rng = np.random.default_rng(0)
    layer = lb.Layer.from_activations(rng.normal(size=(1, 40)), rng.normal(size=(80, 40)))
    for pattern in ({"k": 0}, {"k": 0, "pattern": "block:4"}, {"k": 40}, {"k": 40, "pattern": "block:4"}):
        for refit in (True, False):
            solution = lb.solve(lb.pruning_problem(layer, refit=refit, **pattern), jobs=1)
            assert solution.status == [Status.OPTIMAL]
    captured = capfd.readouterr()
    assert "illegal" not in captured.out + captured.err


def test_exact_semidefiniteness() -> None:
    assert exact.is_positive_semidefinite(np.array([[1.0, -1.0], [-1.0, 1.0]]))
    assert not exact.is_positive_semidefinite(np.array([[1.0, -1.0], [-1.0, np.nextafter(1.0, 0.0)]]))
    assert not exact.is_positive_semidefinite(np.array([[0.0, 1e-300], [1e-300, 1.0]]))
    assert exact.is_positive_semidefinite(np.eye(3), 0)
    assert not exact.is_positive_semidefinite(np.array([[1.0, 0.5], [0.5, 1.0]]), 0)
    scales = 10.0 ** np.array([150.0, 0.0, -150.0])
    assert exact.is_positive_semidefinite((np.eye(3) + 0.5) * scales[:, None] * scales)


def test_a_raised_diagonal_is_reported_and_the_matrix_stays() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4, 9))
    gram = x.T @ x / 4
    gram = 0.5 * (gram + gram.T)
    layer = lb.Layer(rng.normal(size=(1, 9)), gram)
    raised = layer.gram_reports[0].raised
    np.testing.assert_array_equal(layer.gram[0], gram)
    assert 0.0 < raised < 1e-13
    assert not exact.is_positive_semidefinite(gram)
    assert exact.is_positive_semidefinite(raise_diagonal(gram, raised))
    assert lb.Layer(layer.weight, np.eye(9)).gram_reports[0].raised == 0.0
    # Exactly singular matrices need nothing.
    x = rng.integers(-4, 5, size=(4, 9)).astype(np.float64)
    assert lb.Layer(layer.weight, x.T @ x / 4).gram_reports[0].raised == 0.0


def test_an_exchange_that_divides_by_zero_costs_nothing() -> None:
    # The warm start keeps inputs whose combination makes another one, and its exchanges divide by that one's pivot.
    counts = np.array(
        [
            [20, 6, 1, 12, 0, 6],
            [6, 16, 2, 9, 2, -6],
            [1, 2, 14, 2, 12, 3],
            [12, 9, 2, 19, 6, 0],
            [0, 2, 12, 6, 19, 3],
            [6, -6, 3, 0, 3, 8],
        ]
    )
    target = np.array([[-0.473, 0.161, 0.295, -0.336, 0.778, -0.512]])
    layer = lb.Layer(target, counts * (1e24 / 9))
    problem = lb.pruning_problem(layer, pattern="1:3")
    start = np.array([[0.0, -5.47, 0.0, -5.25, 0.0, 0.0]])
    for weights in (start, np.array([[1.0, 0, 0, 1.0, 0, 0]]), np.array([[0, 0, 1.0, 0, 1.0, 0]])):
        check(problem, lb.solve(problem, warm_start=weights, jobs=1), optimum(problem))
        assert lb.evaluate(problem, lb.run_heuristic("swap", problem)).feasible.all()


def test_an_exchange_that_breaks_down_keeps_its_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(exchanges.subset, "improve", broken)
    problem = lb.pruning_problem(make_layer("negated", 9, 1), k=4)
    assert lb.evaluate(problem, lb.run_heuristic("swap", problem)).feasible.all()
    solution = lb.solve(problem, jobs=1, node_limit=1)
    assert lb.evaluate(problem, solution.weights).feasible.all()


def test_what_breaks_down_in_floating_point_is_solved_in_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(task: Task[Support], limits: Control) -> RawSolve:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(dispatch, "_branch_and_bound", broken)
    problem = lb.pruning_problem(make_layer("zero weights", 7, 1), k=3)
    solution = lb.solve(problem, jobs=1)
    assert solution.status == [Status.OPTIMAL] and solution.notes == {}
