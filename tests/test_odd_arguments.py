"""No raw exception of a library: every public function gets wrong types and odd values for every argument."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import folder_of
from made_checkpoints import checkpoint
from made_checkpoints import quantized as made_weight

import layerbounds as lb
from layerbounds.methods.registry import describe_heuristics

#: Two inputs of eight outputs, quantized.
AWQ = {
    "a.qweight": np.zeros((2, 1), np.int32),
    "a.qzeros": np.zeros((1, 1), np.int32),
    "a.scales": np.ones((1, 8), np.float16),
}

#: Factories, because some values are used up.
ODD: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "text": lambda: "no such thing",
    "empty text": lambda: "",
    "bytes": lambda: b"bytes",
    "number as text": lambda: "3",
    "mapping": lambda: {"a": 1},
    "empty mapping": dict,
    "mapping from numbers": lambda: {1: "a"},
    "empty list": list,
    "nested list": lambda: [[1.0, 2.0], [3.0]],
    "list of None": lambda: [None, None],
    "list of text": lambda: ["a", "b"],
    "set": lambda: {1, 2},
    "object": object,
    "type": lambda: int,
    "function": lambda: lambda *_, **__: None,
    "generator": lambda: (i for i in range(2)),
    "object array": lambda: np.array([None, "a"], dtype=object),
    "text array": lambda: np.array("text"),
    "dates": lambda: np.array(["2020-01-01"], dtype="datetime64[D]"),
    "complex": lambda: 1 + 2j,
    "complex array": lambda: np.ones((2, 3), dtype=complex),
    "NaN": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "array of NaN": lambda: np.full((2, 3), np.nan),
    "masked array": lambda: np.ma.masked_array(np.ones((2, 3)), mask=np.eye(2, 3)),
    "True": lambda: True,
    "zero": lambda: 0,
    "minus one": lambda: -1,
    "minus a half": lambda: -0.5,
    "large": lambda: 10**20,
    "huge": lambda: 10**400,
    "beyond float": lambda: 1e308,
    "empty array": lambda: np.zeros((0, 3)),
    "scalar array": lambda: np.array(1.5),
    "vector": lambda: np.ones(7),
    "cube": lambda: np.ones((1, 1, 1)),
    "integers": lambda: np.arange(6).reshape(2, 3),
    "layer": lambda: lb.Layer(np.ones((1, 1)), np.eye(1)),
    "grid": lambda: lb.Grid([0, 1], [1.0], 0, 1),
    "path": lambda: Path("absent") / "file",
}


def torch_values() -> dict[str, Callable[[], Any]]:
    torch = pytest.importorskip("torch")
    return {
        "half": lambda: torch.ones(2, 3, dtype=torch.bfloat16),
        "boolean": lambda: torch.ones(2, 3, dtype=torch.bool),
        "complex tensor": lambda: torch.ones(2, 3, dtype=torch.complex64),
        "float8": lambda: torch.ones(2, 3).to(torch.float8_e4m3fn),
        "sparse": lambda: torch.eye(3).to_sparse(),
        "meta": lambda: torch.ones(2, 3, device="meta"),
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8),
        "with gradient": lambda: torch.ones(2, 3, requires_grad=True),
        "scalar tensor": lambda: torch.tensor(2),
        "module": lambda: torch.nn.Linear(3, 2),
        "dtype": lambda: torch.int8,
    }


def calls(tmp_path: Path) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """A cheap valid call of each public function, every parameter named that is not."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 3))
    layer = lb.Layer.from_activations(rng.normal(size=(2, 3)), x, "odd")
    quantized, pruned = lb.quantization_problem(layer, 2), lb.pruning_problem(layer, k=1)
    joint, shared = lb.joint_problem(layer, 2, k=1), lb.pruning_problem(layer, k=1, pattern="column")
    file = tmp_path / "layers.safetensors"
    lb.save_layers(file, [layer])
    solution = lb.solve(quantized, time_limit=1.0, jobs=1)
    certificate = tmp_path / "certificate.safetensors"
    solution.save_certificate(certificate)
    problem_file = tmp_path / "saved.safetensors"
    lb.save_problem(problem_file, quantized)
    finished = lb.run([layer], out=tmp_path / "done", bits=2, methods=[], time_limit=0.0, jobs=1, parallel="threads")
    made = checkpoint({"odd": made_weight("odd", quantized.grid, quantized.grid.nearest(layer.matrix))})
    choices = tmp_path / "choices.json"
    choices.write_text(lb.allocate(finished, 20.0).export("gptqmodel"), encoding="utf-8")
    table = {
        "Layer": (lb.Layer, {"weight": layer.weight, "gram": layer.gram[0], "input_mean": layer.input_mean}),
        "Layer.from_activations": (lb.Layer.from_activations, {"weight": layer.weight, "inputs": x}),
        "Layer.from_moments": (
            lb.Layer.from_moments,
            {
                "weight": layer.weight,
                "gram": layer.gram[0],
                "shift": np.zeros((2, 3)),
                "error_energy": np.zeros(2),
                "error_mean": np.zeros(2),
                "input_mean": np.zeros(3),
            },
        ),
        "im2col": (lb.im2col, {"x": np.ones((1, 2, 3, 3)), "kernel_size": 2, "padding": 1}),
        "Grid": (lb.Grid, {"codes": [0, 1, 2], "scale": [0.5, 0.5], "zero_point": 1, "in_features": 3}),
        "uniform_grid": (lb.uniform_grid, {"weight": layer.weight, "bits": 2}),
        "codebook_grid": (lb.codebook_grid, {"weight": layer.weight, "codebook_name": "nf4"}),
        "gram_grid": (lb.gram_grid, {"layer": layer, "bits": 2}),
        "FreeCodebookProblem": (lb.FreeCodebookProblem, {"layer": layer, "count": 4}),
        "FreeScaleProblem": (
            lb.FreeScaleProblem,
            {
                "layer": layer,
                "codes": [-1.0, 0.0, 1.0],
                "zero": "none",
                "signed": False,
                "powers_of_two": False,
                "group": [0, 0, 0],
                "granularity": "channel",
                "name": "ternary",
            },
        ),
        "QuantizationProblem": (lb.QuantizationProblem, {"layer": layer, "grid": quantized.grid}),
        "PruningProblem": (
            lb.PruningProblem,
            {"layer": layer, "pattern": pruned.pattern, "kept": 1, "refit": True},
        ),
        "quantization_problem": (lb.quantization_problem, {"layer": layer, "bits": 2}),
        "quantization_problem, codebook": (lb.quantization_problem, {"layer": layer, "codebook": "nf4"}),
        "quantization_problem, free": (lb.quantization_problem, {"layer": layer, "bits": 2, "codebook": "free"}),
        "quantization_problem, all scales": (lb.quantization_problem, {"layer": layer, "bits": 2, "scale": "free"}),
        "evaluate, all scales": (
            lb.evaluate,
            {"problem": lb.quantization_problem(layer, 2, scale="free"), "weights": layer.weight},
        ),
        "quantization_problem, given": (
            lb.quantization_problem,
            {"layer": layer, "bits": 2, "scale": [0.5, 0.5], "zero_point": [1, 1]},
        ),
        "quantization_problem, grid": (lb.quantization_problem, {"layer": layer, "grid": quantized.grid}),
        "FilterProblem": (lb.FilterProblem, {"layer": layer, "kept": 1, "refit": True, "metrics": np.eye(2)}),
        "next_layer_metric": (lb.next_layer_metric, {"weight": layer.weight}),
        "pruning_problem, filter": (
            lb.pruning_problem,
            {"layer": layer, "k": 1, "pattern": "filter", "output_metric": np.eye(2)},
        ),
        "pruning_problem": (lb.pruning_problem, {"layer": layer, "k": 1}),
        "pruning_problem, density": (lb.pruning_problem, {"layer": layer, "density": 0.5}),
        "JointProblem": (
            lb.JointProblem,
            {"layer": layer, "grid": quantized.grid, "pattern": pruned.pattern, "kept": 1},
        ),
        "joint_problem": (lb.joint_problem, {"layer": layer, "bits": 2, "k": 1}),
        "joint_problem, N:M": (lb.joint_problem, {"layer": layer, "codebook": "nf4", "pattern": "1:2"}),
        "joint_problem, given": (
            lb.joint_problem,
            {"layer": layer, "bits": 2, "density": 0.5, "scale": [0.5, 0.5], "zero_point": [1, 1]},
        ),
        "joint_problem, weights": (lb.joint_problem, {"layer": layer, "weights": layer.weight, "k": 1}),
        "evaluate": (lb.evaluate, {"problem": quantized, "weights": layer.weight}),
        "evaluate, joint": (lb.evaluate, {"problem": joint, "weights": layer.weight}),
        "evaluate, pruning": (lb.evaluate, {"problem": pruned, "weights": layer.weight}),
        "solve": (lb.solve, {"problem": quantized, "time_limit": 1.0, "jobs": 1}),
        "solve, pruning": (lb.solve, {"problem": pruned, "time_limit": 1.0, "jobs": 1}),
        "run_heuristic": (lb.run_heuristic, {"name": "gptq", "problem": quantized}),
        "compare": (
            lb.compare,
            {"layer": layer, "bits": 2, "methods": ["rtn"], "time_limit": 0.1, "jobs": 1},
        ),
        "compare, joint": (
            lb.compare,
            {"layer": layer, "bits": 2, "density": 0.5, "joint": True, "methods": [], "time_limit": 0.1, "jobs": 1},
        ),
        "versus": (lb.versus, {"layer": layer, "bits": [2], "time_limit": 0.0, "jobs": 1}),
        "contest": (lb.contest, {"layer": layer, "contenders": ["2+1:2", 2], "time_limit": 0.0, "jobs": 1}),
        "order_gap": (
            lb.order_gap,
            {"layer": layer, "bits": 2, "k": 1, "orders": ["QP"], "look": False, "time_limit": 0.1, "jobs": 1},
        ),
        "save_problem": (lb.save_problem, {"path": tmp_path / "problem.safetensors", "problem": quantized}),
        "load_problem": (lb.load_problem, {"path": problem_file}),
        "load_layers": (lb.load_layers, {"path": file}),
        "load_checkpoint": (lb.load_checkpoint, {"path": folder_of(tmp_path / "quantized", AWQ)}),
        "save_layers": (lb.save_layers, {"path": tmp_path / "out.safetensors", "layers": [layer]}),
        "Solution.save": (solution.save, {"path": tmp_path / "solution.safetensors"}),
        "Solution.save_certificate": (solution.save_certificate, {"path": tmp_path / "out.safetensors"}),
        "load_solution": (lb.load_solution, {"path": certificate}),
        "verify": (lb.verify, {"path": certificate}),
        "Solution.save_weights": (solution.save_weights, {"path": tmp_path / "weights.safetensors"}),
        "run": (
            lb.run,
            {
                "layers": [layer],
                "out": tmp_path / "run",
                "bits": 2,
                "methods": [],
                "time_limit": 0.0,
                "jobs": 1,
                "parallel": "threads",
            },
        ),
        "load_run": (lb.load_run, {"out": tmp_path / "run"}),
        "write_report": (lb.write_report, {"run": finished, "out": tmp_path / "report"}),
        "allocate": (lb.allocate, {"run": finished, "budget": 20.0}),
        "score": (
            lb.score,
            {"checkpoint": made, "layers": [layer], "channels": [0], "total_time": 0.1, "jobs": 1},
        ),
        "score_allocation": (lb.score_allocation, {"run": finished, "path": choices, "tool": "gptqmodel"}),
        "demo_layers": (lb.demo_layers, {}),
        "backends": (lb.backends, {}),
        "heuristics": (lb.heuristics, {}),
        "yardsticks": (lb.yardsticks, {"problem": quantized, "channels": [1]}),
        "yardsticks, joint": (lb.yardsticks, {"problem": joint}),
        "theory.typical_error": (lb.theory.typical_error, {"gram": layer.gram[0], "scale": 0.5}),
        "theory.chance_below": (lb.theory.chance_below, {"gram": layer.gram[0], "scale": [0.5] * 3, "error": 0.1}),
        "theory.least_distortion": (
            lb.theory.least_distortion,
            {"gram": layer.gram[0], "weights": layer.weight, "bits": 2.5},
        ),
    }
    for heuristic in describe_heuristics():
        problem = next(p for p in (quantized, pruned, joint, shared) if heuristic.can_treat(p))
        table[f"run_heuristic, {heuristic.name}"] = (lb.run_heuristic, {"name": heuristic.name, "problem": problem})
    return table


