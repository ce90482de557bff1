"""The checker's own searches against exhaustive ones, and against the solver: two programs that share nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certificates.incorrect import forge

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.problems.problem import Problem
from layerbounds.proofs import BoundKind
from layerbounds_verify.exact import RefusedError
from layerbounds_verify.grids import over_grid

#: ``LAYERBOUNDS_FUZZ=N`` tries N fresh instances.
FUZZ = "LAYERBOUNDS_FUZZ" in os.environ
COUNT = int(os.environ.get("LAYERBOUNDS_FUZZ", "60"))


def _levels(rng: np.random.Generator, n: int, count: int) -> Float:
    """Sorted levels, some of them equal, or a last digit apart, or far apart."""
    values = rng.normal(size=(n, count)) * 10.0 ** rng.choice([-9.0, 0.0, 0.0, 3.0], size=(n, count))
    for row in values:
        twins = rng.choice(count, size=2, replace=False)
        row[twins[0]] = rng.choice([row[twins[1]], np.nextafter(row[twins[1]], np.inf), row[twins[0]]])
    return np.sort(values, axis=1)


def _instances() -> Iterator[tuple[Float, Float, Float, Float]]:
    rng = np.random.default_rng() if FUZZ else np.random.default_rng(11)
    for _ in range(COUNT):
        n, count = int(rng.integers(1, 5)), int(rng.integers(2, 7))
        x = rng.normal(size=(9, n)) * 10.0 ** rng.choice([0.0, 0.0, 2.0], size=n) + 0.5 * rng.normal(size=(9, 1))
        target = rng.normal(size=n) * rng.choice([1.0, 1.0, 100.0])
        yield x.T @ x, target, _levels(rng, n, count), target + 0.1 * rng.normal(size=n)


def _optimum(gram: Float, target: Float, values: Float) -> Fraction:
    exact = [[Fraction(v) - Fraction(w) for v in row] for row, w in zip(values.tolist(), target.tolist(), strict=True)]
    whole = [list(map(Fraction, row)) for row in gram.tolist()]
    return min(
        sum((h * a * b for row, a in zip(whole, d, strict=True) for h, b in zip(row, d, strict=True)), Fraction(0))
        for d in product(*exact)
    )


def test_every_point_below_a_claim_is_found() -> None:
    tried = 0
    for gram, target, values, z in _instances():
        n = len(gram)
        if values.shape[1] ** n > 700:
            continue
        tried += 1
        optimum, order = _optimum(gram, target, values), np.random.default_rng(tried).permutation(n)
        ordered = gram[np.ix_(order, order)]
        least = [np.linalg.eigvalsh(ordered[:k, :k])[0] if k else 0.0 for k in range(n + 1)]
        minorants = np.outer(0.9 * np.array(least), np.ones(n))
        for share in (Fraction(1), Fraction(1, 2)):
            assert over_grid(gram, target, values, order, z, minorants, share * optimum, None, None) == share * optimum
        for share in (1 + Fraction(1, 10**9), Fraction(3, 2), Fraction(4)):
            if optimum > 0:
                with pytest.raises(RefusedError, match=r"smaller error|too many points"):
                    over_grid(gram, target, values, order, z, minorants, share * optimum, None, None)
    assert tried > COUNT // 3


def _layer(n: int, seed: int) -> lb.Layer:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(6 * n, n)) + 0.7 * rng.normal(size=(6 * n, 1))
    return lb.Layer(rng.normal(size=(2, n)), x.T @ x / len(x), "toy", constant=0.01 * rng.random(2))


#: Too large to try everything.
PROBLEMS: dict[str, Problem] = {
    "2 bits": lb.quantization_problem(_layer(20, 1), 2),
    "4 bits": lb.quantization_problem(_layer(12, 2), 4),
    "nf4": lb.quantization_problem(_layer(12, 3), codebook="nf4"),
    "mask": lb.pruning_problem(_layer(22, 4), density=0.5, refit=False),
    "2:4 mask": lb.pruning_problem(_layer(24, 5), pattern="2:4", refit=False),
    "2:4, 2 bits": lb.joint_problem(_layer(16, 6), 2, pattern="2:4"),
    "half, ternary": lb.joint_problem(_layer(16, 7), codebook="ternary", density=0.5),
    "half, refit": lb.pruning_problem(_layer(20, 8), density=0.5),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_checker_and_solver_agree_on_the_optimum(tmp_path: Path, name: str) -> None:
    path = tmp_path / "c.safetensors"
    solution = lb.solve(PROBLEMS[name], jobs=1, node_limit=10**6)
    assert set(solution.bound_kind) == {BoundKind.SEARCH} and set(solution.status) == {lb.Status.OPTIMAL}
    solution.save_certificate(path)
    report = lb.verify(path)
    assert report, report.text()
    # Nothing smaller exists, says the checker; and it finds the solver's weights as soon as more is claimed.
    kinds = {c.kind for c in report.channels}

    def claim_more(tensors: dict[str, Any], about: dict[str, Any]) -> None:
        tensors["solution.lower_bound"] = solution.upper_bound * (1 + 1e-9)
        tensors["solution.upper_bound"] = solution.upper_bound * 2.0

    forge(path, claim_more)
    for found in lb.verify(path).channels:
        assert not found.valid
        assert kinds != {"enumeration"} or "smaller error" in found.reason
