"""``layerbounds versus``: quantization against pruning, decided by certified intervals."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import typer

import layerbounds
from layerbounds.cli.bits import parse_bits
from layerbounds.cli.console import channel_progress, result_console
from layerbounds.cli.options import (
    BackendOption,
    InputOption,
    JsonOption,
    ZeroPointOption,
    asked,
    parse_channels,
    parse_granularity,
    read_layers,
)
from layerbounds.cli.outputs import FOLDER_FILES, check_outputs, deliver
from layerbounds.contests.contest import Rules
from layerbounds.contests.levels import Comparison
from layerbounds.contests.run import default_jobs, sample_channels, versus_layers
from layerbounds.exceptions import InputError
from layerbounds.layers.files import atomic_path, find_layer
from layerbounds.layers.layer import Layer
from layerbounds.problems.grids import Granularity
from layerbounds.report.files import STDOUT, write_json
from layerbounds.report.versus_plots import plot_comparison, plot_network
from layerbounds.report.versus_tables import comparison_table, network_markdown, network_table, rule, summary_lines
from layerbounds.scheduling.choice import AUTO


def versus_command(
    context: typer.Context,
    layer: Annotated[
        str | None, typer.Option("--layer", metavar="NAME", help="Its name, or the unique end of it; or --all.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All layers of the file.")] = False,
    bits: Annotated[
        str, typer.Option("--bits", metavar="LIST", help="Compressions, e.g. 2,3,4 or 2:8, which is 2 to 8.")
    ] = "2:8",
    input_file: InputOption = None,
    channels: Annotated[
        str | None, typer.Option("--channels", metavar="SLICES", help="With --layer: output channels, e.g. 0:8.")
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option("--channels-sample", metavar="N", help="At most N evenly spaced channels of each layer."),
    ] = None,
    granularity: Annotated[
        str, typer.Option("--granularity", metavar="WHAT", help="tensor, channel, or a number of inputs.")
    ] = "channel",
    fit: Annotated[
        str, typer.Option("--range", metavar="HOW", help="Scales: mse (default) or another of `layerbounds ranges`.")
    ] = "mse",
    symmetric: Annotated[
        bool, typer.Option("--symmetric/--asymmetric", help="Grids without or with zero point.")
    ] = True,
    scale: Annotated[
        str | None,
        typer.Option("--scale", metavar="free", help="Quantize at all scales instead of fitted ones."),
    ] = None,
    zero_point: ZeroPointOption = None,
    pattern: Annotated[
        str,
        typer.Option("--pattern", metavar="HOW", help="unstructured, block:S, or N:16 (bits of every 16 inputs)."),
    ] = "unstructured",
    mask_only: Annotated[bool, typer.Option("--mask-only", help="Kept weights are not re-optimised.")] = False,
    time_limit: Annotated[
        float,
        typer.Option("--time-limit", metavar="SECONDS", help="Per channel, compression and method, while undecided."),
    ] = 10.0,
    total_time: Annotated[
        float | None, typer.Option("--total-time", metavar="SECONDS", help="No more work begins after this.")
    ] = None,
    backend: BackendOption = AUTO,
    jobs: Annotated[int | None, typer.Option("--jobs", metavar="N", help="Threads in all; default: all cores.")] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of everything random.")] = 0,
    json_out: JsonOption = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="OUT", help="Draw the intervals (.svg, .png or .pdf).")
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--table", metavar="OUT", help="Write the table and its summary as Markdown.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for bounds while they come, from which an interrupted run goes on, and for versus.json, "
            "versus.md and versus.svg.",
        ),
    ] = None,
) -> None:
    """Decide whether quantization or pruning has the smaller error at equal bits: b bits against density b/16."""
    begin = time.perf_counter()
    check_outputs({"--json": json_out, "--plot": plot, "--table": table}, {"--input": input_file}, out)
    chosen_bits = parse_bits(bits)
    layers, selection = _select(input_file, layer, every, channels, sample)
    rules = Rules(
        cast(Granularity, parse_granularity(granularity)),
        fit,
        symmetric,
        pattern,
        not mask_only,
        backend,
        default_jobs(jobs),
        seed,
        scale,
        zero_point,
    )
    total = len(chosen_bits) * sum(len(selection[entry.name]) for entry in layers)
    title = layers[0].name if len(layers) == 1 else f"{len(layers)} layers"
    with channel_progress(title, total, unit="verdicts") as progress:
        comparisons = versus_layers(
            layers,
            chosen_bits,
            rules=rules,
            channels=selection,
            time_limit=time_limit,
            total_time=total_time,
            checkpoint=None if out is None else out / "checkpoint",
            progress=progress,
        )
    options = {**asked(context), "bits": chosen_bits, "jobs": rules.jobs}
    files: list[Files] = [(json_out, table, plot)]
    if out is not None:
        record, markdown, picture = (out / name for name in FOLDER_FILES)
        files.append((record, markdown, picture))
    seconds = time.perf_counter() - begin
    _deliver(comparisons, {**options, "seconds": seconds}, files)
    if comparisons[0].interrupted:
        raise typer.Exit(130)


def _select(
    input_file: Path | None, layer: str | None, every: bool, channels: str | None, sample: int | None
) -> tuple[list[Layer], dict[str, Sequence[int]]]:
    """The layers to compare and their channels."""
    if layer is None and not every:
        raise InputError("nothing says what is compared; pass --layer NAME or --all.")
    if layer is not None and every:
        raise InputError("pass either --layer NAME or --all, and not both.")
    if channels is not None and (every or sample is not None):
        raise InputError("--channels is for one layer and without --channels-sample; leave out one of them.")
    held = read_layers(input_file)
    layers = list(held.values()) if layer is None else [find_layer(held, layer)]
    selection: dict[str, Sequence[int]] = {}
    for entry in layers:
        if sample is not None:
            selection[entry.name] = sample_channels(entry.out_features, sample)
        else:
            given = parse_channels(channels, entry.out_features)
            selection[entry.name] = list(range(entry.out_features)) if given is None else given
    return layers, selection


#: Where JSON, table and picture go.
Files = tuple[str | Path | None, Path | None, Path | None]


def _deliver(comparisons: list[Comparison], options: dict[str, Any], files: list[Files]) -> None:
    """Write and print the results."""
    record = {
        "layerbounds": layerbounds.__version__,
        "options": options,
        "about": rule(comparisons[0]),
        "layers": [comparison.to_dict() for comparison in comparisons],
    }
    steps: list[Callable[[], None]] = []
    for json_out, table, picture in files:
        if json_out is not None:
            steps.append(partial(write_json, json_out, record))
        if table is not None:
            steps.append(partial(_write_table, comparisons, options, table))
        if picture is not None:
            steps.append(partial(_draw, comparisons, picture))
    if all(json_out != STDOUT for json_out, _, _ in files):
        steps.append(partial(_print, comparisons))
    deliver(steps)


def _write_table(comparisons: list[Comparison], options: dict[str, Any], path: Path) -> None:
    searched = sum(level.seconds for comparison in comparisons for level in comparison.levels)
    effort = (
        f"layerbounds {layerbounds.__version__}, time limit {options['time_limit']:g} s, {options['jobs']} threads, "
        f"{searched:.0f} s of search in all channels together."
    )
    lines = [network_markdown(comparisons), *(f"- {line}" for line in summary_lines(comparisons)), "", effort, ""]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def _draw(comparisons: list[Comparison], path: Path) -> None:
    if len(comparisons) == 1:
        plot_comparison(comparisons[0], path)
    else:
        plot_network(comparisons, path)


def _print(comparisons: list[Comparison]) -> None:
    console = result_console()
    if len(comparisons) == 1:
        console.print(comparison_table(comparisons[0]))
        console.print(comparisons[0].statement(), soft_wrap=not console.is_terminal)
    else:
        console.print(network_table(comparisons))
        console.print("\n".join(summary_lines(comparisons)), soft_wrap=not console.is_terminal)
    if comparisons[0].interrupted:
        console.print("interrupted: the verdicts hold, but more of them would be proven at the end of the run")
