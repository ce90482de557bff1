"""The command line: results, files, exit codes, and errors as one line."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.cli.console import fits
from layerbounds.cli.main import main
from layerbounds.cli.options import parse_channels, parse_granularity
from layerbounds.exceptions import InputError
from layerbounds.report.files import plain
from layerbounds.report.tables import channel_table, total_line

Run = Callable[..., tuple[int, str, str]]

PROJECT = Path(__file__).resolve().parent.parent
STATUSES = {"optimal", "gap_reached", "time_limit", "node_limit", "interrupted"}
CHANNEL_KEYS = {
    "channel",
    "lower_bound",
    "upper_bound",
    "relative_lower_bound",
    "relative_upper_bound",
    "sqnr_db",
    "status",
    "bound_kind",
    "claimed_lower_bound",
    "seconds",
    "nodes",
}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; returns (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def layer_file(tmp_path: Path, rng: np.random.Generator) -> Callable[..., Path]:
    """Write a layer file with one small layer, some of whose tensors are replaced."""

    def make(name: str = "net.block.conv1", **tensors: Float) -> Path:
        x = rng.normal(size=(40, 5))
        content = {"weight": rng.normal(size=(3, 5)), "gram": x.T @ x / 40} | tensors
        path = tmp_path / "layers.safetensors"
        save_file({f"{name}.{key}": np.ascontiguousarray(value) for key, value in content.items()}, path)
        return path

    return make


def strict_json(text: str) -> Any:
    """Parse JSON, without the NaN and Infinity that Python would let pass."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def assert_error(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_solve_prints_a_table_and_writes_files(run: Run, tmp_path: Path) -> None:
    record, weights = tmp_path / "out.json", tmp_path / "out.safetensors"
    code, out, err = run(
        "solve", "--layer", "conv3", "--bits", 3, "--channels", "0:2", "--json", record, "--save-weights", weights
    )
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("conv3 · 3-bit symmetric per channel, mse · backend native")
    assert [line.split()[0] for line in lines[3:5]] == ["0", "1"]
    assert all("optimal" in line for line in lines[3:5])
    assert re.fullmatch(
        r"conv3: 2 of 2 channels proven optimal \(the layer has 24\) · relative error [\d.]+ % · SQNR [\d.]+ dB · "
        r"prepared in [\d.]+ s, searched [\d.]+ s",
        lines[5],
    )
    assert len(lines) == 6

    content = strict_json(record.read_text(encoding="utf-8"))
    assert {"problem", "channels", "layer"} <= set(content)
    assert content["problem"]["layer"] == "conv3"
    assert [row["channel"] for row in content["channels"]] == [0, 1]
    for row in content["channels"]:
        assert set(row) >= CHANNEL_KEYS
        assert row["status"] == "optimal"
        assert 0 < row["lower_bound"] <= row["upper_bound"] <= row["lower_bound"] * (1 + 1.1e-6)
        assert row["claimed_lower_bound"] is None
    assert content["layer"]["optimal"] == 2
    assert content["options"]["bits"] == 3
    assert content["layerbounds"] == lb.__version__

    # The saved weights are on the grid and have the error that the interval states.
    problem = lb.quantization_problem(lb.demo_layers()["conv3"], bits=3)
    saved = load_file(weights)
    np.testing.assert_array_equal(saved["conv3.channels"], [0, 1])
    assert saved["conv3.weight"].shape == (2, 16, 2, 2)
    scored = lb.evaluate(problem, saved["conv3.weight"], channels=[0, 1])
    assert scored.feasible.all()
    np.testing.assert_allclose(scored.error, [row["upper_bound"] for row in content["channels"]], rtol=1e-9)
    assert not list(tmp_path.glob("*.part"))
    if sys.platform != "win32":
        (tmp_path / "ordinary").touch()
        assert stat.S_IMODE(record.stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


def test_json_on_stdout_is_alone(run: Run) -> None:
    code, out, err = run("solve", "--layer", "conv3", "--bits", 2, "--channels", "3", "--json", "-", "--node-limit", 50)
    assert (code, err) == (0, "")
    content = strict_json(out)
    assert [row["channel"] for row in content["channels"]] == [3]
    assert content["channels"][0]["status"] in STATUSES


def test_undefined_numbers(run: Run, layer_file: Callable[..., Path], rng: np.random.Generator) -> None:
    weight = rng.normal(size=(2, 5))
    weight[1] = 0.0
    arguments = ("solve", "--layer", "conv1", "--bits", 3, "--input", layer_file(weight=weight))
    code, out, _ = run(*arguments)
    assert code == 0
    row = out.splitlines()[4].split()
    assert row[0] == "1"
    assert row[3:5] == ["–", "–"]  # relative error and SQNR of a channel without energy
    code, out, _ = run(*arguments, "--json", "-")
    undefined = strict_json(out)["channels"][1]
    assert undefined["upper_bound"] == 0.0
    assert undefined["relative_upper_bound"] is None
    assert undefined["sqnr_db"] == [None, None]


def test_suffix_of_a_name_is_enough(run: Run, layer_file: Callable[..., Path]) -> None:
    code, out, _ = run("solve", "--layer", "conv1", "--bits", 2, "--input", layer_file(), "--json", "-")
    assert code == 0
    assert strict_json(out)["problem"]["layer"] == "net.block.conv1"


@pytest.mark.parametrize(
    ("options", "label"),
    [
        (["--bits", "4", "--granularity", "tensor"], "4-bit symmetric per tensor, mse"),
        (["--bits", "3", "--granularity", "2", "--range", "minmax"], "3-bit symmetric per group of 2, minmax"),
        (["--bits", "3", "--asymmetric"], "3-bit asymmetric per channel, mse"),
        (["--codebook", "nf4"], "nf4 per channel, mse"),
        (["--codebook", "mxfp4"], "mxfp4 per group of 32, mse"),
        (["--bits", "1"], "binary per channel, mse"),
    ],
)
def test_grid_options(run: Run, layer_file: Callable[..., Path], options: list[str], label: str) -> None:
    code, out, err = run("solve", "--layer", "conv1", "--input", layer_file(), *options, "--json", "-")
    assert (code, err) == (0, "")
    content = strict_json(out)
    assert content["problem"]["allowed"] == label
    assert {row["status"] for row in content["channels"]} == {"optimal"}


def test_layer_names_with_brackets_are_printed_as_they_are(run: Run, layer_file: Callable[..., Path]) -> None:
    path = layer_file(name="blocks[0].[bold]conv")
    code, out, _ = run("solve", "--layer", "blocks[0].[bold]conv", "--bits", 2, "--input", path)
    assert code == 0
    assert out.startswith("blocks[0].[bold]conv · ")
    assert "blocks[0].[bold]conv" in run("layers", "--input", path)[1]


def test_unknown_layer(run: Run) -> None:
    assert_error(run("solve", "--layer", "conv33", "--bits", 3), "did you mean conv3", "conv1, conv2, conv3, fc")


def test_nan_in_a_file(run: Run, layer_file: Callable[..., Path]) -> None:
    weight = np.ones((3, 5))
    weight[1, 2] = np.nan
    assert_error(run("solve", "--layer", "conv1", "--bits", 3, "--input", layer_file(weight=weight)), "conv1", "1 NaN")


def test_truncated_file(run: Run, layer_file: Callable[..., Path]) -> None:
    path = layer_file()
    path.write_bytes(path.read_bytes()[:-9])
    for command in (["solve", "--layer", "conv1", "--bits", "3"], ["layers"]):
        assert_error(run(*command, "--input", path), str(path), "truncated")


def test_missing_file(run: Run, tmp_path: Path) -> None:
    assert_error(run("layers", "--input", tmp_path / "absent.safetensors"), "does not exist")


@pytest.mark.parametrize(
    ("gram", "words"), [(np.eye(5) + np.eye(5, k=1), "not symmetric"), (-np.eye(5), "not positive semidefinite")]
)
def test_bad_gram(run: Run, layer_file: Callable[..., Path], gram: Float, words: str) -> None:
    assert_error(run("solve", "--layer", "conv1", "--bits", 3, "--input", layer_file(gram=gram)), "conv1", words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bits", "0"], "bits is 0"),
        (["--bits", "9"], "bits is 9"),
        (["--bits", "three"], "'--bits'"),
        (["--bits"], "--bits"),
        ([], "--bits or --codebook"),
        (["--bits", "3", "--codebook", "nf4"], "--bits or --codebook"),
        (["--codebook", "nf5"], "available: binary, ternary"),
        (["--codebook", "nf4", "--asymmetric"], "no zero point"),
        (["--bits", "3", "--range", "max"], "'minmax'"),
        (["--bits", "3", "--granularity", "layer"], "tensor, channel"),
        (["--bits", "3", "--granularity", "-1"], "granularity is -1"),
        (["--bits", "3", "--backend", "nativ"], "did you mean native"),
        (["--bits", "3", "--jobs", "0"], "jobs is 0"),
        (["--bits", "3", "--time-limit", "nan"], "'--time-limit': 'nan' is not a time"),
        (["--bits", "3", "--time-limit", "-1"], "'--time-limit': '-1' is not a time"),
        (["--bits", "3", "--gap", "1"], "gap is 1"),
        (["--bits", "3", "--node-limit", "0"], "node_limit is 0"),
        (["--bits", "3", "--channels", "zero"], "half-open slices"),
        (["--bits", "3", "--channels", "0-8"], "half-open slices"),
        (["--bits", "3", "--channels", "24"], "channels 0 to 23"),
        (["--bits", "3", "--channels", "5:5"], "select nothing"),
        (["--bits", "3", "--channels", "0:3,1"], "twice"),
        (["--bits", "3", "--channels", "0:3:0"], "zero"),
        (["--bits", "3", "--json", "/dev/null/x/y.json"], "cannot write"),
        (["--bits", "3", "--save-weights", "/"], "cannot write"),
        (["--bits", "3", "--no-such-option"], "--no-such-option"),
    ],
)
def test_bad_options(run: Run, options: list[str], words: str) -> None:
    assert_error(run("solve", "--layer", "conv3", *options), words)


