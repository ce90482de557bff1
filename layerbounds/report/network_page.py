"""The page of a run: one HTML file that needs nothing else; it needs the `report` extra."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from layerbounds.display.outward import ends, rounded
from layerbounds.exceptions import MissingExtraError
from layerbounds.network.entries import ChoiceInfo, Entry
from layerbounds.network.result import NetworkRun
from layerbounds.network.table import best_method, excess_percent, ratio, relative, state, total_of
from layerbounds.problems.layer_bits import convention
from layerbounds.report.charts import SHAPES
from layerbounds.report.network_command import command
from layerbounds.report.network_sections import sections
from layerbounds.report.network_totals import Coverage, Total, coverage, totals
from layerbounds.report.tables import MISSING, fixed

_FOLDER = "page"


@dataclass(frozen=True)
class Fact:
    """Something said in one line."""

    what: str
    value: str
    more: str = ""
    code: bool = False


@dataclass(frozen=True)
class Note:
    """A sentence on how far the run is."""

    text: str
    open: bool


@dataclass(frozen=True)
class Heading:
    """Of a column of the table of layers."""

    title: str
    classes: str = ""


@dataclass(frozen=True)
class Cell:
    """Of the table of layers; ``value`` is what it is sorted by, empty where undefined, None for its text."""

    text: str
    value: str | None = None
    classes: str = ""


def check_page() -> None:
    """Raise if pages cannot be written.

    Raises
    ------
    MissingExtraError
        Without jinja2.
    """
    _environment()


def page(run: NetworkRun) -> str:
    """The page as text; the same for the same run.

    Parameters
    ----------
    run : NetworkRun

    Raises
    ------
    MissingExtraError
        Without jinja2.
    """
    from markupsafe import Markup

    environment = _environment()
    style, script = _part("page.css"), _part("page.js")
    context = _context(run) | {
        "style": Markup(style),
        "style_hash": _hash(style),
        "script": Markup(script),
        "script_hash": _hash(script),
        "shapes": SHAPES,
    }
    return str(environment.get_template("page.html").render(context)) + "\n"


def _environment() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError("report.html needs jinja2; run: pip install 'layerbounds[report]'") from error
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_part), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(_FOLDER, name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a content security policy names what it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _context(run: NetworkRun) -> dict[str, Any]:
    covered, by_choice = coverage(run), totals(run)
    source = run.about.get("source", {})
    names = {
        "file": Path(str(source.get("path"))).name,
        "demo": "the embedded demo network",
        "memory": "layers from memory",
    }
    said = convention(run.choices[0].rules["mask"])
    yardsticks = list(dict.fromkeys(name for entry in run.entries for name in entry.yardsticks))
    return {
        "version": run.about.get("layerbounds", ""),
        "title": "Certified bounds for a network",
        "subtitle": f"{covered.layers} {_plural('layer', covered.layers)} of "
        f"{names.get(str(source.get('kind'))) or 'a layer file'}, {len(run.choices)} "
        f"{_plural('compression', len(run.choices))}: how small the error of each can be, by proof, and how near "
        "methods come.",
        "facts": _facts(covered),
        "states": _states(run, covered),
        "yardsticks": ", ".join(yardsticks),
        "totals": [_total(total, len(run.layers)) for total in by_choice],
        "sums": _sums(covered, by_choice),
        "sections": sections(run),
        "table_caption": _CAPTION,
        "table_columns": _COLUMNS,
        "table_rows": [_row(entry) for entry in run.entries],
        "refusals": _refusals(run.entries),
        "convention": f"{said[:1].upper()}{said[1:]}.",
        "about": _about(run),
        "layers": [
            {
                "name": layer.name,
                "shape": "×".join(map(str, layer.shape)),
                "samples": MISSING if layer.samples is None else f"{layer.samples:,}",
                "channels": f"{len(layer.channels)} of {layer.shape[0]}",
                "digest": layer.digest,
            }
            for layer in run.layers
        ],
    }


def _facts(covered: Coverage) -> list[Fact]:
    energy = MISSING if covered.energy is None else f"{rounded(covered.energy, False, 4, 2)} %"
    refused = f", {covered.refused} refused" if covered.refused else ""
    return [
        Fact("layers", f"{covered.layers}", f"{covered.weights:,} weights"),
        Fact("output channels compared", f"{covered.channels:,}", f"of {covered.out_channels:,}"),
        Fact("energy that is covered", energy, "share of f(0) of all channels that the intervals are about"),
        Fact("certified intervals", f"{covered.bounded:,}", f"of {covered.sets:,} over all compressions{refused}"),
        Fact("proven optimal", f"{covered.optimal:,}", f"{_share(covered.optimal, covered.sets)} of the intervals"),
    ]


def _share(part: int, whole: int) -> str:
    return f"{rounded(part / whole, False, 3, 2)} %" if whole else MISSING


def _states(run: NetworkRun, covered: Coverage) -> list[Note]:
    notes = []
    if covered.complete:
        notes.append(Note("Complete: every layer has certified bounds at every compression that it can have.", False))
    else:
        left = covered.sets - covered.bounded
        notes.append(
            Note(
                f"Not complete: {left:,} of {covered.sets:,} intervals have no bounds yet; their lower ends count as 0 "
                "and their upper ends as infinite. The same command goes on with the run.",
                True,
            )
        )
    if covered.interrupted:
        notes.append(Note("Interrupted: what is shown holds; the same command goes on with the run.", True))
    if run.failed:
        said = "; ".join(f"{layer}, {choice}: {reason}" for layer, choice, reason in run.failed)
        notes.append(Note(f"Not worked on, and tried again by the same command: {said}", True))
    if run.left_out:
        count = len(run.left_out)
        text = f"{count} {_plural('record', count)} of the run cannot be used, so that work is to be done again"
        notes.append(Note(f"{text}: {'; '.join(run.left_out)}", True))
    if covered.channels < covered.out_channels:
        text = (
            f"A part of the channels: {covered.channels:,} of {covered.out_channels:,} output channels were compared, "
            "and all intervals are about these."
        )
        drawn = any(layer.sample is not None for layer in run.layers)
        more = "What follows for the others is said below, apart." if drawn else "Nothing is said about the others."
        notes.append(Note(f"{text} {more}", True))
    return notes


def _total(total: Total, layers: int) -> dict[str, str]:
    low, high = total.relative
    return {
        "choice": total.choice,
        "layers": str(total.layers) if not total.refused else f"{total.layers} of {layers}",
        "bits": MISSING if total.bits_per_weight is None else f"{total.bits_per_weight:.3f}",
        "weighted": ends(total.weighted, 4, 2),
        "relative": ends(total.relative, 4),
        "ratio": rounded(low / high, False, 3, 2) if high > 0 and math.isfinite(high) else MISSING,
        "bounded": f"{total.bounded:,}" if total.bounded == total.sets else f"{total.bounded:,} of {total.sets:,}",
        "optimal": f"{total.optimal:,} ({_share(total.optimal, total.sets)})",
        "seconds": fixed(total.seconds, 1),
    }


def _sums(covered: Coverage, by_choice: Sequence[Total]) -> str:
    text = (
        "Energy-weighted: the errors of all layers, summed, over their summed f(0), the error of zero weights. "
        "Sum of relative errors: every layer counts the same."
    )
    if any(total.refused for total in by_choice):
        text += " Where layers cannot have a compression, its sums are over the others."
    if covered.channels < covered.out_channels:
        text += " Both are about the channels that were compared."
    return text


_CAPTION = (
    "Errors are relative to those of zero weights. Status: first bounds (all channels at once), searched, proven "
    "(every interval closed), refused (the layer cannot have the compression), not yet or partly (bounds are missing). "
    "Excess: how far the best method’s error lies above the lower end, so above the optimum at most."
)
_COLUMNS = [
    Heading("layer", "text pin"),
    Heading("compression", "text"),
    Heading("status", "text"),
    Heading("bits per weight"),
    Heading("lower end, %"),
    Heading("upper end, %"),
    Heading("lower / upper, %"),
    Heading("best method", "text"),
    Heading("its excess ≤, %"),
    Heading("proven optimal"),
    Heading("search, s"),
    Heading("weight", "text"),
    Heading("inputs"),
    Heading("dead inputs"),
    Heading("fingerprint", "text"),
]


def _row(entry: Entry) -> list[Cell]:
    layer = entry.layer
    how = state(entry)
    look = {"proven": " proven", "not yet": " waiting", "partly": " waiting"}.get(how, "")
    span = relative(entry) if entry.refused is None else None
    low, high = span if span is not None else (None, None)
    label = best_method(entry)
    error = None if label is None else total_of(entry.methods[label])
    over = excess_percent(error, entry.interval[0]) if entry.refused is None else None
    known = entry.refused is None
    optimal = sum(entry.closed.tolist())
    share = ratio(entry) if known else None
    seconds = math.fsum(entry.seconds)
    return [
        Cell(layer.name, classes="text"),
        Cell(entry.choice.name, classes="text"),
        Cell(how, classes="text status" + look),
        _cell(entry.bits_per_weight if known else None, f"{entry.bits_per_weight:.3f}"),
        _cell(low, rounded(low, False, 4, 2)),
        _cell(high, rounded(high, True, 4, 2)),
        _cell(share, rounded(share, False, 3, 2)),
        Cell(label or MISSING, classes="text"),
        _cell(over, rounded(over, True, 3)),
        _cell(optimal / len(entry.sets) if entry.sets else None, f"{optimal} of {len(entry.sets)}"),
        _cell(seconds if known else None, fixed(seconds, 1)),
        Cell("×".join(map(str, layer.shape)), str(layer.weights), "text"),
        _cell(layer.inputs, str(layer.inputs)),
        _cell(layer.dead, str(layer.dead)),
        Cell(entry.fingerprint[:12] or MISSING, classes="text"),
    ]


def _cell(value: float | None, text: str) -> Cell:
    if value is None or math.isnan(value):
        return Cell(MISSING, "")
    return Cell(text, {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, repr(value)))


def _refusals(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Layers and compressions by the reason why they cannot be had."""
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        if entry.refused is not None:
            reasons.setdefault(entry.refused, []).append(f"{entry.layer.name} ({entry.choice.name})")
    return reasons


