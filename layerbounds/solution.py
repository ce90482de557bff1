"""Certified intervals and the weights that reach their upper ends."""

from __future__ import annotations

import functools
import math
import os
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from layerbounds.arguments import flag, one_of
from layerbounds.arrays import Float, Int
from layerbounds.certificates.writing import write_certificate
from layerbounds.certify.solution_file import read_solution, write_solution
from layerbounds.display import Bar, Displayed, Shape, Summary, Table, picture
from layerbounds.display.outward import ends
from layerbounds.exceptions import UnprovenWarning
from layerbounds.frames import Kind, data_frame
from layerbounds.layers.files import write_tensors
from layerbounds.layers.layer import Layer
from layerbounds.problems.grids import Grid
from layerbounds.problems.problem import Problem
from layerbounds.problems.rows import noun, rows_text
from layerbounds.proofs import BoundKind, Evidence, Status, TracePoint
from layerbounds.scheduling.evidence import together_again


@dataclass(frozen=True, eq=False, repr=False)
class Solution(Displayed):
    """Certified intervals for some output channels of a problem.

    All arrays but the weights have one entry for each set of rows, in the order of ``sets``: single channels, unless
    the problem couples them.

    Attributes
    ----------
    problem : Problem
    channels : list of int
    sets : list of list of int
        The output channels of each entry.
    lower_bound, upper_bound : ndarray of shape (sets,)
        Rounded outward; ``lower_bound <= min f <= upper_bound``.
    weights : ndarray of shape (channels, *weight.shape[1:])
        Allowed weights that reach ``upper_bound``, in the order of ``channels``.
    status : list of Status
    bound_kind : list of BoundKind
    claimed_lower_bound : ndarray of shape (sets,)
        What a foreign solver says, NaN otherwise and where it contradicts feasible weights. Never used for
        ``lower_bound``.
    energy : ndarray of shape (sets,)
        f(0), the error of removing the channels.
    seconds : ndarray of shape (sets,)
        Time of the search.
    nodes : ndarray of int64, shape (sets,)
    trace : list of list of TracePoint
    preparation_seconds : float
        Time of the work that the channels share, compilation included.
    backend : str
        As it was asked for.
    lower_backend, upper_backend : list of str
        What gave each end: with ``auto`` a channel may have one of ``batched`` and one of ``native``; the lower end of
        a foreign solver that hands over no dual point is ``native``.
    notes : dict of int to tuple of str
        By the first channel of a set: what was refused of a foreign solver's answer, and what has to be known about it.
    certified_trace : bool
        False where the lower bounds of the traces are claims of a foreign solver.
    evidence : list of Evidence
        What each lower end was derived from, for certificates; empty in a solution that was read from a file, of which
        certificates find it anew.

    Examples
    --------
    >>> solution.channels, solution.sets
    ([0, 1], [[0], [1]])
    >>> solution.weights.shape
    (2, 1, 3, 3)
    """

    problem: Problem
    channels: list[int]
    sets: list[list[int]]
    lower_bound: Float
    upper_bound: Float
    weights: Float
    status: list[Status]
    bound_kind: list[BoundKind]
    claimed_lower_bound: Float
    energy: Float
    seconds: Float
    nodes: Int
    trace: list[list[TracePoint]]
    preparation_seconds: float
    backend: str
    lower_backend: list[str]
    upper_backend: list[str]
    interrupted: bool = field(default=False)
    notes: dict[int, tuple[str, ...]] = field(default_factory=dict)
    certified_trace: bool = True
    evidence: list[Evidence] = field(default_factory=list)

    @property
    def backends_used(self) -> list[str]:
        """The backends that gave at least one of the ends."""
        return list(dict.fromkeys([*self.lower_backend, *self.upper_backend]))

    def _relative(self, value: Float) -> Float:
        return np.asarray(np.divide(value, self.energy, out=np.full(len(value), np.nan), where=self.energy > 0))

    @property
    def relative_lower_bound(self) -> Float:
        """Lower bound / f(0); NaN where f(0) = 0."""
        return self._relative(self.lower_bound)

    @property
    def relative_upper_bound(self) -> Float:
        """Upper bound / f(0); NaN where f(0) = 0."""
        return self._relative(self.upper_bound)

    @property
    def sqnr_db(self) -> Float:
        """−10·log10(relative error), shape (sets, 2): from the upper bound, from the lower bound."""
        pair = np.stack([self.relative_upper_bound, self.relative_lower_bound], axis=1)
        with np.errstate(divide="ignore"):
            return np.asarray(-10.0 * np.log10(pair))

    @property
    def gap(self) -> Float:
        """(upper − lower) / upper, 0 where the upper bound is 0."""
        return np.divide(
            self.upper_bound - self.lower_bound,
            self.upper_bound,
            out=np.zeros(len(self.sets)),
            where=self.upper_bound > 0,
        )

    @functools.cached_property
    def _scales(self) -> tuple[Float, Float] | tuple[None, None]:
        return self.problem.scales(self._matrix, self.channels)

    @property
    def _matrix(self) -> Float:
        return np.asarray(self.weights.reshape(len(self.channels), -1))

    @property
    def scale(self) -> Float | None:
        """Step sizes of the weights, shape (rows, scale groups): found or given; None where there are none."""
        return self._scales[0]

    @property
    def zero_point(self) -> Float | None:
        """Zero points of the weights, in the shape of ``scale``: found or given; None where there are none."""
        return self._scales[1]

    @property
    def offset(self) -> Float | None:
        """What the grid adds to its levels, in the shape of ``scale``; None where that is nothing."""
        grid = getattr(self.problem, "grid", None)
        return grid.offset[list(self.channels)] if isinstance(grid, Grid) and np.any(grid.offset) else None

    @property
    def kept_units(self) -> list[list[int]] | None:
        """Which units of the pattern each of ``sets`` keeps, such as input channels; None where no mask is shared."""
        return self.problem.kept_units(self._matrix, self.channels)

    @functools.cached_property
    def grid(self) -> Grid | None:
        """The grid that the weights are on, None where there is none.

        Where scales are free it has those that were found, a row for each of ``channels``; else it is the problem's.
        """
        return self.problem.grid_of(self._matrix, self.channels)

    def totals(self) -> dict[str, Any]:
        """Sums over the solved channels, with the interval of the summed error.

        Examples
        --------
        >>> totals = solution.totals()
        >>> totals["lower_bound"] <= totals["upper_bound"]
        True
        """
        lower, upper, energy = (float(np.sum(a)) for a in (self.lower_bound, self.upper_bound, self.energy))
        return {
            "channels": len(self.channels),
            "sets": len(self.sets),
            "optimal": sum(s == Status.OPTIMAL for s in self.status),
            "lower_bound": lower,
            "upper_bound": upper,
            "energy": energy,
            "relative_lower_bound": _ratio(lower, energy),
            "relative_upper_bound": _ratio(upper, energy),
            "sqnr_db": [_decibel(_ratio(upper, energy)), _decibel(_ratio(lower, energy))],
            "seconds": float(np.sum(self.seconds)),
            "nodes": int(np.sum(self.nodes)),
            "preparation_seconds": self.preparation_seconds,
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything but the weights, ready for JSON: infinite and undefined numbers become None.

        Examples
        --------
        >>> [entry["status"] for entry in solution.to_dict()["channels"]]
        ['optimal', 'optimal']
        """
        layer = self.problem.layer
        sqnr = self.sqnr_db
        position = {channel: i for i, channel in enumerate(self.channels)}

        def levels(rows: list[int]) -> dict[str, Any]:
            if self.scale is None or self.zero_point is None:
                return {}
            indices, offset = [position[c] for c in rows], self.offset
            return {
                "scale": self.scale[indices].tolist(),
                "zero_point": self.zero_point[indices].tolist(),
                **({} if offset is None else {"offset": offset[indices].tolist()}),
            }

        kept = self.kept_units
        entries = [
            {
                "channel": rows[0] if len(rows) == 1 else None,
                "rows": rows,
                "lower_bound": float(self.lower_bound[i]),
                "upper_bound": float(self.upper_bound[i]),
                "relative_lower_bound": _finite(self.relative_lower_bound[i]),
                "relative_upper_bound": _finite(self.relative_upper_bound[i]),
                "sqnr_db": [_finite(sqnr[i, 0]), _finite(sqnr[i, 1])],
                "gap": float(self.gap[i]),
                "status": str(self.status[i]),
                "bound_kind": str(self.bound_kind[i]),
                "lower_bound_backend": self.lower_backend[i],
                "upper_bound_backend": self.upper_backend[i],
                "claimed_lower_bound": _finite(self.claimed_lower_bound[i]),
                "notes": list(self.notes.get(rows[0], ())),
                "energy": float(self.energy[i]),
                "seconds": float(self.seconds[i]),
                "nodes": int(self.nodes[i]),
                **levels(rows),
                **({} if kept is None else {"kept": kept[i]}),
                "trace": [[p.seconds, p.nodes, p.lower, p.upper] for p in self.trace[i]],
            }
            for i, rows in enumerate(self.sets)
        ]
        return {
            "problem": {
                "layer": layer.name,
                "weight_shape": list(layer.weight.shape),
                "inputs": layer.in_features,
                "groups": layer.groups,
                "allowed": self.problem.label,
                "fingerprint": self.problem.fingerprint(),
                "samples": layer.samples,
                "dead_inputs": [r.dead for r in layer.gram_reports],
            },
            "backend": self.backend,
            "certified_trace": self.certified_trace,
            "interrupted": self.interrupted,
            "channels": entries,
            "layer": self.totals(),
        }

    def to_frame(self) -> Any:
        """A table with a row for each of ``sets``; the weights and traces are left out.

        Returns
        -------
        pandas.DataFrame
            ``layer``, ``problem``, ``channels`` (such as ``3`` or ``0:24``), and the fields of `to_dict` that
            are one number or text: ``lower_bound``, ``upper_bound``, both relative to ``energy``, ``sqnr_db`` (reached)
            and ``best_sqnr_db`` (no weights exceed it), ``gap``, ``status``, …; ``bits_per_weight`` without scales and
            masks, ``bitmap_bits_per_weight`` with a mask of a bit for each unit, and the problem's ``fingerprint``.

        Raises
        ------
        MissingExtraError
            Without pandas.

        Examples
        --------
        >>> solution.to_frame()["channels"].tolist()
        ['0', '1']
        """
        problem = self.problem
        columns: dict[str, tuple[Kind, Any]] = {
            "layer": ("text", [problem.layer.name] * len(self.sets)),
            "problem": ("text", [problem.label] * len(self.sets)),
            "channels": ("text", [rows_text(rows) for rows in self.sets]),
            "lower_bound": ("real", self.lower_bound),
            "upper_bound": ("real", self.upper_bound),
            "relative_lower_bound": ("real", self.relative_lower_bound),
            "relative_upper_bound": ("real", self.relative_upper_bound),
            "sqnr_db": ("real", self.sqnr_db[:, 0]),
            "best_sqnr_db": ("real", self.sqnr_db[:, 1]),
            "gap": ("real", self.gap),
            "status": ("text", [str(status) for status in self.status]),
            "bound_kind": ("text", [str(kind) for kind in self.bound_kind]),
            "lower_bound_backend": ("text", self.lower_backend),
            "upper_bound_backend": ("text", self.upper_backend),
            "claimed_lower_bound": ("real", self.claimed_lower_bound),
            "energy": ("real", self.energy),
            "seconds": ("real", self.seconds),
            "nodes": ("whole", self.nodes),
            "bits_per_weight": ("real", [problem.storage()] * len(self.sets)),
            "bitmap_bits_per_weight": ("real", [problem.storage("bitmap")] * len(self.sets)),
            "fingerprint": ("text", [problem.fingerprint()] * len(self.sets)),
        }
        rows = [{name: values[i] for name, (_, values) in columns.items()} for i in range(len(self.sets))]
        return data_frame({name: kind for name, (kind, _) in columns.items()}, rows)

    def plot(
        self, path: str | os.PathLike[str] | None = None, *, kind: Literal["intervals", "trace"] = "intervals"
    ) -> Any:
        """Draw the certified interval of each channel, or how the intervals closed over time.

        Parameters
        ----------
        path : path-like, optional
            A file for the picture that ends in .svg, .png or .pdf.
        kind : {"intervals", "trace"}
            Errors relative to f(0) by channel, or bounds by time.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        MissingExtraError
            Without matplotlib.
        InputError
            If no picture can be written to the path.

        Examples
        --------
        >>> figure = solution.plot("intervals.svg")
        >>> figure.axes[0].get_xlabel()
        'output channel'
        """
        return picture(self, path, kind=one_of(kind, "kind", ("intervals", "trace")))

    def _summary(self) -> Summary:
        totals, layer = self.totals(), self.problem.layer
        count = totals["sets"]
        part = "" if totals["channels"] == layer.out_features else f" (the layer has {layer.out_features} channels)"
        facts = [f"{totals['optimal']} of {count} {noun(self.sets, count)} proven optimal{part}"]
        if totals["energy"] > 0:
            error = ends((totals["relative_lower_bound"], totals["relative_upper_bound"]), 4, 2)
            facts.append(f"error {error} % of f(0)")
            # An infinite ratio is None in the totals.
            reached, best = (math.inf if end is None else end for end in totals["sqnr_db"])
            facts.append(f"SQNR {ends((reached, best))} dB")
        seconds = totals["seconds"] + totals["preparation_seconds"]
        facts.append(f"{', '.join(self.backends_used)} in {seconds:.2f} s{', interrupted' if self.interrupted else ''}")
        return Summary(f"{layer.name} · {self.problem.label}", facts)

    def _tables(self) -> list[Table]:
        spans = np.stack([self.relative_lower_bound, self.relative_upper_bound], axis=1).tolist()
        rows: list[list[str | Bar | None]] = []
        for i, (span, sqnr, gap) in enumerate(zip(spans, self.sqnr_db.tolist(), self.gap.tolist(), strict=True)):
            error, name = ends(tuple(span), 4, 2), rows_text(self.sets[i])
            bar = Bar(span[0], span[1], f"{name}: {error} %") if self.energy[i] > 0 else None
            rows.append([name, error, bar, ends(tuple(sqnr)), f"{100.0 * gap:.2f}", str(self.status[i])])
        first = "channels" if any(len(members) > 1 for members in self.sets) else "channel"
        headings: dict[str, Shape] = {first: "text", "error, % of f(0)": "number", "certified interval": "bar"}
        return [Table({**headings, "SQNR, dB": "number", "gap, %": "number", "status": "text"}, rows, unit="%")]

    def save(self, path: str | os.PathLike[str], *, by_hash: bool = False) -> None:
        """Write everything but the evidence to one safetensors file, atomically, every bit (docs/certificates.md).

        Parameters
        ----------
        path : path-like
        by_hash : bool
            Whether of the layer's arrays, its Gram matrix above all, only their SHA-256 is stored: reading the solution
            then needs the layer.

        Raises
        ------
        InputError
            If the file cannot be written.

        Examples
        --------
        >>> solution.save("solution.safetensors")
        >>> lb.load_solution("solution.safetensors").channels
        [0, 1]
        """
        write_solution(path, vars(self), by_hash=flag(by_hash, "by_hash"))

    def save_certificate(self, path: str | os.PathLike[str], *, by_hash: bool = False) -> None:
        """Write the file of `save` with a proof of every lower end, for `layerbounds verify` and other checkers.

        Proofs of searches, and those of a solution that was read from a file, are found anew, in about the time of the
        searches. A lower end of which no proof is found, or none of a size that a file can hold, is lowered in the file
        to what its dual point proves. The file is verified before it is written.

        Parameters
        ----------
        path, by_hash
            As of `save`.

        Raises
        ------
        InputError
            If the file cannot be written.

        Warns
        -----
        UnprovenWarning
            Where a lower end in the file is smaller than here.

        Examples
        --------
        >>> solution.save_certificate("certificate.safetensors")
        >>> bool(lb.verify("certificate.safetensors"))
        True
        """
        position = {channel: i for i, channel in enumerate(self.channels)}
        weights = [self._matrix[[position[c] for c in rows]] for rows in self.sets]
        starts = [w[0] if len(w) == 1 else w for w in weights]
        evidence = self.evidence
        if len(evidence) != len(self.sets):
            evidence = together_again(self.problem, self.sets, self.bound_kind, self.lower_backend, starts)
        lowered = write_certificate(path, vars(self), evidence, starts, by_hash=flag(by_hash, "by_hash"))
        if lowered:
            warnings.warn(_lowered_text(lowered, len(self.sets)), UnprovenWarning, stacklevel=2)

    def save_weights(self, path: str | os.PathLike[str]) -> None:
        """Write the weights to a safetensors file: ``NAME.weight``, float64, and ``NAME.channels``.

        Where there are scales, ``NAME.scale`` and ``NAME.zero_point`` of shape (channels, scale groups), float64, and
        ``NAME.offset`` where the grid has any.

        Examples
        --------
        >>> solution.save_weights("weights.safetensors")
        """
        name = self.problem.layer.name
        tensors = {f"{name}.weight": self.weights, f"{name}.channels": np.asarray(self.channels, dtype=np.int64)}
        if self.scale is not None and self.zero_point is not None:
            tensors |= {f"{name}.scale": self.scale, f"{name}.zero_point": self.zero_point}
        if self.offset is not None:
            tensors[f"{name}.offset"] = self.offset
        write_tensors(
            path,
            tensors,
            {"layerbounds.allowed": self.problem.label, "layerbounds.fingerprint": self.problem.fingerprint()},
        )


def load_solution(path: str | os.PathLike[str], *, layer: Layer | None = None) -> Solution:
    """Read what `Solution.save` or `Solution.save_certificate` has written.

    Parameters
    ----------
    path : path-like
    layer : Layer, optional
        The layer, where the file has but the SHA-256 of its arrays.

    Raises
    ------
    FileFormatError
        If the file is missing, damaged, of another kind or of another version, or about another layer.

    Examples
    --------
    >>> solution.save("solution.safetensors")
    >>> same = lb.load_solution("solution.safetensors")
    >>> bool((same.upper_bound == solution.upper_bound).all())
    True
    """
    return Solution(**read_solution(path, layer))


def _lowered_text(lowered: list[list[int]], count: int) -> str:
    """What a certificate says less than its solution."""
    shown = ", ".join("+".join(map(str, rows)) for rows in lowered[:8]) + (", …" if len(lowered) > 8 else "")
    return (
        f"the certificate claims less than the solution for {len(lowered)} of {count} intervals (channels {shown}): "
        "what a dual point proves, as no proof of the rest was found that fits into a file"
    )


def _ratio(value: float, energy: float) -> float | None:
    return value / energy if energy > 0 else None


def _decibel(ratio: float | None) -> float | None:
    return -10.0 * float(np.log10(ratio)) if ratio is not None and ratio > 0 else None


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
