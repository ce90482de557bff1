"""Convolutions whose outputs are cut before anything reads them, as causal ones are that pad on both sides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from layerbounds.capturing.batches import Forward, evaluating, move, run_batch
from layerbounds.capturing.functional_calls import ConvOwners, is_causal_kind
from layerbounds.capturing.geometry import ConvGeometry
from layerbounds.capturing.state import draw_seed, seeded
from layerbounds.capturing.targets import Target
from layerbounds.exceptions import LayerError


class Cuts(TorchFunctionMode):
    """Follows what becomes of the outputs of convolutions.

    Parameters
    ----------
    modules : iterable of nn.Module

    Attributes
    ----------
    found : dict of nn.Module to set of (int, int)
        How many positions were cut off at the beginning and at the end, in all uses of the outputs.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self._modules = list(modules)
        self._owners = ConvOwners(self._modules)
        self._outputs: dict[int, tuple[nn.Module, Tensor]] = {}
        self.found: dict[nn.Module, set[tuple[int, int]]] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Any:
        """Begin."""
        self._handles = [module.register_forward_hook(self._note) for module in self._modules]
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *about: Any) -> None:
        """End."""
        for handle in self._handles:
            handle.remove()
        self._outputs.clear()
        super().__exit__(*about)  # type: ignore[no-untyped-call]

    def _note(self, module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            # Kept, so that its number is nobody else's.
            self._outputs[id(output)] = module, output

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run a function and note what it makes of an output."""
        result = func(*args, **(kwargs or {}))
        if self._outputs and isinstance(result, (Tensor, tuple, list)) and not isinstance(result, torch.Size):
            for value in (*args, *(kwargs or {}).values()):
                for own in value if isinstance(value, (tuple, list)) else (value,):
                    if id(own) in self._outputs:
                        module, output = self._outputs[id(own)]
                        self.found.setdefault(module, set()).add(_cut(output, result))
        found = self._owners.find(func, args, kwargs or {})
        if found is not None:
            self._note(found[0], None, result)
        return result


def _cut(output: Tensor, result: Any) -> tuple[int, int]:
    """What a result leaves out of the positions of an output at either end; nothing unless it is a part of it."""
    if (
        not isinstance(result, Tensor)
        or result.untyped_storage().data_ptr() != output.untyped_storage().data_ptr()
        or result.shape[:-1] != output.shape[:-1]
        or result.stride() != output.stride()
    ):
        return 0, 0
    before = (result.storage_offset() - output.storage_offset()) // max(1, output.stride(-1))
    return before, output.shape[-1] - before - result.shape[-1]


def may_be_cut(target: Target) -> bool:
    """Whether a layer pads more than it needs, if its output is cut."""
    return is_causal_kind(target.geometry)


@torch.no_grad()
def cut_targets(
    model: nn.Module, targets: Sequence[Target], batch: Any, forward: Forward | None, device: torch.device | None
) -> list[Target]:
    """Give the convolutions whose outputs are always cut the geometry of what is left.

    Positions that are cut off have no influence on the model; they would count with windows of zeros and a few inputs.

    Parameters
    ----------
    model : nn.Module
    targets : sequence of Target
    batch : Any
        What the model is run on to find out.
    forward, device
        As in `capture`.
    """
    asked = [target for target in targets if may_be_cut(target)]
    if not asked or batch is None:
        return list(targets)
    modules = [module for target in asked for module in target.modules]
    with evaluating(model, device) as place, seeded(draw_seed()), Cuts(modules) as cuts:
        run_batch(model, move(batch, place), forward, 0)
    return [_cut_target(target, cuts.found) if target in asked else target for target in targets]


def _cut_target(target: Target, found: dict[nn.Module, set[tuple[int, int]]]) -> Target:
    geometry = target.geometry
    assert isinstance(geometry, ConvGeometry)
    uses = set().union(*(found.get(module, {(0, 0)}) for module in target.modules))
    cut = next(iter(uses))
    fits = all(0 <= own <= padding for own, padding in zip(cut, geometry.padding[0], strict=True))
    return replace(target, geometry=replace(geometry, cut=cut)) if len(uses) == 1 and fits else target


def check_cuts(targets: Sequence[Target], found: dict[nn.Module, set[tuple[int, int]]]) -> None:
    """Make sure that outputs were cut as in the first batch.

    Raises
    ------
    LayerError
        If they were not.
    """
    for target in targets:
        for module in target.modules:
            geometry = target.geometry
            if isinstance(geometry, ConvGeometry) and not found.get(module, set()) <= {geometry.cut}:
                raise LayerError(
                    f"the output of layer {target.name!r} is cut in another way than in the first batch, so that its "
                    "positions are not the same ones; leave it out."
                )
