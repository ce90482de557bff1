"""The quantization engine on whole layers: time to proof, and certified lower/upper at given time limits.

    python -m benchmarks.quantization_engine [--data DIR] [--layers NAME,…] [--bits 2,3,4] [--channels 0:3]
                                             [--time-limits 10] [--jobs 2]

Instances: layers of ResNet-20 and MiniLM where the reference data is present (symmetric per-channel scales by the MSE
rule, live inputs, 1e-6 of the mean diagonal added), the demo network's layers otherwise. Preparation and compilation
are outside the time limits; the preparation is printed.
"""

from __future__ import annotations

import argparse
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import layerbounds as lb
from benchmarks.native_speed import DATA, compile_kernels, leading, machine
from layerbounds.cli.options import parse_channels

FILES = ("resnet20_layers.safetensors", "minilm_layers.safetensors")
#: Short name → layer, number of leading live inputs (None for all), bits.
REFERENCE: dict[str, tuple[str, int | None, tuple[int, ...]]] = {
    "n32": ("layer1.0.conv1", 32, (2, 3, 4)),
    "n48": ("layer1.0.conv1", 48, (2, 3, 4)),
    "linear": ("linear", None, (2, 3, 4)),
    "n80": ("layer1.0.conv1", 80, (3, 4)),
    "layer1.0.conv1": ("layer1.0.conv1", None, (2, 3, 4)),
    "layer2.1.conv1": ("layer2.1.conv1", None, (2, 3, 4)),
    "layer3.2.conv2": ("layer3.2.conv2", None, (2, 3, 4)),
    "minilm-output-384": ("encoder.layer.2.attention.output.dense", None, (3,)),
    "minilm-output-1536": ("encoder.layer.3.output.dense", None, (3,)),
    "minilm-query-384": ("encoder.layer.0.attention.self.query", None, (3,)),
}
DEMO: dict[str, tuple[str, int | None, tuple[int, ...]]] = {
    name: (name, None, (2, 3, 4)) for name in ("conv1", "conv2", "conv3", "fc")
}


def instances(data: Path, names: list[str] | None) -> Iterator[tuple[str, lb.Layer, lb.Layer, tuple[int, ...]]]:
    """Short name, instance, the layer whose weights set the scales, and bits of each row."""
    layers: dict[str, lb.Layer] = {}
    for file in FILES:
        if (data / file).is_file():
            layers |= lb.load_layers(data / file)
    table = REFERENCE if layers else DEMO
    layers = layers or lb.demo_layers()
    for name in names or table:
        layer, count, bits = table[name]
        yield name, leading(layers[layer], count), layers[layer], bits


def run(arguments: argparse.Namespace) -> None:
    """Print one line for each layer, number of bits and time limit."""
    wanted = [int(b) for b in arguments.bits.split(",")]
    print(
        f"{'layer':20} {'n':>5} {'bits':>4} {'limit':>6}  {'lower/upper of each channel':32} {'seconds':24} prep  MiB"
    )
    for name, layer, whole, bits in instances(Path(arguments.data), arguments.layers and arguments.layers.split(",")):
        for b in (b for b in bits if b in wanted):
            problem = lb.quantization_problem(layer, bits=b, scale=lb.uniform_grid(whole.weight, b).scale[:, 0])
            for limit in (float(t) for t in arguments.time_limits.split(",")):
                selection = parse_channels(arguments.channels, layer.out_features)
                s = lb.solve(problem, "native", channels=selection, time_limit=limit, jobs=arguments.jobs)
                closed = [("*" if t == lb.Status.OPTIMAL else "") for t in s.status]
                ratios = " ".join(f"{1 - g:.3f}{c}" for g, c in zip(s.gap, closed, strict=True))
                seconds = " ".join(f"{t:.3f}" for t in s.seconds)
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                print(
                    f"{name:20} {int(np.sum(layer.live())):5d} {b:4d} {limit:6.0f}  {ratios:32} {seconds:24} "
                    f"{s.preparation_seconds:4.1f} {memory:5.0f}",
                    flush=True,
                )


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(DATA))
    parser.add_argument("--layers", default=None, help="short names, separated by commas")
    parser.add_argument("--bits", default="2,3,4")
    parser.add_argument("--channels", default="0:3")
    parser.add_argument("--time-limits", default="10")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    arguments = parser.parse_args()
    print(machine())
    compile_kernels()
    run(arguments)
    print("* proven optimal; MiB is the peak of the process so far")


if __name__ == "__main__":
    main()
