"""Dual points of the batched backend for solutions that have none, such as those that were read from a file."""

from __future__ import annotations

from collections.abc import Sequence

from layerbounds.arguments import thread_count
from layerbounds.arrays import Float
from layerbounds.problems.problem import Problem
from layerbounds.proofs import BoundKind, Evidence
from layerbounds.scheduling.choice import BATCHED
from layerbounds.scheduling.request import Request
from layerbounds.scheduling.stages import carry_out


def together_again(
    problem: Problem,
    sets: Sequence[list[int]],
    kinds: Sequence[BoundKind],
    backends: Sequence[str],
    weights: Sequence[Float],
) -> list[Evidence]:
    """Dual points for rows that the batched backend had bounded together; no evidence for others.

    Parameters
    ----------
    problem : Problem
    sets : sequence of list of int
    kinds : sequence of BoundKind
    backends : sequence of str
        What gave each lower end.
    weights : sequence of ndarray of shape (n,) or (rows, n)
        Allowed weights of each set, dead inputs included.
    """
    found = [Evidence()] * len(sets)
    chosen = [i for i, kind in enumerate(kinds) if kind != BoundKind.TRIVIAL and backends[i] == BATCHED]
    if not chosen:
        return found
    request = Request(
        problem=problem,
        sets=[sets[i] for i in chosen],
        gaps=[0.0] * len(chosen),
        starts=[weights[i] for i in chosen],
        time_limit=None,
        total_time=None,
        threads=thread_count(None),
        seed=0,
        node_limit=None,
        options={"effort": 0.0},
        device=None,
        memory_limit=None,
        progress=None,
        report=lambda text: None,
    )
    finished = carry_out(request, BATCHED).finished
    for place, i in enumerate(chosen):
        found[i] = finished[place].certified.evidence
    return found
