"""The pictures of results: one function for each kind of result, registered where it is drawn."""

from __future__ import annotations

import functools
import os
from typing import Any

from layerbounds.exceptions import InputError


@functools.singledispatch
def picture(result: Any, path: str | os.PathLike[str] | None = None, **options: Any) -> Any:
    """Draw a result.

    Parameters
    ----------
    result
    path : path-like, optional
        A file for the picture that ends in .svg, .png or .pdf.
    **options
        Of the kind of result.

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot; notebooks show it.

    Raises
    ------
    MissingExtraError
        Without matplotlib.
    InputError
        If there is nothing to draw, or no such format.
    """
    raise InputError(f"there is no picture of a {type(result).__name__}; draw one of its tables.")
