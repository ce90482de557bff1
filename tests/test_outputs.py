"""Output is what was asked for: no two outputs on one file, none onto an input, and records that say what was asked."""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

import layerbounds as lb
from layerbounds.cli.main import app, main
from layerbounds.cli.outputs import FOLDER_FILES, check_outputs
from layerbounds.exceptions import InputError
from layerbounds.layers.files import atomic_path
from layerbounds.report.tables import fixed

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
#: What each command needs to get as far as its outputs, and the options whose files it reads.
NEEDED: dict[str, list[str]] = {
    "solve": ["--layer", "a", "--bits", "2"],
    "capture": ["--model", "{model}", "--data", "{data}", "--out", "default"],
    "compress": ["--model", "{model}", "--data", "{data}", "--out", "default", "--bits", "2"],
    "finetune": ["--model", "{model}", "--data", "{data}", "--labels", "y", "--out", "new", "--schedule", "prune@0"],
    "compare": ["--layer", "a", "--bits", "2"],
    "score": ["--checkpoint", "{input}"],
    "versus": ["--layer", "a", "--bits", "2"],
    "order": ["--layer", "a", "--bits", "2", "--density", "0.5"],
    "run": ["--out", "default", "--bits", "2"],
    "report": ["{folder}"],
    "allocate": ["{folder}", "--budget", "3"],
    "theory": [],
    "tensors": ["{input}"],
    "verify": ["{input}"],
    "layers": [],
    "backends": [],
    "heuristics": [],
    "ranges": [],
}
INPUTS = (
    "--input", "--weights", "--checkpoint", "--data", "--model", "--compressed-weights", "--preprocess", "--template",
    "--map", "--original", "--labels", "--problem", "--targets",
)  # fmt: skip
FILE_OUTPUTS = {"FILE", "OUT", "DIR"}


def outputs_of(command: str) -> list[str]:
    """The options that name a file to write, found by what their help calls the value."""
    found = []
    for parameter in COMMANDS[command].params:
        name = max(parameter.opts, key=len)
        if parameter.metavar in FILE_OUTPUTS and name not in INPUTS and name != "--input" and name.startswith("--"):
            found.append(name)
    return found


def inputs_of(command: str) -> list[str]:
    return [max(p.opts, key=len) for p in COMMANDS[command].params if max(p.opts, key=len) in INPUTS]


PAIRS = [(c, *pair) for c in COMMANDS for pair in itertools.combinations(outputs_of(c), 2)]
ONTO = [(c, out, source) for c in COMMANDS for out in outputs_of(c) for source in inputs_of(c)]


def without(words: list[str], given: tuple[object, ...]) -> list[str]:
    """Options and their values, less those that are given otherwise."""
    return [word for pair in zip(words[::2], words[1::2], strict=True) if pair[0] not in given for word in pair]


@pytest.fixture
def layer(rng: np.random.Generator) -> lb.Layer:
    x = rng.normal(size=(30, 5))
    return lb.Layer.from_activations(rng.normal(size=(3, 5)), x, "a")


