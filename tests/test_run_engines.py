"""Where pieces of a run are carried out: threads, processes and clusters, and what happens when workers die."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joblib.externals.loky import process_executor

import layerbounds as lb
from layerbounds.cli.main import main
from layerbounds.contests.contest import Rules
from layerbounds.exceptions import CertificationError, InputError, LeftOutWarning, MissingExtraError
from layerbounds.network import dispatch, engines
from layerbounds.network.choices import Choice, make_choices
from layerbounds.network.dispatch import ATTEMPTS, DEATHS, Dispatch, Outcome
from layerbounds.network.engines import Engine, Place, parse_place
from layerbounds.network.handles import Held, OfFile, Parcel
from layerbounds.network.pieces import Finished, Piece
from layerbounds.network.shelf import SHELF, Shelf, clear_process, prepare_process
from layerbounds.network.survey import layer_digest
from layerbounds.search import shared_results
from layerbounds.search.shared_results import Recent, keep_more

#: Seconds within which an interrupted run must return, on a busy machine.
PROMPT = 8.0


def make_layer(n: int = 6, rows: int = 4, seed: int = 0, name: str = "layer") -> lb.Layer:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(80, n)) @ rng.normal(size=(n, n))
    return lb.Layer(rng.normal(size=(rows, n)), inputs.T @ inputs / 80, name)


def bounds(run: lb.NetworkRun) -> list[list[float]]:
    return [[*entry.lower, *entry.upper] for entry in run.entries]


# What `parallel` says.


@pytest.mark.parametrize(
    "text",
    ["", "thread", "loky", "dask", "dask://", "dask://host", "dask://:8786", "dask://h:0", "dask://h:99999", "ray://x",
     "threads://h:1", 3, None],
)  # fmt: skip
def test_odd_places_are_refused(text: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="parallel is "):
        lb.run(make_layer(), out=tmp_path / "run", bits=2, parallel=text)
    assert not (tmp_path / "run").exists()


def test_places() -> None:
    assert parse_place(" threads ") == Place("threads")
    assert parse_place("processes") == Place("processes")
    assert parse_place("dask://10.0.0.5:8786") == Place("dask", "10.0.0.5:8786")


@pytest.mark.parametrize(("text", "module"), [("dask://h:1", "distributed"), ("ray", "ray")])
def test_missing_extras_are_named(text: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    extra = text.partition(":")[0]
    with pytest.raises(MissingExtraError, match=rf"needs {module}.*pip install 'layerbounds\[{extra}\]'"):
        parse_place(text)


def test_a_scheduler_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(engines, "ANSWER", 0.3)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        begin = time.perf_counter()
        with pytest.raises(InputError, match=f"no Dask scheduler answers at {address}"):
            lb.run(make_layer(), out=tmp_path / "run", bits=2, parallel=f"dask://{address}")
        assert time.perf_counter() - begin < PROMPT


# How a layer gets to a worker.


def a_choice(**wanted: Any) -> Choice:
    return make_choices(Rules(), **wanted)[0]


@pytest.mark.parametrize("wanted", [{"bits": 3}, {"density": 0.5}, {"pattern": "2:4"}])
def test_a_parcel_is_the_same_on_the_other_side(wanted: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(12, 20)).astype(np.float32)
    # Rounding leaves this matrix with eigenvalues on both sides of zero, and validation moves them.
    gram = (inputs.T @ inputs / 12).astype(np.float64)
    gram[0, 0] -= 1e-7 * gram.max()
    layer = lb.Layer(rng.normal(size=(4, 20)), gram, target=rng.normal(size=(4, 20)), constant=rng.random(4))
    choice = a_choice(**wanted)
    parcel = Parcel(layer, layer_digest(layer), [choice])
    there: Parcel = pickle.loads(pickle.dumps(parcel))
    again, problems = there.read()
    assert layer_digest(again) == parcel.digest == there.digest
    assert problems[choice].fingerprint() == choice.problem(layer).fingerprint()
    assert problems[choice].layer is again and again.gram is again.validated_gram.matrices
    assert again.gram_reports == layer.gram_reports
    assert sys.getsizeof(parcel) >= layer.gram.nbytes


def test_a_parcel_of_another_version_is_refused() -> None:
    layer = make_layer()
    parcel = Parcel(layer, layer_digest(layer), [])
    parcel.version = "0.0.0"
    with pytest.raises(InputError, match=r"the run is of 0\.0\.0; install the same version there"):
        pickle.loads(pickle.dumps(parcel)).read()


def test_a_process_reads_a_layer_once_and_keeps_the_last_ones(tmp_path: Path) -> None:
    layers = {f"l{i}": make_layer(seed=i, name=f"l{i}") for i in range(3)}
    path = tmp_path / "layers.safetensors"
    lb.save_layers(path, layers)
    handles = [OfFile(str(path), name, layer_digest(lb.load_layers(path)[name])) for name in layers]
    choices = [a_choice(bits=2), a_choice(bits=3)]
    prints = [[c.problem(lb.load_layers(path)[name]).fingerprint() for c in choices] for name in layers]
    roomy, narrow = Shelf(), Shelf(most=1)
    for shelf, expected in ((roomy, 2), (narrow, 4)):
        for _ in range(2):
            for number in (0, 1):
                for choice, fingerprint in zip(choices, prints[number], strict=True):
                    problem = shelf.problem(handles[number], choice, fingerprint)
                    assert problem is shelf.problem(handles[number], choice, fingerprint)
        assert shelf.fetched == expected
    narrow.clear()
    narrow.problem(handles[1], choices[0], prints[1][0])
    assert narrow.fetched == 5


def test_layers_that_changed_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "layers.safetensors"
    lb.save_layers(path, {"l": make_layer(name="l")})
    handle = OfFile(str(path), "l", layer_digest(lb.load_layers(path)["l"]))
    lb.save_layers(path, {"l": make_layer(seed=1, name="l")})
    with pytest.raises(InputError, match="layer 'l' is not the one that the run has begun with"):
        Shelf().problem(handle, a_choice(bits=2), "")


def test_problems_that_differ_are_refused() -> None:
    layer = make_layer()
    shelf, handle = Shelf(), Held(layer, layer_digest(layer))
    for _ in range(2):
        with pytest.raises(InputError, match="a worker computes another problem than the survey"):
            shelf.problem(handle, a_choice(bits=2), "0" * 64)


def test_a_projected_matrix_from_memory_travels_as_it_is(tmp_path: Path) -> None:
    layer = make_layer()
    engine = Engine(Place("processes"), 2, {})

    class Memory:
        kind, path, names = "memory", tmp_path / "layers.safetensors", ["layer"]

        def layer(self, number: int) -> lb.Layer:
            return layer

    source: Any = Memory()
    assert isinstance(engine.handle(source, 0, "", []), OfFile)
    gram = np.eye(6)
    gram[0, 0] = -1e-8
    layer = lb.Layer(np.ones((2, 6)), gram)
    assert layer.gram_reports[0].projected
    assert isinstance(engine.handle(source, 0, "", []), Parcel)


def test_only_a_few_layers_are_on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [make_layer(seed=i) for i in range(3)]
    size = engines.layer_bytes(layers[0])
    monkeypatch.setattr(engines, "SENT_BYTES", 2 * size)
    sent: list[int] = []

    class Memory:
        names = ("a", "b", "c")

        def layer(self, number: int) -> lb.Layer:
            return layers[number]

    def send(parcel: Parcel) -> int:
        sent.append(len(sent))
        return sent[-1]

    source: Any = Memory()
    engine = Engine(Place("dask", "h:1"), 2, {}, send)
    assert [engine.handle(source, number, "", []) for number in (0, 1, 0, 2, 0, 1)] == [0, 1, 0, 2, 0, 3]
    engine.forget()
    assert engine.handle(source, 1, "", []) == 4


# Pieces go out and come back.


def a_piece(number: int) -> Piece:
    return Piece((number, 0), "", 0, [0], a_choice(bits=2), None, 0.0)


class Desk:
    """Pieces that are handed out, and what became of them."""

    def __init__(self, count: int) -> None:
        self.waiting = [a_piece(number) for number in range(count)]
        self.kept: list[int] = []
        self.dropped: dict[int, str] = {}

    def take(self) -> Piece | None:
        return self.waiting.pop(0) if self.waiting else None

    def run(self, engine: Engine, deadline: float = float("inf")) -> None:
        Dispatch(
            engine,
            self.take,
            lambda piece: None,
            lambda finished: self.kept.append(finished.piece.entry[0]),
            lambda piece, reason: self.dropped.update({piece.entry[0]: reason}),
            deadline,
        ).run()


def doing(what: Callable[[int], None]) -> Callable[..., Finished]:
    def carry_out(piece: Piece, problem: object) -> Finished:
        what(piece.entry[0])
        return Finished(piece, b"")

    return carry_out


@pytest.fixture
def no_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.SHELF, "problem", lambda *_: None)


THREADS = Engine(Place("threads"), 2, {"backend": "threading"})


@pytest.mark.usefixtures("no_layers")
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_piece_is_done_once(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "carry_out", doing(lambda number: time.sleep(0.001 * (number % 3))))
    desk = Desk(25)
    desk.run(Engine(Place("threads"), workers, {"backend": "threading"}))
    assert sorted(desk.kept) == list(range(25)) and not desk.dropped


@pytest.mark.usefixtures("no_layers")
def test_work_that_comes_up_later_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each piece lets the next one be: a worker is idle in between, and the run must not end.
    monkeypatch.setattr(dispatch, "carry_out", doing(lambda number: time.sleep(0.01)))
    desk = Desk(1)

    def keep(finished: Finished) -> None:
        number = finished.piece.entry[0]
        desk.kept.append(number)
        if number < 5:
            desk.waiting.append(a_piece(number + 1))

    Dispatch(THREADS, desk.take, lambda piece: None, keep, lambda piece, reason: None, float("inf")).run()
    assert desk.kept == [0, 1, 2, 3, 4, 5]


@pytest.mark.usefixtures("no_layers")
def test_a_piece_that_fails_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> None:
        if number == 3:
            raise np.linalg.LinAlgError("did not converge\nat all")

    monkeypatch.setattr(dispatch, "carry_out", doing(fail))
    desk = Desk(6)
    desk.run(THREADS)
    assert sorted(desk.kept) == [0, 1, 2, 4, 5]
    assert desk.dropped == {3: "LinAlgError: did not converge"}


@pytest.mark.usefixtures("no_layers")
def test_a_piece_without_memory_is_tried_again_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    def fail(number: int) -> None:
        begun.append(number)
        if number == 2 or (number == 4 and begun.count(4) == 1):
            raise MemoryError

    monkeypatch.setattr(dispatch, "carry_out", doing(fail))
    desk = Desk(6)
    desk.run(THREADS)
    assert sorted(desk.kept) == [0, 1, 3, 4, 5]
    assert list(desk.dropped) == [2] and "MemoryError" in desk.dropped[2] and f"{ATTEMPTS} times" in desk.dropped[2]
    assert begun.count(2) == ATTEMPTS and begun.count(4) == 2


@pytest.mark.usefixtures("no_layers")
@pytest.mark.parametrize("kind", [CertificationError, InputError])
def test_what_is_wrong_with_the_run_ends_it(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> None:
        if number == 1:
            raise kind("one sentence.")

    monkeypatch.setattr(dispatch, "carry_out", doing(fail))
    with pytest.raises(kind, match=r"^one sentence\.$"):
        Desk(6).run(THREADS)


@pytest.mark.usefixtures("no_layers")
def test_no_piece_begins_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "carry_out", doing(lambda number: time.sleep(0.05)))
    desk = Desk(1000)
    begin = time.perf_counter()
    desk.run(THREADS, begin + 0.2)
    assert 0 < len(desk.kept) < 200 and time.perf_counter() - begin < PROMPT


class Broken(Engine):
    """An engine whose workers die with some pieces, whatever they were doing."""

    def __init__(self, deadly: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(Place("dask", "h:1"), 2, {"backend": "threading"}, lambda parcel: None)
        self.deadly, self.begun = deadly, list[int]()

        def dying(ticket: int, piece: Piece, handle: object, cancel: object) -> Outcome:
            self.begun.append(piece.entry[0])
            if self.deadly(piece.entry[0]):
                raise RuntimeError("a worker was killed\nby a signal")
            return Outcome(ticket, Finished(piece, b""))

        monkeypatch.setattr(dispatch, "work", dying)


def test_a_deadly_piece_is_left_out_and_its_companions_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, desk = Broken(lambda number: number == 2, monkeypatch), Desk(8)
    desk.run(engine)
    assert sorted(desk.kept) == [0, 1, 3, 4, 5, 6, 7]
    assert desk.dropped == {2: f"its worker died (RuntimeError: a worker was killed), {ATTEMPTS} times"}
    assert engine.begun.count(2) == ATTEMPTS
    assert max(map(engine.begun.count, desk.kept)) <= 2


def test_workers_that_always_die_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, desk = Broken(lambda number: True, monkeypatch), Desk(100)
    with pytest.raises(InputError, match=r"the workers die again and again .*what was finished is kept"):
        desk.run(engine)
    assert not desk.kept and len(engine.begun) <= 2 * (DEATHS + 1)


# Whole runs.


def test_what_failed_is_in_the_folder_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = {f"l{i}": make_layer(seed=i, name=f"l{i}") for i in range(2)}
    wanted: dict[str, Any] = {"out": tmp_path / "run", "bits": [2, 3], "jobs": 2, "parallel": "threads"}
    honest = dispatch.carry_out

    def fail(piece: Piece, problem: lb.Problem) -> Finished:
        if piece.entry == (1, 0):
            raise np.linalg.LinAlgError("did not converge")
        return honest(piece, problem)

    monkeypatch.setattr(dispatch, "carry_out", fail)
    with pytest.warns(LeftOutWarning, match="layer 'l1', INT2: output channels 0 to 3 are left out: LinAlgError: did"):
        run = lb.run(layers, **wanted)
    assert run.failed == [("l1", "INT2", "LinAlgError: did not converge")] and not run.complete
    again = lb.load_run(tmp_path / "run")
    assert again.failed == run.failed
    assert again.to_dict()["failed"] == [{"layer": "l1", "problem": "INT2", "reason": "LinAlgError: did not converge"}]
    assert [entry.visited for entry in run.entries] == [True, True, False, True]
    monkeypatch.setattr(dispatch, "carry_out", honest)
    run = lb.run(layers, **wanted)
    assert run.complete and not run.failed and not lb.load_run(tmp_path / "run").failed


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_ends_the_pieces_of_threads(jobs: int, tmp_path: Path) -> None:
    layer = make_layer(40, 4)
    first = threading.Event()
    before = threading.active_count()

    def press() -> None:
        assert first.wait(60.0)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    begin = time.perf_counter()
    run = lb.run(
        layer, out=tmp_path / "run", bits=3, time_limit=30.0, jobs=jobs, parallel="threads",
        listener=lambda run: first.set(),
    )  # fmt: skip
    assert run.interrupted and run.complete
    # Nothing goes on working for nobody.
    while threading.active_count() > before and time.perf_counter() - begin < 20:
        time.sleep(0.05)
    assert threading.active_count() <= before and time.perf_counter() - begin < 20
    assert np.all(run.entries[0].limit < 30.0)
    assert bounds(lb.load_run(tmp_path / "run")) == bounds(run)


def test_the_command_says_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(piece: Piece, problem: lb.Problem) -> Finished:
        raise np.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(dispatch, "carry_out", fail)
    lb.save_layers(tmp_path / "layers.safetensors", [make_layer(name="only")])
    wanted = ["--input", str(tmp_path / "layers.safetensors"), "--bits", "2", "--parallel", "threads", "--jobs", "2"]
    assert main(["run", *wanted, "--out", str(tmp_path / "run")]) == 0
    said = "layer 'only', INT2: output channels 0 to 3 are left out: LinAlgError: did not converge"
    assert f"warning: {said}\n" in capsys.readouterr().err
    capsys.readouterr()
    assert main(["run", *wanted[:-3], "fibers", "--out", str(tmp_path / "other")]) == 2
    assert "parallel is 'fibers'; choose 'threads', 'processes'" in " ".join(capsys.readouterr().err.split())


# Workers that are killed.


def many_layers() -> dict[str, lb.Layer]:
    return {f"l{i}": make_layer(30 + 2 * i, 8, i, f"l{i}") for i in range(4)}


MANY: dict[str, Any] = {"bits": [2, 3], "density": 0.5, "time_limit": 0.0, "jobs": 2}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> list[list[float]]:
    """What comes out where nothing happens."""
    out = tmp_path_factory.mktemp("calm") / "run"
    return bounds(lb.run(many_layers(), out=out, parallel="threads", **MANY))


class Killer:
    """Kills one of some processes as soon as there is a first result."""

    def __init__(self, processes: Callable[[], list[int]]) -> None:
        self._processes, self.killed = processes, 0

    def __call__(self, done: int, total: int, layer: str) -> None:
        if not self.killed and done:
            self.killed = self._processes()[0]
            os.kill(self.killed, signal.SIGKILL)


@contextlib.contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Ctrl-C, should the block take so long."""

    def press(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, press)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def loky_workers() -> list[int]:
    psutil = pytest.importorskip("psutil")
    children = psutil.Process().children(recursive=True)
    return [child.pid for child in children if any("LokyProcess" in word for word in child.cmdline())]


