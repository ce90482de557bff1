"""The checker's searches and trees of codes against all points of small grids."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest

from layerbounds_verify.bounds import Minorant, prove
from layerbounds_verify.boxes import over_boxes
from layerbounds_verify.codes import over_codes
from layerbounds_verify.divisions import over_divisions
from layerbounds_verify.exact import RefusedError


def _problem(rng: np.random.Generator) -> dict[str, Any]:
    n, levels = 5, int(rng.integers(2, 5))
    x = rng.normal(size=(int(rng.integers(3, 12)), n)) + rng.normal(size=n)
    gram = x.T @ x / len(x)
    gram = 0.5 * (gram + gram.T)
    scale = np.exp(rng.normal(size=n)) * 0.3
    zero = rng.integers(0, levels, n).astype(np.float64) if rng.random() < 0.5 else rng.normal(size=n)
    target = scale * rng.normal(size=n) * 2.0
    values, count = scale[:, None] * (np.arange(levels) - zero[:, None]), np.full(n, levels)
    if rng.random() < 0.5:
        # Some inputs have the first level alone.
        count[rng.permutation(n)[:2]] = 1
        values = np.where(count[:, None] == 1, values[:, :1], values)
    return {"gram": gram, "target": target, "values": values, "scale": scale, "zero": zero, "count": count}


def _lattice(problem: dict[str, Any]) -> tuple[Any, Any, Any]:
    return problem["scale"], problem["zero"], problem["count"]


def _errors(problem: dict[str, Any]) -> list[Fraction]:
    """Of all points, exactly, the least first."""
    gram = [[Fraction(h) for h in row] for row in problem["gram"].tolist()]
    target = [Fraction(w) for w in problem["target"].tolist()]
    found = []
    for point in product(*(sorted(set(row)) for row in problem["values"].tolist())):
        t = [Fraction(v) - w for v, w in zip(point, target, strict=True)]
        found.append(sum(a * h * b for a, row in zip(t, gram, strict=True) for h, b in zip(row, t, strict=True)))
    return sorted(found)


def _forms(rng: np.random.Generator, gram: Any, scale: Any, share: float) -> tuple[Any, Any, Any]:
    """Integer forms with a diagonal and weights below a matrix, as far as that is positive definite."""
    n, cuts = len(gram), 4
    forms = rng.integers(-2, 3, (n, cuts)).astype(np.float64)
    smallest = max(float(np.linalg.eigvalsh(gram)[0]), 0.0)
    columns = forms / scale[:, None]
    weights = 0.4 * share * smallest / (np.linalg.norm(columns, 2) ** 2 + 1e-9) * np.ones(cuts)
    return forms, np.full(n, 0.55 * share * smallest), weights


@pytest.mark.parametrize("seed", range(12))
def test_searches_of_codes_find_the_least_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = _problem(rng)
    n = len(problem["gram"])
    order = rng.permutation(n)
    ordered = problem["gram"][np.ix_(order, order)]
    minorants = np.zeros((n + 1, n))
    for k in range(1, n + 1):
        minorants[k, :k] = 0.95 * max(np.linalg.eigvalsh(ordered[:k, :k])[0], 0.0)
    forms, d, weights = _forms(rng, ordered, problem["scale"][order], 1.0)
    tests = forms, np.array([[n, 3], [2, 2]]), np.stack([d, d]), np.stack([weights, weights])
    z = problem["target"] * (1.0 + rng.choice([0.0, 0.1, 2.0]) * rng.normal(size=n))
    least = _errors(problem)[0]
    rest = order, z, minorants
    given = problem["gram"], problem["target"], problem["values"], *rest
    for own in (None, tests):
        assert over_codes(*given, least, *_lattice(problem), own) == least
        with pytest.raises(RefusedError, match="smaller error"):
            over_codes(*given, least * (1 + Fraction(1, 10**12)), *_lattice(problem), own)


@pytest.mark.parametrize("change", [0.5, np.nan, -1.0])
def test_forms_of_a_search_that_are_none_are_refused(change: float) -> None:
    rng = np.random.default_rng(3)
    problem = _problem(rng)
    n = len(problem["gram"])
    forms, d, weights = _forms(rng, problem["gram"], problem["scale"], 1.0)
    rest = np.arange(n), problem["target"], np.zeros((n + 1, n))
    given = problem["gram"], problem["target"], problem["values"], *rest, Fraction(0)
    depths = np.array([[n, 2]])
    wrong = (forms * change, depths, d[None], weights[None]), (forms, depths, d[None], change * (weights + 1e-3)[None])
    with pytest.raises(RefusedError, match=r"small integers|negative"):
        over_codes(*given, *_lattice(problem), wrong[0 if change == 0.5 else 1])
    with pytest.raises(RefusedError, match="wrong shape"):
        over_codes(*given, *_lattice(problem), (forms[1:], depths, d[None], weights[None]))


@pytest.mark.parametrize("seed", range(6))
def test_boxes_of_codes_are_bounded_from_below(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = _problem(rng)
    n, levels = problem["values"].shape
    forms, d, weights = _forms(rng, problem["gram"], problem["scale"], 0.9)
    shift = np.full(n, 1e-9)
    minorant = Minorant(d, shift, [], forms.astype(np.int8), weights)
    prove(problem["gram"], minorant, problem["scale"], False)
    # One input divided at each level, and the others into two at one of them.
    axis, at, child, leaves = [], [], [], []
    stack = [(0, 0)]
    axis.append(-1), at.append(-1), child.append(-1)
    while stack:
        node, depth = stack.pop()
        if depth == 3:
            child[node] = len(leaves)
            leaves.append(node)
            continue
        axis[node], at[node], child[node] = int(rng.integers(n)), int(rng.integers(1, levels)), len(axis)
        for _ in range(2):
            stack.append((len(axis), depth + 1))
            axis.append(-1), at.append(-1), child.append(-1)
    parts = {
        "axis": np.array(axis, dtype=np.int32),
        "at": np.array(at, dtype=np.int32),
        "child": np.array(child, dtype=np.int32),
        "z": (problem["target"] * (1.0 + 0.3 * rng.normal(size=(len(leaves), n)))).astype(np.float32),
        "multipliers": rng.integers(-9000, 9000, (len(leaves), len(weights))).astype(np.int16),
    }
    found = over_boxes(problem["target"], problem["gram"], problem["values"], minorant, parts, *_lattice(problem))
    assert found <= _errors(problem)[0]


@pytest.mark.parametrize("seed", range(8))
def test_divisions_find_the_least_error_of_free_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, count = 6, int(rng.integers(1, 4))
    x = rng.normal(size=(4 if seed % 2 else 12, n))
    gram = x.T @ x + 0.1 * np.eye(n) * (seed % 3 == 0)
    gram, target = 0.5 * (gram + gram.T), rng.normal(size=n)
    d = np.full(n, 0.9 * max(np.linalg.eigvalsh(gram)[0], 0.0))
    least = np.inf
    for labels in product(range(count), repeat=n):
        member = np.eye(count)[list(labels)]
        root = np.linalg.cholesky(gram + 1e-13 * np.eye(n)).T
        rest = root @ target - root @ member @ np.linalg.lstsq(root @ member, root @ target, rcond=None)[0]
        least = min(least, float(rest @ rest))
    low = Fraction(least * (1 - 1e-6) - 1e-12)
    assert over_divisions(gram, target, count, d, low) == low
    with pytest.raises(RefusedError, match="smaller error"):
        over_divisions(gram, target, count, d, Fraction(least * (1 + 1e-6) + 1e-11))
