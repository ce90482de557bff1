"""Free codebooks: the k-means bound, every division of few inputs, and what users see of it."""

from __future__ import annotations

import json
import threading
from fractions import Fraction
from itertools import combinations, pairwise

import numpy as np
import pytest
from typer.testing import CliRunner
from zoo import brute_force

import layerbounds as lb
from layerbounds.bounds.free_codebook.dual import codebook_bound, least_distance
from layerbounds.bounds.free_codebook.relaxation import next_diagonal, refine
from layerbounds.bounds.least import least
from layerbounds.cli.main import app
from layerbounds.exceptions import CertificationError, InputError, NotAllowedError, UnsupportedProblemError
from layerbounds.kernels.free_codebook.segments import least_segments
from layerbounds.layers.bias import apply_bias
from layerbounds.problems.free_codebook import FreeCodebookProblem, FreeLevels, covering, divisions
from layerbounds.problems.tasks import make_task
from layerbounds.proofs import BlockDual, Control, DualPoint, FormTerms
from layerbounds.search.free_codebook import channel_search
from layerbounds.search.free_codebook.divisions import Divisions, all_divisions, number_of_divisions
from layerbounds.search.free_codebook.incumbents import Incumbents
from layerbounds.search.free_codebook.preparation import prepare_group

KINDS = (
    "plain", "few positions", "low rank", "multiples", "dead", "duplicate weights", "scales", "unequal", "integers",
    "constant input", "ill-conditioned", "other inputs", "rounded inputs", "zero weights",
)  # fmt: skip


def random_layer(rng, kind):
    n = int(rng.integers(1, 7))
    x = rng.normal(size=(40 if kind == "plain" else int(rng.integers(1, 20)), n))
    w = rng.normal(size=(1, n))
    if kind == "low rank":
        rank = int(rng.integers(1, n + 1))
        x = rng.normal(size=(len(x), rank)) @ rng.normal(size=(rank, n))
    elif kind == "multiples" and n > 1:
        x[:, 1] = x[:, 0] * rng.choice([-1, 1, 2, 1.001, 1 + 1e-6, 1 + 1e-9])
    elif kind == "dead":
        x[:, rng.random(n) < 0.4] = 0.0
    elif kind == "duplicate weights":
        w = np.round(w)
    elif kind == "scales":
        x *= 10.0 ** rng.integers(-12, 12)
        w *= 10.0 ** rng.integers(-12, 12)
    elif kind == "unequal":
        x *= 10.0 ** rng.uniform(-6, 6, n)
    elif kind == "integers":
        x, w = np.round(2 * x), np.round(3 * w) / 2
    elif kind == "constant input":
        x += 5.0
        x[:, 0] = 3.0
        return apply_bias(lb.Layer.from_activations(w, x), "refit")
    elif kind == "ill-conditioned":
        x = x * 10.0 ** np.linspace(-7, 0, n) @ np.linalg.qr(rng.normal(size=(n, n)))[0]
    elif kind == "other inputs":
        return lb.Layer.from_activations(w, x, compressed_inputs=x + 0.3 * rng.normal(size=x.shape))
    elif kind == "rounded inputs":
        return lb.Layer.from_activations(w, x, compressed_inputs=np.round(x))
    elif kind == "zero weights":
        w = np.zeros((1, n))
    return lb.Layer.from_activations(w, x)


def least_by_cuts(points, weights, count):
    """Exact k-means of sorted points, by trying every division into segments."""
    x, d = [Fraction(float(v)) for v in points], [Fraction(float(v)) for v in weights]
    best = None
    for k in range(1, min(count, len(x)) + 1):
        for cut in combinations(range(1, len(x)), k - 1):
            total = Fraction(0)
            for a, b in pairwise((0, *cut, len(x))):
                weight = sum(d[a:b])
                if weight:
                    mean = sum(p * q for p, q in zip(d[a:b], x[a:b], strict=True)) / weight
                    total += sum(p * (q - mean) ** 2 for p, q in zip(d[a:b], x[a:b], strict=True))
            best = total if best is None else min(best, total)
    return best


