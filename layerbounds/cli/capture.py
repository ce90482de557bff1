"""``layerbounds capture``: layers of a model, as it runs on calibration data, into a layer file."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from layerbounds.capturing.hashing import file_hash
from layerbounds.cli.capture_onnx import capture_onnx_model
from layerbounds.cli.console import result_console, said_warnings
from layerbounds.cli.models import (
    BatchSizeOption,
    DataOption,
    DeviceOption,
    DivideOption,
    FoldOption,
    KeyOption,
    LayersOption,
    LimitOption,
    MaxTokensOption,
    MeanOption,
    ModelDtypeOption,
    ModelOption,
    PreprocessOption,
    StdOption,
    TargetsOption,
    WeightsOption,
    is_onnx,
    model_files,
    read_inputs,
)
from layerbounds.cli.options import JsonOption, asked
from layerbounds.cli.outputs import check_outputs, deliver
from layerbounds.exceptions import InputError
from layerbounds.progress import shown_bar
from layerbounds.report.files import STDOUT, write_json
from layerbounds.report.tables import layer_table


def capture_command(
    context: typer.Context,
    model: ModelOption,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Layer file to write (safetensors).")],
    weights: WeightsOption = None,
    layers: LayersOption = None,
    key: KeyOption = None,
    batch_size: BatchSizeOption = 64,
    limit: LimitOption = None,
    divide: DivideOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    preprocess: PreprocessOption = None,
    max_tokens: MaxTokensOption = None,
    targets: TargetsOption = None,
    model_dtype: ModelDtypeOption = None,
    device: DeviceOption = None,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="NAME", help="Gram matrices are added up in float64 or float32.")
    ] = "float64",
    memory_limit: Annotated[
        str | None,
        typer.Option("--memory-limit", metavar="SIZE", help="Memory for Gram matrices in one pass, e.g. 2GB."),
    ] = None,
    fold: FoldOption = False,
    compressed_weights: Annotated[
        Path | None,
        typer.Option(
            "--compressed-weights", metavar="FILE", help="State dict whose layers' inputs the compressed layers see."
        ),
    ] = None,
    activation_bits: Annotated[
        int | None,
        typer.Option("--activation-bits", metavar="N", help="Quantize what the compressed layers see to 2 to 8 bits."),
    ] = None,
    activation_scheme: Annotated[
        str | None,
        typer.Option("--activation-scheme", metavar="HOW", help="dynamic (per token, default) or static (per tensor)."),
    ] = None,
    activation_asymmetric: Annotated[
        bool, typer.Option("--activation-asymmetric", help="Quantize activations with a zero point.")
    ] = False,
    json_out: JsonOption = None,
) -> None:
    """Run a model on calibration data and write what its layers see, ready for `layerbounds solve --input`."""
    check_outputs(
        {"--out": out, "--json": json_out},
        model_files(model, weights, data, preprocess, targets) | {"--compressed-weights": compressed_weights},
    )
    if activation_bits is None and (activation_scheme is not None or activation_asymmetric):
        raise InputError("--activation-scheme and --activation-asymmetric say how; pass --activation-bits, too.")
    if is_onnx(model):
        capture_onnx_model(
            context,
            Path(model),
            data,
            out,
            layers=layers,
            key=key,
            batch_size=batch_size,
            limit=limit,
            scaling={"divide": divide, "mean": mean, "std": std},
            preprocess=preprocess,
            memory_limit=memory_limit,
            json_out=json_out,
            other={
                "--weights": weights,
                "--max-tokens": max_tokens,
                "--targets": targets,
                "--model-dtype": model_dtype,
                "--device": device,
                "--dtype": dtype != "float64",
                "--fold-batchnorm": fold,
                "--compressed-weights": compressed_weights,
                "--activation-bits": activation_bits,
            },
        )
        return
    scheme = activation_scheme or "dynamic"
    inputs = read_inputs(
        model,
        weights,
        data,
        key=key,
        batch_size=batch_size,
        limit=limit,
        divide=divide,
        mean=mean,
        std=std,
        preprocess=preprocess,
        max_tokens=max_tokens,
        model_dtype=model_dtype,
        targets=targets,
        device=device,
    )
    from layerbounds.capturing.activations import quantize_activations
    from layerbounds.capturing.capture_run import CaptureRun
    from layerbounds.capturing.files import write_capture
    from layerbounds.capturing.loading import load_weights

    compressed = None
    if compressed_weights is not None:
        compressed = copy.deepcopy(inputs.model)
        if notes := load_weights(compressed, compressed_weights):
            print(f"note: {compressed_weights}: {'; '.join(notes)}", file=sys.stderr)
        inputs.provenance["source"]["compressed_weights_sha256"] = file_hash(compressed_weights)
    if activation_bits is not None:
        compressed = quantize_activations(
            compressed if compressed is not None else inputs.model,
            activation_bits,
            layers=layers,
            scheme=scheme,
            symmetric=not activation_asymmetric,
            batches=inputs.batches,
            device=device,
        )
        inputs.provenance["activations"] = {
            "bits": activation_bits,
            "scheme": scheme,
            "symmetric": not activation_asymmetric,
        }
    with said_warnings(), shown_bar("capture", None, "batches") as progress:
        capture_run = CaptureRun(
            inputs.model,
            inputs.batches,
            layers,
            dtype=dtype,
            device=device,
            compressed_model=compressed,
            fold_batchnorm=fold,
            memory_limit=memory_limit,
            spill_dir=str(out.resolve().parent),
            plan=lambda memory: print(memory, file=sys.stderr),
            progress=progress,
            provenance=inputs.provenance,
        )
        report, rows = write_capture(out, capture_run)
    if report.other_parameters:
        names = ", ".join(report.other_parameters[:8]) + (", …" if len(report.other_parameters) > 8 else "")
        print("note: parameters that belong to no captured layer:", names, file=sys.stderr)
    for path, tokens in report.expert_tokens.items():
        idle = sum(count == 0 for count in tokens.values())
        print(
            f"note: experts of {path} got {min(tokens.values())} to {max(tokens.values())} tokens"
            + (f"; {idle} of {len(tokens)} got none and are not captured" if idle else ""),
            file=sys.stderr,
        )
    record = {
        "out": str(out),
        "layers": rows,
        "batches": report.batches,
        "passes": len(report.plan.passes),
        "gram_bytes": report.plan.bytes,
        "peak_bytes": report.plan.peak,
        "unreached": list(report.unreached),
        "refused": report.refused,
        "folded_batchnorm": report.folded,
        "other_parameters": list(report.other_parameters),
        "few_positions": report.few_positions,
        "expert_tokens": report.expert_tokens,
        "options": asked(context),
    }
    steps: list[Callable[[], None]] = []
    if json_out is not None:
        steps.append(partial(write_json, json_out, record))
    if json_out != STDOUT:
        steps.append(lambda: result_console().print(layer_table(rows, str(out))))
    deliver(steps)
