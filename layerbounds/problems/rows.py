"""How texts name sets of output channels, and sets that several problems have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def rows_text(rows: Sequence[int]) -> str:
    """Output channels as ``--channels`` reads them: ``3``, ``0:24``, ``0,4:6``.

    Parameters
    ----------
    rows : sequence of int
        In rising order.
    """
    runs: list[list[int]] = []
    for row in rows:
        if runs and runs[-1][-1] == row - 1:
            runs[-1].append(row)
        else:
            runs.append([row])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}:{run[-1] + 1}" for run in runs)


def noun(sets: Iterable[Sequence[int]], count: int) -> str:
    """What so many of some sets are: channels where each is one, else sets of channels."""
    several = any(len(rows) > 1 for rows in sets)
    plural = "" if count == 1 else "s"
    return f"set{plural} of channels" if several else f"channel{plural}"


def common_sets(*partitions: Sequence[Sequence[int]]) -> list[list[int]]:
    """The smallest sets that no set of any of the partitions leaves: what several problems bind together.

    Parameters
    ----------
    *partitions : sequence of sequence of int
        Sets of the same rows.

    Returns
    -------
    list of list of int
        In rising order, by their first rows.
    """
    parent = {row: row for rows in partitions[0] for row in rows}

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for rows in (rows for partition in partitions for rows in partition):
        for row in rows:
            first, second = sorted((root(rows[0]), root(row)))
            parent[second] = first
    found: dict[int, list[int]] = {}
    for row in sorted(parent):
        found.setdefault(root(row), []).append(row)
    return list(found.values())


def sets_within(sets: Sequence[Sequence[int]], units: Sequence[Sequence[int]]) -> list[list[int]]:
    """For each of some units the sets that lie in it: all that touch it, where units are common sets.

    Parameters
    ----------
    sets, units : sequence of sequence of int
    """
    unit_of = {row: unit for unit, rows in enumerate(units) for row in rows}
    found: list[list[int]] = [[] for _ in units]
    for index, rows in enumerate(sets):
        found[unit_of[rows[0]]].append(index)
    return found
