"""Where compiled kernels are kept, and that nothing out of date is ever used (docs/kernels.md)."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matrices import from_python

from layerbounds.kernels import compilation, linear_algebra
from layerbounds.kernels.folder import PREFIX, kernel_folder, source_hash
from layerbounds.proofs import Control

PACKAGE = Path(compilation.__file__).parent

CALLEE = """
from layerbounds.kernels.compilation import kernel


@kernel()
def callee(x):
    return x + 1
"""
CALLER = """
from layerbounds.kernels.callee import callee
from layerbounds.kernels.compilation import kernel


@kernel()
def caller(x):
    return 10 * callee(x)
"""
OTHER = """
from numba import njit


@njit(cache=True)
def other(x):
    return x - 1
"""


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A package of the same name with two small kernels, and a foreign module beside it."""
    kernels = tmp_path / "layerbounds" / "kernels"
    kernels.mkdir(parents=True)
    (tmp_path / "layerbounds" / "__init__.py").touch()
    for name in ("__init__.py", "compilation.py", "folder.py"):
        shutil.copy(PACKAGE / name, kernels)
    (kernels / "callee.py").write_text(CALLEE)
    (kernels / "caller.py").write_text(CALLER)
    (tmp_path / "foreign.py").write_text(OTHER)
    return kernels


def run(package: Path, code: str, **environment: str) -> str:
    """What a program prints that finds the copied package."""
    root = package.parent.parent
    clean = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "PYTHONPATH": str(root), "HOME": str(root), "XDG_CACHE_HOME": str(root / "user"), **environment},
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    return found.stdout.strip()


CALL = "from layerbounds.kernels.caller import caller; from layerbounds.kernels.compilation import CLOCK; "
CALL += "print(caller(1), CLOCK.compiled)"


def folders(parent: Path) -> list[Path]:
    return sorted(parent.glob(PREFIX + "*"))


@pytest.mark.slow
def test_an_edited_callee_changes_its_caller(copied: Path) -> None:
    assert run(copied, CALL) == "20 2"
    (first,) = folders(copied / "__pycache__")
    assert run(copied, CALL) == "20 0"
    (copied / "callee.py").write_text(CALLEE.replace("x + 1", "x + 2"))
    assert run(copied, CALL) == "30 2"
    # The folder of the earlier sources is gone.
    (second,) = folders(copied / "__pycache__")
    assert second != first


@pytest.mark.slow
def test_a_folder_that_the_user_chose_is_used(copied: Path, tmp_path: Path) -> None:
    chosen = tmp_path / "chosen"
    assert run(copied, CALL, NUMBA_CACHE_DIR=str(chosen)) == "20 2"
    (folder,) = folders(chosen)
    assert any(folder.glob("caller.caller.*.nbi"))
    assert run(copied, CALL, NUMBA_CACHE_DIR=str(chosen)) == "20 0"
    assert not folders(copied / "__pycache__")
    # Folders of another installation stay.
    another = chosen / (PREFIX + "00000000-0000000000000000")
    another.mkdir()
    (copied / "callee.py").write_text(CALLEE.replace("x + 1", "x + 2"))
    assert run(copied, CALL, NUMBA_CACHE_DIR=str(chosen)) == "30 2"
    assert another in folders(chosen)
    assert len(folders(chosen)) == 2


def test_a_package_that_cannot_be_written_to_uses_the_users_folder(copied: Path, tmp_path: Path) -> None:
    # A file in the folder's place stops even a user who may write everywhere.
    (copied / "__pycache__").write_text("")
    assert run(copied, CALL, XDG_CACHE_HOME=str(tmp_path / "user"), PYTHONDONTWRITEBYTECODE="1") == "20 2"
    assert run(copied, CALL, XDG_CACHE_HOME=str(tmp_path / "user"), PYTHONDONTWRITEBYTECODE="1") == "20 0"
    found = list(tmp_path.rglob("caller.caller.*.nbi"))
    assert len(found) == 1
    assert copied not in found[0].parents


def test_without_any_place_a_temporary_folder_lives_as_long_as_the_process(copied: Path, tmp_path: Path) -> None:
    (copied / "__pycache__").write_text("")
    blocked, temporary = tmp_path / "blocked", tmp_path / "temporary"
    blocked.write_text("")
    temporary.mkdir()
    code = f"import tempfile; tempfile.tempdir = {str(temporary)!r}; {CALL}"
    code += "; from layerbounds.kernels.compilation import FOLDER; print(FOLDER.parent)"
    out = run(copied, code, HOME=str(blocked), XDG_CACHE_HOME=str(blocked), PYTHONDONTWRITEBYTECODE="1")
    if sys.platform == "linux":
        assert out.split() == ["20", "2", str(temporary)]
    assert not list(temporary.iterdir())


def test_what_cannot_be_kept_or_read_is_compiled_again(copied: Path) -> None:
    assert run(copied, CALL) == "20 2"
    (folder,) = folders(copied / "__pycache__")
    for path in folder.glob("*.nbc"):
        path.write_bytes(path.read_bytes()[:100])
    assert run(copied, CALL) == "20 2"
    gone = CALL.replace("print", f"import shutil; shutil.rmtree({str(folder)!r}); open({str(folder)!r}, 'w'); print")
    assert run(copied, gone) == "20 2"


def test_other_packages_keep_their_own_caches(copied: Path, tmp_path: Path) -> None:
    assert run(copied, CALL + "; from foreign import other; print(other(1))") == "20 2\n0"
    (folder,) = folders(copied / "__pycache__")
    assert not any("foreign" in path.name for path in folder.iterdir())
    assert any((tmp_path / "__pycache__").glob("foreign.other*.nbi"))


