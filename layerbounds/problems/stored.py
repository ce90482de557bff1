"""Problems as tensors and plain values, for files: a table of the kinds of problems and of their parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.layers.layer import Layer
from layerbounds.problems.filters import FilterProblem
from layerbounds.problems.free_codebook import FreeCodebookProblem
from layerbounds.problems.free_scale import FreeScaleProblem
from layerbounds.problems.grids import Grid
from layerbounds.problems.joint import JointProblem
from layerbounds.problems.patterns import Pattern, as_pattern
from layerbounds.problems.patterns.shared_units import GivenUnits
from layerbounds.problems.problem import Problem
from layerbounds.problems.pruning import PruningProblem
from layerbounds.problems.quantization import QuantizationProblem

#: What a part of a problem becomes: arrays by name, and a plain value.
Parts = tuple[dict[str, NDArray[Any]], Any]


@dataclass(frozen=True)
class Codec:
    """How one part of a problem is stored.

    Attributes
    ----------
    store : callable
        From the part to its arrays, whose names begin with nothing or a dot, and a plain value.
    restore : callable
        The way back.
    """

    store: Callable[[Any], Parts]
    restore: Callable[[Mapping[str, NDArray[Any]], Any], Any]


def _plain(value: Any) -> Parts:
    return {}, value.item() if isinstance(value, np.generic) else value


def _grid(grid: Grid) -> Parts:
    arrays = {".codes": grid.codes, ".scale": grid.scale, ".zero_point": grid.zero_point, ".group": grid.group}
    if np.any(grid.offset):
        arrays[".offset"] = grid.offset
    return arrays, {"group_size": grid.group_size, "uniform": grid.uniform, "label": grid.label}


def _restored_grid(arrays: Mapping[str, NDArray[Any]], value: Any) -> Grid:
    group = arrays[".group"]
    return Grid(
        arrays[".codes"], arrays[".scale"], arrays[".zero_point"], len(group), value["group_size"], value["uniform"],
        value["label"], group, arrays.get(".offset"),  # type: ignore[arg-type]
    )  # fmt: skip


def _pattern(pattern: Pattern) -> Parts:
    return ({".unit": pattern.unit}, "") if isinstance(pattern, GivenUnits) else ({}, pattern.label)


def _restored_pattern(arrays: Mapping[str, NDArray[Any]], value: Any) -> Pattern:
    return as_pattern(arrays[".unit"] if arrays else value)


PLAIN = Codec(_plain, lambda arrays, value: value)
ARRAY = Codec(lambda array: ({"": array}, None), lambda arrays, value: arrays[""])
OPTIONAL = Codec(
    lambda array: ({}, None) if array is None else ({"": array}, None), lambda arrays, value: arrays.get("")
)
GRID = Codec(_grid, _restored_grid)
PATTERN = Codec(_pattern, _restored_pattern)

#: Kinds of problems, and the fields of each beside the layer. A new family adds an entry.
STORED: dict[type[Problem], dict[str, Codec]] = {
    QuantizationProblem: {"grid": GRID},
    PruningProblem: {"pattern": PATTERN, "kept": PLAIN, "refit": PLAIN, "share": PLAIN},
    JointProblem: {"grid": GRID, "pattern": PATTERN, "kept": PLAIN},
    FreeScaleProblem: {
        "codes": ARRAY,
        "zero": PLAIN,
        "signed": PLAIN,
        "powers_of_two": PLAIN,
        "group": ARRAY,
        "granularity": PLAIN,
        "name": PLAIN,
        "dtype": PLAIN,
    },
    FreeCodebookProblem: {"count": PLAIN},
    FilterProblem: {"kept": PLAIN, "refit": PLAIN, "metrics": OPTIONAL},
}
#: What files call the family of a kind, where another kind has the same one.
NAMES: dict[type[Problem], str] = {FilterProblem: "filters"}
#: Before the names of the tensors.
PREFIX = "problem."


def stored_problem(problem: Problem) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The tensors of a problem, and its plain values, ready for JSON; the layer is not among them.

    Raises
    ------
    InputError
        If the kind of problem is not in the table.
    """
    fields = STORED.get(type(problem))
    if fields is None:
        raise InputError(f"problems of the family {problem.family!r} cannot be stored in a file.")
    tensors: dict[str, NDArray[Any]] = {}
    values: dict[str, Any] = {"family": NAMES.get(type(problem), problem.family)}
    for name, codec in fields.items():
        arrays, values[name] = codec.store(getattr(problem, name))
        tensors |= {f"{PREFIX}{name}{part}": array for part, array in arrays.items()}
    return tensors, values


def schema_of(problem: Problem) -> int:
    """The first schema of solution files that can hold a problem: 2 where a grid has offsets, or scales of 0."""
    grid = getattr(problem, "grid", None)
    return 2 if isinstance(grid, Grid) and grid.affine else 1


def restored_problem(layer: Layer, tensors: Mapping[str, NDArray[Any]], values: Mapping[str, Any]) -> Problem:
    """The problem of a layer, from what `stored_problem` returned.

    Raises
    ------
    FileFormatError
        If the family is not known, or something is missing.
    InputError
        If the parts contradict each other or do not fit the layer.
    """
    kinds = {NAMES.get(kind, kind.family): kind for kind in STORED}
    kind = kinds.get(values.get("family", ""))
    if kind is None:
        raise FileFormatError(f"there is no family of problems {values.get('family')!r}; upgrade layerbounds.")
    found = {}
    for name, codec in STORED[kind].items():
        begin = f"{PREFIX}{name}"
        own = {
            key[len(begin) :]: array for key, array in tensors.items() if key == begin or key.startswith(f"{begin}.")
        }
        try:
            found[name] = codec.restore(own, values[name])
        except (KeyError, TypeError) as error:
            raise FileFormatError(f"the problem's {name} is incomplete; write the file again.") from error
    return kind(layer=layer, **found)
