"""Named codebooks: sorted level sets that a scale multiplies."""

from __future__ import annotations

import numpy as np

from layerbounds.arguments import shown
from layerbounds.arrays import Float
from layerbounds.exceptions import InputError, UnknownNameError
from layerbounds.suggestions import did_you_mean

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

#: Twelfths of 0, 1/16, 2, 3, 4, 6, 8 and 12, as float32 numbers.
_BITSANDBYTES = (
    0.0,
    0.0052083334885537624,
    0.1666666716337204,
    0.25,
    0.3333333432674408,
    0.5,
    0.6666666865348816,
    1.0,
)

#: NF4: quantiles of the normal distribution, Dettmers et al., "QLoRA" (NeurIPS 2023), appendix E.
#: FP4 E2M1 and MXFP4: OCP Microscaling Formats (MX) v1.0 specification, section 5.3.3.
#: FP4 of bitsandbytes: another table, which `bitsandbytes.functional.get_4bit_type("fp4")` returns.
_CODEBOOKS: dict[str, tuple[float, ...]] = {
    "binary": (-1.0, 1.0),
    "ternary": (-1.0, 0.0, 1.0),
    "nf4": (
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
    "fp4": tuple(sorted({s * v for v in _E2M1 for s in (-1.0, 1.0)})),
    "bnb-fp4": tuple(sorted({s * v for v in _BITSANDBYTES for s in (-1.0, 1.0)})),
    "mxfp4": tuple(sorted({s * v for v in _E2M1 for s in (-1.0, 1.0)})),
}
CODEBOOKS: tuple[str, ...] = tuple(_CODEBOOKS)


def codebook(name: str) -> Float:
    """Return the sorted codes of a named codebook.

    Parameters
    ----------
    name : {"binary", "ternary", "nf4", "fp4", "bnb-fp4", "mxfp4"}
    """
    if isinstance(name, str) and name.lower() == "free":
        raise InputError(
            "a free codebook has no codes for a scale; call quantization_problem(layer, bits, codebook='free'), "
            "or `layerbounds solve --codebook free --bits N`."
        )
    try:
        codes = _CODEBOOKS[name.lower()]
    except (AttributeError, KeyError):
        hint = did_you_mean(name, _CODEBOOKS)
        raise UnknownNameError(
            f"there is no codebook {shown(name)}; {hint}available: {', '.join(_CODEBOOKS)}."
        ) from None
    return np.array(sorted({c + 0.0 for c in codes}), dtype=np.float64)
