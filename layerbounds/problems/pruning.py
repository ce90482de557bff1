"""Pruning problems: a layer plus the sparsity that its output channels must have."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerbounds.arguments import flag, real_number, shown, whole_number
from layerbounds.arrays import Float, Int
from layerbounds.exceptions import InputError
from layerbounds.layers.bias import Bias, apply_bias
from layerbounds.layers.layer import Layer, as_layer
from layerbounds.problems.parts import Parts
from layerbounds.problems.patterns import Pattern, Structure, parse_pattern
from layerbounds.problems.problem import Problem
from layerbounds.problems.storage import Mask, mask_bits
from layerbounds.problems.support import Support

#: Bits of a dense weight: a density d counts as 16·d bits per weight.
DENSE_BITS = 16


@dataclass(frozen=True, eq=False)
class PruningProblem(Problem):
    """The nonzero weights of every output channel must fit a sparsity pattern.

    Attributes
    ----------
    layer : Layer
    pattern : Pattern
    kept : int
        Number k of inputs that may be kept, dead ones included; what an N:M pattern implies.
    refit : bool
        Whether kept weights may take any value; otherwise they keep the original one.
    """

    pattern: Pattern
    kept: int
    refit: bool

    family = "pruning"
    adjusted = "pruned to the pattern"

    def __post_init__(self) -> None:
        as_layer(self.layer)
        if not isinstance(self.pattern, Pattern):
            raise InputError(f"pattern is {shown(self.pattern)}; pass a Pattern, or call pruning_problem.")
        whole_number(self.kept, "kept", 0, self.layer.in_features)
        flag(self.refit, "refit")

    @property
    def label(self) -> str:
        """One line that says what is allowed."""
        n = self.layer.in_features
        count = f" k={self.kept} of {n}" if self.pattern.needs_count else ""
        bias = ", bias re-fitted" if self.layer.bias == "refit" else ""
        return f"pruning {self.pattern.label}{count} {'refit' if self.refit else 'mask only'}{bias}"

    @property
    def requirement(self) -> str:
        """What a backend or heuristic must be able to treat."""
        return "pruning with refit" if self.refit else "pruning masks"

    @property
    def pattern_kind(self) -> str:
        """The kind of the pattern, as in `layerbounds.problems.patterns`."""
        return self.pattern.kind

    @property
    def bits_per_weight(self) -> float:
        """16 times the kept fraction."""
        return DENSE_BITS * self.kept / self.layer.in_features

    def storage(self, mask: Mask = "none") -> float:
        """With the mask's bits."""
        return self.bits_per_weight + mask_bits(self.structure, mask)

    @functools.cached_property
    def structure(self) -> Structure:
        """Units, groups and capacities over all inputs."""
        return self.pattern.structure(self.layer.in_features, self.kept)

    @property
    def parts(self) -> Parts | None:
        """Any values or the original ones, and the structure."""
        if self.refit and any(report.raised for report in self.layer.gram_reports):
            # Their error counts with another Gram matrix than that of other problems.
            return None
        return Parts(None if self.refit else b"original", self.structure, False)

    def allowed(self, channel: int) -> Support:
        """The structure, and the weights that are kept."""
        idle = ~self.layer.live(self.layer.group_of(channel))
        return Support(self.structure, self.layer.matrix[channel], self.refit, idle)

    def excess(self, matrix: Float, channels: Sequence[int]) -> Int:
        """Those of the structure."""
        return self.structure.excess(matrix)

    def row_template(self, channel: int) -> Float:
        """Weights of the channel's dead inputs: they are dropped."""
        return np.zeros(self.layer.in_features)

    def like(self, layer: Layer) -> PruningProblem:
        """Half of the inputs kept, with a small pattern of the same kind."""
        pattern, n = self.pattern.small(), layer.in_features
        kept = n // 2 if pattern.needs_count else int(pattern.structure(n, n).capacity.sum())
        return PruningProblem(layer, pattern, kept, self.refit)

    def rule(self) -> bytes:
        """The label says it all."""
        return f"{self.label}/{self.layer.gram.shape}".encode()


def pruning_problem(
    layer: Layer,
    *,
    density: float | None = None,
    k: int | None = None,
    pattern: str | Pattern = "unstructured",
    refit: bool = True,
    bits: int | None = None,
    bias: Bias = "keep",
) -> PruningProblem:
    """Prune a layer: each output channel keeps some of its inputs.

    Parameters
    ----------
    layer : Layer
    density : float, optional
        Kept fraction in [0, 1]: k = ⌊density·n⌋, n counting all inputs, dead ones included.
    k : int, optional
        Instead of ``density``: kept inputs of a channel.
    pattern : {"unstructured", "N:M", "block:S"}
        N:M keeps at most N of every M consecutive inputs of the flattened weight and takes neither ``density`` nor
        ``k``; ``block:S`` keeps or drops S consecutive inputs together, at most ⌊k/S⌋ times.
    refit : bool
        Whether kept weights are re-optimised (best subset selection) or stay as they are.
    bias : {"keep", "refit"}
        Whether the layer's bias stays as it is or is re-fitted together with the weights.

    Raises
    ------
    InputError
        If the arguments contradict each other or are out of range.
    """
    if bits is not None:
        raise InputError("pruning_problem does not quantize; leave out bits, or call joint_problem with both.")
    layer = apply_bias(as_layer(layer), bias)
    flag(refit, "refit")
    rule = pattern if isinstance(pattern, Pattern) else parse_pattern(pattern)
    n = layer.in_features
    if not rule.needs_count:
        if density is not None or k is not None:
            raise InputError(f"pattern {rule.label} says itself how many inputs are kept; leave out density and k.")
        return PruningProblem(layer, rule, int(rule.structure(n, n).capacity.sum()), bool(refit))
    if density is None and k is None:
        raise InputError("nothing says how many inputs are kept; pass density or k, or an N:M pattern.")
    if density is not None and k is not None:
        raise InputError("pass either density or k, and not both.")
    if density is not None:
        density = real_number(density, "density", 0.0, 1.0, "fraction of kept inputs")
        # 0.29 · 100 is 28.999…96 in float64: a product that is an integer up to rounding is meant as that integer.
        kept = math.floor(density * n + 1e-9)
    else:
        kept = whole_number(k, f"k, the kept inputs of layer {layer.name!r},", 0, n)
    return PruningProblem(layer, rule, kept, bool(refit))
