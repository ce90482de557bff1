"""The block dual on random instances of every difficulty: bounds, fixing and enumeration against brute force.

``LAYERBOUNDS_FUZZ=N`` runs N fresh instances.
"""

from __future__ import annotations

import os
import threading
from itertools import combinations, product

import numpy as np
import pytest
from matrices import from_python
from threadpoolctl import threadpool_limits

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.bounds.minorants.clusters import make_clusters, prove_clusters, start_clusters
from layerbounds.certify.interval import certify
from layerbounds.kernels.pruning import clusters as kernels
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import Control
from layerbounds.search.pruning import clusters as search

FUZZ = "LAYERBOUNDS_FUZZ" in os.environ
COUNT = int(os.environ.get("LAYERBOUNDS_FUZZ", "40"))


def instance(rng: np.random.Generator) -> lb.PruningProblem:
    n = int(rng.integers(3, 14))
    x = rng.normal(size=(4 * n, n))
    kind = rng.integers(0, 5)
    if kind == 1:
        x = x * 10.0 ** rng.uniform(-3, 0, n)
    elif kind == 2:
        x = x + rng.uniform(1, 20) * rng.normal(size=(4 * n, 1))
    elif kind == 3:
        rank = max(n // 2, 1)
        x = rng.normal(size=(4 * n, rank)) @ rng.normal(size=(rank, n)) + 10.0 ** rng.uniform(-5, -1) * x
    elif kind == 4:
        x = np.cumsum(x, axis=1)
    gram = x.T @ x / len(x) * 10.0 ** rng.uniform(-6, 6)
    layer = lb.Layer(rng.normal(size=(1, n)) * 10.0 ** rng.uniform(-3, 3), gram)
    if rng.random() < 0.3:
        return lb.pruning_problem(layer, pattern="2:4")
    return lb.pruning_problem(layer, k=int(rng.integers(1, n)))


def best_error(task: Task[Support]) -> float:
    """By trying every mask, in extended precision."""
    wide, target = task.gram.astype(np.longdouble), task.target.astype(np.longdouble)
    structure = task.allowed.structure
    per_group = [
        [list(c) for c in combinations(np.flatnonzero(structure.group == g), int(capacity))]
        for g, capacity in enumerate(structure.capacity)
    ]
    best = float(target @ wide @ target)
    for parts in product(*per_group):
        s = [i for part in parts for i in part]
        if not s:
            continue
        block = task.gram[np.ix_(s, s)]
        v = np.zeros(len(target), dtype=np.longdouble)
        for _ in range(3):
            v[s] += np.linalg.solve(block, (wide @ (target - v))[s].astype(np.float64))
        best = min(best, float((v - target) @ wide @ (v - target)))
    return best


def test_never_above_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(None if FUZZ else 5)
    proven = 0
    for _ in range(COUNT):
        problem = instance(rng)
        task = make_task(problem, 0, None, None)
        assert isinstance(task.allowed, Support)
        exact = best_error(task)
        monkeypatch.setattr("layerbounds.search.pruning.subset_search.ENUMERATED", int(rng.choice([0, 50, 20000])))
        monkeypatch.setattr(search, "SMALL", int(rng.choice([0, 0, 80])))
        monkeypatch.setattr(search, "EARLY_SETS", float(rng.choice([0.0, 10.0, 2e4])))
        monkeypatch.setattr(search, "MOST_SETS", float(rng.choice([0.0, 30.0, 1e5])))
        monkeypatch.setattr(search, "MERGED", (int(rng.choice([0, 20, 100, 10000])),) * 2)
        node_limit = None if rng.random() < 0.7 else int(rng.integers(1, 20))
        control = Control(60.0, 0.0, node_limit, 0, 1, threading.Event())
        with threadpool_limits(1):
            raw = search.search_clusters(task, control, int(rng.choice([4, 5, 9, 12])), int(rng.integers(0, 25)))
        result = certify(task, raw, 0.0)
        assert result.lower <= exact * (1 + 1e-9) + 1e-15 * task.energy
        assert result.upper >= exact * (1 - 1e-9) - 1e-13 * task.energy
        if raw.termination == lb.Status.OPTIMAL:
            assert result.upper <= exact * (1 + 1e-5) + 1e-11 * task.energy
            proven += 1
    assert proven > COUNT // 2


def gram_of(rng: np.random.Generator, n: int) -> Float:
    x = np.cumsum(rng.normal(size=(3 * n, n)), axis=1)
    return np.asarray(x.T @ x / len(x))


def test_savings_of_every_set(rng: np.random.Generator) -> None:
    n, kept, free = 7, 2, 4
    b, c = gram_of(rng, n), rng.normal(size=n)
    place = np.array([5, 0, 1, 6, 3, 2])
    codes = np.delete(np.arange(1 << free), [3, 4, 9])
    s = np.zeros(len(codes))
    stacks = np.empty((15, n, n)), np.empty((15, n + 1)), np.empty(15, dtype=np.int64)
    from_python(kernels.enumerate_savings)(b, place, kept, free, c, codes, s, *stacks)
    for code, saving in zip(codes, s, strict=True):
        local = [p for p in range(kept + free) if p < kept or (int(code) >> (kept + free - 1 - p)) & 1]
        ids = place[local]
        np.testing.assert_allclose(saving, c[local] @ np.linalg.solve(b[np.ix_(ids, ids)], c[local]), rtol=1e-9)


def test_clusters_partition_the_inputs(rng: np.random.Generator) -> None:
    gram = gram_of(rng, 24)
    active = np.delete(np.arange(24), [3, 17])
    parts = make_clusters(gram, 5, np.zeros(24, dtype=np.int64), active)
    assert parts is not None
    assert max(len(p) for p in parts) <= 5
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), active)
    grouped = make_clusters(gram, 8, np.arange(24) // 4, np.arange(24))
    assert grouped is not None
    assert all(len(np.unique(p // 4)) == len(p) // 4 for p in grouped)
    minorant = start_clusters(gram, parts, active)
    assert minorant is not None
    position = np.full(24, -1)
    position[active] = np.arange(22)
    difference = gram[np.ix_(active, active)] - minorant.matrix(position, 22)
    assert np.linalg.eigvalsh(difference)[0] > 0
    # A block-diagonal matrix above the Gram matrix is lowered or refused.
    huge = prove_clusters(gram, minorant.first, minorant.member, 1e3 * minorant.block, active, position)
    assert huge is None


def test_larger_groups_than_a_cluster_may_hold(rng: np.random.Generator) -> None:
    gram = gram_of(rng, 32)
    layer = lb.Layer(rng.normal(size=(1, 32)), gram)
    task = make_task(lb.pruning_problem(layer, pattern="2:16"), 0, None, None)
    assert isinstance(task.allowed, Support)
    control = Control(60.0, 0.0, 30, 0, 1, threading.Event())
    result = certify(task, search.search_clusters(task, control, 12, 5), 0.0)
    assert 0 < result.lower <= result.upper
