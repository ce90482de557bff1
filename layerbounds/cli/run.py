"""``layerbounds run``: every layer of a network at several compressions, in a folder from which it goes on."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from layerbounds.arguments import thread_count
from layerbounds.cli.bits import parse_bits
from layerbounds.cli.console import result_console, said_warnings
from layerbounds.cli.durations import duration_option
from layerbounds.cli.options import (
    AxisOption,
    BackendOption,
    GranularityOption,
    InputOption,
    JsonOption,
    MaskOnlyOption,
    RangeOption,
    SeedOption,
    ShareOption,
    SymmetricOption,
    ZeroPointOption,
    asked,
    parse_channels,
    parse_counts,
    parse_fractions,
    parse_granularity,
    parse_names,
    parse_options,
    parse_share,
    read_layers,
)
from layerbounds.cli.outputs import check_outputs, deliver
from layerbounds.exceptions import InputError
from layerbounds.network.result import NetworkRun
from layerbounds.network.run import run
from layerbounds.problems.grids import Granularity
from layerbounds.problems.storage import Mask
from layerbounds.progress import shown_bar
from layerbounds.report.files import STDOUT, write_json
from layerbounds.report.network import missing_parts, run_table, write_report
from layerbounds.scheduling.choice import AUTO


def run_command(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of the run; an interrupted one goes on from it.")
    ],
    bits: Annotated[
        str | None, typer.Option("--bits", metavar="LIST", help="Bits per weight, e.g. 2,3,4 or 2:4.")
    ] = None,
    density: Annotated[
        str | None, typer.Option("--density", metavar="LIST", help="Prune: kept fractions, e.g. 0.25,0.5.")
    ] = None,
    kept: Annotated[
        str | None, typer.Option("--k", metavar="LIST", help="Prune: numbers of kept inputs, channels, heads, …")
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option("--pattern", metavar="LIST", help="Prune: unstructured, N:M such as 2:4, block:S, channel, …"),
    ] = None,
    codebook: Annotated[
        str | None,
        typer.Option("--codebook", metavar="LIST", help="Codebooks: binary, ternary, nf4, fp4, bnb-fp4, mxfp4."),
    ] = None,
    problems: Annotated[
        str | None,
        typer.Option("--problems", metavar="LIST", help="More compressions, e.g. 4+2:4,3+.5 (as versus --contenders)."),
    ] = None,
    joint: Annotated[
        bool, typer.Option("--joint", help="Prune and quantize at once: every grid with every pattern.")
    ] = False,
    share: ShareOption = None,
    axis: AxisOption = None,
    mask_only: MaskOnlyOption = False,
    mask: Annotated[
        str,
        typer.Option(
            "--mask", metavar="HOW", help="What a mask costs to store: none, bitmap (default), entropy or metadata."
        ),
    ] = "bitmap",
    granularity: GranularityOption = "channel",
    fit: RangeOption = "mse",
    symmetric: SymmetricOption = True,
    scale: Annotated[
        str | None, typer.Option("--scale", metavar="free", help="Quantize at all scales instead of fitted ones.")
    ] = None,
    zero_point: ZeroPointOption = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            metavar="LIST",
            help="Heuristics beside the intervals, each where it fits; default: rtn,gptq,magnitude,sparsegpt.",
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", metavar="[NAME=]FILE", help="Weights from elsewhere to score, too; repeatable."),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option("--checkpoint", metavar="[NAME=]DIR", help="The same of the folder of a model; repeatable."),
    ] = None,
    input_file: InputOption = None,
    channels: Annotated[
        str | None, typer.Option("--channels", metavar="SLICES", help="Output channels of every layer, e.g. 0:8.")
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option("--channels-sample", metavar="N", help="Draw N channels of each layer, more likely large ones."),
    ] = None,
    time_limit: Annotated[
        float, duration_option("--time-limit", "Search of a channel at a compression, at most; 0: first bounds alone.")
    ] = 10.0,
    total_time: Annotated[float | None, duration_option("--total-time", "No more work begins after this.")] = None,
    budgets: Annotated[
        str | None,
        typer.Option("--budgets", metavar="LIST", help="Bits per weight for which allocations are wanted."),
    ] = None,
    backend: BackendOption = AUTO,
    parallel: Annotated[
        str, typer.Option("--parallel", metavar="HOW", help="processes, threads, dask://HOST:PORT or ray.")
    ] = "processes",
    jobs: Annotated[int | None, typer.Option("--jobs", metavar="N", help="Workers here; default: all cores.")] = None,
    seed: SeedOption = 0,
    certificates: Annotated[
        Path | None, typer.Option("--certificates", metavar="DIR", help="Write a certificate of every interval, after.")
    ] = None,
    json_out: JsonOption = None,
) -> None:
    """Bound every layer of a network at several compressions; report, allocate and certify from the folder."""
    begin = time.perf_counter()
    given = _named([*(weights or []), *(checkpoint or [])])
    read = {f"--weights {name}": path for name, path in _named(weights or []).items()}
    read |= {f"--checkpoint {name}": path for name, path in _named(checkpoint or []).items()}
    check_outputs(
        {"--json": json_out},
        {"--input": input_file, **read},
        folders={"--out": out, "--certificates": certificates},
    )
    if channels is not None and sample is not None:
        raise InputError("pass either --channels or --channels-sample, and not both.")
    layers = read_layers(input_file)
    chosen = None
    if channels is not None:
        chosen = {name: parse_channels(channels, layers[name].out_features) or [] for name in layers}
    with said_warnings(), shown_bar(f"{len(layers)} layers", None, unit="first bounds") as bar:

        def first(state: NetworkRun) -> None:
            write_report(state)

        state = run(
            input_file,
            out=out,
            bits=None if bits is None else parse_bits(bits),
            codebook=parse_names(codebook),
            density=parse_fractions(density, "density"),
            k=parse_counts(kept, "k"),
            pattern=parse_names(pattern),
            problems=parse_names(problems),
            joint=joint,
            share=parse_share(share),
            axis=axis,
            refit=not mask_only,
            granularity=cast(Granularity, parse_granularity(granularity)),
            symmetric=symmetric,
            range=fit,
            scale=scale,
            zero_point=zero_point,
            mask=cast(Mask, mask),
            methods=None if methods is None else parse_names(methods),
            weights=given,
            channels=chosen,
            sample=sample,
            time_limit=time_limit,
            total_time=total_time,
            budgets=None if budgets is None else parse_fractions(budgets, "budgets"),
            backend=backend,
            jobs=jobs,
            seed=seed,
            parallel=parallel,
            certificates=certificates,
            progress=bar,
            listener=first,
        )
    options: dict[str, Any] = {**asked(context), "jobs": thread_count(jobs), "seconds": time.perf_counter() - begin}
    _deliver(state, options, json_out)
    if state.interrupted:
        raise typer.Exit(130)


def _named(texts: list[str]) -> dict[str, str]:
    """``NAME=FILE`` pairs; a file without a name has its own."""
    pairs: dict[str, str] = {}
    for text in texts:
        named = parse_options([text]) if "=" in text and not Path(text).exists() else {Path(text).resolve().name: text}
        twice = next((name for name in named if name in pairs), None)
        if twice is not None:
            raise InputError(f"two weights are called {twice!r}; write NAME=FILE with different names.")
        pairs |= named
    return pairs


def _deliver(state: NetworkRun, options: dict[str, Any], json_out: str | None) -> None:
    """Write and print the results."""

    def report() -> None:
        for path in write_report(state):
            print(path, file=sys.stderr)
        for sentence in missing_parts():
            print(sentence, file=sys.stderr)

    def save() -> None:
        if json_out is not None:
            write_json(json_out, {**state.to_dict(), "options": options})

    def show() -> None:
        console = result_console()
        console.print(run_table(state))
        if state.interrupted:
            console.print("interrupted: what is shown holds, and the same command goes on from here")

    deliver([report, save, *([] if json_out == STDOUT else [show])])
