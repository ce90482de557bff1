"""Certificates of small problems: dual points of every kind that the checker knows, and searches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

import layerbounds as lb
from certificates import scales
from layerbounds.arrays import Float
from layerbounds.bounds.filters.transposed import factor
from layerbounds.certificates import joint
from layerbounds.certificates.rows import mask_form
from layerbounds.certify.interval import certify
from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import Task, make_task
from layerbounds.proofs import (
    BlockDual,
    BoundKind,
    Dual,
    DualPoint,
    Evidence,
    FilterDual,
    FormTerms,
    MaskBlocksDual,
    MaskDual,
    RawSolve,
    SharedDual,
    Status,
    TiledDual,
)

#: From a task and a generator to a dual point.
MakeDual = Callable[[Task, np.random.Generator], Dual]


def layer(n: int = 8, channels: int = 2, rank: int | None = None, seed: int = 0, dead: bool = True) -> lb.Layer:
    """Correlated inputs, one of them without energy."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(5 * n, n)) + 0.5 * rng.normal(size=(5 * n, 1))
    if rank is not None:
        x = x[:, :rank] @ rng.normal(size=(rank, n))
    if dead:
        x[:, 2] = 0.0
    return lb.Layer(rng.normal(size=(channels, n)), x.T @ x / len(x), "toy", constant=0.1 * rng.random(channels))


def diagonal(task: Task, rng: np.random.Generator) -> Dual:
    """A diagonal of different entries, and a point near the target."""
    share = 0.9 if np.linalg.eigvalsh(task.gram)[0] > 1e-9 else 1e-10
    return DualPoint(
        _point(task, rng), share * np.linalg.eigvalsh(task.gram)[0] * rng.uniform(0.9, 1.0, len(task.gram))
    )


def blocks(task: Task, rng: np.random.Generator) -> Dual:
    """Blocks of two inputs, or of the pattern's units."""
    n = len(task.gram)
    structure = getattr(task.allowed, "structure", None)
    block = np.arange(n) // 2 if structure is None else structure.unit // 2
    if structure is not None and len(structure.capacity) > 1:
        block = structure.group[structure.unit]
    matrix = np.where(block[:, None] == block, task.gram, 0.0)
    share = np.linalg.eigvalsh(
        np.linalg.solve(np.linalg.cholesky(matrix), np.linalg.solve(np.linalg.cholesky(matrix), task.gram).T)
    )[0]
    return BlockDual(_point(task, rng), block.astype(np.int64), 0.95 * share * matrix)


def of_rows(task: Task, rng: np.random.Generator) -> Dual:
    """A point of each row, blocks of units, and two classes of rows."""
    structure, rows = task.allowed.structure, len(task.targets)
    matrix = _below(task.gram, structure.unit)
    points = task.targets + 0.02 * rng.normal(size=task.targets.shape) * np.abs(task.targets)
    return SharedDual(points, structure.unit, np.stack([matrix, 0.9 * matrix]), np.arange(rows) % 2)


def of_clusters(task: Task, rng: np.random.Generator) -> Dual:
    """Blocks of two units."""
    block = task.allowed.structure.unit // 2
    rows = np.zeros(len(task.targets), dtype=np.int64)
    return SharedDual(0.98 * task.targets, block, _below(task.gram, block)[None], rows)


def of_mask(task: Task, rng: np.random.Generator) -> Dual:
    """A point and a diagonal of the quadratic form of masks."""
    form = mask_form(task)
    units = len(form.beta)
    return MaskDual(rng.uniform(0.4, 0.6, units), np.full(units, 0.9 * np.linalg.eigvalsh(form.a)[0]))


def of_mask_blocks(task: Task, rng: np.random.Generator) -> Dual:
    """Blocks of two units, and a price."""
    form = mask_form(task)
    block = np.arange(len(form.beta)) // 2
    z = rng.uniform(0.4, 0.6, len(block))
    return MaskBlocksDual(z, block, _below(form.a, block), np.full(len(form.capacity), 0.3 * float(form.beta.mean())))


def of_channels(task: Task, rng: np.random.Generator) -> Dual:
    """Nothing without a metric, else what its columns give."""
    if task.metric is None:
        return FilterDual()
    rows = factor(task.gram, task.targets)
    single = np.arange(len(task.metric))
    classes = np.zeros(len(rows), dtype=np.int64)
    return FilterDual(rows, SharedDual(0.97 * rows, single, _below(task.metric, single)[None], classes))


