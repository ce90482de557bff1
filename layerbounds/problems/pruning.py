"""Pruning problems: a layer plus the sparsity that its output channels must have."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.layers.bias import Bias, apply_bias
from layerbounds.layers.layer import Layer
from layerbounds.problems.patterns import Pattern, Structure, parse_pattern


@dataclass(frozen=True, eq=False)
class PruningProblem:
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

    layer: Layer
    pattern: Pattern
    kept: int
    refit: bool

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

    def structure(self) -> Structure:
        """Units, groups and capacities over all inputs."""
        return self.pattern.structure(self.layer.in_features, self.kept)

    def violation(self, matrix: Float, channels: Sequence[int]) -> Float:
        """How far weights are from being allowed, per channel; 0 exactly when they are.

        The number of kept units beyond the capacities; for masks plus the largest change of a kept weight, in units of
        the weights.
        """
        excess = self.structure().excess(matrix).astype(np.float64)
        if not self.refit:
            original = self.layer.matrix[list(channels)]
            excess += np.where(matrix == 0.0, 0.0, np.abs(matrix - original)).max(axis=1)
        return excess

    def project(self, matrix: Float, channels: Sequence[int]) -> Float:
        """Allowed weights: of those given, the largest ones; mask-only kept weights return to the original.

        Parameters
        ----------
        matrix : ndarray of shape (channels, n)
        channels : sequence of int

        Returns
        -------
        ndarray of shape (channels, n)
        """
        structure = self.structure()
        result = np.zeros_like(matrix)
        for i, (row, channel) in enumerate(zip(matrix, channels, strict=True)):
            norms = np.bincount(structure.unit, weights=row**2, minlength=len(structure.group))
            mask = structure.keep_largest(norms) & (row != 0.0)
            result[i, mask] = row[mask] if self.refit else self.layer.matrix[channel, mask]
        return result

    def row_template(self, channel: int) -> Float:
        """Weights of the channel's dead inputs: they are dropped."""
        return np.zeros(self.layer.in_features)

    def fingerprint(self) -> str:
        """SHA-256 of everything that the optimum depends on."""
        digest = hashlib.sha256()
        for array in (self.layer.gram, self.layer.target, self.layer.constant, self.layer.matrix):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(f"{self.label}/{self.layer.gram.shape}".encode())
        return digest.hexdigest()


def pruning_problem(
    layer: Layer,
    *,
    density: float | None = None,
    k: int | None = None,
    pattern: str | Pattern = "unstructured",
    refit: bool = True,
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
    if not isinstance(layer, Layer):
        raise InputError(f"layer is a {type(layer).__name__}; pass a layerbounds.Layer.")
    layer = apply_bias(layer, bias)
    rule = pattern if isinstance(pattern, Pattern) else parse_pattern(pattern)
    n = layer.in_features
    if not rule.needs_count:
        if density is not None or k is not None:
            raise InputError(f"pattern {rule.label} says itself how many inputs are kept; leave out density and k.")
        return PruningProblem(layer, rule, int(rule.structure(n, n).capacity.sum()), bool(refit))
    if (density is None) == (k is None):
        raise InputError("pass either density or k, and not both.")
    if density is not None:
        if not 0.0 <= density <= 1.0:
            raise InputError(f"density is {density}; pass the kept fraction of the inputs, in [0, 1].")
        # 0.29 · 100 is 28.999…96 in float64: a product that is an integer up to rounding is meant as that integer.
        kept = math.floor(density * n + 1e-9)
    else:
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
            raise InputError(f"k is {k!r}; pass an integer number of kept inputs.")
        kept = int(k)
    if not 0 <= kept <= n:
        raise InputError(f"k is {kept}; a channel of layer {layer.name!r} has {n} inputs.")
    return PruningProblem(layer, rule, kept, bool(refit))
