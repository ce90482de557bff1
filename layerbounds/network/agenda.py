"""What is done next: first bounds of everything, then searches where they change an answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from layerbounds.network.choices import Choice
from layerbounds.network.entries import Entry
from layerbounds.network.folder import RunFolder
from layerbounds.network.given import Given
from layerbounds.network.pieces import Piece

#: Seconds of the first search of a set, and how much longer each next one is.
FIRST_SEARCH, LONGER = 0.125, 4.0
#: Seconds of a piece of searches, by one worker.
PIECE_SECONDS = 20.0

#: From the entries to how much narrowing each of them is worth, by their numbers.
Worth = Callable[[Sequence[Sequence[Entry]]], dict[tuple[int, int], float]]


@dataclass
class Agenda:
    """Hands out pieces; told what has come back.

    Attributes
    ----------
    grid : list of list of Entry
    choices : list of Choice
    folder : RunFolder
    methods : dict of choice number to dict of str to str
        What each choice's methods are called, and how they are written.
    limit : float
        Seconds of search that a set gets at most.
    given : Given
        Weights from elsewhere.
    worth : Worth or None
        None: there are no searches.
    deadline : float
        On the clock of `time.perf_counter`: no piece begins after it.
    seed : int
    backend : str
    left_out : set of tuple of int
        Numbers of layer, choice and chunk of what cannot be done.
    """

    grid: list[list[Entry]]
    choices: list[Choice]
    folder: RunFolder
    methods: dict[int, dict[str, str]]
    limit: float
    worth: Worth | None
    given: Given
    deadline: float = float("inf")
    seed: int = 0
    backend: str = "auto"
    left_out: set[tuple[int, int, int]] = field(default_factory=set)
    _busy: set[tuple[int, int, int]] = field(default_factory=set)

    def take(self) -> Piece | None:
        """The next piece; None where there is none that nobody works on."""
        piece = self._next() if time.perf_counter() < self.deadline else None
        if piece is not None:
            self._busy.add((*piece.entry, piece.chunk))
        return piece

    def returned(self, piece: Piece) -> None:
        """A piece has come back: its chunk may be worked on again."""
        self._busy.discard((*piece.entry, piece.chunk))

    def failed(self, piece: Piece) -> None:
        """A piece cannot be done: its chunk is left alone."""
        self.left_out.add((*piece.entry, piece.chunk))

    def _next(self) -> Piece | None:
        return self._first() or (None if self.worth is None else self._search(self.worth(self.grid)))

    def _free(self) -> Iterable[tuple[Entry, int]]:
        """Chunks that nobody works on."""
        taken = self._busy | self.left_out
        for of_layer in self.grid:
            for entry in of_layer:
                for chunk in range(len(entry.chunks)):
                    if (*entry.number, chunk) not in taken:
                        yield entry, chunk

    def _first(self) -> Piece | None:
        """First bounds and methods, where they are missing; the largest chunk first."""
        waiting = [(entry, chunk) for entry, chunk in self._free() if self._lacks(entry, chunk)]
        if not waiting:
            return None
        entry, chunk = max(waiting, key=lambda pair: pair[0].layer.inputs * (pair[0].chunks[pair[1]][1]))
        return self._piece(entry, chunk, None, 0.0)

    def _lacks(self, entry: Entry, chunk: int) -> bool:
        first, last = entry.chunks[chunk]
        if np.any(entry.limit[first:last] < 0):
            return True
        return bool(self._missing(entry, chunk))

    def _missing(self, entry: Entry, chunk: int) -> list[str]:
        """Methods that have not been scored on a chunk."""
        first, last = entry.chunks[chunk]
        wanted = [*self.methods.get(entry.number[1], {}), *self.given.labels(entry.number[0])]
        return [m for m in wanted if m not in entry.methods or np.isnan(entry.methods[m].errors[first:last]).any()]

    def _search(self, worth: Mapping[tuple[int, int], float]) -> Piece | None:
        """The searches that promise most for their seconds."""
        best: tuple[float, Entry, int, list[int], float] | None = None
        for entry, chunk in self._free():
            first, last = entry.chunks[chunk]
            where = slice(first, last)
            width = np.where(entry.closed[where], 0.0, entry.upper[where] - entry.lower[where])
            limit = np.maximum(entry.limit[where] * LONGER, FIRST_SEARCH)
            limit = np.minimum(limit, self.limit)
            ripe = (width > 0) & (limit > entry.limit[where])
            if not ripe.any():
                continue
            gain = np.where(ripe, width / np.maximum(limit, 1e-3), 0.0) * worth.get(entry.number, 0.0)
            order = np.argsort(-gain, kind="stable")
            level = float(limit[order[0]])
            chosen = [int(i) for i in order if ripe[i] and limit[i] == level][: max(1, int(PIECE_SECONDS / level))]
            score = float(gain[chosen].mean())
            if score > 0 and (best is None or score > best[0]):
                best = (score, entry, chunk, sorted(chosen), level)
        if best is None:
            return None
        _, entry, chunk, chosen, level = best
        return self._piece(entry, chunk, chosen, level)

    def _piece(self, entry: Entry, chunk: int, search: list[int] | None, limit: float) -> Piece:
        first, last = entry.chunks[chunk]
        rows = [row for members in entry.sets[first:last] for row in members]
        missing = self._missing(entry, chunk) if search is None else []
        labels = [m for m in missing if m not in self.methods.get(entry.number[1], {})]
        return Piece(
            entry=entry.number,
            fingerprint=entry.fingerprint,
            chunk=chunk,
            rows=rows,
            choice=self.choices[entry.number[1]],
            search=search,
            limit=limit,
            methods=tuple(self.methods[entry.number[1]][m] for m in missing if m not in labels),
            given={label: self.given.rows(label, entry.number[0], rows) for label in labels},
            digests={label: self.given.digests[label] for label in labels},
            previous=self.folder.content(entry, chunk),
            seed=self.seed,
            backend=self.backend,
            total=max(self.deadline - time.perf_counter(), 0.0),
        )