@pytest.mark.slow
def test_a_killed_process_costs_its_pieces_only(calm: list[list[float]], tmp_path: Path) -> None:
    layers, killer = many_layers(), Killer(loky_workers)
    run = lb.run(layers, out=tmp_path / "killed", parallel="processes", progress=killer, **MANY)
    assert killer.killed and run.complete and not run.failed
    assert bounds(run) == calm
    assert eventually(lambda: not loky_workers())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Dask cluster of two processes on this machine."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


def place_of(client: Any) -> str:
    return "dask://" + client.scheduler.address.partition("://")[2]


def count_parcels() -> None:
    """In a worker: remember which parcels come."""

    def come(self: Parcel, state: dict[str, Any]) -> None:
        vars(self).update(state)
        arrived().append(self.digest)

    Parcel.come = []  # type: ignore[attr-defined]
    Parcel.__setstate__ = come  # type: ignore[attr-defined]


def kept_layers() -> int:
    return len(SHELF._places)


def eventually(holds: Callable[[], bool]) -> bool:
    end = time.perf_counter() + PROMPT
    while not holds() and time.perf_counter() < end:
        time.sleep(0.05)
    return holds()


def arrived() -> list[str]:
    digests: list[str] = Parcel.come  # type: ignore[attr-defined]
    return digests


