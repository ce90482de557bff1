"""`layerbounds finetune`: the same training as from Python, in files, with clear refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.cli.main import main

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402

MODEL = """
import torch
def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
"""
COMMAND = [
    "finetune", "--model", "model.py:make", "--data", "data.npz", "--key", "x", "--labels", "data.npz", "--labels-key",
    "y", "--divide", "2", "--epochs", "3", "--batch-size", "16", "--out", "out.safetensors",
]  # fmt: skip
JOINT = ["--schedule", "prune@0:0.4 quantize@0.5", "--bits", "3", "--density", "0.5"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL, encoding="utf-8")
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    np.savez("data.npz", x=x, y=x[:, :3].argmax(1))
    return tmp_path


def test_a_training_in_files(capsys: pytest.CaptureFixture[str]) -> None:
    capture = ["capture", "--model", "model.py:make", "--data", "data.npz", "--key", "x", "--divide", "2"]
    assert main([*capture, "--out", "layers.safetensors"]) == 0
    capsys.readouterr()
    words = [*COMMAND, *JOINT, "--holdout", "10", "--log", "log.csv", "--original", "layers.safetensors"]
    assert main([*words, "--resume", "training.pt", "--json", "out.json"]) == 0
    table = capsys.readouterr().out
    assert "validation loss" in table and "error %" in table
    record = json.loads(Path("out.json").read_text(encoding="utf-8"))
    with Path("log.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [float(row["validation_loss"]) for row in rows] == [row["validation_loss"] for row in record["history"]]
    layers, state = lb.load_layers("layers.safetensors"), load_file("out.safetensors")
    assert [row["layer"] for row in record["layers"]] == ["0", "2"]
    for row in record["layers"]:
        layer = layers[row["layer"]]
        problem = lb.joint_problem(layer, 3, scale=np.array(row["scale"]), density=0.5)
        score = lb.evaluate(problem, state[f"{row['layer']}.weight"], snap=True)
        assert row["feasible"] and score.feasible.all()
        assert score.error.sum() / layer.energy().sum() == pytest.approx(row["relative_error"], rel=1e-9)
        assert row["nonzero"] <= 0.5
    # The same command goes on from the finished checkpoint and writes the same weights.
    assert main([*words, "--resume", "training.pt", "--json", "out.json"]) == 0
    again = load_file("out.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in state.items())
    assert json.loads(Path("out.json").read_text(encoding="utf-8"))["resumed"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--schedule", "prune"], "cannot be read at 'prune'"),
        (["--schedule", "quantize@0"], "nothing says how far"),
        ([*JOINT, "--holdout", "50"], "leave some to train on"),
        ([*JOINT, "--holdout", "-1"], "--holdout is -1"),
        ([*JOINT, "--labels-key", "z"], "z"),
        ([*JOINT, "--labels-key", "x"], "fails on the first batch"),
        ([*JOINT, "--original", "data.npz"], "data.npz"),
        ([*JOINT, "--log", "out.safetensors"], "are the same file"),
        ([*JOINT, "--layers", "7"], "7"),
    ],
)
def test_what_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, *words]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not Path("out.safetensors").exists()


def test_labels_and_samples_must_agree(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("labels.npy", np.zeros(7, dtype=np.int64))
    words = [*COMMAND, *JOINT]
    at = words.index("--labels")
    words[at : at + 4] = ["--labels", "labels.npy"]
    assert main(words) == 2
    assert "7 labels for 50 samples" in capsys.readouterr().err
