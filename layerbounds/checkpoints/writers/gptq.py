"""GPTQ's tensors of a quantized weight, in the layout that `layerbounds.checkpoints.formats.gptq` describes.

A file has one of three forms: ``gptq`` (zero points less one, which every tool reads), ``gptq_v2`` (zero points as they
are, which tools want for asymmetric grids), and ``gptq_p`` (the same, with 3, 5, 6 and 7 bits in planes, which
GPTQModel alone loads).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from layerbounds.arguments import one_of
from layerbounds.checkpoints.packing import pack_planar, pack_stream
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.problems.float_types import rounded
from layerbounds.problems.grids import MAX_BITS, Grid

Version = Literal["gptq", "gptq_v2", "gptq_p"]
VERSIONS = ("gptq", "gptq_v2", "gptq_p")

#: The type that scales must have been rounded to.
SCALE_TYPE = "float16"
_LARGEST_SCALE = float(np.finfo(np.float16).max)
#: Inputs and outputs come in multiples of this, so that words end with rows and columns, as all tools expect.
MULTIPLE = 32
#: Inputs per group that GPTQModel loads, beside one group.
GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)
_PLANAR_BITS = (5, 6, 7)


def width(grid: Grid) -> int:
    """The bits that the format takes for a code of a grid."""
    return max(2, (len(grid.codes) - 1).bit_length())


def version_for(grids: Iterable[Grid]) -> Version:
    """The form of a file with layers of these grids that most tools load."""
    return "gptq" if all(_symmetric(grid) for grid in grids) else "gptq_v2"


def settings(grid: Grid, version: Version = "gptq") -> dict[str, Any]:
    """What a configuration must say about a layer with this grid.

    Returns
    -------
    dict
        ``bits``, ``group_size`` (−1: one group), ``sym``, ``desc_act``, ``checkpoint_format``.
    """
    bits, groups = width(grid), grid.scale.shape[1]
    return {
        "bits": bits,
        "group_size": -1 if groups == 1 else grid.in_features // groups,
        "sym": _symmetric(grid),
        "desc_act": grid.group_size is None,
        "checkpoint_format": version,
    }


def check(grid: Grid, version: Version = "gptq") -> None:
    """Make sure that the format can hold a grid.

    Parameters
    ----------
    grid : Grid
    version : {"gptq", "gptq_v2", "gptq_p"}

    Raises
    ------
    UnsupportedProblemError
        If it cannot, in one sentence.
    """
    one_of(version, "version", VERSIONS)
    bits = width(grid)
    if not grid.uniform:
        raise _refusal(f"holds grids of equal steps, but {grid.label} has the codes of a codebook")
    if bits > MAX_BITS:
        raise _refusal(f"holds codes of at most {MAX_BITS} bits, but {grid.label} has {len(grid.codes)} levels")
    if bits in _PLANAR_BITS and version != "gptq_p":
        raise _refusal(f"holds {bits} bits in planes only, which GPTQModel alone loads; choose version 'gptq_p' for it")
    if np.any(grid.offset):
        raise _refusal(f"holds zero points, but {grid.label} has minima that are added to the levels")
    for count, what in ((grid.in_features, "inputs"), (grid.out_features, "outputs")):
        if count % MULTIPLE:
            raise _refusal(f"holds layers whose {what} are a multiple of {MULTIPLE}, but this one has {count}")
    groups = grid.scale.shape[1]
    if groups > 1 and (grid.in_features % groups or grid.in_features // groups not in GROUP_SIZES):
        raise _refusal(
            f"holds one group or groups of {', '.join(map(str, GROUP_SIZES))} inputs, but {grid.label} has {groups} "
            f"groups of {grid.in_features} inputs"
        )
    zeros = _zeros(grid)
    whole = np.all(zeros == np.rint(zeros))
    if not whole or zeros.min() < 0 or zeros.max() >= 1 << bits:
        raise _refusal(f"holds whole zero points among the codes, but {grid.label} has others")
    if zeros.min() < 1 and version == "gptq":
        raise _refusal(
            "of version 1 has no room for a zero point at the lowest code, as tools read it in different ways, but "
            f"{grid.label} has it; choose version 'gptq_v2'"
        )
    size = np.abs(grid.scale)
    if size.max() > _LARGEST_SCALE or np.any(rounded(grid.scale, SCALE_TYPE) != grid.scale):
        raise _refusal(f"holds scales of type {SCALE_TYPE}, but those of {grid.label} are not rounded to it")


def tensors(weight: QuantizedWeight, version: Version = "gptq") -> dict[str, NDArray[Any]]:
    """The tensors of a layer, by their names without the layer's.

    Parameters
    ----------
    weight : QuantizedWeight
    version : {"gptq", "gptq_v2", "gptq_p"}
        That of the whole file (`version_for`).

    Returns
    -------
    dict of str to ndarray
        ``qweight``, ``qzeros``, ``scales`` and ``g_idx``.

    Raises
    ------
    UnsupportedProblemError
        If the format cannot hold it.
    """
    check(weight.grid, version)
    if len(weight.shape) != 2:
        raise _refusal(f"holds matrices, but the weight of {weight.name!r} has shape {weight.shape}")
    grid, bits = weight.grid, width(weight.grid)
    pack = pack_planar if version == "gptq_p" else pack_stream
    stored = _zeros(grid).T - (version == "gptq")
    return {
        "qweight": np.ascontiguousarray(pack(weight.codes, bits).T),
        "qzeros": pack(stored.astype(np.uint8), bits),
        "scales": np.ascontiguousarray(grid.scale.T.astype(np.float16)),
        "g_idx": grid.group.astype(np.int32),
    }


def _symmetric(grid: Grid) -> bool:
    return bool(np.all(_zeros(grid) == 1 << (width(grid) - 1)))


def _zeros(grid: Grid) -> NDArray[np.float64]:
    """Zero points in units of positions, which are the codes that are stored."""
    return np.asarray(grid.zero_point - grid.codes[0])


def _refusal(why: str) -> UnsupportedProblemError:
    return UnsupportedProblemError(f"The GPTQ format {why}.")
