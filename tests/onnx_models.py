"""ONNX models written node by node from modules of PyTorch, as exporters lay them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

onnx: Any = pytest.importorskip("onnx", reason="ONNX models need the onnx extra")
pytest.importorskip("onnxruntime", reason="ONNX models need the onnx extra")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def value(name: str, shape: Sequence[Any] | None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def node(operator: str, inputs: Sequence[str], output: str, name: str = "", **attributes: Any) -> Any:
    return helper.make_node(operator, list(inputs), [output], name=name or output, **attributes)


def model(nodes: Sequence[Any], inputs: Sequence[Any], output: str, weights: Mapping[str, Any], **more: Any) -> Any:
    """A model with one output of any shape."""
    tensors = [numpy_helper.from_array(np.asarray(v), name) for name, v in weights.items()]
    graph = helper.make_graph(list(nodes), "graph", list(inputs), [value(output, None)], tensors)
    opsets = [helper.make_opsetid("", 17), *more.get("opsets", ())]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def parameters(module: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """Weights of a module in single precision, under other names."""
    state = module.state_dict()
    return {new: state[old].detach().numpy() for old, new in names.items()}
