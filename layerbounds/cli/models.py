"""Options that say which model runs on which data, and their reading; shared by `capture` and `compress`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerbounds.capturing.entry import require_torch
from layerbounds.capturing.hashing import file_hash
from layerbounds.capturing.objects import load_object
from layerbounds.capturing.samples import read_array
from layerbounds.checkpoints.gguf.container import located
from layerbounds.cli.console import said_warnings
from layerbounds.exceptions import InputError

if TYPE_CHECKING:
    from torch import nn

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="WHAT",
        help="module:factory, file.py:factory, a model directory (config.json, safetensors), a GGUF or ONNX file.",
    ),
]
DataOption = Annotated[
    Path, typer.Option("--data", metavar="FILE", help="Samples: .npy, .npz, safetensors; a text file for text models.")
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="State dict of the factory's model: safetensors, an index of shards, a folder, plain .pt.",
    ),
]
KeyOption = Annotated[
    str | None, typer.Option("--key", metavar="NAME", help="Array in the data file, if it holds several.")
]
LayersOption = Annotated[
    list[str] | None,
    typer.Option("--layers", metavar="PATTERN", help="Name, its unique end, glob or re:…; repeatable. Default: all."),
]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", metavar="N", help="Samples in a batch.")]
LimitOption = Annotated[int | None, typer.Option("--limit", metavar="N", help="Use only the first N samples.")]
DivideOption = Annotated[float | None, typer.Option("--divide", metavar="X", help="Divide samples by this first.")]
MeanOption = Annotated[
    str | None, typer.Option("--mean", metavar="LIST", help="Then subtract this: one value, or one per channel.")
]
StdOption = Annotated[str | None, typer.Option("--std", metavar="LIST", help="Then divide by this, likewise.")]
PreprocessOption = Annotated[
    str | None,
    typer.Option("--preprocess", metavar="WHAT", help="module:function from samples to model input, instead of these."),
]
MaxTokensOption = Annotated[
    int | None, typer.Option("--max-tokens", metavar="N", help="Tokens of a line of text at most; default: 512.")
]
TargetsOption = Annotated[
    Path | None,
    typer.Option(
        "--targets", metavar="FILE", help="Text that a decoder is to write, a line for each line of the --data."
    ),
]
ModelDtypeOption = Annotated[
    str | None,
    typer.Option(
        "--model-dtype",
        metavar="NAME",
        help="In which a model directory computes: float32, float16, bfloat16, float64, or stored.",
    ),
]
DeviceOption = Annotated[str | None, typer.Option("--device", metavar="NAME", help="Where the model runs: cpu, cuda.")]
FoldOption = Annotated[
    bool, typer.Option("--fold-batchnorm", help="Fold batch normalisation into the layers before it.")
]


#: Tokens of a line of text at most, by default.
MAX_TOKENS = 512


@dataclass(frozen=True)
class Inputs:
    """A model, its batches, and where they come from."""

    model: nn.Module
    batches: Sequence[Any]
    provenance: dict[str, Any]


def is_onnx(model: str) -> bool:
    """Whether ``--model`` names an ONNX file."""
    return model.endswith(".onnx")


def model_files(
    model: str, weights: Path | None, data: Path, preprocess: str | None, targets: Path | None = None
) -> dict[str, Path | None]:
    """The files and folders that `read_inputs` reads, by option."""
    factories = {"--model": model, "--preprocess": preprocess or ""}
    # A factory is written file.py:name; the file may have colons of its own.
    code = {option: Path(text.rpartition(":")[0] or text) for option, text in factories.items() if text}
    whole = Path(model)
    return (
        code
        | ({"--model": whole} if whole.exists() else {})
        | {
            "--weights": weights,
            "--data": data,
            "--targets": targets,
        }
    )


def read_inputs(
    model: str,
    weights: Path | None,
    data: Path,
    *,
    key: str | None,
    batch_size: int,
    limit: int | None,
    divide: float | None,
    mean: str | None,
    std: str | None,
    preprocess: str | None,
    max_tokens: int | None,
    model_dtype: str | None = None,
    targets: Path | None = None,
    device: str | None = None,
    as_stored: bool = False,
) -> Inputs:
    """Load what the options name; ``as_stored`` keeps the type of a model directory where ``model_dtype`` is None.

    Raises
    ------
    InputError
        If an option is wrong, or says something about data of the other kind, text or arrays.
    """
    require_torch()
    from layerbounds.capturing.checks import read_device
    from layerbounds.capturing.gguf_model import load_gguf
    from layerbounds.capturing.huggingface import STORED, TextBatches, is_model_directory, load_for_capture
    from layerbounds.capturing.loading import ArrayBatches, build_model, load_weights

    if limit is not None and limit < 1:
        raise InputError(f"the limit is {limit}; pass a positive number of samples.")
    if is_onnx(model):
        raise InputError(f"{model} is an ONNX model, which capture reads and compress does not; pass one of PyTorch.")
    folder = Path(model)
    gguf = located(folder)
    if model_dtype is not None and (gguf is not None or not is_model_directory(folder)):
        raise InputError(
            "--model-dtype is about model directories; a GGUF file runs in float32, and a factory chooses the type of "
            "its model."
        )
    text = data.suffix not in (".npy", ".npz", ".safetensors")
    about_arrays = {"--key": key, "--divide": divide, "--mean": mean, "--std": std, "--preprocess": preprocess}
    for option, value in (about_arrays if text else {"--max-tokens": max_tokens, "--targets": targets}).items():
        if value is not None:
            raise InputError(
                f"{option} is about {'arrays' if text else 'text'}, and {data} is read as "
                f"{'text' if text else 'an array'}; leave it out."
            )
    sources: dict[str, Any] = {"model": model}
    # The data are read first: a mistyped name there must not cost the loading of a large model.
    batches: Sequence[Any]
    if text:
        if gguf is None and not is_model_directory(folder):
            raise InputError(
                f"{data} is read as text, which needs the tokenizer of a model directory; pass a .npy, .npz or "
                "safetensors file, or a directory or GGUF file as --model."
            )
        if not data.is_file():
            raise InputError(f"{data} does not exist or is not a file; check the path.")
        batches = TextBatches(
            folder if gguf is None else gguf,
            data,
            batch_size,
            limit,
            MAX_TOKENS if max_tokens is None else max_tokens,
            targets,
        )
        samples = len(batches.lines)
    else:
        array = read_array(data, key)
        array = array[:limit] if array.ndim else array
        batches = ArrayBatches(
            array,
            batch_size,
            divide=divide,
            mean=parse_numbers(mean, "--mean"),
            std=parse_numbers(std, "--std"),
            preprocess=None if preprocess is None else load_object(preprocess, "--preprocess"),
        )
        samples = len(array)
    if gguf is not None:
        with said_warnings():
            network = load_gguf(gguf)
        sources["model_sha256"] = file_hash(gguf)
    elif is_model_directory(folder):
        with said_warnings():
            network, about = load_for_capture(
                folder, STORED if model_dtype is None and as_stored else model_dtype, read_device(device)
            )
        sources |= {"model_sha256": file_hash(folder), **about}
        if "stored_dtype" in about:
            print(
                f"note: the model is stored in {about['stored_dtype']} and runs in {about['model_dtype']}, which holds "
                "its weights exactly and is fast on a CPU; --model-dtype stored runs it as it is",
                file=sys.stderr,
            )
    elif folder.is_dir():
        raise InputError(f"{folder} is a folder without config.json; pass a model directory or module:factory.")
    else:
        network = build_model(model)
    if weights is not None:
        notes = load_weights(network, weights)
        sources |= {"weights": weights.name or weights.resolve().name, "weights_sha256": file_hash(weights)}
        if notes:
            sources["weights_notes"] = notes
            print(f"note: {weights}: {'; '.join(notes)}", file=sys.stderr)
    if isinstance(batches, TextBatches):
        batches.check(network)
    sources |= {"data": data.name, "data_sha256": file_hash(data), "data_samples": samples}
    if targets is not None:
        sources |= {"targets": targets.name, "targets_sha256": file_hash(targets)}
    if key is not None:
        sources["data_key"] = key
    for name, value in (("divide", divide), ("mean", mean), ("std", std), ("preprocess", preprocess)):
        if value is not None:
            sources[name] = value
    return Inputs(network, batches, {"source": sources})


def parse_numbers(text: str | None, what: str) -> list[float] | None:
    """Read numbers separated by commas."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{what} is {text!r}; write numbers separated by commas.") from None
