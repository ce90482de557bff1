"""Quantizers with gradients: what the network computes with while its full-precision weights are trained."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

#: Step sizes stay above this fraction of the first one: a step of zero could never grow again.
_LEAST = 1e-3
#: The exponents d of the released code of Zhang et al. (`arg_decimal_min_mse`): step sizes 2^−d.
EXPONENTS = range(20)


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """The value of ``rounded`` with the gradient of ``x`` (Bengio, Léonard and Courville, arXiv 1308.3432)."""
    # In this order the value is exactly that of ``rounded``.
    return rounded.detach() + (x - x.detach())


def rounded(x: Tensor) -> Tensor:
    """The nearest integer, even ones at ties, with the gradient of ``x``."""
    return straight_through(x, torch.round(x))


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """The value of ``x``, whose gradient is multiplied by a factor."""
    return straight_through(x * factor, x)


class Quantizer(nn.Module, ABC):
    """Rounds a matrix to ``scale · codes`` with integer codes, each row with a scale of its own or all with one.

    Zero is always a level.

    Parameters
    ----------
    bits : int
        2 to 8.
    rows : int
        Number of scales: rows of the matrix, or 1.
    signed : bool
        Codes −2^(bits−1), …, 2^(bits−1) − 1; otherwise 0, …, 2^bits − 1.

    Attributes
    ----------
    scale : Tensor of shape (rows, 1)
    """

    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, bits: int, rows: int = 1, signed: bool = True) -> None:
        super().__init__()
        self.bits, self.rows = bits, rows
        # Buffers: whether activations are signed is found out during the training.
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.set_codes(signed)

    def set_codes(self, signed: bool) -> None:
        """Choose the codes with or without negative ones."""
        low = -(2 ** (self.bits - 1)) if signed else 0
        self.low.fill_(low)
        self.high.fill_(low + 2**self.bits - 1)

    @abstractmethod
    def begin(self, matrix: Tensor) -> None:
        """Choose the first scales, for the values that are there when quantization starts, shape (rows, n)."""

    def refit(self, matrix: Tensor) -> None:
        """Choose the scales anew; where they are learned, nothing happens."""

    def settle(self) -> None:
        """Put scales that a step of the optimizer has made impossible back; where they are fitted, nothing happens."""

    def integers(self, matrix: Tensor) -> Tensor:
        """The integers that values come to, before they are clipped."""
        return torch.round(matrix / self.scale)

    @torch.no_grad()
    def codes(self, matrix: Tensor) -> Tensor:
        """The codes of a matrix, without gradient."""
        return torch.clamp(self.integers(matrix), self.low, self.high)

    @abstractmethod
    def forward(self, matrix: Tensor) -> Tensor:
        """The quantized matrix, with gradients."""


class LearnedSteps(Quantizer):
    """LSQ: the step size is trained like a weight (Esser et al., "Learned Step Size Quantization", ICLR 2020).

    Its gradient is that of ``scale · clip(round(x/scale))`` with the rounding passed straight through, equation 3,
    times 1/√(N·Q), section 2.2, with N values for each step size and the largest code Q; it starts at 2·mean|x|/√Q,
    over the values other than zero, which for a pruned layer are those that are kept.
    """

    least: Tensor

    def __init__(self, bits: int, rows: int = 1, signed: bool = True) -> None:
        super().__init__(bits, rows, signed)
        self.scale = nn.Parameter(torch.ones(rows, 1))
        self.register_buffer("least", torch.zeros(rows, 1))

    @torch.no_grad()
    def begin(self, matrix: Tensor) -> None:
        """See `Quantizer.begin`."""
        size = matrix.abs().reshape(self.rows, -1)
        kept = (size > 0).sum(dim=1, keepdim=True).clamp_min(1)
        scale = 2.0 * size.sum(dim=1, keepdim=True) / kept / self.high.sqrt()
        self.set_scale(torch.where(scale > 0, scale, torch.ones_like(scale)))

    @torch.no_grad()
    def set_scale(self, scale: Tensor) -> None:
        """Start from given step sizes, shape (rows, 1)."""
        self.scale.copy_(scale)
        self.least.copy_(self.scale * _LEAST)

    @torch.no_grad()
    def settle(self) -> None:
        """Keep the step sizes positive."""
        self.scale.copy_(torch.maximum(self.scale, self.least))

    def forward(self, matrix: Tensor) -> Tensor:
        """See `Quantizer.forward`."""
        factor = 1.0 / (matrix.numel() / self.rows * float(self.high)) ** 0.5
        scale = scaled_gradient(self.scale, factor)
        shape = matrix.shape
        codes = torch.clamp(matrix.reshape(self.rows, -1) / scale, self.low, self.high)
        return (rounded(codes) * scale).reshape(shape)


class _Fitted(Quantizer):
    """Scales that are fitted to the values, and gradients that pass where nothing is clipped."""

    def __init__(self, bits: int, rows: int = 1, signed: bool = True) -> None:
        super().__init__(bits, rows, signed)
        self.register_buffer("scale", torch.ones(rows, 1))

    def begin(self, matrix: Tensor) -> None:
        """See `Quantizer.begin`."""
        self.refit(matrix)

    def forward(self, matrix: Tensor) -> Tensor:
        """See `Quantizer.forward`."""
        shape = matrix.shape
        matrix = matrix.reshape(self.rows, -1)
        integers = self.integers(matrix.detach())
        inside = (integers >= self.low) & (integers <= self.high)
        value = torch.clamp(integers, self.low, self.high) * self.scale
        return straight_through(torch.where(inside, matrix, matrix.detach()), value).reshape(shape)


class MinMax(_Fitted):
    """The smallest scale that clips nothing, from the values as they are, with straight-through gradients.

    As Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
    (CVPR 2018), section 3, train weights; without a zero point.
    """

    @torch.no_grad()
    def refit(self, matrix: Tensor) -> None:
        """See `Quantizer.refit`."""
        matrix = matrix.reshape(self.rows, -1)
        scale = matrix.amax(1, keepdim=True) / self.high
        if self.low < 0:
            scale = torch.maximum(scale, matrix.amin(1, keepdim=True) / self.low)
        self.scale.copy_(torch.where(scale > 0, scale, torch.ones_like(scale)))


class TruncatedPowersOfTwo(_Fitted):
    """Scales 2^−d whose codes are cut off towards zero: the quantizer in the released code of Zhang et al.

    For arXiv 2110.08271 the code computes ``int(x · 2^d)``, which is a truncation and no rounding, so that values lose
    half a step on average; d is that of 0, …, 19 with the smallest squared error. What is clipped gets no gradient.
    """

    def integers(self, matrix: Tensor) -> Tensor:
        """The integers that values come to, cut off towards zero."""
        return torch.trunc(matrix / self.scale)

    @torch.no_grad()
    def refit(self, matrix: Tensor) -> None:
        """See `Quantizer.refit`."""
        matrix = matrix.reshape(self.rows, -1)
        errors = []
        for exponent in EXPONENTS:
            self.scale.fill_(2.0**-exponent)
            errors.append((self.codes(matrix) * self.scale - matrix).square().sum(dim=1, keepdim=True))
        best = torch.stack(errors).argmin(dim=0)
        self.scale.copy_(torch.exp2(-best.to(self.scale.dtype)))


#: By the names that `finetune` takes.
QUANTIZERS: dict[str, type[Quantizer]] = {
    "lsq": LearnedSteps, "minmax": MinMax, "power-of-two": TruncatedPowersOfTwo,
}  # fmt: skip
