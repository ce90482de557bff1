"""What all results share that show themselves."""

from __future__ import annotations

from collections.abc import Sequence

from layerbounds.display.html import rendered
from layerbounds.display.views import Summary, Table


class Displayed:
    """A result with a short ``repr``, and HTML in notebooks.

    Data classes need ``repr=False``, or theirs is taken.
    """

    def _summary(self) -> Summary:
        """The result in a few words."""
        raise NotImplementedError

    def _tables(self) -> Sequence[Table]:
        """What notebooks show below the summary."""
        return ()

    def __repr__(self) -> str:
        return self._summary().text(type(self).__name__)

    def _repr_html_(self) -> str:
        return rendered(type(self).__name__, self._summary(), self._tables())
