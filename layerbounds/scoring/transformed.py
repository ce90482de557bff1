"""Layers that a checkpoint stores in another form: factors folded into the normalisation before them are undone.

A checkpoint that multiplies column i of a weight by s_i and divides the normalisation's weight by s_i computes the same
function. What its quantized weights Q see is t ∘ x, with t the ratio of the two normalisations and x what the captured
layer sees, so that their error is that of a layer with the weights W / t and the Gram matrix t H t, on the grid as it
is stored. That holds whatever the ratio was made for.

Factors that moved between two linear layers (values and the output projection, up and down) have left no trace but in
the quantized weights themselves. Any factors describe the same function, so that intervals hold for whatever numbers
are taken; but which ones the checkpoint meant can only be estimated, from the lengths of the rows of the layer before,
where that is asked for. Rotations are not undone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from layerbounds.arrays import Float
from layerbounds.checkpoints.checkpoint import Checkpoint
from layerbounds.checkpoints.weight import QuantizedWeight
from layerbounds.exceptions import UnsupportedProblemError
from layerbounds.layers.gram import ValidatedGram
from layerbounds.layers.layer import Layer
from layerbounds.scoring.feeds import (
    added_to_norms,
    block_of,
    linear_before,
    linear_partner,
    norm_before,
    share_behind,
)
from layerbounds.scoring.likeness import Scaled, alike, column_factors, row_factors
from layerbounds.scoring.original import Original, same_up_to_rounding

#: Ratios of a normalisation's bias may differ from its weight's by so much: both were rounded to 8 binary digits.
_RATIO_ROUNDING = 2.0**-6
#: A layer whose relative error is above 1 and whose weights have less than this cosine with the dense ones is another.
_UNLIKE = 0.2
#: Rows of stored and dense weights with less than this cosine are no multiples of one another, up to quantization.
_PARALLEL = 0.7
#: Larger tensors that are no vectors are not compared: embeddings of rotated models give their layers away, too.
_LARGEST = 2**24
#: Ends of tensors beside a layer's weight that say nothing about the weight.
_HARMLESS = ("bias", "input_scale", "input_zero_point", "output_scale", "k_scale", "v_scale", "q_scale")


#: From the name of a captured layer to that layer, and its name in the checkpoint.
Neighbours = Callable[[str], tuple[Layer, str] | None]


@dataclass(frozen=True, eq=False)
class Undone:
    """Factors of a layer's inputs that were undone.

    Attributes
    ----------
    source : str
        The tensor whose ratio to the original's they are.
    factors : ndarray of shape (n,)
        What the stored layer's inputs are multiplied by.
    """

    source: str
    factors: Float

    def note(self) -> str:
        """What was done, in words."""
        low, high = np.abs(self.factors).min(), np.abs(self.factors).max()
        return f"factors {low:.3g} to {high:.3g} of {self.source} undone"


@dataclass(frozen=True, eq=False)
class Seen:
    """A captured layer in the form in which a checkpoint stores it.

    Attributes
    ----------
    layer : Layer
        Errors of the stored weights in it, times ``outputs`` squared, are those in place of the captured ones.
    undone : Undone or None
        Factors of inputs.
    outputs : ndarray of shape (out,) or None
        Factors by which the captured outputs are larger.
    estimated : bool
        Whether factors were estimated.
    notes : tuple of str
    """

    layer: Layer
    undone: Undone | None = None
    outputs: Float | None = None
    estimated: bool = False
    notes: tuple[str, ...] = ()


class Surroundings:
    """What stands beside the quantized weights of a checkpoint, and what it was in the original.

    Parameters
    ----------
    checkpoint : Checkpoint
    original : Original or None
    neighbours : callable, optional
        From the name of a captured layer to that layer and what the checkpoint calls it, or None: factors are estimated
        where it is given.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        original: Original | None,
        neighbours: Neighbours | None = None,
    ) -> None:
        self.checkpoint, self.original, self.neighbours = checkpoint, original, neighbours

    @cached_property
    def _partners(self) -> dict[str, str]:
        """Names of the checkpoint's tensors by those of the original."""
        if self.original is None:
            return {}
        pairs = ((self.original.find(name), name) for name in self.checkpoint.dense)
        return {own: name for own, name in pairs if own is not None}

    @cached_property
    def changed(self) -> list[str]:
        """Tensors that are not quantized and differ from the original's by more than rounding, by its names."""
        assert self.original is not None
        return [own for own in self._partners if self._differs(own)]

    def _differs(self, own: str) -> bool:
        assert self.original is not None
        if self.original.size(own) > _LARGEST:
            return False
        stored, dense = self.stored(own), self.original.read(own)
        if stored.shape == dense.shape and (same_up_to_rounding(stored, dense) or np.array_equal(stored, dense)):
            return False
        # Some formats store one plus the weight.
        return not same_up_to_rounding(stored, dense + added_to_norms(self.original.config))

    @cached_property
    def turned(self) -> str | None:
        """A matrix outside of the blocks, such as the embedding, that is another than the original's."""
        if self.original is None:
            return None
        for own in self.changed:
            if len(self.original.shape(own)) == 2 and not block_of(own):
                dense, stored = self.original.read(own), self.stored(own)
                if stored.shape == dense.shape and np.linalg.norm(stored - dense) > 0.1 * np.linalg.norm(dense):
                    return own
        return None

    def stored(self, own: str) -> Float:
        """The checkpoint's tensor that the original has by a name."""
        return np.asarray(self.checkpoint.dense[self._partners[own]], dtype=np.float64)

    def has(self, own: str) -> bool:
        """Whether the checkpoint has a tensor of the original, unquantized."""
        return own in self._partners

    def has_new_bias(self, stored: str, own: str) -> bool:
        """Whether a quantized layer has a bias other than 0, and the original none."""
        assert self.original is not None
        if self.original.find(f"{own}.bias") is not None:
            return False
        bias = self.checkpoint.dense.get(f"{stored}.bias")
        return bias is not None and bool(np.any(bias))

    def extras(self, stored: str) -> list[str]:
        """Tensors of a quantized layer that its format does not explain."""
        own = [n for n in self.checkpoint.dense if n.startswith(f"{stored}.")]
        return [n for n in own if n[len(stored) + 1 :] not in _HARMLESS]

    def activation_factors(self, stored: str, n: int) -> tuple[str, Float] | None:
        """What AutoAWQ divides the outputs of an activation function by, before a layer (``ScaledActivation``)."""
        block = block_of(stored)
        names = [t for t in self.checkpoint.dense if block and t.startswith(block) and t.endswith(".act.scales")]
        if len(names) != 1 or names[0].rpartition(".act.")[0] != stored.rpartition(".")[0]:
            return None
        factors = self.checkpoint.dense[names[0]].ravel()
        return (names[0], factors) if factors.size == n else None


