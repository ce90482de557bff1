"""Joint problems: a layer whose weights are pruned to a pattern and quantized to a grid at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arguments import flag, shown
from layerbounds.arrays import Float, Int
from layerbounds.exceptions import InputError
from layerbounds.layers.bias import Bias, apply_bias
from layerbounds.layers.layer import Layer, as_layer
from layerbounds.problems.grids import Granularity, Grid, Range
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.problems.parts import Parts
from layerbounds.problems.patterns import Pattern, Structure
from layerbounds.problems.problem import Problem
from layerbounds.problems.pruning import DENSE_BITS, PruningProblem, pruning_problem
from layerbounds.problems.quantization import QuantizationProblem, levels_off, quantization_problem
from layerbounds.problems.snapping import moved_to_levels
from layerbounds.problems.storage import Mask, mask_bits


@dataclass(frozen=True, eq=False, repr=False)
class JointProblem(Problem):
    """Every weight of every output channel is zero or a level of its grid, and the nonzero ones fit a pattern.

    Attributes
    ----------
    layer : Layer
    grid : Grid
        What kept weights may be. Zero may be one of the levels, or comes on top of them (`zero`).
    pattern : Pattern
    kept : int
        Number k of inputs that may differ from zero, dead ones included; what an N:M pattern implies.

    Examples
    --------
    >>> lb.joint_problem(layer, bits=2, k=3).kept
    3
    """

    grid: Grid
    pattern: Pattern
    kept: int

    family = "joint"
    adjusted = "rounded to the grid and pruned to the pattern"

    def __post_init__(self) -> None:
        # The two halves check what they are given.
        QuantizationProblem(self.layer, self.grid)
        if isinstance(self.pattern, Pattern) and self.pattern.rows != 1:
            raise InputError(
                f"pattern {self.pattern.label} couples the output channels, and pruning with quantization treats each "
                "on its own; choose unstructured, N:M or block:S, or prune without quantizing."
            )
        PruningProblem(self.layer, self.pattern, self.kept, True)

    @functools.cached_property
    def zero(self) -> str:
        """Whether zero is a ``"level"`` of all weights, an ``"extra"`` value of all, or ``"mixed"``."""
        has = self.grid.has_zero
        return "level" if has.all() else "mixed" if has.any() else "extra"

    @property
    def label(self) -> str:
        """One line that says what is allowed."""
        n = self.layer.in_features
        count = f" k={self.kept} of {n}" if self.pattern.needs_count else ""
        zero = {"level": "zero a level", "extra": "zero beside the levels", "mixed": "zero a level of some weights"}
        bias = ", bias re-fitted" if self.layer.bias == "refit" else ""
        return f"joint {self.grid.label}, {self.pattern.label}{count}, {zero[self.zero]}{bias}"

    @property
    def requirement(self) -> str:
        """What a backend or heuristic must be able to treat."""
        return "pruning with quantization"

    @property
    def pattern_kind(self) -> str:
        """The kind of the pattern, as in `layerbounds.problems.patterns`."""
        return self.pattern.kind

    @property
    def bits_per_weight(self) -> float:
        """log₂ of the number of levels times the kept fraction; 16 times where each weight has a value of its own."""
        return self._value_bits(0) * self.kept / self.layer.in_features

    def _value_bits(self, more: int) -> float:
        """Bits of a kept weight with so many values beside the levels."""
        return DENSE_BITS if self.own_values else math.log2(len(self.grid.codes) + more)

    def storage(self, mask: Mask = "none") -> float:
        """With the mask's bits, and where these do not say which kept weights are zero, with zero among the values."""
        total = self.bits_per_weight + mask_bits(self.structure, mask)
        more = self.with_zero(mask, self.kept)
        return total + (self._value_bits(1) - self._value_bits(0)) * more / self.layer.in_features

    def with_zero(self, mask: Mask, kept: int) -> int:
        """How many of the kept weights of a channel need a code for zero beside the levels: the mask does not say.

        Examples
        --------
        >>> lb.joint_problem(layer, bits=4, k=3).with_zero("none", 3)
        0
        """
        if mask == "none" or self.zero == "level":
            return 0
        said = 0
        if mask == "bitmap" and len(self.structure.group) == self.layer.in_features:
            sizes = np.bincount(self.structure.group, minlength=len(self.structure.capacity))
            said = int(self.structure.capacity[self.structure.capacity < sizes].sum())
        return kept - said

    @property
    def own_values(self) -> bool:
        """Whether each weight has one value of its own."""
        return len(self.grid.codes) == 1 and self.grid.scale.shape[1] == self.layer.in_features > 1

    @functools.cached_property
    def structure(self) -> Structure:
        """Units, groups and capacities over all inputs."""
        return self.pattern.structure(self.layer.weight.shape[1:], self.kept)

    @property
    def parts(self) -> Parts:
        """The levels, and the structure."""
        return Parts(QuantizationProblem(self.layer, self.grid).rule(), self.structure, self.zero == "level")

    def allowed(self, channel: int) -> LevelsOnSupport:
        """The levels, zero, and the structure."""
        return LevelsOnSupport(self.grid.allowed(channel), self.structure)

    def off_grid(self, matrix: Float, channels: Sequence[int]) -> tuple[Int, Float]:
        """How many weights of each channel are neither zero nor a level, and how far off, in gaps between levels."""
        return levels_off(matrix, [self.allowed(channel).values for channel in channels])

    def unrounded(self, matrix: Float, channels: Sequence[int], dtype: str) -> Float:
        """Weights at zero and the levels of the grid, where these are near enough."""
        rows = [moved_to_levels(row, self.allowed(c).values, dtype) for row, c in zip(matrix, channels, strict=True)]
        return np.stack(rows)

    def scales(self, matrix: Float, channels: Sequence[int]) -> tuple[Float, Float]:
        """Those of the grid."""
        rows = list(channels)
        return self.grid.scale[rows], self.grid.zero_point[rows]

    def grid_of(self, matrix: Float, channels: Sequence[int]) -> Grid:
        """The problem's own, of all output channels."""
        return self.grid

    def excess(self, matrix: Float, channels: Sequence[int]) -> Int:
        """Those of the structure."""
        return self.structure.excess(matrix)

    def row_template(self, channel: int) -> Float:
        """Weights of the channel's dead inputs: they are dropped."""
        return np.zeros(self.layer.in_features)

    def like(self, layer: Layer) -> JointProblem:
        """Two bits or a codebook, and half of the inputs, with a small pattern of the same kind."""
        grid = QuantizationProblem(self.layer, self.grid).like(layer).grid
        pruned = PruningProblem(self.layer, self.pattern, self.kept, True).like(layer)
        return JointProblem(layer, grid, pruned.pattern, pruned.kept)

    def rule(self) -> bytes:
        """What the grid says, and the pattern."""
        grid = QuantizationProblem(self.layer, self.grid).rule()
        return b"joint/" + grid + b"/" + self.pattern.rule() + f"/{self.kept}".encode()


