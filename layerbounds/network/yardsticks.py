"""Yardsticks of a problem beside its certified interval. They are no certificates: weights are not random.

What they assume, and how they compare, is in docs/yardsticks.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np

from layerbounds.arrays import Float
from layerbounds.layers.layer import Layer
from layerbounds.problems.allowed import AllowedSet
from layerbounds.problems.levels import Levels
from layerbounds.problems.levels_on_support import LevelsOnSupport
from layerbounds.problems.patterns import Structure
from layerbounds.problems.problem import Problem, as_problem, check_channels
from layerbounds.theory.lattice import error_of_lattice
from layerbounds.theory.rate_distortion import distortion_of_spectrum, normal_variance
from layerbounds.theory.spectra import spectrum

LATTICE = "typical lattice"
INFORMATION = "rate-distortion (Gaussian)"
#: Names of all yardsticks, in the order of tables.
YARDSTICKS = (LATTICE, INFORMATION)

#: Eigenvalues of each group's live Gram matrix: the choices of a run ask for the same ones.
_SPECTRA: WeakKeyDictionary[Layer, dict[int, Float]] = WeakKeyDictionary()


def yardsticks(problem: Problem, channels: Sequence[int] | None = None) -> dict[str, float | None]:
    """Typical errors of a problem, summed over output channels, in the units of its bounds.

    Parameters
    ----------
    problem : Problem
    channels : sequence of int, optional
        Default: all.

    Returns
    -------
    dict of str to float or None
        ``"typical lattice"`` of quantization on a uniform grid whose scales are fixed, where the Gram matrix of the
        live inputs has full rank (`layerbounds.theory.lattice`), and ``"rate-distortion (Gaussian)"`` of what takes its
        weights from finitely many values (`layerbounds.theory.rate_distortion`): quantization with fixed scales or a
        given codebook, and pruning with such quantization. None where it says nothing, or overflows.

    Examples
    --------
    >>> sorted(lb.yardsticks(problem))
    ['rate-distortion (Gaussian)', 'typical lattice']
    """
    chosen = check_channels(as_problem(problem), channels)
    layer = problem.layer
    sums: dict[str, float | None] = {}
    for name, of_group in ((LATTICE, _lattice), (INFORMATION, _information)):
        figures: list[float | None] = []
        for group in sorted({layer.group_of(channel) for channel in chosen}):
            figures += of_group(problem, group, [c for c in chosen if layer.group_of(c) == group])
        known = [figure for figure in figures if figure is not None]
        total = sum(known) + float(layer.constant[chosen].sum())
        sums[name] = total if len(known) == len(figures) and math.isfinite(total) else None
    return sums


@functools.singledispatch
def lattice_steps(allowed: AllowedSet) -> Float | None:
    """Steps of the weights, shape (n,), where what is allowed lies on a lattice; None for sets that have none."""
    return None


@functools.singledispatch
def value_count(allowed: AllowedSet) -> int | None:
    """How many values a weight may take, zero included where it is pruned; None where any, or nobody knows."""
    return None


@functools.singledispatch
def log2_count(allowed: AllowedSet) -> float:
    """Logarithm to base 2 of how many weights a set allows; of those with a `value_count`."""
    raise NotImplementedError(f"weights of {type(allowed).__name__} are not counted")


@lattice_steps.register
def _(allowed: Levels) -> Float | None:
    several = allowed.count > 1
    return allowed.scale if allowed.uniform and several.all() else None


@value_count.register
def _(allowed: Levels) -> int | None:
    return int(allowed.values.shape[1])


@value_count.register
def _(allowed: LevelsOnSupport) -> int | None:
    # A single level is the weight itself: a code that knows the weights.
    return int(allowed.values.shape[1]) if allowed.levels.values.shape[1] > 1 else None


@log2_count.register
def _(allowed: Levels) -> float:
    return float(np.sum(np.log2(allowed.count)))


@log2_count.register
def _(allowed: LevelsOnSupport) -> float:
    return _log2_choices(allowed.values.shape[1], allowed.structure)


def _log2_choices(values: int, structure: Structure) -> float:
    """The number of weights that fit a structure, with so many values each, zero among them."""
    sizes = np.bincount(structure.unit, minlength=len(structure.group))
    total = 0.0
    for group, capacity in enumerate(structure.capacity.tolist()):
        # Entry j is the logarithm of how many contents have j units other than zero.
        counts = np.full(capacity + 1, -np.inf)
        counts[0] = 0.0
        for size in sizes[structure.group == group].tolist():
            counts[1:] = np.logaddexp(counts[1:], counts[:-1] + math.log(values**size - 1))
        total += float(np.logaddexp.reduce(counts))
    return total / math.log(2.0)


def _lattice(problem: Problem, group: int, channels: Sequence[int]) -> list[float | None]:
    live = problem.layer.live(group)
    figures: list[float | None] = []
    for channel in channels:
        steps = lattice_steps(problem.allowed(channel))
        if steps is None:
            return [None]
        figures.append(error_of_lattice(_spectrum(problem.layer, group), steps[live]))
    return figures


def _information(problem: Problem, group: int, channels: Sequence[int]) -> list[float | None]:
    layer = problem.layer
    live = layer.live(group)
    figures: list[float | None] = []
    # Channels of a group have one structure, and the same number of levels but for zero among those of some.
    least: dict[int, float] = {}
    for channel in channels:
        allowed = problem.allowed(channel)
        count = value_count(allowed)
        if count is None:
            return [None]
        if count not in least:
            least[count] = distortion_of_spectrum(_spectrum(layer, group), log2_count(allowed.restrict(live)))
        figures.append(normal_variance(layer.target[channel][live]) * least[count])
    return figures


def _spectrum(layer: Layer, group: int) -> Float:
    """Eigenvalues of the Gram matrix of a group's live inputs."""
    known = _SPECTRA.setdefault(layer, {})
    if group not in known:
        live = layer.live(group)
        known[group] = spectrum(layer.gram[group][np.ix_(live, live)])
    return known[group]
