"""Solutions in files: every bit comes back, and what is no solution, or damaged, is refused in one sentence."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo

import layerbounds as lb
from layerbounds.certify.solution_file import SOLUTIONS
from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.layers.files import write_tensors
from layerbounds.layers.sealed_files import DIGEST_KEY, digest
from layerbounds.layers.tensor_files import read_tensors
from layerbounds.problems.problem import Problem
from layerbounds.problems.stored import STORED
from layerbounds.search.families import families


def _layer(channels: int = 3, n: int = 6, **more: Any) -> lb.Layer:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, n)) @ rng.normal(size=(n, n))
    x[:, 1] = 0.0
    return lb.Layer(rng.normal(size=(channels, n)), x.T @ x / 40, "block.0/conv", **more)


def _examples() -> list[tuple[str, Problem]]:
    layer = _layer()
    found = [(f"{name}", problem) for family in families().values() for name, problem in family.examples(layer)]
    units = np.array([0, 0, 1, 2, 1, 2])
    more = {
        "given units, shared": lb.pruning_problem(layer, k=2, pattern=units),
        "2:4, two rows": lb.pruning_problem(layer, pattern="2:4", share=2, refit=False),
        "g_idx": lb.quantization_problem(layer, 2, scale=np.ones((3, 2)), g_idx=[0, 1, 0, 1, 1, 0]),
        "negative scale": lb.quantization_problem(layer, 2, scale=[-1.0, 0.5, 2.0], zero_point=[1.5, 0.0, 2.0]),
        "weights as given": lb.joint_problem(layer, k=2, weights=layer.weight),
        "mxfp4": lb.quantization_problem(layer, codebook="mxfp4", scale="free"),
    }
    return [*found, *more.items()]


EXAMPLES = _examples()


def _solved(problem: Problem) -> lb.Solution:
    """Intervals that need no search, and weights that are allowed."""
    channels = list(range(problem.layer.out_features))
    sets = problem.sets(channels)
    weights = problem.project(problem.layer.matrix, channels)
    rng = np.random.default_rng(0)
    count = len(sets)
    return lb.Solution(
        problem=problem,
        channels=channels,
        sets=sets,
        lower_bound=rng.random(count),
        upper_bound=1.0 + rng.random(count),
        weights=weights.reshape(-1, *problem.layer.weight.shape[1:]),
        status=[lb.Status.TIME_LIMIT] * count,
        bound_kind=[lb.BoundKind.DUAL] * count,
        claimed_lower_bound=np.where(np.arange(count) % 2, np.nan, 0.1),
        energy=rng.random(count),
        seconds=rng.random(count),
        nodes=np.arange(count) + 2**53,
        trace=[[] for _ in sets],
        preparation_seconds=0.1,
        backend="auto",
        lower_backend=["native"] * count,
        upper_backend=["batched"] * count,
        notes={0: ("a note with – and “quotes”",)},
    )


def _same(first: lb.Solution, second: lb.Solution) -> None:
    for field in dataclasses.fields(first):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if isinstance(a, np.ndarray):
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), field.name
        elif field.name not in ("problem", "evidence"):
            assert a == b, field.name
    a, b = first.problem, second.problem
    assert type(a) is type(b) and (a.label, a.fingerprint()) == (b.label, b.fingerprint())
    assert vars(a.layer).keys() == vars(b.layer).keys()
    for name in ("weight", "matrix", "gram", "target", "constant", "residual_mean", "input_mean"):
        x, y = getattr(a.layer, name), getattr(b.layer, name)
        assert (x is None and y is None) or (x.dtype, x.tobytes()) == (y.dtype, y.tobytes()), name
    for name in ("name", "samples", "bias", "provenance", "gram_reports"):
        assert getattr(a.layer, name) == getattr(b.layer, name), name


@pytest.mark.parametrize(("name", "problem"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_every_family_comes_back_bit_by_bit(tmp_path: Path, name: str, problem: Problem) -> None:
    solution = _solved(problem)
    solution.save(tmp_path / "s.safetensors")
    _same(solution, lb.load_solution(tmp_path / "s.safetensors"))


def test_every_problem_of_the_zoo_comes_back(tmp_path: Path) -> None:
    layers = zoo.layers()
    for name, rule, make in zoo._problems():
        solution = _solved(make(layers[name]))
        solution.save(tmp_path / "s.safetensors")
        try:
            _same(solution, lb.load_solution(tmp_path / "s.safetensors"))
        except (AssertionError, InputError) as error:
            raise AssertionError(f"{name}, {rule}") from error


def test_all_kinds_of_problems_are_in_the_table() -> None:
    assert {type(problem) for _, problem in EXAMPLES} == set(STORED)


def test_a_solved_problem_with_all_that_a_layer_has(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(9, 8)).astype(np.float32)
    layer = lb.Layer.from_activations(
        rng.normal(size=(4, 8)).astype(np.float32), x, "a", compressed_inputs=x + 0.1 * rng.normal(size=x.shape)
    )
    layer.provenance["model"] = {"of": [1, "two"]}
    for bias in ("keep", "refit"):
        solution = lb.solve(
            lb.quantization_problem(layer, 2, bias=bias),
            channels=[3, 1],
            jobs=1,
            node_limit=1000,  # type: ignore[arg-type]
        )
        solution.save(tmp_path / "s.safetensors")
        loaded = lb.load_solution(tmp_path / "s.safetensors")
        _same(solution, loaded)
        assert loaded.trace[0] and loaded.to_dict() == solution.to_dict()
        assert lb.evaluate(loaded.problem, loaded.weights, [3, 1]).feasible.all()


def test_grouped_layers_and_singular_matrices_that_were_projected(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(2, 3, 5))
    gram = np.einsum("gki,gkj->gij", x, x)
    gram[0] = gram[0].astype(np.float32) - 1e-8 * np.eye(5)
    layer = lb.Layer(rng.normal(size=(4, 5)), gram, "g")
    assert any(report.projected for report in layer.gram_reports) and any(r.raised for r in layer.gram_reports)
    for problem in (lb.pruning_problem(layer, k=2), lb.quantization_problem(layer, 3)):
        solution = _solved(problem)
        solution.save(tmp_path / "s.safetensors")
        _same(solution, lb.load_solution(tmp_path / "s.safetensors"))


def test_by_hash(tmp_path: Path) -> None:
    layer, path = _layer(), tmp_path / "s.safetensors"
    solution = _solved(lb.pruning_problem(layer, k=3))
    solution.save(path, by_hash=True)
    assert not any(name.startswith("layer.") for name in read_tensors(path)[0])
    _same(solution, lb.load_solution(path, layer=layer))
    with pytest.raises(FileFormatError, match="pass layer"):
        lb.load_solution(path)
    with pytest.raises(FileFormatError, match="weight of the layer that was passed is not the one"):
        lb.load_solution(path, layer=lb.Layer(layer.weight + 1.0, layer.gram, layer.name))
    solution.save(path)
    with pytest.raises(FileFormatError, match="leave out layer"):
        lb.load_solution(path, layer=layer)
    with pytest.raises(InputError, match="by_hash"):
        solution.save(path, by_hash="yes")  # type: ignore[arg-type]


def test_a_family_that_is_not_in_the_table_says_so(tmp_path: Path) -> None:
    class Other(type(EXAMPLES[0][1])):  # type: ignore[misc]
        family = "other"

    problem = EXAMPLES[0][1]
    other = Other(**{f.name: getattr(problem, f.name) for f in dataclasses.fields(problem)})
    with pytest.raises(InputError, match="family 'other' cannot be stored"):
        _solved(other).save(tmp_path / "s.safetensors")
    assert not list(tmp_path.iterdir())


def _rewritten(path: Path, change: Any, seal: bool = True) -> None:
    tensors, metadata = read_tensors(path)
    about = json.loads(metadata[SOLUTIONS.key])
    change(tensors, about, metadata)
    text = json.dumps(about)
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    write_tensors(
        path, tensors, {**metadata, SOLUTIONS.key: text, **({DIGEST_KEY: digest(tensors, text)} if seal else {})}
    )


DAMAGE: dict[str, Any] = {
    "the problem is another": (lambda t, a, m: a["problem"].update(kept=2), "not the one that it was about"),
    "another pattern": (lambda t, a, m: a["problem"].update(pattern="2:4"), "not the one that it was about"),
    "a pattern that there is not": (lambda t, a, m: a["problem"].update(pattern="x"), "there is no pattern"),
    "no such family": (lambda t, a, m: a["problem"].update(family="x"), "no family of problems 'x'"),
    "a missing part": (lambda t, a, m: a["problem"].pop("kept"), "kept is incomplete"),
    "a missing tensor": (lambda t, a, m: t.pop("solution.weights"), "solution.weights"),
    "too few bounds": (lambda t, a, m: t.update({"solution.lower_bound": np.zeros(1)}), "1 entries for 3"),
    "weights of another shape": (lambda t, a, m: t.update({"solution.weights": np.zeros((3, 2))}), r"shape \(3, 2\)"),
    "an unknown status": (lambda t, a, m: a["intervals"].update(status=["good"] * 3), "good"),
    "other sets": (lambda t, a, m: a.update(sets=[[0, 1, 2]]), "sets of rows"),
    "an asymmetric matrix": (lambda t, a, m: t["layer.gram"].__setitem__((0, 2), 0.0), "symmetric|stored"),
    "an indefinite matrix": (lambda t, a, m: t["layer.gram"].__setitem__((0, 0), -9.0), "positive semidefinite|stored"),
    "NaN among the weights of the layer": (lambda t, a, m: t["layer.weight"].__setitem__((0, 0), np.nan), "NaN"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_contradicts_itself_is_refused(tmp_path: Path, name: str) -> None:
    change, message = DAMAGE[name]
    path = tmp_path / "s.safetensors"
    _solved(lb.pruning_problem(_layer(), k=3)).save(path)
    _rewritten(path, change)
    with pytest.raises(FileFormatError, match=message):
        lb.load_solution(path)


def test_damaged_foreign_and_newer_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    layer = _layer()
    solution = _solved(lb.pruning_problem(layer, k=3))
    solution.save(path)
    whole = path.read_bytes()
    for content, message in (
        (whole[:-40], "truncated"),
        (whole[:-5] + b"x" + whole[-4:], "damaged"),
        (b"", "truncated"),
        (b"no file of ours" * 10, "truncated or of another format"),
    ):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=message):
            lb.load_solution(path)
    path.write_bytes(whole)
    _rewritten(path, lambda t, a, m: m.update({SOLUTIONS.schema_key: "3"}))
    with pytest.raises(FileFormatError, match="schema 3, this version reads up to 2"):
        lb.load_solution(path)
    solution.save_weights(path)
    with pytest.raises(FileFormatError, match="holds no solution"):
        lb.load_solution(path)
    with pytest.raises(FileFormatError, match="does not exist"):
        lb.load_solution(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="does not exist"):
        solution.save(tmp_path / "none" / "s.safetensors")


def test_another_process_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    solution = _solved(lb.quantization_problem(_layer(), 3))
    solution.save(path)
    code = f"import layerbounds as lb; print(lb.load_solution({str(path)!r}).upper_bound.sum().hex())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == float(solution.upper_bound.sum()).hex()
