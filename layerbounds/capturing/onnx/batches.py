"""What an ONNX model gets: arrays by the names of its inputs, checked before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.arguments import shown
from layerbounds.arrays import as_numpy
from layerbounds.capturing.onnx.model import OnnxGraph
from layerbounds.exceptions import InputError


def model_inputs(graph: OnnxGraph, batch: Any, index: int) -> dict[str, NDArray[Any]]:
    """The arrays of a batch, by name and in the types of the model.

    Parameters
    ----------
    graph : OnnxGraph
    batch : array_like, tuple or mapping
        An array where the model has one input, a tuple (inputs, labels) likewise, or arrays by name.
    index : int
        Of the batch, for messages.

    Raises
    ------
    InputError
        If names or types are not those of the model, or a mask leaves positions out.
    """
    names = list(graph.inputs)
    if isinstance(batch, (tuple, list)) and len(batch) and hasattr(batch[0], "shape"):
        batch = batch[0]
    if not isinstance(batch, Mapping):
        if len(names) != 1:
            raise InputError(
                f"the model has {len(names)} inputs ({', '.join(names)}), and batch {index} is {shown(batch)}; pass "
                "mappings from their names to arrays."
            )
        batch = {names[0]: batch}
    missing = [name for name in names if name not in batch]
    unknown = [str(name) for name in batch if name not in names]
    if missing or unknown:
        what = " and ".join(
            text
            for text in (
                f"lacks {', '.join(missing)}" if missing else "",
                f"has {', '.join(unknown)} too many" if unknown else "",
            )
            if text
        )
        raise InputError(f"batch {index} {what}; the inputs of the model are {', '.join(names) or 'none'}.")
    return {name: _typed(graph.inputs[name], batch[name], f"batch {index}: {name}") for name in names}


def check_mask(inputs: Mapping[str, NDArray[Any]], index: int) -> None:
    """Refuse padding, which would count as positions.

    Raises
    ------
    InputError
        If an attention mask holds zeros.
    """
    mask = inputs.get("attention_mask")
    if mask is not None and not mask.all():
        raise InputError(
            f"batch {index} has an attention_mask that leaves positions out, which capture of ONNX models cannot do; "
            "pass sequences of one length, or mask=None to count padded positions too."
        )


def _typed(declared: Any, value: Any, what: str) -> NDArray[Any]:
    import onnx

    array = as_numpy(value, what)
    wanted = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(declared.type.tensor_type.elem_type))
    if array.dtype.kind == "f" and wanted.kind == "f":
        # What becomes infinite is found in the inputs of the layers.
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(array, dtype=wanted)
    if array.dtype.kind in "iub" and wanted.kind in "iub":
        converted = array.astype(wanted)
        if np.array_equal(converted, array):
            return np.ascontiguousarray(converted)
    raise InputError(f"{what} holds {array.dtype}, and the model takes {wanted}; convert it first.")
