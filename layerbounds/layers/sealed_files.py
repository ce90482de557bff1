"""Safetensors files with a schema, a text about their tensors, and a SHA-256 of it all that shows damage."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.exceptions import FileFormatError
from layerbounds.layers.files import write_tensors
from layerbounds.layers.tensor_files import open_tensors

#: The metadata entry with the SHA-256.
DIGEST_KEY = "sha256"


@dataclass(frozen=True)
class SealedFormat:
    """A kind of sealed file.

    Attributes
    ----------
    noun : str
        What such a file holds.
    key : str
        The metadata entry with everything but the tensors, a JSON object.
    newest : int
        The newest schema that is read.
    writer : str
        The function that writes such files, for messages.
    """

    noun: str
    key: str
    newest: int
    writer: str

    @property
    def schema_key(self) -> str:
        """The metadata entry with the schema."""
        return f"layerbounds.{self.key}"

    def write(
        self, path: str | os.PathLike[str], tensors: Mapping[str, NDArray[Any]], about: Mapping[str, Any], schema: int
    ) -> None:
        """Write a file; readers see either all of it or the old one."""
        text = json.dumps(about)
        sealed = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        seal = {self.schema_key: str(schema), self.key: text, DIGEST_KEY: digest(sealed, text)}
        write_tensors(path, sealed, seal)

    def read(self, path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Tensors and JSON object of a file, after a look at its schema and its SHA-256.

        Raises
        ------
        FileFormatError
            If it is no file of this kind, of a newer version, or damaged.
        """
        with open_tensors(path) as file:
            version = file.metadata.get(self.schema_key)
            if version is None:
                raise FileFormatError(f"{path} holds no {self.noun}; pass a file that {self.writer} has written.")
            if version not in map(str, range(1, self.newest + 1)):
                raise FileFormatError(
                    f"{path} has {self.noun} schema {version}, this version reads up to {self.newest}; upgrade "
                    "layerbounds."
                )
            tensors = {name: file.read(name) for name in file.names}
            text = file.metadata.get(self.key, "")
            if digest(tensors, text) != file.metadata.get(DIGEST_KEY):
                raise FileFormatError(f"{path} is damaged: its SHA-256 is not the one that it names; write it again.")
        about: dict[str, Any] = json.loads(text)
        return tensors, about


def digest(tensors: Mapping[str, NDArray[Any]], text: str) -> str:
    """SHA-256 of a text and of tensors: name, type, shape and little-endian values of each, sorted by name."""
    whole = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        whole.update(f"\n{name} {array.dtype.name} {list(array.shape)}\n".encode())
        if array.nbytes:
            whole.update(array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data)
    return whole.hexdigest()
