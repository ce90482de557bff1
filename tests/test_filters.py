"""Filter pruning: whole output channels, with a metric of the outputs and without."""

from __future__ import annotations

import json
import threading
import warnings
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.bounds.filters.transposed import factor, factor_charge
from layerbounds.bounds.least import least
from layerbounds.bounds.objective import metric_interval
from layerbounds.cli.main import app
from layerbounds.exceptions import CertificationError, InputError, LayerboundsError
from layerbounds.kernels import exact
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import Control, FilterDual, MaskDual, SharedDual
from layerbounds.search.families import root_dual
from layerbounds.search.filters.channel_choice import search_filters


def case(kind: int, metric: bool) -> tuple[lb.Layer, Float | None]:
    """Up to five output channels: dead and dependent inputs, zero rows, other targets; and a metric."""
    rng = np.random.default_rng(kind)
    n, rows = int(rng.integers(1, 7)), int(rng.integers(1, 6))
    rank = max(n - 2, 1) if kind % 3 == 0 else n
    x = rng.normal(size=(30, rank)) @ rng.normal(size=(rank, n))
    if kind % 5 == 1:
        x[:, 0] = 0.0
    weight = rng.normal(size=(rows, n)) * 10.0 ** rng.uniform(-2, 2, size=(rows, 1))
    if kind % 7 == 0:
        weight[0] = 0.0
    if not metric:
        moved = x + 0.2 * rng.normal(size=x.shape) if kind % 2 else None
        return lb.Layer.from_activations(weight, x, compressed_inputs=moved), None
    gram = x.T @ x / len(x)
    target = weight + 0.1 * rng.normal(size=weight.shape) if kind % 2 else None
    half = rng.normal(size=(rows, rows + 1)) * 10.0 ** rng.uniform(-1, 1, size=(rows, 1))
    q = half @ half.T
    q += 1e-3 * np.diag(np.diag(q))
    if kind % 4 == 3 and rows > 1:
        q[0] = q[:, 0] = 0.0
    return lb.Layer(weight, gram, target=target), q


def optimum(layer: lb.Layer, k: int, refit: bool, metric: Float | None) -> float:
    """By trying all sets; re-fitted weights by their formula."""
    q = np.eye(layer.out_features) if metric is None else metric
    rows, w = range(layer.out_features), layer.target
    best = np.inf
    for kept in (s for many in range(k + 1) for s in combinations(rows, many)):
        v = np.zeros_like(w)
        if not refit:
            v[list(kept)] = layer.matrix[list(kept)]
        else:
            s = [r for r in kept if q[r, r] > 0]
            t = [r for r in rows if r not in s]
            v[s] = w[s] + np.linalg.solve(q[np.ix_(s, s)], q[np.ix_(s, t)] @ w[t])
        d = v - w
        best = min(best, float(np.trace(q @ d @ layer.gram[0] @ d.T)))
    return best + float(layer.constant.sum())


