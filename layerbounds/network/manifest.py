"""The manifest of a run: what it is about, as one sealed JSON file (schema: docs/run-folder.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerbounds.exceptions import FileFormatError, first_line
from layerbounds.layers.files import atomic_path

SCHEMA_VERSION = 1
#: What to do where a file of a run cannot be written.
FULL = "free space and repeat the command: what is finished is kept"
#: The entry with the SHA-256 of all others.
SEAL = "sha256"


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest; it is on the disk for good when this returns.

    Raises
    ------
    InputError
        If it cannot be written: what was there stays.
    """
    # As it will be read: JSON has texts for keys, and no tuples.
    said = json.loads(json.dumps(manifest, allow_nan=False))
    with atomic_path(path, durable=True, advice=FULL) as temporary:
        temporary.write_text(json.dumps({**said, SEAL: _seal(said)}, indent=1), encoding="utf-8")


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest.

    Raises
    ------
    FileFormatError
        If there is none, or one that is damaged, was edited, or is of another schema.
    """
    hint = "delete it and repeat the command of the run: its records stay"
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        seal, version = manifest.pop(SEAL), manifest["schema"]
        whole = seal == _seal(manifest)
    except FileNotFoundError:
        raise FileFormatError(
            f"{path.parent} holds no run; pass the folder that `layerbounds run --out` wrote."
        ) from None
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"{path} is damaged ({first_line(error)}); {hint}.") from error
    if not whole:
        raise FileFormatError(f"{path} is damaged or was edited: its SHA-256 is not the one that it names; {hint}.")
    if version != SCHEMA_VERSION:
        raise FileFormatError(
            f"{path} has schema {version}, this version reads {SCHEMA_VERSION}; choose another folder, or the version "
            "of layerbounds that wrote it."
        )
    return manifest


def _seal(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest says, however it is laid out."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
