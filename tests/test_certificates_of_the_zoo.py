"""Certificates of the problems that every backend is tested with, against their known optima."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from zoo import zoo

import layerbounds as lb
from layerbounds.exceptions import UnprovenWarning

#: Most of the time is that of trying everything.
pytestmark = pytest.mark.slow


def test_certificates_hold_and_enclose_the_optimum(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    for case in zoo():
        rows = case.problem.sets(range(case.problem.layer.out_features))[0]
        solution = lb.solve(case.problem, channels=rows, jobs=1, time_limit=5)
        for _ in range(2):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UnprovenWarning)
                solution.save_certificate(path)
            report = lb.verify(path)
            assert report, f"{case.name}: {report.text()}"
            slack = 1e-9 * case.optimum + 1e-12 * float(solution.energy[0])
            found = report.channels[0]
            assert found.lower_bound - slack <= case.optimum <= found.upper_bound + slack, case.name
            # Proofs of what was read from a file are found anew.
            solution = lb.load_solution(path)