@pytest.mark.parametrize("metric", [False, True], ids=["sum", "metric"])
@pytest.mark.parametrize("refit", [False, True], ids=["mask", "refit"])
@pytest.mark.parametrize("kind", range(14))
def test_agreement_with_brute_force(kind: int, refit: bool, metric: bool) -> None:
    layer, q = case(kind, metric)
    for k in sorted({0, 1, layer.out_features // 2, layer.out_features}):
        problem = lb.pruning_problem(layer, k=k, pattern="filter", refit=refit, output_metric=q)
        best = optimum(layer, k, refit, q)
        solution = lb.solve(problem, jobs=1)
        slack = 1e-9 * best + 1e-12 * float(solution.energy[0])
        assert list(solution.status) == [lb.Status.OPTIMAL]
        assert solution.lower_bound[0] <= best + slack
        assert abs(solution.upper_bound[0] - best) <= 2e-6 * best + slack
        judged = lb.evaluate(problem, solution.weights)
        assert judged.feasible.all() and abs(judged.error[0] - solution.upper_bound[0]) <= slack
        if solution.energy[0] > 0:
            assert lb.evaluate(problem, 0.0 * layer.matrix).relative_error == pytest.approx([1.0], abs=1e-9)
        root = lb.solve(problem, jobs=1, time_limit=0.0)
        assert root.lower_bound[0] <= best + slack


def metric_task(layer: lb.Layer, q: Float | None, k: int, refit: bool) -> Task[Any]:
    problem = lb.pruning_problem(layer, k=k, pattern="filter", refit=refit, output_metric=q)
    return make_task(problem, list(range(layer.out_features)), None, None)


@pytest.mark.parametrize("kind", range(12))
def test_no_dual_point_exceeds_the_optimum(kind: int) -> None:
    """Wrong N, points and matrices for re-fitted channels; any z and d for masks."""
    rng = np.random.default_rng(50 + kind)
    layer, q = case(kind, True)
    assert q is not None
    live = np.diag(q) > 0
    for k in range(int(np.count_nonzero(live))):
        task = metric_task(layer, q, k, True)
        if not len(task.gram):
            return
        best = optimum(layer, k, True, q) * (1 + 1e-10) + 1e-13 * task.energy
        exactly = factor(task.gram, task.targets[live])
        many = int(np.count_nonzero(live))
        smallest = float(np.linalg.eigvalsh(q[np.ix_(live, live)])[0])
        for rows in (
            exactly,
            1.1 * exactly,
            rng.normal(size=(2, many)),
            exactly + 1e-3 * rng.normal(size=exactly.shape),
        ):
            for part in (0.5, 0.99, 3.0):
                for points in (rows, 0.5 * rows, rng.normal(size=rows.shape)):
                    matrices = part * smallest * np.eye(many)[None]
                    dual = SharedDual(points, np.arange(many), matrices, np.zeros(len(rows), dtype=np.int64))
                    bound = least(task.gram, task.target, task.allowed, FilterDual(rows, dual), task.metric)
                    assert bound <= best
        masks = metric_task(layer, q, k, False)
        best = optimum(layer, k, False, q) * (1 + 1e-10) + 1e-13 * task.energy
        for _ in range(8):
            z = rng.uniform(-0.5, 1.5, size=layer.out_features)
            d = rng.normal(size=layer.out_features) * 10.0 ** rng.uniform(-3, 3)
            assert least(masks.gram, masks.target, masks.allowed, MaskDual(z, d), masks.metric) <= best


def test_dual_points_of_another_problem_are_refused() -> None:
    layer, q = case(1, True)
    refit, masks, plain = (metric_task(layer, m, 1, r) for m, r in ((q, True), (q, False), (None, True)))
    rows = layer.out_features
    for task, dual in ((refit, FilterDual()), (refit, MaskDual(np.zeros(rows), np.zeros(rows))), (masks, FilterDual())):
        with pytest.raises(CertificationError):
            least(task.gram, task.target, task.allowed, dual, task.metric)
    with pytest.raises(CertificationError):
        least(plain.gram, plain.target, plain.allowed, MaskDual(np.zeros(rows), np.zeros(rows)))
    wrong = FilterDual(np.ones((1, rows + 1)), SharedDual(np.ones((1, rows + 1)), np.arange(rows + 1),
                       np.eye(rows + 1)[None], np.zeros(1, dtype=np.int64)))  # fmt: skip
    with pytest.raises(CertificationError):
        least(refit.gram, refit.target, refit.allowed, wrong, refit.metric)


def test_errors_under_a_metric_are_enclosed(rng: np.random.Generator) -> None:
    """Against exact arithmetic, where much cancels and where nothing does."""
    for rows, n in ((1, 1), (3, 5), (5, 30)):
        x = rng.normal(size=(n + 3, n))
        gram, half = x.T @ x, rng.normal(size=(rows, rows))
        q = half @ half.T
        q = 0.5 * (q + q.T)
        w = rng.normal(size=(rows, n))
        for v in (w, w + 1e-12 * rng.normal(size=w.shape), rng.normal(size=w.shape), 0.0 * w):
            exactly = exact.metric_form(gram, q, w, v)
            low, high = metric_interval(gram, q, w, v)
            assert low <= exactly <= high and high - low <= 1e-7 * high
            assert float(exactly) == pytest.approx(float(np.trace(q @ (v - w) @ gram @ (v - w).T)), rel=1e-9)


def test_the_factor_is_charged(rng: np.random.Generator) -> None:
    """N reproduces the energies of output channels, and what it lacks is covered."""
    for scale in (1.0, 1e-12, 1e12):
        layer, q = case(2, True)
        assert q is not None
        w = scale * layer.target
        rows = factor(layer.gram[0], w)
        root = np.sqrt(np.diag(q))
        charge = factor_charge(layer.gram[0], w, q, rows)
        wide, half = w.astype(np.longdouble), rows.astype(np.longdouble)
        off = np.abs(half.T @ half - wide @ layer.gram[0].astype(np.longdouble) @ wide.T)
        assert root @ off @ root <= charge <= 1e-11 * float(np.sum(rows**2)) * float(np.trace(q))


def test_the_metric_of_the_next_layer(rng: np.random.Generator) -> None:
    """What it says is the next layer's error: of a linear layer always, of kernels where errors are white."""
    nxt = rng.normal(size=(7, 5))
    q = lb.next_layer_metric(nxt)
    e = rng.normal(size=(20, 5))
    assert np.sum((e @ nxt.T) ** 2) == pytest.approx(float(np.einsum("ir,rs,is->", e, q, e)))
    kernels = rng.normal(size=(4, 6, 3, 3))
    q = lb.next_layer_metric(kernels)
    assert q == pytest.approx(np.einsum("orxy,osxy->rs", kernels, kernels))
    grouped = lb.next_layer_metric(rng.normal(size=(4, 3, 3, 3)), groups=2)
    assert grouped.shape == (6, 6) and not grouped[:3, 3:].any() and grouped[:3, :3].all()
    flat = lb.next_layer_metric(rng.normal(size=(9, 8)), channels=2)
    assert flat.shape == (2, 2)
    damped = lb.next_layer_metric(nxt[:2], damping=0.1)
    assert np.linalg.eigvalsh(damped)[0] > 0.05 * np.trace(damped) / 5
    for arguments in ({"channels": 3}, {"groups": 2}, {"damping": -1.0}, {"groups": 0}):
        with pytest.raises(InputError):
            lb.next_layer_metric(nxt, **arguments)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        lb.next_layer_metric(np.zeros(3))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 2, "output_metric": np.ones((5, 5))}, "singular"),
        ({"k": 2, "output_metric": -np.eye(5)}, "not positive semidefinite"),
        ({"k": 2, "output_metric": np.eye(5) - 2.0 / 5}, "not positive semidefinite"),
        ({"k": 2, "output_metric": np.zeros((5, 5))}, "not positive semidefinite"),
        ({"k": 2, "output_metric": np.triu(np.ones((5, 5)))}, "not symmetric"),
        ({"k": 2, "output_metric": np.eye(4)}, "shape"),
        ({"k": 2, "output_metric": np.full((5, 5), np.nan)}, "NaN"),
        ({"k": 2, "output_metric": 1e200 * np.eye(5)}, "rescale"),
        ({"k": 6}, "0 to 5"),
        ({}, "how many output channels"),
        ({"k": 1, "density": 0.5}, "either density or k"),
        ({"density": 1.5}, "density"),
        ({"k": 1, "share": 2}, "leave out share"),
        ({"k": 1, "axis": "flat"}, "leave out axis"),
        ({"k": 1, "pattern": "column", "output_metric": np.eye(5)}, "leave it out"),
    ],
)
def test_bad_arguments_get_one_sentence(options: dict[str, Any], said: str, small_layer: lb.Layer) -> None:
    with pytest.raises(InputError, match=said) as caught:
        lb.pruning_problem(small_layer, **{"pattern": "filter", **options})
    assert "\n" not in str(caught.value)


