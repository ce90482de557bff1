"""A capture from beginning to end: plan, passes, layers."""

from __future__ import annotations

import itertools
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layerbounds.arguments import as_mapping, as_path, check_functions, parse_bytes, shown
from layerbounds.capturing.batches import Forward, Mask, again, first_batch
from layerbounds.capturing.checks import (
    check_batches,
    check_flags,
    check_model,
    check_names,
    opened,
    read_device,
)
from layerbounds.capturing.copying import copied
from layerbounds.capturing.cuts import cut_targets, may_be_cut
from layerbounds.capturing.experts import ExpertGeometry
from layerbounds.capturing.few_positions import FEW_POSITIONS, warn_of_few_positions
from layerbounds.capturing.fold import fold_batchnorm
from layerbounds.capturing.loading import some
from layerbounds.capturing.memory import MemoryPlan, plan_memory
from layerbounds.capturing.moments import Allocate, ErrorSums, InputSums, Moments, in_memory
from layerbounds.capturing.shared_sums import SharedSums
from layerbounds.capturing.stream import Pass, Progress, Tally, twin_targets
from layerbounds.capturing.targets import CaptureWarning, Target, find_targets, other_parameters, unwrap
from layerbounds.display import Displayed, Summary, Table
from layerbounds.exceptions import InputError, LayerError
from layerbounds.layers.layer import Layer
from layerbounds.version import __version__

_DTYPES = {"float64": torch.float64, "float32": torch.float32}


@dataclass(repr=False)
class CaptureReport(Displayed):
    """What happened beside the layers.

    Attributes
    ----------
    plan : MemoryPlan
        Memory and passes.
    batches : int
    order : tuple of str
        Layers in the order of execution.
    unreached : tuple of str
        Layers that the model has but never called, or that saw no position that counts: they are not captured.
    refused : dict of str to str
        Layers that cannot be captured, and why.
    folded : dict of str to str
        Batch normalisation folded into each layer.
    other_parameters : tuple of str
        Matrices that belong to no captured layer and no embedding; empty where layers were selected.
    few_positions : dict of str to int
        Positions of the layers that have fewer of them than inputs, and so a singular Gram matrix.
    expert_tokens : dict of str to dict of int to int
        For each module of fused experts, the tokens that each expert got and that count; 0 for experts that got none.
    """

    plan: MemoryPlan
    batches: int = 0
    order: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    other_parameters: tuple[str, ...] = ()
    few_positions: dict[str, int] = field(default_factory=dict)
    expert_tokens: dict[str, dict[int, int]] = field(default_factory=dict)

    def _summary(self) -> Summary:
        count = len(self.order)
        facts = [f"{self.batches} batch{'' if self.batches == 1 else 'es'}", str(self.plan)]
        for what, names in self._left_out.items():
            if names:
                facts.append(f"{len(names)} {what}")
        return Summary(f"{count} layer{'' if count == 1 else 's'} captured", facts)

    @property
    def _left_out(self) -> dict[str, Mapping[str, str]]:
        """What has to be known beside the layers: names, and what is to be said of each."""
        return {
            "refused": self.refused,
            "not reached": dict.fromkeys(self.unreached, "the model never called it with a position that counts"),
            "with batch normalisation folded in": self.folded,
            "matrices of no captured layer": dict.fromkeys(self.other_parameters, ""),
        }

    def _tables(self) -> list[Table]:
        rows = [[name, what, why] for what, names in self._left_out.items() for name, why in names.items()]
        return [Table({"name": "text", "": "text", "why": "text"}, rows)] if rows else []


