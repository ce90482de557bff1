"""Which output channels of a layer are compared."""

from __future__ import annotations

from collections.abc import Sequence

from layerbounds.arguments import whole_number
from layerbounds.problems.problem import Problem, check_channels
from layerbounds.problems.rows import common_sets


def sample_channels(out: int, count: int) -> list[int]:
    """At most ``count`` of ``out`` channels, evenly spaced: channel ⌊(2i + 1)·out / (2·count)⌋ for i < count.

    Parameters
    ----------
    out, count : int
        Positive.
    """
    whole_number(count, "the sample of channels", 1)
    if count >= out:
        return list(range(out))
    return [(2 * i + 1) * out // (2 * count) for i in range(count)]


def compared_channels(problems: Sequence[Problem], channels: Sequence[int] | None, sample: int | None) -> list[int]:
    """The chosen output channels, or those of a sample with all that a problem binds to one of them.

    Parameters
    ----------
    problems : sequence of Problem
        Of one layer.
    channels : sequence of int or None
    sample : int or None
        Ignored where ``channels`` are given; None for all.
    """
    out = problems[0].layer.out_features
    if channels is not None or sample is None:
        return check_channels(problems[0], channels)
    picked = set(sample_channels(out, sample))
    units = common_sets(*(problem.sets(range(out)) for problem in problems))
    return sorted(row for unit in units if not picked.isdisjoint(unit) for row in unit)
