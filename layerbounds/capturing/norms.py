"""Which normalisation's output the inputs of a layer are, found while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from layerbounds.capturing.targets import named_modules


@dataclass(frozen=True, eq=False)
class _Output:
    """What a normalisation gave: where it is, and how often it had been changed."""

    name: str
    storage: StorageWeakRef
    version: int
    size: int
    width: int

    def is_seen_as(self, x: Tensor) -> bool:
        """Whether a tensor at the same place is that output, unchanged and with the same last axis."""
        gone = bool(self.storage.expired())  # type: ignore[no-untyped-call]
        same = x.numel() == self.size and x.shape[-1] == self.width and x.stride(-1) == 1
        return not gone and same and x._version == self.version


class NormsBefore:
    """For each layer the normalisation of which it sees the very output, in every call.

    Parameters
    ----------
    model : nn.Module
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = {name: module for name, module in named_modules(model).items() if _multiplies(module)}
        self._outputs: dict[int, _Output] = {}
        self._found: dict[str, str | None] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note what normalisations give, until the block ends."""
        handles = [module.register_forward_hook(self._hook(name)) for name, module in self._modules.items()]
        try:
            yield
        finally:
            self._outputs.clear()
            for handle in handles:
                handle.remove()

    def note(self, layer: str, x: Tensor) -> None:
        """A layer is called with these inputs."""
        output = None if x.is_inference() or not x.ndim else self._outputs.get(x.data_ptr())
        name = output.name if output is not None and output.is_seen_as(x) else None
        self._found[layer] = name if self._found.get(layer, name) == name else None

    def of(self, layer: str) -> str | None:
        """The normalisation before a layer; None where there is none, or another one in other calls."""
        return self._found.get(layer)

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.numel() and output.ndim and not output.is_inference():
                storage = StorageWeakRef(output.untyped_storage())  # type: ignore[no-untyped-call]
                found = _Output(name, storage, output._version, output.numel(), output.shape[-1])
                self._outputs[output.data_ptr()] = found

        return hook


def _multiplies(module: nn.Module) -> bool:
    """Whether a module is a normalisation that ends by multiplying its last axis by a weight."""
    # Weights that are computed are left alone: to read one may change the model's state, as spectral norm does.
    weight = module._parameters.get("weight")
    return (
        "norm" in type(module).__name__.lower()
        and isinstance(weight, Tensor)
        and weight.ndim == 1
        and not hasattr(module, "running_mean")
        and not isinstance(module, nn.GroupNorm)
    )
