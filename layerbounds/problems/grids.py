"""Quantization grids: the finite set of values that each weight may take."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arguments import flag, shown, whole_number
from layerbounds.arrays import Bool, Float, Int, as_float64, as_numpy
from layerbounds.display import Displayed, Summary, Table
from layerbounds.display.outward import ends
from layerbounds.exceptions import InputError
from layerbounds.problems.levels import Levels, nearest_levels
from layerbounds.suggestions import did_you_mean

Granularity = Literal["tensor", "channel"] | int
#: A name in `layerbounds.problems.ranges.registry`.
Range = str

MAX_BITS = 8


#: Codes that notebooks show one by one.
MOST_CODES = 16
#: Step sizes beyond these underflow or overflow when they are squared.
SMALLEST_SCALE, LARGEST_SCALE = 1e-100, 1e100
#: The farthest that codes and zero points may lie apart, in gaps between codes: levels must stay distinct in float64.
MOST_GAPS = 2.0**50


@dataclass(frozen=True, eq=False, repr=False)
class Grid(Displayed):
    """Level sets ``scale · (codes − zero_point) + offset`` of all weights of a layer.

    Arrays of any real type and lists are taken and copied to float64.

    Attributes
    ----------
    codes : ndarray of shape (levels,)
        Sorted and distinct; consecutive numbers for uniform grids.
    scale : ndarray of shape (out, scale_groups)
        Step sizes; a negative one mirrors the codes, and one of zero leaves the offset as the only level. Given as
        (out,): one scale group.
    zero_point : ndarray of shape (out, scale_groups)
        In units of the codes, not necessarily integers. Zero for symmetric grids and codebooks; given as one number, it
        is that of all.
    in_features : int
        n.
    group_size : int or None
        Consecutive inputs that share a scale; the last group may be smaller. By default the groups are of equal size.
        None where ``group`` is not of this form.
    uniform : bool
        Whether the codes are consecutive numbers; by default found out.
    label : str
        How tables and files call the grid.
    group : ndarray of int64, shape (n,)
        The scale group of each flattened input, such as the ``g_idx`` of GPTQ; by default consecutive blocks.
    offset : ndarray of shape (out, scale_groups)
        Added to ``scale · (codes − zero_point)``: the minimum that formats such as GGUF's Q4_1 store. By default 0.

    Raises
    ------
    InputError
        On NaN, infinity, shapes that do not agree, or levels that float64 cannot tell apart.

    Examples
    --------
    >>> grid = lb.Grid([0, 1, 2], [0.5, 0.25], 1, in_features=2)
    >>> grid.levels(0)
    array([[-0.5,  0. ,  0.5],
           [-0.5,  0. ,  0.5]])
    """

    codes: Float
    scale: Float
    zero_point: Float
    in_features: int
    group_size: int | None = None
    uniform: bool = None  # type: ignore[assignment]
    label: str = "given grid"
    group: Int = field(default=None)  # type: ignore[arg-type]
    offset: Float = field(default=None)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        codes = as_float64(self.codes, "codes")
        if codes.ndim != 1 or codes.size == 0:
            raise InputError(f"codes have shape {codes.shape}; pass a list of at least one code.")
        # Adding 0 makes the zero of -0.
        codes = np.unique(codes + 0.0)
        scale = _by_channel(self.scale, "scale")
        zero = as_float64(self.zero_point, "zero_point")
        zero = np.full(scale.shape, float(zero)) if zero.ndim == 0 else _by_channel(zero, "zero_point")
        if zero.shape != scale.shape:
            raise InputError(f"zero_point has shape {zero.shape} but scale has {scale.shape}; they must agree.")
        offset = np.zeros(scale.shape) if self.offset is None else _by_channel(self.offset, "offset") + 0.0
        if offset.shape != scale.shape:
            raise InputError(f"offset has shape {offset.shape} but scale has {scale.shape}; they must agree.")
        _check_levels(codes, scale, zero, offset)
        n = whole_number(self.in_features, "in_features", 1)
        group, size = _groups(self.group, self.group_size, n, scale.shape[1])
        step = codes.size > 1 and np.array_equal(codes - codes[0], np.arange(codes.size))
        uniform = step if self.uniform is None else flag(self.uniform, "uniform")
        if uniform and not step:
            raise InputError("the codes of a uniform grid are consecutive numbers; pass uniform=False for these.")
        values = {"codes": codes, "scale": scale, "zero_point": zero, "in_features": n, "group": group}
        values["offset"] = offset
        for name, value in {**values, "group_size": size, "uniform": uniform, "label": str(self.label)}.items():
            object.__setattr__(self, name, value)

    def _summary(self) -> Summary:
        groups = self.scale.shape[1]
        shared = "a scale for each channel" if groups == 1 else f"{groups} scales for each channel"
        return Summary(
            self.label,
            [f"{len(self.codes)} levels", f"{self.out_features} channels of {self.in_features} inputs", shared],
        )

    def _tables(self) -> list[Table]:
        codes = [f"{code:g}" for code in self.codes]
        if self.uniform and len(codes) > 2:
            codes = [f"{codes[0]} to {codes[-1]}"]
        elif len(codes) > MOST_CODES:
            codes = [*codes[: MOST_CODES - 1], "…", codes[-1]]
        rows = [["codes", ", ".join(codes)]]
        for name, values in (("scale", self.scale), ("zero point", self.zero_point), ("offset", self.offset)):
            if name == "scale" or np.any(values):
                rows.append([name, ends((float(values.min()), float(values.max())))])
        return [Table({"": "text", " ": "text"}, rows)]

    @property
    def out_features(self) -> int:
        """Number of output channels."""
        return int(self.scale.shape[0])

    @property
    def affine(self) -> bool:
        """Whether anything but scales other than zero, and zero points, says what the levels are."""
        return bool(np.any(self.scale == 0.0) or np.any(self.offset))

    @functools.cached_property
    def has_zero(self) -> Bool:
        """Whether zero is a level, exactly, shape (out, scale_groups)."""
        found = np.zeros(self.scale.shape, dtype=bool)
        for code in self.codes:
            found |= self.scale * (code - self.zero_point) + self.offset == 0.0
        return found

    def allowed(self, channel: int) -> Levels:
        """The levels of each weight of a channel, as an allowed set.

        Examples
        --------
        >>> grid = lb.Grid([0, 1, 2], [0.5, 0.25], 1, in_features=2)
        >>> grid.allowed(0).nearest(np.array([0.3, -2.0]))
        array([ 0.5, -0.5])
        """
        codes, scale, zero_point = self.lattice(channel)
        return Levels(self.levels(channel), codes, scale, zero_point, self.uniform)

    def levels(self, channel: int) -> Float:
        """Sorted values that each weight of a channel may take, shape (n, levels).

        Examples
        --------
        >>> grid = lb.Grid([0, 1, 2], [0.5, 0.25], 1, in_features=2)
        >>> grid.levels(1)
        array([[-0.25,  0.  ,  0.25],
               [-0.25,  0.  ,  0.25]])
        """
        scale, zero = self.scale[channel, self.group], self.zero_point[channel, self.group]
        levels = scale[:, None] * (self.codes[None, :] - zero[:, None]) + self.offset[channel, self.group][:, None]
        mirrored = scale < 0
        levels[mirrored] = levels[mirrored, ::-1]
        return np.asarray(levels)

    def weights(self, channel: int, positions: Int) -> Float:
        """The levels that a channel's weights have whose codes are at these positions of ``codes``, shape (n,).

        Examples
        --------
        >>> grid = lb.Grid([0, 1, 2], [0.5, 0.25], 1, in_features=2)
        >>> grid.weights(0, np.array([0, 2]))
        array([-0.5,  0.5])
        """
        scale, zero = self.scale[channel, self.group], self.zero_point[channel, self.group]
        return np.asarray(scale * (self.codes[positions] - zero) + self.offset[channel, self.group])

    def rows(self, channels: Sequence[int]) -> Grid:
        """The grid of some output channels, any of them several times.

        Examples
        --------
        >>> grid = lb.Grid([0, 1, 2], [0.5, 0.25], 1, in_features=2)
        >>> grid.rows([1]).scale
        array([[0.25]])
        """
        chosen = list(channels)
        return Grid(
            self.codes,
            self.scale[chosen],
            self.zero_point[chosen],
            self.in_features,
            uniform=self.uniform,
            label=self.label,
            group=self.group,
            offset=self.offset[chosen],
        )

    def lattice(self, channel: int) -> tuple[Float, Float, Float]:
        """The levels of a channel as ``scale · (codes − zero_point)`` with positive scales and no offset.

        A negative scale mirrors the codes. Those of a uniform grid stay the same and its zero point moves, so that all
        inputs keep one list of codes; the codes of other grids change their sign. An input with a single level has the
        first code alone, repeated, and the scale that is the median of the channel's others; where there are none, the
        largest size of an offset, or 1.

        Returns
        -------
        codes : ndarray of shape (n, levels)
            Sorted.
        scale, zero_point : ndarray of shape (n,)
            ``scale[:, None] * (codes - zero_point[:, None])`` is `levels` up to the rounding of the zero point, which
            an offset moves by −offset/scale.

        Examples
        --------
        >>> grid = lb.Grid([0, 1, 2], [0.5, 0.25], 1, in_features=2)
        >>> codes, scale, zero_point = grid.lattice(1)
        >>> scale, zero_point
        (array([0.25, 0.25]), array([1., 1.]))
        """
        scale, zero, offset = (array[channel, self.group] for array in (self.scale, self.zero_point, self.offset))
        codes = np.repeat(self.codes[None, :], len(scale), axis=0)
        mirrored, fixed = scale < 0, scale == 0.0
        if self.uniform:
            zero = np.where(mirrored, self.codes[0] + self.codes[-1] - zero, zero)
        else:
            codes[mirrored] = 0.0 - self.codes[::-1]
            zero = np.where(mirrored, 0.0 - zero, zero)
        size = np.abs(scale)
        if fixed.any():
            size[fixed] = (np.max(np.abs(offset)) or 1.0) if fixed.all() else np.median(size[~fixed])
            codes[fixed], zero[fixed] = self.codes[0], self.codes[0]
        return codes, size, zero - offset / size

    def nearest(self, matrix: Float, channels: Sequence[int] | None = None) -> Float:
        """Round weights, shape (channels, n), to the nearest level each (ties go to the lower level).

        Examples
        --------
        >>> grid = lb.Grid([0, 1, 2], [0.5, 0.25], 1, in_features=2)
        >>> grid.nearest(np.array([[0.3, -2.0], [0.3, 0.1]]))
        array([[ 0.5 , -0.5 ],
               [ 0.25,  0.  ]])
        """
        rows = range(self.out_features) if channels is None else channels
        result = np.empty_like(matrix)
        for row, channel in enumerate(rows):
            levels = self.levels(channel)
            result[row] = nearest_levels(levels, matrix[row])
        return result


def _by_channel(value: ArrayLike, what: str) -> Float:
    """An array of shape (out, scale_groups); (out,) is one scale group."""
    array = as_float64(value, what).copy()
    if array.ndim < 2:
        array = array.reshape(-1, 1)
    if array.ndim != 2 or array.size == 0:
        raise InputError(f"{what} has shape {array.shape}; pass (out,) or (out, scale_groups).")
    return array


def _check_levels(codes: Float, scale: Float, zero: Float, offset: Float) -> None:
    """Refuse what float64 cannot compute with."""
    if np.any(np.abs(offset) > LARGEST_SCALE):
        raise InputError(f"offset holds numbers beyond {LARGEST_SCALE:g}; rescale the layer and its grid.")
    several = scale != 0.0
    if not several.any():
        return
    size = np.abs(scale[several])
    gap = float(np.diff(codes).min()) if codes.size > 1 else 1.0
    reach = float(np.abs(codes).max() + np.abs(zero).max())
    if size.min() * min(gap, 1.0) < SMALLEST_SCALE or size.max() * max(reach, 1.0) > LARGEST_SCALE:
        raise InputError(
            f"scale, codes and zero_point give levels outside {SMALLEST_SCALE:g} to {LARGEST_SCALE:g}; rescale the "
            "layer and its grid."
        )
    if reach > MOST_GAPS * gap:
        raise InputError(
            "codes lie so close together, or zero_point so far from them, that float64 cannot tell the levels apart."
        )
    if codes.size > 1 and np.any(np.abs(offset[several]) > MOST_GAPS * gap * size):
        raise InputError(
            "offset is so large beside scale that float64 cannot tell the levels apart; where there is to be one level "
            "only, pass a scale of 0."
        )


def numbers_of_groups(value: ArrayLike, what: str, n: int, count: int | None = None) -> Int:
    """The number of each input's scale group, below ``count`` where that is given."""
    array = as_numpy(value, what)
    if array.shape != (n,) or array.dtype.kind not in "iu":
        raise InputError(
            f"{what} has shape {array.shape} and type {array.dtype}; pass {n} integers, one for each input."
        )
    most = n if count is None else count
    if array.min() < 0 or array.max() >= most:
        groups = (
            f"groups are numbered from 0 to at most {n - 1}"
            if count is None
            else f"scale has the groups 0 to {most - 1}"
        )
        raise InputError(f"{what} holds numbers from {array.min()} to {array.max()}; {groups}.")
    return array.astype(np.int64)


