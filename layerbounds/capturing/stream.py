"""One pass over the batches: hooks on the modules, sums of what they see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from layerbounds.capturing.batches import Forward, Mask, StopRun, batch_mask, evaluating, move, run_batch
from layerbounds.capturing.geometry import Geometry
from layerbounds.capturing.moments import Moments
from layerbounds.capturing.targets import Target, named_modules
from layerbounds.exceptions import InputError

#: Called after each batch: (batches done, batches in all or None).
Progress = Callable[[int, int | None], None]
#: What a hook passes on: the target, its module, the inputs, the outputs.
Seen = Callable[[Target, nn.Module, Tensor, Any], None]

#: Largest deviation of a module's output from Wx + b that rounding explains, relative to |W||x| + |b|.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 5e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
#: Positions of the first call on which that is checked.
_CHECKED_ROWS = 64


@dataclass
class Tally:
    """What is counted about one layer.

    Attributes
    ----------
    calls : int
        Calls of its modules.
    masked : int
        Positions that the mask left out.
    """

    calls: int = 0
    masked: int = 0


@dataclass
class Pass:
    """What one pass has to do, and what it found.

    Attributes
    ----------
    model, compressed : nn.Module
        The dense model, and the one whose inputs the compressed layers will see, if that is another one.
    targets : sequence of Target
    moments : mapping of name to Moments
    mask, forward, device
        As in `capture`.
    check : bool
        Whether the modules are compared with what capture takes them for.
    stop_after : int, optional
        With a single target: calls of it in every batch, after which the model need not run on.
    watch : sequence of Target
        Layers whose order of execution is recorded, though another pass may capture them.
    tally : dict of name to Tally
    order : list of str
        Names in the order of their first calls.
    batches : int
        Batches seen.
    """

    model: nn.Module
    targets: Sequence[Target]
    moments: Mapping[str, Moments]
    compressed: nn.Module | None = None
    mask: Mask = "auto"
    forward: Forward | None = None
    device: torch.device | None = None
    check: bool = True
    stop_after: int | None = None
    watch: Sequence[Target] = ()
    tally: dict[str, Tally] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    batches: int = 0

    @torch.no_grad()
    def run(self, batches: Iterable[Any], progress: Progress | None = None) -> None:
        """Feed all batches to the model and add up what the layers see.

        Raises
        ------
        InputError
            If a batch gives NaN or infinite inputs, or a layer does not do what its class says.
        """
        self.tally = {target.name: Tally() for target in self.targets}
        total = len(batches) if isinstance(batches, Sized) else None
        verified: set[nn.Module] = set()
        with ExitStack() as stack:
            device = stack.enter_context(evaluating(self.model, self.device))
            if self.compressed is not None:
                stack.enter_context(evaluating(self.compressed, self.device))
            for index, batch in enumerate(batches):
                self._batch(move(batch, device), index, verified)
                self.batches += 1
                if progress is not None:
                    progress(self.batches, total)

    def _batch(self, batch: Any, index: int, verified: set[nn.Module]) -> None:
        mask = batch_mask(batch, self.mask, index)
        waiting: dict[nn.Module, list[Tensor]] = {}
        calls = 0

        def stop() -> None:
            nonlocal calls
            calls += 1
            if calls == self.stop_after:
                raise StopRun

        def dense(target: Target, module: nn.Module, x: Tensor, y: Any) -> None:
            if self.check and module not in verified:
                verify(target, module, x, y)
                verified.add(module)
            if self.compressed is None:
                self._add(target, x, None, mask, index)
            else:
                # What the model does with the tensor later must not change it.
                waiting.setdefault(module, []).append(x.clone())
            stop()

        with suppress(StopRun), self._watching(), hooks(self.targets, dense):
            run_batch(self.model, batch, self.forward, index)
        if self.compressed is None:
            return
        twins = twin_targets(self.targets, self.compressed)
        back = {
            twin: own
            for target, other in zip(self.targets, twins, strict=True)
            for own, twin in zip(target.modules, other.modules, strict=True)
        }

        def compressed(target: Target, module: nn.Module, x: Tensor, _: Any) -> None:
            queue = waiting.get(back[module], [])
            if not queue:
                raise InputError(
                    f"layer {target.name!r} is called more often in the compressed model than in the dense one; both "
                    "must run the same layers."
                )
            self._add(target, x, queue.pop(0), mask, index)
            stop()

        calls = 0
        with suppress(StopRun), hooks(twins, compressed):
            run_batch(self.compressed, batch, self.forward, index)
        for target in self.targets:
            if any(waiting.get(module) for module in target.modules):
                raise InputError(
                    f"layer {target.name!r} is called less often in the compressed model than in the dense one; both "
                    "must run the same layers."
                )

    def _add(self, target: Target, x: Tensor, other: Tensor | None, mask: Tensor | None, index: int) -> None:
        if other is not None and other.shape != x.shape:
            raise InputError(
                f"layer {target.name!r} sees inputs of shape {tuple(x.shape)} in the compressed model and "
                f"{tuple(other.shape)} in the dense one; both must run the same layers on the same positions."
            )
        keep = None if mask is None else target.geometry.mask_rows(x, mask.to(x.device), target.name)
        tally = self.tally[target.name]
        tally.calls += 1
        if keep is not None:
            tally.masked += int((~keep).sum())
        for values in (x, other):
            if values is not None and not _finite(target.geometry, values, keep):
                raise InputError(
                    f"batch {index} (the first is 0): the inputs of layer {target.name!r} hold NaN or infinite values; "
                    "leave this batch out, or run the model in float32."
                )
        self.moments[target.name].add(x, keep, other)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Record the order in which layers run, until every one of them has."""
        rest = [target for target in self.watch if target.name not in self.order]

        def note(target: Target, *_: Any) -> None:
            if target.name not in self.order:
                self.order.append(target.name)

        with hooks(rest, note):
            yield


