"""Putting the trained parts into a model, and taking them out again with what they have found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from layerbounds.arrays import as_float64
from layerbounds.capturing.activations import InputHook, feature_axis
from layerbounds.capturing.checks import check_names
from layerbounds.capturing.state import preserved
from layerbounds.capturing.targets import Target, find_targets
from layerbounds.capturing.watching import Call, hooks
from layerbounds.exceptions import InputError
from layerbounds.names import match_name
from layerbounds.problems.grids import Grid
from layerbounds.problems.patterns.base import Pattern
from layerbounds.training.layer_parts import CompressedInput, CompressedWeight
from layerbounds.training.pruners import ActivationMask, WeightMask
from layerbounds.training.quantizers import QUANTIZERS
from layerbounds.training.ranges import make_range
from layerbounds.training.records import TrainedLayer
from layerbounds.training.settings import Settings

#: Under this name the compressed inputs are a submodule of their layer.
_CHILD = "layerbounds_input"

#: Why the matrices of fused experts are not trained here.
_EXPERTS = "is a matrix of fused experts, which are not compressed during training; choose other layers"


@dataclass(frozen=True, eq=False)
class WrappedLayer:
    """A layer with its parts.

    Attributes
    ----------
    name : str
    module : torch.nn.Module
    weight : CompressedWeight or None
    input : CompressedInput or None
    """

    name: str
    module: nn.Module
    weight: CompressedWeight | None
    input: CompressedInput | None

    @property
    def latent(self) -> Tensor:
        """The full-precision weight that is trained."""
        if self.weight is None:
            return self.used
        original = self.module.parametrizations["weight"].original  # type: ignore[index, union-attr]
        assert isinstance(original, Tensor)
        return original

    @property
    def used(self) -> Tensor:
        """The weight that the layer computes with."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight

    def advance(self, progress: float) -> None:
        """Bring the parts to a fraction of the training."""
        if self.weight is not None:
            self.weight.advance(self.latent, progress)
        if self.input is not None:
            self.input.advance(progress)

    def settle(self) -> None:
        """Put back what a step of the optimizer has made impossible."""
        for part in (self.weight, self.input):
            if part is not None:
                part.settle()

    def scales(self) -> list[nn.Parameter]:
        """Learned step sizes."""
        return [p for part in (self.weight, self.input) if part is not None for p in part.parameters()]

    def export(self, settings: Settings) -> TrainedLayer:
        """The layer's weights, exactly on their grid."""
        shape = tuple(self.latent.shape)
        if self.weight is None:
            matrix, scale = self.latent.detach().double().flatten(1), None
        else:
            matrix, scale = self.weight.exact(self.latent)
            shape = (shape[1], shape[0]) if self.weight.transposed else shape
        grid = None
        if scale is not None:
            assert settings.bits is not None
            codes = np.arange(2.0**settings.bits) - 2 ** (settings.bits - 1)
            label = f"{settings.bits}-bit symmetric per {settings.granularity}, trained ({settings.quantizer})"
            grid = Grid(codes, scale.cpu().numpy(), np.zeros(()), matrix.shape[1], label=label)
        rule = settings.rule
        return TrainedLayer(
            self.name, matrix.cpu().numpy(), grid, None if rule is None else rule.label, settings.density, shape
        )

    def unwrap(self) -> None:
        """Leave a plain weight behind, and the compression of the inputs as a hook that no longer changes."""
        if self.weight is not None:
            parametrize.remove_parametrizations(self.module, "weight", leave_parametrized=True)
        if self.input is not None:
            self.input.freeze()


def wrap(
    model: nn.Module,
    settings: Settings,
    batch: Any,
    layers: str | Iterable[str] | None,
    activation_layers: str | Iterable[str] | None,
    scales: Mapping[str, Any],
) -> list[WrappedLayer]:
    """Put the parts into the layers of a model, in place.

    Parameters
    ----------
    model : torch.nn.Module
    settings : Settings
    batch
        An input of the model, from which the shapes of the layers' inputs are found out.
    layers, activation_layers, scales
        As in `finetune`.

    Raises
    ------
    InputError
        If a layer shares its weight, has none of its own, or is not reached.
    """
    for names in (layers, activation_layers):
        check_names(names)
    targets = find_targets(model, layers, experts=_EXPERTS)[0]
    # Names are looked up before the parts add modules of their own.
    chosen = targets
    if activation_layers is not None:
        chosen = find_targets(model, activation_layers, experts=_EXPERTS)[0]
    compressed = {target.name for target in chosen} if settings.changes_inputs else set()
    every = {target.name: target for target in (*targets, *chosen)} if settings.changes_inputs else {}
    every = {target.name: target for target in targets} | every
    for target in every.values():
        _check(target)
    first = _first_scales(scales, every, settings)
    shapes = _input_shapes(model, [every[name] for name in every if name in compressed], batch)
    wrapped = []
    names = {target.name for target in targets}
    for name, target in every.items():
        weight = _weight_part(target, settings, first.get(name)) if name in names else None
        inputs = _input_part(target, settings, shapes[name]) if name in compressed else None
        example = target.geometry.weight(target.module)
        for part in (weight, inputs):
            if part is not None:
                part.to(device=example.device, dtype=example.dtype)
        if weight is not None:
            parametrize.register_parametrization(target.module, "weight", weight, unsafe=True)
        if inputs is not None:
            target.module.add_module(_CHILD, inputs)
            target.module.register_forward_pre_hook(InputHook(inputs), with_kwargs=True)
        wrapped.append(WrappedLayer(name, target.module, weight, inputs))
    return wrapped


