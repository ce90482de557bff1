"""AWQ's checkpoints in three layouts: words by hand, another library's reading, and no mistaking for GPTQ."""

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
from layerbounds.checkpoints.packing import pack_stream
from layerbounds.checkpoints.writers import gptq as writer
from layerbounds.exceptions import FileFormatError

Tensors = dict[str, NDArray[Any]]
#: The outputs of a word of ``gemm``.
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def words(*values: int) -> NDArray[np.int32]:
    return np.array(values, dtype=np.uint32).view(np.int32)


def config(**more: Any) -> dict[str, Any]:
    return {"quant_method": "awq", "bits": 4, "zero_point": True, **more}


def gemm(codes: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any]) -> Tensors:
    """The layout from its definition."""

    def pack(fields: NDArray[Any]) -> NDArray[np.int32]:
        return pack_stream(fields.reshape(len(fields), -1, 8)[:, :, ORDER].reshape(len(fields), -1), 4)

    return {"qweight": pack(codes.T), "qzeros": pack(zero.T), "scales": np.ascontiguousarray(scale.T)}


def gemv(codes: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any], columns: int) -> Tensors:
    padded = np.zeros((2, len(scale), columns))
    padded[:, :, : scale.shape[1]] = scale, zero
    return {
        "qweight": pack_stream(codes, 4),
        "qzeros": pack_stream(padded[1], 4),
        "scales": padded[0].astype(np.float16),
    }


