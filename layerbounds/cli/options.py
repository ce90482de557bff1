"""Options that commands share, and their parsing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from layerbounds.demo import demo_layers
from layerbounds.exceptions import InputError
from layerbounds.layers.layer import Layer
from layerbounds.layers.layer_file import LayerFile
from layerbounds.problems.grids import Granularity
from layerbounds.suggestions import did_you_mean

InputOption = Annotated[
    Path | None,
    typer.Option("--input", metavar="FILE", help="Layer file (safetensors); default: the embedded demo network."),
]
BackendOption = Annotated[
    str,
    typer.Option("--backend", metavar="NAME", help="auto (by the layer's size), or see `layerbounds backends`."),
]
ZeroPointOption = Annotated[
    str | None,
    typer.Option("--zero-point", metavar="HOW", help="With --scale free: free (all integer zero points) or real."),
]
MaskOption = Annotated[
    str,
    typer.Option(
        "--mask", metavar="HOW", help="What a pattern's mask costs to store: none, bitmap, entropy or metadata."
    ),
]
PatternOption = Annotated[
    str | None,
    typer.Option(
        "--pattern",
        metavar="HOW",
        help="Prune: unstructured (default), N:M such as 2:4, block:S; or for all output channels at once: channel "
        "(input channels), column, position (of the kernel), head:S.",
    ),
]
ShareOption = Annotated[
    str | None,
    typer.Option(
        "--share", metavar="V", help="Consecutive output channels that have one mask: a number, or all of the layer's."
    ),
]
AxisOption = Annotated[
    str | None,
    typer.Option(
        "--axis",
        metavar="HOW",
        help="Which inputs N:M counts: flat, as the weight is flattened (default), or in_channels, the channels at "
        "each kernel position.",
    ),
]
JobsOption = Annotated[int | None, typer.Option("--jobs", metavar="N", help="Threads in all; default: all cores.")]
SeedOption = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of everything random.")]
MaskOnlyOption = Annotated[bool, typer.Option("--mask-only", help="Kept weights are not re-optimised.")]
GranularityOption = Annotated[
    str, typer.Option("--granularity", metavar="WHAT", help="tensor, channel, or a number of inputs.")
]
RangeOption = Annotated[
    str, typer.Option("--range", metavar="HOW", help="Scales: mse (default) or another of `layerbounds ranges`.")
]
SymmetricOption = Annotated[bool, typer.Option("--symmetric/--asymmetric", help="Grids without or with zero point.")]
JsonOption = Annotated[
    str | None, typer.Option("--json", metavar="OUT", help="Write JSON to this file; - prints it instead of the table.")
]

_INDEX = r"\s*[+-]?\d+\s*"
_SLICE = re.compile(rf"({_INDEX}|\s*):({_INDEX}|\s*)(?::({_INDEX}|\s*))?")


def read_layers(path: Path | None) -> Mapping[str, Layer]:
    """Layers of a file, each read when it is asked for, or of the demo network."""
    return demo_layers() if path is None else LayerFile(path)


def asked(context: typer.Context) -> dict[str, Any]:
    """Every option of the command as it was given, or its default, by its name without dashes."""
    values: dict[str, Any] = {}
    for parameter in context.command.params:
        name = max((text.lstrip("-") for text in parameter.opts), key=len).replace("-", "_")
        value = context.params.get(parameter.name or "")
        if name != "help":
            values[name] = str(value) if isinstance(value, Path) else value
    return values


def parse_channels(text: str | None, out: int) -> list[int] | None:
    """Read a selection of output channels such as ``0:8`` or ``0,3,5:7``, with Python's rules for both.

    Parameters
    ----------
    text : str or None
        None selects all.
    out : int
        Number of output channels.
    """
    if text is None:
        return None
    every = range(out)
    chosen: list[int] = []
    for part in text.split(","):
        ends = _SLICE.fullmatch(part)
        try:
            if ends:
                chosen.extend(every[slice(*(int(e) if e and e.strip() else None for e in ends.groups()))])
            elif re.fullmatch(_INDEX, part):
                chosen.append(every[int(part)])
            else:
                raise InputError(
                    f"channels {text!r} cannot be read at {part!r}; write indices and half-open slices such as 0:8 "
                    "or 0,3,5:7."
                )
        except IndexError:
            raise InputError(f"channel {part.strip()} does not exist; the layer has channels 0 to {out - 1}.") from None
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"channels {text!r}: {error}.") from error
    if not chosen:
        raise InputError(f"channels {text!r} select nothing; the layer has channels 0 to {out - 1}.")
    if len(set(chosen)) != len(chosen):
        raise InputError(f"channels {text!r} select a channel twice; name each once.")
    return chosen


def parse_fractions(text: str | None, what: str) -> list[float]:
    """Read numbers such as ``0.25,0.5``; None gives none."""
    try:
        return [float(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        raise InputError(
            f"{what} {text!r} cannot be read; write numbers with commas between, such as 0.25,0.5."
        ) from None


def parse_names(text: str | None) -> list[str]:
    """Read names with commas between; None gives none."""
    return [part.strip() for part in text.split(",") if part.strip()] if text is not None else []


def parse_granularity(text: str | None) -> Granularity | None:
    """Read ``tensor``, ``channel`` or a number of inputs."""
    if text is None:
        return None
    if text == "tensor" or text == "channel":
        return cast(Granularity, text)
    try:
        size = int(text)
    except ValueError:
        size = 0
    if size < 1:
        hint = did_you_mean(text, ("tensor", "channel"))
        raise InputError(
            f"granularity is {text}; {hint}choose tensor, channel or a positive number of inputs per group."
        )
    return size


def parse_share(text: str | None) -> int | Literal["all"] | None:
    """Read a number of output channels, or ``all``."""
    if text is None or text == "all":
        return cast(Literal["all"] | None, text)
    if not re.fullmatch(_INDEX, text):
        raise InputError(f"share is {text!r}; write a number of output channels, or all.")
    return int(text)


def parse_counts(text: str | None, what: str) -> list[int]:
    """Read whole numbers such as ``4,8``; None gives none."""
    parts = [] if text is None else text.split(",")
    if not all(re.fullmatch(_INDEX, part) for part in parts):
        raise InputError(f"{what} {text!r} cannot be read; write whole numbers with commas between, such as 4,8.")
    return [int(part) for part in parts]


def parse_options(texts: Sequence[str] | None) -> dict[str, str]:
    """Read ``KEY=VALUE`` pairs."""
    pairs: dict[str, str] = {}
    for text in texts or ():
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise InputError(f"option {text!r} cannot be read; write KEY=VALUE, for example formulation=dense.")
        pairs[key.strip()] = value.strip()
    return pairs
