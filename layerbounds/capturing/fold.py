"""Folding batch normalisation into the layer before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from layerbounds.capturing.batches import Forward, evaluating, move, run_batch
from layerbounds.capturing.geometry import ConvGeometry, describe_module
from layerbounds.capturing.targets import named_modules
from layerbounds.exceptions import InputError

#: Largest change of the model's outputs that rounding explains, relative to their largest entry.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3}


@torch.no_grad()
def fold_batchnorm(
    model: nn.Module, batch: Any, forward: Forward | None, device: torch.device | None
) -> dict[str, str]:
    """Fold every batch normalisation that directly follows a layer, in place.

    With y = γ(Wx + b − μ)/√(σ² + ε) + β the layer gets the weights W·γ/√(σ² + ε) and the bias (b − μ)·γ/√(σ² + ε) + β,
    computed in float64, and the normalisation becomes the identity. Which pairs there are is read off a run of the
    model: the normalisation's input is the very tensor that the layer returned.

    Parameters
    ----------
    model : nn.Module
    batch : Any
        What the model is run on, before and after.
    forward, device
        As in `capture`.

    Returns
    -------
    dict of str to str
        Name of the folded normalisation for the name of each layer.

    Raises
    ------
    InputError
        If there is nothing to fold, or the outputs change: something else reads the layer's output too.
    """
    if batch is None:
        raise InputError("there are no batches; pass at least one.")
    before, pairs = _outputs_and_pairs(model, batch, forward, device)
    if not pairs:
        raise InputError(
            "fold_batchnorm found no batch normalisation that directly follows a layer called once; leave it out."
        )
    modules = named_modules(model)
    for layer, norm in pairs.items():
        _fold(modules[layer], modules[norm])
        parent, _, child = norm.rpartition(".")
        setattr(modules[parent] if parent else model, child, nn.Identity())
    after, _ = _outputs_and_pairs(model, batch, forward, device)
    for old, new in zip(before, after, strict=True):
        change = float((new - old).abs().max()) if old.numel() else 0.0
        size = float(old.abs().max()) if old.numel() else 0.0
        if not change <= _ROUNDING.get(old.dtype, 5e-2) * size:
            raise InputError(
                f"folding batch normalisation changes the model's output by {change:.1e} (largest entry {size:.1e}): "
                "another part of the model reads the output of a folded layer; leave fold_batchnorm out."
            )
    return pairs


def _outputs_and_pairs(
    model: nn.Module, batch: Any, forward: Forward | None, device: torch.device | None
) -> tuple[list[Tensor], dict[str, str]]:
    """Run the model; find which normalisation reads which layer's output."""
    names = {module: name for name, module in reversed(named_modules(model).items())}
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    calls: dict[nn.Module, int] = {}
    made: dict[int, tuple[nn.Module, Tensor]] = {}
    pairs: dict[str, str] = {}
    results: list[Tensor] = []

    def layer_called(module: nn.Module, _: Any, output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        # The tensor is kept, so that its id stays its own.
        made[id(output)] = (module, output)

    def norm_called(module: nn.Module, arguments: Any, _: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        source = made.get(id(arguments[0])) if arguments else None
        if source is not None and _normalises_channels(module, *source):
            pairs[names[source[0]]] = names[module]

    def model_called(_: nn.Module, __: Any, output: Any) -> None:
        results.extend(_tensors(output))

    handles = [model.register_forward_hook(model_called)]
    for module in names:
        if isinstance(module, norms):
            handles.append(module.register_forward_hook(norm_called))
        elif module is not model and _foldable(module):
            handles.append(module.register_forward_hook(layer_called))
    try:
        with evaluating(model, device) as place:
            run_batch(model, move(batch, place), forward, 0)
    finally:
        for handle in handles:
            handle.remove()
    modules = named_modules(model)
    once = {a: b for a, b in pairs.items() if calls[modules[a]] == 1 and calls[modules[b]] == 1}
    return results, once


def _foldable(module: nn.Module) -> bool:
    return module._parameters.get("weight") is not None and not isinstance(describe_module(module), str | None)


def _normalises_channels(norm: nn.Module, layer: nn.Module, output: Tensor) -> bool:
    """Whether the axis of a normalisation (the second) is the one of the layer's output channels.

    It is not where a linear layer has several positions: that axis holds the tokens.
    """
    geometry = describe_module(layer)
    assert not isinstance(geometry, str | None)
    channels = output.ndim - 1 - (len(geometry.kernel) if isinstance(geometry, ConvGeometry) else 0)
    variance = getattr(norm, "running_var", None)
    return channels == 1 and isinstance(variance, Tensor) and variance.shape == (geometry.outputs,)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value.clone()]
    if isinstance(value, dict):
        return [t for item in value.values() for t in _tensors(item)]
    if isinstance(value, (tuple, list)):
        return [t for item in value for t in _tensors(item)]
    return []


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    geometry = describe_module(layer)
    assert not isinstance(geometry, str | None)
    assert isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
    assert norm.running_var is not None and norm.running_mean is not None
    weight = geometry.weight(layer).clone()
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    bias = getattr(layer, "bias", None)
    shift = -norm.running_mean.double() if bias is None else bias.double() - norm.running_mean.double()
    shift = shift * factor
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    shape = (-1,) + (1,) * (weight.ndim - 1)
    scaled = weight.double() * factor.reshape(shape)
    # A weight of its own: another module tied to the old one must not change.
    own = scaled.T if not isinstance(geometry, ConvGeometry) and geometry.describe()["kind"] != "linear" else scaled
    layer.weight = nn.Parameter(own.to(weight.dtype).contiguous(), requires_grad=False)
    layer.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=False)
