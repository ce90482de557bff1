"""Proofs of joint problems and masks against all points: what they prove, and that they prove no more."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.certificates import joint
from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import make_task
from layerbounds_verify import RefusedError
from layerbounds_verify.grids import over_grid
from layerbounds_verify.level_leaves import over_level_leaves
from layerbounds_verify.reader import Structure

#: Shares of the least error that are claimed.
CLAIMS = (0.6, 1.0 - 3e-7, 1.0 + 1e-7, 1.01)


def _problem(seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 8))
    x = rng.normal(size=(3 * n, n)) + rng.choice([0.0, 2.0]) * rng.normal(size=(3 * n, 1))
    if seed % 5 == 0:
        x = x[:, :2] @ rng.normal(size=(2, n))
    weight = rng.normal(size=(1, n)) * 10.0 ** rng.choice([-4, 0, 3])
    layer = lb.Layer(weight, x.T @ x / len(x), "toy")
    how: dict[str, Any] = [{"k": n // 2}, {"pattern": "2:4"}, {"k": 2, "pattern": "block:2"}][seed % 3]
    if seed % 4 == 3 and "block" not in how.get("pattern", ""):
        return lb.pruning_problem(layer, refit=False, **how)
    if seed % 4 == 2:
        return lb.joint_problem(layer, codebook=str(rng.choice(["binary", "ternary"])), **how)
    return lb.joint_problem(layer, 2, symmetric=bool(rng.integers(2)), **how)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("tried", [((100_000, 6, 0),), ((0, 0, 3000),)], ids=["enumeration", "leaves"])
def test_proofs_of_levels_on_supports(seed: int, tried: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(_problem(seed), 0, None, None)
    least = min(float((v - task.target) @ task.gram @ (v - task.target)) for v, _, _ in task.allowed.pieces())
    if least < 1e-9 * task.energy:
        pytest.skip("nothing is lost")
    monkeypatch.setattr(joint, "ATTEMPTS", tried)
    own = task.allowed.structure
    structure = Structure(own.unit, own.group, np.minimum(own.capacity, np.bincount(own.group)))
    mask = not hasattr(task.allowed, "levels")
    zero = np.zeros((len(task.gram), 1))
    levels = np.sort(np.hstack([task.allowed.original[:, None] if mask else task.allowed.levels.values, zero]), axis=1)
    for share in CLAIMS:
        make = joint.mask_proof if mask else joint.joint_proof
        parts = make(task, lb.proofs.Evidence(), share * least)
        assert parts or share > 1 or tried[0][2] == 0
        if "order" in parts:
            arguments = (parts[name] for name in ("order", "z", "minorants"))
            try:
                over_grid(
                    task.gram, task.target, levels, *arguments, Fraction(share * least), structure, parts["price"]
                )
            except RefusedError:
                assert share > 1
            else:
                assert share < 1
        elif parts:
            values = task.allowed.original[:, None] if mask else levels
            bound = over_level_leaves(task.gram, task.target, structure, values, parts)
            assert bound <= least * (1 + 1e-12) + 1e-13 * task.energy
            assert share > 1 or bound >= share * least
