"""GPTQ's checkpoints: words worked out by hand, both versions of zero points, round trips, damaged files."""

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
from layerbounds.checkpoints.packing import pack_planar, pack_stream, unpack_planar, unpack_stream
from layerbounds.checkpoints.writers import gptq as writer
from layerbounds.exceptions import FileFormatError, UnsupportedProblemError

Tensors = dict[str, NDArray[Any]]


def words(*values: int) -> NDArray[np.int32]:
    return np.array(values, dtype=np.uint32).view(np.int32)


def config(bits: int = 4, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, **more}


def quantized(
    rng: np.random.Generator, bits: int, out: int = 32, n: int = 64, groups: int = 2, least: int = 0
) -> lb.QuantizedWeight:
    """A random weight that GPTQ can hold, with groups in any order and scales of both signs."""
    scale = rng.uniform(0.5, 2, (out, groups)) * rng.choice([-1, 1], (out, groups))
    grid = lb.Grid(
        np.arange(2.0**bits),
        scale.astype(np.float16).astype(float),
        rng.integers(least, 2**bits, (out, groups)).astype(float),
        n,
        group=rng.permutation(np.arange(n) % groups),
    )
    codes = rng.integers(0, 2**bits, (out, n)).astype(np.uint8)
    return lb.QuantizedWeight("a.b", "made", grid, codes, (out, n), "float16", 0)


def stored(weight: lb.QuantizedWeight, path: Path, version: writer.Version = "gptq", **more: Any) -> Path:
    said = {**writer.settings(weight.grid, version), "quant_method": "gptq", **more}
    return folder_of(path, named("a.b", writer.tensors(weight, version)), said)


# By hand.


def test_codes_of_four_bits_by_hand(tmp_path: Path) -> None:
    tensors = {
        # Eight inputs of eight outputs: nibbles from the lowest on.
        "qweight": np.concatenate([words(0x76543210, 0xFEDCBA98), np.zeros(6, np.int32)])[None, :],
        # Less one: zero points 8, 1, 8, …
        "qzeros": words(0x77777707)[None, :],
        "scales": np.array([[0.5, -2.0, 1, 1, 1, 1, 1, 1]], np.float16),
    }
    path = folder_of(tmp_path, named("model.layers.0.q_proj", tensors), config(checkpoint_format="gptq", sym=False))
    checkpoint = lb.load_checkpoint(path)
    weight = checkpoint["q_proj"]
    assert list(checkpoint) == ["model.layers.0.q_proj"] and not checkpoint.dense
    assert weight.weight[0].tolist() == [-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5]
    assert weight.weight[1].tolist() == [-14, -16, -18, -20, -22, -24, -26, -28]
    assert weight.grid.zero_point[:, 0].tolist() == [8, 1, 8, 8, 8, 8, 8, 8]
    assert weight.grid.codes.tolist() == list(range(16)) and weight.grid.uniform and weight.grid.group_size == 8
    assert weight.format == "GPTQ v1, 4 bits, one scale per channel" and weight.dtype == "float16"
    assert weight.bits == 32 * 8 + 32 + 16 * 8


def test_three_bits_cross_words_by_hand() -> None:
    codes = np.zeros(32, np.uint8)
    # Bits 30 to 32, 63 to 65 and 93 to 95 of the stream.
    codes[[0, 10, 21, 31]] = [0b001, 0b101, 0b110, 0b111]
    packed = words(0x40000001, 0x00000001, 0xE0000003)
    assert np.array_equal(unpack_stream(packed, 3, 32), codes)
    assert np.array_equal(pack_stream(codes, 3), packed)


def test_planes_by_hand() -> None:
    codes = np.zeros(32, np.uint8)
    codes[[0, 9, 31]] = [0b10001, 0b01111, 0b10000]
    packed = words(0x00000001, 0x000000F0, 0, 0, 0x80000001)
    assert np.array_equal(unpack_planar(packed, 5, 32), codes) and np.array_equal(pack_planar(codes, 5), packed)
    codes = np.zeros(32, np.uint8)
    codes[[1, 16]] = [0b1100011, 0b0010000]
    packed = words(0x30, 0, 0, 0, 0b10 << 2, 0b01, 0b10)
    assert np.array_equal(unpack_planar(packed, 7, 32), codes) and np.array_equal(pack_planar(codes, 7), packed)