def test_segments_and_their_certified_distance(rng):
    for _ in range(60):
        n, count = int(rng.integers(1, 8)), int(rng.integers(1, 6))
        points = np.sort(np.round(rng.normal(size=n) * 10.0 ** rng.integers(-3, 4), int(rng.integers(0, 5))))
        weights = rng.uniform(size=n) * (rng.random(n) < 0.8)
        exactly = least_by_cuts(points, weights, count)
        means = np.empty(count)
        cost, used = least_segments(points, weights, count, means)
        size = float(weights @ points**2)
        assert abs(cost - float(exactly)) <= 1e-13 * size
        levels = means[:used]
        assert np.all(np.diff(levels) >= 0)
        reached = float(weights @ np.min((points[:, None] - levels) ** 2, axis=1))
        assert reached <= float(exactly) + 1e-13 * size
        if np.all(weights > 0):
            below = float(least_distance(points.astype(np.longdouble), weights.astype(np.longdouble), count))
            assert Fraction(below) ** 2 <= exactly
            assert below**2 >= float(exactly) - 1e-8 * np.sqrt(size * float(exactly)) - 1e-15 * size


def test_the_distance_of_many_points():
    rng = np.random.default_rng(5)
    points, weights = rng.normal(size=300) + 1e6, rng.uniform(0.1, 1.0, 300)
    means = np.empty(8)
    # What the kernel says of centred points.
    order = np.argsort(points)
    cost, _ = least_segments(points[order] - 1e6, weights[order], 8, means)
    below = float(least_distance(points.astype(np.longdouble), weights.astype(np.longdouble), 8)) ** 2
    assert cost * (1 - 1e-9) <= below <= cost * (1 + 1e-12)


@pytest.mark.slow
def test_any_dual_point_is_a_bound(rng):
    positive = 0
    for number in range(84):
        layer = random_layer(rng, KINDS[number % len(KINDS)])
        if not layer.live().any():
            continue
        count = int(rng.integers(1, 4))
        problem = FreeCodebookProblem(layer, count)
        live = layer.live()
        gram = np.ascontiguousarray(problem.gram(0)[np.ix_(live, live)])
        target = layer.target[0][live]
        optimum, energy = brute_force(problem), float(layer.energy()[0])
        d = next_diagonal(gram, rng.uniform(0.1, 1.0, len(gram)), None, None)
        for size in (0.0, 0.01, 1.0):
            z = target + size * rng.normal(size=len(target)) * (np.abs(target).max() + 1e-30)
            # Diagonals that are too large, partly zero or negative are made proven ones.
            for diagonal in (d, 3.0 * d + np.diag(gram), d * (rng.random(len(d)) < 0.5), d - np.mean(d)):
                bound = codebook_bound(gram, target, count, z, diagonal)
                assert bound + float(layer.constant[0]) <= optimum + 1e-9 * optimum + 1e-13 * energy
                positive += bound > 0
        found = refine(gram, target, count, d, 3, lambda seconds: False) if np.all(d > 0) else None
        if found is not None and np.isfinite(found.value):
            bound = codebook_bound(gram, target, count, found.z, found.d)
            assert bound + float(layer.constant[0]) <= optimum + 1e-9 * optimum + 1e-13 * energy
    assert positive > 40


