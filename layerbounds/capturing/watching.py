"""Hooks on the modules of layers, and what they refuse to take for inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from layerbounds.capturing.experts import ExpertGeometry, Routing, routing
from layerbounds.capturing.functional_calls import ConvCalls, is_causal_kind
from layerbounds.capturing.geometry import FLOATS, unusual
from layerbounds.capturing.targets import Target
from layerbounds.exceptions import LayerError


@dataclass(eq=False)
class Call:
    """A layer at work.

    Attributes
    ----------
    target : Target
    module : nn.Module
    tokens : Tensor
        Inputs of the module; those of the layer are `x`.
    output : object
        Of the module.
    number : int
        Calls of the module before this one, since the hooks were set.
    routing : Routing, optional
        For an expert: which of the tokens it gets.
    """

    target: Target
    module: nn.Module
    tokens: Tensor
    output: Any
    number: int
    routing: Routing | None = None

    @cached_property
    def chosen(self) -> Tensor | None:
        """Indices of the tokens that the layer gets; None for all."""
        geometry = self.target.geometry
        if self.routing is None or not isinstance(geometry, ExpertGeometry):
            return None
        return self.routing.of(geometry.expert)

    @cached_property
    def x(self) -> Tensor:
        """Inputs of the layer."""
        return self.inputs(self.module, self.tokens)

    @property
    def read(self) -> Tensor:
        """The tensor from which the layer reads its inputs: that of the model where nothing is computed before."""
        geometry = self.target.geometry
        return self.x if isinstance(geometry, ExpertGeometry) and not geometry.reads_tokens else self.tokens

    def inputs(self, module: nn.Module, tokens: Tensor) -> Tensor:
        """Inputs that the same layer, or its twin in another model, has for the same tokens."""
        geometry = self.target.geometry
        if self.chosen is None or not isinstance(geometry, ExpertGeometry):
            return tokens
        return geometry.rows(module, tokens[self.chosen])

    def copied_tokens(self) -> Tensor:
        """A copy of the module's inputs, one for all experts of a call."""
        if self.routing is None:
            return self.tokens.clone()
        return self.routing.copied_tokens

    def kept(self, keep: Tensor | None) -> Tensor | None:
        """Which inputs of the layer count, given which tokens do; None where all do."""
        if keep is None or self.chosen is None:
            return keep
        keep = keep[self.chosen]
        return None if bool(keep.all()) else keep


#: What a hook calls.
Seen = Callable[[Call], None]


@contextmanager
def hooks(targets: Sequence[Target], seen: Seen) -> Iterator[None]:
    """Call ``seen`` after every call of a target's modules, until the block ends."""
    by_module: dict[nn.Module, list[Target]] = {}
    for target in targets:
        for module in target.modules:
            by_module.setdefault(module, []).append(target)
    called = {module: _hook(own, seen) for module, own in by_module.items()}
    with ExitStack() as stack:
        for module, hook in called.items():
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        if around := [module for module, own in by_module.items() if is_causal_kind(own[0].geometry)]:
            stack.enter_context(ConvCalls(around, lambda module, x, y: called[module](module, (x,), {}, y)))
        yield


def _hook(targets: list[Target], seen: Seen) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
    number = 0

    def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        nonlocal number
        own = None
        if isinstance(targets[0].geometry, ExpertGeometry):
            own = routing(targets[0].name, module, arguments, keywords)
            x = own.tokens
        else:
            x = _input(targets[0], arguments, keywords)
        number += 1
        for target in targets:
            seen(Call(target, module, x, output, number - 1, own))

    return hook


def _input(target: Target, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
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
    return x
