"""Foreign solvers: what is claimed, what is refused, and agreement with the native backend."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zoo import zoo

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.cli.main import main
from layerbounds.exceptions import InputError, UnsupportedProblemError
from layerbounds.problems.evaluation import squared_error
from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import BlockDual, Control, DualPoint, RawSolve, SearchProof, TracePoint
from layerbounds.solvers.base import Availability, Capability, Option, read_options
from layerbounds.solvers.formulation import dense_hessian, formulate, incumbent
from layerbounds.solvers.registry import _BACKENDS, get_backend
from layerbounds.solvers.scip import ScipBackend
from layerbounds.solvers.sublevel import rank_factor, reach

Answer = Callable[[Task, Control], RawSolve]


class Fake:
    """A backend that answers as it likes."""

    name = "fake"
    capabilities = frozenset(Capability)
    options: Mapping[str, Option] = {"depth": Option(3, "nothing", least=1), "form": Option("a", "nothing", ("a", "b"))}
    concurrent = True

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def availability(self) -> Availability:
        return Availability(True, "0")

    def prepare(self, problem: Problem, group: int, jobs: int) -> None:
        pass

    def solve(self, task: Task, control: Control) -> RawSolve:
        return self.answer(task, control)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], None]:
    def enter(answer: Answer) -> None:
        monkeypatch.setitem(_BACKENDS, "fake", lambda: Fake(answer))

    return enter


@pytest.fixture(params=["2 bits", "nf4", "keep two", "mask"])
def known(request: pytest.FixtureRequest) -> tuple[Problem, float]:
    """A problem of each kind with its optimum."""
    name = {"nf4": "three, nf4"}.get(request.param, f"plain, {request.param}")
    case = next(case for case in zoo() if case.name == name)
    return case.problem, case.optimum


def good(task: Task) -> Float:
    return incumbent(task, 0)


def error(task: Task) -> float:
    return squared_error(task.gram, good(task) - task.target)


def sleeping(task: Task, control: Control) -> RawSolve:
    time.sleep(0.4)
    return RawSolve(good(task), lb.Status.TIME_LIMIT)


def failing(task: Task, control: Control) -> RawSolve:
    raise RuntimeError("licence\nexpired")


LIES: dict[str, tuple[Answer, str]] = {
    "bound too high": (
        lambda t, c: RawSolve(good(t), lb.Status.OPTIMAL, claimed_lower_bound=1.001 * error(t)),
        "refused the claimed lower bound",
    ),
    "bound of NaN": (
        lambda t, c: RawSolve(good(t), lb.Status.OPTIMAL, claimed_lower_bound=np.nan),
        "refused the claimed lower bound nan",
    ),
    "infinite bound": (
        lambda t, c: RawSolve(good(t), lb.Status.OPTIMAL, claimed_lower_bound=np.inf),
        "refused the claimed lower bound inf",
    ),
    "off the grid": (
        lambda t, c: RawSolve(good(t) + 0.01234, lb.Status.OPTIMAL, claimed_lower_bound=0.0),
        "refused the weights",
    ),
    "zeros with an error": (
        lambda t, c: RawSolve(np.zeros(len(t.target)), lb.Status.FAILED, claimed_lower_bound=0.0),
        "",
    ),
    "zeros called optimal": (
        lambda t, c: RawSolve(np.zeros(len(t.target)), lb.Status.OPTIMAL, claimed_lower_bound=0.0),
        "do not agree",
    ),
    "weights of NaN": (
        lambda t, c: RawSolve(np.full(len(t.target), np.nan), lb.Status.OPTIMAL),
        "refused the weights",
    ),
    "wrong shape": (lambda t, c: RawSolve(np.zeros((2, 2)), lb.Status.OPTIMAL), "refused the weights"),
    "no array": (
        lambda t, c: RawSolve("weights", lb.Status.OPTIMAL, claimed_lower_bound="low"),  # type: ignore[arg-type]
        "refused the weights",
    ),
    "a proof": (
        lambda t, c: RawSolve(good(t), lb.Status.OPTIMAL, proof=SearchProof(0.999 * error(t), 0.0)),
        "refused a proof",
    ),
    "dual of a wrong shape": (
        lambda t, c: RawSolve(good(t), lb.Status.TIME_LIMIT, dual=DualPoint(np.zeros(2), np.zeros(3))),
        "refused the dual point",
    ),
    "dual of NaN": (
        lambda t, c: RawSolve(
            good(t),
            lb.Status.TIME_LIMIT,
            dual=BlockDual(np.full(len(t.target), np.nan), np.arange(len(t.target)), np.eye(len(t.target))),
        ),
        "refused the dual point",
    ),
    "too late": (sleeping, "more than the time limit"),
    "an exception": (failing, "ended with an error: licence expired"),
    "unknown status": (
        lambda t, c: RawSolve(good(t), "wonderful", claimed_lower_bound=0.0),  # type: ignore[arg-type]
        "",
    ),
    "a trace above the error": (
        lambda t, c: RawSolve(
            good(t), lb.Status.TIME_LIMIT, claimed_lower_bound=0.0, trace=(TracePoint(0.0, 0, 2 * error(t), 3.0),)
        ),
        "of the trace",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_caught(lie: str, known: tuple[Problem, float], register: Callable[[Answer], None]) -> None:
    problem, optimum = known
    answer, note = LIES[lie]
    register(answer)
    solution = lb.solve(problem, "fake", time_limit=0.1)
    assert solution.lower_bound[0] <= optimum <= solution.upper_bound[0] * (1 + 1e-12)
    assert lb.evaluate(problem, solution.weights).feasible.all()
    assert solution.status[0] not in (lb.Status.CLAIMED, lb.Status.GAP_REACHED)
    # A root bound may close a small problem by itself, but no lie closes any.
    if solution.status[0] == lb.Status.OPTIMAL:
        assert solution.bound_kind[0] == lb.BoundKind.DUAL
    notes = solution.notes.get(0, ())
    assert note in " ".join(notes)
    assert bool(notes) == bool(note)
    if "refused the claimed" in note:
        assert np.isnan(solution.claimed_lower_bound[0])
    assert all(point.lower <= solution.upper_bound[0] for point in solution.trace[0])


def test_an_honest_claim_is_recorded_as_a_claim(register: Callable[[Answer], None]) -> None:
    case = next(case for case in zoo() if case.name == "unequal inputs, 2 bits")
    register(lambda t, c: RawSolve(good(t), lb.Status.OPTIMAL, claimed_lower_bound=error(t) * (1 + 1e-7)))
    solution = lb.solve(case.problem, "fake")
    assert solution.status == [lb.Status.CLAIMED]
    assert solution.claimed_lower_bound[0] == solution.upper_bound[0]
    assert 0 < solution.lower_bound[0] < case.optimum
    assert solution.bound_kind == [lb.BoundKind.DUAL]
    assert solution.totals()["optimal"] == 0
    assert not solution.certified_trace


def test_a_claim_that_reaches_the_gap(register: Callable[[Answer], None]) -> None:
    case = next(case for case in zoo() if case.name == "unequal inputs, 2 bits")
    register(lambda t, c: RawSolve(good(t), lb.Status.GAP_REACHED, claimed_lower_bound=0.99 * error(t)))
    assert lb.solve(case.problem, "fake", gap=0.011).status == [lb.Status.CLAIMED]
    assert lb.solve(case.problem, "fake", gap=0.009).status == [lb.Status.FAILED]


def test_claims_in_tables_and_records(register: Callable[[Answer], None], capsys: pytest.CaptureFixture[str]) -> None:
    register(lambda t, c: RawSolve(good(t), lb.Status.OPTIMAL, claimed_lower_bound=2 * error(t), notes=("a note",)))
    command = [
        "solve",
        "--layer",
        "conv3",
        "--bits",
        "3",
        "--channels",
        "0:2",
        "--backend",
        "fake",
        "--time-limit",
        "1",
    ]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "failed" in out and "0 of 2 channels proven optimal" in out
    assert "channels 0, 1: a note" in out and "refused the claimed lower bound" in out
    assert main([*command, "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["certified_trace"] is False
    assert all(row["claimed_lower_bound"] is None and len(row["notes"]) == 3 for row in record["channels"])


# --- options ---------------------------------------------------------------------------------------------------------


def test_options_are_read_and_filled_in() -> None:
    fake = Fake(failing)
    assert read_options(fake, {}) == {"depth": 3, "form": "a"}
    assert read_options(fake, {"depth": "5", "form": "b"}) == {"depth": 5, "form": "b"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 3}, "no option 'width'; its options are: depth, form"),
        ({"depth": "deep"}, "pass an integer ≥ 1"),
        ({"depth": 0}, "pass an integer ≥ 1"),
        ({"depth": 1.5}, "pass an integer ≥ 1"),
        ({"depth": float("nan")}, "pass an integer ≥ 1"),
        ({"form": "c"}, "choose a or b"),
    ],
)
def test_bad_options(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_options(Fake(failing), given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--option", "formulation"], "write KEY=VALUE"),
        (["--option", "depth=3"], "backend 'native' has no option 'depth'; its options are: none"),
    ],
)
def test_bad_options_of_the_command_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", "--layer", "conv3", "--bits", "3", *arguments]) == 2
    assert message in capsys.readouterr().err


# --- formulations ----------------------------------------------------------------------------------------------------


WRITTEN = [c for c in zoo() if c.optimum > 0 and c.problem.requirement in get_backend("scip").capabilities]


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: case.name)
def test_formulations_have_the_objective_of_the_task(case: Any) -> None:
    task = make_task(case.problem, case.problem.sets(range(case.problem.layer.out_features))[0], None, None)
    start = incumbent(task, 0)
    forms = ["bigm"]
    if case.problem.requirement.endswith("pruning with refit"):
        bounded = bool(np.all(np.isfinite(reach(task.gram, 1.0))))
        several = ["perspective"] if case.problem.requirement == "pruning with refit" else []
        forms = ["bigm", *several, "indicator"] if bounded else ["indicator"]
    for name in forms:
        form = formulate(task, start, name)
        u = form.start
        assert np.all((u >= form.low - 1e-9) & (u <= form.high + 1e-9))
        assert form.value(u) * form.unit == pytest.approx(error(task), rel=1e-6, abs=1e-8 * task.energy)
        q, p, r = dense_hessian(form)
        assert u @ q @ u + p @ u + r == pytest.approx(form.value(u), rel=1e-6, abs=1e-14 * abs(r))
        np.testing.assert_allclose(form.decode(u), start, rtol=1e-6, atol=1e-9 * np.abs(start).max())
        for row in form.rows:
            assert row.low - 1e-9 <= row.coefficients @ u[row.index] <= row.high + 1e-9
        for s, x, y in form.cones:
            assert u[x] ** 2 <= u[s] * u[y] + 1e-12


def test_the_big_m_keeps_every_better_point(rng: np.random.Generator, random_gram: Callable[..., Float]) -> None:
    gram = random_gram(6)
    far = reach(gram, 2.0)
    # The extreme points of the ellipsoid dᵀHd ≤ 2 in each coordinate.
    inverse = np.linalg.inv(gram)
    for i in range(6):
        extreme = inverse[:, i] * np.sqrt(2.0 / inverse[i, i])
        assert extreme @ gram @ extreme == pytest.approx(2.0)
        assert far[i] * (1 - 1e-4) <= extreme[i] <= far[i]


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_factor_has_the_rank_of_the_matrix(rank: int, random_gram: Callable[..., Float]) -> None:
    gram = random_gram(6, rank)
    factor = rank_factor(gram)
    assert factor.shape == (rank, 6)
    np.testing.assert_allclose(factor.T @ factor, gram, atol=1e-12 * np.max(gram))
    scale = 10.0 ** np.arange(-6.0, 6.0, 2.0)
    uneven = rank_factor(gram * np.outer(scale, scale))
    assert uneven.shape == (rank, 6)
    np.testing.assert_allclose((uneven / scale).T @ (uneven / scale), gram, atol=1e-12 * np.max(gram))
    assert np.all(np.isfinite(reach(gram, 1.0))) == (rank == 6)


# --- solvers ---------------------------------------------------------------------------------------------------------


def usable(name: str) -> str:
    state = get_backend(name).availability()
    if not state.available:
        pytest.skip(f"{name}: {state.reason}")
    return name


@pytest.mark.parametrize(
    ("name", "option"),
    [
        *(("scip", {"formulation": f}) for f in ("cholesky", "dense", "bigm", "perspective", "indicator")),
        *(("gurobi", {"formulation": f}) for f in ("cholesky", "dense", "bigm", "perspective", "indicator")),
        *(("highs", {"formulation": f}) for f in ("bigm", "perspective")),
    ],
)
def test_every_formulation_finds_the_optimum(name: str, option: dict[str, str]) -> None:
    cases = ("unequal inputs, 2 bits", "three, fp4", "plain, keep two", "plain, blocks of 2", "plain, mask 2:4")
    for case in (case for case in zoo() if case.name in cases):
        solution = lb.solve(case.problem, usable(name), options=option, time_limit=60.0)
        assert solution.upper_bound[0] == pytest.approx(case.optimum, rel=1.01e-6)
        assert solution.status[0] in (lb.Status.CLAIMED, lb.Status.OPTIMAL)
        assert case.optimum * (1 - 1e-5) <= solution.claimed_lower_bound[0] <= solution.upper_bound[0]
        assert len(solution.trace[0]) >= 2
        assert solution.notes == {}


@pytest.mark.parametrize("name", ["scip", "highs", "gurobi", "sdp"])
def test_limits_and_warm_starts(name: str, reference_layer: lb.Layer) -> None:
    problem = lb.quantization_problem(reference_layer, 3)
    best = lb.solve(problem, channels=[0])
    assert best.status == [lb.Status.OPTIMAL]
    options = {"samples": 1} if name == "sdp" else {}
    given = lb.solve(problem, usable(name), channels=[0], time_limit=0.5, warm_start=best.weights, options=options)
    assert given.upper_bound[0] <= best.upper_bound[0]
    assert 0 < given.lower_bound[0] <= best.upper_bound[0]
    none = lb.solve(problem, name, channels=[0], time_limit=0.0)
    assert none.status[0] == lb.Status.TIME_LIMIT
    assert 0 <= none.lower_bound[0] <= best.upper_bound[0] <= none.upper_bound[0] * (1 + 1e-12)


def test_sdp_bounds_lie_in_their_order() -> None:
    usable("sdp")
    case = next(case for case in zoo() if case.name == "unequal inputs, 2 bits")
    box = lb.solve(case.problem, "sdp")
    plain = lb.solve(case.problem, "sdp", options={"relaxation": "park-boyd"})
    other = lb.solve(case.problem, "sdp", options={"solver": "scs"})
    for solution in (box, plain, other):
        assert solution.status[0] in (lb.Status.RELAXED, lb.Status.OPTIMAL)
        assert 0 < solution.lower_bound[0] <= case.optimum
    assert plain.claimed_lower_bound[0] <= box.claimed_lower_bound[0] * (1 + 1e-4)
    # Repairing a Clarabel dual costs little.
    assert box.lower_bound[0] >= box.claimed_lower_bound[0] * (1 - 1e-2)


def test_sdp_on_chunks_is_labelled() -> None:
    usable("sdp")
    case = next(case for case in zoo() if case.name == "unequal inputs, 2 bits")
    solution = lb.solve(case.problem, "sdp", options={"chunk": 2})
    assert "no bound of the layer" in solution.notes[0][0]
    assert solution.lower_bound[0] <= case.optimum
    assert solution.status[0] in (lb.Status.RELAXED, lb.Status.FAILED, lb.Status.OPTIMAL)


def test_highs_refuses_singular_pruning(random_gram: Callable[..., Float], rng: np.random.Generator) -> None:
    layer = lb.Layer(rng.normal(size=(1, 6)), random_gram(6, 3))
    with pytest.raises(UnsupportedProblemError, match="singular"):
        lb.solve(lb.pruning_problem(layer, k=2), usable("highs"))


def size_limited() -> bool:
    import gurobipy

    with gurobipy.Env(params={"OutputFlag": 0}) as environment, gurobipy.Model(env=environment) as model:
        model.addMVar(2001)
        try:
            model.optimize()
        except gurobipy.GurobiError:
            return True
    return False


def test_gurobi_names_the_limit_of_its_licence(rng: np.random.Generator) -> None:
    usable("gurobi")
    x = rng.normal(size=(300, 260))
    layer = lb.Layer(rng.normal(size=(1, 260)), x.T @ x)
    problem = lb.quantization_problem(layer, 2)
    if not size_limited():
        pytest.skip("a full Gurobi licence is installed")
    with pytest.raises(UnsupportedProblemError, match="size-limited"):
        lb.solve(problem, "gurobi", time_limit=60.0)


@pytest.fixture
def reference_layer(rng: np.random.Generator) -> lb.Layer:
    """The first 16 inputs of a demo layer: small enough for every solver."""
    layer = lb.demo_layers()["conv3"]
    live = np.flatnonzero(layer.live())[:16]
    return lb.Layer(layer.matrix[:, live], layer.gram[0][np.ix_(live, live)], "conv3")


@pytest.mark.slow
@pytest.mark.parametrize("second", ["scip", "gurobi"])
@pytest.mark.parametrize(
    ("name", "n", "how"),
    [
        ("linear", 12, {"density": 0.25}),
        ("layer1.0.conv1", 18, {"pattern": "2:4"}),
        ("layer1.0.conv1", 24, {"density": 0.125}),
        ("linear", 20, {"density": 0.5, "refit": False}),
    ],
)
def test_a_second_solver_agrees_on_real_pruning_problems(
    second: str, name: str, n: int, how: dict[str, Any], reference_data: Path
) -> None:
    layer = lb.load_layers(reference_data / "resnet20_layers.safetensors")[name]
    live = np.flatnonzero(layer.live())[:n]
    part = lb.Layer(layer.matrix[:2, live], layer.gram[0][np.ix_(live, live)], name)
    problem = lb.pruning_problem(part, **how)
    native = lb.solve(problem, channels=[1], time_limit=60.0)
    other = lb.solve(problem, usable(second), channels=[1], time_limit=120.0)
    assert native.status == [lb.Status.OPTIMAL]
    assert other.status[0] in (lb.Status.CLAIMED, lb.Status.OPTIMAL)
    assert other.upper_bound[0] == pytest.approx(native.upper_bound[0], rel=1e-6)
    assert other.claimed_lower_bound[0] == pytest.approx(native.lower_bound[0], rel=1e-5)


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = lb.quantization_problem(lb.demo_layers()["conv3"], 3)
    missing = Availability(False, None, "nothing is not installed; run: pip install 'layerbounds[scip]'")
    monkeypatch.setattr(ScipBackend, "availability", lambda self: missing)
    with pytest.raises(lb.LayerboundsError, match=r"pip install 'layerbounds\[scip\]'"):
        lb.solve(problem, "scip")
    row = next(row for row in lb.backends() if row.name == "scip")
    assert not row.available