def _about(run: NetworkRun) -> list[Fact]:
    about = run.about
    source = about.get("source", {})
    facts = [Fact("version", f"layerbounds {about.get('layerbounds')}")]
    environment = about.get("environment")
    if environment:
        facts.append(Fact("environment", ", ".join(f"{name} {version}" for name, version in environment.items())))
    facts.append(Fact("command", command(run), code=True))
    facts.append(Fact("layers from", Path(str(source.get("path") or source.get("kind"))).name))
    facts += [Fact(choice.name, _fields({**choice.spec, **_told(choice)})) for choice in run.choices]
    facts.append(Fact("seed", str(about.get("seed"))))
    given = ", ".join(f"{label} (SHA-256 {digest})" for label, digest in about.get("given", {}).items())
    facts += [Fact("weights from elsewhere", given)] if given else []
    facts += [
        Fact(name.replace("_", " "), _text(value))
        for name, value in about.get("options", {}).items()
        if value is not None
    ]
    return facts


#: Rules that say something of grids, and of pruning.
_GRIDS, _PRUNING = ("granularity", "range", "symmetric", "scale", "zero_point"), ("refit", "share", "axis", "mask")


def _told(choice: ChoiceInfo) -> dict[str, Any]:
    """The rules that matter to a choice."""
    quantizes = any(choice.spec.get(name) is not None for name in ("bits", "codebook"))
    prunes = any(choice.spec.get(name) is not None for name in ("pattern", "density", "k", "share"))
    names = [*(_GRIDS if quantizes else ()), *(_PRUNING if prunes else ())]
    if quantizes and prunes:
        names.remove("refit")
    return {name: choice.rules.get(name) for name in names}


def _fields(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_text(value)}" for name, value in fields.items() if value is not None)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, dict):
        same = all(name == other for name, other in value.items())
        return ", ".join(value) or "none" if same else json.dumps(value, ensure_ascii=False)
    return str(value)


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else noun + "s"
