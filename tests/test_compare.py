"""Comparisons: bounds of the row's own grid, weights from elsewhere, tables, files and pictures."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import layerbounds as lb
import layerbounds.comparison.records as comparison
from layerbounds.cli.bits import parse_bits
from layerbounds.cli.main import main
from layerbounds.cli.options import parse_fractions, parse_names
from layerbounds.comparison.compare import comparison_problems
from layerbounds.comparison.records import Record, compare_problems
from layerbounds.exceptions import CertificationError, InputError, LayerboundsError
from layerbounds.layers.weight_files import load_weights
from layerbounds.report.comparison import comparison_tables, excess
from layerbounds.report.comparison_plot import comparison_figure, plot_comparison

METHODS = ["rtn", "gptq", "gptq:act_order=true", "magnitude", "obs"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def layer() -> lb.Layer:
    """Three channels of ten correlated inputs."""
    rng = np.random.default_rng(5)
    x = np.maximum(rng.normal(size=(70, 10)) @ rng.normal(size=(10, 10)), 0.0)
    return lb.Layer(rng.normal(size=(3, 10)), x.T @ x / 70, "net.conv")


@pytest.fixture(scope="module")
def rows(layer: lb.Layer) -> list[dict[str, Any]]:
    return lb.compare(layer, bits=[2, 3], density=0.5, range=["mse", "gram"], methods=METHODS, jobs=1)


def test_every_row_has_the_bounds_of_its_own_grid(layer: lb.Layer, rows: list[dict[str, Any]]) -> None:
    problems = comparison_problems(layer, bits=[2, 3], density=0.5, range=["mse", "gram"])
    assert [p.label for p in problems] == [
        "2-bit symmetric per channel, mse",
        "2-bit symmetric per channel, gram",
        "3-bit symmetric per channel, mse",
        "3-bit symmetric per channel, gram",
        "pruning unstructured k=5 of 10 refit",
    ]
    bounds = set()
    for problem in problems:
        own = [row for row in rows if row["fingerprint"] == problem.fingerprint()]
        solution = lb.solve(problem, jobs=1)
        energy = layer.energy().sum()
        assert own[0]["method"] == "certified interval" and own[0]["kind"] == "certified"
        expected = METHODS[3:] if own[0]["family"] == "pruning" else ["rtn", "gptq", "gptq act_order=true"]
        assert [row["method"] for row in own[1:]] == expected
        bounds.add(own[0]["lower_bound"])
        for row in own:
            assert row["grid"] == problem.label and row["bits_per_weight"] == problem.bits_per_weight
            # Both intervals hold the optimum, and both are proven here.
            assert row["lower_bound"] == pytest.approx(solution.lower_bound.sum(), rel=1e-5)
            assert row["upper_bound"] == pytest.approx(solution.upper_bound.sum(), rel=1e-5)
            assert row["relative_error"] == pytest.approx(row["error"] / energy)
            assert row["sqnr_db"] == pytest.approx(-10 * math.log10(row["error"] / energy))
            assert row["best_sqnr_db"] == pytest.approx(-10 * math.log10(row["lower_bound"] / energy))
            excess = max(100 * (row["error"] / row["lower_bound"] - 1), 0.0)
            assert row["excess_percent"] == pytest.approx(excess, abs=1e-9)
            assert row["feasible"] and row["channels"] == 3 and row["layer"] == "net.conv"
            assert row["error"] >= row["lower_bound"] * (1 - 1e-12)
        assert own[0]["error"] == own[0]["upper_bound"]
        for row in own[1:]:
            name, _, option = row["method"].partition(" ")
            options = {"act_order": True} if option else {}
            score = lb.evaluate(problem, lb.run_heuristic(name, problem, **options))
            assert row["error"] == pytest.approx(score.error.sum(), rel=1e-14)
    assert len(bounds) == len(problems)


def test_records_are_flat_and_alike(rows: list[dict[str, Any]]) -> None:
    keys = list(rows[0])
    for row in rows:
        assert list(row) == keys
        assert all(value is None or isinstance(value, str | bool | int | float) for value in row.values())
    json.dumps(rows, allow_nan=False)


def test_bits_per_weight(layer: lb.Layer) -> None:
    problems = comparison_problems(layer, bits=3, codebook=["nf4", "ternary"], pattern=["2:4"])
    assert [p.bits_per_weight for p in problems] == pytest.approx([3.0, 4.0, math.log2(3), 16 * 0.6])
    assert [
        p.label.split(" ")[1] for p in comparison_problems(layer, density=0.5, pattern=["unstructured", "2:4"])
    ] == [
        "unstructured",
        "2:4",
    ]


def test_every_grid_with_every_pattern(layer: lb.Layer) -> None:
    how: dict[str, Any] = {"bits": [2, 3], "codebook": "nf4", "density": 0.3, "pattern": ["2:4", "unstructured"]}
    apart = comparison_problems(layer, **how)
    grids = [p.label for p in apart[:3]]
    assert [p.label for p in apart[3:]] == ["pruning 2:4 refit", "pruning unstructured k=3 of 10 refit"]
    together = comparison_problems(layer, joint=True, **how)
    assert [p.label for p in together] == [
        f"joint {grid}, {pattern}, zero a level" for grid in grids for pattern in ("2:4", "unstructured k=3 of 10")
    ]
    assert {p.family for p in together} == {"joint"}
    rows = lb.compare(layer, 2, density=0.3, joint=True, methods=[], time_limit=0.0, weights={"w": layer.weight})
    assert [row["family"] for row in rows] == ["joint"] * 3
    assert [row["kind"] for row in rows] == ["certified", "given", "given"]
    assert rows[2]["method"] == "w, rounded to the grid and pruned to the pattern" and rows[2]["feasible"]


def test_a_density_beside_an_n_m_pattern_is_unstructured(layer: lb.Layer) -> None:
    problems = comparison_problems(layer, density=[0.3, 0.5], pattern="2:4")
    assert [p.label for p in problems] == [
        "pruning unstructured k=3 of 10 refit",
        "pruning unstructured k=5 of 10 refit",
        "pruning 2:4 refit",
    ]


def test_masks_count_where_there_is_a_pattern(layer: lb.Layer) -> None:
    how: dict[str, Any] = {"bits": 3, "density": 0.3, "methods": [], "time_limit": 0.0, "jobs": 1}
    pruned = {mask: lb.compare(layer, mask=mask, **how) for mask in ("none", "bitmap", "entropy", "metadata")}
    assert {mask: [row["bits_per_weight"] for row in rows] for mask, rows in pruned.items()} == {
        "none": [3.0, pytest.approx(4.8)],
        "bitmap": [3.0, pytest.approx(5.8)],
        "entropy": [3.0, pytest.approx(4.8 + 0.7)],  # 120 masks: 7 bits
        "metadata": [3.0, pytest.approx(4.8 + 1.2)],  # three places of ten: 4 bits each
    }
    assert {row["mask"] for row in pruned["entropy"]} == {"entropy"}
    (title,) = (t.title for t in comparison_tables(pruned["entropy"].records)[1:])
    assert str(title).endswith("5.5 bits per weight, mask: entropy")


def test_the_interval_is_never_above_a_method() -> None:
    layer = lb.demo_layers()["conv2"]
    rows = lb.compare(layer, bits=3, channels=[0, 5], methods=["rtn", "lns:rounds=20"], time_limit=0.0, jobs=1)
    assert rows[0]["channels"] == 2
    for row in rows:
        assert row["lower_bound"] <= rows[0]["upper_bound"] <= row["error"] * (1 + 1e-9)


def test_equal_problems_are_treated_once(layer: lb.Layer) -> None:
    assert len(comparison_problems(layer, bits=[1, 1], range=["mse", "minmax"])) == 1


def test_default_methods_are_all_that_can(layer: lb.Layer) -> None:
    small = lb.Layer(layer.matrix[:1, :4], layer.gram[0][:4, :4])
    rows = lb.compare(small, bits=2, pattern="block:2", density=0.5, time_limit=1.0, jobs=1)
    names = [row["method"] for row in rows]
    assert {"rtn", "gptq", "obq", "adaround", "quantease", "ldlq", "babai_klein", "beam", "lns"} <= set(names)
    assert "magnitude" in names and "sparsegpt" not in names


def test_given_weights(layer: lb.Layer) -> None:
    problem = lb.quantization_problem(layer, bits=3)
    exact = lb.run_heuristic("gptq", problem)
    rows = lb.compare(layer, bits=3, methods=["gptq"], weights={"mine": exact, "dense": layer.weight}, jobs=1)
    named = {row["method"]: row for row in rows}
    assert list(named) == ["certified interval", "mine", "dense", "dense, rounded to the grid", "gptq"]
    assert named["mine"]["error"] == named["gptq"]["error"]
    assert named["mine"]["excess_percent"] == named["gptq"]["excess_percent"]
    # The dense weights have no error, but they are not on the grid: nothing is said about them.
    assert named["dense"]["error"] == 0 and not named["dense"]["feasible"]
    assert named["dense"]["excess_percent"] is None
    assert named["dense"]["note"].startswith("30 weights off the grid, by at most ")
    rounded = lb.evaluate(problem, lb.run_heuristic("rtn", problem)).error.sum()
    assert named["dense, rounded to the grid"]["error"] == pytest.approx(rounded)
    part = lb.compare(layer, bits=3, methods=[], weights={"all": exact, "part": exact[[2]]}, channels=[2], jobs=1)
    assert part[1]["error"] == part[2]["error"]


def test_a_bound_above_allowed_weights_is_an_error(layer: lb.Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any, **kwargs: Any) -> lb.Solution:
        solution = lb.solve(*args, **kwargs)
        solution.lower_bound[-1] = solution.upper_bound[-1] * 100
        return solution

    monkeypatch.setattr(comparison, "solve", wrong)
    with pytest.raises(CertificationError, match="'rtn' found allowed weights below the certified lower bound of"):
        lb.compare(layer, bits=2, methods=["rtn"], jobs=1)


def test_an_interrupt_keeps_what_is_finished(layer: lb.Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def interrupted(*args: Any, **kwargs: Any) -> lb.Solution:
        calls.append(args)
        # The first call is the trial on a tiny problem.
        if len(calls) == 3:
            raise KeyboardInterrupt
        return lb.solve(*args, **kwargs)

    monkeypatch.setattr(comparison, "solve", interrupted)
    result = compare_problems(comparison_problems(layer, bits=[2, 3, 4]), methods=["rtn"], jobs=1)
    assert result.interrupted and len(result.solutions) == 1
    assert [r.method for r in result.records] == ["certified interval", "rtn", "rtn"]
    assert result.records[2].lower_bound is None and result.records[2].excess_percent is None
    assert len(comparison_tables(result.records)) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "nothing to compare"),
        ({"bits": 9}, "bits is 9"),
        ({"bits": 3, "range": "max"}, "range is 'max'"),
        ({"pattern": "unstructured"}, "needs a density"),
        ({"bits": 3, "methods": ["gptg"]}, "did you mean gptq"),
        ({"bits": 3, "methods": ["magnitude"]}, "'magnitude' can treat none of the grids"),
        ({"bits": 3, "methods": ["rtn"], "jobs": 0}, "jobs is 0"),
        (
            {"bits": 3, "methods": [], "weights": {"mine": np.zeros((2, 10))}},
            r"\(2, 10\); pass shape \(3, 10\)",
        ),
        ({"bits": 3, "methods": ["rtn"], "channels": [7]}, "channels"),
    ],
)
def test_wrong_arguments_are_refused(layer: lb.Layer, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        lb.compare(layer, **arguments)


def test_zero_energy_and_zero_error() -> None:
    dead = lb.Layer(np.ones((1, 3)), np.zeros((3, 3)))
    row = lb.compare(dead, bits=2, methods=["rtn"], jobs=1)[1]
    assert row["error"] == 0 and row["sqnr_db"] is None and row["relative_error"] is None
    assert row["excess_percent"] == 0.0
    exact = lb.Layer([[1.0, -1.0]], np.eye(2))
    grid = lb.codebook_grid(exact.weight, "binary")
    row = lb.compare(exact, grids=[grid], methods=["rtn"], jobs=1)[1]
    assert row["sqnr_db"] == math.inf and row["excess_percent"] == 0.0


# --- reading lists and weights ---------------------------------------------------------------------------------------


def test_lists() -> None:
    assert parse_bits("2,3, 4") == [2, 3, 4]
    assert parse_bits("2:4,8") == [2, 3, 4, 8]
    assert parse_fractions("0.25,.5", "density") == [0.25, 0.5]
    assert parse_names("a, b,") == ["a", "b"]
    for text in ("", "x", "2,,3", "1.5"):
        with pytest.raises(InputError, match="cannot be read"):
            parse_bits(text)
    with pytest.raises(InputError, match="density 'much' cannot be read"):
        parse_fractions("much", "density")


def test_weight_files(layer: lb.Layer, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"model.net.conv.weight": layer.matrix, "model.net.bias": np.zeros(3)}, file)
    np.testing.assert_array_equal(load_weights(file, layer), layer.matrix)
    save_file({"net.conv.weight": layer.matrix.astype(np.float32)}, file)
    np.testing.assert_array_equal(load_weights(file, layer, [2, 0]), layer.matrix[[2, 0]].astype(np.float32))
    solution = lb.solve(lb.quantization_problem(layer, bits=2), channels=[2, 1], jobs=1)
    solution.save_weights(file)
    np.testing.assert_array_equal(load_weights(file, layer, [1]), solution.weights[[1]])
    with pytest.raises(InputError, match="no weights for channel 0"):
        load_weights(file, layer)
    save_file({"net.conv.weight": np.zeros((3, 9))}, file)
    with pytest.raises(InputError, match=r"shape \(3, 9\)"):
        load_weights(file, layer)
    save_file({"other": np.zeros(2)}, file)
    with pytest.raises(LayerboundsError, match="holds no weights"):
        load_weights(file, layer)


# --- command line and files ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layer_file(layer: lb.Layer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("layers") / "layers.safetensors"
    lb.save_layers(file, [layer])
    return file


def test_compare_prints_tables_and_writes_files(run: Run, layer_file: Path, layer: lb.Layer, tmp_path: Path) -> None:
    out = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "svg")}
    mine = tmp_path / "mine.safetensors"
    save_file({"net.conv.weight": layer.matrix}, mine)
    code, text, err = run(
        "compare", "--layer", "conv", "--bits", "2:3", "--density", "0.5", "--input", layer_file, "--methods",
        "rtn,gptq:damp=0.1,obs", "--weights", mine, "--channels", "0:2", "--json", out["json"], "--csv", out["csv"],
        "--plot", out["svg"], "--jobs", 1,
    )  # fmt: skip
    assert (code, err) == (0, "")
    lines = text.splitlines()
    titles = [line.strip() for line in lines if " · " in line]
    assert titles == [
        "net.conv · 2-bit symmetric per channel, mse · 2 channels",
        "net.conv · 3-bit symmetric per channel, mse · 2 channels",
        "net.conv · pruning unstructured k=5 of 10 refit · 2 channels",
    ]
    assert lines[1].split() == ["method", "error", "%", "SQNR", "dB", "at", "most", "%", "from", "optimal", "time", "s"]
    assert sum(line.startswith("certified interval") for line in lines) == 3
    assert sum(line.startswith("gptq damp=0.1") for line in lines) == 2
    assert "mine.safetensors, rounded to the grid" in text and "20 weights off the grid" in text
    record = json.loads(out["json"].read_text(encoding="utf-8"))
    assert set(record) == {"layerbounds", "interrupted", "records", "solutions", "options"}
    assert len(record["solutions"]) == 3 and record["options"]["channels"] == [0, 1]
    with out["csv"].open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["method"] for row in table] == [row["method"] for row in record["records"]]
    assert [float(row["error"]) for row in table] == [row["error"] for row in record["records"]]
    svg = out["svg"].read_text(encoding="utf-8")
    assert svg.startswith("<?xml") and "</svg>" in svg


def test_json_on_standard_output(run: Run, layer_file: Path) -> None:
    code, text, err = run(
        "compare", "--layer", "conv", "--bits", 2, "--input", layer_file, "--methods", "rtn", "--json", "-", "--jobs", 1
    )
    assert (code, err) == (0, "")
    assert [row["method"] for row in json.loads(text)["records"]] == ["certified interval", "rtn"]


def test_ctrl_c_prints_what_is_finished(run: Run, layer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(problem: lb.QuantizationProblem, *args: Any, **kwargs: Any) -> lb.Solution:
        if problem.layer.name == "net.conv":
            raise KeyboardInterrupt
        return lb.solve(problem, *args, **kwargs)

    monkeypatch.setattr(comparison, "solve", stop)
    code, out, err = run("compare", "--layer", "conv", "--bits", 2, "--input", layer_file, "--methods", "rtn")
    assert (code, err) == (130, "")
    assert out.splitlines()[-1].startswith("interrupted")
    assert any(line.startswith("rtn") for line in out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bits", "x"], "cannot be read at 'x'"),
        ([], "nothing to compare"),
        (["--bits", "2", "--methods", "gptg"], "did you mean gptq"),
        (["--bits", "2", "--plot", "out.jpg"], "ends in .svg"),
        (["--bits", "2", "--csv", "nowhere/out.csv"], "does not exist"),
        (["--bits", "2", "--weights", "nowhere.safetensors"], "does not exist"),
        (["--bits", "2", "--channels", "9"], "channel 9 does not exist"),
        (["--bits", "2", "--time-limit", "-1"], "'-1' is not a time"),
        (["--bits", "2", "--backend", "none"], "there is no backend 'none'"),
    ],
)
def test_bad_input_gets_one_line(run: Run, layer_file: Path, arguments: list[str], words: str) -> None:
    code, out, err = run("compare", "--layer", "conv", "--input", layer_file, *arguments)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err


def test_tables_rank_the_methods(rows: list[dict[str, Any]]) -> None:
    records = [Record(**row) for row in rows]
    for table in comparison_tables(records):
        cells = list(table.columns[0].cells)
        assert str(cells[0]) == "certified interval"
    assert excess(Record(**{**rows[1], "excess_percent": None})) == "–"
    assert excess(Record(**{**rows[1], "excess_percent": math.inf})) == "∞"
    # "At most" is rounded up; what counts as proven optimal is 0.00.
    for value, shown in ((1234.2, "1235"), (10.351, "10.36"), (0.0005, "0.01"), (5e-5, "0.00"), (0.0, "0.00")):
        assert excess(Record(**{**rows[1], "excess_percent": value})) == shown


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_pictures(rows: list[dict[str, Any]], tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / f"plot.{suffix}"
    plot_comparison(rows, file)
    start = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[suffix]
    assert file.read_bytes().startswith(start)
    again = tmp_path / f"again.{suffix}"
    plot_comparison(rows, again)
    if suffix != "pdf":
        assert again.read_bytes() == file.read_bytes()
    with pytest.raises(InputError, match="no records"):
        plot_comparison([], file)


def test_points_stand_at_their_bits(rows: list[dict[str, Any]]) -> None:
    pytest.importorskip("matplotlib")
    panels = comparison_figure(rows).axes
    assert len(panels) == len({re.sub(r"^\S*-bit | k=\d+ of \d+", "", row["grid"]) for row in rows})
    places = {row["bits_per_weight"] for row in rows}
    points = [line for axes in panels for line in axes.lines if line.get_linestyle() == "None"]
    assert len(points) >= sum(row["kind"] != "certified" for row in rows) > 0
    assert {float(line.get_xdata()[0]) for line in points} <= places
    for axes in panels:
        low, high = axes.get_xlim()
        assert all(low < tick < high for tick in axes.get_xticks())


@pytest.mark.parametrize("name", ["conv3", "model.layers.15.self_attn.q_proj", "decoder." * 12 + "q_proj"])
def test_titles_leave_the_key_free(rows: list[dict[str, Any]], name: str) -> None:
    pytest.importorskip("matplotlib")
    figure = comparison_figure([{**row, "layer": name} for row in rows if row["grid"] == rows[0]["grid"]])
    figure.draw_without_rendering()
    (title,) = figure.texts
    assert title.get_text().split(":")[0].endswith(name[-20:])
    assert not title.get_window_extent().overlaps(figure.legends[0].get_window_extent())
