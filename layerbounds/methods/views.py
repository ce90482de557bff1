"""The view that heuristics have of a channel: one function for each kind of allowed set."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.methods.base import ChannelView
from layerbounds.methods.joint.view import JointView
from layerbounds.methods.pruning import PruningView
from layerbounds.problems.allowed import AllowedSet
from layerbounds.problems.levels import Levels
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.problems.shared_support import SharedSupport
from layerbounds.problems.support import Support


@functools.singledispatch
def channel_view(
    allowed: AllowedSet,
    gram: Float,
    target: Float,
    original: Float,
    rng: np.random.Generator,
    shared: dict[Hashable, Any],
) -> Any:
    """The channel as heuristics see it.

    Parameters
    ----------
    allowed : AllowedSet
        On the live inputs.
    gram : ndarray of shape (n, n)
    target : ndarray of shape (n,), or (rows, n) for sets that are about several rows
    original : ndarray of the target's shape
        Dense weights.
    rng : numpy.random.Generator
    shared : dict
        What methods keep for the other channels with the same Gram matrix.

    Raises
    ------
    UnsupportedProblemError
        If no heuristic treats such sets.
    """
    raise UnsupportedProblemError(f"there is no heuristic for {allowed.requirement} yet.")


@channel_view.register
def _(
    allowed: Levels,
    gram: Float,
    target: Float,
    original: Float,
    rng: np.random.Generator,
    shared: dict[Hashable, Any],
) -> ChannelView:
    return ChannelView(gram, target, np.ascontiguousarray(allowed.values), allowed.count, rng, shared, original)


@channel_view.register
def _(
    allowed: Support,
    gram: Float,
    target: Float,
    original: Float,
    rng: np.random.Generator,
    shared: dict[Hashable, Any],
) -> PruningView:
    return PruningView(gram, target, allowed.original, allowed.structure, allowed.refit, rng)


@channel_view.register
def _(
    allowed: SharedSupport,
    gram: Float,
    target: Float,
    original: Float,
    rng: np.random.Generator,
    shared: dict[Hashable, Any],
) -> PruningView:
    return PruningView(gram, np.atleast_2d(target), allowed.original, allowed.structure, allowed.refit, rng)


@channel_view.register
def _(
    allowed: LevelsOnSupport,
    gram: Float,
    target: Float,
    original: Float,
    rng: np.random.Generator,
    shared: dict[Hashable, Any],
) -> JointView:
    return JointView(gram, target, original, allowed, rng, shared)
