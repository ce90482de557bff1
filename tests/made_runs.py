"""Runs that nobody has computed, for the tests of reports."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from layerbounds.network.entries import ChoiceInfo, Entry, LayerInfo, MethodScore
from layerbounds.network.folder import RunFolder
from layerbounds.network.result import NetworkRun
from layerbounds.proofs import Status

#: A name that is markup, one that is a formula for spreadsheets, and one that many models have.
NAMES = ('<script>alert("x")</script>', "=1+1, „größte“ & 'kleinste'", "model.layers.10.self_attn.q_proj")
_RULES = {
    "granularity": "channel", "range": "mse", "symmetric": True, "pattern": "unstructured", "refit": True,
    "scale": None, "zero_point": None, "mask": "bitmap", "share": None, "axis": None,
}  # fmt: skip
_NOTHING = {"bits": None, "codebook": None, "pattern": None, "density": None, "k": None, "share": None}
CHOICES = [
    ChoiceInfo("INT2", {**_NOTHING, "bits": 2}, _RULES),
    ChoiceInfo("INT4", {**_NOTHING, "bits": 4}, _RULES),
    ChoiceInfo("pruned to density 0.25", {**_NOTHING, "density": 0.25}, _RULES),
]


def made_run(folder: Path, names: Sequence[str] = NAMES, choices: Sequence[ChoiceInfo] = CHOICES) -> NetworkRun:
    """Layers of four to six channels with intervals, methods and yardsticks.

    The last layer cannot be pruned; the second has its first bounds at 4 bits in two channels only.
    """
    rng = np.random.default_rng(5)
    grid = []
    for number, name in enumerate(names):
        channels = list(range(4 + number % 3))
        inputs = (9, 16, 144)[number % 3]
        energy = rng.uniform(1.0, 2.0, len(channels))
        layer = LayerInfo(
            name, (len(channels), inputs), inputs, len(channels) * inputs, channels, float(energy.sum()),
            float(energy.sum()), 1000 + number, number % 2, hashlib.sha256(name.encode()).hexdigest(),
        )  # fmt: skip
        grid.append([_entry(layer, choice, (number, place), energy, rng) for place, choice in enumerate(choices)])
    grid[-1][-1] = _refused(grid[-1][-1])
    if len(names) > 1:
        partly = grid[1][1]
        partly.lower[2:], partly.upper[2:], partly.limit[2:] = 0.0, np.inf, -1.0
    about: dict[str, Any] = {
        "layerbounds": "1.2.3",
        "environment": {"python": "3.12.1"},
        "source": {"kind": "file", "path": "/data/<b>capture</b>.safetensors"},
        "choices": [vars(choice) for choice in choices],
        "seed": 7,
        "options": {"methods": {"rtn": "rtn", "gptq": "gptq"}, "backend": "auto"},
        "given": {},
    }
    return NetworkRun(RunFolder(folder), about, grid)


def _entry(layer: LayerInfo, choice: ChoiceInfo, number: tuple[int, int], energy: Any, rng: Any) -> Entry:
    prunes = choice.spec["density"] is not None
    bits = 5.0 if prunes else float(choice.spec["bits"])
    fingerprint = hashlib.sha256(f"{layer.name}{choice.name}".encode()).hexdigest()
    sets = [[channel] for channel in layer.channels]
    entry = Entry(
        layer, choice, number, choice.name, "pruning" if prunes else "quantization", fingerprint,
        int(bits * layer.weights), True, None, sets, energy, [(0, len(sets))],
    )  # fmt: skip
    best = energy * 10.0 ** -(bits / 2) * (30.0 if prunes else 1.0) * rng.uniform(0.5, 2.0, len(sets))
    optimal = rng.random(len(sets)) < 0.5
    entry.lower, entry.upper = np.where(optimal, best, 0.7 * best), best
    entry.limit, entry.seconds = np.where(optimal, 1.0, 0.0), rng.uniform(0.0, 2.0, len(sets))
    entry.status = [Status.OPTIMAL if o else Status.RELAXED for o in optimal]
    entry.bound_kind = ["dual"] * len(sets)
    labels = ("magnitude", "sparsegpt") if prunes else ("rtn", "gptq")
    for label, factor in zip(labels, (4.0, 1.5), strict=True):
        entry.methods[label] = MethodScore(factor * best, True, 0.1)
    entry.methods["</script><i>theirs"] = MethodScore(0.9 * entry.lower, False, 0.0, given=True)
    entry.yardsticks["typical lattice"] = None if prunes else float(0.8 * best.sum())
    return entry


def _refused(entry: Entry) -> Entry:
    reason = f"layer {entry.layer.name!r} cannot be pruned <em>so</em>"
    return Entry(
        entry.layer, entry.choice, entry.number, "", "", "", 0, False, reason, [], np.zeros(0), []
    )  # fmt: skip
