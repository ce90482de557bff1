"""``layerbounds compare``: methods beside the certified interval of their grid or pattern."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

import typer

import layerbounds
from layerbounds.cli.bits import parse_bits
from layerbounds.cli.console import fits, result_console
from layerbounds.cli.durations import duration_option
from layerbounds.cli.options import (
    AxisOption,
    BackendOption,
    InputOption,
    JobsOption,
    JsonOption,
    MaskOption,
    SeedOption,
    ShareOption,
    ZeroPointOption,
    asked,
    parse_channels,
    parse_counts,
    parse_fractions,
    parse_granularity,
    parse_names,
    parse_share,
    read_layers,
)
from layerbounds.cli.outputs import check_outputs, deliver
from layerbounds.comparison.compare import comparison_problems, starting_ranges
from layerbounds.comparison.records import MethodComparison, compare_problems
from layerbounds.layers.files import find_layer
from layerbounds.layers.weight_files import read_layer_weights
from layerbounds.problems.storage import Mask
from layerbounds.progress import shown_bar
from layerbounds.report.comparison import comparison_tables
from layerbounds.report.comparison_plot import plot_comparison
from layerbounds.report.files import STDOUT, write_csv, write_json
from layerbounds.scheduling.choice import AUTO


def compare_command(
    context: typer.Context,
    layer: Annotated[str, typer.Option("--layer", metavar="NAME", help="Its name, or the unique end of it.")],
    bits: Annotated[
        str | None, typer.Option("--bits", metavar="LIST", help="Bits per weight, e.g. 2,3,4 or 2:8.")
    ] = None,
    density: Annotated[
        str | None, typer.Option("--density", metavar="LIST", help="Prune: kept fractions, e.g. 0.25,0.5.")
    ] = None,
    kept: Annotated[
        str | None,
        typer.Option(
            "--k", metavar="LIST", help="Prune: numbers of kept inputs, or of kept channels, heads, …, e.g. 4,8."
        ),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            "--pattern",
            metavar="LIST",
            help="Prune: unstructured (default), N:M such as 2:4, block:S; or for all output channels at once: "
            "channel, column, position, head:S.",
        ),
    ] = None,
    share: ShareOption = None,
    axis: AxisOption = None,
    mask_only: Annotated[
        bool, typer.Option("--mask-only", help="Prune without re-optimising the kept weights.")
    ] = False,
    joint: Annotated[
        bool, typer.Option("--joint", help="Prune and quantize at once: every grid with every pattern.")
    ] = False,
    mask: MaskOption = "none",
    codebook: Annotated[
        str | None,
        typer.Option("--codebook", metavar="LIST", help="Codebooks: binary, ternary, nf4, fp4, bnb-fp4, mxfp4."),
    ] = None,
    input_file: InputOption = None,
    channels: Annotated[
        str | None,
        typer.Option("--channels", metavar="SLICES", help="Output channels, e.g. 0:8 or 0,3,5:7; default: all."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            metavar="LIST",
            help="Heuristics, with options as in gptq:actorder=true; default: all that can treat the problem.",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", metavar="FILE", help="Score these weights too: safetensors, an index of shards, a folder, .pt."
        ),
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option("--granularity", metavar="WHAT", help="Weights that share a scale: tensor, channel or a number."),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="LIST",
            help="How scales are fitted, each its own grid: mse (default), others of `layerbounds ranges`, or all.",
        ),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            "--scale",
            metavar="free",
            help="All scales: methods start at every range (or those of --range) and alternate with the best scales.",
        ),
    ] = None,
    zero_point: ZeroPointOption = None,
    signed_scale: Annotated[
        bool,
        typer.Option("--signed-scale", help="With --scale free: scales may be negative, as those of llama.cpp are."),
    ] = False,
    symmetric: Annotated[
        bool | None,
        typer.Option("--symmetric/--asymmetric", help="Without (default) or with a zero point."),
    ] = None,
    backend: BackendOption = AUTO,
    time_limit: Annotated[
        float | None,
        duration_option("--time-limit", "Search time per channel and grid; default as for solve."),
    ] = None,
    gap: Annotated[
        float, typer.Option("--gap", metavar="FRACTION", help="Stop a channel at this (upper - lower)/upper.")
    ] = 0.0,
    jobs: JobsOption = None,
    seed: SeedOption = 0,
    node_limit: Annotated[
        int | None, typer.Option("--node-limit", metavar="N", help="Nodes per channel; makes runs reproducible.")
    ] = None,
    json_out: JsonOption = None,
    csv_out: Annotated[Path | None, typer.Option("--csv", metavar="OUT", help="Write the rows here.")] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="OUT", help="Draw SQNR against bits (.svg, .png or .pdf).")
    ] = None,
) -> None:
    """Put methods beside the certified interval of each grid or pattern, and say how far from optimal they are."""
    check_outputs({"--json": json_out, "--csv": csv_out, "--plot": plot}, {"--input": input_file, "--weights": weights})
    chosen = find_layer(read_layers(input_file), layer)
    problems = comparison_problems(
        chosen,
        bits=[] if bits is None else parse_bits(bits),
        density=parse_fractions(density, "density"),
        k=parse_counts(kept, "k"),
        pattern=parse_names(pattern),
        share=parse_share(share),
        axis=axis,
        refit=not mask_only,
        codebook=parse_names(codebook),
        symmetric=symmetric,
        granularity=parse_granularity(granularity),
        range=None if fit is None else parse_names(fit),
        scale=scale,
        zero_point=zero_point,
        signed_scale=signed_scale,
        joint=joint,
    )
    selection = parse_channels(channels, chosen.out_features)
    given, dtypes = {}, {}
    if weights is not None:
        found = read_layer_weights(weights, chosen, selection)
        name = weights.name or weights.resolve().name
        given[name], dtypes[name] = found.values, found.dtype
        if found.note:
            print(f"note: {weights}: {found.note}", file=sys.stderr)
    limits = {"time_limit": time_limit, "gap": gap, "node_limit": node_limit, "backend": backend}
    with shown_bar(chosen.name, len(problems), "grids and patterns") as advance:
        result = compare_problems(
            problems,
            methods=None if methods is None else parse_names(methods),
            weights=given,
            channels=selection,
            jobs=jobs,
            seed=seed,
            limits=limits,
            ranges=starting_ranges(parse_names(fit)),
            dtypes=dtypes,
            mask=cast(Mask, mask),
            progress=None if advance is None else lambda done, total: advance(len(problems) * done // total),
        )
    options = {**asked(context), "channels": selection}
    _deliver(result, options, json_out, csv_out, plot)
    if result.interrupted:
        raise typer.Exit(130)


def _deliver(
    result: MethodComparison, options: dict[str, Any], json_out: str | None, csv_out: Path | None, plot: Path | None
) -> None:
    """Write and print the results."""
    rows = list(result)

    def save_json() -> None:
        if json_out is not None:
            record = {
                "layerbounds": layerbounds.__version__,
                "interrupted": result.interrupted,
                "records": rows,
                "solutions": [solution.to_dict() for solution in result.solutions],
                "options": options,
            }
            write_json(json_out, record)

    def save_csv() -> None:
        if csv_out is not None:
            write_csv(csv_out, rows)

    def draw() -> None:
        if plot is not None and rows:
            plot_comparison(rows, plot)

    def print_tables() -> None:
        console = result_console()
        tables = comparison_tables(result.records)
        if not all(fits(console, table) for table in tables):
            tables = comparison_tables(result.records, compact=True)
        for table in tables:
            console.print(table)
        if result.interrupted:
            console.print("interrupted: what is shown holds; the rest was not computed")

    steps: list[Callable[[], None]] = [save_json, save_csv, draw]
    if json_out != STDOUT:
        steps.append(print_tables)
    deliver(steps)
