"""Streaming sums over calibration positions: Gram matrices in float64 and memory that does not grow with the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerbounds.arrays import Float
from layerbounds.capturing.geometry import BLOCK_BYTES, Geometry

#: Makes the array behind a large sum: in memory, or on disk.
Allocate = Callable[[tuple[int, ...], torch.dtype, torch.device], Tensor]


def in_memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros on the device that computes."""
    return torch.zeros(shape, dtype=dtype, device=device)


def moment_bytes(geometry: Geometry, compressed: bool, dtype: torch.dtype) -> int:
    """Bytes that the sums of one layer take while they are accumulated."""
    gram = geometry.groups * geometry.inputs**2
    cross = geometry.outputs * geometry.inputs * 2 if compressed else 0
    return (gram + cross) * dtype.itemsize


class Moments:
    """Sums of one layer over all positions seen so far.

    Parameters
    ----------
    geometry : Geometry
    dtype : torch.dtype
        Of the sums; float64 unless the device has none. In float32 they are taken about a shift, the mean of the first
        rows, which is undone in float64 at the end: a large constant part of the inputs costs no digits.
    weight : callable, optional
        Gives the dense weights w of shape (out, …) when the first rows come (a computed weight may be stale before),
        where the compressed layer sees other inputs X̂ than the dense one, X. Then the sums are those that
        f(v) = ‖X̂v − Xw‖²/N needs, formed from the difference E = X − X̂: with v = w + u it is
        uᵀX̂ᵀX̂u − 2uᵀX̂ᵀEw + ‖Ew‖², where nothing large cancels when X̂ is close to X.
    """

    def __init__(
        self,
        geometry: Geometry,
        dtype: torch.dtype,
        weight: Callable[[], Tensor] | None = None,
        allocate: Allocate = in_memory,
    ) -> None:
        self.geometry = geometry
        self.dtype = dtype
        self.count = 0
        self._dense_weight = weight
        self._allocate = allocate
        self._weight: Tensor | None = None
        self._gram: Tensor | None = None
        self._sum: Tensor | None = None
        self._cross: Tensor | None = None
        self._energy: Tensor | None = None
        self._error: Tensor | None = None
        #: What is subtracted from X̂, from E and so from Ew before they are added up; float64.
        self._about: Tensor | None = None
        self._about_difference: Tensor | None = None
        self._about_error: Tensor | None = None

    def _start(self, block: Tensor, difference: Tensor | None) -> None:
        """Make the sums; the first rows say what they are taken about."""
        g, n = self.geometry.groups, self.geometry.inputs
        self._gram = self._allocate((g, n, n), self.dtype, block.device)
        device = self._gram.device
        self._sum = in_memory((g, n), self.dtype, device)
        shifted = self.dtype != torch.float64
        self._about = (block.mean(1) if shifted else block.new_zeros((g, n))).to(device)
        if difference is not None:
            assert self._dense_weight is not None
            per_group = self.geometry.outputs // g
            exact = self._dense_weight().to(device, torch.float64).reshape(g, per_group, n)
            self._weight = exact.to(self.dtype)
            self._about_difference = (difference.mean(1) if shifted else block.new_zeros((g, n))).to(device)
            self._about_error = torch.bmm(exact, self._about_difference[:, :, None])[:, :, 0]
            self._cross = in_memory((g, per_group, n), self.dtype, device)
            self._energy = in_memory((g, per_group), self.dtype, device)
            self._error = in_memory((g, per_group), self.dtype, device)

    def add(self, x: Tensor, keep: Tensor | None, dense: Tensor | None = None) -> None:
        """Add the inputs of one call of the module.

        Parameters
        ----------
        x : Tensor
            Inputs that the layer sees, as the module gets them (compressed ones where there are both).
        keep : Tensor of bool, shape (positions,), optional
            Positions that count.
        dense : Tensor, optional
            Inputs of the dense layer, of the same shape.
        """
        if x.device.type == "mps":
            # No float64 there.
            x = x.cpu()
            keep = None if keep is None else keep.cpu()
            dense = None if dense is None else dense.cpu()
        start = 0
        for block, other in self._blocks(x, dense):
            rows = block.shape[1]
            if keep is not None:
                chosen = keep[start : start + rows]
                block = block[:, chosen]
                other = None if other is None else other[:, chosen]
            start += rows
            if block.shape[1]:
                self._add_rows(block.double(), None if other is None else other.double())

    def _add_rows(self, block: Tensor, other: Tensor | None) -> None:
        difference = None if other is None else other - block
        if self._gram is None:
            self._start(block, difference)
        assert self._gram is not None and self._sum is not None and self._about is not None
        self.count += block.shape[1]
        rows = self._near_zero(block, self._about)
        _add_product(self._gram, rows, rows)
        self._sum += rows.sum(1)
        if difference is not None:
            assert self._weight is not None and self._about_difference is not None
            assert self._cross is not None and self._energy is not None and self._error is not None
            error = torch.bmm(self._near_zero(difference, self._about_difference), self._weight.transpose(1, 2))
            _add_product(self._cross, error, rows)
            self._energy += error.square().sum(1)
            self._error += error.sum(1)

    def _near_zero(self, rows: Tensor, about: Tensor) -> Tensor:
        # Sums on disk are in the memory of the computer.
        rows = rows.to(about.device)
        return rows if self.dtype == torch.float64 else (rows - about[:, None]).to(self.dtype)

    def _blocks(self, x: Tensor, dense: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        per_row = self.geometry.groups * self.geometry.inputs * torch.float64.itemsize
        rows = max(1, BLOCK_BYTES // per_row)
        own = (block for _, block in self.geometry.blocks(x, rows))
        if dense is None:
            for block in own:
                yield block, None
        else:
            yield from zip(own, (block for _, block in self.geometry.blocks(dense, rows)), strict=True)

    def _mean(self, value: Tensor | None) -> Float:
        assert value is not None and self.count
        return _float64(value) / self.count

    def gram(self) -> Float:
        """X̂ᵀX̂/N, exactly symmetric, shape (groups, n, n)."""
        gram = self._mean(self._gram)
        if self.dtype != torch.float64:
            offset, about = self._mean(self._sum), _float64(self._about)
            # Σ(x − r)(x − r)ᵀ/N + r dᵀ + d rᵀ + r rᵀ with d = Σ(x − r)/N.
            gram += offset[:, :, None] * about[:, None] + about[:, :, None] * (offset + about)[:, None]
        return 0.5 * (gram + gram.transpose(0, 2, 1))

    def input_mean(self) -> Float:
        """Mean of the inputs, shape (groups, n)."""
        return self._mean(self._sum) + _float64(self._about)

    def shift(self) -> Float:
        """X̂ᵀEw/N of each output channel, shape (out, n)."""
        cross = self._mean(self._cross)
        if self.dtype != torch.float64:
            offset = self._mean(self._sum)[:, None]
            error, about_error = self._mean(self._error)[:, :, None], _float64(self._about_error)[:, :, None]
            cross += about_error * offset + (error + about_error) * _float64(self._about)[:, None]
        return cross.reshape(self.geometry.outputs, self.geometry.inputs)

    def error_energy(self) -> Float:
        """‖Ew‖²/N of each output channel."""
        about = _float64(self._about_error)
        return (self._mean(self._energy) + about * (2 * self._mean(self._error) + about)).reshape(-1)

    def error_mean(self) -> Float:
        """Mean of Ew of each output channel."""
        return (self._mean(self._error) + _float64(self._about_error)).reshape(-1)


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
