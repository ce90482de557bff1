"""Pruning problems: a layer plus the sparsity that its output channels must have."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arguments import flag, one_of, real_number, shown, whole_number
from layerbounds.arrays import Float, Int
from layerbounds.exceptions import InputError
from layerbounds.layers.bias import Bias, apply_bias
from layerbounds.layers.layer import Layer, as_layer
from layerbounds.problems.allowed import AllowedSet
from layerbounds.problems.filters import FilterProblem, filter_problem
from layerbounds.problems.parts import Parts
from layerbounds.problems.patterns import Pattern, Shape, Structure, as_pattern
from layerbounds.problems.patterns.filters import Filter
from layerbounds.problems.patterns.single_rows import AXES, NOfM
from layerbounds.problems.patterns.tiles import Tiled
from layerbounds.problems.problem import Problem, whole_sets
from layerbounds.problems.shared_support import SharedSupport
from layerbounds.problems.storage import Mask, total_mask_bits
from layerbounds.problems.support import Support
from layerbounds.problems.tiled_support import TiledSupport

#: Bits of a dense weight: a density d counts as 16·d bits per weight.
DENSE_BITS = 16


@dataclass(frozen=True, eq=False, repr=False)
class PruningProblem(Problem):
    """The nonzero weights of every output channel must fit a sparsity pattern.

    Attributes
    ----------
    layer : Layer
    pattern : Pattern
    kept : int
        Number k of inputs (or of the pattern's units, where it counts these) that may be kept, dead ones included; what
        an N:M pattern implies.
    refit : bool
        Whether kept weights may take any value; otherwise they keep the original one.
    share : int or None
        How many consecutive output channels have one mask; None for all that share a Gram matrix.

    Examples
    --------
    >>> lb.pruning_problem(layer, density=0.5).kept
    4
    """

    pattern: Pattern
    kept: int
    refit: bool
    share: int | None = 1

    family = "pruning"
    adjusted = "pruned to the pattern"

    def __post_init__(self) -> None:
        as_layer(self.layer)
        if not isinstance(self.pattern, Pattern):
            raise InputError(f"pattern is {shown(self.pattern)}; pass a Pattern, or call pruning_problem.")
        whole_number(self.kept, "kept", 0, self.pattern.total(self._shape))
        flag(self.refit, "refit")
        if self.share is not None:
            whole_number(self.share, "share", 1)
        if isinstance(self.pattern, Tiled) and self.share != self.pattern.rows:
            raise InputError(f"pattern {self.pattern.label} binds {self.pattern.rows} rows; leave out share.")

    @property
    def _shape(self) -> Shape:
        return self.layer.weight.shape[1:]

    @property
    def label(self) -> str:
        """One line that says what is allowed."""
        count = f" k={self.kept} of {self.pattern.total(self._shape)}" if self.pattern.needs_count else ""
        bias = ", bias re-fitted" if self.layer.bias == "refit" else ""
        rows = {None: ", one mask for all rows", 1: ""}.get(self.share, f", one mask for {self.share} rows")
        rows = "" if self.pattern.tiled else rows
        return f"pruning {self.pattern.label}{count} {'refit' if self.refit else 'mask only'}{rows}{bias}"

    @property
    def requirement(self) -> str:
        """What a backend or heuristic must be able to treat."""
        kind = "pruning with refit" if self.refit else "pruning masks"
        return f"tiled {kind}" if self.pattern.tiled else kind if self.share == 1 else f"shared {kind}"

    @property
    def pattern_kind(self) -> str:
        """The kind of the pattern, as in `layerbounds.problems.patterns`."""
        return self.pattern.kind

    @property
    def bits_per_weight(self) -> float:
        """16 times the kept fraction: the largest units that may be kept."""
        structure = self.structure
        largest = structure.keep_largest(np.bincount(structure.unit, minlength=len(structure.group)))
        return DENSE_BITS * float(np.mean(largest))

    def storage(self, mask: Mask = "none") -> float:
        """With the masks' bits."""
        return self.bits_per_weight + self.masks_bits(mask) / self.layer.weight.size

    def masks_bits(self, mask: Mask) -> int:
        """Bits of all masks of the layer.

        Examples
        --------
        >>> lb.pruning_problem(layer, density=0.5).masks_bits("bitmap")
        144
        """
        out = self.layer.out_features
        bands = len(self.sets(range(out)))
        if not isinstance(self.pattern, Tiled):
            return bands * total_mask_bits(self.structure, mask)
        choices = self.pattern.choices(self._shape)
        return sum((bands if once else out) * total_mask_bits(structure, mask) for structure, once in choices)

    @functools.cached_property
    def structure(self) -> Structure:
        """Units, groups and capacities over all inputs."""
        return self.pattern.structure(self._shape, self.kept)

    @property
    def parts(self) -> Parts | None:
        """Any values or the original ones, and the structure."""
        if self.refit and any(report.raised for report in self.layer.gram_reports):
            # Their error counts with another Gram matrix than that of other problems.
            return None
        if self.pattern.tiled:
            return Parts(None if self.refit else b"original", self.structure, False, limited=True)
        rows = self.layer.out_features // self.layer.groups
        share = 1 if rows == 1 else None if self.share is None or self.share >= rows else self.share
        return Parts(None if self.refit else b"original", self.structure, False, share)

    def sets(self, channels: Sequence[int]) -> list[list[int]]:
        """Single channels, or all rows that have one mask."""
        what = "tiles" if self.pattern.tiled else "one mask"
        return super().sets(channels) if self.share == 1 else whole_sets(self._set_of, channels, what)

    def _set_of(self, channel: int) -> range:
        """The rows that have one mask with a channel: of one group, the last ones may be fewer."""
        rows = self.layer.group_rows()[self.layer.group_of(channel)]
        share = rows.stop - rows.start if self.share is None else self.share
        begin = rows.start + (channel - rows.start) // share * share
        return range(begin, min(begin + share, rows.stop))

    def allowed(self, channel: int) -> AllowedSet:
        """The structure, and the weights that are kept."""
        if self.share == 1:
            return self.support(channel)
        if isinstance(self.pattern, Tiled):
            rows = self._set_of(channel)
            limits = self.pattern.limits(self._shape, len(rows))
            return TiledSupport(self.structure, limits, self.layer.matrix[list(rows)], self.refit)
        idle = ~self.layer.live(self.layer.group_of(channel))
        return SharedSupport(self.structure, self.layer.matrix[list(self._set_of(channel))], self.refit, idle)

    def support(self, channel: int) -> Support:
        """The structure and the weights of one channel on its own.

        Examples
        --------
        >>> lb.pruning_problem(layer, k=3).support(0).structure.capacity
        array([3])
        """
        idle = ~self.layer.live(self.layer.group_of(channel))
        return Support(self.structure, self.layer.matrix[channel], self.refit, idle)

    def excess(self, matrix: Float, channels: Sequence[int]) -> Int:
        """Those of the structure, or of the tiles."""
        if isinstance(self.pattern, Tiled):
            pairs = [(self.allowed(s[0]), w) for s, w in self._per_set(matrix, channels)]
            return np.array([tiled.excess(w) for tiled, w in pairs if isinstance(tiled, TiledSupport)], dtype=np.int64)
        return self.structure.excess(matrix if self.share == 1 else self._union(matrix, channels))

    def kept_units(self, matrix: Float, channels: Sequence[int]) -> list[list[int]] | None:
        """Units that have a weight other than zero in some row."""
        if self.share == 1 or self.pattern.tiled:
            return None
        return [np.flatnonzero(kept).tolist() for kept in self.structure.kept_units(self._union(matrix, channels))]

    def _union(self, matrix: Float, channels: Sequence[int]) -> Float:
        """For each set of rows one row that is zero where all of them are."""
        return np.stack([np.abs(np.atleast_2d(w)).max(axis=0) for _, w in self._per_set(matrix, channels)])

    def row_template(self, channel: int) -> Float:
        """Weights of the channel's dead inputs: they are dropped."""
        return np.zeros(self.layer.in_features)

    def like(self, layer: Layer) -> PruningProblem:
        """Half of the inputs kept, with a small pattern of the same kind."""
        pattern, shape = self.pattern.small(), layer.weight.shape[1:]
        total = pattern.total(shape)
        kept = total // 2 if pattern.needs_count else int(pattern.structure(shape, total).capacity.sum())
        return PruningProblem(layer, pattern, kept, self.refit, None if self.share is None else min(self.share, 2))

    def rule(self) -> bytes:
        """The label says it all, but for units that were given."""
        return f"{self.label}/{self.layer.gram.shape}".encode() + self.pattern.rule()


def pruning_problem(
    layer: Layer,
    *,
    density: float | None = None,
    k: int | None = None,
    pattern: str | Pattern | ArrayLike = "unstructured",
    share: int | Literal["all"] | None = None,
    axis: str | None = None,
    refit: bool = True,
    bits: int | None = None,
    bias: Bias = "keep",
    output_metric: ArrayLike | None = None,
) -> PruningProblem | FilterProblem:
    """Prune a layer: output channels keep some of their inputs.

    Parameters
    ----------
    layer : Layer
    density : float, optional
        Kept fraction in [0, 1]: k = ⌊density·n⌋, n counting all inputs, dead ones included; for patterns that count
        units n is the number of all units.
    k : int, optional
        Instead of ``density``: kept inputs of a channel; kept units for the patterns that count these.
    pattern : str or array_like of int
        Each output channel on its own: ``"unstructured"``; ``"N:M"``, at most N of every M consecutive inputs of the
        flattened weight, takes neither ``density`` nor ``k``; ``"block:S"`` keeps or drops S consecutive inputs
        together, at most ⌊k/S⌋ times. One mask for all output channels, counted in units: ``"channel"`` (input
        channels), ``"column"`` (single inputs), ``"position"`` (kernel positions), ``"head:S"`` (S consecutive inputs),
        or an array with the number of each input's unit. ``"filter"`` keeps or drops whole output channels, counted in
        each group of the layer. Output channels that limit one another: ``"transposable:N:M"``, N:M along rows and
        along columns of every M × M tile; ``"venom:V:N:M"``, where V rows use 4 of every M inputs, and each keeps N of
        these.
    share : int or "all", optional
        How many consecutive output channels have one mask; default: as the pattern says. Channels with different Gram
        matrices share nothing; the last rows may be fewer.
    axis : {"flat", "in_channels"}, optional
        For N:M patterns of convolutions: whether consecutive inputs are those of the flattened weight (default), or
        the input channels at each kernel position.
    refit : bool
        Whether kept weights are re-optimised (best subset selection) or stay as they are.
    bias : {"keep", "refit"}
        Whether the layer's bias stays as it is or is re-fitted together with the weights.
    output_metric : array_like of shape (out, out) or (groups, out/groups, out/groups), optional
        For pattern ``"filter"``: Q, with which an error e of the outputs counts eᵀQe, such as `next_layer_metric`.
        Default: every output channel counts alone, e'e.

    Raises
    ------
    InputError
        If the arguments contradict each other or are out of range.

    Examples
    --------
    >>> import layerbounds as lb
    >>> layer = lb.demo_layers()["conv3"]
    >>> lb.pruning_problem(layer, density=0.5, pattern="channel").label
    'pruning channel k=8 of 16 refit, one mask for all rows'
    """
    if bits is not None:
        raise InputError("pruning_problem does not quantize; leave out bits, or call joint_problem with both.")
    layer = apply_bias(as_layer(layer), bias)
    flag(refit, "refit")
    rule = _on_axis(as_pattern(pattern), axis)
    if isinstance(rule, Filter):
        if share is not None:
            raise InputError("pattern filter drops whole output channels, which share no mask; leave out share.")
        return filter_problem(layer, density, k, bool(refit), output_metric)
    if output_metric is not None:
        raise InputError("output_metric is for pattern filter, which drops whole output channels; leave it out.")
    rows = rule.rows if share is None else _rows(share)
    if rule.tiled and share is not None:
        raise InputError(f"pattern {rule.label} says itself which rows are bound; leave out share.")
    shape = layer.weight.shape[1:]
    total = rule.total(shape)
    if not rule.needs_count:
        if density is not None or k is not None:
            raise InputError(f"pattern {rule.label} says itself how many inputs are kept; leave out density and k.")
        return PruningProblem(layer, rule, int(rule.structure(shape, total).capacity.sum()), bool(refit), rows)
    what = "units" if rule.counts_units else "inputs"
    if density is None and k is None:
        raise InputError(f"nothing says how many {what} are kept; pass density or k, or an N:M pattern.")
    if density is not None and k is not None:
        raise InputError("pass either density or k, and not both.")
    if density is not None:
        density = real_number(density, "density", 0.0, 1.0, f"fraction of kept {what}")
        # 0.29 · 100 is 28.999…96 in float64: a product that is an integer up to rounding is meant as that integer.
        kept = math.floor(density * total + 1e-9)
    else:
        kept = whole_number(k, f"k, the kept {what} of layer {layer.name!r},", 0, total)
    return PruningProblem(layer, rule, kept, bool(refit), rows)


def _rows(share: Any) -> int | None:
    """How many rows have one mask; None for all."""
    if isinstance(share, str):
        one_of(share, "share, where it is no number of rows,", ("all",))
        return None
    return whole_number(share, "share, the number of rows with one mask,", 1)


def _on_axis(pattern: Pattern, axis: str | None) -> Pattern:
    """The pattern along an axis."""
    if axis is None:
        return pattern
    if not isinstance(pattern, NOfM):
        raise InputError(f"axis is for N:M patterns, and pattern is {pattern.label}; leave out axis.")
    return replace(pattern, axis=one_of(axis, "axis", AXES))
