"""Choices: the compressions that are asked of every layer of a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from layerbounds.arguments import flag, members, one_of, real_number, shown, whole_number
from layerbounds.contests.contenders import PRUNED, Spec, contender_problem, parse_contender
from layerbounds.contests.contest import Rules
from layerbounds.exceptions import InputError
from layerbounds.layers.layer import Layer
from layerbounds.problems.codebooks import CODEBOOKS
from layerbounds.problems.grids import MAX_BITS
from layerbounds.problems.patterns import parse_pattern
from layerbounds.problems.problem import Problem
from layerbounds.suggestions import did_you_mean


@dataclass(frozen=True)
class Choice:
    """One compression, whatever the layer.

    Attributes
    ----------
    spec : Spec
        Bits or codebook, pattern, density.
    rules : Rules
        How grids are fitted, and what else holds for all choices of a run.
    """

    spec: Spec
    rules: Rules

    @property
    def name(self) -> str:
        """How tables call it."""
        return self.spec.name

    def problem(self, layer: Layer) -> Problem:
        """What it means for a layer.

        Raises
        ------
        InputError
            If the layer cannot have it.
        """
        return contender_problem(layer, self.spec, self.rules)

    def to_dict(self) -> dict[str, Any]:
        """For files: all that decides which problem a layer gets."""
        rules = asdict(self.rules)
        return {
            "name": self.name,
            "spec": asdict(self.spec),
            "rules": {k: v for k, v in rules.items() if k not in ("backend", "jobs", "seed")},
        }

    @classmethod
    def from_dict(cls, about: Mapping[str, Any]) -> Choice:
        """The choice that `to_dict` has described."""
        return cls(Spec(**about["spec"]), Rules(**about["rules"]))


def make_choices(
    rules: Rules,
    *,
    bits: int | Iterable[int] | None = None,
    codebook: str | Iterable[str] | None = None,
    density: float | Iterable[float] | None = None,
    k: int | Iterable[int] | None = None,
    pattern: str | Iterable[str] | None = None,
    problems: Iterable[str | int] = (),
    joint: bool = False,
) -> list[Choice]:
    """The choices that arguments name: every grid, every pattern; with ``joint`` every grid with every pattern.

    Parameters
    ----------
    rules : Rules
    bits, codebook, density, k, pattern
        Each one or several. Patterns that say themselves how much they keep take neither ``density`` nor ``k``;
        the others are asked for at each, unstructured pruning where no pattern needs them.
    problems : iterable of str or int
        Contenders as in `layerbounds.contest`, such as ``"4+2:4"``.
    joint : bool

    Raises
    ------
    InputError
        If something cannot be read, is there twice, or nothing is asked for.
    """
    flag(joint, "joint")
    rules.check()
    for what in ("granularity", "range", "scale", "zero_point"):
        value = getattr(rules, what)
        # Rules are kept in files, and go to other processes.
        if value is not None and not isinstance(value, (str, int)):
            raise InputError(f"{what} is {shown(value)}; pass a name{' or a number' if what == 'granularity' else ''}.")
    grids = [Spec(bits=whole_number(b, "bits", 1, MAX_BITS)) for b in _several(bits, "bits")]
    grids += [Spec(codebook=_codebook(name)) for name in _several(codebook, "codebook")]
    pruned = _pruned(_several(pattern, "pattern"), _several(density, "density"), _several(k, "k"))
    if joint:
        if not grids or not pruned:
            raise InputError(
                "joint puts every grid with every pattern; pass bits or a codebook, and a density or pattern."
            )
        specs = [replace(p, bits=grid.bits, codebook=grid.codebook) for grid in grids for p in pruned]
    else:
        specs = [*grids, *pruned]
    for text in members(problems, "problems"):
        if isinstance(text, bool) or not isinstance(text, (str, int)) or str(text).strip().lower() == PRUNED:
            raise InputError(f"a problem is {shown(text)}; pass texts such as '3', 'nf4', '2:4', '.25' or '4+2:4'.")
        specs.append(parse_contender(str(text)))
    if not specs:
        raise InputError("there is nothing to find out; pass bits, a codebook, a density, a pattern or problems.")
    names = [spec.name for spec in specs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{twice} is asked for twice; name each compression once.")
    return [Choice(spec, rules) for spec in specs]


def _several(value: Any, what: str) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, (str, int, float)):
        return [value]
    return members(value, what)


def _codebook(name: Any) -> str:
    if not isinstance(name, str) or name.strip().lower() not in CODEBOOKS:
        hint = did_you_mean(name, CODEBOOKS)
        raise InputError(f"codebook is {shown(name)}; {hint}choose one of {', '.join(CODEBOOKS)}.")
    return name.strip().lower()


def _pruned(patterns: Sequence[Any], densities: Sequence[Any], counts: Sequence[Any]) -> list[Spec]:
    kept = [Spec(density=real_number(d, "density", 0.0, 1.0)) for d in densities]
    kept += [Spec(k=whole_number(count, "k")) for count in counts]
    specs: list[Spec] = []
    taken = False
    for entry in patterns:
        if not isinstance(entry, str):
            raise InputError(f"pattern is {shown(entry)}; pass a text such as '2:4' or 'channel'.")
        rule = parse_pattern(entry)
        if not rule.needs_count:
            specs.append(Spec(pattern=rule.label))
            continue
        if not kept:
            raise InputError(f"pattern {rule.label!r} needs a density; pass the kept fraction, or k.")
        taken = True
        label = None if rule.label == "unstructured" else rule.label
        specs += [replace(share, pattern=label) for share in kept]
    return specs if taken else [*kept, *specs]


def share_of(value: Any) -> int | Literal["all"] | None:
    """How many rows share a mask, checked.

    Raises
    ------
    InputError
    """
    if value is None or isinstance(value, str):
        return None if value is None else one_of(value, "share", ("all",))  # type: ignore[return-value]
    return whole_number(value, "share", 1)
