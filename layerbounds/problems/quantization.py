"""Problems: a layer plus the set of weights that are allowed."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arguments import shown
from layerbounds.arrays import Float, Int
from layerbounds.exceptions import InputError
from layerbounds.layers.bias import Bias, apply_bias
from layerbounds.layers.layer import Layer, as_layer
from layerbounds.problems.fitting import codebook_codes, codebook_grid, uniform_grid
from layerbounds.problems.free_codebook import FREE, FreeCodebookProblem, free_codebook_problem
from layerbounds.problems.free_scale import free_scale_problem
from layerbounds.problems.gram_range import fitted_grid
from layerbounds.problems.grids import Granularity, Grid, Range, given_grid
from layerbounds.problems.levels import Levels, nearest_levels
from layerbounds.problems.parts import Parts
from layerbounds.problems.problem import Problem
from layerbounds.problems.snapping import moved_to_levels


@dataclass(frozen=True, eq=False, repr=False)
class QuantizationProblem(Problem):
    """Every weight of every output channel must be a level of its grid.

    Attributes
    ----------
    layer : Layer
    grid : Grid

    Examples
    --------
    >>> problem.label
    '2-bit symmetric per channel, mse'
    >>> problem.grid.levels(0).shape
    (9, 4)
    """

    grid: Grid

    family = "quantization"
    adjusted = "rounded to the grid"

    def __post_init__(self) -> None:
        as_layer(self.layer)
        if not isinstance(self.grid, Grid):
            raise InputError(f"grid is {shown(self.grid)}; pass a layerbounds.Grid, or bits for a fitted one.")
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

    @functools.cached_property
    def parts(self) -> Parts:
        """The levels, for every weight."""
        return Parts(self.rule(), None, bool(self.grid.has_zero.all()))

    def allowed(self, channel: int) -> Levels:
        """The levels of a channel's weights."""
        return self.grid.allowed(channel)

    def off_grid(self, matrix: Float, channels: Sequence[int]) -> tuple[Int, Float]:
        """How many weights of each channel are no level, and how far the worst is from one, in gaps between levels."""
        return levels_off(matrix, [self.grid.levels(channel) for channel in channels])

    def unrounded(self, matrix: Float, channels: Sequence[int], dtype: str) -> Float:
        """Weights at the levels of the grid, where these are near enough."""
        rows = [moved_to_levels(row, self.grid.levels(c), dtype) for row, c in zip(matrix, channels, strict=True)]
        return np.stack(rows)

    def scales(self, matrix: Float, channels: Sequence[int]) -> tuple[Float, Float]:
        """Those of the grid."""
        rows = list(channels)
        return self.grid.scale[rows], self.grid.zero_point[rows]

    def grid_of(self, matrix: Float, channels: Sequence[int]) -> Grid:
        """The problem's own, of all output channels."""
        return self.grid

    def row_template(self, channel: int) -> Float:
        """Weights of the channel's dead inputs (and others to be overwritten): the levels nearest to the original."""
        return self.allowed(channel).nearest(self.layer.matrix[channel])

    def like(self, layer: Layer) -> QuantizationProblem:
        """Two bits, or a codebook."""
        if self.grid.uniform:
            return QuantizationProblem(layer, uniform_grid(layer.weight, 2))
        return QuantizationProblem(layer, codebook_grid(layer.weight, "nf4"))

    def rule(self) -> bytes:
        """Codes, scales, zero points, and offsets where there are any."""
        arrays = [self.grid.codes, self.grid.scale, self.grid.zero_point]
        arrays += [self.grid.offset] if np.any(self.grid.offset) else []
        shape = f"quantization/{self.layer.gram.shape}/{self.grid.group_size}"
        group = self.grid.group.tobytes() if self.grid.group_size is None else b""
        return b"".join(np.ascontiguousarray(array).tobytes() for array in arrays) + group + shape.encode()


