"""The search over units that several rows share, against all choices tried one by one."""

from __future__ import annotations

import threading
from itertools import combinations, product

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.certify.interval import certify
from layerbounds.kernels.pruning.subset_sets import near_count
from layerbounds.kernels.shared import near_sets
from layerbounds.problems.patterns import Structure
from layerbounds.problems.shared_support import SharedSupport
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control
from layerbounds.search.frontier import Frontier
from layerbounds.search.shared import set_search, small_nodes
from layerbounds.search.shared.root import find_root
from layerbounds.search.shared.selection import make_selection
from layerbounds.search.shared.tree import UnitSearch


def control(node_limit: int | None = None, time_limit: float = 60.0, threads: int = 1) -> Control:
    """Limits of a search."""
    return Control(time_limit, 0.0, node_limit, 0, threads, threading.Event())


def task_of(gram: Float, rows: Float, structure: Structure) -> Task[SharedSupport]:
    """A task without dead inputs."""
    energy = float(np.sum((rows @ gram) * rows))
    allowed = SharedSupport(structure, rows, True)
    return Task(
        tuple(range(len(rows))), gram, rows, np.zeros(len(rows)), energy, np.ones(len(gram), bool), allowed
    )  # fmt: skip


def least_error(task: Task[SharedSupport]) -> float:
    """By trying every choice that fills the capacities."""
    structure, gram, rows = task.allowed.structure, task.gram, task.targets
    groups = [np.flatnonzero(structure.group == g).tolist() for g in range(len(structure.capacity))]
    best = np.inf
    for choice in product(*(combinations(g, int(c)) for g, c in zip(groups, structure.capacity, strict=True))):
        kept = np.isin(structure.unit, [u for part in choice for u in part])
        v = np.zeros_like(rows)
        v[:, kept] = np.linalg.lstsq(gram[np.ix_(kept, kept)], gram[kept] @ rows.T, rcond=None)[0].T
        best = min(best, float(np.sum(((v - rows) @ gram) * (v - rows))))
    return best


def random_structure(rng: np.random.Generator, n: int, groups: int = 1) -> Structure:
    """Units of one to three inputs, in no order, and capacities from nothing to everything."""
    unit = rng.permutation(np.repeat(np.arange(n), rng.integers(1, 4, n))[:n])
    unit = np.unique(unit, return_inverse=True)[1].astype(np.int64)
    units = int(unit.max()) + 1
    group = np.unique(rng.integers(0, groups, units), return_inverse=True)[1].astype(np.int64)
    size = np.bincount(group)
    return Structure(unit, group, rng.integers(0, size + 1).astype(np.int64))


def search_of(task: Task[SharedSupport], limits: Control) -> tuple[UnitSearch, Frontier[object]]:
    """A search that has run, without any enumeration or prepared incumbents."""
    selection = make_selection(task)
    search, root = UnitSearch(selection, limits), find_root(selection, limits)
    frontier: Frontier[object] = Frontier(
        search, limits, search.energy, search.root(root), root.bound, selection.unit, 0.0
    )  # type: ignore[arg-type]
    frontier.run()
    return search, frontier


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("rows", [1, 3, 14])
def test_tree_finds_the_least_error(rng: np.random.Generator, groups: int, rows: int) -> None:
    """Poor incumbents at first: everything is left to the tree."""
    for _ in range(12):
        n = int(rng.integers(1, 11))
        x = rng.normal(size=(2 * n + 1, n)) @ np.diag(10.0 ** rng.uniform(-1, 1, n))
        task = task_of(x.T @ x, rng.normal(size=(rows, n)), random_structure(rng, n, groups))
        best = least_error(task)
        _, frontier = search_of(task, control())
        tolerance = 1e-9 * task.energy
        assert frontier.lower * frontier.unit <= best + 1e-12 * task.energy
        assert frontier.lower * frontier.unit >= best * (1 - 1e-6) - tolerance


