"""The picture of orders: how many times the joint optimum each ends at; it needs the `plot` extra."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from layerbounds.exceptions import InputError
from layerbounds.orders.gap import OrderGap
from layerbounds.report.figures import new_figure, save_figure

#: Of the palette of Okabe and Ito: what prunes first in warm colours, what quantizes first in cold ones.
_COLOURS = {"PQ": "#D55E00", "MQ": "#E69F00", "MQb": "#CC79A7", "QP": "#0072B2", "QPQ": "#56B4E9"}


def plot_orders(gaps: Sequence[OrderGap], path: str | os.PathLike[str], *, title: str | None = None) -> None:
    """Draw the certified ratios of orders to the joint optimum, a line for each channel.

    Orders with exact stages are filled, those with heuristic stages hollow. A line without an upper end leaves the
    picture.

    Parameters
    ----------
    gaps : sequence of OrderGap
        A group of columns each.
    path : path-like
        Ends in .svg, .png or .pdf.
    title : str, optional
    """
    save_figure(orders_figure(gaps, title=title), path)


def orders_figure(gaps: Sequence[OrderGap], *, title: str | None = None) -> Any:
    """The picture of orders, as `plot_orders` writes it.

    Parameters
    ----------
    gaps : sequence of OrderGap
        A group of columns each.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    shown = [gap for gap in gaps if gap.intervals]
    if not shown:
        raise InputError("there are no orders to draw; let at least one be finished.")
    names = list(dict.fromkeys(name for gap in shown for name in gap.intervals))
    figure, axes = new_figure(max(6.0, 1.2 + len(shown) * (0.35 + 0.16 * len(names))), 4.2, 1)
    ratios = [gap.ratio for gap in shown]
    finite = [end for ratio in ratios for name in ratio for end in ratio[name].ravel().tolist() if math.isfinite(end)]
    top = 1.3 * max(finite, default=10.0)
    slot = 0.86 / len(names)
    for group, (gap, ratio) in enumerate(zip(shown, ratios, strict=True)):
        for place, name in enumerate(names):
            if name not in ratio:
                continue
            order, _, pair = name.partition(" ")
            colour = _COLOURS.get(order, "0.4")
            centre = group + (place - (len(names) - 1) / 2) * slot
            count = len(gap.channels)
            for i, (low, high) in enumerate(ratio[name].tolist()):
                x = centre + (0.7 * slot * ((i + 0.5) / count - 0.5) if count > 1 else 0.0)
                axes.plot([x, x], [low, min(high, 1.05 * top)], color=colour, linewidth=1.1, solid_capstyle="butt")
                if math.isfinite(high):
                    face = "white" if pair else colour
                    middle = math.sqrt(low * high)
                    axes.plot(x, middle, "s" if pair else "o", color=colour, markerfacecolor=face, markersize=3.2)
    for name in names:
        order, _, pair = name.partition(" ")
        colour = _COLOURS.get(order, "0.4")
        face = "white" if pair else colour
        axes.plot([], [], "s" if pair else "o", color=colour, markerfacecolor=face, label=name, markersize=5)
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.set_yscale("log", subs=(2, 3, 5))
    for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatted("{x:g}")
    axes.set_ylim(0.96, top)
    axes.set_xticks(range(len(shown)), [_column(gap, shown) for gap in shown], fontsize=8)
    axes.set_ylabel("error / joint optimum")
    axes.set_title(title or f"orders of pruning and quantization, scale rule {shown[0].scale_rule}", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, frameon=False)
    return figure


def _column(gap: OrderGap, gaps: Sequence[OrderGap]) -> str:
    """What tells a group from the others, in lines."""
    width = gap.grid.split(",")[0].removesuffix(" symmetric")
    parts = [width, gap.pattern.replace("unstructured ", "")]
    if len({other.layer for other in gaps}) > 1:
        parts.insert(0, gap.layer)
    if len({other.scale_rule for other in gaps}) > 1:
        parts.append(f"scales {gap.scale_rule}")
    return "\n".join(parts)
