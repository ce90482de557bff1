"""Pruning and quantization one after the other, by any two methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from layerbounds.arguments import one_of
from layerbounds.arrays import Float
from layerbounds.methods.base import HEURISTICS
from layerbounds.methods.joint.view import JointView
from layerbounds.methods.options import read_parts, resolve_options
from layerbounds.names import match_name

TARGETS = ("layer", "weights")
#: The capability that a method of each stage has.
STAGES = {"prune": "pruning with refit", "quantize": "uniform grids"}


def prune_then_quantize(
    view: JointView, prune: str = "obs", quantize: str = "gptq", refit: bool = True, target: str = "layer"
) -> Float:
    """Choose what is kept with one method, then round that with another one.

    Han, Mao & Dally, "Deep Compression" (ICLR 2016); one of the two orders of Zhang et al., "Training Deep Neural
    Networks with Joint Quantization and Pruning of Weights and Activations" (arXiv 2110.08271). Kept weights take any
    level of the grid.

    Parameters
    ----------
    view : JointView
    prune, quantize : str
        Methods of `layerbounds.heuristics`; options follow after a plus: ``"gptq+act_order=true"``.
    refit : bool
        Whether the pruning method re-fits the kept weights, or sees a problem of masks.
    target : {"layer", "weights"}
        What the kept weights are rounded towards: the layer's output, or the weights that pruning left. After a refit
        both are the same.
    """
    pruned = _stage(prune, "prune")(view.pruning(view.target, view.original, refit))
    inputs = np.flatnonzero(pruned)
    result = np.zeros(len(pruned))
    if len(inputs):
        towards = view.refit(inputs) if target == "layer" else pruned[inputs]
        result[inputs] = _stage(quantize, "quantize")(view.quantization(inputs, towards))
    return result


def quantize_then_prune(
    view: JointView,
    quantize: str = "gptq",
    prune: str = "obs",
    target: str = "weights",
    requantize: bool = False,
) -> Float:
    """Round all weights with one method, then choose with another one which of them are kept.

    The other order of Zhang et al. (arXiv 2110.08271); SLiM (Mozaffari et al., arXiv 2410.09615) quantizes first as
    well.

    Parameters
    ----------
    view : JointView
    quantize, prune : str
        Methods, as in `prune_then_quantize`; the pruning method sees a problem of masks.
    target : {"layer", "weights"}
        What pruning wants to keep: the layer's output, or that of the quantized weights. Methods that look at the
        target alone, such as ``obs``, choose a mask of the dense weights with ``"layer"``.
    requantize : bool
        Round what is kept once more, towards the layer's output.
    """
    n = len(view.target)
    rounding = _stage(quantize, "quantize")
    rounded = rounding(view.quantization(np.arange(n), view.target))
    towards = view.target if target == "layer" else rounded
    pruned = _stage(prune, "prune")(view.pruning(towards, rounded, False))
    inputs = np.flatnonzero(pruned)
    if requantize and len(inputs):
        pruned = np.zeros(n)
        pruned[inputs] = rounding(view.quantization(inputs, view.refit(inputs)))
    return pruned


def check_stages(options: dict[str, Any]) -> None:
    """Refuse stages that are no methods of pruning or quantization, and their wrong options.

    Raises
    ------
    InputError
        For these and for a wrong target.
    """
    for name in STAGES:
        _stage(options[name], name)
    one_of(options["target"], "target", tuple(TARGETS))


def _stage(text: str, stage: str) -> Callable[[Any], Float]:
    """The method of a stage with its options."""
    able = [name for name, heuristic in HEURISTICS.items() if STAGES[stage] in heuristic.capabilities]
    name, given = read_parts(text, "+")
    heuristic = HEURISTICS[match_name(name, able, f"method to {stage}")]
    options = resolve_options(heuristic, given)
    return lambda view: heuristic.method(view, **options)
