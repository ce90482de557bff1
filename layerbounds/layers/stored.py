"""One layer as tensors and plain values, for files that hold more than layers: every bit comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from numpy.typing import NDArray

from layerbounds.layers.files import layer_info, layer_tensors
from layerbounds.layers.gram import GramReport, ValidatedGram
from layerbounds.layers.layer import Layer

#: The tensors are called ``layer.weight``, ….
_LAYER = "layer"


def stored_layer(layer: Layer) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The tensors of a layer, and its plain values, ready for JSON."""
    reports = [asdict(report) for report in layer.gram_reports]
    about = {"name": layer.name, "groups": layer.groups, **layer_info(layer, None), "reports": reports}
    return layer_tensors(layer, _LAYER, None), about


def restored_layer(tensors: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> Layer:
    """The layer, from what `stored_layer` returned; nothing is repaired anew."""
    gram = tensors[f"{_LAYER}.gram"]
    reports = [GramReport(**report) for report in about["reports"]]
    more = ("target", "constant", "input_mean", "residual_mean")
    return Layer(
        tensors[f"{_LAYER}.weight"],
        ValidatedGram.stored(gram.reshape(-1, *gram.shape[-2:]), reports, f"layer {about['name']!r}: gram"),
        about["name"],
        samples=about["samples"],
        bias=about.get("bias", "fixed"),
        provenance=about["provenance"],
        **{part: tensors[f"{_LAYER}.{part}"] for part in more if f"{_LAYER}.{part}" in tensors},
    )
