"""Accuracy of ResNet-20 after whole-model compression.

    python -m benchmarks.whole_model [--bits 4] [--images 128] [--method gptq] [--independent]

It needs the reference data (``../shared/data`` or the folder in LAYERBOUNDS_DATA) and PyTorch.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import layerbounds as lb
from examples.resnet20 import resnet20
from layerbounds.capturing.loading import ArrayBatches, load_weights

DATA = Path(os.environ.get("LAYERBOUNDS_DATA") or Path(__file__).resolve().parent.parent.parent / "shared" / "data")
SCALING = {"divide": 255.0, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def accuracy(network: nn.Module, images: ArrayBatches, labels: np.ndarray) -> float:
    """Share of the images that the network classifies correctly."""
    network.eval()
    with torch.no_grad():
        answers = torch.cat([network(batch).argmax(1) for batch in images]).numpy()
    return float(np.mean(answers == labels))


def main() -> None:
    """Print the accuracy before and after, and the error of every layer."""
    parser = argparse.ArgumentParser(description="Accuracy of ResNet-20 after whole-model compression.")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--method", default="gptq")
    parser.add_argument("--independent", action="store_true", help="compress each layer for the dense inputs")
    options = parser.parse_args()
    network = resnet20()
    load_weights(network, DATA / "resnet20_cifar10.safetensors")
    data = np.load(DATA / "cifar10_subset.npz")
    calibration = ArrayBatches(data["calib_images"][: options.images], 64, **SCALING)
    test = ArrayBatches(data["test_images"], 256, **SCALING)
    print(f"uncompressed: top-1 {accuracy(network, test, data['test_labels']):.4f}")
    begin = time.perf_counter()
    result = lb.compress(
        network,
        calibration,
        options.method,
        bits=options.bits,
        sequential=not options.independent,
        intervals=False,
        progress=lambda done, total, o: print(f"{done}/{total} {o.name}: error {100 * o.relative(o.error):.3f} %"),
    )
    seconds = time.perf_counter() - begin
    print(f"{options.bits} bits, {options.method}: top-1 {accuracy(result.model, test, data['test_labels']):.4f}")
    print(f"{seconds:.0f} s")


if __name__ == "__main__":
    main()