def test_groups_in_any_order_by_hand(tmp_path: Path) -> None:
    tensors = {
        "qweight": np.tile(words(0x11111111), (1, 8)),
        "qzeros": np.tile(words(0x88888888), (2, 1)),
        "scales": np.array([[1] * 8, [10] * 8], np.float32),
        "g_idx": np.array([1, 0, 0, 1, 1, 0, 1, 0], np.int32),
    }
    weight = lb.load_checkpoint(folder_of(tmp_path, named("a", tensors), config(sym=True)))["a"]
    assert weight.weight[3].tolist() == [-70, -7, -7, -70, -70, -7, -70, -7]
    assert weight.format == "GPTQ v2, 4 bits, 2 groups by g_idx" and weight.dtype == "float32"
    assert weight.grid.group.tolist() == [1, 0, 0, 1, 1, 0, 1, 0] and weight.grid.group_size is None


def test_codes_in_bytes(tmp_path: Path) -> None:
    tensors = {
        "qweight": np.array([[0x21, 0x43]] * 2, np.int8),
        "qzeros": np.array([[0x77]], np.int8),
        "scales": np.ones((1, 2), np.float16),
        "g_idx": np.zeros(4, np.int32),
    }
    weight = lb.load_checkpoint(folder_of(tmp_path, named("a", tensors), config(sym=True)))["a"]
    assert weight.weight.tolist() == [[-7, -6, -7, -6], [-5, -4, -5, -4]]


# Versions of zero points.


@pytest.mark.parametrize(
    ("fields", "label", "sym", "zero", "version", "why"),
    [
        (7, "gptq", True, 8, "v1", "all fields are 7, and a symmetric layer"),
        (8, "gptq_v2", True, 8, "v2", "all fields are 8, and a symmetric layer"),
        # The label is wrong.
        (8, "gptq", True, 8, "v2", "although the configuration says 'gptq'"),
        (7, "gptq_v2", True, 8, "v1", "although the configuration says 'gptq_v2'"),
        (8, "gptq", None, 8, "v2", "although the configuration says 'gptq'"),
        # No label.
        (8, None, None, 8, "v2", "all fields are 8"),
        (7, None, None, 8, "v1", "all fields are 7"),
        (5, None, None, 6, "v1", "nothing says v2"),
        # Asymmetric: the label is followed.
        (8, "gptq", False, 9, "v1", "all fields are 8, as a symmetric layer has in v2, but it is none"),
        (7, "gptq_v2", False, 7, "v2", "the configuration says 'gptq_v2'"),
        (5, "gptq_v2", False, 5, "v2", "the configuration says 'gptq_v2'"),
        # It says that it is symmetric, and is not.
        (5, "gptq", True, 6, "v1", "which it claims to be"),
        (5, "gptq_p", True, 5, "v2", "gptq_p has no other form"),
    ],
)
def test_the_version_of_zero_points(
    fields: int, label: str | None, sym: bool | None, zero: int, version: str, why: str, tmp_path: Path
) -> None:
    tensors = {
        "qweight": np.zeros((4, 32), np.int32),
        "qzeros": pack_stream(np.full((1, 32), fields), 4),
        "scales": np.ones((1, 32), np.float16),
    }
    said = {key: value for key, value in {"checkpoint_format": label, "sym": sym}.items() if value is not None}
    weight = lb.load_checkpoint(folder_of(tmp_path, named("a", tensors), config(**said)))["a"]
    assert np.all(weight.grid.zero_point == zero) and f"GPTQ {version}," in weight.format
    assert f"read as {version}" in weight.notes[0] and why in weight.notes[0]


