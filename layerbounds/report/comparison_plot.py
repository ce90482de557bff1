"""The picture of a comparison: SQNR against compression, methods as points, the certified interval as a band."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from layerbounds.exceptions import InputError
from layerbounds.layers.files import atomic_path
from layerbounds.report.plots import _figure_class, check_plot

_MARKERS = "ovsD^P*X<>pdh8Hv"
#: Colours that stay apart in print and for colour-blind readers (Okabe & Ito), beginning with blue.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")


def plot_comparison(records: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw the records of `layerbounds.compare`.

    Each grid family or pattern is a colour: its band lies between the SQNR of the best weights known and the SQNR that
    no weights can exceed. What has the same compression stands side by side.

    Parameters
    ----------
    records : sequence of mapping
    path : path-like
        Ends in .svg, .png or .pdf.
    """
    check_plot(path)
    if not records:
        raise InputError("there are no records to plot; compare at least one method first.")
    figure = _figure_class()(figsize=(8.0, 4.6), layout="constrained")
    axes = figure.subplots()
    families = _ordered(_family(r) for r in records)
    methods = _ordered(r["method"] for r in records if r["kind"] != "certified")
    color = {name: _COLORS[i % len(_COLORS)] for i, name in enumerate(families)}
    marker = {name: _MARKERS[i % len(_MARKERS)] for i, name in enumerate(methods)}
    places = sorted({r["bits_per_weight"] for r in records})
    room = min((b - a for a, b in pairwise(places)), default=1.0)
    labelled: set[str] = set()
    for place in places:
        here = [r for r in records if r["bits_per_weight"] == place]
        present = _ordered(_family(r) for r in here)
        slot = 0.84 * room / len(present)
        for index, family in enumerate(present):
            centre = place + (index - (len(present) - 1) / 2) * slot
            own = [r for r in here if _family(r) == family]
            label = f"certified interval: {family}" if family not in labelled else None
            if _draw_band(axes, own, centre, 0.46 * slot, color[family], label):
                labelled.add(family)
            _draw_methods(axes, own, centre, 0.36 * slot, color[family], marker)
    for name in methods:
        used = {color[_family(r)] for r in records if r["method"] == name}
        shade = used.pop() if len(used) == 1 else "0.25"
        axes.plot([], [], marker[name], color=shade, markerfacecolor="white", linestyle="none", label=name)
    pruned = any(r["family"] == "pruning" for r in records)
    sparse = pruned or any(r["family"] == "joint" for r in records)
    notes = ["density d counts as 16·d"] if pruned else []
    notes += [f"mask: {records[0]['mask']}"] if sparse and records[0]["mask"] != "none" else []
    axes.set_xlabel("bits per weight" + (f" ({', '.join(notes)})" if notes else ""))
    axes.set_ylabel("SQNR of the layer output in dB")
    layer = records[0]["layer"]
    axes.set_title(f"{layer}: methods and the best that is possible", fontsize=10)
    axes.set_xticks(places, [f"{p:g}" if p == round(p, 2) else f"{p:.2f}" for p in places])
    axes.set_xlim(places[0] - 0.6 * room, places[-1] + 0.6 * room)
    axes.grid(axis="y", alpha=0.3)
    if labelled or methods:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, frameon=False)
    suffix = os.fspath(path).rsplit(".", 1)[-1].lower()
    from matplotlib import rc_context

    # The same records give the same file.
    with atomic_path(path) as temporary, rc_context({"svg.hashsalt": "layerbounds"}):
        figure.savefig(temporary, format=suffix, dpi=160, metadata={"Date": None} if suffix == "svg" else None)


def _draw_band(
    axes: Any, rows: list[Mapping[str, Any]], centre: float, half: float, color: str, label: str | None
) -> bool:
    """The certified interval as a box: no weights lie above its upper edge. False where there is none."""
    for row in rows:
        if row["kind"] == "certified" and _finite(row["sqnr_db"]) and _finite(row["best_sqnr_db"]):
            ends, low, high = [centre - half, centre + half], row["sqnr_db"], row["best_sqnr_db"]
            axes.fill_between(ends, low, high, color=color, alpha=0.28, linewidth=0, label=label)
            axes.plot(ends, [high, high], color=color, linewidth=1.6)
            axes.plot(ends, [low, low], color=color, linewidth=0.8)
            return True
    return False


def _draw_methods(
    axes: Any, rows: list[Mapping[str, Any]], centre: float, half: float, color: str, marker: Mapping[str, str]
) -> None:
    """Methods as points side by side; weights that are not allowed are drawn in grey."""
    shown = [row for row in rows if row["kind"] != "certified" and _finite(row["sqnr_db"])]
    for rank, row in enumerate(shown):
        axes.plot(
            centre + (0.0 if len(shown) < 2 else (2.0 * rank / (len(shown) - 1) - 1.0) * half),
            row["sqnr_db"],
            marker[row["method"]],
            color=color if row["feasible"] else "0.6",
            markersize=6,
            markerfacecolor="white",
            markeredgewidth=1.3,
            linestyle="none",
        )


def _family(record: Mapping[str, Any]) -> str:
    """The grid or pattern without its bits and number of kept inputs, so that bit widths share a colour."""
    text = str(record["grid"])
    if record["family"] == "joint":
        text = re.sub(r"(?<=^joint )\d-bit ", "", text)
    if record["family"] in ("pruning", "joint"):
        return re.sub(r" k=\d+ of \d+", "", text)
    return re.sub(r"^\S*-bit ", "", text)


def _ordered(names: Any) -> list[str]:
    return list(dict.fromkeys(names))


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
