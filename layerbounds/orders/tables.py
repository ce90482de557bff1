"""Tables of orders: sums over the channels, and which order wins in each."""

from __future__ import annotations

import math

import numpy as np
from rich.table import Table
from rich.text import Text

from layerbounds.orders.gap import EQUAL, OPEN, OrderGap, StageRecord
from layerbounds.orders.others import FOUND, NONE
from layerbounds.report.tables import MISSING, _number, _span, _table, _text, significant

_STYLE = {EQUAL: "cyan", OPEN: "yellow"}


def order_tables(gap: OrderGap) -> list[Table]:
    """What each order reaches over all channels, and what is decided in each.

    Numbers are rounded to the nearest for reading; `OrderGap.to_dict` has them in full.

    Parameters
    ----------
    gap : OrderGap

    Returns
    -------
    list of rich.table.Table
    """
    return [_sums(gap), _channels(gap)] if gap.intervals else []


def _sums(gap: OrderGap) -> Table:
    count = len(gap.channels)
    table = _table(f"{gap.label} · {count} channel{'' if count == 1 else 's'}")
    _text(table, "order")
    for heading in ("error %", "× joint", "× joint, mean"):
        _number(table, heading)
    _text(table, "settled")
    energy = math.fsum(gap.energy)
    ratio, settled = gap.ratio, gap.settled
    low, high = gap.totals("joint")
    table.add_row(Text("joint", style="bold"), _percents((low, high), energy), "1", "1", MISSING)
    if gap.joint_over_scales is not None:
        ends = tuple(math.fsum(end) for end in gap.joint_over_scales.T)
        table.add_row(Text("joint, all scales", style="bold"), _percents(ends, energy), "", "", MISSING)
    for name in gap.intervals:
        joint = (math.fsum(end) for end in gap.joint_at[name].T)
        mean = np.exp(np.mean(np.log(ratio[name]), axis=0))
        table.add_row(
            name,
            _percents(gap.totals(name), energy),
            _times(_over(gap.totals(name), (next(joint), next(joint)))),
            _times((float(mean[0]), float(mean[1]))),
            f"{int(np.count_nonzero(settled[name]))} of {count}",
        )
    return table


def _channels(gap: OrderGap) -> Table:
    first, last = gap.contestants
    table = _table(f"{first} against {last}, by channel")
    _number(table, "channel")
    for heading in ("joint %", f"{first} %", f"{last} %"):
        _number(table, heading)
    for heading in ("winner", "best of all", "why open"):
        _text(table, heading)
    winner, best = gap.winner, best_orders(gap)
    for i, channel in enumerate(gap.channels):
        energy = float(gap.energy[i])
        cells = [_percents(tuple(gap.joint[i]), energy)]
        cells += [
            _percents(tuple(gap.intervals[n][i]), energy) if n in gap.intervals else MISSING for n in (first, last)
        ]
        why = open_because(gap, i) if winner[i] == OPEN else ""
        table.add_row(str(channel), *cells, Text(winner[i], style=_STYLE.get(winner[i], "green")), best[i], why)
    return table


def best_orders(gap: OrderGap) -> list[str]:
    """For each channel the order that is proven to be no worse than any other; ``open`` where there is none."""
    names = list(gap.intervals)
    result = [OPEN] * len(gap.channels)
    for name in names:
        against = [gap.decide(name, other) for other in names if other != name]
        for i in range(len(result)):
            if result[i] == OPEN and all(verdicts[i] in (name, EQUAL) for verdicts in against):
                result[i] = name
    return result


def open_because(gap: OrderGap, channel: int) -> str:
    """Why the contestants are not decided between in a channel, by its position."""
    reasons = []
    for name in gap.contestants:
        if name not in gap.stages:
            return f"{name} was not compared"
        stages = gap.stages[name]
        for number, stage in enumerate(stages if not stages[-1].towards_layer else stages[:-1], 1):
            reason = _undetermined(stage, channel)
            if reason:
                reasons.append(f"{name} stage {number}: {reason}")
                break
    return "; ".join(reasons) or "the intervals overlap"


def _undetermined(stage: StageRecord, i: int) -> str:
    if not stage.proven[i]:
        return "unproven"
    return {NONE: "", FOUND: "others within 1e-6"}.get(stage.others[i], "others not excluded")


def definition_lines(gap: OrderGap) -> list[str]:
    """What each name stands for, one line each."""
    return [f"{name}: {text}" for name, text in gap.definitions.items()]


def _percents(interval: tuple[float, ...], energy: float) -> str:
    if not energy > 0:
        return MISSING
    return _span(*(significant(100.0 * end / energy, 3) for end in interval))


def _times(interval: tuple[float, float]) -> str:
    return _span(*(significant(end, 3) for end in interval))


def _over(order: tuple[float, float], joint: tuple[float, float]) -> tuple[float, float]:
    """The ratio of two sums in intervals; at least 1, as the joint optimum is among what an order chooses from."""
    low = max(order[0] / joint[1], 1.0) if joint[1] > 0 else 1.0
    high = order[1] / joint[0] if joint[0] > 0 else (math.inf if order[1] > 0 else 1.0)
    return low, max(high, 1.0)
