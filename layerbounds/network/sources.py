"""Where a run gets its layers from, one at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from layerbounds.demo import demo_layers
from layerbounds.exceptions import InputError
from layerbounds.layers.files import named_layers, save_layers, sync
from layerbounds.layers.layer import Layer
from layerbounds.layers.layer_file import LayerFile
from layerbounds.network.entries import LayerInfo
from layerbounds.network.folder import RunFolder
from layerbounds.network.survey import layer_digest


class Source:
    """The layers of a run.

    Parameters
    ----------
    layers : mapping of name to Layer
        Each is read when it is asked for.
    path : Path or None
        The file that they are in.
    kind : {"file", "demo", "memory"}
    """

    def __init__(self, layers: Mapping[str, Layer], path: Path | None, kind: str) -> None:
        self._layers, self.path, self.kind = layers, path, kind
        self.names = list(layers)

    def layer(self, number: int) -> Layer:
        """A layer."""
        return self._layers[self.names[number]]

    def about(self) -> dict[str, Any]:
        """For the manifest."""
        path = None if self.path is None or self.kind != "file" else str(self.path.resolve())
        return {"kind": self.kind, "path": path}

    def check(self, expected: Sequence[LayerInfo]) -> None:
        """Make sure that these are the layers of a run.

        Raises
        ------
        InputError
            If a name or an array is another.
        """
        if self.names != [info.name for info in expected]:
            raise InputError(f"the run is about {len(expected)} other layers; pass those.")
        for number, info in enumerate(expected):
            if layer_digest(self.layer(number)) != info.digest:
                raise InputError(f"layer {info.name!r} is not the one that the run is about; pass that one.")

    def keep(self, *, repair: bool) -> None:
        """Write layers from memory into the run's folder, from where workers and later commands read them.

        Parameters
        ----------
        repair : bool
            Whether a file that is there and holds something else is replaced: the manifest says what it has to hold.

        Raises
        ------
        InputError
            If it cannot be written, or holds something else.
        """
        if self.kind == "file" or self.path is None or self._kept(self.path):
            return
        if self.path.exists() and not repair:
            raise InputError(f"{self.path} holds other layers than those of this run; choose another folder.")
        save_layers(self.path, self._layers)
        sync(self.path)

    def _kept(self, path: Path) -> bool:
        """Whether a file holds the layers."""
        if not path.exists():
            return False
        try:
            kept = LayerFile(path)
            return list(kept) == self.names and all(
                layer_digest(kept[n]) == layer_digest(self._layers[n]) for n in kept
            )
        except InputError:
            return False


def as_source(layers: Any, folder: RunFolder) -> Source:
    """The layers that a user passes: a file, layers in memory, or None for the demo network.

    Raises
    ------
    InputError
        If they are something else, or there are none.
    """
    if layers is None:
        return Source(demo_layers(), folder.layers, "demo")
    if isinstance(layers, (str, os.PathLike)):
        return Source(LayerFile(layers), Path(layers), "file")
    if isinstance(layers, Layer):
        layers = [layers]
    named = named_layers(layers)
    if not named:
        raise InputError("there are no layers; pass a layer file or at least one layer.")
    return Source(named, folder.layers, "memory")


def source_of(about: Mapping[str, Any], folder: RunFolder, layers: Any = None) -> Source:
    """The source that a manifest names, or the layers passed instead.

    Raises
    ------
    InputError
        If it is no longer there.
    """
    if layers is not None:
        return as_source(layers, folder)
    if about["kind"] == "file":
        if not Path(about["path"]).is_file():
            raise InputError(f"the layer file of the run, {about['path']}, is not there; pass it as input.")
        return as_source(about["path"], folder)
    return Source(LayerFile(folder.layers), folder.layers, about["kind"])
