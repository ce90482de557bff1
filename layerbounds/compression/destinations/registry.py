"""The kinds of files by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layerbounds.arguments import as_path, shown
from layerbounds.compression.destinations.base import Destination
from layerbounds.exceptions import InputError, UnknownNameError
from layerbounds.suggestions import did_you_mean

#: What `compress` can write.
DESTINATIONS = ("dense", "compressed-tensors", "gptq", "gguf")


def destination(name: Any, template: Any, model: Any) -> Destination | None:
    """What ``format`` and ``template`` of `compress` say.

    Raises
    ------
    InputError
        If there is no such format, or its template is none.
    """
    chosen = find_destination(name, template)
    if chosen is None:
        return None
    # They need PyTorch, which the names do not.
    from layerbounds.compression.destinations.compressed_tensors import CompressedTensors
    from layerbounds.compression.destinations.dense import Dense
    from layerbounds.compression.destinations.gguf import Gguf
    from layerbounds.compression.destinations.gptq import Gptq

    kinds = {kind.name: kind for kind in (Dense, CompressedTensors, Gptq, Gguf)}
    return kinds[chosen](_template(chosen, template, model))


def find_destination(name: Any, template: Any) -> str | None:
    """The name of a format, as far as it can be checked without a model.

    Raises
    ------
    InputError
        If there is no such format, or the template is missing or has no format.
    """
    if name is None:
        if template is not None:
            raise InputError("template is for a format; pass format, too, or leave it out.")
        return None
    if not isinstance(name, str) or name.lower() not in DESTINATIONS:
        hint = did_you_mean(name, DESTINATIONS)
        raise UnknownNameError(f"there is no format {shown(name)}; {hint}choose {', '.join(DESTINATIONS)}.")
    if name.lower() == "gguf" and template is None:
        raise InputError("format 'gguf' replaces tensors of a GGUF file of the model; pass it as template.")
    return name.lower()


def _template(name: str, template: Any, model: Any) -> Path:
    if template is not None:
        return as_path(template, "template")
    # What transformers has loaded a model from.
    known = getattr(model, "name_or_path", None)
    if isinstance(known, str) and known and Path(known).is_dir():
        return Path(known)
    raise InputError(f"format {name!r} needs the directory from which the model was loaded; pass template.")