def levels_off(matrix: Float, levels: Sequence[Float]) -> tuple[Int, Float]:
    """How many weights of each row are no level, and how far the worst is from one, in gaps between levels.

    Parameters
    ----------
    matrix : ndarray of shape (rows, n)
    levels : sequence of ndarray of shape (n, levels)
        Sorted, one for each row.
    """
    count = np.zeros(len(matrix), dtype=np.int64)
    steps = np.zeros(len(matrix))
    for row, (weights, table) in enumerate(zip(matrix, levels, strict=True)):
        distance = np.abs(weights - nearest_levels(table, weights))
        off = distance > 0.0
        count[row] = np.count_nonzero(off)
        if count[row] and table.shape[1] > 1:
            above = np.sum(table <= weights[:, None], axis=1).clip(1, table.shape[1] - 1)
            inputs = np.arange(len(table))
            gap = table[inputs, above] - table[inputs, above - 1]
            # A level that stands there twice is next to itself.
            steps[row] = float(np.max(np.divide(distance, gap, out=np.zeros_like(gap), where=off & (gap > 0))))
    return count, steps


def quantization_problem(
    layer: Layer,
    bits: int | None = None,
    *,
    grid: Grid | None = None,
    scale: ArrayLike | None = None,
    zero_point: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    signed_scale: bool = False,
    g_idx: ArrayLike | None = None,
    symmetric: bool | None = None,
    granularity: Granularity | None = None,
    range: Range | None = None,
    density: float | None = None,
    pattern: str | None = None,
    bias: Bias = "keep",
    codebook: str | ArrayLike | None = None,
) -> Problem:
    """Quantize a layer: on a fitted or given grid, with given scales, or over all scales or levels.

    Parameters
    ----------
    layer : Layer
    bits : int, optional
    grid : Grid, optional
        Instead of all other arguments but ``bias``.
    scale : array_like of shape (out,) or (out, scale_groups), or "free", optional
        With ``bits`` or ``codebook``: the step sizes; negative ones mirror the codes, and groups of scale 0 have the
        offset as their only level. Nothing is fitted, so that ``range`` is left out. One number with
        ``granularity="tensor"``. ``"free"``: all positive scales are allowed, and those that
        are best for the output error are found together with the codes.
    zero_point : array_like of the shape of ``scale``, or {"free", "real"}, optional
        With given scales: levels are scale · ({0, …, 2^bits − 1} − zero_point) instead of symmetric ones. With free
        ones: ``"free"`` allows the zero points 0, …, 2^bits − 1, ``"real"`` all.
    offset : array_like of the shape of ``scale``, optional
        With given scales: added to the levels, as the minima of GGUF's Q4_1 are; codes are then 0, …, 2^bits − 1, too.
    signed_scale : bool
        Whether free scales may be negative, too, for formats that store their sign.
    g_idx : array_like of int, shape (n,), optional
        With ``scale``: the scale group of each flattened input, as GPTQ stores it, instead of consecutive blocks.
    symmetric : bool, optional
        As in `uniform_grid`; default: True, unless ``zero_point`` is given or the range fits zero points only. With a
        free scale, False means integer zero points.
    granularity : {"tensor", "channel"} or int, optional
        As in `uniform_grid`; default: "channel". With given scales of several groups it is the number of inputs in a
        group, which may be left out where the groups are of equal size.
    range : str, optional
        As in `uniform_grid`; default: "mse". ``"gram"``, ``"piso"`` and ``"awq"`` fit the scales to the layer's output
        error (`gram_grid`).
    bias : {"keep", "refit"}
        Whether the layer's bias stays as it is or is re-fitted together with the weights.
    codebook : str or array_like, optional
        Instead of ``bits``: a codebook of `codebook_grid`, with ``granularity``, and ``range`` or ``scale``. Or
        ``"free"`` with ``bits``: each output channel may take any 2^bits values.

    Returns
    -------
    QuantizationProblem, FreeScaleProblem or FreeCodebookProblem

    Raises
    ------
    InputError
        If the arguments contradict each other.

    Examples
    --------
    >>> lb.quantization_problem(layer, bits=3).label
    '3-bit symmetric per channel, mse'
    >>> lb.quantization_problem(layer, codebook="nf4").label
    'nf4 per channel, mse'
    >>> lb.quantization_problem(layer, bits=2, scale="free").label
    '2-bit symmetric, all scales per channel'
    """
    for name, of_pruning in (("density", density), ("pattern", pattern)):
        if of_pruning is not None:
            raise InputError(f"quantization_problem does not prune; leave out {name}, or call joint_problem with both.")
    layer = apply_bias(as_layer(layer), bias)
    free_levels = isinstance(codebook, str) and codebook.lower() == FREE
    if isinstance(scale, str) and grid is None and not free_levels:
        if scale != "free":
            raise InputError(f"scale is {shown(scale)}; pass 'free' or numbers.")
        if (bits is None) == (codebook is None):
            raise InputError("pass either bits or a codebook with scale='free', and not both.")
        if range is not None:
            raise InputError("free scales are not fitted; leave out range, or scale='free'.")
        if offset is not None:
            raise InputError("offset belongs to given scales; pass zero_point='real' for levels with any offset.")
        return free_scale_problem(
            layer,
            bits,
            codebook_name=codebook,
            zero_point=zero_point,
            g_idx=g_idx,
            symmetric=symmetric,
            granularity=granularity,
            signed_scale=signed_scale,
        )
    if signed_scale is not False:
        raise InputError("signed_scale belongs to scale='free'; given scales may have any sign.")
    if isinstance(zero_point, str):
        raise InputError(f"zero_point is {shown(zero_point)}; pass numbers, or scale='free' with it.")
    if codebook is not None:
        given = {
            "grid": grid, "scale": scale, "zero_point": zero_point, "offset": offset, "g_idx": g_idx,
            "symmetric": symmetric,
        }  # fmt: skip
        return _with_codebook(layer, codebook, bits, {**given, "granularity": granularity, "range": range})
    if (bits is None) == (grid is None):
        raise InputError("pass either bits or grid, and not both.")
    if grid is not None:
        own = {"scale": scale, "zero_point": zero_point, "offset": offset, "g_idx": g_idx}
        fit = {"symmetric": symmetric, "granularity": granularity, "range": range}
        surplus = [name for name, value in {**own, **fit}.items() if value is not None]
        if surplus:
            raise InputError(f"a grid says itself what its levels are; leave out {surplus[0]}, or pass it with bits.")
        return QuantizationProblem(layer, grid)
    assert bits is not None
    if scale is None:
        _check_scales_given({"zero_point": zero_point, "offset": offset, "g_idx": g_idx})
        fitted = fitted_grid(
            layer,
            bits,
            symmetric=symmetric,
            granularity="channel" if granularity is None else granularity,
            range="mse" if range is None else range,
        )
        return QuantizationProblem(layer, fitted)
    if range is not None:
        raise InputError("given scales are not fitted; leave out range, or scale.")
    grid = given_grid(
        scale,
        bits,
        layer.in_features,
        granularity,
        zero_point=zero_point,
        offset=offset,
        symmetric=symmetric,
        g_idx=g_idx,
        out_features=layer.out_features,
    )
    return QuantizationProblem(layer, grid)


