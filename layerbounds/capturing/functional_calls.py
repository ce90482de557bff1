"""Convolutions that models compute with a module's weights and without calling the module, as Mamba's are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from layerbounds.capturing.geometry import ConvGeometry, Geometry

_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def is_causal_kind(geometry: Geometry) -> bool:
    """Whether a layer is a convolution in one dimension that pads: its output may be cut, and it may be so computed."""
    return (
        isinstance(geometry, ConvGeometry)
        and len(geometry.kernel) == 1
        and geometry.kernel[0] > 1
        and geometry.stride == (1,)
        and any(geometry.padding[0])
    )


class ConvOwners:
    """Finds the module whose weight a call of a convolution uses.

    Parameters
    ----------
    modules : iterable of nn.Module
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = list(modules)

    def find(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[nn.Module, Tensor] | None:
        """The module and the inputs; None for other functions and weights, and where the module itself would differ."""
        if func is not torch.conv1d:
            return None
        given = {**dict(zip(_NAMES, args, strict=False)), **kwargs}
        weight = given["weight"]
        for module in self._modules:
            own = module._parameters.get("weight")
            if own is None or own.data_ptr() != weight.data_ptr() or own.shape != weight.shape:
                continue
            used = {name: _one(given.get(name, default)) for name, default in _DEFAULTS.items()}
            same = all(_one(getattr(module, name)) == value for name, value in used.items())
            return (module, given["input"]) if same else None
        return None


class ConvCalls(TorchFunctionMode):
    """Reports convolutions that use a module's weights outside of a call of the module.

    Parameters
    ----------
    called : callable
        Gets the module, its inputs and its outputs.
    modules : iterable of nn.Module
    """

    def __init__(self, modules: Iterable[nn.Module], called: Callable[[nn.Module, Tensor, Tensor], None]) -> None:
        super().__init__()
        modules = list(modules)
        self._owners, self._called = ConvOwners(modules), called
        self._inside: set[nn.Module] = set()
        self._handles = [
            handle
            for module in modules
            for handle in (
                module.register_forward_pre_hook(lambda own, _: self._inside.add(own)),
                module.register_forward_hook(lambda own, *_: self._inside.discard(own), always_call=True),
            )
        ]

    def __exit__(self, *about: Any) -> None:
        """End."""
        for handle in self._handles:
            handle.remove()
        super().__exit__(*about)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run a function, and report it if it is such a convolution."""
        result = func(*args, **(kwargs or {}))
        found = self._owners.find(func, args, kwargs or {})
        if found is not None and found[0] not in self._inside:
            self._called(*found, result)
        return result


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, (tuple, list)) else value