def test_bad_commands(run: Run) -> None:
    assert_error(run("sovle"), "sovle")
    assert_error(run("solve", "--bits", 3), "--layer")
    assert_error(run("layers", "--json", "/dev/null/x.json"), "cannot write")


def test_output_paths_are_checked_before_the_search(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the search has begun")

    monkeypatch.setattr("layerbounds.cli.solve.solve", never)
    solve = ("solve", "--layer", "conv3", "--bits", 3)
    for option in ("--json", "--save-weights"):
        assert_error(run(*solve, option, tmp_path / "absent" / "out"), str(tmp_path / "absent"), "create it first")
        assert_error(run(*solve, option, tmp_path), "not a regular file")

    def read_only(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("layerbounds.report.files.tempfile.TemporaryFile", read_only)
    for option in ("--json", "--save-weights"):
        assert_error(run(*solve, option, tmp_path / "out"), "not writable (Permission denied)")


def test_a_file_that_fails_in_the_end_does_not_take_the_others_along(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise InputError("cannot write out.json (No space left on device); choose another file.")

    monkeypatch.setattr("layerbounds.cli.solve.write_json", full)
    weights = tmp_path / "out.safetensors"
    options = ["--json", str(tmp_path / "out.json"), "--save-weights", str(weights)]
    assert main(["solve", "--layer", "conv1", "--bits", "2", "--channels", "0", *options]) == 2
    out, err = capsys.readouterr()
    assert err == "error: cannot write out.json (No space left on device); choose another file.\n"
    assert "conv1: 1 of 1 channel proven optimal" in out
    assert weights.is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="devices are those of POSIX")
def test_json_to_a_device(run: Run) -> None:
    code, out, _ = run("layers", "--json", "/dev/null")
    assert code == 0
    assert "conv3" in out
    assert Path("/dev/null").is_char_device()
    assert_error(run("solve", "--layer", "conv3", "--bits", 3, "--save-weights", "/dev/null"), "not a regular file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_full_standard_output() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "layerbounds", "layers"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")


def test_layers(run: Run, tmp_path: Path) -> None:
    code, out, err = run("layers")
    assert (code, err) == (0, "")
    conv2 = next(line for line in out.splitlines() if line.startswith("conv2"))
    assert conv2.split() == ["conv2", "16x16x3x3", "144", "1", "144", "144", "8192", "–"]
    code, out, _ = run("layers", "--json", tmp_path / "layers.json")
    assert code == 0
    assert "conv2" in out
    rows = strict_json((tmp_path / "layers.json").read_text(encoding="utf-8"))["layers"]
    assert [row["name"] for row in rows] == ["conv1", "conv2", "conv3", "fc"]
    assert rows[1]["weight_shape"] == [16, 16, 3, 3]
    assert strict_json(run("layers", "--json", "-")[1])["layers"] == rows


def test_layers_tells_what_was_repaired(run: Run, layer_file: Callable[..., Path], rng: np.random.Generator) -> None:
    x = np.zeros((40, 5))
    x[:, 1:] = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 4))  # one dead input, rank 2
    gram = x.T @ x / 40
    top = np.linalg.eigvalsh(gram)[-1]
    gram[1:, 1:] -= 1e-8 * top * np.eye(4)
    gram[1, 2] += 1e-9 * top
    path = layer_file(gram=gram)
    row = strict_json(run("layers", "--input", path, "--json", "-")[1])["layers"][0]
    assert (row["live_inputs"], row["rank"], row["projected"]) == ([4], [2], [True])
    line = next(line for line in run("layers", "--input", path)[1].splitlines() if line.startswith("net.block.conv1"))
    assert "set to 0" in line
    assert "symmetrised" in line


