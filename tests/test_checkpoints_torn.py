"""Checkpoints in tensors with random damage: decoded, or refused in a sentence."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import folder_of

from layerbounds.checkpoints.checkpoint import load_checkpoint
from layerbounds.checkpoints.writers.stored import Stored, stored
from layerbounds.exceptions import FileFormatError

KINDS = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "I32", "I64", "BOOL", "F64", "F4")
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I64": 8, "F64": 8, "F4": 1}
SHAPES = (
    (),
    (0,),
    (1,),
    (2,),
    (1, 2),
    (2, 1),
    (2, 2),
    (4, 4),
    (4, 2),
    (2, 16),
    (4, 32),
    (0, 4),
    (2, 2, 2),
    (64,),
    (128, 1),
)
ODD: tuple[Any, ...] = (
    None,
    -1,
    0,
    1,
    4,
    8,
    10**30,
    2.5,
    "4",
    "all",
    [],
    [1],
    [2, 2],
    [0, 0],
    ["a", "b"],
    {},
    {"a": 1},
    True,
)
SCALE = np.array([[0.5, 2.0]] * 4, dtype=np.float32)


def bits(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> Stored:
    """Random bits of a type, or small numbers that most tensors might hold."""
    width = WIDTHS.get(kind, 1)
    count = int(np.prod(shape, dtype=np.int64))
    data = rng.integers(0, 256, count * width, dtype=np.uint8)
    if rng.random() < 0.5:
        data = np.full(count * width, rng.integers(0, 70), dtype=np.uint8)
    if kind == "BOOL":
        data = data % 2
    return Stored(kind, shape, data)


def whole(rng: np.random.Generator, form: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Tensors, a configuration, and what metadata say, of a file without damage."""
    byte, eight = (
        rng.integers(0, 256, (4, 16), dtype=np.uint8),
        Stored("F8_E4M3", (4, 32), np.full((4, 32), 0x38, np.uint8)),
    )
    group: dict[str, Any] = {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 16}}
    said = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": group}}
    if form == 0:
        made = {"weight_packed": byte.view(np.int32), "weight_scale": SCALE, "weight_shape": np.array([4, 32])}
        return made | {"weight_zero_point": np.zeros((1, 2), np.int32), "weight_g_idx": np.arange(32) // 16}, said, {}
    if form == 1:
        return (
            {"weight": eight, "weight_scale": SCALE[:, :1], "weight_zero_point": np.zeros((4, 1), np.int8)},
            said,
            {},
        )
    if form == 2:
        fine = {"weight_packed": byte, "weight_scale": stored(SCALE, "F8_E4M3"), "weight_global_scale": np.ones(1)}
        return fine, said, {}
    if form == 3:
        fine = {"weight": byte, "weight_scale": stored(SCALE, "F8_E4M3"), "weight_scale_2": np.ones(1)}
        return fine, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, {}
    if form == 4:
        return (
            {"weight": eight, "weight_scale_inv": SCALE[:2]},
            {"quant_method": "fp8", "weight_block_size": [2, 16]},
            {},
        )
    if form == 5:
        state = {"blocksize": 64, "dtype": "float32", "shape": [4, 32], "nested_blocksize": 2, "nested_offset": 0.5}
        table = np.linspace(-1, 1, 256, dtype=np.float32)
        made = {
            "weight": byte.reshape(-1, 1),
            "weight.absmax": np.array([3, 200], dtype=np.uint8),
            "weight.quant_map": (np.array([0, 1 / 16, 8, 12, 4, 6, 2, 3, 0, -1 / 16, -8, -12, -4, -6, -2, -3]) / 12),
            "weight.nested_absmax": np.ones(1, dtype=np.float32),
            "weight.nested_quant_map": table,
        }
        return made, {"quant_method": "bitsandbytes"}, state
    kinds: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        (
            "Int8Tensor",
            {"qdata": byte.view(np.int8), "scale": SCALE[:, :1]},
            {"block_size": [1, 16], "dtype": "float32"},
        ),
        (
            "Int4Tensor",
            {"qdata": byte.view(np.int8), "scale": SCALE.T.copy(), "zero_point": SCALE.T.copy()},
            {"block_size": [1, 16], "shape": [4, 32]},
        ),
        (
            "MXTensor",
            {"qdata": byte, "scale": stored(SCALE, "F8_E8M0")},
            {"block_size": 16, "elem_dtype": "float4_e2m1fn_x2", "orig_dtype": "float32", "is_swizzled_scales": False},
        ),
    ]
    kind, made, values = kinds[form - 6]
    return {f"_weight_{end}": value for end, value in made.items()}, {}, {"_type": kind, "_data": values}


def torn(rng: np.random.Generator, tensors: dict[str, Any], *tables: dict[str, Any]) -> None:
    """One or two things of it, changed in place."""
    for _ in range(rng.integers(1, 3)):
        if rng.random() < 0.35 and any(tables):
            table: Any = rng.choice([table for table in tables if table])  # type: ignore[arg-type]
            while True:
                key = rng.choice(list(table))
                inner = table[key]
                if not isinstance(inner, dict) or not inner or rng.random() < 0.3:
                    break
                table = inner
            table[key] = copy.deepcopy(ODD[rng.integers(len(ODD))])
            continue
        name = rng.choice(list(tensors))
        if rng.random() < 0.25 and len(tensors) > 1:
            del tensors[name]
            continue
        now = tensors[name] if isinstance(tensors[name], Stored) else stored(tensors[name])
        kind = KINDS[rng.integers(len(KINDS))] if rng.random() < 0.5 else now.kind
        shape = SHAPES[rng.integers(len(SHAPES))] if rng.random() < 0.6 else now.shape
        tensors[name] = bits(rng, kind, shape)


@pytest.mark.parametrize("form", range(9))
def test_damage_is_refused_in_a_sentence(tmp_path: Path, form: int) -> None:
    for seed in range(TRIES):
        rng = np.random.default_rng([form, seed])
        tensors, said, values = whole(rng, form)
        if seed:
            torn(rng, tensors, said, values)
        metadata = {}
        if form == 5:
            state = np.frombuffer(json.dumps(values).encode(), dtype=np.uint8)
            tensors.setdefault("weight.quant_state.bitsandbytes__fp4", state)
        elif form > 5:
            metadata["a.weight"] = json.dumps(values)
        named = {f"a.{name}": value for name, value in tensors.items()}
        try:
            checkpoint = load_checkpoint(folder_of(tmp_path, named, said, metadata=metadata))
            weight = checkpoint["a"]
        except FileFormatError as error:
            said_so = str(error)
            assert seed and "\n" not in said_so, (form, seed)
        else:
            assert np.all(np.isfinite(weight.weight)) and weight.bits > 0
            assert weight.weight.shape == weight.shape and len(weight.format) < 200


#: Of each kind of file.
TRIES = 15
