"""Certified minima over masks that rows share: valid in exact arithmetic whatever the dual point is, and tight."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest

from layerbounds.arrays import Float, Int
from layerbounds.bounds import objective
from layerbounds.bounds.least import least
from layerbounds.bounds.minorants.blocks import start_blocks
from layerbounds.bounds.pruning import dual as pruning_dual
from layerbounds.exceptions import CertificationError
from layerbounds.kernels.exact import quadratic_form
from layerbounds.problems.patterns import Structure
from layerbounds.problems.shared_support import SharedSupport
from layerbounds.problems.support import Support
from layerbounds.proofs import BlockDual, SharedDual

KINDS = ("plain", "huge", "tiny", "mixed scales", "few positions", "doubled", "millionth", "zero weights")
#: Unit of each input, group of each unit, capacities.
STRUCTURES = (
    ([0, 1, 2, 3, 4, 5, 6], [0] * 7, [3]),
    ([0, 0, 1, 1, 2, 2, 2], [0] * 3, [2]),
    ([0, 1, 1, 0, 2, 3, 3], [0] * 4, [1]),
    ([0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 1, 1, 1], [2, 1]),
    ([0, 0, 1, 1, 2, 2, 3], [0, 0, 1, 1], [1, 1]),
    ([0] * 7, [0], [0]),
    ([0] * 7, [0], [1]),
)
#: As `layerbounds.bounds.pruning.dual.EXTENDED_WORK`.
PRECISIONS = {"extended": 1e9, "double": 0.0}


def structure_of(parts: tuple[list[int], list[int], list[int]]) -> Structure:
    unit, group, capacity = (np.array(part, dtype=np.int64) for part in parts)
    return Structure(unit, group, capacity)


def data(kind: str, rows: int, rng: np.random.Generator, n: int = 7) -> tuple[Float, Float]:
    """A Gram matrix and targets."""
    x, w = rng.normal(size=(3 * n, n)), rng.normal(size=(rows, n))
    if kind == "few positions":
        x = x[: n // 2]
    elif kind in ("doubled", "millionth"):
        x[:, 1] = {"doubled": 2.0, "millionth": 1 + 1e-6}[kind] * x[:, 0]
    elif kind in ("huge", "tiny"):
        x *= 1e120 if kind == "huge" else 1e-120
        w *= 10.0 ** rng.integers(-20, 20, size=(rows, 1))
    elif kind == "mixed scales":
        x *= 10.0 ** rng.integers(-30, 30, size=n)
        w *= 10.0 ** rng.integers(-5, 5, size=(rows, 1))
    elif kind == "zero weights":
        w[rng.random(w.shape) < 0.5] = 0.0
    gram = x.T @ x / len(x)
    return 0.5 * (gram + gram.T), w


def allowed_sets(structure: Structure) -> Iterator[list[int]]:
    """The inputs of all choices that the capacities allow."""
    parts = []
    for group, capacity in enumerate(structure.capacity):
        units = np.flatnonzero(structure.group == group).tolist()
        parts.append([c for j in range(int(capacity) + 1) for c in combinations(units, j)])
    for choice in product(*parts):
        units = [u for part in choice for u in part]
        yield np.flatnonzero(np.isin(structure.unit, units)).tolist()


def exact_minimum(gram: Float, targets: Float, allowed: SharedSupport) -> Fraction:
    """The least error, exactly; 0 where a stored matrix is indefinite on a choice."""
    h = [[Fraction(x) for x in row] for row in gram.tolist()]
    rows = [[Fraction(x) for x in row] for row in targets.tolist()]
    n = len(h)
    b = [[sum(h[i][j] * w[j] for j in range(n)) for i in range(n)] for w in rows]
    energy = sum(w[i] * bw[i] for w, bw in zip(rows, b, strict=True) for i in range(n))
    values = []
    for inside in allowed_sets(allowed.structure):
        if not allowed.refit:
            value = Fraction(0)
            for target, original in zip(rows, allowed.original.tolist(), strict=True):
                e = [(Fraction(original[i]) if i in inside else Fraction(0)) - target[i] for i in range(n)]
                value += sum(e[i] * h[i][j] * e[j] for i in range(n) for j in range(n))
            values.append(value)
            continue
        matrix = [[h[i][j] for j in inside] + [bw[i] for bw in b] for i in inside]
        values.append(max(energy - saved(matrix, len(inside)), Fraction(0)))
    return min(values)


def saved(matrix: list[list[Fraction]], m: int) -> Fraction:
    """Σ bᵀH⁻¹b by elimination of [H | b]; a pivot below 0, or of 0 beside a right side, saves everything."""
    total = Fraction(0)
    for k in range(m):
        pivot, rest = matrix[k][k], matrix[k][m:]
        if pivot < 0 or (pivot == 0 and any(rest)):
            return Fraction(10) ** 900
        if pivot == 0:
            continue
        total += sum(x * x for x in rest) / pivot
        for i in range(k + 1, m):
            factor = matrix[i][k] / pivot
            matrix[i] = [x - factor * y for x, y in zip(matrix[i], matrix[k], strict=True)]
    return total


def minorant(gram: Float, block: Int, share: float) -> Float:
    """Blocks below a Gram matrix; zeros where it is singular."""
    start = start_blocks(gram, [np.flatnonzero(block == b) for b in np.unique(block)])
    return np.zeros_like(gram) if start is None else share * start.matrix


def duals(gram: Float, targets: Float, structure: Structure, rng: np.random.Generator) -> Iterator[SharedDual]:
    """Good, bad and absurd ones."""
    rows, n = targets.shape
    units, groups = structure.unit, structure.group[structure.unit]
    one_class, own = np.zeros(rows, dtype=np.int64), np.arange(rows)
    share = min(max(float(structure.capacity.sum()) / len(structure.group), 0.01), 0.99)
    for block in (np.arange(n), units, groups, 7 - units // 2, np.zeros(n, dtype=np.int64), rng.integers(0, 3, n)):
        below = minorant(gram, block, 0.9)
        root = np.sqrt(np.diag(gram))
        relaxed = np.linalg.lstsq((gram + below * (1 / share - 1)) / root[:, None] / root, (targets @ gram / root).T)[0]
        for z in (relaxed.T / root, np.zeros_like(targets), targets * rng.normal(size=targets.shape), targets * 1e6):
            yield SharedDual(z, block, below[None], one_class)
            yield SharedDual(z, block, np.stack([below * s for s in rng.random(rows)]), own)
        point = targets * rng.random((rows, n))
        for wrong in (gram, 2 * gram, -gram, gram + np.triu(gram), rng.normal(size=gram.shape), np.zeros_like(gram)):
            yield SharedDual(point, block, wrong[None], one_class)
    yield SharedDual(np.full_like(targets, 1e300), units, minorant(gram, units, 0.9)[None], one_class)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("refit", [True, False])
def test_no_dual_point_bounds_too_much(
    kind: str, refit: bool, precision: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(pruning_dual, "EXTENDED_WORK", PRECISIONS[precision])
    for number, parts in enumerate(STRUCTURES):
        rows = 1 + number % 3
        gram, targets = data(kind, rows, rng)
        structure = structure_of(parts)
        original = targets if number % 2 else targets * (1 + 0.1 * rng.normal(size=targets.shape))
        allowed = SharedSupport(structure, original, refit)
        exact = exact_minimum(gram, targets, allowed)
        positive = 0
        for dual in duals(gram, targets, structure, rng):
            bound = least(gram, targets if rows > 1 else targets[0], allowed, dual)
            assert not np.isnan(bound)
            assert bound == -np.inf or Fraction(bound) <= exact
            positive += bound > 0
        # Errors below the rounding of f(0) cannot be seen, and singular matrices have no minorant.
        if exact > 0 and kind in ("plain", "huge", "tiny", "zero weights"):
            assert positive


@pytest.mark.parametrize("refit", [True, False])
def test_one_row_and_one_class_are_the_single_row(refit: bool, rng: np.random.Generator) -> None:
    gram, targets = data("plain", 1, rng)
    structure = structure_of(STRUCTURES[1])
    for block in (structure.unit, np.arange(7), np.zeros(7, dtype=np.int64)):
        z, below = 0.7 * targets, minorant(gram, block, 1.0)
        shared = SharedDual(z, block, below[None], np.zeros(1, dtype=np.int64))
        one = least(gram, targets[0], SharedSupport(structure, targets, refit), shared)
        assert one == least(gram, targets[0], Support(structure, targets[0], refit), BlockDual(z[0], block, below))


@pytest.mark.parametrize("refit", [True, False])
def test_both_precisions_agree(refit: bool, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    gram, targets = data("plain", 40, rng, n=24)
    structure = Structure(np.arange(24) // 3, np.zeros(8, dtype=np.int64), np.array([3]))
    allowed = SharedSupport(structure, targets, refit)
    for block in (np.arange(24), structure.unit, structure.unit // 2):
        dual = SharedDual(0.5 * targets, block, minorant(gram, block, 1.0)[None], np.zeros(40, dtype=np.int64))
        bounds = []
        for work in PRECISIONS.values():
            monkeypatch.setattr(pruning_dual, "EXTENDED_WORK", work)
            bounds.append(least(gram, targets, allowed, dual))
        extended, double = bounds
        energy = float(np.sum((targets @ gram) * targets))
        assert extended - 1e-9 * energy <= double <= extended


def test_bounds_of_uncoupled_inputs_are_optima(rng: np.random.Generator) -> None:
    # With H diagonal the point z = w says everything: each dropped input costs its energy.
    targets, h = rng.normal(size=(5, 8)), rng.uniform(0.5, 2.0, size=8)
    structure = Structure(np.arange(8) // 2, np.zeros(4, dtype=np.int64), np.array([2]))
    energy = (targets**2 * h).sum(axis=0).reshape(4, 2).sum(axis=1)
    matrix = np.diag(h * (1 - 1e-12))
    for block in (np.arange(8), structure.unit, structure.unit // 2):
        for refit in (True, False):
            dual = SharedDual(targets, block, matrix[None], np.zeros(5, dtype=np.int64))
            bound = least(np.diag(h), targets, SharedSupport(structure, targets, refit), dual)
            np.testing.assert_allclose(bound, np.sort(energy)[:2].sum(), rtol=1e-9)
            assert bound <= np.sort(energy)[:2].sum()


def test_larger_blocks_and_more_classes_contain_the_smaller(rng: np.random.Generator) -> None:
    """Larger blocks contain the smaller ones, a matrix of each row the common one."""
    gram, targets = data("plain", 3, rng)
    structure = structure_of(([0, 0, 1, 1, 2, 3, 3], [0] * 4, [2]))
    allowed = SharedSupport(structure, targets, True)
    below, many = minorant(gram, structure.unit, 1.0), np.arange(3)
    whole = np.zeros(7, dtype=np.int64)
    bounds = [
        least(gram, targets, allowed, SharedDual(0.6 * targets, block, matrices, row_class))
        for block, matrices, row_class in (
            (structure.unit, below[None], 0 * many),
            (structure.unit // 2, below[None], 0 * many),
            (whole, below[None], 0 * many),
            (structure.unit, np.stack([below] * 3), many),
        )
    ]
    np.testing.assert_allclose(bounds, bounds[0], rtol=1e-9)


@pytest.mark.parametrize(
    "change",
    [
        {"points": np.zeros((2, 6))},
        {"points": np.full((2, 7), np.nan)},
        {"matrices": np.zeros((7, 7))},
        {"row_class": np.array([0, 1])},
        {"row_class": np.array([-1, 0])},
        {"block": np.zeros(6, dtype=np.int64)},
    ],
)
def test_malformed_dual_points_are_refused(change: dict[str, Float], rng: np.random.Generator) -> None:
    gram, targets = data("plain", 2, rng)
    parts = {
        "points": targets,
        "block": np.arange(7),
        "matrices": np.zeros((1, 7, 7)),
        "row_class": np.zeros(2, dtype=np.int64),
    }
    allowed = SharedSupport(structure_of(STRUCTURES[0]), targets, True)
    with pytest.raises(CertificationError, match="invalid dual point"):
        least(gram, targets, allowed, SharedDual(**{**parts, **change}))


def test_errors_of_many_rows_are_enclosed(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    gram, targets = data("plain", 5, rng)
    weights = np.where(rng.random(targets.shape) < 0.5, 0.0, targets * 1.1)
    exact = sum((quadratic_form(gram, w, v) for w, v in zip(targets, weights, strict=True)), Fraction(0))
    for work in (1e9, 0.0):
        monkeypatch.setattr(objective, "EXTENDED_WORK", work)
        low, high = objective.objective_interval(gram, targets, weights)
        assert Fraction(low) <= exact <= Fraction(high)
        assert high - low <= 1e-12 * high
        assert objective.objective_interval(gram, targets, targets) == (0.0, 0.0)
        assert objective.objective_interval(gram, targets, weights * 1e200)[1] > 1e300
