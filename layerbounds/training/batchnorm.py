"""Statistics of batch normalisation, counted anew for the compressed network."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def reestimate(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace the running mean and variance of every batch normalisation by their averages over batches.

    While weights jump between levels, the moving averages of the training lag behind (Nagel et al., "Overcoming
    Oscillations in Quantization-Aware Training", ICML 2022, section 4.1, who count them anew after the training).

    Parameters
    ----------
    model : torch.nn.Module
        Afterwards in evaluation mode.
    batches : iterable of Tensor
        Inputs.

    Returns
    -------
    int
        How many modules.
    """
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        # None: the average of all batches, each with the same weight.
        norm.momentum = None
        norm.training = True
    try:
        for x in batches:
            model(x)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.training = False
    return len(norms)
