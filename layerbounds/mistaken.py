"""What was passed instead of what is wanted, and the call that makes one of the other."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

#: What a function may want.
Wanted = Literal["problem", "layer", "layers", "model", "run", "array", "path"]

#: Classes of the package that get mixed up, by their own names or those of a base class, and how they are called. Names
#: rather than classes: what is wanted and what was passed are made in different places.
_CALLED = {
    "Layer": "a layer",
    "Grid": "a grid",
    "Problem": "a problem",
    "Solution": "a solution",
    "MethodComparison": "a comparison of methods",
    "NetworkRun": "a run",
    "Checkpoint": "a quantized checkpoint",
    "QuantizedWeight": "a quantized weight",
    "CapturedLayers": "captured layers",
    "CaptureReport": "the report of a capture",
    "CompressedModel": "a compressed model",
}
_LAYERS = ("captured layers", "a mapping of layers", "a list of layers")
_MODULE, _ARRAY, _PATH, _STATE = "a torch module", "an array", "a path", "a state dict"
#: Longer names and paths are not repeated.
LONGEST = 100

_MAKE = "quantization_problem(layer, bits=4), pruning_problem(layer, density=0.5) or joint_problem(…) of it"
_ONE_OF = "choose one, such as layers[{name!r}]"
_ALL = "or bound all of them with run(layers, out='run', bits=4)"

#: From what is wanted and what was passed to what to do.
_DO: dict[tuple[str, str], str] = {
    ("problem", "a layer"): f"say what its weights may be: pass {_MAKE}",
    ("problem", "a grid"): "pass quantization_problem(layer, grid=grid)",
    ("problem", "a solution"): "pass its problem, solution.problem",
    ("problem", "a run"): "pass quantization_problem(layer, bits=4) of one of its layers",
    ("problem", _ARRAY): "pass quantization_problem(Layer.from_activations(weight, inputs), bits=4), say",
    ("problem", _PATH): "read layers with load_layers(path), and pass quantization_problem(layer, bits=4), say",
    (
        "problem",
        _MODULE,
    ): "capture(model, batches) gives layers; pass quantization_problem(layer, bits=4) of one of them",
    ("problem", "a quantized checkpoint"): "call score(checkpoint, layers) with layers captured from the dense model",
    **{("problem", many): f"{_ONE_OF}, and pass {_MAKE}, {_ALL}" for many in _LAYERS},
    ("layer", "a problem"): "pass its layer, problem.layer",
    ("layer", "a solution"): "pass the layer of its problem, solution.problem.layer",
    ("layer", _ARRAY): "pass Layer.from_activations(weight, inputs), or Layer(weight, gram) with XᵀX/N of the inputs",
    ("layer", _PATH): "read it with load_layers(path)['NAME']",
    ("layer", _MODULE): "capture it: capture(model, batches)['NAME']",
    ("layer", "a quantized checkpoint"): "call score(checkpoint, layers) with layers captured from the dense model",
    **{("layer", many): f"{_ONE_OF}, {_ALL}" for many in _LAYERS},
    ("layers", "a layer"): "pass a list of layers, [layer]",
    ("layers", "a problem"): "pass a list of layers, [problem.layer]",
    ("layers", "a solution"): "pass a list of layers, [solution.problem.layer]",
    ("layers", _ARRAY): "pass [Layer.from_activations(weight, inputs)]",
    ("layers", _PATH): "pass what load_layers(path) returns",
    ("layers", _MODULE): "pass what capture(model, batches) returns",
    ("layers", "a quantized checkpoint"): "pass layers captured from the dense model, and the checkpoint to score",
    ("model", "a layer"): "it is captured already; pass quantization_problem(layer, bits=4) to solve, say",
    **{("model", many): "they are captured already; pass them to run, or one of them to compare" for many in _LAYERS},
    ("model", _PATH): "load it first, such as with AutoModel.from_pretrained(path) of transformers, or call "
    "`layerbounds capture --model PATH`",
    ("model", _STATE): "make the module, and let it load_state_dict this",
    ("model", "a compressed model"): "pass the dense model",
    ("run", _PATH): "pass load_run(path)",
    ("run", "a solution"): "pass what run(layers, out='run', bits=4) returns",
    ("run", "a layer"): "pass run([layer], out='run', bits=4)",
    **{("run", many): "pass run(layers, out='run', bits=4)" for many in _LAYERS},
    ("array", "a layer"): "pass its weights, layer.weight",
    ("array", "a solution"): "pass its weights, solution.weights",
    ("array", "a quantized weight"): "pass its values, weight.weight",
    ("array", "a problem"): "pass the weights of its layer, problem.layer.weight",
    ("array", _MODULE): "pass its weight, module.weight",
    ("path", "a layer"): "it is not in a file; save_layers(path, [layer]) writes it to one",
    (
        "path",
        "a solution",
    ): "it is not in a file; its methods save(path) and save_certificate(path) write it to one",
    ("path", "a run"): "pass its folder, run.folder.path",
    **{("path", many): "they are not in a file; save_layers(path, layers) writes them to one" for many in _LAYERS},
    ("path", _MODULE): "pass the path of a file, not a model",
}


def instead(wanted: Wanted, value: Any) -> str | None:
    """How an error message goes on after ``"problem is "``: what the value is, and what to do; None if it is no such.

    Parameters
    ----------
    wanted : {"problem", "layer", "layers", "model", "run", "array", "path"}
    value : object
        What was passed.
    """
    kind = kind_of(value)
    if kind is None or (wanted, kind) not in _DO:
        return None
    called = "a text" if isinstance(value, str) else kind
    return f"{called}{_which(kind, value)}; {_DO[wanted, kind].format(name=_first(value))}."


def kind_of(value: Any) -> str | None:
    """What people call a value that may be passed instead of another; None for all else."""
    if isinstance(value, type):
        return None
    for base in type(value).__mro__:
        if base.__module__.startswith("layerbounds") and base.__name__ in _CALLED:
            return _CALLED[base.__name__]
        if base.__module__.startswith("torch.nn") and base.__name__ == "Module":
            return _MODULE
        if (base.__module__.partition(".")[0], base.__name__) in (("numpy", "ndarray"), ("torch", "Tensor")):
            return _ARRAY
    if isinstance(value, (str, os.PathLike)):
        return _PATH
    if isinstance(value, Mapping):
        return _of_members(value.values(), "a mapping of layers", _STATE)
    return _of_members(value, "a list of layers", None) if isinstance(value, (list, tuple)) else None


def _of_members(values: Iterable[Any], layers: str, arrays: str | None) -> str | None:
    kinds = {kind_of(member) for member in values}
    if kinds == {"a layer"}:
        return layers
    return arrays if kinds == {_ARRAY} else None


def _which(kind: str, value: Any) -> str:
    """What tells a value from others of its kind."""
    name = os.fspath(value) if kind == _PATH else getattr(value, "name", None) if kind == "a layer" else None
    return f", {name!r}" if isinstance(name, str) and len(name) < LONGEST and name.isprintable() else ""


def _first(value: Any) -> str | int:
    """The key of one of several layers."""
    return next(iter(value)) if isinstance(value, Mapping) and value else 0
