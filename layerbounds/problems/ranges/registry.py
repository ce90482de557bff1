"""All ranges."""

from __future__ import annotations

from layerbounds.arguments import one_of
from layerbounds.exceptions import InputError
from layerbounds.problems.ranges.awq import awq
from layerbounds.problems.ranges.gptq import gptq
from layerbounds.problems.ranges.gram import gram
from layerbounds.problems.ranges.hqq import hqq
from layerbounds.problems.ranges.llama_cpp import llama_cpp
from layerbounds.problems.ranges.minmax import minmax
from layerbounds.problems.ranges.mse import mse
from layerbounds.problems.ranges.piso import piso
from layerbounds.problems.ranges.rule import Codes, Kind, RangeRule, separately

_RULES = (
    RangeRule(
        "mse", "least squared weight error of 81 shrink factors", "the package's default",
        weights=separately(mse),
    ),
    RangeRule(
        "minmax", "the smallest scale that clips nothing", "the usual one without calibration",
        weights=separately(minmax),
    ),
    RangeRule(
        "gram", "least output error found by rounding and re-scaling in turn", "the package's own",
        layer=gram,
    ),
    RangeRule(
        "piso", "least output error of round-to-nearest, exactly", "arXiv 2606.10890",
        layer=piso, powers_of_two=False,
        cannot="range 'piso' fits no scales that have to be powers of two, those of mxfp4",
    ),
    RangeRule(
        "gptq", "least weight error to the power 2.4 of 80 shares of the range", "the quantizer of GPTQ with mse=True",
        weights=separately(gptq), kinds=("symmetric", "asymmetric"),
        cannot="range 'gptq' fits uniform grids of at least 2 bits only",
    ),
    RangeRule(
        "awq", "least output error of each group's own inputs of 10 clipping shares", "AWQ's clipping search",
        layer=awq, kinds=("symmetric", "asymmetric"),
        cannot="range 'awq' fits uniform grids of at least 2 bits only",
    ),
    RangeRule(
        "llama.cpp", "best fit of the squared weights' share of 19 trial scales", "make_qx_quants of llama.cpp",
        weights=separately(llama_cpp), kinds=("symmetric",),
        cannot="range 'llama.cpp' has no zero point and fits symmetric uniform grids of at least 2 bits only",
    ),
    RangeRule(
        "hqq", "the whole range, and a real zero point by half-quadratic splitting", "Badri & Shaji, HQQ (2023)",
        weights=hqq, kinds=("asymmetric",),
        cannot="range 'hqq' fits zero points and is for asymmetric uniform grids of at least 2 bits only",
    ),
)  # fmt: skip

RANGES = {rule.name: rule for rule in _RULES}


def find_range(name: str) -> RangeRule:
    """The range of a name.

    Raises
    ------
    InputError
        If there is none.
    """
    return RANGES[one_of(name, "range", tuple(RANGES))]


def check_fits(rule: RangeRule, codes: Codes) -> None:
    """Refuse codes that a range is not for.

    Raises
    ------
    InputError
        That says so.
    """
    if not rule.fits(codes):
        others = ", ".join(other.name for other in RANGES.values() if other.fits(codes))
        raise InputError(f"{rule.cannot}; for this grid choose {others}.")


def usual_kind(rule: RangeRule) -> Kind:
    """Whether a uniform grid gets a zero point where nothing is said: only from ranges that cannot do without one."""
    return "symmetric" if "symmetric" in rule.kinds else "asymmetric"
