"""`layerbounds.capture` and what belongs to it, importable without PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from layerbounds.display import Displayed, Summary, Table
from layerbounds.exceptions import MissingExtraError
from layerbounds.frames import Kind, data_frame
from layerbounds.layers.layer import Layer
from layerbounds.progress import watched

if TYPE_CHECKING:
    import torch
    from torch import nn

    from layerbounds.capturing.capture_run import CaptureReport
    from layerbounds.capturing.memory import MemoryPlan


class CapturedLayers(Displayed, dict[str, Layer]):
    """The captured layers by name, in the order of execution.

    Attributes
    ----------
    report : CaptureReport
        Memory, passes, and what was not captured or was folded.
    """

    report: CaptureReport

    def to_frame(self) -> Any:
        """A table with a row for each layer.

        Returns
        -------
        pandas.DataFrame
            ``layer``, ``shape`` of the weight, ``inputs`` of an output channel, ``groups``, ``samples`` (calibration
            positions) and ``dead_inputs``.

        Raises
        ------
        MissingExtraError
            Without pandas.
        """
        kinds: dict[str, Kind] = {"layer": "text", "shape": "text"}
        kinds |= dict.fromkeys(("inputs", "groups", "samples", "dead_inputs"), "whole")
        return data_frame(kinds, [dict(zip(kinds, _row(layer), strict=True)) for layer in self.values()])

    def _summary(self) -> Summary:
        count = len(self)
        return Summary(
            f"{count} layer{'' if count == 1 else 's'}: {', '.join([*self][:_NAMED])}{', …' * (count > _NAMED)}"
        )

    def _tables(self) -> list[Table]:
        rows = [["" if value is None else str(value) for value in _row(layer)] for layer in self.values()]
        kinds = ("inputs", "groups", "calibration positions", "dead inputs")
        return [Table({"layer": "text", "weight": "text", **dict.fromkeys(kinds, "number")}, rows)]


#: Layers that a line names at most.
_NAMED = 6


def _row(layer: Layer) -> list[Any]:
    """What a table says of a layer."""
    dead = sum(report.dead for report in layer.gram_reports)
    shape = "x".join(map(str, layer.weight.shape))
    return [layer.name, shape, layer.in_features, layer.groups, layer.samples, dead]


def require_torch() -> None:
    """Raise one clear sentence where PyTorch is missing."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("capture needs PyTorch; run: pip install 'layerbounds[torch]'") from error


