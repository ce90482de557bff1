"""Where training leaves a layer: its error beside the certified interval of the layer that it came from.

    python examples/training_layers.py --out training-results [--docs docs/training.md]

The embedded demo network is compressed in several ways, by the package's search without training and by fine-tuning
from five seeds. For every layer the script writes the certified interval of its original problem, the error of the best
weights without training, a lower bound that holds for any step sizes, and the error of the fine-tuned weights on the
original Gram matrix; beside them the loss of the network.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits_training import SEEDS, Digits, digits, estimate, kept, main, outcome, seconds, share, table, tune
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import nn
from train_demo import DigitsNet

import layerbounds as lb
from layerbounds.demo import demo_info
from layerbounds.layers.files import atomic_path

NAME = "layers"
#: What is asked of every layer, and the schedule of its training.
COMPRESSIONS: dict[str, tuple[dict[str, Any], str]] = {
    "4 bits": ({"bits": 4}, "quantize@0"),
    "3 bits": ({"bits": 3}, "quantize@0"),
    "2 bits": ({"bits": 2}, "quantize@0"),
    "density 1/2": ({"density": 0.5}, "prune@0:0.5"),
    "density 1/4": ({"density": 0.25}, "prune@0:0.5"),
    "3 bits, density 1/2": ({"bits": 3, "density": 0.5}, "prune@0.1:0.4 quantize@0.5"),
    # Nothing is pruned: how far the same training moves a layer that is not compressed.
    "none": ({"density": 1.0}, "prune@0"),
}
#: Seconds of search for every channel, for the interval and for the bound over all step sizes.
SEARCH, FREE_SEARCH = 0.3, 0.1
PICTURE = "training-layers.svg"


def demo_network() -> DigitsNet:
    """The embedded network in PyTorch."""
    network = DigitsNet()
    biases = demo_info().biases
    with torch.no_grad():
        for name, layer in lb.demo_layers().items():
            module = network.layers()[name]
            module.weight.copy_(torch.from_numpy(np.asarray(layer.weight)))
            assert module.bias is not None
            module.bias.copy_(torch.from_numpy(biases[name]))
    return network.float().eval()


def original(layer: lb.Layer, bits: int | None = None, density: float | None = None) -> Any:
    """The layer's problem before training."""
    if bits is None:
        return lb.pruning_problem(layer, density=density)
    if density is None:
        return lb.quantization_problem(layer, bits)
    return lb.joint_problem(layer, bits, density=density)


def untrained(network: DigitsNet, data: Digits, asked: dict[str, Any]) -> dict[str, Any]:
    """Intervals of all layers, and the network with the weights that reach their upper ends."""
    found: dict[str, list[float]] = {"lower": [], "upper": [], "free": []}
    for name, layer in lb.demo_layers().items():
        energy = float(layer.energy().sum())
        solution = lb.solve(original(layer, **asked), time_limit=SEARCH, jobs=1, seed=0)
        found["lower"].append(float(solution.lower_bound.sum()) / energy)
        found["upper"].append(float(solution.upper_bound.sum()) / energy)
        free = np.nan
        if set(asked) == {"bits"}:
            problem = lb.quantization_problem(layer, asked["bits"], scale="free")
            free = float(lb.solve(problem, time_limit=FREE_SEARCH, jobs=1, seed=0).lower_bound.sum()) / energy
        elif set(asked) == {"density"}:
            # Pruned weights have no scales: the interval itself holds for whatever training finds.
            free = found["lower"][-1]
        found["free"].append(free)
        module = network.layers()[name]
        module.weight.data.copy_(torch.from_numpy(solution.weights).reshape(module.weight.shape))
    return {**found, **outcome(network, data)}


def trained(network: nn.Module, data: Digits, asked: dict[str, Any], schedule: str, seed: int) -> dict[str, Any]:
    """Errors of fine-tuned weights on the original Gram matrices, and the network."""
    result = tune(network, data, schedule, seed, **asked)
    rows = result.errors(lb.demo_layers())
    assert all(row["feasible"] for row in rows)
    return {"errors": [row["relative_error"] for row in rows], **outcome(result.model, data)}


