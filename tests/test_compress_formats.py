"""Compressed models written as what other software loads: the weights that it sees are those of the reported errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.cli.main import main
from layerbounds.compression.codes import stored_as
from layerbounds.exceptions import InputError, LayerError

torch = pytest.importorskip("torch", reason="compression of models needs PyTorch")
transformers = pytest.importorskip("transformers", reason="model directories need transformers")
from safetensors import safe_open  # noqa: E402
from torch import nn  # noqa: E402

from layerbounds.capturing.huggingface import load_model  # noqa: E402
from layerbounds.capturing.warning import CaptureWarning  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:layer .* positions for"),
    pytest.mark.filterwarnings("ignore:layer .* shares its weight"),
]

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"


def llama(folder: Path, dtype: Any = None, *, tied: bool = False) -> Path:
    """A directory with a tiny Llama, in one file or in shards."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=48, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, bos_token_id=0, eos_token_id=0, tie_word_embeddings=tied,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16 if dtype is None else dtype)
    # As a trained model: weights that matter.
    for value in model.parameters():
        value.data *= 3.0
    model.save_pretrained(folder, max_shard_size="40KB")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"not to be copied")
    return folder


@pytest.fixture
def tokens() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, 48, (8, 16), generator=generator)} for _ in range(2)]


def tensors(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


def float64(module: nn.Module) -> np.ndarray:
    return module.weight.detach().double().numpy()


def test_dense_directories(tmp_path: Path, tokens: list[dict[str, Any]]) -> None:
    source = llama(tmp_path / "source")
    model = load_model(source)
    bits = {"re:.*self_attn.*": {"bits": 3, "granularity": 16}, "*down*": {"bits": 4, "pattern": "2:4"}}
    result = lb.compress(model, tokens, bits=bits, format="dense", intervals=False, seed=3)
    assert set(result.left.values()) == {"bits name nothing for it"} and not result.quantized
    result.save(tmp_path / "out")
    before, after = tensors(source), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{name}.weight" for name in result.layers} and len(changed) == 5
    assert {f.name for f in source.iterdir()} - {f.name for f in (tmp_path / "out").iterdir()} == {"pytorch_model.bin"}
    assert json.loads((tmp_path / "out/config.json").read_text()) == json.loads((source / "config.json").read_text())
    loaded = load_model(tmp_path / "out")
    for name, value in result.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value) and value.dtype == torch.bfloat16
    # The reported error of the weights that are loaded is theirs.
    layer = lb.capture(model, tokens, Q)[Q]
    weights = float64(loaded.get_submodule(Q))
    problem = lb.quantization_problem(layer, 3, granularity=16)
    np.testing.assert_allclose(lb.evaluate(problem, weights).error, result.layers[Q].loaded_error, rtol=1e-9)
    assert not np.array_equal(result.layers[Q].error, result.layers[Q].loaded_error)


def test_wrong_destinations(tmp_path: Path, tokens: list[dict[str, Any]]) -> None:
    source = llama(tmp_path / "source", tied=True)
    model = load_model(source)
    wider = load_model(source).float()
    for other, arguments, words in (
        (model, {"format": "onnx"}, "there is no format 'onnx'; choose dense, compressed-tensors, gptq"),
        (model, {"template": source}, "template is for a format"),
        (model, {"format": "dense", "template": tmp_path}, r"is no folder with a config\.json"),
        (model, {"format": "dense", "fold_batchnorm": True}, "folding changes the architecture"),
        (nn.Linear(3, 2), {"format": "dense"}, "needs the directory from which the model was loaded"),
        (nn.Linear(3, 2), {"format": "dense", "template": source}, "has no tensor for layer"),
        (wider, {"format": "dense"}, 'is F32 of shape .* and BF16 of shape .*dtype="auto"'),
    ):
        with pytest.raises(InputError, match=words):
            lb.compress(other, tokens, bits=4, **arguments)
    result = lb.compress(model, tokens, "rtn", bits=4, format="dense", intervals=False)
    for out, words in ((source, "not an empty folder"), (tmp_path / "a/b", "does not exist; create it first")):
        with pytest.raises(InputError, match=words):
            result.save(out)
    # A layer that shares its weight with the embedding changes both.
    (tmp_path / "empty").mkdir()
    result.save(tmp_path / "empty")
    assert torch.equal(load_model(tmp_path / "empty").lm_head.weight, result.model.model.embed_tokens.weight)
    assert not list(tmp_path.glob("*.part"))


