"""What a file says about a layer, and which option of a run that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layerbounds.allocation.options import LayerOptions, Option
from layerbounds.exceptions import InputError

#: Bits of weights that stay as they are.
DENSE = 16


@dataclass(frozen=True)
class Compression:
    """One compression, as far as tools tell them apart.

    Attributes
    ----------
    bits : int
        Of integer codes; `DENSE` where the weights are not quantized.
    symmetric : bool
        Without zero points.
    granularity : str or int
        ``"tensor"``, ``"channel"``, or the number of inputs in a group.
    codebook : str or None
        Instead of integer codes.
    pattern : str or None
        ``"unstructured"``, ``"2:4"``, … where weights are pruned.
    density : float or None
        Kept fraction, where the pattern does not say it.
    refit : bool
        Whether kept weights that are not quantized are re-optimised.
    other : str or None
        What no tool has words for.
    """

    bits: int = DENSE
    symmetric: bool = True
    granularity: str | int = "channel"
    codebook: str | None = None
    pattern: str | None = None
    density: float | None = None
    refit: bool = True
    other: str | None = None

    @property
    def quantized(self) -> bool:
        """Whether there is a grid."""
        return self.bits != DENSE or self.codebook is not None

    @property
    def pruned(self) -> bool:
        """Whether there is a pattern."""
        return self.pattern is not None

    @property
    def label(self) -> str:
        """For error messages."""
        parts = []
        if self.quantized:
            shared = self.granularity if isinstance(self.granularity, str) else f"group of {self.granularity}"
            kind = self.codebook or f"{self.bits} bits, {'symmetric' if self.symmetric else 'with zero points'}"
            parts.append(f"{kind}, a scale per {shared}")
        if self.pruned:
            density = "" if self.density is None else f" at density {self.density:.4g}"
            parts.append(f"pruned {self.pattern}{density}" + ("" if self.refit or self.quantized else ", mask only"))
        return " and ".join(parts) or "weights as they are"

    def same(self, other: Compression) -> bool:
        """Whether two are one, by what matters for either."""
        grid = (self.bits, self.codebook) == (other.bits, other.codebook)
        if self.quantized:
            grid &= self.granularity == other.granularity and (self.codebook or self.symmetric) == (
                other.codebook or other.symmetric
            )
        elif self.pruned:
            grid &= self.refit == other.refit
        # Tools write densities as shares of what is dropped: 1 − 0.9 is 0.0999….
        mine, its = self.density, other.density
        near = mine is its or (mine is not None and its is not None and abs(mine - its) < 1e-9)
        return grid and near and (self.pattern, self.other) == (other.pattern, other.other)


@dataclass(frozen=True)
class Format:
    """How a tool writes allocations.

    Attributes
    ----------
    name : str
    summary : str
    write : callable
        From the name of each layer and its compression to text. Raises `InexpressibleError`.
    read : callable
        From text and the names of all layers to the compression of each.
    """

    name: str
    summary: str
    write: Callable[[Mapping[str, Compression]], str]
    read: Callable[[str, Sequence[str]], dict[str, Compression]]


class InexpressibleError(Exception):
    """A tool has no words for the compression of a layer.

    Parameters
    ----------
    layer : str
    why : str
        Completes "the tool cannot express what is chosen for the layer: …".
    """

    def __init__(self, layer: str, why: str) -> None:
        super().__init__(why)
        self.layer = layer


def compression_of(option: Option) -> Compression:
    """What an option is, from what it says about itself.

    Parameters
    ----------
    option : Option
    """
    said: Mapping[str, Any] = option.expressible
    bits, codebook = said.get("bits"), said.get("codebook")
    pattern, density = said.get("pattern"), said.get("density")
    if pattern is None and density is not None:
        pattern = "unstructured"
    symmetric, granularity, refit = said.get("symmetric"), said.get("granularity"), said.get("refit")
    other = None if said.get("share") in (None, 1) else f"one mask for {said['share']} rows"
    if said.get("zero_point") == "real":
        other = "zero points that are no integers"
    return Compression(
        bits=DENSE if bits is None else int(bits),
        symmetric=True if symmetric is None else bool(symmetric),
        granularity="channel" if granularity is None else granularity,
        codebook=None if codebook is None else str(codebook).lower(),
        pattern=pattern,
        density=density,
        refit=True if refit is None else bool(refit),
        other=other,
    )


def option_for(layer: LayerOptions, wanted: Compression) -> str:
    """The option of a layer that a compression is.

    Raises
    ------
    InputError
        If it is none of them, or cannot be told from several.
    """
    fitting = [option.name for option in layer.options if compression_of(option).same(wanted)]
    if not fitting:
        listed = ", ".join(option.name for option in layer.options)
        known = wanted.quantized or wanted.pruned
        do = "run the layers with that choice, too" if known else "let layers stay as they are, too (dense, --dense)"
        raise InputError(
            f"the file asks for {wanted.label} in layer {layer.name!r}, which is none of its options ({listed}); {do}."
        )
    if len(fitting) > 1:
        raise InputError(
            f"the file asks for {wanted.label} in layer {layer.name!r}, which may be {' or '.join(fitting)}; leave out "
            "all but one of them."
        )
    return fitting[0]


def needs_integer_grid(name: str, wanted: Compression, bits: Sequence[int], tensor: bool) -> None:
    """Refuse everything but integer codes of some numbers of bits.

    Parameters
    ----------
    name : str
        Of the layer.
    wanted : Compression
    bits : sequence of int
        What the tool stores.
    tensor : bool
        Whether a scale for all weights can be said.

    Raises
    ------
    InexpressibleError
    """
    if wanted.codebook is not None:
        raise InexpressibleError(name, f"its grids are integers, not codebooks such as {wanted.codebook}")
    if wanted.bits not in bits:
        listed = ", ".join(map(str, bits[:-1])) + f" or {bits[-1]}"
        raise InexpressibleError(name, f"it stores {listed} bits, not {wanted.bits}")
    if wanted.granularity == "tensor" and not tensor:
        raise InexpressibleError(
            name, "it has a scale for each output channel or group of inputs, not one for all weights"
        )
