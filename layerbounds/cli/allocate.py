"""``layerbounds allocate``: which compression for which layer of a run, within a budget of bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import layerbounds
from layerbounds.allocation import Allocation, FrontPoint
from layerbounds.allocation.formats import FORMATS, find_format
from layerbounds.cli.console import result_console, said_warnings
from layerbounds.cli.durations import duration_option
from layerbounds.cli.options import JsonOption, asked
from layerbounds.cli.outputs import check_outputs, deliver
from layerbounds.exceptions import InputError
from layerbounds.layers.files import atomic_path
from layerbounds.network.allocate import allocate, allocation_front, score_allocation
from layerbounds.network.result import NetworkRun, load_run
from layerbounds.network.run import refine
from layerbounds.progress import shown_bar
from layerbounds.report.allocation import allocation_table, front_table
from layerbounds.report.files import STDOUT, write_json

_TOOLS = ", ".join(FORMATS)


def allocate_command(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run, finished or not.")],
    budget: Annotated[
        float, typer.Option("--budget", metavar="BITS", help="Per weight over all layers, scales and masks included.")
    ] = 3.0,
    weights_of: Annotated[
        str,
        typer.Option(
            "--weights-of",
            metavar="WHAT",
            help="What layers' errors count: energy (relative errors), uniform (as they are), or a JSON or CSV file "
            "with a weight for the relative error of each layer.",
        ),
    ] = "energy",
    dense: Annotated[bool, typer.Option("--dense", help="Layers may also stay as they are, at 16 bits.")] = False,
    exports: Annotated[
        list[str] | None,
        typer.Option("--export", metavar="TOOL:FILE", help=f"Write it for a tool ({_TOOLS}); repeatable."),
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option("--score", metavar="TOOL:FILE", help="Score the allocation in a tool's file, too; repeatable."),
    ] = None,
    front: Annotated[bool, typer.Option("--front", help="The least error for every budget, too.")] = False,
    seconds: Annotated[
        float | None, duration_option("--refine", "Search first, where the regret comes from, and so long.")
    ] = None,
    json_out: JsonOption = None,
) -> None:
    """Choose a compression for every layer of a run, with what its intervals prove: the best error, the regret."""
    written = [_tool_and_file(text, "--export") for text in exports or ()]
    read = [_tool_and_file(text, "--score") for text in scores or ()]
    check_outputs(
        {"--json": json_out, **{f"--export {tool}:{path}": path for tool, path in written}},
        {"DIR": folder, **{f"--score {tool}:{path}": path for tool, path in read}},
    )
    options: dict[str, Any] = {"weights_of": weights_of, "dense": dense}

    def outcome() -> tuple[NetworkRun, Allocation, list[tuple[str, Path, Allocation]]]:
        with said_warnings():
            run = load_run(folder)
        scored = [(tool, path, score_allocation(run, path, tool, **options)) for tool, path in read]
        return run, allocate(run, budget, **options), scored

    run, best, scored = outcome()
    interrupted = False
    if seconds is not None:
        # What does not fit, or cannot be read, has been refused by now.
        with shown_bar("searching", None, unit="pieces") as bar:
            state = refine(folder, seconds, budget=budget, progress=bar)
        interrupted = state.interrupted
        run, best, scored = outcome()
    points = allocation_front(run, **options) if front else []
    steps: list[Callable[[], None]] = [partial(_write, path, best, tool) for tool, path in written]
    if json_out is not None:
        record = {
            "layerbounds": layerbounds.__version__,
            "options": asked(context),
            "interrupted": interrupted,
            "allocation": best.to_dict(),
            "scores": [{"tool": t, "file": str(path), "allocation": its.to_dict()} for t, path, its in scored],
            "front": [point.to_dict() for point in points],
        }
        steps.append(partial(write_json, json_out, record))
    if json_out != STDOUT:
        steps.append(partial(_print, best, scored, points))
    deliver(steps)
    if interrupted:
        raise typer.Exit(130)


def _tool_and_file(text: str, option: str) -> tuple[str, Path]:
    """Read ``TOOL:FILE``."""
    tool, colon, path = text.partition(":")
    if not colon or not path:
        raise InputError(f"{option} {text!r} cannot be read; write TOOL:FILE, with one of {_TOOLS}.")
    return find_format(tool).name, Path(path)


def _write(path: Path, best: Allocation, tool: str) -> None:
    text = best.export(tool)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _print(best: Allocation, scored: list[tuple[str, Path, Allocation]], points: list[FrontPoint]) -> None:
    console = result_console()

    def say(*sentences: str) -> None:
        console.print("\n".join(sentences), soft_wrap=not console.is_terminal)

    console.print(allocation_table(best))
    say(*best.sentences())
    for end in best.where_more_search_helps[:3]:
        say(f"Search would help most at the {end.end} end of {end.option} in {end.layer}.")
    for tool, path, its in scored:
        say(f"\n{path} ({tool}):")
        console.print(allocation_table(its))
        say(*its.sentences())
    if points:
        console.print(front_table(points, best.weights))
    say(f"{best.objective[:1].upper()}{best.objective[1:]}; {best.convention}.")
