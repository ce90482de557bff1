"""Which normalisation a linear layer sees the output of, by the names that models of transformers have."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fractions import Fraction
from typing import Any

#: Ends of linear layers' names, and the normalisations before them, from the same block; the first that a model has.
#: Sources: the modules of `transformers` of Llama, Mistral, Qwen, Phi, Mixtral, Gemma, Cohere, OPT, GPT-2, GPT-J,
#: GPT-NeoX, BLOOM, Falcon and MPT.
_RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        r"self_attn\.(q_proj|k_proj|v_proj|qkv_proj|q_a_proj|kv_a_proj_with_mqa)",
        ("input_layernorm", "self_attn_layer_norm"),
    ),
    (
        r"(mlp|feed_forward)\.(gate_proj|up_proj|gate_up_proj)",
        ("pre_feedforward_layernorm", "post_attention_layernorm", "input_layernorm"),
    ),
    (
        r"(mlp|feed_forward|block_sparse_moe)\.(gate|router|shared_expert_gate"
        r"|(experts\.\d+|shared_experts?)\.(gate_proj|up_proj|w1|w3))",
        ("pre_feedforward_layernorm", "post_attention_layernorm"),
    ),
    (r"mlp\.fc1", ("post_attention_layernorm", "input_layernorm")),
    (r"fc1", ("final_layer_norm",)),
    (r"attn\.(c_attn|q_proj|k_proj|v_proj)", ("ln_1",)),
    (r"mlp\.(c_fc|fc_in)", ("ln_2", "ln_1")),
    (r"(self_attention|attention)\.query_key_value", ("ln_attn", "input_layernorm")),
    (r"mlp\.dense_h_to_4h", ("ln_mlp", "post_attention_layernorm", "input_layernorm")),
    (r"attn\.Wqkv", ("norm_1",)),
    (r"ffn\.(up_proj|gate_proj)", ("norm_2",)),
)
#: The output layer sees what the last normalisation gives.
_HEADS = ("lm_head", "embed_out", "output")
_LAST = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")
#: Linear layers behind another linear layer, whose output rows may carry the factors that their inputs are divided by.
_BEHIND: tuple[tuple[str, str], ...] = (
    (r"o_proj|out_proj|attn\.c_proj|attention\.dense", "the value projection"),
    (r"down_proj|w2|fc2|fc_out|mlp\.c_proj|dense_4h_to_h", "the layer before it"),
)
#: Of these, the ones between which factors move without changing anything: values are only averaged, and what is
#: multiplied by the gate is linear.
_PAIRS: tuple[tuple[str, str], ...] = (
    ("self_attn.o_proj", "self_attn.v_proj"),
    ("self_attn.out_proj", "self_attn.v_proj"),
    ("attn.c_proj", "attn.c_attn"),
    ("mlp.down_proj", "mlp.up_proj"),
    ("feed_forward.down_proj", "feed_forward.up_proj"),
    ("w2", "w3"),
)
#: Architectures whose normalisations multiply by one more than the weight that is stored (``1 + self.weight``, or
#: ``self.weight + 1``, in their modules of `transformers`).
_ONE_MORE = frozenset(
    (
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "nemotron",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "qwen3_next",
        "recurrent_gemma",
        "t5gemma",
        "vaultgemma",
    )
)


def block_of(name: str) -> str:
    """The block of a model that a tensor or layer belongs to, such as ``model.layers.3.``; empty outside of blocks."""
    found = re.match(r"(.*?\.)??\d+\.", name)
    return found.group() if found else ""


def norm_before(name: str, tensors: Collection[str]) -> str | None:
    """The normalisation that a linear layer sees the output of, of those that a model has; None where unknown.

    Parameters
    ----------
    name : str
        Of the linear layer.
    tensors : collection of str
        Names of the model's tensors.
    """
    block = block_of(name)
    rest = name[len(block) :]
    if not block:
        if rest.rpartition(".")[2] not in _HEADS:
            return None
        found = [t.removesuffix(".weight") for t in tensors if not block_of(t) and _is(t, _LAST)]
        return found[0] if len(found) == 1 else None
    if f"{block}post_feedforward_layernorm.weight" in tensors and (
        f"{block}pre_feedforward_layernorm.weight" not in tensors
    ):
        # The normalisations stand behind the layers.
        return None
    for end, choices in _RULES:
        if re.fullmatch(end, rest):
            return next((block + norm for norm in choices if f"{block}{norm}.weight" in tensors), None)
    return None


def linear_before(name: str) -> str | None:
    """In words, the linear layer whose outputs a layer sees in such a way that factors may move between the two."""
    rest = name[len(block_of(name)) :]
    return next((what for end, what in _BEHIND if re.fullmatch(rf"(.*\.)?({end})", rest)), None)


def linear_partner(name: str) -> str | None:
    """The linear layer whose outputs are a layer's inputs, up to what factors pass through; None where unknown."""
    for own, before in _PAIRS:
        if name.endswith(f".{own}"):
            return name.removesuffix(own) + before
    return None


def share_behind(name: str) -> Fraction:
    """How many of a layer's outputs, counted from the last, the second layer of such a pair sees; 0 where none does."""
    if not any(name.endswith(f".{before}") for _, before in _PAIRS):
        return Fraction(0)
    # Queries, keys and values, the values last.
    return Fraction(1, 3) if name.endswith(".c_attn") else Fraction(1)


def added_to_norms(config: Mapping[str, Any]) -> float:
    """What the architecture of a model adds to the stored weights of its normalisations."""
    inner = config.get("text_config")
    kinds = {config.get("model_type"), inner.get("model_type") if isinstance(inner, Mapping) else None}
    return 1.0 if kinds & _ONE_MORE else 0.0


def _is(tensor: str, names: tuple[str, ...]) -> bool:
    return tensor.removesuffix(".weight").rpartition(".")[2] in names and tensor.endswith(".weight")
