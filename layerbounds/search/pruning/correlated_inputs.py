"""Which inputs depend on one another most: where local search looks for exchanges."""

from __future__ import annotations

import numpy as np

from layerbounds.arrays import Float, Int

#: Inputs near one.
NEAR = 20


def nearest_inputs(gram: Float) -> Int:
    """For each input the `NEAR` ones of largest |h_ij|/√(h_ii h_jj), itself among them.

    Parameters
    ----------
    gram : ndarray of shape (n, n)

    Returns
    -------
    ndarray of int64, shape (n, min(n, NEAR))
    """
    root = np.sqrt(np.diag(gram))
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.nan_to_num(np.abs(gram) / np.outer(root, root))
    order = np.argsort(-correlation, axis=1, kind="stable")[:, :NEAR]
    return np.ascontiguousarray(order, dtype=np.int64)
