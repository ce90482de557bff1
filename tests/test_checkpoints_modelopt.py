"""Checkpoints of ModelOpt, and 8-bit floats in blocks: bits worked out by hand, other packages, damaged files."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import folder_of

from layerbounds.checkpoints.checkpoint import load_checkpoint
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.checkpoints.writers.stored import Stored, stored
from layerbounds.exceptions import FileFormatError

MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}


def layer(path: Path, tensors: dict[str, Any], quantization: dict[str, Any] | None = None) -> QuantizedWeight:
    checkpoint = load_checkpoint(
        folder_of(
            path,
            {f"a.b.{end}": value for end, value in tensors.items()},
            MODELOPT if quantization is None else quantization,
        )
    )
    assert list(checkpoint) == ["a.b"] and not len(checkpoint.dense)
    return checkpoint["a.b"]


def eight(codes: Any) -> Stored:
    array = np.array(codes, dtype=np.uint8)
    return Stored("F8_E4M3", array.shape, array)


# --- bits worked out by hand ------------------------------------------------------------------------------------------


def test_the_scale_of_the_tensor_multiplies(tmp_path: Path) -> None:
    # Codes 1, 7, 9, 15 are 0.5, 6, -0.5, -6.
    tensors = {
        "weight": np.tile(np.array([0x71, 0xF9], dtype=np.uint8), (1, 8)),
        "weight_scale": stored([[2.0, 4.0]], "F8_E4M3"),
        "weight_scale_2": np.array(0.25, dtype=np.float32),
        "input_scale": np.array(3.0, dtype=np.float32),
        "pre_quant_scale": np.ones(32, dtype=np.float32),
    }
    found = layer(tmp_path, tensors)
    assert found.weight.tolist() == [[0.25, 3.0, -0.25, -3.0] * 4 + [0.5, 6.0, -0.5, -6.0] * 4]
    assert found.parts["weight_scale_2"] == 0.25 and found.dtype == "bfloat16" and found.bits == 8 * (16 + 2 + 4)
    assert "pre_quant_scale" in found.notes[0]


def test_the_configuration_in_a_file_of_its_own(tmp_path: Path) -> None:
    tensors = {"a.b.weight": eight([[0x38, 0x40]]), "a.b.weight_scale": np.array(0.5, dtype=np.float32)}
    folder_of(tmp_path, tensors)
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    (tmp_path / "config.json").write_text(json.dumps({"torch_dtype": "float16"}))
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.label == "ModelOpt" and checkpoint["b"].weight.tolist() == [[0.5, 1.0]]
    assert checkpoint["b"].dtype == "float16"


def test_exponents_and_integers(tmp_path: Path) -> None:
    mx = {"weight": np.full((2, 16), 0x22, dtype=np.uint8), "weight_scale": np.array([[126], [128]], dtype=np.uint8)}
    assert layer(tmp_path / "mx4", mx).weight.tolist() == [[0.5] * 32, [2.0] * 32]
    mx = {"weight": eight([[0x38] * 32]), "weight_scale": np.array([[126]], dtype=np.uint8)}
    assert layer(tmp_path / "mx8", mx).weight.tolist() == [[0.5] * 32]
    wide = {
        "weight": np.array([[-128, 127], [1, 0]], dtype=np.int8),
        "weight_scale": np.array([1, 2], dtype=np.float32),
    }
    assert layer(tmp_path / "i8", wide).weight.tolist() == [[-128, 127], [2, 0]]
    # Neighbouring outputs share a byte: 1 and -1, 7 and -8.
    four = {
        "weight": np.array([[0xF1, 0x87]], dtype=np.uint8),
        "weight_scale": np.array([[1.0, 2.0], [0.5, 1.0]], dtype=np.float32),
    }
    assert layer(tmp_path / "i4", four).weight.tolist() == [[1.0, 14.0], [-0.5, -8.0]]


def test_scales_of_blocks(tmp_path: Path) -> None:
    tensors = {"weight": eight([[0x38] * 4] * 2), "weight_scale": np.array([[[[2.0], [3.0]]]], dtype=np.float32)}
    assert layer(tmp_path, tensors | {}, MODELOPT | {"quant_algo": "FP8_PB_WO"}).weight.tolist() == [[2, 2, 3, 3]] * 2


def test_floats_in_blocks_whose_scale_is_called_inverse(tmp_path: Path) -> None:
    method = {"quant_method": "fp8", "weight_block_size": [2, 4]}
    tensors = {
        "weight": eight([[0x38] * 5] * 3),
        "weight_scale_inv": np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32),
    }
    found = layer(tmp_path / "fp8", tensors, method)
    assert found.weight.tolist() == [[1, 1, 1, 1, 2], [1, 1, 1, 1, 2], [3, 3, 3, 3, 4]]
    assert found.format == "FP8, E4M3, blocks of 2 x 4"
    four = {"weight": np.full((1, 32), 0x22, dtype=np.int8), "weight_scale_inv": stored([[2.0, 4.0]], "F8_E8M0")}
    found = layer(tmp_path / "fp4", four, method)
    assert found.weight.tolist() == [[2.0] * 32 + [4.0] * 32] and found.format == "FP4, E2M1, groups of 32"
    channel = {"weight": eight([[0x38], [0x38]]), "weight_scale": np.array([[2.0], [3.0]], dtype=np.float32)}
    assert layer(tmp_path / "fbgemm", channel, {"quant_method": "fbgemm_fp8"}).weight.tolist() == [[2.0], [3.0]]


# --- damaged files ----------------------------------------------------------------------------------------------------

FOUR = {"weight": np.zeros((2, 16), dtype=np.uint8)}


@pytest.mark.parametrize(
    ("tensors", "quantization", "message"),
    [
        (FOUR | {"weight_scale": stored(np.ones((2, 2)), "F8_E4M3")}, MODELOPT, "no tensor 'a.b.weight_scale_2'"),
        (FOUR | {"weight_scale": np.ones((2, 2), dtype=np.int32)}, MODELOPT, "of type I32, which no scales"),
        (
            FOUR | {"weight_scale": stored(np.ones((2, 2)), "F8_E4M3"), "weight_scale_2": np.ones(2)},
            MODELOPT,
            "is not one number",
        ),
        (
            FOUR | {"weight_scale": stored(np.ones((2, 3)), "F8_E4M3"), "weight_scale_2": np.ones(1)},
            MODELOPT,
            "3 groups",
        ),
        (
            FOUR | {"weight_scale": np.ones((4, 1)), "weight_scale_2": np.ones(1)},
            MODELOPT,
            "a variant that is not read",
        ),
        (FOUR | {"weight_scale": np.ones((4, 1))}, MODELOPT | {"quant_algo": "W4A8_AWQ"}, "quantized by W4A8_AWQ"),
        ({"weight": eight([[[0x38]]]), "weight_scale": np.ones(1)}, MODELOPT, "no stacks of them"),
        ({"weight": eight([[0x7F]]), "weight_scale": np.ones(1)}, MODELOPT, "holds NaN"),
        (
            {"weight": eight([[0x38] * 5] * 3), "weight_scale_inv": np.ones((2, 2))},
            {"quant_method": "fp8"},
            "does not fit blocks of 128 x 128",
        ),
        (
            {"weight": eight([[0x38] * 4] * 4), "weight_scale_inv": np.ones((2, 2))},
            {"quant_method": "fp8", "weight_block_size": "2x2"},
            "weight_block_size 2x2",
        ),
        ({"weight": eight([[[0x38]]]), "weight_scale_inv": np.ones(1)}, {"quant_method": "fp8"}, "no stacks of them"),
    ],
)
def test_damaged_files_in_one_sentence(
    tmp_path: Path, tensors: dict[str, Any], quantization: dict[str, Any], message: str
) -> None:
    with pytest.raises(FileFormatError, match=message) as caught:
        layer(tmp_path, tensors, quantization)
    assert "\n" not in str(caught.value)


# --- other packages ---------------------------------------------------------------------------------------------------


def test_what_compressed_tensors_converts_is_the_same(tmp_path: Path) -> None:
    """Its converter inverts the scale of the tensor, exactly where that is a power of two."""
    torch = pytest.importorskip("torch", reason="compressed-tensors needs PyTorch")
    with warnings.catch_warnings():
        # What its dependencies say when they are imported.
        warnings.simplefilter("ignore")
        pytest.importorskip("compressed_tensors", reason="the test extra installs it")
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.entrypoints.convert.converters import ModelOptNvfp4Converter
        from compressed_tensors.quantization import QuantizationScheme
        from compressed_tensors.quantization.quant_scheme import NVFP4A16
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(2)
    tensors = {
        "a.b.weight": torch.randint(0, 256, (12, 40), generator=generator, dtype=torch.uint8),
        "a.b.weight_scale": (torch.rand((12, 5), generator=generator) + 0.5).to(torch.float8_e4m3fn),
        "a.b.weight_scale_2": torch.tensor(2.0**-6),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    found = load_checkpoint(tmp_path)["a.b"]
    converted = ModelOptNvfp4Converter(targets=["a.b"]).process(dict(tensors))
    scheme = QuantizationScheme(**NVFP4A16, targets=["a.b"])
    compressor = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized")
    state = {name.removeprefix("a.b."): value for name, value in converted.items()}
    dense = compressor.decompress(state | {"weight_global_scale": state["weight_global_scale"].reshape(1)}, scheme)
    assert np.array_equal(found.loaded, dense["weight"].double().numpy())


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_blocks_are_those_that_transformers_dequantizes(tmp_path: Path, kind: str) -> None:
    torch = pytest.importorskip("torch", reason="transformers needs PyTorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("transformers", reason="the test extra installs it")
        from transformers.integrations.finegrained_fp8 import Fp8Dequantize
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(2)
    weight = torch.randn((16, 64), generator=generator).to(torch.float8_e4m3fn)
    packed = torch.randint(-128, 128, (16, 32), generator=generator, dtype=torch.int8)
    scales = torch.rand((2, 4), generator=generator)
    powers = torch.randint(120, 130, (16, 2), generator=generator, dtype=torch.uint8)
    tensors = {"a.weight": weight, "a.weight_scale_inv": scales, "b.weight": packed, "b.weight_scale_inv": powers}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"dtype": kind, "quantization_config": {"quant_method": "fp8"}}))
    checkpoint = load_checkpoint(tmp_path)
    dequantize = Fp8Dequantize(None)
    for name, codes, numbers in (("a", weight, scales), ("b", packed, powers)):
        want = dequantize._dequantize_one(codes, numbers, output_dtype=getattr(torch, kind))
        assert np.array_equal(checkpoint[name].loaded, want.double().numpy())