@pytest.mark.parametrize("kind", KINDS)
def test_few_inputs_are_closed(kind):
    rng = np.random.default_rng(KINDS.index(kind))
    for _ in range(8):
        layer = random_layer(rng, kind)
        problem = FreeCodebookProblem(layer, int(rng.integers(1, 6)))
        solution = lb.solve(problem, time_limit=10.0, jobs=1)
        optimum, energy = brute_force(problem), solution.energy[0]
        slack = 1e-9 * optimum + 1e-13 * energy
        assert solution.lower_bound[0] <= optimum + slack
        assert solution.upper_bound[0] <= optimum * (1 + 2e-6) + 2e-12 * energy
        assert solution.status[0] == lb.Status.OPTIMAL
        assert solution.lower_bound[0] >= layer.constant[0]
        assert lb.evaluate(problem, solution.weights).feasible.all()


@pytest.mark.parametrize("kind", ["plain", "low rank", "unequal", "other inputs", "ill-conditioned"])
def test_bounds_without_trying_every_division(kind, monkeypatch):
    monkeypatch.setattr(channel_search, "MOST", 0)
    monkeypatch.setattr(channel_search, "STALLED", 10)
    rng = np.random.default_rng(KINDS.index(kind))
    for _ in range(4):
        layer = random_layer(rng, kind)
        problem = FreeCodebookProblem(layer, int(rng.integers(1, 4)))
        solution = lb.solve(problem, time_limit=5.0, jobs=1)
        optimum, energy = brute_force(problem), solution.energy[0]
        slack = 1e-9 * optimum + 1e-13 * energy
        assert layer.constant[0] <= solution.lower_bound[0] <= optimum + slack
        assert solution.status[0] in (lb.Status.OPTIMAL, lb.Status.UNRESOLVED)
        assert solution.bound_kind[0] != lb.BoundKind.SEARCH


def test_divisions(rng):
    for size in range(1, 7):
        for blocks in range(1, size + 1):
            rows = [tuple(row) for row in all_divisions(size, blocks).tolist()]
            assert len(rows) == number_of_divisions(size, blocks)
            assert set(rows) == set(divisions(size, blocks)) and len(set(rows)) == len(rows)
            assert all(len(set(row)) == blocks for row in rows)
    assert number_of_divisions(10, 4) == 34105
    assert list(divisions(0, 0)) == [()]
    pieces = list(FreeLevels(2, 3).pieces())
    assert [directions.shape for _, directions, _ in pieces] == [(3, 2)] * 3
    assert not any(nonnegative for _, _, nonnegative in pieces)


def test_both_ways_of_trying_every_division_agree(small_layer):
    problem = FreeCodebookProblem(small_layer, 3)
    for channel in range(3):
        task = make_task(problem, channel, None, None)
        control = Control(60.0, 0.0, None, 0, 1, threading.Event())
        quick, exactly = Divisions(task, control), Divisions(task, control)
        assert quick.bound(next_diagonal(task.gram, np.ones(6), None, None)) and exactly.exactly()
        assert quick.lower <= exactly.lower * (1 + 1e-12)
        assert quick.lower == pytest.approx(exactly.lower, rel=1e-9)
        np.testing.assert_allclose(quick.weights, exactly.weights, rtol=1e-8)
        control = Control(0.0, 0.0, None, 0, 1, threading.Event())
        assert not Divisions(task, control).bound(np.ones(6)) and not Divisions(task, control).exactly()


def test_moves_with_refitted_levels_reach_what_they_say(rng, random_gram):
    gram, target = random_gram(20), rng.normal(size=20)
    search = Incumbents(gram, target, 3, [0], lambda: False)
    levels = np.array([-1.0, 0.0, 1.0])
    choice = rng.permutation(np.arange(20) % 3)
    before = search.value(search.refit(levels, choice))
    moved = choice.copy()
    assert search._descend(moved, levels) > 0
    after = search.value(search.refit(levels, moved))
    assert after < before
    # No single move from there is better.
    for i in range(20):
        for level in range(3):
            other = moved.copy()
            other[i] = level
            assert search.value(search.refit(levels, other)) >= after * (1 - 1e-9)


