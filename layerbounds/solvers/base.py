"""The protocol between problems and solver backends.

A backend gets one channel at a time and returns what it found and what it claims. It never sets a bound:
`layerbounds.certify.interval` recomputes the error of its weights and turns its proof into the lower bound.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from layerbounds.arrays import Bool, Float, Int
from layerbounds.bounds.quantization.dual import FormTerms
from layerbounds.exceptions import InputError
from layerbounds.problems.patterns import Structure
from layerbounds.problems.quantization import Problem
from layerbounds.solution import Status, TracePoint


class Capability(StrEnum):
    """What a backend can treat or honours."""

    UNIFORM = "uniform grids"
    CODEBOOK = "codebook grids"
    PRUNING = "pruning with refit"
    MASK = "pruning masks"
    WARM_START = "warm start"
    NODE_LIMIT = "node limit"
    TRACE = "trace"
    #: Given time, it claims or proves optimality.
    OPTIMALITY = "optimality"
    #: Pruning with refit where the Gram matrix leaves the weights unbounded.
    SINGULAR = "singular pruning"


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run here."""

    available: bool
    version: str | None = None
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class ChannelTask:
    """One output channel, dead inputs removed.

    Attributes
    ----------
    channel : int
    gram : ndarray of shape (n, n)
        Gram matrix of the live inputs.
    target : ndarray of shape (n,)
        Unconstrained minimiser.
    constant : float
        Added to every error.
    energy : float
        f(0).
    live : ndarray of bool, shape (inputs,)
        Which of the layer's inputs these are.
    levels : ndarray of shape (n, levels)
        Sorted levels.
    codes : ndarray of shape (levels,); scale, zero_point : ndarray of shape (n,)
        ``levels = scale[:, None] * (codes - zero_point[:, None])``.
    uniform : bool
        Whether the codes are consecutive integers.
    shared : object
        What the backend's `prepare` returned for the channel's group.
    warm_start : ndarray of shape (n,) or None
        Feasible weights to start from.
    """

    channel: int
    gram: Float
    target: Float
    constant: float
    energy: float
    live: Bool
    levels: Float
    codes: Float
    scale: Float
    zero_point: Float
    uniform: bool
    shared: Any
    warm_start: Float | None


@dataclass(frozen=True, eq=False)
class PruningTask:
    """One output channel to prune, dead inputs removed.

    Attributes
    ----------
    channel, gram, target, constant, energy, live, shared
        As in `ChannelTask`.
    original : ndarray of shape (n,)
        The dense weights: what a kept weight is where ``refit`` is False.
    structure : Structure
        Units, groups and capacities of the live inputs.
    refit : bool
    warm_start : ndarray of shape (n,) or None
        Feasible weights to start from.
    """

    channel: int
    gram: Float
    target: Float
    constant: float
    energy: float
    live: Bool
    original: Float
    structure: Structure
    refit: bool
    shared: Any
    warm_start: Float | None


Task = ChannelTask | PruningTask


@dataclass
class Control:
    """Limits of the work on one channel and the way to stop it from outside."""

    time_limit: float
    gap: float
    node_limit: int | None
    seed: int
    threads: int
    cancel: threading.Event
    started: float = field(default_factory=time.perf_counter)
    #: The backend's own options, defaults filled in.
    options: Mapping[str, Any] = field(default_factory=dict)

    def elapsed(self) -> float:
        """Seconds since the work began."""
        return time.perf_counter() - self.started

    def remaining(self) -> float:
        """Seconds left, 0 when the time is out or the run was interrupted."""
        return 0.0 if self.cancel.is_set() else max(self.time_limit - self.elapsed(), 0.0)


@dataclass(frozen=True, eq=False)
class DualPoint:
    """A point z of the real space and a diagonal d, from which certification derives a bound (docs/bounds.md).

    f(q) ≥ f(z) + Σ_i min_v [2 h_i (v − z_i) + d_i (v − z_i)²] with h = H(z − w), for every diagonal d ⪯ H, negative
    entries included. For uniform grids integer forms of the codes may join the single weights.

    Attributes
    ----------
    z, d : ndarray of shape (n,)
    split : FormTerms or None
    """

    z: Float
    d: Float
    split: FormTerms | None = None


