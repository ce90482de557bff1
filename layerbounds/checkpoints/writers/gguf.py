"""Quantized weights in GGUF files: an existing file of the model is the template whose tensors are replaced.

Types with a scale of 16 bits (and a minimum) for 32 inputs are written: Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0. All else stays
as it is: metadata, byte for byte, and the other tensors.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from layerbounds.arguments import as_path, one_of
from layerbounds.arrays import Float
from layerbounds.checkpoints.gguf.container import MAGIC, located
from layerbounds.checkpoints.gguf.index import Index, Place
from layerbounds.checkpoints.gguf.types import NUMBERS
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.exceptions import FileFormatError, InputError, UnsupportedProblemError
from layerbounds.layers.files import atomic_path
from layerbounds.names import match_name
from layerbounds.problems.grids import Grid

_BLOCK = 32


class _Form(NamedTuple):
    """The first and the last code, and whether a minimum is stored."""

    low: int
    high: int
    minimum: bool


_FORMS = {
    "Q4_0": _Form(-8, 7, False),
    "Q4_1": _Form(0, 15, True),
    "Q5_0": _Form(-16, 15, False),
    "Q5_1": _Form(0, 31, True),
    "Q8_0": _Form(-128, 127, False),
}
#: In the order in which they are tried where none is asked for.
KINDS = tuple(_FORMS)


def kind_of(grid: Grid, kind: str | None = None) -> str:
    """The type that holds a grid.

    Parameters
    ----------
    grid : Grid
    kind : {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}, optional
        By default the first that holds it exactly, or where all would have to round, the first that holds its codes.

    Raises
    ------
    UnsupportedProblemError
        If none holds its codes.
    """
    fitting = _fitting(grid, kind)
    return next((name for name in fitting if _exact(grid, _FORMS[name])), fitting[0])


def check(grid: Grid, kind: str | None = None) -> None:
    """Make sure that a type holds a grid exactly.

    Parameters
    ----------
    grid : Grid
    kind : str, optional
        See `kind_of`.

    Raises
    ------
    UnsupportedProblemError
        If the codes are others, or scales and minima are no 16-bit floats; `rounded` makes such a grid.
    """
    chosen = kind_of(grid, kind)
    if not _exact(grid, _FORMS[chosen]):
        what = "scales and minima" if _FORMS[chosen].minimum else "scales"
        raise UnsupportedProblemError(
            f"{chosen} stores {what} as float16, and those of this grid are others; round them."
        )


def rounded(grid: Grid, kind: str | None = None) -> Grid:
    """The grid with scales, and minima in place of zero points, that a type stores.

    Parameters
    ----------
    grid : Grid
    kind : str, optional
        See `kind_of`.

    Returns
    -------
    Grid
        With the codes of ``grid``. Scales and lowest levels are rounded to the nearest float16.

    Raises
    ------
    UnsupportedProblemError
        If no type holds the codes, or scales are beyond the range of float16.
    """
    form = _FORMS[_fitting(grid, kind)[0]]
    scale, minimum = (_half(values) for values in _numbers(grid, form))
    if not (np.all(np.isfinite(scale)) and np.all(np.isfinite(minimum))):
        raise UnsupportedProblemError(
            f"GGUF stores scales as float16, up to {np.finfo(np.float16).max:g}, and this grid has larger ones; "
            "rescale the layer."
        )
    return Grid(
        grid.codes,
        scale,
        np.full(scale.shape, grid.codes[0]) if form.minimum else grid.zero_point,
        grid.in_features,
        uniform=grid.uniform,
        label=grid.label,
        group=grid.group,
        offset=minimum if form.minimum else np.zeros(scale.shape),
    )


def tensors(weight: QuantizedWeight, *, kind: str | None = None) -> dict[str, NDArray[np.uint8]]:
    """The blocks of a layer, in the order of its own rows.

    Parameters
    ----------
    weight : QuantizedWeight
    kind : str, optional
        See `kind_of`.

    Returns
    -------
    dict of str to ndarray
        ``"weight"``: bytes, shape (out, bytes of a row).

    Raises
    ------
    UnsupportedProblemError
        If the type cannot hold the weight, see `check`.
    """
    grid = weight.grid
    chosen = kind_of(grid, kind)
    check(grid, chosen)
    if len(weight.shape) != 2:
        raise UnsupportedProblemError(
            f"GGUF holds quantized matrices, but {weight.name!r} has the shape {weight.shape}; keep it dense."
        )
    form = _FORMS[chosen]
    blocks = grid.group[::_BLOCK]
    scale, minimum = (np.ascontiguousarray(_half(values)[:, blocks], "<f2") for values in _numbers(grid, form))
    fields = (grid.codes - grid.codes[0])[weight.codes]
    if not form.minimum:
        first = grid.codes[0] - grid.zero_point - form.low
        # Where the scale is 0 any code will do; that of 0 is what others write.
        fields = np.where(grid.scale[:, grid.group] == 0, -form.low, fields + first[:, grid.group])
    packed = _packed(fields.astype(np.uint8).reshape(*scale.shape, _BLOCK), form)
    heads = [values.view(np.uint8).reshape(*scale.shape, 2) for values in (scale, minimum)[: 1 + form.minimum]]
    raw = np.concatenate([*heads, *packed], axis=-1)
    return {"weight": raw.reshape(raw.shape[0], -1)}


def _packed(fields: NDArray[np.uint8], form: _Form) -> list[NDArray[np.uint8]]:
    if form.high - form.low > 31:
        return [fields ^ np.uint8(128)]
    nibbles = fields[..., :16] & np.uint8(15) | fields[..., 16:] << np.uint8(4)
    if form.high - form.low == 15:
        return [nibbles]
    return [np.packbits(fields >> np.uint8(4), axis=-1, bitorder="little"), nibbles]


def _fitting(grid: Grid, kind: str | None) -> list[str]:
    """The types that hold the codes of a grid, whatever its scales."""
    tried = KINDS if kind is None else (one_of(kind, "kind", KINDS),)
    reasons = {name: _unfit(grid, _FORMS[name]) for name in tried}
    fitting = [name for name, reason in reasons.items() if not reason]
    if not fitting:
        # What the last one cannot hold, which has the most codes.
        raise UnsupportedProblemError(f"{kind or 'GGUF'} cannot hold this grid: {reasons[tried[-1]]}.")
    return fitting


def _exact(grid: Grid, form: _Form) -> bool:
    scale, minimum = _numbers(grid, form)
    if not (np.array_equal(_half(scale), scale) and np.array_equal(_half(minimum), minimum)):
        return False
    if not form.minimum:
        return True
    levels = ((scale * (code - grid.codes[0]) + minimum, code) for code in grid.codes)
    return all(np.array_equal(level, grid.scale * (code - grid.zero_point) + grid.offset) for level, code in levels)


def _unfit(grid: Grid, form: _Form) -> str:
    """Why a form does not hold the codes of a grid; empty where it does."""
    if grid.in_features % _BLOCK:
        return f"its {grid.in_features} inputs are no multiple of {_BLOCK}"
    if np.any(grid.group.reshape(-1, _BLOCK) != grid.group[::_BLOCK, None]):
        return f"scales are for {_BLOCK} inputs in a row, and its groups are others"
    steps = grid.codes - grid.codes[0]
    if np.any(steps != np.rint(steps)):
        return "its codes are no whole numbers"
    if steps[-1] > form.high - form.low:
        return f"its codes go over {steps[-1]:g} steps, more than {form.high - form.low}"
    if form.minimum:
        return ""
    if np.any(grid.offset):
        return "its levels have an offset"
    first = (grid.codes[0] - grid.zero_point)[grid.scale != 0]
    if np.any(first != np.rint(first)):
        return "its zero points are no whole numbers"
    if first.size and (first.min() < form.low or first.max() + steps[-1] > form.high):
        return f"its codes less zero points go from {first.min():g} to {first.max() + steps[-1]:g}"
    return ""


def _numbers(grid: Grid, form: _Form) -> tuple[Float, Float]:
    """Scales, and lowest levels where the form has minima, otherwise zeros."""
    if not form.minimum:
        return grid.scale, np.zeros(grid.scale.shape)
    return grid.scale, grid.scale * (grid.codes[0] - grid.zero_point) + grid.offset


def _half(values: Float) -> Float:
    with np.errstate(over="ignore"):
        # Adding 0 makes the zero of -0.
        return values.astype(np.float16).astype(np.float64) + 0.0


def replaceable(template: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """The matrices of a GGUF file, quantized or not, by the names of their layers in transformers.

    Parameters
    ----------
    template : path-like

    Returns
    -------
    dict of str to tuple of int
        Their shapes, (out, in).

    Raises
    ------
    FileFormatError
        If it is missing, damaged, or no GGUF file.
    MissingExtraError
        If gguf is not installed.
    """
    return {name: place.tensor.shape for name, place in _matrices(_opened(template)).items()}


def write(
    template: str | os.PathLike[str],
    out: str | os.PathLike[str],
    weights: Mapping[str, QuantizedWeight],
    kinds: Mapping[str, str] | str | None = None,
) -> None:
    """Write a GGUF file that is another one with some tensors replaced.

    Parameters
    ----------
    template : path-like
        A GGUF file of the model, of any types; of several parts, one of them.
    out : path-like
        Written as one file, completely or not at all.
    weights : mapping of str to QuantizedWeight
        By names of layers in transformers, their unique ends, or names of tensors without ``.weight``. Rows are in the
        order of transformers.
    kinds : str or mapping of str to str, optional
        Types of all, or by the same names; by default the first of `KINDS` that holds a grid.

    Raises
    ------
    FileFormatError
        If the template is missing, damaged, or no GGUF file.
    InputError
        If it has no such tensors, or of another shape.
    UnsupportedProblemError
        If a type cannot hold a weight, see `check`.
    """
    index = _opened(template)
    matrices = _matrices(index)
    replaced: dict[str, tuple[str, NDArray[np.uint8]]] = {}
    bases = {place.base: name for name, place in matrices.items()}
    for name, weight in weights.items():
        found = bases.get(name) or match_name(name, list(matrices), f"matrix in {index.path}")
        place = matrices[found]
        if place.tensor.name in replaced:
            raise InputError(
                f"{name!r} and another layer are both tensor {place.tensor.name!r}; leave out one of them."
            )
        if tuple(weight.shape) != place.tensor.shape:
            raise InputError(
                f"layer {name!r} has the shape {tuple(weight.shape)}, but tensor {place.tensor.name!r} of {index.path} "
                f"has {place.tensor.shape}; pass a file of the same model."
            )
        if f"{place.base}.scale" in index.tensors:
            raise InputError(
                f"{index.path} has a factor of tensor {place.tensor.name!r}, by which replaced weights would be "
                "multiplied; pass a file of other types."
            )
        kind = kind_of(weight.grid, kinds if kinds is None or isinstance(kinds, str) else kinds.get(name))
        raw = tensors(weight, kind=kind)["weight"]
        order = index.orders.rows(place.base, raw.shape[0])
        if order is not None:
            mixed = np.empty_like(raw)
            mixed[order] = raw
            raw = mixed
        replaced[place.tensor.name] = (kind, raw)
    _written(index, as_path(out, "out"), replaced)


def _opened(template: str | os.PathLike[str]) -> Index:
    path = as_path(template, "template")
    file = located(path)
    if file is None:
        raise FileFormatError(f"{path} is no GGUF file; pass one of the model.")
    return Index(file)


def _matrices(index: Index) -> dict[str, Place]:
    return {place.name: place for place in index.places if len(place.tensor.shape) == 2 and place.end == ".weight"}


#: Says how blocks are laid out; files with quantized tensors have it.
_LAYOUT_KEY, _LAYOUT = "general.quantization_version", 2


def _written(index: Index, out: Path, replaced: Mapping[str, tuple[str, NDArray[np.uint8]]]) -> None:
    first = index.containers[0]
    kept = [key for name, key in first.keys.items() if not name.startswith("split.")]
    added = b""
    if _LAYOUT_KEY not in first.keys:
        added = struct.pack("<Q", len(_LAYOUT_KEY)) + _LAYOUT_KEY.encode() + struct.pack("<II", 4, _LAYOUT)
    infos, at = [], 0
    for name, (container, tensor) in index.tensors.items():
        if name in replaced:
            number, size = NUMBERS[replaced[name][0]], replaced[name][1].size
        else:
            number, size = tensor.number, container.raw(tensor).size
        text = name.encode()
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        infos.append(struct.pack("<Q", len(text)) + text + shape + struct.pack("<IQ", number, at))
        at += size + -size % first.alignment
    with atomic_path(out) as temporary, temporary.open("wb") as file:
        file.write(MAGIC + struct.pack("<IQQ", first.version, len(index.tensors), len(kept) + bool(added)))
        for key in kept:
            file.write(first.between(key.begin, key.end))
        file.write(added)
        for info in infos:
            file.write(info)
        file.write(b"\0" * (-file.tell() % first.alignment))
        for name, (container, tensor) in index.tensors.items():
            data = replaced[name][1] if name in replaced else container.raw(tensor)
            file.write(data.tobytes())
            file.write(b"\0" * (-data.size % first.alignment))