def onnx_calls() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    from onnx_models import model, node, value

    made = model([node("MatMul", ["x", "w"], "y")], [value("x", None)], "y", {"w": np.ones((3, 2), np.float32)})
    return {"capture_onnx": (lb.capture_onnx, {"model": made, "batches": [np.ones((4, 3)), np.eye(3)]})}


def model_calls(tmp_path: Path) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    batches = [torch.ones(4, 3), torch.eye(3)]
    return {
        "capture": (lb.capture, {"model": model, "batches": batches}),
        "capture_to_file": (
            lb.capture_to_file,
            {"model": model, "batches": batches, "path": tmp_path / "capture.safetensors"},
        ),
        **onnx_calls(),
        "compress": (
            lb.compress,
            {"model": model, "batches": batches, "method": "rtn", "bits": 2, "jobs": 1, "intervals": False},
        ),
        "training.finetune": (
            lb.training.finetune,
            {
                "model": model,
                "data": (torch.ones(4, 3), torch.tensor([0, 1, 0, 1])),
                "schedule": "quantize@0",
                "bits": 2,
                "epochs": 1,
            },
        ),
    }


#: Of the values for each argument, one in this number is tried in the short run.
SHORT = 6
CALLBACKS = ("progress", "plan", "forward", "mask", "listener")
#: What functions return: their constructors take what they are given.
RESULTS = {
    "Allocation", "BoundKind", "Checkpoint", "Comparison", "Evaluation", "LayerScore", "LayerboundsError",
    "MethodComparison", "NetworkRun", "OrderGap", "QuantizedWeight", "Rank", "Report", "Scores", "Standings", "Status",
    "Verdict",
}  # fmt: skip


