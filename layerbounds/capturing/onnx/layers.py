"""Which nodes of an ONNX graph are layers, what they are called, and which of their inputs the weights see."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.capturing.onnx.model import OnnxGraph
from layerbounds.capturing.onnx.rows import ConvRows, MatrixRows, Rows

#: Operators that compute with integers or packed codes, by what they multiply.
_QUANTIZED = frozenset(
    (
        "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm", "MatMulNBits", "MatMulBnb4",
        "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QAttention", "QMoE", "MatMulFpQ4",
    )
)  # fmt: skip
#: Operators with weights that are no layer for capture, and why.
_UNSUPPORTED = {
    "ConvTranspose": "is a transposed convolution, which capture does not support yet",
    "LSTM": "is a recurrent layer, which capture does not support",
    "GRU": "is a recurrent layer, which capture does not support",
    "RNN": "is a recurrent layer, which capture does not support",
    "DeformConv": "is a deformable convolution, whose inputs depend on other tensors",
    "FusedConv": "is fused by onnxruntime; pass the model before its optimization",
    "FusedMatMul": "is fused by onnxruntime; pass the model before its optimization",
    "FusedGemm": "is fused by onnxruntime; pass the model before its optimization",
    "Attention": "has fused projections; pass the model before its optimization",
    "MoE": "has fused experts; pass a model with separate ones",
}
_MULTIPLIES = ("MatMul", "Gemm", "Conv")
#: What exporters call tensors that had no name.
_NAMELESS = re.compile(r"(onnx::|val_|_?\d|/|.*_(quantized|DequantizeLinear))")
_FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True)
class OnnxLayer:
    """The nodes that multiply their inputs by one weight.

    Attributes
    ----------
    name : str
    kind : str
        ``"linear"``, ``"conv1d"`` and the like.
    weight : str
        The constant tensor that the nodes take.
    source : str
        The initializer behind it.
    transposed : bool
        Whether the tensor is (in, out).
    nodes : tuple of onnx.NodeProto
    inputs : tuple of (str, Rows)
        For each node, the tensor that it multiplies and how that becomes rows.
    """

    name: str
    kind: str
    weight: str
    source: str
    transposed: bool
    nodes: tuple[Any, ...]
    inputs: tuple[tuple[str, Rows], ...]

    def matrix(self, graph: OnnxGraph) -> NDArray[Any]:
        """The weights as (out, in) or (out, in, …kernel)."""
        value = graph.value(self.weight)
        return value.T if self.transposed else value


@dataclass(frozen=True)
class _Use:
    node: Any
    kind: str
    weight: str
    transposed: bool
    input: str
    rows: Rows


def find_layers(graph: OnnxGraph) -> tuple[list[OnnxLayer], dict[str, str]]:
    """The layers of a graph in the order of execution, and those that cannot be captured, with the reasons."""
    uses: dict[tuple[str, bool, str], list[_Use]] = {}
    refused: dict[str, str] = {}
    for node in graph.nodes:
        found = _use(graph, node)
        if isinstance(found, str):
            refused[_of_node(node)] = found
        elif found is not None:
            uses.setdefault((found.weight, found.transposed, found.kind), []).append(found)
    for place, inner in graph.subgraphs:
        for node in inner.node:
            if node.op_type in _MULTIPLIES:
                refused[_of_node(node)] = f"is inside of {place}, whose tensors onnxruntime does not show"
    names = _names(graph, [(key[0], group[0].node) for key, group in uses.items()])
    layers = [
        OnnxLayer(
            name,
            kind,
            weight,
            _source(graph, weight),
            transposed,
            tuple(use.node for use in group),
            tuple((use.input, use.rows) for use in group),
        )
        for name, ((weight, transposed, kind), group) in zip(names, uses.items(), strict=True)
    ]
    return layers, refused


def _use(graph: OnnxGraph, node: Any) -> _Use | str | None:
    """How a node multiplies; a reason where it cannot be captured; None where it has no weights."""
    operator = node.op_type
    if operator in _QUANTIZED:
        return "has quantized weights; pass the model before its quantization"
    if operator in _UNSUPPORTED and (node.domain == "com.microsoft" or operator not in ("Attention", "MoE")):
        return _UNSUPPORTED[operator]
    if operator not in _MULTIPLIES or node.domain not in ("", "ai.onnx"):
        return None
    first, second = node.input[0], node.input[1]
    attributes = {a.name: a for a in node.attribute}
    constant = [graph.is_constant(name) for name in (first, second)]
    if all(constant) or not any(constant):
        return None
    on_the_left = constant[0]
    weight, other = (first, second) if on_the_left else (second, first)
    if on_the_left and operator != "MatMul":
        return "has its weights on the left, which capture supports for MatMul alone"
    makers = {maker.op_type for maker in graph.ancestors(weight)[0]}
    if "DequantizeLinear" in makers:
        return "has quantized weights (DequantizeLinear); pass the model before its quantization"
    shape, kind = _shape(graph, weight)
    if kind not in _FLOATS:
        return f"has weights of type {kind}; pass a model with weights of float16, float32 or float64"
    if operator == "Conv":
        if not 3 <= len(shape) <= 5:
            return f"has weights of shape {shape}, which is no convolution in one to three dimensions"
        rows: Rows = ConvRows.of_node(attributes, shape)
        return _Use(node, f"conv{len(shape) - 2}d", weight, False, other, rows)
    if len(shape) != 2:
        if len(shape) < 2 or shape[-1] == 1 or shape[-2] == 1:
            return None
        return f"has weights of shape {shape}, a matrix for each of several inputs; capture takes one matrix"
    if operator == "Gemm":
        transposed = not (attributes["transB"].i if "transB" in attributes else 0)
        flipped = bool(attributes["transA"].i) if "transA" in attributes else False
        factor = float(attributes["alpha"].f) if "alpha" in attributes else 1.0
        return _Use(node, "linear", weight, transposed, other, MatrixRows(flipped, factor=factor))
    return _Use(node, "linear", weight, not on_the_left, other, MatrixRows(on_the_left, on_the_left))


def _shape(graph: OnnxGraph, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    if name in graph.initializers:
        import onnx

        tensor = graph.initializers[name]
        return tuple(tensor.dims), np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    value = graph.value(name)
    return value.shape, value.dtype


def _source(graph: OnnxGraph, weight: str) -> str:
    """The initializer that a weight is, perhaps transposed or converted; else the largest behind it."""
    used = graph.ancestors(weight)[1]
    return max(used, key=lambda name: int(np.prod(graph.initializers[name].dims)), default=weight)


def _of_node(node: Any) -> str:
    return _dotted(node.name, node.op_type) or (node.output[0] if node.output else node.op_type)


def _dotted(path: str, operator: str) -> str:
    """The module that a node of PyTorch's exporter belongs to: /layer1/layer1.0/conv1/Conv is layer1.0.conv1."""
    parts = [part for part in path.split("/") if part]
    if len(parts) < 2:
        return path
    if re.fullmatch(rf"{operator}(_\d+)?", parts[-1]):
        parts = parts[:-1]
    kept: list[str] = []
    for part in parts:
        # A list of modules stands before its member, which repeats its name.
        if kept and part.startswith(kept[-1] + "."):
            kept.pop()
        kept.append(part)
    return ".".join(kept)


def _names(graph: OnnxGraph, found: Iterable[tuple[str, Any]]) -> Iterator[str]:
    """What layers are called: as their initializers, where those have names, else as their nodes."""
    candidates = []
    for weight, node in found:
        source = _source(graph, weight)
        named = "" if _NAMELESS.match(source) else re.sub(r"[._](weight|kernel)$", "", source)
        candidates.append([named, _of_node(node), node.output[0]])
    for choice in range(3):
        count = Counter(names[0] for names in candidates)
        for names in candidates:
            if choice < 2 and (not names[0] or count[names[0]] > 1) and len(names) > 1:
                names.pop(0)
    return (names[0] for names in candidates)
