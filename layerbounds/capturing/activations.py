"""Models whose layers see quantized or pruned activations: what ``compressed_model`` is for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layerbounds.arguments import one_of
from layerbounds.capturing.batches import Forward, Mask, evaluating, move, run_batch
from layerbounds.capturing.checks import check_batches, check_model, read_device
from layerbounds.capturing.copying import copied
from layerbounds.capturing.geometry import LinearGeometry
from layerbounds.capturing.sides import sides_of
from layerbounds.capturing.state import draw_seed, seeded
from layerbounds.capturing.targets import Target, find_targets, unwrap
from layerbounds.capturing.token_axes import TokenAxes
from layerbounds.capturing.watching import Call, hooks
from layerbounds.exceptions import InputError


@dataclass(frozen=True)
class ActivationQuantizer:
    """Round activations to integers times a step and back.

    With step s and zero point z a value becomes s·(clip(round(x/s) + z) − z). Symmetric: z = 0, integers of magnitude
    at most 2^(bits−1) − 1, s from the largest magnitude. Asymmetric: integers 0 to 2^bits − 1, s and z from the
    smallest and the largest value, with zero always a level (Jacob et al., "Quantization and Training of Neural
    Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 2.1).

    Attributes
    ----------
    bits : int
    symmetric : bool
    axis : int
        Of the features of one token, or of one pixel: dynamic ranges are taken over it.
    low, high : float, optional
        Static range of the whole tensor; default: dynamic, from each token.
    """

    bits: int
    symmetric: bool
    axis: int
    low: float | None = None
    high: float | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """The values that a kernel with integer activations computes with, in the type of ``x``."""
        if self.low is None or self.high is None:
            low, high = x.amin(self.axis, keepdim=True), x.amax(self.axis, keepdim=True)
        else:
            low, high = x.new_tensor(self.low), x.new_tensor(self.high)
        if self.symmetric:
            top = 2 ** (self.bits - 1) - 1
            step = torch.maximum(low.abs(), high.abs()) / top
            step = torch.where(step > 0, step, torch.ones_like(step))
            return torch.clamp(torch.round(x / step), -top, top) * step
        levels = 2**self.bits - 1
        low, high = low.clamp_max(0), high.clamp_min(0)
        step = (high - low) / levels
        step = torch.where(step > 0, step, torch.ones_like(step))
        zero = torch.round(-low / step)
        return (torch.clamp(torch.round(x / step) + zero, 0, levels) - zero) * step


@dataclass(frozen=True)
class ActivationPruner:
    """Keep the features of largest magnitude of each token or pixel, and set the others to zero.

    Attributes
    ----------
    density : float
        Kept fraction: ⌊density·features⌋, at least one.
    axis : int
    """

    density: float
    axis: int

    def __call__(self, x: Tensor) -> Tensor:
        """The pruned activations."""
        kept = max(1, math.floor(self.density * x.shape[self.axis] + 1e-9))
        index = x.abs().topk(kept, dim=self.axis).indices
        mask = torch.zeros_like(x, dtype=torch.bool).scatter_(self.axis, index, True)
        return torch.where(mask, x, torch.zeros_like(x))


def quantize_activations(
    model: nn.Module,
    bits: int,
    *,
    layers: str | Iterable[str] | None = None,
    scheme: str = "dynamic",
    symmetric: bool = True,
    batches: Iterable[Any] | None = None,
    mask: Mask = "auto",
    forward: Forward | None = None,
    device: str | torch.device | None = None,
) -> nn.Module:
    """Copy a model so that its layers see quantized inputs.

    Parameters
    ----------
    model : nn.Module
        Left as it is.
    bits : int
        2 to 8.
    layers, mask, forward, device
        As in `capture`.
    scheme : {"dynamic", "static"}
        One range for each token (pixel), or one for the tensor, from the smallest to the largest value in ``batches``.
    symmetric : bool
        Without or with a zero point.
    batches : iterable, optional
        For static ranges.

    Returns
    -------
    nn.Module
        For ``compressed_model`` of `capture` and `compress`, or to measure the accuracy.

    Raises
    ------
    InputError
        If an argument is out of range, or static ranges have no batches.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise InputError(f"activation bits are {bits!r}; pass 2 to 8.")
    one_of(scheme, "the activation scheme", ("dynamic", "static"))
    clone, targets = _copy(model, layers)
    if scheme == "dynamic":
        return _install(clone, targets, lambda target: ActivationQuantizer(bits, symmetric, feature_axis(target)))
    if batches is None:
        raise InputError("static activation ranges come from calibration data; pass batches.")
    check_batches(batches)
    place = read_device(device)
    ranges = _ranges(clone, targets, batches, mask, forward, place)
    seen = [target for target in targets if target.name in ranges]
    return _install(clone, seen, lambda t: ActivationQuantizer(bits, symmetric, feature_axis(t), *ranges[t.name]))


