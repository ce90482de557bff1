"""Files of other tools: what is written is read as the same, and what a tool has no words for is refused."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from layerbounds.allocation import LayerOptions, Option, allocate, score
from layerbounds.allocation.formats import FORMATS, choices_of, export, find_format
from layerbounds.exceptions import InputError, MissingExtraError

NAMES = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj", "lm_head"]


def grid(bits: int, granularity: str | int = "channel", symmetric: bool = True) -> dict[str, Any]:
    return {"bits": bits, "granularity": granularity, "symmetric": symmetric}


#: What each tool can say, by name of an option.
SAYABLE: dict[str, dict[str, dict[str, Any]]] = {
    "gptqmodel": {"a": grid(3), "b": grid(4, 128), "c": grid(8, 32, False), "dense": {"bits": 16}},
    "auto-round": {"a": grid(2), "b": grid(4, 128, False), "c": grid(8, "tensor"), "dense": {}},
    "llm-compressor": {
        "a": grid(3),
        "b": grid(4, 128, False) | {"pattern": "2:4"},
        "c": {"density": 0.25, "refit": True},
        "d": {"pattern": "1:4", "refit": False},
        "e": grid(8, "tensor") | {"density": 0.5, "refit": True},
        "dense": {"bits": 16},
    },
    "llama.cpp": {
        "a": grid(4, 32),
        "b": grid(5, 32, False),
        "c": grid(8, 32),
        "d": {"codebook": "mxfp4", "granularity": 32},
        "e": {"codebook": "ternary", "granularity": 256},
        "dense": {"bits": 16},
    },
}


def table(options: dict[str, dict[str, Any]], names: list[str] = NAMES) -> list[LayerOptions]:
    entries = tuple(Option(name, i + 1, float(i), float(i), said) for i, (name, said) in enumerate(options.items()))
    return [LayerOptions(name, 10, entries) for name in names]


@pytest.mark.parametrize("tool", SAYABLE)
def test_what_is_written_is_read(tool: str) -> None:
    layers = table(SAYABLE[tool])
    options = list(SAYABLE[tool])
    for shift in range(len(options)):
        choices = {name: options[(i + shift) % len(options)] for i, name in enumerate(NAMES)}
        text = export(layers, choices, tool)
        assert choices_of(layers, tool.upper(), text) == choices
        assert score(layers, choices).export(tool) == text


#: Chosen options that a tool has no words for, and what it says.
UNSAYABLE = [
    ("gptqmodel", grid(4) | {"pattern": "2:4"}, "does not prune"),
    ("gptqmodel", {"density": 0.5}, "does not prune"),
    ("gptqmodel", grid(5), "2, 3, 4 or 8 bits, not 5"),
    ("gptqmodel", grid(4, "tensor"), "not one for all weights"),
    ("gptqmodel", {"codebook": "nf4"}, "codebooks such as nf4"),
    ("gptqmodel", {"bits": 16}, "no layer is quantized"),
    ("auto-round", grid(6), "2, 3, 4 or 8 bits, not 6"),
    ("auto-round", {"pattern": "2:4"}, "does not prune"),
    ("llm-compressor", {"codebook": "fp4"}, "codebooks such as fp4"),
    ("llm-compressor", {"pattern": "channel", "density": 0.5}, "unstructured and N:M, not channel"),
    ("llm-compressor", {"pattern": "2:4", "share": 4}, "one mask for 4 rows"),
    ("llm-compressor", {"pattern": "2:4@in_channels"}, "not 2:4@in_channels"),
    ("llm-compressor", grid(4, symmetric=False) | {"zero_point": "real"}, "zero points that are no integers"),
    ("llm-compressor", grid(1), "not 1"),
    ("llm-compressor", {"bits": 16}, "no layer is compressed"),
    ("llama.cpp", grid(3), "3 bits, symmetric, a scale per channel is no type"),
    ("llama.cpp", grid(4, 64), "a scale per group of 64 is no type"),
    ("llama.cpp", {"density": 0.5}, "does not prune"),
]


@pytest.mark.parametrize(("tool", "said", "words"), UNSAYABLE)
def test_what_a_tool_cannot_say_is_refused(tool: str, said: dict[str, Any], words: str) -> None:
    layers = table({"odd choice": said})
    with pytest.raises(InputError) as caught:
        export(layers, dict.fromkeys(NAMES, "odd choice"), tool)
    text = str(caught.value)
    assert words in text and NAMES[0] in text and "'odd choice'" in text and "\n" not in text


def choices(tool: str, text: str | dict[str, Any], options: dict[str, dict[str, Any]]) -> dict[str, str]:
    return choices_of(table(options), tool, text if isinstance(text, str) else json.dumps(text))


def test_files_of_gptqmodel() -> None:
    options = {"four": grid(4, 128), "eight": grid(8, 32), "two": grid(2), "dense": {"bits": 16}}
    dynamic = {
        r"+:model\.layers\.\d+\.mlp.*": {"bits": 8, "group_size": 32},
        r"lm_head": {"bits": 2, "group_size": -1},
        # Exclusions count first, wherever they stand.
        r"-:.*\.1\..*": {},
    }
    expected = dict(zip(NAMES, ["four", "eight", "dense", "two"], strict=True))
    assert choices("gptqmodel", dynamic, options) == expected
    whole = {"bits": 2, "group_size": -1, "sym": True, "checkpoint_format": "gptq", "dynamic": dynamic}
    assert choices("gptqmodel", whole, options) == {**expected, NAMES[0]: "two"}
    # Patterns match the beginning of a name, not its middle.
    assert choices("gptqmodel", {"mlp": {"bits": 8}}, options) == dict.fromkeys(NAMES, "four")


def test_files_of_auto_round() -> None:
    options = {"four": grid(4, 128), "eight": grid(8, 128), "dense": {"bits": 16}}
    config = {"mlp": {"bits": 8}, NAMES[1]: "W4A16", "q_proj$": {"bits": 4}, "lm_head": "BF16"}
    expected = dict(zip(NAMES, ["four", "four", "eight", "dense"], strict=True))
    assert choices("auto-round", config, options) == expected
    assert choices("auto-round", {"layer_config": config}, options) == expected


def test_recipes_of_llm_compressor() -> None:
    options = {
        "four": grid(4, 128),
        "eight": grid(8),
        "dense": {"bits": 16},
        "pruned": grid(4, 128) | {"pattern": "2:4"},
    }
    recipe = r"""
