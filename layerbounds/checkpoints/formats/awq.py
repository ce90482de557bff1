"""AWQ as AutoAWQ, GPTQModel and AutoRound store it: codes of four bits, in one of three layouts.

=============  ==========================  ==================================  ======================================
layout         ``qweight``                 ``scales``                          ``qzeros``
=============  ==========================  ==================================  ======================================
``gemm``       int32 (in, out/8)           (groups, out)                       int32 (groups, out/8)
``gemv``       int32 (out, in/8)           (out, ≥ groups), rest 0             int32 (out, ≥ groups/8)
``gemv_fast``  int16 (out/4, in)           (≥ groups, out), rest 0             floats like the scales: −scale · zero
=============  ==========================  ==================================  ======================================

A weight is ``scale · (code − zero)``, zero points as stored; in ``gemv_fast`` it is ``scale · code + qzeros``, and
those minima are rounded, so that 0 need not be a level. A word of ``gemm`` holds, lowest bits first, the outputs
0, 2, 4, 6, 1, 3, 5, 7 of eight; one of ``gemv`` eight inputs in their order. ``gemv_fast`` (``llm-awq`` is the same and
calls the minima ``scaled_zeros``) interleaves four outputs: see `_unpack_fast`.

Sources: AutoAWQ 0.2.9 (``modules/linear/gemm.py``, ``gemv.py``, ``gemv_fast.py``, ``utils/packing_utils.py``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from layerbounds.arrays import Float
from layerbounds.checkpoints.formats.qweight import (
    AWQ_BITS,
    AWQ_FIELDS,
    Layout,
    check_untransformed,
    fitting_layouts,
    float_type,
    groups_in_words,
    layers,
    layout,
    matrix,
    stated_family,
    whole_setting,
    zeros_end,
)
from layerbounds.checkpoints.packing import unpack_words
from layerbounds.checkpoints.source import Source
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.exceptions import FileFormatError
from layerbounds.problems.grids import Grid

LABEL = "AWQ"

_ENDS = ("qweight", "qzeros", "scaled_zeros", "scales")
#: Where each of eight outputs is in a word of ``gemm``.
_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]
#: ``gemv_fast``: outputs in one word, and inputs after which the next output follows.
_INTERLEAVED, _STRIDE = 4, 64


def names(source: Source) -> list[str]:
    """The layers that are stored in a layout of AWQ."""
    return layers(source, "awq")


def parts(source: Source, name: str) -> list[str]:
    """The tensors of a layer."""
    return [f"{name}.{end}" for end in _ENDS if f"{name}.{end}" in source.names]


def read(source: Source, name: str) -> QuantizedWeight:
    """Decode a layer."""
    check_untransformed(source, name)
    form = layout(source, name)
    notes = []
    if stated_family(source) == "gptq":
        notes.append("the configuration says GPTQ, but the shapes of the tensors are those of AWQ, which decide")
    elif stated_family(source) is None and "gptq" in fitting_layouts(source, name):
        notes.append("shapes agree with GPTQ in groups of 8, too, which no tool writes without g_idx: read as gemv")
    _check_bits(source, name)
    zeros_name = f"{name}{zeros_end(source, name)}"
    for tensor in (f"{name}.qweight", zeros_name, f"{name}.scales"):
        matrix(source, tensor)
    dtype = float_type(source, f"{name}.scales")
    _check_shapes(source, name, form, zeros_name)
    offset: Float | None = None
    packed = source.integers(f"{name}.qweight")
    scale = source.floats(f"{name}.scales")
    if form == "gemm":
        codes = np.ascontiguousarray(_unpack_gemm(packed).T)
        scale, zero = scale.T, _unpack_gemm(source.integers(zeros_name)).T.astype(np.float64)
    elif form == "gemv":
        codes = unpack_words(packed, AWQ_BITS, packed.shape[1] * AWQ_FIELDS)
        zero = unpack_words(source.integers(zeros_name), AWQ_BITS, scale.shape[1]).astype(np.float64)
    else:
        codes = _unpack_fast(packed)
        scale, offset = scale.T, source.floats(zeros_name).T
        zero = np.zeros(scale.shape)
    out, n = codes.shape
    groups, size = _groups(source, name, form, scale, n, notes)
    grid = Grid(
        np.arange(2.0**AWQ_BITS),
        scale[:, :groups],
        zero[:, :groups],
        n,
        group_size=size,
        uniform=True,
        label=f"{LABEL}, {AWQ_BITS} bits",
        offset=None if offset is None else offset[:, :groups],  # type: ignore[arg-type]
    )
    return QuantizedWeight(
        name,
        f"{LABEL} {form}, {AWQ_BITS} bits, {groups_in_words(groups, size)}",
        grid,
        codes,
        (out, n),
        dtype,
        source.bits(*parts(source, name)),
        tuple(notes),
    )


def _check_bits(source: Source, name: str) -> None:
    said = whole_setting(source, name, "bits", "w_bit")
    if said is not None and said != AWQ_BITS:
        raise FileFormatError(
            f"{source.path} says that layer {name!r} has {said} bits in a layout of AWQ, which is known with "
            f"{AWQ_BITS} bits only."
        )


def _check_shapes(source: Source, name: str, form: Layout, zeros_name: str) -> None:
    """Whether the tensors agree with one another; where shapes decided the layout they do."""
    weight, scales, zeros = (source.entry(tensor) for tensor in (f"{name}.qweight", f"{name}.scales", zeros_name))
    (rows, columns), (first, second) = weight.shape, scales.shape
    agree = {
        "gemm": (columns * AWQ_FIELDS == second and zeros.shape == (first, columns)),
        "gemv": (rows == first == zeros.shape[0] and zeros.shape[1] * AWQ_FIELDS == second),
        "gemv_fast": (rows * _INTERLEAVED == second and zeros.shape == scales.shape and columns % _STRIDE == 0),
    }
    if not agree.get(form) or weight.kind != ("I16" if form == "gemv_fast" else "I32"):
        raise source.fault(
            f"qweight {weight.shape} ({weight.kind}), {zeros_name.rpartition('.')[2]} {zeros.shape} and scales "
            f"{scales.shape} of layer {name!r} do not agree with the layout {form}"
        )


def _groups(source: Source, name: str, form: Layout, scale: Float, n: int, notes: list[str]) -> tuple[int, int]:
    """The number of groups, and the inputs of one; beyond them stands padding in two of the layouts."""
    said = whole_setting(source, name, "group_size", "q_group_size")
    stored = scale.shape[1]
    used = stored if form == "gemm" else int(np.max(np.nonzero(scale.any(axis=0))[0], initial=-1)) + 1
    if said is None:
        groups = used
        if form != "gemm":
            notes.append(f"no group size is said: {used} columns of scales are not empty, taken as {used} groups")
    else:
        groups = 1 if said <= 0 else -(-n // said)
    size = n if said is None or said <= 0 else min(said, n)
    if said is None and groups and n % groups == 0:
        size = n // groups
    if (
        not groups
        or -(-n // size) != groups
        or groups > stored
        or groups < used
        or (form == "gemm" and groups != stored)
    ):
        raise source.fault(
            f"layer {name!r} has {used} groups of scales, but {n} inputs in groups of {size} need {-(-n // size)}"
        )
    return groups, size


def _unpack_gemm(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Codes or zero points of eight outputs from each word of a row."""
    fields = unpack_words(words, AWQ_BITS, words.shape[1] * AWQ_FIELDS)
    return fields.reshape(len(words), -1, AWQ_FIELDS)[:, :, _PLACES].reshape(len(words), -1)


def _unpack_fast(words: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Codes of ``gemv_fast``, shape (out, in).

    Each row holds four outputs, 64 inputs of one after 64 of the other. In a run of 32 inputs, pairs of inputs come
    from its four quarters in turn (0, 1, 8, 9, 16, 17, 24, 25, 2, 3, …), and of every eight of them those at even
    places come first.
    """
    rows, n = words.shape
    fields = unpack_words(words, AWQ_BITS, n * _INTERLEAVED)
    outputs = fields.reshape(rows, n // _STRIDE, _INTERLEAVED, _STRIDE).transpose(0, 2, 1, 3)
    eights = outputs.reshape(rows * _INTERLEAVED, n // 32, 4, 2, 4).swapaxes(3, 4)
    pairs = eights.reshape(rows * _INTERLEAVED, n // 32, 4, 4, 2).swapaxes(2, 3)
    return np.ascontiguousarray(pairs.reshape(rows * _INTERLEAVED, n))