def prune_activations(model: nn.Module, density: float, *, layers: str | Iterable[str] | None = None) -> nn.Module:
    """Copy a model so that its layers see only the largest inputs of each token or pixel.

    Parameters
    ----------
    model : nn.Module
        Left as it is.
    density : float
        Kept fraction of the features, in (0, 1].
    layers : str or iterable of str, optional
        As in `capture`.

    Returns
    -------
    nn.Module

    Raises
    ------
    InputError
        If the density is out of range.
    """
    if not 0 < density <= 1:
        raise InputError(f"activation density is {density!r}; pass the kept fraction, in (0, 1].")
    clone, targets = _copy(model, layers)
    return _install(clone, targets, lambda target: ActivationPruner(density, feature_axis(target)))


def _copy(model: nn.Module, layers: str | Iterable[str] | None) -> tuple[nn.Module, list[Target]]:
    check_model(model, "model")
    clone = copied(unwrap(model))
    return clone, find_targets(clone, layers, experts="get their inputs from no hook; choose other layers")[0]


def feature_axis(target: Target) -> int:
    """The features: last of a linear layer's input; of a convolution's the axis before the positions."""
    return -1 if isinstance(target.geometry, LinearGeometry) else -1 - int(target.geometry.kind[4])


def _install(
    model: nn.Module, targets: list[Target], make: Callable[[Target], Callable[[Tensor], Tensor]]
) -> nn.Module:
    for target in targets:
        for module in target.modules:
            module.register_forward_pre_hook(InputHook(make(target)), with_kwargs=True)
    return model


@dataclass(frozen=True)
class InputHook:
    """A pre-hook with keywords that changes a module's first input; it can be copied and pickled with its model."""

    change: Callable[[Tensor], Tensor]

    def __call__(
        self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with the first one changed."""
        if arguments:
            return (self.change(arguments[0]), *arguments[1:]), keywords
        first = next(iter(keywords))
        return (), {**keywords, first: self.change(keywords[first])}


@torch.no_grad()
def _ranges(
    model: nn.Module,
    targets: list[Target],
    batches: Iterable[Any],
    mask: Mask,
    forward: Forward | None,
    device: torch.device | None,
) -> dict[str, tuple[float, float]]:
    """Smallest and largest input of each layer over all positions that count."""
    ranges: dict[str, tuple[float, float]] = {}
    axes = TokenAxes(model, targets, forward)
    seed = draw_seed()

    def look(call: Call) -> None:
        target, x = call.target, call.x
        keep = axes.keep(call)
        if keep is not None:
            positions = target.geometry.positions(x)
            x = positions.reshape(-1, positions.shape[-1])[keep]
        if x.numel():
            low, high = float(x.min()), float(x.max())
            if not (math.isfinite(low) and math.isfinite(high)):
                raise InputError(f"batch {index} (the first is 0): the inputs of layer {target.name!r} are not finite.")
            old = ranges.get(target.name, (low, high))
            ranges[target.name] = (min(low, old[0]), max(high, old[1]))

    with evaluating(model, device) as place:
        for index, batch in enumerate(batches):
            moved = move(batch, place)
            axes.begin(moved, sides_of(model, moved, mask, index), index, seed + index)
            with hooks(targets, look), seeded(seed + index):
                run_batch(model, moved, forward, index)
    return ranges