def _check_scales_given(others: dict[str, Any]) -> None:
    for name, value in others.items():
        if value is not None:
            raise InputError(f"{name} belongs to given scales; pass scale, too, or leave it out.")


def _with_codebook(
    layer: Layer, codebook: str | ArrayLike, bits: int | None, others: dict[str, Any]
) -> QuantizationProblem | FreeCodebookProblem:
    """A named or given codebook, or a free one."""
    if isinstance(codebook, str) and codebook.lower() == FREE:
        return free_codebook_problem(layer, bits, **others)
    granularity, fit, scale = (others.pop(name) for name in ("granularity", "range", "scale"))
    own = {name: others[name] for name in ("grid", "symmetric")}
    surplus = [name for name, value in {"bits": bits, **own}.items() if value is not None]
    if surplus:
        raise InputError(f"a codebook says itself what its levels are; leave out {surplus[0]}, or codebook.")
    placed = {name: others[name] for name in ("zero_point", "offset", "g_idx")}
    if scale is not None:
        if fit is not None:
            raise InputError("given scales are not fitted; leave out range, or scale.")
        grid = given_grid(
            scale,
            None,
            layer.in_features,
            granularity,
            codes=codebook_codes(codebook).values,
            out_features=layer.out_features,
            **placed,
        )
        name = codebook.lower() if isinstance(codebook, str) else f"{len(grid.codes)}-level codebook"
        return QuantizationProblem(layer, replace(grid, label=f"{name},{grid.label.partition(',')[2]}"))
    _check_scales_given(placed)
    return QuantizationProblem(
        layer, fitted_grid(layer, codebook=codebook, granularity=granularity, range="mse" if fit is None else fit)
    )