@dataclass(frozen=True, eq=False)
class BlockDual:
    """A point z and a block-diagonal matrix (docs/pruning-bounds.md, docs/block-relaxation.md).

    f(v) ≥ f(z) + min over allowed v of 2hᵀ(v − z) + (v − z)ᵀB(v − z) with h = H(z − w), for every B ⪯ H.

    Attributes
    ----------
    z : ndarray of shape (n,)
    block : ndarray of int64, shape (n,)
        The block of each input. Units of a pattern lie within blocks; blocks within groups, or groups within blocks.
    matrix : ndarray of shape (n, n)
        Entries between different blocks are ignored.
    """

    z: Float
    block: Int
    matrix: Float


@dataclass(frozen=True, eq=False)
class SearchProof:
    """The own branch and bound pruned or visited everything below ``cut``.

    Attributes
    ----------
    cut : float
        In the units of the task's Gram matrix, without the constant.
    allowance : float
        How much rounding can have hidden, same units (docs/numerics.md).
    leaves : ndarray of shape (leaves, n) or None
        With it, what was visited below ``cut`` are exactly these weights: certification evaluates them one by one.
    """

    cut: float
    allowance: float
    leaves: Float | None = None


@dataclass(frozen=True, eq=False)
class RawSolve:
    """What a backend returns for a channel.

    Attributes
    ----------
    weights : ndarray of shape (n,) or None
        The best weights found, on the live inputs.
    termination : Status
        ``optimal`` and ``gap_reached`` are checked by certification.
    proof : SearchProof or None
        Only the native backend may return one.
    dual : DualPoint or BlockDual or None
        For pruning also the diagonal of a `BlockDual` with single inputs as blocks.
    claimed_lower_bound : float or None
        The backend's own figure, in the units of the task, constant included.
    trace : tuple of TracePoint
        In the same units; the lower bounds of a foreign backend are claims, too.
    notes : tuple of str
        What the user has to know about this result, one sentence each.
    """

    weights: Float | None
    termination: Status
    proof: SearchProof | None = None
    dual: DualPoint | BlockDual | None = None
    claimed_lower_bound: float | None = None
    nodes: int = 0
    trace: tuple[TracePoint, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Option:
    """An option of one backend.

    Attributes
    ----------
    default : bool, int, float or str
        Its type is the option's type.
    description : str
    choices : tuple of str
        The allowed values, where they are words.
    least : float
        Smallest allowed value of a number.
    """

    default: bool | int | float | str
    description: str
    choices: tuple[str, ...] = ()
    least: float = 0.0


class Backend(Protocol):
    """A solver. One file and one line in the registry.

    Attributes
    ----------
    name : str
    capabilities : frozenset of Capability
    options : mapping of str to Option
        What may be given as ``options`` beside what `Control` says.
    concurrent : bool
        Whether several channels may be solved side by side in threads of one process.
    """

    name: str
    capabilities: frozenset[Capability]
    options: Mapping[str, Option]
    concurrent: bool

    def availability(self) -> Availability:
        """Whether it can run, and its version."""

    def prepare(self, problem: Problem, group: int, jobs: int) -> Any:
        """Work that all channels of a group share; passed back as ``task.shared``."""

    def solve(self, task: Task, control: Control) -> RawSolve:
        """Solve one channel. Must return soon after ``control.remaining()`` is 0."""


def read_options(backend: Backend, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check a backend's options, read those given as text, and fill in the defaults.

    Raises
    ------
    InputError
        If there is no such option, or its value is of another kind.
    """
    result: dict[str, Any] = {name: option.default for name, option in backend.options.items()}
    for name, value in given.items():
        if name not in result:
            known = ", ".join(result) or "none"
            raise InputError(f"backend {backend.name!r} has no option {name!r}; its options are: {known}.")
        result[name] = _read_option(name, backend.options[name], value)
    return result


def _read_option(name: str, option: Option, value: Any) -> bool | int | float | str:
    kind = type(option.default)
    if kind is str:
        if value not in option.choices:
            raise InputError(f"option {name} is {value!r}; choose {' or '.join(option.choices)}.")
        return str(value)
    if kind is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if str(value).lower() not in words:
            raise InputError(f"option {name} is {value!r}; write true or false.")
        return words[str(value).lower()]
    what = "an integer" if kind is int else "a number"
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not option.least <= number < float("inf") or (kind is int and number != int(number)):
        raise InputError(f"option {name} is {value!r}; pass {what} ≥ {option.least:g}.")
    return int(number) if kind is int else number
