"""Run over a network on a cluster: jobs of Slurm (needs dask-jobqueue), or processes of this machine.

python examples/run_on_cluster.py --out FOLDER [--input LAYERS] [--bits 2 3 4] [--workers N] [--local]
    [--time-limit SECONDS] [--total-time SECONDS]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import layerbounds as lb


def make_cluster(workers: int, local: bool) -> Any:
    """A Dask cluster with workers of one thread each."""
    if local:
        from dask.distributed import LocalCluster

        return LocalCluster(n_workers=workers, threads_per_worker=1, processes=True)
    from dask_jobqueue import SLURMCluster

    # Each job is a worker. One that reaches its wall time loses what it was at: others begin that again.
    cluster = SLURMCluster(cores=1, processes=1, memory="8GB", walltime="08:00:00")
    cluster.scale(jobs=workers)
    # The run uses as many as there are when it begins.
    cluster.wait_for_workers(workers)
    return cluster


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="A run over a network on a cluster.")
    parser.add_argument("--input", type=Path, help="layer file (default: the embedded demo network)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4], help="bit widths")
    parser.add_argument("--workers", type=int, default=2, help="jobs or processes")
    parser.add_argument("--local", action="store_true", help="processes of this machine instead of Slurm's jobs")
    parser.add_argument("--time-limit", type=float, default=10.0, help="seconds of search per channel")
    parser.add_argument("--total-time", type=float, help="seconds after which no more work begins")
    given = parser.parse_args(arguments)
    with make_cluster(given.workers, given.local) as cluster:
        run = lb.run(
            given.input,
            out=given.out,
            bits=given.bits,
            time_limit=given.time_limit,
            total_time=given.total_time,
            parallel="dask://" + cluster.scheduler_address.removeprefix("tcp://"),
        )
    for entry in run.entries:
        lower, upper = entry.interval
        print(f"{entry.layer.name:24} {entry.choice.name:6} {lower:.4g} to {upper:.4g}")
    for layer, choice, reason in run.failed:
        print(f"{layer}, {choice} was left out: {reason}")


if __name__ == "__main__":
    main()
