"""``layerbounds versus``: quantization against pruning, decided by certified intervals."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol, cast

import typer
from rich.console import Console

import layerbounds
from layerbounds.arguments import thread_count
from layerbounds.cli.bits import parse_bits
from layerbounds.cli.console import result_console
from layerbounds.cli.durations import duration_option
from layerbounds.cli.options import (
    AxisOption,
    BackendOption,
    GranularityOption,
    InputOption,
    JobsOption,
    JsonOption,
    MaskOnlyOption,
    RangeOption,
    SeedOption,
    ShareOption,
    SymmetricOption,
    ZeroPointOption,
    asked,
    parse_channels,
    parse_granularity,
    parse_names,
    parse_share,
    read_layers,
)
from layerbounds.cli.outputs import FOLDER_FILES, check_outputs, deliver
from layerbounds.contests.contest import Rules
from layerbounds.contests.levels import Comparison
from layerbounds.contests.run import contest_layers, versus_layers
from layerbounds.contests.standings import Standings
from layerbounds.exceptions import InputError
from layerbounds.layers.files import atomic_path, find_layer
from layerbounds.layers.layer import Layer
from layerbounds.problems.grids import Granularity
from layerbounds.problems.storage import Mask
from layerbounds.progress import shown_bar
from layerbounds.report.files import STDOUT, write_json
from layerbounds.report.standings import legend, pairs_table, standings_markdown, standings_table
from layerbounds.report.standings_plot import plot_standings
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
        str | None,
        typer.Option("--bits", metavar="LIST", help="Compressions, e.g. 2,3,4 or 2:8 (default), which is 2 to 8."),
    ] = None,
    contenders: Annotated[
        str | None,
        typer.Option(
            "--contenders",
            metavar="LIST",
            help="Instead of --bits: any compressions, each against each, e.g. 4+2:4,4+.5,3,channel+.5,pruned; pruned "
            "is pruning at the storage of each of the others.",
        ),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            "--mask",
            metavar="HOW",
            help="What a pattern's mask costs to store: none (default), bitmap (default with --contenders), entropy or "
            "metadata.",
        ),
    ] = None,
    input_file: InputOption = None,
    channels: Annotated[
        str | None, typer.Option("--channels", metavar="SLICES", help="With --layer: output channels, e.g. 0:8.")
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option("--channels-sample", metavar="N", help="At most N evenly spaced channels of each layer."),
    ] = None,
    granularity: GranularityOption = "channel",
    fit: RangeOption = "mse",
    symmetric: SymmetricOption = True,
    scale: Annotated[
        str | None,
        typer.Option("--scale", metavar="free", help="Quantize at all scales instead of fitted ones."),
    ] = None,
    zero_point: ZeroPointOption = None,
    pattern: Annotated[
        str,
        typer.Option(
            "--pattern",
            metavar="HOW",
            help="unstructured, block:S, channel, column, position, head:S, or N:16 (bits of every 16 inputs).",
        ),
    ] = "unstructured",
    share: ShareOption = None,
    axis: AxisOption = None,
    mask_only: MaskOnlyOption = False,
    time_limit: Annotated[
        float,
        duration_option("--time-limit", "Per channel, compression and method, while undecided."),
    ] = 10.0,
    total_time: Annotated[float | None, duration_option("--total-time", "No more work begins after this.")] = None,
    backend: BackendOption = AUTO,
    jobs: JobsOption = None,
    seed: SeedOption = 0,
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
    """Decide whether quantization or pruning, or which of several contenders, has the smaller error, by proof."""
    if contenders is not None and bits is not None:
        raise InputError("pass either --bits or --contenders, and not both.")
    begin = time.perf_counter()
    check_outputs({"--json": json_out, "--plot": plot, "--table": table}, {"--input": input_file}, out)
    wanted = None if contenders is None else parse_names(contenders)
    chosen_bits = parse_bits("2:8" if bits is None else bits)
    layers, selection = _select(input_file, layer, every, channels, sample)
    rules = Rules(
        cast(Granularity, parse_granularity(granularity)),
        fit,
        symmetric,
        pattern,
        not mask_only,
        backend,
        thread_count(jobs),
        seed,
        scale,
        zero_point,
        cast(Mask, mask or ("none" if wanted is None else "bitmap")),
        parse_share(share),
        axis,
    )
    title = layers[0].name if len(layers) == 1 else f"{len(layers)} layers"
    with shown_bar(title, None, unit="verdicts") as progress:
        limits: dict[str, Any] = {
            "rules": rules,
            "channels": selection,
            "sample": sample,
            "time_limit": time_limit,
            "total_time": total_time,
            "checkpoint": None if out is None else out / "checkpoint",
            "progress": progress,
        }
        report: Report
        if wanted is None:
            report = _Comparisons(versus_layers(layers, chosen_bits, **limits))
        else:
            report = _Standings(contest_layers(layers, wanted, **limits))
    options = {**asked(context), "mask": rules.mask, "jobs": rules.jobs}
    options["bits"] = chosen_bits if wanted is None else None
    files: list[Files] = [(json_out, table, plot)]
    if out is not None:
        record, markdown, picture = (out / name for name in FOLDER_FILES)
        files.append((record, markdown, picture))
    seconds = time.perf_counter() - begin
    _deliver(report, {**options, "seconds": seconds}, files)
    if report.interrupted:
        raise typer.Exit(130)


def _select(
    input_file: Path | None, layer: str | None, every: bool, channels: str | None, sample: int | None
) -> tuple[list[Layer], dict[str, Sequence[int]]]:
    """The layers to compare, and the channels of those where some were named."""
    if layer is None and not every:
        raise InputError("nothing says what is compared; pass --layer NAME or --all.")
    if layer is not None and every:
        raise InputError("pass either --layer NAME or --all, and not both.")
    if channels is not None and (every or sample is not None):
        raise InputError("--channels is for one layer and without --channels-sample; leave out one of them.")
    held = read_layers(input_file)
    layers = list(held.values()) if layer is None else [find_layer(held, layer)]
    given = {entry.name: parse_channels(channels, entry.out_features) for entry in layers}
    return layers, {name: chosen for name, chosen in given.items() if chosen is not None}


#: Where JSON, table and picture go.
Files = tuple[str | Path | None, Path | None, Path | None]


class Report(Protocol):
    """What the files and the terminal get."""

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the run."""

    def record(self) -> dict[str, Any]:
        """For JSON."""

    def markdown(self, effort: str) -> str:
        """The table as Markdown; ``effort`` is a line on what it took."""

    def searched(self) -> float:
        """Seconds of search in all channels."""

    def draw(self, path: Path) -> None:
        """The picture."""

    def print(self, console: Console) -> None:
        """The tables and sentences."""


