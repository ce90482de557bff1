"""Where a command writes: checked before the work whose result goes there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from pathlib import Path

from layerbounds.exceptions import InputError, LayerboundsError
from layerbounds.layers.tensor_files import shards
from layerbounds.report.figures import check_plot
from layerbounds.report.files import STDOUT, check_output

#: What ``--out DIR`` of `versus` gets.
FOLDER_FILES = ("versus.json", "versus.md", "versus.svg")
_JSON, _PICTURES = "--json", ("--plot", "--trace-plot")

Paths = Mapping[str, str | os.PathLike[str] | None]


def check_outputs(outputs: Paths, inputs: Paths, folder: Path | None = None, *, folders: Paths | None = None) -> None:
    """Make sure that everything a command was asked to write has a place of its own that can be written.

    Parameters
    ----------
    outputs, inputs : mapping of option to path
        None and ``-`` (standard output) are no files. Inputs may be directories.
    folder : Path, optional
        That of ``--out DIR``; it is made here.
    folders : mapping of option to path, optional
        Folders that the command makes itself.

    Raises
    ------
    InputError
        If two outputs are one file, an output is an input or would replace a file of an input directory or a shard of
        an input index, something else than JSON is to be printed, a path cannot be written, or a picture has an unknown
        suffix.
    """
    written = _given(outputs)
    for option, path in written.items():
        if os.fspath(path) == STDOUT:
            raise InputError(f"{option} cannot go to standard output, only {_JSON} can; name a file.")
    places = {**written, **_given(folders or {})}
    if folder is not None:
        places["--out"] = folder
        places |= {f"{name} of --out": folder / name for name in FOLDER_FILES}
    for (one, first), (other, second) in combinations(places.items(), 2):
        if _same(first, second):
            raise InputError(f"{one} and {other} are the same file, {first}; choose another name for one of them.")
    for out, path in places.items():
        for option, source in _given(inputs).items():
            inside = source.is_dir() and path.is_file() and _within(path, source)
            if inside or any(_same(path, file) for file in (source, *shards(source))):
                raise InputError(f"{out} would replace {path}, which {option} reads; choose another name.")
    if folder is not None:
        _make_folder(folder)
        check_plot(folder / FOLDER_FILES[-1])
    for option, path in written.items():
        check_output(path, special=option == _JSON)
        if option in _PICTURES:
            check_plot(path)


def deliver(steps: Iterable[Callable[[], None]]) -> None:
    """Write and print results; one that cannot be written does not take the others with it.

    Raises
    ------
    LayerboundsError
        The first error, after all steps were tried.
    """
    failure: LayerboundsError | None = None
    for step in steps:
        try:
            step()
        except LayerboundsError as error:
            failure = failure or error
    if failure is not None:
        raise failure


def _given(paths: Paths) -> dict[str, Path]:
    return {
        option: Path(path)
        for option, path in paths.items()
        if path is not None and not (option == _JSON and os.fspath(path) == STDOUT)
    }


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one regular file or folder, links followed; a device takes any number of outputs."""
    try:
        if one.exists() and other.exists():
            return one.samefile(other) and (one.is_file() or one.is_dir())
        return one.resolve() == other.resolve()
    except (OSError, RuntimeError):
        # A loop of links, say: opening it says what is wrong.
        return False


def _within(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create the folder {folder} ({error.strerror}); choose another one.") from error
    check_output(folder / FOLDER_FILES[0])
