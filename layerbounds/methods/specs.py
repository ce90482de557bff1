"""Methods with options as users write them: ``gptq``, ``gptq:actorder=true:damp=0.1``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerbounds.layers.layer import Layer
from layerbounds.methods.base import Heuristic
from layerbounds.methods.options import read_parts, resolve_options
from layerbounds.methods.registry import describe_heuristics, find_heuristic, run_set
from layerbounds.problems.problem import Problem


@dataclass(frozen=True, eq=False)
class MethodSpec:
    """A heuristic with options.

    Attributes
    ----------
    heuristic : Heuristic
    options : dict
        Under the heuristic's own names.
    """

    heuristic: Heuristic
    options: dict[str, Any]

    @property
    def label(self) -> str:
        """Name and options for tables."""
        return " ".join([self.heuristic.name, *(f"{key}={_shown(value)}" for key, value in self.options.items())])


def parse_method(text: str) -> MethodSpec:
    """Read ``NAME`` or ``NAME:OPTION=VALUE:…``; values are numbers, true, false, none or words.

    Raises
    ------
    InputError
        If the text is not of this form, or the method or the option does not exist.
    """
    name, options = read_parts(text, ":")
    heuristic = find_heuristic(name)
    return MethodSpec(heuristic, resolve_options(heuristic, options))


def choose_methods(problem: Problem, methods: Sequence[str | MethodSpec] | None) -> list[MethodSpec]:
    """The methods that can treat a problem: of those given, or of all."""
    if methods is None:
        given = [MethodSpec(heuristic, {}) for heuristic in describe_heuristics()]
    else:
        given = [m if isinstance(m, MethodSpec) else parse_method(m) for m in methods]
    return [m for m in given if m.heuristic.can_treat(problem)]


def tiny_like(problem: Problem) -> Problem:
    """A problem of the same kind with one channel of four inputs."""
    return problem.like(Layer(np.array([[1.0, -0.6, 0.3, 0.2]]), np.eye(4) + 0.5))


def warm_up(spec: MethodSpec, problem: Problem) -> None:
    """Compile what a method needs on a tiny problem, so that its time is its own."""
    quick = {key: value for key, value in (("time_limit", 0.0), ("iterations", 1)) if key in spec.heuristic.options}
    run_set(spec.heuristic, tiny_like(problem), [0], 0, {}, {**spec.options, **quick})


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
