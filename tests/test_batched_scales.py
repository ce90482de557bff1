"""Free scales for all rows at once: intervals hold the optima of all codes and scales, and are close to the search."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from zoo import brute_force, layers

import layerbounds as lb
from layerbounds.bounds.least import least
from layerbounds.bounds.scale.rows import scale_rows
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.kernels.arithmetic import CPU
from layerbounds.problems.tasks import AllowedSets, GroupTasks
from layerbounds.proofs import Control, RawSolve, ScaleDual
from layerbounds.solvers.batched.backend import BatchedBackend

HOW: dict[str, dict[str, Any]] = {
    "binary": {"bits": 1},
    "signed": {"bits": 2, "signed_scale": True},
    "integer": {"bits": 2, "zero_point": "free"},
    "real": {"bits": 2, "zero_point": "real"},
    "positive": {"codebook": np.array([1.0, 2.0])},
    "groups": {"bits": 2, "granularity": 2},
    "groups, integer": {"bits": 2, "granularity": 2, "zero_point": "free"},
    "groups, real": {"bits": 2, "granularity": 3, "zero_point": "real"},
    "mxfp4": {"codebook": "mxfp4"},
}
SMALL = ("single", "three")
KINDS = (
    "plain",
    "dead inputs",
    "all dead",
    "twins",
    "unequal inputs",
    "ill-conditioned",
    "tiny",
    "zero weights",
    *SMALL,
)


def small(layer: lb.Layer, most: int) -> lb.Layer:
    """The first and last inputs."""
    n = layer.in_features
    kept = np.unique(np.r_[0 : min(n, most) - 1, n - 1])
    return lb.Layer(layer.weight[:, kept], layer.gram[0][np.ix_(kept, kept)], layer.name)


def solve_all(problem: Any, **limits: Any) -> tuple[GroupTasks, list[RawSolve]]:
    rows = problem.layer.out_features
    tasks = GroupTasks(problem, [[r] for r in range(rows)], None, [None] * rows)
    options = {"device": CPU.name, "blocks": "0", "effort": 1.0}
    control = Control(limits.get("time_limit", 1e9), 0.0, None, 0, 1, threading.Event(), options=options)
    return tasks, BatchedBackend().solve_group(tasks, control)


@pytest.mark.parametrize("how", HOW)
def test_intervals_hold_the_optimum(how: str) -> None:
    found = layers()
    for kind in KINDS if how != "mxfp4" else ("plain", "twins"):
        layer = small(found[kind], {"mxfp4": 2, "groups, integer": 3}.get(how, 4))
        problem = lb.quantization_problem(layer, scale="free", **HOW[how])
        optimum = brute_force(problem)
        solution = lb.solve(problem, "batched", jobs=1, time_limit=1e6)
        slack = 1e-9 * optimum + 1e-13 * solution.energy[0]
        assert solution.lower_bound[0] <= optimum + slack
        assert solution.upper_bound[0] >= optimum - slack
        assert lb.evaluate(problem, solution.weights).feasible.all()
        assert solution.notes == {}
        if kind == "plain" and "groups" not in how:
            assert solution.lower_bound[0] >= 0.4 * optimum


@pytest.mark.parametrize("how", ["signed", "integer", "groups"])
def test_rows_are_bounded_together_as_one_by_one(how: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(60, 9)) @ rng.normal(size=(9, 9))
    layer = lb.Layer(rng.normal(size=(4, 9)), x.T @ x / 60)
    tasks, raws = solve_all(lb.quantization_problem(layer, scale="free", **HOW[how]))
    duals = [raw.dual for raw in raws if isinstance(raw.dual, ScaleDual)]
    assert len(duals) == 4
    assert all(dual.minorants is duals[0].minorants for dual in duals)
    bounds = scale_rows(tasks[0].gram, np.stack([task.target for task in tasks]), AllowedSets(tasks), duals)
    assert np.max(bounds) > 0
    for task, bound, dual in zip(tasks, bounds, duals, strict=True):
        alone = least(task.gram, task.target, task.allowed, dual)
        assert bound == pytest.approx(max(alone, 0.0), rel=2e-2, abs=1e-6 * task.energy)


def test_a_given_start_is_never_lost(rng: np.random.Generator) -> None:
    x = rng.normal(size=(40, 8)) + rng.normal(size=(40, 1))
    problem = lb.quantization_problem(lb.Layer(rng.normal(size=(2, 8)), x.T @ x / 40), 2, scale="free")
    best = lb.solve(problem, "native", jobs=1)
    solution = lb.solve(problem, "batched", jobs=1, warm_start=best.weights)
    assert np.all(solution.upper_bound <= best.upper_bound * (1 + 1e-9))
    assert np.all(solution.lower_bound <= best.upper_bound)


def test_without_time_there_is_an_answer(rng: np.random.Generator) -> None:
    x = rng.normal(size=(40, 8))
    for how in ("signed", "real", "groups"):
        problem = lb.quantization_problem(lb.Layer(rng.normal(size=(2, 8)), x.T @ x / 40), scale="free", **HOW[how])
        solution = lb.solve(problem, "batched", jobs=1, time_limit=1e-9)
        assert np.all(solution.lower_bound >= 0)
        assert lb.evaluate(problem, solution.weights).feasible.all()


def test_a_scale_of_several_channels_is_refused(rng: np.random.Generator) -> None:
    layer = lb.Layer(rng.normal(size=(2, 3)), np.eye(3))
    with pytest.raises(UnsupportedProblemError, match="granularity='channel'"):
        lb.solve(lb.quantization_problem(layer, 2, scale="free", granularity="tensor"), "batched")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "name", "share"),
    [
        ("minilm_layers", "encoder.layer.2.attention.output.dense", 0.85),
        ("resnet20_layers", "layer3.2.conv2", 0.9),
    ],
)
def test_real_layers_are_bounded_nearly_as_well_as_by_the_search(
    file: str, name: str, share: float, reference_data: Path
) -> None:
    arrays = load_file(reference_data / f"{file}.safetensors")
    weight = np.asarray(arrays[f"{name}.weight"], dtype=np.float64)[:8].reshape(8, -1)
    layer = lb.Layer(weight, np.asarray(arrays[f"{name}.gram"], dtype=np.float64), name)
    problem = lb.quantization_problem(layer, 3, scale="free")
    all_rows = lb.solve(problem, "batched", jobs=1, time_limit=120.0)
    search = lb.solve(problem, "native", channels=[0, 1], jobs=1, time_limit=5.0)
    assert np.all(all_rows.lower_bound[:2] <= search.upper_bound)
    assert all_rows.lower_bound[:2].sum() >= share * search.lower_bound.sum()
    fixed = lb.solve(lb.quantization_problem(layer, 3), "batched", jobs=1, time_limit=120.0)
    assert np.all(all_rows.lower_bound <= fixed.upper_bound)
