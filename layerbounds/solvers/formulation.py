"""A channel, or a set of them, as a mixed-integer problem for any solver's modelling interface (docs/backends.md).

minimise ‖F u − g‖² + costᵀu + constant over low ≤ u ≤ high, some u_j integer, linear rows, and, where asked for, cones
u_x² ≤ u_s·u_y, indicators u_y = 0 ⇒ u_x = 0 and products u_p = u_s·u_q. The objective is divided by the incumbent's
error: solvers have absolute tolerances.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layerbounds.arrays import Bool, Float, Int
from layerbounds.bounds.pruning.perspective import centre
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.methods.beam import beam
from layerbounds.methods.obs import obs
from layerbounds.methods.pruning import PruningView, refit_on
from layerbounds.methods.swap import swap
from layerbounds.methods.views import channel_view
from layerbounds.problems.allowed import AllowedSet
from layerbounds.problems.evaluation import squared_error
from layerbounds.problems.levels import Levels
from layerbounds.problems.patterns import Structure
from layerbounds.problems.support import Support
from layerbounds.problems.tasks import Task
from layerbounds.proofs import OPTIMAL_ABSOLUTE
from layerbounds.solvers.base import Capability
from layerbounds.solvers.sublevel import is_singular, rank_factor, reach

#: Part of the diagonal minorant that the perspective form splits off: the rest must stay positive definite.
SPLIT = 0.95


@dataclass(frozen=True)
class Row:
    """low ≤ Σ coefficients·u[index] ≤ high."""

    index: Int
    coefficients: Float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Formulation:
    """A channel in the form of the module's first paragraph.

    Attributes
    ----------
    factor : ndarray of shape (rank, m)
        F.
    offset : ndarray of shape (rank,)
        g.
    cost, low, high : ndarray of shape (m,)
    constant : float
    integer : ndarray of bool, shape (m,)
    rows : list of Row
    cones : list of (s, x, y)
    indicators : list of (y, x)
    products : list of (p, s, q)
    unit : float
        Objective of the task, without its constant, / objective here.
    decode : callable
        From a point u to feasible weights of the task: the best ones that belong to its integers.
    encode : callable
        From feasible weights to a point u.
    start : ndarray of shape (m,)
        The incumbent.
    """

    factor: Float
    offset: Float
    cost: Float
    constant: float
    low: Float
    high: Float
    integer: Bool
    unit: float
    decode: Callable[[Float], Float]
    encode: Callable[[Float], Float]
    start: Float
    rows: list[Row] = field(default_factory=list)
    cones: list[tuple[int, int, int]] = field(default_factory=list)
    indicators: list[tuple[int, int]] = field(default_factory=list)
    products: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Number of variables."""
        return len(self.cost)

    def value(self, u: Float) -> float:
        """Objective at a point."""
        return float(np.sum((self.factor @ u - self.offset) ** 2) + self.cost @ u) + self.constant


def incumbent(task: Task[Any], seed: int) -> Float:
    """Feasible weights to start from: the warm start or those of a heuristic, whichever are better.

    Quantization: K-best beam with coordinate descent. Pruning: backward greedy removal, and exchanges for patterns of
    single inputs.
    """
    found = starts(task.allowed, task, np.random.default_rng([seed, task.channel]))
    if task.warm_start is not None:
        found.append(task.warm_start)
    return min(found, key=lambda v: squared_error(task.gram, v - task.target))


@functools.singledispatch
def starts(allowed: AllowedSet, task: Task[Any], rng: np.random.Generator) -> list[Float]:
    """Allowed weights that heuristics find; one function for each kind of allowed set."""
    return [allowed.nearest(task.target)]


@starts.register
def _(allowed: Levels, task: Task[Levels], rng: np.random.Generator) -> list[Float]:
    return [beam(channel_view(allowed, task.gram, task.target, task.target, rng, {}))]


@starts.register
def _(allowed: Support, task: Task[Support], rng: np.random.Generator) -> list[Float]:
    view = PruningView(task.gram, task.target, allowed.original, allowed.structure, allowed.refit, rng)
    single = len(allowed.structure.group) == len(allowed.structure.unit)
    return [np.zeros(len(task.target)), swap(view) if single else obs(view)]