def test_long_names_are_not_cut_off_in_a_pipe(run: Run, layer_file: Callable[..., Path]) -> None:
    name = ".".join(f"block{i}" for i in range(40))
    path = layer_file(name=name)
    assert any(line.startswith(name) for line in run("layers", "--input", path)[1].splitlines())


def test_narrow_terminals_get_fewer_columns_instead_of_cut_numbers(run: Run) -> None:
    problem = lb.quantization_problem(lb.demo_layers()["conv1"], bits=2)
    solution = lb.solve(problem, channels=[0, 1])
    wide, narrow = Console(width=80), Console(width=60)
    assert fits(wide, channel_table(solution))
    assert not fits(narrow, channel_table(solution))
    assert fits(narrow, channel_table(solution, compact=True))
    with narrow.capture() as capture:
        narrow.print(channel_table(solution, compact=True))
    assert "…" not in capture.get()
    assert capture.get().count("optimal") == 2


def test_unproven_results_are_shown_as_intervals() -> None:
    problem = lb.quantization_problem(lb.demo_layers()["conv1"], bits=2)
    solution = lb.solve(problem, channels=[0, 1])
    unproven = dataclasses.replace(
        solution,
        lower_bound=np.array([0.5, 0.0]),
        upper_bound=np.array([1.0, 1.0]),
        energy=np.array([100.0, 10.0]),
        status=[lb.Status.TIME_LIMIT, lb.Status.INTERRUPTED],
        claimed_lower_bound=np.array([0.9, np.nan]),
        seconds=np.array([1.0, 2.0]),
        preparation_seconds=0.25,
    )
    console = Console(width=200)
    with console.capture() as capture:
        console.print(channel_table(unproven))
    lines = capture.get().splitlines()
    assert lines[1].endswith("claimed, unproven")
    assert lines[3].split() == ["0", "0.5000", "1.000", "1.000", "20.00–23.01", "50.00", "time_limit", "1.00", "0.9000"]
    assert lines[4].split() == ["1", "0", "1.000", "10.00", "10.00–∞", "100.00", "interrupted", "2.00", "–"]
    assert total_line(unproven) == (
        "conv1: 0 of 2 channels proven optimal (the layer has 16) · relative error 0.4545–1.818 % · "
        "SQNR 17.4–23.4 dB · prepared in 0.25 s, searched 3.00 s"
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.array([1.0, np.nan]), [1.0, None]),
        (np.float64(np.inf), None),
        ((np.int64(3), np.bool_(True), "x", None), [3, True, "x", None]),
        ({1: Path("a")}, {"1": "a"}),
    ],
)
def test_json_values(value: object, expected: object) -> None:
    assert plain(value) == expected


