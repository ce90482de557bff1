"""Proofs of semidefiniteness: what they accept is semidefinite, and a NaN is never accepted."""

from __future__ import annotations

import numpy as np
import pytest

from layerbounds.bounds.minorants.semidefinite import are_positive_semidefinite, is_positive_semidefinite
from layerbounds.kernels.factorization import cholesky


@pytest.mark.parametrize("n", [1, 2, 7, 40, 130])
def test_nan_is_no_proof(n: int) -> None:
    """LAPACK reports success for a matrix with a NaN."""
    for i, j in {(0, 0), (n // 2, 0), (n - 1, 0), (n - 1, n - 1)}:
        matrix = np.eye(n)
        matrix[i, j] = matrix[j, i] = np.nan
        assert cholesky(matrix) is None
        assert not is_positive_semidefinite(matrix.copy())
        assert not are_positive_semidefinite(np.stack([np.eye(n), matrix]))


@pytest.mark.parametrize("n", [1, 3, 20])
def test_what_is_proven(n: int, rng: np.random.Generator) -> None:
    """Eigenvalues a little above zero are proven, those a little below never; many matrices as one by one."""
    for exponent in range(-16, 0):
        basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
        values = rng.uniform(0.5, 1.0, n)
        for smallest in (10.0**exponent, -(10.0**exponent)):
            values[0] = smallest
            matrix = (basis * values) @ basis.T
            matrix = 0.5 * (matrix + matrix.T)
            proven = is_positive_semidefinite(matrix.copy())
            assert proven == (smallest > 0) or abs(smallest) < 1e-11
            assert not proven or np.linalg.eigvalsh(matrix)[0] > -1e-15
            assert are_positive_semidefinite(np.stack([np.eye(n), matrix])) == proven


def test_empty_matrix() -> None:
    """A matrix without rows is semidefinite."""
    assert is_positive_semidefinite(np.empty((0, 0)))
    assert cholesky(np.empty((0, 0))) is not None


def test_a_proof_needs_no_second_matrix(rng: np.random.Generator) -> None:
    """The factor takes the matrix's place."""
    root = rng.normal(size=(30, 30))
    matrix = root @ root.T + np.eye(30)
    lower = np.linalg.cholesky(matrix)
    assert is_positive_semidefinite(matrix)
    np.testing.assert_allclose(np.tril(matrix), lower, rtol=0.0, atol=1e-9 * np.abs(lower).max())
