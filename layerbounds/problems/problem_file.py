"""One problem in one safetensors file: the layer, and what its weights may be (schema: docs/file-format.md)."""

from __future__ import annotations

import os

from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.layers.sealed_files import SealedFormat
from layerbounds.layers.stored import restored_layer, stored_layer
from layerbounds.problems.problem import Problem, as_problem
from layerbounds.problems.stored import restored_problem, stored_problem
from layerbounds.version import __version__

#: The files of this module.
PROBLEMS = SealedFormat("problem", "problem", 1, "save_problem")


def save_problem(path: str | os.PathLike[str], problem: Problem) -> None:
    """Write a problem of any family into one file, with its layer, bit for bit.

    Such a file is what a report of a wrong bound should have with it: it says all that the optimum depends on.

    Parameters
    ----------
    path : path-like
        A safetensors file; it is replaced as a whole.
    problem : Problem

    Raises
    ------
    InputError
        If the file cannot be written, or the problem is of a kind that files do not hold.

    Examples
    --------
    >>> import tempfile, layerbounds as lb
    >>> problem = lb.pruning_problem(lb.demo_layers()["conv3"], pattern="2:4")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lb.save_problem(f"{folder}/problem.safetensors", problem)
    ...     again = lb.load_problem(f"{folder}/problem.safetensors")
    >>> again.fingerprint() == problem.fingerprint()
    True
    """
    as_problem(problem)
    of_layer, about_layer = stored_layer(problem.layer)
    tensors, about_problem = stored_problem(problem)
    about = {
        "layerbounds": __version__,
        "layer": about_layer,
        "problem": {**about_problem, "label": problem.label, "fingerprint": problem.fingerprint()},
    }
    PROBLEMS.write(path, {**of_layer, **tensors}, about, 1)


def load_problem(path: str | os.PathLike[str]) -> Problem:
    """Read a problem that `save_problem`, or ``layerbounds solve --save-problem``, has written.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    Problem
        Of the kind that was written, with a layer of its own.

    Raises
    ------
    FileFormatError
        If it is no file of a problem, of a newer version, or damaged.

    Examples
    --------
    >>> import tempfile, layerbounds as lb
    >>> problem = lb.quantization_problem(lb.demo_layers()["conv3"], bits=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lb.save_problem(f"{folder}/problem.safetensors", problem)
    ...     lb.load_problem(f"{folder}/problem.safetensors").label
    '3-bit symmetric per channel, mse'
    """
    tensors, about = PROBLEMS.read(path)
    try:
        problem = restored_problem(restored_layer(tensors, about["layer"]), tensors, about["problem"])
        if problem.fingerprint() != about["problem"]["fingerprint"]:
            raise InputError("its parts do not make the problem that was written")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).rstrip(".") if isinstance(error, InputError) else f"a part is missing or odd: {error!r}"
        raise FileFormatError(f"{path} holds no whole problem ({reason}); write the file again.") from error
    return problem