def gemv_fast(codes: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any], columns: int) -> Tensors:
    """From the definition: where each code is, one after the other."""
    out, n = codes.shape
    fields = np.zeros((out // 4, n * 4), np.uint8)
    for output in range(out):
        for place in range(n):
            quarter, pair, odd = place % 32 // 8, place % 8 // 2, place % 2
            # Pairs of the four quarters in turn; of eight, the even places first.
            eight = [(2 * q + o) for o in (0, 1) for q in range(4)].index(2 * quarter + odd)
            within = place // 32 * 32 + pair * 8 + eight
            at = (within // 64 * 4 + output % 4) * 64 + within % 64
            fields[output // 4, at] = codes[output, place]
    padded = np.zeros((2, len(scale), columns), np.float16)
    padded[:, :, : scale.shape[1]] = scale, -(scale.astype(np.float32) * zero).astype(np.float16)
    weight = (fields[:, ::2] | fields[:, 1::2] << 4).view(np.int16)
    return {"qweight": weight, "qzeros": np.ascontiguousarray(padded[1].T), "scales": np.ascontiguousarray(padded[0].T)}


def made(rng: np.random.Generator, out: int = 16, n: int = 128, size: int = 32) -> tuple[NDArray[Any], ...]:
    codes = rng.integers(0, 16, (out, n)).astype(np.uint8)
    scale = rng.uniform(0.01, 0.1, (out, n // size)).astype(np.float16)
    zero = rng.integers(0, 16, (out, n // size))
    return codes, scale, zero


def levels(codes: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any]) -> NDArray[np.float64]:
    size = codes.shape[1] // scale.shape[1]
    wide, zeros = scale.astype(float).repeat(size, axis=1), zero.repeat(size, axis=1)
    return np.asarray(wide * (codes - zeros))


def test_gemm_by_hand(tmp_path: Path) -> None:
    tensors = {
        # The nibbles of a word are the outputs 0, 2, 4, 6, 1, 3, 5, 7.
        "qweight": words(0x76543210, 0x0000000F)[:, None],
        "qzeros": words(0x00000000)[None, :],
        "scales": np.ones((1, 8), np.float16),
    }
    weight = lb.load_checkpoint(folder_of(tmp_path, named("a", tensors), config(version="GEMM")))["a"]
    assert weight.weight.T.tolist() == [[0, 4, 1, 5, 2, 6, 3, 7], [15, 0, 0, 0, 0, 0, 0, 0]]
    assert weight.format == "AWQ gemm, 4 bits, one scale per channel" and not weight.notes
    assert weight.bits == 64 + 32 + 128


def test_gemv_by_hand(tmp_path: Path) -> None:
    tensors = {
        "qweight": np.array([words(0x76543210, 0xFEDCBA98, 0, 0, 0, 0, 0, 0)] * 8),
        "qzeros": np.array([words(0x00000001)] * 8),
        "scales": np.array([[2.0] + [0] * 7] * 8, np.float16),
    }
    said = {"zero_point": True, "q_group_size": -1, "w_bit": 4, "version": "gemv"}
    folder = folder_of(tmp_path, named("a", tensors))
    (folder / "quant_config.json").write_text(str(said).replace("'", '"').replace("True", "true"), encoding="utf-8")
    weight = lb.load_checkpoint(folder)["a"]
    assert weight.weight[0, :17].tolist() == [2.0 * (code - 1) for code in [*range(16), 0]]
    assert weight.grid.scale.shape == (8, 1) and weight.format.startswith("AWQ gemv, ")


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("size", [32, 64])
def test_three_layouts_hold_the_same(said: bool, size: int, tmp_path: Path, rng: np.random.Generator) -> None:
    codes, scale, zero = made(rng, 16, 128, size)
    columns = {32: 32, 64: 16}[size]
    files = {
        "gemm": gemm(codes, scale, zero),
        "gemv": gemv(codes, scale, zero, columns),
        "gemv_fast": gemv_fast(codes, scale, zero, columns),
    }
    for form, tensors in files.items():
        about = config(version=form, group_size=size) if said else None
        weight = lb.load_checkpoint(folder_of(tmp_path / form, named("a.b", tensors), about))["b"]
        assert np.array_equal(weight.codes, codes) and weight.format == f"AWQ {form}, 4 bits, groups of {size}"
        assert np.array_equal(weight.grid.scale, scale) and weight.grid.group_size == size
        if form == "gemv_fast":
            # Minima are stored, rounded to float16; no zero point is.
            minima = -(scale.astype(np.float32) * zero).astype(np.float16)
            assert np.array_equal(weight.grid.offset, minima) and not weight.grid.zero_point.any()
        else:
            assert np.array_equal(weight.weight, levels(codes, scale, zero)) and not weight.grid.offset.any()
        assert bool(weight.notes) == (not said and form != "gemm")


def test_minima_of_llm_awq(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = gemv_fast(*made(rng), 32)
    tensors["scaled_zeros"] = tensors.pop("qzeros")
    checkpoint = lb.load_checkpoint(folder_of(tmp_path, named("a", tensors), config(version="llm-awq", group_size=32)))
    assert checkpoint["a"].grid.offset.any() and not checkpoint.dense


@pytest.mark.slow
def test_the_reading_of_compressed_tensors(tmp_path: Path, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="compressed-tensors works with PyTorch")
    pytest.importorskip("compressed_tensors", reason="the other reading is that of compressed-tensors")
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter

    tensors = named("a.b", gemm(*made(rng, 32, 64, 32)))
    weight = lb.load_checkpoint(folder_of(tmp_path, tensors, config(version="gemm", group_size=32)))["b"]
    found = AutoAWQConverter(group_size=32).process({key: torch.from_numpy(value) for key, value in tensors.items()})
    shape = torch.Size(found["a.b.weight_shape"].tolist())
    signed = unpack_from_int32(found["a.b.weight_packed"], 4, shape).numpy()
    assert np.array_equal(weight.codes, signed + 8.0)
    assert np.array_equal(weight.grid.scale, found["a.b.weight_scale"].numpy())
    zeros = unpack_from_int32(found["a.b.weight_zero_point"], 4, torch.Size((32, 2)), packed_dim=0).numpy()
    assert np.array_equal(weight.grid.zero_point, zeros + 8.0)


# AWQ and GPTQ use the same names.


@pytest.mark.parametrize("method", [None, "gptq", "awq"])
def test_shapes_tell_awq_from_gptq(method: str | None, tmp_path: Path, rng: np.random.Generator) -> None:
    codes, scale, zero = made(rng, 64, 128, 32)
    grid = lb.Grid(np.arange(16.0), scale.astype(float), zero.astype(float), 128)
    weight = lb.QuantizedWeight("x", "made", grid, codes, (64, 128), "float16", 0)
    said = None if method is None else {"quant_method": method, "bits": 4, "sym": False, "group_size": 32}
    stored = {
        "GPTQ v1": writer.tensors(weight, "gptq_v2"),
        "AWQ gemm": gemm(codes, scale, zero),
        "AWQ gemv": gemv(codes, scale, zero, 32),
        "AWQ gemv_fast": gemv_fast(codes, scale, zero, 32),
    }
    for form, tensors in stored.items():
        read = lb.load_checkpoint(folder_of(tmp_path / form, named("a", tensors), said))["a"]
        assert read.format.startswith(form) and np.array_equal(read.codes, codes)
        family = form.split()[0].lower()
        assert any("which decide" in note for note in read.notes) == (method not in (None, family))


def test_layers_of_both(tmp_path: Path, rng: np.random.Generator) -> None:
    codes, scale, zero = made(rng, 64, 128, 32)
    grid = lb.Grid(np.arange(16.0), scale.astype(float), zero.astype(float), 128)
    weight = lb.QuantizedWeight("x", "made", grid, codes, (64, 128), "float16", 0)
    tensors = {**named("a", writer.tensors(weight, "gptq_v2")), **named("b", gemm(codes, scale, zero))}
    checkpoint = lb.load_checkpoint(folder_of(tmp_path, tensors))
    assert sorted(checkpoint.label.split(", ")) == ["AWQ", "GPTQ"]
    assert [checkpoint[name].format[:4] for name in "ab"] == ["GPTQ", "AWQ "]


def test_shapes_that_agree_with_both(tmp_path: Path, rng: np.random.Generator) -> None:
    # 32 outputs of 256 inputs, in groups of 32: also 32 outputs of 256 inputs in groups of 8.
    codes, scale, zero = made(rng, 32, 256, 32)
    tensors = named("a", gemv(codes, scale, zero, 32))
    awq = lb.load_checkpoint(folder_of(tmp_path / "a", tensors))["a"]
    assert np.array_equal(awq.codes, codes) and "shapes agree with GPTQ in groups of 8, too" in awq.notes[0]
    said = config(version="gemv", group_size=32)
    assert not lb.load_checkpoint(folder_of(tmp_path / "b", tensors, said))["a"].notes
    about = {"quant_method": "gptq", "bits": 4, "sym": False, "group_size": 8}
    tensors["a.scales"][tensors["a.scales"] == 0] = 1
    assert lb.load_checkpoint(folder_of(tmp_path / "c", tensors, about))["a"].format.startswith("GPTQ v1, 4 bits, gro")
    tensors["a.g_idx"] = (np.arange(256) // 8).astype(np.int32)
    assert lb.load_checkpoint(folder_of(tmp_path / "d", tensors))["a"].format.startswith("GPTQ v1, 4 bits, groups of 8")


def test_what_auto_round_calls_awq(tmp_path: Path, rng: np.random.Generator) -> None:
    about = {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq", "bits": 4, "group_size": 32}
    weight = lb.load_checkpoint(folder_of(tmp_path, named("a", gemm(*made(rng))), about))["a"]
    assert weight.format.startswith("AWQ gemm") and not weight.notes


# Damaged files.


def _change(end: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({end: change(tensors[end])})


@pytest.mark.parametrize(
    ("form", "damage", "message"),
    [
        ("gemm", lambda tensors: tensors.pop("qzeros"), "there is no tensor 'a.qzeros'"),
        ("gemm", lambda tensors: tensors.pop("scales"), "there is no tensor 'a.scales'"),
        ("gemm", _change("scales", lambda a: a * np.float16(np.nan)), "holds NaN or infinity"),
        ("gemm", _change("scales", lambda a: a[:, :-1]), "do not agree with the layout gemm"),
        ("gemm", _change("scales", lambda a: a[:-1]), "do not agree with the layout gemm"),
        ("gemm", _change("qzeros", lambda a: a[:, :-1]), "do not agree with the layout gemm"),
        ("gemm", _change("qweight", lambda a: a[:-32]), "has 4 groups of scales, but 96 inputs in groups of 32 need 3"),
        ("gemm", _change("qweight", lambda a: a.astype(np.int64)), "do not agree with the layout gemm"),
        ("gemm", _change("qweight", lambda a: a[0]), "where a matrix is expected"),
        ("gemv", _change("qweight", lambda a: a[:-1]), "do not agree with the layout gemv"),
        ("gemv", _change("scales", lambda a: a + np.float16(1)), "has 32 groups of scales, but 128 inputs"),
        ("gemv_fast", _change("qweight", lambda a: a[:, :-4]), "do not agree with the layout gemv_fast"),
        ("gemv_fast", _change("qzeros", lambda a: a * np.float16(np.inf)), "holds NaN or infinity"),
    ],
)
def test_damaged_layers(
    form: str, damage: Callable[[Tensors], Any], message: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    arrays = made(rng)
    tensors = gemm(*arrays) if form == "gemm" else {"gemv": gemv, "gemv_fast": gemv_fast}[form](*arrays, 32)
    with np.errstate(all="ignore"):
        damage(tensors)
    checkpoint = lb.load_checkpoint(folder_of(tmp_path, named("a", tensors), config(version=form, group_size=32)))
    with pytest.raises(FileFormatError, match=re.escape(message)) as caught:
        checkpoint["a"]
    assert str(caught.value).endswith("the file is damaged or of another format.") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"version": "marlin"}, "is AWQ of the variant 'marlin', which is not known here"),
        ({"bits": 8}, "says that layer 'a' has 8 bits in a layout of AWQ"),
    ],
)
def test_variants_that_are_not_known(
    more: dict[str, Any], message: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    with pytest.raises(FileFormatError, match=re.escape(message)):
        lb.load_checkpoint(folder_of(tmp_path, named("a", gemm(*made(rng))), config(**more)))["a"]
