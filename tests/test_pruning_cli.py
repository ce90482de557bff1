"""Pruning from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerbounds.cli.main import main


@pytest.mark.parametrize(
    ("options", "label"),
    [
        (["--density", "0.25"], "pruning unstructured k=36 of 144 refit"),
        (["--pattern", "2:4"], "pruning 2:4 refit"),
        (["--k", "18", "--pattern", "block:9", "--mask-only"], "pruning block:9 k=18 of 144 mask only"),
    ],
)
def test_solve(tmp_path: Path, options: list[str], label: str) -> None:
    out = tmp_path / "out.json"
    common = ["solve", "--layer", "conv2", "--channels", "0:1", "--time-limit", "0.3", "--jobs", "1"]
    assert main([*common, *options, "--json", str(out)]) == 0
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["problem"]["allowed"] == label
    channel = record["channels"][0]
    assert 0 <= channel["lower_bound"] <= channel["upper_bound"]


@pytest.mark.parametrize(
    "options",
    [
        ["--bits", "3", "--density", "0.5", "--mask-only"],
        ["--mask-only"],
        ["--pattern", "2:4", "--k", "3"],
        ["--k", "999"],
    ],
)
def test_contradictions_are_errors(options: list[str]) -> None:
    assert main(["solve", "--layer", "conv2", *options]) == 2
