"""Certified minima over levels on a support: never above the exact optimum, whatever backends hand over."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from test_rows_of_supports import KINDS, layer_of, minorant

import layerbounds as lb
from benchmarks.exact import Channel
from layerbounds.arrays import Float, Int
from layerbounds.bounds.joint import block_dual
from layerbounds.bounds.least import least
from layerbounds.certify.interval import certify
from layerbounds.exceptions import CertificationError
from layerbounds.problems.grids import Grid
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import BlockDual, BoundKind, DualPoint, FormTerms, RawSolve, Status

GRIDS: tuple[dict[str, Any], ...] = (
    {"bits": 2},
    {"bits": 1},
    {"bits": 2, "symmetric": False, "granularity": 2},
    {"codebook": "ternary"},
    {"codebook": [-1.0, -0.25, 0.4, 2.0]},
    {"weights": True},
)
PATTERNS: tuple[dict[str, Any], ...] = (
    {"k": 0},
    {"k": 2},
    {"k": 5},
    {"pattern": "1:3"},
    {"pattern": "2:4"},
    {"pattern": "block:2", "k": 3},
)
N = 5

JointTask = Task[LevelsOnSupport]


@cache
def tasks_of(kind: str, grid: int, pattern: int) -> list[JointTask]:
    layer = layer_of(kind, N, 2, grid + 7 * pattern)
    given, rule = dict(GRIDS[grid]), dict(PATTERNS[pattern])
    if "weights" in given:
        given = {"weights": layer.matrix}
    if "k" in rule:
        rule["k"] = min(rule["k"], layer.in_features)
    problem = lb.joint_problem(layer, **given, **rule)
    return [make_task(problem, row, None, None) for row in range(layer.out_features)]


@cache
def choices(task: JointTask) -> Int:
    """The allowed points, as positions in the lists of values."""
    values = task.allowed.values
    every = np.array(list(product(range(values.shape[1]), repeat=len(values))), dtype=np.int64)
    points = values[np.arange(len(values)), every]
    return every[task.allowed.structure.excess(points) == 0]


@cache
def optimum_of(task: JointTask) -> Fraction:
    return Channel(task.gram, task.target, 0.0).best_point(task.allowed.values, choices(task)).value


@cache
def best_point(task: JointTask) -> Float:
    """An optimum, as far as float64 tells."""
    values = task.allowed.values
    points = values[np.arange(len(values)), choices(task)]
    error = np.einsum("ri,ij,rj->r", points - task.target, task.gram, points - task.target)
    return points[np.argmin(error)]


def points_of(task: JointTask, rng: np.random.Generator) -> Iterator[Float]:
    """Good and bad ones."""
    best, target = best_point(task), task.target
    size = np.abs(task.allowed.values).max(axis=1)
    yield target
    yield best
    yield 0.5 * (target + best) + 0.1 * rng.normal(size=len(target)) * size
    yield 30.0 * rng.normal(size=len(target)) * size
    yield np.zeros(len(target))


@pytest.mark.parametrize("kind", KINDS)
def test_no_bound_of_a_diagonal_exceeds_the_optimum(kind: str) -> None:
    rng = np.random.default_rng(KINDS.index(kind))
    for grid in range(len(GRIDS)):
        for pattern in range((grid + KINDS.index(kind)) % 3, len(PATTERNS), 3):
            for task in tasks_of(kind, grid, pattern):
                optimum = optimum_of(task)
                for share in (0.0, 0.999999, 3.0, -1.0):
                    d = minorant(task.gram, rng, share)
                    for z in points_of(task, rng):
                        bound = least(task.gram, task.target, task.allowed, DualPoint(z, d))
                        assert np.isfinite(bound)
                        assert Fraction(bound) <= optimum, (grid, pattern, share)


def blocks_of(n: int, rng: np.random.Generator) -> Iterator[Int]:
    """Whole groups, parts of groups, cut units and groups, single inputs, everything."""
    index = np.arange(n)
    yield index // 2
    yield index // 3
    yield index // 4
    yield rng.integers(-2, 2, size=n)
    yield index
    yield np.zeros(n, dtype=np.int64)


def block_minorant(gram: Float, block: Int, rng: np.random.Generator, share: float) -> Float:
    """A random block-diagonal matrix about as large as the matrix allows, or too large."""
    same = block[:, None] == block
    norm = np.sqrt(np.diag(gram))
    mixing = rng.normal(size=gram.shape)
    b = np.where(same, rng.choice([0.0, 1.0]) * gram + 0.3 * (mixing @ mixing.T) * np.outer(norm, norm), 0.0)
    values, vectors = np.linalg.eigh(b / np.outer(norm, norm))
    root = norm[:, None] * vectors * np.sqrt(np.maximum(values, 1e-12))
    inside = np.linalg.solve(root, np.linalg.solve(root, gram).T)
    return share * max(float(np.linalg.eigvalsh(0.5 * (inside + inside.T))[0]), 0.0) * b


@pytest.mark.parametrize("kind", KINDS)
def test_no_bound_of_blocks_exceeds_the_optimum(kind: str) -> None:
    rng = np.random.default_rng(KINDS.index(kind))
    for grid in range(len(GRIDS)):
        for pattern in range((grid + KINDS.index(kind)) % 3, len(PATTERNS), 3):
            for task in tasks_of(kind, grid, pattern):
                optimum = optimum_of(task)
                for block in blocks_of(len(task.gram), rng):
                    share = float(rng.choice([0.0, 0.5, 0.999999, 3.0, -1.0]))
                    matrix = block_minorant(task.gram, block, rng, share)
                    if rng.random() < 0.2:
                        # What lies between blocks is ignored, and asymmetry is.
                        matrix = matrix + np.triu(rng.normal(size=matrix.shape)) * np.abs(matrix).max()
                    for z in list(points_of(task, rng))[: 2 if share else 1]:
                        bound = least(task.gram, task.target, task.allowed, BlockDual(z, block, matrix))
                        assert np.isfinite(bound)
                        assert Fraction(bound) <= optimum, (grid, pattern, share, block)


@pytest.mark.parametrize("pattern", range(len(PATTERNS)))
@pytest.mark.parametrize("grid", range(len(GRIDS)))
def test_one_block_of_everything_closes_the_interval(grid: int, pattern: int) -> None:
    for task in tasks_of("plain", grid, pattern):
        n, optimum = len(task.gram), float(optimum_of(task))
        for z in (task.target, best_point(task), np.zeros(n)):
            dual = BlockDual(z, np.zeros(n, dtype=np.int64), task.gram * (1 - 1e-12))
            assert least(task.gram, task.target, task.allowed, dual) == pytest.approx(
                optimum, rel=1e-8, abs=1e-9 * task.energy
            )


def test_counts_of_blocks_share_the_capacity_out() -> None:
    # H of two blocks: the bound of z = w and B = H is the optimum itself, whatever the blocks keep each.
    rng = np.random.default_rng(11)
    gram = np.zeros((6, 6))
    for part in (slice(0, 2), slice(2, 6)):
        x = rng.normal(size=(9, part.stop - part.start))
        gram[part, part] = x.T @ x / 9
    block = np.array([0, 0, 1, 1, 1, 1])
    weight = rng.normal(size=(2, 6))
    for rule in ({"k": 1}, {"k": 3}, {"k": 5}, {"pattern": "block:2", "k": 4}, {"pattern": "1:2"}):
        problem = lb.joint_problem(lb.Layer(weight, gram), 2, **rule)  # type: ignore[arg-type]
        for row in range(2):
            task = make_task(problem, row, None, None)
            bound = least(gram, task.target, task.allowed, BlockDual(task.target, block, gram * (1 - 1e-12)))
            assert bound == pytest.approx(float(optimum_of(task)), rel=1e-9)
            # One block alone is searched, and inputs on their own take their share of the same capacity.
            single = np.where(block == 0, np.arange(6) - 9, 1)
            matrix = np.where(single[:, None] == single, gram, 0.0)
            matrix[:2, :2] = np.diag(np.diag(gram)[:2] - abs(gram[0, 1]))
            mixed = least(gram, task.target, task.allowed, BlockDual(task.target, single, matrix * (1 - 1e-12)))
            assert 0.0 < mixed <= bound


def test_blocks_of_single_inputs_are_a_diagonal() -> None:
    rng = np.random.default_rng(2)
    for grid in range(len(GRIDS)):
        for task in tasks_of("plain", grid, 1):
            d = minorant(task.gram, rng, 0.9)
            z = 0.5 * (task.target + best_point(task))
            one = least(task.gram, task.target, task.allowed, DualPoint(z, d))
            other = least(task.gram, task.target, task.allowed, BlockDual(z, np.arange(N), np.diag(d)))
            assert other == pytest.approx(one, rel=1e-9, abs=1e-12 * task.energy)


def test_a_price_takes_the_place_of_the_knapsack(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(21)
    x = rng.normal(size=(40, 12))
    problem = lb.joint_problem(lb.Layer(rng.normal(size=(4, 12)), x.T @ x / 40), 2, k=5)
    block, gaps = np.arange(12) // 3, []
    for row in range(4):
        task = make_task(problem, row, None, None)
        dual = BlockDual(0.5 * task.target, block, block_minorant(task.gram, block, rng, 0.9))
        with monkeypatch.context() as patch:
            exact = least(task.gram, task.target, task.allowed, dual)
            patch.setattr(block_dual, "MOST_SHARED", 0)
            priced = least(task.gram, task.target, task.allowed, dual)
        assert priced <= exact + 1e-12 * task.energy
        gaps.append((exact - priced) / task.energy)
    # Only what one block loses by a hull that it does not reach.
    assert 0.0 <= max(gaps) < 0.2


def test_with_a_diagonal_matrix_the_bound_is_the_optimum() -> None:
    rng = np.random.default_rng(3)
    gram, weight = np.diag(rng.uniform(0.5, 2.0, size=6)), rng.normal(size=(1, 6))
    for rule in PATTERNS:
        problem = lb.joint_problem(lb.Layer(weight, gram), 2, **rule)
        task = make_task(problem, 0, None, None)
        bound = least(gram, weight[0], task.allowed, DualPoint(weight[0], np.diag(gram) * (1 - 1e-13)))
        optimum = float(optimum_of(task))
        assert bound <= optimum
        assert bound == pytest.approx(optimum, rel=1e-9, abs=1e-12)


def test_points_that_overflow_prove_nothing() -> None:
    task = tasks_of("plain", 0, 1)[0]
    d = 0.5 * np.full(N, np.linalg.eigvalsh(task.gram)[0])
    for z in (np.full(N, 1e300), np.full(N, 1e160)):
        assert least(task.gram, task.target, task.allowed, DualPoint(z, d)) <= optimum_of(task)
        blocks = BlockDual(z, np.arange(N) // 2, np.diag(d))
        assert least(task.gram, task.target, task.allowed, blocks) <= optimum_of(task)


def test_integer_forms_are_refused() -> None:
    task = tasks_of("plain", 0, 1)[0]
    forms = FormTerms(np.ones((N, 1)), np.ones(1), np.zeros(1))
    with pytest.raises(CertificationError, match="integer forms"):
        least(task.gram, task.target, task.allowed, DualPoint(task.target, np.zeros(N), forms))


def layer_with_dead_inputs(rng: np.random.Generator) -> lb.Layer:
    x = rng.normal(size=(12, 5))
    x[:, [1, 4]] = 0.0
    return lb.Layer.from_activations(rng.normal(size=(2, 5)), x)


def degenerate() -> Iterator[tuple[str, lb.Layer, str]]:
    """What a family must survive: the name, the layer, and what happens to the bias."""
    rng = np.random.default_rng(8)
    x, w = rng.normal(size=(20, 5)), rng.normal(size=(2, 5))
    yield "compressed inputs", lb.Layer.from_activations(w, x, compressed_inputs=np.round(x, 1)), "keep"
    yield "bias", lb.Layer.from_activations(w, x + 1.0), "refit"
    grouped = np.stack([x[:, :3].T @ x[:, :3] / 20, x[:, 2:].T @ x[:, 2:] / 20])
    yield "groups", lb.Layer(rng.normal(size=(4, 3)), grouped), "keep"
    yield "dead inputs", layer_with_dead_inputs(rng), "keep"
    yield "singular", lb.Layer.from_activations(w, x[:2]), "keep"
    yield "one live input", lb.Layer(w, np.diag([0.0, 0.0, 1.0, 0.0, 0.0])), "keep"
    yield "no live input", lb.Layer(w, np.zeros((5, 5))), "keep"
    yield "one input", lb.Layer(w[:, :1], np.ones((1, 1))), "keep"


@pytest.mark.parametrize(("name", "layer", "bias"), list(degenerate()))
def test_degenerate_layers_get_valid_intervals(name: str, layer: lb.Layer, bias: Any) -> None:
    rng = np.random.default_rng(4)
    rules = ({"k": 0}, {"k": min(2, layer.in_features)}, {"k": layer.in_features}, {"pattern": "1:2"})
    for given in ({"bits": 2}, {"bits": 1}):
        for rule in rules:
            problem = lb.joint_problem(layer, **given, **rule, bias=bias)  # type: ignore[arg-type]
            for row in range(layer.out_features):
                task = make_task(problem, row, None, None)
                optimum = optimum_of(task) + Fraction(float(task.constant))
                d = minorant(task.gram, rng, 0.9) if len(task.gram) else np.zeros(0)
                for z in (task.target, 0.5 * task.target):
                    found = certify(task, RawSolve(None, Status.RELAXED, dual=DualPoint(z, d)), 0.0)
                    assert Fraction(found.lower) <= optimum <= Fraction(found.upper)
                    assert found.lower >= task.constant >= 0.0
                if name == "compressed inputs":
                    assert task.constant > 0
                    assert found.bound_kind in (BoundKind.DUAL, BoundKind.TRIVIAL)


def test_zero_may_stand_twice_or_be_negative() -> None:
    # Rows of levels of one length need a second zero where others have none at all.
    gram, target = np.diag([1.0, 2.0, 0.5]), np.array([[0.4, -1.2, 0.3]])
    grid = Grid(
        codes=np.array([-1.0, 0.0, 1.0]),
        scale=np.ones((1, 3)),
        zero_point=np.array([[0.0, 0.5, 0.0]]),
        in_features=3,
        uniform=True,
        label="own",
        group=np.arange(3),
    )
    task = make_task(lb.joint_problem(lb.Layer(target, gram), grid=grid, k=2), 0, None, None)
    assert task.allowed.values.shape == (3, 4)
    bound = least(gram, target[0], task.allowed, DualPoint(target[0], np.diag(gram) * (1 - 1e-13)))
    assert bound == pytest.approx(float(optimum_of(task)), rel=1e-9)
