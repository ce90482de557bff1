"""Allocation of bits over the layers of a run."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from typing import Any

from layerbounds import allocation
from layerbounds.allocation import Allocation, FrontPoint, LayerOptions, Option, bits_of_budget
from layerbounds.allocation.formats import choices_of, find_format
from layerbounds.arguments import as_path, flag, real_number, shown
from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.mistaken import instead
from layerbounds.names import match_name
from layerbounds.network.entries import Entry
from layerbounds.network.result import NetworkRun, load_run
from layerbounds.problems.layer_bits import convention
from layerbounds.problems.patterns import parse_pattern
from layerbounds.problems.pruning import DENSE_BITS

#: The option of a layer that stays as it is.
DENSE = f"{DENSE_BITS} bits"
#: What may stand for the weights of the layers.
WEIGHTS = ("energy", "uniform")

Run = NetworkRun | str | os.PathLike[str]
Weights = str | os.PathLike[str] | Mapping[str, float]


def allocate(run: Run, budget: float = 3.0, *, weights_of: Weights = "energy", dense: bool = False) -> Allocation:
    """Choose a compression for every layer within a budget of bits, with what the run's intervals prove of it.

    Parameters
    ----------
    run : NetworkRun or path-like
        A run, or its folder.
    budget : float
        Bits per weight, over all layers, with scales, zero points and masks.
    weights_of : {"energy", "uniform"}, path-like or mapping
        What the layers' errors are multiplied by before they are added: ``"energy"`` 1/f(0), so that relative errors
        count; ``"uniform"`` 1; numbers by name of a layer, or a JSON or CSV file with such, that many times 1/f(0).
    dense : bool
        Whether layers may also stay as they are, at 16 bits per weight.

    Returns
    -------
    Allocation

    Raises
    ------
    InputError
        If nothing fits into the budget, a layer has nothing to choose from, or a weight is missing.

    Examples
    --------
    >>> lb.allocate(run, budget=5.0).choices
    {'conv1': 'INT3'}
    """
    state = _as_run(run)
    layers = layer_options(state, weights_of, dense)
    best = allocation.allocate(layers, bits_of_budget(layers, budget))
    return best.saying(_convention(state), _objective(state, weights_of))


def score_allocation(
    run: Run,
    path: str | os.PathLike[str],
    tool: str,
    *,
    budget: float | None = None,
    weights_of: Weights = "energy",
    dense: bool = False,
) -> Allocation:
    """What the run's intervals prove of the allocation in a file of another tool.

    Parameters
    ----------
    run : NetworkRun or path-like
    path : path-like
        The file.
    tool : {"gptqmodel", "llm-compressor", "auto-round", "llama.cpp"}
        Whose it is.
    budget : float, optional
        Bits per weight of the allocations it is compared with; default: those that it takes.
    weights_of, dense
        As in `allocate`.

    Returns
    -------
    Allocation

    Raises
    ------
    InputError
        If the file cannot be read, or asks for what the run has no intervals of.

    Examples
    --------
    >>> from pathlib import Path
    >>> allocation = lb.allocate(run, budget=5.0)
    >>> _ = Path("choices.json").write_text(allocation.export("gptqmodel"))
    >>> lb.score_allocation(run, "choices.json", "gptqmodel").choices == allocation.choices
    True
    """
    find_format(tool)
    state = _as_run(run)
    layers = layer_options(state, weights_of, dense)
    choices = choices_of(layers, tool, read_text(path))
    scored = allocation.score(layers, choices, None if budget is None else bits_of_budget(layers, budget))
    return scored.saying(_convention(state), _objective(state, weights_of))


def allocation_front(run: Run, *, weights_of: Weights = "energy", dense: bool = False) -> list[FrontPoint]:
    """The least certified error for every budget.

    Parameters
    ----------
    run : NetworkRun or path-like
    weights_of, dense
        As in `allocate`.
    """
    return allocation.front(layer_options(_as_run(run), weights_of, dense))


def layer_options(run: NetworkRun, weights_of: Weights = "energy", dense: bool = False) -> list[LayerOptions]:
    """What a run has to choose from.

    Parameters
    ----------
    run : NetworkRun
    weights_of, dense
        As in `allocate`.

    Raises
    ------
    InputError
        If a layer has nothing to choose from, or a weight is missing.
    """
    flag(dense, "dense")
    factors = _factors(run, weights_of)
    layers = []
    for of_layer in run.grid:
        layer = of_layer[0].layer
        options = [_option(entry) for entry in of_layer if entry.refused is None]
        if dense:
            options.append(Option(DENSE, layer.weights * DENSE_BITS, 0.0, 0.0, {"bits": DENSE_BITS}))
        if not options:
            raise InputError(
                f"layer {layer.name!r} can have none of the compressions ({of_layer[0].refused}); let layers stay as "
                "they are, too (dense, --dense)."
            )
        layers.append(LayerOptions(layer.name, layer.weights, tuple(options), factors[layer.name]))
    return layers


def _as_run(run: Any) -> NetworkRun:
    if isinstance(run, NetworkRun):
        return run
    if not isinstance(run, (str, os.PathLike)):
        raise InputError(f"run is {instead('run', run) or f'{shown(run)}; pass a run, or its folder.'}")
    return load_run(run)


def _option(entry: Entry) -> Option:
    lower, upper = entry.interval
    return Option(entry.choice.name, entry.storage, max(lower, 0.0), max(upper, 0.0), _expressible(entry))


def _expressible(entry: Entry) -> dict[str, Any]:
    """What formats of tools need to know of a choice."""
    spec, rules = entry.choice.spec, entry.choice.rules
    pruned = any(spec[name] is not None for name in ("pattern", "density", "k", "share"))
    pattern, density = spec["pattern"], spec["density"]
    if pattern is not None and getattr(parse_pattern(pattern), "axis", "flat") == "flat" and ":" in pattern:
        # Along the channels of a kernel of one position, N:M counts as along the flattened weight.
        if rules["axis"] == "in_channels" and math.prod(entry.layer.shape[2:]) > 1:
            pattern = f"{pattern}@in_channels"
    elif pattern is not None and math.prod(entry.layer.shape[2:]) == 1:
        pattern = pattern.removesuffix("@in_channels")
    if pruned and pattern is None and density is None:
        density = spec["k"] / entry.layer.inputs
    granularity = rules["granularity"]
    if not isinstance(granularity, str) and granularity >= entry.layer.inputs:
        granularity = "channel"
    return {
        "bits": spec["bits"],
        "codebook": spec["codebook"],
        "symmetric": rules["symmetric"] and rules["zero_point"] is None,
        "zero_point": rules["zero_point"],
        "granularity": granularity,
        "pattern": pattern,
        "density": density,
        "share": (rules["share"] if spec["share"] is None else spec["share"]) if pruned else None,
        "refit": rules["refit"],
    }


def _factors(run: NetworkRun, weights_of: Any) -> dict[str, float]:
    """What the errors of each layer are multiplied by."""
    names = [layer.name for layer in run.layers]
    relative = {layer.name: 1.0 / layer.energy if layer.energy > 0 else 0.0 for layer in run.layers}
    if isinstance(weights_of, str) and weights_of in WEIGHTS:
        return relative if weights_of == "energy" else dict.fromkeys(names, 1.0)
    if isinstance(weights_of, (str, os.PathLike)):
        weights_of = read_weights(weights_of)
    if not isinstance(weights_of, Mapping):
        raise InputError(f"weights_of is {shown(weights_of)}; pass 'energy', 'uniform', a file or numbers by layer.")
    given: dict[str, float] = {}
    for key, value in weights_of.items():
        name = match_name(key, names, "layer")
        if name in given:
            raise InputError(f"layer {name!r} has two weights; give one.")
        given[name] = real_number(value, f"the weight of layer {name!r}", 0.0)
    missing = next((name for name in names if name not in given), None)
    if missing is not None:
        raise InputError(f"layer {missing!r} has no weight; give one to every layer, 0 where errors do not count.")
    scales = {name: given[name] * relative[name] for name in names}
    if not all(map(math.isfinite, scales.values())):
        raise InputError("a weight is so large that its share of the error is infinite; pass smaller ones.")
    return scales


def read_weights(path: str | os.PathLike[str]) -> dict[str, float]:
    """Numbers by name of a layer, from a JSON object or lines ``layer,weight``.

    Parameters
    ----------
    path : path-like

    Raises
    ------
    InputError
        If the file cannot be read.
    FileFormatError
        If it holds something else.
    """
    text = read_text(path)
    if text.lstrip().startswith("{"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FileFormatError(f"{path} is no JSON ({error}); write a weight for each layer.") from error
        return {str(name): number for name, number in value.items()}
    weights: dict[str, float] = {}
    for number, row in enumerate(csv.reader(io.StringIO(text))):
        if not row:
            continue
        try:
            name, weight = row[0].strip(), float(row[1])
        except (IndexError, ValueError):
            if number == 0:
                continue  # a heading
            raise FileFormatError(f"line {number + 1} of {path} is no layer,weight; correct it.") from None
        if name in weights:
            raise FileFormatError(f"{path} has layer {name!r} twice; name each once.")
        weights[name] = weight
    return weights


def read_text(path: str | os.PathLike[str]) -> str:
    """What is in a text file.

    Parameters
    ----------
    path : path-like

    Raises
    ------
    InputError
        If it cannot be read.
    """
    file = as_path(path, "the file")
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {file} ({error.strerror}); name another file.") from error
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{file} is no text in UTF-8; name another file.") from error


def _convention(run: NetworkRun) -> str:
    return convention(run.choices[0].rules["mask"])


def _objective(run: NetworkRun, weights_of: Any) -> str:
    kinds = {
        "energy": "errors are relative to those of zero weights, and added over the layers",
        "uniform": "errors are mean squared output errors, and added over the layers",
    }
    given = "errors relative to those of zero weights are multiplied by given weights, and added over the layers"
    text = kinds.get(weights_of, given) if isinstance(weights_of, str) else given
    chosen = any(len(layer.channels) < layer.shape[0] for layer in run.layers)
    return f"{text}, of the channels that the run is about" if chosen else text
