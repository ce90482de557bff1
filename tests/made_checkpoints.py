"""Quantized checkpoints made in memory, for tests of what is done with any format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import layerbounds as lb
from layerbounds.checkpoints.checkpoint import Checkpoint
from layerbounds.checkpoints.reader import Reader
from layerbounds.checkpoints.writers import compressed_tensors, gptq
from layerbounds.checkpoints.writers.stored import save_tensors
from layerbounds.checkpoints.writers.stored import stored as as_tensor
from layerbounds.layers.files import write_tensors


class _Made(Reader):
    def __init__(self, weights: Mapping[str, lb.QuantizedWeight], dense: Mapping[str, Any], path: Path) -> None:
        self.path, self.label = path, "made"
        self._weights, self._dense = dict(weights), {k: np.asarray(v, dtype=float) for k, v in dense.items()}
        self.names, self.dense_names = list(weights), list(dense)

    def weight(self, name: str) -> lb.QuantizedWeight:
        return self._weights[name]

    def dense(self, name: str) -> Any:
        return self._dense[name]


def checkpoint(
    weights: Mapping[str, lb.QuantizedWeight], dense: Mapping[str, Any] | None = None, path: str = "made.safetensors"
) -> Checkpoint:
    return Checkpoint(_Made(weights, dense or {}, Path(path)))


def quantized(name: str, grid: lb.Grid, matrix: Any, **fields: Any) -> lb.QuantizedWeight:
    """The weight of a matrix that lies on a grid, or next to it."""
    matrix = np.asarray(matrix, dtype=float)
    shape, flat = matrix.shape, matrix.reshape(len(matrix), -1)
    codes = np.zeros(flat.shape, dtype=np.int64)
    for row in range(len(flat)):
        levels = np.stack([grid.weights(row, np.full(flat.shape[1], k)) for k in range(len(grid.codes))], axis=1)
        codes[row] = np.argmin(np.abs(levels - flat[row][:, None]), axis=1)
    own = {"format": "made, 3 bits", "dtype": "float16", "bits": 3 * flat.size, "shape": shape}
    return lb.QuantizedWeight(name=name, grid=grid, codes=codes, **{**own, **fields})


N, BLOCK = 32, "model.layers.0."
ATTENTION = [f"{BLOCK}self_attn.{p}_proj" for p in "qkv"]
MLP = [f"{BLOCK}mlp.{p}_proj" for p in ("gate", "up")]
BEHIND = f"{BLOCK}self_attn.o_proj"


class Toy:
    """A block of a Llama: dense tensors, layers captured from them, and what a quantized form of it stores."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        half = lambda *shape: rng.normal(size=shape).astype(np.float16)  # noqa: E731
        self.dense: dict[str, Any] = {f"{name}.weight": half(N, N) for name in (*ATTENTION, *MLP, BEHIND)}
        self.dense |= {
            f"{BLOCK}input_layernorm.weight": (1 + 0.3 * rng.normal(size=N)).astype(np.float16),
            f"{BLOCK}post_attention_layernorm.weight": (1 + 0.3 * rng.normal(size=N)).astype(np.float16),
            "model.norm.weight": np.ones(N, dtype=np.float16),
            "model.embed_tokens.weight": half(50, N),
        }
        self.normalised = rng.normal(size=(300, N)) @ (np.eye(N) + 0.2 * rng.normal(size=(N, N)))

    def inputs(self, name: str) -> Any:
        norm = "post_attention_layernorm" if "mlp" in name else "input_layernorm"
        return self.normalised * self.dense[f"{BLOCK}{norm}.weight"].astype(float)

    def layers(self) -> dict[str, lb.Layer]:
        names = [n.removesuffix(".weight") for n in self.dense if n.endswith("_proj.weight")]
        return {n: lb.Layer.from_activations(self.dense[f"{n}.weight"], self.inputs(n), n) for n in names}

    def save(self, folder: Path, **config: Any) -> Path:
        folder.mkdir()
        write_tensors(folder / "model.safetensors", self.dense, {})
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}), encoding="utf-8")
        return folder


def stored(
    folder: Path, toy: Toy, change: Callable[[dict[str, Any]], None] = lambda tensors: None, form: str = "gptq"
) -> Path:
    """A checkpoint of a model whose tensors (float64) were changed first; 4 bits, rounded to nearest."""
    tensors = {name: value.astype(float) for name, value in toy.dense.items()}
    change(tensors)
    written: dict[str, Any] = {}
    about: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": -1, "sym": True, "desc_act": False}
    for name, value in tensors.items():
        base = name.removesuffix(".weight")
        if not base.endswith("_proj"):
            written[name] = as_tensor(value.astype(np.float16))
            continue
        grid = lb.uniform_grid(value, 4)
        scale = grid.scale.astype(np.float16).astype(float)
        weight = quantized(base, lb.Grid(grid.codes, scale, 0.0, value.shape[1]), value)
        if form == "gptq":
            parts = {part: as_tensor(array) for part, array in gptq.tensors(weight).items()}
        else:
            parts = compressed_tensors.tensors(weight)
            group = {**compressed_tensors.scheme(weight), "targets": ["Linear"]}
            about = {"quant_method": form, "format": group["format"], "config_groups": {"group_0": group}}
        written |= {f"{base}.{part}": tensor for part, tensor in parts.items()}
    folder.mkdir()
    save_tensors(folder / "model.safetensors", written)
    config = {"model_type": "llama", "quantization_config": about}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


#: What llama.cpp calls the tensors of a block.
_GGUF = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def stored_gguf(path: Path, toy: Toy) -> Path:
    """The model as a GGUF file of Q4_0, rows of queries and keys in the order of llama.cpp, by the package gguf."""
    from gguf_files import gguf, write_file

    kind = gguf.GGMLQuantizationType.Q4_0
    written: dict[str, Any] = {}
    for name, value in toy.dense.items():
        base = name.removesuffix(".weight")
        short = _GGUF.get(base.removeprefix(BLOCK), {"model.norm": "output_norm"}.get(base, "token_embd"))
        name = f"blk.0.{short}.weight" if base.startswith(BLOCK) else f"{short}.weight"
        if not base.endswith("_proj"):
            written[name] = value.astype(np.float32)
            continue
        if short in ("attn_q", "attn_k"):
            value = value.reshape(4, 2, N // 8, N).swapaxes(1, 2).reshape(N, N)
        written[name] = gguf.quants.quantize(value.astype(np.float32), kind), "Q4_0"
    keys = {"attention__head_count": 4, "attention__head_count_kv": 4, "block_count": 1, "embedding_length": N}
    return write_file(path, written, "llama", **keys)