@pytest.mark.slow
def test_a_layer_travels_to_a_worker_once(cluster: Any, calm: list[list[float]], tmp_path: Path) -> None:
    cluster.run(count_parcels)
    layers = many_layers()
    run = lb.run(layers, out=tmp_path / "run", parallel=place_of(cluster), **MANY)
    assert run.complete and not run.failed
    of_workers = list(cluster.run(arrived).values())
    assert all(len(digests) == len(set(digests)) for digests in of_workers)
    assert set().union(*of_workers) == {layer.digest for layer in run.layers}
    assert bounds(run) == calm
    # What they kept for the run is forgotten.
    assert eventually(lambda: not any(cluster.run(kept_layers).values()))


@pytest.mark.slow
def test_a_killed_worker_of_a_cluster_costs_its_pieces_only(
    cluster: Any, calm: list[list[float]], tmp_path: Path
) -> None:
    layers = many_layers()
    killer = Killer(lambda: list(cluster.run(os.getpid).values()))
    for _ in range(3):
        # Should a cluster that has lost a worker not answer any more, Ctrl-C and the same command go on.
        with interrupted_after(60):
            run = lb.run(layers, out=tmp_path / "killed", parallel=place_of(cluster), progress=killer, **MANY)
        if run.complete:
            break
    assert killer.killed and run.complete and not run.failed
    assert bounds(run) == calm


