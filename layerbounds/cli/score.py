"""``layerbounds score``: a quantized checkpoint beside the certified best."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

import typer

import layerbounds
from layerbounds.cli.console import fits, result_console, said_warnings
from layerbounds.cli.durations import duration_option
from layerbounds.cli.options import (
    BackendOption,
    InputOption,
    JobsOption,
    JsonOption,
    SeedOption,
    asked,
    parse_channels,
    parse_names,
    read_layers,
)
from layerbounds.cli.outputs import check_outputs, deliver
from layerbounds.exceptions import InputError
from layerbounds.layers.bias import Bias
from layerbounds.names import match_names
from layerbounds.progress import shown_bar
from layerbounds.report.files import STDOUT, write_json
from layerbounds.report.scores import score_lines, score_table
from layerbounds.report.scores_plot import plot_scores
from layerbounds.scheduling.choice import AUTO
from layerbounds.scoring.records import Scores
from layerbounds.scoring.score import score


def score_command(
    context: typer.Context,
    checkpoint: Annotated[
        Path,
        typer.Option(
            "--checkpoint", metavar="PATH", help="Quantized checkpoint: a folder, a safetensors or GGUF file."
        ),
    ],
    input_file: InputOption = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer", metavar="LIST", help="Captured layers: names, unique ends of them, or patterns; repeatable."
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All layers that both files have (default).")] = False,
    scale: Annotated[
        str, typer.Option("--scale", metavar="own|free", help="free: beside the best of any scales, too.")
    ] = "own",
    original: Annotated[
        Path | None,
        typer.Option(
            "--original",
            metavar="PATH",
            help="The dense model: its norms tell which scales were folded into those of the checkpoint.",
        ),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            "--map",
            metavar="FILE",
            help="The checkpoint's names of captured layers: a JSON object, or two columns, the captured name first.",
        ),
    ] = None,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Estimate factors that moved between two linear layers from the lengths of rows, instead of refusing.",
        ),
    ] = False,
    channels: Annotated[
        str | None,
        typer.Option("--channels", metavar="SLICES", help="Output channels, e.g. 0:8 or 0,3,5:7; default: all."),
    ] = None,
    bias: Annotated[
        str, typer.Option("--bias", metavar="HOW", help="keep, or refit: biases are re-fitted with the weights.")
    ] = "keep",
    backend: BackendOption = AUTO,
    time_limit: Annotated[
        float | None, duration_option("--time-limit", "Search time per channel; default: what --total-time gives.")
    ] = None,
    total_time: Annotated[
        float | None, duration_option("--total-time", "Search time for each layer and question; default: 30.")
    ] = None,
    gap: Annotated[
        float, typer.Option("--gap", metavar="FRACTION", help="Stop a channel at this (upper - lower)/upper.")
    ] = 0.0,
    node_limit: Annotated[
        int | None, typer.Option("--node-limit", metavar="N", help="Nodes per channel; makes runs reproducible.")
    ] = None,
    jobs: JobsOption = None,
    seed: SeedOption = 0,
    json_out: JsonOption = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="OUT", help="Draw the distances from optimal (.svg, .png or .pdf).")
    ] = None,
) -> None:
    """Say how far the weights of a quantized checkpoint are from the best on their own grid, and at any scales."""
    if every and layer is not None:
        raise InputError("--all and --layer say different things; pass one of them.")
    check_outputs(
        {"--json": json_out, "--plot": plot},
        {"--checkpoint": checkpoint, "--input": input_file, "--original": original, "--map": names},
    )
    layers = read_layers(input_file)
    asked_for = None if layer is None else [name for text in layer for name in parse_names(text)]
    selected = None if asked_for is None else match_names(asked_for, list(layers), "captured layer")
    rows = None
    if channels is not None:
        of = [layers[name].out_features for name in (selected or layers)]
        rows = parse_channels(channels, min(of))
    with said_warnings(), shown_bar(str(checkpoint), None, "layers") as bar:
        result = score(
            checkpoint,
            layers,
            selected,
            scale=scale,
            original=original,
            names=names,
            estimate=estimate,
            bias=cast(Bias, bias),
            channels=rows,
            time_limit=time_limit,
            total_time=total_time,
            gap=gap,
            node_limit=node_limit,
            backend=backend,
            jobs=jobs,
            seed=seed,
            progress=bar,
        )
    options = {**asked(context), "channels": rows}
    _deliver(result, options, json_out, plot)
    if result.interrupted:
        raise typer.Exit(130)


def _deliver(result: Scores, options: dict[str, Any], json_out: str | None, plot: Path | None) -> None:
    """Write and print the results."""

    def save_json() -> None:
        if json_out is not None:
            record = {"layerbounds": layerbounds.__version__, **result.to_dict()}
            write_json(json_out, {**record, "options": options})

    def draw() -> None:
        if plot is not None and len(result):
            plot_scores(result, plot)

    def print_table() -> None:
        console = result_console()
        if len(result):
            table = score_table(result)
            console.print(table if fits(console, table) else score_table(result, compact=True))
        for line in score_lines(result):
            console.print(line, soft_wrap=not console.is_terminal)
        if result.interrupted:
            console.print("interrupted: what is shown holds; the rest was not computed")

    steps: list[Callable[[], None]] = [save_json, draw]
    if json_out != STDOUT:
        steps.append(print_table)
    deliver(steps)
