"""A layer's weights together with the Gram matrix of its calibration inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layerbounds.arguments import one_of, shown, whole_number
from layerbounds.arrays import Bool, Float, as_float64, as_numpy, own_float64
from layerbounds.display import Displayed, Summary, Table
from layerbounds.exceptions import InputError
from layerbounds.layers.gram import GramReport, ValidatedGram, live_inputs
from layerbounds.layers.normal_equations import solve_target
from layerbounds.mistaken import instead


class Layer(Displayed):
    """Weights and input statistics of one linear or convolutional layer.

    The squared output error of replacing the weights of an output channel by ``v`` is
    ``f(v) = (v - target)ᵀ gram (v - target) + constant``, the mean over calibration positions.

    Parameters
    ----------
    weight : array_like of shape (out, in) or (out, in, kh, kw)
        Dense weights; flattened per output channel in the order (channel, kh, kw).
    gram : array_like of shape (n, n) or (groups, n, n), or ValidatedGram
        XᵀX/N of the flattened inputs, n = in·kh·kw; one matrix per group for grouped convolutions. An array is copied
        and validated; the ``validated_gram`` of another layer that sees the same inputs is shared as it is.
    name : str
    target : array_like of shape (out, n), optional
        The unconstrained minimiser w̃ where the compressed layer sees other inputs than the dense one
        (H w̃ = X̂ᵀXw/N). Default: the weights.
    constant : array_like of shape (out,), optional
        The part of the error that no weights can repair, ≥ 0. Default: 0.
    samples : int, optional
        Number N of calibration positions behind the Gram matrix.
    input_mean : array_like of shape (n,) or (groups, n), optional
        Mean of the inputs that the compressed layer sees.
    residual_mean : array_like of shape (out,), optional
        Mean of X̂w̃ − Xw over the positions, whose square is part of ``constant``. Default: 0.
    bias : {"fixed", "refit"}
        Whether the layer's bias stays as it is, or is re-fitted and the numbers are those of the centred inputs; see
        `layerbounds.layers.bias`.
    provenance : mapping, optional
        Where the numbers come from; stored with the layer.

    Attributes
    ----------
    gram : ndarray of shape (groups, n, n)
        Symmetrised and, where float32 accumulation left small negative eigenvalues, projected. The same array for all
        layers that share it; not to be changed, like all arrays of a layer.
    validated_gram : ValidatedGram
        Holds it.
    gram_reports : tuple of GramReport
        What was repaired, one per group.

    Raises
    ------
    InputError
        On wrong shapes, NaN, or a matrix that is not a Gram matrix.

    Examples
    --------
    >>> dense = lb.Layer([[0.3, -0.7], [0.1, 0.4]], np.eye(2), "fc")
    >>> dense.energy()
    array([0.58, 0.17])
    """

    def __init__(
        self,
        weight: ArrayLike,
        gram: ArrayLike | ValidatedGram,
        name: str = "layer",
        *,
        target: ArrayLike | None = None,
        constant: ArrayLike | None = None,
        samples: int | None = None,
        input_mean: ArrayLike | None = None,
        residual_mean: ArrayLike | None = None,
        bias: Literal["fixed", "refit"] = "fixed",
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = str(name)
        self.weight: NDArray[Any] = as_numpy(weight, f"layer {self.name!r}: weight")
        check_weight_shape(self.weight.shape, self.name)
        self.matrix: Float = np.ascontiguousarray(self.weight.reshape(self.weight.shape[0], -1), dtype=np.float64)
        out, n = self.matrix.shape
        if not isinstance(gram, ValidatedGram):
            what = f"layer {self.name!r}: gram"
            given = as_numpy(gram, what)
            check_gram_shape(given.shape, self.weight.shape, self.name)
            gram = ValidatedGram(own_float64(given, what).reshape(-1, n, n), what)
        else:
            check_gram_shape(gram.matrices.shape, self.weight.shape, self.name)
        self.validated_gram = gram
        self.gram: Float = gram.matrices
        self.gram_reports: tuple[GramReport, ...] = gram.reports
        self.target: Float = self.matrix if target is None else self.channel_weights(target, range(out), "target")
        self.constant: Float = np.zeros(out) if constant is None else self._shaped(constant, (out,), "constant")
        if np.any(self.constant < 0):
            raise InputError(f"layer {self.name!r}: constant is negative; it is a mean squared error and must be ≥ 0.")
        self.samples = None if samples is None else whole_number(samples, f"layer {self.name!r}: samples", 1)
        self.input_mean: Float | None = None
        if input_mean is not None:
            means = as_float64(input_mean, f"layer {self.name!r}: input_mean")
            if self.groups == 1 and means.ndim == 1:
                means = means[None]
            if means.shape != (self.groups, n):
                raise InputError(
                    f"layer {self.name!r}: input_mean has shape {means.shape}; pass shape {(self.groups, n)}."
                )
            self.input_mean = means
        self.residual_mean: Float = (
            np.zeros(out) if residual_mean is None else self._shaped(residual_mean, (out,), "residual_mean")
        )
        one_of(bias, f"layer {self.name!r}: bias", ("fixed", "refit"))
        self.bias: Literal["fixed", "refit"] = bias
        if provenance is not None and not isinstance(provenance, Mapping):
            raise InputError(f"layer {self.name!r}: provenance is {shown(provenance)}; pass a mapping.")
        self.provenance: dict[str, Any] = dict(provenance or {})
        self._energy: Float | None = None

    def _shaped(self, value: ArrayLike, shape: tuple[int, ...], what: str) -> Float:
        array = as_float64(value, f"layer {self.name!r}: {what}")
        if array.shape != shape:
            raise InputError(f"layer {self.name!r}: {what} has shape {array.shape}; pass shape {shape}.")
        return array

    @classmethod
    def from_activations(
        cls,
        weight: ArrayLike,
        inputs: ArrayLike,
        name: str = "layer",
        *,
        compressed_inputs: ArrayLike | None = None,
    ) -> Layer:
        """Build a layer from calibration inputs.

        Parameters
        ----------
        weight : array_like of shape (out, n) or (out, in, kh, kw)
        inputs : array_like of shape (N, n)
            Flattened inputs X, one row per calibration position.
        name : str
        compressed_inputs : array_like of shape (N, n), optional
            The inputs X̂ that the compressed layer will really see; see `from_moments`.

        Examples
        --------
        >>> inputs = np.array([[1.0, 0.0], [1.0, 2.0]])
        >>> lb.Layer.from_activations([[0.3, -0.7]], inputs).gram[0]
        array([[1., 1.],
               [1., 2.]])
        """
        x = as_float64(inputs, f"layer {name!r}: inputs")
        dense = as_float64(weight, f"layer {name!r}: weight")
        if x.ndim != 2 or x.shape[0] == 0:
            raise InputError(f"layer {name!r}: inputs have shape {x.shape}; pass (positions, inputs).")
        if dense.ndim < 2 or dense.size == 0:
            raise InputError(f"layer {name!r}: weight has shape {dense.shape}; pass (out, in) or (out, in, kh, kw).")
        matrix = dense.reshape(dense.shape[0], -1)
        if matrix.shape[1] != x.shape[1]:
            raise InputError(
                f"layer {name!r}: inputs have {x.shape[1]} columns but the weight has {matrix.shape[1]} inputs "
                "per output channel; they must agree."
            )
        count = x.shape[0]
        if compressed_inputs is None:
            return cls(weight, _second_moment(x, name), name, samples=count, input_mean=x.mean(axis=0))
        xc = as_float64(compressed_inputs, f"layer {name!r}: compressed_inputs")
        if xc.shape != x.shape:
            raise InputError(f"layer {name!r}: compressed_inputs have shape {xc.shape}; pass {x.shape} like inputs.")
        error = (x - xc) @ matrix.T
        return cls.from_moments(
            weight,
            _second_moment(xc, name),
            name,
            shift=error.T @ xc / count,
            error_energy=np.mean(error**2, axis=0),
            error_mean=error.mean(axis=0),
            samples=count,
            input_mean=xc.mean(axis=0),
        )

    @classmethod
    def from_moments(
        cls,
        weight: ArrayLike,
        gram: ArrayLike | ValidatedGram,
        name: str = "layer",
        *,
        shift: ArrayLike,
        error_energy: ArrayLike,
        error_mean: ArrayLike,
        input_mean: ArrayLike,
        samples: int | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Layer:
        """Build a layer whose compressed inputs X̂ differ from the dense ones X, from sums over the positions.

        The target is the minimiser w̃ closest to the weights, and the constant what remains there
        (`layerbounds.layers.normal_equations`). ``provenance["normal_equation_residual"]`` holds the largest
        ‖H w̃ − X̂ᵀXw/N‖.

        Parameters
        ----------
        weight : array_like of shape (out, n) or (out, in, kh, kw)
            Dense weights w.
        gram : array_like of shape (n, n) or (groups, n, n), or ValidatedGram
            H = X̂ᵀX̂/N.
        name : str
        shift : array_like of shape (out, n)
            X̂ᵀEw/N with E = X − X̂.
        error_energy, error_mean : array_like of shape (out,)
            ‖Ew‖²/N and the mean of Ew.
        input_mean : array_like of shape (n,) or (groups, n)
            Mean of X̂.
        samples : int, optional
        provenance : mapping, optional

        Examples
        --------
        >>> behind = lb.Layer.from_moments(
        ...     [[0.3, -0.7]],
        ...     np.eye(2),
        ...     shift=np.zeros((1, 2)),
        ...     error_energy=np.zeros(1),
        ...     error_mean=np.zeros(1),
        ...     input_mean=np.zeros(2),
        ... )
        >>> behind.target
        array([[ 0.3, -0.7]])
        """
        plain = cls(weight, gram, name, samples=samples, input_mean=input_mean, provenance=provenance)
        if plain.input_mean is None:
            raise InputError(f"layer {plain.name!r}: input_mean is None; pass the mean of the compressed inputs.")
        s = plain._shaped(shift, plain.matrix.shape, "shift")
        energy = plain._shaped(error_energy, plain.matrix.shape[:1], "error_energy")
        mean = plain._shaped(error_mean, plain.matrix.shape[:1], "error_mean")
        target, constant, residual_mean = plain.matrix.copy(), np.empty_like(energy), np.empty_like(energy)
        residual = 0.0
        for g, rows in enumerate(plain.group_rows()):
            solved = solve_target(plain.gram[g], s[rows], energy[rows], plain.input_mean[g], mean[rows])
            target[rows] += solved.change
            constant[rows], residual_mean[rows] = solved.constant, solved.residual_mean
            residual = max(residual, solved.residual)
        return cls(
            weight,
            plain.validated_gram,
            name,
            target=target,
            constant=constant,
            samples=samples,
            input_mean=plain.input_mean,
            residual_mean=residual_mean,
            provenance={**plain.provenance, "normal_equation_residual": residual},
        )

    def channel_weights(self, value: ArrayLike, channels: Sequence[int], what: str) -> Float:
        """Weights from elsewhere as a matrix, paired with the output channels by their shape.

        Nothing is reshaped because its size happens to fit: a transposed or otherwise arranged array is refused.

        Parameters
        ----------
        value : array_like of shape (rows, *weight.shape[1:]) or (rows, n)
            ``rows`` are the chosen channels, in their order, or all output channels.
        channels : sequence of int
        what : str
            How error messages call the value.

        Returns
        -------
        ndarray of shape (channels, n)
            A copy.

        Raises
        ------
        InputError
            On another shape.

        Examples
        --------
        >>> layer.channel_weights(layer.weight, [0, 1], "weights").shape
        (2, 9)
        """
        what = f"layer {self.name!r}: {what}"
        array = as_float64(value, what)
        tails = {self.weight.shape[1:], (self.in_features,)}
        counts = {len(channels), self.out_features}
        if array.ndim < 2 or array.shape[0] not in counts or array.shape[1:] not in tails:
            allowed = sorted(
                {(rows, *tail) for rows in counts for tail in tails}, key=lambda shape: (len(shape), shape)
            )
            hint = ", it looks transposed." if array.ndim == 2 and array.shape[::-1] in allowed else "."
            raise InputError(f"{what} has shape {array.shape}; pass shape {' or '.join(map(str, allowed))}{hint}")
        matrix = array.reshape(array.shape[0], self.in_features)
        return np.array(matrix if len(matrix) == len(channels) else matrix[list(channels)])

    @property
    def out_features(self) -> int:
        """Number of output channels."""
        return int(self.matrix.shape[0])

    @property
    def in_features(self) -> int:
        """Number n of flattened inputs of one output channel."""
        return int(self.matrix.shape[1])

    @property
    def groups(self) -> int:
        """Number of groups, each with its own Gram matrix."""
        return int(self.gram.shape[0])

    def group_of(self, channel: int) -> int:
        """Index of the group that an output channel belongs to.

        Examples
        --------
        >>> layer.group_of(3)
        0
        """
        return channel // (self.out_features // self.groups)

    def group_rows(self) -> list[slice]:
        """The output channels of each group.

        Examples
        --------
        >>> layer.group_rows()
        [slice(0, 16, None)]
        """
        size = self.out_features // self.groups
        return [slice(g * size, (g + 1) * size) for g in range(self.groups)]

    def channel_gram(self, channel: int) -> Float:
        """Gram matrix, shape (n, n), of the group of an output channel.

        Examples
        --------
        >>> layer.channel_gram(0).shape
        (9, 9)
        """
        return np.asarray(self.gram[self.group_of(channel)])

    def live(self, group: int = 0) -> Bool:
        """Mask, shape (n,), of the inputs of a group that are not dead.

        Examples
        --------
        >>> lb.Layer([[0.5, -1.0]], np.diag([1.0, 0.0])).live()
        array([ True, False])
        """
        return live_inputs(self.gram[group])

    def energy(self) -> Float:
        """Error f(0) of removing each output channel, shape (out,): w̃ᵀHw̃ + c.

        Examples
        --------
        >>> lb.Layer([[0.5, -1.0]], np.eye(2)).energy()
        array([1.25])
        """
        if self._energy is None:
            value = np.empty(self.out_features)
            for g, rows in enumerate(self.group_rows()):
                t = self.target[rows]
                value[rows] = np.maximum(np.einsum("ij,ij->i", t @ self.gram[g], t), 0.0) + self.constant[rows]
            self._energy = value
        return self._energy.copy()

    def _summary(self) -> Summary:
        return Summary(self.name)

    def _tables(self) -> list[Table]:
        dead = sum(report.dead for report in self.gram_reports)
        inputs = f"{self.in_features} for each output channel"
        rows = [
            ["weight", " × ".join(map(str, self.weight.shape)) + f", {self.weight.dtype}"],
            ["inputs", inputs + (f", {self.groups} groups" if self.groups > 1 else "")],
            ["dead inputs", str(dead)],
            ["calibration positions", "not known" if self.samples is None else str(self.samples)],
            ["bias", "re-fitted" if self.bias == "refit" else "stays"],
        ]
        if self.target is not self.matrix:
            rows.append(["target", "the best weights for the inputs that the compressed layer sees"])
        if any(report.projected for report in self.gram_reports):
            rows.append(["Gram matrix", "negative eigenvalues set to 0"])
        return [Table({"": "text", " ": "text"}, rows)]

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.weight.shape))
        return f"Layer({self.name!r}, weight {shape}, n={self.in_features}, groups={self.groups})"


def _second_moment(x: Float, name: str) -> ValidatedGram:
    gram = x.T @ x
    gram /= len(x)
    return ValidatedGram(gram[None], f"layer {name!r}: gram")


def check_weight_shape(shape: tuple[int, ...], name: str) -> None:
    """Refuse weights that are no matrix and no kernels.

    Raises
    ------
    InputError
        Naming the layer.
    """
    if len(shape) < 2 or 0 in shape:
        raise InputError(f"layer {name!r}: weight has shape {shape}; pass (out, in) or (out, in, kh, kw).")


def check_gram_shape(shape: tuple[int, ...], weight_shape: tuple[int, ...], name: str) -> None:
    """Refuse Gram matrices of another size than the weights of a layer ask for.

    Raises
    ------
    InputError
        Naming the layer.
    """
    out, n = weight_shape[0], math.prod(weight_shape[1:])
    if len(shape) not in (2, 3) or shape[-2:] != (n, n):
        raise InputError(
            f"layer {name!r}: gram has shape {shape[-2:]} but the weight has {n} inputs per output "
            f"channel; pass a ({n}, {n}) matrix, or (groups, {n}, {n}) for a grouped convolution."
        )
    groups = shape[0] if len(shape) == 3 else 1
    if groups == 0 or out % groups:
        raise InputError(
            f"layer {name!r}: {groups} groups do not divide the {out} output channels; pass one Gram matrix per group."
        )


def as_layer(value: Any) -> Layer:
    """The value itself, if it is a layer.

    Raises
    ------
    InputError
        If it is something else.
    """
    if not isinstance(value, Layer):
        usual = f"a {type(value).__name__}; pass a layerbounds.Layer."
        raise InputError(f"layer is {instead('layer', value) or usual}")
    return value