def test_a_singular_metric_will_do_for_masks(small_layer: lb.Layer) -> None:
    problem = lb.pruning_problem(small_layer, k=2, pattern="filter", refit=False, output_metric=np.ones((5, 5)))
    best = optimum(small_layer, 2, False, np.ones((5, 5)))
    solution = lb.solve(problem, jobs=1)
    assert solution.upper_bound[0] == pytest.approx(best, rel=2e-6)
    assert solution.lower_bound[0] <= best * (1 + 1e-9)


def test_errors_that_no_weights_repair_forbid_a_metric(rng: np.random.Generator) -> None:
    x = rng.normal(size=(30, 4))
    layer = lb.Layer.from_activations(rng.normal(size=(3, 4)), x, compressed_inputs=x + rng.normal(size=x.shape))
    with pytest.raises(InputError, match="no weights can repair"):
        lb.pruning_problem(layer, k=1, pattern="filter", output_metric=np.eye(3))
    assert lb.solve(lb.pruning_problem(layer, k=1, pattern="filter"), jobs=1).lower_bound[0] > layer.constant.sum()


def test_groups_are_pruned_one_by_one(rng: np.random.Generator) -> None:
    """Each has its own number and its own metric; a metric that binds groups is refused."""
    layer = lb.Layer(rng.normal(size=(6, 2, 3, 3)), np.stack([np.eye(18), 2.0 * np.eye(18)]))
    blocks = np.stack([np.eye(3) + 0.3, np.eye(3) + 0.1])
    whole = np.zeros((6, 6))
    whole[:3, :3], whole[3:, 3:] = blocks
    for metric in (blocks, whole):
        problem = lb.pruning_problem(layer, k=1, pattern="filter", output_metric=metric)
        solution = lb.solve(problem, jobs=1)
        assert solution.sets == [[0, 1, 2], [3, 4, 5]]
        assert [int(w.reshape(3, -1).any(axis=1).sum()) for w in (solution.weights[:3], solution.weights[3:])] == [1, 1]
        for g, rows in enumerate((slice(0, 3), slice(3, 6))):
            single = lb.Layer(layer.weight[rows], layer.gram[g])
            assert solution.upper_bound[g] == pytest.approx(optimum(single, 1, True, blocks[g]), rel=2e-6)
    with pytest.raises(InputError, match="different groups"):
        lb.pruning_problem(layer, k=1, pattern="filter", output_metric=np.eye(6) + 0.1)
    depthwise = lb.Layer(rng.normal(size=(4, 1, 3, 3)), np.stack([np.eye(9)] * 4))
    for metric in (None, np.ones((4, 1, 1))):
        solution = lb.solve(lb.pruning_problem(depthwise, k=0, pattern="filter", output_metric=metric), jobs=1)
        assert solution.upper_bound == pytest.approx(depthwise.energy())
        kept = lb.solve(lb.pruning_problem(depthwise, k=1, pattern="filter", output_metric=metric), jobs=1)
        assert not kept.upper_bound.any()


