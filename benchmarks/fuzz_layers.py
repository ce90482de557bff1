"""Random and degenerate layers of a few inputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import layerbounds as lb
from layerbounds.arrays import Float

#: Factors of a column that is another one's multiple.
FACTORS = (-1.0, 1.0, 2.0, 1.001, 1.0 + 1e-6, 1.0 + 1e-9)

Generator = np.random.Generator


# --- inputs ----------------------------------------------------------------------------------------------------------


def _random(rng: Generator, n: int) -> Float:
    return rng.normal(size=(3 * n + 2, n))


def _correlated(rng: Generator, n: int) -> Float:
    return rng.normal(size=(4 * n, n)) + rng.uniform(0.5, 5.0) * rng.normal(size=(4 * n, 1))


def _positive(rng: Generator, n: int) -> Float:
    return np.maximum(rng.normal(1.0, 1.0, size=(30, n)), 0.0)


def _few_positions(rng: Generator, n: int) -> Float:
    return rng.normal(size=(int(rng.integers(1, n + 1)), n))


def _low_rank(rng: Generator, n: int) -> Float:
    rank = int(rng.integers(1, n + 1))
    return rng.normal(size=(20, rank)) @ rng.normal(size=(rank, n))


def _rank_one(rng: Generator, n: int) -> Float:
    return rng.normal(size=(12, 1)) @ rng.normal(size=(1, n))


def _dead(rng: Generator, n: int) -> Float:
    x = _random(rng, n)
    x[:, rng.random(n) < 0.4] = 0.0
    return x


def _proportional(rng: Generator, n: int) -> Float:
    x = _correlated(rng, n) if rng.random() < 0.3 else _random(rng, n)
    for _ in range(int(rng.integers(1, 3))):
        i, j = rng.integers(n, size=2)
        x[:, i] = float(rng.choice(FACTORS)) * x[:, j]
    return x


def _integers(rng: Generator, n: int) -> Float:
    return rng.integers(-2, 3, size=(n + int(rng.integers(0, 6)), n)).astype(np.float64)


def _ill_conditioned(rng: Generator, n: int) -> Float:
    left, right = np.linalg.qr(rng.normal(size=(n + 4, n)))[0], np.linalg.qr(rng.normal(size=(n, n)))[0]
    return np.asarray((left * np.logspace(0, -rng.uniform(1, 9), n)) @ right)


def _orthogonal(rng: Generator, n: int) -> Float:
    return np.diag(rng.uniform(0.1, 3.0, n))


INPUTS: dict[str, Callable[[Generator, int], Float]] = {
    "random": _random,
    "correlated": _correlated,
    "nonnegative": _positive,
    "few positions": _few_positions,
    "low rank": _low_rank,
    "rank 1": _rank_one,
    "dead inputs": _dead,
    "proportional": _proportional,
    "integers": _integers,
    "ill-conditioned": _ill_conditioned,
    "diagonal": _orthogonal,
}


def _inputs(rng: Generator, n: int, traits: list[str]) -> Float:
    kind = str(rng.choice(list(INPUTS), p=_weights([1, 1, 1, 2, 1, 1, 1, 3, 1, 2, 1])))
    traits.append(kind)
    x = INPUTS[kind](rng, n)
    if rng.random() < 0.15:
        traits.append("unequal inputs")
        x = x * 10.0 ** rng.uniform(-6.0, 6.0, n)
    if rng.random() < 0.15:
        scale = float(rng.choice([1e-12, 1e-6, 1e6, 1e12]))
        traits.append(f"inputs times {scale:g}")
        x = x * scale
    return x


def _weights(parts: list[float]) -> Float:
    return np.asarray(np.array(parts) / np.sum(parts))


# --- layers ----------------------------------------------------------------------------------------------------------


def _weight_matrix(rng: Generator, channels: int, n: int, traits: list[str]) -> Float:
    weight = rng.normal(size=(channels, n))
    if rng.random() < 0.1:
        traits.append("zero weights")
        weight[rng.random(size=weight.shape) < 0.4] = 0.0
        weight[0] = 0.0
    if rng.random() < 0.1:
        traits.append("integer weights")
        weight = np.rint(2.0 * weight)
    if rng.random() < 0.1:
        scale = float(rng.choice([1e-12, 1e12]))
        traits.append(f"weights times {scale:g}")
        weight = weight * scale
    return weight


def random_layer(rng: Generator, n: int, channels: int) -> tuple[lb.Layer, list[str]]:
    """A layer, and what is special about it."""
    traits: list[str] = []
    if rng.random() < 0.1 and channels % 3 == 0:
        traits.append("3 groups")
        weight = _weight_matrix(rng, channels, n, traits)
        xs = [_inputs(rng, n, traits) for _ in range(3)]
        means = np.stack([x.mean(axis=0) for x in xs])
        return lb.Layer(weight, np.stack([x.T @ x / len(x) for x in xs]), input_mean=means), traits
    weight, x = _weight_matrix(rng, channels, n, traits), _inputs(rng, n, traits)
    if rng.random() < 0.15:
        traits.append("constant inputs")
        x[:, rng.random(n) < 0.4] = rng.normal() * np.max(np.abs(x))
    compressed = None
    if rng.random() < 0.2:
        traits.append("other inputs")
        compressed = x + 10.0 ** rng.uniform(-6.0, 0.0) * rng.normal(size=x.shape) * np.max(np.abs(x), axis=0)
        compressed = compressed if rng.random() < 0.7 else compressed * (rng.random(n) < 0.7)
    return lb.Layer.from_activations(weight, x, compressed_inputs=compressed), traits
