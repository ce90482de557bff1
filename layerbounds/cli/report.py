"""``layerbounds report``: what a run has found out, as a page and as tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from layerbounds.cli.console import result_console, said_warnings
from layerbounds.cli.options import JsonOption
from layerbounds.cli.outputs import check_outputs, deliver
from layerbounds.network.folder import MANIFEST
from layerbounds.network.result import load_run
from layerbounds.report.files import STDOUT, write_json
from layerbounds.report.network import FRAME, PAGE, TABLE, missing_parts, run_table, write_report
from layerbounds.report.network_totals import summary


def report_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run, finished or not.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where the files go; default: the folder of the run.")
    ] = None,
    json_out: JsonOption = None,
) -> None:
    """Write report.html, report.csv and report.parquet of a run, from its folder alone."""
    place = folder if out is None else out
    written = {name: place / name for name in (PAGE, TABLE, FRAME)} if place.is_dir() else {}
    check_outputs({"--json": json_out, **written}, {"the run": folder / MANIFEST})
    with said_warnings():
        run = load_run(folder)

    def report() -> None:
        for path in write_report(run, out):
            print(path, file=sys.stderr)
        for sentence in missing_parts():
            print(sentence, file=sys.stderr)

    def save() -> None:
        if json_out is not None:
            write_json(json_out, {**run.to_dict(), "summary": summary(run)})

    def show() -> None:
        result_console().print(run_table(run))

    deliver([report, save, *([] if json_out == STDOUT else [show])])
