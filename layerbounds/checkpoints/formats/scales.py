"""Scales as files store them, as the numbers of each output channel and group of inputs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from layerbounds.arrays import Float
from layerbounds.checkpoints.source import Source
from layerbounds.layers.tensor_files import FLOAT_NAMES

#: What weights become by scales of a type.
DTYPES = {**FLOAT_NAMES, "F64": "float32"}


def by_channel(
    source: Source,
    name: str,
    scale: Float,
    shape: tuple[int, int],
    group_size: int | None = None,
    block: tuple[int, int] | None = None,
) -> tuple[Float, int]:
    """A scale for each output channel and group of consecutive inputs, whatever part of the weight each is for.

    Parameters
    ----------
    source : Source
    name : str
        Of the tensor with the scales, for messages.
    scale : ndarray
        One number, or of shape (out,), (out, 1), (out, groups), or (blocks of outputs, blocks of inputs).
    shape : tuple of int
        (out, in) of the weight.
    group_size : int, optional
        Inputs that share a scale.
    block : tuple of int, optional
        Outputs and inputs that share one, instead.

    Returns
    -------
    scale : ndarray of shape (out, groups)
    group_size : int

    Raises
    ------
    FileFormatError
        If the numbers do not fit the weight.
    """
    out, n = shape
    if block is not None:
        rows, columns = block
        if rows < 1 or columns < 1 or scale.shape != (-(-out // rows), -(-n // columns)):
            raise source.fault(
                f"tensor {name!r} has shape {scale.shape}, which does not fit blocks of {rows} x {columns} of weights "
                f"of shape {shape}"
            )
        return np.repeat(scale, rows, axis=0)[:out], min(columns, n)
    if scale.size == 1:
        return np.full((out, 1), scale.item()), n
    if scale.ndim == 1:
        scale = scale.reshape(-1, 1)
    if scale.ndim != 2 or len(scale) != out or not 1 <= scale.shape[1] <= n:
        raise source.fault(f"tensor {name!r} has shape {scale.shape}, which does not fit weights of shape {shape}")
    groups = scale.shape[1]
    size = n if groups == 1 else group_size
    if size is None:
        if n % groups:
            raise source.fault(f"tensor {name!r} has {groups} groups of inputs, which do not divide the {n} inputs")
        size = n // groups
    if -(-n // size) != groups:
        raise source.fault(f"tensor {name!r} has {groups} groups of inputs, but {n} inputs in groups of {size}")
    return scale, min(size, n)


def block_of(source: Source, name: str, scale: Float, shape: tuple[int, int]) -> tuple[int, int] | None:
    """The outputs and inputs that share a scale where these come in blocks of both; None where they do not.

    By ``weight_block_size`` of the configuration; without it, as many as divide the weight evenly, or else 128.

    Raises
    ------
    FileFormatError
        If the configuration says something else than a size.
    """
    if scale.ndim != 2 or scale.size <= 1 or len(scale) == shape[0]:
        return None
    given = source.quantization.get("weight_block_size")
    if given is None:
        even = all(count and whole % count == 0 for whole, count in zip(shape, scale.shape, strict=True))
        return (shape[0] // scale.shape[0], shape[1] // scale.shape[1]) if even else (128, 128)
    if not isinstance(given, list) or len(given) != 2 or not all(type(size) is int for size in given):
        raise source.fault(f"its configuration has weight_block_size {given}, for tensor {name!r}")
    return given[0], given[1]


def computing_type(source: Source) -> str:
    """The type of floats that the configuration of the model names, bfloat16 where it names none."""
    found = source.config.get("dtype") or source.config.get("torch_dtype")
    return str(found) if found in FLOAT_NAMES.values() else "bfloat16"


def exponents(source: Source, name: str) -> Float:
    """Scales that are stored as exponents with a bias of 127 (E8M0), in bytes or as floats of that type.

    Raises
    ------
    FileFormatError
        If one is 255, which is NaN.
    """
    if source.entry(name).kind == "F8_E8M0":
        return source.floats(name)
    codes: NDArray[np.int64] = source.integers(name).astype(np.int64)
    if codes.size and (codes.min() < 0 or codes.max() > 254):
        raise source.fault(f"tensor {name!r} holds exponents from {codes.min()} to {codes.max()}, of 0 to 254")
    return np.ldexp(1.0, codes - 127)
