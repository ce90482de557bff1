"""Bounds over all scales of many rows at once: below every optimum, and as good as one by one."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from test_rows import layers
from zoo import brute_force

import layerbounds as lb
from layerbounds.bounds.least import least
from layerbounds.bounds.minorants.diagonal import maximize_minorant
from layerbounds.bounds.rows import rows_function
from layerbounds.bounds.scale.profile import Profile, padded
from layerbounds.bounds.scale.projection import counted_from
from layerbounds.kernels.batched.profiles import least_between, ratios
from layerbounds.problems.tasks import AllowedSets, GroupTasks
from layerbounds.proofs import ScaleDual, ScaleMinorant, ScalePoint

CODES = {
    "2 bits": [-2.0, -1, 0, 1],
    "binary": [-1.0, 1],
    "unsigned": [0.0, 1, 2, 3],
    "positive": [1.0, 2, 3],
    "uneven": [-1.0, -0.37, 0.21, 0.7, 1.1],
    "one": [2.0],
}


@pytest.mark.parametrize("name", CODES)
def test_chords_bound_the_exact_profile(name: str, rng: np.random.Generator) -> None:
    codes = np.array(CODES[name])
    uniform = name in ("2 bits", "unsigned", "positive")
    for trial in range(12):
        n = int(rng.integers(1, 7))
        d, b = rng.random(n) + 0.01, rng.normal(size=n) * (rng.random(n) < 0.9)
        if trial % 3 == 0:
            # Breaks at the same scales.
            d, b = np.ones(n), rng.choice([-1.0, 0.5, 1.0], size=n)
        profile = Profile(d.astype(np.longdouble), b.astype(np.longdouble), padded(codes, n))
        ends = sorted([0.0, *np.exp(rng.normal(size=4)), *profile.edges[1:4].astype(float), np.inf])
        pairs = [p for p in itertools.combinations_with_replacement(ends, 2) if p[0] < np.inf]
        low, high = np.array(pairs).T
        many = len(low)
        value, met = np.empty((2, many))
        least_between(
            d[None], b[None], np.zeros((many, 2), dtype=np.int64), codes[None], np.zeros(many, dtype=np.int64), uniform,
            low, high, np.full(many, np.inf), np.full(many, 1e-4), 400, value, met,
        )  # fmt: skip
        for k in range(many):
            exactly = profile.minimum(low[k], high[k])[0]
            size = 1 + np.abs(d).sum() + np.abs(b).sum()
            assert value[k] <= exactly + 1e-13 * size
            assert value[k] >= exactly - (1e-3 if np.isfinite(high[k]) else 1e-2) * size
            assert met[k] >= value[k]


def test_ratios_are_those_of_the_least_terms(rng: np.random.Generator) -> None:
    codes = np.array([[-2.0, -1, 0, 1], [-1.0, 0, 1, 2]])
    d, b = rng.random(5) + 0.01, rng.normal(size=(3, 5))
    scales, out = np.exp(rng.normal(size=(3, 7))), np.zeros((3, 7))
    which = np.array([0, 1, 0])
    for uniform in (True, False):
        ratios(d, b, codes, which, uniform, scales, np.array([0, 2, 7]), np.array([7, 5, 7]), out)
        for p, j in itertools.product(range(3), range(7)):
            s, wanted = scales[p, j], 0.0
            if p == 0 or (p == 1 and 2 <= j < 5):
                wanted = sum(min(d[i] * s * c * c - 2 * b[p, i] * c for c in codes[which[p]]) for i in range(5))
            assert out[p, j] == pytest.approx(wanted, rel=1e-12, abs=1e-12)
            assert out[p, j] <= wanted


HOW: dict[str, dict[str, Any]] = {
    "2 bits": {"bits": 2},
    "binary": {"bits": 1},
    "signed": {"bits": 2, "signed_scale": True},
    "integer": {"bits": 2, "zero_point": "free"},
    "real": {"bits": 2, "zero_point": "real"},
    "groups": {"bits": 2, "granularity": 2},
    "groups, integer": {"bits": 2, "granularity": 3, "zero_point": "free"},
    "uneven": {"codebook": np.array([-1.0, -0.3, 0.4, 1.0])},
}


def group_of(problem: Any) -> GroupTasks:
    rows = problem.layer.out_features
    return GroupTasks(problem, [[r] for r in range(rows)], None, [None] * rows)


def random_dual(rng: np.random.Generator, task: Any, minorants: tuple[ScaleMinorant, ...], dropped: Any) -> ScaleDual:
    """Points at random for intervals at random, one tree for each list of codes."""
    target, group = task.target, task.allowed.group
    if dropped:
        left = np.setdiff1d(np.arange(len(target)), dropped)
        target = (target - target[np.array(dropped)[group]])[left]
    n, size = len(target), float(np.abs(target).max()) or 1.0
    z = [target, *(target + rng.choice([1e-4, 0.1]) * size * rng.normal(size=(2, n))), target]
    points = tuple(ScalePoint(row[None], 0, np.zeros((1, 0))) for row in z)
    cuts = np.sort(size * np.exp(rng.normal(size=3)))
    axis: list[int] = []
    at: list[float] = []
    child: list[int] = []
    root = []
    for _ in range(len(task.allowed.boxes()) if task.allowed.groups == 1 else 1):
        root.append(len(axis))
        for j, cut in enumerate(cuts):
            axis += [int(rng.integers(0, task.allowed.groups)), -1]
            at += [cut, 0.0]
            child += [len(child) + 1, j]
        axis, at, child = [*axis, -1], [*at, 0.0], [*child, 0]
    return ScaleDual(minorants, points, np.array(axis), np.array(at), np.array(child), np.array(root), dropped)


@pytest.mark.parametrize("how", HOW)
def test_no_bound_of_a_row_exceeds_its_optimum(how: str, rng: np.random.Generator) -> None:
    positive = 0
    for number, layer in enumerate(layers(rng)):
        if how == "groups, integer" and number % 2 == 0:
            continue
        problem = lb.quantization_problem(layer, scale="free", **HOW[how])
        tasks = group_of(problem)
        gram, targets = tasks[0].gram, np.stack([task.target for task in tasks])
        dropped = counted_from(gram, tasks[0].allowed.group) if how == "real" else ()
        left = len(gram) - len(dropped)
        if left == 0:
            continue
        inner = np.delete(np.delete(gram, dropped, 0), dropped, 1)
        d = maximize_minorant(inner, np.ones(left))
        d = np.where(d > 0, d, 1e-3 * np.diag(inner) / left) * rng.choice([0.1, 1.0])
        minorants = (ScaleMinorant(d, np.zeros((left, 0)), np.zeros(0)),)
        one = lb.quantization_problem(
            lb.Layer(layer.weight[:1], layer.gram, target=layer.target[:1]), scale="free", **HOW[how]
        )
        optimum = brute_force(one)
        for _ in range(5):
            duals = [random_dual(rng, task, minorants, dropped) for task in tasks]
            function = rows_function(tasks[0].allowed, duals[0])
            assert function is not None
            bounds = function(gram, targets, AllowedSets(tasks), duals)
            assert bounds[0] <= optimum * (1 + 1e-9)
            for task, bound, dual in zip(tasks, bounds, duals, strict=True):
                alone = least(task.gram, task.target, task.allowed, dual)
                assert bound >= 0
                assert bound == pytest.approx(max(alone, 0.0), rel=1e-2, abs=1e-6 * float(task.energy))
                positive += bound > 0
    assert positive > 3


@pytest.mark.parametrize("high", [1e20, 1e120, 1e155, np.inf])
@pytest.mark.parametrize(("d", "b"), [(1.0, 1.0), (1e10, 1e20), (1e150, 1e200)])
def test_what_overflows_proves_nothing(d: float, b: float, high: float) -> None:
    """The least value is that of ds² − 2bs."""
    value, met = np.empty((2, 1))
    place, which = np.zeros((1, 2), dtype=np.int64), np.zeros(1, dtype=np.int64)
    least_between(
        np.array([[d]]), np.array([[b]]), place, np.array([[-1.0, 0.0, 1.0]]), which, True, np.zeros(1),
        np.array([high]), np.full(1, np.inf), np.zeros(1), 4, value, met,
    )  # fmt: skip
    scale = min(high, b / d)
    assert value[0] <= (d * scale - 2.0 * b) * scale
