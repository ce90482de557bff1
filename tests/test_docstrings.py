"""Every public name, and every public method of a public class, has an example in its docstring, and it is true."""

from __future__ import annotations

import doctest
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import layerbounds as lb

OURS = ("layerbounds", "layerbounds_verify")


def public_objects() -> Iterator[tuple[str, Any]]:
    """The names of the package and of its public modules, each with what is called so; texts are none."""
    for name in lb.__all__:
        value = getattr(lb, name)
        if isinstance(value, ModuleType):
            yield from ((f"{name}.{inner}", getattr(value, inner)) for inner in value.__all__)
        elif callable(value):
            yield name, value


def methods(owner: type) -> Iterator[tuple[str, list[Any]]]:
    """The public methods of a class that the package defines: their name, and what the classes it is made of say."""
    for name in dir(owner):
        found = [vars(base)[name] for base in owner.__mro__ if name in vars(base)]
        found = [f.__func__ if isinstance(f, (classmethod, staticmethod)) else f for f in found]
        if not name.startswith("_") and inspect.isfunction(found[0]) and found[0].__module__.startswith(OURS):
            yield name, found


def documented() -> dict[str, list[Any]]:
    """Each public name with the objects one of whose docstrings must have an example."""
    table: dict[str, list[Any]] = {}
    for name, value in public_objects():
        table[name] = [value]
        if inspect.isclass(value):
            table |= {f"{name}.{method}": found for method, found in methods(value)}
    return table


def has_example(value: Any) -> bool:
    return bool(doctest.DocTestParser().get_examples(value.__doc__ or ""))


def examples() -> dict[str, Any]:
    """The objects that have an example, by the name under which they were written."""
    found = [value for values in documented().values() for value in values if has_example(value)]
    return {f"{value.__module__}.{value.__qualname__}": value for value in found}


def run_examples(text: str, name: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run them one after the other; the first that is not true fails, and one whose extra is missing skips.

    Returns the names that there are then.
    """
    test = doctest.DocTestParser().get_doctest(text, names, name, None, 0)
    try:
        doctest.DebugRunner(optionflags=doctest.FAIL_FAST, verbose=False).run(test, clear_globs=False)
    except doctest.UnexpectedException as failure:
        error = failure.exc_info[1]
        if isinstance(error, ImportError):
            pytest.skip(str(error))
        raise AssertionError(f"{name}: {failure.example.source.strip()}") from error
    except doctest.DocTestFailure as failure:
        pytest.fail(f"{name}: {failure.example.source}gives {failure.got}instead of {failure.example.want}")
    return test.globs


@pytest.fixture(scope="module")
def beginning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the package's own docstring defines; the folder of its files is the working one."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("examples"))
    yield run_examples(lb.__doc__ or "", "layerbounds", {})
    os.chdir(before)


def test_every_public_name_has_an_example() -> None:
    missing = [name for name, values in documented().items() if not any(map(has_example, values))]
    assert missing == []


@pytest.mark.parametrize("name", examples())
def test_example(name: str, beginning: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    # Compilation is announced in the middle of what an example prints.
    run_examples(examples()[name].__doc__, name, beginning)
    capsys.readouterr()
