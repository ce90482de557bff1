"""Singular and nearly singular Gram matrices: every interval closes, and holds in exact arithmetic."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.layers.gram import raise_diagonal
from layerbounds.proofs import OPTIMAL_ABSOLUTE, OPTIMAL_RELATIVE, Status

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
    structure = problem.structure()
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
    assert Fraction(float(lower)) <= best <= Fraction(float(upper))
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
