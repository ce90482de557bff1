"""What a run leaves on the disk: after kills, damage, a full disk, and beside another process."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kill_points
import numpy as np
import pytest

import layerbounds as lb
from layerbounds.certify.solution_file import SOLUTIONS
from layerbounds.cli.main import main
from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.network import dispatch, lock, plan, survey
from layerbounds.network.entries import Entry
from layerbounds.network.folder import RunFolder
from layerbounds.network.manifest import write_manifest
from layerbounds.network.result import open_run
from layerbounds.network.run import refine

OPTIONS = kill_points.OPTIONS
#: Seconds within which other processes answer, on a busy machine.
PROMPT = 60.0


@pytest.fixture(scope="module", autouse=True)
def fast() -> Iterator[None]:
    """Each piece of first bounds is worked on once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "carry_out", kill_points.remembering())
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two layers at two compressions, in two chunks each; not to be changed."""
    folder = tmp_path_factory.mktemp("durable") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "LEAST_ROWS", 2)
        patch.setattr(survey, "ROWS_PER_INPUT", 0.0)
        lb.run(kill_points.make_layers(), out=folder, **OPTIONS)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it."""
    monkeypatch.setattr(survey, "LEAST_ROWS", 2)
    monkeypatch.setattr(survey, "ROWS_PER_INPUT", 0.0)
    return Path(shutil.copytree(made, tmp_path / "run"))


def run_again(folder: Path, **more: Any) -> lb.NetworkRun:
    return lb.run(kill_points.make_layers(), out=folder, **{**OPTIONS, **more})


def loaded(folder: Path) -> lb.NetworkRun:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lb.load_run(folder)


def records(folder: Path) -> list[Path]:
    return sorted((folder / "records").iterdir())


def said(run: lb.NetworkRun) -> list[dict[str, Any]]:
    return [kill_points.numbers(entry) for entry in run.entries]


def agrees(found: dict[str, Any], known: dict[str, Any]) -> bool:
    """Whether an entry's numbers are the known ones wherever it has any."""
    limit = np.array(found["limit"])
    return all(
        np.array_equal(np.array(found[name])[limit >= 0], np.array(known[name])[limit >= 0])
        for name in ("lower", "upper", "limit")
    ) and all(
        np.array_equal(np.array(errors)[limit >= 0], np.array(known["errors"][label])[limit >= 0])
        for label, errors in found["errors"].items()
    )


