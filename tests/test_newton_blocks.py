"""Block-diagonal minorants by Newton's method: below the Gram matrix, and above what coordinate ascent finds."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from layerbounds.bounds.minorants.blocks import improve_blocks, make_minorant
from layerbounds.bounds.minorants.clusters import make_clusters
from layerbounds.bounds.minorants.newton import ascend_newton
from layerbounds.bounds.minorants.newton_blocks import _Ascent, _Layout, ascend_newton_blocks
from layerbounds.bounds.minorants.semidefinite import is_positive_semidefinite
from layerbounds.kernels.arithmetic import DOUBLE


def gram_of(rng, n, condition=1e3):
    basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
    matrix = (basis * np.geomspace(1.0, 1.0 / condition, n)) @ basis.T
    scale = 10.0 ** rng.uniform(-1, 1, n)
    return 0.5 * (matrix + matrix.T) * np.outer(scale, scale)


def matrix_of(n, members, blocks):
    matrix = np.zeros((n, n))
    for m, b in zip(members, blocks, strict=True):
        matrix[np.ix_(m, m)] = b
    return matrix


def value(gradients, blocks):
    return sum(float(np.sum(a * b)) for a, b in zip(gradients, blocks, strict=True))


def test_products_and_systems_are_exact(rng):
    members = [np.array([3, 0]), np.array([1, 4, 5]), np.array([2])]
    gram = gram_of(rng, 6, 10.0)
    layout = _Layout.of(members)
    ascent = _Ascent(layout.scaled(gram, np.sqrt(np.diag(gram))), np.repeat(np.eye(3)[None], 3, axis=0), DOUBLE)
    t = rng.normal(size=(9, 9))
    t = t @ t.T
    x = rng.normal(size=(2, 3, 3, 3))
    x = x + x.swapaxes(-1, -2)
    found = ascent._sandwich(t, x)
    for k in range(2):
        full = t @ matrix_of(9, np.arange(9).reshape(3, 3), x[k]) @ t
        for g in range(3):
            np.testing.assert_allclose(found[k, g], full[3 * g : 3 * g + 3, 3 * g : 3 * g + 3], atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_single_inputs_are_the_diagonal(seed):
    rng = np.random.default_rng(seed)
    gram = gram_of(rng, 12)
    objective = rng.uniform(size=12) / np.diag(gram)
    blocks = ascend_newton_blocks(
        gram, [np.array([i]) for i in range(12)], [np.array([[a]]) for a in objective], steps=25, relative_gap=2e-3
    )
    d = ascend_newton(gram, objective, steps=25, relative_gap=2e-3)
    np.testing.assert_allclose(objective @ [b[0, 0] for b in blocks], objective @ d, rtol=0.02)


@pytest.mark.parametrize("sizes", [[3, 3, 3], [1, 4, 2, 3], [9]])
def test_they_are_minorants_and_more_than_diagonals(rng, sizes):
    n = sum(sizes)
    gram = gram_of(rng, n)
    order = rng.permutation(n)
    members = np.split(order, np.cumsum(sizes)[:-1])
    roots = [rng.normal(size=(len(m), len(m))) / np.sqrt(np.diag(gram)[m]) for m in members]
    gradients = [r.T @ r for r in roots]
    blocks = ascend_newton_blocks(gram, members, gradients, steps=20)
    assert is_positive_semidefinite(gram - matrix_of(n, members, blocks))
    assert min(np.linalg.eigvalsh(b)[0] for b in blocks) > 0
    d = ascend_newton(gram, np.concatenate([np.diag(a) for a in gradients])[np.argsort(order)])
    diagonals = [np.diag(d[m]) for m in members]
    assert value(gradients, blocks) > value(gradients, diagonals)
    again = ascend_newton_blocks(gram, members, gradients, blocks, steps=1)
    assert value(gradients, again) > 0.8 * value(gradients, blocks)


def test_singular_and_nearly_singular(rng):
    members = [np.array([0, 1]), np.array([2, 3])]
    gradients = [np.eye(2)] * 2
    assert ascend_newton_blocks(np.ones((4, 4)), members, gradients) is None
    for condition in (1e8, 1e11):
        gram = gram_of(rng, 4, condition)
        blocks = ascend_newton_blocks(gram, members, gradients)
        assert is_positive_semidefinite(gram - matrix_of(4, members, blocks))
        assert value(gradients, blocks) > 0


def test_it_beats_coordinate_ascent_on_a_real_layer(reference_data):
    gram = load_file(reference_data / "minilm_layers.safetensors")
    gram = gram["encoder.layer.2.attention.output.dense.gram"].astype(np.float64)
    n = len(gram)
    members = make_clusters(gram, 4, np.zeros(n, dtype=np.int64), np.arange(n))
    gradients = [np.eye(len(m)) for m in members]
    blocks = ascend_newton_blocks(gram, members, gradients, steps=4)
    proven = make_minorant(gram, members, matrix_of(n, members, blocks))
    np.testing.assert_array_equal(proven.matrix, matrix_of(n, members, blocks))
    swept = make_minorant(gram, members, np.diag(0.98 * ascend_newton(gram, np.ones(n))))
    for barrier in (0.5, 0.2, 0.05, 0.02):
        swept = improve_blocks(gram, members, swept, gradients, barrier)
    assert value(gradients, blocks) > value(gradients, swept.blocks)
