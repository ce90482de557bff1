"""What a run is about, before any work: its layers, its methods, and whether its folder holds another run."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numba
import numpy
import scipy

from layerbounds.exceptions import InputError
from layerbounds.methods.specs import choose_methods, tiny_like
from layerbounds.network.choices import Choice
from layerbounds.network.entries import Entry
from layerbounds.network.folder import RunFolder
from layerbounds.network.manifest import SCHEMA_VERSION
from layerbounds.network.result import NetworkRun, open_run
from layerbounds.network.sampling import draw
from layerbounds.network.sources import Source
from layerbounds.network.survey import bound_sets, problems_of, survey_layer, to_manifest
from layerbounds.problems.problem import check_rows
from layerbounds.solve import solve
from layerbounds.version import __version__

#: The parts of a manifest that make a run the same, and how sentences call them.
_SAME = {
    "layerbounds": "another version of layerbounds",
    "choices": "other compressions",
    "layers": "other layers or channels",
    "seed": "another seed",
}


def survey(
    source: Source,
    choices: Sequence[Choice],
    channels: Sequence[int] | Mapping[str, Sequence[int]] | None,
    sample: int | None,
    seed: int,
) -> list[list[Entry]]:
    """Every layer at every choice.

    Raises
    ------
    InputError
        If channels do not exist, or no layer can have one of the choices.
    """
    grid = []
    for number in range(len(source.names)):
        layer = source.layer(number)
        problems = problems_of(layer, choices)
        units = bound_sets(layer, problems)
        wanted = channels.get(layer.name) if isinstance(channels, Mapping) else channels
        drawn = None
        if wanted is None and sample is not None:
            energy = layer.energy()
            drawn = draw(units, [energy[unit].sum() for unit in units], sample, seed, layer.name, layer.out_features)
            chosen = drawn.channels
        else:
            asked = set(check_rows(layer, wanted))
            chosen = sorted(row for unit in units if not asked.isdisjoint(unit) for row in unit)
        grid.append(survey_layer(number, layer, choices, problems, chosen, drawn))
    for place, choice in enumerate(choices):
        refused = [of_layer[place].refused for of_layer in grid]
        if all(reason is not None for reason in refused):
            raise InputError(f"no layer can have {choice.name}: {refused[0]}")
    return grid


def fitting_methods(
    source: Source,
    choices: Sequence[Choice],
    grid: Sequence[Sequence[Entry]],
    texts: Mapping[str, str],
    every: bool,
) -> dict[int, dict[str, str]]:
    """For each choice the methods that can treat it; this also compiles what the work needs.

    Parameters
    ----------
    source : Source
    choices : sequence of Choice
    grid : sequence of sequence of Entry
    texts : mapping of str to str
        How each method is written, by its label.
    every : bool
        Whether each has to be of use.

    Raises
    ------
    InputError
        If a method can treat no choice.
    """
    fitting: dict[int, dict[str, str]] = {}
    for place, choice in enumerate(choices):
        number = next((i for i, of_layer in enumerate(grid) if of_layer[place].refused is None), None)
        if number is None:
            continue
        problem = choice.problem(source.layer(number))
        able = {spec.label for spec in choose_methods(problem, list(texts.values()))}
        fitting[place] = {label: text for label, text in texts.items() if label in able}
        solve(tiny_like(problem), jobs=1, time_limit=0.1)
    unused = next((label for label in texts if not any(label in of for of in fitting.values())), None)
    if every and unused is not None:
        raise InputError(f"method {unused!r} can treat none of the compressions; see `layerbounds heuristics`.")
    return fitting


def _environment() -> dict[str, str]:
    """Versions of what computes."""
    found = {module.__name__: module.__version__ for module in (numpy, scipy, numba)}
    return {"python": platform.python_version(), **found, "machine": f"{platform.system()} {platform.machine()}"}


def opened(
    folder: RunFolder,
    source: Source,
    choices: Sequence[Choice],
    grid: Sequence[Sequence[Entry]],
    seed: int,
    options: Mapping[str, Any],
    given: Mapping[str, str],
) -> NetworkRun:
    """A new run in a folder, or the one that is there, if it is the same.

    Raises
    ------
    InputError
        If the folder holds a run of other layers or compressions, or of another version.
    """
    said = {
        "schema": SCHEMA_VERSION,
        "layerbounds": __version__,
        "environment": _environment(),
        "source": source.about(),
        "choices": [choice.to_dict() for choice in choices],
        "layers": to_manifest(grid),
        "seed": seed,
        "options": dict(options),
        "given": dict(given),
    }
    # As it will be read.
    manifest: dict[str, Any] = json.loads(json.dumps(said))
    if folder.manifest.exists():
        found = folder.read_manifest()
        for part, what in _SAME.items():
            if _identity(part, found[part]) != _identity(part, manifest[part]):
                raise InputError(
                    f"{folder.path} holds a run of {what}; choose another folder, or repeat the command of that run."
                )
        changed = [label for label, old in found["given"].items() if given.get(label, old) != old]
        if changed:
            raise InputError(
                f"weights {changed[0]!r} are others than those that {folder.path} has; give them another name."
            )
        manifest["given"] = found["given"] | manifest["given"]
        manifest["layers"] = found["layers"]
    # Nothing is written into a folder in which something is wrong.
    state = open_run(folder, manifest)
    source.keep(repair=folder.manifest.exists())
    folder.write_manifest(manifest)
    return state


def _identity(part: str, said: Any) -> Any:
    """What makes a part of a manifest the same: energies may differ in their last digits on another machine."""
    if part != "layers":
        return said
    layers = [{key: layer[key] for key in ("name", "shape", "channels", "digest")} for layer in said]
    draws = [layer["sample"] and (layer["sample"]["sets"], layer["sample"]["counts"]) for layer in said]
    problems = [[(p["fingerprint"], p["refused"], p["chunks"]) for p in layer["problems"]] for layer in said]
    return layers, draws, problems
