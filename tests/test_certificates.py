"""Certificates: right ones hold, wrong ones are refused with a sentence that says why."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from certificates import mutants
from certificates.correct import CORRECT, solved, write
from certificates.incorrect import DAMAGED, INCORRECT, SCHEMAS, attacked, forge
from certificates.mutants import KINDS

import layerbounds as lb
import layerbounds_verify
from layerbounds.cli.main import main
from layerbounds.exceptions import InputError
from layerbounds_verify.check import _FAMILIES

#: ``LAYERBOUNDS_FUZZ=N`` tries N fresh mutations of each kind.
FUZZ = "LAYERBOUNDS_FUZZ" in os.environ
COUNT = int(os.environ.get("LAYERBOUNDS_FUZZ", "8"))


@pytest.mark.parametrize("name", CORRECT)
def test_right_certificates_hold(tmp_path: Path, name: str) -> None:
    path = write(name, tmp_path)
    solution = solved(name)
    for exact in (False,) if "scales of" in name or "real zero" in name else (False, True):
        report = lb.verify(path, exact=exact)
        assert report, report.text()
        for i, found in enumerate(report.channels):
            assert list(found.rows) == solution.sets[i]
            # At least as good as what is claimed, and hardly better: the same bound, computed in another way, or that
            # of leaves, of which a search knows but that they reach its cut.
            more = 1e-5 if found.kind == "leaves" else 1e-9
            assert solution.lower_bound[i] <= found.lower_bound <= solution.lower_bound[i] * (1 + more)
            assert solution.upper_bound[i] * (1 - 1e-9) <= found.upper_bound <= solution.upper_bound[i]


@pytest.mark.parametrize("name", INCORRECT)
def test_wrong_certificates_are_refused(tmp_path: Path, name: str) -> None:
    report = lb.verify(attacked(name, tmp_path))
    assert not report
    said = [report.reason, *(found.reason for found in report.channels)]
    assert any(re.search(INCORRECT[name].says, reason) for reason in said), said
    assert all(not reason or (reason.endswith(".") and "\n" not in reason) for reason in said)


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused(tmp_path: Path, name: str) -> None:
    path = write("3 bits, diagonal", tmp_path)
    change, says = DAMAGED[name]
    path.write_bytes(change(path.read_bytes()))
    report = lb.verify(path)
    assert not report and re.search(says, report.reason)


@pytest.mark.parametrize("name", SCHEMAS)
def test_other_schemas_are_refused(tmp_path: Path, name: str) -> None:
    path = write("3 bits, diagonal", tmp_path)
    forge(path, lambda tensors, about: None, **SCHEMAS[name])
    assert "schema 1 or 2, which this checker reads" in lb.verify(path).reason


def test_by_hash_and_a_sample(tmp_path: Path) -> None:
    solution = solved("refit, diagonal")
    path, layers = tmp_path / "c.safetensors", tmp_path / "layers.safetensors"
    solution.save_certificate(path, by_hash=True)
    lb.save_layers(layers, [solution.problem.layer])
    report = lb.verify(path, layers, sample=1)
    assert report and len(report.channels) == 1 and "1 intervals that were left out" in report.trusted
    assert "pass the layer file" in lb.verify(path).reason
    assert "cannot be read" in lb.verify(path, tmp_path / "none").reason
    lb.save_layers(layers, [lb.Layer(solution.problem.layer.weight, 2.0 * solution.problem.layer.gram, "toy")])
    assert "is not the array whose SHA-256" in lb.verify(path, layers).reason
    assert "cannot be read" in lb.verify(tmp_path / "none").reason


def test_some_of_the_intervals(tmp_path: Path) -> None:
    path = write("3 bits, diagonal", tmp_path)
    report = lb.verify(path, only=[1])
    assert report and [c.rows for c in report.channels] == [(1,)] and "1 intervals that were left out" in report.text()
    assert "counted from 0" in lb.verify(path, only=[2]).reason
    assert "nothing is left" in lb.verify(path, only=[]).reason


def test_a_solution_without_proofs_is_called_that(tmp_path: Path) -> None:
    path = write("trivial", tmp_path)
    loaded = lb.load_solution(path)
    assert loaded.lower_bound.tobytes() == solved("trivial").lower_bound.tobytes()
    loaded.save(path)
    assert "is a solution without proofs; `solve --certificate` writes them." in lb.verify(path).reason


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_certificates_hold_or_are_refused(tmp_path: Path, kind: str) -> None:
    path, found = tmp_path / "c.safetensors", Counter[str]()
    whole, rng = mutants.content(kind), np.random.default_rng(int(time.time()) if FUZZ else 7)
    for _ in range(COUNT):
        path.write_bytes(whole)
        changed = mutants.mutate(path, rng)
        report = lb.verify(path)
        found["valid" if report else "refused"] += 1
        said = [report.reason, *(c.reason for c in report.channels)]
        assert all(not reason or (reason.endswith(".") and "\n" not in reason) for reason in said), said
        try:
            least = mutants.optimum(path)
        except InputError:
            assert not report, changed
            continue
        assert not report or mutants.holds(path, least), changed
        # Whatever was changed, more than the truth is never accepted.
        mutants.claim_more(path, least)
        assert not lb.verify(path), changed
    # Both happen: some numbers may be changed without harm.
    assert found["refused"] > COUNT // 8 and (found["valid"] > 0 or COUNT < 20)


def test_numpy_and_numba_are_enough(tmp_path: Path) -> None:
    path = write("3 bits, search", tmp_path)
    missing = ("layerbounds", "scipy", "safetensors", "joblib", "threadpoolctl", "rich", "typer", "torch")
    code = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({missing!r}))
sys.argv = ["layerbounds_verify", {str(path)!r}]
runpy.run_module("layerbounds_verify", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "VALID" in done.stdout, done.stderr
    forge(path, INCORRECT["3 bits, search: lower ends raised"].change)
    done = subprocess.run(
        [sys.executable, "-m", "layerbounds_verify", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3 and "smaller error" in done.stdout and not done.stderr


def _code(path: Path) -> int:
    """Lines without docstrings, comments and empty ones."""
    text = path.read_text(encoding="utf-8")
    documented = (ast.Module, ast.FunctionDef, ast.ClassDef)
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, documented) and ast.get_docstring(node)]
    said = {line for node in nodes for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)}
    lines = enumerate(text.splitlines(), 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and i not in said for i, line in lines)


def _needed(name: str, folder: Path) -> set[str]:
    """A module and what it imports of the checker."""
    found, left = {name}, [name]
    while left:
        text = (folder / f"{left.pop()}.py").read_text(encoding="utf-8")
        own = re.findall(r"^from layerbounds_verify(?:\.(\w+) import|\b import (\w+))", text, re.MULTILINE)
        more = {first or second for first, second in own} - found
        found |= more
        left += more
    return found


def test_nobody_has_to_read_all_of_the_checker() -> None:
    """A certificate loads what its family needs: so much code is to be read for it."""
    folder = Path(layerbounds_verify.__file__).parent
    every = {path.stem for path in folder.glob("of_*.py")}
    assert every == {module for module in _FAMILIES.values()} | {"of_rows", "of_tiles"}
    core = _needed("check", folder)
    assert not core & every
    for family in every:
        assert sum(_code(folder / f"{module}.py") for module in core | _needed(family, folder)) <= 1800, family


_SOLVE = ["solve", "--layer", "conv1", "--bits", "2", "--channels", "0:2", "--jobs", "1", "--node-limit", "100000"]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.safetensors"
    assert main([*_SOLVE, "--certificate", str(path)]) == 0
    assert main(["verify", str(path), "--json", str(tmp_path / "r.json")]) == 0
    assert "VALID" in capsys.readouterr().out
    assert [c["valid"] for c in json.loads((tmp_path / "r.json").read_text())["channels"]] == [True, True]
    assert main(["verify", str(path), "--sample", "1", "--exact", "--json", "-"]) == 0
    assert len(json.loads(capsys.readouterr().out)["channels"]) == 1
    forge(path, INCORRECT["3 bits, search: upper ends lowered"].change)
    assert main(["verify", str(path)]) == 3
    assert "REFUSED: its weights have an error of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["verify", "none"], "none does not exist or is not a file"),
        (["verify", "."], ". does not exist or is not a file"),
        (["verify", "c", "--input", "none"], "none does not exist or is not a file"),
        (["verify", "c", "--sample", "0"], "choose an integer ≥ 1"),
        (["verify", "c", "--sample", "-3"], "choose an integer ≥ 1"),
        (["verify", "c", "--sample", "half"], "invalid value for '--sample'"),
        (["verify", "c", "--json", "c"], "--json would replace c, which FILE reads"),
        (["verify", "c", "--json", "none/r.json"], "none"),
        (["verify"], "missing argument"),
        ([*_SOLVE, "--certificate", "none/c"], "none"),
        ([*_SOLVE, "--certificate", "."], "."),
        ([*_SOLVE, "--certificate", "-"], "--certificate cannot go to standard output"),
        ([*_SOLVE, "--certificate", "d", "--save-weights", "d"], "are the same file"),
        ([*_SOLVE, "--certificate", "c", "--input", "c"], "--certificate would replace c, which --input reads"),
    ],
)
def test_odd_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write("trivial", tmp_path).rename("c")
    before = Path("c").read_bytes()
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert not said.out and said.err.count("\n") == 1 and says in said.err
    assert Path("c").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["c"]


def test_files_that_are_no_certificates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.safetensors"
    solution = solved("3 bits, search")
    solution.save(path)
    assert main(["verify", str(path)]) == 3
    assert (
        f"REFUSED: {path} is a solution without proofs; `solve --certificate` writes them." in capsys.readouterr().out
    )
    solution.save_weights(path)
    assert main(["verify", str(path)]) == 3
    assert "is no solution of schema 1" in capsys.readouterr().out
    path.write_text("no tensors")
    assert main(["verify", str(path)]) == 3
    assert "is no whole safetensors file" in capsys.readouterr().out
    solution.save_certificate(path, by_hash=True)
    assert main(["verify", str(path)]) == 3
    assert "pass the layer file (--input)" in capsys.readouterr().out
    layers = tmp_path / "layers.safetensors"
    lb.save_layers(layers, [solution.problem.layer])
    assert main(["verify", str(path), "--input", str(layers)]) == 0
    assert main(["verify", str(path), "--input", str(path)]) == 3
    assert "is not the array whose SHA-256" in capsys.readouterr().out
