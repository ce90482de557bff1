"""Pruning with quantization against either alone, at the storage that masks take (docs/versus.md).

    python -m benchmarks.equal_storage [--data DIR] [--mask bitmap] [--time-limit 10] [--markdown OUT]

Instances and scales as in `benchmarks.native_speed`, the first channels of each.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import layerbounds as lb
from benchmarks.native_speed import DATA, instances
from layerbounds.cli.options import parse_channels
from layerbounds.problems.problem import Problem
from layerbounds.report.standings import standings_markdown

#: Kept weights' bits, and the pattern.
CONTENDERS = ((4, "2:4"), (4, 0.5), (4, 0.25), (3, "2:4"), (3, None), (2, None))


def contenders(layer: lb.Layer, scales: dict[int, object]) -> Iterator[str | tuple[str, Problem]]:
    """Each with the layer's scales, and pruning at the storage of each."""
    for bits, pattern in CONTENDERS:
        grid = lb.quantization_problem(layer, bits, scale=scales.get(bits)).grid  # type: ignore[attr-defined, arg-type]
        if pattern is None:
            yield f"INT{bits}", lb.QuantizationProblem(layer, grid)
        elif isinstance(pattern, str):
            yield f"INT{bits} + {pattern}", lb.joint_problem(layer, grid=grid, pattern=pattern)
        else:
            yield f"INT{bits} + density {pattern:g}", lb.joint_problem(layer, grid=grid, density=pattern)
    yield "pruned"


def main() -> None:
    """Print the verdicts of all pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the reference layers")
    parser.add_argument("--mask", default="bitmap")
    parser.add_argument("--time-limit", type=float, default=10.0)
    parser.add_argument("--channels", default="0:3")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    options = parser.parse_args()
    found = []
    for instance in instances(options.data):
        layer = lb.Layer(
            instance.layer.weight, instance.layer.gram, f"{instance.layer.name}[:{instance.layer.in_features}]"
        )
        standings = lb.contest(
            layer,
            contenders(layer, dict(instance.scales)),
            mask=options.mask,
            channels=parse_channels(options.channels, layer.out_features),
            time_limit=options.time_limit,
            jobs=options.jobs,
        )
        print(standings.statement(standings.equal_pairs))
        print("seconds of search:", f"{sum(entrant.seconds for entrant in standings.entrants):.0f}", flush=True)
        found.append(standings)
    text = standings_markdown(found)
    print("\n" + text)
    if options.markdown is not None:
        options.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
