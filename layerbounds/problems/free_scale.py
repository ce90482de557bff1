"""Quantization over all scales: every output channel, tensor or group of inputs gets the scale that is best for it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike

from layerbounds.arguments import flag, one_of, shown, whole_number
from layerbounds.arrays import Float, Int, as_float64
from layerbounds.exceptions import InputError
from layerbounds.layers.layer import Layer, as_layer
from layerbounds.problems.codebooks import codebook
from layerbounds.problems.float_types import FLOAT_TYPES
from layerbounds.problems.grids import MAX_BITS, Granularity, Grid, granularity_size, numbers_of_groups
from layerbounds.problems.judgement import Judgement
from layerbounds.problems.problem import Problem, whole_sets
from layerbounds.problems.scaled import ScaledLevels

#: Where the Gram matrix is singular, weights are at most so many times the largest target.
LARGEST = 256.0
#: A unit-diagonal Gram matrix of n inputs counts as singular if less than this times n is below its pivots.
_SINGULAR = 2.0**14 * 2.0**-53


@dataclass(frozen=True, eq=False, repr=False)
class FreeScaleProblem(Problem):
    """Every weight is a scale times a code (less a zero point), and the scales are chosen with the codes.

    Attributes
    ----------
    layer : Layer
    codes : ndarray of shape (levels,)
        Sorted and distinct.
    zero : {"none", "integer", "real"}
        What the zero points are; see `ScaledLevels`.
    signed : bool
        Whether scales may be negative.
    powers_of_two : bool
        Whether scales are powers of two.
    group : ndarray of int64, shape (n,)
        The scale group of each flattened input.
    granularity : {"tensor", "channel"} or int or None
        Which weights share a scale; None where ``group`` alone says so.
    name : str
        How the label calls the codes.
    dtype : str
        The type to which weights were rounded that are evaluated.

    Examples
    --------
    >>> lb.quantization_problem(layer, bits=2, scale="free").codes
    array([-2., -1.,  0.,  1.])
    """

    codes: Float
    zero: Literal["none", "integer", "real"]
    signed: bool
    powers_of_two: bool
    group: Int
    granularity: Granularity | None
    name: str
    dtype: str = "float64"

    family = "free scale quantization"
    adjusted = "rounded at the best scale"

    def __post_init__(self) -> None:
        layer = as_layer(self.layer)
        codes = as_float64(self.codes, "codes")
        if codes.ndim != 1 or not np.any(codes) or np.any(np.diff(codes) <= 0):
            raise InputError(f"codes have shape {codes.shape}; pass ascending numbers, one of which is not 0.")
        one_of(self.zero, "zero", ("none", "integer", "real"))
        if self.zero != "none" and not np.array_equal(codes, np.arange(len(codes))):
            raise InputError("with a zero point the codes are 0, 1, 2, …; pass these, or zero='none'.")
        if flag(self.powers_of_two, "powers_of_two") and self.zero != "none":
            raise InputError("scales that are powers of two have no zero point; pass zero='none'.")
        flag(self.signed, "signed")
        group = numbers_of_groups(self.group, "group", layer.in_features)
        if self.granularity is not None:
            size = granularity_size(self.granularity, layer.in_features)
            if not np.array_equal(group, np.arange(layer.in_features) // size):
                raise InputError("group and granularity contradict each other; pass None as granularity.")
        one_of(self.dtype, "dtype", tuple(FLOAT_TYPES))
        for name, value in (("codes", codes), ("group", group), ("name", str(self.name))):
            object.__setattr__(self, name, value)
        if self.granularity == "tensor" and layer.groups > 1:
            raise InputError(
                f"layer {self.layer.name!r} has {self.layer.groups} Gram matrices, whose channels cannot share one "
                "free scale; pass granularity='channel'."
            )

    @property
    def label(self) -> str:
        """One line that says what is allowed."""
        what = {
            "none": "all scales",
            "integer": "all scales and zero points",
            "real": "all scales and real zero points",
        }
        kind = "powers of two" if self.powers_of_two else what[self.zero]
        if self.signed:
            kind += " of both signs"
        parts = [f"{self.name}, {kind} per {self._shared}"]
        if np.isfinite(self._limits).any():
            parts.append(f"weights up to {LARGEST:g} times the largest where the Gram matrix is singular")
        if self.layer.bias == "refit":
            parts.append("bias re-fitted")
        return ", ".join(parts)

    @property
    def _shared(self) -> str:
        if self.granularity is None:
            return "given group"
        return self.granularity if isinstance(self.granularity, str) else f"group of {self.granularity}"

    @property
    def requirement(self) -> str:
        """What a backend or heuristic must be able to treat."""
        return "free scales"

    @property
    def bits_per_weight(self) -> float:
        """log₂ of the number of levels."""
        return math.log2(len(self.codes))

    @functools.cached_property
    def _limits(self) -> Float:
        """The largest size of a weight of each output channel, shape (out,)."""
        layer = self.layer
        sizes = np.abs(layer.target).max(axis=1)
        if self.granularity == "tensor":
            sizes = np.full_like(sizes, sizes.max())
        limits: Float = np.full(layer.out_features, np.inf)
        for g, rows in enumerate(layer.group_rows()):
            live = layer.live(g)
            if not is_definite(layer.gram[g][np.ix_(live, live)]):
                limits[rows] = LARGEST * np.where(sizes[rows] > 0, sizes[rows], 1.0)
        return limits

    def allowed(self, channel: int) -> ScaledLevels:
        """The codes, and which inputs share a scale."""
        rows = self.layer.out_features if self.granularity == "tensor" else 1
        limit = float(self._limits[channel])
        return ScaledLevels(self.codes, self.zero, self.signed, self.powers_of_two, self.group, limit, rows, self.dtype)

    def sets(self, channels: Sequence[int]) -> list[list[int]]:
        """Single channels, or all of them where they share one scale."""
        if self.granularity != "tensor":
            return super().sets(channels)
        return whole_sets(lambda channel: range(self.layer.out_features), channels, "one scale")

    def rounded_to(self, dtype: str) -> FreeScaleProblem:
        """The same for weights that were rounded to another type."""
        return replace(self, dtype=dtype)

    def unrounded(self, matrix: Float, channels: Sequence[int], dtype: str) -> Float:
        """The exact products of scales and codes, where weights are allowed."""
        judged = self.rounded_to(dtype).judged(matrix, channels)
        position = {channel: i for i, channel in enumerate(channels)}
        result = matrix.copy()
        for s, violation in zip(self.sets(channels), judged.violation, strict=True):
            rows = [position[c] for c in s]
            result[rows] = matrix[rows] if violation > 0.0 else judged.snapped[rows]
        return result

    def judged(self, matrix: Float, channels: Sequence[int]) -> Judgement:
        """As for all problems, with the scales and zero points that explain the weights, or come closest."""
        sets = self.sets(channels)
        violation, steps, off_grid = np.zeros(len(sets)), np.zeros(len(sets)), np.zeros(len(sets), dtype=np.int64)
        snapped, scale, zero = np.empty_like(matrix), *self._arrays(len(channels))
        for index, (rows, weights) in enumerate(self._of_sets(matrix, channels)):
            allowed = self.allowed(channels[rows[0]])
            fit, violation[index] = allowed.closest(weights)
            scale[rows], zero[rows] = fit.scale, fit.zero_point
            target = self.layer.target[[channels[r] for r in rows]].reshape(weights.shape)
            snapped[rows] = allowed.snapped(weights, fit, self.gram(channels[rows[0]]), target)
            if violation[index] > 0:
                away = np.abs(weights - allowed.weights(fit))
                off_grid[index] = np.count_nonzero(away)
                gap = np.diff(self.codes).min() if len(self.codes) > 1 else 1.0
                steps[index] = np.max(away / np.abs(gap * fit.scale[self.group]), initial=0.0)
        return Judgement(violation, off_grid, steps, snapped, scale, zero)

    def rescaled(self, matrix: Float, channels: Sequence[int]) -> Float:
        """Allowed weights of the same codes as given ones, shape (rows, n), with their best scales.

        Examples
        --------
        >>> free = lb.quantization_problem(layer, bits=2, scale="free")
        >>> codes = np.array([[1.0, -1.0, 0.0, 1.0, 0.0, 0.0, -1.0, 1.0, 0.0]])
        >>> free.violation(free.rescaled(codes, [0]), [0])
        array([0.])
        """
        result = np.empty_like(matrix)
        for rows, weights in self._of_sets(matrix, channels):
            chosen = [channels[r] for r in rows]
            target = self.layer.target[chosen].reshape(weights.shape)
            result[rows] = self.allowed(chosen[0]).rescaled(weights, self.gram(chosen[0]), target)
        return result

    def scales(self, matrix: Float, channels: Sequence[int]) -> tuple[Float, Float]:
        """What explains the weights, or comes closest."""
        scale, zero = self._arrays(len(channels))
        for rows, weights in self._of_sets(matrix, channels):
            fit = self.allowed(channels[rows[0]]).closest(weights)[0]
            scale[rows], zero[rows] = fit.scale, fit.zero_point
        return scale, zero

    def grid_of(self, matrix: Float, channels: Sequence[int]) -> Grid:
        """The grid of the scales that explain the weights: a row for each of the channels, in their order."""
        scale, zero = self.scales(matrix, channels)
        return Grid(
            self.codes, scale, zero, self.layer.in_features, label=f"{self.name}, found scale", group=self.group
        )

    def complete_set(self, rows: Sequence[int], weights: Float) -> Float:
        """Dead inputs take levels at the scales of the others."""
        live = self.layer.live(self.layer.group_of(rows[0]))
        original = self.layer.matrix[list(rows)]
        several = len(rows) > 1
        completed = self.allowed(rows[0]).completed(weights, live, original if several else original[0])
        return np.asarray(completed if several else completed[None])

    def _arrays(self, rows: int) -> tuple[Float, Float]:
        shape = (rows, int(self.group.max()) + 1)
        return np.ones(shape), np.zeros(shape)

    def _of_sets(self, matrix: Float, channels: Sequence[int]) -> list[tuple[list[int], Float]]:
        """The rows of each set of channels in a matrix, and its weights."""
        position = {channel: i for i, channel in enumerate(channels)}
        return [([position[c] for c in s], weights) for s, weights in self._per_set(matrix, channels)]

    def row_template(self, channel: int) -> Float:
        """Weights that are no level yet: the original ones."""
        return np.array(self.layer.matrix[channel])

    def like(self, layer: Layer) -> FreeScaleProblem:
        """Two bits, or the same codebook."""
        n = layer.in_features
        whole = self.granularity if isinstance(self.granularity, str) else 2
        codes = np.arange(4.0) - (2.0 if self.zero == "none" else 0.0) if self.uniform else self.codes
        group = np.arange(n) // granularity_size(whole, n)
        return replace(self, layer=layer, codes=codes, group=group, granularity=whole)

    @property
    def uniform(self) -> bool:
        """Whether the codes are consecutive integers."""
        return ScaledLevels(self.codes, self.zero, self.signed, self.powers_of_two, self.group).uniform

    def rule(self) -> bytes:
        """Codes, zero points and groups."""
        shared = "tensor" if self.granularity == "tensor" else "channel"
        kind = f"free scale/{self.zero}/{self.signed}/{self.powers_of_two}/{shared}/{self.layer.gram.shape}"
        return self.codes.tobytes() + self.group.tobytes() + kind.encode()


def is_definite(gram: Float) -> bool:
    """Whether a Gram matrix of live inputs is so far from singular that all directions count as having energy."""
    n = len(gram)
    if n == 0:
        return True
    root = np.sqrt(np.diag(gram))
    scaled = gram / root / root[:, None]
    scaled[np.diag_indices(n)] = 1.0 - _SINGULAR * n
    try:
        scipy.linalg.cholesky(scaled, check_finite=False)
    except np.linalg.LinAlgError:
        return False
    return True


def free_scale_problem(
    layer: Layer,
    bits: int | None,
    *,
    codebook_name: str | ArrayLike | None,
    zero_point: object,
    g_idx: ArrayLike | None,
    symmetric: bool | None,
    granularity: Granularity | None,
    signed_scale: bool,
) -> FreeScaleProblem:
    """What `quantization_problem` returns for ``scale="free"``; the bias is that of the layer.

    Raises
    ------
    InputError
        If the arguments contradict each other.
    """
    zero = _zero_kind(zero_point, symmetric)
    n = layer.in_features
    group: Int = np.zeros(n, dtype=np.int64)
    shared: Granularity | None = None
    mxfp4 = isinstance(codebook_name, str) and codebook_name.lower() == "mxfp4"
    if g_idx is not None:
        if granularity is not None:
            raise InputError("g_idx says itself which inputs share a scale; leave out granularity.")
        group = numbers_of_groups(g_idx, "g_idx", n)
    else:
        shared = granularity if granularity is not None else (32 if mxfp4 else "channel")
        group = np.arange(n, dtype=np.int64) // granularity_size(shared, n)
    if codebook_name is not None:
        if zero != "none":
            raise InputError("a codebook has no zero point; leave out zero_point and symmetric=False.")
        if isinstance(codebook_name, str):
            codes, name = codebook(codebook_name), codebook_name.lower()
        else:
            codes = np.unique(as_float64(codebook_name, "codebook").ravel() + 0.0)
            name = f"{codes.size}-level codebook"
        if codes.size == 0 or not np.any(codes):
            raise InputError("the codebook has no level but 0; pass at least one other.")
    else:
        width = whole_number(bits, "bits", 1, MAX_BITS)
        low = 0 if zero != "none" else -(2 ** (width - 1))
        codes = np.arange(low, low + 2**width, dtype=np.float64)
        name = f"{width}-bit {'symmetric' if zero == 'none' else 'asymmetric'}"
        if width == 1 and zero == "none":
            codes, name = np.array([-1.0, 1.0]), "binary"
    # Mirrored codes that are codes already add nothing.
    both = flag(signed_scale, "signed_scale") and zero == "none" and not np.array_equal(codes, -codes[::-1])
    return FreeScaleProblem(layer, codes, zero, both, mxfp4, group, shared, name)


def _zero_kind(zero_point: object, symmetric: bool | None) -> Literal["none", "integer", "real"]:
    if symmetric is not None:
        flag(symmetric, "symmetric")
    if zero_point is not None and not (isinstance(zero_point, str) and zero_point in ("free", "real")):
        raise InputError(
            f"zero_point is {shown(zero_point)}, but the scale is free; pass 'free' for integer zero points, 'real' "
            "for any, or leave it out."
        )
    if symmetric and zero_point is not None:
        raise InputError("a symmetric grid has no zero point; leave out zero_point or symmetric=True.")
    if zero_point is None:
        return "integer" if symmetric is False else "none"
    return "integer" if zero_point == "free" else "real"
