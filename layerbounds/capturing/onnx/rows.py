"""How the inputs of ONNX operators become rows of X, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from layerbounds.arrays import Float
from layerbounds.layers.im2col import as_rows, windows

#: Bytes of one block of rows in float64.
BLOCK_BYTES = 64 * 2**20


class Rows(Protocol):
    """One way to multiply; equal ones give equal rows for equal inputs."""

    @property
    def groups(self) -> int:
        """Groups with a Gram matrix each."""
        ...

    def blocks(self, x: NDArray[Any], n: int) -> Iterator[Float]:
        """Rows of shape (groups, positions, n), in float64."""
        ...

    def outputs(self, y: NDArray[Any], n: int) -> NDArray[Any]:
        """The node's outputs as (positions, out), in the order of the rows."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a reader needs to rebuild the operator, beside its kind."""
        ...


@dataclass(frozen=True)
class MatrixRows:
    """A matrix product with the last axis, or the axis before it.

    Attributes
    ----------
    flipped : bool
        Whether the axis before the last one is multiplied.
    columns : bool
        Whether outputs are columns: the axis before the last one has the output channels.
    factor : float
        That the product is multiplied by.
    """

    flipped: bool = False
    columns: bool = False
    factor: float = 1.0
    groups: int = 1

    def blocks(self, x: NDArray[Any], n: int) -> Iterator[Float]:
        """See `Rows.blocks`."""
        flat = (x.swapaxes(-1, -2) if self.flipped else x).reshape(-1, n)
        step = max(1, BLOCK_BYTES // (8 * n))
        for start in range(0, len(flat), step):
            block = flat[start : start + step].astype(np.float64)
            yield (block * self.factor if self.factor != 1.0 else block)[None]

    def outputs(self, y: NDArray[Any], n: int) -> NDArray[Any]:
        """See `Rows.outputs`."""
        return (y.swapaxes(-1, -2) if self.columns else y).reshape(-1, n)

    def describe(self) -> dict[str, Any]:
        """See `Rows.describe`."""
        return {}


@dataclass(frozen=True)
class ConvRows:
    """A convolution.

    Attributes
    ----------
    kernel, stride, dilation : tuple of int
    padding : tuple of (int, int)
    same : str
        ``"upper"`` or ``"lower"`` where the padding follows from the sizes, which are divided by the stride, and where
        the odd zero goes; else empty.
    groups : int
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    same: str
    groups: int

    @classmethod
    def of_node(cls, attributes: Mapping[str, Any], shape: tuple[int, ...]) -> ConvRows:
        """From a node's attributes and the shape of its weights."""
        dims = len(shape) - 2

        def numbers(name: str, default: int, count: int) -> tuple[int, ...]:
            return tuple(attributes[name].ints) if name in attributes else (default,) * count

        auto = attributes["auto_pad"].s.decode() if "auto_pad" in attributes else "NOTSET"
        pads = numbers("pads", 0, 2 * dims) if auto == "NOTSET" else (0,) * (2 * dims)
        return cls(
            shape[2:],
            numbers("strides", 1, dims),
            tuple(zip(pads[:dims], pads[dims:], strict=True)),
            numbers("dilations", 1, dims),
            {"SAME_UPPER": "upper", "SAME_LOWER": "lower"}.get(auto, ""),
            int(attributes["group"].i) if "group" in attributes else 1,
        )

    def pads(self, sizes: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """Zeros before and after each axis of positions of these sizes."""
        if not self.same:
            return self.padding
        found = []
        for size, k, s, d in zip(sizes, self.kernel, self.stride, self.dilation, strict=True):
            total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
            less, more = total // 2, total - total // 2
            found.append((less, more) if self.same == "upper" else (more, less))
        return tuple(found)

    def blocks(self, x: NDArray[Any], n: int) -> Iterator[Float]:
        """See `Rows.blocks`."""
        pads = self.pads(x.shape[2:])
        rows = max(1, BLOCK_BYTES // (8 * n * self.groups))
        shape = windows(x[:1], self.kernel, self.stride, pads, self.dilation).shape[2 : 2 + len(self.kernel)]
        per_line = max(1, int(np.prod(shape[1:])))
        images = max(1, rows // max(1, shape[0] * per_line))
        step = max(1, rows // per_line)
        for image in range(0, len(x), images):
            view = windows(x[image : image + images], self.kernel, self.stride, pads, self.dilation)
            for line in range(0, shape[0], step):
                # Part of the lines only where they are those of one image.
                yield as_rows(view[:, :, line : line + step], self.groups).astype(np.float64)

    def outputs(self, y: NDArray[Any], n: int) -> NDArray[Any]:
        """See `Rows.outputs`."""
        return np.moveaxis(y, 1, -1).reshape(-1, n)

    def describe(self) -> dict[str, Any]:
        """See `Rows.describe`."""
        return {
            "stride": list(self.stride),
            "padding": f"same_{self.same}" if self.same else [list(pair) for pair in self.padding],
            "padding_mode": "zeros",
            "dilation": list(self.dilation),
            "groups": self.groups,
        }
