"""Allowed sets of pruning: the nonzero weights of an output channel fit a sparsity structure."""

from __future__ import annotations

from layerbounds.problems.masked_weights import MaskedWeights


class Support(MaskedWeights):
    """One row, of shape (n,)."""

    @property
    def requirement(self) -> str:
        """Pruning with refit, or masks."""
        return "pruning with refit" if self.refit else "pruning masks"
