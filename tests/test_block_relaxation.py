"""Block relaxation of the quantization root and its certified bound, against brute force and real layers."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import layerbounds as lb
from layerbounds.arrays import Float, Int
from layerbounds.bounds.minorants.diagonal import maximize_minorant
from layerbounds.bounds.pruning.dual import is_block_minorant
from layerbounds.bounds.quantization.block_dual import block_dual_bound, proven_block_minorant, search_order
from layerbounds.bounds.quantization.block_relaxation import BlockRelaxation, evaluate_blocks, refine_blocks
from layerbounds.bounds.quantization.relaxation import refine
from layerbounds.certify.interval import objective_interval
from layerbounds.kernels.quantization.block_relaxation import MOST_STEPS, closest, proximal_sweep, settle
from layerbounds.problems.codebooks import codebook

#: Thorough and long: CI runs them, and ``--slow``.
pytestmark = pytest.mark.slow

CODES = {
    "uniform": np.arange(4.0) - 1.0,
    "nf4": codebook("nf4")[::3] * 2.0,
    "ternary": np.array([-1.0, 0.0, 1.0]),
    "two": np.array([-0.3, 1.1]),
}


def correlated(rng: np.random.Generator, n: int, strength: float = 2.0) -> Float:
    x = rng.normal(size=(6 * n, n)) + strength * rng.normal(size=(6 * n, 1)) * rng.normal(size=n)
    return np.asarray(x.T @ x / len(x))


def partition(rng: np.random.Generator, n: int) -> list[Int]:
    label = rng.integers(0, max(n // 2, 1), size=n)
    return [np.flatnonzero(label == g) for g in np.unique(label)]


def points_of(levels: Float) -> Float:
    """All points of a grid; levels of shape (n, levels)."""
    return np.array(list(product(*levels)))


def objective(gram: Float, target: Float, points: Float) -> Float:
    deviation = points - target
    return np.asarray(np.sum((deviation @ gram) * deviation, axis=1))


def relaxed(gram: Float, target: Float, codes: Float, members: int | list[Int], rounds: int = 6) -> BlockRelaxation:
    n = len(target)
    levels = np.repeat(codes[:, None], n, axis=1)
    count = np.full(n, len(codes))
    d = maximize_minorant(gram, np.ones(n))
    found = refine_blocks(gram, target, levels, count, d, target, members, rounds)
    assert found is not None
    return found


@given(seed=st.integers(0, 10**6), n=st.integers(1, 5), kind=st.sampled_from(sorted(CODES)))
@settings(max_examples=40, deadline=None)
@pytest.mark.slow
def test_value_and_terms_hold_for_every_point(seed: int, n: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    gram, target = correlated(rng, n), rng.normal(size=n)
    found = relaxed(gram, target, CODES[kind], partition(rng, n))
    chosen = np.array(list(product(range(len(CODES[kind])), repeat=n)))
    values = objective(gram, target, CODES[kind][chosen])
    terms = found.terms - found.terms.min(axis=0)
    claimed = found.value + terms[chosen, np.arange(n)].max(axis=1)
    assert np.all(claimed <= values)
    assert is_block_minorant(gram, found.matrix)
    assert np.all(found.matrix[found.block[:, None] != found.block[None, :]] == 0)
    assert block_dual_bound(gram, target, np.tile(CODES[kind], (n, 1)), found.z, found.block, found.matrix) >= (
        found.value * (1 - 1e-9)
    )


@given(seed=st.integers(0, 10**6), kind=st.sampled_from(sorted(CODES)))
@example(seed=126, kind="nf4")  # the blocks' quadratic forms are larger than all else that is added up
@settings(max_examples=30, deadline=None)
def test_any_point_gives_the_exact_minimum_over_the_blocks(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    n = 6
    gram, target = correlated(rng, n), rng.normal(size=n)
    codes = CODES[kind]
    members = [np.array([0, 3]), np.array([1, 2, 5]), np.array([4])]
    matrix = np.zeros((n, n))
    for m in members:
        matrix[np.ix_(m, m)] = np.linalg.inv(np.linalg.inv(gram)[np.ix_(m, m)]) / 3.1
    # Far outside the hull, too: there the tilts of the box do the work.
    z = target + 10 ** rng.uniform(-3, 2) * rng.normal(size=n)
    found = evaluate_blocks(
        gram, target, np.repeat(codes[:, None], n, axis=1), np.full(n, len(codes)), z, members, matrix
    )
    assert found is not None
    h = gram @ (z - target)
    expected, largest = float((z - target) @ h), 0.0
    for m in members:
        step = points_of(np.tile(codes, (len(m), 1))) - z[m]
        cost = 2 * step @ h[m] + np.einsum("ki,ij,kj->k", step, matrix[np.ix_(m, m)], step)
        expected += float(cost.min())
        largest += float(np.abs(cost).max())
        for p, i in enumerate(m):
            for j, v in enumerate(codes):
                least = cost[np.isclose(step[:, p], v - z[i])].min()
                assert found.terms[j, i] == pytest.approx(least, rel=1e-9, abs=1e-9 * np.abs(cost).max())
    size = float((z - target) @ h) + np.abs(h) @ (np.abs(z) + np.abs(codes).max())
    assert expected - 1e-10 * (size + largest) <= found.value <= expected + 1e-12 * size
    block = np.array([0, 1, 1, 0, 2, 1])
    bound = block_dual_bound(gram, target, np.tile(codes, (n, 1)), z, block, matrix)
    assert expected - 1e-10 * (size + largest) <= bound <= expected + 1e-12 * size


def test_closest_point_is_that_of_all_points() -> None:
    for seed in range(600):
        rng = np.random.default_rng(seed)
        m, far = 1 + seed % 5, 30.0 * rng.random() ** 3
        matrix = correlated(rng, m)
        factor = np.ascontiguousarray(np.linalg.cholesky(matrix).T)
        levels = np.sort(rng.normal(size=(m, 4)), axis=1)
        anchor, slope = far * rng.normal(size=m), far * rng.normal(size=m)
        count, inputs = np.full(m, 4), np.arange(m)
        centre, tilt = np.empty(m), np.empty(m)
        settle(matrix, m, levels, inputs, count, anchor, slope, centre, tilt)
        assert np.all((centre >= levels[:, 0]) & (centre <= levels[:, -1]))
        best, index, work, where = np.empty(m, int), np.empty(m, int), np.empty((6, m + 1)), np.empty((2, m), int)
        value, nodes = closest(factor, m, levels, inputs, count, centre, tilt, np.inf, 10**6, best, index, work, where)
        step = points_of(levels) - anchor
        cost = np.einsum("ki,ij,kj->k", step, matrix, step) + 2 * step @ slope
        reached = levels[inputs, best] - anchor
        found = reached @ matrix @ reached + 2 * slope @ reached
        assert found == pytest.approx(cost.min(), rel=1e-9, abs=1e-9 * (1 + far**2))
        assert nodes >= m
        # Nothing is found below the least value, and a search that may not go on says so.
        again = closest(factor, m, levels, inputs, count, centre, tilt, value, 10**6, best, index, work, where)
        assert again[0] == value
        assert closest(factor, m, levels, inputs, count, centre, tilt, np.inf, 0, best, index, work, where)[0] == -1.0


def test_search_with_a_tilt_inside_the_hull() -> None:
    """Any centre and any tilt: the costs of one input then turn anywhere."""
    for seed in range(600):
        rng = np.random.default_rng(seed)
        m = 2 + seed % 3
        matrix = correlated(rng, m)
        factor = np.ascontiguousarray(np.linalg.cholesky(matrix).T)
        levels = np.sort(rng.normal(size=(m, 5)), axis=1)
        centre, tilt = rng.uniform(levels[:, 0], levels[:, -1]), 3 * rng.normal(size=m)
        best, index, work, where = np.empty(m, int), np.empty(m, int), np.empty((6, m + 1)), np.empty((2, m), int)
        value, _ = closest(
            factor, m, levels, np.arange(m), np.full(m, 5), centre, tilt, np.inf, 10**6, best, index, work, where
        )
        step = points_of(levels) - centre
        cost = np.einsum("ki,ij,kj->k", step, matrix, step) + 2 * step @ tilt
        ends = 2 * np.minimum(tilt * (levels[:, 0] - centre), tilt * (levels[:, -1] - centre)).sum()
        assert value == pytest.approx(cost.min() - ends, rel=1e-9, abs=1e-9)


def test_proximal_step_is_optimal() -> None:
    """No point of the grid would lower the convex combination's objective, and y is that combination."""
    kappa = 3.0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        m = 1 + seed % 4
        matrix = correlated(rng, m)
        levels, origin = np.sort(rng.normal(size=(m, 4)), axis=1), rng.normal(size=m)
        aim = 2.0 * rng.normal(size=m)
        y, u, right = rng.normal(size=m), np.zeros(m), np.empty(m)
        corral, weight, size = np.zeros((1, m + 2, m), int), np.zeros((1, m + 2)), np.ones(1, int)
        weight[0, 0] = 1.0
        factor = np.ascontiguousarray(np.linalg.cholesky(matrix).T)[None]
        envelope, _ = proximal_sweep(
            np.array([0, m]), np.arange(m), matrix[None], factor, levels, np.full(m, 4), origin, np.array([kappa]),
            1.0, aim, y, u, corral, weight, size, right, 10**6, MOST_STEPS,
        )  # fmt: skip
        share, chosen = weight[0, : size[0]], levels[np.arange(m), corral[0, : size[0]]]
        assert share.sum() == pytest.approx(1.0)
        assert np.all(share >= 0)
        np.testing.assert_allclose(y, share @ chosen, atol=1e-12)
        np.testing.assert_allclose(u, aim - y, atol=1e-12)
        np.testing.assert_allclose(right, kappa * matrix @ (y - u), atol=1e-9)
        assert envelope == pytest.approx(share @ objective(matrix, origin, chosen))
        slope = 2 * kappa * matrix @ (y - aim)
        points = points_of(levels)
        costs = objective(matrix, origin, points) + points @ slope
        assert envelope + y @ slope <= costs.min() + 1e-7 * np.abs(costs).max()


