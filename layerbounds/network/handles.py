"""How a layer gets to a worker: it is there already, is read from its file, or travels as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from layerbounds.exceptions import InputError
from layerbounds.layers.layer import Layer
from layerbounds.layers.layer_file import LayerFile
from layerbounds.network.choices import Choice
from layerbounds.problems.problem import Problem
from layerbounds.version import __version__


class Handle(Protocol):
    """A layer, wherever it is.

    Attributes
    ----------
    digest : str
        Of the layer, as `layerbounds.network.survey.layer_digest` gives it.
    """

    digest: str

    def read(self) -> tuple[Layer, Mapping[Choice, Problem]]:
        """The layer, in the process that asks, with the problems that have come along."""


class Held:
    """A layer in this process."""

    def __init__(self, layer: Layer, digest: str) -> None:
        self._layer, self.digest = layer, digest

    def read(self) -> tuple[Layer, Mapping[Choice, Problem]]:
        """The layer itself."""
        return self._layer, {}


class OfFile:
    """A layer of a file, read again by each process that needs it."""

    def __init__(self, path: str, name: str, digest: str) -> None:
        self.path, self.name, self.digest = path, name, digest

    def read(self) -> tuple[Layer, Mapping[Choice, Problem]]:
        """The layer, read again."""
        return LayerFile(self.path)[self.name], {}


class Parcel:
    """A layer that travels with its problems: on the other side every bit is the same, and nothing is fitted anew.

    It is pickled as it stands: its Gram matrix is not validated and repaired once more.

    Parameters
    ----------
    layer : Layer
    digest : str
    choices : sequence of Choice
        Those that the layer can have.
    """

    def __init__(self, layer: Layer, digest: str, choices: Sequence[Choice]) -> None:
        self.digest, self.version = digest, __version__
        self._layer, self._problems = layer, {choice: choice.problem(layer) for choice in choices}

    def read(self) -> tuple[Layer, Mapping[Choice, Problem]]:
        """The layer that has come, and its problems.

        Raises
        ------
        InputError
            If it comes from another version of the package.
        """
        if self.version != __version__:
            raise InputError(
                f"a worker has layerbounds {__version__}, and the run is of {self.version}; install the same version "
                "there."
            )
        return self._layer, self._problems

    def __sizeof__(self) -> int:
        """Bytes that travel, about: by them clusters plan where data go."""
        return layer_bytes(self._layer)


def layer_bytes(layer: Layer) -> int:
    """Bytes of a layer's arrays."""
    own = {id(array): array.nbytes for array in (layer.weight, layer.matrix, layer.gram, layer.target, layer.constant)}
    return sum(own.values())
