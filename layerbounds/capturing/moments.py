"""Streaming sums over calibration positions: Gram matrices in float64 and memory that does not grow with the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerbounds.arrays import Float
from layerbounds.capturing.geometry import BLOCK_BYTES, Geometry
from layerbounds.layers.gram import ValidatedGram, symmetrise

#: Makes the array behind a large sum: in memory, or on disk.
Allocate = Callable[[tuple[int, ...], torch.dtype, torch.device], Tensor]
#: Rows of a Gram matrix whose shift is undone at once.
_STRIPE = 256


def in_memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros on the device that computes."""
    return torch.zeros(shape, dtype=dtype, device=device)


def moment_bytes(geometry: Geometry, compressed: bool, dtype: torch.dtype) -> int:
    """Bytes that the sums of one layer take while they are accumulated, where it shares none of them."""
    gram = geometry.groups * geometry.inputs**2
    cross = geometry.outputs * geometry.inputs * 2 if compressed else 0
    return (gram + cross) * dtype.itemsize


class InputSums:
    """Sums of the rows of X̂ over all positions seen so far; layers that see the same inputs have the same sums.

    Parameters
    ----------
    geometry : Geometry
    dtype : torch.dtype
        Of the sums; float64 unless the device has none. In float32 they are taken about a shift, the mean of the first
        rows, which is undone in float64 at the end: a large constant part of the inputs costs no digits.
    allocate : callable
        Makes the array of the Gram matrix.
    """

    def __init__(self, geometry: Geometry, dtype: torch.dtype, allocate: Allocate = in_memory) -> None:
        self.geometry = geometry
        self.dtype = dtype
        self.count = 0
        self._allocate = allocate
        self._gram: Tensor | None = None
        self._sum: Tensor | None = None
        #: What is subtracted from X̂ before it is added up; float64.
        self._about: Tensor | None = None
        self._validated: ValidatedGram | None = None

    def add(self, block: Tensor) -> None:
        """Add rows, float64 of shape (groups, rows, n)."""
        if self._gram is None:
            g, n = self.geometry.groups, self.geometry.inputs
            self._gram = self._allocate((g, n, n), self.dtype, block.device)
            self._sum = in_memory((g, n), self.dtype, self._gram.device)
            self._about = _first_mean(block, self.dtype).to(self._gram.device)
        assert self._sum is not None and self._about is not None
        self.count += block.shape[1]
        rows = _near_zero(block, self._about, self.dtype)
        _add_product(self._gram, rows, rows)
        self._sum += rows.sum(1)

    def copy(self) -> InputSums:
        """The same sums, to be gone on with apart."""
        other = InputSums(self.geometry, self.dtype, self._allocate)
        if self._gram is not None:
            assert self._sum is not None and self._about is not None
            other._gram = self._allocate(tuple(self._gram.shape), self.dtype, self._gram.device)
            other._gram.copy_(self._gram)
            other._sum, other._about = self._sum.clone(), self._about
            other.count = self.count
        return other

    def gram(self, what: str) -> ValidatedGram:
        """X̂ᵀX̂/N, shape (groups, n, n), the same object for all layers; nothing can be added afterwards.

        Parameters
        ----------
        what : str
            How error messages call it.
        """
        if self._validated is None:
            assert self._gram is not None and self.count
            gram = _float64(self._gram)
            # The memory of the sums goes over to the matrix, that on disk does not.
            gram = np.array(gram, order="C", copy=None if self._allocate is in_memory else True)
            self._gram = None
            gram /= self.count
            if self.dtype != torch.float64:
                offset, about = self.offset(), _float64(self._about)
                for i in range(0, gram.shape[1], _STRIPE):
                    rows = slice(i, i + _STRIPE)
                    # Σ(x − r)(x − r)ᵀ/N + r dᵀ + d rᵀ + r rᵀ with d = Σ(x − r)/N.
                    gram[:, rows] += offset[:, rows, None] * about[:, None]
                    gram[:, rows] += about[:, rows, None] * (offset + about)[:, None]
            for own in gram:
                symmetrise(own)
            self._validated = ValidatedGram(gram, what)
        return self._validated

    def offset(self) -> Float:
        """Mean of the inputs less what was subtracted, shape (groups, n)."""
        return _float64(self._sum) / self.count

    def mean(self) -> Float:
        """Mean of the inputs, shape (groups, n)."""
        return self.offset() + _float64(self._about)


