"""The benchmark of shared masks: what it enumerates is right, and its tables can be read."""

from __future__ import annotations

import numpy as np
import pytest

import layerbounds as lb
from benchmarks import structured


@pytest.fixture
def layer() -> lb.Layer:
    return structured.definite(lb.demo_layers()["conv3"], "demo.conv3")


@pytest.mark.parametrize("density", [0.125, 0.25])
def test_the_enumeration_is_the_optimum(layer: lb.Layer, density: float) -> None:
    problem = lb.pruning_problem(layer, density=density, pattern="channel")
    found = structured.enumerate_sets(problem)
    assert found is not None
    rng, errors = np.random.default_rng(0), []
    for _ in range(20):
        kept = np.isin(problem.structure.unit, rng.choice(16, problem.kept, replace=False))
        block = layer.gram[0][np.ix_(kept, kept)]
        weights = np.zeros_like(layer.matrix)
        weights[:, kept] = np.linalg.solve(block, layer.gram[0][kept] @ layer.matrix.T).T
        errors.append(lb.evaluate(problem, weights).error[0])
    best = lb.evaluate(problem, lb.run_heuristic("swap", problem)).error[0]
    assert found[0] <= min([*errors, best * (1 + 1e-9)])
    assert found[0] == pytest.approx(best, rel=1e-9)


def test_what_is_not_enumerated(layer: lb.Layer) -> None:
    assert structured.enumerate_sets(lb.pruning_problem(layer, pattern="2:4", share="all")) is None
    assert structured.enumerate_sets(lb.pruning_problem(layer, density=0.5, pattern="column")) is None


def test_principal_rows_have_the_most_energy(layer: lb.Layer) -> None:
    small = structured.principal(layer, 2)
    assert small.weight.shape == (2, *layer.weight.shape[1:])
    values = np.linalg.eigvalsh(layer.matrix @ layer.gram[0] @ layer.matrix.T)
    np.testing.assert_allclose(small.energy(), values[::-1][:2], rtol=1e-9)


def test_a_table(layer: lb.Layer) -> None:
    instance = structured.Instance(layer, "channel", 0.5)
    row = structured.solve("channels", instance, 0.5)
    structured.run_methods(instance, row)
    lines = structured.table("channels", [row]).splitlines()
    assert all(line.count("|") == lines[2].count("|") for line in lines[2:])
    assert "demo.conv3 | channel, 24 rows | 16 | 8 |" in lines[-1]
    assert min(row.methods.values()) == pytest.approx(1.0, rel=1e-3)