def _below(gram: Float, block: NDArray[np.int64]) -> Float:
    """The blocks of a matrix, made small enough."""
    matrix = np.where(block[:, None] == block, gram, 0.0)
    lower = np.linalg.cholesky(matrix)
    return 0.95 * float(np.linalg.eigvalsh(np.linalg.solve(lower, np.linalg.solve(lower, gram).T))[0]) * matrix


def forms(task: Task, rng: np.random.Generator) -> Dual:
    """A diagonal, and forms of two and three codes; the largest weights of these are those of the diagonal."""
    n = len(task.gram)
    columns = np.zeros((n, 4))
    for j in range(4):
        columns[rng.choice(n, 2 + j % 2, replace=False), j] = rng.choice([-1.0, 1.0, 2.0], 2 + j % 2)
    smallest = np.linalg.eigvalsh(task.gram)[0]
    weights = 0.05 * smallest * rng.random(4) * float(task.allowed.scale.min()) ** 2
    split = FormTerms(columns, weights, 0.1 * rng.normal(size=4) * weights)
    return DualPoint(_point(task, rng), np.full(n, 0.6 * smallest), split)


def blocks_and_forms(task: Task, rng: np.random.Generator) -> Dual:
    """Blocks of two inputs; forms within one of them and across blocks."""
    split = forms(task, rng).split
    columns = split.forms / task.allowed.scale[:, None]
    block = np.arange(len(task.gram)) // 2
    matrix = _below(task.gram - (columns * split.weights) @ columns.T, block)
    return BlockDual(_point(task, rng), block, matrix, split)


def small_blocks_and_forms(task: Task, rng: np.random.Generator) -> Dual:
    """The same of a singular matrix, where hardly anything is left."""
    n = len(task.gram)
    block, unit = np.arange(n) // 2, 1e-10 * float(np.diag(task.gram).min())
    columns = np.zeros((n, 2))
    columns[:2, 0], columns[1:3, 1] = 1.0, [1.0, -1.0]
    split = FormTerms(columns, np.full(2, unit * float(task.allowed.scale.min()) ** 2), np.zeros(2))
    return BlockDual(_point(task, rng), block, unit * np.eye(n), split)


def prices(task: Task, rng: np.random.Generator) -> Dual:
    """A point, a diagonal and prices of each row of a band."""
    shape = task.targets.shape
    points = task.targets * (1.0 + 0.02 * rng.normal(size=shape))
    smallest = np.linalg.eigvalsh(task.gram)[0]
    return TiledDual(
        points, smallest * rng.uniform(0.8, 0.9, shape), 0.02 * task.energy / len(task.gram) * rng.random(shape)
    )


def _point(task: Task, rng: np.random.Generator) -> Float:
    return task.target + 0.02 * rng.normal(size=len(task.gram)) * np.abs(task.target)


def by_dual(problem: Problem, make: MakeDual, seed: int = 0) -> lb.Solution:
    """A solution whose lower ends are those of dual points that nobody searched for."""
    rng = np.random.default_rng(seed)
    solution = lb.solve(problem, jobs=1, node_limit=1)
    found = []
    for rows in solution.sets:
        task = make_task(problem, rows, None, None)
        raw = RawSolve(task.allowed.nearest(task.target), Status.UNRESOLVED, dual=make(task, rng))
        found.append(certify(task, raw, 0.0))
    return dataclasses.replace(
        solution,
        weights=np.concatenate(
            [problem.complete_set(s, c.weights) for s, c in zip(solution.sets, found, strict=True)]
        ).reshape(solution.weights.shape),
        lower_bound=np.array([c.lower for c in found]),
        upper_bound=np.array([c.upper for c in found]),
        bound_kind=[c.bound_kind for c in found],
        status=[c.status for c in found],
        evidence=[c.evidence for c in found],
    )


def by_search(problem: Problem) -> lb.Solution:
    """What the package finds."""
    solution = lb.solve(problem, jobs=1, node_limit=10**6)
    assert BoundKind.SEARCH in solution.bound_kind
    return solution


def by_boxes(problem: Problem) -> lb.Solution:
    """What the package finds, proven by a tree of boxes of codes with integer forms."""
    solution, rng = by_search(problem), np.random.default_rng(0)
    evidence = []
    for rows, found in zip(solution.sets, solution.evidence, strict=True):
        boxes = forms(make_task(problem, rows, None, None), rng)
        proof = None if found.proof is None else dataclasses.replace(found.proof, boxes=boxes)
        evidence.append(dataclasses.replace(found, proof=proof))
    # Float64 proves no least error to the last digit.
    return dataclasses.replace(solution, evidence=evidence, lower_bound=solution.lower_bound * (1 - 1e-9))


