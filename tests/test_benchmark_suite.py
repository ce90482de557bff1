"""The benchmark suite: measures on made-up records, the report, and a small real run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from benchmarks.instances import Instance, suite
from benchmarks.measures import (
    closed,
    closed_large,
    closed_ratio,
    compare,
    disagreements,
    gap_after,
    losses,
    missed,
    profile,
    seconds_of,
    shifted_geometric_mean,
)
from benchmarks.report import BEGIN, END, print_report, read_records, report

PROJECT = Path(__file__).resolve().parent.parent


def record(name: str, backend: str, seconds: float, status: str = "claimed", **other: Any) -> dict[str, Any]:
    return {
        "key": f"{name} | {backend} | 10",
        "name": name,
        "kind": "quantization",
        "backend": backend,
        "time_limit": 10.0,
        "inputs": 8,
        "error": None,
        "lower_bound": 0.5,
        "upper_bound": 1.0,
        "claimed_lower_bound": 1.0 if status == "claimed" else 0.75,
        "energy": 4.0,
        "status": status,
        "seconds": seconds,
        "nodes": 3,
        "notes": [],
        "trace": [[0.0, 0.0, 2.0], [2.0, 0.5, 1.0]],
        **other,
    }


def own(name: str, seconds: float, status: str = "optimal") -> dict[str, Any]:
    return record(name, "native", seconds, status, lower_bound=1.0 if status == "optimal" else 0.6)


def test_times_and_gaps() -> None:
    late = record("a", "scip", 10.2, "time_limit")
    assert not closed(late) and seconds_of(late) == 10.0
    assert closed(own("a", 0.3)) and seconds_of(own("a", 0.3)) == 0.3
    assert gap_after(late, 1.0) == 1.0
    assert gap_after(late, 5.0) == 0.5
    assert gap_after(late, 60.0) == 0.25
    assert gap_after(own("a", 0.3), 1.0) == 0.0
    assert gap_after({"error": "crashed"}, 1.0) == 1.0
    assert shifted_geometric_mean([1.0, 1.0]) == pytest.approx(1.0)
    assert shifted_geometric_mean([0.0, 9.9], 0.1) == pytest.approx(np.sqrt(0.1 * 10.0) - 0.1)


def test_profiles_count_open_instances() -> None:
    records = [own("a", 0.0), record("a", "scip", 0.9), own("b", 10.0, "time_limit"), record("b", "scip", 1.0)]
    ratios = profile(records, ["quantization"])
    assert ratios["native"] == [1.0, np.inf]
    assert ratios["scip"] == pytest.approx([0.91 / 0.01, 1.0])


def test_disagreements_are_found() -> None:
    same = [own("a", 0.1), record("a", "scip", 1.0, upper_bound=1.0 + 5e-7)]
    assert disagreements(same) == (1, 1, [])
    other = [*same, record("a", "highs", 1.0, upper_bound=1.00001)]
    pairs, instances, wrong = disagreements(other)
    assert (pairs, instances, len(wrong)) == (3, 1, 2)
    assert disagreements([own("a", 0.1), record("a", "scip", 9.0, "time_limit", upper_bound=1.4)]) == (0, 0, [])


def test_losses_are_listed() -> None:
    records = [own("a", 3.0), record("a", "scip", 1.0), own("b", 1.0), record("b", "scip", 2.0)]
    assert losses(records) == [("a", "scip", "1.00 s, native 3.00 s")]
    # Ten milliseconds are told apart, less is not.
    near = [own("a", 0.52), record("a", "scip", 0.5), own("b", 0.505), record("b", "scip", 0.5)]
    assert losses(near) == [("a", "scip", "0.500 s, native 0.520 s")]
    crashed = [{**own("d", 0.1), "error": "crashed"}, record("d", "scip", 4.0)]
    assert losses(crashed) == [("d", "scip", "4.00 s, native crashed")]
    unfinished = [own("c", 10.0, "time_limit"), record("c", "gurobi", 10.0, "time_limit")]
    assert losses(unfinished) == [("c", "gurobi", "claims a gap of 25 %, native 40 %")]


def test_peers_are_compared_where_they_needed_long() -> None:
    records = [
        *(own("a", 0.0), record("a", "scip", 0.9)),
        *(own("b", 0.03), record("b", "scip", 3.99)),
        *(own("c", 0.15), record("c", "scip", 4.0, "time_limit")),
        *(own("d", 0.1), {**record("d", "scip", 0.0), "error": "refused"}),
        *(own("e", 5.0, "time_limit"), {**record("e", "scip", 0.0), "error": "killed"}),
        own("f", 0.1),
    ]
    pair = compare(records, "scip")
    assert (pair.instances, pair.long) == (4, 3)
    # b: 3.99 s, c: open, e: killed, both counted at the limit of 10 s; the native backend misses e, too.
    assert pair.theirs == pytest.approx((4.0 * 10.01 * 10.01) ** (1 / 3) - 0.01)
    assert pair.own == pytest.approx((0.04 * 0.16 * 10.01) ** (1 / 3) - 0.01)
    assert pair.ratio == pytest.approx((4.0 * 10.01 / (0.04 * 0.16)) ** (1 / 3))
    nothing = compare(records[:2], "scip")
    assert (nothing.instances, nothing.long) == (1, 0) and np.isnan(nothing.ratio)


def test_large_instances_are_counted() -> None:
    large = {"inputs": 32}
    records = [
        *({**own(name, 0.1), **large} for name in "abcd"),
        *(record(name, "scip", 2.0, **large) for name in "ab"),
        *(record(name, "scip", 10.0, "time_limit", **large) for name in "cd"),
        record("a", "highs", 2.0, **large),
        *(record(name, "highs", 10.0, "time_limit", **large) for name in "bc"),
        {**record("d", "highs", 0.0, **large), "error": "refused"},
        *(own("small", 0.1), record("small", "highs", 0.2)),
    ]
    assert closed_large(records) == {"native": 4, "scip": 2, "highs": 1}
    assert closed_ratio(records) == 2.0
    # An instance that one of the two never got counts for nobody.
    assert closed_ratio([*records, {**own("e", 0.1), **large}]) == 2.0
    assert closed_ratio([r for r in records if r["backend"] == "native" or not closed(r)]) == np.inf
    assert np.isnan(closed_ratio([r for r in records if r["backend"] == "native"]))


def test_what_only_others_close() -> None:
    records = [own("a", 10.0, "time_limit"), record("a", "scip", 2.0), own("b", 0.1), record("b", "scip", 2.0)]
    assert missed(records) == ["a"]
    assert missed([own("a", 10.0, "time_limit"), record("a", "scip", 10.0, "time_limit")]) == []


def write_run(folder: Path, records: list[dict[str, Any]]) -> None:
    header = {"suite": "quick", "time_limit": 10.0, "machine": "model\nversions", "versions": {"scip": "1"}, "jobs": 2}
    (folder / "suite.json").write_text(json.dumps(header))
    (folder / "results.jsonl").write_text("\n".join(map(json.dumps, records)) + '\n{"key": "cut o')


def test_the_report_says_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    refused = {**record("b", "gurobi", 0.0), "error": "refused", "message": "too large"}
    write_run(tmp_path, [own("a", 0.1), record("a", "scip", 1.9), own("b", 0.1), refused])
    assert len(read_records(tmp_path)) == 4
    text = report(tmp_path)
    assert "| scip    | 1 " in text
    assert "17.4" in text  # (1.9 + 0.01)/(0.1 + 0.01)
    assert "| scip    | 1         | 1     | 1.900  | 0.100    | 17 " in text
    assert "Closed with n ≥ 32, of 0 instances: native 0, scip 0, gurobi 0." in text
    assert "Native closes every instance that any other backend closes." in text
    assert "+1 refused" in text and "- gurobi, b: too large" in text
    assert "1 pairs of backends closed the same instance (1 instances); all agree" in text
    assert "Nowhere in this run." in text
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n".format(suite="quick"))
    print_report(tmp_path, page)
    written = page.read_text()
    assert written.startswith("before\n") and written.endswith("after\n") and "old" not in written
    assert "### Agreement" in written
    assert (tmp_path / "profile.svg").read_text().lstrip().startswith("<?xml")


def test_the_suites_hold_what_they_promise(tmp_path: Path) -> None:
    quick, full = suite("quick", tmp_path), suite("full", tmp_path)
    assert {i.source for i in quick + full} == {"demo"}
    assert len({i.name for i in full}) == len(full) > len(quick)
    assert {i.kind for i in quick} == {"quantization", "pruning", "mask"}
    for instance in quick:
        problem = instance.problem()
        assert problem.layer.in_features == instance.inputs
        assert np.all(np.linalg.eigvalsh(problem.layer.gram[0]) > 0)
    standard = suite("standard", tmp_path)
    assert {i.kind for i in standard} == {"quantization", "pruning", "mask", "joint", "free scale"}
    # Cut short, it has seen every size.
    assert {i.inputs for i in standard[:7]} == {i.inputs for i in standard}
    joint = suite("joint", tmp_path)
    assert {i.kind for i in joint} == {"joint"}
    assert {i.problem().label.partition(", mse, ")[2] for i in joint if i.inputs == 16} == {
        "unstructured k=4 of 16, zero a level", "unstructured k=8 of 16, zero a level", "2:4, zero a level"
    }  # fmt: skip
    assert Instance("demo", "conv3", 8, 0, "density 1/4").problem().kept == 2  # type: ignore[union-attr]


def test_a_file_of_the_user(tmp_path: Path, small_layer: lb.Layer) -> None:
    path = tmp_path / "mine.safetensors"
    lb.save_layers(path, [small_layer])
    mine = [i for i in suite("quick", tmp_path, path) if i.source == str(path)]
    assert [i.rule for i in mine] == ["3-bit", "density 1/4", "2:4"]
    assert mine[0].name == "mine:small[:6] #0 3-bit"


def run_suite(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.run", "--out", str(folder), "--jobs", "2", "--data", str(folder)]
    return subprocess.run([*command, *arguments], cwd=PROJECT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_run_resumes(tmp_path: Path) -> None:
    # All but one record are there already, and the last line is cut off.
    names = [i.name for i in suite("quick", tmp_path)]
    done = [{**own(name, 0.1), "key": f"{name} | native | 5"} for name in names[1:]]
    (tmp_path / "results.jsonl").write_text("\n".join(map(json.dumps, done)) + "\n" + '{"key": "cut')
    result = run_suite(tmp_path, "--backends", "native", "--time-limit", "5")
    assert result.returncode == 0, result.stderr
    assert f"1 solves to go, {len(done)} done" in result.stdout
    records = read_records(tmp_path)
    assert {r["name"] for r in records} == set(names)
    new = next(r for r in records if r["name"] == names[0])
    assert new["error"] is None and new["status"] == "optimal" and new["peak_memory_mb"] > 10
    spent = run_suite(tmp_path, "--backends", "native,highs", "--time-limit", "5", "--budget", "1e-9", "--only", "[:8]")
    assert spent.returncode == 0 and "the budget is spent: 2 solves are left" in spent.stdout, spent.stderr
    assert "### Agreement" in spent.stdout
    other = run_suite(tmp_path, "--backends", "native", "--time-limit", "6")
    assert other.returncode == 1 and "another time_limit" in other.stderr
