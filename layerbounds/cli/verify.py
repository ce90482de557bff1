"""``layerbounds verify``: certificates, checked by a program that shares nothing with the solver."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

import layerbounds_verify
from layerbounds.cli.options import JsonOption
from layerbounds.cli.outputs import check_outputs
from layerbounds.exceptions import InputError
from layerbounds.report.files import STDOUT, write_json


def verify_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `layerbounds solve --certificate` has written.")],
    layers: Annotated[
        Path | None,
        typer.Option("--input", metavar="LAYERS", help="The layer file, where the certificate has only hashes of it."),
    ] = None,
    sample: Annotated[
        int | None, typer.Option("--sample", metavar="N", help="Check so many intervals, evenly chosen; default: all.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Without any rounding where there are few inputs, searches excepted.")
    ] = False,
    json_out: JsonOption = None,
) -> None:
    """Derive every interval of a certificate anew; exit code 3 where one is refused."""
    check_outputs({"--json": json_out}, {"FILE": file, "--input": layers})
    if sample is not None and sample < 1:
        raise InputError(f"--sample is {sample}; choose an integer ≥ 1.")
    for path in (file, layers):
        if path is not None and not path.is_file():
            raise InputError(f"{path} does not exist or is not a file; check the path.")
    report = layerbounds_verify.verify(file, layers, sample=sample, exact=exact)
    if json_out is not None:
        write_json(json_out, dataclasses.asdict(report))
    if json_out != STDOUT:
        print(report.text())
    if not report:
        raise typer.Exit(layerbounds_verify.REFUSED)
