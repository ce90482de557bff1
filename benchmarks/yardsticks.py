"""Yardsticks beside certified intervals on real layers: the table of docs/yardsticks.md.

    python -m benchmarks.yardsticks [--time-limit 10] [--channels 3]

The four layers of ResNet-20 in the folder that the environment variable LAYERBOUNDS_DATA names, or
``../shared/data``; the first channels of each, 2, 3 and 4 bits, one symmetric scale per channel. All figures are sums
over the channels, divided by that of the upper ends.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import layerbounds as lb
from layerbounds.network.yardsticks import YARDSTICKS, yardsticks

DATA = Path(os.environ.get("LAYERBOUNDS_DATA") or Path(__file__).resolve().parent.parent.parent / "shared" / "data")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", type=float, default=10.0, help="seconds of search a channel")
    parser.add_argument("--channels", type=int, default=3, help="how many channels of each layer")
    options = parser.parse_args()
    print(f"| layer, live inputs | bits | error of the weights found | certified | {' | '.join(YARDSTICKS)} |")
    print("|---|---|---|---|---|---|")
    for name, layer in lb.load_layers(DATA / "resnet20_layers.safetensors").items():
        channels = range(min(options.channels, layer.out_features))
        for bits in (2, 3, 4):
            problem = lb.quantization_problem(layer, bits)
            found = lb.solve(problem, channels=channels, time_limit=options.time_limit)
            upper = float(found.upper_bound.sum())
            cells = [f"{100 * upper / found.energy.sum():.3g} %", f"{found.lower_bound.sum() / upper:.3f}"]
            for value in yardsticks(problem, channels).values():
                cells.append("–" if value is None else f"{value / upper:.3f}")
            print(f"| {name}, {int(layer.live().sum())} | {bits} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
