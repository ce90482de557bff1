"""Compression of a whole model, layer by layer, with a certified interval for each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from layerbounds.arguments import check_functions
from layerbounds.capturing.entry import require_torch
from layerbounds.compression.choices import Choices
from layerbounds.compression.destinations.registry import destination
from layerbounds.compression.outcome import CompressedModel, LayerOutcome
from layerbounds.exceptions import InputError
from layerbounds.layers.bias import Bias
from layerbounds.problems.grids import Granularity, Range
from layerbounds.progress import check_listener, watched

if TYPE_CHECKING:
    import torch
    from torch import nn


def compress(
    model: nn.Module,
    batches: Iterable[Any],
    method: str | None = None,
    *,
    bits: int | Mapping[str, int | Mapping[str, Any] | None] | str | None = None,
    density: float | None = None,
    pattern: str | None = None,
    share: int | Literal["all"] | None = None,
    axis: str | None = None,
    layers: str | Iterable[str] | None = None,
    granularity: Granularity | None = None,
    symmetric: bool | None = None,
    range: Range | None = None,
    refit: bool = True,
    bias: Bias = "keep",
    sequential: bool = True,
    compressed_model: nn.Module | None = None,
    intervals: bool = True,
    time_limit: float = 0.0,
    jobs: int | None = None,
    seed: int = 0,
    fold_batchnorm: bool = False,
    format: str | None = None,
    template: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    mask: Callable[[Any], Any] | Literal["auto"] | None = "auto",
    forward: Callable[[nn.Module, Any], Any] | None = None,
    progress: Callable[[int, int, LayerOutcome], None] | bool | None = None,
    **options: Any,
) -> CompressedModel:
    """Quantize or prune the layers of a model, or both at once, one after the other, in the order of execution.

    Each layer is compressed for the inputs X̂ that it sees behind the layers already compressed, and for the outputs Xw
    that it has in the dense model, so that it makes up for errors before it where it can. Every layer costs one run of
    both models over the batches.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it is.
    batches : iterable
        Calibration data as in `capture`; gone through once for every layer.
    method : str, optional
        A name from `heuristics`, or ``"solve"`` for the native branch and bound. Default: ``"gptq"`` to quantize,
        ``"obs"`` to prune, and ``"obc"`` for both at once.
    bits : int, mapping or str, optional
        Quantization; ``granularity``, ``symmetric`` and ``range`` as in `quantization_problem`. A mapping from names
        and patterns of layers, as in ``layers``, to bits, to 16 or None for layers that stay as they are, or to
        mappings of these arguments (``{"bits": 3, "granularity": 128}``, ``density`` and ``pattern`` among them): the
        first that matches a layer counts, and layers that none matches stay as they are. Or ``"TOOL:FILE"`` for what a
        file of another tool chooses (docs/allocation.md).
    density, pattern : optional
        Pruning instead, with ``share``, ``axis`` and ``refit`` as in `pruning_problem`; with ``bits``, both at once as
        in `joint_problem`.
    share, axis : optional
        As in `pruning_problem`.
    layers : str or iterable of str, optional
        As in `capture`; default: all.
    bias : {"keep", "refit"}
        Whether biases stay as they are or are re-fitted.
    sequential : bool
        Whether layers see the compressed ones before them; otherwise each is compressed for the dense inputs.
    compressed_model : torch.nn.Module, optional
        What the compression starts from, such as a copy with quantized activations; default: ``model``.
    intervals : bool
        Whether certified intervals are computed for the layers.
    time_limit : float
        Seconds of search per output channel for the intervals, beside the preparation; for ``"solve"`` the weights
        come from the same search.
    jobs, seed
        As in `solve`.
    format : {"dense", "compressed-tensors", "gptq", "gguf"}, optional
        What ``result.save`` writes; default: the state dict. Scales are rounded to the type that the format stores
        before the weights are chosen, and what it cannot hold is refused or left as it is (docs/checkpoints.md).
    template : path-like, optional
        With a format: the directory from which the model was loaded, which is the default where `transformers` has
        loaded it; with ``"gguf"`` a GGUF file of the model. Everything but the compressed weights is taken from it.
    fold_batchnorm, device, mask, forward
        As in `capture`; with folding the result has no batch normalisation where it was folded.
    progress : bool or callable, optional
        True for a bar on a terminal or in a notebook; a function is called after each layer with (layers done, layers
        in all, outcome).
    **options
        Of the method.

    Returns
    -------
    CompressedModel
        After Ctrl-C, what was finished, with ``interrupted`` set.

    Raises
    ------
    InputError
        If arguments contradict each other, or the format cannot hold what is asked for; and as `capture` does before
        the first layer is finished. Layers that fail later, or whose reason concerns them alone, are listed in
        ``refused``.

    Warns
    -----
    CaptureWarning
        About every layer that is refused.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    >>> batches = [torch.eye(3), torch.ones(4, 3)]
    >>> result = lb.compress(model, batches, "rtn", bits=4, time_limit=1)
    >>> list(result.layers)
    ['0']
    """
    require_torch()

    from layerbounds.capturing.batches import again
    from layerbounds.capturing.checks import (
        check_batches,
        check_flags,
        check_model,
        check_names,
        read_device,
    )
    from layerbounds.compression.in_turn import Calibration, LayersInTurn

    check_model(model, "model")
    if compressed_model is not None:
        check_model(compressed_model, "compressed_model")
    check_batches(batches)
    check_names(layers)
    automatic = isinstance(mask, str) and mask == "auto"
    check_listener(progress)
    check_functions(forward=forward, mask=None if automatic else mask)
    check_flags(refit=refit, sequential=sequential, intervals=intervals, fold_batchnorm=fold_batchnorm)
    choices = Choices(
        bits,
        method=method,
        density=density,
        pattern=pattern,
        share=share,
        axis=axis,
        granularity=granularity,
        symmetric=symmetric,
        range=range,
        refit=refit,
        bias=bias,
        intervals=intervals,
        time_limit=time_limit,
        jobs=jobs,
        seed=seed,
        options=options,
    )
    place = destination(format, template, model)
    if place is not None and fold_batchnorm:
        raise InputError("folding changes the architecture that the template has; leave out fold_batchnorm, or format.")
    again(batches, 2)
    work = LayersInTurn(
        model,
        compressed_model,
        layers,
        Calibration(batches, mask, forward, read_device(device)),
        choices,
        sequential=sequential,
        fold=fold_batchnorm,
        destination=place,
    )
    with watched(progress, "compress", None, "layers") as told:
        work.run(told)
    return work.result