def test_one_block_of_everything_nearly_closes_the_gap() -> None:
    rng = np.random.default_rng(3)
    for kind, codes in CODES.items():
        gram, target = correlated(rng, 6), rng.normal(size=6)
        least = objective(gram, target, points_of(np.tile(codes, (6, 1)))).min()
        found = relaxed(gram, target, codes, 6, rounds=16)
        assert 0.9 * least <= found.value <= least, kind


def test_the_point_is_a_maximiser() -> None:
    rng = np.random.default_rng(4)
    n, codes = 12, CODES["nf4"]
    gram, target = correlated(rng, n), rng.normal(size=n)
    members = [np.arange(0, 4), np.arange(4, 8), np.arange(8, 12)]
    found = relaxed(gram, target, codes, members)
    levels, count = np.repeat(codes[:, None], n, axis=1), np.full(n, len(codes))
    for size in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(20):
            z = found.z + size * rng.normal(size=n)
            other = evaluate_blocks(gram, target, levels, count, z, members, found.matrix)
            assert other is not None
            assert other.value <= found.value + 1e-3 * abs(found.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(CODES))
def test_blocks_beat_the_diagonal_on_correlated_inputs(kind: str) -> None:
    rng = np.random.default_rng(5)
    n, codes = 24, CODES[kind]
    x = rng.normal(size=(8 * n, n // 4)).repeat(4, axis=1) + 0.5 * rng.normal(size=(8 * n, n))
    gram, target = x.T @ x / len(x), rng.normal(size=n)
    levels, count = np.repeat(codes[:, None], n, axis=1), np.full(n, len(codes))
    d = maximize_minorant(gram, np.ones(n))
    diagonal = refine(gram, target, levels, count, d, target, 5, lambda: False)
    found = refine_blocks(gram, target, levels, count, diagonal.d, diagonal.z, 4)
    assert found is not None
    assert found.value > 1.02 * diagonal.value
    assert np.bincount(found.block).max() <= 4


def test_stops_when_told() -> None:
    rng = np.random.default_rng(6)
    gram, target = correlated(rng, 6), rng.normal(size=6)
    levels, count = np.repeat(CODES["nf4"][:, None], 6, axis=1), np.full(6, len(CODES["nf4"]))
    d = maximize_minorant(gram, np.ones(6))
    assert refine_blocks(gram, target, levels, count, d, target, 3, 16, lambda: True) is None
    calls = iter([False] * 30 + [True] * 10**4)
    found = refine_blocks(gram, target, levels, count, d, target, 3, 16, lambda: next(calls))
    assert found is not None
    assert found.value <= objective(gram, target, points_of(levels.T)).min()


def test_levels_of_their_own_and_padding() -> None:
    rng = np.random.default_rng(7)
    n = 5
    gram, target = correlated(rng, n), rng.normal(size=n)
    own = [np.sort(rng.normal(size=k)) for k in (1, 2, 4, 3, 2)]
    count = np.array([len(v) for v in own])
    levels = np.array([np.concatenate([v, np.full(4 - len(v), v[-1])]) for v in own]).T.copy()
    d = maximize_minorant(gram, np.ones(n))
    found = refine_blocks(gram, target, levels, count, d, target, [np.array([0, 1, 2]), np.array([3, 4])])
    assert found is not None
    chosen = np.array(list(product(*[range(k) for k in count])))
    values = objective(gram, target, levels[chosen, np.arange(n)])
    claimed = found.value + (found.terms - found.terms.min(axis=0))[chosen, np.arange(n)].max(axis=1)
    assert np.all(claimed <= values)


def exact_minimum(gram: Float, target: Float, levels: Float) -> Fraction:
    """In rational arithmetic."""
    h = [[Fraction(float(x)) for x in row] for row in gram]
    w = [Fraction(float(x)) for x in target]
    best = None
    for q in product(*levels):
        e = [Fraction(float(v)) - x for v, x in zip(q, w, strict=True)]
        value = sum(a * sum(x * y for x, y in zip(row, e, strict=True)) for a, row in zip(e, h, strict=True))
        best = value if best is None else min(best, value)
    assert best is not None
    return best


@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1e-200, 1e-30, 1.0, 1e30, 1e120]),
    size=st.sampled_from([1e-40, 1.0, 1e20]),
    rank=st.sampled_from([1, 2, 4]),
    wild=st.floats(0.0, 1e3),
)
@settings(max_examples=60, deadline=None)
def test_certified_bound_holds_in_rational_arithmetic(
    seed: int, scale: float, size: float, rank: int, wild: float
) -> None:
    """Singular and duplicated inputs, any scale, dual points good and bad."""
    rng = np.random.default_rng(seed)
    n = 4
    x = rng.normal(size=(8, rank)) @ rng.normal(size=(rank, n))
    if rng.random() < 0.3:
        x[:, 1] = x[:, 0]
    gram = x.T @ x * scale
    target = rng.normal(size=n) * size
    levels = np.sort(rng.normal(size=(n, 3)), axis=1) * size
    block = rng.integers(0, 2, size=n)
    matrix = np.where(block[:, None] == block[None, :], gram, 0.0) * rng.choice([0.5, 1.0, 2.0])
    matrix += rng.choice([0.0, 0.1, 1.0]) * scale * rng.normal(size=(n, n))
    z = target + rng.choice([0.0, 1e-8, 1.0, wild]) * size * rng.normal(size=n)
    if rng.random() < 0.3:
        z = levels[np.arange(n), rng.integers(0, 3, size=n)]
    bound = block_dual_bound(gram, target, levels, z, block, matrix)
    assert Fraction(bound) <= max(exact_minimum(gram, target, levels), Fraction(0))


