"""One pass over the batches: hooks on the modules, sums of what they see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from layerbounds.capturing.batches import Forward, Mask, StopRun, evaluating, move, run_batch
from layerbounds.capturing.cuts import Cuts, check_cuts
from layerbounds.capturing.experts import ExpertGeometry, expected_outputs, expert_layers
from layerbounds.capturing.geometry import ConvGeometry, Geometry, describe_module
from layerbounds.capturing.norms import NormsBefore
from layerbounds.capturing.row_pairs import Choices, repeats, same_tokens
from layerbounds.capturing.shared_sums import SharedSums
from layerbounds.capturing.sides import sides_of
from layerbounds.capturing.state import copy_generators, draw_seed, preserved, seeded
from layerbounds.capturing.targets import Target, named_modules
from layerbounds.capturing.token_axes import TokenAxes
from layerbounds.capturing.watching import Call, hooks
from layerbounds.exceptions import InputError, LayerError

#: Called after each batch: (batches done, batches in all or None).
Progress = Callable[[int, int | None], None]

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


@dataclass(frozen=True)
class _Dense:
    """What a module of the dense model saw: its input, which rows count, and what chose them."""

    tokens: Tensor
    keep: Tensor | None
    choices: frozenset[bytes]


@dataclass
class Pass:
    """What one pass has to do, and what it found.

    Attributes
    ----------
    model, compressed : nn.Module
        The dense model, and the one whose inputs the compressed layers will see, if that is another one.
    targets : sequence of Target
    sums : SharedSums
        Of all targets.
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
    norms : NormsBefore
        The normalisations before the layers.
    """

    model: nn.Module
    targets: Sequence[Target]
    sums: SharedSums
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

    def __post_init__(self) -> None:
        self.norms = NormsBefore(self.model)

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
        self._axes = TokenAxes(self.model, self.targets, self.forward, self.stop_after)
        self._seed = draw_seed()
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
        self._axes.begin(batch, sides_of(self.model, batch, self.mask, index), index, self._seed + index)
        waiting: dict[nn.Module, list[_Dense]] = {}
        calls = 0

        def stop() -> None:
            nonlocal calls
            calls += 1
            if calls == self.stop_after:
                raise StopRun

        def dense(call: Call) -> None:
            with choices.paused():
                target, module, x = call.target, call.module, call.x
                if index == 0 and self.compressed is not None:
                    once = before.get(module)
                    if not once or not repeats(_sample(x), once.pop(0)):
                        raise LayerError(
                            f"layer {target.name!r} sees other inputs each time the model runs on the same batch, so "
                            "that those of the compressed model cannot be compared with them; make it repeatable."
                        )
                if self.check and module not in verified and verify(call):
                    verified.add(module)
                keep = self._axes.keep(call)
                self.norms.note(target.name, call.read)
                if self.compressed is None:
                    self._add(target, x, call.kept(keep), None, index)
                else:
                    # What the model does with the tensor later must not change it.
                    kept = _Dense(call.copied_tokens(), keep, choices.behind(call.tokens))
                    waiting.setdefault(module, []).append(kept)
            stop()

        choices, other_choices = Choices(), Choices()
        before = self._once(batch) if index == 0 and self.compressed is not None else {}
        if self.compressed is not None:
            copy_generators(self.model, self.compressed)
        noting = nullcontext() if self.compressed is None else choices
        cut = [
            target for target in self.targets if isinstance(target.geometry, ConvGeometry) and any(target.geometry.cut)
        ]
        cuts = Cuts(module for target in cut for module in target.modules)
        with ExitStack() as stack:
            stack.enter_context(suppress(StopRun))
            for watching in (self._watching(), self.norms.watching(), hooks(self.targets, dense)):
                stack.enter_context(watching)
            stack.enter_context(seeded(self._seed + index))
            stack.enter_context(noting)
            if cut:
                stack.enter_context(cuts)
            run_batch(self.model, batch, self.forward, index)
        check_cuts(cut, cuts.found)
        if self.compressed is None:
            self.sums.finish()
            return
        twins = twin_targets(self.targets, self.compressed)
        back = {
            twin: own
            for target, other in zip(self.targets, twins, strict=True)
            for own, twin in zip(target.modules, other.modules, strict=True)
        }

        def compressed(call: Call) -> None:
            target, own = call.target, back[call.module]
            queue = waiting.get(own, [])
            if not queue:
                raise LayerError(
                    f"layer {target.name!r} is called more often in the compressed model than in the dense one; both "
                    "must run the same layers."
                )
            partner = queue.pop(0)
            # Further choices, such as that of codes which stand for weights, do not matter.
            alike = partner.choices <= other_choices.behind(call.tokens)
            with other_choices.paused():
                _check_shapes(target, call.tokens, partner.tokens)
                # An expert is compared with the dense one for the tokens that it gets itself.
                self._add(target, call.x, call.kept(partner.keep), call.inputs(own, partner.tokens), index, alike)
            stop()

        calls = 0
        # The numbers that the dense model drew.
        with suppress(StopRun), hooks(twins, compressed), seeded(self._seed + index), other_choices:
            run_batch(self.compressed, batch, self.forward, index)
        self.sums.finish()
        for target in self.targets:
            if any(waiting.get(module) for module in target.modules):
                raise LayerError(
                    f"layer {target.name!r} is called less often in the compressed model than in the dense one; both "
                    "must run the same layers."
                )

    def _once(self, batch: Any) -> dict[nn.Module, list[Tensor]]:
        """Some values of the inputs that the layers see in a run of the dense model."""
        seen: dict[nn.Module, list[Tensor]] = {}

        def note(call: Call) -> None:
            seen.setdefault(call.module, []).append(_sample(call.x).clone())
            if sum(map(len, seen.values())) == self.stop_after:
                raise StopRun

        with suppress(StopRun), preserved(self.model), hooks(self.targets, note), seeded(self._seed):
            run_batch(self.model, batch, self.forward, 0)
        return seen

    def _add(
        self, target: Target, x: Tensor, keep: Tensor | None, other: Tensor | None, index: int, alike: bool = True
    ) -> None:
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
        if other is not None and not alike:
            rows, partners = (_rows(target.geometry, values, keep) for values in (x, other))
            if not same_tokens(partners, rows):
                raise LayerError(
                    f"layer {target.name!r} sees other tokens in the compressed model than in the dense one, because "
                    "the models choose rows differently (experts that choose tokens, say); leave it out, or capture it "
                    "without compressed inputs."
                )
        self.sums.add(target.name, x, keep, other)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Record the order in which layers run, until every one of them has."""
        rest = [target for target in self.watch if target.name not in self.order]

        def note(call: Call) -> None:
            if call.target.name not in self.order:
                self.order.append(call.target.name)

        with hooks(rest, note):
            yield