quant_stage:
  quant_modifiers:
    GPTQModifier:
      ignore: ["re:.*lm_head"]
      config_groups:
        group_0:
          weights: {num_bits: 4, type: int, symmetric: true, strategy: group, group_size: 128}
          targets: ["Linear"]
        group_1:
          weights: {num_bits: 8, type: int, symmetric: true, strategy: channel}
          targets: ['re:.*\.1\..*down_proj']
"""
    assert choices("llm-compressor", recipe, options) == dict(
        zip(NAMES, ["four", "four", "eight", "dense"], strict=True)
    )
    scheme = """
sparsity_stage:
  sparsity_modifiers:
    SparseGPTModifier: {sparsity: 0.5, mask_structure: "2:4", targets: ["re:.*self_attn"]}
quantization_stage:
  quantization_modifiers:
    QuantizationModifier: {ignore: ["lm_head"], scheme: W4A16, targets: Linear}
"""
    assert choices("llm-compressor", scheme, options) == dict(
        zip(NAMES, ["pruned", "four", "four", "dense"], strict=True)
    )


def test_masks_count_what_is_kept() -> None:
    """N:M of llm-compressor drops N of M weights; a run's pattern keeps N."""
    layers = table({"one": {"pattern": "1:4"}, "three": {"pattern": "3:4"}})
    text = export(layers, dict.fromkeys(NAMES, "one"), "llm-compressor")
    assert 'mask_structure: "3:4"' in text and "sparsity: 0.75" in text


def test_files_of_llama_cpp() -> None:
    options = {"four": grid(4, 32), "eight": grid(8, 32), "dense": {"bits": 16}}
    text = "attn_q=Q4_0 blk\\.1\\..*=q8_0\n.*ffn_down=q4_0   OUTPUT.weight=bf16\n"
    assert choices("llama.cpp", text, options) == dict(zip(NAMES, ["four", "four", "eight", "dense"], strict=True))
    written = export(table(options), dict.fromkeys(NAMES, "four"), "llama.cpp")
    assert written.splitlines()[0] == r"^blk\.0\.attn_q\.weight$=q4_0"


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("transformer.h.3.attn.c_attn", "blk.3.attn_qkv"),
        ("h.0.mlp.c_proj", "blk.0.ffn_down"),
        ("gpt_neox.layers.11.attention.dense", "blk.11.attn_output"),
        ("encoder.layer.2.attention.self.key", "blk.2.attn_k"),
        ("bert.encoder.layer.2.output.dense", "blk.2.ffn_down"),
        ("model.layers.0.self_attn.qkv_proj", "blk.0.attn_qkv"),
        ("model.layers.5.mlp.shared_expert.up_proj", "blk.5.ffn_up_shexp"),
        ("transformer.blocks.1.attn.Wqkv", "blk.1.attn_qkv"),
        ("model.embed_tokens", "token_embd"),
    ],
)
def test_names_of_tensors(name: str, tensor: str) -> None:
    text = export(table({"four": grid(4, 32)}, [name]), {name: "four"}, "llama.cpp")
    assert text.replace("\\", "") == f"^{tensor}.weight$=q4_0\n"