def choose_tie(task: Task[Any], choice: str) -> str:
    """How dropped inputs are tied to their binaries: as an option ``formulation`` says; `formulate`'s ``form``.

    Big-M, unless it needs bounds on the weights that a singular Gram matrix does not give.
    """
    if choice in ("bigm", "perspective", "indicator"):
        return choice
    free = task.allowed.requirement in (Capability.PRUNING, Capability.SHARED)
    return "indicator" if choice == "auto" and free and is_singular(task.gram) else "bigm"


def formulate(task: Task[Any], start: Float, form: str = "bigm") -> Formulation:
    """Write down a channel.

    Parameters
    ----------
    task : Task
        Of at least one input.
    start : ndarray of shape (n,)
        Feasible weights.
    form : {"bigm", "perspective", "indicator"}
        How weights are tied to the binary that drops them, where kept ones may differ: pruning with refit, and with
        quantization to integers.

    Raises
    ------
    UnsupportedProblemError
        If the form needs bounds on the weights and the Gram matrix is singular.
    """
    value = squared_error(task.gram, start - task.target)
    unit = max(value, OPTIMAL_ABSOLUTE * task.energy, float(np.finfo(np.float64).tiny))
    return write_down(task.allowed, task, start, unit, form)


@functools.singledispatch
def write_down(allowed: AllowedSet, task: Task[Any], start: Float, unit: float, form: str) -> Formulation:
    """One function for each kind of allowed set; ``unit`` is the error by which the objective is divided."""
    raise UnsupportedProblemError(f"{allowed.requirement} cannot be written down for other solvers yet.")


@write_down.register
def _(allowed: Levels, task: Task[Levels], start: Float, unit: float, form: str) -> Formulation:
    return _uniform(task, start, unit) if allowed.uniform else _codebook(task, start, unit)


@write_down.register
def _(allowed: Support, task: Task[Support], start: Float, unit: float, form: str) -> Formulation:
    return _refit(task, start, unit, form) if allowed.refit else _mask(task, start, unit)


def _allowed(task: Task[Levels], start: Float, unit: float) -> Bool:
    """Which levels points as good as the start can take, each once, shape (n, levels)."""
    far = reach(task.gram, unit)[:, None]
    ok = np.abs(task.allowed.values - task.target[:, None]) <= far
    ok |= np.abs(task.allowed.values - start[:, None]) <= 1e-9 * task.allowed.scale[:, None]
    # The only level of an input is one whatever its distance.
    single = task.allowed.count == 1
    ok[single] = np.arange(ok.shape[1]) == 0
    return np.asarray(ok)


def _uniform(task: Task[Levels], start: Float, unit: float) -> Formulation:
    """One integer variable for each input: the number of its level."""
    n, scale, first = len(start), task.allowed.scale, task.allowed.codes[0, 0]
    factor = rank_factor(task.gram * np.outer(scale, scale) / unit)
    reached = _allowed(task, start, unit)
    ends = np.array([(ok.argmax(), len(ok) - 1 - ok[::-1].argmax()) for ok in reached])
    rows = np.arange(n)

    def decode(u: Float) -> Float:
        number = np.clip(np.rint(u), 0, task.allowed.values.shape[1] - 1).astype(np.int64)
        return np.asarray(task.allowed.values[rows, number])

    def encode(weights: Float) -> Float:
        return np.asarray(np.rint(weights / scale + task.allowed.zero_point - first))

    return Formulation(
        factor=factor,
        offset=factor @ (task.target / scale + task.allowed.zero_point - first),
        cost=np.zeros(n),
        constant=0.0,
        low=ends[:, 0].astype(np.float64),
        high=ends[:, 1].astype(np.float64),
        integer=np.ones(n, dtype=bool),
        unit=unit,
        decode=decode,
        encode=encode,
        start=encode(start),
    )


