"""Which choices of a run are compared at equal bits: b bits per weight with density b/16 (Kuzmin et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

from layerbounds.network.entries import Entry
from layerbounds.problems.patterns import parse_pattern
from layerbounds.problems.patterns.single_rows import NOfM

#: Bits of a weight that is kept.
KEPT_BITS = 16


def equal_bits(of_layer: Sequence[Entry]) -> list[tuple[int, int]]:
    """The pairs of a layer's entries, quantization first, that take the same bits: scales and masks not counted.

    Parameters
    ----------
    of_layer : sequence of Entry
        Of one layer.
    """
    quantized = [(j, _bits(e)) for j, e in enumerate(of_layer) if e.refused is None and e.family == "quantization"]
    pruned = [(j, _share(e)) for j, e in enumerate(of_layer) if e.refused is None and e.family == "pruning"]
    return [(a, b) for a, bits in quantized for b, share in pruned if bits is not None and share == bits / KEPT_BITS]


def _bits(entry: Entry) -> float | None:
    bits: int | None = entry.choice.spec["bits"]
    return bits


def _share(entry: Entry) -> float | None:
    """The kept fraction, as it was asked for."""
    spec = entry.choice.spec
    if spec["density"] is not None:
        share: float = spec["density"]
        return share
    rule = None if spec["pattern"] is None else parse_pattern(spec["pattern"])
    return rule.kept / rule.size if isinstance(rule, NOfM) else None
