"""The tensors of a GGUF file, or of the parts of one, with their names in transformers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from layerbounds.checkpoints.gguf.container import Container, Tensor, parts
from layerbounds.checkpoints.gguf.names import hugging_face_names
from layerbounds.checkpoints.gguf.orders import Orders
from layerbounds.exceptions import FileFormatError

_ENDS = (".weight", ".bias")


@dataclass(frozen=True)
class Place:
    """A tensor, or an expert of several in one.

    Attributes
    ----------
    name : str
        In transformers, without its end.
    base : str
        In the file, without its end.
    end : str
        ``".weight"``, ``".bias"`` or nothing.
    container : Container
    tensor : Tensor
    expert : int or None
    """

    name: str
    base: str
    end: str
    container: Container
    tensor: Tensor
    expert: int | None = None

    def experts(self) -> list[Place]:
        """The layers that it holds: itself, or its experts."""
        if self.tensor.kind is None or len(self.tensor.shape) != 3 or "exps" not in self.base:
            return [self]
        before, mark, after = self.name.rpartition(".experts.")
        each = f"{before}.experts.{{}}.{after}" if mark else f"{self.name}.{{}}"
        return [replace(self, name=each.format(expert), expert=expert) for expert in range(self.tensor.shape[0])]


class Index:
    """What a model's files hold.

    Parameters
    ----------
    path : Path
        Of the file, or of one of its parts.

    Attributes
    ----------
    path : Path
        Of the first part.
    containers : list of Container
    orders : Orders
    tensors : dict of str to (Container, Tensor)
        By the names of the file.
    places : list of Place
        In the order of the file.

    Raises
    ------
    FileFormatError
        If a part is missing, damaged, or has a tensor that another one has too.
    MissingExtraError
        If gguf is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.containers = [Container(file) for file in parts(path)]
        self.path = self.containers[0].path
        count = self.containers[0].whole("split.count", 1)
        if count > len(self.containers):
            raise FileFormatError(
                f"{self.path} is one of {count} files and not called so; the parts are NAME-00001-of-{count:05d}.gguf."
            )
        self.orders = Orders(self.containers[0])
        self.tensors: dict[str, tuple[Container, Tensor]] = {}
        for container in self.containers:
            for name, tensor in container.tensors.items():
                if name in self.tensors:
                    raise container.fault(f"it has the tensor {name!r}, which {self.tensors[name][0].path} has too")
                self.tensors[name] = (container, tensor)
        ends = {name: next((end for end in _ENDS if name.endswith(end)), "") for name in self.tensors}
        bases = {name: name.removesuffix(end) for name, end in ends.items()}
        named = hugging_face_names(self.orders.architecture, dict.fromkeys(bases.values()))
        self.places = [
            Place(named[bases[name]], bases[name], ends[name], container, tensor)
            for name, (container, tensor) in self.tensors.items()
        ]
