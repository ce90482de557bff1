"""The backends by name: one line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from layerbounds.names import match_name
from layerbounds.solvers.base import Backend
from layerbounds.solvers.batched.backend import BatchedBackend
from layerbounds.solvers.gurobi import GurobiBackend
from layerbounds.solvers.highs import HighsBackend
from layerbounds.solvers.native import NativeBackend
from layerbounds.solvers.scip import ScipBackend
from layerbounds.solvers.sdp import SdpBackend

_BACKENDS: dict[str, Callable[[], Backend]] = {
    "native": NativeBackend,
    "batched": BatchedBackend,
    "scip": ScipBackend,
    "highs": HighsBackend,
    "sdp": SdpBackend,
    "gurobi": GurobiBackend,
}

#: Backends whose proofs are those of the package's own searches: no other may hand one over, whatever it says it can.
_OWN = frozenset({"native", "batched"})


@dataclass(frozen=True)
class BackendInfo:
    """One row of `backends`.

    Attributes
    ----------
    name : str
    available : bool
    version : str or None
    capabilities : tuple of str
    reason : str or None
        Why it is not available, and how to get it.
    """

    name: str
    available: bool
    version: str | None
    capabilities: tuple[str, ...]
    reason: str | None


def names() -> list[str]:
    """The names of all backends."""
    return list(_BACKENDS)


def get_backend(name: str) -> Backend:
    """Return a backend by name."""
    return _BACKENDS[match_name(name, names(), "backend")]()


def is_own(name: str) -> bool:
    """Whether certification accepts the proofs of a backend."""
    return match_name(name, names(), "backend") in _OWN


def backends() -> list[BackendInfo]:
    """List every backend with its version, whether it is available, and what it can solve.

    Examples
    --------
    >>> [backend.name for backend in lb.backends()][:2]
    ['native', 'batched']
    """
    rows = []
    for name, make in _BACKENDS.items():
        backend = make()
        state = backend.availability()
        rows.append(
            BackendInfo(
                name, state.available, state.version, tuple(sorted(map(str, backend.capabilities))), state.reason
            )
        )
    return rows
