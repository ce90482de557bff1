"""The inputs of a convolution as the rows of X, for NumPy arrays and torch tensors alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from layerbounds.arguments import shown, whole_number
from layerbounds.arrays import as_numpy
from layerbounds.exceptions import InputError

#: Axes of images at most: those of volumes.
_MOST_AXES = 3
#: Strides, paddings and the like beyond this are mistakes, which would ask for all memory.
_LARGEST = 2**20


def im2col(
    x: Any,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] | Sequence[tuple[int, int]] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Any:
    """Unfold the inputs of a convolution: one row for each output position, in the order (channel, kernel).

    The rows fit weights of shape (out, channels/groups, …kernel) flattened to (out, n), as `Layer` does it:
    ``im2col(x, …) @ weight.reshape(out, -1).T`` are the outputs without the bias, and
    ``Layer.from_activations(weight, im2col(x, …))`` is the layer.

    Parameters
    ----------
    x : array_like or torch.Tensor of shape (images, channels, …)
        One, two or three axes of positions behind the channels.
    kernel_size, stride, dilation : int or sequence of int
        One number for all axes, or one for each.
    padding : int, sequence, or {"valid", "same"}
        Zeros on both sides of all axes, of each axis, or as (before, after) for each axis. ``"same"`` pads as PyTorch
        does, one more behind than before where the number is odd.
    groups : int
        Of the convolution.

    Returns
    -------
    ndarray or torch.Tensor
        Shape (positions, n) with n = channels·kernel; (groups, positions, n) where there are several groups. Images
        come one after the other, positions in row-major order. A tensor gives a tensor, on its device; numbers keep
        their type.

    Raises
    ------
    InputError
        If sizes do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> import layerbounds as lb
    >>> x = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> lb.im2col(x, 3, padding=1).shape
    (16, 9)
    >>> lb.im2col(x, 2, stride=2)[0]
    array([0., 1., 4., 5.])
    """
    array = as_numpy(x, "x")
    values = x if _is_tensor(x) else array
    dims = values.ndim - 2
    if not 1 <= dims <= _MOST_AXES or 0 in values.shape:
        raise InputError(
            f"x has shape {tuple(values.shape)}; pass (images, channels, positions), (images, channels, height, width) "
            "or one axis more."
        )
    kernel = _numbers(kernel_size, dims, "kernel_size", 1)
    strides, dilations = _numbers(stride, dims, "stride", 1), _numbers(dilation, dims, "dilation", 1)
    amounts = _padding(padding, dims, [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)])
    groups, channels = whole_number(groups, "groups", 1), values.shape[1]
    if channels % groups:
        raise InputError(f"{groups} groups do not divide the {channels} channels of x; pass the layer's own number.")
    for axis, ((before, after), k, d) in enumerate(zip(amounts, kernel, dilations, strict=True)):
        size, extent = before + values.shape[axis + 2] + after, d * (k - 1) + 1
        if extent > size:
            raise InputError(
                f"the kernel covers {extent} positions along axis {axis + 2} of x, which has {size} with its padding; "
                "pass a smaller kernel_size or dilation, or more padding."
            )
    rows = as_rows(windows(values, kernel, strides, amounts, dilations), groups)
    return rows[0] if groups == 1 else rows


def windows(
    x: Any,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> Any:
    """View of shape (images, channels, …positions, …kernel) of an array or tensor, padded with zeros."""
    dims = len(kernel)
    if any(side for pair in padding for side in pair):
        shape = [*x.shape[:2], *(b + size + a for (b, a), size in zip(padding, x.shape[2:], strict=True))]
        padded = x.new_zeros(shape) if _is_tensor(x) else np.zeros(shape, dtype=x.dtype)
        inner = tuple(slice(b, b + size) for (b, _), size in zip(padding, x.shape[2:], strict=True))
        padded[(slice(None), slice(None), *inner)] = x
        x = padded
    extents = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if _is_tensor(x):
        for axis, (extent, step) in enumerate(zip(extents, stride, strict=True)):
            x = x.unfold(axis + 2, extent, step)
    else:
        x = sliding_window_view(x, extents, axis=tuple(range(2, 2 + dims)))
        x = x[(slice(None), slice(None), *(slice(None, None, step) for step in stride))]
    return x[(..., *(slice(None, None, step) for step in dilation))]


def as_rows(view: Any, groups: int) -> Any:
    """Windows as rows of shape (groups, positions, channels per group · kernel)."""
    dims = (view.ndim - 2) // 2
    images, channels = view.shape[:2]
    split = view.reshape(images, groups, channels // groups, *view.shape[2:])
    order = (1, 0, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims))
    split = split.permute(order) if _is_tensor(split) else split.transpose(order)
    size = 1
    for length in split.shape[2 + dims :]:
        size *= length
    return split.reshape(groups, -1, size)


def _is_tensor(x: Any) -> bool:
    return hasattr(x, "new_zeros") and hasattr(x, "unfold")


def _numbers(value: Any, dims: int, what: str, least: int) -> tuple[int, ...]:
    if isinstance(value, (list, tuple)):
        if len(value) != dims:
            raise InputError(
                f"{what} has {len(value)} numbers for {dims} axes of positions; pass one, or one for each."
            )
        return tuple(
            whole_number(number, f"{what} of axis {axis + 2}", least, _LARGEST) for axis, number in enumerate(value)
        )
    return (whole_number(value, what, least, _LARGEST),) * dims


def _padding(value: Any, dims: int, same: Sequence[int]) -> tuple[tuple[int, int], ...]:
    if isinstance(value, str):
        if value == "same":
            return tuple((total // 2, total - total // 2) for total in same)
        if value != "valid":
            raise InputError(f"padding is {shown(value)}; pass numbers, 'same' or 'valid'.")
        value = 0
    if isinstance(value, (list, tuple)) and len(value) == dims and all(isinstance(p, (list, tuple)) for p in value):
        pairs = [_numbers(pair, 2, "padding (before, after)", 0) for pair in value]
        return tuple((before, after) for before, after in pairs)
    return tuple((amount, amount) for amount in _numbers(value, dims, "padding", 0))
