"""Report of a benchmark run: tables, agreement, and a performance profile.

python -m benchmarks.report DIR [--docs PAGE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measures import (
    FREE,
    LARGE,
    LONG,
    SHIFT,
    Record,
    by_instance,
    closed,
    closed_large,
    closed_ratio,
    compare,
    disagreements,
    gap,
    gap_after,
    losses,
    lower_of,
    missed,
    profile,
    seconds_of,
    shifted_geometric_mean,
    time_text,
)
from layerbounds.layers.files import atomic_path

BEGIN, END = "<!-- results of {suite}: begin -->", "<!-- results of {suite}: end -->"
KINDS = {
    "quantization": "Quantization",
    "free scale": "Quantization over all scales",
    "pruning": "Pruning with refit",
    "mask": "Masks",
    "joint": "Pruning and quantization together",
}


def read_records(folder: Path) -> list[Record]:
    """Records of a run; a line that an interruption cut off is left out."""
    path = folder / "results.jsonl"
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that reads well as plain text, too."""
    cells = [list(headings), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def summary(records: Sequence[Record], limit: float) -> str:
    """One row for each backend, on the instances that it took on, with the native backend on the same ones."""
    rows, instances = [], by_instance(records)
    moments = [t for t in (1.0, 10.0, 60.0) if t <= limit]
    for backend in dict.fromkeys(r["backend"] for r in records):
        mine = [row[backend] for row in instances.values() if backend in row]
        refused = [r for r in mine if r["error"]]
        taken = [r for r in mine if not r["error"]]
        native = [instances[r["name"]]["native"] for r in taken if "native" in instances[r["name"]]]
        native = [r for r in native if not r["error"]]
        time = shifted_geometric_mean([seconds_of(r) for r in taken])
        base = shifted_geometric_mean([seconds_of(r) for r in native])
        ratio = (time + SHIFT) / (base + SHIFT)
        certified = [gap(r["lower_bound"], r["upper_bound"]) for r in taken]
        rows.append(
            [
                backend,
                str(len(taken)) + (f" (+{len(refused)} refused or failed)" if refused else ""),
                f"{100 * np.mean([closed(r) for r in taken]):.0f} %" if taken else "–",
                f"{100 * np.mean([r['status'] == 'optimal' for r in taken]):.0f} %" if taken else "–",
                f"{time:.3f}",
                f"{ratio:.1f}",
                *(f"{100 * np.mean([gap_after(r, t) for r in taken]):.0f}" if taken else "–" for t in moments),
                f"{100 * np.mean(certified):.0f}" if certified else "–",
            ]
        )
    headings = ["backend", "instances", "closed", "certified", "time s", "÷ native"]
    return table(headings + [f"gap {t:g} s" for t in moments] + ["certified gap"], rows)


def peers(records: Sequence[Record]) -> str:
    """One row for each other backend: times where it needed longer than `LONG`, and the large instances it closes."""
    large, rows = closed_large(records), []
    for backend in dict.fromkeys(r["backend"] for r in records if r["backend"] != "native"):
        pair = compare(records, backend)
        known = [f"{pair.theirs:.3f}", f"{pair.own:.3f}", f"{pair.ratio:.0f}"] if pair.long else ["–"] * 3
        both = [row for row in by_instance(records).values() if {backend, "native"} <= row.keys()]
        own = closed_large([row["native"] for row in both])
        rows.append(
            [backend, str(pair.instances), str(pair.long), *known, str(large[backend]), str(own.get("native", 0))]
        )
    headings = ["backend", "instances", f"> {LONG:g} s", "time s", "native s", "ratio"]
    return table([*headings, f"closed n ≥ {LARGE}", "native on these"], rows)


def goals(records: Sequence[Record]) -> str:
    """What the native backend closes beside the others, in sentences."""
    large, count = closed_large(records), len({r["name"] for r in records if r["inputs"] >= LARGE})
    lost = missed(records)
    free = [name for name in FREE if name in large]
    parts = [
        f"Closed with n ≥ {LARGE}, of {count} instances: "
        + ", ".join(f"{backend} {number}" for backend, number in large.items())
        + "."
    ]
    if free:
        parts.append(
            f"On the instances that native and {' and '.join(free)} all got, native closes "
            f"{closed_ratio(records):.2g} times as many of these as the best of the latter."
        )
    parts.append(
        "Native closes every instance that any other backend closes."
        if not lost
        else f"Closed by another backend and not by native: {', '.join(lost)}."
    )
    return " ".join(parts)


def details(records: Sequence[Record]) -> str:
    """One row for each instance: the time to close, or the (claimed) gap at the end."""
    backends = list(dict.fromkeys(r["backend"] for r in records))
    rows = []
    for name, row in by_instance(records).items():
        uppers = [r["upper_bound"] for r in row.values() if not r["error"]]
        best = min(uppers) if uppers else np.nan
        rows.append([name, *(_cell(row.get(backend), best) for backend in backends)])
    return table(["instance", *backends], rows)


def _cell(record: Record | None, best: float) -> str:
    if record is None:
        return ""
    if record["error"]:
        return str(record["error"])
    if record["status"] == "failed":
        return "failed"
    if closed(record):
        return time_text(record)
    worse = record["upper_bound"] / best - 1 if best > 0 else 0.0
    return f"{100 * gap(lower_of(record), best):.0f} %" + (f", +{100 * worse:.0f} %" if worse > 5e-3 else "")


def report(folder: Path) -> str:
    """The whole report as Markdown."""
    records = read_records(folder)
    header: dict[str, Any] = json.loads((folder / "suite.json").read_text(encoding="utf-8"))
    limit = header["time_limit"]
    versions = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
    parts = [
        f"Suite `{header['suite']}`, {limit:g} s a solve, one thread each, {header['jobs']} processes at a time.",
        *([header["note"]] if header.get("note") else []),
        f"{header['machine'].splitlines()[0]}; {header['machine'].splitlines()[-1]}; backends: {versions}.",
    ]
    for kind, title in KINDS.items():
        chosen = [r for r in records if r["kind"] == kind]
        if chosen:
            parts += [f"### {title}", summary(chosen, limit)]
    if {"native"} < {r["backend"] for r in records}:
        parts += ["### Native and the others", peers(records), goals(records)]
    parts += ["### Each instance", details(records)]
    pairs, instances, wrong = disagreements(records)
    parts += ["### Agreement"]
    parts += [
        f"{pairs} pairs of backends closed the same instance ({instances} instances); "
        + ("all agree on the error of the weights within 1e-6 relative." if not wrong else f"{len(wrong)} disagree:")
    ]
    parts += [f"- {line}" for line in wrong]
    beaten = losses(records)
    parts += ["### Where the native backend loses"]
    parts += ["\n".join(f"- {name}: {backend} {what}" for name, backend, what in beaten) or "Nowhere in this run."]
    failed = [r for r in records if r["error"] or r.get("notes")]
    if failed:
        lines = {f"- {r['backend']}, {r['name']}: {r.get('message') or '; '.join(r['notes'])}" for r in failed}
        parts += ["### Refusals and failures", "\n".join(sorted(lines))]
    return "\n\n".join(parts) + "\n"


def plot(folder: Path) -> Path | None:
    """Write DIR/profile.svg; None where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    records = read_records(folder)
    longest = max((r["time_limit"] for r in records), default=1.0) / SHIFT
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    groups = [
        ("quantization", ["quantization", "free scale"]),
        ("pruning and masks", ["pruning", "mask"]),
        ("both together", ["joint"]),
    ]
    present = {record["kind"] for record in records}
    groups = [group for group in groups if present & set(group[1])] or groups[:1]
    for axes, (title, kinds) in zip(np.ravel(figure.subplots(1, len(groups))), groups, strict=True):
        for backend, ratios in profile(records, kinds).items():
            finite = np.sort([r for r in ratios if np.isfinite(r)])
            share = np.arange(1, len(finite) + 1) / len(ratios)
            axes.step(
                [1.0, *finite, longest], [0.0, *share, share[-1] if len(share) else 0.0], where="post", label=backend
            )
        axes.set_xscale("log")
        axes.set_xlabel(f"time to close / fastest backend (+{SHIFT:g} s)")
        axes.set_ylabel("share closed")
        axes.set_title(title)
        axes.set_ylim(0.0, 1.02)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    path = folder / "profile.svg"
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg")
    return path


def print_report(folder: Path, docs: Path | None = None) -> None:
    """Print the report, draw the profile, and put the report into a page where asked to."""
    text = report(folder)
    print(text)
    drawn = plot(folder)
    print(f"performance profile: {drawn}" if drawn else "no performance profile: pip install 'layerbounds[plot]'")
    if docs is not None:
        page = docs.read_text(encoding="utf-8")
        suite = json.loads((folder / "suite.json").read_text(encoding="utf-8"))["suite"]
        begin, end = BEGIN.format(suite=suite), END.format(suite=suite)
        before, found, rest = page.partition(begin)
        _, ended, after = rest.partition(end)
        if not found or not ended:
            raise SystemExit(f"error: {docs} has no section between {begin} and {end}")
        with atomic_path(docs) as temporary:
            temporary.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", encoding="utf-8")


def main() -> None:
    """Print the report of a folder."""
    parser = argparse.ArgumentParser(description="Report of a benchmark run.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--docs", type=Path, help="a page whose results section is replaced by the report")
    options = parser.parse_args()
    if not (options.folder / "suite.json").is_file():
        raise SystemExit(f"error: {options.folder} holds no benchmark run; run python -m benchmarks.run first.")
    print_report(options.folder, options.docs)


if __name__ == "__main__":
    main()
