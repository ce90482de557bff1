"""``layerbounds solve``: certified intervals for the channels of one layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer

import layerbounds
from layerbounds.arrays import Float
from layerbounds.cli.console import fits, result_console, said_warnings
from layerbounds.cli.durations import duration_option
from layerbounds.cli.options import (
    AxisOption,
    BackendOption,
    InputOption,
    JobsOption,
    JsonOption,
    PatternOption,
    SeedOption,
    ShareOption,
    ZeroPointOption,
    asked,
    parse_channels,
    parse_granularity,
    parse_options,
    parse_share,
    read_layers,
)
from layerbounds.cli.outputs import check_outputs, deliver
from layerbounds.exceptions import InputError
from layerbounds.layers.bias import Bias, apply_bias
from layerbounds.layers.files import find_layer
from layerbounds.layers.layer import Layer
from layerbounds.problems.free_codebook import FREE
from layerbounds.problems.grids import Granularity
from layerbounds.problems.joint import joint_problem
from layerbounds.problems.output_metrics import next_layer_metric
from layerbounds.problems.problem import Problem, check_channels
from layerbounds.problems.problem_file import load_problem, save_problem
from layerbounds.problems.pruning import pruning_problem
from layerbounds.problems.quantization import quantization_problem
from layerbounds.problems.rows import noun
from layerbounds.progress import shown_bar
from layerbounds.report.files import STDOUT, write_json
from layerbounds.report.plots import plot_trace
from layerbounds.report.tables import channel_table, kept_lines, note_lines, source_lines, total_line
from layerbounds.scheduling.choice import AUTO
from layerbounds.solution import Solution
from layerbounds.solve import solve

#: Parameters that make the problem.
_MAKING = frozenset(
    (
        "layer", "bits", "input_file", "granularity", "fit", "symmetric", "scale", "zero_point", "signed_scale",
        "codebook", "density", "kept", "pattern", "share", "axis", "mask_only", "next_layer", "damping", "bias",
    )
)  # fmt: skip


def solve_command(
    context: typer.Context,
    layer: Annotated[
        str | None, typer.Option("--layer", metavar="NAME", help="Its name, or the unique end of it.")
    ] = None,
    bits: Annotated[int | None, typer.Option("--bits", metavar="N", help="Bits per weight, 1 to 8.")] = None,
    input_file: InputOption = None,
    problem_file: Annotated[
        Path | None,
        typer.Option(
            "--problem", metavar="FILE", help="What --save-problem has written: the layer, and what its weights may be."
        ),
    ] = None,
    backend: BackendOption = AUTO,
    channels: Annotated[
        str | None,
        typer.Option("--channels", metavar="SLICES", help="Output channels, e.g. 0:8 or 0,3,5:7; default: all."),
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(
            "--granularity",
            metavar="WHAT",
            help="Weights that share a scale: tensor, channel (default) or a number of consecutive inputs.",
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            "--range", metavar="HOW", help="How scales are fitted: mse (default) or another of `layerbounds ranges`."
        ),
    ] = None,
    symmetric: Annotated[
        bool | None,
        typer.Option("--symmetric/--asymmetric", help="Without (default) or with an integer zero point."),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option("--scale", metavar="free", help="All scales instead of fitted ones: the best are found, too."),
    ] = None,
    zero_point: ZeroPointOption = None,
    signed_scale: Annotated[
        bool, typer.Option("--signed-scale", help="With --scale free: scales may be negative, too.")
    ] = False,
    codebook: Annotated[
        str | None,
        typer.Option(
            "--codebook",
            metavar="NAME",
            help="Instead of --bits: binary, ternary, nf4, fp4, bnb-fp4 or mxfp4; with --bits, free: any levels.",
        ),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(
            "--density", metavar="FRACTION", help="Prune: kept fraction of the inputs; with --bits, both at once."
        ),
    ] = None,
    kept: Annotated[
        int | None, typer.Option("--k", metavar="N", help="Prune: number of kept inputs, or of kept channels, heads, …")
    ] = None,
    pattern: PatternOption = None,
    share: ShareOption = None,
    axis: AxisOption = None,
    mask_only: Annotated[
        bool, typer.Option("--mask-only", help="Prune without re-optimising the kept weights.")
    ] = False,
    next_layer: Annotated[
        str | None,
        typer.Option(
            "--next-layer",
            metavar="NAME",
            help="With --pattern filter: errors count as the next layer sees them, a layer of the same file.",
        ),
    ] = None,
    damping: Annotated[
        float | None,
        typer.Option(
            "--damping",
            metavar="FRACTION",
            help="With --next-layer: this share of the mean diagonal is added, for a next layer of few outputs.",
        ),
    ] = None,
    bias: Annotated[
        str, typer.Option("--bias", metavar="HOW", help="The layer's bias: keep, or refit with the weights.")
    ] = "keep",
    time_limit: Annotated[
        float | None,
        duration_option(
            "--time-limit",
            "Search time per channel; default: 10 up to 1024 inputs, and beyond no search after the bounds of all "
            "channels.",
        ),
    ] = None,
    total_time: Annotated[
        float | None, duration_option("--total-time", "For all channels, where it narrows most.")
    ] = None,
    gap: Annotated[
        float, typer.Option("--gap", metavar="FRACTION", help="Stop a channel at this (upper - lower)/upper.")
    ] = 0.0,
    jobs: JobsOption = None,
    seed: SeedOption = 0,
    node_limit: Annotated[
        int | None, typer.Option("--node-limit", metavar="N", help="Nodes per channel; makes runs reproducible.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME", help="Where the batched backend computes: cpu, cuda or mps."),
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option("--memory-limit", metavar="SIZE", help="What the batched backend may take, e.g. 3GB."),
    ] = None,
    backend_options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="An option of the backend; may be repeated."),
    ] = None,
    json_out: JsonOption = None,
    problem_out: Annotated[
        Path | None,
        typer.Option(
            "--save-problem", metavar="OUT", help="Write the layer and what its weights may be here, before the search."
        ),
    ] = None,
    save_weights: Annotated[
        Path | None,
        typer.Option("--save-weights", metavar="OUT", help="Write the weights that reach the upper bounds here."),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option("--certificate", metavar="OUT", help="Write the intervals with their proofs here."),
    ] = None,
    trace_plot: Annotated[
        Path | None,
        typer.Option("--trace-plot", metavar="OUT", help="Draw how the intervals closed (.svg, .png or .pdf)."),
    ] = None,
) -> None:
    """Find certified intervals around the smallest error of any quantized, pruned, or quantized and pruned weights."""
    # Hours of search must not end at a mistyped path.
    check_outputs(
        {
            "--json": json_out,
            "--save-problem": problem_out,
            "--save-weights": save_weights,
            "--certificate": certificate,
            "--trace-plot": trace_plot,
        },
        {"--input": input_file, "--problem": problem_file},
    )
    given = parse_options(backend_options)
    if problem_file is not None:
        _check_problem_alone(context)
        problem = load_problem(problem_file)
    elif layer is None:
        raise InputError("pass --layer, or --problem with a file that --save-problem has written.")
    else:
        asked_for = {"scale": scale, "zero_point": zero_point, "signed_scale": signed_scale or None}
        free = {name: value for name, value in asked_for.items() if value is not None}
        layers = read_layers(input_file)
        chosen_layer = apply_bias(find_layer(layers, layer), cast(Bias, bias))
        pruned: dict[str, Any] = {"density": density, "k": kept, "pattern": pattern}
        pruned |= {"share": parse_share(share), "axis": axis}
        pruned["output_metric"] = _metric(layers, chosen_layer, next_layer, damping)
        pruned = {name: value for name, value in pruned.items() if value is not None}
        problem = _problem(
            chosen_layer, bits, codebook, symmetric, parse_granularity(granularity), fit, free, pruned, mask_only
        )
    selection = check_channels(problem, parse_channels(channels, problem.layer.out_features))
    sets = problem.sets(selection)
    if problem_out is not None:
        # Now, so that the file is there whatever becomes of the search.
        save_problem(problem_out, problem)
    with shown_bar(problem.layer.name, len(sets), noun(sets, len(sets))) as progress:
        solution = solve(
            problem,
            backend,
            channels=selection,
            time_limit=time_limit,
            total_time=total_time,
            gap=gap,
            jobs=jobs,
            seed=seed,
            node_limit=node_limit,
            device=device,
            memory_limit=memory_limit,
            progress=progress,
            report=None if progress is None else progress.report,
            options=given,
        )
    options = {"backend_options": given, **asked(context)}
    del options["option"]
    _deliver(solution, options, json_out, save_weights, certificate, trace_plot)
    if solution.interrupted:
        raise typer.Exit(130)


def _check_problem_alone(context: typer.Context) -> None:
    """Refuse, beside ``--problem``, the options that make a problem."""
    given = [
        max(parameter.opts, key=len)
        for parameter in context.command.params
        if parameter.name in _MAKING and context.params[parameter.name] != parameter.default
    ]
    if given:
        raise InputError(f"--problem says what {', '.join(given)} would say; leave one of them out.")


def _metric(layers: Mapping[str, Layer], layer: Layer, next_layer: str | None, damping: float | None) -> Float | None:
    """What the next layer makes of errors, where one is named."""
    if next_layer is None:
        if damping is not None:
            raise InputError("--damping is about what the next layer sees; leave it out, or pass --next-layer.")
        return None
    following = find_layer(layers, next_layer)
    weight = following.weight
    # A linear layer behind a convolution sees all positions of a channel.
    flat = weight.ndim == 2 and weight.shape[1] % layer.out_features == 0
    metric = next_layer_metric(
        weight,
        channels=layer.out_features if flat else None,
        groups=following.groups,
        damping=0.0 if damping is None else damping,
    )
    if len(metric) != layer.out_features:
        raise InputError(
            f"layer {following.name!r} has {len(metric)} input channels, and {layer.name!r} {layer.out_features} "
            "output channels; name the layer that follows."
        )
    return metric


def _problem(
    layer: Layer,
    bits: int | None,
    codebook: str | None,
    symmetric: bool | None,
    granularity: Granularity | None,
    fit: str | None,
    free: dict[str, Any],
    pruned: dict[str, Any],
    mask_only: bool,
) -> Problem:
    """The problem that was asked for.

    ``free`` and ``pruned`` have the arguments of free scales and of the pattern that were given.
    """
    quantized = bits is not None or codebook is not None
    if not quantized and (pruned or mask_only):
        if granularity is not None or fit is not None or symmetric is not None or free:
            raise InputError(
                "--granularity, --range, --symmetric, --scale and --zero-point are about grids; leave them out when "
                "pruning, or pass --bits or --codebook to quantize what is kept."
            )
        return pruning_problem(layer, **pruned, refit=not mask_only)
    if not quantized:
        raise InputError(
            "pass --bits or --codebook to quantize, --density, --k or --pattern N:M to prune, or both of them."
        )
    if "output_metric" in pruned:
        raise InputError("--next-layer is for pruning whole output channels; leave it out, or --bits and --codebook.")
    any_levels = codebook is not None and codebook.lower() == FREE
    if bits is not None and codebook is not None and not any_levels:
        raise InputError("pass either --bits or --codebook, and not both.")
    if codebook is not None and not any_levels and symmetric is False:
        raise InputError("a codebook has no zero point; leave out --asymmetric.")
    if pruned or mask_only:
        if mask_only:
            raise InputError("kept weights take any level when they are quantized, too; leave out --mask-only.")
        if "share" in pruned:
            raise InputError("quantized weights have a mask for each output channel; leave out --share, or --bits.")
        if free or any_levels:
            what = "--codebook free" if any_levels else "--scale, --zero-point and --signed-scale"
            raise InputError(f"pruning and quantization together need a fixed grid; leave out {what}.")
        return joint_problem(
            layer, bits, codebook=codebook, symmetric=symmetric, granularity=granularity, range=fit, **pruned
        )
    if free.get("scale", "free") != "free":
        raise InputError(f"--scale is {free['scale']}; write free, or pass numbers to quantization_problem in Python.")
    if free and "scale" not in free:
        raise InputError("--zero-point and --signed-scale are for free scales; pass --scale free with them.")
    return quantization_problem(
        layer, bits, codebook=codebook, symmetric=symmetric, granularity=granularity, range=fit, **free
    )


def _deliver(
    solution: Solution,
    options: dict[str, Any],
    json_out: str | None,
    save_weights: Path | None,
    certificate: Path | None,
    trace_plot: Path | None,
) -> None:
    """Write and print the results."""

    def print_table() -> None:
        console = result_console()
        table = channel_table(solution)
        console.print(table if fits(console, table) else channel_table(solution, compact=True))
        console.print(total_line(solution), soft_wrap=not console.is_terminal)
        for line in [*kept_lines(solution), *source_lines(solution), *note_lines(solution)]:
            console.print(line, soft_wrap=not console.is_terminal)
        if solution.interrupted:
            console.print("interrupted: the intervals hold, but would be narrower at the end of the run")

    def save_json() -> None:
        if json_out is not None:
            record = {"layerbounds": layerbounds.__version__, **solution.to_dict(), "options": options}
            write_json(json_out, record)

    def save_solution() -> None:
        if save_weights is not None:
            solution.save_weights(save_weights)

    def save_certificate() -> None:
        if certificate is not None:
            with said_warnings():
                solution.save_certificate(certificate)

    def draw_trace() -> None:
        if trace_plot is not None:
            plot_trace(solution, trace_plot)

    steps: list[Callable[[], None]] = [save_json, save_solution, draw_trace]
    if json_out != STDOUT:
        steps.append(print_table)
    # Last, as finding proofs may take as long as the search did.
    steps.append(save_certificate)
    deliver(steps)
