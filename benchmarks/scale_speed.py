"""Speed of the search over all scales, beside the search at the one scale that the MSE rule fits.

    python -m benchmarks.scale_speed [--instances linear:32,layer1.0.conv1:80] [--bits 2,3,4] [--channels 0:3]
                                     [--zero-point free|real] [--granularity tensor|64] [--time-limit 20] [--no-mse]

An instance is a layer and a number n: its first n live inputs, with 1e-6 of the mean diagonal added to the diagonal.
Layers come from ``resnet20_layers.safetensors`` and ``minilm_layers.safetensors`` in the folder that the environment
variable LAYERBOUNDS_DATA names; a layer may be named by the unique end of its name. Without the files the embedded
demonstration network is used.

Both sides of a row are solved one after the other in the same run, on one thread. Seconds of the processor are those
of the whole call of `solve`, the preparation of the layer included, and depend little on other work on the machine; the
time limit is wall time, so that a busy machine needs a longer one for the same search.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from threadpoolctl import threadpool_limits

import layerbounds as lb
from benchmarks.native_speed import leading, machine
from layerbounds.cli.options import parse_channels
from layerbounds.problems.problem import Problem

DATA = Path(os.environ.get("LAYERBOUNDS_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
FILES = ("resnet20_layers.safetensors", "minilm_layers.safetensors")
REFERENCE = (
    "linear:32,linear:48,linear:64,layer1.0.conv1:80,layer1.0.conv1:126,layer2.1.conv1:279,"
    "encoder.layer.2.attention.output.dense:384"
)
DEMO = "conv3,conv1"
Granularity = Literal["tensor", "channel"] | int


@dataclass(frozen=True)
class Measured:
    """What one call of `solve` took and reached; sums where several channels have bounds of their own."""

    cpu: float
    wall: float
    nodes: int
    lower: float
    upper: float
    proven: bool

    @property
    def ratio(self) -> float:
        """Lower over upper bound."""
        return self.lower / self.upper if self.upper > 0 else 1.0


def measure(problem: Problem, channels: Sequence[int], limit: float) -> Measured:
    """Solve with one thread, and time it."""
    cpu, wall = time.process_time(), time.perf_counter()
    solution = lb.solve(problem, "native", channels=channels, jobs=1, time_limit=limit)
    return Measured(
        time.process_time() - cpu,
        time.perf_counter() - wall,
        int(solution.nodes.sum()),
        float(solution.lower_bound.sum()),
        float(solution.upper_bound.sum()),
        all(status == lb.Status.OPTIMAL for status in solution.status),
    )


def instances(text: str) -> list[lb.Layer]:
    """The layers of a list NAME:n; all live inputs where n is left out."""
    layers: dict[str, lb.Layer] = {}
    for path in (DATA / file for file in FILES):
        layers.update(lb.load_layers(path) if path.is_file() else {})
    if not layers:
        print(f"No {' or '.join(FILES)} in {DATA}: demonstration network instead.")
        layers = lb.demo_layers()
    chosen = []
    for item in (text or (REFERENCE if "linear" in layers else DEMO)).split(","):
        name, _, count = item.partition(":")
        found = [layer for key, layer in layers.items() if key == name or key.endswith(f".{name}")]
        if len(found) != 1:
            raise SystemExit(f"{name} names {len(found)} layers of {', '.join(layers)}; pass the name of one.")
        chosen.append(leading(found[0], int(count) if count else None))
    return chosen


def problems(layer: lb.Layer, bits: int, zero: str, granularity: Granularity) -> tuple[Problem, Problem]:
    """All scales (and zero points), and the grid that the MSE rule fits."""
    free = lb.quantization_problem(
        layer, bits=bits, scale="free", zero_point=zero if zero != "none" else None, granularity=granularity
    )
    return free, lb.quantization_problem(layer, bits=bits, symmetric=zero == "none", granularity=granularity)


def sets_of(channels: list[int], granularity: Granularity) -> list[list[int]]:
    """Single channels, or all of them where they share their scale."""
    return [channels] if granularity == "tensor" else [[channel] for channel in channels]


def row(layer: lb.Layer, bits: int, channels: Sequence[int], free: Measured, mse: Measured | None) -> str:
    """One line of the table."""
    channel = f"{channels[0]}" if len(channels) == 1 else f"all {len(channels)}"
    text = (
        f"{layer.name[-24:]:<25}{layer.in_features:>4}{bits:>5}{channel:>8}{free.cpu:>9.3f}{free.wall:>9.3f}"
        f"{free.nodes:>12,}{'yes' if free.proven else 'no':>8}{free.ratio:>9.4f}"
    )
    if mse is None:
        return text
    return (
        f"{text}  |{mse.cpu:>9.3f}{mse.nodes:>12,}{'yes' if mse.proven else 'no':>8}{mse.ratio:>9.4f}"
        f"{free.cpu / mse.cpu:>9.2f}{mse.upper / free.upper:>9.3f}"
    )


def main() -> None:
    """Print one row for each instance, number of bits and channel, then a summary by instance."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--instances", default="", metavar="NAME:n,...", help=f"default: {REFERENCE}")
    parser.add_argument("--bits", default="2,3,4", help="comma-separated")
    parser.add_argument("--channels", default="0:3", help="indices and half-open slices")
    parser.add_argument("--zero-point", default="none", choices=("none", "free", "real"))
    parser.add_argument("--granularity", default="channel", help="channel, tensor, or the number of inputs of a scale")
    parser.add_argument("--time-limit", type=float, default=20.0, help="wall seconds of search per channel and side")
    parser.add_argument("--no-mse", action="store_true", help="all scales alone")
    options = parser.parse_args()
    text = options.granularity
    granularity: Granularity = int(text) if text.isdecimal() else text
    print(machine())
    print(
        f"zero point {options.zero_point}, granularity {text}, time limit {options.time_limit:g} s of wall time per "
        f"{'set' if granularity == 'tensor' else 'channel'}, one thread\n"
    )
    print(f"{'':42}all scales{'':43}{'' if options.no_mse else '  |  MSE scale':<48}")
    head = f"{'layer':<25}{'n':>4}{'bits':>5}{'ch':>8}{'CPU s':>9}{'wall s':>9}{'nodes':>12}{'proven':>8}{'lo/up':>9}"
    print(
        head
        if options.no_mse
        else f"{head}  |{'CPU s':>9}{'nodes':>12}{'proven':>8}{'lo/up':>9}{'time x':>9}{'f x':>9}"
    )
    with threadpool_limits(1):
        small = leading(lb.demo_layers()["conv2"], 24)
        for problem in problems(small, 3, options.zero_point, 8 if isinstance(granularity, int) else granularity):
            lb.solve(problem, channels=None if granularity == "tensor" else [0, 1], jobs=1, time_limit=1.0)
        for layer in instances(options.instances):
            channels = parse_channels(options.channels, layer.out_features) or list(range(layer.out_features))
            sides: list[Measured] = []
            for bits in map(int, options.bits.split(",")):
                free, fitted = problems(layer, bits, options.zero_point, granularity)
                for rows in sets_of(channels, granularity):
                    sides.append(measure(free, rows, options.time_limit))
                    mse = None if options.no_mse else measure(fitted, rows, options.time_limit)
                    print(row(layer, bits, rows, sides[-1], mse), flush=True)
            seconds, proven = [side.cpu for side in sides], sum(side.proven for side in sides)
            print(
                f"{layer.name[-24:]:<25}{layer.in_features:>4}   proven {proven}/{len(sides)}, CPU s median "
                f"{np.median(seconds):.2f}, most {max(seconds):.2f}; least lo/up {min(s.ratio for s in sides):.4f}\n"
            )


if __name__ == "__main__":
    main()
