"""Problems: a layer plus the set of weights that are allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arrays import Float, Int
from layerbounds.exceptions import InputError
from layerbounds.layers.bias import Bias, apply_bias
from layerbounds.layers.layer import Layer
from layerbounds.problems.gram_range import fitted_grid
from layerbounds.problems.grids import Granularity, Grid, Range, codebook_grid, symmetric_grid, uniform_grid
from layerbounds.problems.levels import Levels, nearest_levels
from layerbounds.problems.problem import Problem


@dataclass(frozen=True, eq=False)
class QuantizationProblem(Problem):
    """Every weight of every output channel must be a level of its grid.

    Attributes
    ----------
    layer : Layer
    grid : Grid
    """

    grid: Grid

    family = "quantization"
    adjusted = "rounded to the grid"

    def __post_init__(self) -> None:
        want = (self.layer.out_features, self.layer.in_features)
        have = (self.grid.out_features, self.grid.in_features)
        if want != have:
            raise InputError(
                f"the grid is for weights of shape {have} but layer {self.layer.name!r} has {want}; "
                "build the grid from this layer's weight."
            )

    @property
    def label(self) -> str:
        """One line that says what is allowed."""
        return self.grid.label + (", bias re-fitted" if self.layer.bias == "refit" else "")

    @property
    def requirement(self) -> str:
        """What a backend or heuristic must be able to treat."""
        return "uniform grids" if self.grid.uniform else "codebook grids"

    @property
    def bits_per_weight(self) -> float:
        """log₂ of the number of levels."""
        return math.log2(len(self.grid.codes))

    def allowed(self, channel: int) -> Levels:
        """The levels of a channel's weights."""
        return self.grid.allowed(channel)

    def off_grid(self, matrix: Float, channels: Sequence[int]) -> tuple[Int, Float]:
        """How many weights of each channel are no level, and how far the worst is from one, in gaps between levels."""
        count = np.zeros(len(channels), dtype=np.int64)
        steps = np.zeros(len(channels))
        for row, channel in enumerate(channels):
            levels = self.grid.levels(channel)
            distance = np.abs(matrix[row] - nearest_levels(levels, matrix[row]))
            off = distance > 0.0
            count[row] = np.count_nonzero(off)
            if count[row] and levels.shape[1] > 1:
                above = np.sum(levels <= matrix[row][:, None], axis=1).clip(1, levels.shape[1] - 1)
                inputs = np.arange(len(levels))
                gap = levels[inputs, above] - levels[inputs, above - 1]
                steps[row] = float(np.max(distance[off] / gap[off]))
        return count, steps

    def row_template(self, channel: int) -> Float:
        """Weights of the channel's dead inputs (and others to be overwritten): the levels nearest to the original."""
        return self.allowed(channel).nearest(self.layer.matrix[channel])

    def like(self, layer: Layer) -> QuantizationProblem:
        """Two bits, or a codebook."""
        if self.grid.uniform:
            return QuantizationProblem(layer, uniform_grid(layer.weight, 2))
        return QuantizationProblem(layer, codebook_grid(layer.weight, "nf4"))

    def rule(self) -> bytes:
        """Codes, scales and zero points."""
        arrays = (self.grid.codes, self.grid.scale, self.grid.zero_point)
        shape = f"quantization/{self.layer.gram.shape}/{self.grid.group_size}"
        return b"".join(np.ascontiguousarray(array).tobytes() for array in arrays) + shape.encode()


def quantization_problem(
    layer: Layer,
    bits: int | None = None,
    *,
    grid: Grid | None = None,
    scale: ArrayLike | None = None,
    symmetric: bool = True,
    granularity: Granularity = "channel",
    range: Range = "mse",
    density: float | None = None,
    bias: Bias = "keep",
) -> QuantizationProblem:
    """Quantize a layer: with a fitted uniform grid (``bits``), a given grid, or given symmetric scales.

    Parameters
    ----------
    layer : Layer
    bits : int, optional
    grid : Grid, optional
        Instead of ``bits``.
    scale : array_like of shape (out,) or (out, scale_groups), optional
        With ``bits``: the step sizes of a symmetric grid.
    symmetric, granularity, range
        As in `uniform_grid`; ``range="gram"`` fits the scales to the layer's output error (`gram_grid`).
    bias : {"keep", "refit"}
        Whether the layer's bias stays as it is or is re-fitted together with the weights.

    Raises
    ------
    InputError
        If the arguments contradict each other.
    """
    if density is not None:
        raise InputError("quantization and pruning together are not available yet; pass either bits or density.")
    if not isinstance(layer, Layer):
        raise InputError(f"layer is a {type(layer).__name__}; pass a layerbounds.Layer.")
    layer = apply_bias(layer, bias)
    if (bits is None) == (grid is None):
        raise InputError("pass either bits or grid, and not both.")
    if grid is not None:
        if scale is not None:
            raise InputError("a grid has its own scales; pass scale together with bits instead.")
        return QuantizationProblem(layer, grid)
    assert bits is not None
    if scale is not None:
        return QuantizationProblem(layer, symmetric_grid(scale, bits, layer.in_features, granularity))
    return QuantizationProblem(
        layer, fitted_grid(layer, bits, symmetric=symmetric, granularity=granularity, range=range)
    )
