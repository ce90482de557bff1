"""``layerbounds tensors``: quantization against pruning of the weights of a model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import layerbounds
from layerbounds.cli.bits import parse_bits
from layerbounds.cli.console import result_console
from layerbounds.cli.options import JsonOption, asked
from layerbounds.cli.outputs import check_outputs, deliver
from layerbounds.exceptions import InputError
from layerbounds.progress import shown_bar
from layerbounds.report.files import STDOUT, write_json
from layerbounds.report.tensor_plots import plot_tensors
from layerbounds.report.tensor_tables import notes, share_table, tensor_record, tensor_table
from layerbounds.theory.tensors import TensorRow, analyse_tensor, read_table, read_weights, write_table

#: Tables of more tensors than this are printed only as a summary.
MANY_TENSORS = 200


def tensors_command(
    context: typer.Context,
    weights: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Weights (safetensors, a folder, .pt), or a table of results (.csv or .csv.gz)."
        ),
    ],
    bits: Annotated[str, typer.Option("--bits", metavar="LIST", help="e.g. 2,3,4 or 2:8, which is 2 to 8.")] = "2:8",
    json_out: JsonOption = None,
    csv_out: Annotated[Path | None, typer.Option("--csv", metavar="OUT", help="Write the rows as a table.")] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="OUT", help="Draw all tensors (.svg, .png or .pdf).")
    ] = None,
) -> None:
    """Kurtosis, quantization SNR and magnitude-pruning SNR of every weight tensor at equal compression."""
    check_outputs({"--json": json_out, "--csv": csv_out, "--plot": plot}, {"FILE": weights})
    wanted = parse_bits(bits)
    if weights.name.endswith((".csv", ".csv.gz")):
        rows = [row for row in read_table(weights) if row.bits in wanted]
    else:
        rows = _analyse(weights, wanted)
    if not rows:
        raise InputError(
            f"{weights} holds no weights of at least two dimensions, or none at these bits; check the file."
        )
    about = {"layerbounds": layerbounds.__version__, "input": str(weights)}
    steps: list[Callable[[], None]] = []
    if csv_out is not None:
        steps.append(partial(write_table, csv_out, rows))
    if plot is not None:
        steps.append(partial(plot_tensors, rows, plot, weights.name))
    if json_out is not None:
        steps.append(partial(write_json, json_out, {**about, **tensor_record(rows), "options": asked(context)}))
    if json_out != STDOUT:
        steps.append(partial(_print, rows, weights.name))
    deliver(steps)


def _print(rows: list[TensorRow], name: str) -> None:
    console = result_console()
    if len({(row.model, row.tensor) for row in rows}) <= MANY_TENSORS:
        console.print(tensor_table(rows, name))
        console.print()
    console.print(share_table(rows))
    for line in notes(rows):
        console.print(line, soft_wrap=not console.is_terminal)


def _analyse(weights: Path, bits: list[int]) -> list[TensorRow]:
    rows: list[TensorRow] = []
    found = list(read_weights(weights))
    with shown_bar(weights.name, len(found), unit="tensors") as progress:
        for done, (name, tensor) in enumerate(found, start=1):
            rows.extend(analyse_tensor(tensor, bits, tensor=name, model=weights.stem))
            if progress is not None:
                progress(done)
    return rows
