"""Checkpoints of torchao: bits worked out by hand, the package's own dequantization, damaged files."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoint_files import folder_of

from layerbounds.checkpoints.checkpoint import load_checkpoint
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.checkpoints.writers.stored import Stored, save_tensors, stored
from layerbounds.exceptions import FileFormatError


def dtype(name: str) -> dict[str, str]:
    return {"_type": "torch.dtype", "_data": name}


def layer(path: Path, kind: str, tensors: dict[str, Any], **values: Any) -> QuantizedWeight:
    metadata = {"a.b.weight": json.dumps({"_type": kind, "_data": values}), "tensor_names": '["a.b.weight"]'}
    content = {f"a.b._weight_{end}": value for end, value in tensors.items()}
    checkpoint = load_checkpoint(folder_of(path, content, {"quant_method": "torchao"}, metadata=metadata))
    assert list(checkpoint) == ["a.b"] and not len(checkpoint.dense) and checkpoint.label == "torchao"
    return checkpoint["a.b"]


# --- bits worked out by hand ------------------------------------------------------------------------------------------


def test_four_bits_whose_zero_point_is_added(tmp_path: Path) -> None:
    # Halves 1, 7, 8, 15, low first: 1, 7, -8, -1. Scales and "zero points" of groups come before those of outputs.
    packed = np.array([[0x71, 0xF8], [0x71, 0xF8]], dtype=np.uint8).view(np.int8)
    tensors = {
        "qdata": packed,
        "scale": stored([[1.0, 2.0], [0.5, 4.0]], "BF16"),
        "zero_point": stored([[0.25, 0.0], [0.0, 1.0]], "BF16"),
    }
    found = layer(tmp_path, "Int4Tensor", tensors, block_size=[1, 2], shape=[2, 4])
    assert found.weight.tolist() == [[1.25, 7.25, -4.0, -0.5], [2.0, 14.0, -31.0, -3.0]]
    assert found.grid.offset.tolist() == [[0.25, 0.0], [0.0, 1.0]] and found.dtype == "bfloat16"


def test_integers_in_bytes(tmp_path: Path) -> None:
    tensors = {
        "qdata": np.array([[-4, 3], [0, 1]], dtype=np.int8),
        "scale": np.array([[0.5], [2.0]], dtype=np.float32),
        "zero_point": np.array([[1], [-2]], dtype=np.int8),
    }
    values = {"block_size": [1, 2], "dtype": dtype("float32"), "activation_quantization": None}
    found = layer(tmp_path / "x", "IntxUnpackedToInt8Tensor", tensors, target_dtype=dtype("int3"), **values)
    assert found.weight.tolist() == [[-2.5, 1.0], [4.0, 6.0]] and len(found.grid.codes) == 8
    found = layer(tmp_path / "8", "Int8Tensor", {**tensors, "act_pre_scale": np.ones(2, dtype=np.float32)}, **values)
    assert found.weight.tolist() == [[-2.5, 1.0], [4.0, 6.0]] and len(found.grid.codes) == 256
    assert "act_pre_scale" in found.notes[0] and found.bits == 8 * (4 + 8 + 2)


def test_floats_in_blocks(tmp_path: Path) -> None:
    tensors = {
        "qdata": Stored("F8_E4M3", (2, 4), np.full((2, 4), 0x38, dtype=np.uint8)),
        "scale": np.array([[3.0, 5.0]], dtype=np.float32),
    }
    found = layer(tmp_path, "Float8Tensor", tensors, block_size=[2, 2], dtype=dtype("bfloat16"))
    assert found.weight.tolist() == [[3, 3, 5, 5]] * 2 and "blocks of 2 x 2" in found.format


def test_scales_in_tiles(tmp_path: Path) -> None:
    # One row of four groups: in a tile of 128 x 4, row 1's scales begin at byte 16.
    tile = np.ones((32, 16))
    tile[1, :4] = [2, 4, 8, 16]
    tensors = {
        "qdata": np.full((2, 32), 0x22, dtype=np.uint8),
        "scale": stored(tile, "F8_E4M3"),
        "per_tensor_scale": np.array(0.5, dtype=np.float32),
    }
    found = layer(tmp_path, "NVFP4Tensor", tensors, block_size=16, orig_dtype=dtype("float32"), is_swizzled_scales=True)
    assert found.weight[0].tolist() == [0.5] * 64
    assert found.weight[1, ::16].tolist() == [1.0, 2.0, 4.0, 8.0]


def test_shards_have_metadata_of_their_own(tmp_path: Path) -> None:
    homes = {}
    for number, bits in enumerate((3, 4)):
        values = {"target_dtype": dtype(f"int{bits}"), "block_size": [1, 4], "dtype": dtype("float32")}
        metadata = {f"a.{bits}.weight": json.dumps({"_type": "IntxUnpackedToInt8Tensor", "_data": values})}
        content = {f"a.{bits}._weight_{end}": stored(value) for end, value in BYTES.items()}
        save_tensors(tmp_path / f"part-{number}.safetensors", content, metadata)
        homes |= dict.fromkeys(content, f"part-{number}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    sizes = {name: len(weight.grid.codes) for name, weight in load_checkpoint(tmp_path).items()}
    assert sizes == {"a.3": 8, "a.4": 16}


# --- damaged files ----------------------------------------------------------------------------------------------------

BYTES = {"qdata": np.zeros((2, 4), dtype=np.int8), "scale": np.ones((2, 1), dtype=np.float32)}
INT8 = {"block_size": [1, 4], "dtype": dtype("float32")}


@pytest.mark.parametrize(
    ("kind", "tensors", "values", "message"),
    [
        ("Int4TilePackedTo4dTensor", BYTES, INT8, "is a Int4TilePackedTo4dTensor"),
        ("Int8Tensor", {**BYTES, "qdata": np.zeros((1, 2, 4), dtype=np.int8)}, INT8, "no stacks of them"),
        ("Int8Tensor", {**BYTES, "qdata": np.zeros((2, 4), dtype=np.uint8)}, INT8, "of type U8, not of I8"),
        ("Int8Tensor", BYTES, {**INT8, "block_size": [1, 3]}, r"described by block_size \[1, 3\]"),
        ("Int8Tensor", BYTES, {**INT8, "block_size": None}, "described by block_size None"),
        ("Int8Tensor", BYTES, {**INT8, "dtype": None}, "described by dtype None"),
        ("Int8Tensor", BYTES, {**INT8, "block_size": [1, 2]}, "need 2 x 2 numbers"),
        ("Int8Tensor", {**BYTES, "zero_point": np.full((2, 1), np.nan)}, INT8, "holds NaN"),
        ("Int8Tensor", {"qdata": BYTES["qdata"]}, INT8, "no tensor 'a.b._weight_scale'"),
        ("IntxUnpackedToInt8Tensor", BYTES, {**INT8, "target_dtype": dtype("uint4")}, "target_dtype 'uint4'"),
        (
            "IntxUnpackedToInt8Tensor",
            {**BYTES, "qdata": np.full((2, 4), 9, dtype=np.int8)},
            {**INT8, "target_dtype": dtype("int4")},
            "integers that 4 bits cannot hold",
        ),
        (
            "Int4Tensor",
            {**BYTES, "zero_point": BYTES["scale"]},
            {**INT8, "shape": [2, 4]},
            r"shape \[2, 4\], not \(2, 8\)",
        ),
        ("Float8Tensor", BYTES, INT8, "not of 8-bit floats"),
        (
            "NVFP4Tensor",
            {"qdata": np.zeros((2, 8), dtype=np.uint8), "scale": stored(np.ones((2, 1)), "F8_E4M3")},
            {"block_size": 16, "orig_dtype": dtype("float32"), "is_swizzled_scales": True},
            "not that of 1 tiles of 128 x 4",
        ),
        (
            "MXTensor",
            {"qdata": np.full((2, 32), 64, dtype=np.uint8), "scale": stored(np.ones((2, 1)), "F8_E8M0")},
            {"block_size": 32, "orig_dtype": dtype("float32"), "elem_dtype": "fp6_e2m3"},
            "more than 6 bits",
        ),
    ],
)
def test_damaged_files_in_one_sentence(
    tmp_path: Path, kind: str, tensors: dict[str, Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(FileFormatError, match=message) as caught:
        layer(tmp_path, kind, tensors, **values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "metadata", [{}, {"a.weight": "{"}, {"a.weight": "[]"}, {"a.weight": '{"_type": "Int8Tensor"}'}]
)
def test_a_tensor_that_is_not_described(tmp_path: Path, metadata: dict[str, str]) -> None:
    checkpoint = load_checkpoint(folder_of(tmp_path, {"a._weight_qdata": np.zeros((2, 2), np.int8)}, metadata=metadata))
    with pytest.raises(FileFormatError, match=r"metadata does not describe the tensor 'a\.weight'"):
        checkpoint["a"]


# --- the package itself -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ao() -> SimpleNamespace:
    torch = pytest.importorskip("torch", reason="torchao needs PyTorch")
    with warnings.catch_warnings():
        # What it says when it is imported.
        warnings.simplefilter("ignore")
        pytest.importorskip("torchao", reason="the test extra installs it")
        from torchao import quantization
        from torchao.prototype.mx_formats.mx_tensor import MXTensor
        from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor
        from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
        from torchao.quantization.granularity import PerBlock
        from torchao.quantization.utils import groupwise_affine_dequantize_tensor_from_qparams
    return SimpleNamespace(
        torch=torch,
        q=quantization,
        mx=MXTensor,
        nv=NVFP4Tensor,
        flatten=flatten_tensor_state_dict,
        block=PerBlock,
        tinygemm=groupwise_affine_dequantize_tensor_from_qparams,
    )


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_weights_are_those_that_the_package_dequantizes(tmp_path: Path, ao: SimpleNamespace, name: str) -> None:
    torch, q = ao.torch, ao.q
    kind = getattr(torch, name)
    weight = torch.randn(24, 128, generator=torch.Generator().manual_seed(5)).to(kind)
    made = {
        **{
            f"x{bits}": q.IntxUnpackedToInt8Tensor.from_hp(weight, (1, 32), getattr(torch, f"int{bits}"))
            for bits in range(1, 9)
        },
        "x4s": q.IntxUnpackedToInt8Tensor.from_hp(weight, (1, 64), torch.int4, mapping_type=q.MappingType.SYMMETRIC),
        "i8": q.Int8Tensor.from_hp(weight, q.PerRow()),
        "i8t": q.Int8Tensor.from_hp(weight, q.PerTensor()),
        "f8": q.Float8Tensor.from_hp(weight),
        "f8t": q.Float8Tensor.from_hp(weight, granularity=q.PerTensor()),
        "f8b": q.Float8Tensor.from_hp(weight, granularity=ao.block((8, 32))),
    }
    if name != "float16":
        wide = torch.cat([weight] * 6)
        made |= {
            "nv": ao.nv.to_nvfp4(weight, per_tensor_scale=torch.tensor(0.013)),
            "nvs": ao.nv.to_nvfp4(wide, is_swizzled_scales=True),
            "mx4": ao.mx.to_mx(weight, torch.float4_e2m1fn_x2, 32),
            "mx4s": ao.mx.to_mx(wide, torch.float4_e2m1fn_x2, 32, is_swizzled_scales=True),
            "mx8": ao.mx.to_mx(weight, torch.float8_e4m3fn, 32),
            "mx8w": ao.mx.to_mx(weight, torch.float8_e5m2, 32),
            "mx6": ao.mx.to_mx(weight, "fp6_e2m3", 32),
            "mx6w": ao.mx.to_mx(weight, "fp6_e3m2", 32),
        }
    content, metadata = ao.flatten({f"{key}.weight": value for key, value in made.items()})
    from safetensors.torch import save_file

    save_file(content, tmp_path / "model.safetensors", metadata)
    found = load_checkpoint(tmp_path)
    assert set(found) == set(made)
    for key, value in made.items():
        want, have = value.dequantize().double().numpy(), found[key]
        assert have.dtype == name and have.shape == want.shape
        # Where scales are wider than weights, or have two levels, the package rounds twice.
        rounds = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[name]
        twice = key == "nv" or (key.startswith(("i8", "f8")) and name != "float32")
        if twice:
            assert np.mean(have.loaded == want) > (0.5 if key == "nv" and name == "float32" else 0.99), key
            np.testing.assert_allclose(have.weight, want, rtol=rounds, err_msg=key)
        else:
            assert np.array_equal(have.loaded, want), key


def test_four_bits_are_those_of_the_formula_of_the_package(tmp_path: Path, ao: SimpleNamespace) -> None:
    """Its kernels for these are on GPUs; the formula is that of its reference for another packing of the same."""
    torch = ao.torch
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(0, 16, (6, 64), generator=generator, dtype=torch.int32)
    scale, zero = (torch.rand(6, 2, generator=generator).bfloat16() for _ in range(2))
    signed = (codes - 8) & 15
    packed = (signed[:, ::2] | signed[:, 1::2] << 4).to(torch.uint8).view(torch.int8)
    made = ao.q.Int4Tensor(packed, scale.T.contiguous(), zero.T.contiguous(), [1, 32], torch.Size([6, 64]))
    content, metadata = ao.flatten({"a.weight": made})
    from safetensors.torch import save_file

    save_file(content, tmp_path / "model.safetensors", metadata)
    want = ao.tinygemm(codes, scale.float(), zero.float(), n_bit=4, groupsize=32)
    np.testing.assert_allclose(load_checkpoint(tmp_path)["a"].weight, want.numpy(), rtol=0, atol=1e-6)