def capture(
    model: nn.Module | str | os.PathLike[str],
    batches: Iterable[Any],
    layers: str | Iterable[str] | None = None,
    *,
    model_dtype: str | None = None,
    dtype: str | torch.dtype = "float64",
    device: str | torch.device | None = None,
    mask: Callable[[Any], Any] | Literal["auto"] | None = "auto",
    forward: Callable[[nn.Module, Any], Any] | None = None,
    compressed_model: nn.Module | None = None,
    fold_batchnorm: bool = False,
    memory_limit: int | str | None = None,
    spill_dir: str | os.PathLike[str] | None = None,
    check: bool = True,
    plan: Callable[[MemoryPlan], None] | None = None,
    progress: Callable[[int, int | None], None] | bool | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> CapturedLayers:
    """Run a model on calibration batches and add up the Gram matrix of every layer's inputs.

    Layers are Linear, Conv1d, Conv2d and Conv3d (any stride, padding, dilation and groups) and the Conv1D of
    `transformers`. A module called several times, and modules that share one weight, give one layer over all positions.
    The model runs in evaluation mode, without gradients, in its own precision, and is left as it was.

    Parameters
    ----------
    model : torch.nn.Module or path-like
        A module, a model directory of `transformers`, or a GGUF file.
    batches : iterable
        Tensors; tuples or lists (inputs, labels), of which the model gets the first entry; or mappings that it gets as
        keywords.
    layers : str or iterable of str, optional
        Names of modules, their unique ends, globs such as ``"layer1.*"``, or ``"re:"`` and a regular expression for the
        whole name. Default: all layers.
    model_dtype : {"stored", "float32", "float16", "bfloat16", "float64"}, optional
        In which the model of a directory computes. Default: as it is stored, but float32 where that has 16 bits and the
        model runs on a CPU, on which 16 bits are slow; its weights are the same.
    dtype : {"float64", "float32"}
        In which the Gram matrices are added up; in float32 about the mean of the first rows.
    device : optional
        Where the model runs and the Gram matrices are added up; default: where the model is.
    mask : callable, "auto" or None
        ``mask(batch)`` gives the tokens that count (nonzero), of shape (sequences, tokens). By default the
        ``attention_mask`` of batches that are mappings. Which axes of the layers' inputs these are is found out by
        running parts of the first padded batch.
    forward : callable, optional
        ``forward(model, batch)`` instead of the call described at ``batches``.
    compressed_model : torch.nn.Module, optional
        A model of the same structure whose layers see the inputs X̂ that the compressed layers will see (quantized
        activations, an already compressed prefix). Then the Gram is X̂ᵀX̂/N, and target and constant are those of
        ‖X̂v − Xw‖²/N; see `Layer.from_moments`.
    fold_batchnorm : bool
        Whether batch normalisation is folded into the layer before it, in a copy of the model.
    memory_limit : int or str, optional
        Bytes, or a text such as ``"2GB"``, for the sums of one pass over the batches: the layers are divided into
        several passes, and those larger than the limit are added up on disk. The model, its activations, a block of
        unfolded inputs (64 MiB) and the resulting layers come on top.
    spill_dir : path-like, optional
        Folder for sums on disk; default: that of temporary files.
    check : bool
        Whether each module's output is compared with its weights times its inputs on a few positions.
    plan : callable, optional
        Called with the memory plan before the model runs.
    progress : bool or callable, optional
        True for a bar on a terminal or in a notebook; a function is called after each batch with (batches done, batches
        in all or None).
    provenance : mapping, optional
        Stored with every layer.

    Returns
    -------
    CapturedLayers
        A dict of name to Layer with a ``report``.

    Raises
    ------
    InputError
        If a batch gives NaN (its number is named), a layer cannot be captured, or no layer is reached.
    UnknownNameError
        If a name or pattern in ``layers`` matches nothing.
    MissingExtraError
        If PyTorch is not installed.

    Warns
    -----
    CaptureWarning
        About layers that were not reached, or cannot be captured and were not asked for by name, and about those with
        fewer positions than inputs, whose Gram matrix is singular.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    >>> batches = [torch.eye(3), torch.ones(4, 3)]
    >>> lb.capture(model, batches)["0"].weight.shape
    (2, 3)
    """
    require_torch()
    from layerbounds.capturing.capture_run import CaptureRun

    with watched(progress, "capture", None, "batches") as told:
        capture_run = CaptureRun(
            model,
            batches,
            layers,
            model_dtype=model_dtype,
            dtype=dtype,
            device=device,
            mask=mask,
            forward=forward,
            compressed_model=compressed_model,
            fold_batchnorm=fold_batchnorm,
            memory_limit=memory_limit,
            spill_dir=spill_dir,
            check=check,
            plan=plan,
            progress=told,
            provenance=provenance,
        )
        found = {layer.name: layer for layer in capture_run.layers()}
    result = CapturedLayers({name: found[name] for name in capture_run.report.order if name in found})
    result.report = capture_run.report
    return result


def capture_to_file(
    path: str | os.PathLike[str],
    model: nn.Module | str | os.PathLike[str],
    batches: Iterable[Any],
    layers: str | Iterable[str] | None = None,
    **options: Any,
) -> CaptureReport:
    """Capture layers and write them to a layer file, without having all of them in memory.

    Parameters
    ----------
    path : path-like
        Written whole or not at all.
    model, batches, layers, **options
        As in `capture`.

    Returns
    -------
    CaptureReport

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    >>> batches = [torch.eye(3), torch.ones(4, 3)]
    >>> report = lb.capture_to_file("capture.safetensors", model, batches)
    >>> list(lb.load_layers("capture.safetensors"))
    ['0']
    """
    require_torch()
    from layerbounds.capturing.capture_run import CaptureRun
    from layerbounds.capturing.files import write_capture

    with watched(options.pop("progress", None), "capture", None, "batches") as told:
        return write_capture(path, CaptureRun(model, batches, layers, progress=told, **options))[0]
