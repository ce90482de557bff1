"""Whole solutions in one safetensors file: the problem, the intervals, the weights (schema: docs/certificates.md)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.layers.layer import Layer, as_layer
from layerbounds.layers.sealed_files import SealedFormat, digest
from layerbounds.layers.stored import restored_layer, stored_layer
from layerbounds.problems.problem import Problem
from layerbounds.problems.stored import PREFIX, restored_problem, schema_of, stored_problem
from layerbounds.proofs import BoundKind, Status, TracePoint
from layerbounds.version import __version__

#: Schema 2 has offsets of grids, and scales of 0.
SOLUTIONS = SealedFormat("solution", "solution", 2, "Solution.save")

#: Arrays of a solution, with their types.
_ARRAYS: dict[str, type[np.generic]] = {
    "channels": np.int64,
    "lower_bound": np.float64,
    "upper_bound": np.float64,
    "weights": np.float64,
    "claimed_lower_bound": np.float64,
    "energy": np.float64,
    "seconds": np.float64,
    "nodes": np.int64,
}
#: Plain values of a solution; lists have an entry for each set of rows.
_PLAIN = (
    "status",
    "bound_kind",
    "lower_backend",
    "upper_backend",
    "backend",
    "interrupted",
    "certified_trace",
    "preparation_seconds",
)
_PER_SET = ("status", "bound_kind", "lower_backend", "upper_backend")


def write_solution(
    path: str | os.PathLike[str],
    values: Mapping[str, Any],
    *,
    by_hash: bool,
    tensors: Mapping[str, NDArray[Any]] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a solution.

    Parameters
    ----------
    path : path-like
    values : mapping
        The fields of a `layerbounds.Solution`.
    by_hash : bool
        Whether of the layer's arrays only their SHA-256 is stored.
    tensors : mapping, optional
        Of its proofs.
    about : mapping, optional
        What the metadata say of them.
    """
    problem: Problem = values["problem"]
    layer = problem.layer
    of_layer, about_layer = stored_layer(layer)
    stored, about_problem = stored_problem(problem)
    stored |= {f"solution.{name}": np.asarray(values[name], dtype=kind) for name, kind in _ARRAYS.items()}
    stored |= _traces(values["trace"])
    stored |= dict(tensors or {})
    if by_hash:
        about_layer["sha256"] = {name: digest({name: array}, "") for name, array in of_layer.items()}
    else:
        stored |= of_layer
    said = {
        "layerbounds": __version__,
        "layer": about_layer,
        "problem": {**about_problem, "label": problem.label, "fingerprint": problem.fingerprint()},
        "intervals": {name: _plain(values[name]) for name in _PLAIN},
        "sets": values["sets"],
        "notes": {str(channel): list(notes) for channel, notes in values["notes"].items()},
        **(about or {}),
    }
    SOLUTIONS.write(path, stored, said, schema_of(problem))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [str(entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else value


def _traces(traces: list[list[TracePoint]]) -> dict[str, NDArray[Any]]:
    points = [point for trace in traces for point in trace]
    return {
        "solution.trace": np.array([[p.seconds, p.lower, p.upper] for p in points], dtype=np.float64).reshape(-1, 3),
        "solution.trace_nodes": np.array([p.nodes for p in points], dtype=np.int64),
        "solution.trace_length": np.array([len(trace) for trace in traces], dtype=np.int64),
    }


def read_solution(path: str | os.PathLike[str], layer: Layer | None) -> dict[str, Any]:
    """The fields of the solution in a file; see `layerbounds.load_solution`."""
    if layer is not None:
        as_layer(layer)
    tensors, about = read_sealed(path)
    try:
        return _fields(tensors, about, layer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).rstrip(".") if isinstance(error, InputError) else f"a part is missing or odd: {error!r}"
        raise FileFormatError(
            f"{path} holds no whole solution ({reason.removesuffix('; write the file again')})."
        ) from error


def read_sealed(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Tensors and metadata of a file, after a look at its version and its digest.

    Raises
    ------
    FileFormatError
        If it is no file of a solution, of a newer version, or damaged.
    """
    return SOLUTIONS.read(path)


def _fields(tensors: Mapping[str, NDArray[Any]], about: Mapping[str, Any], layer: Layer | None) -> dict[str, Any]:
    said = about["layer"]
    if "sha256" in said:
        layer = _given_layer(said, layer)
    elif layer is not None:
        raise InputError("it holds its layer; leave out layer")
    else:
        layer = restored_layer(tensors, said)
    own = {name: array for name, array in tensors.items() if name.startswith(PREFIX)}
    problem = restored_problem(layer, own, about["problem"])
    if problem.fingerprint() != about["problem"]["fingerprint"]:
        raise InputError("its problem is not the one that it was about")
    values: dict[str, Any] = {name: tensors[f"solution.{name}"].astype(kind) for name, kind in _ARRAYS.items()}
    channels = values["channels"].tolist()
    sets = problem.sets(channels)
    if sets != about["sets"]:
        raise InputError("its sets of rows are not those of its problem")
    values |= {"problem": problem, "channels": channels, "sets": sets}
    for name in ("lower_bound", "upper_bound", "claimed_lower_bound", "energy", "seconds", "nodes"):
        _check_length(values[name], len(sets), name)
    if values["weights"].shape != (len(channels), *layer.weight.shape[1:]):
        raise InputError(f"its weights have shape {values['weights'].shape}")
    values |= {name: about["intervals"][name] for name in _PLAIN}
    for name in _PER_SET:
        _check_length(values[name], len(sets), name)
    values["status"] = [Status(word) for word in values["status"]]
    values["bound_kind"] = [BoundKind(word) for word in values["bound_kind"]]
    values["notes"] = {int(channel): tuple(notes) for channel, notes in about["notes"].items()}
    values["trace"] = _read_traces(tensors, len(sets))
    return values


def _check_length(values: Any, length: int, name: str) -> None:
    if len(values) != length:
        raise InputError(f"its {name} has {len(values)} entries for {length} sets of rows")


def _read_traces(tensors: Mapping[str, NDArray[Any]], sets: int) -> list[list[TracePoint]]:
    lengths = tensors["solution.trace_length"]
    _check_length(lengths, sets, "trace_length")
    points, nodes = tensors["solution.trace"], tensors["solution.trace_nodes"]
    _check_length(points, int(lengths.sum()), "trace")
    rows = [
        TracePoint(seconds, count, lower, upper)
        for (seconds, lower, upper), count in zip(points.tolist(), nodes.tolist(), strict=True)
    ]
    ends = np.cumsum(lengths).tolist()
    return [rows[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]


def _given_layer(said: Mapping[str, Any], layer: Layer | None) -> Layer:
    """The layer, if its arrays are those whose SHA-256 is stored."""
    if layer is None:
        raise InputError(f"it names the arrays of layer {said['name']!r} by their SHA-256 alone; pass layer")
    found = {name: digest({name: array}, "") for name, array in stored_layer(layer)[0].items()}
    for name in sorted(found.keys() | said["sha256"].keys()):
        if found.get(name) != said["sha256"].get(name):
            raise InputError(
                f"the {name.removeprefix('layer.')} of the layer that was passed is not the one it is about"
            )
    return layer
