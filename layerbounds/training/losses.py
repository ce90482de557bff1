"""What is minimised: cross-entropy, and the distance from the outputs of the dense model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

#: From outputs and targets to a number.
Loss = Callable[[Tensor, Tensor], Tensor]


def distillation(output: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The cross-entropy of softened outputs towards those of a teacher, less the teacher's own entropy, times T².

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), section 2.

    Parameters
    ----------
    output, teacher : Tensor of shape (samples, classes)
        Logits.
    temperature : float
        T.
    """
    return temperature**2 * functional.kl_div(
        functional.log_softmax(output / temperature, dim=1),
        functional.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


@torch.no_grad()
def per_sample(model: torch.nn.Module, inputs: Tensor, targets: Tensor, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """How a classifier does on each sample.

    Parameters
    ----------
    model : torch.nn.Module
        In the mode in which it is.
    inputs : Tensor of shape (samples, …)
    targets : Tensor of shape (samples,)
        Numbers of classes.
    batch_size : int

    Returns
    -------
    losses : Tensor of shape (samples,)
        Cross-entropy.
    correct : Tensor of bool, shape (samples,)
    """
    losses, correct = [], []
    for x, y in zip(torch.split(inputs, batch_size), torch.split(targets, batch_size), strict=True):
        output = model(x)
        losses.append(functional.cross_entropy(output, y, reduction="none"))
        correct.append(output.argmax(dim=1) == y)
    return torch.cat(losses), torch.cat(correct)
