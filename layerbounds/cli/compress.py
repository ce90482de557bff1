"""``layerbounds compress``: a whole model, layer by layer, with a certified interval for each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.table import Table

from layerbounds.capturing.entry import require_torch
from layerbounds.cli.bits import parse_choices
from layerbounds.cli.console import result_console, said_warnings
from layerbounds.cli.durations import duration_option
from layerbounds.cli.models import (
    BatchSizeOption,
    DataOption,
    DeviceOption,
    DivideOption,
    FoldOption,
    KeyOption,
    LayersOption,
    LimitOption,
    MaxTokensOption,
    MeanOption,
    ModelDtypeOption,
    ModelOption,
    PreprocessOption,
    StdOption,
    TargetsOption,
    WeightsOption,
    model_files,
    read_inputs,
)
from layerbounds.cli.options import (
    AxisOption,
    JobsOption,
    JsonOption,
    PatternOption,
    SeedOption,
    ShareOption,
    asked,
    parse_granularity,
    parse_share,
)
from layerbounds.cli.outputs import check_outputs, deliver
from layerbounds.compression.compress import compress
from layerbounds.compression.destinations.places import check_free
from layerbounds.compression.destinations.registry import DESTINATIONS, find_destination
from layerbounds.compression.outcome import CompressedModel
from layerbounds.exceptions import InputError
from layerbounds.layers.bias import Bias
from layerbounds.progress import shown_bar
from layerbounds.report.files import STDOUT, write_json


def compress_command(
    context: typer.Context,
    model: ModelOption,
    data: DataOption,
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="FILE", help="State dict to write (safetensors); with --format a folder, or a GGUF file."
        ),
    ],
    bits: Annotated[
        list[str] | None,
        typer.Option(
            "--bits",
            metavar="WHAT",
            help="Bits per weight, 1 to 8; PATTERN=N for some layers, 16 to leave them as they are (repeatable, the "
            "first that matches counts); TOOL:FILE for the choices in a file of another tool.",
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="NAME", help=f"Write what other software loads: {', '.join(DESTINATIONS)}."),
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option("--template", metavar="FILE", help="With --format gguf: a GGUF file of the model."),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option("--density", metavar="FRACTION", help="Prune: kept fraction of the inputs; with --bits, both."),
    ] = None,
    pattern: PatternOption = None,
    share: ShareOption = None,
    axis: AxisOption = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="See `layerbounds heuristics`; or solve. Default: gptq to quantize, obs to prune, obc for both.",
        ),
    ] = None,
    weights: WeightsOption = None,
    layers: LayersOption = None,
    key: KeyOption = None,
    batch_size: BatchSizeOption = 64,
    limit: LimitOption = None,
    divide: DivideOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    preprocess: PreprocessOption = None,
    max_tokens: MaxTokensOption = None,
    targets: TargetsOption = None,
    model_dtype: ModelDtypeOption = None,
    device: DeviceOption = None,
    granularity: Annotated[
        str | None, typer.Option("--granularity", metavar="WHAT", help="tensor, channel or a number of inputs.")
    ] = None,
    fit: Annotated[
        str | None, typer.Option("--range", metavar="HOW", help="mse (default) or another of `layerbounds ranges`.")
    ] = None,
    symmetric: Annotated[
        bool | None,
        typer.Option("--symmetric/--asymmetric", help="Without (default) or with an integer zero point."),
    ] = None,
    mask_only: Annotated[
        bool, typer.Option("--mask-only", help="Prune without re-optimising the kept weights.")
    ] = False,
    bias: Annotated[str, typer.Option("--bias", metavar="HOW", help="keep or refit.")] = "keep",
    fold: FoldOption = False,
    independent: Annotated[
        bool, typer.Option("--independent", help="Compress each layer for the dense inputs.")
    ] = False,
    no_intervals: Annotated[bool, typer.Option("--no-intervals", help="Leave out the certified intervals.")] = False,
    time_limit: Annotated[float, duration_option("--time-limit", "Search time per channel for the intervals.")] = 0.0,
    jobs: JobsOption = None,
    seed: SeedOption = 0,
    json_out: JsonOption = None,
) -> None:
    """Quantize or prune a model, or both at once, layer by layer, each behind the layers already compressed."""
    chosen = parse_choices(bits)
    files = model_files(model, weights, data, preprocess, targets) | {"--template": template, **_files(chosen)}
    if form is None or form.lower() == "gguf":
        check_outputs({"--out": out, "--json": json_out}, files)
        find_destination(form, template)
    else:
        check_outputs({"--json": json_out}, files, folders={"--out": out})
        find_destination(form, template)
        _check_directory(out, model, weights)
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
        max_tokens=max_tokens,
        model_dtype=model_dtype,
        targets=targets,
        device=device,
        # What is written is as large as what was read.
        as_stored=True,
    )
    with said_warnings(), shown_bar("compress", None, "layers") as progress:
        result = compress(
            inputs.model,
            inputs.batches,
            method,
            bits=chosen,
            density=density,
            pattern=pattern,
            share=parse_share(share),
            axis=axis,
            layers=layers,
            granularity=parse_granularity(granularity),
            symmetric=symmetric,
            range=fit,
            refit=not mask_only,
            bias=cast(Bias, bias),
            sequential=not independent,
            intervals=not no_intervals,
            time_limit=time_limit,
            jobs=jobs,
            seed=seed,
            fold_batchnorm=fold,
            format=form,
            template=template,
            device=device,
            progress=progress,
        )
    rows = [outcome.to_dict() for outcome in result.layers.values()]
    for row in rows:
        if (weight := result.quantized.get(row["layer"])) is not None:
            row["bits_per_weight"] = weight.bits_per_weight
    if result.unreached:
        print("warning: never reached, and not compressed:", ", ".join(result.unreached), file=sys.stderr)
    for reason in dict.fromkeys(result.left.values()):
        names = [name for name, own in result.left.items() if own == reason]
        print(f"note: left as they are ({reason}): {', '.join(names)}", file=sys.stderr)
    record: dict[str, Any] = {
        "out": str(out),
        "method": result.method,
        "interrupted": result.interrupted,
        "layers": rows,
        "unreached": list(result.unreached),
        "refused": result.refused,
        "left": result.left,
        "folded_batchnorm": result.folded,
        **inputs.provenance,
        "options": asked(context),
    }
    steps: list[Callable[[], None]] = [partial(_save, result, out)]
    if json_out is not None:
        steps.append(partial(write_json, json_out, record))
    if json_out != STDOUT:
        steps.append(lambda: result_console().print(_table(rows, f"{out} · {result.method}")))
    deliver(steps)
    if result.interrupted:
        raise typer.Exit(130)


def _save(result: CompressedModel, out: Path) -> None:
    with said_warnings():
        result.save(out)


def _files(chosen: Any) -> dict[str, Path]:
    """The file that --bits names, if it does."""
    return {"--bits": Path(chosen.partition(":")[2])} if isinstance(chosen, str) else {}


def _check_directory(out: Path, model: str, weights: Path | None) -> None:
    """Refuse before the model is loaded what cannot be written in the end."""
    require_torch()
    from layerbounds.capturing.huggingface import is_model_directory

    if not is_model_directory(Path(model)):
        raise InputError("this format writes a directory like that of the model; pass one as --model.")
    if weights is not None:
        raise InputError("this format copies what is not compressed from the model directory; leave out --weights.")
    check_free(out)


def _table(rows: list[dict[str, Any]], title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False)
    table.add_column("layer")
    for name in ("weight", "error %", "loaded %", "lower %", "upper %", "time s"):
        table.add_column(name, justify="right")
    for row in rows:
        names = ("error", "loaded_error", "lower_bound", "upper_bound")
        shares = (row[f"relative_{name}"] for name in names)
        table.add_row(
            row["layer"],
            "x".join(map(str, row["weight_shape"])),
            *("–" if share is None else f"{100 * share:.4g}" for share in shares),
            f"{row['seconds']:.2f}",
        )
    return table