def joint_problem(
    layer: Layer,
    bits: int | None = None,
    *,
    density: float | None = None,
    k: int | None = None,
    pattern: str | Pattern = "unstructured",
    axis: str | None = None,
    weights: ArrayLike | None = None,
    grid: Grid | None = None,
    scale: ArrayLike | None = None,
    zero_point: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    g_idx: ArrayLike | None = None,
    symmetric: bool | None = None,
    granularity: Granularity | None = None,
    range: Range | None = None,
    codebook: str | ArrayLike | None = None,
    refit: bool | None = None,
    bias: Bias = "keep",
) -> JointProblem:
    """Prune and quantize a layer at once: kept weights take any level, the others are zero.

    Zero is allowed for every weight, whether the grid has it as a level (symmetric grids, integer zero points, NF4,
    FP4) or not (binary codebooks, real zero points); the problem's ``zero`` and its label say which. Dead inputs are
    dropped.

    Parameters
    ----------
    layer : Layer
    bits, grid, scale, zero_point, offset, g_idx, symmetric, granularity, range, codebook
        The grid, as in `quantization_problem`. It is fitted to the dense weights; scales must be given or fitted.
    density, k, pattern, axis
        The pattern, as in `pruning_problem`; those that couple the output channels are refused.
    weights : array_like of the shape of the layer's weight, optional
        Instead of a grid: what each kept weight is. Quantized weights make it the second stage of quantizing and then
        pruning without quantizing again; the dense weights make it mask-only pruning.
    refit : bool, optional
        True says the same as leaving it out: kept weights take the best levels. There is no False.
    bias : {"keep", "refit"}
        Whether the layer's bias stays as it is or is re-fitted together with the weights.

    Returns
    -------
    JointProblem

    Raises
    ------
    InputError
        If the arguments contradict each other or are out of range.

    Examples
    --------
    >>> import layerbounds as lb
    >>> layer = lb.demo_layers()["conv1"]
    >>> lb.joint_problem(layer, bits=4, pattern="2:4").label
    'joint 4-bit symmetric per channel, mse, 2:4, zero a level'
    """
    layer = apply_bias(as_layer(layer), bias)
    if refit is not None and flag(refit, "refit") is False:
        raise InputError("kept weights take any level when they are quantized, too; leave out refit.")
    if density is None and k is None and isinstance(pattern, str) and pattern == "unstructured":
        raise InputError(
            "nothing says how many inputs are kept; pass density, k or an N:M pattern, or call quantization_problem."
        )
    if all(value is None for value in (weights, bits, grid, codebook)):
        raise InputError(
            "nothing says what kept weights may be; pass bits, a grid or codebook, or call pruning_problem."
        )
    given: dict[str, Any] = {
        "bits": bits, "grid": grid, "scale": scale, "zero_point": zero_point, "offset": offset, "g_idx": g_idx,
        "symmetric": symmetric, "granularity": granularity, "range": range, "codebook": codebook,
    }  # fmt: skip
    if weights is not None:
        surplus = [name for name, value in given.items() if value is not None]
        if surplus:
            raise InputError(f"weights say themselves what is kept; leave out {surplus[0]}, or weights.")
        chosen = grid_of_weights(layer.channel_weights(weights, list(_rows(layer)), "weights"))
    else:
        for name, value in (("scale", scale), ("zero_point", zero_point), ("codebook", codebook)):
            if isinstance(value, str) and value.lower() in ("free", "real"):
                raise InputError(
                    f"{name} is {shown(value)}; pruning and quantization together need a fixed grid: pass numbers, or "
                    "leave it out for fitted ones."
                )
        fitted = quantization_problem(layer, **given).grid_of(layer.matrix, _rows(layer))
        assert fitted is not None
        chosen = fitted
    pruned = pruning_problem(layer, density=density, k=k, pattern=pattern, axis=axis)
    return JointProblem(layer, chosen, pruned.pattern, pruned.kept)


def grid_of_weights(matrix: Float) -> Grid:
    """The grid that allows each weight one value, shape (out, n)."""
    zero = matrix == 0.0
    return Grid(
        codes=np.ones(1),
        scale=np.where(zero, 1.0, matrix),
        zero_point=zero.astype(np.float64),
        in_features=matrix.shape[1],
        uniform=False,
        label="weights as given",
        group=np.arange(matrix.shape[1]),
    )


def _rows(layer: Layer) -> Sequence[int]:
    return np.arange(layer.out_features).tolist()
