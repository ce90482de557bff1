"""Certificates whose proofs are found anew, or not at all: what they then claim."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from certificates import correct

import layerbounds as lb
from layerbounds.certificates import families
from layerbounds.certify.solution_file import SOLUTIONS
from layerbounds.cli.main import main
from layerbounds.exceptions import UnprovenWarning
from layerbounds.layers.tensor_files import read_tensors
from layerbounds.problems.problem import Problem
from layerbounds.proofs import BoundKind

LAYER = correct.layer(channels=3)
PROBLEMS: dict[str, Problem] = {
    "3 bits": lb.quantization_problem(LAYER, 3),
    "mask": lb.pruning_problem(LAYER, k=4, refit=False),
    "joint": lb.joint_problem(LAYER, 2, pattern="2:4"),
    "singular": lb.quantization_problem(correct.layer(rank=4, seed=1), 2),
}


@pytest.fixture
def without_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proof of a search is found."""
    monkeypatch.setattr(families, "_of_search", lambda task, claim: None)


@pytest.mark.parametrize("name", PROBLEMS)
def test_less_is_claimed_where_a_search_cannot_be_proven(tmp_path: Path, name: str, without_trees: None) -> None:
    path = tmp_path / "c.safetensors"
    solution = lb.solve(PROBLEMS[name], jobs=1)
    assert set(solution.bound_kind) == {BoundKind.SEARCH}
    with pytest.warns(UnprovenWarning, match=f"claims less than the solution for . of {len(solution.sets)} intervals"):
        solution.save_certificate(path)
    report, read = lb.verify(path), lb.load_solution(path)
    assert report, report.text()
    assert {c.kind for c in report.channels} <= {"dual", "trivial"}
    assert np.all(read.lower_bound <= solution.lower_bound) and np.all(
        read.lower_bound >= solution.problem.layer.constant.min()
    )
    assert read.upper_bound.tobytes() == solution.upper_bound.tobytes()
    lowered = [rows for i, rows in enumerate(solution.sets) if read.lower_bound[i] < solution.lower_bound[i]]
    assert lowered and json.loads(read_tensors(path)[1][SOLUTIONS.key])["lowered"] == lowered
    for i, rows in enumerate(solution.sets):
        closed = read.upper_bound[i] - read.lower_bound[i] <= 1e-6 * read.upper_bound[i]
        assert read.status[i] == (solution.status[i] if rows not in lowered or closed else lb.Status.UNRESOLVED)


def test_the_constant_is_left_where_no_dual_point_can_be_stored(
    tmp_path: Path, without_trees: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "MINORANTS", {})
    path = tmp_path / "c.safetensors"
    with pytest.warns(UnprovenWarning):
        lb.solve(PROBLEMS["3 bits"], jobs=1).save_certificate(path)
    report = lb.verify(path)
    assert report and {c.kind for c in report.channels} == {"trivial"}
    assert lb.load_solution(path).lower_bound.tolist() == LAYER.constant.tolist()


@pytest.mark.parametrize("name", PROBLEMS)
def test_proofs_of_a_file_are_found_anew(tmp_path: Path, name: str) -> None:
    path = tmp_path / "c.safetensors"
    solution = lb.solve(PROBLEMS[name], jobs=1)
    solution.save(path)
    loaded = lb.load_solution(path)
    assert loaded.evidence == []
    loaded.save_certificate(path)
    report = lb.verify(path)
    assert report, report.text()
    # Leaves give up a share that nobody sees.
    assert lb.load_solution(path).lower_bound == pytest.approx(solution.lower_bound, rel=1e-8)


def test_dual_points_of_many_rows_are_found_anew(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    rng = np.random.default_rng(5)
    layer = lb.Layer(rng.normal(size=(9, 8)), correct.layer(dead=False, seed=5).gram[0])
    for problem in (lb.quantization_problem(layer, 3), lb.pruning_problem(layer, k=3)):
        solution = lb.solve(problem, "batched")
        solution.save(path)
        loaded = lb.load_solution(path)
        loaded.save_certificate(path)
        assert lb.verify(path)
        # The same work, but for that on the weights.
        assert lb.load_solution(path).lower_bound == pytest.approx(solution.lower_bound, rel=1e-3)


@pytest.mark.parametrize(("backend", "package"), [("scip", "pyscipopt"), ("highs", "highspy")])
def test_foreign_solutions(tmp_path: Path, backend: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    path = tmp_path / "c.safetensors"
    problem = lb.quantization_problem(correct.layer(5, 1), 2)
    solution = lb.solve(problem, backend, time_limit=5)
    for _ in range(2):
        solution.save_certificate(path)
        report = lb.verify(path)
        assert report, report.text()
        solution = lb.load_solution(path)


def test_the_command_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str], without_trees: None) -> None:
    path = tmp_path / "c.safetensors"
    arguments = ["--layer", "conv1", "--bits", "2", "--channels", "0:2", "--jobs", "1", "--node-limit", "100000"]
    assert main(["solve", *arguments, "--certificate", str(path)]) == 0
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "warning: the certificate claims less than the solution for 2 of 2" in said
    assert main(["verify", str(path)]) == 0
