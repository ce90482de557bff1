"""``layerbounds run``: options, outputs, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import layerbounds as lb
from layerbounds.cli.main import main


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    layers = []
    for number, (out, n) in enumerate([(3, 4), (2, 6)]):
        inputs = rng.normal(size=(50, n))
        layers.append(lb.Layer(rng.normal(size=(out, n)), inputs.T @ inputs / 50, f"net.{number}"))
    path = tmp_path / "capture.safetensors"
    lb.save_layers(path, layers)
    return path


def command(capture: Path, out: Path, *more: str) -> list[str]:
    return ["run", "--input", str(capture), "--out", str(out), "--parallel", "threads", "--jobs", "1", *more]


def test_everything_is_written(capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    weights = tmp_path / "mine.safetensors"
    save_file({f"net.{i}.weight": layer.weight for i, layer in enumerate(lb.load_layers(capture).values())}, weights)
    code = main(
        command(
            capture, out, "--bits", "2:3", "--density", ".5", "--pattern", "2:4,unstructured", "--total-time", "2m",
            "--weights", f"mine={weights}", "--json", str(tmp_path / "run.json"), "--methods", "gptq,magnitude",
        )
    )  # fmt: skip
    assert code == 0
    printed = capsys.readouterr()
    assert "INT2" in printed.out and "pruned to 2:4" in printed.out and str(out / "report.csv") in printed.err
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert record["complete"] and record["options"]["total_time"] == 120.0 and len(record["records"]) == 8
    run = lb.load_run(out)
    assert {label for entry in run.entries for label in entry.methods} == {"gptq", "magnitude", "mine"}
    assert (out / "report.csv").is_file()


def test_json_alone_on_standard_output(capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--bits", "2", "--time-limit", "0", "--methods", "", "--json", "-", "--channels", "0"]
    assert main(command(capture, tmp_path / "run", *more)) == 0
    record = json.loads(capsys.readouterr().out)
    assert [entry.layer.channels for entry in lb.load_run(tmp_path / "run").entries] == [[0], [0]]
    assert record["interrupted"] is False


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "nothing to find out"),
        (["--bits", "9"], "between 1 and 8"),
        (["--bits", "2", "--total-time", "soon"], "is not a time"),
        (["--bits", "2", "--channels", "0:2", "--channels-sample", "2"], "not both"),
        (["--bits", "2", "--channels", "9"], "does not exist"),
        (["--bits", "2", "--parallel", "elsewhere"], "parallel"),
        (["--bits", "2", "--weights", "a=absent.safetensors"], "absent.safetensors"),
        (["--bits", "2", "--joint"], "joint"),
        (["--bits", "2", "--methods", "magnitude"], "magnitude"),
    ],
)
def test_bad_input_has_exit_code_2(
    capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert main(command(capture, tmp_path / "run", *more)) == 2
    printed = capsys.readouterr()
    assert said in printed.err and "Traceback" not in printed.err and printed.out == ""


def test_a_run_goes_on_and_others_are_refused(
    capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(command(capture, out, "--bits", "2", "--time-limit", "0")) == 0
    first = lb.load_run(out)
    assert main(command(capture, out, "--bits", "2", "--time-limit", "1")) == 0
    second = lb.load_run(out)
    for a, b in zip(first.entries, second.entries, strict=True):
        assert np.all(a.lower <= b.lower) and np.all(b.upper <= a.upper) and b.status == ["optimal"] * len(b.sets)
    assert main(command(capture, out, "--bits", "3")) == 2
    assert "other compressions" in capsys.readouterr().err
