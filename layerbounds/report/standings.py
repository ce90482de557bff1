"""Tables of several contenders against each other, for terminals and as Markdown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from layerbounds.contests.standings import Rank, Standings, named_pairs, ranks_of
from layerbounds.problems.rows import noun
from layerbounds.report.tables import MISSING, _number, _table, _text
from layerbounds.report.versus_tables import percent

_STYLE = {Rank.BETTER: "green", Rank.WORSE: "red", Rank.EQUAL: "cyan", Rank.OPEN: "yellow"}
_SIGN = {Rank.BETTER: "<", Rank.WORSE: ">", Rank.EQUAL: "=", Rank.OPEN: "?"}


def legend(standings: Standings) -> str:
    """How to read the cells of `standings_table`."""
    units = noun([rows for entrant in standings.entrants for rows in entrant.sets], 2)
    return (
        "< the row's smallest error is proven to be smaller than the column's, > larger, ? open; "
        f"{units} better/worse/open"
    )


def standings_table(standings: Standings) -> Table:
    """One layer, a row for each contender: storage, error, and how it compares with each of the others.

    `legend` says how to read a comparison.

    Parameters
    ----------
    standings : Standings

    Returns
    -------
    rich.table.Table
    """
    part = f", {len(standings.channels)} of {standings.out_features} channels" if standings.sampled else ""
    table = _table(f"{standings.layer}{part}: smallest errors, mask: {standings.mask}")
    _number(table, "")
    _text(table, "contender")
    for heading in ("bits", "error %", *(f"#{i + 1}" for i in range(len(standings.entrants)))):
        _number(table, heading)
    energy = math.fsum(standings.energy)
    for i, entrant in enumerate(standings.entrants):
        cells: list[str | Text] = [f"#{i + 1}", entrant.name, f"{entrant.storage:.4g}", percent(entrant.total, energy)]
        for j in range(len(standings.entrants)):
            if i == j:
                cells.append(MISSING)
            else:
                rank = standings.rank(i, j)
                cells.append(Text(_cell(rank, standings.ranks(i, j)), style=_STYLE[rank]))
        table.add_row(*cells)
    return table


def pairs_table(standings: Sequence[Standings]) -> Table:
    """All layers, a row for each pair of contenders.

    Parameters
    ----------
    standings : sequence of Standings

    Returns
    -------
    rich.table.Table
    """
    table = _table(f"{len(standings)} layers: smallest errors, mask: {standings[0].mask}")
    for heading in ("contender", "against"):
        _text(table, heading)
    for heading in ("bits", "channels better", "worse", "equal", "open", "layers better", "worse", "equal", "open"):
        _number(table, heading)
    for row in _pair_rows(standings):
        table.add_row(*row)
    return table


def standings_markdown(standings: Sequence[Standings]) -> str:
    """The pairs of all layers, and the contenders of each layer, as Markdown tables.

    Parameters
    ----------
    standings : sequence of Standings

    Returns
    -------
    str
    """
    heading = ["contender", "against", "bits"]
    heading += ["channels: better", "worse", "equal", "open", "layers: better", "worse", "equal", "open"]
    lines = [f"Smallest errors proven for each pair of contenders; mask: {standings[0].mask}.", ""]
    lines += _markdown(heading, _pair_rows(standings))
    for one in standings:
        part = f", {len(one.channels)} of {one.out_features} channels" if one.sampled else ""
        lines += ["", f"{one.layer} (n = {one.inputs}{part}):", ""]
        energy = math.fsum(one.energy)
        rows = [[e.name, f"{e.storage:.4g}", percent(e.total, energy), e.problem] for e in one.entrants]
        lines += _markdown(["contender", "bits", "error %", "weights"], rows)
    return "\n".join(lines) + "\n"


def _pair_rows(standings: Sequence[Standings]) -> list[list[str]]:
    rows = []
    for pair in named_pairs(standings):
        layers: Counter[Rank] = Counter()
        channels: Counter[Rank] = Counter()
        storage: list[list[float]] = [[], []]
        for one in standings:
            found = ranks_of(one, pair)
            if found is None:
                continue
            layers[found[0]] += 1
            channels.update(found[1])
            for side, name in zip(storage, pair, strict=True):
                side.append(next(e.storage for e in one.entrants if e.name == name))
        bits = " / ".join(_extent(side) for side in storage)
        order = (Rank.BETTER, Rank.WORSE, Rank.EQUAL, Rank.OPEN)
        rows.append([*pair, bits, *(str(channels[r]) for r in order), *(str(layers[r]) for r in order)])
    return rows


def _extent(values: Sequence[float]) -> str:
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return low if low == high else f"{low}–{high}"


def _cell(rank: Rank, ranks: Iterable[Rank]) -> str:
    count = Counter(ranks)
    equal = f"/{count[Rank.EQUAL]}=" if count[Rank.EQUAL] else ""
    return f"{_SIGN[rank]} {count[Rank.BETTER]}/{count[Rank.WORSE]}/{count[Rank.OPEN]}{equal}"


def _markdown(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
