"""ResNet-20 on CIFAR-10, fine-tuned briefly from weights that were found without training.

    python examples/training_resnet20.py --out training-results [--docs docs/training.md]

Needs resnet20_cifar10.safetensors and cifar10_subset.npz in ../shared/data, or in the folder named by
LAYERBOUNDS_DATA. Every layer, on its inputs in the dense network, is quantized by GPTQ to 3 and 4 bits, or pruned by
OBS to a half and a quarter; from these weights, grids and masks the network is trained for one epoch on the 1024
calibration images, half of the loss being the distance from the dense network's outputs, from five seeds.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits_training import SEEDS, estimate, kept, main, seconds, share, table, verdict
from resnet20 import load, preprocess
from torch import nn

import layerbounds as lb
from layerbounds.training import finetune
from layerbounds.training.losses import per_sample

NAME = "resnet20"
DATA = Path(os.environ.get("LAYERBOUNDS_DATA") or Path(__file__).resolve().parent.parent.parent / "shared" / "data")
COMPRESSIONS: dict[str, tuple[dict[str, Any], str, str]] = {
    "4 bits": ({"bits": 4}, "gptq", "quantize@0"),
    "3 bits": ({"bits": 3}, "gptq", "quantize@0"),
    "density 1/2": ({"density": 0.5}, "obs", "prune@0"),
    "density 1/4": ({"density": 0.25}, "obs", "prune@0"),
}
SETTINGS: dict[str, Any] = {
    "epochs": 1, "batch_size": 64, "learning_rate": 2e-4, "scale_rate": 2e-5, "distill": 0.5,
    # Counted anew on 1024 images alone, the statistics of the dense network cost it three points of accuracy.
    "reestimate": False,
}  # fmt: skip


def run(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    """All runs, and their table."""
    for name in ("resnet20_cifar10.safetensors", "cifar10_subset.npz"):
        if not (DATA / name).is_file():
            raise lb.LayerboundsError(
                f"{DATA / name} does not exist; set LAYERBOUNDS_DATA to the folder that holds it."
            )
    with np.load(DATA / "cifar10_subset.npz") as images:
        x, test_x = (preprocess(torch.from_numpy(images[key])) for key in ("calib_images", "test_images"))
        y, test_y = (torch.from_numpy(images[key].astype(np.int64)) for key in ("calib_labels", "test_labels"))
    dense = load(DATA / "resnet20_cifar10.safetensors")

    def outcome(network: nn.Module) -> dict[str, Any]:
        losses, correct = per_sample(network.eval(), test_x, test_y)
        return {"loss": losses.double().numpy(), "correct": correct.numpy()}

    def untrained(asked: dict[str, Any], method: str) -> dict[str, Any]:
        network, weights = load(DATA / "resnet20_cifar10.safetensors"), {}
        for name, layer in layers().items():
            problem = lb.quantization_problem(layer, **asked) if "bits" in asked else lb.pruning_problem(layer, **asked)
            module = network.get_submodule(name)
            value = torch.from_numpy(lb.run_heuristic(method, problem)).reshape(module.weight.shape)
            module.weight.data.copy_(value)
            weights[f"weight.{name}"] = module.weight.detach().numpy()
        return {**outcome(network), **weights}

    @cache
    def layers() -> dict[str, lb.Layer]:
        return lb.capture(dense, list(x.split(64)))

    def trained(asked: dict[str, Any], schedule: str, before: dict[str, Any], seed: int) -> dict[str, Any]:
        network, scales = load(DATA / "resnet20_cifar10.safetensors"), {}
        for key in (key for key in before if key.startswith("weight.")):
            module = network.get_submodule(key.removeprefix("weight."))
            if "bits" in asked:
                # The grid on which GPTQ has put the weights is fitted to the dense ones.
                grid = lb.uniform_grid(module.weight.detach(), asked["bits"])
                scales[key.removeprefix("weight.")] = grid.scale[:, 0]
            module.weight.data.copy_(torch.from_numpy(before[key]))
        result = finetune(network, (x, y), schedule, seed=seed, scales=scales, **asked, **SETTINGS)
        return outcome(result.model)

    first = kept(folder, "resnet20-dense", lambda: outcome(dense))
    runs, rows, lines = [first], [], []
    for number, (label, (asked, method, schedule)) in enumerate(COMPRESSIONS.items()):
        before = kept(folder, f"resnet20-{number}-untrained", lambda a=asked, m=method: untrained(a, m))
        after = [
            kept(
                folder,
                f"resnet20-{number}-{seed}",
                lambda a=asked, s=schedule, b=before, i=seed: trained(a, s, b, i),
            )
            for seed in SEEDS
        ]
        runs += [before, *after]
        loss, right = np.stack([r["loss"] for r in after]), np.stack([r["correct"] for r in after])
        change = estimate(loss - before["loss"])
        gained = estimate(right.astype(np.float64) - before["correct"])
        rows.append(
            {
                "compression": label, "untrained_loss": before["loss"].mean(), "trained_loss": loss.mean(),
                "change": change.mean, "change_half_interval": change.half,
                "untrained_accuracy": before["correct"].mean(), "trained_accuracy": right.mean(),
                "accuracy_change": gained.mean, "accuracy_change_half_interval": gained.half,
            }
        )  # fmt: skip
        lines.append(
            [
                label, f"{before['loss'].mean():.3f}", f"{loss.mean():.3f}", change.text(),
                verdict(change, "trained", "untrained"), f"{100 * before['correct'].mean():.1f}", share(right),
                f"{100 * gained.mean:+.1f} ± {100 * gained.half:.1f}",
            ]
        )  # fmt: skip
    text = "\n\n".join(
        [
            f"{len(test_y)} test images; dense: loss {first['loss'].mean():.3f}, accuracy "
            f"{100 * first['correct'].mean():.1f} %. GPTQ and OBS without training, and after one epoch of 1024 images "
            f"from {len(SEEDS)} seeds:",
            table(
                ["", "loss", "trained", "difference", "better", "accuracy %", "trained", "difference"],
                lines,
            ),
            f"All runs together took {seconds(runs) / 60:.0f} minutes of one core.",
        ]
    )
    return rows, {"seconds": seconds(runs), "rows": rows}, text


if __name__ == "__main__":
    sys.exit(main(NAME, "ResNet-20, fine-tuned briefly from weights found without training.", run))
