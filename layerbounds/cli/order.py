"""``layerbounds order``: pruning before quantizing, quantizing before pruning, and both at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import layerbounds
from layerbounds.cli.bits import parse_bits
from layerbounds.cli.console import result_console
from layerbounds.cli.durations import duration_option
from layerbounds.cli.options import (
    BackendOption,
    InputOption,
    JobsOption,
    JsonOption,
    SeedOption,
    asked,
    parse_channels,
    parse_fractions,
    parse_granularity,
    parse_names,
    read_layers,
)
from layerbounds.cli.outputs import check_outputs, deliver
from layerbounds.exceptions import InputError
from layerbounds.layers.files import find_layer
from layerbounds.orders.gap import OrderGap
from layerbounds.orders.picture import plot_orders
from layerbounds.orders.run import Plan, run_orders, workshop
from layerbounds.orders.tables import definition_lines, order_tables
from layerbounds.problems.patterns import parse_pattern
from layerbounds.progress import shown_bar
from layerbounds.report.files import STDOUT, write_json
from layerbounds.scheduling.choice import AUTO


def order_command(
    context: typer.Context,
    layer: Annotated[str, typer.Option("--layer", metavar="NAME", help="Its name, or the unique end of it.")],
    bits: Annotated[
        str | None, typer.Option("--bits", metavar="LIST", help="Bits per weight, e.g. 4 or 2,3,4 or 2:4.")
    ] = None,
    density: Annotated[
        str | None, typer.Option("--density", metavar="LIST", help="Kept fractions, e.g. 0.5 or 0.25,0.5.")
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option("--pattern", metavar="LIST", help="unstructured (default), N:M such as 2:4, block:S."),
    ] = None,
    codebook: Annotated[
        str | None,
        typer.Option("--codebook", metavar="LIST", help="Codebooks: binary, ternary, nf4, fp4, bnb-fp4, mxfp4."),
    ] = None,
    input_file: InputOption = None,
    channels: Annotated[
        str | None,
        typer.Option("--channels", metavar="SLICES", help="Output channels, e.g. 0:8 or 0,3,5:7; default: all."),
    ] = None,
    orders: Annotated[
        str | None, typer.Option("--orders", metavar="LIST", help="Of PQ, MQ, MQb, QP and QPQ; default: all.")
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            "--pairs",
            metavar="LIST",
            help="Let heuristics do the stages, too: magnitude+rtn,wanda+gptq,exact+rtn.",
        ),
    ] = None,
    scale_rule: Annotated[
        str,
        typer.Option(
            "--scale-rule",
            metavar="LIST",
            help="dense (default): scales of the dense weights; kept: of those kept.",
        ),
    ] = "dense",
    granularity: Annotated[
        str | None,
        typer.Option("--granularity", metavar="WHAT", help="Weights that share a scale: tensor, channel or a number."),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option("--range", metavar="HOW", help="Scales: mse (default) or another of `layerbounds ranges`."),
    ] = None,
    symmetric: Annotated[
        bool | None,
        typer.Option("--symmetric/--asymmetric", help="Without (default) or with a zero point."),
    ] = None,
    look: Annotated[
        bool,
        typer.Option("--look/--no-look", help="Look for other results of a stage within 1e-6; else none is decided."),
    ] = True,
    all_scales: Annotated[
        bool, typer.Option("--all-scales", help="Enclose the joint optimum over all scales, too (n up to 32).")
    ] = False,
    backend: BackendOption = AUTO,
    time_limit: Annotated[float, duration_option("--time-limit", "Search time per channel and stage.")] = 10.0,
    jobs: JobsOption = None,
    seed: SeedOption = 0,
    node_limit: Annotated[
        int | None, typer.Option("--node-limit", metavar="N", help="Nodes per channel; makes runs reproducible.")
    ] = None,
    json_out: JsonOption = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="OUT", help="Draw error over joint optimum (.svg, .png or .pdf).")
    ] = None,
) -> None:
    """Certify what pruning before quantizing, quantizing before pruning, and the best of both at once can reach."""
    check_outputs({"--json": json_out, "--plot": plot}, {"--input": input_file})
    chosen = find_layer(read_layers(input_file), layer)
    selection = parse_channels(channels, chosen.out_features)
    rest = {"symmetric": symmetric, "granularity": parse_granularity(granularity), "range": fit}
    blank = {"grid": None, "scale": None, "zero_point": None, "offset": None, "g_idx": None}
    grids: list[dict[str, Any]] = [{"bits": b, "codebook": None} for b in ([] if bits is None else parse_bits(bits))]
    grids += [{"bits": None, "codebook": name} for name in parse_names(codebook)]
    if not grids:
        raise InputError("nothing says how weights are quantized; pass --bits or --codebook.")
    plans = [
        Plan(
            chosen,
            grid["bits"],
            {**blank, **rest, "codebook": grid["codebook"]},
            rule,
            None if orders is None else parse_names(orders),
            parse_names(pairs),
            scales,
            "keep",
            all_scales,
        )
        for scales in parse_names(scale_rule)
        for rule in _patterns(pattern, density)
        for grid in grids
    ]
    shop = workshop(
        plans[0],
        selection,
        look=look,
        time_limit=time_limit,
        node_limit=node_limit,
        backend=backend,
        jobs=jobs,
        seed=seed,
    )
    gaps: list[OrderGap] = []
    with shown_bar(chosen.name, len(plans), "grids and patterns") as advance:
        for plan in plans:
            gaps.append(run_orders(plan, shop))
            if advance is not None:
                advance(len(gaps))
            if gaps[-1].interrupted:
                break
    _deliver(gaps, {**asked(context), "channels": selection}, json_out, plot)
    if gaps[-1].interrupted:
        raise typer.Exit(130)


def _patterns(pattern: str | None, density: str | None) -> list[dict[str, Any]]:
    """The patterns with the densities that they need."""
    densities = parse_fractions(density, "density")
    rules = [parse_pattern(name) for name in parse_names(pattern) or (["unstructured"] if densities else [])]
    if not rules:
        raise InputError("nothing says how many inputs are kept; pass --density, or an N:M pattern with --pattern.")
    chosen: list[dict[str, Any]] = []
    for rule in rules:
        if rule.needs_count and not densities:
            raise InputError(f"pattern {rule.label!r} needs a density; pass --density with the kept fraction.")
        chosen += [{"density": d, "k": None, "pattern": rule} for d in (densities if rule.needs_count else [None])]
    if densities and not any(rule.needs_count for rule in rules):
        raise InputError(f"pattern {rules[0].label} says itself how many inputs are kept; leave out --density.")
    return chosen


def _deliver(gaps: Sequence[OrderGap], options: dict[str, Any], json_out: str | None, plot: Path | None) -> None:
    """Write and print the results."""
    interrupted = gaps[-1].interrupted

    def save_json() -> None:
        if json_out is not None:
            record = {
                "layerbounds": layerbounds.__version__,
                "interrupted": interrupted,
                "gaps": [gap.to_dict() for gap in gaps],
                "options": options,
            }
            write_json(json_out, record)

    def draw() -> None:
        if plot is not None and any(gap.intervals for gap in gaps):
            plot_orders(gaps, plot)

    def print_tables() -> None:
        console = result_console()
        for gap in gaps:
            for table in order_tables(gap):
                console.print(table)
        for line in definition_lines(gaps[0]):
            console.print(line, soft_wrap=not console.is_terminal)
        if interrupted:
            console.print("interrupted: what is shown holds; the rest was not computed")

    steps: list[Callable[[], None]] = [save_json, draw]
    if json_out != STDOUT:
        steps.append(print_tables)
    deliver(steps)