@contextmanager
def hooks(targets: Sequence[Target], seen: Seen) -> Iterator[None]:
    """Call ``seen`` after every call of a target's modules, until the block ends."""
    handles = []
    try:
        for target in targets:
            for module in target.modules:
                handles.append(module.register_forward_hook(_hook(target, seen), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(target: Target, seen: Seen) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        x = arguments[0] if arguments else next(iter(keywords.values()), None)
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"layer {target.name!r} is called with {kind}; its input must be a floating-point tensor.")
        x = x.detach()
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            # Autocast rounds inside the module: what is multiplied by the weights is the rounded tensor.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        seen(target, module, x, output)

    return hook


def twin_targets(targets: Sequence[Target], model: nn.Module) -> list[Target]:
    """The same layers in another model of the same structure.

    Raises
    ------
    InputError
        If it has no module of that name.
    """
    modules = named_modules(model)
    twins = []
    for target in targets:
        missing = [path for path in target.paths if path not in modules]
        if missing:
            raise InputError(
                f"the compressed model has no module {missing[0]!r}; it must have the module names of the dense one."
            )
        own = tuple(modules[path] for path in target.paths)
        twins.append(Target(target.name, own, target.paths, target.aliases, target.geometry))
    return twins


def verify(target: Target, module: nn.Module, x: Tensor, y: Any) -> None:
    """Compare a module with the matrix product that capture takes it for, on a few positions.

    Raises
    ------
    InputError
        If they differ by more than rounding: the class was changed, or another hook alters the output.
    """
    geometry = target.geometry
    reason = "returns no tensor"
    if isinstance(y, Tensor):
        where, block = next(geometry.blocks(x, _CHECKED_ROWS), (None, None))
        if block is None:
            return
        weight = geometry.weight(module).to(torch.float64 if x.device.type != "mps" else torch.float32)
        weight = weight.reshape(geometry.groups, -1, geometry.inputs)
        rows = block[:, :_CHECKED_ROWS].to(weight.dtype)
        own = geometry.output_rows(y, where)[:, :_CHECKED_ROWS].to(weight.dtype)
        bias = getattr(module, "bias", None)
        shift = (
            torch.zeros_like(weight[:, :, 0]) if bias is None else bias.detach().reshape(weight.shape[:2]).to(weight)
        )[:, None]
        expected = torch.bmm(rows, weight.transpose(1, 2)) + shift
        size = torch.bmm(rows.abs(), weight.abs().transpose(1, 2)) + shift.abs()
        allowed = max(_ROUNDING.get(kind, 1e-1) for kind in (x.dtype, y.dtype, geometry.weight(module).dtype))
        difference = float(((own - expected).abs() / size.clamp_min(torch.finfo(torch.float32).tiny)).max())
        # NaN is reported where the inputs are checked.
        if not difference > allowed:
            return
        reason = f"differs from its weights times its inputs by {difference:.1e} of their size"
    raise InputError(
        f"layer {target.name!r}: the output of this {type(module).__name__} {reason}, so that a Gram matrix of its "
        "inputs would not describe it; leave it out, or pass check=False if another hook changes the output on purpose."
    )


def _finite(geometry: Geometry, x: Tensor, keep: Tensor | None) -> bool:
    if bool(torch.isfinite(x).all()):
        return True
    if keep is None:
        return False
    # Padded positions may hold anything.
    start = 0
    for _, block in geometry.blocks(x, 4096):
        chosen = keep[start : start + block.shape[1]]
        start += block.shape[1]
        if not bool(torch.isfinite(block[:, chosen]).all()):
            return False
    return True