def as_stored(layer: Layer, weight: QuantizedWeight, surroundings: Surroundings, *, bias_free: bool = False) -> Seen:
    """The captured layer in the form in which a checkpoint stores it.

    Parameters
    ----------
    layer : Layer
    weight : QuantizedWeight
        Of the layer.
    surroundings : Surroundings
    bias_free : bool
        Whether the layer's bias may be any.

    Raises
    ------
    UnsupportedProblemError
        If the layer was transformed in another way, or may have been, with its name.
    """
    name = layer.name
    if (weight.shape[0], int(np.prod(weight.shape[1:]))) != layer.matrix.shape:
        hint = ", it looks transposed" if weight.codes.shape == layer.matrix.shape[::-1] else ""
        raise UnsupportedProblemError(
            f"layer {name!r} has weights of shape {layer.weight.shape}, and {weight.name!r} of the checkpoint "
            f"{weight.shape}{hint}; it is another layer, or fused or split."
        )
    extras = surroundings.extras(weight.name)
    if extras:
        raise UnsupportedProblemError(
            f"layer {name!r} has {extras[0]!r} in the checkpoint, and what that does to its weights is not known."
        )
    notes: list[str] = []
    undone = _activation(layer, weight.name, surroundings)
    if undone is None:
        undone, notes = _normalisation(layer, weight.name, surroundings, bias_free)
    seen = Seen(layer if undone is None else scaled(layer, undone.factors), undone)
    scaling = _likeness(seen, weight)
    if scaling.columns and undone is None:
        moved = _from_before(layer, surroundings)
        if moved is not None:
            seen = Seen(scaled(layer, moved.factors), moved, estimated=True)
            scaling = _likeness(seen, weight)
    if scaling.rows and not scaling.columns and surroundings.neighbours is not None:
        outputs = _to_behind(seen, weight)
        if outputs is not None:
            notes.append(f"outputs divided by factors {_between(outputs)}, estimated from the lengths of its rows")
            seen = Seen(with_outputs(seen.layer, outputs), seen.undone, outputs, estimated=True)
            scaling = _likeness(seen, weight)
    _refuse(name, scaling, surroundings)
    if seen.undone is not None:
        notes.append(seen.undone.note())
    return replace(seen, notes=tuple(notes))


