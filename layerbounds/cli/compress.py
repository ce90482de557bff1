"""``layerbounds compress``: a whole model, layer by layer, with a certified interval for each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.table import Table

from layerbounds.cli.console import batch_progress, result_console, said_warnings
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
    ModelOption,
    PreprocessOption,
    StdOption,
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
from layerbounds.compression.outcome import CompressedModel, LayerOutcome
from layerbounds.layers.bias import Bias
from layerbounds.report.files import STDOUT, write_json


def compress_command(
    context: typer.Context,
    model: ModelOption,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="State dict to write (safetensors).")],
    bits: Annotated[int | None, typer.Option("--bits", metavar="N", help="Bits per weight, 1 to 8.")] = None,
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
    check_outputs(
        {"--out": out, "--json": json_out},
        model_files(model, weights, data, preprocess),
    )
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
    )
    with said_warnings(), batch_progress("compress", "layers") as progress:

        def advance(done: int, total: int, _: LayerOutcome) -> None:
            if progress is not None:
                progress(done, total)

        result = compress(
            inputs.model,
            inputs.batches,
            method,
            bits=bits,
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
            device=device,
            progress=advance,
        )
    rows = [outcome.to_dict() for outcome in result.layers.values()]
    if result.unreached:
        print("warning: never reached, and not compressed:", ", ".join(result.unreached), file=sys.stderr)
    record: dict[str, Any] = {
        "out": str(out),
        "method": result.method,
        "interrupted": result.interrupted,
        "layers": rows,
        "unreached": list(result.unreached),
        "refused": result.refused,
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
    from layerbounds.capturing.loading import save_state

    with said_warnings():
        save_state(out, result.state_dict, list(result.layers))


def _table(rows: list[dict[str, Any]], title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False)
    table.add_column("layer")
    for name in ("weight", "error %", "lower %", "upper %", "time s"):
        table.add_column(name, justify="right")
    for row in rows:
        shares = (row["relative_error"], row["relative_lower_bound"], row["relative_upper_bound"])
        table.add_row(
            row["layer"],
            "x".join(map(str, row["weight_shape"])),
            *("–" if share is None else f"{100 * share:.4g}" for share in shares),
            f"{row['seconds']:.2f}",
        )
    return table
