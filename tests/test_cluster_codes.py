"""Lists of codes: patterns, inheritance and merging against sets that are written out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.clusters import ClusterMinorant, join_clusters, start_clusters
from layerbounds.kernels.pruning import cluster_codes as kernels
from layerbounds.search.pruning.cluster_codes import Codes, every_code, merge

SIZE = 11
PARTS = [np.array([0, 4, 7, 9]), np.array([1, 2, 10]), np.array([3, 5, 6, 8])]


@pytest.fixture
def gram(rng: np.random.Generator) -> Float:
    x = np.cumsum(rng.normal(size=(40, SIZE)), axis=1)
    return np.asarray(x.T @ x / len(x))


@pytest.fixture
def minorant(gram: Float) -> ClusterMinorant:
    result = start_clusters(gram, PARTS, np.arange(SIZE))
    assert result is not None
    return result


def sets_of(minorant: ClusterMinorant, codes: Codes) -> list[list[frozenset[int]]]:
    """The kept inputs, fixed ones included, that each code of each cluster stands for; ascending codes."""
    result = []
    for g in range(len(minorant.first) - 1):
        members = minorant.member[minorant.first[g] : minorant.first[g + 1]]
        free = [int(i) for i in members if codes.status[i] == 0]
        kept = frozenset(int(i) for i in members if codes.status[i] == 1)
        part = codes.code[codes.base[g] : codes.base[g + 1]]
        assert np.all(np.diff(part) > 0)
        result.append([kept | {i for p, i in enumerate(reversed(free)) if int(x) >> p & 1} for x in part])
    return result


def test_every_code_of_a_shared_number(minorant: ClusterMinorant) -> None:
    status = np.zeros(SIZE, dtype=np.int8)
    status[[4, 10]], status[5] = 1, -1
    found = sets_of(minorant, every_code(minorant, status, np.zeros(SIZE, np.int64), np.array([4])))
    assert [len(part) for part in found] == [8, 4, 8]
    assert all(4 in s for s in found[0])
    assert all(10 in s for s in found[1])
    assert not any(5 in s for s in found[2])


def test_every_code_of_groups(gram: Float) -> None:
    parts = [np.arange(8), np.array([8, 9, 10])]
    minorant = start_clusters(gram, parts, np.arange(SIZE))
    assert minorant is not None
    group = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
    codes = every_code(minorant, np.zeros(SIZE, dtype=np.int8), group, np.array([2, 1, 5]))
    found = sets_of(minorant, codes)
    assert len(found[0]) == 6 * 4
    assert all(len(s & {0, 1, 2, 3}) == 2 and len(s) == 3 for s in found[0])
    assert found[1] == [frozenset({8, 9, 10})]


def test_inherited_codes_agree_with_the_status(minorant: ClusterMinorant, rng: np.random.Generator) -> None:
    every = every_code(minorant, np.zeros(SIZE, dtype=np.int8), np.zeros(SIZE, np.int64), np.array([4]))
    some = rng.random(len(every.code)) < 0.7
    some[every.base[:-1]] = True
    own = np.repeat(np.arange(3), np.diff(every.base))[some]
    codes = Codes(every.status, np.searchsorted(own, np.arange(4)).astype(np.int64), every.code[some])
    before = sets_of(minorant, codes)
    assert codes.restrict(minorant, codes.status.copy()) is codes
    nothing = 0
    for _ in range(40):
        status = rng.choice([0, 0, 0, 1, -1], size=SIZE).astype(np.int8)
        kept, dropped = set(np.flatnonzero(status == 1)), set(np.flatnonzero(status == -1))
        left = [
            [s for s in part if kept & set(ids) <= s and not dropped & s]
            for part, ids in zip(before, PARTS, strict=True)
        ]
        child = codes.restrict(minorant, status)
        if child is None:
            assert not all(left)
            nothing += 1
        else:
            assert sets_of(minorant, child) == left
    assert 0 < nothing < 40


def test_pairs_are_counted(rng: np.random.Generator) -> None:
    first, second = np.sort(rng.random(30)), np.sort(rng.random(20))
    for gap in (0.0, 0.4, 1.0, 3.0):
        assert kernels.count_pairs(first, second, gap) == np.sum(first[:, None] + second <= gap)


def test_merged_clusters_hold_the_sets_within_the_gap(
    gram: Float, minorant: ClusterMinorant, rng: np.random.Generator
) -> None:
    status = np.zeros(SIZE, dtype=np.int8)
    status[4], status[5] = 1, -1
    codes = every_code(minorant, status, np.zeros(SIZE, np.int64), np.array([4]))
    cost: Float = rng.random(len(codes.code))
    link = rng.random((SIZE, SIZE))
    link += link.T
    parts = sets_of(minorant, codes)
    costs = [cost[a:b] for a, b in zip(codes.base[:-1], codes.base[1:], strict=True)]
    for gap, most in ((0.6, 10**6), (0.6, 60), (0.9, 40), (0.3, 3)):
        merged, joint = merge(minorant, codes, cost, link, gap, most)
        groups = len(merged.first) - 1
        assert groups == (1 if most == 10**6 else 3 if most == 3 else groups)
        if groups == 3:
            assert merged is minorant
            assert joint is codes
            continue
        assert len(joint.code) <= most
        assert 5 not in merged.member
        found = sets_of(merged, joint)
        # Every combination of the old clusters' sets within the gap is one of the new clusters' sets.
        for choice in product(*(range(len(part)) for part in parts)):
            if sum(own[x] for own, x in zip(costs, choice, strict=True)) > gap:
                continue
            whole = frozenset().union(*(part[x] for part, x in zip(parts, choice, strict=True)))
            for g in range(groups):
                members = set(merged.member[merged.first[g] : merged.first[g + 1]].tolist())
                assert whole & members in found[g]
        ids = np.delete(np.arange(SIZE), 5)
        position = np.full(SIZE, -1)
        position[ids] = np.arange(len(ids))
        np.testing.assert_array_equal(
            merged.matrix(position, len(ids)), minorant.matrix(np.arange(SIZE), SIZE)[np.ix_(ids, ids)]
        )


def test_clusters_are_joined_only_where_savings_stay_exact(minorant: ClusterMinorant) -> None:
    kept: Int = np.zeros(SIZE, dtype=np.int64)
    joined = join_clusters(minorant, [[0, 2], [1]], kept)
    assert joined is not None
    np.testing.assert_array_equal(joined.member, [0, 4, 7, 9, 3, 5, 6, 8, 1, 2, 10])
    assert np.all(joined.loss[0] >= minorant.loss[[0, 2]].max())
    poor = ClusterMinorant(minorant.first, minorant.member, minorant.block, minorant.loss, 1e-12 * minorant.smallest)
    assert join_clusters(poor, [[0, 2], [1]], kept) is None
