"""Whether n = 80 closes over all scales by the tree of rays, or because the best error of all scales is a lower cut.

    python -m benchmarks.lower_cut [--data DIR] [--layers n80] [--bits 3,4] [--channels 0:3] [--time-limit 20]

Three searches of each channel: over all scales, at the scale of its grid (the MSE rule), and, with the search for one
scale, at the scale of the best weights found over all scales. The last two differ in the scale, and so in the error
below which everything has to be excluded; the first and the last in the search alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import layerbounds as lb
from benchmarks.native_speed import DATA, compile_kernels, machine
from benchmarks.quantization_engine import instances
from layerbounds.cli.options import parse_channels


def describe(label: str, solution: lb.Solution, least: float) -> str:
    """A row of the table."""
    lower, upper = solution.lower_bound[0], solution.upper_bound[0]
    effort = f"{solution.nodes[0]:10.2e} {solution.seconds[0]:8.2f}  {solution.status[0].value}"
    return f"  {label:26} {lower / upper:6.3f} {upper / least:12.3f} {effort}"


def run(arguments: argparse.Namespace) -> None:
    """Print three lines for each channel and number of bits."""
    limit = arguments.time_limit
    for name, layer, whole, _ in instances(Path(arguments.data), arguments.layers.split(",")):
        for bits in map(int, arguments.bits.split(",")):
            scales = lb.uniform_grid(whole.weight, bits).scale[:, 0]
            free = lb.quantization_problem(layer, bits=bits, scale="free")
            for channel in parse_channels(arguments.channels, layer.out_features) or range(layer.out_features):
                every = lb.solve(free, channels=[channel], time_limit=limit, jobs=1)
                least, best = float(every.upper_bound[0]), scales.copy()
                assert every.scale is not None
                best[channel] = every.scale[0, 0]
                print(f"{name}, {bits} bits, channel {channel}: best scale {best[channel] / scales[channel]:.3f}")
                print(describe("all scales", every, least), flush=True)
                for label, scale in (("one scale, the MSE rule's", scales), ("one scale, the best one", best)):
                    problem = lb.quantization_problem(layer, bits=bits, scale=scale)
                    found = lb.solve(problem, channels=[channel], time_limit=limit, jobs=1)
                    print(describe(label, found, least), flush=True)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(DATA))
    parser.add_argument("--layers", default="n80", help="short names of benchmarks.quantization_engine")
    parser.add_argument("--bits", default="3,4")
    parser.add_argument("--channels", default="0:3")
    parser.add_argument("--time-limit", type=float, default=20.0)
    arguments = parser.parse_args()
    print(machine())
    compile_kernels()
    print(f"  {'search':26} {'lower/upper':>6} {'upper/least':>11} {'nodes':>9} {'seconds':>8}")
    run(arguments)


if __name__ == "__main__":
    main()
