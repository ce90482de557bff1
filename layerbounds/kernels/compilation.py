"""How kernels are compiled and kept: a decorator, and a clock of the time that it takes (docs/kernels.md)."""

from __future__ import annotations

import contextlib
import gc
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from numba.core import config, event, types
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.core.compiler import Flags
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import CPUDispatcher

from layerbounds.kernels.folder import kernel_folder

PACKAGE = Path(__file__).resolve().parent
FOLDER = kernel_folder(PACKAGE)
#: What floating-point code may be reordered to for vectorization; NaN and infinities keep their meaning.
REORDER = frozenset({"reassoc", "contract", "nsz"})
#: Seconds of compilation after which the user is told.
PATIENCE = 1.0

#: Called with the number of kernels compiled so far, and with None whenever other work goes on.
Report = Callable[[int | None], None]


class Clock(event.Listener):
    """Time spent on compiling and loading kernels: both happen in one thread at a time, under numba's lock.

    It listens to all compilations, and counts what is compiled for the sake of a kernel.
    """

    def __init__(self) -> None:
        self.depth = self.compilations = self.compiled = 0
        #: Seconds of finished compilations, and when the present one began.
        self.compiling = self.began = 0.0
        #: Seconds that are over, and when the present ones began: one value, as other threads read it.
        self.state: tuple[float, float | None] = (0.0, None)
        self.told = False
        self.collects = True
        #: Takes the place of the line on standard error.
        self.report: Report | None = None

    def seconds(self) -> float:
        """In this process so far, by the wall."""
        over, began = self.state
        return over if began is None else over + time.perf_counter() - began

    def enter(self) -> None:
        """A kernel is compiled or loaded, possibly because another one calls it."""
        if self.depth == 0:
            self.state = self.state[0], time.perf_counter()
            # Compilation makes millions of objects and next to no garbage in cycles.
            self.collects = gc.isenabled()
            gc.disable()
        self.depth += 1

    def leave(self) -> None:
        """That has ended."""
        self.depth -= 1
        if self.depth == 0:
            if self.collects:
                gc.enable()
                # The young objects would be looked through at the next occasion: that is a part of it.
                gc.collect(0)
            self.state = self.seconds(), None

    def on_start(self, what: Any) -> None:
        """A compilation begins."""
        if not self.compilations:
            if not is_kernel(what.data["dispatcher"]):
                return
            self.began = time.perf_counter()
        self.compilations += 1
        self.enter()

    def on_end(self, what: Any) -> None:
        """A compilation has ended, well or not."""
        if not self.compilations:
            return
        if is_kernel(what.data["dispatcher"]):
            self.compiled += 1
            self._tell()
        self.leave()
        self.compilations -= 1
        if not self.compilations:
            self.compiling += time.perf_counter() - self.began
            if self.report is not None:
                self.report(None)

    def _tell(self) -> None:
        if self.compiling + time.perf_counter() - self.began < PATIENCE:
            return
        if self.report is not None:
            self.report(self.compiled)
        elif not self.told:
            print("layerbounds: compiling kernels, once", file=sys.stderr, flush=True)
        self.told = True


def working_time() -> float:
    """A clock that stands still while kernels are compiled or loaded, in seconds from an arbitrary moment."""
    return time.perf_counter() - CLOCK.seconds()


CLOCK = Clock()
event.register("numba:compile", CLOCK)


@contextmanager
def reporting(report: Report) -> Iterator[None]:
    """Let a function show that kernels are compiled, instead of a line on standard error."""
    before, CLOCK.report = CLOCK.report, report
    try:
        yield
    finally:
        CLOCK.report = before


class _Locator(_CacheLocator):
    """All kernels lie in one folder, whose name stands for all their sources."""

    def get_cache_path(self) -> str:
        """The folder."""
        return str(FOLDER)

    def get_source_stamp(self) -> str:
        """Nothing in the folder is ever out of date."""
        return FOLDER.name

    def get_disambiguator(self) -> str:
        """Names are unique as they are."""
        return ""


class _CacheImpl(CompileResultCacheImpl):
    """How compiled functions become files; they are named after module and function."""

    def __init__(self, function: Any) -> None:
        self._lineno = function.__code__.co_firstlineno
        self._locator = _Locator()
        module = function.__module__.removeprefix(f"{__package__}.")
        version = f"py{sys.version_info[0]}{sys.version_info[1]}{getattr(sys, 'abiflags', '')}"
        self._filename_base = f"{module}.{function.__qualname__}.{version}"