def _groups(group: ArrayLike | None, size: int | None, n: int, count: int) -> tuple[Int, int | None]:
    """The scale group of each input, and the size of the blocks if they are consecutive."""
    if group is not None:
        chosen = numbers_of_groups(group, "group", n, count)
        run = int(np.argmax(chosen != 0)) or n
        block = run if np.array_equal(chosen, np.arange(n) // run) else None
        if size is not None and not np.array_equal(chosen, np.arange(n) // whole_number(size, "group_size", 1)):
            raise InputError("group and group_size contradict each other; leave out group_size.")
        return chosen, block if size is None else size
    if size is None:
        if n % count:
            raise InputError(
                f"scale has {_counted(count, 'group')}, which do not divide the {n} inputs evenly; pass the number of "
                "inputs per group (granularity, or group_size of a Grid)."
            )
        size = n // count
    size = min(whole_number(size, "group_size", 1), n)
    needed = -(-n // size)
    if needed != count:
        raise InputError(
            f"scale has {_counted(count, 'group')}, but {n} inputs in groups of {size} need {needed}; pass scale of "
            f"shape (out, {needed}), or another number of inputs per group."
        )
    return np.arange(n, dtype=np.int64) // size, size


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def granularity_size(granularity: Granularity, n: int) -> int:
    """How many of n consecutive inputs share a scale."""
    if isinstance(granularity, str) and granularity in ("tensor", "channel"):
        return n
    whole = isinstance(granularity, (int, np.integer)) and not isinstance(granularity, bool)
    if not whole or int(granularity) <= 0:
        hint = did_you_mean(granularity, ("tensor", "channel"))
        raise InputError(
            f"granularity is {shown(granularity)}; {hint}choose 'tensor', 'channel' or a positive number of inputs per "
            "group."
        )
    return min(int(granularity), n)


def given_grid(
    scale: ArrayLike,
    bits: int | None,
    in_features: int,
    granularity: Granularity | None = None,
    *,
    codes: ArrayLike | None = None,
    zero_point: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    symmetric: bool | None = None,
    g_idx: ArrayLike | None = None,
    out_features: int | None = None,
) -> Grid:
    """Grid with given scales, and zero points, offsets, both or none: uniform, or of given codes.

    Parameters
    ----------
    scale : array_like of shape (out,) or (out, scale_groups)
        Negative ones mirror the codes, and groups of scale 0 have the offset as their only level. One number with
        granularity "tensor".
    bits : int or None
        2 to 8; None with ``codes``.
    in_features : int
    granularity : {"tensor", "channel"} or int, optional
        The number of inputs that share a scale. It may be left out where the groups are of equal size.
    codes : array_like of shape (levels,), optional
        Instead of ``bits``.
    zero_point, offset : array_like of the shape of scale, optional
        Levels are scale · (codes − zero_point) + offset. Where one of them is given, the codes of ``bits`` are
        0, …, 2^bits − 1 instead of −2^(bits−1), …, 2^(bits−1) − 1.
    symmetric : bool, optional
        Default: whether ``zero_point`` and ``offset`` are left out.
    g_idx : array_like of int, shape (n,), optional
        Scale group of each input, instead of consecutive blocks.
    out_features : int, optional
        Output channels that the scale of a whole tensor is for.

    Raises
    ------
    InputError
        If the arguments contradict each other.
    """
    if symmetric is not None:
        flag(symmetric, "symmetric")
    plain = zero_point is None and offset is None
    if symmetric is False and plain:
        raise InputError("symmetric=False with given scales needs their zero points; pass zero_point or offset.")
    if symmetric and not plain:
        raise InputError("a symmetric grid has no zero point; leave out zero_point and offset, or symmetric=True.")
    if codes is None:
        width = whole_number(bits, "bits with a given scale", 2, MAX_BITS)
        low = -(2 ** (width - 1)) if plain else 0
        codes, kind = np.arange(low, low + 2**width), f"{width}-bit {'symmetric' if plain else 'asymmetric'}"
    else:
        kind = f"{np.unique(as_float64(codes, 'codebook')).size}-level codebook"
    array = as_float64(scale, "scale")
    zeros, more = (
        None if part is None else as_float64(part, name)
        for part, name in ((zero_point, "zero_point"), (offset, "offset"))
    )
    for part, name in ((zeros, "zero_point"), (more, "offset")):
        if part is not None and part.ndim and part.shape != array.shape:
            raise InputError(f"{name} has shape {part.shape} but scale has {array.shape}; they must agree.")
    n = whole_number(in_features, "in_features", 1)
    size: int | None = None
    if granularity is not None:
        size = granularity_size(granularity, n)
        if g_idx is not None:
            raise InputError("g_idx says itself which inputs share a scale; leave out granularity.")
        if granularity == "tensor":
            if array.size != 1:
                raise InputError(f"granularity 'tensor' means one scale, but scale has shape {array.shape}.")
            array = np.full((out_features or 1, 1), array.item())
            zeros, more = (None if part is None else np.full(array.shape, part.item()) for part in (zeros, more))
        elif array.ndim == 2 and array.shape[1] != -(-n // size):
            what = repr(granularity) if isinstance(granularity, str) else f"{size} inputs per group"
            raise InputError(
                f"granularity {what} means {_counted(-(-n // size), 'scale')} per channel, but scale has "
                f"{array.shape[1]}; leave granularity out, or pass scale of that shape."
            )
    elif array.ndim == 0:
        raise InputError("scale is one number; pass one per output channel, or granularity='tensor' with it.")
    if out_features is not None and array.ndim and array.shape[0] != out_features:
        hint = ", it looks transposed" if array.ndim == 2 and array.shape[1] == out_features else ""
        raise InputError(
            f"scale has shape {array.shape}{hint}; pass ({out_features},) or ({out_features}, scale_groups), a row for "
            "each output channel."
        )
    group = None if g_idx is None else numbers_of_groups(g_idx, "g_idx", n, _by_channel(array, "scale").shape[1])
    if more is not None and more.ndim == 0:
        more = np.full(array.shape, float(more))
    given = ["scale", *(name for part, name in ((zeros, "zero point"), (more, "offset")) if part is not None)]
    return Grid(
        codes=codes,  # type: ignore[arg-type]
        scale=array,
        zero_point=np.zeros(()) if zeros is None else zeros,
        in_features=n,
        group_size=size,
        label=f"{kind}, given {', '.join(given[:-1])}{' and ' if given[1:] else ''}{given[-1]}",
        group=group,  # type: ignore[arg-type]
        offset=more,  # type: ignore[arg-type]
    )
