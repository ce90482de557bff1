"""GGUF files as the model to capture: a tiny one, with its tokenizer, written by the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import gguf

import layerbounds as lb
from layerbounds.cli.main import main
from layerbounds.exceptions import FileFormatError

torch = pytest.importorskip("torch", reason="capture needs PyTorch")
transformers = pytest.importorskip("transformers", reason="GGUF models need the transformers extra")
pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate")

from layerbounds.capturing.gguf_model import load_gguf  # noqa: E402

TOKENS = ["<s>", *"aboundistkelyr", "Ġ", "bo", "bou"]
TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(path: Path, architecture: str = "llama") -> dict[str, Any]:
    """A Llama of one block with matrices of Q8_0; gives the weights that were rounded, as transformers orders them."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, tie_word_embeddings=False,
    )  # fmt: skip
    state = transformers.LlamaForCausalLM(config).state_dict()
    writer = gguf.GGUFWriter(path, architecture)
    for add, value in (
        (writer.add_block_count, 1),
        (writer.add_context_length, 32),
        (writer.add_embedding_length, 32),
        (writer.add_feed_forward_length, 64),
        (writer.add_head_count, 4),
        (writer.add_head_count_kv, 2),
        (writer.add_vocab_size, len(TOKENS)),
        (writer.add_layer_norm_rms_eps, 1e-6),
        (writer.add_rope_freq_base, 10000.0),
        (writer.add_tokenizer_model, "gpt2"),
        (writer.add_token_list, TOKENS),
        (writer.add_token_types, [3] + [1] * (len(TOKENS) - 1)),
        (writer.add_token_merges, ["b o", "bo u"]),
        (writer.add_bos_token_id, 0),
        (writer.add_eos_token_id, 0),
    ):
        add(value)
    for name, value in state.items():
        base = name.removesuffix(".weight")
        inner = base.removeprefix("model.layers.0.")
        short = TENSORS.get(inner, {"model.norm": "output_norm", "lm_head": "output"}.get(base, "token_embd"))
        values = value.numpy()
        if short in ("attn_q", "attn_k"):
            heads = 4 if short == "attn_q" else 2
            values = values.reshape(heads, 2, 4, 32).swapaxes(1, 2).reshape(-1, 32)
        written = f"blk.0.{short}.weight" if inner in TENSORS else f"{short}.weight"
        if values.ndim == 1:
            writer.add_tensor(written, values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(written, gguf.quants.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return dict(state)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_gguf(tmp_path / "tiny.gguf")
    Path("text.txt").write_text("a bound is a bound\nlayer token\n")
    return tmp_path / "tiny.gguf"


def test_layers_have_the_names_and_weights_of_the_checkpoint(tiny: Path, rng: np.random.Generator) -> None:
    tokens = torch.from_numpy(rng.integers(0, 16, (6, 12)))
    layers = lb.capture(tiny, [{"input_ids": tokens}])
    checkpoint = lb.load_checkpoint(tiny)
    assert set(layers) == set(checkpoint) - {"model.embed_tokens"}
    for name, layer in layers.items():
        np.testing.assert_array_equal(layer.weight, checkpoint[name].loaded.astype(np.float32))
    # The model is the one that was rounded: queries and keys are in its order.
    state = write_gguf(tiny.with_name("again.gguf"))
    for name, layer in layers.items():
        assert np.abs(layer.weight - state[f"{name}.weight"].numpy()).max() < 1e-3


@pytest.mark.parametrize("named", ["tiny.gguf", "."])
def test_command_with_text(tiny: Path, capsys: pytest.CaptureFixture[str], named: str) -> None:
    code = main(["capture", "--model", named, "--data", "text.txt", "--out", "c.safetensors", "--json", "c.json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "de-quantizing" not in printed.err
    layers = lb.load_layers("c.safetensors")
    assert "model.layers.0.mlp.down_proj" in layers
    source = layers["model.layers.0.mlp.down_proj"].provenance["source"]
    assert source["model"] == named and len(source["model_sha256"]) == 64
    assert json.loads(Path("c.json").read_text())["batches"] == 1
    solved = lb.evaluate(lb.quantization_problem(layers["lm_head"], bits=8), lb.load_checkpoint(tiny)["lm_head"].loaded)
    assert np.all(solved.relative_error < 1e-6)


def test_what_cannot_run_is_refused_in_one_sentence(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gguf(Path("odd.gguf"), "clip")
    with pytest.raises(FileFormatError, match=r"odd\.gguf cannot be loaded as a model"):
        load_gguf(Path("odd.gguf"))
    for number in (1, 2):
        Path(f"m-0000{number}-of-00002.gguf").write_bytes(tiny.read_bytes())
    with pytest.raises(FileFormatError, match="join them first"):
        load_gguf(Path("m-00001-of-00002.gguf"))
    Path("cut.gguf").write_bytes(tiny.read_bytes()[:3000])
    assert main(["capture", "--model", "cut.gguf", "--data", "text.txt", "--out", "c.safetensors"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: cut.gguf")