def test_violation_is_the_least_largest_change(rng):
    for _ in range(60):
        n, count = int(rng.integers(1, 8)), int(rng.integers(1, 4))
        weights = np.round(rng.normal(size=n), int(rng.integers(0, 6)))
        allowed = FreeLevels(count, n)
        values = np.unique(weights)
        best = min(
            max(values[b - 1] - values[a] for a, b in pairwise((0, *cut, len(values))))
            for k in range(1, min(count, len(values)) + 1)
            for cut in combinations(range(1, len(values)), k - 1)
        )
        assert allowed.violation(weights) == 0.5 * best
        assert (allowed.violation(weights) == 0.0) == (len(values) <= count)
        near = allowed.nearest(weights)
        assert len(np.unique(near)) <= count
        least = least_by_cuts(np.sort(weights), np.ones(n), count)
        assert float(np.sum((near - weights) ** 2)) <= float(least) + 1e-12
    # Widths at which the cover changes are found exactly, however close they lie.
    ends = covering(np.array([0.0, 1.0, 1.0 + 2**-52, 2.0]), 2)
    assert np.max(ends[:, 1] - ends[:, 0]) == 1.0
    tiny = np.array([0.0, 5e-324, 1.0])
    assert FreeLevels(2, 3).violation(tiny) > 0 and FreeLevels(2, 2).violation(np.array([0.0, -0.0])) == 0


def test_rounded_weights_mean_allowed_ones():
    allowed = FreeLevels(2, 4)
    weights = np.array([1.0, 1.0 + 1e-15, -2.0, -2.0])
    assert len(np.unique(allowed.exact(weights))) == 2
    np.testing.assert_allclose(allowed.exact(weights), weights, rtol=1e-12)
    with pytest.raises(NotAllowedError, match="more than 2 values"):
        allowed.exact(np.array([1.0, 1.1, -2.0, -2.0]))
    huge = FreeLevels(2, 4).nearest(np.array([1e200, 1.1e200, -1e200, 0.9e200]))
    assert len(np.unique(huge)) == 2 and np.all(np.isfinite(huge))


def test_dead_inputs_take_a_level(rng):
    x = rng.normal(size=(30, 12))
    x[:, [0, 5, 11]] = 0.0
    layer = lb.Layer.from_activations(rng.normal(size=(2, 12)), x)
    problem = lb.quantization_problem(layer, 1, codebook="free")
    solution = lb.solve(problem, jobs=1)
    assert lb.evaluate(problem, solution.weights).feasible.all()
    assert [len(np.unique(row)) for row in solution.weights] == [2, 2]
    again = lb.solve(problem, jobs=1, warm_start=solution.weights, node_limit=1, gap=0.5)
    assert np.all(again.upper_bound <= solution.upper_bound * (1 + 1e-12))
    silent = lb.Layer(np.arange(5.0)[None], np.zeros((5, 5)))
    solution = lb.solve(lb.quantization_problem(silent, 1, codebook="free"))
    assert solution.status == ["optimal"] and len(np.unique(solution.weights)) <= 2


def test_limits(rng, random_gram):
    layer = lb.Layer(rng.normal(size=(1, 24)), random_gram(24))
    problem = lb.quantization_problem(layer, 2, codebook="free")
    limited = lb.solve(problem, node_limit=3, jobs=1)
    assert limited.status == ["node_limit"] and limited.nodes[0] == 3
    same = lb.solve(problem, node_limit=3, jobs=1)
    np.testing.assert_array_equal(limited.weights, same.weights)
    assert lb.solve(problem, time_limit=0.0, jobs=1).status == ["time_limit"]
    # Of a diagonal matrix k-means is exact.
    weights = rng.normal(size=(1, 24))
    alone = lb.quantization_problem(lb.Layer(weights, np.diag(rng.uniform(0.5, 2.0, 24))), 2, codebook="free")
    done = lb.solve(alone, jobs=1)
    assert done.status == ["optimal"] and done.bound_kind == ["dual"]
    near = lb.Layer(weights, np.diag(rng.uniform(0.5, 2.0, 24)) + 0.02 * random_gram(24))
    wide = lb.solve(lb.quantization_problem(near, 2, codebook="free"), gap=0.9, jobs=1)
    assert wide.status == ["gap_reached"] and 0 < wide.lower_bound[0] <= wide.upper_bound[0]


