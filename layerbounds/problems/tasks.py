"""One unit of work: a channel, or a set of coupled channels, of a problem without its dead inputs."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Generic, TypeVar

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.kernels import exact
from layerbounds.problems.allowed import AllowedSet
from layerbounds.problems.problem import Problem

#: The kind of allowed set.
Allowed = TypeVar("Allowed", bound=AllowedSet, covariant=True)


@dataclass(frozen=True, eq=False)
class Task(Generic[Allowed]):
    """Minimise Σ (v − w)ᵀH(v − w) + c over the rows of v, within an allowed set; dead inputs are removed.

    Attributes
    ----------
    rows : tuple of int
        Output channels.
    gram : ndarray of shape (n, n)
        Gram matrix of the live inputs; where weights may take any value its diagonal is larger by the share ``raised``.
    targets : ndarray of shape (rows, n)
        Unconstrained minimisers.
    constants : ndarray of shape (rows,)
        Added to the errors.
    energy : float
        f(0), summed over the rows.
    live : ndarray of bool, shape (inputs,)
        Which of the layer's inputs these are.
    allowed : AllowedSet
        On the live inputs.
    shared : object
        What the backend's `prepare` returned for the group.
    warm_start : ndarray of the target's shape, or None
        Allowed weights to start from.
    raised : float
        See `layerbounds.layers.gram.GramReport`.
    """

    rows: tuple[int, ...]
    gram: Float
    targets: Float
    constants: Float
    energy: float
    live: Bool
    allowed: Allowed
    shared: Any = None
    warm_start: Float | None = None
    raised: float = 0.0

    @property
    def channel(self) -> int:
        """The first row: how messages and random numbers call the task."""
        return self.rows[0]

    @property
    def target(self) -> Float:
        """The targets in the shape of weights: (n,) for one row, (rows, n) for several."""
        return self.targets[0] if len(self.rows) == 1 else self.targets

    @property
    def constant(self) -> float:
        """The part of the error that no weights can repair, summed over the rows and rounded down."""
        return exact.float_below(sum(map(Fraction, self.constants.tolist()), Fraction(0)))

    @property
    def constant_above(self) -> float:
        """The same, rounded up: the two differ for several rows only."""
        return exact.float_above(sum(map(Fraction, self.constants.tolist()), Fraction(0)))


def make_task(problem: Problem, rows: int | list[int], shared: object, warm_start: Float | None) -> Task[Any]:
    """Extract a channel, or a set of coupled ones, of a problem without its dead inputs.

    Parameters
    ----------
    problem : Problem
    rows : int or list of int
        Output channels of one group.
    shared : object
        What the backend prepared for the group.
    warm_start : ndarray of shape (n,) or (rows, n), optional
        Allowed weights, dead inputs included.
    """
    layer = problem.layer
    index = [rows] if isinstance(rows, int) else rows
    live = layer.live(layer.group_of(index[0]))
    gram = problem.gram(index[0])
    allowed = problem.allowed(index[0]).restrict(live)
    return Task(
        rows=tuple(index),
        gram=gram if live.all() else np.ascontiguousarray(gram[np.ix_(live, live)]),
        targets=np.ascontiguousarray(layer.target[index][:, live]),
        constants=layer.constant[index],
        energy=float(np.sum(layer.energy()[index])),
        live=live,
        allowed=allowed,
        shared=shared,
        warm_start=None if warm_start is None else warm_start[..., live],
        raised=layer.gram_reports[layer.group_of(index[0])].raised if allowed.free else 0.0,
    )
