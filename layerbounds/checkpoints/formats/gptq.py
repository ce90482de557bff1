"""GPTQ as AutoGPTQ, GPTQModel and AutoRound store it: codes packed along inputs, zero points along outputs.

For ``b`` bits, ``in`` inputs and ``out`` outputs, in words of 32 bits (GPTQModel can write others):

===========  =========================  ==================================================================
``qweight``  (⌈in·b/32⌉, out)           codes 0 … 2^b − 1, a stream of bits along the first axis, lowest first
``qzeros``   (groups, ⌈out·b/32⌉)       zero points likewise, along the second axis
``scales``   (groups, out)              float16, bfloat16 or float32
``g_idx``    (in)                       the group of each input; may be missing
===========  =========================  ==================================================================

A weight is ``scales[g] · (code − zero[g])`` with g the group of its input. Files of version 1 store zero − 1 in each
field; those of version 2 store zero. Fields of 5, 6 and 7 bits, and those of 3 bits under the label ``gptq_p``, lie in
planes (`layerbounds.checkpoints.packing.unpack_planar`), and their zero points are stored as they are.

Sources: AutoGPTQ 0.7.1 (``nn_modules/qlinear/qlinear_cuda_old.py``), GPTQModel 7.7.0 (``utils/model_dequant.py``,
``utils/model.py``, ``utils/planar_packing.py``), AutoRound 0.16.1 (``inference/backend.py``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from layerbounds.arrays import Int
from layerbounds.checkpoints.formats.gptq_zeros import Zeros, decide
from layerbounds.checkpoints.formats.qweight import (
    GPTQ_BITS,
    WORD_BITS,
    check_untransformed,
    float_type,
    groups_in_words,
    layers,
    matrix,
    stated_family,
    stated_label,
    whole_setting,
)
from layerbounds.checkpoints.packing import unpack_planar, unpack_stream
from layerbounds.checkpoints.source import Source
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.problems.grids import Grid

LABEL = "GPTQ"

_ENDS = ("qweight", "qzeros", "scales", "g_idx")
#: Widths that are stored in planes whatever a file says.
_PLANAR_BITS = (5, 6, 7)


def names(source: Source) -> list[str]:
    """The layers that are stored as GPTQ stores them."""
    return layers(source, "gptq")


def parts(source: Source, name: str) -> list[str]:
    """The tensors of a layer."""
    return [f"{name}.{end}" for end in _ENDS if f"{name}.{end}" in source.names]


def read(source: Source, name: str) -> QuantizedWeight:
    """Decode a layer."""
    check_untransformed(source, name)
    notes = []
    if stated_family(source) == "awq":
        notes.append("the configuration says AWQ, but the shapes of the tensors are those of GPTQ, which decide")
    weight, packed, scales = (matrix(source, f"{name}.{end}") for end in _ENDS[:3])
    dtype = float_type(source, f"{name}.scales")
    groups, out = scales.shape
    group = _stored_groups(source, name, groups)
    bits, n = _widths(source, name, None if group is None else len(group), notes)
    if weight.shape[1] != out or packed.shape[0] != groups:
        raise source.fault(
            f"qweight {weight.shape}, qzeros {packed.shape} and scales {scales.shape} of layer {name!r} do not agree"
        )
    if group is None or (groups > 1 and not group.any()):
        if group is not None:
            notes.append("g_idx is 0 for all inputs although there are several groups: taken as consecutive blocks")
        group = _consecutive(source, name, n, groups)
    planar = bits in _PLANAR_BITS or (bits == 3 and stated_label(source) == "gptq_p")
    width = WORD_BITS[weight.kind]
    if planar and (n % 32 or out % 32 or width != 32):
        raise source.fault(f"layer {name!r} has {bits} bits in planes, which need multiples of 32 inputs and outputs")
    unpack = unpack_planar if planar else unpack_stream
    codes = unpack(np.ascontiguousarray(source.integers(f"{name}.qweight").T), bits, n)
    words = source.integers(f"{name}.qzeros")
    stored = Zeros(words, unpack(words, bits, out), bits, planar)
    zeros, version, why = decide(source, name, stored, codes, group)
    grid = Grid(
        np.arange(2.0**bits),
        source.floats(f"{name}.scales").T,
        zeros.T.astype(np.float64),
        n,
        uniform=True,
        label=f"{LABEL}, {bits} bits",
        group=group,
    )
    return QuantizedWeight(
        name,
        f"{LABEL} {version}{' in planes' if planar else ''}, {bits} bits, {groups_in_words(groups, grid.group_size)}",
        grid,
        codes,
        (out, n),
        dtype,
        source.bits(*parts(source, name)),
        (*why, *notes),
    )


def _stored_groups(source: Source, name: str, groups: int) -> Int | None:
    """The group of each input, where the file has it."""
    tensor = f"{name}.g_idx"
    if tensor not in source.names:
        return None
    group = source.integers(tensor)
    if group.ndim != 1 or not group.size:
        raise source.fault(f"tensor {tensor!r} has shape {group.shape} where one number per input is expected")
    if group.min() < 0 or group.max() >= groups:
        raise source.fault(
            f"tensor {tensor!r} holds numbers from {group.min()} to {group.max()}, but there are {groups} groups"
        )
    return group.astype(np.int64)


def _widths(source: Source, name: str, inputs: int | None, notes: list[str]) -> tuple[int, int]:
    """Bits of a code, and the number of inputs."""
    weight, packed, scales = (source.entry(f"{name}.{end}") for end in _ENDS[:3])
    if weight.kind != packed.kind or weight.kind not in WORD_BITS:
        raise source.fault(f"qweight of layer {name!r} is of type {weight.kind} and qzeros of type {packed.kind}")
    width, rows, out = WORD_BITS[weight.kind], weight.shape[0], scales.shape[1]
    fitting = [
        bits
        for bits in GPTQ_BITS
        if -(-out * bits // width) == packed.shape[1] and (inputs is None or -(-inputs * bits // width) == rows)
    ]
    said = whole_setting(source, name, "bits", "w_bit")
    if not fitting or (len(fitting) > 1 and said not in fitting):
        raise source.fault(
            f"qweight {weight.shape}, qzeros {packed.shape} and scales {scales.shape} of layer {name!r} fit "
            + ("several numbers of bits, and no configuration says which" if fitting else "no number of bits")
            + ("" if inputs is None else f" with {inputs} inputs, as g_idx has")
        )
    bits = said if said in fitting else fitting[0]
    assert bits is not None
    if said is not None and said != bits:
        notes.append(f"the configuration says {said} bits, but the shapes of the tensors are those of {bits}")
    return bits, rows * width // bits if inputs is None else inputs


def _consecutive(source: Source, name: str, n: int, groups: int) -> Int:
    """Groups of consecutive inputs."""
    said = whole_setting(source, name, "group_size", "q_group_size")
    size = n if said is None or said <= 0 else said
    if said is None and n % groups == 0:
        size = n // groups
    if -(-n // size) != groups:
        raise source.fault(
            f"layer {name!r} has {groups} groups of scales, but {n} inputs in groups of {size} need {-(-n // size)}"
        )
    result: NDArray[np.int64] = np.arange(n, dtype=np.int64) // size
    return result
