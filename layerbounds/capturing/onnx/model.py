"""An ONNX graph: which tensors are constant, who makes them, and models made of a part of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.arguments import as_path, shown
from layerbounds.exceptions import FileFormatError, InputError, MissingExtraError, first_line

#: Bytes beyond which a model goes to onnxruntime by way of a file: messages of protobuf have less than 2 GiB.
_LARGE = 1_500_000_000
#: Operators whose outputs differ from call to call although their inputs do not.
_RANDOM = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
)


def require_onnx() -> tuple[Any, Any]:
    """The packages onnx and onnxruntime.

    Raises
    ------
    MissingExtraError
        If one is not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            "ONNX models need onnx and onnxruntime; run: pip install 'layerbounds[onnx]'"
        ) from error
    return onnx, onnxruntime


class OnnxGraph:
    """A model whose tensors can be looked at.

    Parameters
    ----------
    model : path-like or onnx.ModelProto
        Left as it is.

    Attributes
    ----------
    name : str
        Of the file, or of the graph.
    nodes : list of onnx.NodeProto
        In the order of execution; functions of the model are expanded.
    inputs : dict of str to onnx.ValueInfoProto
        What batches have to give.
    initializers : dict of str to onnx.TensorProto
    makers : dict of str to onnx.NodeProto
        Which node gives a tensor.
    subgraphs : list of (str, onnx.GraphProto)
        Bodies of loops and branches, with the names of their nodes.

    Raises
    ------
    MissingExtraError
        If onnx or onnxruntime is not installed.
    FileFormatError
        If a file is no ONNX model.
    InputError
        If the model is something else.
    """

    def __init__(self, model: Any) -> None:
        self._onnx, self._runtime = require_onnx()
        if isinstance(model, self._onnx.ModelProto):
            self._model = self._onnx.ModelProto()
            self._model.CopyFrom(model)
            self.name = model.graph.name or "model"
        elif isinstance(model, (str, os.PathLike)):
            path = as_path(model, "model")
            self.name = path.name
            self._model = self._read(path)
        else:
            raise InputError(f"model is {shown(model)}; pass the path of an ONNX file, or an onnx.ModelProto.")
        if self._model.functions:
            import onnx.inliner

            self._model = onnx.inliner.inline_local_functions(self._model)
        graph = self._model.graph
        if not graph.node:
            raise FileFormatError(f"{self.name} is no ONNX model with nodes; check the path.")
        self.nodes: list[Any] = list(graph.node)
        self.initializers: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
        # Old models list their weights among the inputs, too.
        self.inputs: dict[str, Any] = {i.name: i for i in graph.input if i.name not in self.initializers}
        self.makers: dict[str, Any] = {name: node for node in self.nodes for name in node.output if name}
        self.subgraphs: list[tuple[str, Any]] = list(self._inner(self.nodes))
        self._constant: dict[str, bool] = {}
        self._find_constants()

    def _read(self, path: Path) -> Any:
        if not path.is_file():
            raise FileFormatError(f"{path} does not exist or is not a file; check the path.")
        try:
            return self._onnx.load(os.fspath(path))
        except Exception as error:
            raise FileFormatError(
                f"{path} cannot be read as an ONNX model ({first_line(error)}); check the file, and that its external "
                "data are beside it."
            ) from error

    def _inner(self, nodes: Iterable[Any]) -> Iterable[tuple[str, Any]]:
        for node in nodes:
            for attribute in node.attribute:
                graphs = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
                for graph in graphs:
                    yield node.name or node.op_type, graph
                    yield from self._inner(graph.node)

    def _find_constants(self) -> None:
        for node in self.nodes:
            inner = any(a.HasField("g") or a.graphs for a in node.attribute)
            known = all(not name or self.is_constant(name) for name in node.input)
            if known and not inner and node.op_type not in _RANDOM:
                self._constant |= dict.fromkeys(node.output, True)

    def is_constant(self, name: str) -> bool:
        """Whether a tensor does not depend on the inputs of the model."""
        return name in self.initializers or name in self._constant

    def ancestors(self, name: str) -> tuple[list[Any], list[str]]:
        """The nodes that a constant tensor is made by, in the order of execution, and the initializers behind them."""
        wanted, seen, used = [name], {name}, []
        makers: set[int] = set()
        while wanted:
            tensor = wanted.pop()
            if tensor in self.initializers:
                used.append(tensor)
            elif tensor in self.makers:
                makers.add(id(self.makers[tensor]))
                new = [other for other in self.makers[tensor].input if other and other not in seen]
                seen.update(new)
                wanted += new
        return [node for node in self.nodes if id(node) in makers], used

    def value(self, name: str) -> NDArray[Any]:
        """The numbers of a constant tensor."""
        if name in self.initializers:
            return np.asarray(self._onnx.numpy_helper.to_array(self.initializers[name]))
        nodes, used = self.ancestors(name)
        part = self._onnx.ModelProto()
        part.CopyFrom(self._model)
        for field in ("node", "initializer", "input", "output", "value_info", "sparse_initializer"):
            part.graph.ClearField(field)
        part.graph.node.extend(nodes)
        part.graph.initializer.extend(self.initializers[key] for key in used)
        part.graph.output.append(self._onnx.ValueInfoProto(name=name))
        with OnnxSession(self._onnx, self._runtime, part) as session:
            return session.run({})[0]

    def is_real(self, name: str) -> bool:
        """Whether an initializer holds floating-point numbers."""
        kind = self._onnx.TensorProto
        return self.initializers[name].data_type in (kind.FLOAT, kind.FLOAT16, kind.BFLOAT16, kind.DOUBLE)

    def signature(self) -> str:
        """Names and shapes of the inputs, for messages."""
        described = []
        for name, value in self.inputs.items():
            dims = value.type.tensor_type.shape.dim
            shape = ", ".join(str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in dims)
            described.append(f"{name} ({shape})")
        return ", ".join(described) or "none"

    def session(self, outputs: Sequence[str]) -> OnnxSession:
        """The model with some of its tensors as its only outputs."""
        part = self._onnx.ModelProto()
        part.CopyFrom(self._model)
        part.graph.ClearField("output")
        part.graph.output.extend(self._onnx.ValueInfoProto(name=name) for name in outputs)
        return OnnxSession(self._onnx, self._runtime, part)


class OnnxSession:
    """A model loaded into onnxruntime; a context, since large ones have a file behind them.

    Raises
    ------
    FileFormatError
        If onnxruntime does not take it.
    """

    def __init__(self, onnx: Any, runtime: Any, model: Any) -> None:
        self._stack = ExitStack()
        options = runtime.SessionOptions()
        # Errors come as exceptions; what it would print beside them is about its own optimizations.
        options.log_severity_level = 4
        try:
            if model.ByteSize() < _LARGE:
                source: Any = model.SerializeToString()
            else:
                folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="layerbounds-"))
                source = os.path.join(folder, "model.onnx")
                onnx.save(model, source, save_as_external_data=True, location="model.data")
            self._session = runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            self._stack.close()
            raise FileFormatError(
                f"onnxruntime cannot load the model ({first_line(error)}); check it with onnx.checker.check_model."
            ) from error

    def __enter__(self) -> OnnxSession:
        return self

    def __exit__(self, *_: object) -> None:
        del self._session
        self._stack.close()

    def run(self, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Its outputs, in their order."""
        return list(self._session.run(None, inputs))
