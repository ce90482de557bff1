"""What is put into a model while it is trained: compressed weights computed from latent ones, and compressed inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from layerbounds.training.pruners import ActivationMask, WeightMask
from layerbounds.training.quantizers import LearnedSteps, Quantizer
from layerbounds.training.ranges import ActivationRange
from layerbounds.training.schedule import Phase


class CompressedWeight(nn.Module):
    """A parametrization of a weight: pruned, then rounded, as far as the schedule is.

    Zero is a level of every quantizer, so that rounding what was pruned and pruning what was rounded give the same
    weights; the orders differ in what masks and scales are chosen for, and in what is trained before them.

    Parameters
    ----------
    transposed : bool
        Whether the weight is stored as (in, out).
    quantizer : Quantizer, optional
    mask : WeightMask, optional
    prune, quantize : Phase, optional
        When.
    start : Tensor, optional
        First learned step sizes, shape (rows, 1), instead of the quantizer's own.
    """

    begun: Tensor
    fixed: Tensor

    def __init__(
        self,
        transposed: bool,
        quantizer: Quantizer | None,
        mask: WeightMask | None,
        prune: Phase | None,
        quantize: Phase | None,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.transposed, self.quantizer, self.mask = transposed, quantizer, mask
        self._prune, self._quantize, self.start = prune, quantize, start
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))
        self.register_buffer("fixed", torch.zeros((), dtype=torch.bool))

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight, one row for each output channel."""
        return (weight.T if self.transposed else weight).flatten(1)

    @torch.no_grad()
    def advance(self, latent: Tensor, progress: float) -> None:
        """Bring masks and scales to a fraction of the training, before a step of it.

        Masks follow the magnitudes that the network computes with, those of rounded weights where quantization came
        first, and among equal ones the latent weights.
        """
        matrix = self.matrix(latent)
        if self.mask is not None and self._prune is not None and self._prune.on(progress) and not self.fixed:
            share = self._prune.share(progress)
            if self.begun:
                assert self.quantizer is not None
                self.mask.update(self.quantizer(matrix), share, matrix)
            else:
                self.mask.update(matrix, share)
            self.fixed.fill_(share == 1.0)
        if self.quantizer is None or self._quantize is None or not self._quantize.on(progress):
            return
        kept = matrix if self.mask is None else self.mask(matrix)
        adapting = self._quantize.adapting(progress)
        if not self.begun:
            self.quantizer.begin(kept)
            if self.start is not None and isinstance(self.quantizer, LearnedSteps):
                self.quantizer.set_scale(self.start)
            self.begun.fill_(True)
        elif adapting:
            self.quantizer.refit(kept)
        for parameter in self.quantizer.parameters():
            parameter.requires_grad_(adapting)

    def settle(self) -> None:
        """Put back what a step of the optimizer has made impossible."""
        if self.quantizer is not None:
            self.quantizer.settle()

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer computes with."""
        matrix = self.matrix(weight)
        if self.mask is not None:
            matrix = self.mask(matrix)
        if self.quantizer is not None and self.begun:
            matrix = self.quantizer(matrix)
        shape = weight.T.shape if self.transposed else weight.shape
        whole = matrix.reshape(shape)
        return whole.T if self.transposed else whole

    @torch.no_grad()
    def exact(self, latent: Tensor) -> tuple[Tensor, Tensor | None]:
        """The compressed weights in float64, exactly on their grid, and their scales.

        Returns
        -------
        weights : Tensor of float64, shape (rows, n)
        scale : Tensor of float64, shape (rows, 1), or None
        """
        matrix = self.matrix(latent)
        kept = matrix if self.mask is None else self.mask(matrix)
        if self.quantizer is None or not self.begun:
            return kept.double(), None
        scale = self.quantizer.scale.detach().double().expand(len(matrix), 1)
        codes = self.quantizer.codes(kept.reshape(self.quantizer.rows, -1)).reshape(kept.shape)
        return codes.double() * scale, scale


class CompressedInput(nn.Module):
    """The inputs of a layer: pruned, then rounded, as far as the schedule is.

    Parameters
    ----------
    mask : ActivationMask, optional
    quantizer : ActivationRange, optional
    prune, quantize : Phase, optional
        When.
    """

    def __init__(
        self,
        mask: ActivationMask | None,
        quantizer: ActivationRange | None,
        prune: Phase | None,
        quantize: Phase | None,
    ) -> None:
        super().__init__()
        self.mask, self.quantizer = mask, quantizer
        self._prune, self._quantize = prune, quantize
        self._progress = 0.0
        self.register_buffer("fixed", torch.zeros((), dtype=torch.bool))

    fixed: Tensor

    def advance(self, progress: float) -> None:
        """Bring the mask to a fraction of the training, before a step of it; ranges follow the inputs of the step."""
        self._progress = progress
        if self.mask is not None and self._prune is not None and self._prune.on(progress) and not self.fixed:
            share = self._prune.share(progress)
            self.mask.update(share)
            self.fixed.fill_(share == 1.0 and bool(self.mask.seen))
        if self.quantizer is not None and self._quantize is not None:
            for parameter in self.quantizer.parameters():
                parameter.requires_grad_(self._quantize.adapting(progress))

    def settle(self) -> None:
        """Put back what a step of the optimizer has made impossible."""
        if self.quantizer is not None:
            self.quantizer.settle()

    def freeze(self) -> None:
        """Change no more, and stay out of the state dict: that of the model is then the one of a plain model."""
        self.eval().requires_grad_(False)
        self.register_state_dict_post_hook(_leave_out)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_fill_in)  # type: ignore[no-untyped-call]

    def describe(self) -> dict[str, Any]:
        """What was found, in plain values; ``kept`` are the numbers of the features, flattened."""
        found = {} if self.quantizer is None else self.quantizer.describe()
        if self.mask is not None:
            found["kept"] = torch.nonzero(self.mask.kept.flatten()).flatten().tolist()
        return found

    def forward(self, x: Tensor) -> Tensor:
        """The inputs that the layer computes with; in training mode masks and ranges look at them."""
        if self.mask is not None:
            if self.training and not self.fixed:
                self.mask.watch(x)
            x = self.mask(x)
        if self.quantizer is not None and self._quantize is not None and self._quantize.on(self._progress):
            begun = bool(getattr(self.quantizer, "begun", True))
            if self.training and (self._quantize.adapting(self._progress) or not begun):
                self.quantizer.watch(x)
            x = self.quantizer(x)
        return x


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Take a module's own entries out of a state dict."""
    for key in [key for key in state if key.startswith(prefix)]:
        del state[key]


def _fill_in(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let a state dict without a module's entries be loaded: the module keeps what it has."""
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        state.setdefault(prefix + name, value.detach())