def test_backends_and_heuristics(run: Run) -> None:
    code, out, err = run("backends")
    assert (code, err) == (0, "")
    assert re.search(r"^native .* yes ", out, re.MULTILINE)
    assert re.search(r"^batched .* yes ", out, re.MULTILINE)
    assert out.splitlines()[-1].startswith("auto, the default, is no backend of its own")
    rows = strict_json(run("backends", "--json", "-")[1])["backends"]
    assert [row["name"] for row in rows] == [row.name for row in lb.backends()]
    code, out, err = run("heuristics")
    assert (code, err) == (0, "")
    rows = strict_json(run("heuristics", "--json", "-")[1])["heuristics"]
    assert [row["name"] for row in rows] == lb.heuristics()
    assert all(re.search(rf"^{name} ", out, re.MULTILINE) for name in lb.heuristics())


def test_version_and_help(run: Run) -> None:
    assert run("--version") == (0, f"layerbounds {lb.__version__}\n", "")
    for arguments in ([], ["--help"], ["solve", "-h"]):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        assert "Usage: layerbounds" in out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("0:8", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("0,3,5:7", [0, 3, 5, 6]),
        (":2", [0, 1]),
        ("8:", [8, 9]),
        ("8:99", [8, 9]),
        ("-1", [9]),
        ("-2:", [8, 9]),
        ("::4", [0, 4, 8]),
        ("5, 1:3", [5, 1, 2]),
        (":", list(range(10))),
    ],
)
def test_channel_selections_follow_python(text: str | None, expected: list[int] | None) -> None:
    assert parse_channels(text, 10) == expected


