"""Checkpoints of bitsandbytes: bits worked out by hand, the package's own dequantization, damaged files."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoint_files import folder_of
from numpy.typing import NDArray

from layerbounds.checkpoints.checkpoint import load_checkpoint
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.checkpoints.writers.stored import Stored, stored
from layerbounds.exceptions import FileFormatError
from layerbounds.problems.codebooks import codebook

NF4 = codebook("nf4").astype(np.float32)
FP4 = (np.array([0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3]) / 12).astype(np.float32)


def state(**values: Any) -> NDArray[np.uint8]:
    content = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [1, 4], **values}
    return np.frombuffer(json.dumps(content).encode(), dtype=np.uint8)


def tensors(kind: str = "nf4", *, described: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    made = {
        "weight": np.array([[0x0F], [0x71]], dtype=np.uint8),
        "weight.absmax": np.array([2.0], dtype=np.float32),
        "weight.quant_map": NF4 if kind == "nf4" else FP4,
        f"weight.quant_state.bitsandbytes__{kind}": state(**(described or {})),
        **changes,
    }
    return {name: value for name, value in made.items() if value is not None}


def layer(path: Path, content: dict[str, Any]) -> QuantizedWeight:
    checkpoint = load_checkpoint(
        folder_of(path, {f"a.b.{end}": value for end, value in content.items()}, {"quant_method": "bitsandbytes"})
    )
    assert list(checkpoint) == ["a.b"] and not len(checkpoint.dense) and checkpoint.label == "bitsandbytes"
    return checkpoint["a.b"]


# --- bits worked out by hand ------------------------------------------------------------------------------------------


def test_high_half_first(tmp_path: Path) -> None:
    # Codes 0, 15, 7, 1 of NF4 are -1, 1, 0, -0.696.
    found = layer(tmp_path, tensors())
    assert found.weight.tolist() == [[-2.0, 2.0, 0.0, 2 * float(NF4[1])]]
    assert found.dtype == "bfloat16" and found.format == "bitsandbytes nf4, blocks of 64"
    assert np.array_equal(found.grid.codes, NF4) and found.bits == 8 * (2 + 4 + 64 + len(state()))


def test_floats_of_four_bits_are_not_those_of_ocp(tmp_path: Path) -> None:
    # Codes 0, 15, 7, 1 are 0, -3/12, 3/12, 1/192; zero has two codes.
    found = layer(tmp_path, tensors("fp4"))
    assert found.weight.tolist() == [[0.0, -0.5, 0.5, 2 * float(FP4[1])]] and len(found.grid.codes) == 15


def test_blocks_run_through_the_rows(tmp_path: Path) -> None:
    # Three rows of six in blocks of four: rows do not end where blocks do.
    content = tensors(
        described={"shape": [3, 6], "blocksize": 4},
        weight=np.full((9, 1), 0xFF, dtype=np.uint8),
        **{"weight.absmax": np.arange(1, 6, dtype=np.float32)},
    )
    found = layer(tmp_path, content)
    assert found.weight.ravel().tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5]
    assert found.grid.group_size == 2


def test_scales_that_are_quantized_too(tmp_path: Path) -> None:
    table = np.linspace(-1, 1, 256, dtype=np.float32)
    content = tensors(
        described={
            "shape": [2, 4],
            "blocksize": 4,
            "nested_blocksize": 1,
            "nested_offset": 0.5,
            "nested_dtype": "float32",
        },
        weight=np.full((4, 1), 0xFF, dtype=np.uint8),
        **{
            "weight.absmax": np.array([255, 0], dtype=np.uint8),
            "weight.nested_quant_map": table,
            "weight.nested_absmax": np.array([2.0, 0.25], dtype=np.float32),
        },
    )
    found = layer(tmp_path, content)
    assert found.weight.tolist() == [[2.5] * 4, [0.25] * 4] and found.format.endswith("(nested)")
    assert found.parts["block_scale"].tolist() == [1.0, -1.0]


def test_blocks_of_zeros(tmp_path: Path) -> None:
    found = layer(tmp_path, tensors(**{"weight.absmax": np.zeros(1, dtype=np.float32)}))
    assert not found.weight.any()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_bytes_that_are_declared_as_wider_numbers(tmp_path: Path, kind: str) -> None:
    codes = np.random.default_rng(1).integers(0, 16, 64)
    packed = ((codes[::2] << 4) | codes[1::2]).astype(np.uint8)
    width = 4 if kind == "F32" else 2
    content = tensors(
        described={"shape": [4, 16]}, weight=Stored(kind, (32 // width, 1), packed.view(f"<u{width}").reshape(-1, 1))
    )
    assert np.array_equal(layer(tmp_path, content).codes.ravel(), codes)


def test_integers_with_a_scale_per_output(tmp_path: Path) -> None:
    content = {
        "weight": np.array([[127, -127, 0], [1, 2, 3]], dtype=np.int8),
        "SCB": np.array([2.0, 127.0], dtype=np.float32),
        "weight_format": np.array(0, dtype=np.uint8),
    }
    found = layer(tmp_path, content)
    assert found.loaded.tolist() == [[2.0, -2.0, 0.0], [1.0, 2.0, 3.0]] and found.dtype == "float16"


# --- damaged files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tensors(weight=None), "no tensor 'a.b.weight'"),
        (tensors(weight=np.zeros((1, 1), dtype=np.uint8)), r"has 1 bytes, too few for weights of shape \(1, 4\)"),
        (tensors(described={"shape": [4]}), r"has shape \(4,\); only single matrices"),
        (tensors(described={"shape": [0, 4]}), "is described by shape"),
        (tensors(described={"blocksize": 0}), "blocksize 0"),
        (tensors(described={"dtype": "int8"}), "dtype int8"),
        (tensors(**{"weight.absmax": np.ones(2, dtype=np.float32)}), "has 2 scales for 1 blocks"),
        (tensors(**{"weight.quant_map": FP4}), "does not hold the 16 values of nf4"),
        (tensors(**{"weight.quant_state.bitsandbytes__nf4": np.zeros(3, dtype=np.uint8)}), "does not hold the JSON"),
        (
            tensors(
                **{"weight.nested_absmax": np.ones(1, np.float32), "weight.nested_quant_map": np.ones(256, np.float32)}
            ),
            "holds float32 numbers where integers",
        ),
        ({"weight": np.ones((2, 2), dtype=np.int8), "SCB": np.ones(3, dtype=np.float32)}, "a scale for each output"),
        ({"weight": np.full((2, 2), -128, dtype=np.int8), "SCB": np.ones(2, dtype=np.float32)}, "holds -128"),
    ],
)
def test_damaged_files_in_one_sentence(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(FileFormatError, match=message) as caught:
        layer(tmp_path, content)
    assert "\n" not in str(caught.value)


# --- the package itself -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bnb() -> SimpleNamespace:
    torch = pytest.importorskip("torch", reason="bitsandbytes needs PyTorch")
    with warnings.catch_warnings():
        # What it says when it is imported.
        warnings.simplefilter("ignore")
        functional = pytest.importorskip("bitsandbytes.functional", reason="the test extra installs it")
    return SimpleNamespace(torch=torch, f=functional)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_weights_are_those_that_the_package_dequantizes(
    tmp_path: Path, bnb: SimpleNamespace, dtype: str, kind: str, nested: bool
) -> None:
    torch = bnb.torch
    generator = torch.Generator().manual_seed(3)
    content, want = {}, {}
    # Whole blocks in each row, and rows that end within blocks; several blocks of scales.
    for name, shape, block in (("a", (24, 128), 64), ("b", (40, 96), 64), ("c", (9, 100), 64), ("d", (150, 128), 64)):
        weight = torch.randn(shape, generator=generator).to(getattr(torch, dtype))
        packed, made = bnb.f.quantize_4bit(weight, blocksize=block, quant_type=kind, compress_statistics=nested)
        flat = copy.copy(made)
        # As one row: its CPU kernel takes wrong scales where rows end within blocks, unlike its other backends.
        flat.shape = torch.Size([1, weight.numel()])
        want[name] = bnb.f.dequantize_4bit(packed, flat).reshape(shape).double().numpy()
        content[f"{name}.weight"] = packed
        content |= {f"{name}.weight.{end}": value for end, value in made.as_dict(packed=True).items()}
    made_tensors = {name: stored(value.numpy()) for name, value in content.items()}
    found = load_checkpoint(folder_of(tmp_path, made_tensors))
    assert set(found) == set(want)
    for name, weight in found.items():
        assert weight.dtype == dtype
        if dtype == "float32":
            assert np.array_equal(weight.loaded, want[name]), name
        else:
            # The package rounds to float32 before, which in rare cases is another number.
            assert np.mean(weight.loaded == want[name]) > 0.998
            half = 2.0 ** -(11 if dtype == "float16" else 8) * (1 + 2.0**-10)
            np.testing.assert_allclose(weight.weight, want[name], rtol=half, atol=2.0**-25)


def test_integers_are_those_that_the_package_dequantizes(tmp_path: Path, bnb: SimpleNamespace) -> None:
    weight = bnb.torch.randn((12, 40), generator=bnb.torch.Generator().manual_seed(3)).half()
    codes, scale, _ = bnb.f.int8_vectorwise_quant(weight)
    dense = bnb.f.int8_vectorwise_dequant(codes, scale).half().double().numpy()
    found = layer(tmp_path, {"weight": codes.numpy(), "SCB": scale.numpy()})
    # One scale in float64 there, two roundings in float32 here.
    assert np.mean(found.loaded == dense) > 0.998
    np.testing.assert_allclose(found.weight, dense, rtol=2.0**-11 * (1 + 2.0**-10))
