"""Bound every layer of a CIFAR-10 ResNet-20 at several compressions, report it, and allocate bits to its layers.

Needs the extras torch and report, and two files in ../shared/data, or in the folder named by LAYERBOUNDS_DATA:
resnet20_cifar10.safetensors (the trained network) and cifar10_subset.npz (1024 calibration and 761 test images).

    python examples/network_report.py [--out run] [--total-time 1200] [--budgets 2.5,3,3.5,4] [--markdown OUT]

Inputs are captured from the calibration images; every channel of every layer gets certified intervals at 2, 3 and 4
bits and at a quarter of the weights. Layers with allocated weights are put into the network, whose BatchNorm stays as
it is, and it is tested beside uniform bits. An interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from resnet20 import ResNet20, load, preprocess
from torch import Tensor

import layerbounds as lb
from layerbounds.report.network import write_report

DATA = Path(os.environ.get("LAYERBOUNDS_DATA") or Path(__file__).resolve().parent.parent.parent / "shared" / "data")
BATCH = 64


def read_images(images: str, labels: str) -> tuple[Tensor, Tensor]:
    """Images as the network takes them, and their classes."""
    with np.load(DATA / "cifar10_subset.npz") as file:
        return preprocess(torch.from_numpy(file[images])), torch.from_numpy(file[labels]).long()


def accuracy(model: ResNet20, weights: Mapping[str, Any], images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy with replaced weights; the model is left as it was."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        for name, value in weights.items():
            parameter = model.get_submodule(name).weight
            assert isinstance(parameter, Tensor)
            parameter.data = torch.as_tensor(np.asarray(value), dtype=torch.float32).reshape(parameter.shape)
        with torch.no_grad():
            predicted = torch.cat([model(batch).argmax(dim=1) for batch in images.split(256)])
        return float((predicted == labels).double().mean())
    finally:
        model.load_state_dict(state)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="A certified report of a whole network.")
    parser.add_argument("--out", type=Path, default=Path("resnet20-run"), help="folder of the run")
    parser.add_argument("--total-time", type=float, default=1200.0, help="seconds, first bounds included")
    parser.add_argument("--budgets", default="2.5,3,3.5,4", help="bits per weight")
    parser.add_argument("--markdown", type=Path, help="write the table of docs/network.md")
    options = parser.parse_args()
    budgets = [float(text) for text in options.budgets.split(",")]
    begin = time.perf_counter()
    model = load(DATA / "resnet20_cifar10.safetensors")
    calibration, _ = read_images("calib_images", "calib_labels")
    layers = lb.capture(model, calibration.split(BATCH))
    print(f"captured {len(layers)} layers after {time.perf_counter() - begin:.0f} s")

    def first(run: lb.NetworkRun) -> None:
        write_report(run)
        print(f"first complete report after {time.perf_counter() - begin:.0f} s", flush=True)
        for budget in budgets:
            print(lb.allocate(run, budget).statement(), flush=True)

    run = lb.run(
        layers, out=options.out, bits=[2, 3, 4], density=0.25, total_time=options.total_time, budgets=budgets,
        time_limit=600.0, listener=first,
    )  # fmt: skip
    print(*write_report(run), sep="\n")
    lines = table(model, run, budgets)
    print("\n".join(lines))
    if options.markdown is not None:
        options.markdown.write_text("\n".join([*lines, ""]), encoding="utf-8")


def table(model: ResNet20, run: lb.NetworkRun, budgets: list[float]) -> list[str]:
    """Allocations beside uniform bits, with what the network then does with the test images."""
    images, labels = read_images("test_images", "test_labels")
    lines = ["| weights | bits | error | best possible | regret | top-1 |", "|---|---|---|---|---|---|"]
    lines.append(f"| dense | 32 | 0 | | | {100 * accuracy(model, {}, images, labels):.2f} % |")
    for choice in run.choices:
        entries = [entry for entry in run.entries if entry.choice is choice]
        weights = {e.layer.name: run.weights(e.layer.name, choice.name) for e in entries}
        low, high = (sum(e.interval[end] / e.layer.energy for e in entries) for end in (0, 1))
        bits = sum(e.storage for e in entries) / sum(e.layer.weights for e in entries)
        score = accuracy(model, weights, images, labels)
        lines.append(f"| {choice.name} everywhere | {bits:.2f} | {high:.4f} | ≥ {low:.4f} | | {100 * score:.2f} % |")
    for budget in budgets:
        best = lb.allocate(run, budget)
        weights = {name: run.weights(name, choice) for name, choice in best.choices.items()}
        score = accuracy(model, weights, images, labels)
        bits = best.storage / sum(layer.weights for layer in run.layers)
        lines.append(
            f"| allocated, {budget:g} bits | {bits:.2f} | {best.error[1]:.4f} | ≥ {best.best[0]:.4f} "
            f"| ≤ {100 * best.relative_regret:.1f} % | {100 * score:.2f} % |"
        )
    return lines


if __name__ == "__main__":
    main()
