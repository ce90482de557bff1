"""Peers of the benchmarks: their bounds against every support, and what they refuse."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

import layerbounds as lb
from benchmarks import peers
from benchmarks.instances import Instance
from benchmarks.ksparse import bound_node, lower_bound, shares
from layerbounds.solvers import registry


def least_error(gram: np.ndarray, target: np.ndarray, supports: list[tuple[int, ...]]) -> float:
    b, errors = gram @ target, []
    for chosen in supports:
        part = list(chosen)
        errors.append(target @ b - b[part] @ np.linalg.solve(gram[np.ix_(part, part)], b[part]))
    return min(errors)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, make in peers.PEERS.items():
        monkeypatch.setitem(registry._BACKENDS, name, make)


@pytest.mark.parametrize("room", [1, 3, 5])
@pytest.mark.parametrize("rho", [0.3, 4.0])
def test_shares_minimise_their_term(room: int, rho: float) -> None:
    magnitudes = np.abs(np.random.default_rng(room).normal(size=7))

    def value(z: np.ndarray) -> float:
        return float(np.sum(magnitudes**2 / (rho * z + 1.0)))

    z = shares(magnitudes, rho, room)
    assert np.all((z >= 0) & (z <= 1)) and z.sum() == pytest.approx(room)
    rng = np.random.default_rng(0)
    for _ in range(200):
        # Moving weight from one input to another gains nothing.
        i, j = rng.choice(7, 2, replace=False)
        step = min(1e-3, z[i], 1.0 - z[j])
        other = z.copy()
        other[i] -= step
        other[j] += step
        assert value(other) >= value(z) - 1e-12


def test_every_point_bounds_every_support() -> None:
    rng = np.random.default_rng(3)
    for trial in range(20):
        n, k = 7, int(rng.integers(1, 6))
        factor = rng.normal(size=(n, n + 2))
        d = rng.uniform(0.1, 1.0, n)
        gram, target = factor @ factor.T + np.diag(d), rng.normal(size=n)
        root = np.sqrt(d)
        q, p, constant = gram / np.outer(root, root) - np.eye(n), gram @ target / root, float(target @ gram @ target)
        kept = np.zeros(n, dtype=bool)
        free = np.ones(n, dtype=bool)
        if trial % 2:
            kept[0], free[:2] = True, False
        room = k - int(kept.sum())
        supports = [
            tuple(np.flatnonzero(kept)) + chosen for chosen in combinations(np.flatnonzero(free).tolist(), room)
        ]
        best = least_error(gram, target, supports)
        lipschitz = 2.0 * float(np.linalg.eigvalsh(q)[-1])
        found, x, _ = bound_node(q, p, constant, lipschitz, kept, free, room, best, np.zeros(n))
        # It ends within 5 % of what is lacking, and the relaxation's optimum is not negative.
        assert -0.06 * best <= found <= best * (1 + 1e-9)
        for scale in (0.0, 0.1, 1.0):
            point = x + scale * rng.normal(size=n)
            assert lower_bound(q, p, constant, kept, free, room, point) <= best + 1e-9 * constant


@pytest.mark.usefixtures("registered")
def test_ksparse_closes_what_enumeration_knows() -> None:
    instance = Instance("demo", "conv3", 12, 0, "density 1/4")
    problem = instance.problem()
    found = lb.solve(problem, "ksparse", channels=[0], jobs=1, time_limit=20.0)
    gram, target = problem.layer.gram[0], problem.layer.matrix[0]
    best = least_error(gram, target, list(combinations(range(12), 3)))
    assert found.upper_bound[0] == pytest.approx(best, rel=1e-7)
    row = found.to_dict()["channels"][0]
    assert row["status"] in ("optimal", "claimed")
    assert row["claimed_lower_bound"] == pytest.approx(best, rel=1e-6)
    assert row["claimed_lower_bound"] <= best * (1 + 1e-9)


@pytest.mark.usefixtures("registered")
def test_peers_refuse_patterns_and_say_when_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = Instance("demo", "conv3", 8, 0, "2:4")
    assert not peers.treats("ksparse", pattern) and peers.treats("scip", pattern)
    with pytest.raises(lb.LayerboundsError, match="knows no other pattern"):
        lb.solve(pattern.problem(), "ksparse", channels=[0], jobs=1, time_limit=5.0)
    monkeypatch.delenv("LAYERBOUNDS_EL0PS", raising=False)
    absent = next(row for row in lb.backends() if row.name == "el0ps")
    assert not absent.available and "pip install el0ps" in str(absent.reason)
    monkeypatch.setenv("LAYERBOUNDS_EL0PS", "/nonexistent/python")
    assert not next(row for row in lb.backends() if row.name == "el0ps").available
