"""Tables of scored checkpoints."""

from __future__ import annotations

from rich.table import Table

from layerbounds.report.tables import MISSING, _number, _table, _text, significant
from layerbounds.scoring.records import MISMATCH, Scores, Standing


def score_table(scores: Scores, compact: bool = False) -> Table:
    """The scored layers, one row each.

    Parameters
    ----------
    scores : Scores
    compact : bool
        Leave out how layers are stored, and most words, for narrow terminals.

    Returns
    -------
    rich.table.Table
    """
    free = any(score.free is not None for score in scores)
    table = _table(f"{scores.checkpoint} · {scores.label}" + (" · how far above optimal" if compact else ""))
    _text(table, "layer")
    if not compact:
        _text(table, "stored as")
        _number(table, "bits per weight")
    _number(table, "error %")
    _text(table, "its own grid")
    if free:
        _text(table, "any scales")
    for score in scores:
        relative = None if score.relative_error is None else 100.0 * score.relative_error
        cells = [score.layer]
        if not compact:
            cells += [score.format, f"{score.bits_per_weight:.4g}"]
        own = MISMATCH if score.status == MISMATCH else _words(score.own, compact)
        cells += [significant(relative), own]
        if free:
            cells.append(_words(score.free, compact))
        table.add_row(*cells)
    return table


def score_lines(scores: Scores) -> list[str]:
    """What has to be known beside the table: what was refused, what was left out, and notes; equal ones together."""
    lines = [f"not scored: {why}" for why in scores.refused.values()]
    by_note: dict[str, list[str]] = {}
    for score in scores:
        wider = [f"any scales: {note}" for note in (score.free.notes if score.free is not None else ())]
        for note in (*score.notes, *wider):
            by_note.setdefault(note, []).append(score.layer)
    lines += [f"{_some(names, len(scores))}: {note}" for note, names in by_note.items()]
    if scores.unmatched:
        lines.append(f"not quantized in the checkpoint: {_some(scores.unmatched)}")
    if scores.original is None:
        lines.append(
            "no original to compare normalisations with (--original): folded scales show in the weights alone, and "
            "only if they are large"
        )
    return lines


def _words(standing: Standing | None, compact: bool) -> str:
    if standing is None:
        return MISSING
    if compact:
        return "trivial bound" if standing.trivial else standing.distance.short()
    return standing.words()


def _some(names: list[str], total: int = 0) -> str:
    if len(names) == total > 1:
        return "all layers"
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