@pytest.mark.parametrize("text", ["", ",", "1,", "a:b", "1:2:3:4", "1.5", "10", "-11", "3:3", "1,1", "0x1", "1 2"])
def test_bad_channel_selections(text: str) -> None:
    with pytest.raises(InputError, match="channel"):
        parse_channels(text, 10)


def test_granularity_is_a_word_or_a_number() -> None:
    assert [parse_granularity(text) for text in (None, "tensor", "channel", "128")] == [None, "tensor", "channel", 128]
    with pytest.raises(InputError, match="granularity"):
        parse_granularity("layer")


def test_the_example_in_the_readme(rng: np.random.Generator, capsys: pytest.CaptureFixture[str]) -> None:
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    dense = rng.normal(size=(2, 6))
    step = np.array([0.5, 0.4])
    rounded = step[:, None] * np.clip(np.rint(dense / step[:, None]), -4, 3)
    names = {"W": dense, "X": rng.normal(size=(50, 6)), "V": rounded}
    exec(example, names)
    found = re.fullmatch(r"scales \[(.*)\]: within (.*) % of the best possible.*\n", capsys.readouterr().out)
    assert found is not None
    # A row may use every second or third code only.
    multiple = np.array([float(number) for number in found[1].split()]) / step
    np.testing.assert_allclose(multiple, np.rint(multiple), rtol=1e-6)
    assert names["mine"].feasible.all() and float(found[2]) >= 0.0  # type: ignore[attr-defined]


def test_as_a_process() -> None:
    command = [sys.executable, "-m", "layerbounds", "solve", "--layer", "nowhere", "--bits", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert_error((done.returncode, done.stdout, done.stderr), "nowhere")


#: The command line, with a line on stderr when the search of a channel begins: compilation takes its time before. The
#: handler is set because jobs in the background of a shell script inherit that interrupts are ignored.
ANNOUNCING = """
import signal
import sys
from layerbounds.solvers.native import NativeBackend
from layerbounds.cli.console import fits
from layerbounds.cli.main import main

search = NativeBackend.solve

def announce(self, task, control):
    sys.stderr.write("searching\\n")
    sys.stderr.flush()
    return search(self, task, control)

NativeBackend.solve = announce
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process")
def test_interrupted_run_saves_what_it_has(tmp_path: Path) -> None:
    record, weights = tmp_path / "out.json", tmp_path / "out.safetensors"
    options = ["--bits", "4", "--channels", "0:4", "--time-limit", "60", "--jobs", "2"]
    files = ["--json", str(record), "--save-weights", str(weights)]
    process = subprocess.Popen(
        [sys.executable, "-c", ANNOUNCING, "solve", "--layer", "conv2", *options, *files],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "searching\n"
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    # A kernel that no other test has needed before is compiled here, and said so.
    lines = set(err.splitlines()) - {"layerbounds: compiling kernels, once"}
    assert lines <= {"searching"}
    assert "interrupted" in out
    content = strict_json(record.read_text(encoding="utf-8"))
    assert content["interrupted"] is True
    assert len(content["channels"]) == 4
    for row in content["channels"]:
        assert 0 <= row["lower_bound"] <= row["upper_bound"]
    assert "interrupted" in {row["status"] for row in content["channels"]}
    problem = lb.quantization_problem(lb.demo_layers()["conv2"], bits=4)
    assert lb.evaluate(problem, load_file(weights)["conv2.weight"], channels=range(4)).feasible.all()