def scaled(layer: Layer, factors: Float) -> Layer:
    """The layer that sees its inputs multiplied by factors, with the same outputs: the weights are divided by them."""
    gram = layer.gram * factors[:, None] * factors
    mean = None if layer.input_mean is None else layer.input_mean * factors
    return Layer(
        (layer.matrix / factors).reshape(layer.weight.shape),
        ValidatedGram(gram, f"layer {layer.name!r}: gram"),
        layer.name,
        target=None if layer.target is layer.matrix else layer.target / factors,
        constant=layer.constant,
        samples=layer.samples,
        input_mean=mean,
        residual_mean=layer.residual_mean,
        bias=layer.bias,
        provenance=layer.provenance,
    )


def with_outputs(layer: Layer, factors: Float) -> Layer:
    """The layer whose outputs are divided by factors."""
    return Layer(
        (layer.matrix / factors[:, None]).reshape(layer.weight.shape),
        layer.validated_gram,
        layer.name,
        target=None if layer.target is layer.matrix else layer.target / factors[:, None],
        constant=layer.constant / factors**2,
        samples=layer.samples,
        input_mean=layer.input_mean,
        residual_mean=layer.residual_mean / factors,
        bias=layer.bias,
        provenance=layer.provenance,
    )


def unlike(seen: Layer, weights: Float) -> bool:
    """Whether weights have next to nothing in common with the layer's."""
    return abs(alike(weights, seen.matrix)) < _UNLIKE


def _activation(layer: Layer, stored: str, surroundings: Surroundings) -> Undone | None:
    if linear_before(stored) is None:
        return None
    found = surroundings.activation_factors(stored, layer.in_features)
    if found is None:
        return None
    _check_factors(layer, found[0], found[1])
    return Undone(found[0], 1.0 / found[1])