@pytest.mark.slow
def test_two_processes_may_make_the_folder_at_once(copied: Path) -> None:
    for text in ("x + 3", "x + 4"):
        (copied / "callee.py").write_text(CALLEE.replace("x + 1", text))
        (copied / "__pycache__" / (PREFIX + "0000000000000000")).mkdir(parents=True, exist_ok=True)
        both = [
            subprocess.Popen(
                [sys.executable, "-c", CALL],
                env={**os.environ, "PYTHONPATH": str(copied.parent.parent)},
                cwd=copied.parent.parent,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        expected = str(10 * (1 + int(text[-1])))
        assert [process.communicate()[0].split()[0] for process in both] == [expected, expected]


def test_the_hash_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1")
    hashes = [source_hash(tmp_path)]
    (tmp_path / "a.py").write_text("x = 2")
    hashes.append(source_hash(tmp_path))
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    hashes.append(source_hash(tmp_path))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.py").touch()
    hashes.append(source_hash(tmp_path))
    assert len(set(hashes)) == 4
    (tmp_path / "notes.txt").write_text("")
    assert source_hash(tmp_path) == hashes[-1]


def test_the_folder_stays_while_the_sources_do() -> None:
    assert kernel_folder(PACKAGE) == compilation.FOLDER
    assert compilation.FOLDER.is_dir()


def test_kernels_depend_on_nothing_outside_their_folder() -> None:
    # What they call and the constants that are compiled into them have to be in the hash.
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        # The types of arrays, in files where nothing is compiled.
        allowed = ("layerbounds.kernels",) if "@kernel(" in text else ("layerbounds.kernels", "layerbounds.arrays")
        for node in ast.walk(ast.parse(text)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                assert not module.startswith("layerbounds") or module.startswith(allowed), path


def test_no_file_or_function_of_kernels_is_too_long_to_be_read() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 700, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 120, f"{path}: {node.name}"


def test_every_kernel_is_kept_in_the_folder() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.name not in ("compilation.py", "__init__.py"):
            assert "njit" not in path.read_text(), f"{path.name} has to use `kernel`."


def test_the_clock_stands_still_while_kernels_are_compiled() -> None:
    control = Control(10.0, 0.0, None, 0, 1, None)  # type: ignore[arg-type]
    begin = time.perf_counter()

    @compilation.kernel()
    def slow(x):  # type: ignore[no-untyped-def]
        return np.sqrt(x) + 1.0

    slow._cache.disable()
    count = compilation.CLOCK.compiled
    assert slow(4.0) == 3.0
    wall = time.perf_counter() - begin
    assert compilation.CLOCK.compiled == count + 1
    assert control.elapsed() < 0.8 * wall
    # And it goes on when that has failed.
    with pytest.raises(Exception, match="sqrt"):
        slow("four")
    begin, before = time.perf_counter(), control.elapsed()
    time.sleep(0.05)
    assert control.elapsed() - before == pytest.approx(time.perf_counter() - begin, abs=0.04)


def test_long_compilation_is_told_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = compilation.Clock()
    monkeypatch.setattr(compilation, "PATIENCE", 0.0)

    compilation_of = SimpleNamespace(data={"dispatcher": linear_algebra.copy})
    for _ in range(2):
        clock.on_start(compilation_of)
        clock.on_end(compilation_of)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "layerbounds: compiling kernels, once\n")
    seen: list[int | None] = []
    clock.report = seen.append
    clock.on_start(compilation_of)
    clock.on_start(compilation_of)
    clock.on_end(compilation_of)
    clock.on_end(compilation_of)
    assert seen == [3, 4, None]
    assert capsys.readouterr().err == ""
    assert clock.depth == 0


def test_a_sorted_selection_and_a_copy(rng: np.random.Generator) -> None:
    for count in (0, 1, 2, 3, 13, 40, 41, 200):
        values = rng.integers(0, 30, count).astype(float)
        ordered, target = values.copy(), np.zeros(count)
        linear_algebra.sort(ordered)
        np.testing.assert_array_equal(ordered, np.sort(values))
        linear_algebra.copy(values, target)
        np.testing.assert_array_equal(target, values)
        if count:
            assert linear_algebra.largest(values, count) == np.argmax(values)
            place = count // 3
            linear_algebra.select(target, count, place)
            assert target[place] == ordered[place]
            assert target[:place].max(initial=-1.0) <= target[place] <= target[place:].min()


def test_the_solution_of_a_small_system(rng: np.random.Generator) -> None:
    for count in (1, 2, 5, 16):
        a, b = rng.normal(size=(count, count)), rng.normal(size=(count, 3))
        a[0, 0] = 0.0 if count > 1 else 1.0
        x = b.copy()
        from_python(linear_algebra.solve_system)(a.copy(), x)
        np.testing.assert_allclose(a @ x, b, atol=1e-10)


def test_a_kernel_for_other_kernels_is_compiled_once_and_not_for_python() -> None:
    @compilation.kernel(nested=True)
    def inner(x, factor):  # type: ignore[no-untyped-def]
        return x * factor

    @compilation.kernel()
    def outer(x):  # type: ignore[no-untyped-def]
        # Type inference sees the first value alone before it sees the others.
        factor = 0
        total = inner(x, 7)
        while factor < 3:
            factor += 1
            total += inner(x, factor)
        return total

    for each in (inner, outer):
        each._cache.disable()
    assert outer(2) == 2 * (7 + 1 + 2 + 3)
    assert len(inner.overloads) == 1
    with pytest.raises(TypeError, match="called by other kernels only"):
        inner(2, 3)
