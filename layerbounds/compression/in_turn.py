"""The layers of a model, compressed in the order of execution."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from layerbounds.arrays import Float
from layerbounds.capturing.batches import Forward, Mask, evaluating, first_batch, move, run_batch
from layerbounds.capturing.capture_run import CaptureRun
from layerbounds.capturing.copying import copied
from layerbounds.capturing.experts import ExpertGeometry
from layerbounds.capturing.fold import fold_batchnorm
from layerbounds.capturing.state import draw_seed, seeded
from layerbounds.capturing.targets import CaptureWarning, Target, find_targets, unwrap
from layerbounds.capturing.watching import Call, hooks
from layerbounds.compression.choices import Choices
from layerbounds.compression.destinations.base import Destination
from layerbounds.compression.outcome import CompressedModel, LayerOutcome
from layerbounds.exceptions import InputError, LayerboundsError, LayerError, UnsupportedProblemError
from layerbounds.layers.bias import bias_change
from layerbounds.layers.layer import Layer
from layerbounds.problems.evaluation import evaluate
from layerbounds.problems.joint import JointProblem
from layerbounds.problems.quantization import QuantizationProblem

#: Why experts are left as they are where a directory or a GGUF file is written.
_EXPERTS = (
    "is a matrix of fused experts, which has no tensor of its own in the files; leave out the format, or this layer"
)
#: Called after each layer with (layers done, layers in all, outcome).
Progress = Callable[[int, int, LayerOutcome], None]


@dataclass(frozen=True)
class Calibration:
    """How the models run: the arguments of `capture` of these names."""

    batches: Iterable[Any]
    mask: Mask
    forward: Forward | None
    device: torch.device | None


class LayersInTurn:
    """Compresses layer after layer in a copy of a model.

    Parameters
    ----------
    model : nn.Module
    start : nn.Module, optional
        What the compression starts from; default: ``model``.
    layers : str or iterable of str, optional
    calibration : Calibration
    choices : Choices
    sequential, fold : bool
        As ``sequential`` and ``fold_batchnorm`` of `compress`.
    destination : Destination, optional
        What the model is written as.

    Attributes
    ----------
    result : CompressedModel
        What is finished.
    """

    def __init__(
        self,
        model: nn.Module,
        start: nn.Module | None,
        layers: str | Iterable[str] | None,
        calibration: Calibration,
        choices: Choices,
        *,
        sequential: bool,
        fold: bool,
        destination: Destination | None = None,
    ) -> None:
        self._calibration, self._destination = calibration, destination
        batches, forward, device = calibration.batches, calibration.forward, calibration.device
        self._dense = unwrap(model)
        self._experts = None if destination is None else _EXPERTS
        chosen, refused = find_targets(self._dense, layers, experts=self._experts)
        self._recipes, left = choices.recipes([target.name for target in chosen])
        if destination is not None:
            chosen, left = self._fit(chosen, left, destination)
        chosen = [target for target in chosen if target.name in self._recipes]
        _check_own_weights(chosen)
        names = [target.name for target in chosen]
        copy = copied(self._dense if start is None else unwrap(start))
        methods = ", ".join(dict.fromkeys(recipe.chosen for recipe in self._recipes.values()))
        self.result = CompressedModel(copy, methods, refused=refused, left=left, destination=destination)
        if fold:
            first = first_batch(batches)
            self._dense = copied(self._dense)
            self.result.folded = fold_batchnorm(self._dense, first, forward, device)
            fold_batchnorm(copy, first, forward, device)
            chosen = find_targets(self._dense, names, experts=self._experts)[0]
        # What the inputs of the compressed layers come from, if that is not the dense model.
        self._reference = copy if sequential else None if start is None else copied(copy)
        self._calls = _calls(self._dense, chosen, batches, forward, device)
        self.result.unreached = tuple(name for name in names if name not in self._calls)
        self._twins = {target.name: target for target in find_targets(copy, names, experts=self._experts)[0]}

    def _fit(
        self, targets: list[Target], left: dict[str, str], destination: Destination
    ) -> tuple[list[Target], dict[str, str]]:
        """Leave out what the files cannot hold, and round the scales of what they can."""
        asked = [target for target in targets if target.name in self._recipes]
        unfit = destination.check(self._dense, asked, self._recipes)
        if len(unfit) == len(asked):
            name, reason = next(iter(unfit.items()))
            raise UnsupportedProblemError(
                f"format {destination.name!r} cannot hold any of the layers; {name!r}, for example: {reason}."
            )
        fitting = [target for target in asked if target.name not in unfit]
        self._recipes = {target.name: destination.recipe(target, self._recipes[target.name]) for target in fitting}
        return fitting, {**left, **unfit}

    def run(self, progress: Progress | None) -> None:
        """Compress all layers, or those that are finished before Ctrl-C."""
        result = self.result
        reason: LayerboundsError | None = None
        try:
            for name in self._calls:
                try:
                    outcome, interrupted = self._compress(name)
                except LayerboundsError as error:
                    if not result.layers and not isinstance(error, LayerError):
                        raise
                    # What is finished is kept, and the layers after this one may well work.
                    reason = error
                    result.refused[name] = str(error)
                    warnings.warn(f"layer {name!r} is not compressed: {error}", CaptureWarning, stacklevel=3)
                    continue
                if outcome is None:
                    result.unreached += (name,)
                    continue
                result.layers[name] = outcome
                if progress is not None:
                    progress(len(result.layers), len(self._calls), outcome)
                if interrupted:
                    result.interrupted = True
                    break
        except KeyboardInterrupt:
            result.interrupted = True
        if reason is not None and not result.layers and not result.interrupted:
            raise reason

    def _compress(self, name: str) -> tuple[LayerOutcome | None, bool]:
        """Compress one layer; whether that was interrupted. None where no position of it counts."""
        begin = time.perf_counter()
        calibration = self._calibration
        capture_run = CaptureRun(
            self._dense,
            calibration.batches,
            [name],
            device=calibration.device,
            mask=calibration.mask,
            forward=calibration.forward,
            compressed_model=self._reference,
            stop_after=self._calls[name],
        )
        captured = list(capture_run.layers())
        if not captured:
            return None, False
        recipe, twin = self._recipes[name], self._twins[name]
        problem = recipe.problem(captured[0])
        found = recipe.apply(problem)
        _store(twin, problem.layer, found.weights)
        loaded = twin.geometry.weight(twin.module).double().cpu().numpy().reshape(found.weights.shape)
        if self._destination is not None and isinstance(problem, (QuantizationProblem, JointProblem)):
            matrix = found.weights.reshape(problem.layer.matrix.shape)
            weight = self._destination.weight(twin, problem.grid, matrix)
            if weight is not None:
                self.result.quantized[name] = weight
        sets, energy = problem.sets(range(problem.layer.out_features)), problem.energy()
        outcome = LayerOutcome(
            name,
            problem.label,
            tuple(problem.layer.weight.shape),
            sets,
            evaluate(problem, found.weights).error,
            evaluate(problem, loaded).error,
            found.lower_bound,
            found.upper_bound,
            np.array([energy[rows].sum() for rows in sets]),
            time.perf_counter() - begin,
        )
        return outcome, found.interrupted


def _check_own_weights(targets: Iterable[Target]) -> None:
    """Refuse layers in which no other weight could be put."""
    for target in targets:
        if isinstance(target.geometry, ExpertGeometry):
            continue
        if any(module._parameters.get("weight") is None for module in target.modules):
            raise InputError(
                f"layer {target.name!r} computes its weight from other parameters, so that no other weight can be put "
                "there; make it permanent first (torch.nn.utils.parametrize.remove_parametrizations, prune.remove or "
                "remove_weight_norm)."
            )


def _calls(
    model: nn.Module,
    targets: list[Target],
    batches: Iterable[Any],
    forward: Forward | None,
    device: torch.device | None,
) -> dict[str, int | None]:
    """How often each layer is called in a batch, in the order of first calls; None where that depends on the batch."""
    counts: list[dict[str, int]] = []
    order: dict[str, None] = {}

    def count(call: Call) -> None:
        name = call.target.name
        order.setdefault(name)
        counts[-1][name] = counts[-1].get(name, 0) + 1

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
    matrix = torch.from_numpy(np.ascontiguousarray(weights)).reshape(layer.weight.shape)
    change = None if layer.bias == "fixed" else torch.from_numpy(bias_change(layer, weights))
    if change is not None and isinstance(target.geometry, ExpertGeometry):
        # First, because there may be none.
        target.geometry.shift_bias(target.module, change)
    target.geometry.store(target.module, matrix)
    if change is None or isinstance(target.geometry, ExpertGeometry):
        return
    for module in target.modules:
        old = getattr(module, "bias", None)
        weight = target.geometry.weight(module)
        shifted = change if old is None else old.detach().double().cpu() + change
        module.bias = torch.nn.Parameter(shifted.to(weight), requires_grad=False)
