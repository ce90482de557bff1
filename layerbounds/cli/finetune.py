"""``layerbounds finetune``: a model is trained while its layers are quantized and pruned, on a schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from layerbounds.cli.console import result_console, said_warnings
from layerbounds.cli.models import (
    BatchSizeOption,
    DataOption,
    DeviceOption,
    DivideOption,
    KeyOption,
    LayersOption,
    LimitOption,
    MeanOption,
    ModelOption,
    PreprocessOption,
    StdOption,
    WeightsOption,
    model_files,
    read_inputs,
)
from layerbounds.cli.options import JsonOption, SeedOption, asked
from layerbounds.cli.outputs import check_outputs, deliver
from layerbounds.exceptions import InputError
from layerbounds.layers.layer_file import LayerFile
from layerbounds.progress import shown_bar
from layerbounds.report.files import STDOUT, write_json
from layerbounds.training.entry import finetune
from layerbounds.training.records import Finetuned
from layerbounds.training.schedule import Schedule
from layerbounds.training.settings import QUANTIZER_NAMES, RANGE_NAMES, Settings

if TYPE_CHECKING:
    from torch import Tensor


def finetune_command(
    context: typer.Context,
    model: ModelOption,
    data: DataOption,
    labels: Annotated[
        Path, typer.Option("--labels", metavar="FILE", help="Targets of the samples: .npy, .npz, safetensors.")
    ],
    schedule: Annotated[
        str,
        typer.Option(
            "--schedule", metavar="TEXT", help="What starts and ends when, e.g. 'prune@0.2:0.5 quantize@0.6'."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="State dict to write (safetensors).")],
    bits: Annotated[
        int | None, typer.Option("--bits", metavar="N", help="Quantize the weights to 2 to 8 bits.")
    ] = None,
    density: Annotated[
        float | None, typer.Option("--density", metavar="FRACTION", help="Prune: kept fraction of the inputs.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option("--pattern", metavar="HOW", help="Prune: unstructured (default), N:M or block:S.")
    ] = None,
    quantizer: Annotated[
        str, typer.Option("--quantizer", metavar="HOW", help=f"{', '.join(QUANTIZER_NAMES)}.")
    ] = Settings.quantizer,
    granularity: Annotated[
        str, typer.Option("--granularity", metavar="WHAT", help="Weights that share a scale: channel or tensor.")
    ] = Settings.granularity,
    activation_bits: Annotated[
        int | None, typer.Option("--activation-bits", metavar="N", help="Quantize the layers' inputs to 2 to 8 bits.")
    ] = None,
    activation_density: Annotated[
        float | None,
        typer.Option("--activation-density", metavar="FRACTION", help="Prune the layers' inputs: kept fraction."),
    ] = None,
    activation_ranges: Annotated[
        str, typer.Option("--activation-ranges", metavar="HOW", help=f"{', '.join(RANGE_NAMES)}.")
    ] = Settings.activation_ranges,
    activation_layers: Annotated[
        list[str] | None,
        typer.Option(
            "--activation-layers", metavar="PATTERN", help="Whose inputs; repeatable. Default: those of --layers."
        ),
    ] = None,
    weights: WeightsOption = None,
    layers: LayersOption = None,
    key: KeyOption = None,
    labels_key: Annotated[
        str | None,
        typer.Option("--labels-key", metavar="NAME", help="Array in the file of labels, if it holds several."),
    ] = None,
    holdout: Annotated[
        int, typer.Option("--holdout", metavar="N", help="Keep the last N samples apart and measure on them.")
    ] = 0,
    batch_size: BatchSizeOption = 64,
    limit: LimitOption = None,
    divide: DivideOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    preprocess: PreprocessOption = None,
    device: DeviceOption = None,
    epochs: Annotated[int, typer.Option("--epochs", metavar="N", help="Passes over the samples.")] = Settings.epochs,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", metavar="X", help="Of the weights, at the start.")
    ] = Settings.learning_rate,
    scale_rate: Annotated[
        float, typer.Option("--scale-rate", metavar="X", help="Of learned step sizes, at the start.")
    ] = Settings.scale_rate,
    distill: Annotated[
        float, typer.Option("--distill", metavar="X", help="Share of the loss towards the dense model's outputs.")
    ] = Settings.distill,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="X", help="By which these outputs are softened.")
    ] = Settings.temperature,
    keep_statistics: Annotated[
        bool, typer.Option("--keep-statistics", help="Do not count batch normalisation anew after the training.")
    ] = False,
    seed: SeedOption = 0,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="FILE", help="Go on from this file, and replace it after every epoch."),
    ] = None,
    log: Annotated[Path | None, typer.Option("--log", metavar="FILE", help="CSV: a row for every epoch.")] = None,
    original: Annotated[
        Path | None,
        typer.Option(
            "--original", metavar="FILE", help="Layer file of the dense model: errors of the trained weights on it."
        ),
    ] = None,
    json_out: JsonOption = None,
) -> None:
    """Train a model while its layers are quantized, pruned, or both, in the order that a schedule says."""
    check_outputs(
        {"--out": out, "--resume": resume, "--log": log, "--json": json_out},
        model_files(model, weights, data, preprocess) | {"--labels": labels, "--original": original},
    )
    plan = Schedule.parse(schedule)
    if holdout < 0:
        raise InputError(f"--holdout is {holdout}; pass a number of samples, or 0 for none.")
    # A layer file that is none must not cost a training.
    originals = None if original is None else LayerFile(original)
    inputs = read_inputs(
        model,
        weights,
        data,
        key=key,
        batch_size=batch_size,
        limit=limit,
        divide=divide,
        mean=mean,
        std=std,
        preprocess=preprocess,
        max_tokens=None,
        as_stored=True,
    )
    samples, targets = _samples(inputs.batches, labels, labels_key, limit)
    if holdout >= len(targets):
        raise InputError(f"--holdout is {holdout} of {len(targets)} samples; leave some to train on.")
    split = len(targets) - holdout
    with said_warnings(), shown_bar("train", None, "steps") as progress:
        result = finetune(
            inputs.model,
            (samples[:split], targets[:split]),
            plan,
            bits=bits,
            density=density,
            pattern=pattern,
            layers=layers,
            quantizer=quantizer,
            granularity=granularity,
            activation_bits=activation_bits,
            activation_density=activation_density,
            activation_ranges=activation_ranges,
            activation_layers=activation_layers,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            scale_rate=scale_rate,
            distill=distill,
            temperature=temperature,
            reestimate=not keep_statistics,
            validation=(samples[split:], targets[split:]) if holdout else None,
            seed=seed,
            device=device,
            checkpoint=resume,
            log=log,
            progress=progress,
        )
    errors = [] if originals is None else result.errors(originals)
    record: dict[str, Any] = {
        "out": str(out),
        "resumed": result.resumed,
        "history": result.history,
        "layers": _layer_rows(result, errors),
        "inputs": result.inputs,
        **inputs.provenance,
        "options": asked(context),
    }
    steps: list[Callable[[], None]] = [partial(_save, result, out)]
    if json_out is not None:
        steps.append(partial(write_json, json_out, record))
    if json_out != STDOUT:
        steps.append(partial(_print, record))
    deliver(steps)


def _samples(batches: Any, labels: Path, key: str | None, limit: int | None) -> tuple[Tensor, Tensor]:
    """All inputs, prepared as the model sees them, and their targets."""
    import torch

    from layerbounds.capturing.huggingface import TextBatches
    from layerbounds.capturing.samples import read_array

    if isinstance(batches, TextBatches):
        raise InputError(
            "training takes arrays of samples with labels, and the data are text; pass .npy or .npz files."
        )
    parts = list(batches)
    if not all(isinstance(part, torch.Tensor) for part in parts):
        raise InputError("--preprocess gives something else than tensors; training takes one tensor for each batch.")
    targets = torch.from_numpy(read_array(labels, key)[:limit].copy())
    if not targets.is_floating_point():
        targets = targets.long()
    samples = torch.cat(parts)
    if len(targets) != len(samples):
        raise InputError(f"{labels} has {len(targets)} labels for {len(samples)} samples; they must agree.")
    return samples, targets


def _layer_rows(result: Finetuned, errors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the training made of each layer, with its error on the original one where that is known."""
    known = {row["layer"]: row for row in errors}
    rows = []
    for name, layer in result.layers.items():
        row: dict[str, Any] = {
            "layer": name,
            "weight_shape": list(layer.weight_shape),
            "grid": None if layer.grid is None else layer.grid.label,
            "pattern": layer.pattern,
            "density": layer.density,
            "nonzero": layer.nonzero,
            "scale": None if layer.grid is None else layer.grid.scale,
        }
        rows.append({**row, **known.get(name, {})})
    return rows


def _save(result: Finetuned, out: Path) -> None:
    with said_warnings():
        result.save(out)


def _print(record: Mapping[str, Any]) -> None:
    last = record["history"][-1]
    figures = [f"{name.replace('_', ' ')} {last[name]:.4g}" for name in last if name.endswith(("loss", "accuracy"))]
    table = Table(
        title=f"{record['out']} · {last['epoch']} epochs · {' · '.join(figures)}",
        title_justify="left",
        title_style="",
        box=None,
        pad_edge=False,
    )
    scored = any("relative_error" in row for row in record["layers"])
    for name in ("layer", "allowed"):
        table.add_column(name)
    for name in ("weight", "nonzero %", *(["error %"] if scored else [])):
        table.add_column(name, justify="right")
    for row in record["layers"]:
        allowed = ", ".join(part for part in (row["grid"], row["pattern"]) if part is not None)
        error = row.get("relative_error")
        table.add_row(
            row["layer"],
            allowed,
            "x".join(map(str, row["weight_shape"])),
            f"{100 * row['nonzero']:.4g}",
            *(["–" if error is None else f"{100 * error:.4g}"] if scored else []),
        )
    result_console().print(table)
