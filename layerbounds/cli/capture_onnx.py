"""``layerbounds capture`` of ONNX models."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import typer

from layerbounds.capturing.files import write_capture
from layerbounds.capturing.hashing import file_hash
from layerbounds.capturing.objects import load_object
from layerbounds.capturing.onnx.model import OnnxGraph
from layerbounds.capturing.onnx.run import OnnxRun
from layerbounds.capturing.samples import SampleBatches, array_names, read_array
from layerbounds.cli.console import result_console, said_warnings
from layerbounds.cli.models import parse_numbers
from layerbounds.cli.options import asked
from layerbounds.cli.outputs import deliver
from layerbounds.exceptions import InputError
from layerbounds.progress import shown_bar
from layerbounds.report.files import STDOUT, write_json
from layerbounds.report.tables import layer_table


class NamedBatches(Sequence[Any]):
    """Batches of several arrays, one for each input of a model.

    Parameters
    ----------
    parts : mapping of str to SampleBatches
        Of one length.
    """

    def __init__(self, parts: Mapping[str, SampleBatches]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return min(map(len, self._parts.values()))

    def __getitem__(self, index: Any) -> Any:
        return {name: part[index] for name, part in self._parts.items()}

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))


def capture_onnx_model(
    context: typer.Context,
    model: Path,
    data: Path,
    out: Path,
    *,
    layers: list[str] | None,
    key: str | None,
    batch_size: int,
    limit: int | None,
    scaling: Mapping[str, str | float | None],
    preprocess: str | None,
    memory_limit: str | None,
    json_out: str | None,
    other: Mapping[str, Any],
) -> None:
    """Capture, write the layer file and say what was written.

    Parameters
    ----------
    scaling : mapping
        ``divide``, ``mean`` and ``std``, as they were given.
    other : mapping of str to object
        Options that only models of PyTorch have, by name; each must have no value.

    Raises
    ------
    InputError
        If an option is wrong, or not for ONNX models.
    """
    for option, value in other.items():
        if value:
            raise InputError(f"{option} is about models of PyTorch, and {model} is an ONNX model; leave it out.")
    if limit is not None and limit < 1:
        raise InputError(f"the limit is {limit}; pass a positive number of samples.")
    graph = OnnxGraph(model)
    batches, samples = _batches(graph, data, key, batch_size, limit, scaling, preprocess)
    source: dict[str, Any] = {"model": str(model), "model_sha256": file_hash(model)}
    source |= {"data": data.name, "data_sha256": file_hash(data), "data_samples": samples}
    given = {"data_key": key, **scaling, "preprocess": preprocess}
    source |= {name: value for name, value in given.items() if value is not None}
    with said_warnings(), shown_bar("capture", None, "batches") as progress:
        run = OnnxRun(
            graph,
            batches,
            layers,
            memory_limit=memory_limit,
            progress=progress,
            provenance={"source": source},
        )
        report, rows = write_capture(out, run)
    if report.other_parameters:
        names = ", ".join(report.other_parameters[:8]) + (", …" if len(report.other_parameters) > 8 else "")
        print("note: parameters that belong to no captured layer:", names, file=sys.stderr)
    record = {
        "out": str(out),
        "layers": rows,
        "batches": report.batches,
        "passes": report.passes,
        "gram_bytes": report.gram_bytes,
        "peak_bytes": report.peak_bytes,
        "unreached": list(report.unreached),
        "refused": report.refused,
        "other_parameters": list(report.other_parameters),
        "few_positions": report.few_positions,
        "options": asked(context),
    }
    steps: list[Callable[[], None]] = []
    if json_out is not None:
        steps.append(partial(write_json, json_out, record))
    if json_out != STDOUT:
        steps.append(lambda: result_console().print(layer_table(rows, str(out))))
    deliver(steps)


def _batches(
    graph: OnnxGraph,
    data: Path,
    key: str | None,
    batch_size: int,
    limit: int | None,
    scaling: Mapping[str, str | float | None],
    preprocess: str | None,
) -> tuple[Sequence[Any], int]:
    """Batches for a model, and how many samples there are."""
    if data.suffix not in (".npy", ".npz", ".safetensors"):
        raise InputError(
            f"{data} is read as text, for which an ONNX model has no tokenizer; pass token ids in a .npz file, one "
            "array for each input."
        )
    names = list(graph.inputs)
    if len(names) == 1:
        # An array of the input's name needs no --key.
        if key is None and data.suffix != ".npy" and names[0] in array_names(data):
            key = names[0]
        array = read_array(data, key)
        array = array[:limit] if array.ndim else array
        divide, mean, std = scaling["divide"], scaling["mean"], scaling["std"]
        assert not isinstance(divide, str) and not isinstance(mean, float) and not isinstance(std, float)
        return SampleBatches(
            array,
            batch_size,
            divide=divide,
            mean=parse_numbers(mean, "--mean"),
            std=parse_numbers(std, "--std"),
            preprocess=None if preprocess is None else load_object(preprocess, "--preprocess"),
        ), len(array)
    about_one = {"--key": key, **{f"--{name}": value for name, value in scaling.items()}, "--preprocess": preprocess}
    for option, value in about_one.items():
        if value is not None:
            raise InputError(f"{option} is about one array, and the model has the inputs {', '.join(names)}.")
    if data.suffix == ".npy":
        raise InputError(f"the model has the inputs {', '.join(names)}; pass a .npz file with an array for each.")
    arrays = {name: read_array(data, name) for name in names}
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        counted = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"the arrays of {data} have different numbers of samples: {counted}.")
    parts = {name: SampleBatches(array[:limit], batch_size) for name, array in arrays.items()}
    return NamedBatches(parts), min(lengths.values()) if limit is None else min(limit, *lengths.values())