@pytest.mark.slow
def test_a_worker_says_what_is_wrong_in_one_sentence(cluster: Any, tmp_path: Path) -> None:
    def set_version(version: str) -> None:
        import layerbounds.network.handles

        layerbounds.network.handles.__version__ = version

    cluster.run(set_version, "0.0.0")
    with pytest.raises(InputError, match=r"^a worker has layerbounds 0\.0\.0, and the run is of .*$"):
        lb.run(make_layer(), out=tmp_path / "run", bits=2, parallel=place_of(cluster))
    cluster.run(set_version, lb.__version__)


@pytest.mark.slow
def test_the_example_runs_on_a_cluster(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(__file__).resolve().parent.parent / "examples" / "run_on_cluster.py"
    spec = importlib.util.spec_from_file_location("run_on_cluster", path)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    asked: list[tuple[int, bool]] = []

    def make_cluster(workers: int, local: bool) -> Any:
        asked.append((workers, local))
        return contextlib.nullcontext(cluster.cluster)

    monkeypatch.setattr(example, "make_cluster", make_cluster)
    lb.save_layers(tmp_path / "layers.safetensors", [make_layer(name="only")])
    wanted = ["--bits", "2", "--time-limit", "0", "--local", "--workers", "3"]
    example.main(["--input", str(tmp_path / "layers.safetensors"), "--out", str(tmp_path / "run"), *wanted])
    assert asked == [(3, True)]
    assert re.fullmatch(r"only +INT2 +\S+ to \S+\n", capsys.readouterr().out)


@pytest.mark.slow
def test_ray(calm: list[list[float]], tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    layers = many_layers()
    run = lb.run(layers, out=tmp_path / "ray", parallel="ray", **MANY)
    assert run.complete and not run.failed and bounds(run) == calm


INTERRUPTED = textwrap.dedent(
    """
    import os, signal, sys, threading, time
    import layerbounds as lb

    if __name__ == "__main__":
        layer = lb.load_layers(sys.argv[1])
        first = threading.Event()

        def press():
            first.wait()
            time.sleep(float(sys.argv[4]))
            began.append(time.perf_counter())
            os.killpg(0, signal.SIGINT)

        began = []
        threading.Thread(target=press, daemon=True).start()
        run = lb.run(layer, out=sys.argv[2], bits=3, time_limit=60, jobs=2, parallel=sys.argv[3],
                     listener=lambda run: first.set())
        print(run.interrupted, run.complete, time.perf_counter() - began[0])
    """
)


@pytest.mark.slow
def test_ctrl_c_ends_processes_and_leaves_none(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    path, script = tmp_path / "layers.safetensors", tmp_path / "script.py"
    lb.save_layers(path, [make_layer(40, 4)])
    script.write_text(INTERRUPTED)
    # As in a terminal, Ctrl-C goes to the whole group.
    command = [sys.executable, str(script), str(path), str(tmp_path / "run"), "processes", "1.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, start_new_session=True)
    assert done.returncode == 0, done.stderr
    interrupted, complete, seconds = done.stdout.split()
    assert (interrupted, complete) == ("True", "True") and float(seconds) < PROMPT
    time.sleep(0.5)
    assert not [p.pid for p in psutil.process_iter(["cmdline"]) if str(script) in (p.info["cmdline"] or [])]
    assert lb.load_run(tmp_path / "run").complete


# Searches keep what they prepare.


def test_more_results_are_kept_where_it_is_allowed() -> None:
    recent: Recent[tuple[Any, ...]] = Recent(1)
    calls: list[int] = []

    def get(key: int) -> None:
        recent.get(key, lambda: (calls.append(key), np.zeros(100)))

    try:
        keep_more(2000)
        for key in (1, 2, 1, 2, 3, 1):
            get(key)
        # 800 bytes each: two fit, and the third makes the first forgotten.
        assert calls == [1, 2, 3, 1]
    finally:
        keep_more(0)
    get(1)
    get(3)
    assert calls == [1, 2, 3, 1, 3]


@pytest.mark.parametrize("wanted", [{"bits": 3}, {"density": 0.5}])
def test_what_is_kept_changes_no_result(wanted: dict[str, Any]) -> None:
    problem = a_choice(**wanted).problem(make_layer(12, 2))

    def solved() -> list[float]:
        found = lb.solve(problem, "native", node_limit=20, time_limit=60.0, jobs=1)
        return [*found.lower_bound, *found.upper_bound]

    for recent in list(shared_results._all):
        recent.clear()
    try:
        keep_more(1 << 30)
        prepared_anew, kept = solved(), solved()
    finally:
        keep_more(0)
    assert prepared_anew == kept


def test_threads_compute_a_shared_result_once() -> None:
    recent: Recent[int] = Recent(1)
    calls: list[int] = []

    def compute() -> int:
        calls.append(1)
        time.sleep(0.2)
        if len(calls) == 1:
            raise ValueError("the first one fails")
        return len(calls)

    results: list[int | str] = []

    def ask() -> None:
        try:
            results.append(recent.get("key", compute))
        except ValueError:
            results.append("failed")

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, results)) == ["2", "2", "2", "failed"] and len(calls) == 2


def test_processes_that_keep_much_are_not_taken_for_leaking_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first line fails if joblib calls it something else one day.
    monkeypatch.setattr(process_executor, "_MAX_MEMORY_LEAK_SIZE", 1)
    try:
        prepare_process(alone=True)
        assert process_executor._MAX_MEMORY_LEAK_SIZE == 1
        prepare_process(alone=False)
        assert process_executor._MAX_MEMORY_LEAK_SIZE > 2**60
    finally:
        clear_process()
