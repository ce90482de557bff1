"""Weights as compressed-tensors stores them (0.18.0 and newer), and what its configuration says about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.arguments import shown
from layerbounds.arrays import Float
from layerbounds.checkpoints.formats.narrow_floats import E2M1
from layerbounds.checkpoints.packing import pack_nibbles, pack_stream
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.checkpoints.writers.stored import Stored, stored
from layerbounds.exceptions import InputError, UnknownNameError, UnsupportedProblemError
from layerbounds.layers.tensor_files import FLOAT_NAMES, NARROW_FLOATS
from layerbounds.problems.grids import Grid
from layerbounds.suggestions import did_you_mean

#: In the order in which they are tried where none is asked for.
FORMS = ("pack-quantized", "int-quantized", "mxfp4-pack-quantized", "nvfp4-pack-quantized", "float-quantized")
_KINDS = {name: kind for kind, name in FLOAT_NAMES.items()}


def tensors(
    weight: QuantizedWeight, *, form: str | None = None, dtype: str | None = None, bits: int | None = None
) -> dict[str, Stored]:
    """The tensors of a layer, by what stands behind its name: ``"weight_packed"``, ``"weight_scale"``, ….

    Parameters
    ----------
    weight : QuantizedWeight
    form : str, optional
        One of `FORMS`; by default the first that holds the grid.
    dtype : {"float32", "float16", "bfloat16"}, optional
        Type of scales that are stored as plain floats, and of the weights that are made of them; by default that of
        ``weight``.
    bits : int, optional
        Of integers; by default as few as possible.

    Returns
    -------
    dict of str to Stored

    Raises
    ------
    UnsupportedProblemError
        If the form cannot hold the weight, see `check`.
    """
    if len(weight.shape) != 2:
        raise UnsupportedProblemError(
            f"compressed-tensors holds matrices, but {weight.name!r} has shape {weight.shape}; keep it dense."
        )
    plan = _planned(weight.grid, form, dtype or weight.dtype, bits, weight.parts)
    codes = plan.codes[weight.codes]
    result: dict[str, Stored] = {}
    if plan.form == "pack-quantized":
        half = 2 ** (plan.bits - 1)
        result["weight_packed"] = stored(pack_stream(codes + half, plan.bits))
        result["weight_shape"] = stored(np.array(weight.shape, dtype=np.int64))
        if plan.zero is not None:
            packed = pack_stream(np.ascontiguousarray(plan.zero.T) + half, plan.bits)
            result["weight_zero_point"] = stored(np.ascontiguousarray(packed.T))
    elif plan.form == "int-quantized":
        result["weight"] = stored(codes.astype(np.int8))
        if plan.zero is not None:
            result["weight_zero_point"] = stored(plan.zero.astype(np.int8))
    elif plan.form == "float-quantized":
        result["weight"] = Stored("F8_E4M3", weight.shape, codes.astype(np.uint8))
    else:
        result["weight_packed"] = stored(pack_nibbles(codes.astype(np.uint8)))
    result["weight_scale"] = plan.scale
    if plan.whole is not None:
        result["weight_global_scale"] = stored(plan.whole.astype(np.float32))
    return result


def check(grid: Grid, *, form: str | None = None, dtype: str = "float16", bits: int | None = None) -> None:
    """Make sure that a form can hold a grid.

    Raises
    ------
    UnsupportedProblemError
        If it cannot: in a sentence that says why.
    UnknownNameError
        If there is no such form.
    """
    _planned(grid, form, dtype, bits, {})


def scheme(
    weight: QuantizedWeight, *, form: str | None = None, dtype: str | None = None, bits: int | None = None
) -> dict[str, Any]:
    """What a group of ``config_groups`` says about the layer, less its targets: its weights and its form.

    Parameters and errors as in `tensors`.
    """
    plan = _planned(weight.grid, form, dtype or weight.dtype, bits, weight.parts)
    weights: dict[str, Any] = {
        "num_bits": plan.bits,
        "type": "int" if plan.form in ("pack-quantized", "int-quantized") else "float",
        "symmetric": plan.zero is None,
        "strategy": "tensor_group" if plan.whole is not None else "group" if plan.size else "channel",
        "group_size": plan.size,
        "dynamic": False,
    }
    if plan.form == "mxfp4-pack-quantized":
        weights["scale_dtype"] = "torch.uint8"
    elif plan.form == "nvfp4-pack-quantized":
        weights["scale_dtype"] = "torch.float8_e4m3fn"
    return {"weights": weights, "format": plan.form}


@dataclass(frozen=True)
class _Plan:
    """What a form stores for a grid."""

    form: str
    bits: int
    #: What is stored for each code of the grid.
    codes: NDArray[np.int64]
    scale: Stored
    #: Inputs of a group; None for a scale per channel.
    size: int | None
    zero: NDArray[np.int64] | None = None
    whole: Float | None = None


def _planned(grid: Grid, form: str | None, dtype: str, bits: int | None, parts: Any) -> _Plan:
    if form is None:
        reasons = []
        for choice in FORMS:
            try:
                return _planned(grid, choice, dtype, bits, parts)
            except UnsupportedProblemError as error:
                reasons.append(error)
        # Integers are what most grids are meant to be, uniform ones in any case.
        raise reasons[0]
    if form not in FORMS:
        hint = did_you_mean(form, FORMS)
        raise UnknownNameError(f"there is no form {shown(form)} that can be written; {hint}choose {', '.join(FORMS)}.")
    if dtype not in _KINDS:
        raise UnknownNameError(f"dtype is {shown(dtype)}; {did_you_mean(dtype, _KINDS)}choose {', '.join(_KINDS)}.")
    if np.any(grid.offset):
        raise _refused(form, "levels are codes times scales, without an offset")
    size = _group_size(grid, form)
    if form in ("pack-quantized", "int-quantized"):
        return _integers(grid, form, dtype, bits, size)
    if np.any(grid.zero_point):
        raise _refused(form, "floats have no zero points")
    if form == "float-quantized":
        codes = _places(grid.codes, NARROW_FLOATS["F8_E4M3"].astype(np.float64), form, "8-bit floats (E4M3)")
        return _Plan(form, 8, codes, _plain_scale(grid, form, dtype), size)
    codes = _places(grid.codes, E2M1, form, "4-bit floats (E2M1)")
    need = 32 if form.startswith("mx") else 16
    if size != need and not (size is None and grid.in_features == need):
        raise _refused(form, f"groups have {need} inputs")
    if need == 32:
        return _Plan(form, 4, codes, _powers(grid.scale, form), need)
    block, whole = _two_levels(grid.scale, parts, form)
    return _Plan(form, 4, codes, block, need, whole=whole)


def _refused(form: str, why: str) -> UnsupportedProblemError:
    return UnsupportedProblemError(f"the form {form!r} of compressed-tensors cannot hold this grid: {why}.")


def _group_size(grid: Grid, form: str) -> int | None:
    if grid.group_size is None:
        raise _refused(form, "groups are consecutive inputs (activation order by groups was given up in 0.20)")
    if grid.in_features % grid.group_size:
        raise _refused(form, f"groups of {grid.group_size} have to divide the {grid.in_features} inputs")
    return grid.group_size if grid.scale.shape[1] > 1 else None


def _integers(grid: Grid, form: str, dtype: str, bits: int | None, size: int | None) -> _Plan:
    codes, zero = grid.codes, grid.zero_point
    if np.any(codes != np.rint(codes)):
        raise _refused(form, "codes are integers")
    if np.any(zero != np.rint(zero)):
        raise _refused(form, "zero points are integers")
    widths = (bits,) if bits is not None else range(1, 9)
    low, high = int(codes[0]), int(codes[-1])
    first = int(zero.flat[0])
    scale = _plain_scale(grid, form, dtype)
    for width in widths:
        half = 2 ** (width - 1)
        if not 1 <= width <= 8:
            break
        if np.all(zero == first) and -half <= low - first and high - first < half:
            return _Plan(form, width, codes.astype(np.int64) - first, scale, size)
        # Codes and zero points may be moved together.
        least, most = min(low, int(zero.min())), max(high, int(zero.max()))
        if most - least < 2 * half:
            shift = least + half
            return _Plan(form, width, codes.astype(np.int64) - shift, scale, size, zero.astype(np.int64) - shift)
    limit = f"{bits} bits" if bits is not None else "8 bits"
    raise _refused(
        form, f"codes from {low} to {high} with zero points from {zero.min():g} to {zero.max():g} exceed {limit}"
    )


def _plain_scale(grid: Grid, form: str, dtype: str) -> Stored:
    try:
        return stored(grid.scale, _KINDS[dtype])
    except InputError as error:
        raise _refused(form, f"its scales are not all numbers of type {dtype}; round them before") from error


def _places(codes: Float, table: Float, form: str, what: str) -> NDArray[np.int64]:
    order = np.flatnonzero(np.isfinite(table))
    order = order[np.argsort(table[order], kind="stable")]
    place = np.minimum(np.searchsorted(table[order], codes), len(order) - 1)
    if not np.array_equal(table[order][place], codes):
        raise _refused(form, f"codes are {what}")
    return order[place]


def _powers(scale: Float, form: str) -> Stored:
    mantissa, exponent = np.frexp(scale)
    codes = exponent - 1 + 127
    if np.any(mantissa != 0.5) or codes.min() < 0 or codes.max() > 254:
        raise _refused(form, "scales are powers of two from 2^-127 to 2^127")
    return stored(codes.astype(np.uint8))


def _two_levels(scale: Float, parts: Any, form: str) -> tuple[Stored, Float]:
    """Scales of groups, which are 8-bit floats, and the number that divides them all."""
    block, whole = parts.get("block_scale"), parts.get("global_scale")
    if block is None or whole is None:
        # A power of two that makes the largest one large changes no digit.
        shift = 8 - int(np.frexp(np.abs(scale).max())[1])
        block, whole = np.ldexp(scale, shift), np.array([2.0**shift])
    if block.shape != scale.shape or not np.array_equal(block / whole.item(), scale):
        raise _refused(form, "its two levels of scales do not give its scales")
    try:
        return stored(block, "F8_E4M3"), np.asarray(whole, dtype=np.float64).reshape(1)
    except InputError as error:
        raise _refused(form, "scales of groups are 8-bit floats (E4M3), all divided by one number") from error
