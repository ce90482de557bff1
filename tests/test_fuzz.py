"""The fuzz itself: a short run is clean, its oracle is right, and what is wrong does not pass."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import layerbounds as lb
from benchmarks import fuzz
from benchmarks.exact import Channel, Rows, supports
from benchmarks.fuzz_cases import make_case

#: Thorough and long: CI runs them, and ``--slow``.
pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parent.parent
#: Cases of a fixed seed, some hundred channels of all kinds.
CASES = 36


def test_short_run():
    outcomes = [fuzz.run_case(20, number) for number in range(CASES)]
    assert sum(o.channels for o in outcomes) > 400
    assert len({o.kind for o in outcomes}) > 12
    assert [(o.number, fault) for o in outcomes for fault in o.faults] == []
    assert [(o.number, text) for o in outcomes for text in o.open_channels] == []


@pytest.mark.parametrize("number", range(12))
def test_cases_can_be_built_again(number):
    first, second = make_case(3, number), make_case(3, number)
    assert first.problem.fingerprint() == second.problem.fingerprint()
    assert first.describe() == second.describe()


def refit_error(gram, target, support):
    """Least error of a support by least squares in floating point."""
    w = np.zeros(len(target))
    s = list(support)
    w[s] = np.linalg.lstsq(gram[np.ix_(s, s)], gram[s] @ target, rcond=None)[0] if s else 0.0
    return float((w - target) @ gram @ (w - target))


def test_exact_supports(rng):
    x = rng.normal(size=(12, 5))
    gram, target = x.T @ x, rng.normal(size=5)
    chosen = list(supports("2:3", 5, 0, True))
    assert len(chosen) == 3
    optimum = Channel(gram, target, 0.25).best_support(chosen)
    assert optimum.definite
    assert float(optimum.value) == pytest.approx(min(refit_error(gram, target, s) for s in chosen) + 0.25, rel=1e-9)


def test_exact_supports_of_several_rows(rng):
    x = rng.normal(size=(12, 5))
    gram, target = x.T @ x, rng.normal(size=(3, 5))
    chosen = list(supports("units:0,1,0,2,1", 5, 2, True))
    assert chosen == [[0, 2, 1, 4], [0, 2, 3], [1, 4, 3]]
    rows = Rows([Channel(gram, w, 0.25) for w in target])
    sums = [sum(refit_error(gram, w, s) for w in target) for s in chosen]
    assert float(rows.best_support(chosen).value) == pytest.approx(min(sums) + 0.75, rel=1e-9)
    masks = [np.where(np.isin(np.arange(5), s), target, 0.0) - target for s in chosen]
    expected = min(float(np.sum((d @ gram) * d)) for d in masks)
    assert float(rows.best_mask(target, chosen).value) == pytest.approx(expected + 0.75, rel=1e-9)


def test_exact_supports_of_singular_matrices():
    # The second input is twice the first: integers, so that the stored matrix is singular exactly.
    x = np.array([[1.0, 2.0, 0.0], [3.0, 6.0, 1.0], [0.0, 0.0, 2.0]])
    gram, target = x.T @ x, np.array([1.0, 1.0, 1.0])
    optimum = Channel(gram, target, 0.0).best_support(list(supports("unstructured", 3, 2, True)))
    assert optimum.definite
    assert optimum.value == 0


def test_indefinite_matrices_are_noticed():
    gram = np.array([[1.0, 1.0 + 2**-52], [1.0 + 2**-52, 1.0]])
    channel = Channel(gram, np.array([1.0, 2.0]), 0.5)
    optimum = channel.best_support([[0, 1]])
    assert not optimum.definite
    assert optimum.value >= Fraction(1, 2)


def test_exact_points(rng):
    gram, target = np.eye(3), np.array([0.2, -0.4, 3.0])
    table = np.tile([-1.0, 0.0, 1.0], (3, 1))
    choices = np.indices((3, 3, 3)).reshape(3, -1).T
    best = Channel(gram, target, 0.0).best_point(table, choices)
    assert best.value == Channel(gram, target, 0.0).error(np.array([0.0, 0.0, 1.0]))
    assert float(best.value) == pytest.approx(0.04 + 0.16 + 4.0)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"lower_bound": 1.000001, "upper_bound": 1.1}, "exceeds"),
        ({"lower_bound": 0.0, "upper_bound": 0.999999}, "below the error"),
        ({"lower_bound": 1.000001}, "interval"),
        ({"upper_bound": 1.000001}, "above the error"),
        ({"weights": 1.5}, "not allowed"),
        ({"status": lb.Status.NODE_LIMIT}, "closed"),
    ],
)
def test_wrong_results_are_found(small_layer, change, fault):
    problem = lb.quantization_problem(small_layer, 2)
    case = fuzz.Case("2-bit", (), problem, "", {})
    solution = lb.solve(problem, jobs=1)
    outcome = fuzz.Outcome("2-bit", (), 0)
    fuzz._judge(case, solution, outcome)
    assert outcome.faults == []
    channels = len(solution.channels)
    changed = {n: [by] * channels if n == "status" else getattr(solution, n) * by for n, by in change.items()}
    fuzz._judge(case, dataclasses.replace(solution, **changed), outcome)
    assert len(outcome.faults) >= channels
    assert any(fault in text for _, text in outcome.faults)


@pytest.mark.slow
def test_command_line(tmp_path):
    out = tmp_path / "fuzz.json"
    command = [sys.executable, "-m", "benchmarks.fuzz", "--channels", "1", "--seed", "20", "--jobs", "1"]
    done = subprocess.run([*command, "--out", str(out)], cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "channels/s" in done.stdout
    assert '"faults": []' in out.read_text(encoding="utf-8")
