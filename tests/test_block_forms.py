"""Integer forms beside blocks of inputs: certified bounds, their certificates, and trees of boxes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certificates.correct import write
from certificates.incorrect import forge
from matrices import correlated

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.bounds.quantization.block_dual import block_dual_bound
from layerbounds.bounds.quantization.form_terms import Lattice, proven_weights
from layerbounds.bounds.quantization.rows import block_rows
from layerbounds.bounds.rows import rows_function
from layerbounds.certificates.dual import MINORANTS
from layerbounds.certify.interval import dual_bound
from layerbounds.exceptions import CertificationError
from layerbounds.problems.levels import Levels
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import BlockDual, DualPoint, FormTerms
from layerbounds_verify.bounds import Minorant, Tangent, over_levels, prove, read_minorant
from layerbounds_verify.boxes import GRAIN, over_boxes
from layerbounds_verify.exact import RefusedError
from layerbounds_verify.forms import with_forms
from layerbounds_verify.grids import over_blocks
from layerbounds_verify.leaves import tree

#: More of them with ``--slow``.
SEEDS = [*range(18), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(18, 80))]


def exact_optimum(task: Task[Levels]) -> Fraction:
    gram = [[Fraction(x) for x in row] for row in task.gram.tolist()]
    target = [Fraction(x) for x in task.target.tolist()]
    best = None
    for point in itertools.product(*task.allowed.values.tolist()):
        e = [Fraction(v) - t for v, t in zip(point, target, strict=True)]
        value = sum(a * h * b for a, row in zip(e, gram, strict=True) for h, b in zip(row, e, strict=True))
        best = value if best is None else min(best, value)
    assert best is not None
    return best


def random_task(rng: np.random.Generator, seed: int) -> Task[Levels]:
    """One to four inputs at any scale; some without energy, some Gram matrices singular, some grids asymmetric."""
    n = 1 + seed % 4
    rank = None if seed % 3 else max(n - 1, 1)
    gram = correlated(rng, n, rank) * 10.0 ** rng.integers(-30, 31)
    if n > 2 and seed % 5 == 0:
        gram[1], gram[:, 1] = 0.0, 0.0
    if n > 2 and seed % 7 == 0:
        gram[0], gram[:, 0] = gram[2], gram[:, 2]
        gram[0, 0] = gram[2, 2]
    layer = lb.Layer(weight=rng.normal(size=(1, n)) * 10.0 ** rng.integers(-20, 21), gram=gram)
    granularity = 2 if seed % 4 == 0 else "channel"
    grid = lb.uniform_grid(layer.weight, bits=2, symmetric=seed % 2 == 0, granularity=granularity)
    return make_task(lb.quantization_problem(layer, grid=grid), 0, None, None)


def random_dual(rng: np.random.Generator, task: Task[Levels]) -> BlockDual:
    """Good ones and bad ones: forms within a block and across blocks, no weights, large multipliers, any point."""
    n = len(task.target)
    unit, scale = float(np.mean(np.diag(task.gram))), float(task.allowed.scale[0])
    block = rng.integers(0, 1 + n // 2, size=n)
    matrix = np.where(block[:, None] == block, task.gram, 0.0) * rng.choice([0.0, 1e-3, 0.5, 1.0, 2.0])
    matrix += rng.choice([0.0, 0.0, 0.1]) * unit * rng.normal(size=(n, n))
    cuts = int(rng.integers(0, 2 * n + 1))
    forms = rng.integers(-2, 3, (n, cuts)).astype(np.float64)
    if rng.random() < 0.3:
        forms[block != block[0]] = 0.0
    weights = rng.uniform(0, unit, cuts) * scale**2 * rng.choice([0.0, 1e-3, 0.2, 1.0])
    rho = rng.normal(size=cuts) * unit * scale**2 * rng.choice([0.0, 0.1, 1.0, 1e3])
    z = task.target + rng.normal(size=n) * scale * rng.choice([0.0, 0.2, 2.0, 1e4])
    if rng.random() < 0.3:
        z = task.allowed.values[np.arange(n), rng.integers(0, task.allowed.values.shape[1], size=n)]
    return BlockDual(z, block, matrix, FormTerms(forms, weights, rho))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_bound_exceeds_the_exact_optimum(seed: int) -> None:
    rng = np.random.default_rng([1, seed])
    task = random_task(rng, seed)
    optimum = exact_optimum(task)
    for _ in range(8):
        bound = dual_bound(task, random_dual(rng, task))
        assert np.isfinite(bound)
        assert Fraction(bound) <= max(optimum, Fraction(0))


def value_in_floats(task: Task[Levels], dual: BlockDual, weights: Float, matrix: Float) -> float:
    """The bound without a care for rounding."""
    split, allowed = dual.split, task.allowed
    assert split is not None
    columns = split.forms / allowed.scale[:, None]
    deviation = dual.z - task.target
    h = task.gram @ deviation
    total = float(deviation @ h)
    left = h - columns @ split.multipliers
    for b in np.unique(dual.block):
        m = np.flatnonzero(dual.block == b)
        step = np.array(list(itertools.product(*allowed.values[m]))) - dual.z[m]
        total += float(np.min(2 * step @ left[m] + np.einsum("ij,jk,ik->i", step, matrix[np.ix_(m, m)], step)))
    codes = allowed.codes - allowed.codes[0, 0]
    y = split.forms.T @ (dual.z / allowed.scale + allowed.zero_point - allowed.codes[0, 0])
    for j, form in enumerate(split.forms.T):
        ends = form[:, None] * codes[:, [0, -1]]
        t = np.arange(ends.min(axis=1).sum(), ends.max(axis=1).sum() + 1) - y[j]
        total += float(np.min(2 * split.multipliers[j] * t + weights[j] * t**2))
    return total


def good_dual(rng: np.random.Generator, task: Task[Levels], cuts: int = 3) -> BlockDual:
    """Blocks of two inputs and forms of two codes, within the Gram matrix."""
    n = len(task.gram)
    block = np.arange(n) // 2
    forms = np.zeros((n, cuts))
    for j in range(cuts):
        pick = [0, 1] if j == 0 and n > 1 else rng.choice(n, min(2, n), replace=False)
        forms[pick, j] = rng.choice([-1.0, 1.0], len(pick))
    least, scale = float(np.linalg.eigvalsh(task.gram)[0]), float(task.allowed.scale.min())
    weights = rng.uniform(0.05, 0.1, cuts) * least * scale**2
    columns = forms / task.allowed.scale[:, None]
    left = task.gram - (columns * weights) @ columns.T
    inside = np.where(block[:, None] == block, task.gram, 0.0)
    lower = np.linalg.inv(np.linalg.cholesky(inside))
    share = 0.99 * float(np.linalg.eigvalsh(lower @ left @ lower.T)[0])
    z = task.target + 0.2 * rng.normal(size=n) * scale
    return BlockDual(z, block, share * inside, FormTerms(forms, weights, 0.3 * rng.normal(size=cuts) * weights))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_checker_proves_no_less_and_never_too_much(seed: int) -> None:
    rng = np.random.default_rng([8, seed])
    task = random_task(rng, seed)
    optimum = exact_optimum(task)
    for _ in range(4):
        dual = random_dual(rng, task)
        proven = checked(task, dual)
        assert Fraction(dual_bound(task, dual)) <= proven <= optimum


def checked(task: Task[Levels], dual: BlockDual) -> Fraction:
    """The bound of the checker, from what the certificate of a dual point holds."""
    assert dual.split is not None
    n, allowed = len(task.gram), task.allowed
    parts = MINORANTS[Levels, BlockDual](task.gram, allowed, dual)
    minorant = read_minorant({f"m.{name}": part for name, part in parts.items()}, "m", n)
    prove(task.gram, minorant, allowed.scale, True)
    prove(task.gram, minorant, allowed.scale, False)
    tangent = Tangent(task.gram, task.target, dual.z, minorant, allowed.values)
    lattice = allowed.scale, allowed.zero_point - allowed.codes[0, 0], allowed.count
    tangent, added = with_forms(tangent, allowed.values, minorant, dual.split.multipliers, *lattice)
    found = (
        over_blocks(tangent, minorant, allowed.values, None) if minorant.parts else over_levels(tangent, allowed.values)
    )
    return found + added


@pytest.mark.parametrize("seed", range(12))
def test_the_bound_is_near_its_value_in_floats(seed: int) -> None:
    rng = np.random.default_rng([2, seed])
    n = 1 + seed % 5
    layer = lb.Layer(weight=rng.normal(size=(1, n)), gram=correlated(rng, n) * 10.0 ** rng.integers(-9, 10))
    grid = lb.uniform_grid(layer.weight, bits=2, symmetric=seed % 2 == 0, granularity=2 if seed % 3 == 0 else "channel")
    task = make_task(lb.quantization_problem(layer, grid=grid), 0, None, None)
    dual = good_dual(rng, task)
    assert dual.split is not None
    expected = value_in_floats(task, dual, dual.split.weights, dual.matrix)
    size = float(np.abs(task.target) @ np.abs(task.gram) @ np.abs(task.target))
    found = dual_bound(task, dual)
    assert found == pytest.approx(expected, abs=1e-9 * size)
    assert Fraction(found) <= exact_optimum(task)


def test_forms_add_to_blocks() -> None:
    # H is the block, and a form across the blocks that can be had at once.
    columns = np.array([1.0, 0.0, 1.0, 0.0])
    inside = np.kron(np.eye(2), np.array([[1.0, 0.4], [0.4, 1.0]])) * 0.2
    gram = inside * (1 + 1e-9) + np.outer(columns, columns)
    layer = lb.Layer(weight=np.array([[0.3, 0.1, 0.9, 0.2]]), gram=gram)
    task = make_task(lb.quantization_problem(layer, bits=2, scale=np.array([0.5])), 0, None, None)
    block = np.array([0, 0, 1, 1])
    split = FormTerms(columns[:, None], np.array([0.25 * (1 - 1e-9)]), np.zeros(1))
    bound = dual_bound(task, BlockDual(task.target, block, inside, split))
    optimum = float(exact_optimum(task))
    assert dual_bound(task, BlockDual(task.target, block, inside)) < 0.9 * bound <= 0.9 * optimum
    assert bound > 0.5 * optimum


def test_without_forms_it_is_the_bound_of_blocks_and_with_single_inputs_that_of_a_diagonal() -> None:
    rng = np.random.default_rng(3)
    layer = lb.Layer(weight=rng.normal(size=(1, 5)), gram=correlated(rng, 5))
    task = make_task(lb.quantization_problem(layer, bits=2), 0, None, None)
    none = FormTerms(np.zeros((5, 0)), np.zeros(0), np.zeros(0))
    dual = BlockDual(task.target, np.arange(5) // 2, 1e-3 * task.gram)
    assert dual_bound(task, replace(dual, split=none)) == pytest.approx(dual_bound(task, dual), rel=1e-9)
    good = good_dual(rng, task)
    d = np.full(5, 0.5 * float(np.linalg.eigvalsh(task.gram)[0]))
    blocks = dual_bound(task, BlockDual(good.z, np.arange(5), np.diag(d), good.split))
    assert blocks == pytest.approx(dual_bound(task, DualPoint(good.z, d, good.split)), rel=1e-9, abs=1e-12)


def test_nothing_is_proven_of_an_indefinite_matrix() -> None:
    layer = lb.Layer(weight=np.ones((1, 2)), gram=np.eye(2))
    allowed = make_task(lb.quantization_problem(layer, bits=2), 0, None, None).allowed
    lattice = Lattice(allowed.codes - allowed.codes[0, 0], allowed.scale, allowed.zero_point - allowed.codes[0, 0])
    split, block = FormTerms(np.ones((2, 1)), np.ones(1), np.ones(1)), np.zeros(2, dtype=np.int64)
    assert proven_weights(-np.eye(2), np.ones((2, 1)), np.zeros((2, 2)), np.zeros(1)) is None
    z = np.ones(2)
    assert block_dual_bound(-np.eye(2), z, allowed.values, z, block, np.eye(2), lattice, split) == 0.0
    # Huge numbers: nothing is proven, and nothing breaks.
    split, matrix = FormTerms(np.ones((2, 1)), np.full(1, 1e308), np.full(1, 1e308)), np.full((2, 2), 1e308)
    assert block_dual_bound(np.eye(2), z, allowed.values, 0.1 * z, block, matrix, lattice, split) <= 0.0


@pytest.mark.parametrize("seed", range(8))
def test_shrunk_blocks_and_weights_are_below_the_matrix(seed: int) -> None:
    rng = np.random.default_rng([4, seed])
    n = 2 + seed % 4
    gram = correlated(rng, n, None if seed % 2 else n - 1)
    columns = rng.integers(-2, 3, (n, 4)) / 3.0
    block = np.arange(n) // 2
    matrix = np.where(block[:, None] == block, gram, 0.0)
    found = proven_weights(gram, columns, matrix, rng.uniform(0, 1, 4))
    assert found is not None
    b, g, shift = found
    exact = np.vectorize(Fraction, otypes=[object])
    v = exact(columns)
    left = exact(gram) + np.diag(exact(shift)) - exact(b) - (v * exact(g)) @ v.T
    assert positive(left)


def positive(matrix: np.ndarray) -> bool:
    """Whether a matrix of fractions is positive semidefinite, by elimination."""
    a = matrix.copy()
    for k in range(len(a)):
        if a[k, k] < 0 or (a[k, k] == 0 and any(a[k, k + 1 :])):
            return False
        if a[k, k] > 0:
            a[k + 1 :, k + 1 :] -= np.outer(a[k + 1 :, k], a[k, k + 1 :]) / a[k, k]
    return True


def test_rows_with_forms_are_bounded_one_by_one() -> None:
    rng = np.random.default_rng(5)
    layer = lb.Layer(weight=rng.normal(size=(2, 6)), gram=correlated(rng, 6))
    problem = lb.quantization_problem(layer, bits=3)
    tasks = [make_task(problem, row, None, None) for row in range(2)]
    first = good_dual(rng, tasks[0])
    duals = [first, replace(first, z=tasks[1].target)]
    assert rows_function(tasks[0].allowed, first) is block_rows
    targets = np.stack([task.target for task in tasks])
    found = block_rows(tasks[0].gram, targets, [task.allowed for task in tasks], duals)
    assert found.tolist() == [dual_bound(task, dual) - task.constant for task, dual in zip(tasks, duals, strict=True)]
    plain = block_rows(tasks[0].gram, targets, [t.allowed for t in tasks], [replace(d, split=None) for d in duals])
    assert np.all(plain != found)


@pytest.mark.parametrize(
    "problem",
    [
        lambda layer: lb.quantization_problem(layer, codebook="nf4"),
        lambda layer: lb.pruning_problem(layer, k=2),
        lambda layer: lb.joint_problem(layer, bits=2, k=2),
    ],
)
def test_forms_of_other_problems_are_refused(problem: object) -> None:
    rng = np.random.default_rng(6)
    layer = lb.Layer(weight=rng.normal(size=(1, 4)), gram=correlated(rng, 4))
    task = make_task(problem(layer), 0, None, None)
    split = FormTerms(np.ones((4, 1)), np.zeros(1), np.zeros(1))
    dual = BlockDual(task.target, np.arange(4) // 2, np.zeros((4, 4)), split)
    with pytest.raises(CertificationError, match="integer forms"):
        dual_bound(task, dual)
    function = rows_function(task.allowed, dual)
    if function is not None:
        with pytest.raises(CertificationError, match="integer forms"):
            function(task.gram, task.target[None], [task.allowed], [dual])


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("forms", np.full((4, 2), 0.5)),
        ("forms", np.zeros((3, 2))),
        ("weights", np.array([1e-3, -1e-9])),
        ("multipliers", np.array([0.0, np.nan])),
        ("multipliers", np.zeros((2, 1))),
    ],
)
def test_invalid_forms_are_refused(part: str, value: Float) -> None:
    rng = np.random.default_rng(7)
    layer = lb.Layer(weight=rng.normal(size=(1, 4)), gram=correlated(rng, 4))
    task = make_task(lb.quantization_problem(layer, bits=3), 0, None, None)
    split = replace(FormTerms(np.ones((4, 2)), np.zeros(2), np.zeros(2)), **{part: value})
    with pytest.raises(CertificationError, match="invalid dual point"):
        dual_bound(task, BlockDual(task.target, np.arange(4), np.zeros((4, 4)), split))


def random_tree(rng: np.random.Generator, n: int, levels: int, divisions: int) -> dict[str, Float]:
    """A tree of boxes, each of whose leaves has evidence of its own."""
    axis, at, child = [-1], [-1], [0]
    for _ in range(divisions):
        node = int(rng.choice(np.flatnonzero(np.array(axis) < 0)))
        axis[node], at[node], child[node] = int(rng.integers(n)), int(rng.integers(1, levels)), len(axis)
        axis += [-1, -1]
        at += [-1, -1]
        child += [0, 0]
    leaf = np.array(axis) < 0
    numbers = np.array(child)
    numbers[leaf] = np.arange(leaf.sum())
    return {"axis": np.array(axis), "at": np.array(at), "child": numbers}


def leaf_bound(task: Task[Levels], minorant: Minorant, z: Float, rho: Float, limits: list[tuple[int, int]]) -> Fraction:
    """The bound at a leaf in rational numbers; forms of levels count as integers."""
    exact = np.vectorize(Fraction, otypes=[object])
    allowed = task.allowed
    scale, zero = exact(allowed.scale), exact(allowed.zero_point - allowed.codes[0, 0])
    forms, point, weights, multipliers = (exact(part) for part in (minorant.forms, z, minorant.weights, rho))
    deviation = point - exact(task.target)
    h = exact(task.gram) @ deviation
    total = deviation @ h
    left = h - (forms / scale[:, None]) @ multipliers
    parts = minorant.parts or [(np.array([i]), np.array([[d]])) for i, d in enumerate(minorant.d)]
    for m, values in parts:
        b = exact(values) - np.diag(exact(minorant.shift[m]))
        steps = [exact(allowed.values[i, slice(*limits[i])]) - point[i] for i in m]
        costs = [2 * (t @ left[m]) + t @ b @ t for t in (np.array(p, dtype=object) for p in itertools.product(*steps))]
        total += min(costs)
    y = forms.T @ (point / scale + zero)
    for j, form in enumerate(minorant.forms.T.astype(int).tolist()):
        ends = [sorted((c * begin, c * (end - 1))) for c, (begin, end) in zip(form, limits, strict=True)]
        t = [k - y[j] for k in range(sum(low for low, _ in ends), sum(high for _, high in ends) + 1)]
        total += min(2 * multipliers[j] * x + weights[j] * x * x for x in t)
    return Fraction(total)


@pytest.mark.parametrize("seed", SEEDS)
def test_leaves_of_boxes_with_blocks(seed: int) -> None:
    rng = np.random.default_rng([10, seed])
    task = random_task(rng, seed)
    dual, n, (allowed, levels) = random_dual(rng, task), len(task.gram), (task.allowed, task.allowed.values.shape[1])
    stored = MINORANTS[Levels, BlockDual](task.gram, allowed, dual)
    minorant = read_minorant({f"m.{name}": part for name, part in stored.items()}, "m", n)
    prove(task.gram, minorant, allowed.scale, True)
    parts = random_tree(rng, n, levels, int(rng.integers(0, 8)))
    leaves = int((parts["axis"] < 0).sum())
    parts["z"] = task.target + rng.normal(size=(leaves, n)) * allowed.scale * rng.choice([0.0, 0.3, 3.0])
    parts["multipliers"] = rng.integers(-(2**14), 2**14, (leaves, len(minorant.weights))).astype(np.int16)
    lattice = allowed.scale, allowed.zero_point - allowed.codes[0, 0], allowed.count
    found = over_boxes(task.target, task.gram, allowed.values, minorant, parts, *lattice)
    assert found <= exact_optimum(task)
    expected = None
    for evidence, limits in zip(*[tree(parts, 0, n, levels)[k] for k in (0, 2)], strict=True):
        box = [
            (b, min(e, c))
            for (b, e), c in zip((limits.get(i, (0, levels)) for i in range(n)), allowed.count, strict=True)
        ]
        if all(begin < end for begin, end in box):
            rho = parts["multipliers"][evidence] * (minorant.weights * GRAIN)
            own = leaf_bound(task, minorant, parts["z"][evidence], rho, box)
            expected = own if expected is None else min(expected, own)
    assert expected is not None and found <= expected
    # Of blocks that cannot be factorized their whole size is charged.
    spectra = [np.linalg.eigvalsh(values) for m, values in minorant.parts if len(m) > 1]
    share = 1e-11 if all(s[0] > 1e-8 * s[-1] for s in spectra) and not np.any(minorant.shift) else 1.0
    reach = np.abs(parts["z"]).max(axis=0) + np.abs(allowed.values).max(axis=1) + np.abs(task.target)
    assert expected - Fraction(share) * Fraction(float(reach @ np.abs(task.gram) @ reach)) <= found


def as_tree(tensors: dict[str, Any], about: dict[str, Any], divisions: int = 3) -> None:
    """The first dual point of a certificate as evidence of the leaves of a tree."""
    about["proofs"][0]["kind"] = "leaves"
    weights = tensors[f"proof.minorant.{about['proofs'][0]['minorant']}.weights"]
    z, rho = tensors.pop("proof.0.z"), tensors.pop("proof.0.multipliers")
    parts = random_tree(np.random.default_rng(0), len(z), 4, divisions)
    leaves = int((parts["axis"] < 0).sum())
    grains = np.rint(rho / (weights * GRAIN)).astype(np.int16)
    tensors |= {f"proof.0.{name}": part.astype(np.int32) for name, part in parts.items()}
    tensors["proof.0.z"] = np.tile(z, (leaves, 1)).astype(np.float32)
    tensors["proof.0.multipliers"] = np.tile(grains, (leaves, 1))
    tensors["solution.lower_bound"] -= 1e-6 * np.abs(tensors["solution.lower_bound"])


@pytest.mark.parametrize("name", ["3 bits, blocks and forms", "asymmetric groups, blocks and forms"])
def test_certificates_of_boxes_with_blocks(name: str, tmp_path: Path) -> None:
    path = write(name, tmp_path)
    forge(path, as_tree)
    report = lb.verify(path)
    assert report.valid, report.text()
    assert report.channels[0].kind == "leaves"


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        ("solution.lower_bound", lambda x: x * 1.01, "is claimed"),
        ("proof.minorant.0.values", lambda x: 1.5 * x, "not proven to be below"),
        ("proof.minorant.0.weights", lambda x: 40 * x, "not proven to be below"),
        ("proof.minorant.0.forms", lambda x: 0.5 * x, "no small integers"),
        ("proof.0.multipliers", lambda x: x[:, 1:].copy(), "wrong shape"),
        ("proof.0.multipliers", lambda x: -100 * x, "is claimed"),
        ("proof.0.z", lambda x: x + 1.0, "is claimed"),
        ("proof.0.z", lambda x: x * np.float32(np.inf), "too large for float64"),
        ("proof.0.child", lambda x: np.where(x == x.max(), 99, x), "not there"),
    ],
)
def test_wrong_trees_with_blocks_are_refused(
    part: str, change: Callable[[Any], Any], says: str, tmp_path: Path
) -> None:
    path = write("3 bits, blocks and forms", tmp_path)

    def changed(tensors: dict[str, Any], about: dict[str, Any]) -> None:
        as_tree(tensors, about)
        tensors[part] = change(tensors[part])

    forge(path, changed)
    report = lb.verify(path)
    assert not report and any(says in channel.reason for channel in report.channels), report.text()


def test_long_searches_of_blocks_are_refused() -> None:
    rng = np.random.default_rng(11)
    # Twelve inputs that are nearly the same, and slopes that tell none of them from another.
    n = 12
    gram = np.ones((n, n)) + 1e-9 * correlated(rng, n)
    minorant = Minorant(np.diag(gram).copy(), np.zeros(n), [(np.arange(n), gram)], np.zeros((n, 0)), np.zeros(0))
    parts = {"axis": np.array([-1]), "at": np.array([-1]), "child": np.array([0])}
    parts |= {"z": np.full((1, n), 0.5), "multipliers": np.zeros((1, 0), dtype=np.int16)}
    values = np.tile(np.arange(16.0), (n, 1))
    target = np.full(n, 7.5 + 1e-6 * rng.normal(size=n))
    with pytest.raises(RefusedError, match="too many choices"):
        over_boxes(target, gram, values, minorant, parts, np.ones(n), np.zeros(n), np.full(n, 16))