def twin_targets(targets: Sequence[Target], model: nn.Module) -> list[Target]:
    """The same layers in another model of the same structure.

    Raises
    ------
    InputError
        If it has no module of that name, or one that arranges its inputs in another way.
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
        for path, module in zip(target.paths, own, strict=True):
            if isinstance(target.geometry, ExpertGeometry):
                experts = expert_layers(module)
                same = isinstance(experts, dict) and target.geometry in experts.values()
            else:
                geometry = describe_module(module)
                whole = target.geometry
                if isinstance(whole, ConvGeometry):
                    whole = replace(whole, cut=(0, 0))
                same = isinstance(geometry, str | None) or geometry == whole
            if not same:
                raise InputError(
                    f"layer {path!r} has other sizes, strides, paddings or groups in the compressed model than in the "
                    "dense one; both must run the same layers."
                )
        twins.append(Target(target.name, own, target.paths, target.aliases, target.geometry))
    return twins


def _check_shapes(target: Target, x: Tensor, other: Tensor) -> None:
    if x.shape != other.shape:
        raise LayerError(
            f"layer {target.name!r} sees inputs of shape {tuple(x.shape)} in the compressed model and "
            f"{tuple(other.shape)} in the dense one; both must run the same layers on the same positions."
        )


def verify(call: Call) -> bool:
    """Compare a module with the matrix product that capture takes it for, on a few positions.

    Returns
    -------
    bool
        False if there was no position.

    Raises
    ------
    InputError
        If they differ by more than rounding: the class was changed, or another hook alters the output.
    """
    target, module, y = call.target, call.module, call.output
    geometry = target.geometry
    reason = "returns no tensor"
    if isinstance(y, Tensor) and call.routing is not None:
        expected, size = expected_outputs(module, call.routing, _CHECKED_ROWS)
        if not len(expected) or y.shape != call.tokens.shape:
            return False
        allowed = max(_ROUNDING[kind] for kind in (call.tokens.dtype, geometry.weight(module).dtype))
        difference = _difference(y[:_CHECKED_ROWS].cpu().double(), expected, size)
        if not difference > allowed:
            return True
        reason = f"differs from what the matrices of its experts give by {difference:.1e} of its size"
    elif isinstance(y, Tensor):
        x = call.x
        where, block = next(geometry.blocks(x, _CHECKED_ROWS), (None, None))
        if block is None:
            return False
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
        difference = _difference(own, expected, size)
        # NaN is reported where the inputs are checked.
        if not difference > allowed:
            return True
        reason = f"differs from its weights times its inputs by {difference:.1e} of their size"
    raise InputError(
        f"layer {target.name!r}: the output of this {type(module).__name__} {reason}, so that a Gram matrix of its "
        "inputs would not describe it; leave it out, or pass check=False if another hook changes the output on purpose."
    )


def _difference(own: Tensor, expected: Tensor, size: Tensor) -> float:
    """The largest one, relative to the size of what is added up."""
    return float(((own - expected).abs() / size.clamp_min(torch.finfo(torch.float32).tiny)).max())


def _sample(x: Tensor) -> Tensor:
    """At most about a thousand of the values, evenly spread."""
    return x.reshape(-1)[:: max(1, x.numel() // 1000)]


def _rows(geometry: Geometry, x: Tensor, keep: Tensor | None) -> Tensor:
    """The inputs as one row for each token, or for each image."""
    if isinstance(geometry, ConvGeometry):
        return x.reshape(-1, *x.shape[-1 - len(geometry.kernel) :]).flatten(1)
    rows = x.reshape(-1, x.shape[-1])
    return rows if keep is None else rows[keep]


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
