"""The survey of a run: every layer at every choice, before any work."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from layerbounds.exceptions import InputError
from layerbounds.layers.layer import Layer
from layerbounds.network.choices import Choice
from layerbounds.network.entries import ChoiceInfo, Entry, LayerInfo
from layerbounds.network.sampling import Sample, allows_zero
from layerbounds.problems.layer_bits import layer_bits
from layerbounds.problems.problem import Problem
from layerbounds.problems.rows import common_sets

#: Rows of a chunk: at least so many, or half the inputs of a channel: what they share is not prepared too often.
LEAST_ROWS, ROWS_PER_INPUT = 64, 0.5


def layer_digest(layer: Layer) -> str:
    """SHA-256 of what the problems of a layer depend on."""
    digest = hashlib.sha256(repr((layer.weight.shape, layer.groups)).encode())
    for array in (layer.matrix, layer.gram, layer.target, layer.constant):
        digest.update(np.ascontiguousarray(array).reshape(-1).data)
    return digest.hexdigest()


def problems_of(layer: Layer, choices: Sequence[Choice]) -> list[Problem | InputError]:
    """What each choice means for a layer, or why the layer cannot have it."""
    problems: list[Problem | InputError] = []
    for choice in choices:
        try:
            problems.append(choice.problem(layer))
        except InputError as error:
            problems.append(error)
    return problems


def survey_layer(
    number: int,
    layer: Layer,
    choices: Sequence[Choice],
    problems: Sequence[Problem | InputError],
    channels: Sequence[int],
    sample: Sample | None,
) -> list[Entry]:
    """The entries of a layer, one for each choice; those that it cannot have say why.

    Parameters
    ----------
    number : int
        Of the layer.
    layer : Layer
    choices : sequence of Choice
    problems : sequence of Problem or InputError
        As `problems_of` gives them.
    channels : sequence of int
        The output channels that the run is about; all that a problem binds to one of them are added.
    sample : Sample or None
        How they were drawn.
    """
    energy = layer.energy()
    info = LayerInfo(
        name=layer.name,
        shape=tuple(layer.weight.shape),
        inputs=layer.in_features,
        weights=int(layer.weight.size),
        channels=list(channels),
        energy=float(energy[list(channels)].sum()),
        whole_energy=float(energy.sum()),
        samples=layer.samples,
        dead=sum(report.dead for report in layer.gram_reports),
        digest=layer_digest(layer),
        sample=None if sample is None else sample.to_dict(),
    )
    entries = []
    for place, (choice, problem) in enumerate(zip(choices, problems, strict=True)):
        about = choice.to_dict()
        chosen = ChoiceInfo(about["name"], about["spec"], about["rules"])
        if isinstance(problem, InputError):
            entries.append(
                Entry(info, chosen, (number, place), "", "", "", 0, False, str(problem), [], np.zeros(0), [])
            )
            continue
        sets = problem.sets(info.channels)
        energies = problem.energy()
        entries.append(
            Entry(
                info, chosen, (number, place), problem.label, problem.family, problem.fingerprint(),
                layer_bits(problem, choice.rules.mask), allows_zero(problem), None, sets,
                np.array([energies[s].sum() for s in sets]), _chunks(sets, layer.in_features),
            )
        )  # fmt: skip
    return entries


def bound_sets(layer: Layer, problems: Sequence[Problem | InputError]) -> list[list[int]]:
    """The smallest sets of output channels that no problem of a layer binds to others."""
    rows = range(layer.out_features)
    partitions = [problem.sets(rows) for problem in problems if not isinstance(problem, InputError)]
    return common_sets(*partitions) if partitions else [[row] for row in rows]


def _chunks(sets: Sequence[Sequence[int]], inputs: int) -> list[tuple[int, int]]:
    """Consecutive sets of together about as many rows as a chunk has."""
    most = max(LEAST_ROWS, int(ROWS_PER_INPUT * inputs))
    chunks: list[tuple[int, int]] = []
    first, rows = 0, 0
    for index, members in enumerate(sets):
        if rows and rows + len(members) > most:
            chunks.append((first, index))
            first, rows = index, 0
        rows += len(members)
    if rows:
        chunks.append((first, len(sets)))
    return chunks


def to_manifest(entries: Sequence[Sequence[Entry]]) -> list[dict[str, Any]]:
    """The survey for the manifest: layers with their problems."""
    return [
        {
            **asdict(of_layer[0].layer),
            "problems": [
                {
                    "label": e.label, "family": e.family, "fingerprint": e.fingerprint, "storage": e.storage,
                    "zero": e.zero, "refused": e.refused, "sets": e.sets, "energy": e.energy.tolist(),
                    "chunks": e.chunks,
                }
                for e in of_layer
            ],
        }
        for of_layer in entries
    ]  # fmt: skip


def from_manifest(layers: Sequence[Mapping[str, Any]], choices: Sequence[Mapping[str, Any]]) -> list[list[Entry]]:
    """The entries that `to_manifest` has described, without anything that records say."""
    infos = [ChoiceInfo(c["name"], c["spec"], c["rules"]) for c in choices]
    result = []
    for number, about in enumerate(layers):
        fields = {key: value for key, value in about.items() if key != "problems"}
        info = LayerInfo(**{**fields, "shape": tuple(fields["shape"])})
        result.append(
            [
                Entry(
                    info, infos[place], (number, place), p["label"], p["family"], p["fingerprint"], p["storage"],
                    p["zero"], p["refused"], p["sets"], np.array(p["energy"], dtype=float),
                    [(a, b) for a, b in p["chunks"]],
                )
                for place, p in enumerate(about["problems"])
            ]
        )  # fmt: skip
    return result