def trivial(problem: Problem) -> lb.Solution:
    """The constant as lower end."""
    solution = by_dual(problem, diagonal)
    return dataclasses.replace(
        solution,
        lower_bound=np.minimum(solution.lower_bound, problem.layer.constant),
        bound_kind=[BoundKind.TRIVIAL] * len(solution.sets),
        evidence=[Evidence()] * len(solution.sets),
    )


def _of_rows() -> dict[str, Callable[[], lb.Solution]]:
    """Rows that have one mask, masks of units, and choices of output channels."""
    five = layer(6, 5, dead=False, seed=3)
    plain = lb.Layer(five.weight, five.gram, "toy")
    rng = np.random.default_rng(5)
    x = rng.normal(size=(12, 5))
    metric = x.T @ x
    found: dict[str, Callable[[], lb.Solution]] = {}
    for word, refit in (("refit", True), ("mask", False)):
        # Few masks are closed at the root.
        wide = layer(9, 3, seed=2) if refit else layer(24, 3, seed=2)
        columns = lb.pruning_problem(wide, k=4, pattern="column", refit=refit)
        triples = lb.pruning_problem(wide, density=0.5, pattern="head:3", refit=refit)
        groups = lb.pruning_problem(wide, pattern="2:3", share=2, refit=refit)
        alone = lb.pruning_problem(wide, k=6, pattern="block:3", refit=refit)
        filters = lb.pruning_problem(five, k=2, pattern="filter", refit=refit)
        bound = lb.pruning_problem(plain, k=2, pattern="filter", refit=refit, output_metric=metric)
        found |= {
            f"columns {word}, search": partial(by_search, columns),
            f"heads {word}, search": partial(by_search, triples),
            f"2:3 of rows {word}, search": partial(by_search, groups),
            f"block:3 {word}, search": partial(by_search, alone),
            f"filters {word}": partial(by_dual, filters, of_channels),
            f"filters with a metric {word}, search": partial(by_search, bound),
            f"columns {word}, dual": partial(by_dual, columns, of_rows if refit else of_mask),
            f"heads {word}, dual": partial(by_dual, triples, of_rows if refit else of_mask),
            f"heads {word}, blocks": partial(by_dual, triples, of_clusters if refit else of_mask_blocks),
            f"filters with a metric {word}, dual": partial(by_dual, bound, of_channels if refit else of_mask),
        }
    return found


