"""The house as docs/architecture.md describes it: its recipes are followed to the letter in a copy of the package."""

from __future__ import annotations

import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import layerbounds as lb

PACKAGE = Path(lb.__file__).resolve().parent
PROJECT = PACKAGE.parent
TOYS = Path(__file__).parent / "toys"

#: New files of each recipe, and lines added to files that exist: (before which line, what).
NEW = {
    "heuristic": {"methods/toy.py": "heuristic.py"},
    "grid": {},
    "range": {"problems/ranges/toy.py": "range.py"},
    "pattern": {"problems/patterns/toy.py": "pattern.py"},
    "backend": {"solvers/toy.py": "backend.py"},
    "family": {
        "problems/toy.py": "problem.py",
        "bounds/toy/__init__.py": None,
        "bounds/toy/least.py": "least.py",
        "search/toy/__init__.py": None,
        "search/toy/family.py": "family.py",
    },
}
CHANGED = {
    "heuristic": {
        "methods/registry.py": [
            ("from layerbounds.methods.wanda", "from layerbounds.methods.toy import toy\n"),
            ('        _entry("gptq"', '        _entry("toy", toy, "round each weight down", "–"),\n'),
        ]
    },
    "grid": {"problems/codebooks.py": [('    "ternary"', '    "toy": (-1.0, 0.0, 3.0),\n')]},
    "range": {
        "problems/ranges/registry.py": [
            ("\n_RULES", "from layerbounds.problems.ranges.toy import toy\n"),
            (
                '    RangeRule(\n        "minmax"',
                '    RangeRule("toy", "mean magnitude", "–", weights=separately(toy)),\n',
            ),
        ]
    },
    "pattern": {
        "problems/patterns/registry.py": [
            ("\n#: All patterns.", "from layerbounds.problems.patterns.toy import Spread\n"),
            ("PATTERNS: tuple[type[Pattern], ...] = (", "PATTERNS: tuple[type[Pattern], ...] = (Spread, "),
        ]
    },
    "backend": {
        "solvers/registry.py": [
            ("\n_BACKENDS", "from layerbounds.solvers.toy import ToyBackend\n"),
            ('    "scip"', '    "toy": ToyBackend,\n'),
        ]
    },
    "family": {"__init__.py": [("\n__all__", "from layerbounds.problems.toy import DeletionProblem\n")]},
}

USE = {
    "heuristic": """
problem = lb.quantization_problem(layer, 3)
weights = lb.run_heuristic("toy", problem)
assert lb.evaluate(problem, weights).feasible.all()
assert any(row["method"] == "toy" for row in lb.compare(layer, 3, methods=["toy"], time_limit=0.0, jobs=1))
""",
    "grid": """
problem = lb.quantization_problem(layer, grid=lb.codebook_grid(layer.weight, "toy"))
check(problem, "native")
""",
    "range": """
problem = lb.quantization_problem(layer, 2, range="toy")
assert problem.label.endswith(", toy") and problem.grid.scale[0, 0] == np.abs(layer.matrix).mean()
check(problem, "native")
assert "toy" in [row["grid"].split(", ")[1] for row in lb.compare(layer, 3, range="all", methods=["rtn"], jobs=1)]
""",
    "pattern": """
problem = lb.pruning_problem(layer, pattern="spread", k=2)
solution = check(problem, "native")
assert not solution.weights[:, 1::2].any() and (solution.weights[:, ::2] != 0).sum() == 2
assert lb.evaluate(problem, lb.run_heuristic("magnitude", problem)).feasible.all()
check(lb.pruning_problem(layer, pattern="spread", k=2, refit=False), "native")
""",
    "backend": """
problem = lb.quantization_problem(layer, 2)
solution = lb.solve(problem, "toy")
assert (solution.lower_bound <= brute_force(problem)) and (solution.upper_bound >= brute_force(problem) * (1 - 1e-12))
for case in zoo():
    if case.problem.requirement == "uniform grids":
        solution = lb.solve(case.problem, "toy")
        slack = 1e-9 * case.optimum + 1e-13 * solution.energy[0]
        assert solution.lower_bound[0] <= case.optimum + slack and solution.upper_bound[0] >= case.optimum - slack
""",
    "family": """
cases = [case for case in zoo() if case.name.endswith("two deletions")]
assert len(cases) == 1
solution = check(cases[0].problem, "native")
assert list(solution.status) == ["optimal"] and cases[0].optimum > 0
assert lb.evaluate(cases[0].problem, solution.weights).feasible.all()
try:
    lb.solve(cases[0].problem, "scip")
except lb.LayerboundsError as error:
    assert "cannot treat deletions" in str(error)
else:
    raise AssertionError("scip took a problem that it does not know")
assert isinstance(lb.DeletionProblem(layer, 1), lb.DeletionProblem)
""",
}