def test_the_version_of_one_layer(tmp_path: Path) -> None:
    # One layer is asymmetric by a rule of its own, and another has other bits.
    fields = pack_stream(np.full((1, 32), 8), 4)
    same = {"qweight": np.zeros((4, 32), np.int32), "qzeros": fields, "scales": np.ones((1, 32), np.float16)}
    tensors = {**named("x.down", same), **named("x.up", same)}
    said = config(sym=True, checkpoint_format="gptq", dynamic={"-:.*lm_head": {}, "+:.*down$": {"sym": False}})
    checkpoint = lb.load_checkpoint(folder_of(tmp_path, tensors, said))
    assert np.all(checkpoint["down"].grid.zero_point == 9) and np.all(checkpoint["up"].grid.zero_point == 8)


@pytest.mark.parametrize(
    ("packing", "zero"), [("auto_round:auto_gptq", 6), ("auto_round", 5), ("auto_round:gptqmodel", 5)]
)
def test_what_auto_round_says(packing: str, zero: int, tmp_path: Path) -> None:
    tensors = {
        "qweight": np.zeros((4, 32), np.int32),
        "qzeros": pack_stream(np.full((1, 32), 5), 4),
        "scales": np.ones((1, 32), np.float16),
    }
    said = {"quant_method": "auto-round", "bits": 4, "sym": False, "packing_format": packing}
    weight = lb.load_checkpoint(folder_of(tmp_path, named("a", tensors), said))["a"]
    assert np.all(weight.grid.zero_point == zero)


def test_zero_points_of_zero_in_version_1(tmp_path: Path) -> None:
    # Zero points 8, 0, 5, 1, 1, …: field by field, and with a borrow across the word.
    tensors = {"qweight": np.zeros((4, 8), np.int32), "scales": np.ones((1, 8), np.float16)}
    by_field = {**tensors, "qzeros": words(0x000004F7)[None, :]}
    by_word = {**tensors, "qzeros": words((0x11111508 - 0x11111111) % 2**32)[None, :]}
    want = [8, 0, 5, 1, 1, 1, 1, 1]
    plain = config(sym=False, checkpoint_format="gptq")
    weight = lb.load_checkpoint(folder_of(tmp_path / "a", named("a", by_field), plain))["a"]
    assert weight.grid.zero_point[:, 0].tolist() == want and "as AutoGPTQ does" in weight.notes[1]
    said = {**plain, "meta": {"quantizer": ["gptqmodel:7.7.0"]}}
    weight = lb.load_checkpoint(folder_of(tmp_path / "b", named("a", by_word), said))["a"]
    assert weight.grid.zero_point[:, 0].tolist() == want and "as GPTQModel stores them" in weight.notes[1]


def test_a_mean_that_gives_the_label_away(tmp_path: Path, rng: np.random.Generator) -> None:
    weight = quantized(rng, 4, 64, 64, 1)
    zeros = rng.integers(6, 10, (64, 1)).astype(float)
    codes = np.clip(np.rint(rng.normal(size=(64, 64)) * 2 + zeros), 0, 15).astype(np.uint8)
    grid = lb.Grid(weight.grid.codes, np.ones((64, 1)), zeros, 64)
    weight = lb.QuantizedWeight("a.b", "made", grid, codes, (64, 64), "float16", 0)
    right = lb.load_checkpoint(stored(weight, tmp_path / "a", "gptq_v2"))["b"]
    wrong = lb.load_checkpoint(stored(weight, tmp_path / "b", "gptq_v2", checkpoint_format="gptq"))["b"]
    assert len(right.notes) == 1
    assert "as v1 the mean weight is -0.9" in wrong.notes[1] and "may be wrong" in wrong.notes[1]


# Round trips.


