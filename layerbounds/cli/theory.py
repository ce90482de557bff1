"""``layerbounds theory``: expected errors of quantization and pruning on a distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import numpy as np
import typer

import layerbounds
from layerbounds.cli.bits import parse_bits
from layerbounds.cli.console import result_console
from layerbounds.cli.options import JsonOption, asked
from layerbounds.cli.outputs import check_outputs, deliver
from layerbounds.exceptions import InputError
from layerbounds.report.files import STDOUT, write_json
from layerbounds.report.theory_plots import plot_errors, plot_tails
from layerbounds.report.theory_tables import crossing_line, curve_record, curve_table
from layerbounds.suggestions import did_you_mean
from layerbounds.theory.curves import curve
from layerbounds.theory.distributions import Distribution
from layerbounds.theory.families import laplace, logistic, normal, student_t, uniform
from layerbounds.theory.storage import Mask

#: Quantiles at which the figure of heavy tails truncates: from hardly any outliers to severe ones.
TAIL_QUANTILES = np.geomspace(2e-2, 1e-6, 10)

_SIMPLE = {"normal": normal, "laplace": laplace, "logistic": logistic, "uniform": uniform}


def theory_command(
    context: typer.Context,
    distribution: Annotated[
        str,
        typer.Option("--distribution", metavar="NAME", help="normal, laplace, logistic, uniform or student-t."),
    ] = "normal",
    df: Annotated[
        float | None, typer.Option("--df", metavar="NU", help="Degrees of freedom of student-t (default 2).")
    ] = None,
    quantile: Annotated[
        float | None,
        typer.Option(
            "--quantile", metavar="ALPHA", help="student-t is truncated at this quantile and its mirror (default 1e-4)."
        ),
    ] = None,
    bits: Annotated[str, typer.Option("--bits", metavar="LIST", help="e.g. 2,3,4 or 2:8, which is 2 to 8.")] = "2:8",
    mask: Annotated[
        str, typer.Option("--mask", metavar="HOW", help="Storage of the pruning mask: none, bitmap or entropy.")
    ] = "none",
    natural_zeros: Annotated[
        bool, typer.Option("--natural-zeros", help="Zeros among the quantized weights are not stored either.")
    ] = False,
    json_out: JsonOption = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="OUT",
            help="Draw errors and SNR, or for student-t the SNR against kurtosis (.svg, .png or .pdf).",
        ),
    ] = None,
) -> None:
    """Compare expected errors of symmetric quantization and of magnitude pruning at equal compression, exactly."""
    check_outputs({"--json": json_out, "--plot": plot}, {})
    wanted = parse_bits(bits)
    values = _distribution(distribution, df, quantile)
    storage = cast(Mask, mask)  # checked where it is used
    compared = curve(values, wanted, mask=storage, natural_zeros=natural_zeros)

    def draw() -> None:
        if plot is not None and distribution == "student-t":
            degrees = 2.0 if df is None else df
            tails = [student_t(degrees, float(q)) for q in TAIL_QUANTILES]
            plot_tails([curve(t, wanted, mask=storage, natural_zeros=natural_zeros) for t in tails], plot)
        elif plot is not None:
            plot_errors(compared, plot)

    def save_json() -> None:
        if json_out is not None:
            record = {"layerbounds": layerbounds.__version__, **curve_record(compared), "options": asked(context)}
            write_json(json_out, record)

    def print_table() -> None:
        console = result_console()
        console.print(curve_table(compared))
        console.print(crossing_line(compared), soft_wrap=not console.is_terminal)

    deliver([draw, save_json] if json_out == STDOUT else [draw, save_json, print_table])


def _distribution(name: str, df: float | None, quantile: float | None) -> Distribution:
    if name == "student-t":
        return student_t(2.0 if df is None else df, 1e-4 if quantile is None else quantile)
    if df is not None or quantile is not None:
        raise InputError("--df and --quantile belong to --distribution student-t; leave them out.")
    if name not in _SIMPLE:
        hint = did_you_mean(name, [*_SIMPLE, "student-t"])
        raise InputError(f"there is no distribution {name!r}; {hint}choose {', '.join(_SIMPLE)} or student-t.")
    return _SIMPLE[name]()
