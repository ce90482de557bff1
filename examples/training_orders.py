"""Whether the order of pruning and quantization matters after training, and whether layers tell it beforehand.

    python examples/training_orders.py --out training-results [--docs docs/training.md]

Five networks of digits are fine-tuned with three schedules, prune then quantize, quantize then prune, and both in
turn, each with the last 30 % of the training under both, at five strengths, for weights alone and for weights and
activations. Zhang et al. (arXiv 2110.08271) compare such orders on larger networks. Beside them stands the certified
order gap of the dense layers (`lb.order_gap`): by how much the error of quantizing first exceeds that of pruning first,
without training.
"""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from digits_training import (
    SEEDS,
    Digits,
    Matrix,
    dense_network,
    digits,
    estimate,
    kept,
    main,
    outcome,
    seconds,
    share,
    table,
    tune,
    verdict,
)
from numpy.random import default_rng
from scipy.stats import spearmanr
from torch import nn

import layerbounds as lb

NAME = "orders"
ORDERS = {
    "P→Q": "prune@0.1:0.4 quantize@0.7",
    "Q→P": "quantize@0.1 prune@0.4:0.7",
    "interleaved": "prune@0.1:0.7 quantize@0.4",
}
#: Bits and density of the weights.
STRENGTHS = ((8, 0.5), (4, 0.5), (3, 0.5), (2, 0.5), (3, 0.25))
#: Of the inputs of all layers but the first, which sees the images.
ACTIVATIONS: dict[str, Any] = {
    "activation_bits": 4, "activation_density": 0.5, "activation_layers": ["conv2", "conv3", "fc"],
}  # fmt: skip
PARTS: dict[str, dict[str, Any]] = {"weights": {}, "weights and activations": ACTIVATIONS}
#: One rate for all, so that orders differ in nothing else.
RATE = (3e-3,)
#: Output channels of each layer, and seconds for each stage of each, of the certified gaps.
CHANNELS, SEARCH = 2, 0.05
RESAMPLES = 2000