def _normalisation(
    layer: Layer, stored: str, surroundings: Surroundings, bias_free: bool
) -> tuple[Undone | None, list[str]]:
    """Factors of the normalisation before a layer; None where there are none."""
    original, name = surroundings.original, layer.name
    if original is None:
        return None, []
    if surroundings.turned is not None:
        raise UnsupportedProblemError(
            f"layer {name!r} belongs to a model that was transformed: {surroundings.turned!r} is not that of the "
            "original (rotated, or of another model)."
        )
    weight = original.find(f"{name}.weight")
    own = name if weight is None else weight.removesuffix(".weight")
    changed = [t for t in surroundings.changed if block_of(t) == block_of(own)]
    parent = own.rpartition(".")[0]
    if not bias_free and (f"{own}.bias" in changed or surroundings.has_new_bias(stored, own)):
        raise UnsupportedProblemError(
            f"layer {name!r} has another bias in the checkpoint than in the original: its outputs were scaled or its "
            "bias re-fitted; score it with bias='refit' (--bias refit), where any bias counts."
        )
    inside = [t for t in changed if len(parent) >= len(block_of(own)) and t.startswith(f"{parent}.")]
    inside = [t for t in inside if not t.endswith(".bias")]
    before = _norm_before(layer, own, original)
    if before is None:
        inside += [t for t in changed if original.size(t) == layer.in_features and linear_before(own) is None]
    inside = [t for t in inside if before is None or not t.startswith(f"{before}.")]
    if inside:
        raise UnsupportedProblemError(
            f"layer {name!r} stands beside {inside[0]!r}, which the checkpoint has in another form than the original; "
            "what that does to the layer is not known."
        )
    if before is None:
        return None, []
    if not surroundings.has(f"{before}.weight"):
        return None, [f"{before} is not in the checkpoint"]
    if not any(t.startswith(f"{before}.") for t in surroundings.changed):
        return None, []
    factors = _ratio(layer, before, surroundings)
    return Undone(before, factors), []


def _norm_before(layer: Layer, own: str, original: Original) -> str | None:
    """The normalisation whose output a layer sees, as the original calls it: what was captured, or by the names."""
    captured = layer.provenance.get("normalised_by")
    if isinstance(captured, str):
        weight = original.find(f"{captured}.weight")
        return None if weight is None else weight.removesuffix(".weight")
    return norm_before(own, original.names)


def _ratio(layer: Layer, norm: str, surroundings: Surroundings) -> Float:
    """By what a normalisation of the checkpoint multiplies more than the original's, for each input of a layer."""
    original = surroundings.original
    assert original is not None
    more = added_to_norms(original.config)
    stored, dense = surroundings.stored(f"{norm}.weight").ravel(), original.read(f"{norm}.weight").ravel() + more
    if stored.size != layer.in_features or dense.size != layer.in_features:
        raise UnsupportedProblemError(
            f"layer {layer.name!r} has {layer.in_features} inputs, and {norm!r} before it {dense.size}; how factors "
            "were folded is not known."
        )
    if surroundings.checkpoint.path.suffix != ".gguf":
        # GGUF files have the sum.
        stored = stored + more
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = np.where((dense == 0) & (stored == 0), 1.0, stored / dense)
    _check_factors(layer, norm, factors)
    bias = f"{norm}.bias"
    if bias in original.names and surroundings.has(bias):
        want, have = original.read(bias).ravel() * factors, surroundings.stored(bias).ravel()
        if np.any(np.abs(have - want) > _RATIO_ROUNDING * np.abs(want) + 1e-7 * np.abs(want).max(initial=0.0)):
            raise UnsupportedProblemError(
                f"layer {layer.name!r} has {norm!r} before it, whose bias was shifted and not scaled as its weight; "
                "that cannot be undone."
            )
    return factors


def _check_factors(layer: Layer, source: str, factors: Float) -> None:
    if not np.all(np.isfinite(factors)) or np.any(factors == 0):
        many = int(np.count_nonzero(~np.isfinite(factors) | (factors == 0)))
        raise UnsupportedProblemError(
            f"layer {layer.name!r} cannot be compared: {source!r} is 0 at {many} of its inputs, in the checkpoint or "
            "the original only."
        )


def _from_before(layer: Layer, surroundings: Surroundings) -> Undone | None:
    """Factors of a layer's inputs as the rows of the linear layer before it have them; None where that is not known."""
    before = linear_partner(layer.name)
    found = None if before is None or surroundings.neighbours is None else surroundings.neighbours(before)
    if found is None:
        return None
    previous, stored = found
    weight = surroundings.checkpoint[stored]
    if weight.codes.shape != previous.matrix.shape or previous.out_features < layer.in_features:
        return None
    undone = _normalisation(previous, stored, surroundings, True)[0]
    flat = weight.weight.reshape(previous.matrix.shape) * (1.0 if undone is None else undone.factors)
    factors = _lengths(flat, previous.matrix)
    # Fused queries, keys and values end with the values.
    return None if factors is None else Undone(f"the rows of {before} (estimated)", 1.0 / factors[-layer.in_features :])


