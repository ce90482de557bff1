"""The formats that are stored as tensors by name, in the order in which they are tried."""

from __future__ import annotations

from typing import Protocol

from layerbounds.checkpoints.formats import (
    awq,
    bitsandbytes,
    block_floats,
    compressed_tensors,
    gptq,
    hqq,
    modelopt,
    torchao,
)
from layerbounds.checkpoints.source import Source
from layerbounds.checkpoints.weight import QuantizedWeight


class Format(Protocol):
    """A module of this folder."""

    #: As messages call it.
    LABEL: str

    def names(self, source: Source) -> list[str]:
        """The layers that are stored in this format: what stands before ``.weight``, ``.qweight`` or the like.

        Decided by the configuration where it says something reliable, otherwise by names, types and shapes of tensors;
        nothing is read. Empty for files of other formats.
        """

    def read(self, source: Source, name: str) -> QuantizedWeight:
        """Decode one of them.

        Raises
        ------
        FileFormatError
            If tensors are missing or contradict each other, or a variant is not known.
        """

    def parts(self, source: Source, name: str) -> list[str]:
        """The tensors that belong to one of them, of those that the file has."""


FORMATS: tuple[Format, ...] = (
    compressed_tensors,
    modelopt,
    block_floats,
    gptq,
    awq,
    hqq,
    bitsandbytes,
    torchao,
)
