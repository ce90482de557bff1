"""Whether the rows of two runs belong to the same tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
#: Operations that choose rows, and the argument that says which.
_CHOOSING = {
    _ATEN.index: 1,
    _ATEN.index_select: 2,
    _ATEN.gather: 2,
    _ATEN.take: 1,
    _ATEN.masked_select: 1,
}
#: Dissimilarity of a row of X̂ and a row of X above which they are not of the same token.
_OTHER_TOKEN = 0.5


class Choices(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the indices by which a run chooses rows.

    Where two runs choose alike, the same row of a layer's inputs is the same token in both.

    Attributes
    ----------
    made : list of bytes
        A digest of each choice, in order.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[bytes] = []
        self._pauses = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Note nothing: what hooks compute is no choice of the model."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run an operation and note what it chose."""
        result = func(*args, **(kwargs or {}))
        if self._pauses:
            return result
        packet = func.overloadpacket
        if packet in _CHOOSING:
            chosen = args[_CHOOSING[packet]]
            for index in chosen if isinstance(chosen, (list, tuple)) else [chosen]:
                self._note(index)
        elif packet is _ATEN.nonzero:
            self._note(result)
        elif packet in (_ATEN.scatter, _ATEN.scatter_) and not (args[0].is_floating_point() or _is_bool(args[0])):
            # One-hot matrices, with which experts are chosen too.
            self._note(args[2])
        return result

    def _note(self, index: Tensor | None) -> None:
        if index is not None and not index.is_meta:
            digest = hashlib.blake2b(str(tuple(index.shape)).encode(), digest_size=16)
            digest.update(index.detach().cpu().contiguous().numpy().tobytes())
            self.made.append(digest.digest())


def _is_bool(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bool


def chose_alike(own: list[bytes], other: list[bytes]) -> bool:
    """Whether all choices of one run were made in another one too, in the same order; further ones do not matter."""
    rest = iter(other)
    return all(any(choice == candidate for candidate in rest) for choice in own)


def dissimilarity(rows: Tensor, others: Tensor) -> float:
    """Mean squared distance of paired rows, relative to that of any two rows; 0 where rounding explains it.

    Parameters
    ----------
    rows, others : Tensor of shape (N, n)
    """
    if not rows.numel():
        return 0.0
    tolerance = max(torch.finfo(t.dtype).eps for t in (rows, others))
    a, b = rows.double(), others.double()
    paired = float((a - b).square().sum(1).mean())
    if not paired > tolerance * float(a.square().sum(1).mean()):
        return 0.0
    return paired / float(_to_any(a, b).mean())


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
