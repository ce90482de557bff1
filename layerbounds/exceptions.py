"""The package's own exceptions: each message is one sentence that says what was wrong and what to do."""

from __future__ import annotations


class LayerboundsError(Exception):
    """Base class of every error that layerbounds raises on purpose.

    Examples
    --------
    >>> try:
    ...     lb.quantization_problem(layer, bits=9)
    ... except lb.LayerboundsError as error:
    ...     print(error)
    bits is 9; choose an integer from 1 to 8.
    """


class InputError(LayerboundsError, ValueError):
    """An argument or an array cannot be used: wrong shape, NaN, not positive semidefinite, out of range."""


class FileFormatError(InputError):
    """A file is missing, truncated, foreign, or written by a newer version."""


class UnknownNameError(InputError, LookupError):
    """A layer, backend, heuristic or codebook of that name does not exist."""


class LayerError(InputError):
    """One layer of a model cannot be captured or compressed, which says nothing about the others."""


class MissingExtraError(LayerboundsError, ImportError):
    """A feature needs an optional dependency that is not installed."""


class UnsupportedProblemError(InputError):
    """The chosen backend or heuristic cannot treat this kind of problem."""


class CertificationError(LayerboundsError):
    """What a backend returned contradicts the problem, so that no certificate can be issued."""


class NotAllowedError(LayerboundsError):
    """Weights are not in the set of those that a problem allows; the message completes "the backend returned …"."""


class UnprovenWarning(UserWarning):
    """A certificate claims less than the solution that it was written from."""


class LeftOutWarning(UserWarning):
    """A run cannot do some of its work, and goes on with the rest."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line; the name of its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
