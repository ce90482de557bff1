"""`layerbounds.capture_onnx`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from layerbounds.capturing.entry import CapturedLayers
from layerbounds.capturing.onnx.run import OnnxReport, OnnxRun
from layerbounds.progress import watched


class CapturedOnnxLayers(CapturedLayers):
    """The captured layers by name, in the order of execution.

    Attributes
    ----------
    report : OnnxReport
        Memory, passes, and what was not captured.
    """

    report: OnnxReport  # type: ignore[assignment]


def capture_onnx(
    model: Any,
    batches: Iterable[Any],
    layers: str | Iterable[str] | None = None,
    *,
    mask: str | None = "auto",
    memory_limit: int | str | None = None,
    check: bool = True,
    progress: Callable[[int, int | None], None] | bool | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> CapturedOnnxLayers:
    """Run an ONNX model on calibration batches and add up the Gram matrix of every layer's inputs.

    Layers are MatMul, Gemm and Conv nodes (one to three dimensions, any stride, padding, dilation and groups) whose
    weights are constant floating-point numbers: initializers, or what the graph computes of them alone. Nodes that
    share a weight are one layer. The model runs in onnxruntime on the CPU; PyTorch is not needed.

    Parameters
    ----------
    model : path-like or onnx.ModelProto
    batches : iterable
        Arrays (or tensors), tuples (inputs, labels), or mappings from the names of the model's inputs to arrays.
    layers : str or iterable of str, optional
        As in `layerbounds.capture`. Names are those of the initializers without ``.weight``; where exporters gave them
        none, those of the nodes as paths of modules (``/layers.0/fc/MatMul`` is ``layers.0.fc``).
    mask : {"auto"} or None
        With ``"auto"`` a batch whose ``attention_mask`` holds zeros is an error; None counts padded positions too.
    memory_limit : int or str, optional
        Bytes, or a text such as ``"2GB"``, for the Gram matrices of one pass over the batches; the layers are divided
        into several passes.
    check : bool
        Whether outputs of nodes are compared with their weights times their inputs on a few positions.
    progress : bool or callable, optional
        True for a bar on a terminal or in a notebook; a function is called after each batch with (batches done, batches
        in all or None).
    provenance : mapping, optional
        Stored with every layer.

    Returns
    -------
    CapturedOnnxLayers
        A dict of name to Layer with a ``report``.

    Raises
    ------
    InputError
        If a batch does not fit the model or gives NaN (its number is named), or a layer cannot be captured.
    FileFormatError
        If the file is no ONNX model.
    UnknownNameError
        If a name or pattern in ``layers`` matches nothing.
    MissingExtraError
        If onnx or onnxruntime is not installed.

    Warns
    -----
    CaptureWarning
        About nodes with weights that cannot be captured and were not asked for by name, and about few positions.

    Examples
    --------
    >>> import numpy as np
    >>> from onnx import TensorProto, helper, numpy_helper
    >>> import layerbounds as lb
    >>> def value(name, size):
    ...     return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
    >>> weight = numpy_helper.from_array(np.eye(4, 3, dtype=np.float32), "fc.weight")
    >>> node = helper.make_node("MatMul", ["x", "fc.weight"], ["y"])
    >>> graph = helper.make_graph([node], "tiny", [value("x", 4)], [value("y", 3)], [weight])
    >>> model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    >>> layers = lb.capture_onnx(model, [np.eye(4)])
    >>> layers["fc"]
    Layer('fc', weight 3x4, n=4, groups=1)
    """
    with watched(progress, "capture", None, "batches") as told:
        run = OnnxRun(
            model,
            batches,
            layers,
            mask=mask,
            memory_limit=memory_limit,
            check=check,
            progress=told,
            provenance=provenance,
        )
        result = CapturedOnnxLayers({layer.name: layer for layer in run.layers()})
    result.report = run.report
    return result
