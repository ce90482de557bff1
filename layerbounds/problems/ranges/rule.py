"""What a range is: a rule that fits scales to the weights that share one, or to the output error of a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from layerbounds.arrays import Float
from layerbounds.layers.layer import Layer
from layerbounds.problems.grids import SMALLEST_SCALE, Grid

Kind = Literal["symmetric", "asymmetric", "codebook"]


@dataclass(frozen=True, eq=False)
class Codes:
    """The codes that a scale is fitted for.

    Attributes
    ----------
    values : ndarray of shape (levels,)
        Sorted.
    kind : {"symmetric", "asymmetric", "codebook"}
        Uniform codes without and with a zero point, or a codebook.
    binary : bool
        The codebook ±1 of one bit.
    powers_of_two : bool
        Scales have to be powers of two.
    """

    values: Float
    kind: Kind
    binary: bool = False
    powers_of_two: bool = False

    @property
    def low(self) -> float:
        """The first code."""
        return float(self.values[0])

    @property
    def high(self) -> float:
        """The last code."""
        return float(self.values[-1])


#: Scales and zero points of the rows of one block of weights, shape (rows,) each.
Fitted = tuple[Float, Float]
#: From blocks of weights, shape (rows, weights), whose rows share a scale, to what is fitted to each.
WeightFit = Callable[[Sequence[Float], Codes], list[Fitted]]
#: From a layer, its grid with the range "mse", its codes, and whether one scale is for all weights, to the arrays
#: ``scale`` and ``zero_point`` of the fitted grid.
LayerFit = Callable[[Layer, Grid, Codes, bool], Fitted]


@dataclass(frozen=True, eq=False)
class RangeRule:
    """A range, as the registry knows it.

    Attributes
    ----------
    name : str
        How it is asked for.
    summary : str
        What it does.
    source : str
        Where it comes from.
    weights : WeightFit, optional
    layer : LayerFit, optional
        Instead of ``weights``, for a range that looks at the Gram matrix.
    kinds : tuple of Kind
        The grids that it fits.
    powers_of_two : bool
        Whether it fits scales that have to be powers of two.
    cannot : str
        A sentence that begins "range 'NAME'" and says what it cannot do, for those that do not fit every grid.
    """

    name: str
    summary: str
    source: str
    weights: WeightFit | None = None
    layer: LayerFit | None = None
    kinds: tuple[Kind, ...] = ("symmetric", "asymmetric", "codebook")
    powers_of_two: bool = True
    cannot: str = ""

    @property
    def needs_layer(self) -> bool:
        """Whether it looks at the Gram matrix."""
        return self.layer is not None

    def fits(self, codes: Codes) -> bool:
        """Whether the rule is for these codes."""
        return codes.kind in self.kinds and (self.powers_of_two or not codes.powers_of_two)


def separately(fit: Callable[[Float, Codes], Fitted]) -> WeightFit:
    """A rule that looks at one block at a time."""

    def fit_all(blocks: Sequence[Float], codes: Codes) -> list[Fitted]:
        return [fit(block, codes) for block in blocks]

    return fit_all


def positive(scale: Float) -> Float:
    """Scales of all-zero (or hardly different) blocks become 1."""
    return np.asarray(np.where(scale > 1e3 * SMALLEST_SCALE, scale, 1.0))


def unless_zero(block: Float, scale: Float) -> Float:
    """The scale, or 1 where all weights are zero."""
    return np.asarray(np.where(np.any(block != 0, axis=1), scale, 1.0))


def best_of(candidates: Float, error_of: Callable[[Float], Float]) -> Float:
    """Row-wise minimiser over candidate scales, shape (candidates, rows); the first of equals."""
    best = np.full(candidates.shape[1], np.inf)
    chosen = candidates[0].copy()
    for scale in candidates:
        error = error_of(scale)
        better = error < best
        best[better], chosen[better] = error[better], scale[better]
    return np.asarray(chosen)


def with_zero(block: Float) -> tuple[Float, Float]:
    """Least and largest weight of each row, 0 among them."""
    return np.minimum(block.min(axis=1), 0.0), np.maximum(block.max(axis=1), 0.0)


def rounded(block: Float, scale: Float, zero: Float, codes: Codes) -> Float:
    """Uniform codes nearest to w/s, shifted by the zero point and clipped; ties go to the even code."""
    s, z = scale[:, None], zero[:, None]
    return np.asarray(s * (np.clip(np.rint(block / s) + z, codes.low, codes.high) - z))
