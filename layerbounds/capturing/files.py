"""From a capture straight to a layer file, without all layers in memory at once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from layerbounds.arguments import as_path
from layerbounds.exceptions import InputError
from layerbounds.layers.files import StoredGrams, file_metadata, layer_info, layer_tensors, write_tensors
from layerbounds.layers.layer import Layer
from layerbounds.report.describe import describe_layer


class Report(Protocol):
    """What is known when a capture is over."""

    @property
    def order(self) -> tuple[str, ...]:
        """Layers in the order of execution."""
        ...


R = TypeVar("R", bound=Report, covariant=True)


class Run(Protocol[R]):
    """A capture that can be begun."""

    @property
    def report(self) -> R:
        """What happened beside the layers."""
        ...

    def layers(self) -> Iterator[Layer]:
        """Capture."""
        ...


def write_capture(path: str | os.PathLike[str], capture_run: Run[R]) -> tuple[R, list[dict[str, Any]]]:
    """Run a capture and write its layers to a file.

    Each finished layer waits in a temporary folder beside the file; the file itself appears when it is complete.

    Returns
    -------
    report
        Of the capture.
    rows : list of dict
        `describe_layer` of each layer, in the order of execution.
    """
    target = as_path(path, "path").resolve()
    if not target.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {target.parent} does not exist; create it first.")
    info: dict[str, Any] = {}
    rows: dict[str, dict[str, Any]] = {}
    files: dict[str, Path] = {}
    stored = StoredGrams()
    with ExitStack() as stack:
        with _writing(path):
            part = tempfile.TemporaryDirectory(prefix=target.name, suffix=".part", dir=target.parent)
            folder = stack.enter_context(part)
        # Not within: what the user's batches raise is no fault of the file.
        for layer in capture_run.layers():
            shared = stored.find(layer, layer.name)
            info[layer.name] = layer_info(layer, shared)
            rows[layer.name] = describe_layer(layer, None if shared is None else shared.removesuffix(".gram"))
            for key, value in layer_tensors(layer, layer.name, shared).items():
                files[key] = Path(folder) / f"{len(files)}.npy"
                with _writing(path):
                    np.save(files[key], value)
        order = [name for name in capture_run.report.order if name in info]
        tensors: dict[str, NDArray[Any]] = {key: np.load(file, mmap_mode="r") for key, file in files.items()}
        write_tensors(target, tensors, file_metadata({name: info[name] for name in order}))
        del tensors
    return capture_run.report, [rows[name] for name in order]


@contextmanager
def _writing(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {os.fspath(path)} ({error.strerror or error}); free space or choose another place."
        ) from error
