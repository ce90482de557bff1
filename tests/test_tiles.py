"""Transposable N:M and V:N:M: which masks are allowed, and certified intervals against every choice."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Bool, Float
from layerbounds.bounds.least import least
from layerbounds.bounds.tiles.least import most_prices
from layerbounds.exceptions import CertificationError, InputError, NotAllowedError, UnsupportedProblemError
from layerbounds.problems.patterns import parse_pattern
from layerbounds.problems.pruning import PruningProblem
from layerbounds.problems.tasks import make_task
from layerbounds.problems.tile_masks import best_columns, best_in_tile, maximal_masks
from layerbounds.problems.tiled_support import TiledSupport
from layerbounds.proofs import Control, TiledDual
from layerbounds.search.tiles.prices import prices_of
from layerbounds.search.tiles.search import search_tiles


def control(seconds: float) -> Control:
    """Limits of one band."""
    return Control(seconds, 0.0, None, 0, 1, threading.Event())


def make_layer(rng: np.random.Generator, rows: int, n: int, rank: int | None = None, scale: float = 1.0) -> lb.Layer:
    """Correlated inputs, of fewer directions than inputs where ``rank`` says so."""
    x = rng.normal(size=(6 * n, rank or n)) @ rng.normal(size=(rank or n, n)) + 0.3 * (rank is None)
    return lb.Layer(weight=scale * rng.normal(size=(rows, n)), gram=x.T @ x / len(x))


def row_errors(problem: PruningProblem, channel: int, lines: Bool) -> Float:
    """The least error of a row on each choice of inputs."""
    gram, w = problem.layer.channel_gram(channel), problem.layer.target[channel]
    errors = []
    for line in lines:
        v = np.zeros(len(w))
        if problem.refit:
            kept = np.flatnonzero(line)
            v[kept] = np.linalg.lstsq(gram[np.ix_(kept, kept)], gram[kept] @ w, rcond=None)[0]
        else:
            v[line] = problem.layer.matrix[channel, line]
        errors.append(float((v - w) @ gram @ (v - w)))
    return np.array(errors)


def allowed_by_hand(pattern: str, mask: Bool) -> bool:
    """The definition, tile by tile."""
    numbers = [int(x) for x in pattern.split(":")[1:]]
    kept, size = numbers[-2:]
    for begin in range(0, mask.shape[1], size):
        tile = mask[:, begin : begin + size]
        if tile.sum(axis=1).max() > kept:
            return False
        if pattern.startswith("transposable") and tile.sum(axis=0).max() > kept:
            return False
        if pattern.startswith("venom") and np.count_nonzero(tile.any(axis=0)) > 4:
            return False
    return True


def optimum(problem: PruningProblem, rows: list[int]) -> float:
    """The least error of a band, by all choices."""
    n = problem.layer.in_features
    lines = np.array(list(itertools.product([False, True], repeat=n)))
    lines = lines[[allowed_by_hand(problem.pattern.label, line[None]) for line in lines]]
    tables = [row_errors(problem, c, lines) for c in rows]
    # Partial totals by what the columns have in use.
    totals: dict[tuple[int, ...], float] = {(0,) * n: 0.0}
    for table in tables:
        following: dict[tuple[int, ...], float] = {}
        for used, total in totals.items():
            for line, error in zip(lines, table, strict=True):
                count = tuple(np.add(used, line).tolist())
                if total + error < following.get(count, np.inf):
                    following[count] = total + error
        totals = {k: v for k, v in following.items() if within(problem.pattern.label, np.array(k))}
    return min(totals.values())


def within(pattern: str, count: np.ndarray) -> bool:
    """Whether so many rows may keep each input."""
    numbers = [int(x) for x in pattern.split(":")[1:]]
    kept, size = numbers[-2:]
    if pattern.startswith("transposable"):
        return bool(count.max() <= kept)
    return all(np.count_nonzero(count[b : b + size]) <= 4 for b in range(0, len(count), size))


CASES = [
    ("transposable:2:4", 4, 4),
    ("transposable:2:4", 3, 5),
    ("transposable:1:2", 4, 5),
    ("transposable:1:3", 5, 4),
    ("transposable:2:3", 3, 5),
    ("venom:2:1:5", 2, 6),
    ("venom:3:2:6", 3, 6),
    ("venom:2:3:5", 3, 5),
]


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize(("pattern", "rows", "n"), CASES)
def test_intervals_against_every_choice(pattern: str, rows: int, n: int, refit: bool) -> None:
    rng = np.random.default_rng([rows, n, refit, len(pattern)])
    for rank, scale in ((None, 1.0), (max(n - 2, 1), 1.0), (None, 1e-6)):
        problem = lb.pruning_problem(make_layer(rng, rows, n, rank, scale), pattern=pattern, refit=refit)
        solution = lb.solve(problem, time_limit=30.0, jobs=1)
        assert lb.evaluate(problem, solution.weights).feasible.all()
        for i, band in enumerate(solution.sets):
            best, energy = optimum(problem, band), solution.energy[i]
            slack = 1e-9 * best + 1e-12 * energy
            assert solution.lower_bound[i] <= best + slack
            assert solution.upper_bound[i] >= best - slack
            assert solution.status[i] == lb.Status.OPTIMAL, (band, rank, solution.lower_bound[i], best)
            assert solution.upper_bound[i] <= best + 1.1e-6 * best + 1e-11 * energy


def test_maximal_masks_of_two_of_four() -> None:
    masks = maximal_masks(4, 4, 2, 2)
    assert len(masks) == 186
    assert sorted({int(m.sum()) for m in masks}) == [7, 8]
    assert sum(int(m.sum()) == 8 for m in masks) == 90


@pytest.mark.parametrize(("rows", "columns", "kept"), [(4, 4, 2), (4, 3, 2), (3, 4, 1), (5, 5, 2), (6, 5, 3)])
def test_best_masks_of_tiles(rows: int, columns: int, kept: int) -> None:
    rng = np.random.default_rng(rows * columns)
    for _ in range(5):
        score = rng.exponential(size=(rows, columns))
        mask = best_in_tile(score, kept, kept)
        assert mask.sum(axis=0).max() <= kept and mask.sum(axis=1).max() <= kept
        lines = [
            np.isin(np.arange(columns), c) for k in range(kept + 1) for c in itertools.combinations(range(columns), k)
        ]
        best: dict[tuple[int, ...], float] = {(0,) * columns: 0.0}
        for row in score:
            following: dict[tuple[int, ...], float] = {}
            for used, total in best.items():
                for line in lines:
                    count = tuple(np.add(used, line).tolist())
                    if max(count) <= kept:
                        following[count] = max(following.get(count, 0.0), total + float(row[line].sum()))
            best = following
        assert score[mask].sum() == pytest.approx(max(best.values()))


def test_best_columns() -> None:
    rng = np.random.default_rng(3)
    score = rng.exponential(size=(5, 7))
    mask = best_columns(score, 2, 4)
    totals = [sum(np.sort(row[list(c)])[-2:].sum() for row in score) for c in itertools.combinations(range(7), 4)]
    assert score[mask].sum() == pytest.approx(max(totals))
    assert np.count_nonzero(mask.any(axis=0)) <= 4 and mask.sum(axis=1).max() <= 2


@pytest.mark.parametrize("pattern", ["transposable:2:4", "venom:3:2:6"])
def test_the_allowed_set_is_the_definition(pattern: str) -> None:
    rng = np.random.default_rng(5)
    problem = lb.pruning_problem(make_layer(rng, 4, 7), pattern=pattern)
    for rows in problem.sets(range(4)):
        allowed = problem.allowed(rows[0])
        assert isinstance(allowed, TiledSupport)
        for _ in range(200):
            mask = rng.random((len(rows), 7)) < rng.choice([0.2, 0.35, 0.5])
            weights = np.where(mask, 1.0, 0.0)
            weights = weights[0] if len(rows) == 1 else weights
            fits = allowed_by_hand(pattern, mask)
            assert (allowed.violation(weights) == 0) == fits
            if fits:
                assert allowed.exact(weights) is weights
            else:
                with pytest.raises(NotAllowedError):
                    allowed.exact(weights)
            near = allowed.nearest(rng.normal(size=weights.shape))
            assert allowed.violation(near) == 0


def test_names_and_numbers() -> None:
    assert parse_pattern("Transposable:2:4").label == "transposable:2:4"
    assert parse_pattern("venom:64:2:8").label == "venom:64:2:8"
    for wrong in ("transposable:4:4", "transposable:0:4", "venom:1:2:8", "venom:8:2:4", "venom:8:4:8"):
        with pytest.raises(InputError, match="for example"):
            parse_pattern(wrong)
    layer = lb.demo_layers()["conv3"]
    with pytest.raises(InputError, match="leave out share"):
        lb.pruning_problem(layer, pattern="transposable:2:4", share=2)
    with pytest.raises(InputError, match="leave out density"):
        lb.pruning_problem(layer, pattern="transposable:2:4", density=0.5)
    problem = lb.pruning_problem(layer, pattern="transposable:2:4")
    with pytest.raises(InputError, match="share tiles"):
        lb.solve(problem, channels=[0, 1])
    assert problem.bits_per_weight == 8.0
    assert problem.storage("metadata") == 9.0
    # 2 of 8 weights, 16 bits each; 4 columns of 8 for both bands of 24 rows, 3 bits each; 2 of these 4, 2 bits each.
    assert lb.pruning_problem(layer, pattern="venom:16:2:8").storage("metadata") == 4.0 + 1.5 * 2 / 24 + 0.5


# Certified minima


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("pattern", ["transposable:2:4", "venom:3:2:6"])
def test_any_point_diagonal_and_prices_give_a_valid_bound(pattern: str, refit: bool) -> None:
    rng = np.random.default_rng([len(pattern), refit])
    for trial in range(6):
        problem = lb.pruning_problem(make_layer(rng, 3, 6, 4 if trial == 5 else None), pattern=pattern, refit=refit)
        band = problem.sets(range(3))[0]
        task = make_task(problem, band, None, None)
        best = optimum(problem, band)
        found = search_tiles(task, control(5.0)).dual
        tried = [] if found is None else [found]
        for _ in range(30):
            shape = task.targets.shape
            noise = rng.exponential(size=shape) * rng.choice([0.0, 0.1, 10.0]) * task.energy / 6
            start = found or TiledDual(task.targets, np.full(shape, 0.1), np.zeros(shape))
            points = start.points + rng.normal(size=shape) * rng.choice([0.0, 0.1, 3.0])
            diagonals = start.diagonals * rng.choice([0.5, 1.0, 20.0]) - rng.choice([0.0, 0.1])
            tried.append(TiledDual(points, diagonals, start.prices + noise))
        for dual in tried:
            assert least(task.gram, task.target, task.allowed, dual) <= best * (1 + 1e-12) + 1e-12 * task.energy


def test_wrong_dual_points_are_refused() -> None:
    rng = np.random.default_rng(1)
    problem = lb.pruning_problem(make_layer(rng, 4, 4), pattern="transposable:2:4")
    task = make_task(problem, [0, 1, 2, 3], None, None)
    good = np.ones((4, 4))
    for bad in (
        TiledDual(good, good, -good),
        TiledDual(good[:3], good[:3], good[:3]),
        TiledDual(good, good[:, :3], good),
        TiledDual(good, np.full((4, 4), np.nan), good),
    ):
        with pytest.raises(CertificationError):
            least(task.gram, task.target, task.allowed, bad)


def test_most_prices_is_above_every_mask() -> None:
    rng = np.random.default_rng(2)
    for pattern in ("transposable:2:4", "venom:3:2:6"):
        problem = lb.pruning_problem(make_layer(rng, 3, 6), pattern=pattern)
        allowed = problem.allowed(0)
        assert isinstance(allowed, TiledSupport)
        for _ in range(5):
            prices = rng.exponential(size=(3, 6))
            mask = allowed.best_mask(prices)
            assert float(most_prices(allowed.limits, prices)) >= prices[mask].sum()
            coupled = prices_of(allowed)
            x = coupled.gather(prices)
            assert float(coupled.charged(x)) == pytest.approx(coupled.largest(x)[0])


# The search


def test_two_tiles_against_every_choice() -> None:
    rng = np.random.default_rng(11)
    for refit in (True, False):
        problem = lb.pruning_problem(make_layer(rng, 3, 8), pattern="transposable:1:4", refit=refit)
        solution = lb.solve(problem, time_limit=30.0, jobs=1)
        best = optimum(problem, [0, 1, 2])
        assert solution.status[0] == lb.Status.OPTIMAL
        assert solution.lower_bound[0] <= best * (1 + 1e-9) <= solution.upper_bound[0] * (1 + 2e-9)


@pytest.mark.parametrize("refit", [True, False])
def test_many_small_bands_against_every_choice(refit: bool) -> None:
    rng = np.random.default_rng([77, refit])
    for _ in range(8):
        pattern = str(rng.choice(["transposable:2:3", "transposable:1:3", "transposable:2:4", "venom:3:1:5"]))
        problem = lb.pruning_problem(make_layer(rng, 3, int(rng.integers(5, 7))), pattern=pattern, refit=refit)
        solution = lb.solve(problem, time_limit=30.0, jobs=1)
        for i, band in enumerate(solution.sets):
            best = optimum(problem, band)
            assert solution.status[i] == lb.Status.OPTIMAL
            assert solution.lower_bound[i] <= best * (1 + 1e-9) <= solution.upper_bound[i] * (1 + 2e-9)


@pytest.mark.parametrize("refit", [True, False])
def test_a_band_of_sixteen_inputs_is_closed_by_enumeration(refit: bool) -> None:
    rng = np.random.default_rng([16, refit])
    problem = lb.pruning_problem(make_layer(rng, 4, 16), pattern="transposable:2:4", refit=refit)
    solution = lb.solve(problem, time_limit=60.0, jobs=1)
    assert solution.status[0] == lb.Status.OPTIMAL
    alone = lb.solve(lb.pruning_problem(problem.layer, pattern="2:4", refit=refit), time_limit=30.0, jobs=1)
    assert solution.lower_bound[0] >= alone.lower_bound.sum() * (1 - 1e-6)
    again = lb.solve(problem, time_limit=60.0, jobs=1, warm_start=solution.weights)
    assert again.upper_bound[0] <= solution.upper_bound[0] * (1 + 1e-9)


def test_a_node_limit_gives_the_same_result() -> None:
    layer = lb.demo_layers()["conv3"]
    problem = lb.pruning_problem(layer, pattern="transposable:2:4")
    first, second = (lb.solve(problem, channels=[0, 1, 2, 3], node_limit=400, jobs=j, seed=3) for j in (1, 2))
    assert first.lower_bound[0] == second.lower_bound[0]
    assert first.upper_bound[0] == second.upper_bound[0]
    assert first.status[0] == lb.Status.NODE_LIMIT
    assert first.lower_bound[0] > 0.55 * first.upper_bound[0]
    root = lb.solve(problem, channels=[0, 1, 2, 3], node_limit=1, jobs=1)
    assert root.bound_kind[0] == "dual"
    assert root.nodes[0] == 0


@pytest.mark.slow
def test_the_bound_of_a_real_layer() -> None:
    layer = lb.demo_layers()["conv3"]
    problem = lb.pruning_problem(layer, pattern="transposable:2:4")
    solution = lb.solve(problem, channels=[0, 1, 2, 3], node_limit=8_000, jobs=1)
    assert solution.lower_bound[0] >= 0.75 * solution.upper_bound[0]
    assert lb.evaluate(problem, solution.weights, channels=[0, 1, 2, 3]).feasible.all()
    met = lb.solve(problem, channels=[0, 1, 2, 3], node_limit=8_000, gap=0.4, jobs=1)
    assert met.status[0] == lb.Status.GAP_REACHED


# Degenerate layers


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("pattern", ["transposable:2:4", "venom:2:1:5"])
def test_dead_inputs_groups_and_few_live_ones(pattern: str, refit: bool) -> None:
    rng = np.random.default_rng(8)
    x = rng.normal(size=(2, 40, 6))
    x[0, :, 2] = 0.0
    x[1, :, 1:] = 0.0
    gram = np.einsum("gti,gtj->gij", x, x) / 40
    layer = lb.Layer(weight=rng.normal(size=(6, 6)), gram=gram)
    problem = lb.pruning_problem(layer, pattern=pattern, refit=refit)
    solution = lb.solve(problem, time_limit=20.0, jobs=1)
    assert lb.evaluate(problem, solution.weights).feasible.all()
    for i, band in enumerate(solution.sets):
        best = optimum(problem, band)
        assert solution.lower_bound[i] <= best + 1e-12 * solution.energy[i]
        assert solution.upper_bound[i] <= best * (1 + 1e-6) + 1e-11 * solution.energy[i]
    nothing = lb.Layer(weight=rng.normal(size=(4, 6)), gram=np.zeros((6, 6)))
    empty = lb.solve(lb.pruning_problem(nothing, pattern=pattern, refit=refit), jobs=1)
    assert list(empty.status) == [lb.Status.OPTIMAL] * len(empty.sets)
    assert (empty.upper_bound == 0).all()


def test_targets_that_differ_and_refitted_biases() -> None:
    rng = np.random.default_rng(9)
    inputs = rng.normal(size=(60, 6)) @ rng.normal(size=(6, 6)) + 1.0
    seen = inputs + 0.2 * rng.normal(size=inputs.shape)
    layer = lb.Layer.from_activations(weight=rng.normal(size=(4, 6)), inputs=inputs, compressed_inputs=seen)
    assert layer.constant.min() > 0
    problem = lb.pruning_problem(layer, pattern="transposable:2:4")
    solution = lb.solve(problem, jobs=1)
    best = optimum(problem, [0, 1, 2, 3]) + layer.constant.sum()
    assert solution.status[0] == lb.Status.OPTIMAL
    assert solution.lower_bound[0] <= best * (1 + 1e-9) <= solution.upper_bound[0] * (1 + 2e-9)
    plain = lb.Layer.from_activations(weight=rng.normal(size=(4, 6)), inputs=inputs)
    refitted = lb.pruning_problem(plain, pattern="transposable:2:4", bias="refit")
    again = lb.solve(refitted, jobs=1)
    assert again.status[0] == lb.Status.OPTIMAL
    assert again.upper_bound[0] <= optimum(refitted, [0, 1, 2, 3]) * (1 + 1e-6)


def test_wide_bands_have_a_bound_in_time() -> None:
    rng = np.random.default_rng(10)
    x = rng.normal(size=(800, 200)) + 0.8 * rng.normal(size=(800, 1))
    layer = lb.Layer(weight=rng.normal(size=(4, 200)), gram=x.T @ x / 800)
    problem = lb.pruning_problem(layer, pattern="transposable:2:4")
    lb.solve(problem, time_limit=0.1, jobs=1)
    solution = lb.solve(problem, time_limit=2.0, jobs=1)
    assert 0 < solution.lower_bound[0] < solution.upper_bound[0]
    assert solution.seconds[0] < 6.0


# The surface


def test_what_else_treats_tiles_or_refuses() -> None:
    rng = np.random.default_rng(12)
    layer = make_layer(rng, 4, 6)
    problem = lb.pruning_problem(layer, pattern="transposable:1:2")
    with pytest.raises(UnsupportedProblemError, match="tiled pruning with refit"):
        lb.run_heuristic("wanda", problem)
    with pytest.raises(UnsupportedProblemError, match="cannot treat tiled pruning"):
        lb.solve(problem, backend="batched")
    with pytest.raises(InputError, match="couples the output channels"):
        lb.joint_problem(layer, bits=4, pattern="transposable:1:2")
    with pytest.raises(InputError, match="couples the output channels"):
        lb.order_gap(layer, bits=4, pattern="transposable:1:2")
    records = list(lb.compare(layer, pattern="transposable:1:2", time_limit=5.0, jobs=1))
    assert records[0]["kind"] == "certified"
    solution = lb.solve(problem, jobs=1)
    again = lb.solve(problem, jobs=1, warm_start=solution.weights)
    assert again.upper_bound == pytest.approx(solution.upper_bound)


def test_models_are_compressed_to_tiles() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    batches = [torch.randn(64, 6)]
    result = lb.compress(model, batches, "solve", pattern="transposable:1:2", time_limit=0.3, jobs=1)
    for at in (0, 2):
        mask = result.model[at].weight.detach().numpy() != 0
        assert allowed_by_hand("transposable:1:2", mask[:2]) and allowed_by_hand("transposable:1:2", mask[2:4])
