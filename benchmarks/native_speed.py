"""Speed of the native branch and bound on problems that it closes.

    python -m benchmarks.native_speed [--data DIR] [--bits 2,3,4] [--channels 0:3] [--jobs N]

Instances: with the reference layers, the first 32 and 48 live inputs of layer1.0.conv1 and all 64 of linear, with the
stored symmetric scales; without them, conv3 and conv1 of the embedded demo network with fitted scales. 1e-6 of the mean
diagonal is added to the diagonal, so that every solver gets the same positive definite instance.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import scipy

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.cli.options import parse_channels
from layerbounds.layers.tensor_files import read_tensors

DATA = Path(os.environ.get("LAYERBOUNDS_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
FILE = "resnet20_layers.safetensors"
#: Layer and number of leading live inputs, None for all.
REFERENCE = [("layer1.0.conv1", 32), ("layer1.0.conv1", 48), ("linear", None)]
DEMO = [("conv3", None), ("conv1", None)]


@dataclass(frozen=True)
class Instance:
    """A positive definite layer of live inputs, and its scales by number of bits (empty: fitted)."""

    layer: lb.Layer
    scales: dict[int, Float]

    def problem(self, bits: int) -> lb.QuantizationProblem:
        """Symmetric quantization with one scale per channel."""
        return lb.quantization_problem(self.layer, bits=bits, scale=self.scales.get(bits))


def instances(data: Path) -> Iterator[Instance]:
    """The reference instances where their file exists, else those of the demo network."""
    path = data / FILE
    layers = lb.load_layers(path) if path.is_file() else lb.demo_layers()
    tensors = read_tensors(path)[0] if path.is_file() else {}
    for name, count in REFERENCE if path.is_file() else DEMO:
        scales = {b: tensors[f"{name}.scale_{b}bit"] for b in range(2, 9) if f"{name}.scale_{b}bit" in tensors}
        yield Instance(leading(layers[name], count), scales)


def leading(layer: lb.Layer, count: int | None) -> lb.Layer:
    """The first live inputs of a layer, with 1e-6 of the mean diagonal on the diagonal of the Gram."""
    kept = np.flatnonzero(layer.live())[:count]
    gram = layer.gram[0][np.ix_(kept, kept)]
    gram = gram + 1e-6 * np.mean(np.diag(gram)) * np.eye(len(kept))
    return lb.Layer(layer.matrix[:, kept], gram, layer.name)


def machine() -> str:
    """Processor and versions, two lines."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = named[0].split(":", 1)[1].strip() if named else model
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()}\n"
        f"layerbounds {lb.__version__}, Python {platform.python_version()}, NumPy {np.__version__}, "
        f"SciPy {scipy.__version__}, numba {numba.__version__}"
    )


def compile_kernels() -> None:
    """Solve something small that reaches every kernel."""
    layer = leading(lb.demo_layers()["conv2"], 110)
    lb.solve(lb.quantization_problem(layer, bits=3), "native", channels=[0], jobs=1, node_limit=50_000, time_limit=60.0)


def main() -> None:
    """Print one row for each instance and number of bits."""
    parser = argparse.ArgumentParser(description="Speed of the native branch and bound on problems that it closes.")
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder of {FILE}; default: ../shared/data")
    parser.add_argument("--bits", default="2,3,4", help="comma-separated")
    parser.add_argument("--channels", default="0:3", help="indices and half-open slices")
    parser.add_argument("--jobs", type=int, default=1, help="channels side by side, one thread each")
    parser.add_argument("--time-limit", type=float, default=30.0, help="seconds of search per channel")
    options = parser.parse_args()
    print(machine())
    compile_kernels()
    source = "reference layers" if (options.data / FILE).is_file() else f"demo network, as there is no {FILE}"
    print(f"{source}; channels {options.channels}, {options.jobs} at a time, at most {options.time_limit:g} s each\n")
    print("layer              n  bits  prepare s   median s      max s  proven      nodes  nodes/s  lower/upper")
    for instance in instances(options.data):
        layer = instance.layer
        channels = parse_channels(options.channels, layer.out_features)
        preparation: float | None = None
        for bits in map(int, options.bits.split(",")):
            solution = lb.solve(
                instance.problem(bits), "native", channels=channels, jobs=options.jobs, time_limit=options.time_limit
            )
            # Later solves of the layer find it prepared.
            preparation = solution.preparation_seconds if preparation is None else preparation
            seconds = solution.seconds
            proven = sum(status == lb.Status.OPTIMAL for status in solution.status)
            print(
                f"{layer.name:<16}{layer.in_features:>4}{bits:>6}{preparation:>11.3f}{np.median(seconds):>11.4f}"
                f"{seconds.max():>11.4f}{proven:>5}/{len(seconds)}{solution.nodes.max():>11,}"
                f"{solution.nodes.sum() / seconds.sum():>9.1e}{1.0 - solution.gap.max():>13.4f}"
            )


if __name__ == "__main__":
    main()
