"""The leaves of a tree with their dual points, as certificates store them (docs/certificates.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.arrays import Float
from layerbounds.certificates.dual import Parts
from layerbounds.kernels.compilation import working_time

#: When trees have to be finished.
_END: ContextVar[float] = ContextVar("end", default=math.inf)
#: Bytes of one tree.
MOST_BYTES = 10**7
#: Points are multiples of this share of their largest entry, so that exact products of them take few parts.
GRAIN = 2.0**-42
#: Sizes of numbers that single precision can hold.
SMALLEST, LARGEST = 1e-30, 1e30


class TooLargeError(Exception):
    """A tree needs more dual points than a certificate may hold, or more time than there is."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Trees that are not finished after so many seconds are given up, as they are too large."""
    token = _END.set(working_time() + seconds)
    try:
        yield
    finally:
        _END.reset(token)


class LeafLog:
    """A binary tree that is being written: nodes are divided, or closed by evidence.

    A tree that is begun has one open node, 0.

    Parameters
    ----------
    short : bool
        Whether diagonals are stored in single precision, rounded down.
    """

    def __init__(self, short: bool = True) -> None:
        self._short = short
        self._axis, self._at, self._child = [-1], [-1], [-1]
        self._points: list[NDArray[np.floating[Any]]] = []
        self._use: list[int] = []
        self._minorants: list[NDArray[np.floating[Any]]] = []
        self._bytes = 0

    def split(self, node: int, axis: int, at: int = -1) -> tuple[int, int]:
        """Divide a node: unit ``axis`` is dropped or kept; or, with ``at``, its levels lie below that one or not."""
        first = len(self._axis)
        self._axis[node], self._at[node], self._child[node] = axis, at, first
        self._axis += [-1, -1]
        self._at += [-1, -1]
        self._child += [-1, -1]
        self._grow(16)
        return first, first + 1

    def minorant(self, d: Float) -> int:
        """A diagonal, which evidence names."""
        self._minorants.append(below(d) if self._short else np.array(d, dtype=np.float64).ravel())
        self._grow(self._minorants[-1].nbytes)
        return len(self._minorants) - 1

    def evidence(self, z: NDArray[np.floating[Any]], minorant: int) -> int:
        """A dual point, of one row or several, with a minorant of the log; all points are of one type."""
        self._points.append(np.array(z).ravel())
        self._use.append(minorant)
        self._grow(self._points[-1].nbytes + 4)
        return len(self._points) - 1

    def close(self, node: int, evidence: int = -1) -> None:
        """Evidence bounds all that is left at a node; without it the least error of all weights not dropped does."""
        self._child[node] = evidence

    def tensors(self) -> Parts:
        """The tree, whose nodes are all closed or divided."""
        return {
            "axis": _small(self._axis),
            "at": _small(self._at),
            "child": np.array(self._child, dtype=np.int32),
            "z": np.array(self._points),
            "minorant": np.array(self._use, dtype=np.int32),
            "d": np.array(self._minorants),
        }

    def _grow(self, size: int) -> None:
        self._bytes += size
        if self._bytes > MOST_BYTES or working_time() > _END.get():
            raise TooLargeError


def _small(numbers: list[int]) -> NDArray[np.integer[Any]]:
    """As an array of the smaller one of two types."""
    found = np.array(numbers, dtype=np.int32)
    return found.astype(np.int16) if found.max() < 2**15 else found


def rounded(z: Float) -> Float:
    """A point with shorter numbers nearby."""
    size = float(np.max(np.abs(z), initial=0.0))
    if not 0.0 < size < math.inf:
        return z
    grain = math.ldexp(GRAIN, math.frexp(size)[1])
    return np.asarray(np.rint(z / grain) * grain)


def below(d: Float) -> NDArray[np.floating[Any]]:
    """Numbers that are not larger, in single precision where it holds such."""
    flat = np.array(d, dtype=np.float64).ravel()
    size = np.abs(flat[flat != 0.0])
    if size.size and not SMALLEST < size.min() <= size.max() < LARGEST:
        return flat
    short = flat.astype(np.float32)
    return np.where(short > flat, np.nextafter(short, np.float32(-np.inf)), short)
