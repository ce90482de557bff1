"""The compiled tree of the diagonal dual and its enumeration, against brute force and against the search in Python."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matrices import from_python
from threadpoolctl import threadpool_limits

import layerbounds as lb
from benchmarks.native_speed import leading
from layerbounds.arrays import Float, Int
from layerbounds.certify.interval import certify
from layerbounds.kernels.pruning import subset_diagonal, subset_relaxation, subset_sets, subset_tree
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import Control
from layerbounds.search.pruning import compiled_tree
from layerbounds.search.pruning.subset_run import search_subset
from layerbounds.search.pruning.subset_search import EVERY, SubsetSearch

FUZZ = "LAYERBOUNDS_FUZZ" in os.environ
COUNT = int(os.environ.get("LAYERBOUNDS_FUZZ", "30"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small factorizations with several BLAS threads are many times slower than with one."""
    with threadpool_limits(1):
        yield


def task_of(rng: np.random.Generator, n: int, kind: int, **options: object) -> Task[Support]:
    x = rng.normal(size=(3 * n, n))
    if kind == 1:
        x = np.cumsum(x, axis=1)
    elif kind == 2:
        x = x * 10.0 ** rng.uniform(-2, 0, n) + 3.0 * rng.normal(size=(3 * n, 1))
    elif kind == 3:
        x = x[:, : n // 2] @ rng.normal(size=(n // 2, n)) + 10.0 ** rng.uniform(-4, -1) * x
    layer = lb.Layer(
        rng.normal(size=(1, n)) * 10.0 ** rng.uniform(-3, 3), x.T @ x / len(x) * 10.0 ** rng.uniform(-5, 5)
    )
    task = make_task(lb.pruning_problem(layer, **options), 0, None, None)  # type: ignore[arg-type]
    assert isinstance(task.allowed, Support)
    return task


def best_error(task: Task[Support], k: int) -> float:
    """By trying every set of k inputs in float64; the best ones again in extended precision."""
    sets = np.array(list(combinations(range(len(task.target)), k)))
    product = task.gram @ task.target
    energy = float(task.target @ product)
    savings = []
    for s in np.array_split(sets, max(len(sets) // 5000, 1)):
        blocks = task.gram[s[:, :, None], s[:, None, :]]
        savings.append(np.sum(product[s] * np.linalg.solve(blocks, product[s][..., None])[..., 0], axis=1))
    saving = np.concatenate(savings)
    best = energy
    wide, target = task.gram.astype(np.longdouble), task.target.astype(np.longdouble)
    for s in sets[np.argsort(-saving)[:5]]:
        v = np.zeros(len(target), dtype=np.longdouble)
        for _ in range(3):
            v[s] += np.linalg.solve(task.gram[np.ix_(s, s)], (wide @ (target - v))[s].astype(np.float64))
        best = min(best, float((v - target) @ wide @ (v - target)))
    return best


def control(node_limit: int | None = None) -> Control:
    return Control(60.0, 0.0, node_limit, 0, 1, threading.Event())


def test_never_above_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(None if FUZZ else 3)
    proven = compiled = 0
    for _ in range(COUNT):
        n = int(rng.integers(6, 18))
        k = int(rng.integers(1, n - 1))
        task = task_of(rng, n, int(rng.integers(0, 4)), k=k)
        exact = best_error(task, k)
        monkeypatch.setattr(compiled_tree, "MOST_SETS", float(rng.choice([0.0, 0.0, 40.0, 3e4])))
        monkeypatch.setattr(compiled_tree, "NODES", int(rng.choice([3, 64])))
        monkeypatch.setattr("layerbounds.search.pruning.subset_search.ENUMERATED", 0)
        limit = None if rng.random() < 0.7 else int(rng.integers(1, 40))
        search = SubsetSearch(task, control(limit))
        search.first_incumbents()
        compiled += compiled_tree.CompiledTree.applies(search, search.root())
        raw = search_subset(task, control(limit))
        result = certify(task, raw, 0.0)
        assert result.lower <= exact * (1 + 1e-9) + 1e-15 * task.energy
        assert result.upper >= exact * (1 - 1e-9) - 1e-13 * task.energy
        if raw.termination == lb.Status.OPTIMAL:
            assert result.upper <= exact * (1 + 1e-5) + 1e-11 * task.energy
            proven += 1
    assert proven > COUNT // 2
    assert compiled > COUNT // 2


@pytest.mark.parametrize("options", [{"k": 10}, {"pattern": "2:4"}, {"pattern": "1:4"}])
def test_agrees_with_the_tree_in_python(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(11)
    for kind in (0, 1):
        task = task_of(rng, 36, kind, **options)
        first = certify(task, search_subset(task, control()), 0.0)
        with monkeypatch.context() as patch:
            patch.setattr(compiled_tree.CompiledTree, "applies", staticmethod(lambda search, root: False))
            second = certify(task, search_subset(task, control()), 0.0)
        assert first.status == second.status == lb.Status.OPTIMAL
        np.testing.assert_allclose([first.lower, first.upper], [second.lower, second.upper], rtol=3e-6)


def test_a_node_limit_gives_the_same_result_twice() -> None:
    task = task_of(np.random.default_rng(2), 48, 1, k=12)
    limits = (1, 7, 60)
    runs = [[search_subset(task, control(limit)) for limit in limits] for _ in range(2)]
    for first, second, limit in zip(*runs, limits, strict=True):
        assert first.proof is not None and second.proof is not None
        assert first.nodes == second.nodes <= limit
        assert first.proof.cut == second.proof.cut
        np.testing.assert_array_equal(first.weights, second.weights)
    cuts = [raw.proof.cut for raw in runs[0] if raw.proof is not None]
    assert cuts == sorted(cuts)


def test_many_open_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for nodes and for diagonals grows while the tree is worked on."""
    task = task_of(np.random.default_rng(4), 40, 1, k=10)
    wide = certify(task, search_subset(task, control()), 0.0)
    monkeypatch.setattr(compiled_tree, "NODES", 3)
    monkeypatch.setattr(compiled_tree, "MOST_SETS", 0.0)
    tight = search_subset(task, control())
    assert tight.nodes > 20
    np.testing.assert_allclose(certify(task, tight, 0.0).upper, wide.upper, rtol=3e-6)


def savings_of(a: Float, r: Float, room: int) -> dict[tuple[int, ...], float]:
    return {
        s: float(r[list(s)] @ np.linalg.solve(a[np.ix_(s, s)], r[list(s)])) if s else 0.0
        for s in combinations(range(len(r)), room)
    }


def test_enumeration_finds_the_best_sets(rng: np.random.Generator) -> None:
    """All sets within the gap whose saving exceeds the threshold, and of those beyond the gap none has to be found."""
    n = 11
    x = np.cumsum(rng.normal(size=(30, n)), axis=1)
    a, r = x.T @ x / len(x), rng.normal(size=n)
    # Three clusters of inputs; a code's value is the sum of its inputs' values and a random one of its own.
    free = np.array([4, 3, 4])
    base = np.array([0, 16, 24, 40])
    code = np.concatenate([np.arange(1 << g) for g in free])
    number = np.array([int(x).bit_count() for x in code])
    s = np.abs(rng.normal(size=40))
    s[base[:-1]] = 0.0
    price = 0.3
    for room in (0, 1, 2, 5, 9, 11):
        savings = savings_of(a, r, room)
        threshold = float(np.quantile(list(savings.values()), 0.5)) - 1e-9
        for gap in (0.5, 2.0, 1e9):
            child, value = np.empty((163, 2), np.int64), np.empty(163)
            root, order = np.empty(3, np.int64), np.empty(3, np.int64)
            best = subset_sets.make_tries(base, free, code, number, s, price, gap, child, value, root, order)
            starts = np.array([0, 4, 7])
            ids = np.concatenate([np.arange(starts[g], starts[g] + free[g]) for g in order])
            found = np.empty((500, room), np.int64)
            count = subset_sets.near_sets(
                a[np.ix_(ids, ids)], r[ids], room, child, value, root, order, free, gap, threshold, 10**8, found
            )
            sets = {tuple(sorted(ids[row])) for row in found[:count]}
            assert len(sets) == count
            for chosen, saving in savings.items():
                total = 0.0
                for g in range(3):
                    own = sum(1 << (free[g] - 1 - (i - starts[g])) for i in chosen if 0 <= i - starts[g] < free[g])
                    total += s[base[g] + own] - price * int(own).bit_count()
                if saving > threshold + 1e-9 and best - total <= gap - 1e-9:
                    assert chosen in sets
                if saving < threshold - 1e-9:
                    assert chosen not in sets
            if count > 0:
                few = subset_sets.near_sets(
                    a[np.ix_(ids, ids)], r[ids], room, child, value, root, order, free, gap, threshold, 10**8, found[:0]
                )
                assert few == -1 or room == 0
    assert subset_sets.near_sets(a, r, 6, child, value, root, order, free, 1e9, 1e9, 10, found) == -2


def test_elimination_is_the_schur_complement(rng: np.random.Generator) -> None:
    x = rng.normal(size=(30, 9))
    gram, b = x.T @ x, rng.normal(size=9)
    kept, free = np.array([1, 4, 7]), np.array([0, 2, 8])
    a, r = np.empty((3, 3)), np.empty(3)
    saving = subset_sets.eliminate(gram, b, kept, free, a, r)
    solve = np.linalg.solve(gram[np.ix_(kept, kept)], np.column_stack([b[kept], gram[np.ix_(kept, free)]]))
    np.testing.assert_allclose(saving, b[kept] @ solve[:, 0])
    np.testing.assert_allclose(r, b[free] - gram[np.ix_(free, kept)] @ solve[:, 0])
    complement = gram[np.ix_(free, free)] - gram[np.ix_(free, kept)] @ solve[:, 1:]
    np.testing.assert_allclose(np.triu(a), np.triu(complement), atol=1e-12)
    assert np.isnan(subset_sets.eliminate(-gram, b, kept, free, a, r))


def test_dependent_kept_inputs_close_no_node() -> None:
    """Where the kept inputs cannot be eliminated, no enumeration finds its sets to be worse than the cut."""
    n = 6
    gram = np.eye(n) + 0.1
    gram[:2, :2] = 1.0
    status = np.array([1, 1, 0, 0, 0, 0], np.int8)
    inputs, reduced, residual = np.zeros(n, np.int64), np.empty((n, n)), np.empty(n)
    kept, total = subset_relaxation.alive(status, inputs)
    base = subset_relaxation.reduce(gram, np.ones(n), inputs, kept, total, reduced, residual)
    assert np.isnan(base)
    found = np.zeros((4, n), dtype=bool)
    count = from_python(subset_sets.close_by_sets)(
        (inputs, kept, total, reduced, residual), base, status, np.int64(1), np.ones(n), np.array([0.5, 0.6]),
        0.0, 1.0, 10.0, 1e-9, 1e5, found,
    )  # fmt: skip
    assert count < 0


@pytest.mark.slow
def test_the_rest_of_a_large_inverse_follows_a_change_of_the_diagonal(rng: np.random.Generator) -> None:
    for n, k0, k1 in ((40, 0, 16), (40, 16, 32), (23, 3, 9)):
        x = rng.normal(size=(3 * n, n))
        inverse = np.linalg.inv(x.T @ x / n)
        delta = rng.uniform(-0.05, 0.05, k1 - k0)
        # The work space may be larger.
        space = np.full((n + 2, n + 2), np.nan)
        space[:n, :n] = inverse
        from_python(subset_diagonal.update_rest)(space, n, k0, k1, delta)
        # M − Δ on the rows from k0 to k1.
        matrix = np.linalg.inv(inverse)
        matrix[range(k0, k1), range(k0, k1)] -= delta
        np.testing.assert_allclose(space[k1:n, k1:n], np.linalg.inv(matrix)[k1:, k1:], atol=1e-11)


def test_a_sweep_over_a_large_diagonal_is_that_over_a_small_one(rng: np.random.Generator) -> None:
    n = 41
    x = rng.normal(size=(3 * n, n))
    gram = x.T @ x / n
    d = np.full(n, 0.5 * np.linalg.eigvalsh(gram)[0])
    inverse, alpha = np.linalg.inv(gram - np.diag(d)), rng.random(n)
    small, large = d.copy(), d.copy()
    subset_diagonal.ascend(inverse.copy(), alpha, 0.3, small)
    subset_diagonal.ascend_wide(inverse.copy(), alpha, 0.3, large)
    assert np.abs(small - d).max() > 0.1 * d[0]
    np.testing.assert_allclose(small, large, rtol=1e-9)


def test_inputs_are_fixed_by_the_bound_of_their_savings(reference_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An improvement of the diagonal that is taken back leaves the savings of another relaxation behind."""
    layer = lb.load_layers(reference_data / "resnet20_layers.safetensors")["layer1.0.conv1"]
    task = make_task(lb.pruning_problem(leading(layer, 24), k=12), [0], None, None)
    search = SubsetSearch(task, control())
    seen = 0
    real = subset_tree.fix

    def fix(bound: float, cut: float, group: Int, free: Int, status: Any, saving: Float, edge: Float) -> int:
        nonlocal seen
        seen += 1
        z, d = search.point, np.where(status == 1, 1e-6 * node.d, node.d)
        h, left = search.gram @ (z - search.target), status >= 0
        saved = (d * z - h) ** 2 / d
        best = np.sort(saved[status == 0])[::-1][: int(free[0])]
        own = (z - search.target) @ h + (d * z**2 - 2 * h * z)[left].sum() - saved[status == 1].sum() - best.sum()
        assert bound <= own * (1 + 1e-6)
        return int(real(bound, cut, group, free, status, saving, edge))

    monkeypatch.setattr(subset_tree, "fix", fix)
    search.enumerated = 0
    cut = 0.0045555 * search.factor**2
    nodes = [search.root()]
    while nodes:
        node = nodes.pop()
        node.age = EVERY
        nodes += search.expand(node, 0.0, cut)[1]
    assert seen > 50
