"""What an error of a layer's outputs counts: metrics Q, and the one that the next layer makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arguments import real_number, whole_number
from layerbounds.arrays import Float, as_float64
from layerbounds.exceptions import InputError
from layerbounds.kernels.factorization import UNIT, cholesky, smallest_eigenvalues
from layerbounds.layers.gram import ASYMMETRY_TOLERANCE, symmetrise
from layerbounds.layers.layer import Layer

#: Eigenvalues of a metric that are smaller than this many roundings for each output channel count as zero.
ROUNDINGS = 16
#: Entries whose squares float64 can compute with.
SMALLEST, LARGEST = 1e-150, 1e150


def output_metric(value: Any, layer: Layer, definite: bool) -> Float:
    """Check a metric for a layer's output errors e, which count as the mean of eᵀQe.

    Parameters
    ----------
    value : array_like of shape (out, out) or (groups, out/groups, out/groups)
    layer : Layer
    definite : bool
        Whether it must be positive definite on the output channels that count.

    Returns
    -------
    ndarray of shape (groups, out/groups, out/groups)
        Symmetric, and positive semidefinite up to rounding.

    Raises
    ------
    InputError
        On another shape or a matrix that is not positive semidefinite; if it binds output channels of different groups;
        or if the layer's errors have a part that no weights can repair, whose correlations nothing says.
    """
    what = f"output_metric of layer {layer.name!r}"
    matrix = as_float64(value, what)
    out, groups = layer.out_features, layer.groups
    size = out // groups
    if matrix.shape not in {(out, out), (groups, size, size)}:
        shapes = f"({out}, {out})" + (f" or ({groups}, {size}, {size})" if groups > 1 else "")
        raise InputError(f"{what} has shape {matrix.shape}; pass shape {shapes}, a row for each output channel.")
    if matrix.ndim == 2:
        blocks = np.stack([matrix[rows, rows] for rows in layer.group_rows()])
        if np.count_nonzero(matrix) > np.count_nonzero(blocks):
            raise InputError(
                f"{what} binds output channels of different groups, whose inputs' correlations a layer does not have; "
                f"pass one matrix for each group, shape ({groups}, {size}, {size})."
            )
        matrix = blocks
    if np.any(layer.constant > 0.0):
        raise InputError(
            f"{what} counts how errors of output channels are correlated, and layer {layer.name!r} has errors that no "
            "weights can repair of which only the sizes are known; leave out output_metric, or take X̂ = X."
        )
    matrix = np.array(matrix)
    for block in matrix:
        _check(block, what, definite)
    return matrix


def _check(block: Float, what: str, definite: bool) -> None:
    """Refuse what is no metric; symmetrise it in place."""
    largest = float(np.max(np.abs(block)))
    diagonal = np.diag(block)
    if largest == 0.0 or np.any(diagonal < 0.0):
        raise InputError(f"{what} is not positive semidefinite; pass Q = W'ᵀW' or the like.")
    if largest > LARGEST or np.min(diagonal[diagonal > 0.0], initial=np.inf) < SMALLEST:
        raise InputError(f"{what} has entries beyond what float64 computes with; rescale it.")
    if symmetrise(block) > ASYMMETRY_TOLERANCE * largest:
        raise InputError(f"{what} is not symmetric; pass Q = W'ᵀW' or the like.")
    counts = np.diag(block) > 0.0
    # An output channel that counts nothing has no correlations either.
    beside = np.any(block[~counts])
    norm = np.sqrt(np.diag(block)[counts])
    scaled = block[np.ix_(counts, counts)] / norm[:, None] / norm
    margin = ROUNDINGS * len(scaled) * UNIT
    least = float(smallest_eigenvalues(scaled)) if not beside else -1.0
    if least < -margin:
        raise InputError(f"{what} is not positive semidefinite; pass Q = W'ᵀW' or the like.")
    scaled[np.diag_indices(len(scaled))] -= margin
    if definite and (beside or cholesky(scaled) is None):
        raise InputError(
            f"{what} is singular, and with refit what dropped output channels lose has to count; add a small number to "
            "its diagonal, as next_layer_metric does with damping."
        )


def next_layer_metric(
    weight: ArrayLike, *, channels: int | None = None, groups: int = 1, damping: float = 0.0
) -> Float:
    """The metric Q = Σ W'ᵀW' with which the next layer's outputs see an error of this layer's outputs.

    For a linear layer W' that follows immediately, eᵀQe is the squared error of its outputs. For a convolution the
    products are summed over its kernel positions: exact where errors at different positions are uncorrelated and
    borders do not count. Whatever lies between the layers (normalization, activation, addition) is ignored.

    Parameters
    ----------
    weight : array_like of shape (out, in) or (out, in / groups, kh, kw)
        Of the next layer.
    channels : int, optional
        Output channels R of this layer, where a linear layer sees several flattened positions of each: its inputs are
        ordered by channel. Default: the inputs of ``weight``.
    groups : int
        Of the next layer, if it is a grouped convolution.
    damping : float
        This share of the mean diagonal entry is added to the diagonal. That is another metric, one which every error
        counts in; with 0 a next layer of few outputs makes a singular one, which refit cannot use.

    Returns
    -------
    ndarray of shape (R, R)

    Raises
    ------
    InputError
        On impossible shapes.

    Examples
    --------
    >>> import layerbounds as lb
    >>> lb.next_layer_metric(lb.demo_layers()["conv3"].weight).shape
    (16, 16)
    """
    array = as_float64(weight, "weight of the next layer")
    whole_number(groups, "groups", 1)
    real_number(damping, "damping", 0.0)
    if array.ndim < 2 or array.size == 0:
        raise InputError(f"weight of the next layer has shape {array.shape}; pass (out, in) or (out, in, kh, kw).")
    inputs = array.shape[1] * groups
    many = inputs if channels is None else whole_number(channels, "channels", 1)
    if array.shape[0] % groups or inputs % many or (many != inputs and (array.ndim > 2 or groups > 1)):
        raise InputError(
            f"weight of the next layer has shape {array.shape}, which does not go with {many} channels and {groups} "
            "groups; pass those of the next layer."
        )
    metric = np.zeros((many, many))
    # By group of the next layer: its outputs and, for each of its inputs, all that is multiplied with it.
    parts = array.reshape(groups, array.shape[0] // groups, many // groups, -1)
    for g, part in enumerate(parts):
        rows = part.transpose(1, 0, 2).reshape(many // groups, -1)
        block = slice(g * len(rows), (g + 1) * len(rows))
        metric[block, block] = rows @ rows.T
    metric[np.diag_indices(many)] += damping * float(np.mean(np.diag(metric)))
    return 0.5 * (metric + metric.T)
