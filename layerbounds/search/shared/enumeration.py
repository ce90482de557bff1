"""Every choice of units, tried or excluded: exact answers without a relaxation (docs/shared-sets.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from layerbounds.arrays import Bool
from layerbounds.kernels import exact
from layerbounds.proofs import OPTIMAL_ABSOLUTE, OPTIMAL_RELATIVE, Control
from layerbounds.search.shared.choices import choice_bound
from layerbounds.search.shared.drops import DropBasis, DropSearch, make_drop_basis
from layerbounds.search.shared.exact_choices import ExactChoices
from layerbounds.search.shared.independent_choices import ChoiceEnumeration
from layerbounds.search.shared.selection import Selection

#: Multiplications between two looks at the clock, some hundredths of a second.
STEP = 30_000_000
#: Nodes of the search by errors where there is a node limit: about what its seconds allow otherwise.
MOST_NODES = 10_000
#: Sets that are evaluated at the end.
EVALUATED = 256
#: Seconds of a set, in all and for its cubed inputs; choices times rows and cubed inputs that are tried exactly.
BASE_SECONDS, CUBIC_SECONDS, MOST_EXACT_WORK = 3e-7, 2.6e-9, 5e6
#: Natural logarithm of a number that float64 holds.
MOST_LOGARITHM = 600.0
#: How many times as long as estimated trying all choices may take.
SLOWER = 5.0
#: What trying all choices may take: a share of the time limit and seconds; and what no search is refused.
CHOICES_SHARE, CHOICES_SECONDS, AT_ONCE = 0.4, 6.0, 0.1


@dataclass(frozen=True)
class Exhausted:
    """All choices have been tried or excluded.

    Attributes
    ----------
    cut : float
        No choice has a smaller error, in the units of the search.
    nodes : int
    """

    cut: float
    nodes: int


def number_of_choices(selection: Selection) -> float:
    """How many choices keep as many units as they may; infinite where that is more than a float64 can hold."""
    structure = selection.structure
    count = 1.0
    for group, capacity in enumerate(structure.capacity.tolist()):
        size = int(np.count_nonzero(structure.group == group))
        logarithm = math.lgamma(size + 1) - math.lgamma(capacity + 1) - math.lgamma(size - capacity + 1)
        if logarithm + math.log(count) > MOST_LOGARITHM:
            return math.inf
        count *= math.comb(size, capacity)
    return count


def target_cut(selection: Selection, control: Control) -> float:
    """What has to be excluded below the incumbent: the gap asked for, or half the tolerance of ``optimal``."""
    upper = selection.incumbent.value
    gap = (control.gap - 1e-12) * upper - 1e-14 * selection.energy
    return upper - max(gap, 0.4 * OPTIMAL_RELATIVE * upper, 0.3 * OPTIMAL_ABSOLUTE * selection.energy)


def exhaust_drops(
    selection: Selection, control: Control, seconds: float, basis: DropBasis | None = None
) -> Exhausted | None:
    """Exclude every choice by its error alone, within some seconds; None where these do not suffice.

    Better choices that are met become incumbents in any case.

    Parameters
    ----------
    selection : Selection
        With an incumbent: the better it is, the less there is to try.
    control : Control
    seconds : float
    basis : DropBasis, optional
        Made before.
    """
    if basis is None:
        basis = make_drop_basis(selection.gram, selection.rows, selection.structure)
    if basis is None:
        return None
    search = DropSearch(basis, target_cut(selection, control), selection.rounding)
    # A node limit has to give the same result on every machine.
    limit = None if control.node_limit is None else min(control.node_limit, MOST_NODES)
    end = min(control.elapsed() + seconds, control.time_limit) if limit is None else control.time_limit
    while not search.run(STEP if control.node_limit is None else STEP // 8):
        spent = limit is not None and search.nodes >= limit
        if search.broken or spent or control.elapsed() >= end or control.remaining() <= 0:
            break
    kept, _ = search.found()
    if not search.finished:
        if len(kept):
            selection.offer(kept[0])
        return None
    cut = _proven(selection, kept, search.cut)
    return None if cut is None else Exhausted(cut, max(search.nodes, 1))


def exhaust_choices(selection: Selection, control: Control, seconds: float) -> Exhausted | None:
    """Try every choice by what it saves, whatever the Gram matrix; None where time or rounding does not allow it."""
    choices = number_of_choices(selection)
    if control.node_limit is not None and choices > control.node_limit:
        return None
    if control.node_limit is None and seconds_of(selection) > seconds * max(control.threads, 1):
        return None
    if not len(selection.structure.capacity) or not np.any(selection.structure.capacity):
        return None
    every = ChoiceEnumeration(selection)
    cut = target_cut(selection, control)
    # Estimates are for a machine that does nothing else.
    end = control.elapsed() + max(SLOWER * seconds_of(selection), seconds)
    end = end if control.node_limit is None else control.time_limit
    result = every.run(cut, replace(control, time_limit=min(end, control.time_limit)))
    if result is None:
        return None
    hidden = every.hidden(result)
    proven = _proven(selection, result.found, cut)
    return None if proven is None or not math.isfinite(hidden) else Exhausted(proven - hidden, result.visited)


def seconds_of(selection: Selection) -> float:
    """About how long one thread takes to try every choice."""
    structure = selection.structure
    width = len(structure.unit) / len(structure.group)
    kept = float(structure.capacity.sum())
    inner = 1.0 + 3.0 * kept / max(len(structure.group) - kept + 1.0, 1.0)
    return number_of_choices(selection) * inner * (BASE_SECONDS + CUBIC_SECONDS * width**3)


def exhaust_exactly(selection: Selection, control: Control) -> Exhausted | None:
    """Try every choice in exact arithmetic, where these are few; the incumbent becomes the best one."""
    structure, task = selection.structure, selection.task
    choices = number_of_choices(selection)
    width = np.sort(np.bincount(structure.unit, minlength=len(structure.group)))[::-1]
    kept = float(width[: int(structure.capacity.sum())].sum())
    work = choices * max(kept, 2.0) ** 3 * len(task.targets)
    if work > MOST_EXACT_WORK or (control.node_limit is not None and choices > control.node_limit):
        return None
    every = ExactChoices(task, control)
    least, best = None, np.zeros(len(structure.group), dtype=bool)
    for flags in structure.choices(full=True):
        if control.remaining() <= 0:
            return None
        error = every.error(flags)
        if least is None or error < least:
            least, best = error, flags
    assert least is not None
    weights = every.weights(best)
    pairs = zip(task.targets, weights, strict=True)
    value = sum((exact.quadratic_form(task.gram, w, v) for w, v in pairs), Fraction(0))
    selection.incumbent.offer(exact.float_above(value) * selection.factor**2, weights)
    # Where nobody can see it, the bound stays below the error without the raised diagonal.
    hidden = 4.0 * task.raised * float(np.sum(np.diag(task.gram) * (weights - task.targets) ** 2))
    lower = exact.float_below(least)
    lower -= min(hidden, 0.25 * max(OPTIMAL_RELATIVE * float(value), OPTIMAL_ABSOLUTE * task.energy))
    return Exhausted(lower * selection.factor**2, int(choices))


def exhaust(selection: Selection, control: Control, seconds: float, basis: DropBasis | None = None) -> Exhausted | None:
    """Exclude or try every choice within some seconds; None where that is not possible.

    Parameters
    ----------
    selection : Selection
        With an incumbent.
    control : Control
    seconds : float
        For the search by errors; that by savings may take some seconds in any case.
    basis : DropBasis, optional
        None where the Gram matrix is too nearly singular.
    """
    every = seconds_of(selection) / max(control.threads, 1)
    most = max(seconds, min(CHOICES_SHARE * control.time_limit, CHOICES_SECONDS))
    if basis is not None:
        # Where all choices are soon tried, errors are given as long as that takes.
        done = exhaust_drops(selection, control, max(every, AT_ONCE) if every < most else seconds, basis)
        return done or exhaust_choices(selection, control, most)
    done = exhaust_choices(selection, control, most)
    upper = selection.incumbent.value
    visible = max(OPTIMAL_RELATIVE * upper, OPTIMAL_ABSOLUTE * selection.energy)
    if done is not None and upper - done.cut <= visible:
        return done
    return exhaust_exactly(selection, control) or (done if done is not None and done.cut > 0.9 * upper else None)


def _proven(selection: Selection, kept: Sequence[Bool] | Bool, cut: float) -> float | None:
    """The smaller one of a cut and the errors of the choices that may lie below it; None where these are too many."""
    if len(kept) > EVALUATED:
        return None
    for row in kept:
        selection.offer(row)
        inputs = np.flatnonzero(row[selection.structure.unit])
        cut = min(cut, choice_bound(selection.gram, selection.rows, inputs) - selection.rounding)
    return cut