class ErrorSums:
    """Sums that a layer needs where the compressed layer sees other inputs X̂ than the dense one, X.

    They are those that f(v) = ‖X̂v − Xw‖²/N needs beside X̂ᵀX̂, formed from the difference E = X − X̂: with v = w + u it is
    uᵀX̂ᵀX̂u − 2uᵀX̂ᵀEw + ‖Ew‖², where nothing large cancels when X̂ is close to X.

    Parameters
    ----------
    geometry : Geometry
    dtype : torch.dtype
        As in `InputSums`.
    weight : callable
        Gives the dense weights w of shape (out, …) when the first rows come; a computed weight may be stale before.
    """

    def __init__(self, geometry: Geometry, dtype: torch.dtype, weight: Callable[[], Tensor]) -> None:
        self.geometry = geometry
        self.dtype = dtype
        self._dense_weight = weight
        self._weight: Tensor | None = None
        self._cross: Tensor | None = None
        self._energy: Tensor | None = None
        self._error: Tensor | None = None
        #: What is subtracted from X̂, from E and so from Ew before they are added up; float64.
        self._about: Tensor | None = None
        self._about_difference: Tensor | None = None
        self._about_error: Tensor | None = None

    def _start(self, block: Tensor, difference: Tensor) -> None:
        """Make the sums; the first rows say what they are taken about."""
        g, n = self.geometry.groups, self.geometry.inputs
        per_group = self.geometry.outputs // g
        exact = self._dense_weight().to(block.device, torch.float64).reshape(g, per_group, n)
        self._weight = exact.to(self.dtype)
        self._about = _first_mean(block, self.dtype)
        self._about_difference = _first_mean(difference, self.dtype)
        self._about_error = torch.bmm(exact, self._about_difference[:, :, None])[:, :, 0]
        self._cross = in_memory((g, per_group, n), self.dtype, block.device)
        self._energy = in_memory((g, per_group), self.dtype, block.device)
        self._error = in_memory((g, per_group), self.dtype, block.device)

    def add(self, block: Tensor, dense: Tensor) -> None:
        """Add rows of X̂ and of X, float64 of shape (groups, rows, n)."""
        difference = dense - block
        if self._weight is None:
            self._start(block, difference)
        assert self._weight is not None and self._about is not None and self._about_difference is not None
        assert self._cross is not None and self._energy is not None and self._error is not None
        rows = _near_zero(block, self._about, self.dtype)
        error = torch.bmm(_near_zero(difference, self._about_difference, self.dtype), self._weight.transpose(1, 2))
        _add_product(self._cross, error, rows)
        self._energy += error.square().sum(1)
        self._error += error.sum(1)

    def shift(self, inputs: InputSums) -> Float:
        """X̂ᵀEw/N of each output channel, shape (out, n)."""
        cross = _float64(self._cross) / inputs.count
        if self.dtype != torch.float64:
            error, about_error = self._mean_error(inputs)[:, :, None], _float64(self._about_error)[:, :, None]
            cross += about_error * inputs.mean()[:, None] + error * _float64(self._about)[:, None]
        return cross.reshape(self.geometry.outputs, self.geometry.inputs)

    def energy(self, inputs: InputSums) -> Float:
        """‖Ew‖²/N of each output channel."""
        about = _float64(self._about_error)
        energy = _float64(self._energy) / inputs.count
        return (energy + about * (2 * self._mean_error(inputs) + about)).reshape(-1)

    def mean(self, inputs: InputSums) -> Float:
        """Mean of Ew of each output channel."""
        return (self._mean_error(inputs) + _float64(self._about_error)).reshape(-1)

    def _mean_error(self, inputs: InputSums) -> Float:
        return _float64(self._error) / inputs.count


class Moments:
    """What is added up for one layer.

    Attributes
    ----------
    inputs : InputSums
        Perhaps those of other layers too.
    errors : ErrorSums, optional
        Where the compressed layer sees other inputs than the dense one.
    """

    def __init__(self, inputs: InputSums, errors: ErrorSums | None = None) -> None:
        self.inputs, self.errors = inputs, errors

    def add(self, x: Tensor, keep: Tensor | None, dense: Tensor | None = None, *, inputs: bool = True) -> None:
        """Add the inputs of one call of the module.

        Parameters
        ----------
        x : Tensor
            Inputs that the layer sees, as the module gets them (compressed ones where there are both).
        keep : Tensor of bool, shape (positions,), optional
            Positions that count.
        dense : Tensor, optional
            Inputs of the dense layer, of the same shape.
        inputs : bool
            Whether they are added to the sums of the inputs; to those of the errors they always are.
        """
        for block, other in _row_blocks(self.inputs.geometry, x, keep, dense):
            if inputs:
                self.inputs.add(block)
            if other is not None:
                assert self.errors is not None
                self.errors.add(block, other)


def _row_blocks(
    geometry: Geometry, x: Tensor, keep: Tensor | None, dense: Tensor | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Rows that count, in float64, with those of the dense layer."""
    if x.device.type == "mps":
        # No float64 there.
        x = x.cpu()
        keep = None if keep is None else keep.cpu()
        dense = None if dense is None else dense.cpu()
    per_row = geometry.groups * geometry.inputs * torch.float64.itemsize
    size = max(1, BLOCK_BYTES // per_row)
    others = None if dense is None else (block for _, block in geometry.blocks(dense, size))
    start = 0
    for _, block in geometry.blocks(x, size):
        other = None if others is None else next(others)
        rows = block.shape[1]
        if keep is not None:
            chosen = keep[start : start + rows]
            block = block[:, chosen]
            other = None if other is None else other[:, chosen]
        start += rows
        if block.shape[1]:
            yield block.double(), None if other is None else other.double()


def _first_mean(block: Tensor, dtype: torch.dtype) -> Tensor:
    """What sums of that type are taken about, given their first rows."""
    return block.mean(1) if dtype != torch.float64 else block.new_zeros((block.shape[0], block.shape[2]))


def _near_zero(rows: Tensor, about: Tensor, dtype: torch.dtype) -> Tensor:
    # Sums on disk are in the memory of the computer.
    rows = rows.to(about.device)
    return rows if dtype == torch.float64 else (rows - about[:, None]).to(dtype)


def _float64(value: Tensor | None) -> Float:
    assert value is not None
    result: Any = value.cpu().numpy()
    return np.asarray(result, dtype=np.float64)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add leftᵀ·right of each group in place."""
    if len(total) == 1:
        total[0].addmm_(left[0].T, right[0])
    else:
        total.baddbmm_(left.transpose(1, 2), right)