def run(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    """All runs, their tables, and the picture."""
    data, runs = digits(), []
    dense = kept(folder, "layers-dense", lambda: outcome(demo_network(), data))
    rows: list[dict[str, Any]] = []
    lines, losses = [], []
    for number, (label, (asked, schedule)) in enumerate(COMPRESSIONS.items()):
        before = kept(folder, f"layers-{number}-untrained", lambda a=asked: untrained(demo_network(), data, a))
        after = [
            kept(
                folder,
                f"layers-{number}-{seed}",
                lambda a=asked, s=schedule, i=seed: trained(demo_network(), data, a, s, i),
            )
            for seed in SEEDS
        ]
        runs += [before, *after]
        errors = np.stack([run["errors"] for run in after])
        for index, name in enumerate(lb.demo_layers()):
            row = {
                "compression": label, "layer": name, "lower": before["lower"][index], "upper": before["upper"][index],
                "any_scales": before["free"][index], "trained": errors[:, index].mean(),
                "trained_deviation": errors[:, index].std(ddof=1),
                "ratio": None if label == "none" else errors[:, index].mean() / before["upper"][index],
            }  # fmt: skip
            # What is certified for everything that training can find is not undercut.
            assert np.isnan(row["any_scales"]) or errors[:, index].min() >= row["any_scales"]
            rows.append(row)
            ratio = "–" if row["ratio"] is None else f"{row['ratio']:.3g}"
            free = "–" if np.isnan(row["any_scales"]) else f"{100 * row['any_scales']:.3g}"
            lines.append(
                [
                    label, name, free, f"[{100 * row['lower']:.3g}, {100 * row['upper']:.3g}]",
                    f"{100 * row['trained']:.3g} ± {100 * row['trained_deviation']:.2g}", ratio,
                ]
            )  # fmt: skip
        loss = estimate(np.stack([run["loss"] - before["loss"] for run in after]))
        mean = np.mean([run["loss"].mean() for run in after])
        accuracy = np.stack([run["correct"] for run in after])
        losses.append(
            [
                label, f"{before['loss'].mean():.3f}", f"{mean:.3f}", loss.text(),
                f"{100 * before['correct'].mean():.1f}", share(accuracy),
            ]
        )  # fmt: skip
    draw(rows, folder / PICTURE)
    text = "\n\n".join(
        [
            f"Test loss of the network, {dense['loss'].mean():.3f} and {100 * dense['correct'].mean():.1f} % where it "
            "is dense:",
            table(["", "untrained", "trained", "difference", "accuracy %", "accuracy %, trained"], losses),
            "Errors of the layers in percent of their energy: lower bound for any step sizes, certified interval of "
            "the original problem, whose upper end the best untrained weights reach, and trained weights (mean ± "
            f"standard deviation of {len(SEEDS)} seeds), with their ratio to the upper end:",
            table(["", "layer", "any steps ≥", "interval", "trained", "trained / best untrained"], lines),
            f"![Certified intervals of layers, and where training leaves them](figures/{PICTURE})",
        ]
    )
    return rows, {"seconds": seconds(runs), "rows": rows}, text


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """For every layer and compression the interval, and where training leaves it."""
    names = [label for label in COMPRESSIONS if label != "none"]
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    # Fixed identifiers and no date: the same figures give the same file.
    with rc_context({"svg.hashsalt": "layerbounds", "font.size": 8}):
        figure = Figure(figsize=(8.0, 5.2), layout="constrained")
        panels = figure.subplots(-(-len(names) // 3), 3, sharex=True, sharey=True, squeeze=False)
        for axes in panels.flat[len(names) :]:
            axes.set_visible(False)
        for axes, label in zip(panels.flat, names, strict=False):
            for place, row in enumerate(r for r in rows if r["compression"] == label):
                axes.plot(
                    [100 * row["lower"], 100 * row["upper"]], [place] * 2, color="#0072B2", linewidth=5, alpha=0.6
                )
                axes.plot(100 * row["upper"], place, "|", color="#0072B2", markersize=11)
                axes.plot(100 * row["trained"], place, "o", color="#D55E00", markersize=5)
            axes.set_xscale("log")
            axes.set_title(label, fontsize=9)
            axes.set_yticks(range(len(layers)), layers)
            axes.set_ylim(len(layers) - 0.5, -0.5)
            axes.grid(axis="x", alpha=0.3)
        for axes in panels[-1]:
            axes.set_xlabel("error, % of the energy")
        panels[0, 0].plot([], [], color="#0072B2", linewidth=5, alpha=0.6, label="certified interval, untrained")
        panels[0, 0].plot([], [], "o", color="#D55E00", markersize=5, label="trained")
        figure.legend(loc="outside lower center", ncols=2)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main(NAME, "Where training leaves a layer.", run, [PICTURE]))
