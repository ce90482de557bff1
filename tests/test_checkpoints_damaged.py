"""Files of GPTQ, AWQ and HQQ with random damage: decoded, or refused in one sentence, and never anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import folder_of, named
from numpy.typing import NDArray
from test_checkpoints_awq import gemm, gemv, gemv_fast, made
from test_checkpoints_gptq import quantized
from test_checkpoints_hqq import layer

import layerbounds as lb
from layerbounds.checkpoints.writers import gptq as writer
from layerbounds.exceptions import FileFormatError

Tensors = dict[str, NDArray[Any]]
SAID: list[dict[str, Any]] = [
    {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False},
    {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"},
    {"quant_method": "awq", "w_bit": 4, "q_group_size": -1},
    {"quant_method": "auto-round", "extra_config": {"a": {"bits": 3}}},
    {"quant_method": 4, "bits": True},
    {"bits": 4.0, "group_size": "all"},
    {"quant_method": "gptq", "dynamic": ["a"], "meta": [1], "checkpoint_format": 2},
    {"quant_method": "gptq", "dynamic": {"a": 3, "(": {}}, "bits": -4},
    {"quant_method": "gptq", "meta": {"quantizer": "gptqmodel:5.0.0"}, "group_size": 10**30, "sym": "yes"},
]


def undamaged(rng: np.random.Generator) -> Tensors:
    kind = rng.integers(5)
    if kind == 0:
        return writer.tensors(quantized(rng, int(rng.integers(2, 9))), "gptq_p")
    if kind == 1:
        return layer(rng, float(rng.choice([1, 1.58, 2, 3, 4, 5, 8])), int(rng.integers(2)))[0]
    arrays = made(rng)
    return gemm(*arrays) if kind == 2 else {3: gemv, 4: gemv_fast}[int(kind)](*arrays, 32)


def damage(rng: np.random.Generator, tensors: Tensors) -> None:
    end = str(rng.choice(sorted(tensors)))
    array = tensors[end]
    kind = rng.integers(9)
    if kind == 0:
        del tensors[end]
    elif kind == 1:
        dtype = rng.choice(["int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64", "bool"])
        tensors[end] = np.nan_to_num(array).astype(dtype)
    elif kind == 2 and array.ndim:
        tensors[end] = array[: rng.integers(len(array) + 1)]
    elif kind == 3 and array.ndim > 1:
        tensors[end] = np.ascontiguousarray(array[:, : rng.integers(array.shape[1] + 1)])
    elif kind == 4:
        tensors[end] = array.reshape(rng.choice(np.array([(-1,), (1, -1), (-1, 1), (1, 1, -1)], dtype=object)))
    elif kind == 5 and array.size:
        changed = array.copy()
        changed.flat[rng.integers(array.size)] = np.array(rng.choice([0, -1, 1e4, 127])).astype(array.dtype)
        tensors[end] = changed
    elif kind == 6 and array.size and array.dtype.kind == "f":
        tensors[end] = array * array.dtype.type(rng.choice([np.nan, np.inf, 0.0]))
    elif kind == 7:
        other = str(rng.choice(sorted(tensors)))
        tensors[end], tensors[other] = tensors[other], array
    else:
        tensors[end] = np.ascontiguousarray(array.T)


@pytest.mark.parametrize("seed", range(4))
def test_random_damage(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    decoded, refusals = 0, []
    with np.errstate(all="ignore"):
        for trial in range(60):
            tensors = undamaged(rng)
            for _ in range(rng.integers(1, 3)):
                damage(rng, tensors)
            said = SAID[rng.integers(len(SAID))] if rng.random() < 0.5 else None
            try:
                checkpoint = lb.load_checkpoint(folder_of(tmp_path / str(trial), named("a", tensors), said))
                weight = checkpoint["a"]
            except FileFormatError as error:
                refusals.append(str(error))
                continue
            assert np.all(np.isfinite(weight.weight)) and weight.bits > 0
            decoded += 1
    assert decoded and refusals
    assert all("\n" not in text and text.endswith(".") for text in refusals)