def certified(network: nn.Module, data: Digits, bits: int, density: float) -> dict[str, Any]:
    """Certified intervals of (error of Q→P − error of P→Q) / energy, of some channels of each layer."""
    layers = lb.capture(network, data.calibration.split(128))
    low, high = [], []
    for layer in layers.values():
        step = max(layer.out_features // CHANNELS, 1)
        gap = lb.order_gap(
            layer, bits, density=density, orders=["PQ", "QP"], look=False, time_limit=SEARCH, jobs=1,
            channels=list(range(0, layer.out_features, step))[:CHANNELS],
        )  # fmt: skip
        first, second = gap.intervals["PQ"], gap.intervals["QP"]
        low.append(((second[:, 0] - first[:, 1]) / gap.energy).mean())
        high.append(((second[:, 1] - first[:, 0]) / gap.energy).mean())
    return {"low": low, "high": high}


def correlation(predicted: Matrix, measured: Matrix) -> tuple[float, float, float]:
    """Rank correlation over (strengths, networks), and its interval of 95 % from drawing networks again."""
    rng = default_rng(0)
    value = float(spearmanr(predicted.ravel(), measured.ravel()).statistic)
    drawn = []
    for _ in range(RESAMPLES):
        chosen = rng.integers(0, predicted.shape[1], predicted.shape[1])
        drawn.append(spearmanr(predicted[:, chosen].ravel(), measured[:, chosen].ravel()).statistic)
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return value, float(low), float(high)


def run(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    """All runs, and their tables."""
    data, runs, gaps = digits(), {}, {}
    for seed in SEEDS:
        network = dense_network(folder, seed, data)
        for bits, density in STRENGTHS:
            for part, more in PARTS.items():
                for order, schedule in ORDERS.items():
                    number = list(ORDERS).index(order)
                    runs[part, bits, density, order, seed] = kept(
                        folder,
                        f"orders-{part.replace(' ', '-')}-{bits}-{density}-{number}-{seed}",
                        lambda s=schedule, b=bits, d=density, m=more, n=network, i=seed: outcome(
                            tune(n, data, s, i, RATE, bits=b, density=d, **m).model, data
                        ),
                    )
    for seed in SEEDS:
        network = dense_network(folder, seed, data)
        for bits, density in STRENGTHS:
            gaps[bits, density, seed] = kept(
                folder,
                f"orders-gap-{bits}-{density}-{seed}",
                lambda n=network, b=bits, d=density: certified(n, data, b, d),
            )

    def of(part: str, strength: tuple[int, float], order: str, what: str = "loss") -> Matrix:
        return np.stack([runs[part, *strength, order, seed][what] for seed in SEEDS]).astype(np.float64)

    rows: list[dict[str, Any]] = []
    blocks: list[str] = []
    record: dict[str, Any] = {"correlations": {}, "differences": []}
    predicted = np.array(
        [[(gaps[*s, seed]["low"] + gaps[*s, seed]["high"]).sum() / 2 for seed in SEEDS] for s in STRENGTHS]
    )
    for part in PARTS:
        lines, measured = [], []
        for strength in STRENGTHS:
            for order in ORDERS:
                loss, right = estimate(of(part, strength, order)), estimate(of(part, strength, order, "correct"))
                rows.append(
                    {
                        "part": part, "bits": strength[0], "density": strength[1], "order": order, "loss": loss.mean,
                        "loss_error": loss.error, "accuracy": right.mean, "accuracy_error": right.error,
                    }
                )  # fmt: skip
            line = [f"{strength[0]} bits, density {strength[1]:g}"]
            line += [f"{estimate(of(part, strength, order)).mean:.3f}" for order in ORDERS]
            line += [share(of(part, strength, order, "correct") > 0) for order in list(ORDERS)[:2]]
            for one, other in combinations(ORDERS, 2):
                value = estimate(of(part, strength, one) - of(part, strength, other))
                record["differences"].append(
                    {
                        "part": part, "bits": strength[0], "density": strength[1], "difference": f"{one} − {other}",
                        "mean": value.mean, "error": value.error, "half_interval": value.half,
                        "decided": value.decided,
                    }
                )  # fmt: skip
                if (one, other) == ("P→Q", "Q→P"):
                    line += [value.text(), verdict(value, one, other)]
            lines.append(line)
            measured.append((of(part, strength, "Q→P") - of(part, strength, "P→Q")).mean(axis=1))
        rank, low, high = correlation(predicted, np.array(measured))
        # Harder strengths have larger differences of both kinds: without the means of the strengths that is gone.
        centred = [values - values.mean(axis=1, keepdims=True) for values in (predicted, np.array(measured))]
        inner, inner_low, inner_high = correlation(*centred)
        record["correlations"][part] = {
            "all": [rank, low, high], "within strengths": [inner, inner_low, inner_high],
        }  # fmt: skip
        header = ["", *(f"loss: {o}" for o in ORDERS), *(f"accuracy: {o}" for o in list(ORDERS)[:2])]
        blocks += [
            f"{part.capitalize()}:",
            table([*header, "P→Q − Q→P, loss", "better"], lines),
            f"Rank correlation of the certified gap with the measured one: {rank:+.2f} [{low:+.2f}, {high:+.2f}] over "
            f"{len(STRENGTHS)} strengths and {len(SEEDS)} networks, {inner:+.2f} [{inner_low:+.2f}, {inner_high:+.2f}] "
            "within strengths.",
        ]
    decided = sum(row["decided"] for row in record["differences"])
    record["gaps"] = [
        {"bits": s[0], "density": s[1], "seed": seed, "low": gaps[*s, seed]["low"], "high": gaps[*s, seed]["high"]}
        for s in STRENGTHS
        for seed in SEEDS
    ]
    lines = []
    for index, strength in enumerate(STRENGTHS):
        low = np.mean([gaps[*strength, seed]["low"].sum() for seed in SEEDS])
        high = np.mean([gaps[*strength, seed]["high"].sum() for seed in SEEDS])
        signs = int((np.array([gaps[*strength, seed]["low"].sum() for seed in SEEDS]) > 0).sum())
        lines.append(
            [
                f"{strength[0]} bits, density {strength[1]:g}", f"{100 * predicted[index].mean():.3g}",
                f"[{100 * low:.3g}, {100 * high:.3g}]", f"{signs} of {len(SEEDS)}",
            ]
        )  # fmt: skip
    record["seconds"] = seconds([*runs.values(), *gaps.values()])
    blocks += [
        "Certified gap of the dense layers, error of Q→P less that of P→Q in percent of the energy, summed over the "
        "layers, mean of the networks:",
        table(["", "middle", "interval", "networks with P→Q proven better"], lines),
        f"Of {len(record['differences'])} pairs of orders {decided} differ beyond the 95 % interval of their "
        f"difference. All runs together took {record['seconds'] / 60:.0f} minutes of one core.",
    ]
    return rows, {**record, "rows": rows}, "\n\n".join(blocks)


if __name__ == "__main__":
    sys.exit(main(NAME, "Whether the order of pruning and quantization matters after training.", run))