def test_dense_directories_from_the_command_line(
    tmp_path: Path, tokens: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    source = llama(tmp_path / "source", torch.float32)
    np.save(tmp_path / "tokens.npy", tokens[0]["input_ids"].numpy())

    def run(*bits: str, **others: object) -> int:
        given = {"--model": source, "--out": tmp_path / "out", "--format": "dense", "--data": tmp_path / "tokens.npy"}
        given |= {f"--{name}": value for name, value in others.items()}
        words = [str(word) for option in given.items() for word in option]
        return main(["compress", *words, "--no-intervals", *(word for text in bits for word in ("--bits", text))])

    assert run("*q_proj=3/16", "lm_head=16", "5", json=tmp_path / "out.json") == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["left"] == {"lm_head": "as asked"} and written["options"]["format"] == "dense"
    assert "left as they are (as asked): lm_head" in capsys.readouterr().err
    assert len(np.unique(float64(load_model(tmp_path / "out").get_submodule(Q))[0, :16])) <= 8
    for others, words in (
        ({}, "exists already and is not an empty folder"),
        ({"out": tmp_path / "new", "format": "onnx"}, "there is no format 'onnx'"),
        ({"out": tmp_path / "new.gguf", "format": "gguf"}, "pass it as template"),
        ({"out": tmp_path / "new", "weights": source}, "leave out --weights"),
        ({"out": source / "config.json"}, "which --model reads"),
        ({"out": tmp_path / "new", "model": "factory.py:make"}, "pass one as --model"),
    ):
        assert run("4", **others) == 2
        assert words in capsys.readouterr().err


def test_compressed_tensors_load_as_they_were_reported(tmp_path: Path, tokens: list[dict[str, Any]]) -> None:
    pytest.importorskip("compressed_tensors", reason="what is written is loaded with compressed-tensors")
    model = load_model(llama(tmp_path / "source"))
    bits = {"*q_proj": {"bits": 4, "granularity": 32}, "*k_proj": {"bits": 3, "granularity": 16}, "*mlp*": 8}
    result = lb.compress(model, tokens, bits=bits, format="compressed-tensors", intervals=False)
    result.save(tmp_path / "out")
    written = tensors(tmp_path / "out")
    assert written[f"{Q}.weight_packed"].shape == (64, 8) and written[f"{Q}.weight_scale"].dtype == torch.bfloat16
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert config["ignore"] == ["model.layers.0.self_attn.v_proj", "model.layers.0.self_attn.o_proj", "lm_head"]
    assert [group["weights"]["num_bits"] for group in config["config_groups"].values()] == [4, 3, 8]
    loaded = loaded_by_transformers(tmp_path / "out")
    with torch.no_grad():
        # What is packed is unpacked when it is needed first.
        assert torch.equal(loaded(**tokens[0]).logits, result.model(**tokens[0]).logits)
    layer = lb.capture(model, tokens, Q)[Q]
    for name, outcome in result.layers.items():
        weight = result.quantized[name]
        np.testing.assert_array_equal(weight.loaded, float64(loaded.get_submodule(name)))
        np.testing.assert_array_equal(weight.weight, lb.load_checkpoint(tmp_path / "out")[name].weight)
        if name == Q:
            problem = lb.quantization_problem(layer, grid=weight.grid)
            np.testing.assert_allclose(lb.evaluate(problem, weight.weight).error, outcome.error, rtol=1e-9)
            assert lb.evaluate(problem, weight.weight).feasible.all()
            np.testing.assert_allclose(lb.evaluate(problem, weight.loaded).error, outcome.loaded_error, rtol=1e-9)


def loaded_by_transformers(folder: Path, **options: Any) -> Any:
    """A model in evaluation mode, whatever its libraries warn about."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.utils.logging.disable_progress_bar()
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, **{"dtype": "auto", **options}
        )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"granularity": 32}, {"symmetric": False}, {"granularity": "tensor"}])
def test_one_group_of_compressed_tensors_for_all(
    tmp_path: Path, tokens: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    pytest.importorskip("compressed_tensors", reason="what is written is loaded with compressed-tensors")
    model = load_model(llama(tmp_path / "source", torch.float16, tied=True))
    result = lb.compress(model, tokens, "rtn", bits=5, format="compressed-tensors", intervals=False, **options)
    assert result.left == {"lm_head": "it shares its weight with model.embed_tokens"}
    result.save(tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_0"]["targets"] == ["Linear"] and config["ignore"] == ["lm_head"]
    # Packed zero points are read by this path of transformers alone.
    dequantized = transformers.CompressedTensorsConfig(dequantize=True)
    loaded = loaded_by_transformers(tmp_path / "out", quantization_config=dequantized)
    for name, weight in result.quantized.items():
        np.testing.assert_array_equal(weight.loaded, float64(loaded.get_submodule(name)))


def gptq_weight(written: dict[str, Any], name: str, bits: int, one_less: int) -> np.ndarray:
    """What GPTQ's tensors mean, word by word."""

    def fields(words: np.ndarray, count: int) -> np.ndarray:
        stream = [sum(int(word) % 2**32 << 32 * i for i, word in enumerate(column)) for column in words.T]
        return np.array([[(number >> bits * i) % 2**bits for i in range(count)] for number in stream])

    parts = {end: written[f"{name}.{end}"].numpy() for end in ("qweight", "qzeros", "scales", "g_idx")}
    codes = fields(parts["qweight"], len(parts["g_idx"]))
    zeros = fields(parts["qzeros"].T, len(codes)).T + one_less
    scales = parts["scales"].astype(np.float64).T
    return scales[:, parts["g_idx"]] * (codes - zeros[:, parts["g_idx"]])


def test_gptq_directories(tmp_path: Path, tokens: list[dict[str, Any]]) -> None:
    model = load_model(llama(tmp_path / "source"))
    bits = {"*q_proj": {"bits": 3, "granularity": 32}, "*attn*": 16, "*": 4}
    result = lb.compress(model, tokens, bits=bits, format="gptq", intervals=False)
    assert "blocks alone" in result.left["lm_head"]
    result.save(tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert config == json.loads((tmp_path / "out/quantize_config.json").read_text())
    assert (config["bits"], config["group_size"], config["sym"], config["desc_act"]) == (4, -1, True, False)
    assert config["checkpoint_format"] == "gptq"
    assert list(config["dynamic"])[-1] == "+:^model\\.layers\\.0\\.self_attn\\.q_proj$" and len(config["dynamic"]) == 4
    written = tensors(tmp_path / "out")
    for name, weight in result.quantized.items():
        found = gptq_weight(written, name, 3 if name == Q else 4, one_less=1)
        np.testing.assert_array_equal(found, weight.weight)
        np.testing.assert_array_equal(lb.load_checkpoint(tmp_path / "out")[name].weight, found)
        # Loaders that turn scales into the model's type change nothing.
        scales = written[f"{name}.scales"]
        assert scales.dtype == torch.float16 and torch.equal(scales.bfloat16().half(), scales)
    assert written["lm_head.weight"].dtype == torch.bfloat16


def test_gptq_with_zero_points(tmp_path: Path, tokens: list[dict[str, Any]]) -> None:
    model = load_model(llama(tmp_path / "source", torch.float16))
    result = lb.compress(model, tokens, "rtn", bits={"*mlp*": 4}, symmetric=False, format="gptq", intervals=False)
    result.save(tmp_path / "out")
    config = json.loads((tmp_path / "out/quantize_config.json").read_text())
    assert config["checkpoint_format"] == "gptq_v2" and not config["sym"]
    assert config["modules_in_block_to_quantize"] == [["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"]]
    np.testing.assert_array_equal(
        gptq_weight(tensors(tmp_path / "out"), DOWN, 4, one_less=0), result.quantized[DOWN].weight
    )


def gguf_template(folder: Path) -> Path:
    """What llama.cpp's converter makes of the tiny Llama: rows of query and key in another order, half precision."""
    gguf = pytest.importorskip("gguf", reason="GGUF files need the package gguf")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    path = folder.with_suffix(".gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(32)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(48)
    writer.add_token_list([f"t{token}" for token in range(48)])
    for name, value in tensors(folder).items():
        matrix = value.float().numpy()
        if "q_proj" in name or "k_proj" in name:
            heads = 2 if "q_proj" in name else 1
            matrix = matrix.reshape(heads, 2, len(matrix) // heads // 2, -1).swapaxes(1, 2).reshape(matrix.shape)
        stem, _, end = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{end}", matrix.astype(np.float16 if matrix.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_files_from_a_template(tmp_path: Path, tokens: list[dict[str, Any]]) -> None:
    source = llama(tmp_path / "source", torch.float16)
    template = gguf_template(source)
    model = load_model(source)
    bits = {"*q_proj": 4, "*k_proj": {"bits": 4, "symmetric": False}, "*down*": {"bits": 8, "granularity": "channel"}}
    result = lb.compress(model, tokens, bits=bits, format="gguf", template=template, intervals=False)
    out = tmp_path / "out.gguf"
    result.save(out)
    checkpoint = lb.load_checkpoint(out)
    assert set(checkpoint) == set(result.layers) and checkpoint.label == "GGUF (Q4_1, Q4_0, Q8_0)"
    loaded = loaded_by_transformers(tmp_path, gguf_file="out.gguf", dtype=torch.float32)
    for name, weight in result.quantized.items():
        np.testing.assert_array_equal(float64(loaded.get_submodule(name)), weight.loaded)
        np.testing.assert_array_equal(checkpoint[name].weight, weight.weight)
    key = result.quantized["model.layers.0.self_attn.k_proj"].grid
    assert key.offset.any() and result.quantized[Q].bits_per_weight == 4.5
    # What was not replaced is the template's.
    for name in ("model.layers.0.mlp.up_proj", "lm_head"):
        np.testing.assert_array_equal(float64(loaded.get_submodule(name)), float64(model.get_submodule(name)))
    for name, outcome in result.layers.items():
        if name == Q:
            layer = lb.capture(model, tokens, Q)[Q]
            problem = lb.quantization_problem(layer, grid=checkpoint[Q].grid)
            np.testing.assert_allclose(lb.evaluate(problem, checkpoint[Q].weight).error, outcome.error, rtol=1e-9)
    with pytest.raises(InputError, match="is the template"):
        result.save(template)


def test_gguf_files_from_the_command_line(
    tmp_path: Path, tokens: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    source = llama(tmp_path / "source", torch.float16)
    template = gguf_template(source)
    np.save(tmp_path / "tokens.npy", tokens[0]["input_ids"].numpy())
    # What llama-quantize would be given.
    (tmp_path / "types.txt").write_text("attn_q=q4_0 attn=f16 down=q8_0 ffn=f16")
    command = ["compress", "--model", str(source), "--data", str(tmp_path / "tokens.npy"), "--layers", "*_proj"]
    command += ["--bits", f"llama.cpp:{tmp_path / 'types.txt'}", "--format", "gguf", "--no-intervals", "--json", "-"]
    assert main([*command, "--template", str(template), "--out", str(template)]) == 2
    assert "which --template reads" in capsys.readouterr().err
    assert main([*command, "--template", str(template), "--out", str(tmp_path / "out.gguf")]) == 0
    printed = capsys.readouterr()
    written = json.loads(printed.out)
    assert {row["layer"]: row["bits_per_weight"] for row in written["layers"]} == {Q: 4.5, DOWN: 8.5}
    assert "left as they are (as asked): model.layers.0.self_attn.k_proj" in printed.err
    assert set(lb.load_checkpoint(tmp_path / "out.gguf")) == {Q, DOWN}


def test_a_scale_beyond_the_type_leaves_its_layer(tmp_path: Path, tokens: list[dict[str, Any]]) -> None:
    source = llama(tmp_path / "source", torch.float32)
    model = load_model(source)
    model.get_submodule(Q).weight.data[0, 0] = 1e6
    with pytest.warns(UserWarning, match="the largest scale goes up to 1"):
        result = lb.compress(
            model, tokens, "rtn", bits={"*v_proj": 4, "*q_proj": 4}, range="minmax", format="gptq", intervals=False
        )
    assert list(result.refused) == [Q] and "float16 ends at 65504" in result.refused[Q]
    result.save(tmp_path / "out")
    # What the template has otherwise is the model's.
    assert tensors(tmp_path / "out")[f"{Q}.weight"][0, 0] == 1e6
    assert list(lb.load_checkpoint(tmp_path / "out")) == ["model.layers.0.self_attn.v_proj"]


@pytest.mark.slow
def test_gpt2_has_transposed_weights(tmp_path: Path, tokens: list[dict[str, Any]]) -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=48, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "source")
    model = load_model(tmp_path / "source")
    fc = "transformer.h.0.mlp.c_fc"
    with pytest.raises(InputError, match="does not quantize the Conv1D"):
        lb.compress(model, tokens, bits=4, layers="*.c_*", format="compressed-tensors")
    result = lb.compress(model, tokens, "rtn", bits=4, format="gptq", intervals=False)
    assert len(result.layers) == 4 and result.layers[fc].weight_shape == (128, 32)
    result.save(tmp_path / "gptq")
    written = tensors(tmp_path / "gptq")
    assert written[f"{fc}.bias"].shape == (128,) and written[f"{fc}.qweight"].shape == (4, 128)
    np.testing.assert_array_equal(gptq_weight(written, fc, 4, one_less=1), result.quantized[fc].weight)
    dense = lb.compress(model, tokens, "rtn", bits=4, layers="*.c_*", format="dense", bias="refit", intervals=False)
    dense.save(tmp_path / "dense")
    loaded = load_model(tmp_path / "dense")
    for name, value in dense.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert not torch.equal(loaded.get_submodule(fc).bias, model.get_submodule(fc).bias)


def test_wrong_gguf_templates(tmp_path: Path, tokens: list[dict[str, Any]]) -> None:
    source = llama(tmp_path / "source", torch.float16)
    template = gguf_template(source)
    model = load_model(source)
    strange = load_model(source)
    strange.get_submodule(Q).weight.data = strange.get_submodule(Q).weight.data.flip(0)
    for net, options, words in (
        (model, {"bits": 4, "template": None}, "pass it as template"),
        (model, {"bits": 4, "template": source}, "GGUF"),
        (model, {"bits": 3}, "4 or 5 bits"),
        (model, {"bits": 8, "symmetric": False}, "8 bits, symmetric"),
        (model, {"bits": 4, "granularity": 16}, "scales are for 32 inputs"),
        (model, {"bits": 4, "bias": "refit"}, "biases from the template"),
        (model, {"bits": 4, "density": 0.5, "symmetric": False}, "minima in place of zero points"),
        (nn.Linear(3, 2), {"bits": 4}, "has no layer of the model"),
        (strange, {"bits": 4}, f"layer {Q!r} has other weights in the template"),
    ):
        with pytest.raises(InputError, match=words):
            lb.compress(net, tokens, format="gguf", **{"template": template, **options})


@pytest.mark.parametrize(
    ("form", "options", "words"),
    [
        ("compressed-tensors", {"density": 0.5}, "nothing is quantized; pass bits"),
        ("compressed-tensors", {"bits": 4, "range": "hqq"}, "zero points are integers"),
        ("compressed-tensors", {"bits": 4, "bias": "refit"}, "has no bias"),
        ("compressed-tensors", {"bits": 4, "granularity": 50}, "cannot hold any of the layers.*have to divide"),
        ("gptq", {"bits": 5}, "2, 3, 4 or 8 bits, not 5"),
        ("gptq", {"bits": 1}, "2, 3, 4 or 8 bits, not 1"),
        ("gptq", {"bits": 4, "granularity": 24}, "groups of 16, 32"),
        ("gptq", {"bits": 4, "layers": "lm_head"}, "cannot hold any of the layers"),
    ],
)
def test_what_a_format_cannot_hold_costs_no_run(
    tmp_path: Path, tokens: list[dict[str, Any]], form: str, options: dict[str, Any], words: str
) -> None:
    model = load_model(llama(tmp_path / "source"))
    model.forward = None
    with pytest.raises(InputError, match=words):
        lb.compress(model, tokens, format=form, **options)


def test_scales_that_a_type_lacks() -> None:
    found = stored_as(np.array([1e-30, -1e-30, 0.0, 0.1, 60000.0]), "float16", "the scale")
    np.testing.assert_array_equal(found, [2.0**-24, -(2.0**-24), 0.0, np.float16(0.1), np.float16(60000.0)])
    with pytest.raises(LayerError, match="goes up to 7e\\+04, and float16 ends at 65504"):
        stored_as(np.array([7e4]), "float16", "the scale")
    assert stored_as(np.array([1e38]), "bfloat16", "the scale") == torch.tensor(1e38).bfloat16().double()


@pytest.mark.slow
def test_experts_that_the_model_has_in_one_parameter(tmp_path: Path, tokens: list[dict[str, Any]]) -> None:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=48, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "source")
    model = load_model(tmp_path / "source")
    for form in ("dense", "gptq"):
        with pytest.warns(CaptureWarning, match="each is a matrix of fused experts"):
            result = lb.compress(model, tokens, "rtn", bits={"*attn*": 4}, format=form, intervals=False)
        result.save(tmp_path / form)
        before, after = tensors(tmp_path / "source"), tensors(tmp_path / form)
        for name, value in before.items():
            assert ("attn" in name) or torch.equal(value, after[name])
    loaded = load_model(tmp_path / "dense")
    assert all(
        torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items() if "experts" in name
    )
    rules = json.loads((tmp_path / "gptq/quantize_config.json").read_text())["dynamic"]
    assert r"-:^model\.layers\.0\.block_sparse_moe\.experts\.1\.w3$" in rules
