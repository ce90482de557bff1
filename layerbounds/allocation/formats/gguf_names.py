"""Names of tensors in GGUF files, from names of modules in transformers."""

from __future__ import annotations

import re

from layerbounds.exceptions import InputError

#: Where blocks are, by family of models.
_BLOCKS = re.compile(
    r"(?:model\.(?:language_model\.|decoder\.)?|language_model\.model\.|transformer\.|gpt_neox\.|bert\.|roberta\.)?"
    r"(?:layers|h|blocks|encoder\.layer)\.(\d+)\.(.+)"
)
#: What is in a block.
_PARTS = {
    "attn_q": ("self_attn.q_proj", "attention.self.query"),
    "attn_k": ("self_attn.k_proj", "attention.self.key"),
    "attn_v": ("self_attn.v_proj", "attention.self.value"),
    "attn_qkv": (
        "self_attn.qkv_proj", "attn.c_attn", "attention.query_key_value", "self_attention.query_key_value", "attn.Wqkv",
    ),
    "attn_output": (
        "self_attn.o_proj", "self_attn.dense", "attn.c_proj", "attention.dense", "self_attention.dense",
        "attention.output.dense", "attn.out_proj",
    ),
    "ffn_gate": ("mlp.gate_proj",),
    "ffn_up": (
        "mlp.up_proj", "mlp.gate_up_proj", "mlp.c_fc", "mlp.fc1", "mlp.dense_h_to_4h", "intermediate.dense",
        "ffn.up_proj",
    ),
    "ffn_down": (
        "mlp.down_proj", "mlp.c_proj", "mlp.fc2", "mlp.dense_4h_to_h", "output.dense", "ffn.down_proj",
    ),
    "ffn_gate_shexp": ("mlp.shared_expert.gate_proj",),
    "ffn_up_shexp": ("mlp.shared_expert.up_proj",),
    "ffn_down_shexp": ("mlp.shared_expert.down_proj",),
}  # fmt: skip
_PART = {name: part for part, names in _PARTS.items() for name in names}
#: What is outside of blocks.
_WHOLE = {"lm_head": "output", "embed_out": "output", "model.embed_tokens": "token_embd"}


def gguf_name(name: str) -> str:
    """The tensor of a module's weight.

    Raises
    ------
    InputError
        If the name is none of those known.
    """
    if name in _WHOLE:
        return f"{_WHOLE[name]}.weight"
    match = _BLOCKS.fullmatch(name)
    part = None if match is None else _PART.get(match[2])
    if match is None or part is None:
        raise InputError(
            f"layer {name!r} has no name in GGUF files that is known here, which are those of Llama, Mistral, Qwen, "
            "Gemma, Phi, Falcon, Bloom, MPT, StarCoder, GPT-2, GPT-NeoX and BERT; write that line by hand."
        )
    return f"blk.{match[1]}.{part}.weight"
