"""The dual point of the root, from which channels of foreign solvers get their certified bound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import layerbounds as lb
from layerbounds.certify.interval import dual_bound
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import make_task
from layerbounds.proofs import BlockDual
from layerbounds.search.families import root_dual

#: Thorough and long: CI runs them, and ``--slow``.
pytestmark = pytest.mark.slow

PATTERNS: list[dict[str, object]] = [{"density": 0.25}, {"density": 0.5}, {"pattern": "2:4"}]


def share(layer: lb.Layer, options: dict[str, object]) -> float:
    """The root's certified bound, relative to the best error that one node finds."""
    problem = lb.pruning_problem(layer, **options)  # type: ignore[arg-type]
    task = make_task(problem, 0, None, None)
    assert isinstance(task.allowed, Support)
    # Small factorizations with several BLAS threads are many times slower than with one.
    with threadpool_limits(1):
        dual = root_dual(task, None, 60.0)
    assert isinstance(dual, BlockDual)
    upper = lb.solve(problem, channels=[0], node_limit=1, jobs=1).upper_bound[0]
    bound = dual_bound(task, dual)
    assert bound <= upper
    return bound / float(upper)


@pytest.mark.parametrize("options", PATTERNS)
@pytest.mark.parametrize("size", [24, 104])
def test_correlated_inputs(size: int, options: dict[str, object], rng: np.random.Generator) -> None:
    x = np.cumsum(rng.normal(size=(3 * size, size)), axis=1)
    x += 0.3 * np.abs(x).mean() * rng.normal(size=x.shape)
    # A dead input leaves a group of three, one of which has to go; two leave a group that is kept.
    x[:, [5, 9, 10]] = 0.0
    assert share(lb.Layer(rng.normal(size=(1, size)), x.T @ x / len(x)), options) > 0.25


REAL = [("layer1.0.conv1", options) for options in PATTERNS] + [("layer2.1.conv1", {"density": 0.25})]


@pytest.mark.parametrize(("name", "options"), REAL)
def test_real_layers(reference_data: Path, name: str, options: dict[str, object]) -> None:
    layer = lb.load_layers(reference_data / "resnet20_layers.safetensors")[name]
    assert share(layer, options) > 0.4
