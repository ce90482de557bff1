"""One signature for all heuristics."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np

from layerbounds.arrays import Float, Int
from layerbounds.exceptions import InputError
from layerbounds.problems.problem import Problem

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ChannelView:
    """What a heuristic sees of one output channel: live inputs only, in the layer's order.

    Attributes
    ----------
    gram : ndarray of shape (n, n)
        Undamped.
    target : ndarray of shape (n,)
        Unconstrained minimiser of the error.
    levels : ndarray of shape (n, levels)
        Sorted, padded with the last level.
    count : ndarray of int64, shape (n,)
    rng : numpy.random.Generator
        The only source of randomness.
    shared : dict
        What methods derive from the Gram matrix alone, kept for the other channels with the same one.
    original : ndarray of shape (n,), optional
        Dense weights, where they are not the target.
    """

    gram: Float
    target: Float
    levels: Float
    count: Int
    rng: np.random.Generator
    shared: dict[Hashable, Any] = field(default_factory=dict)
    original: Float | None = None

    @property
    def dense(self) -> Float:
        """The layer's own weights, shape (n,); a mismatch of inputs makes the target differ from them."""
        return self.target if self.original is None else self.original

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What ``compute`` returns, computed once for all channels that share the Gram matrix."""
        if key not in self.shared:
            self.shared[key] = compute()
        return cast(T, self.shared[key])


#: A heuristic maps a channel (and its options) to feasible weights of shape (n,).
Method = Callable[..., Float]

#: Refuses options that do not go together, all of them given.
Check = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Heuristic:
    """A registered method.

    Attributes
    ----------
    name : str
    summary : str
        One line.
    source : str
        Where it was published.
    method : callable
        ``method(view, **options) -> weights``.
    capabilities : tuple of str
        The kinds of problem it can treat, as in a problem's ``requirement``.
    options : dict
        Names and defaults of its options.
    patterns : tuple of str
        The sparsity patterns that it can treat, as a problem's ``pattern_kind`` calls them.
    check : callable or None
        Raises an `InputError` for options that it cannot work with.
    """

    name: str
    summary: str
    source: str
    method: Method
    capabilities: tuple[str, ...]
    options: dict[str, Any]
    patterns: tuple[str, ...] = ()
    check: Check | None = None

    def can_treat(self, problem: Problem) -> bool:
        """Whether the method is for problems of this kind."""
        if problem.requirement not in self.capabilities:
            return False
        return problem.pattern_kind is None or problem.pattern_kind in self.patterns


#: All heuristics by name; `layerbounds.methods.registry` fills it.
HEURISTICS: dict[str, Heuristic] = {}


def choice_of(view: ChannelView, weights: Float) -> Int:
    """Indices of feasible weights in the level tables."""
    return np.asarray(np.argmin(np.abs(view.levels - weights[:, None]), axis=1))


def chosen_levels(view: ChannelView, choice: Int) -> Float:
    """The weights that a vector of level indices stands for."""
    return np.asarray(view.levels[np.arange(len(choice)), choice])


def check_damp(damp: float) -> None:
    """Refuse a damping that is negative or not finite."""
    if not 0 <= damp < np.inf:
        raise InputError(f"damp is {damp}; pass a finite fraction of the mean diagonal ≥ 0.")
