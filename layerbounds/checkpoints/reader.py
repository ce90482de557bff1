"""What a checkpoint asks of a kind of file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from layerbounds.arrays import Float
from layerbounds.checkpoints.weight import QuantizedWeight


class Reader(ABC):
    """One kind of file.

    Attributes
    ----------
    path : Path
    label : str
    names : list of str
        Of the quantized layers.
    dense_names : list of str
        Of the tensors that are not quantized, with their ends.
    """

    path: Path
    label: str
    names: list[str]
    dense_names: list[str]

    @abstractmethod
    def weight(self, name: str) -> QuantizedWeight:
        """Decode a layer."""

    @abstractmethod
    def dense(self, name: str) -> Float:
        """Read a tensor that is not quantized, in float64."""
