"""A checkpoint that is quantized: its layers by name, decoded when they are asked for."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from layerbounds.arguments import as_path
from layerbounds.arrays import Float
from layerbounds.checkpoints.formats.registry import FORMATS, Format
from layerbounds.checkpoints.gguf.container import located
from layerbounds.checkpoints.gguf.reader import GgufReader
from layerbounds.checkpoints.reader import Reader
from layerbounds.checkpoints.source import Source
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.display import Displayed, Summary, Table
from layerbounds.exceptions import FileFormatError
from layerbounds.layers.tensor_files import WIDE_FLOATS, open_tensors
from layerbounds.names import match_name


class Checkpoint(Displayed, Mapping[str, QuantizedWeight]):
    """Quantized weights by the names of their layers, and the tensors beside them.

    A mapping that decodes a layer when it is asked for, so that files of any size can be read. Names are those of the
    checkpoint; ``checkpoint["…"]`` takes unique ends of them, too.

    Attributes
    ----------
    path : Path
        The file with the weights, or the index of shards.
    label : str
        The formats in words.
    dense : mapping of str to ndarray
        The tensors that are not quantized, by their full names, read when they are asked for: norms, biases,
        embeddings.

    Examples
    --------
    >>> from safetensors.numpy import save_file
    >>> packed = {"fc.qweight": np.zeros((2, 1), np.int32), "fc.qzeros": np.zeros((1, 1), np.int32)}
    >>> save_file({**packed, "fc.scales": np.ones((1, 8), np.float16)}, "awq.safetensors")
    >>> checkpoint = lb.load_checkpoint("awq.safetensors")
    >>> list(checkpoint)
    ['fc']
    >>> checkpoint["fc"].codes.shape
    (8, 2)
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.path = reader.path
        self.label = reader.label
        self.dense: Mapping[str, Float] = _Dense(reader)

    def __getitem__(self, name: str) -> QuantizedWeight:
        return self._reader.weight(match_name(name, self._reader.names, f"quantized layer in {self.path}"))

    def __contains__(self, name: object) -> bool:
        return name in self._reader.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader.names)

    def __len__(self) -> int:
        return len(self._reader.names)

    def _summary(self) -> Summary:
        dense = len(self._reader.dense_names)
        return Summary(str(self.path), [self.label, f"{len(self)} quantized layers, {dense} other tensors"])

    def _tables(self) -> list[Table]:
        return [Table({"quantized layer": "text"}, [[name] for name in self])]

    def __repr__(self) -> str:
        return f"<Checkpoint {str(self.path)!r}: {self.label}, {len(self)} quantized layers>"


class _Dense(Mapping[str, Float]):
    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._names = frozenset(reader.dense_names)

    def __getitem__(self, name: str) -> Float:
        if name not in self._names:
            raise KeyError(name)
        return self._reader.dense(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader.dense_names)

    def __len__(self) -> int:
        return len(self._reader.dense_names)


class _Tensors(Reader):
    """Tensors by name, of one format or of several."""

    def __init__(self, path: Path) -> None:
        stack = ExitStack()
        self._close = weakref.finalize(self, stack.close)
        self._source = Source(stack.enter_context(open_tensors(path)))
        self.path = self._source.path
        self._formats: dict[str, Format] = {}
        for form in FORMATS:
            for name in form.names(self._source):
                self._formats.setdefault(name, form)
        if not self._formats:
            raise FileFormatError(_unknown(self._source))
        self.names = list(self._formats)
        used = dict.fromkeys(self._formats.values())
        self.label = ", ".join(form.LABEL for form in used)
        taken = {part for name, form in self._formats.items() for part in form.parts(self._source, name)}
        self.dense_names = sorted(
            name for name in self._source.names - taken if self._source.entry(name).kind in WIDE_FLOATS
        )

    def weight(self, name: str) -> QuantizedWeight:
        return self._formats[name].read(self._source, name)

    def dense(self, name: str) -> Float:
        return self._source.floats(name)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a quantized checkpoint: its weights by the names of their layers, and the grids on which these lie.

    Parameters
    ----------
    path : path-like
        A folder with a model, a safetensors file, an index of shards, a state dict of PyTorch
        (`layerbounds.layers.tensor_files.open_tensors`), or a GGUF file. A folder's ``config.json`` is used where
        it says something reliable.

    Returns
    -------
    Checkpoint
        Layers are decoded when they are asked for.

    Raises
    ------
    FileFormatError
        If it is missing, damaged, not quantized, or of a format that is not known.
    MissingExtraError
        If a package is needed and not installed.

    Examples
    --------
    >>> from safetensors.numpy import save_file
    >>> packed = {"fc.qweight": np.zeros((2, 1), np.int32), "fc.qzeros": np.zeros((1, 1), np.int32)}
    >>> save_file({**packed, "fc.scales": np.ones((1, 8), np.float16)}, "awq.safetensors")
    >>> lb.load_checkpoint("awq.safetensors").label
    'AWQ'
    """
    source = as_path(path, "path")
    file = located(source)
    return Checkpoint(_Tensors(source) if file is None else GgufReader(file))


def _unknown(source: Source) -> str:
    said = source.quantization.get("quant_method")
    if said is not None:
        return f"{source.path} is quantized by {said!r}, which is not known here; see docs/checkpoints.md for what is."
    return (
        f"{source.path} holds no quantized weights of a format that is known (docs/checkpoints.md); for weights that "
        "are stored as plain numbers, use `layerbounds solve --warm-start` or lb.evaluate."
    )
