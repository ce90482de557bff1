"""The choice of the backend, and how time, memory and devices are shared out."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arguments import readable
from layerbounds.certify.interval import CertifiedChannel, intersection
from layerbounds.cli.main import INTERRUPTED, main
from layerbounds.exceptions import CertificationError, InputError, MissingExtraError
from layerbounds.kernels import compilation
from layerbounds.problems.tasks import make_task
from layerbounds.proofs import BlockDual, BoundKind, Control, DualPoint, RawSolve, Status
from layerbounds.scheduling import budget as budgets
from layerbounds.scheduling import choice, narrowing
from layerbounds.scheduling.budget import Budget
from layerbounds.search.quantization.given_start import given_relaxation
from layerbounds.search.quantization.grid_units import make_units
from layerbounds.search.quantization.preparation import prepare
from layerbounds.solvers import registry
from layerbounds.solvers.base import read_options
from layerbounds.solvers.batched import effort
from layerbounds.solvers.batched.backend import BatchedBackend
from layerbounds.solvers.native import NativeBackend

ROWS, INPUTS = 8, 24


def make_layer(rows=ROWS, inputs=INPUTS, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3 * inputs, inputs)) + rng.normal(size=(3 * inputs, 1))
    # The rows' errors are of different sizes: some intervals are much wider than others.
    weight = rng.normal(size=(rows, inputs)) * np.exp(rng.normal(size=(rows, 1)))
    return lb.Layer.from_activations(weight, x, "wide")


@pytest.fixture
def problem():
    return lb.quantization_problem(make_layer(), bits=3)


@pytest.fixture
def small(monkeypatch):
    """Every layer of more than four inputs counts as large."""
    monkeypatch.setattr(choice, "NATIVE_INPUTS", 4)


class Searching(NativeBackend):
    """Instead of searching it notes for which channels and for how long it could."""

    calls: list[tuple[int, float]] = []  # noqa: RUF012
    starts: list[object] = []  # noqa: RUF012
    #: Seconds that it takes of those it is given.
    share = 1.0

    def prepare(self, problem, group, jobs):
        return None

    def solve(self, task, control):
        self.calls.append((task.channel, control.time_limit))
        self.starts.append((task.warm_start, task.start))
        time.sleep(self.share * control.time_limit)
        return RawSolve(task.warm_start, Status.TIME_LIMIT)


@pytest.fixture
def searching(monkeypatch, small):
    monkeypatch.setitem(registry._BACKENDS, "native", Searching)
    monkeypatch.setattr(Searching, "calls", [])
    monkeypatch.setattr(Searching, "starts", [])
    return Searching


def test_small_layers_are_searched(problem):
    solution = lb.solve(problem, channels=[0, 1])
    assert solution.backend == "auto"
    assert solution.lower_backend == solution.upper_backend == solution.backends_used * 2 == ["native"] * 2
    assert solution.status == [Status.OPTIMAL] * 2


@pytest.mark.usefixtures("small")
def test_large_layers_are_bounded_at_once(problem):
    solution, batched = lb.solve(problem, jobs=1), lb.solve(problem, "batched", jobs=1)
    assert set(solution.lower_backend) == set(solution.upper_backend) == {"batched"}
    assert set(solution.status) <= {Status.RELAXED, Status.OPTIMAL}
    np.testing.assert_allclose(solution.lower_bound, batched.lower_bound, rtol=0.2)
    assert lb.evaluate(problem, solution.weights).feasible.all()
    assert lb.solve(problem, channels=[2], node_limit=1000).backends_used == ["native"]
    assert lb.solve(problem, "native", channels=[2], time_limit=0.0).backends_used == ["native"]


def test_live_inputs_count(monkeypatch, problem):
    monkeypatch.setattr(choice, "NATIVE_INPUTS", INPUTS)
    gram = np.zeros((INPUTS + 8, INPUTS + 8))
    gram[:INPUTS, :INPUTS] = problem.layer.gram[0]
    weight = np.concatenate([problem.layer.matrix, np.ones((ROWS, 8))], axis=1)
    wider = lb.quantization_problem(lb.Layer(weight, gram, name="dead inputs"), bits=3)
    assert choice.choose("auto", wider, wider.sets([0]), None) == "native"
    monkeypatch.setattr(choice, "NATIVE_INPUTS", INPUTS - 1)
    assert choice.choose("auto", wider, wider.sets([0]), None) == "batched"


@pytest.mark.usefixtures("small")
def test_what_the_batched_backend_cannot_treat_is_searched():
    layer = make_layer(2, 8)
    free = lb.quantization_problem(layer, bits=1, codebook="free")
    assert lb.solve(free, channels=[0], time_limit=1.0).backends_used == ["native"]


def test_unknown_names(problem):
    with pytest.raises(InputError, match="did you mean auto"):
        lb.solve(problem, "aut")


@pytest.mark.usefixtures("small")
def test_the_search_goes_on_from_the_bounds(problem):
    first, done = lb.solve(problem), lb.solve(problem, time_limit=5.0)
    assert done.status == [Status.OPTIMAL] * ROWS
    slack = 1e-9 * first.upper_bound
    assert np.all(done.lower_bound >= first.lower_bound - slack)
    assert np.all(done.upper_bound <= first.upper_bound + slack)
    assert "native" in done.lower_backend
    evaluated = lb.evaluate(problem, done.weights)
    assert evaluated.feasible.all()
    np.testing.assert_allclose(evaluated.error, done.upper_bound, rtol=1e-9)
    for trace in done.trace:
        lower, upper = [p.lower for p in trace], [p.upper for p in trace]
        assert min(lower) >= lower[0] and max(upper) <= upper[0]


@pytest.mark.usefixtures("small")
def test_a_gap_that_is_reached_is_left_alone(problem):
    first = lb.solve(problem)
    gap = float(np.sort(first.gap)[ROWS // 2]) + 1e-6
    solution = lb.solve(problem, gap=gap, time_limit=5.0)
    reached = first.gap <= gap - 1e-5
    assert reached.any()
    assert all(b == "batched" for b, r in zip(solution.lower_backend, reached, strict=True) if r)
    assert set(solution.status) <= {Status.GAP_REACHED, Status.OPTIMAL}


def test_time_goes_where_the_intervals_are_widest(searching, problem, monkeypatch):
    monkeypatch.setattr(narrowing, "USUAL_LIMIT", 0.2)
    lb.solve(problem, jobs=1)
    assert searching.calls == []
    batched = lb.solve(problem, jobs=1)
    widest = np.argsort(batched.lower_bound - batched.upper_bound, kind="stable").tolist()
    begin = time.perf_counter()
    solution = lb.solve(problem, total_time=1.0, jobs=1)
    assert time.perf_counter() - begin < 1.0 + 1.0
    channels = [channel for channel, _ in searching.calls]
    assert 1 <= len(channels) < ROWS
    assert channels == widest[: len(channels)]
    assert all(seconds <= 0.2 for _, seconds in searching.calls)
    assert solution.status.count(Status.TIME_LIMIT) == len(channels)
    assert all(solution.status[c] == Status.RELAXED for c in widest[len(channels) :])
    np.testing.assert_array_equal(solution.lower_bound, batched.lower_bound)
    np.testing.assert_array_equal(solution.weights, batched.weights)


def test_time_that_is_left_over_is_spent(searching, problem, monkeypatch):
    monkeypatch.setattr(narrowing, "USUAL_LIMIT", 0.01)
    monkeypatch.setattr(searching, "share", 0.1)
    lb.solve(problem, total_time=1.0, jobs=1)
    seconds = [s for _, s in searching.calls]
    assert len(seconds) == ROWS and seconds == sorted(seconds) and seconds[0] < 0.2 < seconds[-1]


def test_every_open_channel_has_its_time_limit(searching, problem):
    solution = lb.solve(problem, time_limit=0.05, jobs=2)
    is_open = [c for c in range(ROWS) if solution.status[c] == Status.TIME_LIMIT]
    assert sorted(channel for channel, _ in searching.calls) == is_open and is_open
    assert all(0.04 < seconds <= 0.05 for _, seconds in searching.calls)
    for (channel, _), (weights, dual) in zip(searching.calls, searching.starts, strict=True):
        assert isinstance(dual, (DualPoint, BlockDual)) and dual.z.shape == (INPUTS,)
        np.testing.assert_array_equal(weights, solution.weights[channel])
    searching.calls.clear()
    lb.solve(problem, time_limit=0.0, jobs=2)
    assert searching.calls == []


def test_ctrl_c_during_the_search_keeps_all_intervals(searching, problem, monkeypatch):
    began = threading.Event()

    def wait(self, task, control):
        began.set()
        assert control.cancel.wait(20.0)
        return RawSolve(task.warm_start, Status.INTERRUPTED)

    monkeypatch.setattr(searching, "solve", wait)
    press_ctrl_c(began)
    solution = lb.solve(problem, time_limit=30.0, jobs=2)
    assert solution.interrupted and Status.INTERRUPTED in solution.status
    assert np.all(solution.lower_bound > 0) and lb.evaluate(problem, solution.weights).feasible.all()


def test_ctrl_c_during_the_preparation_of_the_search(searching, problem, monkeypatch):
    began, end = threading.Event(), threading.Event()

    def forever(self, problem, group, jobs):
        began.set()
        end.wait(20.0)

    monkeypatch.setattr(searching, "prepare", forever)
    press_ctrl_c(began)
    solution = lb.solve(problem, time_limit=30.0)
    end.set()
    assert solution.interrupted and len(solution.lower_bound) == ROWS and np.all(solution.lower_bound > 0)


def press_ctrl_c(after):
    """Send SIGINT to this process as soon as an event has happened."""

    def wait():
        assert after.wait(60.0)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.parametrize("error", [InputError("the Gram matrix cannot be factorized"), MemoryError()])
def test_a_search_that_cannot_be_prepared_loses_nothing(searching, problem, monkeypatch, error):
    def fail(self, problem, group, jobs):
        raise error

    monkeypatch.setattr(searching, "prepare", fail)
    solution = lb.solve(problem, time_limit=1.0)
    assert set(solution.lower_backend) == {"batched"}
    assert all("could not be prepared" in notes[0] for notes in solution.notes.values()) and solution.notes


class Grouped(BatchedBackend):
    """The batched backend that notes what it gets."""

    calls: list[tuple[int, float]] = []  # noqa: RUF012

    def solve_group(self, tasks, control):
        self.calls.append((len(tasks), control.time_limit))
        return super().solve_group(tasks, control)


@pytest.fixture
def grouped(monkeypatch):
    monkeypatch.setitem(registry._BACKENDS, "batched", Grouped)
    monkeypatch.setattr(Grouped, "calls", [])
    return Grouped


@pytest.mark.parametrize(
    ("limits", "least", "most"),
    [
        ({}, np.inf, np.inf),
        ({"time_limit": 2.0}, 15.0, 16.0),
        ({"total_time": 3.0}, 2.5, 3.0),
        ({"time_limit": 2.0, "total_time": 3.0}, 2.5, 3.0),
    ],
)
def test_limits_of_a_group(grouped, problem, limits, least, most):
    lb.solve(problem, "batched", **limits)
    ((rows, seconds),) = grouped.calls
    assert rows == ROWS and least <= seconds <= most


def test_rows_that_do_not_fit_into_memory_at_once(grouped, monkeypatch, capsys):
    problem = lb.quantization_problem(make_layer(40), bits=3)
    whole = lb.solve(problem, "batched")
    monkeypatch.setattr(effort, "BASE_BYTES", 0)
    grouped.calls.clear()
    limit = effort.memory_needed(INPUTS, 40, 15)
    parts = lb.solve(problem, "batched", memory_limit=limit)
    assert [rows for rows, _ in grouped.calls] == [14, 14, 12]
    assert all(whole.upper_bound >= parts.lower_bound) and all(parts.upper_bound >= whole.lower_bound)
    assert parts.lower_bound.sum() == pytest.approx(whole.lower_bound.sum(), rel=0.1)
    assert lb.evaluate(problem, parts.weights).feasible.all()
    least = readable(effort.memory_needed(INPUTS, 40, 1))
    with pytest.raises(InputError, match=f"'wide' with 40 rows of 24 inputs needs about {least} at least"):
        lb.solve(problem, "batched", memory_limit="10kB")
    with pytest.raises(InputError, match="memory_limit is 'much'"):
        lb.solve(problem, "batched", memory_limit="much")
    with pytest.raises(InputError, match="backend 'native' treats channels one by one"):
        lb.solve(problem, "native", memory_limit="1GB")
    assert lb.solve(problem, channels=[0], memory_limit="1MB", time_limit=0.0).backends_used == ["native"]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(effort, "LARGE", 1000)
    lb.solve(problem, "batched", memory_limit=limit)
    assert f"layerbounds: 40 x 24: about {readable(effort.memory_needed(INPUTS, 40, 14))} of memory" in (
        capsys.readouterr().err
    )


def test_estimates_grow():
    sizes = [effort.memory_needed(n, rows) for n, rows in ((1024, 1024), (4096, 1024), (4096, 4096), (11008, 4096))]
    assert sizes == sorted(sizes) and sizes[2] < 3 * 10**9 and sizes[3] < 10 * 10**9
    assert effort.memory_needed(4096, 4096, 512) < sizes[2]
    assert effort.rows_at_once("a", 4096, 4096, None) == 4096
    assert effort.seconds_needed(4096, 4096, 1, 1e11) < effort.seconds_needed(4096, 4096, 2, 1e11)
    assert effort.measure(1) > 1e8


@pytest.mark.usefixtures("small")
def test_devices(problem, monkeypatch):
    assert lb.solve(problem, device="cpu").backends_used == ["batched"]
    with pytest.raises(InputError, match="device is 'gpu'; choose 'cpu', 'cuda' or 'mps'"):
        lb.solve(problem, device="gpu")
    with pytest.raises(InputError, match="backend 'native' computes on the processor alone"):
        lb.solve(problem, "native", device="cuda")
    with pytest.raises(InputError, match="device is 'cpu' and option device is 'cuda'"):
        lb.solve(problem, device="cpu", options={"device": "cuda"})
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "layerbounds.solvers.batched.torch_arithmetic", raising=False)
    with pytest.raises(MissingExtraError, match="device 'cuda' needs PyTorch"):
        lb.solve(problem, device="cuda")
    # Small layers need no device.
    monkeypatch.setattr(choice, "NATIVE_INPUTS", 1024)
    assert lb.solve(problem, channels=[0], device="cuda").backends_used == ["native"]


@pytest.mark.parametrize(
    "wrong", [{"total_time": -1.0}, {"total_time": "1"}, {"time_limit": np.nan}, {"report": 3}, {"memory_limit": 0}]
)
def test_wrong_limits(problem, wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))} is"):
        lb.solve(problem, **wrong)


def test_searches_share_a_total_time(monkeypatch):
    monkeypatch.setitem(registry._BACKENDS, "native", Searching)
    monkeypatch.setattr(Searching, "calls", [])
    problem = lb.quantization_problem(make_layer(6), bits=3)
    begin = time.perf_counter()
    lb.solve(problem, "native", total_time=0.6, jobs=2)
    assert time.perf_counter() - begin < 0.6 + 1.0
    seconds = [s for _, s in Searching.calls]
    assert len(seconds) == 6 and min(seconds) > 0.1 and max(seconds) < 0.35
    Searching.calls.clear()
    lb.solve(problem, "native", total_time=60.0, time_limit=0.01, jobs=2)
    assert max(s for _, s in Searching.calls) <= 0.01


def test_budgets(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(budgets, "working_time", lambda: clock[0])
    budget = Budget(12.0, 4, 2)
    with budget.piece() as first, budget.piece() as second:
        assert (first, second) == (6.0, 6.0)
        clock[0] = 2.0
    # Both ended early: 10 s on two threads for two pieces.
    with budget.piece() as third, budget.piece(1.0) as fourth:
        assert (third, fourth) == (10.0, 1.0)
    clock[0] = 13.0
    with budget.piece() as late:
        assert late == 0.0
    with Budget(10.0, 100, 1, least=4.0).piece() as seconds:
        assert seconds == 4.0
    with Budget(np.inf, 3, 2).piece(2.0) as seconds:
        assert seconds == 2.0
    with Budget(np.inf, 3, 2).piece() as seconds:
        assert seconds == np.inf


def interval(lower, upper, status=Status.RELAXED, kind=BoundKind.DUAL):
    return CertifiedChannel(lower, upper, np.array([upper]), status, kind, np.nan)


def test_intersections():
    first, second = interval(1.0, 3.0), interval(0.5, 2.0, Status.TIME_LIMIT, BoundKind.SEARCH)
    both = intersection(first, second, 0.0, 10.0)
    assert (both.lower, both.upper, both.status, both.bound_kind) == (1.0, 2.0, Status.TIME_LIMIT, BoundKind.DUAL)
    assert both.weights[0] == 2.0
    assert intersection(first, second, 0.6, 10.0).status == Status.GAP_REACHED
    assert intersection(first, interval(2.0, 3.0 - 1e-9), 0.0, 10.0).status == Status.RELAXED
    assert intersection(first, interval(3.0 - 1e-9, 3.0), 0.0, 10.0).status == Status.OPTIMAL
    with pytest.raises(CertificationError, match="contradict"):
        intersection(first, interval(0.1, 0.5), 0.0, 10.0)


@pytest.mark.parametrize("granularity", ["channel", 8])
def test_the_given_dual_point_is_the_first_relaxation(granularity):
    problem = lb.quantization_problem(make_layer(), bits=3, granularity=granularity)
    task = make_task(problem, 1, None, None)
    control = Control(np.inf, 0.0, None, 0, 1, threading.Event(), options=read_options(BatchedBackend(), {"blocks": 1}))
    dual = BatchedBackend().solve_group([task], control)[0].dual
    unit = make_units(task, prepare(task.gram, 1.0))
    found = given_relaxation(dual, unit)
    bound = lb.solve(problem, "batched", channels=[1], options={"blocks": 1}).lower_bound[0]
    assert found is not None and found.value * unit.multiplier == pytest.approx(bound, rel=1e-6)
    np.testing.assert_allclose(unit.weights_of(unit.point_of(dual.z)), dual.z, rtol=1e-9, atol=1e-12)
    # A diagonal that is no minorant is lowered until it is one.
    wrong = given_relaxation(DualPoint(dual.z, dual.d * 50.0), unit)
    assert wrong is None or np.all(np.linalg.eigvalsh(unit.gram - np.diag(wrong.d)) > -1e-9 * np.trace(unit.gram))
    assert given_relaxation(None, unit) is None
    # Of blocks it is the point that counts.
    block = BlockDual(dual.z, np.zeros(INPUTS, dtype=np.int64), np.zeros((INPUTS, INPUTS)))
    other = given_relaxation(block, unit)
    assert other is not None and other.value * unit.multiplier <= lb.solve(problem, channels=[1]).upper_bound[0]
    assert given_relaxation(DualPoint(dual.z[1:], dual.d[1:]), unit) is None


@pytest.mark.usefixtures("small")
def test_progress_and_report(problem):
    seen, said = [], []
    lb.solve(problem, time_limit=0.2, progress=lambda *args: seen.append(args[:3]), report=said.append)
    assert sorted(channel for _, _, channel in seen) == list(range(ROWS))
    assert [done for done, _, _ in seen] == list(range(1, ROWS + 1))
    assert any("minorant" in text for text in said) and any(text.startswith("searched 1 of") for text in said)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "layers.safetensors"
    lb.save_layers(path, [make_layer()])
    return path


@pytest.mark.usefixtures("small")
def test_command_line(file, tmp_path, capsys):
    out = tmp_path / "out.json"
    arguments = ["solve", "--input", str(file), "--layer", "wide", "--bits", "3"]
    more = ["--total-time", "0.5", "--device", "cpu", "--memory-limit", "4GB", "--json", str(out)]
    assert main([*arguments, *more]) == 0
    record = json.loads(out.read_text())
    assert record["backend"] == "auto" and record["options"]["total_time"] == 0.5
    assert {c["upper_bound_backend"] for c in record["channels"]} <= {"native", "batched"}
    assert all("lower_bound_backend" in c for c in record["channels"])
    capsys.readouterr()
    assert main(arguments) == 0
    assert "backend batched" in capsys.readouterr().out.splitlines()[0]
    assert main([*arguments, "--channels", "0:2", "--time-limit", "5"]) == 0
    text = capsys.readouterr().out
    assert "relaxed" not in text and ("backend native" in text or "of 2 intervals · lower ends: 2 native" in text)
    assert main([*arguments, "--device", "abacus"]) == 2
    assert "device is 'abacus'" in capsys.readouterr().err
    assert main([*arguments, "--backend", "native", "--memory-limit", "4GB"]) == 2
    assert "leave out memory_limit" in capsys.readouterr().err


def test_command_line_when_interrupted(searching, file, tmp_path, monkeypatch):
    began, out = threading.Event(), tmp_path / "out.json"

    def wait(self, task, control):
        began.set()
        assert control.cancel.wait(20.0)
        return RawSolve(task.warm_start, Status.INTERRUPTED)

    monkeypatch.setattr(searching, "solve", wait)
    press_ctrl_c(began)
    arguments = ["--input", str(file), "--layer", "wide", "--bits", "3", "--time-limit", "30", "--json", str(out)]
    assert main(["solve", *arguments]) == INTERRUPTED
    record = json.loads(out.read_text())
    assert record["interrupted"] and len(record["channels"]) == ROWS
    assert all(c["lower_bound"] > 0 for c in record["channels"])


@pytest.mark.usefixtures("small")
def test_everything_that_solves_takes_the_default(tmp_path):
    layer = make_layer(3, 12)
    comparison = lb.compare(layer, 2, methods=["rtn"])
    assert comparison.solutions[0].backends_used == ["batched"]
    contest = lb.versus(layer, [3], time_limit=0.5, jobs=2)
    assert np.all(contest.levels[0].quantization[:, 0] <= contest.levels[0].quantization[:, 1])


def test_compilation_is_outside_of_a_budget(monkeypatch):
    budget = Budget(5.0, 1, 1)
    monkeypatch.setattr(budgets, "working_time", lambda: compilation.working_time() + 1.0)
    assert 3.0 < budget.left() < 4.5
