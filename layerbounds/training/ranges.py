"""Quantizers of activations: learned step sizes, static ranges from what was seen, dynamic ones of each token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from layerbounds.capturing.activations import ActivationQuantizer
from layerbounds.training.quantizers import LearnedSteps, Quantizer, TruncatedPowersOfTwo, straight_through

#: How much of a static range stays when a batch is seen (Jacob et al., CVPR 2018, section 3.1: "close to 1").
MEMORY = 0.9


class ActivationRange(nn.Module, ABC):
    """Rounds the inputs of a layer, with gradients."""

    @abstractmethod
    def watch(self, x: Tensor) -> None:
        """Adapt to the inputs of a batch; called while the schedule says so, before they are quantized."""

    def settle(self) -> None:
        """Put back what a step of the optimizer has made impossible."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What was found, in plain values."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The quantized inputs."""


class ScaledRange(ActivationRange):
    """A quantizer with one scale for all inputs of a layer; codes are unsigned where the first batch has no negatives.

    Parameters
    ----------
    quantizer : Quantizer
        With a single row.
    """

    begun: Tensor

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def watch(self, x: Tensor) -> None:
        """See `ActivationRange.watch`."""
        if self.begun:
            self.quantizer.refit(x)
            return
        self.quantizer.set_codes(signed=bool((x < 0).any()))
        self.quantizer.begin(x)
        self.begun.fill_(True)

    def settle(self) -> None:
        """See `ActivationRange.settle`."""
        self.quantizer.settle()

    def describe(self) -> dict[str, Any]:
        """See `ActivationRange.describe`."""
        quantizer = self.quantizer
        return {"scale": float(quantizer.scale), "codes": [int(quantizer.low), int(quantizer.high)]}

    def forward(self, x: Tensor) -> Tensor:
        """See `ActivationRange.forward`; before the first batch the inputs as they are."""
        return self.quantizer(x) if self.begun else x


class StaticRange(ActivationRange):
    """One range for all inputs of a layer, with a zero point: moving averages of the least and the largest value.

    Jacob et al. (CVPR 2018), section 3.1. Values beyond the range get no gradient.
    """

    low: Tensor
    high: Tensor
    begun: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def watch(self, x: Tensor) -> None:
        """See `ActivationRange.watch`."""
        memory = MEMORY if self.begun else 0.0
        self.low.mul_(memory).add_((1.0 - memory) * x.min().clamp_max(0))
        self.high.mul_(memory).add_((1.0 - memory) * x.max().clamp_min(0))
        self.begun.fill_(True)

    def describe(self) -> dict[str, Any]:
        """See `ActivationRange.describe`."""
        return {"low": float(self.low), "high": float(self.high)}

    def forward(self, x: Tensor) -> Tensor:
        """See `ActivationRange.forward`; before the first batch the inputs as they are."""
        if not self.begun:
            return x
        quantize = ActivationQuantizer(self.bits, False, -1, float(self.low), float(self.high))
        return straight_through(torch.clamp(x, float(self.low), float(self.high)), quantize(x))


class DynamicRange(ActivationRange):
    """A range of its own for every token or pixel, without a zero point, from its largest magnitude.

    Parameters
    ----------
    bits : int
    axis : int
        Of the features of one token or pixel.
    """

    def __init__(self, bits: int, axis: int) -> None:
        super().__init__()
        self._quantize = ActivationQuantizer(bits, True, axis)

    def watch(self, x: Tensor) -> None:
        """Nothing is remembered."""

    def describe(self) -> dict[str, Any]:
        """See `ActivationRange.describe`."""
        return {}

    def forward(self, x: Tensor) -> Tensor:
        """See `ActivationRange.forward`."""
        return straight_through(x, self._quantize(x.detach()))


#: The names that `finetune` takes.
RANGES = ("learned", "static", "dynamic", "power-of-two")


def make_range(name: str, bits: int, axis: int) -> ActivationRange:
    """The range of that name, one of `RANGES`."""
    if name == "static":
        return StaticRange(bits)
    if name == "dynamic":
        return DynamicRange(bits, axis)
    return ScaledRange(LearnedSteps(bits) if name == "learned" else TruncatedPowersOfTwo(bits))
