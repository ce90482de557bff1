"""What a worker keeps from piece to piece: the last layers, their problems, and what searches prepare for them."""

from __future__ import annotations

import os
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from joblib.externals.loky import process_executor

from layerbounds.exceptions import InputError
from layerbounds.layers.layer import Layer
from layerbounds.network.choices import Choice
from layerbounds.network.handles import Handle, layer_bytes
from layerbounds.network.survey import layer_digest
from layerbounds.problems.problem import Problem
from layerbounds.search.shared_results import keep_more

#: Bytes of layers that a process keeps; the last one stays whatever its size.
KEPT_BYTES = 1 << 29
#: Share of the machine's memory that all workers on it may keep of each kind of preparation.
PREPARED = 0.25


@dataclass(eq=False)
class _Place:
    """A layer, and what has been derived from it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    layer: Layer | None = None
    problems: dict[Choice, Problem] = field(default_factory=dict)


class Shelf:
    """The last few layers of a process, by their digests.

    Parameters
    ----------
    most : int
        Bytes.

    Attributes
    ----------
    fetched : int
        How often a layer was read.
    """

    def __init__(self, most: int = KEPT_BYTES) -> None:
        self._most = most
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._lock = threading.Lock()
        self.fetched = 0

    def problem(self, handle: Handle, choice: Choice, fingerprint: str) -> Problem:
        """A layer's problem at a choice.

        Parameters
        ----------
        handle : Handle
        choice : Choice
        fingerprint : str
            Of the problem.

        Raises
        ------
        InputError
            If the layer or the problem is not that of the survey.
        """
        with self._lock:
            place = self._places.setdefault(handle.digest, _Place())
            self._places.move_to_end(handle.digest)
        # Other threads that want this layer wait; those that want others do not.
        with place.lock:
            if place.layer is None:
                place.layer, problems = self._read(handle)
                place.problems.update(problems)
            problem = place.problems.get(choice)
            if problem is None:
                problem = place.problems[choice] = choice.problem(place.layer)
                if problem.fingerprint() != fingerprint:
                    del place.problems[choice]
                    raise InputError(
                        f"layer {place.layer.name!r}, {choice.name}: a worker computes another problem than the survey "
                        "of the run; install the same versions of layerbounds, NumPy and SciPy everywhere."
                    )
        self._clear()
        return problem

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._places.clear()

    def _read(self, handle: Handle) -> tuple[Layer, dict[Choice, Problem]]:
        layer, problems = handle.read()
        self.fetched += 1
        if layer_digest(layer) != handle.digest:
            raise InputError(
                f"layer {layer.name!r} is not the one that the run has begun with; leave its file as it is while the "
                "run works, or begin another run in another folder."
            )
        return layer, dict(problems)

    def _clear(self) -> None:
        """Put away what was not used for longest."""
        with self._lock:
            sizes = {key: 0 if p.layer is None else layer_bytes(p.layer) for key, p in self._places.items()}
            left = sum(sizes.values())
            for key in list(self._places)[:-1]:
                if left <= self._most:
                    break
                left -= sizes[key]
                del self._places[key]


#: Of this process.
SHELF = Shelf()


def prepare_process(alone: bool) -> None:
    """Let this process keep what searches prepare, which takes seconds and is the same for each piece of a layer.

    Parameters
    ----------
    alone : bool
        Whether all workers are threads of this process.
    """
    keep_more(int(PREPARED * _memory() / (1 if alone else os.cpu_count() or 1)))
    # joblib takes a process that grows by 300 MB for one that leaks, and ends it with all that it was meant to keep.
    if not alone and hasattr(process_executor, "_MAX_MEMORY_LEAK_SIZE"):
        process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize


def clear_process() -> None:
    """Keep no more than usual, and no layers."""
    keep_more(0)
    SHELF.clear()


def _memory() -> int:
    """Bytes of this machine; 0 where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0