def test_dead_inputs_and_biases(rng: np.random.Generator) -> None:
    """Kept channels keep their weights of dead inputs, dropped ones do not; a re-fitted bias is another Gram matrix."""
    x = rng.normal(size=(50, 4)) + 1.0
    x[:, 2] = 0.0
    layer = lb.Layer.from_activations(rng.normal(size=(4, 4)), x)
    q = np.eye(4) + 0.5
    for refit in (True, False):
        for metric in (None, q):
            problem = lb.pruning_problem(layer, k=2, pattern="filter", refit=refit, output_metric=metric, bias="refit")
            solution = lb.solve(problem, jobs=1)
            kept = solution.weights.any(axis=1)
            assert np.array_equal(solution.weights[:, 2], np.where(kept, layer.matrix[:, 2], 0.0))
            assert solution.upper_bound[0] == pytest.approx(optimum(problem.layer, 2, refit, metric), rel=2e-6)
    dead = lb.Layer(np.ones((3, 2)), np.zeros((2, 2)))
    for metric in (None, np.eye(3) + 0.5):
        assert (
            lb.solve(lb.pruning_problem(dead, k=1, pattern="filter", output_metric=metric), jobs=1).upper_bound[0]
            == 0.0
        )


def test_what_takes_problems_takes_filters(tmp_path: Path) -> None:
    layers = lb.demo_layers()
    layer = layers["conv2"]
    q = lb.next_layer_metric(layers["conv3"].weight)
    problem = lb.pruning_problem(layer, density=0.5, pattern="filter", output_metric=q)
    assert "with an output metric" in problem.label and problem.bits_per_weight == 8.0
    assert problem.storage("bitmap") == 8.0 + 16 / (16 * layer.in_features)
    first = lb.solve(problem, jobs=1)
    again = lb.solve(problem, jobs=1, warm_start=first.weights)
    assert again.upper_bound[0] <= first.upper_bound[0] * (1 + 1e-9)
    other = lb.pruning_problem(layer, density=0.5, pattern="filter", output_metric=2.0 * q)
    assert other.fingerprint() != problem.fingerprint()
    assert lb.solve(other, jobs=1).upper_bound[0] == pytest.approx(2.0 * first.upper_bound[0], rel=1e-5)
    plain = lb.pruning_problem(layer, density=0.5, pattern="filter")
    sorted_ = lb.solve(plain, jobs=1)
    assert list(sorted_.bound_kind) == [lb.BoundKind.DUAL]
    assert np.array_equal(np.sort(layer.energy())[:8].sum(), pytest.approx(sorted_.upper_bound[0]))
    channels = lb.pruning_problem(layer, density=0.5, pattern="channel")
    standings = lb.contest(layer, [plain, channels], jobs=1, time_limit=1.0)
    assert [len(entrant.sets) for entrant in standings.entrants] == [1, 1]
    (record,) = [r for r in lb.compare(layer, pattern="filter", density=0.5, jobs=1) if r["kind"] == "certified"]
    assert record["error"] == pytest.approx(sorted_.upper_bound[0])
    for refused in (
        lambda: lb.run_heuristic("magnitude", problem),
        lambda: lb.solve(problem, backend="scip"),
        lambda: lb.solve(problem, channels=[0, 1]),
        lambda: lb.joint_problem(layer, 3, pattern="filter", k=3),
        lambda: lb.versus(layer, bits=[4], pattern="filter"),
        lambda: lb.contest(layer, [plain, problem]),
        lambda: lb.order_gap(layer, bits=3, density=0.5, pattern="filter"),
    ):
        with pytest.raises(LayerboundsError) as caught:
            refused()
        assert "\n" not in str(caught.value)
    lb.save_layers(tmp_path / "layers.safetensors", {"conv2": layer})
    run = [
        "solve",
        "--input",
        str(tmp_path / "layers.safetensors"),
        "--layer",
        "conv2",
        "--pattern",
        "filter",
        "--k",
        "4",
    ]
    result = CliRunner().invoke(app, [*run, "--json", "-"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["channels"][0]["rows"] == list(range(16)) and record["channels"][0]["status"] == "optimal"
    assert CliRunner().invoke(app, [*run, "--mask-only"]).exit_code == 0


def test_the_dual_point_of_re_fitted_channels_is_bounded_again() -> None:
    """What the search of the transposed problem hands over says something about filters."""
    layers = lb.demo_layers()
    task = metric_task(layers["conv2"], lb.next_layer_metric(layers["conv3"].weight), 8, True)
    raw = search_filters(task, Control(5.0, 0.0, 1, 0, 1, threading.Event()))
    assert raw.weights is not None
    upper = metric_interval(task.gram, task.metric, task.target, raw.weights)[1]
    bounds = [] if raw.dual is None else [least(task.gram, task.target, task.allowed, raw.dual, task.metric)]
    bounds += [] if raw.proof is None else [raw.proof.cut - raw.proof.allowance]
    assert bounds and 0.2 * upper < max(bounds) <= upper
    root = root_dual(task, None, 1.0)
    if root is not None:
        assert 0.2 * upper < least(task.gram, task.target, task.allowed, root, task.metric) <= upper


def test_numbers_that_overflow_end_in_open_intervals(rng: np.random.Generator) -> None:
    """No exception, and nothing false."""
    x = rng.normal(size=(40, 6))
    layer = lb.Layer(1e150 * rng.normal(size=(4, 6)), 1e100 * (x.T @ x))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for metric in (None, np.eye(4) + 0.5):
            for refit in (True, False):
                problem = lb.pruning_problem(layer, k=2, pattern="filter", refit=refit, output_metric=metric)
                solution = lb.solve(problem, jobs=1)
                assert solution.lower_bound[0] < np.inf == solution.upper_bound[0]