class _Comparisons:
    def __init__(self, comparisons: list[Comparison]) -> None:
        self.comparisons = comparisons
        self.interrupted = comparisons[0].interrupted

    def record(self) -> dict[str, Any]:
        return {"about": rule(self.comparisons[0]), "layers": [one.to_dict() for one in self.comparisons]}

    def markdown(self, effort: str) -> str:
        lines = [network_markdown(self.comparisons), *(f"- {line}" for line in summary_lines(self.comparisons))]
        return "\n".join([*lines, "", effort, ""])

    def searched(self) -> float:
        return sum(level.seconds for comparison in self.comparisons for level in comparison.levels)

    def draw(self, path: Path) -> None:
        if len(self.comparisons) == 1:
            plot_comparison(self.comparisons[0], path)
        else:
            plot_network(self.comparisons, path)

    def print(self, console: Console) -> None:
        if len(self.comparisons) == 1:
            console.print(comparison_table(self.comparisons[0]))
            console.print(self.comparisons[0].statement(), soft_wrap=not console.is_terminal)
        else:
            console.print(network_table(self.comparisons))
            console.print("\n".join(summary_lines(self.comparisons)), soft_wrap=not console.is_terminal)


class _Standings:
    def __init__(self, standings: list[Standings]) -> None:
        self.standings = standings
        self.interrupted = standings[0].interrupted

    def record(self) -> dict[str, Any]:
        return {"about": f"contenders, mask: {self.standings[0].mask}", "layers": [s.to_dict() for s in self.standings]}

    def markdown(self, effort: str) -> str:
        return "\n".join([standings_markdown(self.standings), effort, ""])

    def searched(self) -> float:
        return sum(entrant.seconds for standings in self.standings for entrant in standings.entrants)

    def draw(self, path: Path) -> None:
        plot_standings(self.standings, path)

    def print(self, console: Console) -> None:
        if len(self.standings) == 1:
            one = self.standings[0]
            console.print(standings_table(one))
            console.print(legend(one), soft_wrap=not console.is_terminal)
            if one.equal_pairs:
                console.print(one.statement(one.equal_pairs), soft_wrap=not console.is_terminal)
        else:
            console.print(pairs_table(self.standings))


def _deliver(report: Report, options: dict[str, Any], files: list[Files]) -> None:
    """Write and print the results."""
    record = {"layerbounds": layerbounds.__version__, "options": options, **report.record()}
    steps: list[Callable[[], None]] = []
    for json_out, table, picture in files:
        if json_out is not None:
            steps.append(partial(write_json, json_out, record))
        if table is not None:
            steps.append(partial(_write_table, report, options, table))
        if picture is not None:
            steps.append(partial(report.draw, picture))
    if all(json_out != STDOUT for json_out, _, _ in files):
        steps.append(partial(_print, report))
    deliver(steps)


def _write_table(report: Report, options: dict[str, Any], path: Path) -> None:
    effort = (
        f"layerbounds {layerbounds.__version__}, time limit {options['time_limit']:g} s, {options['jobs']} threads, "
        f"{report.searched():.0f} s of search in all channels together."
    )
    with atomic_path(path) as temporary:
        temporary.write_text(report.markdown(effort), encoding="utf-8")


def _print(report: Report) -> None:
    console = result_console()
    report.print(console)
    if report.interrupted:
        console.print("interrupted: the verdicts hold, but more of them would be proven at the end of the run")