@pytest.mark.parametrize("kind", ["rank", "proportional", "huge", "tiny", "graded"])
def test_degenerate_problems_have_valid_bounds(rng: np.random.Generator, kind: str) -> None:
    for _ in range(10):
        n = int(rng.integers(2, 9))
        x = rng.normal(size=(2 * n, n))
        if kind == "rank":
            x = x[: n // 2 + 1]
        elif kind == "proportional":
            x[:, 0] = -3.0 * x[:, -1]
        elif kind == "graded":
            x = x * 10.0 ** rng.uniform(-6, 2, n)
        x = x * {"huge": 1e60, "tiny": 1e-60}.get(kind, 1.0)
        task = task_of(x.T @ x, rng.normal(size=(2, n)), random_structure(rng, n))
        best = least_error(task)
        search, frontier = search_of(task, control(node_limit=200))
        assert 0.0 <= frontier.lower * frontier.unit <= best + 1e-9 * task.energy
        assert search.incumbent.value * frontier.unit >= best - 1e-9 * task.energy


KINDS = ["plain", "rank", "proportional", "copies", "huge", "tiny", "graded", "zero row"]


def problem_of_kind(rng: np.random.Generator, kind: str, groups: int, rows: int) -> Task[SharedSupport]:
    """A small task of some kind."""
    n = int(rng.integers(1, 9))
    x = rng.normal(size=(2 * n, n)) @ (np.eye(n) + rng.uniform(0, 2) * rng.normal(size=(n, n)))
    if kind == "rank":
        x = x[: n // 2 + 1]
    elif kind == "proportional":
        x[:, 0] = -3.0 * x[:, -1]
    elif kind == "copies":
        x[:, n // 2 :] = x[:, : n - n // 2]
    elif kind == "graded":
        x = x * 10.0 ** rng.uniform(-6, 2, n)
    weights = rng.normal(size=(rows, n))
    if kind == "zero row":
        weights[0] = 0.0
    x = x * {"huge": 1e60, "tiny": 1e-60}.get(kind, 1.0)
    return task_of(x.T @ x, weights, random_structure(rng, n, groups))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drops", [True, False])
def test_intervals_contain_the_least_error(
    rng: np.random.Generator, kind: str, drops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole search and its certificate, with and without the search by errors alone."""
    if not drops:
        monkeypatch.setattr(set_search, "make_drop_basis", lambda *_: None)
    closed = 0
    for count in range(10):
        task = problem_of_kind(rng, kind, 1 + count % 2, 1 + 3 * (count % 3))
        if not task.energy > 0.0:
            continue
        best = least_error(task)
        result = certify(task, set_search.search_shared(task, control(node_limit=300)), 0.0)
        assert result.lower <= best * (1 + 1e-9) + 1e-12 * task.energy
        assert result.upper >= best * (1 - 1e-9) - 1e-12 * task.energy
        assert result.upper <= best * (1 + 1e-5) + 1e-6 * task.energy
        closed += result.status == lb.Status.OPTIMAL
    assert closed >= {"plain": 8, "huge": 8, "tiny": 8, "zero row": 5}.get(kind, 0)


@pytest.mark.parametrize("k", [0, 1, 7])
@pytest.mark.parametrize("rows", [1, 40])
def test_nothing_and_everything_is_kept(rng: np.random.Generator, k: int, rows: int) -> None:
    x = rng.normal(size=(30, 14))
    structure = Structure(np.repeat(np.arange(7), 2), np.zeros(7, np.int64), np.array([k]))
    task = task_of(x.T @ x, rng.normal(size=(rows, 14)), structure)
    result = certify(task, set_search.search_shared(task, control()), 0.0)
    assert result.status == lb.Status.OPTIMAL
    np.testing.assert_allclose(result.upper, least_error(task), rtol=1e-6, atol=1e-9 * task.energy)


def correlated(rng: np.random.Generator, units: int, size: int, rows: int, k: int) -> Task[SharedSupport]:
    """A problem that takes some nodes."""
    n = units * size
    x = rng.normal(size=(4 * n, n)) @ (np.eye(n) + 0.5 * rng.normal(size=(n, n)) / np.sqrt(n))
    structure = Structure(np.repeat(np.arange(units), size), np.zeros(units, np.int64), np.array([k]))
    return task_of(x.T @ x / len(x), rng.normal(size=(rows, n)), structure)


def test_near_sets_are_those_within_the_gap(rng: np.random.Generator) -> None:
    for size in (1, 2, 5):
        task = correlated(rng, 8, size, 3, 3)
        b = task.gram @ task.targets.T
        edge = np.arange(9) * size
        for room in (1, 3, 8):
            saving, gap = rng.normal(size=8), 2.0
            exact = {}
            for units in combinations(range(8), room):
                kept = np.isin(np.repeat(np.arange(8), size), units)
                cost = sum(max(-saving[g], 0.0) if g in units else max(saving[g], 0.0) for g in range(8))
                if cost <= gap:
                    exact[units] = np.sum(b[kept] * np.linalg.solve(task.gram[np.ix_(kept, kept)], b[kept]))
            threshold = float(np.median(list(exact.values()))) if exact else 0.0
            found = np.zeros((64, room), np.int64)
            count = near_sets.near_sets(task.gram, b @ b.T, edge, room, saving, gap, threshold, 10**9, found)
            wanted = {units for units, value in exact.items() if value > threshold}
            assert {tuple(row) for row in found[:count].tolist()} >= {
                u for u in wanted if exact[u] > threshold * 1.0001
            }
            assert {tuple(row) for row in found[:count].tolist()} <= {
                u for u in exact if exact[u] >= threshold * 0.9999
            }
            about = near_count(saving, room, gap, 0.0)
            assert abs(about - len(exact)) <= 0.3 * len(exact) + 3


@pytest.mark.parametrize("enumerated", [0.0, 1e-3, 1e3])
def test_enumeration_changes_nothing(
    rng: np.random.Generator, enumerated: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_nodes, "WORTH", enumerated)
    for size in (1, 3):
        task = correlated(rng, 10, size, 4, 4)
        search, frontier = search_of(task, control())
        assert search.incumbent.value * frontier.unit <= least_error(task) * (1 + 1e-6)
        assert frontier.lower * frontier.unit <= least_error(task) * (1 + 1e-12)
        assert frontier.lower * frontier.unit >= least_error(task) * (1 - 2e-6)


def test_node_limits_give_the_same_result(rng: np.random.Generator) -> None:
    task = correlated(rng, 24, 2, 5, 9)
    results = [set_search.search_shared(task, control(node_limit=25, threads=threads)) for threads in (1, 1, 4)]
    assert len({result.nodes for result in results}) == 1
    assert len({result.proof.cut for result in results if result.proof is not None}) == 1
    for result in results[1:]:
        np.testing.assert_array_equal(result.weights, results[0].weights)


def test_threads_prove_the_same(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_search, "make_drop_basis", lambda *_: None)
    monkeypatch.setattr(small_nodes, "WORTH", 1e-3)
    task = correlated(rng, 14, 2, 5, 5)
    results = [certify(task, set_search.search_shared(task, control(threads=n)), 0.0) for n in (1, 4)]
    assert [r.status for r in results] == [lb.Status.OPTIMAL] * 2
    np.testing.assert_allclose(results[0].upper, results[1].upper, rtol=1e-6)


def test_a_gap_and_a_time_limit_are_kept(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    task = correlated(rng, 40, 2, 5, 12)
    monkeypatch.setattr(set_search, "make_drop_basis", lambda *_: None)
    limits = Control(60.0, 0.3, None, 0, 1, threading.Event())
    result = certify(task, set_search.search_shared(task, limits), 0.3)
    assert result.status in (lb.Status.GAP_REACHED, lb.Status.OPTIMAL)
    assert result.upper - result.lower <= 0.3 * result.upper
    limits = Control(0.3, 0.0, None, 0, 1, threading.Event())
    raw = set_search.search_shared(task, limits)
    assert raw.termination in (lb.Status.TIME_LIMIT, lb.Status.OPTIMAL)
    assert limits.elapsed() < 3.0
    assert raw.trace[-1].lower <= raw.trace[-1].upper


def test_dead_inputs_and_groups_of_channels(rng: np.random.Generator) -> None:
    """Through the public door: dead inputs, a grouped convolution, one mask for two rows."""
    x = rng.normal(size=(40, 12))
    x[:, [0, 5]] = 0.0
    layer = lb.Layer.from_activations(weight=rng.normal(size=(4, 12)), inputs=x)
    for pattern in ("column", "head:3", "2:4"):
        options = {} if pattern == "2:4" else {"density": 0.5}
        solution = lb.solve(lb.pruning_problem(layer, pattern=pattern, share=2, **options), jobs=1)  # type: ignore[arg-type]
        assert solution.status == [lb.Status.OPTIMAL] * 2


def test_channels_of_the_demonstration_are_proven() -> None:
    layer = lb.demo_layers()["conv3"]
    solution = lb.solve(lb.pruning_problem(layer, density=0.75, pattern="channel"), jobs=1)
    assert solution.status[0] == lb.Status.OPTIMAL


def test_scales_of_the_inputs_hide_nothing(rng: np.random.Generator) -> None:
    """More rows than inputs are replaced by fewer ones: what that changes must not grow with the scales of inputs."""
    for _ in range(5):
        gram = correlated(rng, 7, 3, 2, 3).gram
        scale = 10.0 ** rng.uniform(-3.0, 3.0, len(gram))
        scaled = gram * scale[:, None] * scale
        layer = lb.Layer(rng.normal(size=(len(gram) + 3, len(gram))) / scale, 0.5 * (scaled + scaled.T))
        solution = lb.solve(lb.pruning_problem(layer, k=3, pattern="head:3"), jobs=1)
        assert solution.status == [lb.Status.OPTIMAL]
