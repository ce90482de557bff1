"""What several test files share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

# Before NumPy is imported. Searches hold linear algebra to one thread; tests that call their parts need the same: on
# small matrices, threads that wait for one another take a hundred times as long where the cores are busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Float

PROJECT = Path(__file__).resolve().parent.parent
#: Files of ``--quick``: a first answer in less than a minute, from every part of the package.
QUICK = {
    "certify",
    "cluster_codes",
    "companion",
    "gram_range",
    "grids",
    "kernels",
    "layer",
    "layer_files",
    "pruning_cli",
    "pruning_heuristics",
    "pruning_preparation",
    "semidefinite",
    "shared_results",
    "theory",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--slow`` and ``--quick``."""
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow; with -m slow only these")
    parser.addoption("--quick", action="store_true", help="run a part of the tests in less than a minute")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what was not asked for."""

    def wanted(item: pytest.Item) -> bool:
        if config.getoption("--quick") and item.path.stem.removeprefix("test_") not in QUICK:
            return False
        return bool(config.getoption("--slow")) or item.get_closest_marker("slow") is None

    left_out = [item for item in items if not wanted(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if wanted(item)]


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """Folder of the real layers: not part of the project, so tests that need it are skipped without it."""
    folder = Path(os.environ.get("LAYERBOUNDS_DATA") or PROJECT.parent / "shared" / "data")
    if not (folder / "resnet20_layers.safetensors").is_file():
        pytest.skip(
            "the reference layers are absent: set LAYERBOUNDS_DATA to the folder of resnet20_layers.safetensors"
        )
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def random_gram(rng: np.random.Generator) -> Callable[..., Float]:
    """Gram matrix of random inputs: ``random_gram(n, rank=n)``."""

    def make(n: int, rank: int | None = None) -> Float:
        x = rng.normal(size=(4 * n, rank or n)) @ rng.normal(size=(rank or n, n))
        return np.asarray(x.T @ x / len(x))

    return make


@pytest.fixture
def small_layer(rng: np.random.Generator, random_gram: Callable[..., Float]) -> lb.Layer:
    """Five channels of six inputs."""
    return lb.Layer(rng.normal(size=(5, 6)), random_gram(6), "small")
