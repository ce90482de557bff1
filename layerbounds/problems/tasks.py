"""One unit of work: a channel, or a set of coupled channels, of a problem without its dead inputs."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Generic, TypeVar, overload

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

    Rows that a metric binds are a whole group.

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
    start : Dual or None
        A dual point to start from, such as another backend's.
    raised : float
        See `layerbounds.layers.gram.GramReport`.
    metric : ndarray of shape (rows, rows) or None
        Q, with which errors count tr(Q (v − w) H (v − w)ᵀ) instead of the sum.
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
    start: Any = None
    raised: float = 0.0
    metric: Float | None = None

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
    return GroupTasks(problem, [[rows] if isinstance(rows, int) else rows], shared, [warm_start])[0]


class GroupTasks(Sequence[Task[Any]]):
    """The tasks of sets of rows of one group, made when they are asked for: all have the same Gram matrix object.

    Parameters
    ----------
    problem : Problem
    sets : sequence of list of int
        Output channels, all of one group.
    shared : object
        What the backend prepared for the group.
    warm_starts : sequence of ndarray or None
        For each set allowed weights, dead inputs included.
    duals : sequence of Dual or None, optional
        For each set a dual point of the live inputs.
    """

    def __init__(
        self,
        problem: Problem,
        sets: Sequence[list[int]],
        shared: object,
        warm_starts: Sequence[Float | None],
        duals: Sequence[Any] | None = None,
    ) -> None:
        self._problem, self._sets, self._shared, self._starts = problem, sets, shared, warm_starts
        self._duals = duals
        first, layer = sets[0][0], problem.layer
        group = layer.group_of(first)
        self._live = layer.live(group)
        gram = problem.gram(first)
        self._gram = gram if self._live.all() else np.ascontiguousarray(gram[np.ix_(self._live, self._live)])
        self._raised = layer.gram_reports[group].raised
        self._energy = problem.energy()
        self._metric = problem.metric(first)

    def __len__(self) -> int:
        return len(self._sets)

    @overload
    def __getitem__(self, index: int) -> Task[Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Task[Any]]: ...

    def __getitem__(self, index: int | slice) -> Task[Any] | Sequence[Task[Any]]:
        if isinstance(index, slice):
            part = copy(self)
            part._sets, part._starts = self._sets[index], self._starts[index]
            part._duals = None if self._duals is None else self._duals[index]
            return part
        rows, start, layer = self._sets[index], self._starts[index], self._problem.layer
        allowed = self._problem.allowed(rows[0]).restrict(self._live)
        return Task(
            rows=tuple(rows),
            gram=self._gram,
            targets=np.ascontiguousarray(layer.target[rows][:, self._live]),
            constants=layer.constant[rows],
            energy=float(np.sum(self._energy[rows])),
            live=self._live,
            allowed=allowed,
            shared=self._shared,
            warm_start=None if start is None else start[..., self._live],
            start=None if self._duals is None else self._duals[index],
            raised=self._raised if allowed.free else 0.0,
            metric=self._metric,
        )


class AllowedSets(Sequence[Any]):
    """The allowed sets of tasks, made when they are asked for: all of them at once may not fit into memory.

    Parameters
    ----------
    tasks : sequence of Task
    rows : sequence of int, optional
        Which of the tasks; default: all.
    """

    def __init__(self, tasks: Sequence[Task[Any]], rows: Sequence[int] | None = None) -> None:
        self._tasks = tasks
        self._rows: Sequence[int] = range(len(tasks)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._tasks[self._rows[index]].allowed
