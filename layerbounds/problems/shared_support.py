"""Allowed sets of structured pruning: several rows whose nonzero weights fit one mask."""

from __future__ import annotations

from layerbounds.problems.masked_weights import MaskedWeights


class SharedSupport(MaskedWeights):
    """Rows with one mask; ``original`` has shape (rows, n) even for one row."""

    @property
    def requirement(self) -> str:
        """Shared pruning with refit, or masks."""
        return "shared pruning with refit" if self.refit else "shared pruning masks"
