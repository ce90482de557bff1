"""Block relaxations of joint problems against exact enumeration (docs/joint-blocks.md)."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.bounds.joint import ascent, relaxation
from layerbounds.bounds.joint.ascent import adopt, improve
from layerbounds.bounds.joint.block_dual import block_bound
from layerbounds.bounds.joint.newton import BlockNewton
from layerbounds.bounds.joint.nodes import relax_node
from layerbounds.bounds.joint.relaxation import JointRoot, joint_members, pack_blocks
from layerbounds.bounds.joint.views import AllowedLists, AllowedView
from layerbounds.kernels.factorization import UNIT
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import Control
from layerbounds.search.frontier import Frontier, Incumbent
from layerbounds.search.joint import block_root as module
from layerbounds.search.joint.block_root import block_dual, block_root, wide_root
from layerbounds.search.joint.block_tree import BlockNode, BlockSearch
from layerbounds.search.joint.root import find_root, first_minorant, gram_parts
from layerbounds.search.joint.tree import Node, whole
from layerbounds.search.joint.units import JointUnits, joint_units

Gram = Callable[..., Float]
#: Bits and pattern arguments.
KINDS = [
    (2, {"k": 3}),
    (2, {"k": 1}),
    (3, {"k": 5}),
    (2, {"pattern": "2:4"}),
    (2, {"pattern": "1:2"}),
    (1, {"k": 4}),
    (2, {"k": 4, "pattern": "block:2"}),
    (2, {"k": 6, "pattern": "block:3"}),
]


def make(rng: np.random.Generator, gram: Float, bits: int, pattern: dict[str, object]) -> Task[LevelsOnSupport]:
    weight = rng.normal(size=(1, len(gram))) * 10.0 ** rng.integers(-3, 4)
    problem = lb.joint_problem(lb.Layer(weight=weight, gram=gram), bits, **pattern)  # type: ignore[arg-type]
    return make_task(problem, 0, None, None)


def points(units: JointUnits, lists: AllowedLists) -> tuple[Float, Float]:
    """All that a node allows, and the errors."""
    rows = []
    for i in range(units.size):
        rows.append(
            [
                v
                for j, v in enumerate(units.values[i, : units.count[i]])
                if (lists.zero_ok[i] if j == units.zero[i] else lists.first[i] <= j <= lists.last[i])
            ]
        )
    every = np.stack([part.ravel() for part in np.meshgrid(*rows, indexing="ij")], axis=1)
    kept = np.stack([(every[:, units.unit == u] != 0).any(axis=1) for u in range(len(units.group))], axis=1)
    fits = ~kept[:, lists.status < 0].any(axis=1)
    for g, room in enumerate(lists.room):
        fits &= kept[:, (lists.status == 0) & (units.group == g)].sum(axis=1) <= room
    every = every[fits]
    deviation = every - units.target
    return every, np.einsum("ki,ij,kj->k", deviation, units.gram, deviation, optimize=True)


def random_lists(units: JointUnits, rng: np.random.Generator) -> AllowedLists:
    """Some inputs cut, some units kept or dropped, as far as the capacities allow it."""
    n = units.size
    first, last = np.zeros(n, dtype=np.int64), units.count - 1
    zero_ok = np.ones(n, dtype=bool)
    for i in np.flatnonzero(rng.random(n) < 0.4):
        first[i] = rng.integers(0, units.count[i])
        last[i] = rng.integers(first[i], units.count[i])
        zero_ok[i] = rng.random() < 0.7 or first[i] == last[i] == units.zero[i]
    status = np.zeros(len(units.group), dtype=np.int8)
    room = units.capacity.copy()
    for u in rng.permutation(len(status))[: len(status) // 3]:
        if rng.random() < 0.5:
            status[u] = -1
            zero_ok[units.unit == u] = True
        elif room[units.group[u]] > 0:
            status[u] = 1
            room[units.group[u]] -= 1
    return AllowedLists(first, last, zero_ok, status, room)


def root_of(units: JointUnits) -> JointRoot | None:
    minorant = first_minorant(units, gram_parts(units.gram))
    root = find_root(units, minorant, whole(units, minorant.d).lists, units.energy, lambda: False)
    return block_root(units, minorant, root, lambda: False)


@pytest.mark.parametrize(("bits", "pattern"), KINDS)
def test_roots_are_below_every_allowed_point(
    bits: int, pattern: dict[str, object], random_gram: Gram, rng: np.random.Generator
) -> None:
    for n, rank in ((6, 6), (7 if bits < 3 else 6, 5), (6, 2)):
        task = make(rng, random_gram(n, rank), bits, pattern)
        units = joint_units(task)
        best = points(units, AllowedLists.whole(units))[1].min()
        found = root_of(units)
        if found is None:
            assert rank < n
            continue
        rounding = 1e-12 * units.energy
        assert found.value <= best + rounding
        dual = block_dual(units, found)
        allowed = task.allowed
        certified = block_bound(
            task.gram, task.target, allowed.values, allowed.structure, dual.z, dual.block, dual.matrix
        )  # fmt: skip
        assert certified * units.factor**2 <= best + rounding
        # A knapsack over counts is never below the bound with a price.
        if np.all(found.minorant.shift == 0.0):
            assert certified * units.factor**2 >= found.value - 1e-9 * units.energy


@pytest.mark.parametrize(("bits", "pattern"), KINDS)
def test_nodes_are_below_their_points_and_lose_none_below_the_cut(
    bits: int, pattern: dict[str, object], random_gram: Gram, rng: np.random.Generator
) -> None:
    checked = 0
    for trial in range(6):
        units = joint_units(make(rng, random_gram(6), bits, pattern))
        found = root_of(units)
        assert found is not None
        lists = random_lists(units, rng)
        allowed, errors = points(units, lists)
        best = float(errors.min(initial=np.inf))
        cut = (best if trial % 2 else 1.5 * best) * (1.0 + 1e-9) + 1e-6 * units.energy
        if not np.isfinite(cut):
            cut = units.energy
        node = relax_node(units, lists, found.minorant, found.z, found.price, 0.0, cut, trial % 3 > 0)
        assert node.value <= max(best, cut) + 1e-12 * units.energy or node.value <= best
        if node.value < cut:
            assert node.value <= best + 1e-12 * units.energy
        for point in allowed[errors < cut * (1.0 - 1e-9)]:
            where = [np.flatnonzero(units.values[i] == point[i])[0] for i in range(units.size)]
            assert node.allowed[np.arange(units.size), where].all()
            checked += 1
        assert not np.any(np.isnan(node.z))
        # The minorant for the nodes below is one of theirs.
        view = AllowedView(units, lists, node.minorant)
        if view.feasible and view.inputs.size:
            rest = view.rest() + np.diag(view.shift[view.inputs])
            assert np.linalg.eigvalsh(rest)[0] >= -1e-10 * np.abs(rest).max()
    assert checked


def test_groups_that_are_divided_among_blocks_have_prices(random_gram: Gram, rng: np.random.Generator) -> None:
    task = make(rng, random_gram(24), 2, {"pattern": "4:12"})
    units = joint_units(task)
    parts = joint_members(units, np.zeros(24), (3, 6))
    assert parts is not None
    for members in parts:
        for m in members:
            assert np.ptp(units.group[units.unit[m]]) == 0
    found = root_of(units)
    assert found is not None
    assert found.value <= units.error(units.factor * task.allowed.nearest(task.target))
    dual = block_dual(units, found)
    certified = block_bound(
        task.gram, task.target, task.allowed.values, task.allowed.structure, dual.z, dual.block, dual.matrix
    )  # fmt: skip
    assert certified * units.factor**2 >= found.value - 1e-9 * units.energy


def test_any_point_and_price_give_a_bound(random_gram: Gram, rng: np.random.Generator) -> None:
    for bits, pattern in KINDS:
        units = joint_units(make(rng, random_gram(6), bits, pattern))
        best = points(units, AllowedLists.whole(units))[1].min()
        found = root_of(units)
        assert found is not None
        view = AllowedView(units, AllowedLists.whole(units), found.minorant)
        assert view.prepare()
        for _ in range(5):
            newton = BlockNewton(view, rng.normal(size=6), rng.exponential(size=len(units.capacity)))
            newton.look(newton.start, newton.price, 1e-3)
            assert newton.best[0] <= best + 1e-12 * units.energy


def test_blocks_gain_on_correlated_inputs(rng: np.random.Generator) -> None:
    # Pairs of nearly equal inputs: a diagonal below them is small, a block is not.
    x = rng.normal(size=(400, 20))
    x = np.concatenate([x, x + 0.3 * rng.normal(size=x.shape)], axis=1)
    units = joint_units(make(rng, x.T @ x / 400, 3, {"k": 20}))
    minorant = first_minorant(units, gram_parts(units.gram))
    root = find_root(units, minorant, whole(units, minorant.d).lists, 0.05 * units.energy, lambda: False)
    found = block_root(units, minorant, root, lambda: False)
    assert found is not None
    assert found.value > 1.05 * root.bound


def test_large_units_and_singular_matrices_have_no_blocks(random_gram: Gram, rng: np.random.Generator) -> None:
    units = joint_units(make(rng, random_gram(32), 2, {"k": 16, "pattern": "block:16"}))
    assert root_of(units) is None
    units = joint_units(make(rng, np.ones((6, 6)), 2, {"k": 3}))
    found = root_of(units)
    best = points(units, AllowedLists.whole(units))[1].min()
    assert found is None or found.value <= best + 1e-12 * units.energy


def test_a_root_that_is_stopped_at_once_says_so(random_gram: Gram, rng: np.random.Generator) -> None:
    units = joint_units(make(rng, random_gram(8), 2, {"k": 3}))
    minorant = first_minorant(units, gram_parts(units.gram))
    root = find_root(units, minorant, whole(units, minorant.d).lists, units.energy, lambda: False)
    assert block_root(units, minorant, root, lambda: True) is None


def test_improved_blocks_are_proven(random_gram: Gram, rng: np.random.Generator) -> None:
    units = joint_units(make(rng, random_gram(12), 2, {"k": 6}))
    parts = joint_members(units, np.zeros(12), (4,))
    assert parts is not None
    matrix = np.diag(np.full(12, 0.5 * np.linalg.eigvalsh(units.gram)[0]))
    norm = np.sqrt(np.diag(units.gram)) * (1.0 + 1e-9)
    view = AllowedView(units, AllowedLists.whole(units), pack_blocks(parts[0], matrix, np.zeros(12), norm))
    assert view.prepare()
    spread = np.where(view.pair, 1.0, 0.0)
    for _ in range(4):
        assert improve(view, spread, 0.1)
        assert np.linalg.eigvalsh(view.rest())[0] >= -64 * UNIT * np.abs(units.gram).max()
    before = view.block.copy()
    assert not adopt(view, 1e3 * before)
    assert np.array_equal(view.block, before)


def test_trees_with_blocks_find_the_optimum(random_gram: Gram, rng: np.random.Generator) -> None:
    for bits, pattern in KINDS:
        task = make(rng, random_gram(6), bits, pattern)
        units = joint_units(task)
        best = points(units, AllowedLists.whole(units))[1].min()
        minorant = first_minorant(units, gram_parts(units.gram))
        control = Control(30.0, 0.0, None, 0, 1, threading.Event())
        search = BlockSearch(units, control, minorant, Incumbent(units.energy, np.zeros(units.size)))
        search.basis = None
        found = root_of(units)
        assert found is not None
        node = BlockNode.of(whole(units, minorant.d), found)
        frontier: Frontier[Node] = Frontier(search, control, units.energy, node, 0.0, 1.0, 0.0)
        frontier.run()
        tolerance = 1e-5 * best + 1e-11 * units.energy
        assert frontier.lower <= best + 1e-12 * units.energy
        assert search.incumbent.value <= best + tolerance
        assert frontier.lower >= best - tolerance


def test_wide_roots_are_certified(random_gram: Gram, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    for large in (relaxation.LARGE, 8):
        monkeypatch.setattr(relaxation, "LARGE", large)
        monkeypatch.setattr(ascent, "LARGE", large)
        monkeypatch.setattr(module, "LARGE", large)
        task = make(rng, random_gram(24), 2, {"k": 9})
        units = joint_units(task)
        found = wide_root(units, first_minorant(units, gram_parts(units.gram)), lambda: False)
        assert found is not None
        assert 0.0 < found.value <= units.error(units.factor * task.allowed.nearest(task.target))
        dual = block_dual(units, found)
        certified = block_bound(
            task.gram, task.target, task.allowed.values, task.allowed.structure, dual.z, dual.block, dual.matrix
        )
        assert certified * units.factor**2 >= found.value * (1.0 - 1e-9)
