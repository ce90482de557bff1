"""How llama.cpp's converter orders the rows of attention weights, and how transformers does.

As its scripts do it (conversion/*.py of ggml-org/llama.cpp): queries and keys of models that rotate the halves of a
head against each other are stored so that neighbours are rotated; fused weights have all queries first.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from layerbounds.arrays import Int
from layerbounds.checkpoints.gguf.container import Container

#: Queries and keys of these are stored with rotated pairs side by side: LlamaModel.permute and its like.
_PAIRED = frozenset(
    (
        "arcee", "arctic", "baichuan", "bailingmoe", "chameleon", "deci", "deepseek", "granite", "granitehybrid",
        "granitemoe", "internlm2", "llada", "llama", "llama-embed", "minicpm", "mistral3", "olmo", "smollm3", "xverse",
    )
)  # fmt: skip
#: For fewer heads of keys than of queries, the converter of these divides one number by the other.
_DIVIDED = frozenset(("baichuan", "xverse"))
#: Fused queries, keys and values of these are apart for each head in transformers: BloomModel, GPTNeoXModel.
_BY_HEAD = frozenset(("bloom", "gptneox"))
#: Of these they are apart for each head of keys: FalconModel.
_BY_KEY_HEAD = frozenset(("falcon",))
#: Rows of these are as transformers has them.
_PLAIN = frozenset(
    (
        "apertus", "bert", "bitnet", "cohere2", "command-r", "ernie4_5", "ernie4_5-moe", "exaone", "exaone4", "gemma",
        "gemma-embedding", "gemma2", "gemma3", "glm4moe", "gpt-oss", "gpt2", "mamba", "mamba2", "mpt", "nemotron",
        "olmo2", "olmoe", "phi2", "phi3", "phimoe", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "seed_oss", "stablelm",
        "starcoder", "starcoder2",
    )
)  # fmt: skip
_KNOWN = _PLAIN | _PAIRED | _BY_HEAD | _BY_KEY_HEAD
#: Norms of these are stored plus 1.
_SHIFTED_NORMS = frozenset(("gemma", "gemma-embedding", "gemma2", "gemma3", "nemotron"))

_ATTENTION = re.compile(r"blk\.(\d+)\.attn_(q|k|qkv)")


class Orders:
    """Rows of the tensors of a file.

    Parameters
    ----------
    container : Container
        Of the metadata.

    Attributes
    ----------
    architecture : str or None
    """

    def __init__(self, container: Container) -> None:
        self._container = container
        name = container.value("general.architecture")
        self.architecture = name if isinstance(name, str) else None

    def rows(self, name: str, count: int) -> Int | None:
        """The row of the tensor that each row in transformers is; None where they are the same.

        Parameters
        ----------
        name : str
            Of a tensor, without ``.weight`` or ``.bias``.
        count : int
            Of rows.

        Raises
        ------
        FileFormatError
            If the rows do not fit the numbers of heads in the file.
        """
        match = _ATTENTION.fullmatch(name)
        if match is None:
            return None
        part = match[2]
        order = self._order(part)
        if order is None:
            return None
        heads = self._heads("head_count", int(match[1]), None)
        keys = self._heads("head_count_kv", int(match[1]), heads)
        if part == "k" and keys != heads:
            heads = heads // max(keys, 1) if self.architecture in _DIVIDED else keys
        found = order(count, heads, keys) if heads > 0 and keys > 0 else None
        if found is None or len(found) != count:
            raise self._container.fault(f"the {count} rows of tensor {name!r} are not those of {heads} heads")
        return found

    def note(self, name: str) -> tuple[str, ...]:
        """What a reader should know about the rows of a tensor."""
        match = _ATTENTION.fullmatch(name)
        if match is not None and self._order(match[2]) is not None:
            return ("rows are in the order of transformers, not in that of the file",)
        if self.architecture in _KNOWN or not name.startswith("blk."):
            return ()
        return (
            f"rows are as in the file: how transformers names and orders those of {self.architecture!r} was not "
            "looked up",
        )

    def shifted(self, name: str) -> bool:
        """Whether 1 was added to a tensor, with its end."""
        return self.architecture in _SHIFTED_NORMS and name.endswith("norm.weight")

    def _order(self, part: str) -> Callable[[int, int, int], Int] | None:
        if part != "qkv":
            return _paired if self.architecture in _PAIRED else None
        if self.architecture in _BY_HEAD:
            return _by_head
        return _by_key_head if self.architecture in _BY_KEY_HEAD else None

    def _heads(self, key: str, block: int, default: int | None) -> int:
        full = f"{self.architecture}.attention.{key}"
        value = self._container.value(full)
        if isinstance(value, list):
            value = value[block] if block < len(value) else None
        elif value is None:
            value = default
        if type(value) is not int:
            raise self._container.fault(f"key {full!r} does not say how many heads block {block} has")
        return value


def _paired(count: int, heads: int, _keys: int) -> Int:
    half = count // heads // 2
    return np.arange(2 * half * heads).reshape(heads, half, 2).swapaxes(1, 2).ravel()


def _by_head(count: int, heads: int, _keys: int) -> Int:
    size = count // heads // 3
    return np.arange(3 * size * heads).reshape(3, heads, size).swapaxes(0, 1).ravel()


def _by_key_head(count: int, heads: int, keys: int) -> Int:
    size = count // (heads + 2 * keys)
    if heads % keys:
        return np.zeros(0, dtype=np.int64)
    rows = np.arange((heads + 2 * keys) * size).reshape(heads + 2 * keys, size)
    queries = rows[:heads].reshape(keys, heads // keys, size)
    groups = [queries, rows[heads : heads + keys, None], rows[heads + keys :, None]]
    return np.concatenate(groups, axis=1).ravel()
