"""The zero points of a GPTQ layer: whether they are stored as they are, or less one.

Version 1 stores zero − 1, version 2 stores zero. The label that a configuration has for it (``checkpoint_format``,
``format``) is wrong in files that are in use, so symmetric layers are looked at: all their zero points are 2^(b−1), and
fields that are all 2^(b−1) − 1 or all 2^(b−1) tell the version. Where the fields say nothing, the label is followed.

A zero point of 0 leaves no room for zero − 1. GPTQModel subtracts 1 from all fields of a word at once, with a borrow
from the next field, and adds 1 in the same way when it loads the file; other tools treat each field for itself and keep
its bits. Each file is read in the way of the tool that its configuration names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from layerbounds.arrays import Int
from layerbounds.checkpoints.formats.qweight import setting, stated_family, stated_label
from layerbounds.checkpoints.packing import unpack_stream
from layerbounds.checkpoints.source import Source

Version = Literal["v1", "v2"]

#: A layer of so many weights has a mean that tells whether zero points are off by one.
_ENOUGH = 4096
#: Means in steps: a layer's weights lie around 0.
_FAR, _NEAR = 0.75, 0.25


@dataclass(frozen=True)
class Zeros:
    """What a file stores.

    Attributes
    ----------
    words : ndarray of integers, shape (groups, words)
    fields : ndarray of uint8, shape (groups, out)
    bits : int
    planar : bool
        Whether fields lie in planes of bits, where version 1 does not exist.
    """

    words: NDArray[Any]
    fields: NDArray[np.uint8]
    bits: int
    planar: bool

    def less_one(self, borrowed: bool) -> NDArray[np.uint8]:
        """The zero points of fields that hold one less."""
        if not borrowed:
            return ((self.fields.astype(np.int64) + 1) & ((1 << self.bits) - 1)).astype(np.uint8)
        unsigned = np.dtype(f"u{self.words.dtype.itemsize}")
        ones = sum(1 << shift for shift in range(0, 8 * unsigned.itemsize, self.bits))
        added = np.ascontiguousarray(self.words).view(unsigned) + unsigned.type(ones)
        return unpack_stream(added, self.bits, self.fields.shape[1])

    @property
    def constant(self) -> int | None:
        """The value of all fields, if they have the same."""
        first = int(self.fields.flat[0])
        return first if np.all(self.fields == first) else None


def decide(
    source: Source, name: str, stored: Zeros, codes: NDArray[np.uint8], group: Int
) -> tuple[NDArray[np.uint8], Version, list[str]]:
    """The zero points of a layer, the version of its file, and why.

    Parameters
    ----------
    source : Source
    name : str
    stored : Zeros
    codes : ndarray of uint8, shape (out, n)
    group : ndarray of int64, shape (n,)

    Returns
    -------
    zeros : ndarray of uint8, shape (groups, out)
    version : {"v1", "v2"}
    notes : list of str
    """
    version, why = _version(source, name, stored)
    notes = [f"zero points read as {version} ({'stored less one' if version == 'v1' else 'stored as they are'}): {why}"]
    wrapped = bool(np.any(stored.fields == (1 << stored.bits) - 1))
    whole_words = 32 % stored.bits == 0
    borrowed = wrapped and whole_words and _by_gptqmodel(source)
    one_more = stored.less_one(borrowed)
    zeros, other = (one_more, stored.fields) if version == "v1" else (stored.fields, one_more)
    if version == "v1" and wrapped:
        notes.append(
            "some zero points are 0, for which v1 has no room: "
            + (
                "read with a carry into the next field, as GPTQModel stores them"
                if borrowed
                else "read in each field for itself, as AutoGPTQ does; other tools read 2^bits in these places"
            )
        )
    if codes.size >= _ENOUGH and not stored.planar:
        mean, otherwise = _mean(codes, zeros, group), _mean(codes, other, group)
        if abs(mean) > _FAR and abs(otherwise) < _NEAR:
            unlike = "v2" if version == "v1" else "v1"
            notes.append(
                f"as {version} the mean weight is {mean:+.2f} steps, as {unlike} it would be {otherwise:+.2f}: "
                "the label of the file may be wrong"
            )
    return zeros, version, notes


def _version(source: Source, name: str, stored: Zeros) -> tuple[Version, str]:
    half = 1 << (stored.bits - 1)
    if stored.planar:
        return "v2", "fields in planes have no other form"
    label = stated_label(source) if stated_family(source) != "awq" else None
    if label == "gptq_p":
        return "v2", "gptq_p has no other form"
    stated: Version = "v2" if label == "gptq_v2" else "v1"
    saying = f"the configuration says {label!r}" if label in ("gptq", "gptq_v2") else "nothing says v2"
    versions: dict[int | None, Version] = {half: "v2", half - 1: "v1"}
    seen = versions.get(stored.constant)
    symmetric = setting(source, name, "sym")
    if seen is not None and symmetric is not False:
        reason = f"all fields are {stored.constant}, and a symmetric layer of {stored.bits} bits has {half}"
        if seen != stated and label is not None:
            return seen, f"{reason}, although {saying}"
        return seen, reason
    if symmetric is True:
        return stated, f"{saying}, though zero points differ from those of a symmetric layer, which it claims to be"
    if seen is not None and seen != stated:
        return (
            stated,
            f"{saying}; all fields are {stored.constant}, as a symmetric layer has in {seen}, but it is none",
        )
    return stated, saying


def _by_gptqmodel(source: Source) -> bool:
    meta = source.quantization.get("meta")
    quantizer = meta.get("quantizer") if isinstance(meta, dict) else None
    tools = quantizer if isinstance(quantizer, list) else [quantizer]
    return any(isinstance(tool, str) and tool.lower().startswith("gptqmodel") for tool in tools)


def _mean(codes: NDArray[np.uint8], zeros: NDArray[np.uint8], group: Int) -> float:
    """The mean weight of a layer, in steps."""
    counts = np.bincount(group, minlength=len(zeros))
    return float(codes.mean(dtype=np.float64) - counts @ zeros.mean(axis=1, dtype=np.float64) / len(group))
