"""The order gap on real layers: the table and the picture of docs/joint.md.

    python -m benchmarks.order_gap [--out order_gap.json] [--plot docs/figures/order-gap.svg] [--parts leading,linear,…]

It needs the reference data (``../shared/data`` or the folder in LAYERBOUNDS_DATA), and PyTorch for the part
``activations``. Results are written after every layer; `--read` prints those of an earlier run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import layerbounds as lb
from layerbounds.orders.activations import activation_orders
from layerbounds.orders.run import Plan, run_orders, workshop
from layerbounds.report.figures import new_figure, save_figure

DATA = Path(os.environ.get("LAYERBOUNDS_DATA") or Path(__file__).resolve().parent.parent.parent / "shared" / "data")
RESNET, MINILM = "resnet20_layers.safetensors", "minilm_layers.safetensors"
PATTERNS = {"1/4": {"density": 0.25}, "1/2": {"density": 0.5}, "2:4": {"pattern": "2:4"}}
BITS = (2, 3, 4)
ORDERS = ("PQ", "MQ", "MQb", "QP", "QPQ")
PAIRS = ("magnitude+rtn", "wanda+gptq")
PARTS = ("theorem", "leading", "linear", "whole", "transformer", "activations")
COLOURS = {"PQ": "#D55E00", "MQ": "#E69F00", "MQb": "#CC79A7", "QP": "#0072B2", "QPQ": "#56B4E9"}


def leading(layer: lb.Layer, n: int, name: str) -> lb.Layer:
    """The first n live inputs, with 10⁻⁶ of the mean diagonal added to the Gram matrix."""
    live = np.flatnonzero(layer.live())[:n]
    gram = layer.gram[0][np.ix_(live, live)]
    return lb.Layer(layer.matrix[:, live], gram + 1e-6 * np.mean(np.diag(gram)) * np.eye(len(live)), name)


def gaps(
    layer: lb.Layer,
    channels: Sequence[int],
    seconds: float,
    *,
    rules: Sequence[str] = ("dense",),
    orders: Sequence[str] = ORDERS,
    pairs: Sequence[str] = (),
    patterns: Sequence[str] = tuple(PATTERNS),
    bits: Sequence[int] = BITS,
    look: bool = True,
) -> Iterator[dict[str, Any]]:
    """A record for each rule, pattern and number of bits; stages that they have in common are solved once."""
    blank = dict.fromkeys(("grid", "scale", "zero_point", "g_idx", "symmetric", "granularity", "range", "codebook"))
    shop = None
    for rule in rules:
        for pattern in patterns:
            for b in bits:
                how = {"density": None, "k": None, "pattern": "unstructured", **PATTERNS[pattern]}
                plan = Plan(layer, b, blank, how, orders, pairs, rule, "keep")
                shop = shop or workshop(plan, channels, look=look, time_limit=seconds)
                gap = run_orders(plan, shop)
                record = gap.to_dict()
                yield {"n": int(layer.live().sum()), "bits": b, "kept": pattern, "best": best_exact(gap), **record}
                if gap.interrupted:
                    raise KeyboardInterrupt


def best_exact(gap: lb.OrderGap) -> list[list[float | None]]:
    """For each channel the ratio of the best of the exact orders to the joint optimum."""
    names = [name for name in gap.intervals if " " not in name]
    ratios = np.stack([gap.ratio[name] for name in names])
    return [[end if math.isfinite(end) else None for end in row] for row in ratios.min(axis=0).tolist()]


def run(parts: Sequence[str], seconds: float, out: Path | None) -> list[dict[str, Any]]:
    """All records of the parts; what is there is written after every layer."""
    records: list[dict[str, Any]] = []
    resnet, minilm = lb.load_layers(DATA / RESNET), lb.load_layers(DATA / MINILM)

    def add(part: str, found: Iterator[dict[str, Any]]) -> None:
        begin = time.perf_counter()
        for record in found:
            records.append({"part": part, **record})
        if out is not None:
            out.write_text(json.dumps(records), encoding="utf-8")
        print(f"# {part} {records[-1]['layer']}: {time.perf_counter() - begin:.0f} s", flush=True)

    if "theorem" in parts:
        add("theorem", theorem([*resnet.values(), *minilm.values()]))
    if "leading" in parts:
        short = [name.replace("encoder.layer.", "enc.").replace("attention.", "") for name in minilm]
        every = [*resnet.items(), *list(zip(short, minilm.values(), strict=True))[:2]]
        small = [leading(layer, 32, name) for name, layer in every]
        for layer in small:
            add("leading", gaps(layer, range(2), seconds, pairs=PAIRS))
        for layer in small:
            add(
                "leading",
                gaps(layer, range(2), seconds, rules=("kept",), orders=("PQ", "QP", "QPQ"), patterns=("1/2", "2:4")),
            )
    if "linear" in parts:
        add("linear", gaps(resnet["linear"], range(2), seconds, pairs=PAIRS))
    if "whole" in parts:
        for name in ("layer1.0.conv1", "layer2.1.conv1", "layer3.2.conv2"):
            add("whole", gaps(resnet[name], [0], seconds, orders=("PQ", "QP"), look=False))
    if "transformer" in parts:
        for layer in list(minilm.values())[:2]:
            add(
                "transformer", gaps(layer, [0], seconds, orders=("PQ", "QP"), look=False, bits=(3, 4), patterns=["1/2"])
            )
    if "activations" in parts:
        add("activations", activations(seconds))
    return records


def theorem(layers: Sequence[lb.Layer]) -> Iterator[dict[str, Any]]:
    """Uncorrelated inputs, magnitude masks and rounding to nearest, half of the weights kept, in all channels."""
    for fit in ("minmax", "mse"):
        for bits in BITS:
            first, last, wins = [], [], 0
            for layer in layers:
                w, k = layer.matrix, layer.in_features // 2
                q = lb.uniform_grid(w, bits, range=fit).nearest(w)
                # What keeping a weight gains; the k largest gains are the joint optimum.
                gain = w**2 - (w - q) ** 2
                joint = np.sum(w**2, axis=1) - np.sort(gain, axis=1)[:, -k:].sum(axis=1)
                errors = []
                for score in (np.abs(w), np.abs(q)):
                    kept = np.argsort(-score, axis=1, kind="stable")[:, :k]
                    errors.append(np.sum(w**2, axis=1) - np.take_along_axis(gain, kept, axis=1).sum(axis=1))
                first += (errors[0] / joint).tolist()
                last += (errors[1] / joint).tolist()
                wins += int(np.sum(errors[0] < errors[1] * (1 - 1e-9)))
            means = [float(np.exp(np.mean(np.log(values)))) for values in (first, last)]
            yield {
                "layer": "all", "range": fit, "bits": bits, "rows": len(first), "prune_first_wins": wins,
                "means": means, "worst": [max(first), max(last)],
            }  # fmt: skip


def activations(seconds: float) -> Iterator[dict[str, Any]]:
    """ResNet-20 behind pruned and quantized activations in both orders, and the orders of its last layer's weights."""
    from examples.resnet20 import resnet20
    from layerbounds.capturing.loading import ArrayBatches, load_weights

    network = resnet20()
    load_weights(network, DATA / "resnet20_cifar10.safetensors")
    images = np.load(DATA / "cifar10_subset.npz")["calib_images"][:64]
    batches = ArrayBatches(images, 64, divide=255.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    for bits in (2, 4, 8):
        for scheme in ("dynamic", "static"):
            found = activation_orders(network, batches, bits=bits, density=0.5, scheme=scheme)
            for name, one in found.items():
                yield {"layer": name, "bits": bits, "scheme": scheme, "totals": one.totals()}
            if bits == 4 and scheme == "static":
                for kind in ("prune, quantize", "quantize, prune"):
                    layer = found["linear"].layers[kind]
                    for record in gaps(layer, range(2), seconds, orders=("PQ", "QP"), patterns=["1/2"], bits=(4,)):
                        yield {"weights": kind, **record}


def span(low: float, high: float, digits: int = 3) -> str:
    """An interval, or one number where its ends look the same."""
    first, last = (f"{end:#.{digits}g}".rstrip(".") if math.isfinite(end) else "∞" for end in (low, high))
    return first if first == last else f"{first}–{last}"


def ends(channel: dict[str, Any], name: str) -> tuple[float, float]:
    """The ratio of an order to the joint optimum in a channel."""
    low, high = channel["orders"][name]["ratio"]
    return low, math.inf if high is None else high


def mean(pairs: Sequence[tuple[float, float]]) -> str:
    """Geometric mean of intervals."""
    return span(*(math.exp(math.fsum(map(math.log, side)) / len(pairs)) for side in zip(*pairs, strict=True)))


def tally(channels: Sequence[dict[str, Any]], key: str = "winner") -> str:
    """How often prune-first wins, quantize-first wins, they are equal, and nothing is decided."""
    verdicts = [c[key] for c in channels]
    counts = [sum(v == name for v in verdicts) for name in ("PQ", "QP", "equal", "open")]
    return " / ".join(map(str, counts))


def print_tables(records: Sequence[dict[str, Any]]) -> None:
    """Markdown."""
    own = [r for r in records if "orders" in r.get("channels", [{}])[0] and "weights" not in r]
    for rule in ("dense", "kept"):
        rows = [r for r in own if r["scale_rule"] == rule and r["part"] in ("leading", "linear")]
        if rows:
            print(f"\n### Summary, scale rule {rule}\n")
            print("| bits | kept | channels | PQ / QP / equal / open | " + " | ".join(ORDERS) + " | best order |")
            print("|---|---|---|---|" + "---|" * (len(ORDERS) + 1))
        for b in BITS:
            for kept in (*PATTERNS, "all"):
                some = [r for r in rows if r["bits"] == b and kept in (r["kept"], "all")]
                channels = [c for r in some for c in r["channels"]]
                best = [(x[0], x[1] or math.inf) for r in some for x in r["best"]]
                if channels:
                    means = [mean([ends(c, n) for c in channels]) if n in channels[0]["orders"] else "" for n in ORDERS]
                    print(
                        f"| {b} | {kept} | {len(channels)} | {tally(channels)} | {' | '.join(means)} | {mean(best)} |"
                    )
    rows = [r for r in own if r["scale_rule"] == "dense"]
    if rows:
        print("\n### All layers, scales of the dense weights\n")
        print(
            "| layer | inputs | bits | kept | joint % | PQ % | QP % | PQ / QP / equal / open | of the weights found |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
    for r in rows:
        cells = []
        for place in (None, "PQ", "QP"):
            found = [c["joint"] if place is None else c["orders"][place] for c in r["channels"]]
            energy = math.fsum(c["energy"] for c in r["channels"])
            cells.append(span(*(100 * math.fsum(f[e] for f in found) / energy for e in ("lower_bound", "upper_bound"))))
        print(
            f"| {r['layer']} | {r['n']} | {r['bits']} | {r['kept']} | {' | '.join(cells)} | {tally(r['channels'])} | "
            f"{tally(r['channels'], 'winner_for_the_weights_found')} |"
        )
    print_heuristics([r for r in own if r["part"] in ("leading", "linear") and r["scale_rule"] == "dense"])
    print("\n### Uncorrelated inputs, magnitude and rounding to nearest: error / joint optimum\n")
    print("| range | bits | channels | prune first | quantize first, mean | worst | prune first wins |")
    print("|---|---|---|---|---|---|---|")
    for r in records:
        if r["part"] == "theorem":
            print(
                f"| {r['range']} | {r['bits']} | {r['rows']} | {r['means'][0]:.3f} | {r['means'][1]:.3f} | "
                f"{r['worst'][1]:.3f} | {r['prune_first_wins']} |"
            )
    print_activations([r for r in records if r["part"] == "activations"])


def verdict(channel: dict[str, Any], first: str, last: str) -> str:
    """Which of two orders is proven better in a channel, by what `OrderGap.decide` asks for."""
    one, other = channel["orders"][first], channel["orders"][last]
    high = max(one["upper_bound"], other["upper_bound"])
    if not (one["settled"] and other["settled"]):
        return "open"
    if high - min(one["lower_bound"], other["lower_bound"]) <= 1e-6 * high:
        return "equal"
    if one["upper_bound"] < other["lower_bound"]:
        return "first"
    return "last" if other["upper_bound"] < one["lower_bound"] else "open"


def print_heuristics(rows: Sequence[dict[str, Any]]) -> None:
    """What of an order effect is the order, and what the method of its stages."""
    if not rows:
        return
    print("\n### Prune first wins / quantize first wins / equal / open\n")
    print("| prune first | quantize first | stages | " + " | ".join(f"{b} bits" for b in BITS) + " |")
    print("|---|---|---|" + "---|" * len(BITS))
    for kind in ("PQ", "MQ", "MQb"):
        for m in ("exact", *PAIRS):
            suffix = "" if m == "exact" else f" {m}"
            cells = []
            for b in BITS:
                found = [
                    verdict(c, kind + suffix, f"QP{suffix}") for r in rows if r["bits"] == b for c in r["channels"]
                ]
                cells.append(" / ".join(str(found.count(v)) for v in ("first", "last", "equal", "open")))
            print(f"| {kind} | QP | {m} | {' | '.join(cells)} |")
    print("\n### Error / joint optimum with heuristic stages, geometric mean (largest)\n")
    print("| stages | bits | " + " | ".join(ORDERS) + " |")
    print("|---|---|" + "---|" * len(ORDERS))
    for m in PAIRS:
        for b in BITS:
            cells = []
            for kind in ORDERS:
                pairs = [ends(c, f"{kind} {m}") for r in rows if r["bits"] == b for c in r["channels"]]
                cells.append(f"{mean(pairs)} ({max(low for low, _ in pairs):.3g})" if pairs else "")
            print(f"| {m} | {b} | {' | '.join(cells)} |")
    print("\n### f(QP) / f(prune first), geometric means, by the method of the stages\n")
    names = ("exact", *PAIRS)
    print("| bits | kept | " + " | ".join(f"{kind}, {m}" for kind in ("MQb", "PQ") for m in names) + " |")
    print("|---|---|" + "---|" * (2 * len(names)))
    for b in BITS:
        for kept in PATTERNS:
            channels = [c for r in rows if r["bits"] == b and r["kept"] == kept for c in r["channels"]]
            cells = []
            for kind in ("MQb", "PQ"):
                for m in names:
                    suffix = "" if m == "exact" else f" {m}"
                    pairs = []
                    for c in channels:
                        one, other = c["orders"][f"QP{suffix}"], c["orders"][f"{kind}{suffix}"]
                        low = one["lower_bound"] / other["upper_bound"]
                        pairs.append((low, one["upper_bound"] / max(other["lower_bound"], 1e-300)))
                    cells.append(mean(pairs) if pairs else "")
            print(f"| {b} | {kept} | {' | '.join(cells)} |")


def print_activations(rows: Sequence[dict[str, Any]]) -> None:
    """Both orders of activations."""
    print("\n### Activations of ResNet-20, half of the features kept: Σ f of all layers' relative errors, mean, %\n")
    print("| bits | ranges | prune | quantize | P→Q | Q→P | P→Q repaired | Q→P repaired | layers P→Q better |")
    print("|---|---|---|---|---|---|---|---|---|")
    for b in (2, 4, 8):
        for scheme in ("dynamic", "static"):
            totals = [r["totals"] for r in rows if r.get("scheme") == scheme and r["bits"] == b]
            if not totals:
                continue
            first, last = "prune, quantize", "quantize, prune"
            average = {(k, i): 100 * float(np.mean([t[k][i] for t in totals])) for k in totals[0] for i in (0, 1)}
            cells = [average[k, 0] for k in ("prune", "quantize", first, last)]
            cells += [average[first, 1], average[last, 1]]
            better = sum(t[first][0] < t[last][0] for t in totals)
            print(f"| {b} | {scheme} | " + " | ".join(f"{v:.3g}" for v in cells) + f" | {better} of {len(totals)} |")
    for r in rows:
        if "weights" in r:
            for c in r["channels"]:
                errors = {n: span(*(100 * c["orders"][n][f"relative_{e}_bound"] for e in ("lower", "upper"))) for n in
                          ("PQ", "QP")}  # fmt: skip
                print(f"activations {r['weights']}, linear channel {c['channel']}: {errors}, winner {c['winner']}")


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Certified ratios of every channel that was treated with all orders, for both scale rules."""
    rules = ("dense", "kept")
    figure, both = new_figure(11.0, 4.2, 2, sharey=True)
    for axes, rule in zip(both, rules, strict=True):
        rows = [r for r in records if r.get("scale_rule") == rule and r["part"] in ("leading", "linear")]
        groups = [
            (b, kept) for b in BITS for kept in PATTERNS if any((r["bits"], r["kept"]) == (b, kept) for r in rows)
        ]
        for place, name in enumerate(ORDERS):
            x, low, high = [], [], []
            for g, (b, kept) in enumerate(groups):
                channels = [c for r in rows if r["bits"] == b and r["kept"] == kept for c in r["channels"]]
                shown = sorted(ends(c, name) for c in channels if name in c["orders"])
                x += [g + (place - 2) * 0.17 + 0.13 * ((i + 0.5) / len(shown) - 0.5) for i in range(len(shown))]
                low += [pair[0] for pair in shown]
                high += [min(pair[1], 1e4) for pair in shown]
            axes.vlines(x, low, high, color=COLOURS[name], linewidth=0.9)
            middle = [math.sqrt(a * b) for a, b in zip(low, high, strict=True)]
            axes.plot(x, middle, ".", color=COLOURS[name], markersize=3)
        axes.axhline(1.0, color="grey", linewidth=0.8)
        axes.set_yscale("log")
        axes.set_ylim(0.95, 60)
        axes.set_xticks(range(len(groups)), [f"{b} bits\n{kept}" for b, kept in groups], fontsize=7)
        axes.set_title(f"scales of the {'dense weights' if rule == 'dense' else 'kept weights'}", fontsize=10)
        axes.grid(axis="y", alpha=0.3)
    both[0].set_ylabel("error / joint optimum at the same scale")
    for name in ORDERS:
        both[1].plot([], [], "o", color=COLOURS[name], label=name, markersize=4)
    both[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, frameon=False)
    save_figure(figure, path)


def main() -> None:
    """Run the parts, print the tables, draw the picture."""
    parser = argparse.ArgumentParser(description="The order gap of pruning and quantization on real layers.")
    parser.add_argument("--out", type=Path, help="write the records here, as JSON")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS), help="of " + ", ".join(PARTS))
    parser.add_argument("--seconds", type=float, default=4.0, help="of search for a channel and stage")
    parser.add_argument("--read", type=Path, help="print the records of this file and compute nothing")
    options = parser.parse_args()
    if options.read is not None:
        records = json.loads(options.read.read_text(encoding="utf-8"))
    else:
        records = run(options.parts.split(","), options.seconds, options.out)
    print_tables(records)
    if options.plot is not None:
        draw(records, options.plot)


if __name__ == "__main__":
    main()