def _codebook(task: Task[Levels], start: Float, unit: float) -> Formulation:
    """One binary for each input and level, one of each input set."""
    scale = task.allowed.scale
    root = rank_factor(task.gram * np.outer(scale, scale) / unit)
    levels = [np.flatnonzero(ok) for ok in _allowed(task, start, unit)]
    owner = np.repeat(np.arange(len(levels)), [len(k) for k in levels])
    level = np.concatenate(levels)
    values = task.allowed.values[owner, level] / scale[owner]
    parts = np.split(np.arange(len(owner)), np.cumsum([len(k) for k in levels])[:-1])

    def encode(weights: Float) -> Float:
        chosen = np.argmin(np.abs(task.allowed.values - weights[:, None]), axis=1)
        return np.asarray((chosen[owner] == level).astype(np.float64))

    def decode(u: Float) -> Float:
        picked = [int(level[part[np.argmax(u[part])]]) for part in parts]
        return np.asarray(task.allowed.values[np.arange(len(parts)), picked])

    return Formulation(
        factor=root[:, owner] * values,
        offset=root @ (task.target / scale),
        cost=np.zeros(len(owner)),
        constant=0.0,
        low=np.zeros(len(owner)),
        high=np.ones(len(owner)),
        integer=np.ones(len(owner), dtype=bool),
        unit=unit,
        decode=decode,
        encode=encode,
        start=encode(start),
        rows=[Row(part, np.ones(len(part)), 1.0, 1.0) for part in parts],
    )


def capacities(structure: Structure, binaries: Int) -> list[Row]:
    """At most so many of the variables of each group; ``binaries`` has one for each unit."""
    rows = []
    for group, capacity in enumerate(structure.capacity):
        index = binaries[structure.group == group]
        rows.append(Row(index, np.ones(len(index)), 0.0, float(capacity)))
    return rows


def _mask(task: Task[Support], start: Float, unit: float) -> Formulation:
    """One binary for each unit."""
    units, owner = len(task.allowed.structure.group), task.allowed.structure.unit
    root = rank_factor(task.gram / unit)
    member = np.zeros((len(owner), units))
    member[np.arange(len(owner)), owner] = task.allowed.original

    def decode(u: Float) -> Float:
        return np.where(u[owner] > 0.5, task.allowed.original, 0.0)

    def encode(weights: Float) -> Float:
        return np.asarray(task.allowed.structure.kept_units(weights[None])[0], dtype=np.float64)

    return Formulation(
        factor=root @ member,
        offset=root @ task.target,
        cost=np.zeros(units),
        constant=0.0,
        low=np.zeros(units),
        high=np.ones(units),
        integer=np.ones(units, dtype=bool),
        unit=unit,
        decode=decode,
        encode=encode,
        start=encode(start),
        rows=capacities(task.allowed.structure, np.arange(units)),
    )


def _refit(task: Task[Support], start: Float, unit: float, form: str) -> Formulation:
    """Weights in units of √(unit/h_ii), tied to a binary for each unit.

    A kept weight of a point as good as the incumbent lies within √((upper − c)·(H⁻¹)_ii) of the target: that gives the
    big-M, never a guess.
    """
    norm = np.sqrt(np.diag(task.gram))
    gram = task.gram / np.outer(norm, norm)
    target = task.target * norm / np.sqrt(unit)
    tied = tie(task.allowed.structure, gram, target, *weight_bounds(gram, target, form, task.channel), form)
    view = PruningView(
        task.gram, task.target, task.allowed.original, task.allowed.structure, True, np.random.default_rng(0)
    )

    def decode(u: Float) -> Float:
        return refit_on(view, u[tied.y][task.allowed.structure.unit] > 0.5)

    def encode(weights: Float) -> Float:
        return tied.point(weights * norm / np.sqrt(unit), task.allowed.structure)

    return tied.formulation(np.zeros(len(start), dtype=bool), unit, decode, encode, start)


def weight_bounds(gram: Float, target: Float, form: str, channel: int) -> tuple[Float, Float]:
    """Least and largest values, 0 included, of weights with an error of at most 1 in all; shapes of the target."""
    far = reach(gram, 1.0)
    if form != "indicator" and not np.all(np.isfinite(far)):
        raise UnsupportedProblemError(
            f"channel {channel}: the Gram matrix is singular, so there is no finite bound on the weights; use "
            "the native backend, or scip or gurobi with formulation=indicator."
        )
    return np.minimum(target - far, 0.0), np.maximum(target + far, 0.0)


