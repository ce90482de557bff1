"""Models with an encoder and a decoder: each layer counts the tokens of its own side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.cli.main import main
from layerbounds.exceptions import InputError
from layerbounds.layers.files import load_layers

torch = pytest.importorskip("torch", reason="capture needs PyTorch")
transformers = pytest.importorskip("transformers", reason="its models need the transformers extra")
from torch import Tensor, nn  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:layer .* positions for")

T5: dict[str, Any] = {"vocab_size": 32, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4}
BART: dict[str, Any] = {
    "vocab_size": 32,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 16,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
}
START = {"decoder_start_token_id": 0}
MODELS = {
    "t5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5, **START)),
    "mt5": lambda: transformers.MT5ForConditionalGeneration(transformers.MT5Config(**T5, **START)),
    "bart": lambda: transformers.BartForConditionalGeneration(transformers.BartConfig(**BART)),
    "marian": lambda: transformers.MarianMTModel(transformers.MarianConfig(**BART)),
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def lengths(values: list[int], width: int) -> Tensor:
    return (torch.arange(width) < torch.tensor(values)[:, None]).long()


def batch_of(source: Tensor, target: Tensor, labels: bool) -> dict[str, Tensor]:
    ids, out = torch.randint(3, 32, source.shape), torch.randint(3, 32, target.shape)
    batch = {"input_ids": ids, "attention_mask": source}
    if labels:
        return {**batch, "labels": torch.where(target.bool(), out, -100)}
    return {**batch, "decoder_input_ids": out, "decoder_attention_mask": target}


def alone(batch: dict[str, Tensor], source: Tensor, target: Tensor) -> list[dict[str, Tensor]]:
    """Each pair of sequences by itself, without padding and masks."""
    masks = {"input_ids": source, "decoder_input_ids": target, "labels": target}
    return [
        {key: batch[key][i][mask[i].bool()][None] for key, mask in masks.items() if key in batch}
        for i in range(len(source))
    ]


def check(model: nn.Module, batch: dict[str, Tensor], source: Tensor, target: Tensor) -> None:
    together, single = lb.capture(model, [batch]), lb.capture(model, alone(batch, source, target))
    assert list(together) == list(single)
    for key, layer in together.items():
        decoder = "decoder" in key or key == "lm_head"
        across = "EncDecAttention" in key or "encoder_attn" in key
        reads_encoder = not decoder or (across and key.rpartition(".")[2] in ("k", "v", "k_proj", "v_proj"))
        assert layer.samples == single[key].samples == int((source if reads_encoder else target).sum())
        np.testing.assert_allclose(layer.gram, single[key].gram, rtol=1e-6, atol=1e-8 * np.abs(layer.gram).max())


# As many tokens on both sides as sequences and heads, and other numbers.
@pytest.mark.parametrize("shape", [([4, 2, 3, 1], [2, 4, 1, 3]), ([5, 6, 3], [4, 2, 3])])
@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_both_sides_give_what_their_sequences_give(name: str, labels: bool, shape: tuple[list[int], list[int]]) -> None:
    source, target = (lengths(values, max(values)) for values in shape)
    check(MODELS[name]().double(), batch_of(source, target, labels), source, target)


@pytest.mark.parametrize("padded", ["encoder", "decoder"])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_one_side_alone_may_be_padded(name: str, padded: str) -> None:
    full, part = torch.ones(3, 5, dtype=torch.long), lengths([5, 3, 4], 5)
    source, target = (part, full) if padded == "encoder" else (full, part)
    batch = batch_of(source, target, labels=False)
    del batch["attention_mask" if padded == "decoder" else "decoder_attention_mask"]
    check(MODELS[name]().double(), batch, source, target)


def test_an_encoder_of_other_things_than_tokens() -> None:
    """Frames of speech have no mask, and all count; the decoder's tokens have one."""
    config = transformers.WhisperConfig(
        vocab_size=32,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_mel_bins=8,
        max_source_positions=6,
        max_target_positions=8,
        pad_token_id=0,
        decoder_start_token_id=1,
    )
    model = transformers.WhisperForConditionalGeneration(config).double()
    mask = lengths([6, 4, 2], 6)
    labels = torch.where(mask.bool(), torch.randint(3, 32, mask.shape), -100)
    sounds = torch.randn(3, 8, 12, dtype=torch.float64)
    together = lb.capture(model, [{"input_features": sounds, "labels": labels}])
    single = lb.capture(
        model,
        [
            {"input_features": s[None], "labels": v[m.bool()][None]}
            for s, v, m in zip(sounds, labels, mask, strict=True)
        ],
    )
    assert set(together) == set(single)
    assert together["model.encoder.layers.0.fc1"].samples == 18 and together["model.decoder.layers.0.fc1"].samples == 12
    for key, layer in together.items():
        np.testing.assert_allclose(layer.gram, single[key].gram, rtol=1e-6, atol=1e-8 * np.abs(layer.gram).max())