PREAMBLE = """
import sys
import numpy as np
import layerbounds as lb
assert lb.__file__.startswith(sys.argv[1]), lb.__file__
sys.path.insert(0, sys.argv[2])
from zoo import brute_force, zoo
rng = np.random.default_rng(0)
inputs = rng.normal(size=(30, 6)) + rng.normal(size=(30, 1))
layer = lb.Layer.from_activations(rng.normal(size=(1, 6)), inputs)

def check(problem, backend):
    solution = lb.solve(problem, backend, time_limit=60.0, jobs=1)
    optimum = brute_force(problem)
    assert solution.lower_bound[0] <= optimum * (1 + 1e-12)
    assert abs(solution.upper_bound[0] - optimum) <= 2e-6 * optimum, (solution.upper_bound, optimum)
    return solution
"""


def recipe_files(recipe: str) -> set[str]:
    """The files that docs/architecture.md names in the list of a recipe, NAME filled in."""
    text = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = re.split(r"^### An? ", text.split("## Recipes")[1], flags=re.MULTILINE)
    body = next(part for part in section if part.startswith(recipe))
    items = [line for line in body.split("\n\n")[1].splitlines() if line.startswith(("- ", "  "))]
    return set(re.findall(r"`layerbounds/([\w/]+\.py)`", "\n".join(items).replace("NAME", "toy")))


@pytest.mark.parametrize(
    "recipe",
    # Those that try all small problems take longer.
    [pytest.param(name, marks=pytest.mark.slow if name in ("backend", "family") else ()) for name in NEW],
)
def test_a_newcomer_adds(recipe: str, tmp_path: Path) -> None:
    touched = {*NEW[recipe], *CHANGED[recipe]}
    assert recipe_files(recipe) == touched
    for package in (PACKAGE, PROJECT / "layerbounds_verify"):
        shutil.copytree(package, tmp_path / package.name)
    for name, source in NEW[recipe].items():
        file = tmp_path / "layerbounds" / name
        assert not file.exists()
        file.parent.mkdir(exist_ok=True)
        file.write_text('"""Toy."""\n' if source is None else (TOYS / source).read_text(encoding="utf-8"))
    for name, insertions in CHANGED[recipe].items():
        file = tmp_path / "layerbounds" / name
        text = file.read_text(encoding="utf-8")
        for before, added in insertions:
            assert text.count(before) == 1, (name, before)
            # What ends like the line before which it stands replaces that line's beginning.
            text = text.replace(before, added if added.startswith(before) else added + before)
        file.write_text(text, encoding="utf-8")
    script = tmp_path / "use.py"
    script.write_text(PREAMBLE + USE[recipe], encoding="utf-8")
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(Path(__file__).parent)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_no_public_name_hides_a_package() -> None:
    folders = {module.name for module in pkgutil.iter_modules([str(PACKAGE)]) if module.ispkg}
    assert folders & set(lb.__all__) <= {"theory", "training"}
    import layerbounds.solvers.native

    assert layerbounds.solvers.native.NativeBackend.name == "native"


def test_nothing_loose_in_the_root() -> None:
    loose = {path.name for path in PACKAGE.iterdir() if path.is_file() and path.suffix != ".pyc"}
    assert loose == {
        "__init__.py", "__main__.py", "arguments.py", "arrays.py", "cancellation.py", "exceptions.py", "frames.py",
        "mistaken.py", "names.py", "progress.py", "proofs.py", "py.typed", "solution.py", "solve.py", "suggestions.py",
        "version.py",
    }  # fmt: skip


def test_kinds_are_asked_for_in_registries_only() -> None:
    asked = re.compile(r"isinstance\([^()]*\b(\w+Problem|Task|DualPoint|BlockDual|Levels|Support|NativeBackend)\b")
    found = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if asked.search(line)
    ]
    assert found == []
