"""A thing of another kind than the one that is wanted: the message says what it is, and which call makes the other."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.mistaken import _DO, instead, kind_of

LAYER = lb.Layer(np.eye(2), np.eye(2), "fc")
LAYERS = {"fc": LAYER}
PROBLEM = lb.quantization_problem(LAYER, 2)
SOLUTION = lb.solve(PROBLEM, time_limit=1.0, jobs=1)

CALLS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "solve, layer": (lambda: lb.solve(LAYER), ("problem is a layer, 'fc'", "quantization_problem(layer, bits=4)")),  # type: ignore[arg-type]
    "solve, layers": (lambda: lb.solve(LAYERS), ("a mapping of layers", "layers['fc']", "run(layers")),  # type: ignore[arg-type]
    "solve, list": (lambda: lb.solve([LAYER]), ("a list of layers", "layers[0]")),  # type: ignore[arg-type]
    "solve, file": (lambda: lb.solve("a.safetensors"), ("a text, 'a.safetensors'", "load_layers(path)")),  # type: ignore[arg-type]
    "solve, path": (lambda: lb.solve(Path("a")), ("a path, 'a'", "load_layers(path)")),  # type: ignore[arg-type]
    "solve, array": (lambda: lb.solve(np.eye(2)), ("an array", "Layer.from_activations(weight, inputs)")),  # type: ignore[arg-type]
    "solve, solution": (lambda: lb.solve(SOLUTION), ("a solution", "solution.problem")),  # type: ignore[arg-type]
    "heuristic, layer": (lambda: lb.run_heuristic("rtn", LAYER), ("a layer", "quantization_problem")),  # type: ignore[arg-type]
    "yardsticks, layer": (lambda: lb.yardsticks(LAYER), ("a layer", "quantization_problem")),  # type: ignore[arg-type]
    "evaluate, layer": (lambda: lb.evaluate(LAYER, np.eye(2)), ("a layer", "quantization_problem")),  # type: ignore[arg-type]
    "evaluate, weights": (lambda: lb.evaluate(PROBLEM, SOLUTION), ("a solution", "solution.weights")),  # type: ignore[arg-type]
    "compare, problem": (lambda: lb.compare(PROBLEM, 2), ("layer is a problem", "problem.layer")),  # type: ignore[arg-type]
    "compare, layers": (lambda: lb.compare(LAYERS, 2), ("a mapping of layers", "layers['fc']")),  # type: ignore[arg-type]
    "versus, file": (lambda: lb.versus("a.safetensors"), ("a text", "load_layers(path)['NAME']")),  # type: ignore[arg-type]
    "contest, array": (lambda: lb.contest(np.eye(2), [2]), ("an array", "from_activations")),  # type: ignore[arg-type]
    "order_gap, problem": (lambda: lb.order_gap(PROBLEM, 2, k=1), ("a problem", "problem.layer")),  # type: ignore[arg-type]
    "problem of a problem": (lambda: lb.pruning_problem(PROBLEM, k=1), ("a problem", "problem.layer")),  # type: ignore[arg-type]
    "run, problem": (lambda: lb.run(PROBLEM, out="run", bits=2), ("layers is a problem", "[problem.layer]")),  # type: ignore[arg-type]
    "save_layers, layer": (lambda: lb.save_layers("a", LAYER), ("layers is a layer", "[layer]")),  # type: ignore[arg-type]
    "save_layers, turned round": (lambda: lb.save_layers([LAYER], "a"), ("layers is a text", "load_layers(path)")),  # type: ignore[arg-type]
    "load_layers, layers": (lambda: lb.load_layers(LAYERS), ("path is a mapping of layers", "save_layers")),  # type: ignore[arg-type]
    "load_solution, solution": (lambda: lb.load_solution(SOLUTION), ("path is a solution", "save(path)")),  # type: ignore[arg-type]
    "write_report, folder": (lambda: lb.write_report("run"), ("run is a text, 'run'", "load_run(path)")),  # type: ignore[arg-type]
    "allocate, layers": (lambda: lb.allocate(LAYERS), ("run is a mapping of layers", "run(layers, out='run'")),  # type: ignore[arg-type]
    "Layer, layer": (lambda: lb.Layer(LAYER, np.eye(2)), ("weight is a layer", "layer.weight")),  # type: ignore[arg-type]
}


def check(call: Callable[[], Any], words: tuple[str, ...]) -> None:
    with pytest.raises(lb.LayerboundsError) as found:
        call()
    text = str(found.value)
    assert "\n" not in text and text.endswith(".")
    assert all(word in text for word in words), text


@pytest.mark.parametrize("name", CALLS)
def test_message(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check(*CALLS[name])


def test_certificates_are_files() -> None:
    report = lb.verify(SOLUTION)
    assert not report and report.reason == "a Solution is no path of a file; pass that of a certificate."


def test_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(2, 2)
    captured = lb.capture(model, [torch.eye(2)])
    for call, words in (
        (lambda: lb.solve(model), ("problem is a torch module", "capture(model, batches)")),
        (lambda: lb.solve(model.weight), ("an array", "from_activations")),
        (lambda: lb.solve(captured), ("captured layers", "layers['")),
        (lambda: lb.run(model, out="run", bits=2), ("layers is a torch module", "capture(model, batches)")),
        (lambda: lb.compare(model, 2), ("layer is a torch module", "capture(model, batches)['NAME']")),
        (lambda: lb.Layer(model, np.eye(2)), ("weight is a torch module", "module.weight")),
        (lambda: lb.capture("model", []), ("model is 'model'", "no folder with a config.json", "a module")),
        (lambda: lb.compress("model", []), ("model is a text, 'model'", "from_pretrained")),  # type: ignore[arg-type]
        (lambda: lb.capture(model.state_dict(), []), ("a state dict", "load_state_dict")),
        (lambda: lb.compress(captured, []), ("captured layers", "captured already")),  # type: ignore[arg-type]
    ):
        check(call, words)


def test_what_is_no_mistake() -> None:
    assert kind_of(None) is None and kind_of(lb.Layer) is None and kind_of({}) is None and kind_of([]) is None
    assert instead("problem", 3) is None and instead("layers", LAYERS) is None and instead("array", np.eye(2)) is None
    # No word is lost where a name is long, or not printable.
    assert instead("problem", "a" * 1000) == instead("problem", "a\nb")


def test_calls_that_are_named_exist() -> None:
    named = {name for text in _DO.values() for name in re.findall(r"(?<![.\w])([a-zA-Z]\w+)\(", text)}
    methods = {"save", "save_certificate"}
    assert named - methods <= set(lb.__all__)
