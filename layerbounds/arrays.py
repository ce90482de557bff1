"""Conversion of what users hand over (lists, NumPy arrays, torch tensors) to validated NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.exceptions import InputError
from layerbounds.mistaken import instead

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
    if (mistake := instead("array", value)) is not None:
        raise InputError(f"{what} is {mistake}")
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            if value.is_floating_point() and value.dtype.itemsize < 4:
                value = value.float()
            value = value.numpy()
        elif isinstance(value, np.ma.MaskedArray) and np.any(np.ma.getmaskarray(value)):
            raise InputError(f"{what} is a masked array with masked values; fill or remove them first.")
        array = np.asarray(value)
        if array.dtype.name == "bfloat16":  # which other packages add to NumPy
            array = array.astype(np.float32)
    except InputError:
        raise
    except Exception as error:  # whatever a foreign array type raises
        reason = " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__
        raise InputError(f"{what} cannot be read as an array ({reason}); pass a NumPy array or a tensor.") from error
    if array.dtype.kind not in "fiub":
        raise InputError(f"{what} has dtype {array.dtype}, which is not real and numeric; pass floating-point values.")
    if array.dtype.kind == "f":
        finite = np.isfinite(array)
        if not finite.all():
            bad = finite.size - int(np.count_nonzero(finite))
            raise InputError(
                f"{what} holds {bad} NaN or infinite value{'s' if bad > 1 else ''}; remove or repair them first."
            )
    return array


def type_name(value: Any) -> str:
    """What an array or tensor calls the type of its numbers: ``"float32"``, ``"bfloat16"``, …; ``""`` for lists."""
    return str(getattr(value, "dtype", "")).removeprefix("torch.")


def as_float64(value: Any, what: str) -> Float:
    """Return ``value`` as a C-contiguous float64 array, checked as in `as_numpy`."""
    array = as_numpy(value, what)
    with np.errstate(over="ignore"):
        converted = np.asarray(array, dtype=np.float64, order="C")
    return _in_range(converted, array, what)


def own_float64(array: NDArray[Any], what: str) -> Float:
    """A C-contiguous float64 copy of what `as_numpy` returned."""
    with np.errstate(over="ignore"):
        converted = np.array(array, dtype=np.float64, order="C")
    return _in_range(converted, array, what)


def _in_range(converted: Float, array: NDArray[Any], what: str) -> Float:
    if array.dtype.itemsize > 8 and not np.all(np.isfinite(converted)):
        raise InputError(f"{what} holds values beyond the range of float64; rescale them first.")
    return converted
