"""Hooks on the modules of layers, and what they refuse to take for inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from layerbounds.capturing.geometry import FLOATS, unusual
from layerbounds.capturing.targets import Target
from layerbounds.exceptions import LayerError

#: What a hook passes on: the target, its module, the inputs, the outputs.
Seen = Callable[[Target, nn.Module, Tensor, Any], None]


@contextmanager
def hooks(targets: Sequence[Target], seen: Seen) -> Iterator[None]:
    """Call ``seen`` after every call of a target's modules, until the block ends."""
    handles = []
    try:
        for target in targets:
            for module in target.modules:
                handles.append(module.register_forward_hook(_hook(target, seen), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(target: Target, seen: Seen) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        x = arguments[0] if arguments else next(iter(keywords.values()), None)
        kind = type(x).__name__
        if isinstance(x, Tensor):
            kind = unusual(x) or ("" if x.dtype in FLOATS else str(x.dtype))
        if kind or not isinstance(x, Tensor):
            raise LayerError(
                f"layer {target.name!r} is called with {kind}; its input must be a plain tensor of floating-point "
                "numbers of 16 bits or more."
            )
        x = x.detach()
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            # Autocast rounds inside the module: what is multiplied by the weights is the rounded tensor.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        seen(target, module, x, output)

    return hook
