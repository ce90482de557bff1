"""Model directories of transformers: tiny models with random weights, written by the tests themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.cli.main import main
from layerbounds.exceptions import FileFormatError
from layerbounds.layers.files import load_layers

torch = pytest.importorskip("torch", reason="capture needs PyTorch")
transformers = pytest.importorskip("transformers", reason="model directories need the transformers extra")
tokenizers = pytest.importorskip("tokenizers", reason="model directories need the transformers extra")

from layerbounds.capturing.huggingface import TextBatches, load_model  # noqa: E402

TEXT = "a bound is a bound\n\nthe layer sees a token and a token\nweights\n"
SIZES = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}


def write_tokenizer(folder: Path, **special: str) -> None:
    words = ["[PAD]", "[UNK]", *sorted(set(TEXT.split()))]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", **special).save_pretrained(folder)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A directory whose weights are in several shards."""
    torch.manual_seed(0)
    folder = tmp_path / "bert"
    transformers.BertModel(transformers.BertConfig(**SIZES)).save_pretrained(folder, max_shard_size="4KB")
    assert (folder / "model.safetensors.index.json").is_file()
    write_tokenizer(folder, pad_token="[PAD]")
    return folder


def test_padded_tokens_do_not_count(bert: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "capture.safetensors"
    command = ["capture", "--model", str(bert), "--data", str(text), "--out", str(out), "--max-tokens", "6"]
    assert main([*command, "--layers", "query", "--layers", "*.dense", "--batch-size", "2"]) == 0
    layers = load_layers(out)
    assert list(layers) == [
        "encoder.layer.0.attention.self.query",
        "encoder.layer.0.attention.output.dense",
        "encoder.layer.0.intermediate.dense",
        "encoder.layer.0.output.dense",
        "pooler.dense",
    ]
    query = layers["encoder.layer.0.attention.self.query"]
    # Lines of 5, 8 (cut to 6) and 1 tokens.
    assert query.samples == 12 and query.provenance["masked_positions"] == 1
    assert layers["pooler.dense"].samples == 3
    assert query.provenance["source"]["data_samples"] == 3
    # One line at a time needs no padding, and gives the same.
    assert main([*command, "--layers", "query", "--batch-size", "1"]) == 0
    alone = load_layers(out)["encoder.layer.0.attention.self.query"]
    assert "masked_positions" not in alone.provenance
    np.testing.assert_allclose(alone.gram, query.gram, rtol=1e-5, atol=1e-7)


def test_conv1d_of_gpt2(tmp_path: Path, text: Path) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "gpt2"
    config = transformers.GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    write_tokenizer(folder, eos_token="[PAD]")
    model = load_model(folder)
    assert type(model).__name__ == "GPT2LMHeadModel"
    batches = TextBatches(folder, text, 3, None, 512)
    layers = lb.capture(model, batches)
    fc = layers["transformer.h.0.mlp.c_fc"]
    assert fc.weight.shape == (32, 8) and fc.provenance["kind"] == "transformers Conv1D"
    assert fc.samples == 14
    assert layers["lm_head"].provenance["tied_to"] == ["transformer.wte"]
    module = model.transformer.h[0].mlp.c_fc
    np.testing.assert_array_equal(fc.weight, module.weight.detach().numpy().T)
    seen: list[Any] = []
    module.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0]))
    model.eval()
    for batch in batches:
        model(**batch)
    x = seen[0][batches[0]["attention_mask"].bool()].detach().double().numpy()
    np.testing.assert_allclose(fc.gram[0], x.T @ x / 14, rtol=1e-6, atol=1e-9)
    result = lb.compress(model, batches, "rtn", bits=4, layers="*.c_*", intervals=False)
    stored = result.model.transformer.h[0].mlp.c_fc.weight
    assert stored.shape == (8, 32) and all(len(column.unique()) <= 16 for column in stored.T)


def test_wrong_directories(bert: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    command = ["capture", "--model", str(bert), "--out", str(tmp_path / "c.safetensors"), "--data"]
    for data, words in (
        ("empty.txt", "holds no line of text"),
        ("absent.txt", "does not exist"),
    ):
        assert main([*command, str(tmp_path / data)]) == 2
        assert words in capsys.readouterr().err
    (bert / "model-00001-of-00002.safetensors").unlink(missing_ok=True)
    for shard in bert.glob("model-00001*"):
        shard.unlink()
    with pytest.raises(FileFormatError, match=r"which model\.safetensors\.index\.json lists, does not exist"):
        load_model(bert)
    (bert / "config.json").write_text(json.dumps({"model_type": "no such model"}))
    with pytest.raises(FileFormatError, match="cannot be loaded as a model directory"):
        load_model(bert)
