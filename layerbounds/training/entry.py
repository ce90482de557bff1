"""`layerbounds.training.finetune`, importable without PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from layerbounds.arguments import as_mapping, as_path, check_functions
from layerbounds.capturing.entry import require_torch
from layerbounds.progress import watched
from layerbounds.training.records import Finetuned
from layerbounds.training.schedule import Schedule
from layerbounds.training.settings import Prepare, Settings

if TYPE_CHECKING:
    import torch
    from numpy.typing import ArrayLike
    from torch import Tensor, nn


def finetune(
    model: nn.Module,
    data: tuple[Any, Any],
    schedule: Schedule | str,
    *,
    bits: int | None = None,
    density: float | None = None,
    pattern: str | None = None,
    layers: str | Iterable[str] | None = None,
    quantizer: str = "lsq",
    granularity: str = "channel",
    scales: Mapping[str, ArrayLike] | None = None,
    activation_bits: int | None = None,
    activation_density: float | None = None,
    activation_ranges: str = "learned",
    activation_layers: str | Iterable[str] | None = None,
    window: int = 16,
    epochs: int = 10,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    scale_rate: float = 1e-4,
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    distill: float = 0.0,
    temperature: float = 4.0,
    reestimate: bool = True,
    validation: tuple[Any, Any] | None = None,
    prepare: Prepare | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    log: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | bool | None = None,
) -> Finetuned:
    """Train a model while its layers are quantized, pruned, or both, in the order that a schedule says.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it is.
    data : (inputs, targets)
        Tensors or arrays whose first axis are samples; shuffled anew in every epoch.
    schedule : Schedule or str
        What starts and ends when; text as `Schedule.parse` reads it.
    bits : int, optional
        2 to 8: quantization of the weights, without zero points.
    density, pattern : optional
        Pruning of the weights as in `pruning_problem`, each output channel with a mask of its own: unstructured, N:M
        or block:S.
    layers : str or iterable of str, optional
        As in `capture`; default: all.
    quantizer : {"lsq", "minmax", "power-of-two"}
        Of the weights: step sizes that are learned, that clip nothing, or the truncating one of Zhang et al.
    granularity : {"tensor", "channel"}
        What shares a scale.
    scales : mapping of str to array_like of shape (out,), optional
        First step sizes of layers with ``"lsq"``, by name, such as those of a grid on which the weights already are.
    activation_bits : int, optional
        2 to 8: quantization of the layers' inputs.
    activation_density : float, optional
        Kept fraction of a layer's input features, chosen by mean magnitude.
    activation_ranges : {"learned", "static", "dynamic", "power-of-two"}
        Of the inputs: one learned step size for a layer, a range with zero point from moving averages, a range for
        every token or pixel, or the truncating quantizer of Zhang et al.
    activation_layers : str or iterable of str, optional
        Layers whose inputs are compressed; default: those of ``layers``.
    window : int
        Batches over which magnitudes of activations are averaged.
    epochs, batch_size : int
    learning_rate, scale_rate : float
        Of the weights and of learned step sizes, at the start; both fall to zero along a cosine.
    optimizer : callable, optional
        From groups of parameters with their rates to an optimizer; default: Adam.
    loss : callable, optional
        From outputs and targets to a number; default: cross-entropy.
    distill : float
        Share of the loss that is the distance from the outputs of the dense model, softened by ``temperature``.
    reestimate : bool
        Whether statistics of batch normalisation are counted anew after the training.
    validation : (inputs, targets), optional
        Measured after every epoch.
    prepare : callable, optional
        From a batch of inputs, as a tensor, to the model's input; also for augmentation.
    seed : int
        Of the shuffling and of everything else that is random.
    device : optional
        Where the model is trained; default: where it is.
    checkpoint : path-like, optional
        File that is replaced after every epoch. If it exists, the training goes on from it and gives the same weights
        as without a break.
    log : path-like, optional
        CSV file that gets a row after every epoch.
    progress : bool or callable, optional
        True for a bar, on a terminal or in a notebook; a function is called after each step with (steps done, steps in
        all).

    Returns
    -------
    Finetuned

    Raises
    ------
    InputError
        If arguments contradict each other, a layer shares its weight, a checkpoint belongs to another training, or the
        loss becomes infinite.
    MissingExtraError
        If PyTorch is not installed.

    Examples
    --------
    >>> import torch
    >>> from layerbounds.training import finetune
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> x = torch.randn(64, 4)
    >>> result = finetune(model, (x, (x[:, 0] > 0).long()), "prune@0:0.4 quantize@0.5", bits=4, density=0.5)
    >>> result.layers["0"].nonzero <= 0.5
    True
    """
    require_torch()
    from layerbounds.training.loop import Training

    check_functions(optimizer=optimizer, loss=loss, prepare=prepare)
    settings = Settings(
        schedule=schedule if isinstance(schedule, Schedule) else Schedule.parse(schedule),
        bits=bits,
        density=density,
        pattern=pattern,
        quantizer=quantizer,
        granularity=granularity,
        activation_bits=activation_bits,
        activation_density=activation_density,
        activation_ranges=activation_ranges,
        window=window,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        scale_rate=scale_rate,
        distill=distill,
        temperature=temperature,
        reestimate=reestimate,
        seed=seed,
    )
    training = Training(
        model,
        data,
        settings,
        layers=layers,
        activation_layers=activation_layers,
        scales=as_mapping(scales, "scales"),
        optimizer=optimizer,
        loss=loss,
        validation=validation,
        prepare=prepare,
        device=device,
    )
    with watched(progress, "train", None, "steps") as told:
        return training.run(
            None if checkpoint is None else as_path(checkpoint, "checkpoint"),
            None if log is None else as_path(log, "log"),
            told,
        )
