"""Rows as pandas data frames, with the type of every column said; they need the `frame` extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from layerbounds.exceptions import MissingExtraError

#: What a column holds: texts, integers, floats (in which infinity is a value), or truth; any value may be missing.
Kind = Literal["text", "whole", "real", "truth"]

_TYPES: dict[Kind, str] = {"text": "string", "whole": "Int64", "real": "float64", "truth": "boolean"}


def data_frame(kinds: Mapping[str, Kind], rows: Sequence[Mapping[str, Any]]) -> Any:
    """A data frame with these columns, in their order.

    Parameters
    ----------
    kinds : mapping of str to {"text", "whole", "real", "truth"}
        What each column holds.
    rows : sequence of mapping
        With these keys; None is missing.

    Returns
    -------
    pandas.DataFrame

    Raises
    ------
    MissingExtraError
        Without pandas.
    """
    try:
        import pandas
    except ImportError as error:
        raise MissingExtraError("data frames need pandas; run: pip install 'layerbounds[frame]'") from error
    return pandas.DataFrame(
        {name: pandas.Series([row[name] for row in rows], dtype=_TYPES[kind]) for name, kind in kinds.items()}
    )
