"""What several test files share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.arrays import Float

PROJECT = Path(__file__).resolve().parent.parent


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
