"""Functions and objects that the command line names: importable without PyTorch."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from layerbounds.exceptions import InputError


def load_object(spec: str, what: str) -> Any:
    """Import what ``module:name`` or ``folder/file.py:name`` denotes.

    Raises
    ------
    InputError
        If there is no such module, file or name, or importing it fails.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise InputError(f"{what} is {spec!r}; write module:name or folder/file.py:name.")
    # The console script, unlike `python -m`, does not look into the current folder.
    sys.path.insert(0, "")
    try:
        module = _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{what}: importing {place} failed ({type(error).__name__}: {error}); correct it.") from error
    finally:
        sys.path.remove("")
    if not hasattr(module, name):
        raise InputError(f"{what}: {place} has no {name!r}; name a function or an object in it.")
    return getattr(module, name)


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up there.
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module
