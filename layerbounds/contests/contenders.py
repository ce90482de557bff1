"""Contenders as users write them: bits, a pattern, a density, or several of them with a plus sign between."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from layerbounds.arguments import shown
from layerbounds.contests.contest import Rules, pruning_within, quantization
from layerbounds.exceptions import InputError
from layerbounds.layers.layer import Layer
from layerbounds.problems.codebooks import CODEBOOKS
from layerbounds.problems.grids import MAX_BITS
from layerbounds.problems.joint import joint_problem
from layerbounds.problems.patterns import PATTERNS, parse_pattern
from layerbounds.problems.patterns.single_rows import NOfM
from layerbounds.problems.problem import Problem
from layerbounds.problems.pruning import pruning_problem
from layerbounds.problems.quantization import quantization_problem

#: Pruning at the storage of each of the others.
PRUNED = "pruned"
_HOW = (
    "write bits (4), a codebook (nf4), a pattern (2:4, channel), a kept fraction (.5, 1/4) or number (k=8), channels "
    "that share a mask (share=8, share=all), several with a plus sign between (4+2:4, channel+.5), or pruned"
)
#: Patterns whose names have no numbers.
_PATTERNS = {pattern.kind for pattern in PATTERNS}


@dataclass(frozen=True)
class Spec:
    """What a text says.

    Attributes
    ----------
    bits : int or None
    codebook : str or None
    pattern : str or None
    density : float or None
    k : int or None
    share : int, "all" or None
    """

    bits: int | None = None
    codebook: str | None = None
    pattern: str | None = None
    density: float | None = None
    k: int | None = None
    share: int | Literal["all"] | None = None

    @property
    def name(self) -> str:
        """How tables call it."""
        grid = self.codebook.upper() if self.codebook else f"INT{self.bits}" if self.bits is not None else None
        kept = None if self.density is None else f"density {self.density:.4g}"
        if self.k is not None:
            kept = f"k={self.k}"
        pattern = f"{self.pattern} at {kept}" if self.pattern and kept else self.pattern or kept
        if self.share is not None:
            pattern = f"{pattern}, shared by {self.share} rows"
        return " + ".join(part for part in (grid, pattern if grid or not pattern else f"pruned to {pattern}") if part)


def parse_contender(text: str) -> Spec:
    """Read one contender other than ``pruned``.

    Raises
    ------
    InputError
        If a part cannot be read, or is there twice.
    """
    found: dict[str, int | str | float] = {}
    for part in text.lower().split("+"):
        key, value = _part(part.strip(), text)
        if key in found or any({key, *found} >= two for two in ({"bits", "codebook"}, {"density", "k"})):
            raise InputError(f"contender {shown(text)} has two of one kind; {_HOW}.")
        found[key] = value
    return Spec(**found)  # type: ignore[arg-type]


def _part(part: str, text: str) -> tuple[str, int | str | float]:
    number = re.fullmatch(r"(?:int)?(\d+)", part)
    if number is not None:
        bits = int(number[1][:10])
        if not 1 <= bits <= MAX_BITS:
            raise InputError(f"contender {shown(text)} has {number[1][:10]} bits; choose 1 to {MAX_BITS}.")
        return "bits", bits
    if part in CODEBOOKS:
        return "codebook", part
    option = re.fullmatch(r"(k|share)\s*=\s*(\d+|all)", part)
    if option is not None and (option[1], option[2]) != ("k", "all"):
        return option[1], "all" if option[2] == "all" else int(option[2][:10])
    if ":" in part or part in _PATTERNS:
        return "pattern", parse_pattern(part).label
    try:
        share = Fraction(part)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"contender {shown(text)} cannot be read at {shown(part)}; {_HOW}.") from None
    if not 0 <= share <= 1:
        raise InputError(f"contender {shown(text)} keeps {part} of the inputs; pass a fraction of at most 1.")
    return "density", float(share)


def contender_problems(layer: Layer, contenders: Sequence[object], rules: Rules) -> list[tuple[str, Problem]]:
    """The contenders' names and problems, the ones that are meant by ``pruned`` last.

    Parameters
    ----------
    layer : Layer
    contenders : sequence of str, int, Problem or (str, Problem)
        Numbers are bits; a text beside a problem is its name.
    rules : Rules
        Of the grids and of pruning; ``pattern`` is that of ``pruned``.

    Raises
    ------
    InputError
        If one cannot be read, is of another layer, or is there twice, or there are less than two.
    """
    named: list[tuple[str, Problem]] = []
    pruned = False
    for entrant in contenders:
        given, contender = _named(entrant)
        if isinstance(contender, Problem):
            if contender.layer is not layer:
                raise InputError(f"a contender is a problem of layer {contender.layer.name!r}; pass one of this layer.")
            if contender.metric(0) is not None:
                raise InputError(
                    f"contender {contender.label!r} counts errors by a metric of its own, and contests by none; "
                    "leave out output_metric."
                )
            named.append((given or contender.label, contender))
        elif given:
            raise InputError(f"contender {shown(given)} is {shown(contender)}; pass a problem with a name.")
        elif isinstance(contender, str) and contender.strip().lower() == PRUNED:
            pruned = True
        elif isinstance(contender, str) or (isinstance(contender, int) and not isinstance(contender, bool)):
            spec = parse_contender(str(contender))
            named.append((spec.name, contender_problem(layer, spec, rules)))
        else:
            raise InputError(f"a contender is {shown(contender)}; {_HOW}.")
    if pruned:
        sizes: dict[float, str] = {}
        for name, problem in named:
            sizes.setdefault(round(problem.storage(rules.mask), 9), name)
        named += [(f"pruned, storage of {name}", pruning_within(layer, size, rules)) for size, name in sizes.items()]
    first: dict[str, tuple[str, Problem]] = {}
    for entry in named:
        first.setdefault(entry[1].fingerprint(), entry)
    different = list(first.values())
    if len(different) < 2:
        raise InputError(f"there are less than two different contenders; {_HOW}.")
    return different


def _named(entrant: object) -> tuple[str, object]:
    """A contender and the name that it came with, if any."""
    if isinstance(entrant, tuple) and len(entrant) == 2 and isinstance(entrant[0], str):
        return entrant[0], entrant[1]
    return "", entrant


def contender_problem(layer: Layer, spec: Spec, rules: Rules) -> Problem:
    """The problem of a layer that a spec stands for.

    Raises
    ------
    InputError
        If the layer cannot have it.
    """
    prunes = any(value is not None for value in (spec.pattern, spec.density, spec.k, spec.share))
    pattern = parse_pattern(spec.pattern or "unstructured")
    kept: dict[str, Any] = {"density": spec.density, "k": spec.k}
    axis = rules.axis if isinstance(pattern, NOfM) and pattern.axis == "flat" else None
    if spec.bits is None and spec.codebook is None:
        share = rules.share if spec.share is None else spec.share
        return pruning_problem(layer, **kept, pattern=pattern, share=share, axis=axis, refit=rules.refit)
    if spec.share is not None:
        raise InputError(
            f"contender {spec.name}: quantized weights have a mask for each output channel; leave out share."
        )
    if spec.bits is not None:
        dense = quantization(layer, spec.bits, rules)
    else:
        if rules.scale is not None:
            raise InputError("codebooks among contenders have fitted scales; leave out scale='free'.")
        dense = quantization_problem(layer, codebook=spec.codebook, granularity=rules.granularity, range=rules.range)
    if not prunes:
        return dense
    if rules.scale is not None:
        raise InputError("pruning and quantization together need a fixed grid; leave out scale='free'.")
    grid = dense.grid_of(layer.matrix, range(layer.out_features))
    return joint_problem(layer, grid=grid, pattern=pattern, axis=axis, **kept)
