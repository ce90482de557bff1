"""Compression of a whole model, layer by layer, with a certified interval for each."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from layerbounds.arguments import real_number, shown
from layerbounds.arrays import Float
from layerbounds.capturing.entry import require_torch
from layerbounds.exceptions import InputError, LayerboundsError, LayerError
from layerbounds.layers.bias import Bias, bias_change
from layerbounds.layers.layer import Layer
from layerbounds.methods.registry import run_heuristic
from layerbounds.problems.evaluation import evaluate
from layerbounds.problems.grids import Granularity, Range
from layerbounds.problems.problem import Problem
from layerbounds.problems.pruning import pruning_problem
from layerbounds.problems.quantization import quantization_problem
from layerbounds.solve import solve

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from layerbounds.capturing.targets import Target

#: In place of a heuristic's name: the weights that reach the upper ends of the intervals.
SOLVE = "solve"


@dataclass(frozen=True, eq=False)
class LayerOutcome:
    """What compression did to one layer.

    Attributes
    ----------
    name : str
    allowed : str
        The problem in words.
    weight_shape : tuple of int
    error : ndarray of shape (out,)
        f of the weights used, mean squared output error per position, for the inputs that the layer sees behind the
        already compressed ones.
    lower_bound, upper_bound : ndarray of shape (out,), or None
        Certified interval around the smallest possible f; None where none was asked for.
    energy : ndarray of shape (out,)
        f(0).
    seconds : float
        Time for the weights and the interval.
    """

    name: str
    allowed: str
    weight_shape: tuple[int, ...]
    error: Float
    lower_bound: Float | None
    upper_bound: Float | None
    energy: Float
    seconds: float

    def relative(self, value: Float | None) -> float | None:
        """Sum over the channels as a fraction of the layer's energy; None where that is zero or nothing is known."""
        total = float(self.energy.sum())
        return None if value is None or total <= 0 else float(value.sum()) / total

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "layer": self.name,
            "allowed": self.allowed,
            "weight_shape": list(self.weight_shape),
            "error": self.error,
            "lower_bound": self.lower_bound,
            "upper_bound": self.upper_bound,
            "energy": self.energy,
            "relative_error": self.relative(self.error),
            "relative_lower_bound": self.relative(self.lower_bound),
            "relative_upper_bound": self.relative(self.upper_bound),
            "seconds": self.seconds,
        }


@dataclass(eq=False)
class CompressedModel:
    """A compressed copy of a model.

    Attributes
    ----------
    model : torch.nn.Module
        With the compressed weights, in the precision of the original.
    layers : dict of str to LayerOutcome
        In the order of execution.
    unreached : tuple of str
        Layers that no batch reached, or that saw no position that counts: they are not compressed.
    refused : dict of str to str
        Layers that cannot be compressed, and why: they keep their dense weights.
    folded : dict of str to str
        Batch normalisation folded into each layer.
    interrupted : bool
        Whether Ctrl-C ended the work before the last layer; the layers not listed are not compressed.
    """

    model: nn.Module
    layers: dict[str, LayerOutcome] = field(default_factory=dict)
    unreached: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The model's tensors by name, without extra state of other types."""
        return {name: value for name, value in self.model.state_dict().items() if hasattr(value, "detach")}


