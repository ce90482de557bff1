"""A run as it stands: read from its folder alone, without the layers."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layerbounds.arrays import Float
from layerbounds.display import INTERVAL, JOINT, METHOD, PRUNING, Bar, Displayed, Shape, Summary, Table, picture
from layerbounds.display.outward import ends
from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.frames import data_frame
from layerbounds.names import match_name
from layerbounds.network.entries import ChoiceInfo, Entry, LayerInfo, find_entry
from layerbounds.network.failures import Failures, read_failures
from layerbounds.network.folder import RunFolder
from layerbounds.network.sampling import Sample, Statement, state
from layerbounds.network.survey import from_manifest
from layerbounds.network.table import best_method, columns, relative, rows
from layerbounds.network.table import state as state_of
from layerbounds.version import __version__


@dataclass(eq=False, repr=False)
class NetworkRun(Displayed):
    """What is known of a network.

    Attributes
    ----------
    folder : RunFolder
    about : dict
        The manifest: version, options, how channels were chosen.
    grid : list of list of Entry
        For each layer its entries, one for each choice.
    interrupted : bool
        Whether Ctrl-C ended the work.
    failures : dict of (layer number, choice number, chunk) to str
        Chunks that could not be worked on, and why.
    left_out : list of str
        Sentences on records that cannot be used; what they were about counts as not done.

    Examples
    --------
    >>> [[entry.choice.name for entry in entries] for entries in run.grid]
    [['INT2', 'INT3']]
    """

    folder: RunFolder
    about: dict[str, Any]
    grid: list[list[Entry]]
    interrupted: bool = False
    failures: Failures = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[tuple[str, str, str]]:
        """What could not be worked on: names of layer and choice, and the reason."""
        entries = [(self.grid[layer][choice], reason) for (layer, choice, _), reason in sorted(self.failures.items())]
        return [(entry.layer.name, entry.choice.name, reason) for entry, reason in entries]

    @property
    def entries(self) -> list[Entry]:
        """All of them, layer by layer."""
        return [entry for of_layer in self.grid for entry in of_layer]

    @property
    def layers(self) -> list[LayerInfo]:
        """In their order."""
        return [of_layer[0].layer for of_layer in self.grid]

    @property
    def choices(self) -> list[ChoiceInfo]:
        """In their order."""
        return [entry.choice for entry in self.grid[0]]

    @property
    def complete(self) -> bool:
        """Whether every layer has its first bounds at every choice that it can have."""
        return all(entry.visited for entry in self.entries)

    def statement(self, entry: Entry) -> Statement | None:
        """What is known of all channels of a layer of which some were drawn; None where none were.

        Examples
        --------
        >>> run.statement(run.grid[0][0]) is None
        True
        """
        if entry.layer.sample is None or not entry.sets:
            return None
        sample = Sample.from_dict(entry.layer.sample)
        return state(sample, entry.sets, entry.lower, entry.upper, zero=entry.zero)

    def weights(self, layer: str, choice: str) -> Float:
        """The weights that reach the upper ends of a layer's intervals at a choice.

        Parameters
        ----------
        layer, choice : str
            Their names.

        Returns
        -------
        ndarray of shape (channels, *weight.shape[1:])
            Of the layer's compared channels, in rising order.

        Raises
        ------
        UnknownNameError
            If there is no such layer or choice.
        InputError
            If the layer cannot have the choice, or has no bounds at it yet.

        Examples
        --------
        >>> run.weights("conv1", "INT3").shape
        (2, 1, 3, 3)
        """
        place = match_name(layer, [info.name for info in self.layers], "layer")
        kind = match_name(choice, [info.name for info in self.choices], "compression")
        entry = find_entry(self.entries, place, kind)
        if entry.refused is not None:
            raise InputError(f"layer {place!r} cannot have {kind}: {entry.refused}")
        rows = [row for members in entry.sets for row in members]
        return self.folder.weights(entry)[np.argsort(rows)]

    @property
    def budgets(self) -> list[float]:
        """Every half bit per weight between the smallest and the largest allocation that there is."""
        storage = [[e.storage for e in of_layer if e.refused is None] for of_layer in self.grid]
        weights = sum(layer.weights for layer in self.layers)
        if not all(storage) or weights == 0:
            return []
        least, most = (sum(map(end, storage)) / weights for end in (min, max))
        return [half / 2 for half in range(math.ceil(2 * least), math.ceil(2 * most))]

    def to_dict(self) -> dict[str, Any]:
        """What is known, ready for JSON: a record for each layer at each choice, and what is missing.

        Examples
        --------
        >>> sorted(run.to_dict())[:3]
        ['complete', 'failed', 'interrupted']
        """
        return {
            "layerbounds": self.about["layerbounds"],
            "run": {key: self.about[key] for key in ("choices", "options", "seed")},
            "complete": self.complete,
            "interrupted": self.interrupted,
            "left_out": self.left_out,
            "failed": [{"layer": layer, "problem": choice, "reason": why} for layer, choice, why in self.failed],
            "records": rows(self.entries),
        }

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the certified intervals of all layers, a bar for each compression.

        Parameters
        ----------
        path : path-like, optional
            A file for the picture that ends in .svg, .png or .pdf.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        MissingExtraError
            Without matplotlib.
        InputError
            If there are no bounds yet, or no picture can be written to the path.

        Examples
        --------
        >>> figure = run.plot("run.svg")
        """
        return picture(self, path)

    def _summary(self) -> Summary:
        able = [entry for entry in self.entries if entry.refused is None]
        sets = sum(len(entry.sets) for entry in able)
        proven = sum(int(np.count_nonzero(entry.closed)) for entry in able)
        count = len(self.layers)
        facts = [
            f"{count} layer{'' if count == 1 else 's'} at {', '.join(choice.name for choice in self.choices)}",
            f"{sum(entry.visited for entry in able)} of {len(able)} have first bounds",
            f"{proven} of {sets} intervals proven optimal",
        ]
        if self.interrupted:
            facts.append("interrupted")
        if self.failures:
            facts.append(f"{len(self.failures)} pieces of work failed: {self.failed[0][2]}")
        return Summary(str(self.folder.path), facts)

    def _tables(self) -> list[Table]:
        result: list[list[str | Bar | None]] = []
        for of_layer in self.grid:
            for place, entry in enumerate(of_layer):
                name = "" if place else entry.layer.name
                if entry.refused is not None:
                    result.append([name, entry.choice.name, "", "", None, "", f"refused: {entry.refused}"])
                    continue
                span = relative(entry)
                words = ends(span, 4, 2)
                hint = f"{entry.layer.name}, {entry.choice.name}: {words} %"
                bar = None if span is None or not entry.visited else Bar(*span, hint, _COLOUR.get(entry.family, METHOD))
                bits, best = f"{entry.bits_per_weight:.4g}", best_method(entry) or ""
                result.append([name, entry.choice.name, bits, words, bar, best, state_of(entry)])
        kinds: dict[str, Shape] = {"layer": "text", "compression": "text", "bits": "number"}
        kinds |= {"error, % of f(0)": "number", "certified interval": "bar", "best method": "text", "": "text"}
        return [Table(kinds, result, unit="%")]

    def to_frame(self) -> Any:
        """A table with a row for each layer at each choice; docs/report.md lists its columns.

        Returns
        -------
        pandas.DataFrame
            With the columns of ``report.csv``; what is undefined is missing, and an end that is not known yet infinite.

        Raises
        ------
        MissingExtraError
            Without pandas.

        Examples
        --------
        >>> run.to_frame().shape[0]
        2
        """
        kinds = {column.name: column.kind for column in columns(self.entries)}
        return data_frame(kinds, rows(self.entries))


