"""Quantization against pruning at equal compression, trained and not: the form of a table of Kuzmin et al.

    python examples/training_methods.py --out training-results [--docs docs/training.md]

At b = 2, …, 8 bits and the density b/16, five networks of digits each get: quantization-aware training with learned
step sizes (LSQ), gradual magnitude pruning with as many epochs, and the package's best weights without training,
quantized (`lns`) and pruned (`swap`). Beside them the dense networks, as they are and after as many more epochs. Kuzmin
et al., "Pruning vs Quantization: Which is Better?" (NeurIPS 2023), compare the two trainings on large networks.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from digits_training import (
    EPOCHS,
    SEEDS,
    Digits,
    Estimate,
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
from torch import nn

import layerbounds as lb

NAME = "methods"
BITS = (8, 7, 6, 5, 4, 3, 2)
#: What finds the weights without training.
SEARCHES: dict[str, dict[str, Any]] = {"lns": {"rounds": 40}, "swap": {}}
#: At the fewest bits: what more training, and training from the untrained weights, would change.
LONGER = 4
CONTROLS = (f"QAT, {LONGER}× epochs", f"gradual pruning, {LONGER}× epochs", "QAT from best quantized")
#: What becomes of a method's name in those of files.
PLAIN = str.maketrans({" ": "-", ",": None, "×": "x"})
METHODS = ("QAT", "gradual pruning", "best quantized", "best pruned")


def compressed(network: nn.Module, data: Digits, method: str, **problem: Any) -> nn.Module:
    """The package's best weights, layer by layer behind those already compressed."""
    batches = list(data.calibration.split(128))
    found = lb.compress(network, batches, method, jobs=1, seed=0, intervals=False, **problem, **SEARCHES[method])
    return found.model


def one(method: str, bits: int, seed: int, network: nn.Module, data: Digits) -> nn.Module:
    """The network compressed by one method."""
    density = bits / 16
    if method == CONTROLS[0]:
        return tune(network, data, "quantize@0", seed, epochs=LONGER * EPOCHS, bits=bits).model
    if method == CONTROLS[1]:
        return tune(network, data, "prune@0:0.5", seed, epochs=LONGER * EPOCHS, density=density).model
    if method == CONTROLS[2]:
        start = compressed(network, data, "lns", bits=bits)
        # The grids are fitted to the dense weights, and stay where training starts.
        scales = {
            name: lb.uniform_grid(module.weight.detach(), bits).scale[:, 0]
            for name, module in network.named_modules()
            if isinstance(module, (nn.Conv2d, nn.Linear))
        }
        return tune(start, data, "quantize@0", seed, bits=bits, scales=scales).model
    if method == "QAT":
        return tune(network, data, "quantize@0", seed, bits=bits).model
    if method == "gradual pruning":
        return tune(network, data, "prune@0:0.5", seed, density=density).model
    if method == "best quantized":
        return compressed(network, data, "lns", bits=bits)
    return compressed(network, data, "swap", density=density)


