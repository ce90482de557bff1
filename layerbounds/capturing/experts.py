"""Fused experts: modules that hold the matrices of all experts of a layer in stacks, and compute without submodules."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from layerbounds.capturing.geometry import FLOATS, LinearGeometry, unusual
from layerbounds.exceptions import LayerError

#: What `transformers` notes at a module of fused experts about its layout.
_FLAGS = ("is_transposed", "has_gate", "has_bias")
_LAST = "down_proj"


@dataclass(frozen=True)
class ExpertGeometry(LinearGeometry):
    """One matrix of a stack; its inputs are those of the tokens that are routed to its expert.

    Attributes
    ----------
    stack : str
        Name of the parameter, of shape (experts, out, in), or (experts, in, out) where ``transposed``.
    expert : int
    """

    stack: str = ""
    expert: int = 0

    @property
    def kind(self) -> str:
        """Name of the kind of layer."""
        return "expert"

    @property
    def layout(self) -> None:
        """Inputs are never those of another layer: each expert has tokens of its own."""
        return None

    def weight(self, module: nn.Module) -> Tensor:
        """See `Geometry.weight`."""
        value = _stack(module, self.stack).detach()[self.expert]
        return value.T if self.transposed else value

    def store(self, module: nn.Module, weight: Tensor) -> None:
        """See `Geometry.store`."""
        with torch.no_grad():
            self.weight(module).copy_(weight)

    def shift_bias(self, module: nn.Module, change: Tensor) -> None:
        """Add to the bias of the expert.

        Raises
        ------
        LayerError
            If the experts have none.
        """
        if not module.has_bias:
            raise LayerError(
                f"expert {self.expert} of {self.stack} has no bias that could be re-fitted; keep the bias as it is."
            )
        with torch.no_grad():
            own = _stack(module, f"{self.stack}_bias")[self.expert]
            own += change.to(own)

    def describe(self) -> dict[str, Any]:
        """See `Geometry.describe`."""
        return {"kind": self.kind, "expert": self.expert, "stack": self.stack, "transposed": self.transposed}

    def rows(self, module: nn.Module, tokens: Tensor) -> Tensor:
        """What the matrix is multiplied by for tokens that are routed to the expert.

        Parameters
        ----------
        module : nn.Module
        tokens : Tensor of shape (N, d)
            Inputs of the experts.
        """
        return tokens if self.reads_tokens else _gated(module, self.expert, tokens)

    @property
    def reads_tokens(self) -> bool:
        """Whether the matrix is the first of its expert."""
        return self.stack != _LAST


@dataclass(eq=False)
class Routing:
    """One call of a module of fused experts.

    Attributes
    ----------
    tokens : Tensor of shape (T, d)
    experts : Tensor of int, shape (T, k)
        The experts of each token; numbers that no expert has stand for none.
    shares : Tensor of shape (T, k)
        What their outputs are multiplied by.
    """

    tokens: Tensor
    experts: Tensor
    shares: Tensor

    @cached_property
    def copied_tokens(self) -> Tensor:
        """A copy that the model cannot change."""
        return self.tokens.clone()

    def of(self, expert: int) -> Tensor:
        """Indices of the tokens of an expert, ascending."""
        return (self.experts == expert).any(1).nonzero()[:, 0]


def expert_layers(module: nn.Module) -> dict[str, ExpertGeometry] | str | None:
    """The matrices of a module of fused experts.

    Returns
    -------
    dict of str to ExpertGeometry
        By what is put behind the module's path: ``3.gate_up_proj``.
    str
        Why they cannot be captured.
    None
        If the module is none.
    """
    own = {name: value for name, value in module._parameters.items() if value is not None}
    stacks = {name: value for name, value in own.items() if name.endswith("_proj") and _axes(value) == 3}
    known = all(isinstance(getattr(module, flag, None), bool) for flag in _FLAGS)
    if not known or _LAST not in stacks or _first(module) not in stacks:
        if type(module).__name__.endswith("Experts") and any(_axes(value) == 3 for value in own.values()):
            return "computes with stacks of matrices in a way that capture does not know; leave it out"
        return None
    for name, value in own.items():
        if unusual(value):
            return f"has {unusual(value)} for {name}; convert it to a plain tensor of floating-point numbers"
        if value.dtype not in FLOATS:
            return f"has {name} of type {value.dtype}; pass a model with weights of 16 bits or more"
    transposed = bool(module.is_transposed)
    layers: dict[str, ExpertGeometry] = {}
    for expert in range(len(stacks[_LAST])):
        for name in (_first(module), _LAST):
            inputs, outputs = stacks[name].shape[1:] if transposed else stacks[name].shape[:0:-1]
            layers[f"{expert}.{name}"] = ExpertGeometry(inputs, outputs, transposed, stack=name, expert=expert)
    return layers


def routing(name: str, module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Routing:
    """What a module of fused experts is called with.

    Raises
    ------
    LayerError
        If that is not tokens, their experts and their shares.
    """
    values = list(inspect.signature(module.forward).bind(*arguments, **keywords).arguments.values())[:3]
    shapes = [tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__ for value in values]
    if (
        len(values) < 3
        or not all(isinstance(value, Tensor) and value.ndim == 2 for value in values)
        or values[1].shape != values[2].shape
        or values[0].shape[0] != values[1].shape[0]
        or values[1].is_floating_point()
    ):
        raise LayerError(
            f"layer {name!r}: its experts are called with {shapes}, and capture knows those that take tokens, the "
            "numbers of their experts, and their shares; leave it out."
        )
    tokens, experts, shares = (value.detach() for value in values)
    if unusual(tokens) or tokens.dtype not in FLOATS:
        raise LayerError(
            f"layer {name!r} is called with {unusual(tokens) or tokens.dtype}; its input must be a plain tensor of "
            "floating-point numbers of 16 bits or more."
        )
    return Routing(tokens, experts, shares)


def expected_outputs(module: nn.Module, call: Routing, most: int) -> tuple[Tensor, Tensor]:
    """The outputs for the first tokens as capture understands the module, and their size before anything cancels.

    Returns
    -------
    outputs, sizes : Tensor of shape (at most ``most``, d)
    """
    tokens, experts, shares = (value[:most] for value in (call.tokens, call.experts, call.shares))
    # There is no float64 on every device.
    outputs = torch.zeros(tokens.shape, dtype=torch.float64)
    sizes = torch.zeros_like(outputs)
    for expert in range(len(_stack(module, _LAST))):
        token, place = (experts == expert).nonzero(as_tuple=True)
        if not len(token):
            continue
        inputs = _gated(module, expert, tokens[token])
        after, size = _product(module, _LAST, expert, inputs), _product(module, _LAST, expert, inputs, sizes=True)
        if getattr(module, "has_post_expert_norm", False):
            after = module.post_expert_norm(after)  # type: ignore[operator]
            size = after.abs()
        share = shares[token, place, None]
        outputs.index_add_(0, token.cpu(), (after * share).to(outputs))
        sizes.index_add_(0, token.cpu(), (size * share.abs()).to(outputs))
    return outputs, sizes


def _axes(value: Tensor) -> int:
    return 0 if isinstance(value, nn.parameter.UninitializedParameter) else value.ndim


def _first(module: nn.Module) -> str:
    return "gate_up_proj" if module.has_gate else "up_proj"


def _stack(module: nn.Module, name: str) -> Tensor:
    value = module._parameters[name]
    assert value is not None
    return value


def _gated(module: nn.Module, expert: int, tokens: Tensor) -> Tensor:
    """What the last matrix of an expert is multiplied by."""
    before = _product(module, _first(module), expert, tokens)
    gate: Any = module._apply_gate if module.has_gate else module.act_fn
    with torch.no_grad():
        result: Tensor = gate(before)
    return result


def _product(module: nn.Module, stack: str, expert: int, x: Tensor, *, sizes: bool = False) -> Tensor:
    """A matrix and its bias at work; with ``sizes`` the magnitudes of everything that is added up."""
    weight = _stack(module, stack).detach()[expert]
    bias = _stack(module, f"{stack}_bias").detach()[expert] if module.has_bias else None
    if sizes:
        weight, x, bias = weight.abs(), x.abs(), None if bias is None else bias.abs()
    return functional.linear(x.to(weight.dtype), weight.T if module.is_transposed else weight, bias)
