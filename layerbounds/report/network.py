"""The report of a run: ``report.html``, ``report.csv`` and ``report.parquet``, and the table for terminals."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from rich.table import Table

from layerbounds.arguments import as_path, shown
from layerbounds.display.outward import ends
from layerbounds.exceptions import InputError, MissingExtraError
from layerbounds.layers.files import atomic_path
from layerbounds.mistaken import instead
from layerbounds.network.result import NetworkRun
from layerbounds.network.table import rows
from layerbounds.report.files import write_csv
from layerbounds.report.network_page import check_page, page
from layerbounds.report.network_totals import totals
from layerbounds.report.tables import MISSING, _number, _table, _text, fixed

PAGE, TABLE, FRAME = "report.html", "report.csv", "report.parquet"
_USUAL = "pass what layerbounds.run or layerbounds.load_run returns."


def write_report(run: NetworkRun, out: str | os.PathLike[str] | None = None) -> list[Path]:
    """Write what a run has found out: a page for people, tables for programs.

    What needs an extra that is not installed is left out; `missing_parts` says what.

    Parameters
    ----------
    run : NetworkRun
    out : path-like, optional
        A folder, made if its last part is missing; default: the run's.

    Returns
    -------
    list of Path
        What was written: ``report.html`` first, where it can be.

    Raises
    ------
    InputError
        If a file cannot be written.

    Examples
    --------
    >>> [path.suffix for path in lb.write_report(run, "pages")][:1]
    ['.html']
    """
    if not isinstance(run, NetworkRun):
        raise InputError(f"run is {instead('run', run) or f'{shown(run)}; {_USUAL}'}")
    folder = run.folder.path if out is None else as_path(out, "out")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create the folder {folder} ({error.strerror}); choose another one.") from error
    written = []
    if _can_page():
        text = page(run)
        with atomic_path(folder / PAGE) as temporary:
            temporary.write_text(text, encoding="utf-8")
        written.append(folder / PAGE)
    write_csv(folder / TABLE, rows(run.entries))
    written.append(folder / TABLE)
    if _can_frame():
        frame = run.to_frame()
        with atomic_path(folder / FRAME) as temporary:
            frame.to_parquet(temporary, engine="pyarrow", index=False)
        written.append(folder / FRAME)
    return written


def missing_parts() -> list[str]:
    """A sentence for each part of a report that needs an extra which is not installed."""
    sentences = []
    if not _can_page():
        sentences.append(f"{PAGE} is left out: it needs jinja2; run: pip install 'layerbounds[report]'")
    if not _can_frame():
        sentences.append(f"{FRAME} is left out: it needs pandas and pyarrow; run: pip install 'layerbounds[frame]'")
    return sentences


def run_table(run: NetworkRun) -> Table:
    """The network at each compression, for terminals.

    Parameters
    ----------
    run : NetworkRun
    """
    layers = len(run.layers)
    table = _table(f"{layers} {'layer' if layers == 1 else 'layers'}: errors relative to those of zero weights")
    _text(table, "compression")
    for heading in ("layers", "bits", "error %, weighted", "sum of relative errors", "bounded", "optimal", "time s"):
        _number(table, heading)
    for total in totals(run):
        table.add_row(
            total.choice,
            str(total.layers) if not total.refused else f"{total.layers} of {layers}",
            MISSING if total.bits_per_weight is None else f"{total.bits_per_weight:.3f}",
            ends(total.weighted, 3, 2),
            ends(total.relative, 3),
            f"{total.bounded} of {total.sets}",
            str(total.optimal),
            fixed(total.seconds, 1),
        )
    return table


def _can_page() -> bool:
    try:
        check_page()
    except MissingExtraError:
        return False
    return True


def _can_frame() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("pandas", "pyarrow"))
