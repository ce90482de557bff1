"""Conversion of what users hand over (lists, NumPy arrays, torch tensors) to validated NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.exceptions import InputError

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]


def as_numpy(value: Any, what: str) -> NDArray[Any]:
    """Return ``value`` as a numeric NumPy array without importing torch.

    Parameters
    ----------
    value : array_like or torch.Tensor
        Tensors are detached and moved to the host.
    what : str
        How error messages call the value.

    Raises
    ------
    InputError
        If the value is not numeric or holds NaN or infinity.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(getattr(value, "dtype", "")) in ("torch.bfloat16", "torch.float16"):
            value = value.float()
        value = value.numpy()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} cannot be read as an array ({error}); pass a NumPy array or a tensor.") from error
    if array.dtype.kind not in "fiub":
        raise InputError(f"{what} has dtype {array.dtype}, which is not real and numeric; pass floating-point values.")
    if array.dtype.kind == "f":
        bad = int(np.count_nonzero(~np.isfinite(array)))
        if bad:
            raise InputError(
                f"{what} holds {bad} NaN or infinite value{'s' if bad > 1 else ''}; remove or repair them first."
            )
    return array


def as_float64(value: Any, what: str) -> Float:
    """Return ``value`` as a C-contiguous float64 array, checked as in `as_numpy`."""
    return np.ascontiguousarray(as_numpy(value, what), dtype=np.float64)