FOUR = {"four": grid(4, 128), "dense": {"bits": 16}}


@pytest.mark.parametrize(
    ("tool", "text", "words"),
    [
        ("gptqmodel", "{", "is no JSON"),
        ("gptqmodel", "[]", "no JSON object"),
        ("gptqmodel", '{"+:(": {"bits": 4}}', "no regular expression"),
        ("gptqmodel", '{"+:.*": 4}', "is no mapping"),
        ("gptqmodel", '{"+:.*": {"bits": "4"}}', "write an integer"),
        ("gptqmodel", '{"+:.*": {"sym": 1}}', "write true or false"),
        ("gptqmodel", '{"+:.*": {"group_size": 0}}', "write -1 or a number"),
        ("gptqmodel", '{"+:.*": {"bits": 3}}', "asks for 3 bits, symmetric, a scale per group of 128 in layer"),
        ("auto-round", "{}", "says nothing about layer"),
        ("auto-round", '{".*": "NVFP4"}', "none of W2A16 to W8A16"),
        ("auto-round", '{".*": {"bits": 4, "data_type": "mx_fp"}}', "only 'int'"),
        ("auto-round", '{".*": {"bits": 4, "act_bits": 8}}', "leave out act_bits"),
        ("llm-compressor", "a: [", "is no YAML"),
        ("llm-compressor", "a: 1", "has no stage"),
        ("llm-compressor", "a_stage: {b_modifiers: {SmoothQuantModifier: {}}}", "leave it out"),
        ("llm-compressor", "a_stage: {b_modifiers: {GPTQModifier: {scheme: W8A8, targets: Linear}}}", "none of W4A16"),
        (
            "llm-compressor",
            "a_stage: {b_modifiers: {GPTQModifier: {config_groups: {g: {targets: Linear, weights: {num_bits: 4}, "
            "input_activations: {num_bits: 8}}}}}}",
            "activations of layer",
        ),
        ("llm-compressor", "a_stage: {b_modifiers: {SparseGPTModifier: {sparsity: [1, 2]}}}", "from 0 to 1"),
        ("llm-compressor", "a_stage: {b_modifiers: {SparseGPTModifier: {mask_structure: x}}}", "write N:M"),
        ("llama.cpp", " ", "is empty"),
        ("llama.cpp", "attn_q", "no pattern=type"),
        ("llama.cpp", "attn_q=q4_0", "says nothing about blk.0.ffn_down.weight"),
        ("llama.cpp", ".*=q4_k", "no grid of a run"),
        ("llama.cpp", ".*=q4_0", "a scale per group of 32 in layer"),
    ],
)
def test_files_that_cannot_be_scored(tool: str, text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        choices(tool, text, FOUR)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_what_may_be_two_options_is_refused() -> None:
    with pytest.raises(InputError, match="may be one or other"):
        choices("gptqmodel", {}, {"one": grid(4, 128), "other": grid(4, 128)})
    with pytest.raises(InputError, match="--dense"):
        choices("gptqmodel", {"-:.*": {}}, {"one": grid(4, 128)})
    layers = table({"four": grid(4, 32)}, ["features.0"])
    with pytest.raises(InputError, match=r"layer 'features.0' has no name in GGUF files"):
        allocate(layers, 10).export("llama.cpp")
    with pytest.raises(InputError, match=r"choose gptqmodel, llm-compressor, auto-round, llama\.cpp"):
        find_format("gguf")
    assert [form.name for form in FORMATS.values()] == list(FORMATS)


def test_recipes_need_pyyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingExtraError, match=r"layerbounds\[yaml\]"):
        choices("llm-compressor", "a_stage: {}", FOUR)
