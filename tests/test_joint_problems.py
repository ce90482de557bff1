"""Pruning and quantization together: the allowed set against trying everything, labels, evaluation, files, messages."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.cli.main import main
from layerbounds.exceptions import InputError, NotAllowedError
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.problems.patterns import parse_pattern
from layerbounds.problems.problem import as_problem
from layerbounds.report.tables import channel_table, total_line

N = 6
KINDS: dict[str, dict[str, Any]] = {
    "levels with zero": {"bits": 2, "k": 3},
    "blocks": {"bits": 2, "k": 4, "pattern": "block:2"},
    "N:M, ragged": {"bits": 2, "pattern": "2:4"},
    "zero points": {"bits": 2, "symmetric": False, "granularity": 3, "pattern": "1:3"},
    "binary": {"bits": 1, "k": 2},
    "binary blocks": {"bits": 1, "k": 4, "pattern": "block:2"},
    "zero of some": {"bits": 2, "scale": [[0.5, 0.7]], "zero_point": [[1.0, 1.5]], "k": 3},
    "uneven": {"codebook": [-2.0, -0.3, 0.1, 1.7], "pattern": "1:2"},
    "keep none": {"bits": 2, "k": 0},
    "keep all": {"bits": 1, "k": N},
}


@pytest.fixture(scope="module")
def layer() -> lb.Layer:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(30, N)) + 0.5 * rng.normal(size=(30, 1))
    return lb.Layer(rng.normal(size=(1, N)), x.T @ x / 30, "net.fc")


def points(allowed: LevelsOnSupport) -> Float:
    """Every allowed point, by the definition."""
    choices = [sorted({0.0, *row}) for row in allowed.levels.values.tolist()]
    found = []
    for point in itertools.product(*choices):
        weights = np.array(point)
        kept = {int(unit) for unit in allowed.structure.unit[weights != 0.0]}
        used = np.bincount([allowed.structure.group[u] for u in kept], minlength=len(allowed.structure.capacity))
        if np.all(used <= allowed.structure.capacity):
            found.append(weights)
    return np.array(found)


@pytest.mark.parametrize("kind", KINDS)
def test_the_allowed_set_is_that_of_the_definition(layer: lb.Layer, kind: str) -> None:
    problem = lb.joint_problem(layer, **KINDS[kind])
    allowed = problem.allowed(0)
    every = points(allowed)
    pieces = np.array([offset for offset, directions, _ in allowed.pieces() if directions.shape == (N, 0)])
    assert {tuple(p) for p in pieces} == {tuple(p) for p in every} and len(pieces) == len(every)
    rng = np.random.default_rng(0)
    for point in every[rng.permutation(len(every))[:40]]:
        assert allowed.violation(point) == 0.0
        assert np.array_equal(allowed.exact(point), point)
        assert np.array_equal(allowed.exact(point * (1 + 1e-13)), point)
        assert np.array_equal(allowed.nearest(point), point)
    single = len(allowed.structure.group) == N
    for _ in range(40):
        point = rng.normal(size=N) * rng.uniform(0.1, 3.0)
        near = allowed.nearest(point)
        assert allowed.violation(near) == 0.0
        if single:
            # Units of single inputs: the largest gains are the best choice.
            distances = np.sum((every - point) ** 2, axis=1)
            assert np.sum((near - point) ** 2) == pytest.approx(distances.min(), rel=1e-12)
        if not any(np.array_equal(p, point) for p in every):
            assert allowed.violation(point) > 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_round_to_the_best(layer: lb.Layer, kind: str) -> None:
    allowed = lb.joint_problem(layer, **KINDS[kind]).allowed(0)
    every = points(allowed)
    rng = np.random.default_rng(1)
    for _ in range(20):
        point = rng.normal(size=N)
        distance = np.sum((allowed.nearest(point) - point) ** 2)
        assert distance == pytest.approx(np.min(np.sum((every - point) ** 2, axis=1)), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_restricted_sets_hold_the_restricted_points(layer: lb.Layer, kind: str) -> None:
    allowed = lb.joint_problem(layer, **KINDS[kind]).allowed(0)
    live = np.array([True, False, True, True, False, True])
    expected = {tuple(p[live]) for p in points(allowed) if not p[~live].any()}
    assert {tuple(p) for p in points(allowed.restrict(live))} == expected


def test_weights_that_are_not_allowed(layer: lb.Layer) -> None:
    allowed = lb.joint_problem(layer, 2, k=2).allowed(0)
    step = allowed.levels.scale[0]
    with pytest.raises(NotAllowedError, match="neither zero nor on the grid"):
        allowed.exact(np.array([0.5 * step, 0, 0, 0, 0, 0]))
    with pytest.raises(NotAllowedError, match="break the pattern"):
        allowed.exact(np.array([step, step, step, 0, 0, 0]))
    assert allowed.violation(np.array([step, step, step, -step, 0, 0])) == 2.0


@pytest.mark.parametrize(
    ("arguments", "label", "zero"),
    [
        ({"bits": 4, "pattern": "2:4"}, "joint 4-bit symmetric per channel, mse, 2:4, zero a level", "level"),
        (
            {"bits": 1, "k": 2},
            "joint binary per channel, mse, unstructured k=2 of 6, zero beside the",
            "extra",
        ),
        (
            {"bits": 2, "scale": [[0.5, 0.7]], "zero_point": [[1.0, 1.5]], "k": 3},
            "zero a level of some weights",
            "mixed",
        ),
        ({"bits": 3, "density": 0.5, "bias": "refit"}, "zero a level, bias re-fitted", "level"),
        ({"bits": 3, "k": 4, "pattern": "block:2"}, "block:2 k=4 of 6, zero a level", "level"),
        ({"codebook": "nf4", "density": 0.5}, "zero a level", "level"),
    ],
)
def test_labels_say_whether_zero_is_a_level(arguments: dict[str, Any], label: str, zero: str, rng: Any) -> None:
    x = rng.normal(size=(30, N))
    layer = lb.Layer.from_activations(rng.normal(size=(1, N)), x)
    problem = lb.joint_problem(layer, **arguments)
    assert label in problem.label and problem.zero == zero
    assert problem.label.startswith("joint ") and problem.family == "joint"
    assert problem.requirement == "pruning with quantization"


def test_a_grid_that_is_given_or_fitted_is_the_same(layer: lb.Layer) -> None:
    fitted = lb.joint_problem(layer, 3, k=2)
    grid = lb.quantization_problem(layer, 3).grid  # type: ignore[attr-defined]
    assert lb.joint_problem(layer, grid=grid, k=2).fingerprint() == fitted.fingerprint()
    others = [
        lb.joint_problem(layer, 3, k=3), lb.joint_problem(layer, 2, k=2), lb.joint_problem(layer, 3, pattern="1:3"),
        lb.quantization_problem(layer, 3), lb.pruning_problem(layer, k=2),
    ]  # fmt: skip
    assert len({p.fingerprint() for p in [fitted, *others]}) == 6


def test_given_weights_are_the_second_stage(layer: lb.Layer) -> None:
    quantized = lb.quantization_problem(layer, 3).project(layer.matrix, [0])
    problem = lb.joint_problem(layer, weights=quantized, k=3)
    for weights, _, _ in problem.allowed(0).pieces():
        assert np.all((weights == 0.0) | (weights == quantized[0])) and np.count_nonzero(weights) <= 3
    assert np.array_equal(problem.allowed(0).nearest(quantized[0])[problem.allowed(0).nearest(quantized[0]) != 0.0],
                          quantized[0][problem.allowed(0).nearest(quantized[0]) != 0.0])  # fmt: skip
    dense = lb.joint_problem(layer, weights=layer.weight, pattern="2:4")
    mask = lb.pruning_problem(layer, pattern="2:4", refit=False)
    assert not mask.violation(dense.project(layer.matrix, [0]), [0]).any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "nothing says how many inputs are kept; pass density, k or an N:M pattern, or call quantization_problem"),
        ({"bits": 4}, "or call quantization_problem"),
        ({"density": 0.5}, "nothing says what kept weights may be; .* or call pruning_problem"),
        ({"bits": 4, "density": 0.5, "k": 2}, "either density or k"),
        ({"bits": 4, "density": 0.5, "pattern": "2:4"}, "leave out density and k"),
        ({"bits": 4, "density": 1.5}, "density is 1.5"),
        ({"bits": 4, "k": 7}, "k, the kept inputs of layer 'net.fc', is 7; choose an integer from 0 to 6"),
        ({"bits": 9, "k": 2}, "bits is 9"),
        ({"bits": 4, "k": 2, "scale": "free"}, "scale is 'free'; pruning and quantization together need a fixed grid"),
        ({"bits": 4, "k": 2, "scale": [0.5], "zero_point": "real"}, "zero_point is 'real'; pruning and quantization"),
        ({"bits": 4, "k": 2, "codebook": "free"}, "codebook is 'free'; pruning and quantization"),
        ({"bits": 4, "k": 2, "codebook": "nf4"}, "a codebook says itself"),
        ({"bits": 4, "k": 2, "weights": np.ones((1, N))}, "weights say themselves what is kept; leave out bits"),
        ({"weights": np.ones((2, N)), "k": 2}, "pass shape"),
        ({"bits": 4, "k": 2, "refit": False}, "kept weights take any level when they are quantized, too"),
        ({"bits": 4, "pattern": "channel", "k": 2}, "pattern channel couples the output channels"),
        ({"bits": 4, "k": 2, "bias": "none"}, "bias is 'none'"),
    ],
)
def test_wrong_arguments_get_a_sentence(layer: lb.Layer, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        lb.joint_problem(layer, **arguments)
    assert "\n" not in str(caught.value)


def test_the_other_functions_name_this_one(layer: lb.Layer) -> None:
    with pytest.raises(InputError, match="quantization_problem does not prune; leave out density, or call joint"):
        lb.quantization_problem(layer, 3, density=0.5)
    with pytest.raises(InputError, match="does not quantize; leave out bits, or call joint_problem"):
        lb.pruning_problem(layer, density=0.5, bits=3)
    with pytest.raises(InputError, match="quantization_problem, pruning_problem or joint_problem returns"):
        as_problem(3)


def test_evaluation_says_what_is_off(layer: lb.Layer) -> None:
    problem = lb.joint_problem(layer, 3, k=2)
    step = float(problem.grid.scale[0, 0])
    good = lb.evaluate(problem, [[step, 0, 0, 0, -2 * step, 0]])
    assert good.feasible.all() and good.describe() == "all weights are allowed"
    assert good.error[0] == pytest.approx(good.snapped_error[0])
    many = lb.evaluate(problem, [[step, step, step, 0, step, 0]])
    assert not many.feasible[0] and many.violation[0] == 2.0 and many.excess[0] == 2 and many.off_grid[0] == 0
    assert many.describe() == "1 channel not allowed (violation up to 2)"
    both = lb.evaluate(problem, [[1.25 * step, step, step, 0, step, 0]])
    assert both.off_grid[0] == 1 and both.excess[0] == 2 and both.steps[0] == pytest.approx(0.25)
    assert both.describe() == (
        f"1 weight off the grid, by at most {0.25 * step:.2g} (0.25 of a step), and 2 kept beyond the pattern"
    )
    # What is not allowed counts as the nearest weights that are.
    assert lb.evaluate(problem, problem.project(np.array([[1.25 * step, step, step, 0, step, 0]]), [0])).error == (
        pytest.approx(both.snapped_error)
    )


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "keep none"])
def test_solving_starts_from_given_weights(layer: lb.Layer, kind: str) -> None:
    problem = lb.joint_problem(layer, **KINDS[kind])
    every = points(problem.allowed(0))
    errors = np.einsum("ij,jk,ik->i", every - layer.target[0], layer.gram[0], every - layer.target[0])
    best = every[np.argmin(errors)]
    for start in (best, best + 1e-7, layer.matrix[0], np.zeros(N)):
        solution = lb.solve(problem, jobs=1, warm_start=start[None], time_limit=5.0)
        assert solution.lower_bound[0] <= errors.min() * (1 + 1e-12)
        assert solution.upper_bound[0] == pytest.approx(errors.min(), rel=1e-6)
        assert solution.status[0] == lb.Status.OPTIMAL
    record = json.loads(json.dumps(solution.to_dict(), allow_nan=False))
    assert record["problem"]["allowed"] == problem.label
    assert "joint" in str(channel_table(solution).title) and "1 of 1 channel" in total_line(solution)


def test_dead_inputs_are_dropped_first(rng: Any, random_gram: Callable[..., Float]) -> None:
    gram = random_gram(5)
    gram[[1, 3]] = 0.0
    gram[:, [1, 3]] = 0.0
    layer = lb.Layer(rng.normal(size=(2, 5)), gram)
    solution = lb.solve(lb.joint_problem(layer, 1, k=3), jobs=1, time_limit=5.0)
    assert not solution.weights[:, [1, 3]].any() and solution.weights.any(axis=1).all()
    full = lb.solve(lb.joint_problem(layer, 1, k=5), jobs=1, time_limit=5.0)
    np.testing.assert_allclose(solution.upper_bound, full.upper_bound, rtol=1e-6)


def test_k_of_a_pattern_is_what_it_implies(layer: lb.Layer) -> None:
    assert lb.joint_problem(layer, 2, pattern="2:4").kept == 4
    assert lb.joint_problem(layer, 2, density=0.5).kept == 3
    assert lb.joint_problem(layer, 2, pattern=parse_pattern("1:3")).kept == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--density", "0.5", "--scale", "free"], "need a fixed grid; leave out --scale"),
        (["--density", "0.5", "--mask-only"], "leave out --mask-only"),
        (["--codebook", "free", "--pattern", "2:4"], "leave out --codebook free"),
        (["--pattern", "2:4", "--density", "0.5"], "leave out density and k"),
        (["--pattern", "3:2"], "0 < N < M"),
        (["--k", "99"], "k, the kept inputs"),
    ],
)
def test_wrong_options_get_a_sentence(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", "--layer", "conv1", "--bits", "3", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["solve", "--layer", "conv1", "--channels", "0:2", "--bits", "3", "--pattern", "2:4", "--jobs", "1"]
    weights, record = tmp_path / "w.safetensors", tmp_path / "r.json"
    files = ["--save-weights", str(weights), "--json", str(record), "--time-limit", "5"]
    assert main([*command, *files]) == 0
    assert "joint 3-bit symmetric per channel, mse, 2:4, zero a level" in capsys.readouterr().out.replace("\n", " ")
    saved = load_file(weights)
    flat = saved["conv1.weight"].reshape(2, -1)
    assert all(np.count_nonzero(row[i : i + 4]) <= 2 for row in flat for i in range(0, flat.shape[1], 4))
    codes = flat / saved["conv1.scale"]
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-9)
    problem = lb.joint_problem(lb.demo_layers()["conv1"], 3, pattern="2:4")
    assert lb.evaluate(problem, saved["conv1.weight"], channels=[0, 1]).feasible.all()
    assert json.loads(record.read_text())["problem"]["fingerprint"] == problem.fingerprint()