def _problems() -> dict[str, Callable[[], lb.Solution]]:
    plain, singular = layer(), layer(rank=4, seed=1)
    three = lb.quantization_problem(plain, 3)
    asymmetric = lb.quantization_problem(plain, 2, symmetric=False, granularity=3)
    nf4 = lb.quantization_problem(plain, codebook="nf4")
    mirrored = lb.quantization_problem(plain, 2, scale=[-0.4, 0.3], zero_point=[1.0, 0.25])
    # One scale but for weights with a single level, and minima.
    steps, least = [[0.4, 0.0, 0.4, 0.4], [0.0, 0.5, 0.0, 0.5]], [[-0.9, -0.2, -0.35, -0.2], [0.1, -0.8, 0.0, -0.3]]
    minima = lb.quantization_problem(plain, 2, scale=steps, offset=least)
    joint_minima = lb.joint_problem(plain, 2, scale=steps, offset=least, k=5)
    refit, mask = (lb.pruning_problem(plain, k=4, refit=how) for how in (True, False))
    two_of_four, of_blocks = lb.pruning_problem(plain, pattern="2:4"), lb.pruning_problem(plain, k=4, pattern="block:2")
    both, joint_nm = lb.joint_problem(plain, 2, k=4), lb.joint_problem(plain, 2, pattern="2:4")
    binary = lb.joint_problem(plain, codebook="binary", k=5)
    tall, low = layer(channels=4), layer(7, channels=5, rank=3, seed=2)
    square, square_mask = (lb.pruning_problem(tall, pattern="transposable:2:4", refit=how) for how in (True, False))
    columns, columns_mask = (lb.pruning_problem(tall, pattern="venom:3:1:5", refit=how) for how in (True, False))
    narrow = lb.pruning_problem(low, pattern="transposable:1:3")
    by_points, by_rays = scales.problems(plain, singular)
    return {
        **_of_rows(),
        **{name: partial(by_dual, problem, scales.dual_points) for name, problem in by_points.items()},
        **{name: partial(by_search, problem) for name, problem in by_rays.items()},
        "3 bits, diagonal": lambda: by_dual(three, diagonal),
        "3 bits, blocks": lambda: by_dual(three, blocks),
        "3 bits, forms": lambda: by_dual(three, forms),
        "asymmetric groups, forms": lambda: by_dual(asymmetric, forms),
        "mirrored scales, forms": lambda: by_dual(mirrored, forms),
        "3 bits, blocks and forms": lambda: by_dual(three, blocks_and_forms),
        "asymmetric groups, blocks and forms": lambda: by_dual(asymmetric, blocks_and_forms),
        "mirrored scales, blocks and forms": lambda: by_dual(mirrored, blocks_and_forms),
        "minima, blocks and forms": lambda: by_dual(minima, blocks_and_forms),
        "singular, blocks and forms": lambda: by_dual(lb.quantization_problem(singular, 3), small_blocks_and_forms),
        "nf4, blocks": lambda: by_dual(nf4, blocks),
        "3 bits, search": lambda: by_search(three),
        "3 bits, boxes": lambda: by_boxes(three),
        "mirrored scales, boxes": lambda: by_boxes(mirrored),
        "minima, diagonal": lambda: by_dual(minima, diagonal),
        "minima, blocks": lambda: by_dual(minima, blocks),
        "minima, forms": lambda: by_dual(minima, forms),
        "minima, search": lambda: by_search(minima),
        "minima, boxes": lambda: by_boxes(minima),
        "joint minima, search": lambda: by_search(joint_minima),
        "joint minima, diagonal": lambda: by_dual(joint_minima, diagonal),
        "nf4, search": lambda: by_search(nf4),
        "groups, search": lambda: by_search(asymmetric),
        "singular, diagonal": lambda: by_dual(lb.quantization_problem(singular, 3), diagonal),
        "singular, search": lambda: by_search(lb.quantization_problem(singular, 3)),
        "trivial": lambda: trivial(three),
        "refit, search": lambda: by_search(refit),
        "2:4, search": lambda: by_search(two_of_four),
        "refit, diagonal": lambda: by_dual(refit, diagonal),
        "refit, blocks": lambda: by_dual(refit, blocks),
        "mask, diagonal": lambda: by_dual(mask, diagonal),
        "mask, blocks": lambda: by_dual(mask, blocks),
        "2:4, blocks": lambda: by_dual(two_of_four, blocks),
        "block:2, blocks": lambda: by_dual(of_blocks, blocks),
        "joint, diagonal": lambda: by_dual(both, diagonal),
        "joint, blocks": lambda: by_dual(both, blocks),
        "joint 2:4, blocks": lambda: by_dual(joint_nm, blocks),
        "free codebook, diagonal": lambda: by_dual(lb.quantization_problem(plain, 1, codebook="free"), diagonal),
        "free codebook, search": lambda: by_search(lb.FreeCodebookProblem(plain, 3)),
        "free codebook singular, search": lambda: by_search(lb.FreeCodebookProblem(singular, 3)),
        "joint, search": lambda: by_search(both),
        "joint 2:4, search": lambda: by_search(joint_nm),
        "joint binary, search": lambda: by_search(binary),
        "mask, search": lambda: by_search(mask),
        "joint, leaves": lambda: by_search(both),
        "joint 2:4, leaves": lambda: by_search(joint_nm),
        "joint nf4, leaves": lambda: by_search(lb.joint_problem(plain, codebook="nf4", k=4)),
        "joint block:2, leaves": lambda: by_search(lb.joint_problem(plain, 2, k=4, pattern="block:2")),
        "mask, leaves": lambda: by_search(mask),
        "2:4 mask, search": lambda: by_search(lb.pruning_problem(plain, pattern="2:4", refit=False)),
        "joint binary, diagonal": lambda: by_dual(binary, diagonal),
        "transposable, prices": lambda: by_dual(square, prices),
        "transposable mask, prices": lambda: by_dual(square_mask, prices),
        "venom, prices": lambda: by_dual(columns, prices),
        "transposable, search": lambda: by_search(square),
        "transposable mask, search": lambda: by_search(square_mask),
        "venom, search": lambda: by_search(columns),
        "venom mask, search": lambda: by_search(columns_mask),
        "transposable singular, search": lambda: by_search(narrow),
    }


CORRECT = _problems()


@cache
def solved(name: str) -> lb.Solution:
    """A solution by its name."""
    return CORRECT[name]()


@cache
def _content(name: str) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "certificate.safetensors"
        # No enumeration is tried where leaves are asked for.
        tried = ((0, 0, 1000),) if name.endswith("leaves") else joint.ATTEMPTS
        with patch.object(joint, "ATTEMPTS", tried):
            solved(name).save_certificate(path)
        return path.read_bytes()


def write(name: str, folder: Path) -> Path:
    """The certificate of that name."""
    path = folder / "certificate.safetensors"
    path.write_bytes(_content(name))
    return path
