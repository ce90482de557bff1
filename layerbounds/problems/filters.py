"""Filter pruning: whole output channels are kept or dropped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerbounds.arguments import flag, real_number, whole_number
from layerbounds.arrays import Float, Int
from layerbounds.exceptions import InputError
from layerbounds.layers.layer import Layer, as_layer
from layerbounds.problems.kept_rows import KeptRows
from layerbounds.problems.output_metrics import output_metric
from layerbounds.problems.patterns import Structure
from layerbounds.problems.patterns.filters import Filter
from layerbounds.problems.problem import Problem, whole_sets
from layerbounds.problems.storage import Mask, total_mask_bits


@dataclass(frozen=True, eq=False, repr=False)
class FilterProblem(Problem):
    """At most k output channels of each group of a layer are other than zero.

    Without a metric the error is the sum of the output channels' errors. With a metric Q an error e of the outputs
    counts eᵀQe, tr(Q D H Dᵀ) for weights that differ from the target by D; kept channels that are re-fitted then make
    up for what the dropped ones lose.

    Attributes
    ----------
    layer : Layer
    kept : int
        Output channels that may be kept in each group.
    refit : bool
        Whether kept weights may take any value; otherwise they keep the original one.
    metrics : ndarray of shape (groups, rows, rows) or None
        Q of each group's output channels.

    Examples
    --------
    >>> lb.pruning_problem(layer, k=12, pattern="filter").label
    'pruning filter k=12 of 16 refit'
    """

    kept: int
    refit: bool
    metrics: Float | None = None

    family = "pruning"
    adjusted = "pruned to the pattern"

    def __post_init__(self) -> None:
        as_layer(self.layer)
        whole_number(self.kept, "kept", 0, self._rows)
        flag(self.refit, "refit")
        if self.metrics is not None:
            object.__setattr__(self, "metrics", output_metric(self.metrics, self.layer, bool(self.refit)))

    @property
    def _rows(self) -> int:
        return self.layer.out_features // self.layer.groups

    @property
    def label(self) -> str:
        """One line that says what is allowed."""
        metric = "" if self.metrics is None else ", with an output metric"
        bias = ", bias re-fitted" if self.layer.bias == "refit" else ""
        return f"pruning filter k={self.kept} of {self._rows} {'refit' if self.refit else 'mask only'}{metric}{bias}"

    @property
    def requirement(self) -> str:
        """What a backend or heuristic must be able to treat."""
        return f"filter pruning {'with refit' if self.refit else 'masks'}"

    @property
    def pattern_kind(self) -> str:
        """``filter``."""
        return self.pattern.kind

    @property
    def pattern(self) -> Filter:
        """What drops output channels."""
        return Filter()

    @property
    def bits_per_weight(self) -> float:
        """16 times the kept fraction."""
        return 16.0 * self.kept / self._rows

    def storage(self, mask: Mask = "none") -> float:
        """With the masks' bits."""
        return self.bits_per_weight + self.masks_bits(mask) / self.layer.weight.size

    def masks_bits(self, mask: Mask) -> int:
        """Bits of all masks of the layer, one for each group.

        Examples
        --------
        >>> lb.pruning_problem(layer, k=12, pattern="filter").masks_bits("bitmap")
        16
        """
        units = np.zeros(self._rows, dtype=np.int64)
        structure = Structure(np.arange(self._rows), units, np.array([self.kept], dtype=np.int64))
        return self.layer.groups * total_mask_bits(structure, mask)

    def metric(self, channel: int) -> Float | None:
        """Of the output channels of a channel's group."""
        return None if self.metrics is None else np.asarray(self.metrics[self.layer.group_of(channel)])

    def sets(self, channels: Sequence[int]) -> list[list[int]]:
        """All output channels of a group, as they compete for being kept."""
        return whole_sets(self._group_rows, channels, "the number of those that are kept")

    def _group_rows(self, channel: int) -> range:
        rows = self.layer.group_rows()[self.layer.group_of(channel)]
        return range(rows.start, rows.stop)

    def allowed(self, channel: int) -> KeptRows:
        """The rows of a channel's group."""
        idle = ~self.layer.live(self.layer.group_of(channel))
        return KeptRows(self.layer.matrix[self._group_rows(channel)], self.kept, self.refit, idle)

    def excess(self, matrix: Float, channels: Sequence[int]) -> Int:
        """Output channels that are kept beyond the number."""
        pairs = self._per_set(matrix, channels)
        return np.array([self.allowed(s[0]).excess(np.atleast_2d(w)) for s, w in pairs], dtype=np.int64)

    def kept_units(self, matrix: Float, channels: Sequence[int]) -> list[list[int]]:
        """The output channels that are other than zero."""
        pairs = self._per_set(matrix, channels)
        return [[c for c, row in zip(s, np.atleast_2d(w), strict=True) if np.any(row)] for s, w in pairs]

    def row_template(self, channel: int) -> Float:
        """Weights of the channel's dead inputs, where it is dropped."""
        return np.zeros(self.layer.in_features)

    def complete(self, channel: int, weights: Float) -> Float:
        """A channel that is kept keeps its weights of dead inputs, too."""
        row = self.layer.matrix[channel].copy() if np.any(weights) else self.row_template(channel)
        row[self.layer.live(self.layer.group_of(channel))] = weights
        return row

    def like(self, layer: Layer) -> FilterProblem:
        """Half of the output channels kept, with a metric where there is one."""
        rows = layer.out_features // layer.groups
        # Nothing is known of how errors that no weights repair are correlated.
        plain = self.metrics is None or bool(np.any(layer.constant > 0.0))
        metrics = None if plain else np.tile(np.eye(rows) + 0.5, (layer.groups, 1, 1))
        return FilterProblem(layer, rows // 2, self.refit, metrics)

    def rule(self) -> bytes:
        """The label and the metric."""
        metric = b"" if self.metrics is None else np.ascontiguousarray(self.metrics).tobytes()
        return f"{self.label}/{self.layer.gram.shape}".encode() + metric


def filter_problem(layer: Layer, density: float | None, k: int | None, refit: bool, metric: Any) -> FilterProblem:
    """The problem of a checked layer, from the arguments of `pruning_problem`."""
    rows = layer.out_features // layer.groups
    if (density is None) == (k is None):
        raise InputError("pattern filter needs to know how many output channels are kept; pass either density or k.")
    if density is not None:
        density = real_number(density, "density", 0.0, 1.0, "fraction of kept output channels")
        kept = math.floor(density * rows + 1e-9)
    else:
        where = f"of layer {layer.name!r}" if layer.groups == 1 else f"of each group of layer {layer.name!r}"
        kept = whole_number(k, f"k, the kept output channels {where},", 0, rows)
    return FilterProblem(layer, kept, refit, metric)
