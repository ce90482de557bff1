"""Results that several channels share: computed once for an object, or kept for the last few contents."""

from __future__ import annotations

import functools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from layerbounds.cancellation import LOOK, checkpoint

Subject = TypeVar("Subject")
Value = TypeVar("Value")


def once(compute: Callable[[Subject], Value]) -> Callable[[Subject], Value]:
    """Call a function once for each object, with one BLAS thread, and keep its result as long as the object lives."""
    results: weakref.WeakKeyDictionary[Subject, Value] = weakref.WeakKeyDictionary()
    lock = threading.Lock()

    @functools.wraps(compute)
    def remembered(subject: Subject) -> Value:
        with lock:
            if subject not in results:
                with threadpool_limits(limits=1):
                    results[subject] = compute(subject)
            return results[subject]

    return remembered


#: Bytes of results that a process keeps beyond the last few, of each kind.
_allowed = 0
#: All that there are.
_all: weakref.WeakSet[Recent[Any]] = weakref.WeakSet()


def keep_more(most: int) -> None:
    """Keep more than the last few results: for a process that returns to the same layers again and again.

    Parameters
    ----------
    most : int
        Bytes, for each kind of results.
    """
    global _allowed
    _allowed = most
    for recent in list(_all):
        recent.shorten()


class Recent(Generic[Value]):
    """The results for the last few keys, and for more where `keep_more` allows it.

    Parameters
    ----------
    size : int
        How many are kept in any case.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._results: OrderedDict[Hashable, Value] = OrderedDict()
        self._bytes: dict[Hashable, int] = {}
        self._computed: dict[Hashable, threading.Event] = {}
        self._lock = threading.Lock()
        _all.add(self)

    def get(self, key: Hashable, compute: Callable[[], Value], threads: int = 1) -> Value:
        """The result for a key, computed with so many BLAS threads where it is not there.

        A thread that asks for what another one computes waits for it.
        """
        while True:
            with self._lock:
                if key in self._results:
                    self._results.move_to_end(key)
                    return self._results[key]
                other = self._computed.get(key)
                if other is None:
                    own = self._computed[key] = threading.Event()
                    break
            while not other.wait(LOOK):
                checkpoint()
        try:
            with threadpool_limits(limits=threads):
                result = compute()
            with self._lock:
                self._results[key], self._bytes[key] = result, bytes_of(result)
            self.shorten()
        finally:
            # After an error the next one tries it again.
            with self._lock:
                del self._computed[key]
            own.set()
        return result

    def shorten(self) -> None:
        """Forget what is too much."""
        with self._lock:
            while len(self._results) > self._size and sum(self._bytes.values()) >= _allowed:
                oldest, _ = self._results.popitem(last=False)
                del self._bytes[oldest]

    def forget(self, key: Hashable) -> None:
        """Forget the result for a key, if it is there."""
        with self._lock:
            self._results.pop(key, None)
            self._bytes.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._results.clear()
            self._bytes.clear()


def bytes_of(value: object) -> int:
    """Bytes of the arrays that an object consists of."""
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    parts = value if isinstance(value, (tuple, list)) else getattr(value, "__dict__", {}).values()
    return sum(map(bytes_of, parts))
