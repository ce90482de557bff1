"""Properties of pruning problems and their certificates, on small instances and on real layers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.bounds.masks.form import unit_form
from layerbounds.bounds.pruning.dual import is_block_minorant, pruning_bound
from layerbounds.certify.interval import certify, dual_bound
from layerbounds.exceptions import CertificationError, InputError
from layerbounds.problems.patterns import parse_pattern
from layerbounds.problems.shared_support import SharedSupport
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import BlockDual, Control, Leaf, RawSolve, SearchProof
from layerbounds.search.pruning.blocks import search_blocks
from layerbounds.search.pruning.clusters import search_clusters
from layerbounds.search.pruning.masks import MaskSearch
from layerbounds.search.pruning.subset_run import search_subset
from layerbounds.search.pruning.subset_search import SubsetSearch
from layerbounds.search.shared import small_nodes, tree
from layerbounds.search.shared.root import find_root
from layerbounds.search.shared.selection import make_selection
from layerbounds.search.shared.unit_blocks import UnitBlocks


def optimum(problem: lb.PruningProblem) -> Float:
    solution = lb.solve(problem, time_limit=30, jobs=1)
    assert all(s == lb.Status.OPTIMAL for s in solution.status)
    return solution.upper_bound


@pytest.fixture
def layer(rng: np.random.Generator, random_gram: Callable[..., Float]) -> lb.Layer:
    return lb.Layer(rng.normal(size=(2, 12)), random_gram(12))


@pytest.mark.parametrize("refit", [True, False])
def test_a_larger_k_never_costs(layer: lb.Layer, refit: bool) -> None:
    values = np.array([optimum(lb.pruning_problem(layer, k=k, refit=refit)) for k in range(13)])
    assert np.all(np.diff(values, axis=0) <= 2e-6 * values[:-1] + 1e-12)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:3"])
def test_refit_never_costs(layer: lb.Layer, pattern: str) -> None:
    count = {} if pattern == "2:4" else {"density": 0.5}
    refit, mask = (optimum(lb.pruning_problem(layer, pattern=pattern, refit=r, **count)) for r in (True, False))
    assert np.all(refit <= mask * (1 + 2e-6))


def test_structure_costs(layer: lb.Layer) -> None:
    free = optimum(lb.pruning_problem(layer, density=0.5))
    assert np.all(free <= optimum(lb.pruning_problem(layer, pattern="2:4")) * (1 + 2e-6))
    assert np.all(free <= optimum(lb.pruning_problem(layer, density=0.5, pattern="block:3")) * (1 + 2e-6))


def test_permuting_inputs_changes_nothing(layer: lb.Layer, rng: np.random.Generator) -> None:
    p = rng.permutation(12)
    moved = lb.Layer(layer.matrix[:, p], layer.gram[0][np.ix_(p, p)])
    for refit in (True, False):
        a, b = (optimum(lb.pruning_problem(x, k=5, refit=refit)) for x in (layer, moved))
        np.testing.assert_allclose(a, b, rtol=2e-6)


def test_scaling(layer: lb.Layer) -> None:
    base = optimum(lb.pruning_problem(layer, k=4))
    scaled = optimum(lb.pruning_problem(lb.Layer(layer.matrix * 1e-3, layer.gram[0] * 1e7), k=4))
    np.testing.assert_allclose(scaled, 10 * base, rtol=2e-6)


@pytest.mark.slow
def test_deterministic_with_a_node_limit(rng: np.random.Generator, random_gram: Callable[..., Float]) -> None:
    layer = lb.Layer(rng.normal(size=(2, 40)), random_gram(40))
    for problem in (lb.pruning_problem(layer, k=10), lb.pruning_problem(layer, k=10, refit=False)):
        runs = [lb.solve(problem, node_limit=60, seed=3, jobs=1) for _ in range(2)]
        np.testing.assert_array_equal(runs[0].lower_bound, runs[1].lower_bound)
        np.testing.assert_array_equal(runs[0].upper_bound, runs[1].upper_bound)


@pytest.mark.slow
def test_limits_and_trace(rng: np.random.Generator, random_gram: Callable[..., Float]) -> None:
    problem = lb.pruning_problem(lb.Layer(rng.normal(size=(1, 40)), random_gram(40)), k=8)
    stopped = lb.solve(problem, node_limit=3, jobs=1)
    assert stopped.status[0] == lb.Status.NODE_LIMIT
    wide = lb.solve(problem, gap=0.6, jobs=1)
    assert wide.status[0] in (lb.Status.GAP_REACHED, lb.Status.OPTIMAL)
    lower = [p.lower for p in wide.trace[0]]
    assert all(p.lower <= p.upper for p in wide.trace[0])
    assert lower == sorted(lower)
    assert lb.solve(problem, time_limit=0.0, jobs=1).seconds[0] < 1.0


def test_warm_start_is_used(layer: lb.Layer) -> None:
    problem = lb.pruning_problem(layer, k=4)
    best = lb.solve(problem, jobs=1)
    again = lb.solve(problem, warm_start=best.weights, node_limit=1, jobs=1)
    assert np.all(again.upper_bound <= best.upper_bound * (1 + 1e-9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pass density or k"),
        ({"density": 0.5, "k": 3}, "pass either density or k"),
        ({"density": 1.5}, "density is 1.5"),
        ({"k": 13}, "is 13; choose an integer from 0 to 12"),
        ({"k": 2.5}, "is 2.5; choose an integer from 0 to 12"),
        ({"density": 0.5, "pattern": "2:4"}, "says itself"),
        ({"pattern": "4:4"}, "0 < N < M"),
        ({"k": 3, "pattern": "rows"}, "there is no pattern"),
        ({"k": 3, "pattern": "block:0"}, "block size of pattern .*is 0"),
    ],
)
def test_bad_problems(layer: lb.Layer, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        lb.pruning_problem(layer, **options)  # type: ignore[arg-type]


def test_density_counts_all_inputs() -> None:
    gram = np.diag([0.0] * 40 + [1.0] * 60)
    problem = lb.pruning_problem(lb.Layer(np.ones((1, 100)), gram), density=0.29)
    assert problem.kept == 29


def test_structure_counts_dead_inputs_and_ragged_groups() -> None:
    live = np.array([True, False, False, True, True, True, True, False, True, True])
    structure = parse_pattern("2:4").structure((10,), 0).restrict(live)
    np.testing.assert_array_equal(structure.group, [0, 0, 1, 1, 1, 2, 2])
    np.testing.assert_array_equal(structure.capacity, [2, 2, 2])
    assert parse_pattern("block:4").structure((10,), 10).capacity[0] == 3
    assert parse_pattern("block:4").structure((10,), 9).capacity[0] == 2


def task_of(layer: lb.Layer, **options: object) -> Task[Support]:
    task = make_task(lb.pruning_problem(layer, **options), 0, None, None)  # type: ignore[arg-type]
    assert isinstance(task.allowed, Support)
    return task


def feasible_points(task: Task[Support], rng: np.random.Generator, count: int) -> list[Float]:
    """Random feasible weights, with and without refit on their support."""
    points = []
    for i in range(count):
        score = np.abs(task.target) * np.sqrt(np.diag(task.gram)) * rng.exponential(size=len(task.target)) ** (i % 4)
        units = np.bincount(task.allowed.structure.unit, weights=score, minlength=len(task.allowed.structure.group))
        mask = task.allowed.structure.keep_largest(units)
        v = np.where(mask, task.allowed.original, 0.0)
        if task.allowed.refit and i % 2 == 0 and mask.any():
            s = np.flatnonzero(mask)
            v[s] = np.linalg.lstsq(task.gram[np.ix_(s, s)], (task.gram @ task.target)[s], rcond=1e-12)[0]
        points.append(v)
    return points


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("options", [{"k": 4}, {"pattern": "2:4"}, {"pattern": "block:3", "k": 6}])
def test_any_dual_point_gives_a_bound(
    layer: lb.Layer, options: dict[str, object], refit: bool, rng: np.random.Generator
) -> None:
    task = task_of(layer, refit=refit, **options)
    n = len(task.target)
    points = feasible_points(task, rng, 300)
    best = min(float((v - task.target) @ task.gram @ (v - task.target)) for v in points)
    smallest = float(np.linalg.eigvalsh(task.gram)[0])
    for _ in range(30):
        z = task.target * rng.uniform(-0.5, 1.5, size=n)
        block = (
            np.arange(n)
            if rng.random() < 0.5
            else (task.allowed.structure.unit if "k" in options else np.arange(n) // 4)
        )
        if "pattern" not in options:
            block = np.arange(n) // rng.integers(1, 4)
        elif options["pattern"] == "2:4" and rng.random() < 0.3:
            # Whole groups in one block.
            block = np.arange(n) // 8
        root = rng.normal(size=(n, n))
        matrix = np.where(block[:, None] == block[None], root @ root.T, 0.0)
        matrix *= smallest * rng.uniform(0.2, 3.0) / np.linalg.eigvalsh(matrix)[-1]
        assert dual_bound(task, BlockDual(z, block, matrix)) <= best * (1 + 1e-9)


def test_certification_trusts_nothing(layer: lb.Layer) -> None:
    task = task_of(layer, k=4)
    n = len(task.target)
    with pytest.raises(CertificationError, match="break the pattern"):
        certify(task, RawSolve(np.ones(n), lb.Status.OPTIMAL), 0.0)
    with pytest.raises(CertificationError, match="wrong shape"):
        certify(task, RawSolve(np.full(n, np.nan), lb.Status.OPTIMAL), 0.0)
    with pytest.raises(CertificationError, match="another kind"):
        certify(task, RawSolve(None, lb.Status.OPTIMAL, dual=Leaf(task.target)), 0.0)
    with pytest.raises(CertificationError, match="invalid dual point"):
        dual_bound(task, BlockDual(np.full(n, np.inf), np.arange(n), np.eye(n)))
    with pytest.raises(CertificationError, match="exceeds the error"):
        certify(task, RawSolve(np.zeros(n), lb.Status.OPTIMAL, proof=SearchProof(2 * task.energy, 0.0)), 0.0)
    # A minorant far too large is lowered until it is proven, whatever the backend claims.
    large = certify(
        task, RawSolve(None, lb.Status.OPTIMAL, dual=BlockDual(task.target / 2, np.arange(n), 1e6 * np.eye(n))), 0
    )
    assert large.lower <= optimum(lb.pruning_problem(layer, k=4))[0]
    assert large.status != lb.Status.OPTIMAL
    mask = task_of(layer, k=4, refit=False)
    changed = np.zeros(n)
    changed[0] = np.nextafter(mask.allowed.original[0], np.inf)
    with pytest.raises(CertificationError, match="changed kept weights"):
        certify(mask, RawSolve(changed, lb.Status.OPTIMAL), 0.0)


def test_minorants_are_proven_not_believed(layer: lb.Layer) -> None:
    gram = layer.gram[0]
    smallest = float(np.linalg.eigvalsh(gram)[0])
    assert is_block_minorant(gram, 0.999 * smallest * np.eye(12))
    assert not is_block_minorant(gram, 1.001 * smallest * np.eye(12))
    assert not is_block_minorant(gram, gram)


@pytest.mark.parametrize("options", [{"k": 3}, {"pattern": "2:4"}])
def test_the_block_dual_is_exact_for_one_block(layer: lb.Layer, options: dict[str, object]) -> None:
    """With B just below H and one block, the bound is the optimum up to the shrinking of B."""
    task = task_of(layer, **options)
    v = lb.solve(lb.pruning_problem(layer, **options), channels=[0], jobs=1)  # type: ignore[arg-type]
    gram = task.gram
    bound = pruning_bound(
        gram, task.target, None, task.allowed.structure, np.zeros(12), np.zeros(12, dtype=np.int64), gram * (1 - 1e-9)
    )
    assert bound <= v.upper_bound[0]
    np.testing.assert_allclose(bound, v.upper_bound[0], rtol=1e-4)


@pytest.mark.parametrize("options", [{"k": 6}, {"pattern": "2:4"}, {"pattern": "block:1", "k": 6}])
def test_searches_agree(
    options: dict[str, object], rng: np.random.Generator, random_gram: Callable[..., Float]
) -> None:
    layer = lb.Layer(rng.normal(size=(1, 16)), random_gram(16))
    task = task_of(layer, **options)
    values = []
    for search in (
        search_subset,
        lambda t, c: search_clusters(t, c, 4, 5),
        lambda t, c: search_clusters(t, c, 12, 20),
        search_blocks if "block:1" in options.values() else search_subset,
    ):
        raw = search(task, Control(60.0, 0.0, None, 0, 1, threading.Event()))
        result = certify(task, raw, 0.0)
        assert result.status == lb.Status.OPTIMAL
        values.append(result.upper)
    np.testing.assert_allclose(values, values[0], rtol=2e-6)


REAL = ["linear", "layer1.0.conv1", "layer2.1.conv1", "layer3.2.conv2"]


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("options", [{"density": 0.25}, {"pattern": "2:4"}, {"density": 0.5, "pattern": "block:9"}])
def test_real_layers(reference_data: Path, name: str, options: dict[str, object], rng: np.random.Generator) -> None:
    layer = lb.load_layers(reference_data / "resnet20_layers.safetensors")[name]
    for refit in (True, False):
        problem = lb.pruning_problem(layer, refit=refit, **options)  # type: ignore[arg-type]
        solution = lb.solve(problem, channels=[0], time_limit=0.5, jobs=1)
        assert 0 <= solution.lower_bound[0] <= solution.upper_bound[0]
        task = make_task(problem, 0, None, None)
        assert isinstance(task.allowed, Support)
        # Small factorizations with several BLAS threads are many times slower than with one.
        with threadpool_limits(limits=1):
            points = feasible_points(task, rng, 400 if len(task.target) < 300 else 60)
        for v in points:
            assert solution.lower_bound[0] <= (v - task.target) @ task.gram @ (v - task.target) * (1 + 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"k": 4}, {"pattern": "2:4"}, {"k": 4, "refit": False}, {"pattern": "block:2", "k": 6}],
    ids=["subset", "2:4", "mask", "blocks"],
)
def test_fixing_uses_the_bound_of_its_savings(
    options: dict[str, object],
    rng: np.random.Generator,
    random_gram: Callable[..., Float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node whose inherited bound is better than its own keeps the optimum among its children."""
    for _ in range(25):
        problem = lb.pruning_problem(lb.Layer(rng.normal(size=(1, 12)), random_gram(12)), **options)  # type: ignore[arg-type]
        best = lb.solve(problem, jobs=1)
        task = make_task(problem, 0, None, None)
        assert isinstance(task.allowed, Support)
        control = Control(60.0, 0.0, None, 0, 1, threading.Event())
        # Parts of the minorant: the node's own bound is weak.
        search: Any
        unit = 1.0
        if not task.allowed.refit:
            search = MaskSearch(
                unit_form(task.gram, task.targets, task.allowed.original[None], task.allowed.structure), control
            )
            root = search.root()
            search.d *= 10.0 ** rng.uniform(-2, 0, 12)
        elif "block:2" in options.values():
            monkeypatch.setattr(small_nodes, "WORTH", 0.0)
            allowed = SharedSupport(task.allowed.structure, task.targets, True)
            selection = make_selection(replace(task, allowed=allowed))
            search, unit = tree.UnitSearch(selection, control), selection.factor**2
            root = search.root(find_root(selection, control))
            m, part = root.minorant, 10.0 ** rng.uniform(-2, 0, 6)
            root.minorant = UnitBlocks(
                m.block * part[:, None, None], m.inverse / part[:, None, None], m.smallest * part
            )
        else:
            search = SubsetSearch(task, control)
            search.enumerated, unit = 0, search.factor**2
            root = search.root()
            root.d *= 10.0 ** rng.uniform(-2, 0, 12)
        optimum = float(best.lower_bound[0]) * unit
        _, children = search.expand(root, optimum, 1.05 * optimum)
        kept = task.allowed.structure.kept_units(best.weights)[0]
        assert any(np.all(kept[c.status == 1]) and not np.any(kept[c.status == -1]) for c in children)
