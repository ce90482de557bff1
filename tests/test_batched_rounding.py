"""Weights for all rows that share a Gram matrix."""

import itertools
import math

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.solvers.batched.incumbents import round_allowed
from layerbounds.solvers.batched.rounding import level_values, round_rows

NF4 = np.array([-1.0, -0.7, -0.53, -0.39, -0.28, -0.18, -0.09, 0.0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1.0])


def _gram(rng, n, rank=None, spread=1.0):
    X = rng.normal(size=(rank or 2 * n, n)) * np.exp(spread * rng.normal(size=n))
    return X.T @ X / len(X)


def _errors(gram, targets, weights):
    e = weights - targets
    return np.einsum("ri,ij,rj->r", e, gram, e)


def _optimum(gram, target, levels):
    points = np.array(list(itertools.product(*levels)))
    return _errors(gram, target, points).min()


@pytest.mark.parametrize("kind", ["uniform", "asymmetric", "nf4", "groups", "far", "singular", "one level"])
def test_small_rows_reach_the_optimum_and_never_pass_it(kind):
    rng = np.random.default_rng([7, len(kind)])
    reached = total = 0
    for n in (1, 2, 3, 4, 5):
        rows = 4
        gram = _gram(rng, n, rank=max(n - 2, 1) if kind == "singular" else None)
        codes = {"nf4": NF4[::3], "one level": np.array([0.3])}.get(kind, np.arange(-2.0, 2.0))
        width = n if kind == "groups" else 1
        scale = np.exp(rng.normal(size=(rows, width)))
        zero = rng.normal(size=(rows, width)) if kind in ("asymmetric", "groups") else np.zeros((rows, width))
        targets = rng.normal(size=(rows, n)) * (50.0 if kind == "far" else 1.0)
        choice = round_rows(gram, targets, codes, scale, zero)
        found = _errors(gram, targets, level_values(choice, codes, scale, zero))
        for r in range(rows):
            levels = [
                np.broadcast_to(scale, (rows, n))[r, i] * (codes - np.broadcast_to(zero, (rows, n))[r, i])
                for i in range(n)
            ]
            best = _optimum(gram, targets[r], levels)
            size = np.sum(np.abs(gram)) * max(1.0, np.max(np.abs(targets))) ** 2
            assert found[r] >= best - 1e-9 * size
            reached += found[r] <= best * (1 + 1e-6) + 1e-7 * size
            total += 1
    assert reached >= 0.9 * total


def test_at_least_as_good_as_gptq_and_nearest_levels():
    rng = np.random.default_rng(3)
    n, rows = 40, 9
    layer = lb.Layer(rng.normal(size=(rows, n)), _gram(rng, n))
    for options in ({"bits": 3}, {"bits": 2, "symmetric": False, "granularity": 8}, {"codebook": "nf4"}):
        problem = lb.quantization_problem(layer, **options)
        grid = problem.grid
        choice = round_rows(layer.gram[0], layer.matrix, grid.codes, grid.scale, grid.zero_point, group=grid.group)
        weights = level_values(choice, grid.codes, grid.scale, grid.zero_point, grid.group)
        for r in range(rows):
            assert np.array_equal(weights[r], grid.levels(r)[np.arange(n), choice[r]])
        mine = _errors(layer.gram[0], layer.matrix, weights)
        for rival in (
            lb.run_heuristic("gptq", problem),
            lb.run_heuristic("gptq", problem, act_order=True),
            grid.nearest(layer.matrix),
        ):
            theirs = _errors(layer.gram[0], layer.matrix, np.asarray(rival).reshape(rows, n))
            assert np.all(mine <= theirs * (1 + 1e-9))


def test_the_same_on_any_number_of_threads_and_for_the_seed():
    rng = np.random.default_rng(5)
    n, rows = 24, 150
    gram, targets, scale = _gram(rng, n), rng.normal(size=(rows, n)), np.full((rows, 1), 0.7)
    runs = [
        round_rows(gram, targets, np.arange(-4.0, 4.0), scale, 0 * scale, threads=threads, seed=1, effort=0.3)
        for threads in (1, 2, 3)
    ]
    assert np.array_equal(runs[0], runs[1])
    assert np.array_equal(runs[0], runs[2])


@pytest.mark.parametrize("size", [1e-60, 1e-8, 1e8, 1e60])
def test_units_do_not_matter(size):
    rng = np.random.default_rng(6)
    n, rows = 20, 3
    gram, targets, scale = _gram(rng, n), rng.normal(size=(rows, n)), np.full((rows, 1), 0.5)
    codes = np.arange(-4.0, 4.0)
    expected = _errors(
        gram, targets, level_values(round_rows(gram, targets, codes, scale, 0 * scale), codes, scale, 0 * scale)
    )
    choice = round_rows(gram * size, targets * size, codes, scale * size, 0 * scale)
    found = _errors(gram, targets, level_values(choice, codes, scale, 0 * scale))
    assert np.all(found <= expected * 1.1)


