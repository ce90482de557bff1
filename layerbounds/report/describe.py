"""What a layer looks like, in plain values for tables and JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from layerbounds.layers.layer import Layer

#: Live inputs up to which a rank costs a fraction of a second.
RANK_LIMIT = 1024


def describe_layer(layer: Layer, gram_of: str | None = None) -> dict[str, Any]:
    """Sizes, dead inputs, rank and repairs of a layer; lists have one entry for each group.

    Parameters
    ----------
    layer : Layer
    gram_of : str, optional
        The layer with whose Gram matrix it is stored, where that is another one.

    Returns
    -------
    dict
        Ready for JSON. The rank is None where computing it would take long.
    """
    reports = layer.gram_reports
    return {
        "name": layer.name,
        "weight_shape": list(layer.weight.shape),
        "inputs": layer.in_features,
        "groups": layer.groups,
        "live_inputs": [int(np.count_nonzero(layer.live(group))) for group in range(layer.groups)],
        "rank": [_rank(layer, group) for group in range(layer.groups)],
        "samples": layer.samples,
        "asymmetry": [report.asymmetry for report in reports],
        "projected": [report.projected for report in reports],
        "min_eigenvalue": [report.min_eigenvalue for report in reports],
        "raised": [report.raised for report in reports],
        "gram_of": layer.name if gram_of is None else gram_of,
        "has_target": layer.target is not layer.matrix,
        "has_constant": bool(np.any(layer.constant)),
        "provenance": layer.provenance,
    }


def _rank(layer: Layer, group: int) -> int | None:
    live = layer.live(group)
    count = int(np.count_nonzero(live))
    # No eigenvalue in the report: the validation's Cholesky factorization went through, so the rank is full.
    if count == 0 or layer.gram_reports[group].min_eigenvalue is None:
        return count
    if count > RANK_LIMIT:
        return None
    return int(np.linalg.matrix_rank(layer.gram[group][np.ix_(live, live)], hermitian=True))
