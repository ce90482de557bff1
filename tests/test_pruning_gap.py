"""A gap that is asked for: what is cut off a node is only known to reach the cut, not the incumbent."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import layerbounds as lb
from layerbounds.search.pruning import clusters, masks
from layerbounds.search.pruning import subset_search as pruning
from layerbounds.search.shared import set_search


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small factorizations with several BLAS threads are many times slower than with one."""
    with threadpool_limits(1):
        yield


def problems(seed: int) -> list[lb.PruningProblem]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 5)) * 4
    x = rng.normal(size=(2 * n, n)) @ (np.eye(n) + rng.uniform(0, 1.5) * rng.normal(size=(n, n)) / np.sqrt(n))
    layer = lb.Layer(rng.normal(size=(3, n)), x.T @ x / len(x))
    options = ({"density": 0.25}, {"density": 0.5}, {"pattern": "2:4"}, {"density": 0.5, "pattern": "block:2"})
    return [lb.pruning_problem(layer, **option, refit=refit) for option in options for refit in (True, False)]


@pytest.mark.slow
def test_bounds_hold_where_incumbents_are_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    """With poor incumbents the optimum may be among what is cut off; in earlier versions 26 and 68 fail."""
    cases = [problem for seed in (0, 26, 68, 138) for problem in problems(seed)]
    optima = [lb.solve(problem, jobs=1).upper_bound for problem in cases]
    improve = "polish", "enumerate", "enumerate_near"
    for search in (pruning.SubsetSearch, clusters.ClusterSearch):
        for name in improve:
            if hasattr(search, name):
                monkeypatch.setattr(search, name, lambda *_: None)
    monkeypatch.setattr(
        pruning.SubsetSearch,
        "first_incumbents",
        lambda self, kicks=True: self.offer(self.task.allowed.structure.keep_largest(-np.abs(self.task.target))),
    )
    monkeypatch.setattr(masks.MaskSearch, "first_incumbents", lambda *_: None)
    monkeypatch.setattr(set_search, "first_incumbents", lambda *_: None)
    monkeypatch.setattr(set_search, "make_drop_basis", lambda *_: None)
    wide = 0
    for problem, best in zip(cases, optima, strict=True):
        for gap in (0.3, 0.5, 0.7):
            solution = lb.solve(problem, gap=gap, jobs=1)
            assert np.all(solution.lower_bound <= best * (1 + 1e-12))
            assert np.all(solution.lower_bound >= (1 - gap) * solution.upper_bound * (1 - 1e-9))
            wide += int(np.sum(solution.upper_bound > best * (1 + 1e-6)))
    assert wide > 20
