"""Checkpoints of compressed-tensors: bits worked out by hand, the package's own decompression, damaged files."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoint_files import folder_of
from numpy.typing import NDArray

from layerbounds.checkpoints.checkpoint import Checkpoint, load_checkpoint
from layerbounds.checkpoints.packing import unpack_stream
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.checkpoints.writers import compressed_tensors as writer
from layerbounds.checkpoints.writers.stored import Stored, save_tensors, stored
from layerbounds.exceptions import FileFormatError, InputError, UnsupportedProblemError
from layerbounds.layers.tensor_files import NARROW_FLOATS, open_tensors
from layerbounds.problems.codebooks import codebook
from layerbounds.problems.float_types import rounded
from layerbounds.problems.grids import Grid


def config(form: str = "pack-quantized", *, targets: list[str] | None = None, **weights: Any) -> dict[str, Any]:
    group = {"targets": targets or ["Linear"], "weights": {"type": "int", "symmetric": True, **weights}}
    return {"quant_method": "compressed-tensors", "format": form, "version": "0.20.0", "config_groups": {"g": group}}


def layer(path: Path, tensors: dict[str, Any], quantization: dict[str, Any] | None = None) -> QuantizedWeight:
    checkpoint = load_checkpoint(folder_of(path, {f"a.b.{end}": value for end, value in tensors.items()}, quantization))
    assert list(checkpoint) == ["a.b"]
    return checkpoint["a.b"]


def words(*values: int) -> NDArray[np.int32]:
    return np.array(values, dtype=np.uint32).view(np.int32)[None]


# --- tensors of all types in files ------------------------------------------------------------------------------------


def test_every_stored_type_is_read_as_it_was_written(tmp_path: Path) -> None:
    tensors = {
        "bf16": stored([1.0, -2.5, 3.3895313892515355e38, 0.0], "BF16"),
        "f16": stored(np.array([[1.5], [-0.25]], dtype=np.float16)),
        "i32": stored(np.array([[-1, 2**31 - 1]], dtype=np.int32)),
        "u8": stored(np.arange(3, dtype=np.uint8)),
        "empty": stored(np.zeros((0, 2), dtype=np.float32)),
        "number": stored(np.array(2.0, dtype=np.float32)),
    }
    for kind, table in NARROW_FLOATS.items():
        tensors[kind] = stored(table[np.isfinite(table)], kind)
    save_tensors(tmp_path / "all.safetensors", tensors, {"who": "me"})
    with open_tensors(tmp_path / "all.safetensors") as file:
        assert file.metadata == {"who": "me"}
        assert file.read("bf16").tolist() == [1.0, -2.5, 3.3895313892515355e38, 0.0]
        assert file.read("f16").tolist() == [[1.5], [-0.25]]
        assert file.read("i32").tolist() == [[-1, 2**31 - 1]]
        assert file.read("u8").tolist() == [0, 1, 2]
        assert file.read("empty").shape == (0, 2) and file.read("number").shape == ()
        for kind, table in NARROW_FLOATS.items():
            found, want = file.read(kind), table[np.isfinite(table)]
            assert np.array_equal(found, want) and np.array_equal(np.signbit(found), np.signbit(want)), kind


@pytest.mark.parametrize(("value", "kind"), [(1.001, "BF16"), (1e39, "BF16"), (3.0, "F8_E8M0"), (449.0, "F8_E4M3")])
def test_a_number_that_a_type_lacks_is_not_stored(value: float, kind: str) -> None:
    with pytest.raises(InputError, match=f"not all numbers of type {kind}"):
        stored([1.0, value], kind)
    with pytest.raises(InputError, match="no type 'F7'"):
        stored([1.0], "F7")


def test_exponents_are_powers_of_two() -> None:
    table = NARROW_FLOATS["F8_E8M0"]
    assert table[127] == 1.0 and table[0] == 2.0**-127 and table[254] == 2.0**127 and np.isnan(table[255])


# --- bits worked out by hand ------------------------------------------------------------------------------------------


def test_four_bits_lowest_first(tmp_path: Path) -> None:
    # Fields 0, 8, 9, 15 and 7 in all others, of which 8 is taken off: -8, 0, 1, 7, -1.
    found = layer(
        tmp_path,
        {
            "weight_packed": words(0x7777F980),
            "weight_scale": np.array([[0.5]], dtype=np.float16),
            "weight_shape": np.array([1, 8]),
            "bias": np.ones(1, dtype=np.float32),
        },
        config(num_bits=4),
    )
    assert found.weight.tolist() == [[-4.0, 0.0, 0.5, 3.5, -0.5, -0.5, -0.5, -0.5]]
    assert found.grid.codes.tolist() == list(range(-8, 8)) and found.codes.tolist() == [[0, 8, 9, 15, 7, 7, 7, 7]]
    assert found.dtype == "float16" and found.shape == (1, 8) and found.notes == ()
    assert found.bits == 32 + 16 + 128
    assert found.format == "compressed-tensors pack-quantized, 4 bits, a scale per channel or tensor"


def test_three_bits_cross_the_border_of_words(tmp_path: Path) -> None:
    # Fields 0 to 9 are 4 (0 after the offset), field 10 is 0b110 in bits 30 and 31 (0b10) and the lowest of the next
    # word (1), field 11 is 0b001 after it.
    low = sum(4 << (3 * i) for i in range(10)) | (0b10 << 30)
    found = layer(
        tmp_path,
        {
            "weight_packed": words(low, 0b001_1),
            "weight_scale": np.ones((1, 1), dtype=np.float32),
            "weight_shape": np.array([1, 12]),
        },
        config(num_bits=3),
    )
    assert found.weight.tolist() == [[0.0] * 10 + [2.0, -3.0]]


def test_three_bits_whole_in_words_as_before_0_18(tmp_path: Path) -> None:
    tensors = {
        "weight_packed": words(sum(4 << (3 * i) for i in range(10)), 0b001_110),
        "weight_scale": np.ones((1, 1), dtype=np.float32),
        "weight_shape": np.array([1, 12]),
    }
    # Both ways take two words for 12 inputs: the version says which, and without it the last bits of the words.
    old = layer(tmp_path / "old", tensors, {**config(num_bits=3), "version": "0.17.1"})
    assert old.weight.tolist() == [[0.0] * 10 + [2.0, -3.0]] and old.notes == ()
    unsaid = layer(tmp_path / "unsaid", tensors, {**config(num_bits=3), "version": None})
    assert np.array_equal(unsaid.weight, old.weight) and "shapes do not say" in unsaid.notes[0]


def test_shape_tells_the_packings_apart(tmp_path: Path) -> None:
    # 31 inputs of 3 bits: four words whole, three across.
    columns = np.full((1, 4), sum(4 << (3 * i) for i in range(10)), dtype=np.uint32).view(np.int32)
    tensors = {
        "weight_packed": columns,
        "weight_scale": np.ones((1, 1), dtype=np.float32),
        "weight_shape": np.array([1, 31]),
    }
    assert not layer(tmp_path, tensors, config(num_bits=3)).weight.any()


def test_zero_points_are_packed_along_the_outputs(tmp_path: Path) -> None:
    # Two groups of four inputs; zero points of three outputs: 1, -8, 7 and 0, 2, -1.
    first, second = (1 + 8) | (0 << 4) | (15 << 8), (0 + 8) | (10 << 4) | (7 << 8)
    tensors = {
        "weight_packed": np.repeat(words(0x88888888), 3, axis=0),
        "weight_scale": stored(np.array([[1.0, 2.0]] * 3), "BF16"),
        "weight_shape": np.array([3, 8]),
        "weight_zero_point": np.array([[first, second]], dtype=np.int32),
    }
    found = layer(tmp_path / "packed", tensors, config(num_bits=4, group_size=4, symmetric=False))
    assert found.grid.zero_point.tolist() == [[1, 0], [-8, 2], [7, -1]]
    assert found.weight.tolist() == [[-1.0] * 4 + [0.0] * 4, [8.0] * 4 + [-4.0] * 4, [-7.0] * 4 + [2.0] * 4]
    assert found.dtype == "bfloat16" and found.format.endswith("4 bits, groups of 4, asymmetric")
    # Older versions store them as they are.
    tensors["weight_zero_point"] = np.array([[1, 0], [-8, 2], [7, -1]], dtype=np.int8)
    plain = layer(tmp_path / "plain", tensors, config(num_bits=4, group_size=4, symmetric=False))
    assert np.array_equal(plain.weight, found.weight)


def test_groups_of_inputs_by_number(tmp_path: Path) -> None:
    tensors = {
        "weight_packed": words(0x99999999),
        "weight_scale": np.array([[1.0, 2.0]], dtype=np.float32),
        "weight_shape": np.array([1, 8]),
        "weight_g_idx": np.array([1, 0, 0, 1, 1, 0, 1, 0], dtype=np.int32),
    }
    found = layer(tmp_path / "given", tensors, config(num_bits=4, group_size=4))
    assert found.weight.tolist() == [[2, 1, 1, 2, 2, 1, 2, 1]]
    # Numbers that were never set: consecutive groups.
    tensors["weight_g_idx"] = np.full(8, -1, dtype=np.int32)
    assert layer(tmp_path / "unset", tensors, config(num_bits=4)).weight.tolist() == [[1] * 4 + [2] * 4]


def test_integers_and_floats_of_eight_bits(tmp_path: Path) -> None:
    ints = {"weight": np.array([[-128, 0, 127]], dtype=np.int8), "weight_scale": np.array([[0.5]], dtype=np.float32)}
    found = layer(tmp_path / "int", ints, config("int-quantized", num_bits=8))
    assert found.weight.tolist() == [[-64, 0, 63.5]] and len(found.grid.codes) == 256
    few = {**ints, "weight": np.array([[-8, 0, 7]], dtype=np.int8)}
    found = layer(tmp_path / "naive", few, config("naive-quantized", num_bits=4))
    assert found.weight.tolist() == [[-4, 0, 3.5]] and len(found.grid.codes) == 16
    # 0x38 is 1 and 0x7E 448 in E4M3; 0xB8 is -1.
    floats = {
        "weight": Stored("F8_E4M3", (1, 4), np.array([[0x38, 0x7E, 0xB8, 0x80]], dtype=np.uint8)),
        "weight_scale": stored([2.0], "BF16"),
    }
    found = layer(tmp_path / "float", floats, config("float-quantized", num_bits=8, type="float"))
    assert found.weight.tolist() == [[2, 896, -2, 0]] and len(found.grid.codes) == 253 and found.dtype == "bfloat16"


def test_blocks_of_floats(tmp_path: Path) -> None:
    tensors = {
        "weight": Stored("F8_E4M3", (3, 5), np.full((3, 5), 0x38, dtype=np.uint8)),
        "weight_scale": np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=np.float32),
    }
    found = layer(tmp_path, tensors, config("float-quantized", num_bits=8, type="float", block_structure=[2, 2]))
    assert found.weight.tolist() == [[1, 1, 2, 2, 3], [1, 1, 2, 2, 3], [4, 4, 5, 5, 6]]


def test_floats_of_four_bits_low_half_first(tmp_path: Path) -> None:
    # Codes 1, 7, 9, 15 are 0.5, 6, -0.5, -6.
    packed = np.tile(np.array([0x71, 0xF9], dtype=np.uint8), (1, 8))
    nv = {
        "weight_packed": packed,
        "weight_scale": stored([[2.0, 4.0]], "F8_E4M3"),
        "weight_global_scale": np.array([8.0], dtype=np.float32),
        "input_global_scale": np.array([3.0], dtype=np.float32),
    }
    found = layer(tmp_path / "nv", nv, config("nvfp4-pack-quantized", num_bits=4, type="float", group_size=16))
    assert found.weight.tolist() == [[0.125, 1.5, -0.125, -1.5] * 4 + [0.25, 3.0, -0.25, -3.0] * 4]
    assert found.parts["block_scale"].tolist() == [[2.0, 4.0]] and found.parts["global_scale"].tolist() == [8.0]
    assert len(found.grid.codes) == 15 and found.bits == 8 * (16 + 2 + 4)
    mx = {"weight_packed": packed, "weight_scale": np.array([[128]], dtype=np.uint8)}
    found = layer(tmp_path / "mx", mx, config("mxfp4-pack-quantized", num_bits=4, type="float", group_size=32))
    assert found.weight.tolist() == [[1.0, 12.0, -1.0, -12.0] * 8]


def test_floats_of_six_bits(tmp_path: Path) -> None:
    # Codes 1, 31, 33, 8 are 1/8, 7.5, -1/8, 1; four of them in three bytes, lowest bits first.
    word = 1 | 31 << 6 | 33 << 12 | 8 << 18
    packed = np.tile(np.frombuffer(word.to_bytes(3, "little"), dtype=np.uint8), (1, 8))
    mx = {"weight_packed": packed, "weight_scale": np.array([[126]], dtype=np.uint8)}
    found = layer(tmp_path, mx, config("mxfp6-pack-quantized", num_bits=6, type="float", group_size=32))
    assert found.weight.tolist() == [[0.0625, 3.75, -0.0625, 0.5] * 8] and len(found.grid.codes) == 63


def test_groups_without_weights_have_scales_of_zero(tmp_path: Path) -> None:
    nv = {
        "weight_packed": np.full((1, 16), 0x71, dtype=np.uint8),
        "weight_scale": stored([[0.0, 4.0]], "F8_E4M3"),
        "weight_global_scale": np.array([8.0], dtype=np.float32),
    }
    found = layer(tmp_path / "nv", nv, config("nvfp4-pack-quantized", num_bits=4, type="float", group_size=16))
    assert found.weight.tolist() == [[0.0] * 16 + [0.25, 3.0] * 8]
    dead = {"weight": np.array([[5, -3], [1, 2]], dtype=np.int8), "weight_scale": np.array([[0.0], [2.0]])}
    assert layer(tmp_path / "int", dead, config("int-quantized", num_bits=8)).weight.tolist() == [[0, 0], [2, 4]]


# --- which scheme a layer has -----------------------------------------------------------------------------------------


def test_groups_of_a_configuration_in_their_order_of_precedence(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {}
    for name in ("x.down", "x.up", "x.other"):
        tensors[f"{name}.weight"] = np.array([[-2, 1]], dtype=np.int8)
        tensors[f"{name}.weight_scale"] = np.ones((1, 1), dtype=np.float32)
    tensors["norm.weight"] = np.ones(2, dtype=np.float32)

    def group(bits: int, *targets: str) -> dict[str, Any]:
        return {"targets": list(targets), "format": "naive-quantized", "weights": {"num_bits": bits}}

    groups = {"g0": group(2, "Linear"), "g1": group(3, "re:.*down", "re:.*up"), "g2": group(4, "x.up")}
    quantization = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups}
    checkpoint = load_checkpoint(folder_of(tmp_path, tensors, quantization))
    sizes = {name: len(weight.grid.codes) for name, weight in checkpoint.items()}
    assert sizes == {"x.down": 8, "x.up": 16, "x.other": 4}
    assert list(checkpoint.dense) == ["norm.weight"] and checkpoint.label == "compressed-tensors"


def test_a_scheme_by_its_name_is_what_the_tensors_show(tmp_path: Path) -> None:
    tensors = packed(weight_packed=np.zeros((4, 16), dtype=np.int32), weight_shape=np.array([4, 128]))
    quantization = {"quant_method": "compressed-tensors", "config_groups": {"W4A16": ["Linear"]}}
    found = layer(tmp_path, tensors, quantization)
    assert len(found.grid.codes) == 16 and "fields of 4 bits" in found.notes[0]


def test_without_a_configuration_shapes_tell_the_bits(tmp_path: Path) -> None:
    tensors = {
        "weight_packed": np.zeros((1, 12), dtype=np.int32),
        "weight_scale": np.ones((1, 4), dtype=np.float32),
        "weight_shape": np.array([1, 128]),
    }
    found = layer(tmp_path / "clear", tensors)
    assert len(found.grid.codes) == 8 and found.grid.group_size == 32 and len(found.notes) == 2
    tensors.update(weight_packed=np.zeros((1, 1), dtype=np.int32), weight_shape=np.array([1, 4]))
    with pytest.raises(FileFormatError, match="may hold fields of 1 or 2 or 3 or 4 or 5 or 6 or 7 or 8 bits"):
        layer(tmp_path / "unclear", tensors)


# --- damaged files ----------------------------------------------------------------------------------------------------


def packed(**changes: Any) -> dict[str, Any]:
    tensors: dict[str, Any] = {
        "weight_packed": np.zeros((4, 1), dtype=np.int32),
        "weight_scale": np.ones((4, 2), dtype=np.float32),
        "weight_shape": np.array([4, 8]),
        **changes,
    }
    return {name: value for name, value in tensors.items() if value is not None}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (packed(weight_shape=None), "no tensor 'a.b.weight_shape'"),
        (packed(weight_shape=np.array([5, 8])), r"says \[5, 8\], but 'a.b.weight_packed' has 4 rows"),
        (packed(weight_shape=np.array([4, 9])), "has 1 words a row, which 9 fields of 4 bits"),
        (packed(weight_scale=None), "no tensor 'a.b.weight_scale'"),
        (packed(weight_scale=np.ones((4, 3), dtype=np.float32)), "3 groups of inputs, but 8 inputs in groups of 4"),
        (packed(weight_scale=np.ones((2, 2), dtype=np.float32)), r"shape \(2, 2\), which does not fit weights"),
        (packed(weight_scale=np.full((4, 2), np.nan, dtype=np.float32)), "holds NaN or infinity"),
        (packed(weight_scale=np.ones((4, 2), dtype=np.int32)), "of type I32 where floats are expected"),
        (packed(weight_scale=np.full((4, 2), 1e-200)), "impossible grid"),
        (
            packed(weight_zero_point=np.zeros((2, 2), dtype=np.int32)),
            r"zero points of 4 bits of 4 channels need \(1, 2\)",
        ),
        (packed(weight_g_idx=np.arange(8, dtype=np.int32)), "does not give 8 inputs one of 2 groups each"),
        (packed(weight_packed=np.zeros((4, 1, 1), dtype=np.int32)), "no stacks of them"),
        (packed(meta=np.zeros(1, dtype=np.int16)), "sparse form"),
        ({"compressed": np.zeros((4, 1)), "bitmask": np.zeros((4, 1), dtype=np.uint8)}, "sparse form"),
        ({"weight": np.array([[9]], dtype=np.int8), "weight_scale": np.ones(1)}, "integers that 4 bits cannot hold"),
        (
            {"weight": Stored("F8_E4M3", (1, 1), np.array([[0x7F]], dtype=np.uint8)), "weight_scale": np.ones(1)},
            "'a.b.weight' holds NaN",
        ),
        ({"weight_packed": np.zeros((1, 16), np.uint8), "weight_scale": np.array([[255]], np.uint8)}, "of 0 to 254"),
        (
            {
                "weight_packed": np.zeros((1, 2), np.uint8),
                "weight_scale": np.ones(1),
                "weight_global_scale": np.zeros(1),
            },
            "not one number other than 0",
        ),
        ({"weight_packed": np.zeros((1, 2), np.int8), "weight_scale": np.ones(1)}, "where bytes are expected"),
    ],
)
def test_damaged_files_in_one_sentence(tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    size = {"group_size": 4} if "weight_shape" in tensors or "weight_scale" in tensors else {}
    checkpoint = load_checkpoint(
        folder_of(tmp_path, {f"a.b.{end}": value for end, value in tensors.items()}, config(num_bits=4, **size))
    )
    with pytest.raises(FileFormatError, match=message) as caught:
        checkpoint["a.b"]
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(checkpoint.path))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([1], "config_groups of its configuration is no table"),
        ({"g": {"weights": {}}}, "group 'g' of its configuration has no list of targets"),
        ({"g": {"targets": ["re:["]}}, "is no regular expression"),
        ({"g": {"targets": ["Linear"], "weights": {"num_bits": "many"}}}, "describes weights by"),
    ],
)
def test_damaged_configurations_in_one_sentence(tmp_path: Path, groups: Any, message: str) -> None:
    quantization = {"quant_method": "compressed-tensors", "config_groups": groups}
    with pytest.raises(FileFormatError, match=message):
        layer(tmp_path, packed(), quantization)


# --- the package itself -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    pytest.importorskip("torch", reason="compressed-tensors needs PyTorch")
    with warnings.catch_warnings():
        # What its dependencies say when they are imported.
        warnings.simplefilter("ignore")
        pytest.importorskip("compressed_tensors", reason="the test extra installs it")
        import torch
        from compressed_tensors import quantization
        from compressed_tensors.compressors import BaseCompressor
        from safetensors.torch import load

    def tensors(made: dict[str, Stored]) -> dict[str, Any]:
        save_tensors(folder / "made.safetensors", made)
        return load((folder / "made.safetensors").read_bytes())

    folder = tmp_path_factory.mktemp("ct")
    find = BaseCompressor.get_value_from_registry
    return SimpleNamespace(torch=torch, q=quantization, compressor=find, tensors=tensors)


INT = [
    {"num_bits": bits, "symmetric": symmetric, "strategy": "group", "group_size": 16}
    for bits in (1, 2, 3, 4, 5, 6, 7, 8)
    for symmetric in (True, False)
]
CASES: list[tuple[str, dict[str, Any]]] = [
    *[("pack-quantized", args) for args in INT],
    ("pack-quantized", {"num_bits": 4, "strategy": "channel"}),
    ("pack-quantized", {"num_bits": 3, "strategy": "channel", "symmetric": False}),
    ("pack-quantized", {"num_bits": 4, "strategy": "tensor"}),
    ("int-quantized", {"num_bits": 8, "strategy": "channel"}),
    ("int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}),
    ("int-quantized", {"num_bits": 8, "strategy": "tensor"}),
    ("naive-quantized", {"num_bits": 5, "strategy": "group", "group_size": 32}),
    ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [8, 16]}),
    (
        "mxfp8-quantized",
        {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "uint8"},
    ),
    ("mxfp6-pack-quantized", {"num_bits": 6, "type": "float", "strategy": "group", "group_size": 32}),
    ("mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}),
    ("nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}),
]


def scale_shape(args: dict[str, Any], out: int, n: int) -> tuple[int, ...]:
    match args["strategy"]:
        case "tensor":
            return (1,)
        case "channel":
            return (out, 1)
        case "block":
            rows, columns = args["block_structure"]
            return (-(-out // rows), -(-n // columns))
    return (out, n // args["group_size"])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_are_those_that_the_package_decompresses(tmp_path: Path, ct: SimpleNamespace, dtype: str) -> None:
    """Bit for bit, each form in one file: schemes by the names of layers."""
    torch = ct.torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(7)
    out, n = 20, 96
    tensors, groups, want = {}, {}, {}
    for number, (form, args) in enumerate(CASES):
        name = f"model.layers.{number}.proj"
        scheme = ct.q.QuantizationScheme(targets=[name], weights=ct.q.QuantizationArgs(**args), format=form)
        floats = form.startswith(("mx", "nv"))
        shape = scale_shape(args, out, n)
        size = torch.rand(shape, generator=generator) + 0.5
        scale = (2.0 ** torch.randint(-9, 3, shape, generator=generator) if floats else size * 0.1).to(
            getattr(torch, dtype)
        )
        # Blocks at the border are padded by the package, which needs whole ones to decompress.
        state = {
            "weight": torch.randn((16 if "block_structure" in args else out, n), generator=generator).to(scale.dtype)
        }
        if "block_structure" in args:
            scale = scale[:2]
        state["weight_scale"] = scale
        if form.startswith("nv"):
            state["weight_scale"] = size.to(torch.float8_e4m3fn).to(scale.dtype) * 16
            state["weight_global_scale"] = torch.tensor([57.3])
        if args.get("symmetric") is False:
            limit = 2 ** (args["num_bits"] - 1)
            state["weight_zero_point"] = torch.randint(-limit, limit, shape, generator=generator, dtype=torch.int8)
        made = ct.compressor(form).compress(state, scheme)
        want[name] = ct.compressor(form).decompress(made, scheme)["weight"]
        tensors |= {f"{name}.{end}": value.contiguous() for end, value in made.items()}
        groups[f"group_{number}"] = scheme.model_dump(mode="json") | {"weights": {"group_size": None, **args}}
    save_file(tensors, tmp_path / "model.safetensors")
    quantization = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantization | {"version": "0.20.0"}}))
    found: Checkpoint = load_checkpoint(tmp_path)
    assert set(found) == set(want) and not len(found.dense)
    for name, weight in found.items():
        decompressed = want[name]
        assert weight.dtype == str(decompressed.dtype).removeprefix("torch."), (name, weight.format)
        if weight.parts:
            # The package divides and multiplies in float32 before it rounds to bfloat16.
            np.testing.assert_allclose(weight.weight, decompressed.double().numpy(), rtol=2.0**-8 * (1 + 2.0**-13))
            same = np.mean(weight.loaded == decompressed.double().numpy())
            assert same > 0.99
        else:
            assert np.array_equal(weight.loaded, decompressed.double().numpy()), (name, weight.format)


# --- written ----------------------------------------------------------------------------------------------------------


def weight_of(grid: Grid, dtype: str = "float32", seed: int = 3) -> QuantizedWeight:
    shape = (grid.out_features, grid.in_features)
    codes = np.random.default_rng(seed).integers(0, len(grid.codes), shape)
    return QuantizedWeight("a.b", "made", grid, codes, shape, dtype, 0)


def scales(shape: tuple[int, int], dtype: str = "float32") -> NDArray[np.float64]:
    return rounded(np.random.default_rng(5).uniform(0.01, 0.1, shape), dtype)


def integers(low: int, high: int, zero: Any = 0.0, groups: int = 3, dtype: str = "float32") -> Grid:
    scale = scales((5, groups), dtype)
    return Grid(np.arange(low, high + 1), scale, np.broadcast_to(zero, scale.shape), 48)


ZEROS = np.random.default_rng(6).integers(0, 8, (5, 3))
E4M3 = np.unique(NARROW_FLOATS["F8_E4M3"][np.isfinite(NARROW_FLOATS["F8_E4M3"])])
WRITTEN: list[tuple[str, Grid, dict[str, Any], str]] = [
    ("pack-quantized", integers(-4, 3), {}, "3 bits, groups of 16"),
    ("pack-quantized", integers(0, 7, ZEROS), {}, "3 bits, groups of 16, asymmetric"),
    ("pack-quantized", integers(0, 7, ZEROS), {"bits": 5}, "5 bits, groups of 16, asymmetric"),
    ("pack-quantized", integers(0, 15, 8.0), {}, "4 bits, groups of 16"),
    ("pack-quantized", integers(-7, 7), {"dtype": "bfloat16"}, "4 bits"),
    ("pack-quantized", integers(-1, 1, groups=1), {}, "2 bits, a scale per channel"),
    ("pack-quantized", integers(0, 1, groups=1), {}, "1 bits, a scale per channel or tensor, asymmetric"),
    ("pack-quantized", integers(-128, 127), {}, "8 bits"),
    ("int-quantized", integers(-128, 127, groups=1), {}, "8 bits"),
    ("int-quantized", integers(0, 7, ZEROS), {"bits": 8}, "8 bits, groups of 16, asymmetric"),
    ("float-quantized", Grid(E4M3, scales((5, 1)), np.zeros(()), 48), {}, "E4M3"),
    ("mxfp4-pack-quantized", Grid(codebook("fp4"), 2.0 ** np.arange(-5, 5).reshape(5, 2), np.zeros(()), 64), {}, ""),
    ("nvfp4-pack-quantized", Grid(codebook("fp4"), E4M3[200:220].reshape(5, 4) / 64, np.zeros(()), 64), {}, ""),
]


@pytest.mark.parametrize(("form", "grid", "options", "words"), WRITTEN)
def test_written_weights_are_read_again(
    tmp_path: Path, form: str, grid: Grid, options: dict[str, Any], words: str
) -> None:
    weight = weight_of(grid)
    if options.get("dtype") == "bfloat16":
        grid = Grid(grid.codes, rounded(grid.scale, "bfloat16"), grid.zero_point, grid.in_features)
        weight = weight_of(grid)
    writer.check(grid, form=form, **{"dtype": "float32", **options})
    made = writer.tensors(weight, form=form, **options)
    group = writer.scheme(weight, form=form, **options)
    quantization = config(form)
    quantization["config_groups"] = {"g": {"targets": ["Linear"], **group}}
    found = layer(tmp_path, made, quantization)
    assert np.array_equal(found.weight, weight.weight) and words in found.format and found.notes == ()
    assert form in found.format
    # A layer that was read is written again as it was.
    again = writer.tensors(found, form=form, bits=options.get("bits"))
    assert {end: value.tobytes() for end, value in again.items()} == {end: v.tobytes() for end, v in made.items()}


@pytest.mark.parametrize(("form", "grid", "options", "words"), WRITTEN)
def test_the_package_decompresses_what_was_written(
    ct: SimpleNamespace, form: str, grid: Grid, options: dict[str, Any], words: str
) -> None:
    torch = ct.torch
    if options.get("dtype") == "bfloat16":
        grid = Grid(grid.codes, rounded(grid.scale, "bfloat16"), grid.zero_point, grid.in_features)
    weight = weight_of(grid)
    group = {"targets": ["a.b"], **writer.scheme(weight, form=form, **options)}
    scheme = ct.q.QuantizationScheme.model_validate(json.loads(json.dumps(group)))
    made = ct.tensors(writer.tensors(weight, form=form, **options))
    dense = ct.compressor(form).decompress(made, scheme)["weight"]
    kind = "bfloat16" if "fp4" in form else options.get("dtype", "float32")
    assert np.array_equal(dense.double().numpy(), rounded(weight.weight, kind))
    if form == "pack-quantized":
        # Compressing the weights anew gives the same words.
        state = {"weight": dense, "weight_scale": made["weight_scale"]}
        if "weight_zero_point" in made:
            zero = unpack_stream(made["weight_zero_point"].numpy().T.copy(), scheme.weights.num_bits, 5).T
            half = 2 ** (scheme.weights.num_bits - 1)
            state["weight_zero_point"] = torch.from_numpy(zero.astype(np.int16) - half).to(torch.int8)
        anew = ct.compressor(form).compress(state, scheme)
        assert sorted(anew) == sorted(made)
        assert all(torch.equal(anew[end], made[end]) and anew[end].dtype == made[end].dtype for end in made)


@pytest.mark.parametrize(
    ("grid", "options", "message"),
    [
        (integers(0, 7, 2.5), {}, "zero points are integers"),
        (integers(0, 7, 200.0), {"bits": 3}, "exceed 3 bits"),
        (integers(0, 7, np.array([[0.0, 0.0, 9.0]])), {"bits": 3}, "with zero points from 0 to 9 exceed 3 bits"),
        (integers(0, 7, np.array([[0.0, 0.0, 300.0]])), {}, "exceed 8 bits"),
        (integers(0, 255), {"bits": 4}, "exceed 4 bits"),
        (Grid([-1.0, 0.5], scales((5, 3)), np.zeros(()), 48), {"form": "pack-quantized"}, "codes are integers"),
        (integers(-4, 3), {"dtype": "float16"}, "not all numbers of type float16; round them before"),
        (Grid(np.arange(4), scales((5, 3)), np.zeros(()), 40, 16), {}, "groups of 16 have to divide the 40 inputs"),
        (Grid(np.arange(4), scales((5, 2)), 0.0, 4, group=[0, 1, 0, 1]), {}, "groups are consecutive inputs"),
        (Grid(np.arange(4), scales((5, 2)), 0.0, 4, offset=scales((5, 2))), {}, "without an offset"),
        (integers(-5, 5), {"form": "mxfp4-pack-quantized"}, r"codes are 4-bit floats \(E2M1\)"),
        (Grid(codebook("fp4"), scales((5, 3)), 0.0, 48), {"form": "mxfp4-pack-quantized"}, "groups have 32 inputs"),
        (Grid(codebook("fp4"), scales((5, 2)), 0.0, 64), {"form": "mxfp4-pack-quantized"}, "scales are powers of two"),
        (Grid(codebook("fp4"), scales((5, 3)), 0.0, 48), {"form": "nvfp4-pack-quantized"}, "all divided by one number"),
        (integers(0, 7, ZEROS), {"form": "float-quantized"}, "floats have no zero points"),
        (integers(0, 255), {"form": "float-quantized"}, r"codes are 8-bit floats \(E4M3\)"),
        (integers(0, 255), {"form": "marlin-24"}, "no form 'marlin-24'"),
        (integers(0, 7), {"dtype": "float64"}, "dtype is 'float64'; did you mean float16"),
    ],
)
def test_grids_that_a_form_cannot_hold(grid: Grid, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        writer.check(grid, **{"dtype": "float32", **options})
    assert "\n" not in str(caught.value)


def test_convolutions_are_not_written() -> None:
    weight = weight_of(integers(-4, 3))
    four = QuantizedWeight("c", "made", weight.grid, weight.codes, (5, 12, 2, 2), "float32", 0)
    with pytest.raises(UnsupportedProblemError, match="holds matrices, but 'c' has shape"):
        writer.tensors(four)