def test_certified_bound_is_tight_where_the_block_is_everything() -> None:
    rng = np.random.default_rng(8)
    for _ in range(20):
        gram, target = correlated(rng, 4), rng.normal(size=4)
        levels = np.sort(rng.normal(size=(4, 4)), axis=1)
        exact = exact_minimum(gram, target, levels)
        bound = block_dual_bound(gram, target, levels, target, np.zeros(4, dtype=np.int64), gram)
        assert float(exact) * (1 - 1e-6) <= bound
        assert Fraction(bound) <= exact


def test_rounding_of_the_search_is_charged() -> None:
    """At z = optimum the bound is the optimum where B is near enough to H: only rounding is left to be charged."""
    tight = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        gram = correlated(rng, 3, 10.0)
        levels = np.sort(rng.normal(size=(3, 3)), axis=1)
        target = rng.uniform(-1, 1, size=3)
        points = points_of(levels)
        z = points[objective(gram, target, points).argmin()]
        exact = exact_minimum(gram, target, levels)
        bound = block_dual_bound(gram, target, levels, z, np.zeros(3, dtype=np.int64), 0.999 * gram)
        assert Fraction(bound) <= exact
        tight += bound >= float(exact) * (1 - 1e-10)
    assert tight >= 50


def test_shift_of_a_singular_gram_is_charged() -> None:
    gram = np.ones((2, 2))
    proven = proven_block_minorant(gram, np.zeros((2, 2)))
    assert proven is not None
    shift = proven[1]
    assert np.all(shift > 0)
    levels = np.array([[0.0, 1.0], [-1.0, 0.0]])
    target = np.array([0.5, -0.5])
    # Both inputs are off the grid, but q = 0 has no error.
    assert block_dual_bound(gram, target, levels, target, np.arange(2), np.diag(0.5 * shift)) <= 0.0


