"""Range ``piso``: the scale of least output error of round-to-nearest."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float
from layerbounds.layers.layer import Layer
from layerbounds.problems.grids import Grid
from layerbounds.problems.levels import nearest_levels
from layerbounds.problems.ranges.rule import Codes, Fitted
from layerbounds.problems.ranges.sweep import Row, best_scale

#: Passes over the scale groups of a channel.
_PASSES = 8


def piso(layer: Layer, start: Grid, codes: Codes, tensor: bool) -> Fitted:
    """The scale with the smallest output error of round-to-nearest, exactly; groups of inputs one after the other.

    Amboage, Monteagudo-Lago, Colbert, Franco & Fraser, "Optimal Post-Training Quantization Scales and Where to Find
    Them" (arXiv 2606.10890): between the scales at which a code changes the error is a parabola. With several groups
    per channel the groups are gone through until none gains, each exact given the others. Zero points stay those of
    "mse".
    No error of round-to-nearest is larger than with "mse" (for one scale: the sum over the channels).
    """
    scale = start.scale.copy()
    if tensor:
        rows = [
            Row(layer.target[c], layer.gram[g] @ layer.target[c], layer.gram[g])
            for g, members in enumerate(layer.group_rows())
            for c in range(layer.out_features)[members]
        ]
        found = best_scale(rows, codes.values - start.zero_point[0, 0])
        fitted = scale if found is None else np.full_like(scale, found[0])
        errors = [_errors(layer, start, trial).sum() for trial in (scale, fitted)]
        return (fitted if errors[1] < errors[0] else scale), start.zero_point
    for g, members in enumerate(layer.group_rows()):
        for c in range(layer.out_features)[members]:
            scale[c] = _channel(layer.gram[g], layer.target[c], start, c, codes)
    better = _errors(layer, start, scale) < _errors(layer, start, start.scale)
    return np.where(better[:, None], scale, start.scale), start.zero_point


def _channel(gram: Float, target: Float, start: Grid, channel: int, codes: Codes) -> Float:
    """Scales of the groups of one channel."""
    scale: Float = start.scale[channel].copy()
    zero, group = start.zero_point[channel], start.group
    deviation = nearest_levels(start.levels(channel), target) - target
    parts = [np.flatnonzero(group == k) for k in range(len(scale))]
    value = float(deviation @ (gram @ deviation))
    for _ in range(_PASSES):
        before = value
        for k, own in enumerate(parts):
            others = deviation.copy()
            others[own] = 0.0
            block = np.ascontiguousarray(gram[np.ix_(own, own)])
            found = best_scale(
                [Row(target[own], block @ target[own] - gram[own] @ others, block)], codes.values - zero[k]
            )
            if found is None:
                continue
            trial: Float = others
            table = np.broadcast_to(found[0] * (codes.values - zero[k]), (len(own), len(codes.values)))
            trial[own] = nearest_levels(np.asarray(table), target[own]) - target[own]
            error = float(trial @ (gram @ trial))
            if error < value:
                value, deviation, scale[k] = error, trial, found[0]
        if len(parts) == 1 or not value < before * (1.0 - 1e-9):
            break
    return scale


def _errors(layer: Layer, grid: Grid, scale: Float) -> Float:
    """Output error of round-to-nearest of each channel with the scales of a grid replaced."""
    errors = np.empty(layer.out_features)
    trial = Grid(grid.codes, scale, grid.zero_point, grid.in_features, group=grid.group)
    deviation = trial.nearest(layer.target) - layer.target
    for g, members in enumerate(layer.group_rows()):
        rows = deviation[members]
        errors[members] = np.einsum("ij,ij->i", rows @ layer.gram[g], rows)
    return np.asarray(errors)