def test_padding_may_come_later() -> None:
    """In the first batch one side has none, in the second the other."""
    model = MODELS["bart"]().double()
    shapes = [(lengths([5, 5, 5], 5), lengths([4, 2, 3], 4)), (lengths([2, 4, 3], 4), lengths([5, 5, 5], 5))]
    batches = [batch_of(*shape, labels=True) for shape in shapes]
    together = lb.capture(model, batches)
    single = lb.capture(model, [b for batch, shape in zip(batches, shapes, strict=True) for b in alone(batch, *shape)])
    assert together["model.encoder.layers.0.fc1"].samples == 24
    for key, layer in together.items():
        np.testing.assert_allclose(layer.gram, single[key].gram, rtol=1e-6, atol=1e-8 * np.abs(layer.gram).max())


def test_sides_have_as_many_sequences() -> None:
    batch = batch_of(lengths([4, 2], 4), lengths([3, 2, 1], 3), labels=True)
    with pytest.raises(InputError, match="2 sequences for the encoder and 3 for the decoder"):
        lb.capture(MODELS["t5"](), [batch])


@pytest.mark.parametrize("kind", ["T5ForConditionalGeneration", "T5Model"])
def test_text_for_both_sides(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from test_capture_transformers import write_tokenizer

    folder, out = tmp_path / "t5", tmp_path / "c.safetensors"
    getattr(transformers, kind)(transformers.T5Config(**T5, **START)).save_pretrained(folder)
    write_tokenizer(folder, pad_token="[PAD]")
    (tmp_path / "in.txt").write_text("a bound\nthe layer sees a token\nweights\n")
    (tmp_path / "out.txt").write_text("a token and a token\nthe\nlayer sees\n")
    command = ["capture", "--model", str(folder), "--data", str(tmp_path / "in.txt"), "--out", str(out)]
    both = [*command, "--targets", str(tmp_path / "out.txt")]
    grams = []
    for size in ("3", "1"):
        assert main([*both, "--batch-size", size]) == 0
        layers = load_layers(out)
        encoder = layers["encoder.block.0.layer.0.SelfAttention.q"]
        decoder = layers["decoder.block.0.layer.0.SelfAttention.q"]
        across = layers["decoder.block.0.layer.1.EncDecAttention.k"]
        assert (encoder.samples, decoder.samples, across.samples) == (8, 8, 8)
        grams.append({name: layer.gram for name, layer in layers.items()})
    for name, gram in grams[0].items():
        np.testing.assert_allclose(gram, grams[1][name], rtol=1e-4, atol=1e-5 * np.abs(gram).max())
    assert encoder.provenance["source"]["targets"] == "out.txt"
    capsys.readouterr()
    assert main(command) == 2 and f"{kind} has a decoder, apart from the encoder" in capsys.readouterr().err
    (tmp_path / "out.txt").write_text("a\n")
    assert main(both) == 2 and "in.txt has 3 lines and" in capsys.readouterr().err


def test_targets_are_for_decoders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from test_capture_transformers import TEXT, gpt2, write_tokenizer

    gpt2().save_pretrained(tmp_path / "gpt2")
    write_tokenizer(tmp_path / "gpt2", pad_token="[PAD]")
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    command = ["capture", "--model", str(tmp_path / "gpt2"), "--out", str(tmp_path / "c.safetensors")]
    assert main([*command, "--data", str(text), "--targets", str(text)]) == 2
    assert "GPT2LMHeadModel has no decoder, apart from the encoder; leave out --targets" in capsys.readouterr().err
    np.save(tmp_path / "x.npy", np.zeros((2, 3)))
    assert main([*command, "--data", str(tmp_path / "x.npy"), "--targets", str(text)]) == 2
    assert "--targets is about text" in capsys.readouterr().err
