"""The folder of a run: its manifest, its records, and the lock that keeps a second process out (docs/run-folder.md)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from layerbounds.arguments import as_path
from layerbounds.arrays import Float
from layerbounds.certify.solution_file import read_sealed
from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.layers.files import atomic_path, sync
from layerbounds.names import file_part
from layerbounds.network.entries import Entry
from layerbounds.network.failures import FAILURES
from layerbounds.network.lock import FolderLock, hold
from layerbounds.network.manifest import FULL, read_manifest, write_manifest
from layerbounds.network.records import foreign, read_record

MANIFEST, LOCK, RECORDS = "run.json", "lock", "records"
#: The file with layers that came from memory.
LAYERS = "layers.safetensors"
#: Endings of records, and of what a killed process was writing.
RECORD, PART = ".safetensors", ".part"
#: Seconds after which nobody is still writing a report.
ABANDONED = 3600.0
#: What to do about a record that cannot be used.
_HINT = "delete it and repeat the command of the run: only its own work is done again"


class RunFolder:
    """Where a run keeps everything.

    Parameters
    ----------
    path : path-like
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = as_path(path, "out")
        self._lock: FolderLock | None = None
        #: The manifest, once it was read or written.
        self.about: Mapping[str, Any] = {}

    @property
    def manifest(self) -> Path:
        """The file that says what the run is."""
        return self.path / MANIFEST

    @property
    def layers(self) -> Path:
        """The file with layers that came from memory."""
        return self.path / LAYERS

    def create(self) -> None:
        """Make the folder, if only its last part is missing.

        Raises
        ------
        InputError
        """
        for folder in (self.path, self.path / RECORDS):
            try:
                folder.mkdir(exist_ok=True)
                sync(folder.parent)
            except OSError as error:
                raise InputError(
                    f"cannot create the folder {folder} ({error.strerror}); choose another one."
                ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out while the block runs; what a killed one was writing is removed.

        Raises
        ------
        InputError
            If another process works in the folder.
        """
        with hold(self.path / LOCK) as lock:
            self._lock = lock
            try:
                self._remove_parts()
                yield
            finally:
                self._lock = None

    def _remove_parts(self) -> None:
        """Remove files that were never finished."""
        # Only the holder of the lock writes under these names.
        parts = [part for name in (MANIFEST, LAYERS, FAILURES) for part in self.path.glob(f"{name}*{PART}")]
        parts += (self.path / RECORDS).glob(f"*{RECORD}*{PART}")
        begun = time.time() - ABANDONED
        # One may be finished between two looks.
        with suppress(FileNotFoundError):
            # A report is written without the lock, too, and in a moment.
            parts += [part for part in self.path.glob(f"report.*{PART}") if part.stat().st_mtime < begun]
        for part in parts:
            try:
                part.unlink(missing_ok=True)
            except OSError as error:
                raise InputError(f"cannot remove {part} ({error.strerror}); choose another folder.") from error

    def record(self, entry: Entry, chunk: int) -> Path:
        """The file of a chunk."""
        safe = file_part(entry.layer.name, 60)
        # Names that differ in odd letters, or only in their case, are told apart by the layer's number.
        name = f"{entry.number[0]:04d}-{safe}-{entry.fingerprint[:16]}-{entry.chunks[chunk][0]}{RECORD}"
        return self.path / RECORDS / name

    def put(self, entry: Entry, chunk: int, record: bytes) -> None:
        """Write a record; it is on the disk for good before the entry knows of it.

        Raises
        ------
        InputError
            If it cannot be written, or is none of the chunk: what was there stays.
        """
        if self._lock is not None:
            self._lock.check()
        path = self.record(entry, chunk)
        try:
            with atomic_path(path, durable=True, advice=FULL) as temporary:
                temporary.write_bytes(record)
                found = self._read(temporary, entry, chunk)
        except FileFormatError as error:
            raise InputError(
                f"what came back for layer {entry.layer.name!r}, {entry.choice.name}, is not kept ({error}): was the "
                "layer file changed? Repeat the command."
            ) from error
        entry.absorb(found, entry.chunks[chunk][0])

    def take(self, entry: Entry, chunk: int) -> bool:
        """Let an entry know what the record of a chunk says; False where there is none.

        Raises
        ------
        FileFormatError
            If the record is damaged, or of other problems or another version.
        """
        path = self.record(entry, chunk)
        if not path.exists():
            return False
        try:
            entry.absorb(self._read(path, entry, chunk), entry.chunks[chunk][0])
        except FileFormatError as error:
            raise FileFormatError(f"{path} is no record of this run ({error}); {_HINT}.") from error
        return True

    def content(self, entry: Entry, chunk: int) -> bytes | None:
        """The record of a chunk as it was written; None where there is none.

        Raises
        ------
        FileFormatError
            If the record is damaged, or of other problems or another version.
        """
        path = self.record(entry, chunk)
        return path.read_bytes() if self.take(entry, chunk) else None

    def weights(self, entry: Entry) -> Float:
        """The weights that reach the upper ends of an entry, shape (channels, …), in the order of its sets.

        Raises
        ------
        FileFormatError
            If a record is missing or damaged.
        """
        parts = []
        for chunk in range(len(entry.chunks)):
            path = self.record(entry, chunk)
            if not path.exists():
                raise FileFormatError(f"{path} is not there: layer {entry.layer.name!r} has no bounds yet.")
            self._read(path, entry, chunk)
            parts.append(read_sealed(path)[0]["solution.weights"])
        return np.concatenate(parts)

    def strange(self, entries: Sequence[Entry]) -> list[Path]:
        """Files among the records that are none of these entries."""
        own = {self.record(entry, chunk) for entry in entries for chunk in range(len(entry.chunks))}
        # The Finder and others leave files whose names begin with a dot.
        found = (self.path / RECORDS).glob(f"[!.]*{RECORD}")
        return sorted(path for path in found if path not in own)

    def _read(self, path: Path, entry: Entry, chunk: int) -> dict[str, Any]:
        record = read_record(path)
        reason = foreign(record, entry, chunk, self.about)
        if reason is not None:
            raise FileFormatError(reason)
        return record

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Say what the run is.

        Raises
        ------
        InputError
            If it cannot be written: what was there stays.
        """
        write_manifest(self.manifest, manifest)
        self.about = manifest

    def read_manifest(self) -> dict[str, Any]:
        """What the run is.

        Raises
        ------
        FileFormatError
            If there is none, or one that is damaged or of another schema.
        """
        self.about = about = read_manifest(self.manifest)
        return about