class KernelCache(FunctionCache):
    """numba's cache of one function. What it cannot read or write costs a compilation, not the work."""

    _impl_class = _CacheImpl

    def load_overload(self, signature: Any, target: Any) -> Any:
        """The compiled function for some argument types, None where there is none."""
        CLOCK.enter()
        try:
            return super().load_overload(signature, target)
        except (OSError, EOFError, pickle.UnpicklingError):
            return None
        finally:
            CLOCK.leave()

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep a compiled function, unless the disk is full or the folder was taken away."""
        with contextlib.suppress(OSError):
            super().save_overload(signature, compiled)


class KernelFlags(Flags):
    """Options of the compilation of a kernel.

    numba works with a copy. It knows what it has made of its own functions, as `np.empty`, by all options of the
    caller: here callers that differ in their wrappers alone share one copy. One object is also compared at once.
    """

    _shared: ClassVar[dict[str, Flags]] = {}

    def copy(self) -> Any:
        """Options that are not to be changed."""
        alike: Any = Flags(self)
        alike.no_cpython_wrapper = True
        return self._shared.setdefault(repr(alike), alike)


class Kernel(CPUDispatcher):
    """A function that is compiled for each combination of argument types when it is first called."""

    def __init__(self, py_func: Any, *arguments: Any, **named: Any) -> None:
        super().__init__(py_func, *arguments, **named)
        self._cache = KernelCache(py_func)
        compiler: Any = vars(self)["_compiler"]
        compiler._customize_flags = KernelFlags

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """For a call from another kernel. Numbers known beforehand are of no type of their own.

        Otherwise a function would be compiled once more for each of them, even for a variable's first value, which
        type inference sees before the others.
        """
        return super().get_call_template(tuple(types.unliteral(a) for a in args), kws)

    def add_overload(self, compiled: Any) -> None:
        """Register what was compiled, for calls from Python where it has code for these."""
        if self.targetoptions["no_cpython_wrapper"]:
            self.overloads[tuple(compiled.signature.args)] = compiled
        else:
            super().add_overload(compiled)

    def _compile_for_args(self, *args: Any, **kws: Any) -> Any:
        if self.targetoptions["no_cpython_wrapper"]:
            message = f"{self.py_func.__qualname__} is called by other kernels only; declare it without nested=True"
            raise TypeError(message)
        # With what numba does before and after it compiles or loads, a third of what loading takes.
        with global_compiler_lock:
            CLOCK.enter()
            try:
                return super()._compile_for_args(*args, **kws)  # type: ignore[misc]
            finally:
                CLOCK.leave()


def is_kernel(dispatcher: Any) -> bool:
    """Whether a compiled function is one of this package."""
    return isinstance(dispatcher, Kernel)


def kernel(
    *,
    error_model: str = "python",
    fastmath: bool | frozenset[str] = False,
    inline: bool = False,
    force_inline: bool = False,
    nested: bool = False,
) -> Any:
    """Decorator of a function that numba compiles when it is first called.

    Parameters
    ----------
    error_model : str
        "python" raises an exception where something is divided by zero, "numpy" gives NaN or infinity and compiles
        faster: for functions in which that cannot prune anything, as comparisons with NaN are false.
    fastmath : bool or set of str
        See numba.
    inline : bool
        The function becomes a part of its callers, and is not compiled for itself: for parts of a long function, which
        LLVM would otherwise optimise once more for every level of calls.
    force_inline : bool
        It is compiled for itself, with its own ``fastmath``, and LLVM puts it into its callers whatever its size: for
        parts of inner loops, where a call passes a hundred words of arguments.
    nested : bool
        Only other kernels call it: what takes Python's arguments apart is not compiled. A call from Python is an error.
    """
    options = {
        "nopython": True,
        "nogil": True,
        "boundscheck": None,
        "error_model": error_model,
        "fastmath": set(fastmath) if isinstance(fastmath, frozenset) else fastmath,
        "inline": "always" if inline else "never",
        "forceinline": force_inline,
        # Nothing calls kernels from C.
        "no_cfunc_wrapper": True,
        "no_cpython_wrapper": nested,
    }

    def decorate(function: Any) -> Any:
        # Without numba's compiler, as in a debugger, it is the function itself.
        return function if vars(config)["DISABLE_JIT"] else Kernel(function, targetoptions=options)

    return decorate
