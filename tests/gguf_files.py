"""GGUF files of random weights, written by the package gguf."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from layerbounds.checkpoints.gguf.types import LAYOUTS, NUMBERS, TYPES

gguf: Any = pytest.importorskip("gguf", reason="the package gguf writes and decodes the files")

#: First bytes of the halves of a block, by type.
HALVES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}


def random_blocks(rng: np.random.Generator, kind: str, out: int, blocks: int) -> NDArray[np.uint8]:
    """Random bytes of a type, shape (out, blocks · bytes): every finite scale, subnormal ones and zeros among them."""
    size = TYPES[NUMBERS[kind]].size
    raw = rng.integers(0, 256, (out, blocks, size), dtype=np.uint8)
    for at in HALVES.get(kind, ()):
        halves = rng.integers(0, 1 << 16, (out, blocks)).astype(np.uint16)
        halves[(halves & 0x7C00) == 0x7C00] &= 0x83FF  # NaN and infinity become subnormal numbers
        halves[0, 0], halves[-1, 0], halves[0, -1] = 0, 0x8000, 0x8001
        raw[..., at : at + 2] = halves[..., None].astype("<u2").view(np.uint8)
    if kind == "TQ2_0":
        digits = rng.integers(0, 3, (out, blocks, 64, 4), dtype=np.uint8)
        raw[..., :64] = (digits << np.array([0, 2, 4, 6], dtype=np.uint8)).sum(-1, dtype=np.uint8)
    if kind == "MXFP4":
        raw[..., 0] = rng.integers(0, 250, (out, blocks))
        raw[0, 0, 0], raw[-1, 0, 0] = 0, 1
    return raw.reshape(out, -1)


def write_file(
    path: Path,
    tensors: Mapping[str, NDArray[Any] | tuple[NDArray[np.uint8], str]],
    architecture: str = "llama",
    **keys: int | list[int],
) -> Path:
    """A file of plain arrays and of (bytes, type); keys of the architecture with ``_`` for dots."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        name = f"{architecture}.{key.replace('__', '.')}"
        writer.add_array(name, value) if isinstance(value, list) else writer.add_uint32(name, value)
    for name, value in tensors.items():
        if isinstance(value, tuple):
            if not hasattr(gguf.GGMLQuantizationType, value[1]):
                pytest.skip(f"this version of gguf has no {value[1]}")
            writer.add_tensor(name, value[0], raw_dtype=gguf.GGMLQuantizationType[value[1]])
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def dequantized(raw: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """What the package gguf makes of bytes."""
    return np.asarray(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind]))


__all__ = ["HALVES", "LAYOUTS", "dequantized", "gguf", "random_blocks", "write_file"]
