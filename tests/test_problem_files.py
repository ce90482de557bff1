"""Problems in files: every bit comes back, in Python and on the command line, and what is no problem is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_solution_files import EXAMPLES

import layerbounds as lb
from layerbounds.cli.main import main
from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.layers.tensor_files import read_tensors
from layerbounds.problems.problem import Problem
from layerbounds.problems.problem_file import PROBLEMS
from layerbounds.problems.stored import stored_problem


@pytest.fixture
def layer(rng: np.random.Generator) -> lb.Layer:
    x = rng.normal(size=(30, 5))
    layer = lb.Layer.from_activations(rng.normal(size=(3, 5)), x, "a")
    layer.provenance["from"] = {"a": [1, "two"]}
    return layer


def assert_same(first: Problem, second: Problem) -> None:
    assert (type(first), first.label, first.fingerprint()) == (type(second), second.label, second.fingerprint())
    (tensors, values), (others, told) = stored_problem(first), stored_problem(second)
    assert values == told and tensors.keys() == others.keys()
    for name, array in tensors.items():
        assert (array.dtype, array.shape, array.tobytes()) == (
            others[name].dtype,
            others[name].shape,
            others[name].tobytes(),
        )
    for name in ("weight", "gram", "target", "constant", "residual_mean"):
        assert getattr(first.layer, name).tobytes() == getattr(second.layer, name).tobytes(), name
    for name in ("name", "samples", "bias", "provenance", "gram_reports", "groups"):
        assert getattr(first.layer, name) == getattr(second.layer, name), name


@pytest.mark.parametrize(("name", "problem"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_every_family_comes_back_bit_by_bit(tmp_path: Path, name: str, problem: Problem) -> None:
    lb.save_problem(tmp_path / "p.safetensors", problem)
    assert_same(problem, lb.load_problem(tmp_path / "p.safetensors"))


def test_layers_of_groups_with_other_inputs_and_refitted_biases(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(40, 6)).astype(np.float32)
    weight = rng.normal(size=(4, 6)).astype(np.float32)
    seen = lb.Layer.from_activations(weight, x, "s", compressed_inputs=x + 0.1 * rng.normal(size=x.shape))
    grouped = lb.Layer(rng.normal(size=(4, 3)), np.stack([np.eye(3), np.diag([1.0, 0.0, 2.0])]), "g")
    path = tmp_path / "p.safetensors"
    for problem in (
        lb.quantization_problem(seen, 2, bias="refit"),
        lb.pruning_problem(seen, k=2),
        lb.quantization_problem(grouped, 3),
    ):
        lb.save_problem(path, problem)
        assert_same(problem, lb.load_problem(path))


def test_what_is_no_problem_is_refused(tmp_path: Path, layer: lb.Layer) -> None:
    path = tmp_path / "p.safetensors"
    problem = lb.pruning_problem(layer, k=2)
    lb.save_layers(path, [layer])
    with pytest.raises(FileFormatError, match=r"holds no problem; pass a file that save_problem has written\.$"):
        lb.load_problem(path)
    with pytest.raises(InputError, match="problem is"):
        lb.save_problem(path, layer)  # type: ignore[arg-type]
    lb.save_problem(path, problem)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + b"x" + whole[-4:])
    with pytest.raises(FileFormatError, match="damaged"):
        lb.load_problem(path)
    path.write_bytes(whole)
    tensors, about = PROBLEMS.read(path)
    PROBLEMS.write(path, tensors, about, 2)
    with pytest.raises(FileFormatError, match="problem schema 2, this version reads up to 1; upgrade"):
        lb.load_problem(path)
    for change, message in (
        ({"problem": {**about["problem"], "kept": 1}}, r"do not make the problem that was written\); write the file"),
        ({"problem": {**about["problem"], "family": "x"}}, "no family of problems 'x'"),
        ({"layer": {}}, "a part is missing or odd"),
    ):
        PROBLEMS.write(path, tensors, {**about, **change}, 1)
        with pytest.raises(FileFormatError, match=message):
            lb.load_problem(path)


@pytest.fixture
def file(tmp_path: Path, layer: lb.Layer, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lb.save_layers("layers.safetensors", [layer])
    return tmp_path / "problem.safetensors"


def solved(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["solve", *words, "--jobs", "1", "--json", "-"]) == 0
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    return record


@pytest.mark.parametrize("kind", [["--bits", "2"], ["--k", "2"], ["--bits", "2", "--pattern", "1:2"]])
def test_the_command_writes_and_solves_problems(
    file: Path, kind: list[str], capsys: pytest.CaptureFixture[str], layer: lb.Layer
) -> None:
    asked = ["--input", "layers.safetensors", "--layer", "a", "--bias", "refit", *kind, "--save-problem", str(file)]
    first = solved(capsys, *asked)
    again = solved(capsys, "--problem", str(file), "--channels", "1:3")
    assert lb.load_problem(file).layer.name == "a"
    assert again["problem"]["fingerprint"] == first["problem"]["fingerprint"]
    bounds = [[(row["lower_bound"], row["upper_bound"]) for row in record["channels"]] for record in (first, again)]
    assert bounds[0][1:] == bounds[1]


def test_the_file_is_there_when_the_search_fails(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--input", "layers.safetensors", "--layer", "a", "--bits", "2", "--save-problem", str(file)]
    assert main(["solve", *words, "--backend", "none"]) == 2
    assert "none" in capsys.readouterr().err
    assert lb.load_problem(file).label.startswith("2-bit")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layer", "a", "--bits", "2"], "--problem says what --layer, --bits would say; leave one of them out."),
        (["--asymmetric"], "--problem says what --symmetric would say"),
        (["--mask-only", "--input", "layers.safetensors"], "--input"),
        (["--save-problem", "problem.safetensors"], "which --problem reads"),
    ],
)
def test_what_makes_a_problem_is_refused_beside_one(
    file: Path, layer: lb.Layer, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lb.save_problem(file, lb.pruning_problem(layer, k=2))
    assert main(["solve", "--problem", str(file), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_layer_or_a_problem_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", "--bits", "2"]) == 2
    assert "pass --layer, or --problem" in capsys.readouterr().err


def test_names_of_the_file_are_those_of_the_documents(file: Path, layer: lb.Layer) -> None:
    lb.save_problem(file, lb.quantization_problem(layer, 2))
    tensors, metadata = read_tensors(file)
    assert {name.partition(".")[0] for name in tensors} == {"layer", "problem"}
    assert set(metadata) == {"layerbounds.problem", "problem", "sha256"} and metadata["layerbounds.problem"] == "1"
    assert {"layer", "problem"} <= set(json.loads(metadata["problem"]))