def test_nearly_as_many_levels_as_inputs(rng, random_gram):
    layer = lb.Layer(rng.normal(size=(1, 140)), random_gram(140))
    solution = lb.solve(lb.quantization_problem(layer, 7, codebook="free"), time_limit=0.5, jobs=1)
    assert 0.0 <= solution.lower_bound[0] <= solution.upper_bound[0] < 1e-3 * solution.energy[0]
    few = lb.Layer(rng.normal(size=(1, 17)), random_gram(17))
    assert lb.solve(lb.quantization_problem(few, 4, codebook="free"), jobs=1).status == ["optimal"]


@pytest.mark.slow
def test_free_levels_are_never_worse(reference_data):
    layer = lb.load_layers(reference_data / "resnet20_layers.safetensors")["linear"]
    for bits, codebook in ((2, None), (4, "nf4")):
        problem = lb.quantization_problem(layer, bits, codebook="free")
        free = lb.solve(problem, channels=[0], time_limit=0.3, jobs=1)
        grid = lb.quantization_problem(layer, None if codebook else bits, codebook=codebook)
        fixed = lb.solve(grid, channels=[0], time_limit=0.2, jobs=1)
        # The optimum on the grid is one of the weights that the bound is about.
        assert np.all(free.lower_bound <= fixed.upper_bound)
        assert np.all(free.upper_bound <= fixed.upper_bound) and np.all(free.lower_bound > 0.1 * free.upper_bound)
        for name in ("gptq", "rtn"):
            assert np.all(free.lower_bound <= lb.evaluate(grid, lb.run_heuristic(name, grid)).error[:1])
        assert lb.evaluate(problem, fixed.weights, channels=[0]).feasible.all()
        started = lb.solve(problem, channels=[0], time_limit=0.0, jobs=1, warm_start=fixed.weights)
        assert np.all(started.upper_bound <= fixed.upper_bound * (1 + 1e-12))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"codebook": "free"}, "pass bits"),
        ({"bits": 9, "codebook": "free"}, "bits is 9"),
        ({"bits": 2, "codebook": "free", "granularity": 3}, "free codebooks are per channel"),
        ({"bits": 2, "codebook": "free", "granularity": "tensor"}, "free codebooks are per channel"),
        ({"bits": 2, "codebook": "free", "range": "mse"}, "has no range"),
        ({"bits": 2, "codebook": "free", "symmetric": False}, "has no symmetric"),
        ({"bits": 2, "codebook": "free", "scale": [1.0]}, "has no scale"),
        ({"bits": 4, "codebook": "nf4"}, "leave out bits"),
        ({"codebook": "nf4", "symmetric": True}, "leave out symmetric"),
        ({"codebook": "nf5"}, "no codebook 'nf5'"),
    ],
)
def test_contradictions_are_refused(small_layer, arguments, message):
    with pytest.raises(InputError, match=message):
        lb.quantization_problem(small_layer, **arguments)


def test_named_codebooks(small_layer):
    named = lb.quantization_problem(small_layer, codebook="nf4", range="minmax")
    built = lb.quantization_problem(small_layer, grid=lb.codebook_grid(small_layer.weight, "nf4", range="minmax"))
    assert named.fingerprint() == built.fingerprint()
    own = lb.quantization_problem(small_layer, codebook=[-1.0, 0.0, 2.0])
    assert own.grid.codes.tolist() == [-1.0, 0.0, 2.0]