# Kills


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What is left by runs that were killed at different write points."""
    if not hasattr(os, "fork"):
        pytest.skip("there is no fork")
    done = subprocess.run(
        [sys.executable, str(Path(kill_points.__file__)), str(tmp_path_factory.mktemp("kills")), "24"],
        capture_output=True, text=True, timeout=10 * PROMPT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_kills_at_write_points(killed: list[dict[str, Any]]) -> None:
    whole, *kills = killed
    assert whole["code"] == 0 and len(whole["names"]) > 100
    assert len({kill["point"] for kill in kills}) == 24
    end = kills[0]["end"]
    pieces = sum("begun" in line for line in whole["lines"])
    assert pieces == 8 == sum("announced" in line for line in whole["lines"])
    for kill in kills:
        point = kill["point"]
        assert kill["code"] == -signal.SIGKILL, point
        announced = {
            tuple(line["announced"]["number"]): line["announced"] for line in kill["lines"] if "announced" in line
        }
        assert kill["state"] is not None or not announced, point
        for entry in kill["state"] or []:
            # The last word on the entry is what the disk has, but for the one chunk that was not announced any more.
            before = announced.pop(tuple(entry["number"]), None)
            assert agrees(entry, next(e for e in end if e["number"] == entry["number"])), point
            assert before is None or agrees(before, entry), point
        assert not announced, point
        assert kill["resumed"] == 0 and kill["parts"] == [], point
        assert all(min(entry["limit"]) >= 0 for entry in kill["end"]), point
        assert all(agrees(*pair) for pair in zip(kill["end"], end, strict=True)), point
        begun = sum("begun" in line for line in kill["lines"] + kill["more"])
        assert pieces <= begun <= pieces + 1, point


# Damage


def flipped(path: Path, where: int, how: int) -> None:
    content = bytearray(path.read_bytes())
    content[where] ^= how
    path.write_bytes(content)


def test_flipped_bytes_of_records(folder: Path, rng: np.random.Generator) -> None:
    known = said(lb.load_run(folder))
    path = records(folder)[1]
    content = path.read_bytes()
    # The whole header, and places in the arrays.
    header = 8 + int.from_bytes(content[:8], "little")
    places = {
        *rng.choice(header, 40, replace=False).tolist(),
        *range(8),
        *rng.integers(header, len(content), 20).tolist(),
    }
    refused = 0
    for where in sorted(places):
        flipped(path, where, int(rng.integers(1, 256)))
        run = loaded(folder)
        assert all(agrees(*pair) for pair in zip(said(run), known, strict=True)), where
        if run.left_out:
            refused += 1
            assert len(run.left_out) == 1 and str(path) in run.left_out[0] and "delete it" in run.left_out[0]
            with pytest.raises(FileFormatError, match="delete it and repeat the command"):
                open_run(RunFolder(folder))
        else:
            assert said(run) == known or content[where : where + 1] == b" "
        path.write_bytes(content)
    assert refused > 0.9 * len(places)


def test_flipped_bytes_of_the_manifest(folder: Path, rng: np.random.Generator) -> None:
    known = said(lb.load_run(folder))
    path = folder / "run.json"
    content = path.read_bytes()
    reasons: list[str] = []
    for where in rng.choice(len(content), 60, replace=False).tolist():
        flipped(path, where, int(rng.integers(1, 256)))
        try:
            run = lb.load_run(folder)
        except FileFormatError as error:
            reasons.append(str(error))
            with pytest.raises(FileFormatError):
                open_run(RunFolder(folder))
        else:
            # What was flipped is a space between two values.
            assert said(run) == known and not run.left_out
        path.write_bytes(content)
    assert len(reasons) > 30 and all(str(path) in reason and "\n" not in reason for reason in reasons)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, -1])
def test_truncated_files(folder: Path, length: int) -> None:
    for path in (records(folder)[0], folder / "run.json"):
        content = path.read_bytes()
        path.write_bytes(content[:length])
        with pytest.raises(FileFormatError, match=path.name):
            run_again(folder)
        assert path.read_bytes() == content[:length]
        path.write_bytes(content)
    run_again(folder)


def test_a_damaged_record_takes_nothing_else_away(folder: Path) -> None:
    known = said(lb.load_run(folder))
    flipped(records(folder)[0], -1, 1)
    with pytest.warns(UserWarning, match=r"left out: .*records.*it is damaged"):
        run = lb.load_run(folder)
    assert not run.complete and sum(entry.visited for entry in run.entries) == 3
    records(folder)[0].unlink()
    assert not lb.load_run(folder).left_out
    assert said(run_again(folder)) == known


@pytest.mark.parametrize("command", [["report"], ["allocate", "--budget", "9"]])
def test_damage_on_the_command_line(folder: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    flipped(records(folder)[0], -1, 1)
    assert main([command[0], str(folder), *command[1:]]) == 0
    said = capsys.readouterr().err
    assert len([line for line in said.splitlines() if line.startswith("warning: left out: ")]) == 1
    assert "UserWarning" not in said


def test_a_lost_manifest_is_written_again(folder: Path) -> None:
    known, begun = said(lb.load_run(folder)), []
    (folder / "run.json").unlink()
    with pytest.raises(FileFormatError, match="holds no run"):
        lb.load_run(folder)
    assert said(run_again(folder, progress=lambda *_: begun.append(1))) == known and not begun


def test_records_under_other_names(folder: Path) -> None:
    first, second, *_ = records(folder)
    content = second.read_bytes()
    shutil.copy(first, second)
    with pytest.raises(FileFormatError, match=rf"{second.name} is no record of this run \(it is of other channels\)"):
        run_again(folder)
    second.write_bytes(content)
    other = records(folder)[-1]
    shutil.copy(other, first)
    with pytest.raises(FileFormatError, match="it is of another layer or another compression"):
        run_again(folder)
    first.rename(first.with_name("mine.safetensors"))
    with pytest.raises(FileFormatError, match=r"mine.safetensors is no record of this run; move it away"):
        run_again(folder)
    assert len(loaded(folder).left_out) == 1


def test_records_of_equal_layers(tmp_path: Path) -> None:
    """Layers of equal weights whose names differ in odd letters alone."""
    layer = kill_points.make_layers()["first"]
    layers = {name: lb.Layer(layer.weight, layer.gram[0], name) for name in ("a/b", "a.b", "a_b", "A_B")}
    given = {"mine": {name: layer.weight * factor for factor, name in enumerate(layers, 2)}}
    run = lb.run(layers, out=tmp_path / "run", weights=given, **OPTIONS)
    known = said(run)
    assert len(records(tmp_path / "run")) == len(run.entries) == 8
    assert said(lb.load_run(tmp_path / "run")) == known
    errors = [entry.methods["mine"].errors.sum() for entry in run.entries[1::2]]
    assert len(set(errors)) == 4
    shutil.copy(records(tmp_path / "run")[0], records(tmp_path / "run")[2])
    assert len(loaded(tmp_path / "run").left_out) == 1


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what a record says, with a seal that fits."""
    tensors, about = SOLUTIONS.read(path)
    change(about)
    SOLUTIONS.write(path, tensors, about, 1)


