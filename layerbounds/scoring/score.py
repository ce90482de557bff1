"""How far the weights of a quantized checkpoint are from the best on their own grid, and at any scale."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from layerbounds.arguments import flag, one_of, real_number, shown
from layerbounds.arrays import Float
from layerbounds.checkpoints.checkpoint import Checkpoint, load_checkpoint
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.exceptions import CertificationError, FileFormatError, InputError, UnsupportedProblemError
from layerbounds.layers.bias import Bias, apply_bias
from layerbounds.layers.files import named_layers
from layerbounds.layers.layer import Layer
from layerbounds.layers.layer_file import LayerFile
from layerbounds.mistaken import instead
from layerbounds.names import match_names
from layerbounds.problems.float_types import rounded
from layerbounds.problems.problem import Problem, check_rows
from layerbounds.problems.quantization import QuantizationProblem
from layerbounds.progress import check_listener, watched
from layerbounds.proofs import BoundKind, Status
from layerbounds.scoring.free import contains, freed
from layerbounds.scoring.original import open_original
from layerbounds.scoring.pairing import fused, pair, partners
from layerbounds.scoring.records import MISMATCH, SCORED, LayerScore, Scores, Standing
from layerbounds.scoring.transformed import Surroundings, as_stored, listed, unlike
from layerbounds.scoring.verdict import distance, enclosed_errors, total
from layerbounds.solution import Solution
from layerbounds.solve import solve

#: Seconds of search for each layer and question where nobody sets a limit.
USUAL_TOTAL = 30.0
#: Rounding of the levels to the type that is multiplied with is worth a note from this share of the error on.
_ROUNDING = 0.01

#: Called before each layer with (layers done, layers in all, name of the layer).
Progress = Callable[[int, int, str], None]


def score(
    checkpoint: Checkpoint | str | os.PathLike[str],
    layers: Mapping[str, Layer] | Iterable[Layer] | str | os.PathLike[str],
    select: str | Iterable[str] | None = None,
    *,
    scale: str = "own",
    original: str | os.PathLike[str] | None = None,
    names: Mapping[str, str] | str | os.PathLike[str] | None = None,
    estimate: bool = False,
    bias: Bias = "keep",
    channels: Sequence[int] | None = None,
    time_limit: float | None = None,
    total_time: float | None = None,
    gap: float = 0.0,
    node_limit: int | None = None,
    backend: str = "auto",
    jobs: int | None = None,
    seed: int = 0,
    progress: Progress | bool | None = None,
) -> Scores:
    """Put the weights of a quantized checkpoint beside the certified interval of the best that was possible.

    Parameters
    ----------
    checkpoint : Checkpoint or path-like
        See `load_checkpoint`.
    layers : mapping of name to Layer, iterable of Layer, or path-like
        Captured from the dense model, or a layer file with them.
    select : str or iterable of str, optional
        Names of captured layers, unique ends of them, or patterns; default: all that the checkpoint quantizes.
    scale : {"own", "free"}
        ``"free"``: beside the best on the layer's own grid also the best with any scales, for the same codes, groups
        and kind of zero points.
    original : path-like, optional
        The dense model (a folder or file). Its normalisations tell whether scales were folded into those of the
        checkpoint, which is then undone. Default: the folder that the layers were captured from, where they say it and
        it is still there.
    names : mapping of str to str, or path-like, optional
        The checkpoint's names of captured layers, where they are not the same; or a file with them, a JSON object or
        two columns.
    estimate : bool
        Whether factors that moved between two linear layers, which no tensor tells, are estimated from the lengths of
        rows; such layers are refused otherwise.
    bias : {"keep", "refit"}
        Whether biases stay as they are or are re-fitted with the weights.
    channels : sequence of int, optional
        Output channels of every layer; default: all.
    time_limit : float, optional
        Seconds of search per channel.
    total_time : float, optional
        Seconds of search for each layer and question; default: 30, if there is no ``time_limit``.
    gap, node_limit, backend, jobs, seed
        As in `solve`.
    progress : bool or callable, optional
        True for a bar on a terminal or in a notebook; a function is called before each layer with (layers done, layers
        in all, name).

    Returns
    -------
    Scores
        Interrupted by Ctrl-C, with what is finished.

    Raises
    ------
    FileFormatError
        If a file cannot be read.
    UnknownNameError
        If a name matches nothing.
    InputError
        If the checkpoint and the capture have no layer in common, or all layers that they share are refused.

    Examples
    --------
    >>> from safetensors.numpy import save_file
    >>> packed = {"fc.qweight": np.zeros((2, 1), np.int32), "fc.qzeros": np.zeros((1, 1), np.int32)}
    >>> save_file({**packed, "fc.scales": np.ones((1, 8), np.float16)}, "awq.safetensors")
    >>> inputs = np.random.default_rng(0).normal(size=(64, 2))
    >>> fc = lb.Layer.from_activations(np.full((8, 2), 0.4), inputs, "fc")
    >>> scores = lb.score("awq.safetensors", {"fc": fc}, channels=[0], time_limit=1)
    >>> scores.layers[0].status
    'scored'
    """
    one_of(scale, "scale", ("own", "free"))
    one_of(bias, "bias", ("keep", "refit"))
    flag(estimate, "estimate")
    real_number(gap, "gap", 0.0, 1.0)
    check_listener(progress)
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
    captured = _captured(layers)
    given = partners(names, list(captured))
    chosen = list(captured) if select is None else match_names(select, list(captured), "captured layer")
    stored = list(opened)
    pairs = {name: pair(name, captured, stored, given) for name in chosen}
    unmatched = [name for name, found in pairs.items() if found is None]
    refused = {name: why for name in unmatched if (why := fused(name, stored)) is not None}
    paired = {name: found for name, found in pairs.items() if found is not None}
    unmatched = [name for name in unmatched if name not in refused]
    if select is not None and unmatched:
        raise InputError(
            f"layer {unmatched[0]!r} is not among the quantized layers of {opened.path} ({listed(stored)}); say what "
            "it is called there in a map of names, or choose another."
        )
    if not paired:
        why = "; ".join(f"layer {name!r}: {reason}" for name, reason in list(refused.items())[:1])
        raise InputError(
            why
            or f"{opened.path} quantizes none of the captured layers: it has {listed(stored)}, and the capture "
            f"{listed(list(captured))}; say which is which in a map of names."
        )
    if time_limit is None and total_time is None:
        total_time = USUAL_TOTAL
    limits = {
        "time_limit": time_limit,
        "total_time": total_time,
        "gap": gap,
        "node_limit": node_limit,
        "backend": backend,
        "jobs": jobs,
        "seed": seed,
    }
    scores: list[LayerScore] = []
    interrupted = False
    with ExitStack() as stack, watched(progress, str(opened.path), len(paired), "layers") as told:
        first = captured[next(iter(paired))]
        dense = stack.enter_context(open_original(original, first))

        def neighbour(name: str) -> tuple[Layer, str] | None:
            its = pair(name, captured, stored, given) if name in captured else None
            return None if its is None else (captured[name], its)

        surroundings = Surroundings(opened, dense, neighbour if estimate else None)
        for done, (name, its) in enumerate(paired.items()):
            layer = captured[name]
            rows = check_rows(layer, channels)
            try:
                if told is not None:
                    told(done, len(paired), name)
                around = _around(layer, surroundings, said=original is not None)
                found, interrupted = _scored(layer, opened[its], around, rows, scale, bias, limits)
            except (UnsupportedProblemError, FileFormatError) as error:
                # A layer that cannot be read does not take the others with it.
                text = str(error)
                refused[name] = text if repr(name) in text else f"layer {name!r}: {text}"
                continue
            except KeyboardInterrupt:
                interrupted = True
                break
            scores.append(found)
            if interrupted:
                break
    if not scores and not interrupted:
        others = f" (and {len(refused) - 1} more layers are refused)" if len(refused) > 1 else ""
        raise UnsupportedProblemError(next(iter(refused.values())) + others)
    path = None if dense is None else str(dense.path)
    return Scores(str(opened.path), opened.label, path, scores, refused, unmatched, interrupted)


def _around(layer: Layer, surroundings: Surroundings, said: bool) -> Surroundings:
    """The surroundings of a layer, whose original must have its weights; if nobody named the original, it may not."""
    try:
        if surroundings.original is not None:
            surroundings.original.check(layer)
    except InputError:
        if said:
            raise
        return Surroundings(surroundings.checkpoint, None, surroundings.neighbours)
    return surroundings


def _captured(layers: Any) -> Mapping[str, Layer]:
    if isinstance(layers, (str, os.PathLike)):
        return LayerFile(layers)
    if isinstance(layers, LayerFile):
        return layers
    if not isinstance(layers, (Mapping, Iterable)):
        usual = f"{shown(layers)}; pass captured layers, or the file that they are in."
        raise InputError(f"layers is {instead('layers', layers) or usual}")
    named = named_layers(layers)
    if not named:
        raise InputError("there are no layers to score; capture at least one.")
    return named


def _scored(
    layer: Layer,
    weight: QuantizedWeight,
    surroundings: Surroundings,
    rows: list[int],
    scale: str,
    bias: Bias,
    limits: Mapping[str, Any],
) -> tuple[LayerScore, bool]:
    """One layer, and whether the work on it was interrupted."""
    found = as_stored(layer, weight, surroundings, bias_free=bias == "refit")
    seen = apply_bias(found.layer, bias)
    # Errors of outputs that the checkpoint has divided by factors are counted as the captured layer has them.
    squares = np.ones(len(rows)) if found.outputs is None else found.outputs[rows] ** 2
    decoded = weight.weight.reshape(seen.matrix.shape)
    matrix = decoded[rows]
    low, high = enclosed_errors(seen, matrix, rows)
    error, energy = float(squares @ (0.5 * (low + high))), float(squares @ seen.energy()[rows])
    loaded = rounded(matrix, weight.dtype)
    rounded_error = float(squares @ (0.5 * np.sum(enclosed_errors(seen, loaded, rows), axis=0)))
    said = [*weight.notes, *found.notes]
    if abs(rounded_error - error) > _ROUNDING * error:
        said.append(f"rounded to {weight.dtype} the error is {rounded_error / error:.3g} times as large")
    relative = error / energy if energy > 0 else None
    about: dict[str, Any] = {
        "layer": layer.name,
        "stored": weight.name,
        "format": weight.format,
        "bits_per_weight": weight.bits_per_weight,
        "channels": rows,
        "errors": (squares * (0.5 * (low + high))).tolist(),
        "error": error,
        "relative_error": relative,
        "loaded_error": rounded_error,
        "factors": None if found.undone is None else found.undone.source,
        "estimated": found.estimated,
    }
    if relative is not None and relative > 1.0:
        what = "another layer's, rotated or permuted" if unlike(seen, decoded) else "of another model or scale"
        said.append(f"the error is larger than without any weights: they may be {what}")
        return LayerScore(**about, status=MISMATCH, notes=tuple(said)), False
    ends = total(np.nextafter(low * squares, 0.0), 0.0), total(np.nextafter(high * squares, np.inf), np.inf)
    problem = QuantizationProblem(seen, weight.grid)
    solution = solve(problem, channels=rows, warm_start=matrix, **limits)
    if np.any(solution.lower_bound > high):
        raise CertificationError(
            f"the stored weights of layer {layer.name!r} are better than the certified lower bound of their grid; "
            "please report this with the files."
        )
    about["own"] = _standing(solution, ends, squares)
    interrupted = solution.interrupted
    if scale == "free" and not interrupted:
        try:
            free, wider = freed(seen, weight)
            other = solve(free, channels=rows, warm_start=solution.weights, **limits)
            about["free"], interrupted = _standing(other, ends, squares, wider), other.interrupted
            if contains(free, weight.grid, rows):
                about["own"] = _standing(solution, ends, squares, least=other)
        except UnsupportedProblemError as why:
            said.append(f"no bound at any scale: {why}")
    return LayerScore(**about, status=SCORED, notes=tuple(said)), interrupted


def _standing(
    solution: Solution,
    error: tuple[float, float],
    squares: Float,
    notes: tuple[str, ...] = (),
    *,
    least: Solution | None = None,
) -> Standing:
    """Weights of a known error beside an interval, whose ends count by the squares of the outputs' factors.

    The lower ends of another solution hold, too, where that is about more weights.
    """
    problem: Problem = solution.problem
    proven = solution.lower_bound if least is None else np.maximum(solution.lower_bound, least.lower_bound)
    if np.any(proven > solution.upper_bound):
        raise CertificationError(
            f"the least error of layer {problem.layer.name!r} at any scales exceeds that at some; please report this "
            "with the files."
        )
    below = np.nextafter(proven * squares, 0.0)
    above = np.nextafter(solution.upper_bound * squares, np.inf)
    lower, upper = total(below, 0.0), total(above, np.inf)
    found = distance(error, lower, upper)
    return Standing(
        problem.label,
        lower,
        upper,
        found,
        _trivial(solution) and (least is None or _trivial(least)) and not found.optimal,
        sum(status == Status.OPTIMAL for status in solution.status),
        below.tolist(),
        above.tolist(),
        [str(status) for status in solution.status],
        float(np.sum(solution.seconds)) + solution.preparation_seconds,
        problem.fingerprint(),
        notes,
    )


def _trivial(solution: Solution) -> bool:
    return all(kind == BoundKind.TRIVIAL for kind in solution.bound_kind)
