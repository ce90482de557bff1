"""The result: what each order reaches, beside the best that any joint choice can."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.display import INTERVAL, METHOD, Bar, Displayed, Shape, Summary, Table
from layerbounds.display.outward import ends
from layerbounds.frames import Kind, data_frame
from layerbounds.names import match_name
from layerbounds.proofs import OPTIMAL_RELATIVE

#: In place of an order: the two errors are proven to be the same, or nothing is proven.
EQUAL, OPEN = "equal", "open"


@dataclass(frozen=True, eq=False, repr=False)
class StageRecord(Displayed):
    """One stage of an order, for each channel.

    Attributes
    ----------
    definition : str
    towards_layer : bool
        Whether the stage measures f itself, not the error against the weights that it was given.
    method : str
        ``exact``, or the heuristic.
    problem : str
        The label of the problem that was solved.
    lower_bound, upper_bound : ndarray of shape (channels,)
        Certified for the stage's own error, given the weights that the stage before it left; of a heuristic, its error.
    weights : ndarray of shape (channels, n)
        What the stage left.
    proven : ndarray of bool, shape (channels,)
        Whether the weights are proven optimal for the stage; True for a heuristic, which is what it is.
    others : list of str
        Whether other weights (of another support, if the stage prunes) lie within 1e-6 of the stage's least error:
        ``none`` is proven, ``found``, ``unknown``, or ``not asked``, as of a last stage that measures f itself.
    """

    definition: str
    towards_layer: bool
    method: str
    problem: str
    lower_bound: Float
    upper_bound: Float
    weights: Float
    proven: Bool
    others: list[str]

    def _summary(self) -> Summary:
        total = math.fsum(self.lower_bound), math.fsum(self.upper_bound)
        return Summary(self.problem, [self.method, f"error of the stage {ends(total)}"])

    @property
    def determined(self) -> Bool:
        """Whether the stage has one result and it is the one found, shape (channels,)."""
        return np.array([p and o == "none" for p, o in zip(self.proven, self.others, strict=True)], dtype=bool)


@dataclass(frozen=True, eq=False, repr=False)
class OrderGap(Displayed):
    """Certified errors of orders of pruning and quantization, and of the joint optimum.

    Attributes
    ----------
    layer : str
    channels : list of int
    grid, pattern : str
        What was asked for, in words.
    scale_rule : str
        ``dense`` or ``kept``.
    definitions : dict of str to str
        What each order does, stage by stage; beside them the scale rule (``scale``) and the joint problem (``joint``).
    intervals : dict of str to ndarray of shape (channels, 2)
        For each order a certified interval of its error f: of the last stage, for the weights that the stages before it
        found.
    joint : ndarray of shape (channels, 2)
        Certified interval of the joint optimum; of the best one over `joint_at` where scales differ between orders.
    joint_at : dict of str to ndarray of shape (channels, 2)
        The joint optimum on the grid with which each order ended, which the order cannot beat.
    weights : dict of str to ndarray of shape (channels, n)
        What each order ended with, and what reaches the upper end of ``joint``, under that name.
    scale : dict of str to ndarray of shape (channels, scale groups)
        Of the grid with which each order ended.
    stages : dict of str to list of StageRecord
    energy : ndarray of shape (channels,)
        f(0).
    contestants : tuple of str
        The order that prunes first and the one that quantizes first that `winner` compares.
    joint_over_scales : ndarray of shape (channels, 2), or None
        Certified interval of the joint optimum over all scales, where it was asked for.
    seconds : float
    interrupted : bool
        After a Ctrl-C: orders that were not finished are missing; the intervals that are there hold.

    Examples
    --------
    >>> gap = lb.order_gap(layer, bits=3, k=4, orders=["PQ", "QP"], channels=[0], time_limit=1)
    >>> sorted(gap.intervals)
    ['PQ', 'QP']
    """

    layer: str
    channels: list[int]
    grid: str
    pattern: str
    scale_rule: str
    definitions: dict[str, str]
    intervals: dict[str, Float]
    joint: Float
    joint_at: dict[str, Float]
    weights: dict[str, Float]
    scale: dict[str, Float]
    stages: dict[str, list[StageRecord]]
    energy: Float
    contestants: tuple[str, str]
    joint_over_scales: Float | None = None
    seconds: float = 0.0
    interrupted: bool = field(default=False)

    @property
    def label(self) -> str:
        """One line that says what is compared."""
        return f"{self.layer} · {self.grid}, {self.pattern} · scale rule {self.scale_rule}"

    @property
    def ratio(self) -> dict[str, Float]:
        """Error of each order / joint optimum on its grid, as certified intervals of shape (channels, 2), ≥ 1."""
        return {name: _ratios(interval, self.joint_at[name]) for name, interval in self.intervals.items()}

    @property
    def settled(self) -> dict[str, Bool]:
        """Whether each order has one error, up to its interval; shape (channels,).

        Every stage that does not measure f itself, and every one before the last, must be proven optimal with no other
        weights within 1e-6: others would lead the next stage elsewhere.
        """
        result: dict[str, Bool] = {}
        for name, stages in self.stages.items():
            early = stages[:-1] if stages[-1].towards_layer else stages
            result[name] = np.all([stage.determined for stage in early], axis=0) if early else self._everywhere
        return result

    @property
    def _everywhere(self) -> Bool:
        return np.ones(len(self.channels), dtype=bool)

    @property
    def winner(self) -> list[str]:
        """Which of the `contestants` has the smaller error in each channel: its name, ``equal`` or ``open``."""
        return self._between_contestants(strict=True)

    @property
    def leader(self) -> list[str]:
        """What the intervals say of the weights that the first stages found, whether those are settled or not."""
        return self._between_contestants(strict=False)

    def _between_contestants(self, strict: bool) -> list[str]:
        """Open where one of them was not compared."""
        compared = all(name in self.intervals for name in self.contestants)
        return self.decide(*self.contestants, strict=strict) if compared else [OPEN] * len(self.channels)

    def decide(self, first: str, second: str, *, strict: bool = True) -> list[str]:
        """Compare two orders channel by channel.

        Parameters
        ----------
        first, second : str
            Keys of ``intervals``, or ``"joint"``.
        strict : bool
            Leave open what is not `settled`.

        Returns
        -------
        list of str
            For each channel the name of the one whose error is proven smaller; ``equal`` where both lie within 1e-6 of
            each other for certain; ``open`` otherwise.

        Raises
        ------
        UnknownNameError
            If there is no such order.

        Examples
        --------
        >>> gap = lb.order_gap(layer, bits=3, k=4, orders=["PQ", "QP"], channels=[0], time_limit=1)
        >>> gap.decide("joint", "QP", strict=False)
        ['joint']
        """
        pair = [match_name(name, [*self.intervals, "joint"], "order") for name in (first, second)]
        a, b = (self.joint if name == "joint" else self.intervals[name] for name in pair)
        fixed = self._everywhere
        for name in pair if strict else ():
            fixed = fixed & self.settled.get(name, self._everywhere)
        return [
            _decided(pair, x, y) if known else OPEN for x, y, known in zip(a.tolist(), b.tolist(), fixed, strict=True)
        ]

    def totals(self, name: str) -> tuple[float, float]:
        """Certified interval of an order's error (or of ``"joint"``), summed over the channels.

        Examples
        --------
        >>> gap = lb.order_gap(layer, bits=3, k=4, orders=["PQ", "QP"], channels=[0], time_limit=1)
        >>> gap.totals("PQ")[0] > 0
        True
        """
        interval = self.joint if name == "joint" else self.intervals[match_name(name, list(self.intervals), "order")]
        low, high = (math.fsum(end) for end in interval.T)
        return (low, high) if len(interval) == 1 else (math.nextafter(low, 0.0), math.nextafter(high, math.inf))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the weights, ready for JSON: infinite and undefined numbers become None.

        Examples
        --------
        >>> gap = lb.order_gap(layer, bits=3, k=4, orders=["PQ", "QP"], channels=[0], time_limit=1)
        >>> gap.to_dict()["layer"]
        'conv1'
        """
        ratio, settled, winner, leader = self.ratio, self.settled, self.winner, self.leader

        def order(name: str, i: int) -> dict[str, Any]:
            stages = [
                {
                    "definition": stage.definition,
                    "method": stage.method,
                    "problem": stage.problem,
                    "lower_bound": _finite(stage.lower_bound[i]),
                    "upper_bound": _finite(stage.upper_bound[i]),
                    "proven": bool(stage.proven[i]),
                    "others_within_1e-6": stage.others[i],
                }
                for stage in self.stages[name]
            ]
            return {
                **_span(self.intervals[name][i], self.energy[i]),
                "ratio": [_finite(end) for end in ratio[name][i]],
                "joint": _span(self.joint_at[name][i], self.energy[i]),
                "settled": bool(settled[name][i]),
                "scale": self.scale[name][i].tolist(),
                "stages": stages,
            }

        return {
            "layer": self.layer,
            "grid": self.grid,
            "pattern": self.pattern,
            "scale_rule": self.scale_rule,
            "definitions": dict(self.definitions),
            "contestants": list(self.contestants),
            "interrupted": self.interrupted,
            "seconds": self.seconds,
            "channels": [
                {
                    "channel": channel,
                    "energy": float(self.energy[i]),
                    "winner": winner[i],
                    "winner_for_the_weights_found": leader[i],
                    "joint": _span(self.joint[i], self.energy[i]),
                    "joint_over_scales": None
                    if self.joint_over_scales is None
                    else _span(self.joint_over_scales[i], self.energy[i]),
                    "orders": {name: order(name, i) for name in self.intervals},
                }
                for i, channel in enumerate(self.channels)
            ],
        }

    def to_frame(self) -> Any:
        """A table with a row for each order and channel, and for the joint optimum of each channel.

        Returns
        -------
        pandas.DataFrame
            ``layer``, ``order`` (or ``joint``), ``definition``, ``channel``, ``lower_bound``, ``upper_bound``, the ends
            of the ratio to the joint optimum, ``settled`` and ``energy``; ratios and ``settled`` of the joint optimum
            are missing.

        Raises
        ------
        MissingExtraError
            Without pandas.

        Examples
        --------
        >>> gap = lb.order_gap(layer, bits=3, density=0.5, channels=[0], time_limit=1)
        >>> "joint" in gap.to_frame()["order"].tolist()
        True
        """
        kinds: dict[str, Kind] = {"layer": "text", "order": "text", "definition": "text", "channel": "whole"}
        kinds |= dict.fromkeys(("lower_bound", "upper_bound", "at_least_ratio", "at_most_ratio"), "real")
        kinds |= {"settled": "truth", "energy": "real"}
        ratio, settled = self.ratio, self.settled
        rows: list[dict[str, Any]] = []
        for name, interval in {**self.intervals, "joint": self.joint}.items():
            joint = name == "joint"
            for i, channel in enumerate(self.channels):
                low, high = (None, None) if joint else ratio[name][i]
                row = {"layer": self.layer, "order": name, "definition": self.definitions.get(name), "channel": channel}
                row |= {"lower_bound": interval[i, 0], "upper_bound": interval[i, 1], "energy": self.energy[i]}
                row |= {"at_least_ratio": low, "at_most_ratio": high, "settled": None if joint else settled[name][i]}
                rows.append(row)
        return data_frame(kinds, rows)

    def _summary(self) -> Summary:
        count = len(self.channels)
        energy = math.fsum(self.energy)
        spans = {name: self._share(name, energy) for name in ["joint", *self.intervals]}
        facts = [f"{count} channel{'' if count == 1 else 's'}"]
        facts += [f"{name}: error {ends(span, 4, 2)} %" for name, span in spans.items()]
        return Summary(self.label + (" · interrupted" if self.interrupted else ""), facts, True)

    def _share(self, name: str, energy: float) -> tuple[float, float] | None:
        low, high = self.totals(name)
        return (low / energy, high / energy) if energy > 0 else None

    def _tables(self) -> list[Table]:
        energy = math.fsum(self.energy)
        rows: list[list[str | Bar | None]] = []
        for name in ["joint", *self.intervals]:
            span = self._share(name, energy)
            words, colour = ends(span, 4, 2), INTERVAL if name == "joint" else METHOD
            bar = None if span is None else Bar(*span, f"{name}: {words} %", colour)
            rows.append([name, self.definitions.get(name, ""), words, bar])
        kinds: dict[str, Shape] = {"order": "text", "what it does": "text", "error, % of f(0)": "number"}
        count = Counter(self.winner)
        found = ", ".join(f"{name} in {times}" for name, times in count.items())
        note = f"smaller of {' and '.join(self.contestants)}: {found} of {len(self.channels)} channels"
        return [Table({**kinds, "certified interval": "bar"}, rows, note=note, unit="%")]

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the ratios to the joint optimum.

        Parameters
        ----------
        path : path-like, optional
            A file for the picture that ends in .svg, .png or .pdf.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        MissingExtraError
            Without matplotlib.

        Examples
        --------
        >>> gap = lb.order_gap(layer, bits=3, k=4, orders=["PQ", "QP"], channels=[0], time_limit=1)
        >>> figure = gap.plot("orders.svg")
        """
        from layerbounds.orders.picture import orders_figure
        from layerbounds.report.pictures import finished

        return finished(orders_figure, [self], path)


def _decided(names: Sequence[str], a: Sequence[float], b: Sequence[float]) -> str:
    high = max(a[1], b[1])
    if high - min(a[0], b[0]) <= OPTIMAL_RELATIVE * high:
        return EQUAL
    if a[1] < b[0]:
        return names[0]
    return names[1] if b[1] < a[0] else OPEN


def _ratios(order: Float, joint: Float) -> Float:
    """Intervals of order/joint, rounded outward; 1 where both are zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        low = np.nextafter(order[:, 0] / joint[:, 1], 0.0)
        high = np.nextafter(order[:, 1] / joint[:, 0], np.inf)
    # The joint optimum is among what an order can choose from.
    low = np.where(np.isfinite(low), np.maximum(low, 1.0), 1.0)
    return np.stack([low, np.where(np.isnan(high), 1.0, np.maximum(high, 1.0))], axis=1)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _span(interval: Float, energy: float) -> Mapping[str, float | None]:
    relative = [_finite(end / energy) if energy > 0 else None for end in interval]
    return {
        "lower_bound": _finite(interval[0]),
        "upper_bound": _finite(interval[1]),
        "relative_lower_bound": relative[0],
        "relative_upper_bound": relative[1],
    }