class CaptureRun:
    """One capture; the parameters are those of `layerbounds.capture`, and ``stop_after`` is that of `Pass`."""

    def __init__(
        self,
        model: nn.Module | str | os.PathLike[str],
        batches: Iterable[Any],
        layers: str | Iterable[str] | None = None,
        *,
        model_dtype: str | None = None,
        dtype: str | torch.dtype = "float64",
        device: str | torch.device | None = None,
        mask: Mask = "auto",
        forward: Forward | None = None,
        compressed_model: nn.Module | None = None,
        fold_batchnorm: bool = False,
        memory_limit: int | str | None = None,
        spill_dir: str | os.PathLike[str] | None = None,
        check: bool = True,
        plan: Callable[[MemoryPlan], None] | None = None,
        progress: Progress | None = None,
        provenance: Mapping[str, Any] | None = None,
        stop_after: int | None = None,
    ) -> None:
        self._device = read_device(device)
        model, about = opened(model, model_dtype, self._device)
        if compressed_model is not None:
            check_model(compressed_model, "compressed_model")
        check_batches(batches)
        check_names(layers)
        automatic = isinstance(mask, str) and mask == "auto"
        check_functions(forward=forward, plan=plan, progress=progress, mask=None if automatic else mask)
        check_flags(fold_batchnorm=fold_batchnorm, check=check)
        self._dtype = _dtype(dtype)
        self._mask, self._forward, self._check = mask, forward, check
        self._progress = progress
        self._spill_dir = None if spill_dir is None else as_path(spill_dir, "spill_dir")
        if self._spill_dir is not None and not self._spill_dir.is_dir():
            raise InputError(f"spill_dir {self._spill_dir} is not a folder; create it first.")
        self._model, self._compressed = unwrap(model), None if compressed_model is None else unwrap(compressed_model)
        self._batches = batches
        self._stop_after = stop_after
        self._provenance = {**about, **as_mapping(provenance, "provenance")}
        self._masked = 0
        folded: dict[str, str] = {}
        if fold_batchnorm:
            self._model, self._compressed, folded = self._fold()
        self.targets, refused = find_targets(self._model, layers)
        if any(map(may_be_cut, self.targets)):
            self.targets = cut_targets(self._model, self.targets, self._first(), forward, self._device)
        if self._compressed is not None:
            twin_targets(self.targets, self._compressed)
        memory = plan_memory(self.targets, parse_bytes(memory_limit), self._compressed is not None, self._dtype)
        again(self._batches, len(memory.passes))
        self.report = CaptureReport(memory, refused=refused, folded=folded)
        if layers is None:
            self.report.other_parameters = other_parameters(self._model, self.targets)
        if plan is not None:
            plan(memory)

    def _first(self) -> Any:
        """The first batch, which is not used up."""
        if not isinstance(self._batches, Iterator):
            return first_batch(self._batches)
        first = next(self._batches, None)
        self._batches = itertools.chain([first], self._batches) if first is not None else []
        return first

    def _fold(self) -> tuple[nn.Module, nn.Module | None, dict[str, str]]:
        """Fold copies of the models, with the first batch as a check."""
        first = self._first()
        model = copied(self._model)
        folded = fold_batchnorm(model, first, self._forward, self._device)
        compressed = None
        if self._compressed is not None:
            compressed = copied(self._compressed)
            fold_batchnorm(compressed, first, self._forward, self._device)
        return model, compressed, folded

    def layers(self) -> Iterator[Layer]:
        """Capture, and give the layers of each pass when it is over."""
        with tempfile.TemporaryDirectory(prefix="layerbounds-", dir=self._spill_dir) as folder:
            for number, targets in enumerate(self.report.plan.passes):
                yield from self._pass(targets, number, folder)
        if not self.report.order:
            raise InputError("the model called none of the layers to capture; check the names and what forward does.")
        if self._masked and len(self.report.unreached) == len(self.targets):
            raise LayerError(
                f"the mask leaves out all {self._masked} positions; pass 1 where a token counts and 0 elsewhere."
            )
        if self.report.unreached:
            names = some(self.report.unreached, 20)
            warnings.warn(f"never reached, and not captured: {names}", CaptureWarning, stacklevel=2)
        if self._compressed is None:
            warn_of_few_positions(self.report.few_positions, {t.name: t.geometry.inputs for t in self.targets})

    def _pass(self, targets: tuple[Target, ...], number: int, folder: str) -> Iterator[Layer]:
        moments = {target.name: self._moments(target, folder) for target in targets}
        alike = {t.name: (t.geometry.layout or t.name, t.name in self.report.plan.spilled) for t in targets}
        run = Pass(
            self._model,
            targets,
            SharedSums(moments, alike),
            self._compressed,
            self._mask,
            self._forward,
            self._device,
            self._check,
            self._stop_after,
            watch=self.targets if number == 0 else (),
        )
        passes = len(self.report.plan.passes)
        done = number * self.report.batches
        progress = self._progress
        if progress is None:
            run.run(self._batches)
        else:
            run.run(self._batches, lambda k, total: progress(done + k, None if total is None else passes * total))
        if not run.batches:
            raise InputError("there are no batches; pass at least one.")
        self._masked += sum(tally.masked for tally in run.tally.values())
        if number == 0:
            self.report.batches = run.batches
            self.report.order = tuple(run.order)
        elif run.batches != self.report.batches:
            raise InputError(
                f"the batches gave {self.report.batches} batches in the first pass and {run.batches} in pass "
                f"{number + 1}; pass a list or a DataLoader that can be read several times."
            )
        tally, norms = run.tally, run.norms
        # It holds the sums, which go one by one.
        del run
        # In the order of execution, so that a file lists its layers as the model runs them.
        rank = {name: position for position, name in enumerate(self.report.order)}
        for target in sorted(targets, key=lambda t: rank.get(t.name, len(rank))):
            if isinstance(target.geometry, ExpertGeometry):
                of_module = self.report.expert_tokens.setdefault(target.paths[0], {})
                of_module[target.geometry.expert] = moments[target.name].inputs.count
            if moments[target.name].inputs.count == 0:
                self.report.unreached += (target.name,)
                continue
            if moments[target.name].inputs.count < target.geometry.inputs:
                self.report.few_positions[target.name] = moments[target.name].inputs.count
            yield self._layer(target, moments.pop(target.name), tally[target.name], norms.of(target.name))

    def _moments(self, target: Target, folder: str) -> Moments:
        geometry = target.geometry
        allocate = _on_disk(folder) if target.name in self.report.plan.spilled else in_memory
        inputs = InputSums(geometry, self._dtype, allocate)
        if self._compressed is None:
            return Moments(inputs)
        return Moments(inputs, ErrorSums(geometry, self._dtype, partial(geometry.weight, target.module)))

    def _layer(self, target: Target, moments: Moments, tally: Tally, norm: str | None) -> Layer:
        weight = target.geometry.weight(target.module).cpu()
        about: dict[str, Any] = {
            **target.geometry.describe(),
            "layerbounds": __version__,
            "torch": torch.__version__,
            "model": type(self._model).__name__,
            "batches": self.report.batches,
            "calls": tally.calls,
            "accumulated_in": str(self._dtype).removeprefix("torch."),
        }
        if tally.masked:
            about["masked_positions"] = tally.masked
        if target.name in self.report.folded:
            about["folded_batchnorm"] = self.report.folded[target.name]
        if norm is not None:
            about["normalised_by"] = norm
        if target.aliases:
            about["tied_to"] = list(target.aliases)
        about.update(self._provenance)
        inputs, errors = moments.inputs, moments.errors
        gram = inputs.gram(f"layer {target.name!r}: gram")
        if errors is None:
            return Layer(weight, gram, target.name, samples=inputs.count, input_mean=inputs.mean(), provenance=about)
        shift = errors.shift(inputs)
        if inputs.count < FEW_POSITIONS * target.geometry.inputs and shift.any():
            warnings.warn(
                f"layer {target.name!r} has {inputs.count} positions for {target.geometry.inputs} inputs, so that its "
                "target fits them and not what other data have in common; pass more data",
                CaptureWarning,
                stacklevel=2,
            )
        return Layer.from_moments(
            weight,
            gram,
            target.name,
            shift=shift,
            error_energy=errors.energy(inputs),
            error_mean=errors.mean(inputs),
            samples=inputs.count,
            input_mean=inputs.mean(),
            provenance={**about, "compressed_inputs": True},
        )


def _dtype(value: str | torch.dtype) -> torch.dtype:
    for name, dtype in _DTYPES.items():
        if (isinstance(value, str) and value == name) or value is dtype:
            return dtype
    raise InputError(f"dtype is {shown(value)}; accumulate in float64 or float32.")


def _on_disk(folder: str) -> Allocate:
    """Sums in a file that the operating system pages in and out."""

    def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".sums", delete=False) as file:
            kind = np.float64 if dtype == torch.float64 else np.float32
            return torch.from_numpy(np.memmap(file.name, dtype=kind, mode="w+", shape=shape))

    return allocate
