"""The formats of tools, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from layerbounds.allocation.formats import auto_round, gptqmodel, llama_cpp, llm_compressor
from layerbounds.allocation.formats.compression import Format, InexpressibleError, compression_of, option_for
from layerbounds.allocation.options import LayerOptions
from layerbounds.arguments import shown
from layerbounds.exceptions import InputError, UnknownNameError
from layerbounds.suggestions import did_you_mean

FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT for module in (gptqmodel, llm_compressor, auto_round, llama_cpp)
}


def find_format(tool: str) -> Format:
    """The format of a tool.

    Raises
    ------
    UnknownNameError
        If there is none.
    """
    if not isinstance(tool, str) or tool.lower() not in FORMATS:
        hint = did_you_mean(tool, FORMATS)
        raise UnknownNameError(f"there is no format {shown(tool)}; {hint}choose {', '.join(FORMATS)}.")
    return FORMATS[tool.lower()]


def export(layers: Sequence[LayerOptions], choices: Mapping[str, str], tool: str) -> str:
    """The text of a file that makes a tool compress the layers like this.

    Parameters
    ----------
    layers : sequence of LayerOptions
    choices : mapping from layers to names of options
    tool : {"gptqmodel", "llm-compressor", "auto-round", "llama.cpp"}

    Raises
    ------
    InputError
        If the tool cannot express what is chosen for a layer, or does not know its name.
    """
    form = find_format(tool)
    options = {layer.name: layer.options[layer.index(choices[layer.name])] for layer in layers}
    wanted = {name: compression_of(option) for name, option in options.items()}
    try:
        strange = next((name for name, compression in wanted.items() if compression.other is not None), None)
        if strange is not None:
            raise InexpressibleError(strange, f"it does not know of {wanted[strange].other}")
        return form.write(wanted)
    except InexpressibleError as error:
        raise InputError(
            f"{form.name} cannot express {options[error.layer].name!r}, which is chosen for layer {error.layer!r}: "
            f"{error}; allocate without that option, or export to another tool."
        ) from error


def choices_of(layers: Sequence[LayerOptions], tool: str, text: str) -> dict[str, str]:
    """The options that a tool's file chooses.

    Parameters
    ----------
    layers : sequence of LayerOptions
    tool : str
        As in `export`.
    text : str
        What is in the file.

    Raises
    ------
    InputError
        If it cannot be read, or asks for what is no option of a layer.
    """
    chosen = find_format(tool).read(text, [layer.name for layer in layers])
    return {layer.name: option_for(layer, chosen[layer.name]) for layer in layers}
