"""The instances of the benchmark suite: leading inputs of real layers, one output channel, one rule each."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import layerbounds as lb
from benchmarks.native_speed import leading
from layerbounds.exceptions import InputError
from layerbounds.problems.problem import Problem

#: The file of the reference layers, beside the checkout.
REFERENCE = "resnet20_layers.safetensors"

_QUICK_DEMO = [
    ("conv3", 8, ("3-bit", "density 1/4")),
    ("conv3", 16, ("2-bit", "3-bit", "4-bit", "nf4", "density 1/4", "2:4")),
    ("conv3", 24, ("3-bit", "density 1/2", "mask 1/4")),
]
_QUICK_REFERENCE = [
    ("layer1.0.conv1", 24, ("2-bit", "4-bit", "density 1/8")),
    ("layer1.0.conv1", 32, ("3-bit", "2:4")),
    ("linear", 64, ("3-bit", "density 1/4")),
]
_BITS, _DENSITIES = ("2-bit", "3-bit", "4-bit"), ("density 1/8", "density 1/4", "density 1/2", "2:4")
_FULL_DEMO = [
    *(("conv3", n, (*_BITS, "nf4", *_DENSITIES, "mask 1/4")) for n in (8, 16, 24, 32, 48, 64)),
    ("fc", 96, (*_BITS, *_DENSITIES, "mask 1/4")),
    ("conv2", 128, (*_BITS, *_DENSITIES)),
]
_FULL_REFERENCE = [
    *(("layer1.0.conv1", n, (*_BITS, *_DENSITIES)) for n in (8, 16, 24, 32, 48, 80, 126)),
    *(("linear", n, (*_BITS, *_DENSITIES, "mask 1/4")) for n in (16, 32, 64)),
]
_SCALES_DEMO = [("conv3", n, ("2-bit free scale", "3-bit free scale")) for n in (8, 16, 24, 32)]
_SCALES_REFERENCE = [("linear", n, ("2-bit free scale", "3-bit free scale")) for n in (8, 16, 24, 32)]
_TOGETHER = ("2-bit + density 1/4", "3-bit + density 1/4", "3-bit + 2:4", "4-bit + density 1/2", "4-bit + 2:4")
_JOINT_DEMO = [("conv3", n, _TOGETHER) for n in (8, 16, 24, 32)]
_JOINT_REFERENCE = [("layer1.0.conv1", 32, _TOGETHER), ("layer1.0.conv1", 48, _TOGETHER), ("linear", 64, _TOGETHER)]
#: At most three hours on two cores with 60 s a solve: see `docs/benchmark-suite.md`. The rows' first rules are run
#: first, then their second ones, and so on.
_STANDARD_DEMO = [
    ("conv3", 8, ("3-bit", "density 1/4", "mask 1/4", "3-bit + density 1/4", "2-bit free scale")),
    ("conv3", 16, ("density 1/2", "2-bit", "nf4", "3-bit free scale", "4-bit + 2:4")),
    ("conv3", 24, ("3-bit + 2:4", "density 1/4", "2:4", "mask 1/2", "3-bit")),
    ("conv3", 48, ("nf4", "2:4", "mask 1/4", "density 1/8")),
    ("conv3", 64, ("density 1/8", "mask 1/4")),
    ("fc", 92, ("2:4", "2-bit")),
    ("conv2", 128, ("density 1/8", "2-bit")),
]
_STANDARD_REFERENCE = [
    ("layer1.0.conv1", 16, ("mask 1/4", "4-bit", "density 1/4", "3-bit + density 1/4")),
    ("layer1.0.conv1", 24, ("2-bit free scale", "3-bit", "density 1/8", "4-bit + density 1/2")),
    ("layer1.0.conv1", 32, ("4-bit", "density 1/4", "mask 1/2", "2-bit free scale", "2-bit + density 1/4")),
    ("linear", 32, ("density 1/2", "3-bit free scale", "nf4", "2:4", "3-bit + density 1/4")),
    ("layer1.0.conv1", 48, ("2-bit", "density 1/4", "2:4", "mask 1/4", "3-bit + density 1/4", "4-bit")),
    ("linear", 64, ("mask 1/4", "3-bit", "density 1/4", "2-bit free scale", "2-bit + density 1/4", "2:4")),
    ("layer1.0.conv1", 80, ("density 1/4", "2-bit", "2:4", "mask 1/4", "3-bit")),
    ("layer1.0.conv1", 126, ("3-bit", "density 1/8", "mask 1/4", "density 1/2")),
]
#: By suite: instances of the demo network, those of the reference layers, and the output channels.
_SUITES = {
    "standard": (_STANDARD_DEMO, _STANDARD_REFERENCE, (0,)),
    "quick": (_QUICK_DEMO, _QUICK_REFERENCE, (0,)),
    "full": (_FULL_DEMO, _FULL_REFERENCE, (0, 1)),
    "scales": (_SCALES_DEMO, _SCALES_REFERENCE, (0,)),
    "joint": (_JOINT_DEMO, _JOINT_REFERENCE, (0,)),
}
#: Sizes and rules for layers of a file, by suite.
_FILE_SIZES = {
    "standard": (16, 32, 64),
    "quick": (16, 32),
    "full": (8, 16, 24, 32, 48, 64, 96, 128),
    "scales": (8, 16, 24, 32),
    "joint": (16, 32),
}
_MIXED = ("3-bit", "density 1/4", "2:4")
_FILE_RULES = {
    "standard": _MIXED,
    "quick": _MIXED,
    "full": _MIXED,
    "scales": ("2-bit free scale", "3-bit free scale"),
    "joint": ("3-bit + density 1/4", "4-bit + 2:4"),
}


@dataclass(frozen=True)
class Instance:
    """One output channel of the leading live inputs of a layer.

    Attributes
    ----------
    source : str
        ``"demo"`` or the path of a layer file.
    layer : str
    inputs : int
        Number of leading live inputs; 1e-6 of the mean diagonal is added to the diagonal of their Gram matrix.
    channel : int
    rule : str
        ``"3-bit"``, ``"3-bit free scale"``, the name of a codebook, ``"density 1/4"``, ``"2:4"`` or ``"mask 1/4"``;
        with a plus sign between bits and a pattern, both at once.
    """

    source: str
    layer: str
    inputs: int
    channel: int
    rule: str

    @property
    def name(self) -> str:
        """How tables call it."""
        source = "demo" if self.source == "demo" else Path(self.source).stem
        return f"{source}:{self.layer}[:{self.inputs}] #{self.channel} {self.rule}"

    @property
    def kind(self) -> str:
        """``"quantization"``, ``"free scale"``, ``"pruning"``, ``"mask"`` or ``"joint"``."""
        if "+" in self.rule:
            return "joint"
        if self.rule.endswith("free scale"):
            return "free scale"
        if self.rule.startswith("mask"):
            return "mask"
        return "pruning" if self.rule.startswith("density") or ":" in self.rule else "quantization"

    def problem(self) -> Problem:
        """The problem, of which ``channel`` is to be solved."""
        layer = leading(_layers(self.source)[self.layer], self.inputs)
        if both := re.fullmatch(r"(\d)-bit \+ (?:density (\d+)/(\d+)|(\d+:\d+))", self.rule):
            how = {"pattern": both[4]} if both[4] else {"density": int(both[2]) / int(both[3])}
            return lb.joint_problem(layer, int(both[1]), **how)
        if bits := re.fullmatch(r"(\d)-bit( free scale)?", self.rule):
            return lb.quantization_problem(layer, int(bits[1]), scale="free" if bits[2] else None)
        if kept := re.fullmatch(r"(density|mask) (\d+)/(\d+)", self.rule):
            density = int(kept[2]) / int(kept[3])
            return lb.pruning_problem(layer, density=density, refit=kept[1] == "density")
        if ":" in self.rule:
            return lb.pruning_problem(layer, pattern=self.rule)
        return lb.quantization_problem(layer, grid=lb.codebook_grid(layer.weight, self.rule))

    def to_dict(self) -> dict[str, Any]:
        """For `Instance(**…)`."""
        return asdict(self)


@lru_cache(maxsize=2)
def _layers(source: str) -> dict[str, lb.Layer]:
    return dict(lb.demo_layers() if source == "demo" else lb.load_layers(source))


def suite(name: str, data: Path, extra: Path | None = None) -> list[Instance]:
    """The instances of a suite.

    Parameters
    ----------
    name : {"quick", "standard", "full", "scales", "joint"}
    data : Path
        Folder of the reference layers; without their file only the demo network is used.
    extra : Path, optional
        A layer file of the user's own: the first output channel of every layer with one group is added.
    """
    demo, reference, channels = _SUITES[name]
    tables = [("demo", demo)]
    if (data / REFERENCE).is_file():
        tables.append((str(data / REFERENCE), reference))
    found = [
        Instance(source, layer, inputs, channel, rule)
        for source, table in tables
        for layer, inputs, rules in table
        for channel in channels
        for rule in rules
    ]
    if name == "standard":
        found = _in_turn(found)
    if extra is not None:
        found += _from_file(extra, channels, _FILE_SIZES[name], _FILE_RULES[name])
    return found


def _in_turn(instances: list[Instance]) -> list[Instance]:
    """All sizes and kinds early, so that a run cut short says something: every row's first rule, then every second."""
    turns: Counter[tuple[str, str, int]] = Counter()
    keyed = []
    for instance in instances:
        row = (instance.source, instance.layer, instance.inputs)
        keyed.append((turns[row], instance.inputs, instance))
        turns[row] += 1
    return [instance for *_, instance in sorted(keyed, key=lambda key: key[:2])]


def _from_file(path: Path, channels: tuple[int, ...], sizes: tuple[int, ...], rules: tuple[str, ...]) -> list[Instance]:
    layers = _layers(str(path))
    found = []
    for name, layer in layers.items():
        if layer.groups > 1:
            continue
        live = int(np.count_nonzero(layer.live()))
        for size in sorted({min(size, live) for size in sizes} - {0}):
            for channel in range(min(len(channels), layer.out_features)):
                found += [Instance(str(path), name, size, channel, rule) for rule in rules]
    if not found:
        raise InputError(f"{path} holds no layer with one group and live inputs; pass another file.")
    return found