def test_what_does_not_fit_says_so(small_layer):
    problem = lb.quantization_problem(small_layer, 2, codebook="FREE", granularity="channel")
    assert problem.label == "2-bit free codebook per channel"
    assert FreeCodebookProblem(small_layer, 3).label == "free codebook of 3 levels per channel"
    with pytest.raises(UnsupportedProblemError, match="heuristic 'gptq' cannot treat free codebooks"):
        lb.run_heuristic("gptq", problem)
    with pytest.raises(UnsupportedProblemError, match="cannot treat free codebooks"):
        lb.solve(problem, "scip" if any(b.name == "scip" and b.available for b in lb.backends()) else "sdp")
    with pytest.raises(InputError, match="a free codebook has no codes"):
        lb.compare(small_layer, codebook="free")
    with pytest.raises(InputError, match="a free codebook has no codes"):
        lb.codebook_grid(small_layer.weight, "free")
    with pytest.raises(InputError, match="count is 0"):
        FreeCodebookProblem(small_layer, 0)
    allowed, gram, target = FreeLevels(2, 6), small_layer.gram[0], small_layer.target[0]
    forms = FormTerms(np.eye(6)[:, :1], np.ones(1), np.zeros(1))
    with pytest.raises(CertificationError, match="no integer forms"):
        least(gram, target, allowed, DualPoint(target, np.zeros(6), forms))
    with pytest.raises(CertificationError, match="another kind"):
        least(gram, target, allowed, BlockDual(target, np.zeros(6, dtype=np.int64), np.zeros((6, 6))))


def test_more_levels_or_another_bias_never_cost_more(rng):
    layer = lb.Layer.from_activations(rng.normal(size=(3, 8)), rng.normal(size=(60, 8)) + 1.0)
    optima = [lb.solve(FreeCodebookProblem(layer, k), jobs=1) for k in (1, 2, 3, 4, 8)]
    assert all(set(s.status) == {"optimal"} for s in optima)
    for few, many in pairwise(optima):
        assert np.all(many.upper_bound <= few.upper_bound * (1 + 1e-9) + 1e-15)
    assert np.all(optima[-1].upper_bound == 0.0)
    refitted = lb.solve(lb.quantization_problem(layer, 1, codebook="free", bias="refit"), jobs=1)
    assert np.all(refitted.lower_bound <= optima[1].upper_bound)
    # Scaling the weights or permuting the inputs changes nothing.
    order = rng.permutation(8)
    moved = lb.Layer(-3.0 * layer.weight[:, order], layer.gram[0][np.ix_(order, order)])
    again = lb.solve(FreeCodebookProblem(moved, 3), jobs=1)
    np.testing.assert_allclose(again.upper_bound, 9.0 * optima[2].upper_bound, rtol=3e-6)


def test_singular_matrices_that_are_too_large_to_try_everything(rng):
    x = rng.normal(size=(20, 40))
    layer = lb.Layer.from_activations(rng.normal(size=(1, 40)), x)
    solution = lb.solve(lb.quantization_problem(layer, 2, codebook="free"), time_limit=0.2, jobs=1)
    assert 0.0 <= solution.lower_bound[0] <= solution.upper_bound[0]
    preparation = prepare_group(layer.gram[0])
    assert np.all(preparation.d >= 0)


def test_command_line(tmp_path):
    runner = CliRunner()
    weights = tmp_path / "weights.safetensors"
    arguments = ["solve", "--layer", "conv1", "--codebook", "free", "--bits", "2", "--channels", "0:2"]
    result = runner.invoke(app, [*arguments, "--save-weights", str(weights), "--json", "-"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["problem"]["allowed"] == "2-bit free codebook per channel"
    assert all(row["lower_bound"] <= row["upper_bound"] for row in record["channels"])
    assert weights.is_file()
    assert runner.invoke(app, [*arguments, "--granularity", "tensor"]).exit_code != 0
    assert runner.invoke(app, ["solve", "--layer", "conv1", "--codebook", "free"]).exit_code != 0