def test_other_versions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = records(folder)[0]
    content = first.read_bytes()
    rewrite(first, lambda about: about.update(layerbounds="0.0.9"))
    with pytest.raises(FileFormatError, match=r"version 0\.0\.9"):
        run_again(folder)
    first.write_bytes(content)
    monkeypatch.setattr(plan, "__version__", "99")
    with pytest.raises(InputError, match="holds a run of another version"):
        run_again(folder)
    monkeypatch.setattr("layerbounds.network.result.__version__", "99")
    with pytest.raises(FileFormatError, match="holds a run of layerbounds"):
        open_run(RunFolder(folder))
    # Reading needs no more than the schema.
    assert lb.load_run(folder).complete
    manifest = RunFolder(folder).read_manifest()
    write_manifest(folder / "run.json", {**manifest, "schema": 2})
    with pytest.raises(FileFormatError, match="has schema 2"):
        lb.load_run(folder)


def test_records_of_other_runs(folder: Path) -> None:
    first = records(folder)[0]
    content = first.read_bytes()
    rewrite(first, lambda about: about["run"].update(seed=1))
    with pytest.raises(FileFormatError, match="it is of a run with another seed"):
        run_again(folder)
    first.write_bytes(content)
    score = {"errors": [0.5, 0.5], "feasible": True, "seconds": 0.0, "given": "0123"}
    rewrite(first, lambda about: about["run"]["methods"].update(mine=score))
    write_manifest(folder / "run.json", {**RunFolder(folder).read_manifest(), "given": {"mine": "4567"}})
    with pytest.raises(FileFormatError, match="its weights 'mine' are others"):
        run_again(folder)
    first.write_bytes(content)
    with pytest.raises(InputError, match="weights 'mine' are others than those"):
        run_again(folder, weights={"mine": {"first": np.zeros((4, 6))}})


def test_odd_records(folder: Path) -> None:
    """Sealed, and yet none: a sentence, too."""
    first = records(folder)[0]
    content = first.read_bytes()
    changes: list[Callable[[dict[str, Any]], Any]] = [
        lambda about: about.pop("run"),
        lambda about: about["run"].pop("limit"),
        lambda about: about["run"].update(limit=[0.0]),
        lambda about: about["run"].update(limit="long"),
        lambda about: about["run"].update(methods=[]),
        lambda about: about["run"].update(entry=None),
        lambda about: about["intervals"].update(status=None),
    ]
    for change in changes:
        rewrite(first, change)
        with pytest.raises(FileFormatError, match="it is no whole record"):
            run_again(folder)
        first.write_bytes(content)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"bits": 3}, "other compressions"),
        ({"seed": 1}, "another seed"),
        ({"channels": [0]}, "other layers or channels"),
    ],
)
def test_folders_of_other_runs(folder: Path, changed: dict[str, Any], what: str) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    with pytest.raises(InputError, match=f"holds a run of {what}"):
        run_again(folder, **changed)
    layers = kill_points.make_layers()
    layers["first"] = lb.Layer(layers["first"].weight * 2, layers["first"].gram[0], "first")
    with pytest.raises(InputError, match="holds a run of other layers"):
        lb.run(layers, out=folder, **OPTIONS)
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before


