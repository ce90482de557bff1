"""Model directories of transformers: tiny models with random weights, written by the tests themselves."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.cli.main import main
from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.layers.files import load_layers

torch = pytest.importorskip("torch", reason="capture needs PyTorch")
transformers = pytest.importorskip("transformers", reason="model directories need the transformers extra")
tokenizers = pytest.importorskip("tokenizers", reason="model directories need the transformers extra")

from safetensors.torch import load_file, save_file  # noqa: E402

from layerbounds.capturing.huggingface import TextBatches, load_model  # noqa: E402
from layerbounds.capturing.targets import CaptureWarning  # noqa: E402

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


# --- checkpoints that do not hold the model --------------------------------------------------------------------------


def gpt2(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "n_embd": 8, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **options))


def llama(**options: Any) -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **options))


def bert_model(**options: Any) -> Any:
    torch.manual_seed(0)
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, **options))


def roberta(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {**SIZES, "pad_token_id": 0, "max_position_embeddings": 13}
    return transformers.RobertaForMaskedLM(transformers.RobertaConfig(**sizes, **options))


Change = Callable[[dict[str, Any]], dict[str, Any]]


def rewritten(folder: Path, change: Change) -> Path:
    """The directory with other tensors."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("build", "options"), [(gpt2, {}), (llama, {}), (llama, {"tie_word_embeddings": True}), (bert_model, {})]
)
def test_what_may_be_absent_is_no_error(build: Any, options: dict[str, Any], tmp_path: Path) -> None:
    model = build(**options)
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CaptureWarning)
        loaded = load_model(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_tensors_that_are_not_used_are_named(tmp_path: Path) -> None:
    bert_model().save_pretrained(tmp_path)
    rewritten(tmp_path, lambda state: {**state, "cls.extra": torch.ones(2)})
    with pytest.warns(CaptureWarning, match=r"does not use: cls\.extra"):
        load_model(tmp_path)


FC = "transformer.h.0.mlp.c_fc.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {k: v for k, v in state.items() if k != FC}, f"lacks {FC} of GPT2LMHeadModel"),
        (lambda state: {f"other.{k}": v for k, v in state.items()}, r"lacks .*, … \(17 in all\) .*other\.transformer"),
        (lambda state: {f"_orig_mod.{k}": v for k, v in state.items()}, "names have another prefix"),
        (lambda state: {"unrelated": torch.ones(2)}, r"lacks .* does not know: unrelated"),
        (lambda state: {**state, FC: torch.ones(3, 4)}, r"c_fc\.weight has shape \(3, 4\) .* needs \(8, 32\)"),
        (lambda state: {**state, FC: (100 * state[FC]).to(torch.int8)}, r"c_fc\.weight' is of type I8"),
        (lambda state: {**state, FC: state[FC] > 0}, r"c_fc\.weight' is of type BOOL"),
        (
            lambda state: {**state, FC: state[FC].to(torch.float8_e4m3fn), f"{FC}_scale": torch.ones(1)},
            "has to be scaled by",
        ),
    ],
)
def test_incomplete_directories_are_refused(
    tmp_path: Path, text: Path, change: Change, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    gpt2().save_pretrained(folder)
    write_tokenizer(folder, eos_token="[PAD]")
    rewritten(folder, change)
    with pytest.raises(FileFormatError, match=words):
        load_model(folder)
    out = tmp_path / "c.safetensors"
    capsys.readouterr()
    assert main(["capture", "--model", str(folder), "--data", str(text), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and not out.exists()


def test_quantized_directories_are_refused(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(FileFormatError, match="holds a checkpoint quantized with gptq"):
        load_model(tmp_path)


def test_narrow_floats_in_directories_are_exact(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path)
    rewritten(tmp_path, lambda state: {**state, FC: state[FC].to(torch.float8_e4m3fn)})
    stored = load_file(tmp_path / "model.safetensors")[FC]
    assert torch.equal(load_model(tmp_path).state_dict()[FC], stored.float())


@pytest.mark.parametrize(("option", "used"), [(None, "float32"), ("stored", "float16"), ("float64", "float64")])
def test_precision_of_the_model(
    option: str | None, used: str, tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpt2().half().save_pretrained(tmp_path)
    write_tokenizer(tmp_path, eos_token="[PAD]")
    command = ["capture", "--model", str(tmp_path), "--data", str(text), "--out", str(tmp_path / "c.safetensors")]
    assert main(command if option is None else [*command, "--model-dtype", option]) == 0
    layer = load_layers(tmp_path / "c.safetensors")["transformer.h.0.mlp.c_fc"]
    source = layer.provenance["source"]
    assert source["model_dtype"] == used and source.get("stored_dtype") == ("float16" if option is None else None)
    assert ("stored in float16 and runs in float32" in capsys.readouterr().err) == (option is None)
    batches = TextBatches(tmp_path, text, 64, None, 512)
    again = lb.capture(tmp_path, batches, "mlp.c_fc", model_dtype=option)["transformer.h.0.mlp.c_fc"]
    assert again.provenance["model_dtype"] == used
    np.testing.assert_array_equal(again.gram, layer.gram)
    exact = lb.capture(load_model(tmp_path, "float64"), batches, "mlp.c_fc")["transformer.h.0.mlp.c_fc"]
    difference = np.abs(exact.gram - layer.gram).max() / np.abs(exact.gram).max()
    assert difference < {"float16": 1e-2, "float32": 1e-5, "float64": 1e-12}[used]
    np.testing.assert_array_equal(layer.matrix, exact.matrix)


def test_the_precision_of_a_model_is_a_type(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpt2().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="model_dtype is 'half'; choose 'stored', 'float32'"):
        lb.capture(tmp_path, [], model_dtype="half")
    with pytest.raises(InputError, match="model_dtype is for model directories"):
        lb.capture(gpt2(), [], model_dtype="float32")
    out = ["--data", "x.npy", "--out", str(tmp_path / "c.safetensors"), "--model-dtype", "float32"]
    assert main(["capture", "--model", "torch.nn:Identity", *out]) == 2
    assert "--model-dtype is about model directories" in capsys.readouterr().err


# --- tokens, padding, positions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "pad"), [("right", False), ("left", True)])
@pytest.mark.parametrize("build", [gpt2, llama, bert_model, roberta])
def test_the_batch_size_changes_no_gram(build: Any, side: str, pad: bool, tmp_path: Path, text: Path) -> None:
    build().save_pretrained(tmp_path)
    write_tokenizer(tmp_path, padding_side=side, **({"pad_token": "[PAD]"} if pad else {}))
    model = load_model(tmp_path)
    found = {}
    for size in (1, 2, 4):
        batches = TextBatches(tmp_path, text, size, None, 512)
        batches.check(model)
        found[size] = lb.capture(model, batches)
    for name, layer in found[1].items():
        scale = np.abs(layer.gram).max()
        for size in (2, 4):
            assert found[size][name].samples == layer.samples
            np.testing.assert_allclose(found[size][name].gram, layer.gram, rtol=0, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("build", [gpt2, llama, bert_model, roberta])
def test_padding_before_the_tokens_moves_no_position(build: Any, tmp_path: Path) -> None:
    model = build()
    tokens = [[3, 4, 5, 6, 7], [8, 9], [5, 5, 3]]
    alone = lb.capture(model, [{"input_ids": torch.tensor([t])} for t in tokens])
    batch = {
        "input_ids": torch.tensor([[0] * (5 - len(t)) + t for t in tokens]),
        "attention_mask": torch.tensor([[0] * (5 - len(t)) + [1] * len(t) for t in tokens]),
    }
    padded = lb.capture(model, [batch])
    for name, layer in alone.items():
        assert padded[name].samples == layer.samples == 10
        scale = np.abs(layer.gram).max()
        np.testing.assert_allclose(padded[name].gram, layer.gram, rtol=0, atol=1e-5 * scale, err_msg=name)
    # Positions that are given stay.
    if build is gpt2:
        given = lb.capture(model, [{**batch, "position_ids": torch.zeros(3, 5, dtype=torch.long)}])
        assert not np.allclose(given[name].gram, layer.gram, rtol=1e-3)


@pytest.mark.parametrize(("build", "limit"), [(gpt2, 5), (llama, 5), (bert_model, 5), (roberta, 12)])
def test_more_tokens_than_positions(build: Any, limit: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, data, out = tmp_path / "model", tmp_path / "long.txt", tmp_path / "c.safetensors"
    build(**({} if build is roberta else {"max_position_embeddings": 5})).save_pretrained(folder)
    write_tokenizer(folder)
    data.write_text("a token\n" + "a token " * 7 + "\n")
    command = ["capture", "--model", str(folder), "--data", str(data), "--out", str(out)]
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"has 14 tokens, and {type(build()).__name__} has {limit} positions" in error
    assert main([*command, "--max-tokens", str(limit)]) == 0
    if build is not llama:
        with pytest.raises(InputError, match=rf"batch 0 .* has 14 tokens, and .* has {limit} positions"):
            lb.capture(load_model(folder), [torch.full((1, 14), 3)])


def test_tokenizers_of_other_models(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = gpt2()
    with pytest.raises(InputError, match="holds tokens 3 to 16, and GPT2LMHeadModel knows 0 to 15"):
        lb.capture(model, [torch.tensor([[3, 16]])])
    model.resize_token_embeddings(5)
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    command = ["capture", "--model", str(tmp_path), "--data", str(text), "--out", str(tmp_path / "c.safetensors")]
    assert main(command) == 2
    assert "the tokenizer gives token 10, and GPT2LMHeadModel knows 5 tokens" in capsys.readouterr().err
    # A padding token without a row in the embedding is only ever masked.
    gpt2().save_pretrained(tmp_path)
    write_tokenizer(tmp_path, pad_token="[MORE]")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens([f"more{i}" for i in range(9)])
    tokenizer.add_special_tokens({"pad_token": "[LAST]"})
    tokenizer.save_pretrained(tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).pad_token_id >= 16
    assert main([*command, "--batch-size", "3"]) == 0


def test_texts_without_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpt2().save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfa token\n")
    batches = TextBatches(tmp_path, tmp_path / "bom.txt", 1, None, 8)
    assert batches.lines == ["a token"]
    (tmp_path / "nothing.txt").write_text("a token\n\u200b\n", encoding="utf-8")
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "\u200b"}, "content": ""}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    command = ["capture", "--model", str(tmp_path), "--out", str(tmp_path / "c.safetensors"), "--data"]
    for name, options, words in (
        ("bom.txt", ["--max-tokens", "0"], "limited to 0"),
        ("bom.txt", ["--batch-size", "0"], "batch size is 0"),
        ("nothing.txt", [], "the tokenizer makes no token of"),
        ("latin.txt", [], "cannot be read as UTF-8"),
    ):
        assert main([*command, str(tmp_path / name), *options]) == 2
        assert words in capsys.readouterr().err
    for file in tmp_path.glob("tokenizer*"):
        file.write_text("{")
    assert main([*command, str(tmp_path / "bom.txt")]) == 2
    assert "has no usable tokenizer" in capsys.readouterr().err
