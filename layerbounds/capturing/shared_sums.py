"""Layers that see the same inputs, found while the model runs: one sum for all of them, and one Gram matrix."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from layerbounds.capturing.moments import InputSums, Moments

#: Integers of the size of a floating-point number, for comparing bits: NaN in positions that do not count is equal too.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(eq=False)
class _Group:
    """Layers whose inputs have been the same so far."""

    sums: InputSums
    members: set[str]


@dataclass(eq=False)
class _Call:
    """Inputs that some layers of a group have seen, and that are not added up yet.

    Attributes
    ----------
    x : Tensor
        A copy, which the model cannot change.
    keep : Tensor or None
    storage : StorageWeakRef
        Of the model's own tensor: once it is gone no other layer can see it.
    group : _Group
    members : set of str
        Those that have seen them.
    """

    x: Tensor
    keep: Tensor | None
    storage: StorageWeakRef
    group: _Group
    members: set[str]

    def is_over(self) -> bool:
        """Whether no other layer can see them any more."""
        return bool(self.storage.expired())  # type: ignore[no-untyped-call]

    def is_same(self, x: Tensor, keep: Tensor | None) -> bool:
        """Whether the inputs of another call are the same, bit by bit, and the same positions count."""
        own = self.x
        if x.shape != own.shape or x.dtype != own.dtype or x.device != own.device:
            return False
        if (keep is None) != (self.keep is None) or (
            keep is not None and self.keep is not None and not torch.equal(keep, self.keep)
        ):
            return False
        if not x.numel():
            return True
        kind = _BITS[x.dtype.itemsize]
        # One row of other inputs is nearly always enough.
        row = (0,) * (x.ndim - 1)
        return torch.equal(x[row].view(kind), own[row].view(kind)) and torch.equal(x.view(kind), own.view(kind))


class SharedSums:
    """Adds up the inputs of layers, once for those that see the same ones.

    Layers with the same geometry begin as one group. The inputs of a call wait, as a copy, for the other layers of the
    group; when all have seen the same ones they are added once. When the model has freed its tensor, a layer is called
    again, or the batch ends, those that have seen them become a group of their own, with a copy of the sums so far: the
    sums of each layer are those of exactly its own inputs, in their order, whatever the model does.

    Parameters
    ----------
    moments : mapping of name to Moments
        Not shared yet: the sums of the inputs are replaced.
    alike : mapping of name to hashable
        Layers may see the same rows X only where these are equal.
    """

    def __init__(self, moments: Mapping[str, Moments], alike: Mapping[str, Hashable]) -> None:
        self.moments = moments
        self._calls: list[_Call] = []
        first: dict[Hashable, _Group] = {}
        self._group: dict[str, _Group] = {}
        for name, own in moments.items():
            group = self._group[name] = first.setdefault(alike[name], _Group(own.inputs, set()))
            group.members.add(name)
            own.inputs = group.sums

    def add(self, name: str, x: Tensor, keep: Tensor | None, dense: Tensor | None) -> None:
        """Add the inputs of one call of a layer, as `Moments.add` does."""
        for call in list(self._calls):
            if name in call.members or call.is_over():
                self._close(call)
        group = self._group[name]
        if len(group.members) == 1:
            self.moments[name].add(x, keep, dense)
            return
        if dense is not None:
            self.moments[name].add(x, keep, dense, inputs=False)
        waiting = next((call for call in self._calls if call.group is group and call.is_same(x, keep)), None)
        if waiting is None:
            storage = StorageWeakRef(x.untyped_storage())  # type: ignore[no-untyped-call]
            waiting = _Call(x.clone(), keep, storage, group, set())
            self._calls.append(waiting)
        waiting.members.add(name)
        if waiting.members == group.members:
            self._close(waiting)

    def finish(self) -> None:
        """Add up what is waiting; the batch is over."""
        while self._calls:
            self._close(self._calls[0])

    def _close(self, call: _Call) -> None:
        """Add the inputs of a call to the sums of those that have seen them."""
        self._calls.remove(call)
        group = call.group
        if call.members != group.members:
            group.members -= call.members
            group = _Group(group.sums.copy(), call.members)
            for name in call.members:
                self._group[name] = group
                self.moments[name].inputs = group.sums
        self.moments[next(iter(group.members))].add(call.x, call.keep)
