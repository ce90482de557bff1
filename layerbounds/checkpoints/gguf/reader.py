"""Weights of GGUF files: decoded, named and ordered as in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.arrays import Float
from layerbounds.checkpoints.gguf.container import is_integer, is_plain
from layerbounds.checkpoints.gguf.index import Index, Place
from layerbounds.checkpoints.gguf.types import LAYOUTS, Decoded
from layerbounds.checkpoints.reader import Reader
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.exceptions import FileFormatError
from layerbounds.problems.grids import Grid

#: What weights are turned into by llama.cpp's own dequantization.
_DTYPE = "float32"
_LARGEST = float(np.finfo(np.float32).max)
#: Factors of whole tensors, which llama.cpp applies to what a layer puts out; and what they are called.
_FACTOR, _INPUT_FACTOR = ".scale", ".input_scale"


class GgufReader(Reader):
    """A GGUF file, or the parts of one.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self._index = Index(path)
        self.path = self._index.path
        self._places: dict[str, Place] = {}
        self._dense: dict[str, Place] = {}
        kinds: dict[str, None] = {}
        for place in self._index.places:
            tensor = place.tensor
            if is_plain(tensor):
                if not tensor.name.endswith((_FACTOR, _INPUT_FACTOR)):
                    self._dense[place.name + place.end] = place
            elif not is_integer(tensor):
                kinds[tensor.label] = None
                self._places |= {part.name: part for part in place.experts()}
        if not self._places:
            raise FileFormatError(
                f"{self.path} holds no quantized weights; for weights that are stored as plain numbers, use "
                "`layerbounds solve --warm-start` or lb.evaluate."
            )
        self.label = f"GGUF ({', '.join(kinds)})"
        self.names = list(self._places)
        self.dense_names = list(self._dense)

    def weight(self, name: str) -> QuantizedWeight:
        """Decode a layer."""
        place = self._places[name]
        container, tensor = place.container, place.tensor
        raw = container.raw(tensor)
        assert tensor.kind is not None
        kind = tensor.kind
        layout = LAYOUTS.get(kind.name)
        if layout is None:
            raise FileFormatError(
                f"{container.path}: tensor {tensor.name!r} ({name}) is of type {kind.name}, whose weights are not on a "
                "grid of single weights (IQ1 to IQ3 take groups of weights from a table), or which is no type of "
                f"weights; types that can be scored are {', '.join(LAYOUTS)}."
            )
        if place.expert is None and len(tensor.shape) != 2:
            raise FileFormatError(
                f"{container.path}: tensor {tensor.name!r} ({name}) has the shape {tensor.shape}; of weights, only "
                "matrices are read."
            )
        out, n = tensor.shape[-2:]
        bits = 8 * tensor.size
        if place.expert is not None:
            bits //= tensor.shape[0]
            raw = raw.reshape(tensor.shape[0], -1)[place.expert]
        with np.errstate(invalid="ignore"):
            found = layout.decode(raw.reshape(out, n // kind.block, kind.size))
        if found.codes.size and int(found.codes.max()) >= len(layout.codes):
            raise container.fault(f"tensor {tensor.name!r} holds a code that {kind.name} does not have")
        shared = dict(found.parts)
        scale, offset = found.scale, np.zeros(found.scale.shape) if found.offset is None else found.offset
        factor = self._factor(place)
        notes = list(self._index.orders.note(place.base))
        if factor is not None:
            scale, offset = scale * factor, offset * factor
            shared |= {"block_scale": shared.get("block_scale", found.scale), "tensor_scale": np.array(factor)}
            notes.append(f"times {factor:g}, a factor of the whole tensor ({place.base}{_FACTOR})")
            bits += 32
        self._check(place, found, layout.codes, scale, offset)
        codes = found.codes
        order = None if place.expert is not None else self._index.orders.rows(place.base, out)
        if order is not None:
            codes, scale, offset = codes[order], scale[order], offset[order]
            shared = {part: values[order] if np.ndim(values) else values for part, values in shared.items()}
        grid = Grid(
            np.array(layout.codes), scale, np.zeros(scale.shape), n, layout.group, label=kind.name, offset=offset
        )
        return QuantizedWeight(
            name,
            f"GGUF {kind.name}, groups of {layout.group}",
            grid,
            codes,
            (out, n),
            _DTYPE,
            bits,
            tuple(notes),
            shared,
        )

    def _factor(self, place: Place) -> float | None:
        found = self._index.tensors.get(place.base + _FACTOR)
        if found is None or not is_plain(found[1]):
            return None
        values = found[0].plain(found[1]).astype(np.float64).ravel()
        index = 0 if values.size == 1 else place.expert
        if index is None or index >= values.size or not np.isfinite(values[index]):
            raise place.container.fault(f"tensor {found[1].name!r} is no factor of {place.tensor.name!r}")
        return float(values[index])

    def _check(self, place: Place, found: Decoded, codes: tuple[float, ...], scale: Float, offset: Float) -> None:
        """Refuse scales that are no numbers, and weights beyond the type that they are turned into."""
        if not (np.all(np.isfinite(scale)) and np.all(np.isfinite(offset))):
            raise place.container.fault(f"tensor {place.tensor.name!r} holds scales that are NaN or infinite")
        largest = max(abs(code) for code in codes)
        reach = float(np.abs(scale).max(initial=0.0)) * largest
        if reach <= _LARGEST / 2:
            return
        sizes = np.abs(np.array(codes)[found.codes]).reshape(*scale.shape, -1).max(axis=-1)
        if np.any(sizes * np.abs(scale) > _LARGEST):
            raise place.container.fault(f"tensor {place.tensor.name!r} holds weights beyond the range of float32")

    def dense(self, name: str) -> Float:
        """Read a tensor that is not quantized, in float64."""
        place = self._dense[name]
        container, tensor = place.container, place.tensor
        values: NDArray[Any] = container.plain(tensor)
        if not np.all(np.isfinite(values)):
            raise container.fault(f"tensor {tensor.name!r} holds NaN or infinity")
        wide = values.astype(np.float64)
        if self._index.orders.shifted(tensor.name):
            # As transformers does it, in the type of the file.
            wide = (values - values.dtype.type(1)).astype(np.float64)
        order = self._index.orders.rows(place.base, wide.shape[0]) if wide.ndim else None
        return wide if order is None else wide[order]
