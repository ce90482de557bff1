"""What tensors of GGUF files are called in transformers, by the tables of the package gguf."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from layerbounds.exceptions import MissingExtraError

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")

#: Where transformers keeps the blocks and the rest, where that is not "model.layers." and "model.".
_PREFIXES = {
    "bert": ("encoder.layer.", "embeddings."),
    "bloom": ("h.", ""),
    "exaone": ("transformer.h.", "transformer."),
    "falcon": ("transformer.h.", "transformer."),
    "gpt2": ("transformer.h.", "transformer."),
    "gptj": ("transformer.h.", "transformer."),
    "gptneox": ("gpt_neox.layers.", "gpt_neox."),
    "llada": ("model.transformer.blocks.", "model.transformer."),
    "mamba": ("backbone.layers.", "backbone."),
    "mamba2": ("backbone.layers.", "backbone."),
    "mpt": ("transformer.blocks.", "transformer."),
    "starcoder": ("transformer.h.", "transformer."),
}
_USUAL = ("model.layers.", "model.")
#: Prefixes that the package's tables leave out.
_ADDED = {"bloom": "transformer."}

#: Which of several names in the package's tables is meant: usually,
_CHOICES = {
    "attn_norm": "input_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
    "output_norm": "model.norm",
}
_DENSE_MLP = {
    "attn_qkv": "self_attention.query_key_value",
    "attn_output": "self_attention.dense",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
    "token_embd": "word_embeddings",
    "output_norm": "ln_f",
}
_FOUR_NORMS = {"ffn_norm": "pre_feedforward_layernorm"}
_ONE_SHARED = {f"ffn_{part}_shexp": f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")}
#: and in these architectures.
_CHOICES_OF = {
    "apertus": {"attn_norm": "attention_layernorm", "ffn_norm": "feedforward_layernorm"},
    "bloom": _DENSE_MLP,
    "exaone": {
        "attn_norm": "ln_1",
        "attn_q": "attn.attention.q_proj",
        "attn_k": "attn.attention.k_proj",
        "attn_v": "attn.attention.v_proj",
        "attn_output": "attn.attention.out_proj",
        "ffn_norm": "ln_2",
        "ffn_gate": "mlp.c_fc_0",
        "ffn_up": "mlp.c_fc_1",
        "ffn_down": "mlp.c_proj",
        "output_norm": "ln_f",
    },
    "falcon": _DENSE_MLP,
    "gemma2": _FOUR_NORMS,
    "gemma3": _FOUR_NORMS,
    "glm4": {"ffn_up": "mlp.gate_up_proj", "post_ffw_norm": "post_mlp_layernorm"},
    "gpt-oss": {"ffn_gate_inp": "mlp.router"},
    "gpt2": {"attn_norm": "ln_1"},
    "gptj": {"attn_norm": "ln_1", "attn_output": "attn.out_proj", "ffn_up": "mlp.fc_in", "ffn_down": "mlp.fc_out"},
    "internlm2": {
        "attn_norm": "attention_norm",
        "attn_output": "attention.wo",
        "ffn_norm": "ffn_norm",
        "ffn_gate": "feed_forward.w1",
        "ffn_up": "feed_forward.w3",
        "ffn_down": "feed_forward.w2",
        "token_embd": "tok_embeddings",
    },
    "lfm2": {
        "attn_norm": "operator_norm",
        "attn_output": "self_attn.out_proj",
        "attn_q_norm": "self_attn.q_layernorm",
        "attn_k_norm": "self_attn.k_layernorm",
        "ffn_norm": "ffn_norm",
        "ffn_gate": "feed_forward.w1",
        "ffn_up": "feed_forward.w3",
        "ffn_down": "feed_forward.w2",
        "token_embd_norm": "embedding_norm",
    },
    "llama": {
        "ffn_gate_exps": "block_sparse_moe.experts.w1",
        "ffn_up_exps": "block_sparse_moe.experts.w3",
        "ffn_down_exps": "block_sparse_moe.experts.w2",
    },
    "mamba": {"token_embd": "backbone.embeddings"},
    "mamba2": {"token_embd": "backbone.embeddings"},
    "mpt": {"output_norm": "norm_f"},
    "phi2": {
        "attn_output": "self_attn.dense",
        "ffn_up": "mlp.fc1",
        "ffn_down": "mlp.fc2",
        "output_norm": "model.final_layernorm",
    },
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
    "qwen2moe": _ONE_SHARED,
    "qwen3next": _ONE_SHARED,
    "starcoder": {"attn_norm": "ln_1"},
    "starcoder2": {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
}
#: Architectures whose queries, keys and values are one module in transformers, and three tensors here.
_SPLIT = ("baichuan", "bailingmoe", "internlm2")


def hugging_face_names(architecture: str | None, names: Iterable[str]) -> dict[str, str]:
    """The modules of transformers that tensors are the weights of.

    Parameters
    ----------
    architecture : str or None
        ``general.architecture`` of the file.
    names : iterable of str
        Of tensors, without ``.weight`` or ``.bias``.

    Returns
    -------
    dict of str to str
        Names that the tables have no counterpart for, or the same one as for another, stay as they are.

    Raises
    ------
    MissingExtraError
        If gguf is not installed.
    """
    try:
        from gguf import MODEL_ARCH_NAMES, TensorNameMap
    except ImportError as error:
        raise MissingExtraError("GGUF files need the package gguf; run: pip install 'layerbounds[gguf]'") from error

    wanted = list(names)
    number = next((number for number, name in MODEL_ARCH_NAMES.items() if name == architecture), None)
    if architecture is None or number is None:
        return {name: name for name in wanted}
    candidates: dict[str, list[str]] = {}
    # What Arctic calls some tensors would stay in the table that all share.
    shared = dict(TensorNameMap.block_mappings_cfg)
    try:
        # One block stands for all.
        table = TensorNameMap(number, 1).mapping
    finally:
        TensorNameMap.block_mappings_cfg.clear()
        TensorNameMap.block_mappings_cfg.update(shared)
    for candidate, (_, name) in table.items():
        if candidate != name:
            candidates.setdefault(name, []).append(candidate)
    found = {}
    for name in wanted:
        match = _BLOCK.fullmatch(name)
        block, leaf = ("0", name) if match is None else match.groups()
        inside = [] if match is None else candidates.get(f"blk.0.{leaf}", [])
        chosen = _chosen(architecture, leaf, inside, candidates.get(name, []))
        found[name] = name if chosen is None else chosen.replace(".0.", f".{block}.", 1)
    several = Counter(found.values())
    return {name: name if several[chosen] > 1 else chosen for name, chosen in found.items()}


def _chosen(architecture: str, leaf: str, inside: list[str], outside: list[str]) -> str | None:
    """The name in transformers: one of those in block 0, or of those outside of blocks."""
    if leaf == "output":
        return "lm_head"
    if architecture in _SPLIT and leaf in ("attn_q", "attn_k", "attn_v"):
        return None
    block, whole = _PREFIXES.get(architecture, _USUAL)
    named = [name for name in inside if name.startswith(block)]
    named += [name for name in outside if name.startswith(whole) and ".0." not in name]
    wanted = _CHOICES_OF.get(architecture, {}).get(leaf, _CHOICES.get(leaf))
    preferred = [name for name in named if wanted is not None and f".{name}".endswith(f".{wanted}")]
    chosen = next(iter(preferred or named), None)
    added = _ADDED.get(architecture, "")
    return chosen if chosen is None or chosen.startswith(added) else added + chosen
