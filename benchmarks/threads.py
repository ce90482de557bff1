"""One channel with one thread and with two: seconds, nodes, and what is left of them on idle cores.

    python -m benchmarks.threads [--data DIR] [--inputs 64,72,80] [--bits 3,4] [--channels 0:3] [--threads 2]
                                 [--time-limit 30] [--repeats 3] [--least 1.0]

Instances: the first live inputs of layer1.0.conv1 of the reference data, symmetric scales by the MSE rule. Both sides
alternate. Preparation and compilation come first and are not counted. Where one thread needs less than ``--least``
seconds of the processor, or does not close the channel, the instance is left out.

On busy cores seconds of the wall say little. The critical path is what several threads would take on idle cores: the
processor time of all that has to be done one after the other; of a search in a team, that of its busiest thread, and a
full run of the kernel for each time that a thread waited for work.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import layerbounds as lb
from benchmarks.native_speed import DATA, FILE, compile_kernels, leading, machine
from layerbounds.cli.options import parse_channels
from layerbounds.problems.problem import Problem
from layerbounds.search.quantization import channel_search
from layerbounds.search.quantization.companion import Companion
from layerbounds.search.quantization.team import Team
from layerbounds.search.quantization.tree import Tree

LAYER = "layer1.0.conv1"


@dataclass
class Spared:
    """Seconds of the processor that run beside others, of the present solve, and those of searches in teams."""

    seconds: float = 0.0
    #: Of all threads of teams, and of the busiest one of each with what it waited.
    all_threads: float = 0.0
    longest: float = 0.0


spared = Spared()


class MeasuredTeam(Team):
    """A team that notes the processor time of each thread."""

    def run(self) -> bool:
        """As its parent's."""
        self.spent: list[float] = []
        self.handed = 0
        before = self._nodes
        done = super().run()
        wait = self.handed * self._chunk * sum(self.spent) / max(self._nodes - before, 1)
        longest = max(self.spent) + wait
        spared.seconds += sum(self.spent) - longest
        spared.all_threads += sum(self.spent)
        spared.longest += longest
        return done

    def _work(self, tree: Tree) -> None:
        begun = time.thread_time()
        super()._work(tree)
        self.spent.append(time.thread_time() - begun)

    def _has_work(self, tree: Tree) -> bool:
        self.handed += tree.exhausted
        return super()._has_work(tree)


class MeasuredCompanion(Companion):
    """A companion that notes its processor time."""

    def _work(self) -> None:
        begun = time.thread_time()
        super()._work()
        spared.seconds += time.thread_time() - begun


@dataclass(frozen=True)
class Run:
    """Of one solve: seconds of the wall, of the processor, of the critical path and of its searches alone; nodes."""

    wall: float
    processor: float
    path: float
    nodes: int
    gain: float
    closed: bool


def measure(problem: Problem, channel: int, threads: int, time_limit: float) -> Run:
    """Solve one channel."""
    global spared
    spared = Spared()
    begun = time.process_time()
    solution = lb.solve(problem, "native", channels=[channel], jobs=threads, time_limit=time_limit)
    processor = time.process_time() - begun
    gain = spared.all_threads / spared.longest if spared.longest else 1.0
    closed = solution.status[0] == lb.Status.OPTIMAL
    nodes = int(solution.nodes[0])
    return Run(float(solution.seconds[0]), processor, processor - spared.seconds, nodes, gain, closed)


def run(arguments: argparse.Namespace) -> None:
    """Print a line for each instance."""
    whole = lb.load_layers(arguments.data / FILE)[LAYER]
    print("inputs bits channel   nodes (one, several)   wall: one, several, ratio   critical path: ratio   searches")
    for count in (int(c) for c in arguments.inputs.split(",")):
        layer = leading(whole, count)
        for bits in (int(b) for b in arguments.bits.split(",")):
            problem = lb.quantization_problem(layer, bits=bits, scale=lb.uniform_grid(whole.weight, bits).scale[:, 0])
            for channel in parse_channels(arguments.channels, layer.out_features) or ():
                compare(problem, channel, f"{count:6d} {bits:4d} {channel:7d}", arguments)


def compare(problem: Problem, channel: int, name: str, arguments: argparse.Namespace) -> None:
    """Both sides in turn, and the ratios of their medians."""
    # The first solve prepares the layer.
    lb.solve(problem, "native", channels=[channel], jobs=1, time_limit=0.1)
    sides: dict[int, list[Run]] = {1: [], arguments.threads: []}
    for _ in range(arguments.repeats):
        for threads, runs in sides.items():
            runs.append(measure(problem, channel, threads, arguments.time_limit))
            if not runs[-1].closed or (threads == 1 and runs[-1].processor < arguments.least):
                print(f"{name}   left out: {'short' if runs[-1].closed else 'not closed'}", flush=True)
                return
    one, several = sides.values()

    def median(runs: list[Run], what: str) -> float:
        return statistics.median(float(getattr(run, what)) for run in runs)

    walls, paths = ([median(runs, what) for runs in (one, several)] for what in ("wall", "path"))
    nodes = [median(runs, "nodes") for runs in (one, several)]
    print(
        f"{name}   {nodes[0]:9.2e} {nodes[1]:9.2e}   {walls[0]:7.2f} {walls[1]:7.2f} {walls[0] / walls[1]:5.2f}   "
        f"{paths[0]:5.2f} {paths[1]:5.2f} {paths[0] / paths[1]:5.2f}   {median(several, 'gain'):5.2f}",
        flush=True,
    )


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--inputs", default="64,72,80")
    parser.add_argument("--bits", default="3,4")
    parser.add_argument("--channels", default="0:3")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--time-limit", type=float, default=30.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--least", type=float, default=1.0)
    arguments = parser.parse_args()
    print(machine())
    compile_kernels()
    vars(channel_search).update(Team=MeasuredTeam, Companion=MeasuredCompanion)
    run(arguments)


if __name__ == "__main__":
    main()
