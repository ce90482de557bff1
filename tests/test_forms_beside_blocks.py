"""The relaxation with blocks and integer forms: valid for every box and level, and stronger than either alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matrices import correlated, never
from scipy.sparse import csc_array

import layerbounds as lb
from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.clusters import make_clusters
from layerbounds.bounds.minorants.semidefinite import is_positive_semidefinite
from layerbounds.bounds.quantization.block_boxes import BlockBoxes
from layerbounds.bounds.quantization.block_forms import refine_block_forms
from layerbounds.bounds.quantization.block_relaxation import BlockRelaxation, refine_blocks
from layerbounds.bounds.quantization.split_relaxation import SplitWeights, refine_split
from layerbounds.kernels.quantization.form_weights import ascend_weights
from layerbounds.problems.tasks import make_task
from layerbounds.search.quantization.grid_units import UnitProblem, make_units
from layerbounds.search.quantization.preparation import order_exponent, prepare
from layerbounds.search.quantization.split_forms import prepare_split


def channel(seed: int, n: int, bits: int, scale: float = 1.0) -> UnitProblem:
    rng = np.random.default_rng([n, bits, seed])
    layer = lb.Layer(weight=rng.normal(size=(1, n)), gram=scale * correlated(rng, n))
    task = make_task(lb.quantization_problem(layer, bits=bits), 0, None, None)
    return make_units(task, prepare(task.gram, order_exponent(n)))


def blocks_of(n: int, size: int) -> list[Int]:
    return [np.arange(first, min(first + size, n)) for first in range(0, n, size)]


def root_of(unit: UnitProblem, members: list[Int], rounds: int = 12) -> BlockRelaxation | None:
    split = prepare_split(unit.prep)
    if split is None:
        split = SplitWeights(np.zeros((unit.size, 0)), unit.minorants[unit.size], np.zeros(0))
    return refine_block_forms(
        unit.gram, unit.covariance, unit.origin, unit.levels, unit.count, split, unit.origin,
        members, rounds,
    )  # fmt: skip


def points_and_values(unit: UnitProblem) -> tuple[Float, Float]:
    points = np.array(list(itertools.product(*(range(int(high) + 1) for high in unit.high))), dtype=np.float64)
    deviation = points - unit.origin
    return points, np.einsum("pi,ij,pj->p", deviation, unit.gram, deviation)


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e9])
@pytest.mark.parametrize("seed", range(6))
def test_bounds_of_the_grid_of_levels_and_of_boxes_hold(seed: int, scale: float) -> None:
    n, bits = (6, 2) if seed % 2 else (4, 3)
    unit, rng = channel(seed, n, bits, scale), np.random.default_rng(seed)
    points, values = points_and_values(unit)
    root = root_of(unit, blocks_of(n, 1 + seed % 3))
    assert root is not None
    assert root.split is not None
    assert 0.0 < root.value <= values.min()
    for i, level in itertools.product(range(n), range(2**bits)):
        at = root.value + root.terms[level, i] - root.terms[:, i].min()
        assert at <= values[points[:, i] == level].min()
    members = [np.flatnonzero(root.block == g) for g in np.unique(root.block)]
    boxes = BlockBoxes(unit.gram, unit.origin, members, root.matrix, root.split.forms, root.split.weights)
    assert boxes.usable
    for _ in range(6):
        ends = np.sort(rng.integers(0, 2**bits, (2, n)), axis=0).astype(np.float64)
        z, state = np.empty(n), boxes.start(np.clip(root.z, *ends))
        inside = np.all((points >= ends[0]) & (points <= ends[1]), axis=1)
        for count in (1, 4, 30):
            boxes.iterate(*ends, state, z, count)
            assert np.all((state.corral[:, 0, :1] >= 0) & (state.size[:, None] >= 1))
            assert boxes.bound(*ends, state, z, np.inf) <= values[inside].min()
    # One point: the bound there is its error.
    state = boxes.start(points[0])
    found = boxes.bound(points[0], points[0], state, points[0], np.inf)
    assert values[0] * (1 - 1e-9) <= found <= values[0] * (1 + 1e-15)


@pytest.mark.parametrize("seed", range(3))
def test_both_are_worth_more_than_either(seed: int) -> None:
    unit = channel(seed, 24, 3)
    problem = unit.gram, unit.origin, unit.levels
    split = prepare_split(unit.prep)
    assert split is not None
    members = make_clusters(unit.gram, 9, np.zeros(24, dtype=np.int64), np.arange(24))
    assert members is not None
    forms = refine_split(unit.gram, unit.covariance, *problem[1:], split, unit.origin, 30, never)
    blocks = refine_blocks(*problem, unit.count, unit.minorants[24], unit.origin, members)
    both = root_of(unit, members, 30)
    assert blocks is not None
    assert both is not None
    assert both.value > max(forms.value, blocks.value)


def test_the_kernel_agrees_with_the_relaxation() -> None:
    unit = channel(1, 20, 3)
    root = root_of(unit, blocks_of(20, 5))
    assert root is not None
    assert root.split is not None
    members = [np.flatnonzero(root.block == g) for g in np.unique(root.block)]
    boxes = BlockBoxes(unit.gram, unit.origin, members, root.matrix, root.split.forms, root.split.weights)
    state = boxes.start(root.z)
    boxes.set_multipliers(state, root.z, root.split.multipliers)
    assert np.allclose(boxes.multipliers(state, root.z), root.split.multipliers, rtol=1e-9, atol=1e-12)
    found = boxes.bound(unit.low, unit.high, state, root.z, np.inf)
    assert found == pytest.approx(root.value, rel=1e-7)
    copied = state.copy()
    boxes.iterate(unit.low, unit.high, copied, root.z.copy(), 3)
    assert not np.array_equal(copied.y, state.y)
    assert state.nbytes == copied.nbytes > 0


def test_a_proven_minorant_is_needed_and_time_ends_the_work() -> None:
    unit = channel(2, 12, 2)
    n = unit.size
    nothing = SplitWeights(np.zeros((n, 0)), np.zeros(n), np.zeros(0))
    rest = unit.origin, unit.levels, unit.count
    members = blocks_of(n, 4)
    assert refine_block_forms(unit.gram, unit.covariance, *rest, nothing, unit.origin, members) is None
    some = SplitWeights(np.zeros((n, 0)), unit.minorants[n], np.zeros(0))
    given = unit.gram, unit.covariance, *rest, some, unit.origin, members
    assert refine_block_forms(*given, spent=lambda: 1.0) is None
    shares = iter([0.0, 0.7, 1.0])
    found = refine_block_forms(*given, spent=lambda: next(shares))
    assert found is not None
    matrix = found.matrix
    assert is_positive_semidefinite(unit.gram - matrix)


@pytest.mark.parametrize("seed", range(5))
def test_weights_stay_feasible_and_the_inverse_follows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, cuts = 9, 14
    gram = correlated(rng, n)
    forms = rng.integers(-1, 2, (n, cuts)).astype(np.float64)
    weights = rng.random(cuts)
    weights *= 0.5 / np.linalg.eigvalsh(np.linalg.solve(gram, (forms * weights) @ forms.T)).max().real
    weights[0] = 0.0
    expected, columns = rng.random(cuts), csc_array(forms)
    inverse = np.linalg.inv(gram - (forms * weights) @ forms.T)
    before = float(expected @ weights) + 0.1 * np.linalg.slogdet(gram - (forms * weights) @ forms.T)[1]
    for _ in range(4):
        ascend_weights(
            inverse, columns.indptr.astype(np.int64), columns.indices.astype(np.int64), columns.data.astype(float),
            weights, expected, 0.1, np.arange(cuts),
        )  # fmt: skip
    rest = gram - (forms * weights) @ forms.T
    assert np.linalg.eigvalsh(rest).min() > 0
    assert np.allclose(inverse @ rest, np.eye(n), atol=1e-6)
    assert weights[0] == 0.0
    assert float(expected @ weights) + 0.1 * np.linalg.slogdet(rest)[1] > before