def parameters(function: Callable[..., Any], valid: dict[str, Any]) -> Iterator[str]:
    yield from valid
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in valid and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            yield name


def heuristic_options(label: str) -> list[str]:
    name = label.removeprefix("run_heuristic, ")
    return [option for h in describe_heuristics() if h.name == name for option in h.options]


def failures(
    table: dict[str, tuple[Callable[..., Any], dict[str, Any]]], odd: dict[str, Callable[[], Any]], short: bool
) -> list[str]:
    """Calls that ended with anything but a result or the package's own exception.

    Each argument gets one in `SHORT` of the odd values, others than the argument before it; or else all but these.
    """
    values = list(enumerate(odd.items()))
    found = []
    turn = 0
    for label, (function, valid) in table.items():
        names = [*parameters(function, valid), *heuristic_options(label)]
        if label.startswith("run_heuristic, "):
            names = heuristic_options(label)
        for name in names:
            turn += 1
            for kind, value in (item for i, item in values if (i % SHORT == turn % SHORT) == short):
                # Functions of another signature fail as their owner wrote them; large numbers of steps take long.
                foreign = name in CALLBACKS and kind in ("type", "module")
                if foreign or (label.startswith("run_heuristic, ") and kind == "large"):
                    continue
                arguments = {**valid, name: value()}
                try:
                    function(**arguments)
                except lb.LayerboundsError as error:
                    text = str(error)
                    if "\n" in text or not text.strip():
                        found.append(f"{label}({name}={kind}): no sentence: {text!r}")
                except Exception as error:
                    found.append(f"{label}({name}={kind}): {type(error).__name__}: {error}")
    return found


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def test_every_public_function_is_tried(tmp_path: Path) -> None:
    tried = {label.partition(",")[0].partition(".")[0] for label in {**calls(tmp_path), **model_calls(tmp_path)}}
    public = {name for name in lb.__all__ if callable(getattr(lb, name))}
    assert public - tried == RESULTS


def test_odd_values(tmp_path: Path) -> None:
    assert failures(calls(tmp_path), {**ODD, **torch_values()}, short=True) == []


def test_odd_values_around_models(tmp_path: Path) -> None:
    assert failures(model_calls(tmp_path), {**ODD, **torch_values()}, short=True) == []


@pytest.mark.slow
def test_all_other_odd_values(tmp_path: Path) -> None:
    odd = {**ODD, **torch_values()}
    assert failures(calls(tmp_path), odd, short=False) == []
    assert failures(model_calls(tmp_path), odd, short=False) == []