_COLOUR = {"quantization": INTERVAL, "pruning": PRUNING, "joint": JOINT}


def load_run(out: str | os.PathLike[str]) -> NetworkRun:
    """Read what a run has found out so far, also while it goes on.

    Records that are damaged or foreign are left out: the rest is as certain without them.

    Parameters
    ----------
    out : path-like
        Its folder.

    Raises
    ------
    FileFormatError
        If there is no run, or its manifest is damaged.

    Warns
    -----
    UserWarning
        If records are left out; ``left_out`` says which.

    Examples
    --------
    >>> lb.load_run("run").to_dict()["interrupted"]
    False
    """
    folder = RunFolder(out)
    run = _read(folder, folder.read_manifest(), strict=False)
    if run.left_out:
        more = f" ({len(run.left_out) - 1} more)" if len(run.left_out) > 1 else ""
        warnings.warn(f"left out{more}: {run.left_out[0]}", stacklevel=2)
    return run


def open_run(folder: RunFolder, about: dict[str, Any] | None = None) -> NetworkRun:
    """Read a run in order to go on with it.

    Parameters
    ----------
    folder : RunFolder
    about : dict, optional
        The manifest that it will have.

    Raises
    ------
    FileFormatError
        If there is none, or one of another version, or anything in it is damaged or foreign.
    """
    about = folder.read_manifest() if about is None else about
    if about["layerbounds"] != __version__:
        raise FileFormatError(
            f"{folder.path} holds a run of layerbounds {about['layerbounds']}, and this is {__version__}; choose "
            "another folder, or go on with that version."
        )
    return _read(folder, about, strict=True)


def _read(folder: RunFolder, about: dict[str, Any], *, strict: bool) -> NetworkRun:
    folder.about = about
    run = NetworkRun(folder, about, from_manifest(about["layers"], about["choices"]))
    left_out: list[FileFormatError] = []
    for entry in run.entries:
        for chunk in range(len(entry.chunks)):
            try:
                folder.take(entry, chunk)
            except FileFormatError as error:
                left_out.append(error)
    try:
        run.failures = read_failures(folder.path, run.grid)
    except FileFormatError as error:
        left_out.append(error)
    for path in folder.strange(run.entries):
        left_out.append(FileFormatError(f"{path} is no record of this run; move it away, or give it its name again."))
    if strict and left_out:
        raise left_out[0]
    run.left_out = [str(error) for error in left_out]
    return run
