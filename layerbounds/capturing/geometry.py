"""How each kind of module lays out its inputs: the rows X whose Gram matrix says what a change of weights costs."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from layerbounds.layers.weight_files import TRANSFORMERS_CONV1D

#: What weights and inputs may be.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: Bytes of one block of unfolded float64 inputs: what streaming needs beside the Gram matrices.
BLOCK_BYTES = 64 * 2**20


class Geometry(Protocol):
    """One kind of layer.

    Attributes
    ----------
    kind : str
    groups : int
        Groups with a Gram matrix each; 1 except for grouped convolutions.
    inputs : int
        n, flattened inputs of one output channel.
    outputs : int
        Output channels.
    """

    @property
    def kind(self) -> str: ...  # noqa: D102

    @property
    def groups(self) -> int: ...  # noqa: D102

    @property
    def inputs(self) -> int: ...  # noqa: D102

    @property
    def outputs(self) -> int: ...  # noqa: D102

    @property
    def layout(self) -> Hashable:
        """What says how inputs become rows: layers in which it is equal have the same X for the same inputs.

        None for layers that never see the inputs of others.
        """
        ...

    def blocks(self, x: Tensor, rows: int) -> Iterator[tuple[Any, Tensor]]:
        """Unfold inputs piece by piece.

        Yields
        ------
        where : object
            For `output_rows`.
        block : Tensor of shape (groups, ≤ about ``rows``, n)
            In the order (position, …) that `output_rows` has too.
        """
        ...

    def output_rows(self, y: Tensor, where: Any) -> Tensor:
        """The module's outputs at the positions of a block, shape (groups, rows, outputs per group)."""
        ...

    def positions(self, x: Tensor) -> Tensor:
        """The inputs as the module gets them, with the features on the last axis."""
        ...

    def row_for_each(self, x: Tensor) -> bool:
        """Whether the rows of X belong to these positions one by one, in their order."""
        ...

    def weight(self, module: nn.Module) -> Tensor:
        """The weights as (out, in) or (out, in, kh, kw)."""
        ...

    def store(self, module: nn.Module, weight: Tensor) -> None:
        """Replace the weights, given as `weight` returns them."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a reader needs to rebuild the module, in plain values."""
        ...


