"""Names that are not known: every place that looks one up offers what was probably meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.cli.main import main
from layerbounds.suggestions import did_you_mean, nearest_names
from layerbounds.theory import equal_density


@pytest.mark.parametrize(
    ("given", "known", "near"),
    [
        ("gptg", ["rtn", "gptq", "awq"], ["gptq"]),
        ("GPTQ", ["rtn", "gptq"], ["gptq"]),
        ("q_prj", ["model.layers.0.self_attn.q_proj", "model.norm"], ["model.layers.0.self_attn.q_proj"]),
        ("self_atn.q_proj", ["layers.0.self_attn.q_proj", "layers.0.mlp"], ["layers.0.self_attn.q_proj"]),
        ("conv", [f"conv{i}" for i in range(9)], ["conv8", "conv7", "conv6"]),
        ("zzz", ["rtn", "gptq"], []),
        ("gpu", ["cpu", "cuda", "mps"], []),
        ("cup", ["cpu", "cuda", "mps"], ["cpu"]),
        ("", ["rtn"], []),
        (3, ["3"], []),
        ("a" * 10**6, ["a" * 10**6], []),
    ],
)
def test_nearest_names(given: Any, known: list[str], near: list[str]) -> None:
    assert nearest_names(given, known) == near


def test_wording() -> None:
    assert did_you_mean("x", ["gptq"]) == ""
    assert did_you_mean("gptg", ["gptq"]) == "did you mean gptq? "
    assert did_you_mean("con", ["conv", "cone"]) == "did you mean conv or cone? "
    assert did_you_mean("conv", ["conv1", "conv2", "conv3"]).count(",") == 1


def test_one_mechanism() -> None:
    package = Path(lb.__file__).parent
    users = [p.name for p in package.rglob("*.py") if "difflib" in p.read_text(encoding="utf-8")]
    assert users == ["suggestions.py"]


LAYER = lb.Layer(np.eye(2), np.eye(2), "blocks.0.proj")
PROBLEM = lb.quantization_problem(LAYER, 2)

CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "backend": (lambda: lb.solve(PROBLEM, backend="naitve"), "native"),
    "option of a backend": (
        lambda: lb.solve(lb.pruning_problem(LAYER, k=1), backend="batched", options={"devise": "cpu"}),
        "device",
    ),
    "device": (lambda: lb.solve(PROBLEM, device="cua"), "cuda"),
    "method": (lambda: lb.run_heuristic("gptg", PROBLEM), "gptq"),
    "option of a method": (lambda: lb.run_heuristic("gptq", PROBLEM, dampp=0.1), "damp"),
    "choice of a method": (lambda: lb.run_heuristic("coordinate_descent", PROBLEM, moves="greedi"), "greedy"),
    "option of solve in compress": (
        lambda: lb.compress(_model(), [], "solve", bits=2, tim_limit=1.0),
        "time_limit",
    ),
    "format of compress": (lambda: lb.compress(_model(), [], bits=2, format="gptqq"), "gptq"),
    "codebook": (lambda: lb.quantization_problem(LAYER, codebook="ternery"), "ternary"),
    "range": (lambda: lb.quantization_problem(LAYER, 2, range="minmx"), "minmax"),  # type: ignore[arg-type]
    "granularity": (
        lambda: lb.quantization_problem(LAYER, 2, granularity="chanel"),  # type: ignore[arg-type]
        "channel",
    ),
    "pattern": (lambda: lb.pruning_problem(LAYER, k=1, pattern="colum"), "column"),
    "pattern with a size": (lambda: lb.pruning_problem(LAYER, k=1, pattern="blok:2"), "block"),
    "mask": (lambda: PROBLEM.storage("bitmp"), "bitmap"),  # type: ignore[arg-type]
    "mask of theory": (lambda: equal_density(4, "bitmp"), "bitmap"),  # type: ignore[arg-type]
    "bias": (lambda: lb.quantization_problem(LAYER, 2, bias="kep"), "keep"),  # type: ignore[arg-type]
    "type": (lambda: lb.evaluate(PROBLEM, np.eye(2), dtype="flaot16"), "float16"),
    "order": (lambda: lb.order_gap(LAYER, 2, k=1, orders=["QPQR"]), "QPQ"),
    "codebook of a run": (lambda: lb.run([LAYER], out="run", codebook="nf5"), "nf4"),
    "place of a run": (lambda: lb.run([LAYER], out="run", bits=2, parallel="thread"), "threads"),
    "layer of a file": (lambda: _layer_of_a_file(), r"blocks\.0\.proj"),
}


def _model() -> Any:
    return pytest.importorskip("torch").nn.Linear(2, 2)


def _layer_of_a_file() -> Any:
    lb.save_layers("layers.safetensors", [LAYER])
    return lb.load_layers("layers.safetensors", "prj")


@pytest.mark.parametrize("place", CALLS)
def test_python(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call, meant = CALLS[place]
    with pytest.raises(lb.LayerboundsError, match=rf"did you mean [^?]*\b{meant}\b[^?]*\? ") as found:
        call()
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        ("slove", "solve"),
        ("solve --layr conv1 --bits 3", "--layer"),
        ("solve --layer conv1 --bits 3 --asymetric", "--asymmetric"),
        ("solve --layer cov1 --bits 3", "conv1"),
        ("solve --layer conv1 --bits 3 --granularity tensr", "tensor"),
        ("compare --layer conv1 --bits 3 --methods gptg", "gptq"),
        ("theory --distribution laplce", "laplace"),
        ("--vers", "--version"),
    ],
)
def test_command_line(command: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert meant in err.partition("did you mean ")[2].partition("?")[0]
