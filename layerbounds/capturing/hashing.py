"""Which files a capture was made of."""

from __future__ import annotations

import hashlib
from pathlib import Path

from layerbounds.layers.tensor_files import INDEX_SUFFIX


def file_hash(path: Path) -> str:
    """SHA-256 of a file, or of all safetensors and JSON files of a folder, which may be named by an index in it."""
    if path.name.endswith(INDEX_SUFFIX):
        path = path.parent
    digest = hashlib.sha256()
    files = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".json")) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()