def test_certified_bound_of_one_variable() -> None:
    levels = np.array([[-1.0, 0.25, 2.0]])
    bound = block_dual_bound(
        np.array([[3.0]]), np.array([0.5]), levels, np.array([0.7]), np.array([5]), np.array([[3.0]])
    )
    assert 3.0 * 0.0625 * (1 - 1e-9) <= bound <= 3.0 * 0.0625


def test_blocks_that_cannot_be_searched_are_bounded_by_a_diagonal() -> None:
    """A block beyond the largest size, one that is not positive definite, one whose search is too long."""
    rng = np.random.default_rng(9)
    levels_of = lambda n: np.tile(np.linspace(-1, 1, 16), (n, 1))  # noqa: E731
    n = 40
    gram, target = correlated(rng, n), rng.normal(size=n)
    diagonal = np.diag(maximize_minorant(gram, np.ones(n)))
    points = rng.choice(np.linspace(-1, 1, 16), size=(2000, n))
    least = objective(gram, target, points).min()
    label = np.zeros(n, dtype=np.int64)
    wide = block_dual_bound(gram, target, levels_of(n), target, label, diagonal)
    alone = block_dual_bound(gram, target, levels_of(n), target, np.arange(n), diagonal)
    assert wide == pytest.approx(alone, rel=1e-9)
    assert 0 < wide <= least
    indefinite = np.kron(np.eye(n // 2), np.array([[-1.0, 3.0], [3.0, -1.0]])) * np.diag(diagonal).min()
    bound = block_dual_bound(gram, target, levels_of(n), target, np.arange(n) // 2, indefinite)
    assert bound <= least
    ill = 30
    x = rng.normal(size=(2, ill)) + 1e-3 * rng.normal(size=(2, ill))
    near = x.T @ x + 1e-6 * np.eye(ill)
    target = rng.normal(size=ill)
    bound = block_dual_bound(near, target, levels_of(ill), target, np.zeros(ill, dtype=np.int64), near)
    points = rng.choice(np.linspace(-1, 1, 16), size=(2000, ill))
    assert bound <= objective(near, target, points).min()


def test_singular_gram_is_shifted() -> None:
    rng = np.random.default_rng(10)
    x = rng.normal(size=(3, 6))
    gram = x.T @ x
    gram[0, 0] *= 1 - 1e-15
    matrix = np.where(np.arange(6)[:, None] // 3 == np.arange(6) // 3, 0.3 * gram, 0.0)
    proven = proven_block_minorant(gram, matrix)
    assert proven is not None
    lowered, shift = proven
    exact = np.linalg.eigvalsh(gram + np.diag(shift) - lowered)
    assert exact[0] >= -1e-13 * exact[-1]
    assert np.all(shift >= 0)
    levels = np.tile(CODES["nf4"], (6, 1))
    target = rng.normal(size=6)
    bound = block_dual_bound(gram, target, levels, target, np.arange(6) // 3, matrix)
    assert bound <= objective(gram, target, points_of(levels)).min()
    # A matrix with a negative eigenvalue proves nothing.
    assert proven_block_minorant(-np.eye(2), np.zeros((2, 2))) is None
    nothing = block_dual_bound(-np.eye(2), np.ones(2), levels[:2], np.ones(2), np.zeros(2, dtype=np.int64), np.eye(2))
    assert nothing == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "name", "book"),
    [
        ("resnet20_layers.safetensors", "layer1.0.conv1", "nf4"),
        ("resnet20_layers.safetensors", "layer1.0.conv1", "ternary"),
        ("minilm_layers.safetensors", "encoder.layer.2.attention.output.dense", "fp4"),
    ],
)
def test_certified_bound_is_below_feasible_errors_of_real_layers(
    reference_data: Path, file: str, name: str, book: str
) -> None:
    layer = lb.load_layers(str(reference_data / file))[name]
    grid = lb.codebook_grid(layer.weight, book)
    live = np.flatnonzero(layer.live(0))[:72]
    gram = np.ascontiguousarray(layer.channel_gram(0)[np.ix_(live, live)])
    target, levels = layer.target[0][live], np.ascontiguousarray(grid.levels(0)[live])
    n = len(live)
    d = maximize_minorant(gram, np.ones(n))
    count = np.full(n, levels.shape[1])
    columns = np.ascontiguousarray(levels.T)
    diagonal = refine(gram, target, columns, count, d, target, 3, lambda: False)
    found = refine_blocks(gram, target, columns, count, diagonal.d, diagonal.z, rounds=6)
    assert found is not None
    bound = block_dual_bound(gram, target, levels, found.z, found.block, found.matrix)
    assert bound > diagonal.value
    assert bound == pytest.approx(found.value, rel=1e-6)
    # Good points: roundings near the relaxation, the first of them after coordinate descent.
    rng = np.random.default_rng(11)
    aims = found.z + 0.04 * np.ptp(levels[0]) * rng.normal(size=(3000, n))
    points = levels[np.arange(n), np.abs(levels.T[:, None] - aims).argmin(axis=0)]
    for q in points[:10]:
        for i in np.tile(np.arange(n), 5):
            aim = q[i] - gram[i] @ (q - target) / gram[i, i]
            q[i] = levels[i, np.abs(levels[i] - aim).argmin()]
    best = points[objective(gram, target, points).argmin()]
    assert 0 < bound <= objective_interval(gram, target, best)[1]


def test_a_block_is_searched_from_its_largest_schur_complement() -> None:
    rng = np.random.default_rng(20)
    mixing = np.tril(rng.normal(size=(7, 7))) * np.geomspace(1.0, 1e-3, 7)
    block = mixing @ mixing.T
    order = search_order(block)
    assert sorted(order) == list(range(7))
    rest = list(range(7))
    for i in order[::-1]:
        inverse = np.linalg.inv(block[np.ix_(rest, rest)])
        assert rest[int(np.argmin(np.diag(inverse)))] == i
        rest.remove(i)
    assert list(search_order(np.zeros((3, 3)))) == [0, 1, 2]
    assert list(search_order(-np.eye(2))) == [0, 1]
