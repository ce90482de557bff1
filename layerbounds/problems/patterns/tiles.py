"""Patterns of tiles: masks of neighbouring rows that differ, and limit one another."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from layerbounds.arguments import LARGEST_COUNT
from layerbounds.exceptions import InputError
from layerbounds.problems.patterns.base import Pattern, Shape
from layerbounds.problems.patterns.single_rows import NOfM
from layerbounds.problems.patterns.structure import Structure
from layerbounds.problems.patterns.tile_limits import TileLimits

#: Columns of a group that V rows may use in VENOM's format: what hardware takes for 2:4 afterwards.
COLUMNS = 4


class Tiled(Pattern):
    """Each row fits N:M; bands of consecutive rows fit limits, too."""

    needs_count = False
    single_inputs = True
    tiled: ClassVar[bool] = True
    kept: int
    size: int

    def structure(self, shape: Shape, k: int) -> Structure:
        """That of one row: N:M."""
        return NOfM(self.kept, self.size).structure(shape, k)

    @abstractmethod
    def limits(self, shape: Shape, rows: int) -> TileLimits:
        """The limits of a band of so many rows."""

    def choices(self, shape: Shape) -> list[tuple[Structure, bool]]:
        """What is chosen, and whether once for a band or in each row."""
        return [(self.structure(shape, 0), False)]


@dataclass(frozen=True)
class Transposable(Tiled):
    """At most N of M weights along rows and along columns of every M × M tile: N:M for the transposed matrix, too.

    The tiles begin with the first row and the first input of the flattened weight. The last ones may have fewer rows or
    columns: at most min(N, size) there.
    """

    kept: int
    size: int

    kind = "transposable"
    form = "transposable:N:M (transposable:2:4)"

    @property
    def label(self) -> str:
        """``transposable:N:M``."""
        return f"transposable:{self.kept}:{self.size}"

    @property
    def rows(self) -> int:  # type: ignore[override]
        """M rows are a band."""
        return self.size

    def limits(self, shape: Shape, rows: int) -> TileLimits:
        """At most N rows keep an input."""
        n = math.prod(shape)
        columns = Structure(np.arange(n), np.zeros(n, dtype=np.int64), np.array([n], dtype=np.int64))
        return TileLimits(np.full(n, min(self.kept, rows), dtype=np.int64), columns)

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Read ``transposable:N:M``."""
        match = re.fullmatch(r"transposable:(\d+):(\d+)", name)
        if match is None:
            return None
        kept, size = int(match[1]), int(match[2])
        if not 0 < kept < size <= LARGEST_COUNT:
            raise InputError(
                f"pattern {name!r} keeps {kept} of {size}; transposable:N:M needs 0 < N < M, for example "
                "transposable:2:4."
            )
        return cls(kept, size)

    def small(self) -> Transposable:
        """1:2 both ways."""
        return Transposable(1, 2)


@dataclass(frozen=True)
class Venom(Tiled):
    """V rows use at most 4 of every M consecutive inputs, the same ones; each row keeps at most N of those (V:N:M).

    The last group of inputs may be smaller, and so may the last band of rows.
    """

    band: int
    kept: int
    size: int

    kind = "venom"
    form = "venom:V:N:M (venom:64:2:8)"

    @property
    def label(self) -> str:
        """``venom:V:N:M``."""
        return f"venom:{self.band}:{self.kept}:{self.size}"

    @property
    def rows(self) -> int:  # type: ignore[override]
        """V rows are a band."""
        return self.band

    def limits(self, shape: Shape, rows: int) -> TileLimits:
        """At most 4 inputs of a group are used."""
        n = math.prod(shape)
        columns = NOfM(COLUMNS, self.size).structure(shape, 0)
        return TileLimits(np.full(n, rows, dtype=np.int64), columns)

    def choices(self, shape: Shape) -> list[tuple[Structure, bool]]:
        """Columns once for V rows, then N of those in each row."""
        columns = NOfM(COLUMNS, self.size).structure(shape, 0)
        used = int(columns.capacity.sum())
        group = np.repeat(np.arange(len(columns.capacity)), columns.capacity)
        inside = Structure(np.arange(used), group, np.minimum(self.kept, columns.capacity))
        return [(columns, True), (inside, False)]

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Read ``venom:V:N:M``."""
        match = re.fullmatch(r"venom:(\d+):(\d+):(\d+)", name)
        if match is None:
            return None
        band, kept, size = (int(match[i][:40]) for i in (1, 2, 3))
        if not (2 <= band <= LARGEST_COUNT and 0 < kept < COLUMNS < size <= LARGEST_COUNT):
            raise InputError(
                f"pattern {name!r} is no V:N:M; venom:V:N:M needs V ≥ 2 rows that use {COLUMNS} of M > {COLUMNS} "
                f"inputs, and keeps 0 < N < {COLUMNS} of these, for example venom:64:2:8."
            )
        return cls(band, kept, size)

    def small(self) -> Venom:
        """Two rows, 1 of 4 of 5."""
        return Venom(2, 1, 5)
