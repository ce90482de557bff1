"""Bits that a compressed layer takes with everything: codes, scales, zero points, tables and masks."""

from __future__ import annotations

from functools import singledispatch

import numpy as np

from layerbounds.arrays import Int
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.problems.codebooks import CODEBOOKS, codebook
from layerbounds.problems.filters import FilterProblem
from layerbounds.problems.free_codebook import FreeCodebookProblem
from layerbounds.problems.free_scale import FreeScaleProblem
from layerbounds.problems.grids import Grid
from layerbounds.problems.joint import JointProblem
from layerbounds.problems.problem import Problem
from layerbounds.problems.pruning import DENSE_BITS, PruningProblem
from layerbounds.problems.quantization import QuantizationProblem
from layerbounds.problems.storage import Mask, check_mask, total_mask_bits, whole_bits

#: Bits of a scale, of a zero point that is no code, and of a level of a table; of a scale that is a power of two.
SCALE_BITS, POWER_BITS = 16, 8


def convention(mask: Mask) -> str:
    """What `layer_bits` counts, in a sentence.

    Parameters
    ----------
    mask : {"none", "bitmap", "entropy", "metadata"}
    """
    left_out = "masks and biases" if mask == "none" else "biases"
    masks = "" if mask == "none" else f"masks ({mask}), "
    return (
        f"bits are those of codes, {masks}scales ({SCALE_BITS} each, {POWER_BITS} of MXFP4), zero points (as wide as "
        f"codes, {SCALE_BITS} where they are none), offsets ({SCALE_BITS} each), levels of codebooks that have no name "
        f"({SCALE_BITS} each), and "
        f"{DENSE_BITS} for each weight that is kept but not quantized; {left_out} are not counted"
    )


def layer_bits(problem: Problem, mask: Mask = "bitmap") -> int:
    """Bits of the whole layer.

    Codes take whole bits in each output channel. Scales that are all equal are stored once, as those of a grid per
    tensor; zero points and offsets that are all 0 are not stored; a map from inputs to scale groups is, where these are
    not consecutive.

    Parameters
    ----------
    problem : Problem
    mask : {"none", "bitmap", "entropy", "metadata"}
        How masks are stored (docs/patterns.md).

    Raises
    ------
    InputError
        If there is no such rule.
    UnsupportedProblemError
        If nothing is known of how the weights of such a problem are stored.
    """
    check_mask(mask)
    return _bits(problem, mask)


@singledispatch
def _bits(problem: Problem, mask: Mask) -> int:
    raise UnsupportedProblemError(f"nothing says how weights are stored that are {problem.label}; choose another one.")


@_bits.register
def _(problem: QuantizationProblem, mask: Mask) -> int:
    layer = problem.layer
    return layer.out_features * _codes(len(problem.grid.codes), layer.in_features) + _grid_bits(problem.grid)


@_bits.register
def _(problem: FreeCodebookProblem, mask: Mask) -> int:
    table = problem.count * SCALE_BITS
    return problem.layer.out_features * (_codes(problem.count, problem.layer.in_features) + table)


@_bits.register
def _(problem: FreeScaleProblem, mask: Mask) -> int:
    layer = problem.layer
    zero = {"none": 0, "integer": _codes(len(problem.codes), 1), "real": SCALE_BITS}[problem.zero]
    scales = (1 if problem.granularity == "tensor" else layer.out_features) * (int(problem.group.max()) + 1)
    each = (POWER_BITS if problem.powers_of_two else SCALE_BITS) + zero
    table = 0 if problem.uniform else _table(problem.codes)
    codes = layer.out_features * _codes(len(problem.codes), layer.in_features)
    return codes + scales * each + table + _map(problem.group)


@_bits.register
def _(problem: PruningProblem, mask: Mask) -> int:
    structure = problem.structure
    kept = structure.keep_largest(np.bincount(structure.unit, minlength=len(structure.group)))
    return problem.layer.out_features * DENSE_BITS * int(np.count_nonzero(kept)) + problem.masks_bits(mask)


@_bits.register
def _(problem: FilterProblem, mask: Mask) -> int:
    layer = problem.layer
    return layer.groups * problem.kept * layer.in_features * DENSE_BITS + problem.masks_bits(mask)


@_bits.register
def _(problem: JointProblem, mask: Mask) -> int:
    structure, levels = problem.structure, len(problem.grid.codes)
    kept = int(np.count_nonzero(structure.keep_largest(np.bincount(structure.unit, minlength=len(structure.group)))))
    if problem.own_values:
        row, grid = kept * DENSE_BITS, 0
    else:
        more = problem.with_zero(mask, kept)
        row, grid = whole_bits(levels ** (kept - more) * (levels + 1) ** more), _grid_bits(problem.grid)
    return problem.layer.out_features * (row + total_mask_bits(structure, mask)) + grid


def _codes(levels: int, count: int) -> int:
    """Whole bits for so many codes."""
    if levels & (levels - 1) == 0:
        return count * whole_bits(levels)
    return whole_bits(levels**count)


def _grid_bits(grid: Grid) -> int:
    """Scales, zero points, offsets, the table of levels and the map to scale groups."""
    scale, zero, codes = grid.scale, grid.zero_point, grid.codes
    alike = all(bool(np.all(part == part[0, 0])) for part in (scale, zero, grid.offset))
    count = 1 if alike else scale.size
    powers = np.array_equal(codes, codebook("mxfp4")) and np.all(np.frexp(np.abs(scale))[0] == 0.5)
    each = POWER_BITS if powers else SCALE_BITS
    if np.any(zero):
        whole = grid.uniform and bool(np.all((zero == np.round(zero)) & (zero >= codes[0]) & (zero <= codes[-1])))
        each += _codes(len(codes), 1) if whole else SCALE_BITS
    each += SCALE_BITS if np.any(grid.offset) else 0
    return count * each + (0 if grid.uniform else _table(codes)) + _map(grid.group)


def _table(codes: np.ndarray[tuple[int], np.dtype[np.float64]]) -> int:
    """The levels of a codebook that a format does not know by name."""
    named = any(np.array_equal(codes, codebook(name)) for name in CODEBOOKS)
    return 0 if named else len(codes) * SCALE_BITS


def _map(group: Int) -> int:
    """The scale group of each input, unless these are consecutive blocks of one size."""
    count = int(group.max()) + 1
    run = int(np.argmax(group != 0)) or len(group)
    return 0 if np.array_equal(group, np.arange(len(group)) // run) else len(group) * whole_bits(count)
