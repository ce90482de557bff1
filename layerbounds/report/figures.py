"""What the package's figures share: creation, colours, and files that are the same for the same data."""

from __future__ import annotations

import math
import os
from typing import Any

from layerbounds.exceptions import InputError, MissingExtraError
from layerbounds.layers.files import atomic_path

_FORMATS = ("svg", "png", "pdf")

#: Blue and vermilion of the palette of Okabe and Ito: apart in print and for colour-blind readers.
QUANTIZATION, PRUNING, EQUAL, OPEN = "#0072B2", "#D55E00", "#009E73", "#BDBDBD"
#: From 2 to 8 bits, red to blue.
BITS = {
    1: "#9E0142",
    2: "#D53E4F",
    3: "#F46D43",
    4: "#FDAE61",
    5: "#B8D94F",
    6: "#66C2A5",
    7: "#3288BD",
    8: "#5E4FA2",
}


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("plots need matplotlib; run: pip install 'layerbounds[plot]'") from error
    return Figure


def check_plot(path: str | os.PathLike[str]) -> None:
    """Raise before anything is computed if a plot cannot be drawn or its format is unknown."""
    _figure_class()
    if os.fspath(path).rsplit(".", 1)[-1].lower() not in _FORMATS:
        raise InputError(f"cannot plot to {os.fspath(path)}; choose a name that ends in .svg, .png or .pdf.")


def new_figure(width: float, height: float, columns: int, **options: Any) -> tuple[Any, Any]:
    """A matplotlib figure with a row of axes.

    Parameters
    ----------
    width, height : float
        Inches.
    columns : int
    **options
        For ``Figure.subplots``.

    Raises
    ------
    MissingExtraError
        Without matplotlib.
    """
    figure = _figure_class()(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, **options)


def grid_of_axes(count: int, columns: int, **options: Any) -> tuple[Any, list[Any]]:
    """A matplotlib figure with so many axes, in rows of at most ``columns``.

    Parameters
    ----------
    count, columns : int
    **options
        For ``Figure.subplots``.
    """
    wide = min(count, columns)
    rows = math.ceil(count / wide)
    figure = _figure_class()(figsize=(3.0 + 2.8 * max(wide, 1.4), 0.6 + 3.7 * rows), layout="constrained")
    every = figure.subplots(rows, wide, squeeze=False, **options).ravel()
    for spare in every[count:]:
        spare.remove()
    return figure, list(every[:count])


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure atomically, as the format that the name ends in."""
    check_plot(path)
    import matplotlib

    suffix = os.fspath(path).rsplit(".", 1)[-1].lower()
    # Text stays text (small files, searchable), and no date or random identifiers: same data, same file.
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "layerbounds", "pdf.fonttype": 42}
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[suffix]
    with matplotlib.rc_context(settings), atomic_path(path) as temporary:
        figure.savefig(temporary, format=suffix, dpi=120 if suffix == "svg" else 200, metadata=metadata)