def compress(
    model: nn.Module,
    batches: Iterable[Any],
    method: str = "gptq",
    *,
    bits: int | None = None,
    density: float | None = None,
    pattern: str | None = None,
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
    device: str | torch.device | None = None,
    mask: Callable[[Any], Any] | Literal["auto"] | None = "auto",
    forward: Callable[[nn.Module, Any], Any] | None = None,
    progress: Callable[[int, int, LayerOutcome], None] | None = None,
    **options: Any,
) -> CompressedModel:
    """Quantize or prune the layers of a model one after the other, in the order of execution.

    Each layer is compressed for the inputs X̂ that it sees behind the layers already compressed, and for the outputs Xw
    that it has in the dense model, so that it makes up for errors before it where it can. Every layer costs one run of
    both models over the batches.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it is.
    batches : iterable
        Calibration data as in `capture`; gone through once for every layer.
    method : str
        A name from `heuristics`, or ``"solve"`` for the native branch and bound.
    bits : int, optional
        Quantization; ``granularity``, ``symmetric`` and ``range`` as in `quantization_problem`.
    density, pattern : optional
        Pruning instead, with ``refit`` as in `pruning_problem`.
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
    fold_batchnorm, device, mask, forward
        As in `capture`; with folding the result has no batch normalisation where it was folded.
    progress : callable, optional
        Called after each layer with (layers done, layers in all, outcome).
    **options
        Of the method.

    Returns
    -------
    CompressedModel
        After Ctrl-C, what was finished, with ``interrupted`` set.

    Raises
    ------
    InputError
        If arguments contradict each other; and as `capture` does before the first layer is finished. Layers that fail
        later, or whose reason concerns them alone, are listed in ``refused``.

    Warns
    -----
    CaptureWarning
        About every layer that is refused.
    """
    require_torch()

    from layerbounds.capturing.batches import again, first_batch
    from layerbounds.capturing.capture_run import CaptureRun
    from layerbounds.capturing.checks import (
        check_batches,
        check_flags,
        check_functions,
        check_model,
        check_names,
        read_device,
    )
    from layerbounds.capturing.copying import copied
    from layerbounds.capturing.fold import fold_batchnorm as fold
    from layerbounds.capturing.targets import CaptureWarning, find_targets, unwrap

    check_model(model, "model")
    if compressed_model is not None:
        check_model(compressed_model, "compressed_model")
    check_batches(batches)
    check_names(layers)
    automatic = isinstance(mask, str) and mask == "auto"
    check_functions(forward=forward, progress=progress, mask=None if automatic else mask)
    check_flags(refit=refit, sequential=sequential, intervals=intervals, fold_batchnorm=fold_batchnorm)
    pruning = density is not None or pattern is not None
    if (bits is None) != pruning:
        raise InputError("pass either bits, or density or pattern, and not both.")
    if pruning and not (granularity is None and symmetric is None and range is None):
        raise InputError("granularity, symmetric and range are about grids; leave them out when pruning.")
    if not pruning and not refit:
        raise InputError("refit=False is for pruning; leave it out with bits.")
    if not isinstance(method, str):
        raise InputError(f"method is {shown(method)}; pass the name of a heuristic, or 'solve'.")
    time_limit = real_number(time_limit, "time_limit", 0.0, unit="number of seconds")
    if time_limit and not intervals and method != SOLVE:
        raise InputError("time_limit is for the search for intervals; leave it out with intervals=False.")
    if method == SOLVE and options:
        raise InputError(f"method 'solve' has no option {next(iter(options))!r}; pass time_limit, jobs or seed.")
    again(batches, 2)
    place = read_device(device)
    dense = unwrap(model)
    chosen, refused = find_targets(dense, layers)
    targets = {target.name: target for target in chosen}
    for target in targets.values():
        if any(module._parameters.get("weight") is None for module in target.modules):
            raise InputError(
                f"layer {target.name!r} computes its weight from other parameters, so that no other weight can be put "
                "there; make it permanent first (torch.nn.utils.parametrize.remove_parametrizations, prune.remove or "
                "remove_weight_norm)."
            )
    start = copied(dense if compressed_model is None else unwrap(compressed_model))
    result = CompressedModel(start, refused=refused)
    if fold_batchnorm:
        first = first_batch(batches)
        dense = copied(dense)
        result.folded = fold(dense, first, forward, place)
        fold(start, first, forward, place)
        targets = {target.name: target for target in find_targets(dense, list(targets))[0]}
    reference = start if sequential else None if compressed_model is None else copied(start)
    calls = _calls(dense, list(targets.values()), batches, forward, place)
    result.unreached = tuple(name for name in targets if name not in calls)
    twins = {target.name: target for target in find_targets(start, list(targets))[0]}

    def problem_of(layer: Layer) -> Problem:
        if pruning:
            return pruning_problem(layer, density=density, pattern=pattern or "unstructured", refit=refit, bias=bias)
        return quantization_problem(layer, bits, symmetric=symmetric, granularity=granularity, range=range, bias=bias)

    def compressed(name: str, begin: float) -> tuple[LayerOutcome | None, bool]:
        """Compress one layer; whether that was interrupted. None where no position of it counts."""
        capture_run = CaptureRun(
            dense,
            batches,
            [name],
            device=place,
            mask=mask,
            forward=forward,
            compressed_model=reference,
            stop_after=calls[name],
        )
        captured = list(capture_run.layers())
        if not captured:
            return None, False
        problem = problem_of(captured[0])
        weights = None if method == SOLVE else run_heuristic(method, problem, seed=seed, **options)
        lower = upper = None
        interrupted = False
        if intervals or weights is None:
            solution = solve(problem, time_limit=time_limit, jobs=jobs, seed=seed, warm_start=weights)
            lower, upper, interrupted = solution.lower_bound, solution.upper_bound, solution.interrupted
            weights = solution.weights if weights is None else weights
        assert weights is not None
        _store(twins[name], problem.layer, weights)
        outcome = LayerOutcome(
            name,
            problem.label,
            tuple(problem.layer.weight.shape),
            evaluate(problem, weights).error,
            lower,
            upper,
            problem.layer.energy(),
            time.perf_counter() - begin,
        )
        return outcome, interrupted

    reason: LayerboundsError | None = None
    try:
        for name in calls:
            try:
                outcome, interrupted = compressed(name, time.perf_counter())
            except LayerboundsError as error:
                if not result.layers and not isinstance(error, LayerError):
                    raise
                # What is finished is kept, and the layers after this one may well work.
                reason = error
                result.refused[name] = str(error)
                warnings.warn(f"layer {name!r} is not compressed: {error}", CaptureWarning, stacklevel=2)
                continue
            if outcome is None:
                result.unreached += (name,)
                continue
            result.layers[name] = outcome
            if progress is not None:
                progress(len(result.layers), len(calls), outcome)
            if interrupted:
                result.interrupted = True
                break
    except KeyboardInterrupt:
        result.interrupted = True
    if reason is not None and not result.layers and not result.interrupted:
        raise reason
    return result


