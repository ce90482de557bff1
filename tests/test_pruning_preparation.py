"""The minorant that the channels of a pruned layer share."""

from __future__ import annotations

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.bounds.minorants.clusters import ClusterMinorant
from layerbounds.search.pruning import clusters
from layerbounds.search.pruning import preparation as pruning_preparation
from layerbounds.search.pruning.preparation import prepare_pruning


@pytest.fixture
def layer(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> lb.Layer:
    """Small enough for a test, with a dead input; as if layers of its size were prepared."""
    monkeypatch.setattr(pruning_preparation, "SHARED", (20, 60))
    monkeypatch.setattr(clusters, "SMALL", 0)
    x = np.cumsum(rng.normal(size=(150, 45)), axis=1)
    x += 0.3 * np.abs(x).mean() * rng.normal(size=x.shape)
    x[:, 7] = 0.0
    return lb.Layer(rng.normal(size=(3, 45)), x.T @ x / len(x))


def test_proven_below_the_gram_matrix(layer: lb.Layer) -> None:
    minorant = prepare_pruning(lb.pruning_problem(layer, density=0.25), 0)
    assert isinstance(minorant, ClusterMinorant)
    gram = np.delete(np.delete(layer.gram[0], 7, 0), 7, 1)
    difference = gram - minorant.matrix(np.arange(44), 44)
    assert np.linalg.eigvalsh(difference)[0] > 0
    # Equal problems get the same object, another pattern and mask-only ones do not.
    assert prepare_pruning(lb.pruning_problem(layer, density=0.25), 0) is minorant
    assert prepare_pruning(lb.pruning_problem(layer, density=0.5), 0) is not minorant
    assert prepare_pruning(lb.pruning_problem(layer, density=0.25, refit=False), 0) is None
    assert prepare_pruning(lb.pruning_problem(layer, density=0.25, pattern="block:3"), 0) is None


def test_the_same_optimum_with_and_without(layer: lb.Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = lb.pruning_problem(layer, density=0.25)
    shared = lb.solve(problem, jobs=1)
    monkeypatch.setattr(pruning_preparation, "SHARED", (0, 0))
    alone = lb.solve(problem, jobs=1)
    assert all(s == lb.Status.OPTIMAL for s in (*shared.status, *alone.status))
    np.testing.assert_allclose(shared.upper_bound, alone.upper_bound, rtol=2e-6)
    np.testing.assert_allclose(shared.lower_bound, alone.lower_bound, rtol=2e-6)


def test_channels_do_not_depend_on_which_are_chosen(layer: lb.Layer) -> None:
    problem = lb.pruning_problem(layer, density=0.25)
    every = lb.solve(problem, jobs=1, node_limit=2)
    last = lb.solve(problem, jobs=1, node_limit=2, channels=[2])
    assert every.lower_bound[2] == last.lower_bound[0]
    assert every.upper_bound[2] == last.upper_bound[0]


def test_singular_matrices_have_none(layer: lb.Layer, rng: np.random.Generator) -> None:
    x = rng.normal(size=(20, 45))
    singular = lb.Layer(layer.matrix, x.T @ x)
    assert prepare_pruning(lb.pruning_problem(singular, density=0.25), 0) is None