@pytest.mark.parametrize(
    ("bits", "version"),
    [
        (bits, version)
        for bits in range(2, 9)
        for version in writer.VERSIONS
        if bits not in (5, 6, 7) or version[-1] == "p"
    ],
)
def test_what_is_written_is_read(bits: int, version: writer.Version, tmp_path: Path, rng: np.random.Generator) -> None:
    for trial in range(6):
        n = int(rng.choice([32, 64, 96, 128]))
        groups = int(rng.choice([g for g in (1, 2, 4) if n % g == 0 and (g == 1 or n // g in writer.GROUP_SIZES)]))
        weight = quantized(rng, bits, int(rng.choice([32, 64])), n, groups, least=int(version == "gptq"))
        read = lb.load_checkpoint(stored(weight, tmp_path / str(trial), version))["b"]
        assert np.array_equal(read.codes, weight.codes) and np.array_equal(read.weight, weight.weight)
        for field in ("codes", "scale", "zero_point", "offset", "group"):
            assert np.array_equal(getattr(read.grid, field), getattr(weight.grid, field)), field
        assert read.grid.uniform and read.shape == weight.shape


def test_the_form_of_a_file(rng: np.random.Generator) -> None:
    four, six = quantized(rng, 4).grid, quantized(rng, 6).grid
    symmetric = lb.Grid(np.arange(8), np.ones((32, 1)), 4, 32)
    assert writer.version_for([symmetric]) == "gptq" and writer.version_for([symmetric, four]) == "gptq_v2"
    with pytest.raises(UnsupportedProblemError, match="holds 6 bits in planes only, which GPTQModel alone loads"):
        writer.check(six)
    writer.check(six, "gptq_p")


def test_planes_of_three_bits(tmp_path: Path, rng: np.random.Generator) -> None:
    weight = quantized(rng, 3)
    tensors = writer.tensors(weight, "gptq_p")
    assert np.array_equal(tensors["qweight"], pack_planar(weight.codes, 3).T)
    assert not np.array_equal(tensors["qweight"], pack_stream(weight.codes, 3).T)
    read = lb.load_checkpoint(folder_of(tmp_path, named("a", tensors), config(3, format="gptq_p")))["a"]
    assert np.array_equal(read.weight, weight.weight) and read.format.startswith("GPTQ v2 in planes, 3 bits")


@pytest.mark.parametrize("bits", range(2, 9))
def test_streams_are_integers(bits: int, rng: np.random.Generator) -> None:
    """The layout once more, from the other end: the words of a row are one large integer."""
    codes = rng.integers(0, 2**bits, 96).astype(np.uint8)
    packed = pack_stream(codes, bits)
    number = sum(int(word) << (32 * place) for place, word in enumerate(packed.view(np.uint32)))
    assert [(number >> (bits * place)) & (2**bits - 1) for place in range(96)] == codes.tolist()
    assert np.array_equal(unpack_stream(packed, bits, 96), codes)


def test_rows_that_end_within_a_word(tmp_path: Path, rng: np.random.Generator) -> None:
    codes = rng.integers(0, 8, (20, 42)).astype(np.uint8)
    tensors = {
        "qweight": np.ascontiguousarray(pack_stream(codes, 3).T),
        "qzeros": pack_stream(np.full((1, 20), 3), 3),
        "scales": np.ones((1, 20), np.float16),
        "g_idx": np.zeros(42, np.int32),
    }
    weight = lb.load_checkpoint(folder_of(tmp_path, named("a", tensors), config(3, sym=True)))["a"]
    assert np.array_equal(weight.weight, codes - 4.0)


def test_groups_without_a_map(tmp_path: Path, rng: np.random.Generator) -> None:
    codes = rng.integers(0, 16, (8, 40)).astype(np.uint8)
    tensors = {
        "qweight": np.ascontiguousarray(pack_stream(codes, 4).T),
        "qzeros": pack_stream(np.full((3, 8), 7), 4),
        "scales": np.array([[1.0], [2.0], [4.0]], np.float16).repeat(8, axis=1),
    }
    said = config(sym=True, group_size=16)
    weight = lb.load_checkpoint(folder_of(tmp_path / "a", named("a", tensors), said))["a"]
    assert np.array_equal(weight.weight, (codes - 8.0) * np.repeat([1, 2, 4], 16)[:40])
    # A map of zeros means the same in files of old tools.
    old = named("a", {**tensors, "g_idx": np.zeros(40, np.int32)})
    again = lb.load_checkpoint(folder_of(tmp_path / "b", old, said))["a"]
    assert np.array_equal(again.weight, weight.weight) and "g_idx is 0 for all inputs" in again.notes[-1]
    with pytest.raises(FileFormatError, match="has 3 groups of scales, but 40 inputs in groups of 8 need 5"):
        lb.load_checkpoint(folder_of(tmp_path / "c", named("a", tensors), config(group_size=8)))["a"]


def test_shapes_decide_the_bits(tmp_path: Path, rng: np.random.Generator) -> None:
    weight = quantized(rng, 8)
    read = lb.load_checkpoint(stored(weight, tmp_path, "gptq_v2", bits=4))["b"]
    assert np.array_equal(read.weight, weight.weight) and "the configuration says 4 bits" in read.notes[-1]


def test_tensors_beside_the_layers(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = named("a.b", writer.tensors(quantized(rng, 4), "gptq_v2"))
    tensors |= {"a.b.bias": np.ones(32, np.float16), "norm.weight": np.ones(64, np.float32)}
    checkpoint = lb.load_checkpoint(folder_of(tmp_path, tensors))
    assert sorted(checkpoint.dense) == ["a.b.bias", "norm.weight"] and checkpoint.label == "GPTQ"


# Damaged files, and what the format cannot hold.


def _without(end: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.pop(f"a.b.{end}") is None


def _change(end: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({f"a.b.{end}": change(tensors[f"a.b.{end}"])})


def _set(value: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def change(array: NDArray[Any]) -> NDArray[Any]:
        array.flat[3] = value
        return array

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without("qzeros"), "there is no tensor 'a.b.qzeros'"),
        (_without("scales"), "there is no tensor 'a.b.scales'"),
        (_change("scales", _set(np.nan)), "'a.b.scales' holds NaN or infinity"),
        (_change("scales", _set(np.inf)), "'a.b.scales' holds NaN or infinity"),
        (_change("scales", lambda a: a.astype(np.int32)), "'a.b.scales' is of type I32"),
        (_change("scales", lambda a: a[:, :-1]), "do not agree"),
        (_change("scales", lambda a: a[:1]), "'a.b.g_idx' holds numbers from 0 to 1, but there are 1 groups"),
        (_change("scales", lambda a: a[:, :-9]), "fit no number of bits with 64 inputs"),
        (_change("scales", lambda a: a[0]), "'a.b.scales' has shape (32,) where a matrix is expected"),
        (_change("g_idx", _set(2)), "holds numbers from 0 to 2, but there are 2 groups"),
        (_change("g_idx", _set(-1)), "holds numbers from -1 to 1, but there are 2 groups"),
        (_change("g_idx", lambda a: a[:-8]), "fit no number of bits with 56 inputs"),
        (_change("g_idx", lambda a: a[:, None]), "where one number per input is expected"),
        (_change("g_idx", lambda a: a.astype(np.float16)), "holds float16 numbers where integers are expected"),
        (_change("qweight", lambda a: a[:-1]), "fit no number of bits"),
        (_change("qweight", lambda a: a[:, :-1]), "do not agree"),
        (_change("qweight", lambda a: a[:0]), "'a.b.qweight' has shape (0, 32)"),
        (_change("qweight", lambda a: np.zeros(a.shape, np.float16)), "is of type F16 and qzeros of type I32"),
        (_change("qzeros", lambda a: a[:, :-1]), "fit no number of bits"),
        (_change("qzeros", lambda a: a[:1]), "do not agree"),
        (_change("qzeros", lambda a: a.astype(np.int64)), "is of type I32 and qzeros of type I64"),
    ],
)
def test_damaged_layers(
    damage: Callable[[Tensors], None], message: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    tensors = named("a.b", writer.tensors(quantized(rng, 4), "gptq_v2"))
    damage(tensors)
    checkpoint = lb.load_checkpoint(folder_of(tmp_path, tensors, config()))
    with pytest.raises(FileFormatError, match=re.escape(message)) as caught:
        checkpoint["a.b"]
    assert str(caught.value).endswith("the file is damaged or of another format.") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (config(checkpoint_format="marlin"), "is GPTQ of the variant 'marlin'"),
        (config(checkpoint_format="bitblas"), "is GPTQ of the variant 'bitblas'"),
        ({"quant_method": "exl3"}, "is quantized by 'exl3'"),
        (config("four"), "the configuration says 'four' for bits of layer 'a.b'"),  # type: ignore[arg-type]
        (config(dynamic={"[": {}}), "has the pattern '[', which is none"),
    ],
)
def test_variants_that_are_not_known(
    said: dict[str, Any], message: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    tensors = named("a.b", writer.tensors(quantized(rng, 4), "gptq_v2"))
    with pytest.raises(FileFormatError, match=re.escape(message)):
        lb.load_checkpoint(folder_of(tmp_path, tensors, said))["a.b"]


def test_files_without_layers(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=re.escape("is said to be GPTQ, but no tensor ends with .qweight")):
        lb.load_checkpoint(folder_of(tmp_path, {"norm.weight": np.ones(3, np.float16)}, config()))


def test_rotated_layers_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = {**writer.tensors(quantized(rng, 4), "gptq_v2"), "theta": np.ones((1, 32), np.float16)}
    with pytest.raises(FileFormatError, match="has the tensor 'theta', so that its inputs are rotated"):
        lb.load_checkpoint(folder_of(tmp_path, named("a.b", tensors)))["a.b"]


def test_planes_need_whole_blocks(tmp_path: Path) -> None:
    tensors = {
        "qweight": np.zeros((8, 16), np.int32),
        "qzeros": np.zeros((1, 3), np.int32),
        "scales": np.ones((1, 16), np.float16),
        "g_idx": np.zeros(48, np.int32),
    }
    with pytest.raises(FileFormatError, match="has 5 bits in planes, which need multiples of 32"):
        lb.load_checkpoint(folder_of(tmp_path, named("a", tensors), config(5)))["a"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": [0, 1, 3, 4]}, "holds grids of equal steps"),
        ({"codes": np.arange(512)}, "holds codes of at most 8 bits, but given grid has 512 levels"),
        ({"zero_point": 1.5}, "holds whole zero points among the codes"),
        ({"zero_point": 4}, "holds whole zero points among the codes"),
        ({"zero_point": 0}, "choose version 'gptq_v2'"),
        ({"offset": np.ones((32, 1))}, "minima"),
        ({"scale": np.full((32, 1), 0.1)}, "holds scales of type float16"),
        ({"scale": np.full((32, 1), 1e6)}, "holds scales of type float16"),
        ({"scale": np.ones((31, 1))}, "whose outputs are a multiple of 32"),
        ({"in_features": 40}, "whose inputs are a multiple of 32"),
        ({"scale": np.ones((32, 8)), "zero_point": np.ones((32, 8))}, "groups of 16, 32"),
    ],
)
def test_grids_that_the_format_cannot_hold(change: dict[str, Any], message: str) -> None:
    plain = {"codes": np.arange(4), "scale": np.ones((32, 1)), "zero_point": 2, "in_features": 64}
    writer.check(lb.Grid(**plain))
    with pytest.raises(UnsupportedProblemError, match=re.escape(message)):
        writer.check(lb.Grid(**{**plain, **change}))


def test_signed_codes_are_stored_from_zero(tmp_path: Path) -> None:
    grid = lb.Grid(np.arange(-4, 4), np.full((32, 1), 0.5), 0, 32)
    codes = np.tile(np.arange(8), (32, 4))
    weight = lb.QuantizedWeight("a.b", "made", grid, codes, (32, 32), "float16", 0)
    path = stored(weight, tmp_path)
    assert writer.settings(grid) == {
        "bits": 3,
        "group_size": -1,
        "sym": True,
        "desc_act": False,
        "checkpoint_format": "gptq",
    }
    assert np.array_equal(lb.load_checkpoint(path)["b"].weight, weight.weight)
