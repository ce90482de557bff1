"""The picture of a comparison: SQNR against compression, methods as points, the certified interval as a box."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from layerbounds.exceptions import InputError
from layerbounds.report.figures import QUANTIZATION, check_plot, grid_of_axes, save_figure

_MARKERS = "ovsD^P*X<>pdh8H"
#: Colours of methods, apart in print and for colour-blind readers (Okabe & Ito), without the blue of the intervals.
_COLORS = ("#D55E00", "#009E73", "#CC79A7", "#8A6500", "#000000", "#7A3E9D", "#56B4E9", "#777700")
#: Panels side by side.
_COLUMNS = 3
#: Letters of a title.
_TITLE = 48


def plot_comparison(records: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw the records of `layerbounds.compare` into a file.

    Parameters
    ----------
    records : sequence of mapping
    path : path-like
        Ends in .svg, .png or .pdf.
    """
    check_plot(path)
    save_figure(comparison_figure(records), path)


def comparison_figure(records: Sequence[Mapping[str, Any]]) -> Any:
    """The picture of the records of `layerbounds.compare`.

    Each grid family or pattern has a panel, all with one axis of SQNR. In it everything stands at its bits per weight:
    a box lies between the SQNR of the best weights known and the SQNR that no weights can exceed, and methods are
    points on its middle line, open where their weights are allowed and crossed out in grey where they are not.

    Parameters
    ----------
    records : sequence of mapping

    Returns
    -------
    matplotlib.figure.Figure
    """
    if not records:
        raise InputError("there are no records to plot; compare at least one method first.")
    families = _ordered(_family(r) for r in records)
    methods = _ordered(r["method"] for r in records if r["kind"] != "certified")
    style = {
        name: {"marker": _MARKERS[i % len(_MARKERS)], "color": _COLORS[i % len(_COLORS)]}
        for i, name in enumerate(methods)
    }
    figure, panels = grid_of_axes(len(families), _COLUMNS, sharey=True)
    for axes, family in zip(panels, families, strict=True):
        own = [r for r in records if _family(r) == family]
        places = sorted({r["bits_per_weight"] for r in own})
        room = min((b - a for a, b in pairwise(places)), default=1.0)
        for place in places:
            here = [r for r in own if r["bits_per_weight"] == place]
            _draw_box(axes, here, place, 0.32 * room)
            _draw_methods(axes, here, place, style)
        axes.set_title(family, fontsize=9)
        axes.set_xticks(places, [f"{p:g}" if p == round(p, 2) else f"{p:.2f}" for p in places])
        axes.set_xlim(places[0] - 0.6 * room, places[-1] + 0.6 * room)
        axes.set_xlabel(_bits_label(own))
        axes.grid(axis="y", alpha=0.3)
        axes.tick_params(labelleft=True)
    panels[0].set_ylabel("SQNR of the layer output in dB")
    _draw_key(figure, records, style)
    figure.suptitle(_title(str(records[0]["layer"])), fontsize=11, x=0.01, ha="left")
    return figure


def _title(layer: str) -> str:
    """What fits above one panel beside the key; of a long name its end."""
    whole = f"{layer}: methods and the best that is possible"
    if len(whole) <= _TITLE:
        return whole
    return layer if len(layer) <= _TITLE else "…" + layer[-(_TITLE - 1) :]


def _bits_label(rows: Sequence[Mapping[str, Any]]) -> str:
    notes = ["density d counts as 16·d"] if any(r["family"] == "pruning" for r in rows) else []
    sparse = any(r["family"] in ("pruning", "joint") for r in rows)
    notes += [f"mask: {rows[0]['mask']}"] if sparse and rows[0]["mask"] != "none" else []
    return "bits per weight" + (f"\n({', '.join(notes)})" if notes else "")


def _draw_box(axes: Any, rows: Iterable[Mapping[str, Any]], place: float, half: float) -> None:
    """The certified interval: no weights lie above its upper edge."""
    for row in rows:
        if row["kind"] == "certified" and _finite(row["sqnr_db"]) and _finite(row["best_sqnr_db"]):
            ends, low, high = [place - half, place + half], row["sqnr_db"], row["best_sqnr_db"]
            axes.fill_between(ends, low, high, color=QUANTIZATION, alpha=0.28, linewidth=0)
            axes.plot(ends, [high, high], color=QUANTIZATION, linewidth=1.8)
            axes.plot(ends, [low, low], color=QUANTIZATION, linewidth=0.8)


def _draw_methods(
    axes: Any, rows: Iterable[Mapping[str, Any]], place: float, style: Mapping[str, Mapping[str, str]]
) -> None:
    for row in rows:
        if row["kind"] == "certified" or not _finite(row["sqnr_db"]):
            continue
        look = {**_OPEN, **style[row["method"]]}
        if not row["feasible"]:
            look["color"] = "0.6"
        axes.plot(place, row["sqnr_db"], **look)
        if not row["feasible"]:
            axes.plot(place, row["sqnr_db"], **_CROSS)


#: A method's mark, and what crosses out the weights that are not allowed.
_OPEN: dict[str, Any] = {"markersize": 6, "markerfacecolor": "none", "markeredgewidth": 1.3, "linestyle": "none"}
_CROSS: dict[str, Any] = {"marker": "x", "color": "0.6", "markersize": 6, "linestyle": "none"}


def _draw_key(figure: Any, records: Sequence[Mapping[str, Any]], style: Mapping[str, Mapping[str, str]]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    if any(r["kind"] == "certified" for r in records):
        box = Patch(facecolor=QUANTIZATION, alpha=0.28, label="certified interval of the best")
        handles += [box, Line2D([], [], color=QUANTIZATION, linewidth=1.8, label="no weights lie above")]
    handles += [Line2D([], [], label=name, **{**_OPEN, **look}) for name, look in style.items()]
    if any(r["kind"] != "certified" and not r["feasible"] for r in records):
        handles.append(Line2D([], [], label="weights that are not allowed", **_CROSS))
    if handles:
        figure.legend(handles=handles, fontsize=8, loc="outside right upper", frameon=False)


def _family(record: Mapping[str, Any]) -> str:
    """The grid or pattern without its bits and number of kept inputs, so that bit widths share a panel."""
    text = str(record["grid"])
    if record["family"] == "joint":
        text = re.sub(r"(?<=^joint )\d-bit ", "", text)
    if record["family"] in ("pruning", "joint"):
        return re.sub(r" k=\d+ of \d+", "", text)
    return re.sub(r"^\S*-bit ", "", text)


def _ordered(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