def _check(target: Target) -> None:
    if target.aliases:
        raise InputError(
            f"layer {target.name!r} shares its weight with {target.aliases[0]!r}, which training does not support; "
            "leave it out with layers."
        )
    if target.module._parameters.get("weight") is None:
        raise InputError(
            f"layer {target.name!r} computes its weight from other parameters; make it permanent first "
            "(torch.nn.utils.parametrize.remove_parametrizations, prune.remove or remove_weight_norm)."
        )


def _weight_part(target: Target, settings: Settings, start: Tensor | None) -> CompressedWeight | None:
    """What compresses a weight; None where nothing is asked of weights."""
    weight = target.geometry.weight(target.module)
    quantizer = mask = None
    if settings.bits is not None:
        rows = len(weight) if settings.granularity == "channel" else 1
        quantizer = QUANTIZERS[settings.quantizer](settings.bits, rows)
    rule = settings.rule
    if rule is not None:
        shape = tuple(weight.shape[1:])
        mask = WeightMask(rule.structure(shape, kept_inputs(rule, shape, settings.density)), len(weight))
    if quantizer is None and mask is None:
        return None
    return CompressedWeight(
        bool(getattr(target.geometry, "transposed", False)),
        quantizer,
        mask,
        settings.schedule.phase("prune", "weights"),
        settings.schedule.phase("quantize", "weights"),
        start,
    )


def kept_inputs(rule: Pattern, shape: tuple[int, ...], density: float | None) -> int:
    """How many inputs may be kept; as in `pruning_problem`, where a product that is an integer up to rounding is it."""
    total = rule.total(shape)
    return total if density is None else int(density * total + 1e-9)


def _input_part(target: Target, settings: Settings, shape: tuple[int, ...]) -> CompressedInput:
    mask = quantizer = None
    if settings.activation_density is not None:
        mask = ActivationMask(shape, settings.activation_density, settings.window)
    if settings.activation_bits is not None:
        quantizer = make_range(settings.activation_ranges, settings.activation_bits, feature_axis(target))
    schedule = settings.schedule
    return CompressedInput(
        mask, quantizer, schedule.phase("prune", "activations"), schedule.phase("quantize", "activations")
    )


def _first_scales(scales: Mapping[str, Any], targets: Mapping[str, Target], settings: Settings) -> dict[str, Tensor]:
    """The given step sizes by layer, shape (rows, 1)."""
    if scales and (settings.quantizer != "lsq" or settings.bits is None):
        raise InputError("scales are the first ones of learned step sizes; leave them out, or pass bits with 'lsq'.")
    found: dict[str, Tensor] = {}
    for given, value in scales.items():
        name = match_name(given, list(targets), "layer")
        array = as_float64(value, f"scales of {given!r}").reshape(-1, 1)
        rows = targets[name].geometry.outputs if settings.granularity == "channel" else 1
        if len(array) != rows:
            raise InputError(f"layer {name!r} has {rows} step sizes, and scales has {len(array)}; pass one for each.")
        if not (array > 0).all():
            raise InputError(f"scales of {name!r} are not all positive; pass step sizes.")
        found[name] = torch.from_numpy(array.copy())
    return found


@torch.no_grad()
def _input_shapes(model: nn.Module, targets: list[Target], batch: Any) -> dict[str, tuple[int, ...]]:
    """The shape of the inputs of one sample, for each layer."""
    shapes: dict[str, tuple[int, ...]] = {}

    def look(call: Call) -> None:
        name, shape = call.target.name, tuple(call.tokens.shape[1:])
        if shapes.setdefault(name, shape) != shape:
            raise InputError(f"layer {name!r} sees inputs of several shapes; leave out its activations.")

    if targets:
        training = model.training
        with preserved(model), hooks(targets, look):
            model.eval()(batch)
        model.train(training)
    missing = [target.name for target in targets if target.name not in shapes]
    if missing:
        raise InputError(f"layer {missing[0]!r} was not reached by the first batch; leave it out.")
    return shapes
