"""Rows of a layer as a layer of their own, also with only some of their inputs kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layerbounds.arrays import Bool, Float
from layerbounds.bounds.objective import objective_interval
from layerbounds.layers.gram import ValidatedGram
from layerbounds.layers.layer import Layer
from layerbounds.layers.normal_equations import least_norm_solution


def rows_of(layer: Layer, channels: Sequence[int], weights: Float | None = None) -> Layer:
    """A layer with a row for each of some output channels, any of them several times.

    Parameters
    ----------
    layer : Layer
    channels : sequence of int
    weights : ndarray of shape (channels, n), optional
        Other weights in place of the layer's; the target and the constant, what errors are measured from, stay.
    """
    rows = list(channels)
    gram: Float | ValidatedGram = layer.validated_gram
    if layer.groups > 1:
        gram = layer.gram[[layer.group_of(channel) for channel in rows]]
    return Layer(
        layer.matrix[rows] if weights is None else weights,
        gram,
        layer.name,
        target=layer.target[rows],
        constant=layer.constant[rows],
        samples=layer.samples,
        bias=layer.bias,
    )


def kept_inputs(
    layer: Layer,
    rows: Sequence[int],
    masks: Bool,
    *,
    fixed: Float | None = None,
    weights: Float | None = None,
    dense: Float | None = None,
) -> Layer:
    """A layer with a row for each of some rows, in which only the inputs of a mask may still be chosen.

    With given weights on the other inputs f(v) = (v − u)ᵀH(v − u) + f(u) on the mask, u being the least-squares refit
    there: the target of the new layer is u and its constant f(u). Inputs off the mask are dead in it.

    Parameters
    ----------
    layer : Layer
    rows : sequence of int
        Output channels of ``layer``.
    masks : ndarray of bool, shape (groups, n)
        Each for as many consecutive rows, which then share a Gram matrix.
    fixed : ndarray of shape (rows, n), optional
        The weights off the masks; default: zero.
    weights : ndarray of shape (rows, n), optional
        Zero off the mask. The new layer's error is then that against these weights, without a constant.
    dense : ndarray of shape (rows, n), optional
        The new layer's own weights; default: its target.
    """
    groups, n = masks.shape
    share = len(rows) // groups
    grams = np.zeros((groups, n, n))
    targets, constants = np.zeros((len(rows), n)), np.zeros(len(rows))
    for i, row in enumerate(rows):
        mask, own = masks[i // share], grams[i // share]
        gram, target = layer.channel_gram(row), layer.target[row]
        kept = np.flatnonzero(mask)
        own[np.ix_(kept, kept)] = gram[np.ix_(kept, kept)]
        if weights is not None:
            targets[i] = weights[i]
            continue
        targets[i] = np.where(mask, target, 0.0 if fixed is None else fixed[i])
        # The change from the target on the mask: it stays exact where the other inputs have no part in it.
        gradient = np.where(mask, gram @ (target - targets[i]), 0.0)
        targets[i] += least_norm_solution(own, gradient[None])[0]
        constants[i] = objective_interval(gram, target, targets[i])[0] + layer.constant[row]
    own_weights = targets if dense is None else dense
    return Layer(own_weights, grams, layer.name, target=targets, constant=constants, bias=layer.bias)