def _calls(
    model: nn.Module,
    targets: list[Target],
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any] | None,
    device: torch.device | None,
) -> dict[str, int | None]:
    """How often each layer is called in a batch, in the order of first calls; None where that depends on the batch."""
    import torch

    from layerbounds.capturing.batches import evaluating, move, run_batch
    from layerbounds.capturing.state import draw_seed, seeded
    from layerbounds.capturing.watching import hooks

    counts: list[dict[str, int]] = []
    order: dict[str, None] = {}

    def count(target: Target, *_: Any) -> None:
        order.setdefault(target.name)
        counts[-1][target.name] = counts[-1].get(target.name, 0) + 1

    seed = draw_seed()
    with torch.no_grad(), evaluating(model, device) as place:
        for index, batch in enumerate(batches):
            counts.append({})
            with hooks(targets, count), seeded(seed + index):
                run_batch(model, move(batch, place), forward, index)
    if not counts:
        raise InputError("there are no batches; pass at least one.")
    if not order:
        raise InputError("the model called none of the layers to compress; check the names and what forward does.")
    calls: dict[str, int | None] = {}
    for name in order:
        seen = {batch.get(name, 0) for batch in counts}
        calls[name] = seen.pop() if len(seen) == 1 else None
    return calls


def _store(target: Target, layer: Layer, weights: Float) -> None:
    """Put weights, and where it was re-fitted the bias, into the compressed model."""
    import torch

    matrix = torch.from_numpy(np.ascontiguousarray(weights)).reshape(layer.weight.shape)
    target.geometry.store(target.module, matrix)
    if layer.bias == "fixed":
        return
    change = torch.from_numpy(bias_change(layer, weights))
    for module in target.modules:
        old = getattr(module, "bias", None)
        weight = target.geometry.weight(module)
        shifted = change if old is None else old.detach().double().cpu() + change
        module.bias = torch.nn.Parameter(shifted.to(weight), requires_grad=False)
