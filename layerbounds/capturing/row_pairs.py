"""Whether the rows of two runs belong to the same tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from layerbounds.capturing.parts import tensors

_ATEN = torch.ops.aten
#: Operations that choose rows, and the argument that says which.
_CHOOSING = {
    _ATEN.index: 1,
    _ATEN.index_select: 2,
    _ATEN.gather: 2,
    _ATEN.take: 1,
    _ATEN.masked_select: 1,
}
#: Operations that put rows back among those of their first argument, whose order the result has.
_RETURNING = {
    packet
    for name in (
        "index_add",
        "index_copy",
        "index_put",
        "index_reduce",
        "masked_scatter",
        "scatter_add",
        "scatter_reduce",
    )
    for packet in (getattr(_ATEN, name), getattr(_ATEN, name + "_"))
} | {_ATEN._index_put_impl_}
_SCATTERING = {_ATEN.scatter, _ATEN.scatter_}
#: Mean squared difference of two runs' values, relative to their variance, that rounding explains in half precision.
_ROUNDING = 1e-4
#: Dissimilarity of a row of X̂ and a row of X above which they are not of the same token.
_OTHER_TOKEN = 0.5


class Choices(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows by which indices the rows of a run's tensors were chosen.

    Where two runs chose alike, the same row of a layer's inputs is the same token in both.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._behind: MutableMapping[Tensor, frozenset[bytes]] = WeakTensorKeyDictionary()
        self._pauses = 0

    def behind(self, tensor: Tensor) -> frozenset[bytes]:
        """Digests of the indices that chose the rows of a tensor."""
        return self._behind.get(tensor, frozenset())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Follow nothing: what hooks compute is no choice of the model."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run an operation and note what chose the rows of its results."""
        result = func(*args, **(kwargs or {}))
        if self._pauses:
            return result
        packet = func.overloadpacket
        chosen: frozenset[bytes] = frozenset()
        if packet in _RETURNING or packet in _SCATTERING:
            chosen = self.behind(args[0])
        elif self._behind:
            sources = tensors((*args, *(kwargs or {}).values()))
            chosen = chosen.union(*(self._behind.get(source, chosen) for source in sources))
        if packet in _CHOOSING:
            chosen |= {_digest(index) for index in tensors(args[_CHOOSING[packet]])}
        elif packet in _SCATTERING and not args[0].is_floating_point() and args[0].dtype != torch.bool:
            # A one-hot matrix, with which rows are chosen too.
            chosen |= {_digest(args[2])}
        for tensor in tensors(result):
            if chosen or tensor in self._behind:
                self._behind[tensor] = chosen
        return result


def _digest(index: Tensor) -> bytes:
    digest = hashlib.blake2b(str(tuple(index.shape)).encode(), digest_size=16)
    if not index.is_meta:
        digest.update(index.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()


def dissimilarity(rows: Tensor, others: Tensor) -> float:
    """Mean squared distance of paired rows, relative to that of any two rows; 0 where rounding explains it.

    Parameters
    ----------
    rows, others : Tensor of shape (N, n)
    """
    if not rows.numel():
        return 0.0
    tolerance = max(torch.finfo(t.dtype).eps for t in (rows, others))
    # NaN is no evidence; where it matters it is reported as such.
    a, b = (t.double().nan_to_num() for t in (rows, others))
    paired = float((a - b).square().sum(1).mean())
    if not paired > tolerance * float(a.square().sum(1).mean()):
        return 0.0
    return paired / float(_to_any(a, b).mean())


def repeats(values: Tensor, others: Tensor) -> bool:
    """Whether two runs gave the same values but for rounding."""
    a, b = (t.double().nan_to_num() for t in (values, others))
    tolerance = max(
        torch.finfo(values.dtype).eps * float(a.square().sum()), _ROUNDING * float((a - a.mean()).square().sum())
    )
    return a.shape == b.shape and float((a - b).square().sum()) <= tolerance


def same_tokens(rows: Tensor, others: Tensor) -> bool:
    """Whether every row of one run is much nearer to its partner than rows of the other run usually are to it."""
    if not len(rows):
        return True
    a, b = rows.double(), others.double()
    paired = (a - b).square().sum(1)
    tolerance = max(torch.finfo(t.dtype).eps for t in (rows, others)) * a.square().sum(1).mean()
    return bool(((paired <= _OTHER_TOKEN * _to_any(a, b)) | (paired <= tolerance)).all())


def _to_any(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance of each row of b to the rows of a, shape (N,)."""
    if len(a) == 1:
        return 0.5 * (a.square().sum(1) + b.square().sum(1))
    mean = a.mean(0)
    return (b - mean).square().sum(1) + (a - mean).square().sum(1).mean()
