"""Single precision on an accelerator, through PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.kernels.arithmetic import Single


class TorchArithmetic:
    """Arrays of torch on one device.

    Parameters
    ----------
    device : str
        ``cuda``, ``mps``, or ``cpu`` (which the tests use).

    Raises
    ------
    InputError
        If this machine has no such device.
    """

    def __init__(self, device: str) -> None:
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not there.get(device, True):
            raise InputError(f"device is {device!r}, which PyTorch does not find here; leave it out, or choose cpu.")
        self.name = device

    def put(self, array: Float | Single) -> Any:
        """A float32 copy there."""
        return torch.tensor(np.asarray(array, dtype=np.float32), device=self.name)

    def get(self, array: Any) -> Float:
        """A float64 copy here."""
        return np.asarray(array.detach().cpu().numpy(), dtype=np.float64)

    def inverse(self, matrix: Any) -> Any | None:
        """By Cholesky."""
        if not matrix.numel():
            return matrix
        factor, info = torch.linalg.cholesky_ex(matrix)
        if int(info) != 0:
            return None
        inverse = torch.cholesky_inverse(factor)
        return inverse if bool(torch.isfinite(inverse).all()) else None

    def product(self, left: Single, right: Any) -> Single:
        """On the device, there and back."""
        return np.asarray((torch.from_numpy(np.ascontiguousarray(left)).to(self.name) @ right).cpu().numpy())