def test_kept_layers(folder: Path) -> None:
    path = folder / "layers.safetensors"
    content = path.read_bytes()
    flipped(path, -1, 1)
    run_again(folder)
    assert path.read_bytes() == content
    path.write_bytes(b"mine")
    (folder / "run.json").unlink()
    with pytest.raises(InputError, match="holds other layers than those of this run"):
        run_again(folder)
    assert path.read_bytes() == b"mine"


def test_refining_other_layers(folder: Path) -> None:
    content = (folder / "layers.safetensors").read_bytes()
    layers = kill_points.make_layers()
    other = {**layers, "first": lb.Layer(layers["first"].weight * 2, layers["first"].gram[0], "first")}
    options: dict[str, Any] = {"budget": 2.0, "parallel": "threads", "jobs": 1}
    with pytest.raises(InputError, match="layer 'first' is not the one that the run is about"):
        refine(folder, 0.1, layers=other, **options)
    with pytest.raises(InputError, match="the run is about 2 other layers"):
        refine(folder, 0.1, layers=layers["first"], **options)
    assert (folder / "layers.safetensors").read_bytes() == content
    flipped(folder / "layers.safetensors", -1, 1)
    with pytest.raises(InputError, match=r"layer '\w+' is not the one that the run is about"):
        refine(folder, 0.1, **options)
    assert refine(folder, 0.1, layers=layers, **options).complete
    assert (folder / "layers.safetensors").read_bytes() == content


def test_returned_records_are_checked(folder: Path) -> None:
    run = open_run(RunFolder(folder))
    entry = run.entries[0]
    good, other = (run.folder.record(entry, chunk).read_bytes() for chunk in (0, 1))
    before = said(run)
    for bad, reason in ((other, "it is of other channels"), (good[:-1], "incomplete"), (b"", "incomplete")):
        with pytest.raises(InputError, match=f"what came back for layer 'first', INT2, is not kept .*{reason}"):
            run.folder.put(entry, 0, bad)
    assert said(run) == before and run.folder.record(entry, 0).read_bytes() == good
    assert not list(folder.rglob("*.part"))


def test_leftovers_are_removed(folder: Path) -> None:
    (folder / "records" / f"{records(folder)[0].name}x1.part").write_bytes(b"half")
    (folder / "run.jsonx2.part").write_bytes(b"half")
    (folder / "mine.part").write_bytes(b"whole")
    lb.load_run(folder)
    assert len(list(folder.rglob("*.part"))) == 3
    run_again(folder)
    assert [path.name for path in folder.rglob("*.part")] == ["mine.part"]


# The lock


def test_one_run_at_a_time(folder: Path) -> None:
    seen: list[str] = []

    def other() -> None:
        with pytest.raises(InputError, match="is in use by another run of this process"):
            run_again(folder)
        lb.load_run(folder)
        seen.append((folder / "lock").read_text())

    with RunFolder(folder).locked():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert json.loads(seen[0])["pid"] == os.getpid()
    assert (folder / "lock").read_text() == ""
    run_again(folder)


