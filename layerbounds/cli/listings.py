"""``layerbounds backends``, ``layerbounds heuristics`` and ``layerbounds ranges``: what is registered."""

from __future__ import annotations

import dataclasses

from layerbounds.cli.console import result_console
from layerbounds.cli.options import JsonOption
from layerbounds.cli.outputs import check_outputs
from layerbounds.methods.registry import describe_heuristics
from layerbounds.problems.ranges.registry import RANGES
from layerbounds.report.files import STDOUT, write_json
from layerbounds.report.tables import backend_table, heuristic_table, range_table
from layerbounds.scheduling.choice import NATIVE_INPUTS
from layerbounds.solvers.registry import backends


def backends_command(json_out: JsonOption = None) -> None:
    """List the solver backends, whether they are available here, and what they can treat."""
    check_outputs({"--json": json_out}, {})
    rows = backends()
    if json_out is not None:
        write_json(json_out, {"backends": [dataclasses.asdict(row) for row in rows]})
    if json_out != STDOUT:
        console = result_console()
        console.print(backend_table(rows))
        console.print(
            f"auto, the default, is no backend of its own: native up to {NATIVE_INPUTS} inputs, batched beyond",
            soft_wrap=not console.is_terminal,
        )


def heuristics_command(json_out: JsonOption = None) -> None:
    """List the heuristics that find good weights without a proof."""
    check_outputs({"--json": json_out}, {})
    rows = describe_heuristics()
    if json_out is not None:
        fields = ("name", "summary", "source", "capabilities", "patterns", "options")
        write_json(json_out, {"heuristics": [{field: getattr(row, field) for field in fields} for row in rows]})
    if json_out != STDOUT:
        result_console().print(heuristic_table(rows))


def ranges_command(json_out: JsonOption = None) -> None:
    """List the ranges: the rules that fit the scales of grids."""
    check_outputs({"--json": json_out}, {})
    rows = list(RANGES.values())
    if json_out is not None:
        fields = ("name", "summary", "source", "kinds", "needs_layer")
        write_json(json_out, {"ranges": [{field: getattr(row, field) for field in fields} for row in rows]})
    if json_out != STDOUT:
        result_console().print(range_table(rows))
