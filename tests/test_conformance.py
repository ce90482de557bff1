"""Every registered backend on every problem of the zoo that it says it can treat."""

from __future__ import annotations

import numpy as np
import pytest
from zoo import Case, zoo

import layerbounds as lb
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.problems.pruning import PruningProblem
from layerbounds.proofs import OPTIMAL_ABSOLUTE, OPTIMAL_RELATIVE
from layerbounds.solvers.base import Capability
from layerbounds.solvers.registry import get_backend

BACKENDS = [row.name for row in lb.backends()]


def test_the_zoo_has_all_kinds_of_problems() -> None:
    kinds = {case.problem.requirement for case in zoo()}
    grids, patterns = (Capability.UNIFORM, Capability.CODEBOOK), (Capability.PRUNING, Capability.MASK)
    shared = (Capability.SHARED, Capability.SHARED_MASK)
    assert kinds >= {*map(str, (*grids, *patterns, *shared, Capability.JOINT, Capability.FREE_SCALE)), "free codebooks"}
    assert 40 <= len(zoo()) <= 220
    assert len({case.name for case in zoo()}) == len(zoo())
    positive = [case for case in zoo() if case.optimum > 0]
    assert len(positive) > len(zoo()) / 2


@pytest.mark.parametrize("case", zoo(), ids=lambda case: case.name)
@pytest.mark.parametrize("name", BACKENDS)
def test_agreement_with_brute_force(name: str, case: Case) -> None:
    backend = get_backend(name)
    state = backend.availability()
    if not state.available:
        pytest.skip(f"{name}: {state.reason}")
    if case.problem.requirement not in backend.capabilities:
        with pytest.raises(UnsupportedProblemError, match="cannot treat"):
            lb.solve(case.problem, name)
        return
    if case.singular and isinstance(case.problem, PruningProblem) and case.problem.refit:
        live = case.problem.layer.live().any()
        if live and Capability.SINGULAR not in backend.capabilities:
            with pytest.raises(UnsupportedProblemError, match="singular"):
                lb.solve(case.problem, name)
            return
    channels = case.problem.sets(range(case.problem.layer.out_features))[0]
    solution = lb.solve(case.problem, name, channels=channels, time_limit=60.0, jobs=1)
    lower, upper, energy = solution.lower_bound[0], solution.upper_bound[0], solution.energy[0]
    # Brute force has float64 rounding of its own in its refits.
    slack = 1e-9 * case.optimum + 1e-13 * energy
    assert lower <= case.optimum + slack
    assert upper >= case.optimum - slack
    assert lb.evaluate(case.problem, solution.weights, channels=channels).feasible.all()
    claim = solution.claimed_lower_bound[0]
    assert np.isnan(claim) or claim <= upper
    assert solution.notes == {}
    if Capability.OPTIMALITY in backend.capabilities:
        assert upper <= case.optimum + 1.01 * (OPTIMAL_RELATIVE * case.optimum + OPTIMAL_ABSOLUTE * energy) + slack
        assert solution.status[0] in (lb.Status.OPTIMAL, lb.Status.CLAIMED)
