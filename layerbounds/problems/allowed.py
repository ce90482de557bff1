"""The seam of all families: what certification, evaluation and heuristics ask of a set of allowed weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Self

from layerbounds.arrays import Bool, Float


class AllowedSet(ABC):
    """The weights that one unit of work may take.

    Arrays of weights have shape (n,), or (rows, n) for families that couple the output channels of a layer. A family is
    one such class, a problem that hands it out, a certified minimum in `layerbounds.bounds` and a search in
    `layerbounds.search` (docs/architecture.md).
    """

    @property
    @abstractmethod
    def requirement(self) -> str:
        """What a backend must be able to treat, one of `layerbounds.solvers.base.Capability`."""

    @property
    def free(self) -> bool:
        """Whether some weights may take any value."""
        return False

    @abstractmethod
    def nearest(self, point: Float) -> Float:
        """Allowed weights close to a point: the closest ones wherever that is cheap to find."""

    @abstractmethod
    def violation(self, weights: Float) -> float:
        """How far weights are from being allowed; 0 exactly when they are."""

    @abstractmethod
    def exact(self, weights: Float) -> Float:
        """The allowed weights that are meant by weights of finite precision.

        Raises
        ------
        NotAllowedError
            If they differ from all allowed weights by more than rounding explains.
        """

    @abstractmethod
    def restrict(self, live: Bool) -> Self:
        """The set on the inputs with energy, a mask of shape (n,); the others cost nothing."""

    @abstractmethod
    def pieces(self) -> Iterator[tuple[Float, Float, bool]]:
        """The set as a finite union, for trying everything: offset, directions and whether only nonnegative x count.

        A piece is the weights offset + directions @ x, directions of shape (n, k), for all x of shape (k,).
        """
