"""A quantized weight: codes, and the grid on which they lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.arguments import one_of
from layerbounds.arrays import Float
from layerbounds.display import Displayed, Summary
from layerbounds.exceptions import InputError
from layerbounds.problems.float_types import FLOAT_TYPES, rounded
from layerbounds.problems.grids import Grid


@dataclass(frozen=True, eq=False, repr=False)
class QuantizedWeight(Displayed):
    """The weight of a layer as a checkpoint stores it.

    Attributes
    ----------
    name : str
        The layer's, as the checkpoint calls it: ``NAME.weight`` without its end.
    format : str
        How it is stored, in words: ``"GPTQ v1, 4 bits, groups of 128"``.
    grid : Grid
        The levels that the format gives each weight with the scales (and zero points, or minima) that are stored.
    codes : ndarray of shape (out, n)
        Integers: which of ``grid.codes`` each weight has, as a position in that sorted array.
    shape : tuple of int
        Of the weight, (out, in) or (out, in, kh, kw).
    dtype : {"float32", "float16", "bfloat16"}
        What the format's own software turns the weights into.
    bits : int
        Bits of the file that are this weight's: codes, scales, zero points, maps, tables.
    notes : tuple of str
        What a reader should know about how the file was understood.
    parts : dict of str to ndarray
        What the scales are made of where they have two levels: ``"block_scale"`` and ``"global_scale"`` or the like, as
        stored.

    Examples
    --------
    >>> from safetensors.numpy import save_file
    >>> packed = {"fc.qweight": np.zeros((2, 1), np.int32), "fc.qzeros": np.zeros((1, 1), np.int32)}
    >>> save_file({**packed, "fc.scales": np.ones((1, 8), np.float16)}, "awq.safetensors")
    >>> lb.load_checkpoint("awq.safetensors")["fc"].format
    'AWQ gemm, 4 bits, one scale per channel'
    """

    name: str
    format: str
    grid: Grid
    codes: NDArray[Any]
    shape: tuple[int, ...]
    dtype: str
    bits: int
    notes: tuple[str, ...] = ()
    parts: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def _summary(self) -> Summary:
        shape = " × ".join(map(str, self.shape))
        facts = [shape, f"{self.bits_per_weight:.4g} bits per weight", f"software rounds it to {self.dtype}"]
        return Summary(f"{self.name} · {self.format}", [*facts, *self.notes])

    def __post_init__(self) -> None:
        want = (self.grid.out_features, self.grid.in_features)
        if self.codes.shape != want or self.codes.dtype.kind not in "iu":
            raise InputError(
                f"codes of {self.name!r} have shape {self.codes.shape} and type {self.codes.dtype}; pass integers of "
                f"shape {want}, as the grid has."
            )
        if self.codes.size and not (self.codes.min() >= 0 and self.codes.max() < len(self.grid.codes)):
            raise InputError(
                f"codes of {self.name!r} go from {self.codes.min()} to {self.codes.max()}; the grid has the codes 0 to "
                f"{len(self.grid.codes) - 1}."
            )
        if self.shape[0] != want[0] or int(np.prod(self.shape[1:])) != want[1]:
            raise InputError(f"shape of {self.name!r} is {self.shape}, but its grid is for {want}.")
        one_of(self.dtype, f"dtype of {self.name!r}", tuple(FLOAT_TYPES))

    @property
    def weight(self) -> Float:
        """The levels of the codes in float64, exactly those of the grid, shape `shape`."""
        matrix = np.empty(self.codes.shape)
        for channel, codes in enumerate(self.codes):
            matrix[channel] = self.grid.weights(channel, codes)
        return matrix.reshape(self.shape)

    @property
    def loaded(self) -> Float:
        """The weights in the type that the format's own software uses, rounded once, as float64 numbers."""
        return rounded(self.weight, self.dtype)

    @property
    def bits_per_weight(self) -> float:
        """Everything that is stored, divided by the number of weights."""
        return self.bits / max(self.codes.size, 1)