def test_the_lock_of_another_process(folder: Path) -> None:
    pytest.importorskip("fcntl")
    code = (
        "import fcntl, json, os, sys, time\nfile = open(sys.argv[1], 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "file.write(json.dumps({'pid': os.getpid(), 'host': 'here'}))\nfile.flush()\n"
        "print('held', flush=True)\ntime.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder / "lock")], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"is in use by process {process.pid} on here; wait for its end"):
            run_again(folder)
    finally:
        process.kill()
        process.communicate()
    # What it had said of itself is still there.
    assert json.loads((folder / "lock").read_text())["pid"] == process.pid
    run_again(folder)


def test_odd_locks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "lock").write_text("of my bicycle")
    with pytest.raises(InputError, match="is no lock of a run; move it away"):
        run_again(folder)
    assert (folder / "lock").read_text() == "of my bicycle"
    (folder / "lock").unlink()
    (folder / "lock").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*lock \("):
        run_again(folder)
    (folder / "lock").rmdir()

    def none(_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock, "_seize", none)
    with pytest.raises(InputError, match=r"cannot lock .*; choose a folder on a drive that has locks"):
        run_again(folder)


def test_a_lock_that_was_deleted(folder: Path) -> None:
    run = open_run(RunFolder(folder))
    with run.folder.locked():
        (folder / "lock").unlink()
        with pytest.raises(InputError, match="was deleted or replaced while the run worked in it"):
            run.folder.put(run.entries[0], 0, records(folder)[0].read_bytes())


def test_a_silent_holder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_INTRODUCTION", 0.0)
    with lock.hold(folder / "lock"):
        (folder / "lock").write_text("")
        with pytest.raises(InputError, match="is in use by another process"), lock.hold(folder / "lock"):
            pass


# Disks and folders


class FullDisk:
    """Files of a folder cannot be written any more after so many."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, after: int, number: int = errno.ENOSPC) -> None:
        self.left = after
        write = Path.write_bytes

        def full(path: Path, data: bytes) -> int:
            if folder in path.parents:
                self.left -= 1
                if self.left < 0:
                    write(path, data[: len(data) // 2])
                    raise OSError(number, os.strerror(number))
            return write(path, data)

        monkeypatch.setattr(Path, "write_bytes", full)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    known = said(lb.load_run(folder))
    for path in records(folder)[:5]:
        path.unlink()
    with monkeypatch.context() as patch:
        FullDisk(patch, folder, 2, number)
        with pytest.raises(
            InputError, match=rf"cannot write .*{os.strerror(number)}.*; free space and repeat the command"
        ):
            run_again(folder)
    assert len(records(folder)) == 5 and not list(folder.rglob("*.part"))
    assert not lb.load_run(folder).left_out
    assert said(run_again(folder)) == known


def test_a_disk_that_fails_when_it_syncs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records(folder)[0].unlink()

    def fail(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(InputError, match=r"cannot write .*run.json \(Input/output error\); free space"):
            run_again(folder)
    assert len(records(folder)) == 7 and lb.load_run(folder).left_out == []


def test_a_limit_of_file_sizes(folder: Path) -> None:
    resource = pytest.importorskip("resource")
    known = said(lb.load_run(folder))
    for path in records(folder):
        path.unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(*_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))

    try:
        with pytest.raises(InputError, match=r"cannot write .*File too large"):
            run_again(folder, progress=limit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(records(folder)) == 1
    assert said(run_again(folder)) == known


def test_folders_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"cannot create the folder .*file \(File exists\)"):
        run_again(tmp_path / "file")
    with pytest.raises(InputError, match=r"cannot create the folder .*none/run \(No such file or directory\)"):
        run_again(tmp_path / "none" / "run")
    with pytest.raises(InputError, match=r"cannot create the folder .*file/run \(Not a directory\)"):
        run_again(tmp_path / "file" / "run")
    for path in (tmp_path / "file", tmp_path / "none", tmp_path / "file" / "run"):
        with pytest.raises(FileFormatError):
            lb.load_run(path)

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match=r"cannot create the folder .*run \(Read-only file system\)"):
        run_again(tmp_path / "run")


def test_folders_without_permission(folder: Path) -> None:
    records(folder)[0].unlink()
    (folder / "records").chmod(0o500)
    folder.chmod(0o500)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
        assert len(lb.load_run(folder).entries) == 4
        with pytest.raises(InputError, match=r"cannot write .*run.json \(Permission denied\)"):
            run_again(folder)
        folder.chmod(0o700)
        with pytest.raises(InputError, match=r"cannot write .*records.* \(Permission denied\)"):
            run_again(folder)
    finally:
        folder.chmod(0o700)
        (folder / "records").chmod(0o700)


# Ctrl-C


def hard_layers(rng: np.random.Generator) -> dict[str, lb.Layer]:
    """Layers whose searches take minutes."""
    layers = {}
    for name in ("first", "second"):
        x = rng.normal(size=(200, 96)) @ rng.normal(size=(96, 96))
        layers[name] = lb.Layer(rng.normal(size=(4, 96)), x.T @ x / 200, name)
    return layers


def press_ctrl_c(after: float) -> None:
    def press() -> None:
        time.sleep(after)
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    pressed.clear()
    threading.Thread(target=press, daemon=True).start()


#: When Ctrl-C was pressed last.
pressed: list[float] = []


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_in_threads(tmp_path: Path, rng: np.random.Generator, jobs: int) -> None:
    layers, options = hard_layers(rng), {**OPTIONS, "bits": 3, "density": None, "methods": ["rtn"], "jobs": jobs}
    run = lb.run(
        layers, out=tmp_path / "run", listener=lambda _: press_ctrl_c(0.5), **{**options, "time_limit": 1000.0}
    )  # fmt: skip
    assert time.monotonic() - pressed[0] < PROMPT / 4
    assert run.interrupted and run.complete
    assert said(lb.load_run(tmp_path / "run")) == said(run) and not list(tmp_path.rglob("*.part"))
    # Searches that nobody waits for end, too.
    until = time.monotonic() + PROMPT
    while any(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.05)
    again = lb.run(layers, out=tmp_path / "run", **options)
    assert said(again) == said(run) and not again.interrupted


def test_ctrl_c_between_disk_and_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = said(lb.load_run(folder))
    for path in records(folder)[2:]:
        path.unlink()
    absorb, calls = Entry.absorb, []

    def interrupted(entry: Entry, record: Any, first: int) -> None:
        calls.append(first)
        if len(calls) == 4:
            raise KeyboardInterrupt
        absorb(entry, record, first)

    monkeypatch.setattr(Entry, "absorb", interrupted)
    run = run_again(folder)
    assert run.interrupted and said(run) == said(lb.load_run(folder))
    assert sum(min(entry["limit"]) >= 0 or max(entry["limit"]) >= 0 for entry in said(run)) >= 2
    assert len(records(folder)) == 4
    assert said(run_again(folder)) == known


def test_ctrl_c_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records(folder)[0].unlink()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def announce(*_: object) -> None:
        monkeypatch.setattr(Entry, "absorb", interrupt)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_again(folder, progress=announce)
    monkeypatch.undo()
    assert len(records(folder)) == 8 and not lb.load_run(folder).left_out
    with RunFolder(folder).locked():
        pass


_IN_PROCESSES = """
import os, signal, sys, threading
import layerbounds as lb

def press(run):
    threading.Timer(2.0, os.killpg, (os.getpgid(0), signal.SIGINT)).start()

if __name__ == "__main__":
    options = dict(bits=3, methods=["rtn"], time_limit=1000.0, parallel="processes", jobs=2)
    run = lb.run(None, out=sys.argv[1], listener=press, **options)
    print(run.interrupted, run.complete, len([e for e in run.entries if e.visited]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are counted in /proc")
def test_ctrl_c_in_processes(tmp_path: Path) -> None:
    """All of a terminal's processes get Ctrl-C; none stays, and none says anything."""
    script = tmp_path / "script.py"
    script.write_text(_IN_PROCESSES)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    text, _ = process.communicate(timeout=5 * PROMPT)
    assert process.returncode == 0 and text == "True True 4\n"
    assert not lb.load_run(tmp_path / "run").left_out
    until = time.monotonic() + PROMPT
    while kill_points.group(process.pid):
        assert time.monotonic() < until
        time.sleep(0.1)