@dataclass(frozen=True, eq=False)
class Tied:
    """Weights x, a binary y for each unit, and in the perspective form s_i ≥ x_i²/y; fields as in `Formulation`."""

    factor: Float
    offset: Float
    cost: Float
    constant: float
    low: Float
    high: Float
    rows: list[Row]
    cones: list[tuple[int, int, int]]
    indicators: list[tuple[int, int]]
    y: Int

    def point(self, x: Float, structure: Structure) -> Float:
        """All variables where the weights, shape (n,) or (rows, n), are known."""
        point = np.zeros(len(self.cost))
        point[: x.size] = x.ravel()
        point[self.y] = structure.kept_units(np.abs(np.atleast_2d(x)).max(axis=0, keepdims=True))[0]
        if self.cones:
            point[x.size + len(self.y) :] = x.ravel() ** 2
        return point

    def formulation(
        self,
        whole: Bool,
        unit: float,
        decode: Callable[[Float], Float],
        encode: Callable[[Float], Float],
        start: Float,
    ) -> Formulation:
        """The problem, in which the ``whole`` weights are integers."""
        integer = np.zeros(len(self.cost), dtype=bool)
        integer[: len(whole)] = whole
        integer[self.y] = True
        return Formulation(
            self.factor, self.offset, self.cost, self.constant, self.low, self.high, integer, unit, decode, encode,
            encode(start), self.rows, self.cones, self.indicators,
        )  # fmt: skip


def tie(structure: Structure, gram: Float, target: Float, low: Float, high: Float, form: str) -> Tied:
    """Minimise (x − target)ᵀ gram (x − target), x_i = 0 where the binary of its unit is 0, low ≤ x ≤ high elsewhere.

    Target and bounds have shape (n,), or (rows, n): then the errors of the rows are summed, and the binaries theirs.
    """
    copies = target.size // len(gram)
    n, units, owner = target.size, len(structure.group), np.tile(structure.unit, copies)
    split = SPLIT * centre(gram) if form == "perspective" else np.zeros(len(gram))
    factor = np.kron(np.eye(copies), rank_factor(gram - np.diag(split)))
    split, target, low, high = np.tile(split, copies), target.ravel(), low.ravel(), high.ravel()
    # ‖F(x − c)‖² − 2aᵀx + const has the split-off part of the quadratic form linearised: it returns in Σ d_i s_i.
    count = n + units + (n if form == "perspective" else 0)
    x, y, s = np.arange(n), n + np.arange(units), n + units + np.arange(n)
    full_factor = np.zeros((len(factor), count))
    full_factor[:, x] = factor
    cost = np.zeros(count)
    bounds_low, bounds_high = np.zeros(count), np.ones(count)
    bounds_low[x], bounds_high[x] = low, high
    rows, constant = capacities(structure, y), 0.0
    cones: list[tuple[int, int, int]] = []
    indicators: list[tuple[int, int]] = []
    if form == "perspective":
        cost[x], cost[s] = -2.0 * split * target, split
        constant = float(split @ target**2)
        bounds_high[s] = np.maximum(low**2, high**2)
        cones = [(int(s[i]), int(x[i]), int(y[owner[i]])) for i in range(n)]
    if form == "indicator":
        indicators = [(int(y[owner[i]]), int(x[i])) for i in range(n)]
    else:
        for i in range(n):
            pair = np.array([x[i], y[owner[i]]])
            rows.append(Row(pair, np.array([1.0, -high[i]]), -np.inf, 0.0))
            rows.append(Row(pair, np.array([1.0, -low[i]]), 0.0, np.inf))
    return Tied(full_factor, factor @ target, cost, constant, bounds_low, bounds_high, rows, cones, indicators, y)


def dense_hessian(form: Formulation) -> tuple[Float, Float, float]:
    """Q, p, r with the objective uᵀQu + pᵀu + r."""
    q = form.factor.T @ form.factor
    return q, form.cost - 2.0 * (form.factor.T @ form.offset), form.constant + float(form.offset @ form.offset)
