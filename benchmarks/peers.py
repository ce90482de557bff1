"""Solvers that only the benchmarks know, beside the package's backends: both prune with refit, any k inputs."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.el0ps_peer import El0psBackend
from benchmarks.instances import Instance
from benchmarks.ksparse import KSparseBackend
from layerbounds.solvers import registry
from layerbounds.solvers.base import Backend

PEERS: dict[str, Callable[[], Backend]] = {"ksparse": KSparseBackend, "el0ps": El0psBackend}


def register() -> None:
    """Let `layerbounds.solve` find the peers by name, in this process."""
    registry._BACKENDS.update(PEERS)


def treats(backend: str, instance: Instance) -> bool:
    """Whether a peer knows the pattern; True for the package's own backends, which say so themselves."""
    return backend not in PEERS or instance.rule.startswith("density")
