"""A capture of an ONNX model from beginning to end."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbounds.arguments import as_mapping, check_functions, flag, parse_bytes, shown
from layerbounds.capturing.few_positions import warn_of_few_positions
from layerbounds.capturing.onnx.batches import check_mask, model_inputs
from layerbounds.capturing.onnx.layers import OnnxLayer, find_layers
from layerbounds.capturing.onnx.model import OnnxGraph, OnnxSession, require_onnx
from layerbounds.capturing.onnx.rows import BLOCK_BYTES, Rows
from layerbounds.capturing.onnx.sums import OnnxSums
from layerbounds.capturing.warning import CaptureWarning
from layerbounds.exceptions import InputError, LayerError, first_line
from layerbounds.layers.layer import Layer
from layerbounds.names import is_pattern, match_names
from layerbounds.version import __version__

#: Rows on which outputs are compared with weights times inputs, and the largest difference by the type of the outputs.
_CHECKED = 8
_TOLERANCE = {"float16": 3e-2, "float32": 1e-3, "float64": 1e-6}


@dataclass
class OnnxReport:
    """What happened beside the layers.

    Attributes
    ----------
    gram_bytes, peak_bytes : int
        Of all Gram matrices, and of those of the largest pass with a block of rows.
    passes : int
        Over the batches.
    batches : int
    order : tuple of str
        Layers in the order of execution.
    unreached : tuple of str
        Layers that saw no position.
    refused : dict of str to str
        Nodes with weights that cannot be captured, and why.
    other_parameters : tuple of str
        Matrices of floating-point numbers that belong to no captured layer; empty where layers were selected.
    few_positions : dict of str to int
        Positions of the layers that have fewer of them than inputs, and so a singular Gram matrix.
    """

    gram_bytes: int
    peak_bytes: int
    passes: int
    batches: int = 0
    order: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    other_parameters: tuple[str, ...] = ()
    few_positions: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Target:
    layer: OnnxLayer
    weight: NDArray[Any]

    @property
    def inputs(self) -> int:
        return int(np.prod(self.weight.shape[1:]))

    @property
    def key(self) -> tuple[int, tuple[tuple[str, Rows], ...]]:
        """Layers in which it is equal have the same X."""
        return self.inputs, self.layer.inputs

    @property
    def bytes(self) -> int:
        return 8 * self.layer.inputs[0][1].groups * self.inputs**2


class OnnxRun:
    """One capture; the parameters are those of `layerbounds.capture_onnx`."""

    def __init__(
        self,
        model: Any,
        batches: Iterable[Any],
        layers: str | Iterable[str] | None = None,
        *,
        mask: str | None = "auto",
        memory_limit: int | str | None = None,
        check: bool = True,
        progress: Callable[[int, int | None], None] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        if mask is not None and not (isinstance(mask, str) and mask == "auto"):
            raise InputError(f"mask is {shown(mask)}; pass 'auto', or None to count padded positions too.")
        if not isinstance(batches, Iterable) or isinstance(batches, (str, bytes, Mapping)) or hasattr(batches, "shape"):
            raise InputError(
                f"batches are {shown(batches)}; pass a list of arrays, or of mappings from names to arrays."
            )
        check_functions(progress=progress)
        self._check = flag(check, "check")
        self._progress, self._mask = progress, mask
        self._provenance = as_mapping(provenance, "provenance")
        limit = parse_bytes(memory_limit)
        self._batches = batches
        self._graph = model if isinstance(model, OnnxGraph) else OnnxGraph(model)
        self._targets, refused = _choose(self._graph, layers)
        self._passes = _passes(self._targets, limit)
        if len(self._passes) > 1 and isinstance(batches, Iterator):
            raise InputError(
                f"memory_limit asks for {len(self._passes)} passes over the batches, which can be gone through once; "
                "pass a list, or a higher limit."
            )
        sizes = [sum(sums.values()) for sums in map(_sums, self._passes)]
        self.report = OnnxReport(sum(sizes), max(sizes) + BLOCK_BYTES, len(self._passes), refused=refused)
        if layers is None:
            self.report.other_parameters = _others(self._graph, self._targets)

    def layers(self) -> Iterator[Layer]:
        """Capture, and give the layers of each pass when it is over."""
        for number, targets in enumerate(self._passes):
            sums = self._pass(targets, number)
            for target in targets:
                count = sums[target.key].count
                if count < target.inputs:
                    self.report.few_positions[target.layer.name] = count
                if count:
                    self.report.order += (target.layer.name,)
                    yield self._layer(target, sums[target.key])
                else:
                    self.report.unreached += (target.layer.name,)
        if not self.report.order:
            raise InputError("none of the layers to capture saw a position; pass batches that are not empty.")
        warn_of_few_positions(self.report.few_positions, {t.layer.name: t.inputs for t in self._targets})
        if self.report.unreached:
            warnings.warn(
                f"never reached, and not captured: {', '.join(self.report.unreached)}", CaptureWarning, stacklevel=2
            )

    def _pass(self, targets: list[_Target], number: int) -> dict[Any, OnnxSums]:
        sums = {t.key: OnnxSums(t.layer.inputs[0][1].groups, t.inputs) for t in targets}
        owners = {target.key: target.layer.name for target in reversed(targets)}
        tensors = list(dict.fromkeys(name for target in targets for name, _ in target.layer.inputs))
        total = len(self._batches) if isinstance(self._batches, Sized) else None
        count = 0
        with self._graph.session([name for name in tensors if name not in self._graph.inputs] or tensors) as session:
            for batch in self._batches:
                inputs = model_inputs(self._graph, batch, count)
                if self._mask == "auto":
                    check_mask(inputs, count)
                values = self._run(session, inputs, tensors, count)
                if count == 0 and self._check:
                    self._compare(targets, inputs, values)
                for key, own in sums.items():
                    n, sources = key
                    for name, rows in sources:
                        for block in rows.blocks(values[name], n):
                            if not own.add(block):
                                raise InputError(
                                    f"batch {count} (the first is 0): the inputs of layer {owners[key]!r} are not "
                                    "finite; leave the batch out, or repair the model."
                                )
                count += 1
                if self._progress is not None:
                    done = number * (self.report.batches or count)
                    self._progress(done + count, None if total is None else total * len(self._passes))
        if not count:
            raise InputError("there are no batches; pass at least one.")
        if number and count != self.report.batches:
            raise InputError(
                f"the batches gave {self.report.batches} batches in the first pass and {count} in pass {number + 1}; "
                "pass a list."
            )
        self.report.batches = count
        return sums

    def _run(
        self, session: OnnxSession, inputs: dict[str, NDArray[Any]], tensors: list[str], index: int
    ) -> dict[str, NDArray[Any]]:
        asked = [name for name in tensors if name not in self._graph.inputs] or tensors
        try:
            outputs = session.run(inputs)
        except Exception as error:
            raise InputError(
                f"batch {index}: the model failed ({first_line(error)}); its inputs are {self._graph.signature()}."
            ) from error
        return {**inputs, **dict(zip(asked, outputs, strict=True))}

    def _compare(
        self, targets: list[_Target], inputs: dict[str, NDArray[Any]], values: dict[str, NDArray[Any]]
    ) -> None:
        """Compare the outputs of nodes with weights times inputs, on a few positions of the first batch."""
        nodes = {node.output[0]: (t, i) for t in targets for i, node in enumerate(t.layer.nodes)}
        with self._graph.session(list(nodes)) as session:
            outputs = self._run(session, inputs, list(nodes), 0)
        for name, (target, i) in nodes.items():
            tensor, rows = target.layer.inputs[i]
            block = next(rows.blocks(values[tensor], target.inputs), None)
            if block is None or block.shape[1] < 2:
                continue
            at = np.arange(block.shape[1])[:: max(1, block.shape[1] // _CHECKED)][:_CHECKED]
            few = block[:, at]
            weights = target.weight.astype(np.float64).reshape(rows.groups, -1, target.inputs)
            products = np.concatenate([x @ w.T for x, w in zip(few, weights, strict=True)], axis=1)
            given = rows.outputs(outputs[name], products.shape[1])[at].astype(np.float64)
            # A bias is the same at all positions.
            difference = np.abs((given - given[0]) - (products - products[0])).max()
            tolerance = _TOLERANCE.get(outputs[name].dtype.name, 1e-3)
            size = np.abs(products).max()
            if difference > tolerance * max(size, 1e-30):
                raise LayerError(
                    f"layer {target.layer.name!r}: the outputs of its node are not its weights times its inputs "
                    f"(difference {difference:.2g} of {size:.2g}); leave it out, or pass check=False."
                )

    def _layer(self, target: _Target, sums: OnnxSums) -> Layer:
        onnx, runtime = require_onnx()
        layer = target.layer
        about: dict[str, Any] = {
            "kind": layer.kind,
            **layer.inputs[0][1].describe(),
            "layerbounds": __version__,
            "onnx": onnx.__version__,
            "onnxruntime": runtime.__version__,
            "model": self._graph.name,
            "batches": self.report.batches,
            "calls": len(layer.nodes),
            "accumulated_in": "float64",
            "initializer": layer.source,
            "nodes": [node.name for node in layer.nodes],
            **self._provenance,
        }
        gram = sums.gram(f"layer {layer.name!r}: gram")
        return Layer(target.weight, gram, layer.name, samples=sums.count, input_mean=sums.mean(), provenance=about)


def _choose(graph: OnnxGraph, selection: str | Iterable[str] | None) -> tuple[list[_Target], dict[str, str]]:
    found, refused = find_layers(graph)
    names = [layer.name for layer in found]
    if selection is None:
        chosen = names
    else:
        chosen = match_names(selection, [*names, *(name for name in refused if name not in names)], "layer")
        asked = {selection} if isinstance(selection, str) else set(selection)
        for name in chosen:
            if name in refused and any(not is_pattern(text) for text in asked):
                raise InputError(f"layer {name!r} {refused[name]}.")
        refused = {name: reason for name, reason in refused.items() if name in chosen}
    if refused:
        warnings.warn(
            "not captured: " + "; ".join(f"{name} {reason}" for name, reason in list(refused.items())[:8]),
            CaptureWarning,
            stacklevel=2,
        )
    layers = [layer for layer in found if layer.name in set(chosen)]
    if not layers:
        raise InputError(
            "the model has no layer that can be captured: no MatMul, Gemm or Conv whose weights are constant "
            "floating-point numbers."
        )
    targets = [_Target(layer, layer.matrix(graph)) for layer in layers]
    for target in targets:
        if not np.isfinite(target.weight).all():
            raise InputError(f"layer {target.layer.name!r}: its weights hold NaN or infinity; repair the model first.")
        if len({rows for _, rows in target.layer.inputs}) > 1:
            raise LayerError(
                f"layer {target.layer.name!r} is a weight that is used with different strides, paddings or layouts; "
                "leave it out."
            )
    return targets, refused


def _sums(targets: Iterable[_Target]) -> dict[Any, int]:
    return {target.key: target.bytes for target in targets}


def _passes(targets: list[_Target], limit: int | None) -> list[list[_Target]]:
    """Layers whose sums fit into a limit together; one that does not fit alone has a pass to itself."""
    passes: list[list[_Target]] = [[]]
    for target in targets:
        if limit is not None and passes[-1] and sum(_sums([*passes[-1], target]).values()) > limit:
            passes.append([])
        passes[-1].append(target)
    return passes


def _others(graph: OnnxGraph, targets: Iterable[_Target]) -> tuple[str, ...]:
    """Matrices that no captured layer takes, and no node looks rows up in."""
    known = {name for target in targets for name in graph.ancestors(target.layer.weight)[1]}
    known |= {node.input[0] for node in graph.nodes if node.op_type == "Gather"}
    found = []
    for name, tensor in graph.initializers.items():
        dims = [size for size in tensor.dims if size > 1]
        if name not in known and len(dims) >= 2 and graph.is_real(name):
            found.append(name)
    return tuple(found)