def _to_behind(seen: Seen, weight: QuantizedWeight) -> Float | None:
    """By what the outputs of a layer were divided, where a linear layer behind it may be multiplied by that."""
    layer = seen.layer
    share = share_behind(layer.name)
    if not share:
        return None
    factors = _lengths(weight.weight.reshape(layer.matrix.shape), layer.matrix)
    if factors is not None:
        # Queries and keys that are fused with values keep theirs.
        factors[: layer.out_features - int(share * layer.out_features)] = 1.0
    return factors


def _lengths(stored: Float, dense: Float) -> Float | None:
    """How much longer the rows of one matrix are than those of another that is nearly parallel; None if it is not."""
    long, short = np.linalg.norm(dense, axis=1), np.linalg.norm(stored, axis=1)
    used = long > 0
    if np.any(short[used] == 0) or not used.any():
        return None
    cosine = np.sum(stored * dense, axis=1)[used] / (long * short)[used]
    if np.any(cosine < _PARALLEL):
        return None
    return np.asarray(np.divide(long, short, out=np.ones_like(long), where=used & (short > 0)))


@dataclass(frozen=True)
class _Likeness:
    """Whether weights look like a layer's with columns, or rows, scaled; None where they do not."""

    columns: Scaled | None = None
    rows: Scaled | None = None


def _likeness(seen: Seen, weight: QuantizedWeight) -> _Likeness:
    layer = seen.layer
    flat = weight.weight.reshape(layer.matrix.shape)
    if unlike(layer, flat):
        # What error they have says more.
        return _Likeness()
    # As the captured layer has them, columns compare by their size.
    factors = np.ones(layer.in_features) if seen.undone is None else seen.undone.factors
    live = np.any([layer.live(g) for g in range(layer.groups)], axis=0)
    own, dense = (flat * factors)[:, live], (layer.matrix * factors)[:, live]
    columns, rows = column_factors(own, dense), row_factors(own, dense)
    if not (columns.beyond() or rows.beyond()):
        return _Likeness()
    rounded = (weight.grid.nearest(layer.matrix) * factors)[:, live]
    return _Likeness(
        columns if columns.beyond(column_factors(rounded, dense)) else None,
        rows if rows.beyond(row_factors(rounded, dense)) else None,
    )


def _refuse(name: str, scaling: _Likeness, surroundings: Surroundings) -> None:
    """Refuse weights of which rows or columns were scaled by factors that no tensor of the checkpoint says."""
    told = "nothing that the checkpoint holds tells them exactly"
    hint = "; estimate=True (--estimate) takes them from the lengths of rows"
    if scaling.columns:
        what = linear_before(name)
        where = f", which may have moved to the rows of {what}" if what else ""
        if surroundings.original is None and what is None:
            told = "pass the original model, whose normalisations may tell them"
        else:
            told += hint if linear_partner(name) and surroundings.neighbours is None else ""
        raise UnsupportedProblemError(
            f"layer {name!r} has inputs scaled by factors {_span(scaling.columns)}{where}: {told}."
        )
    if scaling.rows:
        told += hint if share_behind(name) and surroundings.neighbours is None else ""
        raise UnsupportedProblemError(
            f"layer {name!r} has outputs scaled by factors {_span(scaling.rows)}, which may have moved to the layer "
            f"behind it: {told}."
        )


def _between(factors: Float) -> str:
    return f"of {factors.min():.3g} to {factors.max():.3g}"


def _span(found: Scaled) -> str:
    return f"of about {found.smallest:.2g} to {found.largest:.2g}"


def listed(names: Sequence[str]) -> str:
    """Some of many names."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
