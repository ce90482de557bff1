"""``layerbounds layers``: what a layer file holds."""

from __future__ import annotations

from layerbounds.cli.console import result_console
from layerbounds.cli.options import InputOption, JsonOption, read_layers
from layerbounds.cli.outputs import check_outputs
from layerbounds.layers.layer_file import LayerFile
from layerbounds.report.describe import describe_layer
from layerbounds.report.files import STDOUT, write_json
from layerbounds.report.tables import layer_table


def layers_command(input_file: InputOption = None, json_out: JsonOption = None) -> None:
    """List the layers of a file: sizes, dead inputs, rank, repairs of Gram matrices, and which layers share one."""
    check_outputs({"--json": json_out}, {"--input": input_file})
    layers = read_layers(input_file)
    rows = [
        describe_layer(layer, layers.gram_of(name) if isinstance(layers, LayerFile) else None)
        for name, layer in layers.items()
    ]
    source = None if input_file is None else str(input_file)
    if json_out is not None:
        write_json(json_out, {"input": source, "layers": rows})
    if json_out != STDOUT:
        result_console().print(layer_table(rows, source or "embedded demo network"))
