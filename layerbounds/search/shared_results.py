"""Results that several channels share: computed once for an object, or kept for the last few contents."""

from __future__ import annotations

import functools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from threadpoolctl import threadpool_limits

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


class Recent(Generic[Value]):
    """The results for the last few keys.

    Parameters
    ----------
    size : int
        How many are kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._results: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], Value], threads: int = 1) -> Value:
        """The result for a key, computed with so many BLAS threads where it is not there."""
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
                return self._results[key]
        with threadpool_limits(limits=threads):
            result = compute()
        with self._lock:
            self._results[key] = result
            while len(self._results) > self._size:
                self._results.popitem(last=False)
        return result

    def forget(self, key: Hashable) -> None:
        """Forget the result for a key, if it is there."""
        with self._lock:
            self._results.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._results.clear()
