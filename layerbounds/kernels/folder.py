"""Where compiled kernels are kept: a folder named after what they were compiled from.

numba knows a compiled function by its own file and would go on using it after a function that it calls, in another
file, was edited. In a folder of its own for each state of all kernel sources nothing is ever out of date.
"""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from numba import config
from numba.misc.appdirs import AppDirs

#: Start of the names of all such folders.
PREFIX = "layerbounds-kernels-"


def source_hash(package: Path) -> str:
    """Hash of the names and contents of all source files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def candidates(package: Path) -> Iterator[tuple[Path, str]]:
    """Folders that may hold the kernels' folder, and the start of its name there; the best ones first.

    They are the one that the user gave numba, the package's own, and the user's cache directory. Where several
    installations share a folder, the start of the name tells them apart.
    """
    installed = f"{PREFIX}{hashlib.sha256(str(package).encode()).hexdigest()[:8]}-"
    chosen = getattr(config, "CACHE_DIR", "")
    if chosen:
        yield Path(chosen), installed
    else:
        yield package / "__pycache__", PREFIX
        yield Path(AppDirs(appname="layerbounds", appauthor=False).user_cache_dir), installed


def kernel_folder(package: Path) -> Path:
    """The folder of the kernels' present sources, which exists and is writable.

    Where it is new, those of earlier sources beside it are removed. Where no place is writable, it is a temporary one
    that lives as long as the process.
    """
    name = source_hash(package)
    for parent, start in candidates(package):
        folder = parent / (start + name)
        new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            continue
        if new:
            for other in parent.glob(start + "*"):
                # Another process may remove it at the same time, or write into it again.
                if other != folder:
                    shutil.rmtree(other, ignore_errors=True)
        return folder
    # One that others can foresee could hold their code.
    temporary = Path(tempfile.mkdtemp(prefix=PREFIX))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary
