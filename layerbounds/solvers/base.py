"""The protocol between problems and solver backends.

A backend gets one channel at a time and returns what it found and what it claims. It never sets a bound:
`layerbounds.certify.interval` recomputes the error of its weights and turns its proof into the lower bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from layerbounds.exceptions import InputError
from layerbounds.problems.problem import Problem
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control, RawSolve
from layerbounds.suggestions import did_you_mean


class Capability(StrEnum):
    """What a backend can treat or honours."""

    UNIFORM = "uniform grids"
    CODEBOOK = "codebook grids"
    PRUNING = "pruning with refit"
    MASK = "pruning masks"
    SHARED = "shared pruning with refit"
    SHARED_MASK = "shared pruning masks"
    TILED = "tiled pruning with refit"
    TILED_MASK = "tiled pruning masks"
    FILTER = "filter pruning with refit"
    FILTER_MASK = "filter pruning masks"
    JOINT = "pruning with quantization"
    FREE_SCALE = "free scales"
    WARM_START = "warm start"
    NODE_LIMIT = "node limit"
    TRACE = "trace"
    #: Given time, it claims or proves optimality.
    OPTIMALITY = "optimality"
    #: All channels of a layer at once.
    BATCHED = "batched"
    #: Pruning with refit where the Gram matrix leaves the weights unbounded.
    SINGULAR = "singular pruning"


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run here."""

    available: bool
    version: str | None = None
    reason: str | None = None


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
    capabilities : frozenset of str
        What it can honour, and the requirements of the problems that it can treat; those known here are in
        `Capability`.
    options : mapping of str to Option
        What may be given as ``options`` beside what `Control` says.
    concurrent : bool
        Whether several channels may be solved side by side in threads of one process.
    """

    name: str
    options: Mapping[str, Option]
    concurrent: bool

    @property
    def capabilities(self) -> frozenset[str]:
        """See above."""

    def availability(self) -> Availability:
        """Whether it can run, and its version."""

    def prepare(self, problem: Problem, group: int, jobs: int) -> Any:
        """Work that all channels of a group share; passed back as ``task.shared``."""

    def solve(self, task: Task[Any], control: Control) -> RawSolve:
        """Solve one channel. Must return soon after ``control.remaining()`` is 0."""


class GroupBackend(Backend, Protocol):
    """A backend that may also be handed all tasks of a group at once; `solve` then does so."""

    def solve_group(self, tasks: Sequence[Task[Any]], control: Control) -> Sequence[RawSolve]:
        """Solve the tasks, which share their Gram matrix; one answer for each, in their order."""


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
            hint = did_you_mean(name, result)
            raise InputError(f"backend {backend.name!r} has no option {name!r}; {hint}its options are: {known}.")
        result[name] = _read_option(name, backend.options[name], value)
    return result


def _read_option(name: str, option: Option, value: Any) -> bool | int | float | str:
    kind = type(option.default)
    if kind is str:
        if str(value) not in option.choices:
            hint = did_you_mean(value, option.choices)
            raise InputError(f"option {name} is {value!r}; {hint}choose {' or '.join(option.choices)}.")
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