@pytest.fixture
def call(
    tmp_path: Path, layer: lb.Layer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """Run a command with what it needs; nothing may be read or computed."""
    monkeypatch.chdir(tmp_path)
    lb.save_layers("layers.safetensors", [layer])
    for name in ("model.py", "data.npy"):
        Path(name).write_bytes(b"never read")
    names = {"model": "model.py:make", "data": "data.npy", "input": "layers.safetensors", "folder": "."}

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the work has begun")

    for target in (
        "solve.read_layers",
        "compare.read_layers",
        "score.read_layers",
        "versus.read_layers",
        "order.read_layers",
        "layers.read_layers",
        "run.read_layers",
    ):
        monkeypatch.setattr(f"layerbounds.cli.{target}", never)
    models = ("capture.read_inputs", "compress.read_inputs", "finetune.read_inputs")
    for target in (*models, "theory.curve", "tensors.read_weights"):
        monkeypatch.setattr(f"layerbounds.cli.{target}", never)

    def run(command: str, *arguments: object) -> tuple[int, str]:
        words = [word.format(**names) for word in NEEDED[command]]
        needed = words if len(words) % 2 else without(words, arguments)
        code = main([command, *needed, *map(str, arguments)])
        return code, capsys.readouterr().err

    return run


def test_the_commands_are_known() -> None:
    assert set(NEEDED) == set(COMMANDS)
    several = {"solve", "capture", "compress", "compare", "score", "versus", "order", "run", "theory", "tensors"}
    several |= {"finetune"}
    assert {c for c, *_ in PAIRS} == several
    assert len(PAIRS) >= 18 and len(ONTO) >= 25


@pytest.mark.parametrize(("command", "one", "other"), PAIRS)
def test_two_outputs_to_one_file(call: Callable[..., tuple[int, str]], command: str, one: str, other: str) -> None:
    Path("sub").mkdir()
    # The same place under another name.
    code, err = call(command, one, "out.svg", other, "sub/../out.svg")
    assert code == 2 and "are the same file" in err and one in err and other in err
    assert not Path("out.svg").exists()


@pytest.mark.parametrize(("command", "out", "source"), ONTO)
def test_an_output_onto_an_input(
    call: Callable[..., tuple[int, str]], command: str, out: str, source: str, tmp_path: Path
) -> None:
    if out == "--out" and command == "versus":
        file = "run/versus.json"
        Path("run").mkdir()
        given = "run"
    else:
        file = given = "input.svg"
    Path(file).write_bytes(b"precious")
    value = f"{file}:make" if source in ("--model", "--preprocess") else file
    code, err = call(command, source, value, out, given)
    assert code == 2 and "would replace" in err and source in err
    assert Path(file).read_bytes() == b"precious"


def test_the_file_of_tensors_is_an_input(call: Callable[..., tuple[int, str]]) -> None:
    code, err = call("tensors", "--json", "layers.safetensors")
    assert code == 2 and "would replace" in err


def test_links_and_folders(tmp_path: Path) -> None:
    source, link, hard = tmp_path / "in.json", tmp_path / "link.json", tmp_path / "hard.json"
    source.write_text("x")
    link.symlink_to(source)
    os.link(source, hard)
    for other in (link, hard):
        with pytest.raises(InputError, match="would replace"):
            check_outputs({"--json": other}, {"--input": source})
        with pytest.raises(InputError, match="same file"):
            check_outputs({"--json": other, "--csv": source}, {})
    # Nothing in a model directory is replaced; a new file may be put there.
    with pytest.raises(InputError, match="would replace"):
        check_outputs({"--out": source}, {"--model": tmp_path})
    check_outputs({"--out": tmp_path / "new.safetensors"}, {"--model": tmp_path})
    for name in FOLDER_FILES:
        with pytest.raises(InputError, match="same file"):
            check_outputs({"--json": tmp_path / "run" / name}, {}, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_devices_take_any_number_of_outputs_and_standard_output_is_no_file(tmp_path: Path) -> None:
    check_outputs({"--json": "/dev/null"}, {"--input": "/dev/null"})
    check_outputs({"--json": "-", "--csv": tmp_path / "-"}, {})
    check_outputs({"--json": None, "--csv": None}, {"--input": None})


def names_of(command: str) -> set[str]:
    return {max(p.opts, key=len).lstrip("-").replace("-", "_") for p in COMMANDS[command].params} - {"help"}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("solve", ["--input", "layers.safetensors", "--layer", "a", "--bits", "2", "--gap", "0.5"]),
        ("compare", ["--input", "layers.safetensors", "--layer", "a", "--bits", "2", "--methods", "rtn"]),
        ("versus", ["--input", "layers.safetensors", "--layer", "a", "--bits", "2", "--time-limit", "0"]),
        ("theory", ["--bits", "2"]),
        ("tensors", ["layers.safetensors", "--bits", "2"]),
    ],
)
def test_the_record_holds_every_option(
    command: str, words: list[str], tmp_path: Path, layer: lb.Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lb.save_layers("layers.safetensors", [layer])
    assert main([command, *words, "--json", "out.json"]) == 0
    options = json.loads(Path("out.json").read_text(encoding="utf-8"))["options"]
    names = {name if name != "option" else "backend_options" for name in names_of(command)}
    assert names <= set(options)
    assert options["json"] == "out.json"
    if command == "solve":
        assert names == set(options)
        assert options["bits"] == 2 and options["gap"] == 0.5 and options["input"] == "layers.safetensors"
        assert options["granularity"] is None and options["backend"] == "auto" and options["layer"] == "a"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bits", "3", "--granularity", "0"], "granularity is 0"),
        (["--bits", "3", "--density", "0.5", "--mask-only"], "leave out --mask-only"),
        (["--codebook", "nf4", "--k", "2", "--scale", "free"], "together need a fixed grid; leave out --scale"),
        (["--density", "0.5", "--range", "mse"], "leave them out when pruning"),
        (["--density", "0.5", "--granularity", "channel"], "leave them out when pruning"),
        (["--density", "0.5", "--symmetric"], "leave them out when pruning"),
        (["--density", "0.5", "--k", "2"], "either density or k"),
        (["--density", "0.5", "--pattern", "2:4"], "leave out density and k"),
        (["--codebook", "nf4", "--asymmetric"], "no zero point"),
    ],
)
def test_contradicting_options(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["solve", "--layer", "conv1", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["solve", "compare", "versus"])
def test_no_granularity_of_zero(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--layer", "conv1", "--bits", "3", "--granularity", "0"]) == 2
    assert "granularity is 0" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["solve.plot_trace", "compare.plot_comparison", "versus.plot_comparison"])
def test_what_cannot_be_written_takes_nothing_with_it(
    target: str, tmp_path: Path, layer: lb.Layer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lb.save_layers("layers.safetensors", [layer])
    fail(monkeypatch, target)
    command = target.partition(".")[0]
    picture = "--trace-plot" if command == "solve" else "--plot"
    words = ["--input", "layers.safetensors", "--layer", "a", "--bits", "2", "--time-limit", "0"]
    assert main([command, *words, picture, "out.svg", "--json", "out.json"]) == 2
    out, err = capsys.readouterr()
    assert "cannot write out.svg" in err and "2-bit" in out
    assert json.loads(Path("out.json").read_text(encoding="utf-8"))["options"]["json"] == "out.json"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("theory.plot_errors", ["--bits", "2", "--plot", "out.svg"]),
        ("tensors.plot_tensors", ["layers.safetensors", "--bits", "2", "--plot", "out.svg"]),
        ("tensors.write_table", ["layers.safetensors", "--bits", "2", "--csv", "out.csv"]),
    ],
)
def test_nor_does_it_where_nothing_is_searched(
    target: str,
    words: list[str],
    tmp_path: Path,
    layer: lb.Layer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    lb.save_layers("layers.safetensors", [layer])
    fail(monkeypatch, target)
    assert main([target.partition(".")[0], *words, "--json", "out.json"]) == 2
    out, err = capsys.readouterr()
    assert "cannot write" in err and out and Path("out.json").exists()


def test_nor_does_the_state_of_a_compressed_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    Path("tiny_model.py").write_text("import torch\ndef make(): return torch.nn.Linear(3, 2)\n", encoding="utf-8")
    np.save("x.npy", np.random.default_rng(0).normal(size=(30, 3)))
    fail(monkeypatch, "compress._save")
    words = ["--model", "tiny_model.py:make", "--data", "x.npy", "--bits", "3", "--no-intervals", "--method", "rtn"]
    assert main(["compress", *words, "--out", "w.safetensors", "--json", "out.json"]) == 2
    out, err = capsys.readouterr()
    assert "cannot write" in err and "error %" in out
    assert len(json.loads(Path("out.json").read_text(encoding="utf-8"))["layers"]) == 1


def fail(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """Let a function of a command find a full disk."""

    def full(*_: object, **__: object) -> None:
        raise InputError("cannot write out.svg (No space left on device); choose another file.")

    monkeypatch.setattr(f"layerbounds.cli.{target}", full)


def test_a_full_disk_is_bad_luck_and_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write .*No space left"), atomic_path(tmp_path / "a.csv"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())


def test_shards_of_an_index_are_inputs(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}), encoding="utf-8")
    for name in ("one.safetensors", "two.safetensors", "other.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("one.safetensors", "two.safetensors", index.name):
        with pytest.raises(InputError, match="would replace"):
            check_outputs({"--csv": tmp_path / name}, {"--weights": index})
    check_outputs({"--csv": tmp_path / "other.safetensors"}, {"--weights": index})
    index.write_text("no index", encoding="utf-8")
    check_outputs({"--csv": tmp_path / "one.safetensors"}, {"--weights": index})


@pytest.mark.parametrize("option", ["--csv", "--plot", "--save-weights", "--out"])
def test_only_records_are_printed(option: str) -> None:
    with pytest.raises(InputError, match=f"{option} cannot go to standard output"):
        check_outputs({option: "-"}, {})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["solve", "--layer", "conv1"], "--density, --k or --pattern N:M to prune"),
        (["solve", "--layer", "conv1", "--mask-only"], "nothing says how many inputs are kept"),
        (["versus"], "pass --layer NAME or --all"),
        (["versus", "--layer", "conv1", "--all"], "not both"),
        (["versus", "--layer", "conv1", "--pattern", "2:4"], "write N:16, with the letter N"),
    ],
)
def test_what_is_missing_is_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_zero_has_no_sign() -> None:
    assert [fixed(value, 1) for value in (-0.0, -0.04, -0.06, None)] == ["0.0", "0.0", "-0.1", "–"]