@dataclass(frozen=True)
class LinearGeometry:
    """A matrix product with the last axis of its input.

    ``transposed`` is for the layer that `transformers` calls Conv1D, whose weight is stored as (in, out).
    """

    inputs: int
    outputs: int
    transposed: bool = False
    groups: int = 1

    @property
    def kind(self) -> str:
        """Name of the kind of layer."""
        return TRANSFORMERS_CONV1D if self.transposed else "linear"

    @property
    def layout(self) -> Hashable:
        """See `Geometry.layout`."""
        return self.inputs

    def blocks(self, x: Tensor, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """See `Geometry.blocks`."""
        flat = x.reshape(-1, self.inputs)
        for start in range(0, flat.shape[0], rows):
            where = slice(start, start + rows)
            yield where, flat[where][None]

    def output_rows(self, y: Tensor, where: slice) -> Tensor:
        """See `Geometry.output_rows`."""
        return y.reshape(-1, self.outputs)[where][None]

    def positions(self, x: Tensor) -> Tensor:
        """See `Geometry.positions`."""
        return x

    def row_for_each(self, x: Tensor) -> bool:
        """See `Geometry.row_for_each`."""
        return True

    def weight(self, module: nn.Module) -> Tensor:
        """See `Geometry.weight`."""
        value = parameter(module)
        return value.T if self.transposed else value

    def store(self, module: nn.Module, weight: Tensor) -> None:
        """See `Geometry.store`."""
        write(module, weight.T if self.transposed else weight)

    def describe(self) -> dict[str, Any]:
        """See `Geometry.describe`."""
        return {"kind": self.kind}


@dataclass(frozen=True)
class ConvGeometry:
    """A convolution in one, two or three dimensions, grouped or not, unfolded in the order (channel, kernel)."""

    channels: int
    outputs: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    padding_mode: str
    dilation: tuple[int, ...]
    groups: int
    #: Positions of the output that are cut off at its beginning and end before anything reads it; in one dimension.
    cut: tuple[int, int] = (0, 0)

    @property
    def kind(self) -> str:
        """Name of the kind of layer."""
        return f"conv{len(self.kernel)}d"

    @property
    def inputs(self) -> int:
        """n, flattened inputs of one output channel."""
        size = self.channels // self.groups
        for k in self.kernel:
            size *= k
        return size

    @property
    def layout(self) -> Hashable:
        """See `Geometry.layout`."""
        return replace(self, outputs=self.groups)

    def _batched(self, x: Tensor) -> Tensor:
        return x[None] if x.ndim == len(self.kernel) + 1 else x

    @property
    def _padding(self) -> tuple[tuple[int, int], ...]:
        """As much as the positions that are not cut off need."""
        if not any(self.cut):
            return self.padding
        ((before, after),) = self.padding
        return ((before - self.cut[0], after - self.cut[1]),)

    def _windows(self, x: Tensor) -> Tensor:
        """View of shape (images, channels, *positions, *kernel)."""
        # torch wants the last axis first.
        amounts = [side for pair in reversed(self._padding) for side in pair]
        if any(amounts):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = functional.pad(x, amounts, mode=mode)
        for axis, (k, s, d) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            x = x.unfold(axis + 2, d * (k - 1) + 1, s)[..., ::d]
        return x

    def blocks(self, x: Tensor, rows: int) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
        """See `Geometry.blocks`."""
        x = self._batched(x)
        dims = len(self.kernel)
        first = self._windows(x[:1])
        per_line = first.shape[3 : 2 + dims].numel()
        lines = first.shape[2]
        images = max(1, rows // max(1, lines * per_line))
        step = lines if images > 1 else max(1, min(lines, rows // max(1, per_line)))
        split = (self.groups, self.channels // self.groups)
        for image in range(0, x.shape[0], images):
            windows = self._windows(x[image : image + images])
            for line in range(0, lines, step):
                part = windows[:, :, line : line + step]
                # (images, groups, channels, *positions, *kernel) to (groups, images, *positions, channels, *kernel)
                part = part.reshape(part.shape[0], *split, *part.shape[2:])
                order = [1, 0, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims)]
                block = part.permute(order).reshape(self.groups, -1, self.inputs)
                yield (slice(image, image + images), slice(line, line + step)), block

    def output_rows(self, y: Tensor, where: tuple[slice, slice]) -> Tensor:
        """See `Geometry.output_rows`."""
        y = self._batched(y)
        if any(self.cut):
            y = y[..., self.cut[0] : y.shape[-1] - self.cut[1]]
        y = y[where[0], :, where[1]]
        y = y.reshape(y.shape[0], self.groups, self.outputs // self.groups, *y.shape[2:])
        return y.movedim(2, -1).transpose(0, 1).reshape(self.groups, -1, self.outputs // self.groups)

    def positions(self, x: Tensor) -> Tensor:
        """See `Geometry.positions`."""
        if len(self.kernel) == 1 and self.stride == (1,) and not self._as_many(x):
            # The last input of each window: what a causal convolution has at the same place in its output.
            return self._windows(self._batched(x))[..., -1].movedim(1, -1)
        return self._batched(x).movedim(1, -1)

    def row_for_each(self, x: Tensor) -> bool:
        """See `Geometry.row_for_each`."""
        return self.stride == (1,) or self._as_many(x)

    def _as_many(self, x: Tensor) -> bool:
        """Whether there are as many positions after the convolution as before."""
        sizes = self._batched(x).shape[2:]
        return all(stride == 1 for stride in self.stride) and all(
            (size + sum(pad) - d * (k - 1)) == size
            for size, pad, d, k in zip(sizes, self._padding, self.dilation, self.kernel, strict=True)
        )

    def weight(self, module: nn.Module) -> Tensor:
        """See `Geometry.weight`."""
        return parameter(module)

    def store(self, module: nn.Module, weight: Tensor) -> None:
        """See `Geometry.store`."""
        write(module, weight)

    def describe(self) -> dict[str, Any]:
        """See `Geometry.describe`."""
        return {
            "kind": self.kind,
            "stride": list(self.stride),
            "padding": [list(pair) for pair in self.padding],
            "padding_mode": self.padding_mode,
            "dilation": list(self.dilation),
            "groups": self.groups,
            **({"cut": list(self.cut)} if any(self.cut) else {}),
        }


def parameter(module: nn.Module) -> Tensor:
    """The module's weight, detached."""
    pruned = module._parameters.get("weight_orig"), module._buffers.get("weight_mask")
    if pruned[0] is not None and pruned[1] is not None:
        # torch.nn.utils.prune keeps the product as it was at the last call.
        return pruned[0].detach() * pruned[1]
    lists = getattr(module, "parametrizations", None)
    training = [m for m in lists.modules() if m.training] if isinstance(lists, nn.ModuleDict) else []
    try:
        # In training mode a spectral norm goes on iterating whenever its weight is read.
        for computing in training:
            computing.training = False
        with torch.no_grad():
            value = module.weight
    finally:
        for computing in training:
            computing.training = True
    assert isinstance(value, Tensor)
    return value.detach()


def _weight(module: nn.Module) -> Tensor | None:
    """The same where there may be none."""
    try:
        return parameter(module)
    except (AttributeError, AssertionError):
        return None


def unusual(tensor: Tensor) -> str:
    """What makes a tensor other than plain numbers in memory; empty where nothing does."""
    if type(tensor.detach()) is not Tensor:
        return f"a tensor of the class {type(tensor).__name__}"
    if tensor.is_meta:
        return "a tensor on the meta device, which has no values"
    if tensor.is_quantized:
        return f"a quantized tensor ({tensor.dtype})"
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout != torch.strided:
        return f"a sparse or packed tensor ({tensor.layout})"
    return ""


def write(module: nn.Module, weight: Tensor) -> None:
    """Replace a module's weight in place."""
    value = module._parameters.get("weight")
    assert value is not None
    with torch.no_grad():
        value.copy_(weight)


def describe_module(module: nn.Module) -> Geometry | str | None:
    """What capture makes of a module.

    Returns
    -------
    Geometry
        A layer that can be captured.
    str
        A layer that cannot, and why.
    None
        No layer: a container, an activation function, a normalisation, an embedding.
    """
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return "is a transposed convolution, which capture does not support yet; leave it out"
    geometry: Geometry | None = None
    if isinstance(module, nn.Linear):
        geometry = LinearGeometry(module.in_features, module.out_features)
    elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        geometry = ConvGeometry(
            module.in_channels,
            module.out_channels,
            tuple(module.kernel_size),
            tuple(module.stride),
            _padding(module),
            module.padding_mode,
            tuple(module.dilation),
            module.groups,
        )
    elif _is_transformers_conv1d(module):
        rows, columns = parameter(module).shape
        geometry = LinearGeometry(rows, columns, transposed=True)
    if geometry is None:
        return _unsupported(module)
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) or isinstance(
        module._parameters.get("weight"), nn.parameter.UninitializedParameter
    ):
        return "has no weights yet (a lazy module); run the model on one batch first"
    weight = _weight(module)
    if weight is None:
        return "has no weight tensor; leave it out"
    if weight.is_meta:
        return "has its weights on the meta device; load the weights first"
    bias = getattr(module, "bias", None)
    for what, value in (("weights", weight), ("a bias", bias)):
        if isinstance(value, Tensor) and unusual(value):
            return f"has {unusual(value)} for {what}; convert it to a plain tensor of floating-point numbers"
        if isinstance(value, Tensor) and value.dtype not in FLOATS:
            return f"has {what} of type {value.dtype}; pass a model with weights of 16 bits or more"
    return geometry


def _is_transformers_conv1d(module: nn.Module) -> bool:
    """`transformers.pytorch_utils.Conv1D` (GPT-2), without importing it: x @ weight + bias, weight (in, out)."""
    # Parametrized modules have a class of their own, below it.
    if all(kind.__name__ != "Conv1D" for kind in type(module).__mro__) or not hasattr(module, "nf"):
        return False
    weight = _weight(module)
    return weight is not None and weight.ndim == 2 and bool(module.nf == weight.shape[1])


def _padding(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> tuple[tuple[int, int], ...]:
    """Padding before and after each axis."""
    if module.padding == "valid":
        return ((0, 0),) * len(module.kernel_size)
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return tuple((t // 2, t - t // 2) for t in total)
    return tuple((int(p), int(p)) for p in module.padding)


def _unsupported(module: nn.Module) -> str | None:
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return None
    if isinstance(module, nn.MultiheadAttention):
        return "computes with its projections itself, so that no hook sees their inputs; replace it by Linear modules"
    if isinstance(module, nn.RNNBase):
        return "is a recurrent layer, which capture does not support; leave it out"
    if "quantized" in type(module).__module__ and callable(getattr(type(module), "weight", None)):
        # In torch.ao.nn.quantized the weight is a method.
        return "has quantized weights; pass the model before its quantization"
    if isinstance(module, nn.Bilinear):
        return "is bilinear, so that its error is not quadratic in the weights for fixed inputs; leave it out"
    return None
