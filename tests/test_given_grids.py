"""Grids from elsewhere: conversion, negative scales, zero points, any assignment of inputs to scale groups."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.certify.interval import certify, dual_bound
from layerbounds.exceptions import InputError
from layerbounds.problems.tasks import make_task
from layerbounds.proofs import RawSolve, SearchProof, Status
from layerbounds.search.families import root_dual
from layerbounds.solvers.native import NativeBackend

N = 6
UNEVEN = [-2.0, -0.3, 0.1, 0.4, 1.7]


@pytest.fixture
def layer(rng: np.random.Generator, random_gram: Callable[..., Float]) -> lb.Layer:
    return lb.Layer(rng.normal(size=(2, N)), random_gram(N), "given")


def sets_of(grid: lb.Grid, channel: int = 0) -> list[set[float]]:
    """The levels of each input by definition."""
    scale, zero = grid.scale[channel][grid.group], grid.zero_point[channel][grid.group]
    return [set((s * (grid.codes - z)).tolist()) for s, z in zip(scale, zero, strict=True)]


def least_error(layer: lb.Layer, grid: lb.Grid, channel: int) -> float:
    """The optimum by trying all points of the level sets as they are defined."""
    points = np.array(list(itertools.product(*sets_of(grid, channel))))
    deviation = points - layer.target[channel]
    return float(np.einsum("ki,ij,kj->k", deviation, layer.channel_gram(channel), deviation).min())


#: Codes, scales of two channels, zero points, groups of inputs: what each case holds that fitted grids do not.
GRIDS: dict[str, tuple[Any, Any, Any, Any]] = {
    "negative": (range(-2, 2), [-0.5, 0.4], 0.0, None),
    "mixed signs": (range(-2, 2), [[-0.5, 0.4], [0.3, -0.7]], 0.0, None),
    "mixed signs of one size": (range(-2, 2), [[-0.5, 0.5], [0.5, -0.5]], 0.0, None),
    "mixed signs, zero points": (range(4), [[-0.5, 0.4], [0.3, -0.7]], [[1, 3], [0, 2]], None),
    "zero points between the codes": (range(4), [[-0.5, 0.4], [0.3, -0.7]], [[1.3, 0.1], [1e-17, 2.7]], None),
    "zero points outside the codes": (range(4), [-0.1, 0.1], [-20.0, 20.0], None),
    "half codes": ([-1.5, -0.5, 0.5, 1.5], [0.5, -0.4], 0.0, None),
    "half codes, zero points": ([-1.5, -0.5, 0.5, 1.5], [0.5, -0.4], [0.25, 1.0], None),
    "uneven": (UNEVEN, [-0.5, 0.4], 0.0, None),
    "uneven, mixed signs": (UNEVEN, [[-0.5, 0.4], [0.3, -0.7]], 0.0, None),
    "uneven, zero points": (UNEVEN, [[-0.5, 0.4], [0.3, -0.7]], [[0.2, 0.0], [-0.1, 0.5]], None),
    "two codes, mixed signs": ([0.0, 1.0], [[-0.5, 0.4], [0.3, -0.7]], 0.0, None),
    "groups in any order": (range(-2, 2), [[0.5, -0.4, 0.2], [0.3, 0.7, -0.6]], 0.0, [2, 0, 1, 1, 0, 2]),
    "an empty group": (range(-2, 2), [[0.5, -0.4, 0.2], [0.3, 0.7, -0.6]], 0.0, [2, 0, 0, 2, 0, 2]),
}


def make(name: str) -> lb.Grid:
    codes, scale, zero, group = GRIDS[name]
    return lb.Grid(list(codes), scale, zero, N, group=group)


@pytest.mark.parametrize("name", GRIDS)
def test_levels_and_lattice_are_the_set_by_definition(name: str) -> None:
    grid = make(name)
    for channel in range(2):
        levels, by_definition = grid.levels(channel), sets_of(grid, channel)
        assert np.all(np.diff(levels, axis=1) > 0)
        assert [set(row) for row in levels.tolist()] == by_definition
        codes, scale, zero = grid.lattice(channel)
        assert np.all(scale > 0) and np.all(np.diff(codes, axis=1) > 0)
        if grid.uniform:
            assert np.all(codes == codes[0])
        rebuilt = scale[:, None] * (codes - zero[:, None])
        np.testing.assert_allclose(rebuilt, levels, rtol=0, atol=1e-14 * np.abs(levels).max())
        if np.all(grid.zero_point == np.rint(grid.zero_point)):
            np.testing.assert_array_equal(rebuilt, levels)


#: Other solvers see every kind of grid in the zoo; here they get those that differ most from fitted ones.
FOREIGN = ("mixed signs, zero points", "uneven, mixed signs", "groups in any order")
SOLVERS = [
    (row.name, name) for row in lb.backends() if row.available for name in (GRIDS if row.name == "native" else FOREIGN)
]


@pytest.mark.parametrize(("backend", "name"), SOLVERS)
def test_certified_optima(layer: lb.Layer, backend: str, name: str) -> None:
    grid = make(name)
    problem = lb.quantization_problem(layer, grid=grid)
    solution = lb.solve(problem, backend, time_limit=30.0, jobs=1)
    best = np.array([least_error(layer, grid, channel) for channel in range(2)])
    assert np.all(solution.lower_bound <= best * (1 + 1e-12))
    assert np.all(solution.upper_bound >= best * (1 - 1e-12))
    if backend != "sdp":
        np.testing.assert_allclose(solution.upper_bound, best, rtol=1e-6)
    score = lb.evaluate(problem, solution.weights)
    assert score.feasible.all()
    np.testing.assert_allclose(score.error, solution.upper_bound, rtol=1e-9)


@pytest.mark.parametrize("name", ["mixed signs", "zero points between the codes", "uneven, mixed signs"])
@pytest.mark.parametrize("method", ["rtn", "gptq", "ldlq", "obq", "coordinate_descent", "beam"])
def test_heuristics_stay_on_the_grid(layer: lb.Layer, name: str, method: str) -> None:
    problem = lb.quantization_problem(layer, grid=make(name))
    weights = lb.run_heuristic(method, problem)
    score = lb.evaluate(problem, weights)
    assert score.feasible.all()
    assert all(score.error[c] >= least_error(layer, problem.grid, c) * (1 - 1e-12) for c in range(2))


@pytest.mark.parametrize("seed", range(5))
def test_mirrored_grids_are_the_same_problem(seed: int, random_gram: Callable[..., Float]) -> None:
    """Ill-conditioned and larger: the leaves, the integer forms and the root bounds see mirrored codes, too."""
    rng = np.random.default_rng(seed)
    n = 14
    inputs = rng.normal(size=(60, n)) @ np.diag(10.0 ** rng.uniform(-2, 1, n)) @ rng.normal(size=(n, n))
    layer = lb.Layer(rng.normal(size=(1, n)), inputs.T @ inputs / 60)
    size = np.full(n, 0.4) if seed % 2 else rng.uniform(0.2, 0.7, n)
    zero = rng.integers(0, 4, n).astype(np.float64) if seed % 3 else rng.uniform(0, 3, n)
    sign = rng.choice([-1.0, 1.0], n)
    group = np.arange(n)
    plain = lb.Grid(range_of(4), [size], [zero], n, group=group)
    mirrored = lb.Grid(range_of(4), [size * sign], [np.where(sign < 0, 3 - zero, zero)], n, group=group)
    one, two = (lb.solve(lb.quantization_problem(layer, grid=g), time_limit=20.0, jobs=1) for g in (plain, mirrored))
    assert one.status == two.status == [Status.OPTIMAL]
    np.testing.assert_allclose(one.upper_bound, two.upper_bound, rtol=1e-6)
    assert one.lower_bound[0] <= two.upper_bound[0] and two.lower_bound[0] <= one.upper_bound[0]


def range_of(count: int) -> list[int]:
    return list(range(count))


def test_integer_forms_of_half_codes_are_counted_from_the_first(
    layer: lb.Layer, random_gram: Callable[..., Float]
) -> None:
    """Sums of half-integer codes lie between the integers: bounds that took them for integers would be too high."""
    rng = np.random.default_rng(3)
    n = 12
    half = [-1.5, -0.5, 0.5, 1.5]
    layer = lb.Layer(rng.normal(size=(3, n)), random_gram(n))
    whole = lb.Grid(range_of(4), [0.5] * 3, 1.5, n)
    shifted = lb.Grid(half, [0.5] * 3, 0.0, n)
    assert whole.uniform and shifted.uniform
    np.testing.assert_array_equal(whole.levels(0), shifted.levels(0))
    for channel in range(3):
        tasks = [make_task(lb.quantization_problem(layer, grid=g), channel, None, None) for g in (whole, shifted)]
        dual = root_dual(tasks[0], None, 0.5)
        assert dual is not None
        assert dual_bound(tasks[1], dual) == pytest.approx(dual_bound(tasks[0], dual), rel=1e-9)


def test_leaves_of_a_proof_are_the_levels_themselves(layer: lb.Layer) -> None:
    problem = lb.quantization_problem(layer, grid=make("zero points between the codes"))
    task = make_task(problem, 0, None, None)
    best = task.allowed.values[:, 1]
    off = best * (1 + 2e-16)
    proof = SearchProof(1e3, 0.0, off[None])
    result = certify(task, RawSolve(best, Status.OPTIMAL, proof=proof), 0.0)
    assert result.lower <= result.upper


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int8, np.int64, np.uint8])
def test_any_real_type_is_taken(layer: lb.Layer, kind: type) -> None:
    scale = np.array([1, 2], dtype=kind)
    grid = lb.Grid(np.arange(4, dtype=np.uint8), scale, np.array([3, 1], dtype=np.uint8), N)
    assert grid.codes.dtype == grid.scale.dtype == grid.zero_point.dtype == np.float64
    np.testing.assert_array_equal(grid.levels(0)[0], [-3, -2, -1, 0])
    solution = lb.solve(lb.quantization_problem(layer, grid=grid), time_limit=5.0, jobs=1)
    assert np.all(solution.lower_bound <= [least_error(layer, grid, c) * (1 + 1e-12) for c in range(2)])


def test_bytes_do_not_wrap_around() -> None:
    codes = np.arange(-128, 128).astype(np.int8)
    levels = lb.Grid(codes, np.array([0.5], dtype=np.float32), np.array([-30], dtype=np.int8), 1).levels(0)
    np.testing.assert_array_equal(levels[0], 0.5 * np.arange(-98, 158))
    assert levels[0, 0] == -49.0 and levels[0, -1] == 78.5


def test_what_is_given_is_copied() -> None:
    scale = np.array([[0.5], [0.25]])
    grid = lb.Grid([0, 1, 2, 3], scale, 0, 3)
    scale[:] = 9.0
    np.testing.assert_array_equal(grid.scale[:, 0], [0.5, 0.25])


def test_lists_order_and_defaults() -> None:
    grid = lb.Grid([1, 0, 3, 2, 2], [0.5, 0.25], 1, 4)
    np.testing.assert_array_equal(grid.codes, [0, 1, 2, 3])
    assert grid.uniform and grid.group_size == 4 and grid.scale.shape == grid.zero_point.shape == (2, 1)
    assert not lb.Grid([0, 1, 3], [0.5], 0, 4).uniform
    assert lb.Grid([0, 1], np.ones((1, 2)), 0, 4).group_size == 2
    assert lb.Grid([0, 1], np.ones((1, 2)), 0, 4, group=[0, 0, 1, 1]).group_size == 2
    assert lb.Grid([0, 1], np.ones((1, 2)), 0, 5, group=[0, 0, 0, 1, 1]).group_size == 3
    assert lb.Grid([0, 1], np.ones((1, 2)), 0, 4, group=[1, 0, 1, 0]).group_size is None


def test_other_groups_are_another_problem(layer: lb.Layer) -> None:
    prints = set()
    for group in (None, [0, 0, 1, 1, 0, 1], [0, 1, 1, 1, 0, 1]):
        grid = lb.Grid([0, 1, 2], [[0.5, 0.2], [0.3, 0.1]], 1, N, group=group)
        prints.add(lb.quantization_problem(layer, grid=grid).fingerprint())
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"codes": []}, "codes have shape"),
        ({"codes": [[0, 1]]}, "codes have shape"),
        ({"codes": [0, np.nan]}, "codes holds 1 NaN"),
        ({"codes": ["a"]}, "not real and numeric"),
        ({"codes": [0, 1, 1 + 1e-16 * 2, 2e2]}, "cannot tell the levels apart"),
        ({"offset": [0.5, np.nan]}, "offset holds 1 NaN"),
        ({"offset": [0.5]}, "offset has shape"),
        ({"offset": [0.5, 1e16]}, "offset is so large beside scale"),
        ({"offset": [0.5, 1e101]}, "offset holds numbers beyond"),
        ({"scale": [0.5, np.inf]}, "scale holds 1 NaN or infinite"),
        ({"scale": [0.5, 1e-200]}, "rescale the layer"),
        ({"scale": [0.5, 1e200]}, "rescale the layer"),
        ({"scale": []}, "scale has shape"),
        ({"scale": np.ones((2, 3, 1))}, "scale has shape"),
        ({"scale": np.ones((2, 4))}, "4 groups, which do not divide the 6 inputs evenly"),
        ({"zero_point": [np.nan, 0]}, "zero_point holds 1 NaN"),
        ({"zero_point": [0, 0, 0]}, "zero_point has shape"),
        ({"zero_point": 1e17}, "cannot tell the levels apart"),
        ({"in_features": 0}, "in_features is 0"),
        ({"in_features": 6.0}, "in_features is 6.0"),
        ({"group_size": 4}, "in groups of 4 need 2"),
        ({"group_size": 0}, "group_size is 0"),
        ({"codes": [0, 2], "uniform": True}, "consecutive"),
        ({"uniform": "yes"}, "uniform is 'yes'"),
        ({"group": [0, 0, 0, 0, 0, 1]}, "scale has the groups 0 to 0"),
        ({"group": [0, 0, 0, 0, 0, -1]}, "group holds numbers from -1"),
        ({"group": [0, 0, 0]}, "group has shape"),
        ({"group": [0.0] * 6}, "pass 6 integers"),
        ({"scale": np.ones((2, 2)), "group": [0, 1, 0, 1, 0, 1], "group_size": 3}, "contradict"),
    ],
)
def test_what_cannot_be_a_grid(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        lb.Grid(**{"codes": [0, 1, 2, 3], "scale": [0.5, 0.25], "zero_point": 0, "in_features": 6, **arguments})


def test_given_scales_and_zero_points(layer: lb.Layer) -> None:
    scale, zero = [[-0.5, 0.4], [0.3, 0.7]], [[1, 2], [3, 0]]
    problem = lb.quantization_problem(layer, 2, scale=scale, zero_point=zero)
    assert sets_of(problem.grid)[0] == {-0.5 * (c - 1) for c in range(4)}
    assert sets_of(problem.grid)[5] == {0.4 * (c - 2) for c in range(4)}
    index = [1, 0, 1, 0, 0, 1]
    mixed = lb.quantization_problem(layer, 2, scale=scale, zero_point=zero, symmetric=False, g_idx=index).grid
    assert sets_of(mixed)[0] == {0.4 * (c - 2) for c in range(4)}
    tensor = lb.quantization_problem(layer, 2, scale=0.5, granularity="tensor")
    np.testing.assert_array_equal(tensor.grid.scale, [[0.5], [0.5]])
    with pytest.raises(InputError, match="pass one per output channel"):
        lb.quantization_problem(layer, 2, scale=0.5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bits": 3, "scale": [1, 1], "range": "mse"}, "not fitted; leave out range"),
        ({"bits": 3, "scale": [1, 1], "range": "minmax"}, "not fitted; leave out range"),
        ({"bits": 3, "scale": [1, 1], "symmetric": False}, "pass zero_point"),
        ({"bits": 3, "scale": [1, 1], "zero_point": [1, 1], "symmetric": True}, "no zero point"),
        ({"bits": 3, "scale": [1, 1], "zero_point": [[1, 1]]}, "zero_point has shape"),
        ({"bits": 3, "scale": np.ones((2, 3)), "granularity": "channel"}, "'channel' means 1 scale per"),
        ({"bits": 3, "scale": np.ones((2, 3)), "granularity": "tensor"}, "one scale"),
        ({"bits": 3, "scale": [1, 1], "granularity": "tensor"}, "one scale"),
        ({"bits": 3, "scale": np.ones((2, 3)), "granularity": 3}, "means 2 scales"),
        ({"bits": 3, "scale": [1, 1], "granularity": 3}, "in groups of 3 need 2"),
        ({"bits": 3, "scale": [1, 1], "granularity": 0}, "granularity is 0"),
        ({"bits": 3, "scale": [1, 1], "g_idx": [0] * 6, "granularity": "channel"}, "leave out granularity"),
        ({"bits": 3, "zero_point": [1, 1]}, "belongs to given scales"),
        ({"bits": 3, "g_idx": [0] * 6}, "belongs to given scales"),
        ({"bits": 3, "grid": "uniform"}, "either bits or grid"),
        ({"bits": 3, "density": 0.5}, "call joint_problem with both"),
        ({"bits": 3, "pattern": "2:4"}, "call joint_problem with both"),
        ({}, "either bits or grid"),
    ]
    + [
        ({"grid": lb.Grid([0, 1], [1.0, 1.0], 0, N), **extra}, f"leave out {next(iter(extra))}")
        for extra in (
            {"scale": [1, 1]},
            {"zero_point": 1},
            {"g_idx": [0] * 6},
            {"symmetric": True},
            {"granularity": "channel"},
            {"range": "mse"},
        )
    ],
)
def test_contradicting_arguments_of_a_problem(layer: lb.Layer, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        lb.quantization_problem(layer, **arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"density": 0.5, "range": "mse"}, "pass bits or a codebook"),
        ({"density": 0.5, "granularity": "channel"}, "pass bits or a codebook"),
        ({"density": 0.5, "symmetric": False}, "pass bits or a codebook"),
        ({"codebook": "nf4", "symmetric": False}, "no zero point"),
        ({"bits": 3, "refit": False}, "for pruning"),
        ({"bits": 3, "joint": True}, "pass a density or an N:M pattern, too"),
        ({"density": 0.5, "joint": True}, "pass bits, a codebook or a grid, too"),
        ({"bits": 3, "density": 0.5, "joint": 1}, "joint is 1"),
        ({"bits": 3, "density": 0.5, "joint": True, "refit": False}, "leave out refit=False"),
        ({"bits": 3, "density": 0.5, "joint": True, "scale": "free"}, "need a fixed grid"),
        ({"bits": 3, "density": 0.5, "mask": "rle"}, "mask is 'rle'; choose 'none', 'bitmap', 'entropy' or 'metadata'"),
        ({"pattern": "block:2"}, "needs a density"),
    ],
)
def test_contradicting_arguments_of_a_comparison(layer: lb.Layer, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        lb.compare(layer, **arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"density": 0.5, "k": 3}, "either density or k"),
        ({}, "pass density or k, or an N:M pattern"),
        ({"density": 0.5, "pattern": "2:4"}, "leave out density and k"),
        ({"k": 3, "pattern": "2:4"}, "leave out density and k"),
    ],
)
def test_contradicting_arguments_of_pruning(layer: lb.Layer, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        lb.pruning_problem(layer, **arguments)


def test_contradicting_arguments_of_a_fit(layer: lb.Layer) -> None:
    for arguments in ({"bits": 3, "codebook": "nf4"}, {}):
        with pytest.raises(InputError, match="either bits or a codebook"):
            lb.gram_grid(layer, **arguments)
    with pytest.raises(InputError, match="no zero point"):
        lb.gram_grid(layer, codebook="nf4", symmetric=False)


def test_names_of_codebooks_mean_the_same_in_capitals(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(2, 40))
    np.testing.assert_array_equal(lb.codebook_grid(weight, "MXFP4").scale, lb.codebook_grid(weight, "mxfp4").scale)


def test_mirrored_scales_share_the_forms_of_the_layer(layer: lb.Layer) -> None:
    problem = lb.quantization_problem(layer, grid=make("mixed signs of one size"))
    task = make_task(problem, 0, None, None)
    assert task.allowed.uniform and np.all(task.allowed.scale == task.allowed.scale[0])
    assert NativeBackend().prepare(problem, 0, 1) is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": np.ones(5)}, r"scale has shape \(5,\); pass \(3,\)"),
        ({"scale": np.ones((2, 3))}, r"\(2, 3\), it looks transposed"),
        ({"scale": np.ones((3, 2)), "g_idx": [0, 1, 2, 0, 1, 0]}, "g_idx holds numbers from 0 to 2"),
        ({"scale": np.ones((3, 2)), "g_idx": [0.0, 1, 0, 0, 1, 0]}, "g_idx has shape .* float64"),
        ({"scale": np.ones(3), "granularity": 2}, "scale has 1 group, but 6 inputs in groups of 2 need 3"),
    ],
)
def test_messages_name_the_argument_that_was_given(
    rng: np.random.Generator, arguments: dict[str, Any], message: str
) -> None:
    layer = lb.Layer.from_activations(rng.normal(size=(3, 6)), rng.normal(size=(20, 6)))
    with pytest.raises(InputError, match=message):
        lb.quantization_problem(layer, bits=3, **arguments)