@pytest.mark.parametrize("levels", [2, 256])
def test_proportional_and_equal_inputs(levels):
    rng = np.random.default_rng(8)
    half = _gram(rng, 6)
    mix = np.hstack([np.eye(6), 3.0 * np.eye(6)])
    gram = mix.T @ half @ mix
    targets = rng.normal(size=(5, 12))
    codes = np.arange(float(levels)) - levels // 2
    scale = np.full((5, 1), 2.0 / levels)
    choice = round_rows(gram, targets, codes, scale, 0 * scale)
    nearest = np.clip(np.rint(targets / scale), codes[0], codes[-1]) * scale
    found = _errors(gram, targets, level_values(choice, codes, scale, 0 * scale))
    assert np.all(found <= _errors(gram, targets, nearest) * (1 + 1e-9))
    assert np.all((choice >= 0) & (choice < levels))


def test_weights_to_start_from_are_not_lost():
    rng = np.random.default_rng(9)
    n, rows = 30, 4
    gram = _gram(rng, n, spread=2.0)
    codes, scale = np.arange(-2.0, 2.0), np.ones((rows, 1))
    start = rng.integers(-2, 2, size=(rows, n)).astype(float)
    targets = start + 1e-3 * rng.normal(size=(rows, n))
    for name in ("points", "warm_starts"):
        choice = round_rows(gram, targets, codes, scale, 0 * scale, effort=0.0, **{name: start})
        found = _errors(gram, targets, level_values(choice, codes, scale, 0 * scale))
        assert np.all(found <= _errors(gram, targets, start) * (1 + 1e-9))


def test_no_time_gives_nearest_levels_and_more_effort_helps():
    rng = np.random.default_rng(10)
    n, rows = 60, 6
    gram, targets, scale = _gram(rng, n), rng.normal(size=(rows, n)), np.full((rows, 1), 0.6)
    codes = np.arange(-4.0, 4.0)
    said = []
    results = [
        _errors(
            gram,
            targets,
            level_values(round_rows(gram, targets, codes, scale, 0 * scale, **more), codes, scale, 0 * scale),
        )
        for more in ({"remaining": lambda: 0.0}, {"effort": 0.0, "report": said.append}, {"effort": 20.0})
    ]
    nearest = np.clip(np.rint(targets / scale), -4, 3) * scale
    assert np.all(results[0] <= _errors(gram, targets, nearest) * (1 + 1e-9))
    assert np.all(results[1] <= results[0] * (1 + 1e-9))
    assert np.sum(results[2]) < np.sum(results[1])
    assert said
    left = iter([1.0] * 6)
    stopped = round_rows(gram, targets, codes, scale, 0 * scale, effort=math.inf, remaining=lambda: next(left, 0.0))
    assert np.all((stopped >= 0) & (stopped < len(codes)))


@pytest.mark.slow
def test_within_a_few_percent_of_the_engine(reference_data):
    from safetensors.numpy import load_file

    tensors = load_file(reference_data / "minilm_layers.safetensors")
    name = "encoder.layer.2.attention.output.dense"
    layer = lb.Layer(tensors[f"{name}.weight"][[0, 21]], tensors[f"{name}.gram"].astype(np.float64))
    problem = lb.quantization_problem(layer, bits=3)
    grid = problem.grid
    choice = round_rows(layer.gram[0], layer.matrix, grid.codes, grid.scale, grid.zero_point, effort=8.0)
    weights = level_values(choice, grid.codes, grid.scale, grid.zero_point)
    engine = lb.solve(problem, backend="native", time_limit=5.0)
    assert np.sum(_errors(layer.gram[0], layer.matrix, weights)) <= 1.05 * np.sum(engine.upper_bound)


@pytest.mark.parametrize("signs", ["of rows", "of groups"])
def test_codebooks_with_scales_of_both_signs(signs):
    rng = np.random.default_rng(11)
    n, rows = 8, 6
    scale = np.exp(rng.normal(size=(rows, 2))) * rng.choice([-1, 1], size=(rows, 1 if signs == "of rows" else 2))
    grid = lb.Grid(codes=[-1.0, -0.4, 0.1, 1.2], scale=scale, zero_point=0.1, in_features=n)
    layer = lb.Layer(rng.normal(size=(rows, n)), _gram(rng, n))
    problem = lb.quantization_problem(layer, grid=grid)
    allowed = [problem.allowed(r) for r in range(rows)]
    weights = round_allowed(layer.gram[0], layer.matrix, allowed)
    assert all(levels.violation(row) == 0.0 for levels, row in zip(allowed, weights, strict=True))
    nearest = _errors(layer.gram[0], layer.matrix, grid.nearest(layer.matrix))
    assert np.all(_errors(layer.gram[0], layer.matrix, weights) <= nearest * (1 + 1e-9))
