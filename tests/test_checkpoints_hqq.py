"""HQQ's checkpoints: bytes worked out by hand, groups along both axes, its own library, damaged files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import folder_of, named
from numpy.typing import NDArray

import layerbounds as lb
from layerbounds.exceptions import FileFormatError

Tensors = dict[str, NDArray[Any]]
PACKINGS = {
    8: "8bit_u8",
    6: "8bit_u8",
    5: "8bit_u8",
    4: "4bit_u8",
    3: "3bit_32",
    2: "2bit_u8",
    1.58: "2bit_u8",
    1: "1bit_u8",
}


def settings(bits: float, shape: tuple[int, ...], axis: int, size: int, dtype: str = "float16") -> Tensors:
    """The tensors beside codes, scales and zero points."""
    return {
        "nbits": np.array(bits, np.float32 if bits % 1 else np.int32),
        "shape": np.array(shape, np.int64),
        "axis": np.array(axis, np.int32),
        "group_size": np.array(size, np.int32),
        "packing": np.frombuffer(PACKINGS[bits].encode(), np.uint8),
        "compute_dtype": np.frombuffer(f"torch.{dtype}".encode(), np.uint8),
        "view_as_float": np.array(0, np.uint8),
        "quant_scale": np.array(0, np.uint8),
        "quant_zero": np.array(0, np.uint8),
    }


def packed(codes: NDArray[Any], bits: float) -> NDArray[Any]:
    """The rows of grouped codes in bytes or words, from the definition."""
    if PACKINGS[bits] == "3bit_32":
        filled = np.concatenate([codes, np.zeros((-len(codes) % 10, codes.shape[1]), int)])
        part = np.split(filled.astype(np.int64), 10)
        return sum(part[place] << (27 - 3 * place) for place in range(10)).astype(np.int32)  # type: ignore[union-attr]
    width = int(PACKINGS[bits][0])
    part = np.split(codes.astype(np.int64), 8 // width)
    return sum(rows << (8 - width * (place + 1)) for place, rows in enumerate(part)).astype(np.uint8)  # type: ignore[union-attr]


def layer(
    rng: np.random.Generator, bits: float, axis: int, shape: tuple[int, int] = (16, 40), size: int = 8
) -> tuple[Tensors, NDArray[np.float64]]:
    """A layer's tensors, and its weights."""
    count = shape[0] * shape[1]
    grouped = (count // size, size) if axis == 1 else (size, count // size)
    codes = rng.integers(0, round(2**bits), grouped)
    one = (grouped[0], 1) if axis == 1 else (1, grouped[1])
    scale = rng.uniform(0.1, 1, one).astype(np.float16)
    zero = rng.uniform(0, 2**bits, one).astype(np.float16)
    weight = scale.astype(float) * (codes - zero.astype(float))
    tensors = {"W_q": packed(codes, bits), "scale": scale, "zero": zero, **settings(bits, shape, axis, size)}
    return tensors, weight.reshape(shape)


def test_four_bits_by_hand(tmp_path: Path) -> None:
    # Two outputs of four inputs in groups of two: four rows, of which the first two have the high nibbles.
    tensors = {
        "W_q": np.array([[0x1A, 0x2B], [0x3C, 0x4D]], np.uint8),
        "scale": np.array([[1.0], [2.0], [0.5], [-1.0]], np.float16),
        "zero": np.array([[0.0], [0.5], [8.0], [0.0]], np.float16),
        **settings(4, (2, 4), 1, 2),
    }
    checkpoint = lb.load_checkpoint(folder_of(tmp_path, {**named("a", tensors), "a.bias": np.ones(2, np.float16)}))
    weight = checkpoint["a"]
    assert weight.weight.tolist() == [[1, 2, 5, 7], [1, 1.5, -12, -13]]
    assert weight.grid.zero_point.tolist() == [[0, 0.5], [8, 0]] and weight.grid.group_size == 2
    assert weight.format == "HQQ, 4 bits, groups of 2 along axis 1" and weight.dtype == "float16"
    assert weight.bits == 32 + 64 + 64 and list(checkpoint.dense) == ["a.bias"]
    assert "rounds code − zero to float16" in weight.notes[0]


def test_three_bits_by_hand(tmp_path: Path) -> None:
    # Four outputs of three inputs in groups of three: four of the ten rows that a word has room for.
    word = 0b101_010_111_001 << 18
    tensors = {
        "W_q": np.array([[word, 0, 7 << 27]], np.int32),
        "scale": np.ones((4, 1), np.float16),
        "zero": np.zeros((4, 1), np.float16),
        **settings(3, (4, 3), 1, 3),
    }
    weight = lb.load_checkpoint(folder_of(tmp_path, named("a", tensors)))["a"]
    assert weight.weight.tolist() == [[5, 0, 7], [2, 0, 0], [7, 0, 0], [1, 0, 0]] and not weight.notes


def test_groups_of_outputs_by_hand(tmp_path: Path) -> None:
    # Along axis 0: the outputs 0 and 2 share scales, input by input, and so do 1 and 3.
    tensors = {
        "W_q": np.array([[1, 1, 1, 1], [2, 2, 2, 2]], np.uint8),
        "scale": np.array([[1.0, 2.0, 3.0, 4.0]], np.float16),
        "zero": np.zeros((1, 4), np.float16),
        **settings(8, (4, 2), 0, 2),
    }
    weight = lb.load_checkpoint(folder_of(tmp_path, named("a", tensors)))["a"]
    assert weight.weight.tolist() == [[1, 2], [3, 4], [2, 4], [6, 8]]
    assert weight.grid.group_size == 1 and weight.format == "HQQ, 8 bits, groups of 2 along axis 0"


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", PACKINGS)
def test_all_widths(bits: float, axis: int, tmp_path: Path, rng: np.random.Generator) -> None:
    for trial, (shape, size) in enumerate([((16, 40), 8), ((16, 40), 16), ((16, 24), 16), ((16, 24), 48)]):
        tensors, want = layer(rng, bits, axis, shape, size)
        weight = lb.load_checkpoint(folder_of(tmp_path / str(trial), named("a", tensors)))["a"]
        assert np.array_equal(weight.weight, want) and len(weight.grid.codes) == round(2**bits)


def test_bytes_stored_as_floats(tmp_path: Path, rng: np.random.Generator) -> None:
    for bits in (4, 3):
        tensors, want = layer(rng, bits, 1)
        tensors |= {"W_q": tensors["W_q"].view(np.float16), "view_as_float": np.array(1, np.uint8)}
        weight = lb.load_checkpoint(folder_of(tmp_path / str(bits), named("a", tensors)))["a"]
        assert np.array_equal(weight.weight, want)


def test_one_scale_for_all_and_scales_with_zeros(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors, _ = layer(rng, 4, 1)
    tensors |= {"scale": np.array(0.5, np.float16), "zero": np.array(7.5, np.float16)}
    single = lb.load_checkpoint(folder_of(tmp_path / "a", named("a", tensors)))["a"]
    assert single.grid.scale.shape == (16, 1) and np.array_equal(single.weight, 0.5 * (single.codes - 7.5))
    tensors, want = layer(rng, 4, 1)
    tensors["zero_scale"] = np.stack([tensors.pop("zero"), tensors.pop("scale")])
    assert np.array_equal(lb.load_checkpoint(folder_of(tmp_path / "b", named("a", tensors)))["a"].weight, want)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_reading_of_hqq(dtype: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="hqq works with PyTorch")
    quantize = pytest.importorskip("hqq.core.quantize", reason="hqq is compared with where it is installed")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    unit = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}[dtype]
    for bits in PACKINGS:
        for axis, size in ((0, 8), (1, 16), (1, None)):
            for floats in (False, True):
                config = quantize.BaseQuantizeConfig(nbits=bits, group_size=size, axis=axis, view_as_float=floats)
                module = quantize.HQQLinear(
                    torch.nn.Linear(80, 64), config, compute_dtype=getattr(torch, dtype), device="cpu"
                )
                state = {f"a.{key}": value.detach() for key, value in module.state_dict().items() if value is not None}
                save_file(state, tmp_path / "model.safetensors")
                weight = lb.load_checkpoint(tmp_path)["a"]
                steps = np.abs(weight.grid.scale).max() * len(weight.grid.codes)
                # Two roundings: of code − zero, and of the product.
                assert np.abs(weight.weight - module.dequantize().double().numpy()).max() <= 2.01 * unit * steps


def _change(end: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({end: change(tensors[end])})


def _becomes(end: str, value: Any, dtype: Any = np.int32) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({end: np.array(value, dtype)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: tensors.pop("scale"), "there is no tensor 'a.scale'"),
        (lambda tensors: tensors.pop("nbits"), "there is no tensor 'a.nbits'"),
        (lambda tensors: tensors.pop("shape"), "there is no tensor 'a.shape'"),
        (_change("zero", lambda a: a * np.float16(np.nan)), "'a.zero' holds NaN or infinity"),
        (_change("scale", lambda a: a[:-1]), "'a.scale' has shape (79, 1), which does not fit"),
        (_change("W_q", lambda a: a[:-1]), "does not hold 640 codes of 4bit_u8"),
        (_change("W_q", lambda a: a[:, :-1]), "does not hold 640 codes of 4bit_u8"),
        (_change("W_q", lambda a: a[0]), "where a matrix is expected"),
        (_change("W_q", lambda a: a.astype(np.float16)), "'view_as_float' says otherwise"),
        (_becomes("shape", [16, 41], np.int64), "does not hold 656 codes"),
        (_becomes("shape", [640], np.int64), "says (640,), which is no shape of a weight"),
        (_becomes("nbits", 3), "codes of layer 'a' go up to 15, which 3 bits do not hold"),
        (_becomes("nbits", 99), "which 99 bits do not hold"),
        (_becomes("nbits", [4, 4]), "'a.nbits' of shape (2,) and type int32 is no setting"),
        (_becomes("axis", 2), "'a.axis' says 2, not 0 or 1"),
        (_becomes("group_size", 16), "but groups are said to have 16 along axis 1"),
        (_change("compute_dtype", lambda a: a[:-2]), "says 'torch.float', none of"),
    ],
)
def test_damaged_layers(
    damage: Callable[[Tensors], Any], message: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    tensors, _ = layer(rng, 4, 1)
    damage(tensors)
    checkpoint = lb.load_checkpoint(folder_of(tmp_path, named("a", tensors)))
    with pytest.raises(FileFormatError, match=re.escape(message)) as caught:
        checkpoint["a"]
    assert str(caught.value).endswith("the file is damaged or of another format.") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_becomes("quant_zero", 1), "are quantized themselves, a variant of HQQ that is not known here"),
        (_change("packing", lambda a: a[1:]), "is packed as 'bit_u8', which is not known here"),
    ],
)
def test_variants_that_are_not_known(
    damage: Callable[[Tensors], Any], message: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    tensors, _ = layer(rng, 4, 1)
    damage(tensors)
    with pytest.raises(FileFormatError, match=message):
        lb.load_checkpoint(folder_of(tmp_path, named("a", tensors)))["a"]