def run(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    """All runs, and their tables."""
    data, runs = digits(), {}
    for seed in SEEDS:
        network = dense_network(folder, seed, data)
        runs["dense", 0, seed] = kept(folder, f"methods-dense-{seed}", lambda n=network: outcome(n, data))
        # Nothing is pruned at density 1: the same epochs, rates and shuffling, without compression.
        runs["dense, trained on", 0, seed] = kept(
            folder,
            f"methods-more-{seed}",
            lambda n=network, s=seed: outcome(tune(n, data, "prune@0", s, density=1.0).model, data),
        )
        for bits in BITS:
            for method in (*METHODS, *(CONTROLS if bits == min(BITS) else ())):
                runs[method, bits, seed] = kept(
                    folder,
                    f"methods-{method.translate(PLAIN)}-{bits}-{seed}",
                    lambda m=method, b=bits, s=seed, n=network: outcome(one(m, b, s, n, data), data),
                )

    def of(method: str, bits: int, what: str = "loss") -> Any:
        return np.stack([runs[method, bits, seed][what] for seed in SEEDS]).astype(np.float64)

    rows: list[dict[str, Any]] = []
    for method, bits in dict.fromkeys((m, b) for m, b, _ in runs):
        loss, right = estimate(of(method, bits)), estimate(of(method, bits, "correct"))
        rows.append(
            {
                "method": method, "bits": bits or None, "density": bits / 16 if bits else None, "loss": loss.mean,
                "loss_error": loss.error, "accuracy": right.mean, "accuracy_error": right.error,
            }
        )  # fmt: skip
    differences: list[dict[str, Any]] = []
    first, second, third = [], [], []
    for bits in BITS:
        trained = estimate(of("QAT", bits) - of("gradual pruning", bits))
        untrained = estimate(of("best quantized", bits) - of("best pruned", bits))
        gained = estimate(of("QAT", bits) - of("best quantized", bits))
        regained = estimate(of("gradual pruning", bits) - of("best pruned", bits))
        more = estimate(of("QAT", bits) - of("dense, trained on", 0))
        for what, value in {
            "QAT − gradual pruning": trained, "best quantized − best pruned": untrained,
            "QAT − best quantized": gained, "gradual pruning − best pruned": regained, "QAT − dense, trained on": more,
        }.items():  # fmt: skip
            differences.append({"bits": bits, "difference": what, **as_row(value)})
        width = f"{bits} bits, density {bits}/16"
        first.append([width, *(f"{estimate(of(m, bits)).mean:.3f}" for m in METHODS)])
        first[-1] += [share(of(m, bits, "correct") > 0) for m in METHODS]
        second.append([width, trained.text(), verdict(trained, "QAT", "pruning")])
        second[-1] += [untrained.text(), verdict(untrained, "quantized", "pruned")]
        third.append([width, gained.text(), verdict(gained, "QAT", "no training")])
        third[-1] += [regained.text(), verdict(regained, "gradual pruning", "no training")]
    dense = [
        f"{name} {estimate(of(name, 0)).mean:.3f}, accuracy {share(of(name, 0, 'correct') > 0)} %"
        for name in ("dense", "dense, trained on")
    ]
    least, fourth = min(BITS), []
    others = ("best quantized", "best pruned", "best quantized")
    for control, other in (*zip(CONTROLS, others, strict=True), CONTROLS[:2]):
        value = estimate(of(control, least) - of(other, least))
        differences.append({"bits": least, "difference": f"{control} − {other}", **as_row(value)})
        fourth.append([control, f"{estimate(of(control, least)).mean:.3f}", share(of(control, least, "correct") > 0)])
        fourth[-1] += [other, value.text(), verdict(value, control, other)]
    text = "\n\n".join(
        [
            f"Test loss and accuracy (percent, with its standard error) of {len(SEEDS)} networks; {'; '.join(dense)}.",
            table(["", *(f"loss: {m}" for m in METHODS), *(f"accuracy: {m}" for m in METHODS)], first),
            "Differences of the loss, paired by network and image, with 95 % intervals; negative: the first is better.",
            table(["", "QAT − gradual pruning", "better", "best quantized − best pruned", "better"], second),
            table(["", "QAT − best quantized", "better", "gradual pruning − best pruned", "better"], third),
            f"At {least} bits and density {least}/16, what more training and another start change:",
            table(["", "loss", "accuracy", "difference from", "", "better"], fourth),
            f"All runs together took {seconds(list(runs.values())) / 60:.0f} minutes of one core.",
        ]
    )
    return rows, {"seconds": seconds(list(runs.values())), "rows": rows, "differences": differences}, text


def as_row(value: Estimate) -> dict[str, Any]:
    """A difference for the record."""
    return {"mean": value.mean, "error": value.error, "half_interval": value.half, "decided": value.decided}


if __name__ == "__main__":
    sys.exit(main(NAME, "Quantization against pruning at equal compression, trained and not.", run))
