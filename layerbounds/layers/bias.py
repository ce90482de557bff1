"""Re-fitting the bias together with the weights: the same problem with the centred Gram matrix."""

from __future__ import annotations

from typing import Literal
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arguments import one_of
from layerbounds.arrays import Float
from layerbounds.exceptions import InputError
from layerbounds.layers.gram import ValidatedGram
from layerbounds.layers.layer import Layer
from layerbounds.layers.normal_equations import solve_target

#: What a problem does with the bias.
Bias = Literal["keep", "refit"]

#: A centred variance below this fraction of the mean square is rounding: the input is constant, and the bias takes its
#: place.
CONSTANT_INPUT = 1e-13
#: Relative error of a centred variance beyond which a Gram matrix that was rounded to float32 is not centred.
MOST_ERROR = 0.01
#: Rows of a matrix that are centred at once.
_STRIPE = 512

#: The centred matrices that are in use, by the matrix and the bytes of the mean.
_CENTRED: WeakKeyDictionary[ValidatedGram, WeakValueDictionary[bytes, ValidatedGram]] = WeakKeyDictionary()


def apply_bias(layer: Layer, bias: Bias) -> Layer:
    """The layer as a problem sees it: as it is, or with a re-fitted bias."""
    one_of(bias, "bias", ("keep", "refit"))
    return layer if bias == "keep" else with_refitted_bias(layer)


def with_refitted_bias(layer: Layer) -> Layer:
    """The same layer where the bias is re-fitted together with the weights.

    For given weights v the best bias takes the mean of the output error away, so that f is that of the centred inputs:
    H becomes H − μμᵀ with μ the mean of the inputs X̂, and the target and the constant follow.

    Returns
    -------
    Layer
        With ``bias == "refit"``. Inputs that do not vary are dead in it.

    Raises
    ------
    InputError
        If the mean of the inputs is not known, or the Gram matrix was rounded to float32, in which the variance of an
        input with a large mean is lost.
    """
    if layer.bias == "refit":
        return layer
    if layer.input_mean is None:
        raise InputError(
            f"layer {layer.name!r} has no input_mean, which a re-fitted bias needs; capture the layer again."
        )
    gram = _centred(layer)
    target, constant = layer.target.copy(), layer.constant.copy()
    residual_mean = layer.residual_mean.copy()
    for g, rows in enumerate(layer.group_rows()):
        mean, rho = layer.input_mean[g], layer.residual_mean[rows]
        # f(v) = (v − w̃)ᵀH(v − w̃) + c less the squared mean (μᵀ(v − w̃) + ρ)²: again a quadratic in v − w̃.
        solved = solve_target(gram.matrices[g], np.outer(rho, mean), constant[rows] - rho**2, mean, -rho)
        target[rows] += solved.change
        constant[rows], residual_mean[rows] = solved.constant, solved.residual_mean
    return Layer(
        layer.weight,
        gram,
        layer.name,
        target=None if layer.target is layer.matrix else target,
        constant=constant,
        samples=layer.samples,
        input_mean=layer.input_mean,
        residual_mean=residual_mean,
        bias="refit",
        provenance=layer.provenance,
    )


def _centred(layer: Layer) -> ValidatedGram:
    """H − μμᵀ, once for all layers that share H and μ."""
    assert layer.input_mean is not None
    known = _CENTRED.setdefault(layer.validated_gram, WeakValueDictionary())
    key = layer.input_mean.tobytes()
    found = known.get(key)
    if found is None:
        matrices = layer.gram.copy()
        for g, (centred, mean) in enumerate(zip(matrices, layer.input_mean, strict=True)):
            for i in range(0, len(mean), _STRIPE):
                centred[i : i + _STRIPE] -= np.outer(mean[i : i + _STRIPE], mean)
            _check_digits(layer, g, centred)
            still = np.diag(centred) <= CONSTANT_INPUT * np.diag(layer.gram[g])
            centred[still] = 0.0
            centred[:, still] = 0.0
        found = known[key] = ValidatedGram(matrices, f"layer {layer.name!r}: centred gram")
    return found


def _check_digits(layer: Layer, group: int, centred: Float) -> None:
    """Refuse what rounding to float32 has left of the variance of an input.

    Every entry is a float32 number then, or the matrix had eigenvalues so far below zero that it had to be projected.
    """
    gram = layer.gram[group]
    if not layer.gram_reports[group].projected and not _is_float32(gram):
        return
    variance, square = np.diag(centred), np.diag(gram)
    rounding = 0.5 * float(np.finfo(np.float32).eps) * square
    lost = np.flatnonzero((variance != 0.0) & (rounding > MOST_ERROR * np.abs(variance)))
    if len(lost):
        i = int(lost[0])
        raise InputError(
            f"the gram of layer {layer.name!r} was rounded to float32, and input {i} has mean square {square[i]:.3g} "
            f"and variance {variance[i]:.3g}, whose digits are lost; add the Gram matrix up in float64, or keep the "
            "bias."
        )


def _is_float32(gram: Float) -> bool:
    """Whether every entry is a float32 number."""
    with np.errstate(over="ignore"):
        return all(np.array_equal(row, row.astype(np.float32)) for row in gram)


def bias_change(layer: Layer, weights: ArrayLike) -> Float:
    """What to add to the bias of each output channel when its weights become ``weights``.

    Parameters
    ----------
    layer : Layer
    weights : array_like of shape (out, n) or of the layer's shape

    Returns
    -------
    ndarray of shape (out,)
        The mean of Xw − X̂v, or zeros where the bias of the layer is fixed.
    """
    change = np.zeros(layer.out_features)
    if layer.bias == "fixed":
        return change
    v = layer.channel_weights(weights, range(layer.out_features), "weights")
    assert layer.input_mean is not None
    for g, rows in enumerate(layer.group_rows()):
        change[rows] = -((v[rows] - layer.target[rows]) @ layer.input_mean[g] + layer.residual_mean[rows])
    return change
