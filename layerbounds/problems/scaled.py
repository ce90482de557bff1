"""Allowed sets of quantization over all scales: codes of a box, times a scale that is chosen with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, product

import numpy as np

from layerbounds.arrays import Bool, Float, Int
from layerbounds.exceptions import NotAllowedError
from layerbounds.problems.allowed import AllowedSet
from layerbounds.problems.float_types import rounded
from layerbounds.problems.levels import TOLERANCE
from layerbounds.problems.scale_distance import nearest_line
from layerbounds.problems.scale_fit import (
    Box,
    Explanation,
    ScaleFit,
    explain,
    explain_at_once,
    explain_real,
    explain_shifted,
)
from layerbounds.problems.scale_nearest import (
    near_in_boxes,
    near_with_offset,
    nearest_codes,
    recognised,
    recognised_with_offset,
    snapped_zero,
)

#: Choices of codes that are tried where rounding to a coarse type leaves several, and turns in finding several scales.
_MOST_EXPLANATIONS, _SWEEPS = 8, 50
#: The least that a scale may shrink to when it is chosen anew for given codes.
_VANISHED = 1e-9


@dataclass(frozen=True, eq=False)
class ScaledLevels(AllowedSet):
    """Weights v_i = s·(q_i − z), rounded once; codes, the scale of each group and its zero point are chosen.

    Attributes
    ----------
    codes : ndarray of shape (levels,)
        Sorted and distinct; what the q_i may be.
    zero : {"none", "integer", "real"}
        z is 0; one of 0, …, levels − 1; any real number. Where there is a zero point the codes are 0, …, levels − 1.
    signed : bool
        Whether scales may be negative. They are positive otherwise.
    powers_of_two : bool
        Whether scales are powers of two.
    group : ndarray of int64, shape (n,)
        The scale group of each input.
    limit : float
        The largest size of a weight; infinity unless the Gram matrix is singular.
    rows : int
        Output channels that share their scale; weights of several have the shape (rows, n).
    dtype : str
        The type to which weights were rounded, a key of `layerbounds.problems.float_types.FLOAT_TYPES`.
    """

    codes: Float
    zero: str
    signed: bool
    powers_of_two: bool
    group: Int
    limit: float = np.inf
    rows: int = 1
    dtype: str = "float64"

    @property
    def requirement(self) -> str:
        """Free scales."""
        return "free scales"

    @property
    def uniform(self) -> bool:
        """Whether the codes are consecutive integers."""
        first, count = self.codes[0], len(self.codes)
        return bool(count > 1 and first == np.rint(first) and np.array_equal(self.codes - first, np.arange(count)))

    @property
    def groups(self) -> int:
        """Number of scale groups."""
        return int(self.group.max(initial=-1)) + 1

    def boxes(self) -> list[Float]:
        """Codes, each list ascending, whose multiples by positive scales are the allowed weights of a scale group.

        With real zero points those of the problem with one variable less, whose code is taken from all others.
        """
        return [box.codes for box in self.signed_boxes()]

    def signed_boxes(self) -> list[Box]:
        """The boxes, with what leads back to scales, zero points and codes."""
        if self.zero != "none":
            return [Box(self.codes - z, 1.0, float(z)) for z in self.codes.tolist()]
        plain = Box(self.codes, 1.0, 0.0)
        mirrored = np.asarray(0.0 - self.codes[::-1])
        if self.signed and not np.array_equal(mirrored, self.codes):
            return [plain, Box(mirrored, -1.0, 0.0)]
        return [plain]

    def fit(self, weights: Float) -> ScaleFit | None:
        """Scales, zero points and codes that explain weights exactly; None where the weights are not allowed.

        Scales are real numbers. The float64 numbers that are returned give the weights with one rounding, unless no
        float64 number does.
        """
        return self._per_group(weights, self._explained)

    def weights(self, fit: ScaleFit) -> Float:
        """The weights of a fit, rounded once; real zero points are such as `snapped_zero` returns."""
        return rounded(fit.scale[self.group] * (fit.codes - fit.zero_point[self.group]) + 0.0, self.dtype)

    def violation(self, weights: Float) -> float:
        """The smallest, over all scales and zero points, largest distance of a weight to its level; 0 if allowed."""
        return self.closest(weights)[1]

    def closest(self, weights: Float) -> tuple[ScaleFit, float]:
        """The scales, zero points and codes that explain weights, or come closest, and the violation.

        Where they do not explain a scale group, ``low`` and ``high`` allow all its scales of the same sign.
        """
        violation = max(float(np.max(np.abs(weights), initial=0.0)) - self.limit, 0.0)

        def closest(values: Float) -> Explanation:
            nonlocal violation
            found = self._explained(values)
            if found is None:
                found, distance = nearest_line(values, self.signed_boxes(), self.zero == "real", self.powers_of_two)
                violation = max(violation, distance, float(np.finfo(np.float64).smallest_subnormal))
                if not self.powers_of_two:
                    low, high = (0.0, np.inf) if found.scale > 0 else (-np.inf, 0.0)
                    found = replace(found, low=low, high=high)
            return found

        fit = self._per_group(weights, closest)
        assert fit is not None
        return fit, violation

    def snapped(self, weights: Float, fit: ScaleFit, gram: Float, target: Float) -> Float:
        """Exactly s·(q − z) for the codes of a fit, with the scales among those that it allows that are best.

        Where rounding to a coarse type leaves several choices of codes, the best of them (without real zero points).

        Parameters
        ----------
        weights : ndarray of shape (n,) or (rows, n)
        fit : ScaleFit
            As `closest` finds it.
        gram : ndarray of shape (n, n)
        target : ndarray of the shape of the weights
        """
        best, error = self._best_scales(fit, gram, target)
        if self.dtype == "float64" or self.zero == "real":
            return best
        for g in range(self.groups):
            members = self.group == g
            values = weights[..., members]
            distinct, inverse = np.unique(values, return_inverse=True)
            for other in islice(self._explanations(distinct), 1, _MOST_EXPLANATIONS):
                changed = ScaleFit(*(a.copy() for a in (fit.scale, fit.zero_point, fit.codes, fit.low, fit.high)))
                changed.codes[..., members] = other.codes[inverse].reshape(values.shape)
                numbers = changed.scale, changed.zero_point, changed.low, changed.high
                for array, number in zip(numbers, (other.scale, other.zero_point, other.low, other.high), strict=True):
                    array[g] = number
                found, its_error = self._best_scales(changed, gram, target)
                if its_error < error:
                    best, error, fit = found, its_error, changed
        return best

    def _best_scales(self, fit: ScaleFit, gram: Float, target: Float) -> tuple[Float, float]:
        """Weights with the scales between ``low`` and ``high`` that are best for the output error, and this error."""
        levels = fit.codes - fit.zero_point[self.group]
        columns = np.stack([np.where(self.group == g, levels, 0.0) for g in range(self.groups)], axis=-1)
        flat = columns.reshape(-1, *columns.shape[-2:]) if self.rows > 1 else columns[None]
        moved = np.einsum("ij,rjg->rig", gram, flat)
        matrix = np.einsum("rig,rih->gh", flat, moved)
        side = np.einsum("rig,ri->g", moved, np.atleast_2d(target))
        scale = fit.scale.copy()
        # One scale after the other: their ranges are bounds of a convex quadratic function.
        for _ in range(_SWEEPS if self.groups > 1 else 1):
            for g in range(self.groups):
                if matrix[g, g] > 0:
                    wanted = scale[g] + (side[g] - matrix[g] @ scale) / matrix[g, g]
                    scale[g] = min(max(wanted, fit.low[g]), fit.high[g])
        weights = columns @ scale
        deviation = np.atleast_2d(weights - target)
        return weights, float(np.einsum("ri,ij,rj->", deviation, gram, deviation))

    def rescaled(self, weights: Float, gram: Float, target: Float) -> Float:
        """Allowed weights of the same codes with the scales, and real zero points, that are best for the output error.

        Parameters
        ----------
        weights : ndarray of shape (n,) or (rows, n)
            Where they are not allowed, the nearest ones that are take their place.
        gram : ndarray of shape (n, n)
        target : ndarray of the shape of the weights
        """
        fit = self.fit(weights)
        if fit is None:
            weights = self.nearest(weights)
            fit = self.fit(weights)
        if fit is None or self.powers_of_two:
            return weights
        if self.zero == "real":
            fit = self._with_best_zero(fit, gram, target)
        # Codes that want a negative scale, or none, leave a group as good as zero.
        least = np.full(self.groups, -np.inf) if self.signed else _VANISHED * fit.scale
        free = replace(fit, low=least, high=np.full(self.groups, np.inf))
        found, error = self._best_scales(free, gram, target)
        deviation = np.atleast_2d(weights - target)
        before = float(np.einsum("ri,ij,rj->", deviation, gram, deviation))
        return found if error < before and np.max(np.abs(found), initial=0.0) <= self.limit else weights

    def _with_best_zero(self, fit: ScaleFit, gram: Float, target: Float) -> ScaleFit:
        """The best zero points and scales of given codes together, if they have positive scales."""
        member = np.stack([self.group == g for g in range(self.groups)], axis=-1).astype(np.float64)
        flat = np.atleast_2d(fit.codes)[..., None] * member
        flat = np.concatenate((flat, np.broadcast_to(member, flat.shape)), axis=-1)
        moved = np.einsum("ij,rjg->rig", gram, flat)
        matrix, side = np.einsum("rig,rih->gh", flat, moved), np.einsum("rig,ri->g", moved, np.atleast_2d(target))
        scale, offset = np.split(np.linalg.lstsq(matrix, side, rcond=None)[0], 2)
        if np.any(scale <= 0):
            return fit
        zero = np.array([snapped_zero(-o / s, len(self.codes)) for s, o in zip(scale, offset, strict=True)])
        return replace(fit, scale=scale, zero_point=zero)

    def completed(self, weights: Float, live: Bool, original: Float) -> Float:
        """Weights of all inputs: those without energy take the levels nearest to the original, at the others' scales.

        Parameters
        ----------
        weights : ndarray of shape (live inputs,) or (rows, live inputs)
            Allowed.
        live : ndarray of bool, shape (n,)
        original : ndarray of shape (n,) or (rows, n)
        """
        full = np.array(original)
        full[..., live] = weights
        for g in range(self.groups):
            known, unknown = (self.group == g) & live, (self.group == g) & ~live
            wanted = full[..., unknown]
            if not wanted.size:
                continue
            if not np.any(full[..., known]) and (not known.any() or self._has_zero):
                near = near_in_boxes(wanted.ravel(), self.signed_boxes(), self.powers_of_two, self.limit)
                full[..., unknown] = self._rounded(near).reshape(wanted.shape)
                continue
            taken = np.unique(full[..., known])
            found = self._explained(taken)
            if found is not None:
                levels = self._rounded(replace(found, codes=self.codes))
                if np.array_equal(self._rounded(found), taken):
                    taken = np.unique(levels[np.abs(levels) <= self.limit])
            full[..., unknown] = nearest_codes(taken, wanted)
        return full

    @property
    def _has_zero(self) -> bool:
        return self.zero != "none" or bool(np.any(self.codes == 0))

    def _rounded(self, found: Explanation) -> Float:
        return rounded(found.scale * (found.codes - found.zero_point) + 0.0, self.dtype)

    def exact(self, weights: Float) -> Float:
        """The weights if they are allowed, else the allowed ones from which they differ by rounding."""
        size = float(np.max(np.abs(weights), initial=0.0))
        if size > self.limit * (1 + TOLERANCE):
            raise NotAllowedError(f"weights above {self.limit:.3g}, the largest allowed with this singular Gram matrix")
        if size <= self.limit and self.fit(weights) is not None:
            return weights
        fit = self._per_group(weights, self._recognised)
        if fit is None:
            raise NotAllowedError("weights that no scale explains")
        found = self.weights(fit)
        return found if np.max(np.abs(found), initial=0.0) <= self.limit else self.nearest(found)

    def nearest(self, point: Float) -> Float:
        """Allowed weights near a point: the nearest codes and the best scale in turn, from several scales."""
        if np.max(np.abs(point), initial=0.0) <= self.limit and self.fit(point) is not None:
            return point
        fit = self._per_group(point, self._near)
        assert fit is not None
        return self.weights(fit)

    def restrict(self, live: Bool) -> ScaledLevels:
        """The live inputs; scale groups without any are left out and the others numbered anew."""
        return replace(self, group=np.unique(self.group[live], return_inverse=True)[1].astype(np.int64))

    def pieces(self) -> Iterator[tuple[Float, Float, bool]]:
        """Every choice of codes of a box: the cone of all scales, one for each group.

        Powers of two are points, those from 2^−30 to 2^30.
        """
        shape = (self.rows, len(self.group)) if self.rows > 1 else (len(self.group),)
        group = np.broadcast_to(self.group, shape).ravel()
        choices = [list(self._group_codes(int(np.count_nonzero(group == g)))) for g in range(self.groups)]
        for choice in product(*choices):
            width = sum(columns.shape[1] for columns in choice)
            directions, first = np.zeros((group.size, width)), 0
            for g, columns in enumerate(choice):
                directions[group == g, first : first + columns.shape[1]] = columns
                first += columns.shape[1]
            if not self.powers_of_two:
                yield np.zeros(shape), directions.reshape(*shape, width), True
                continue
            for exponents in product(np.arange(-30.0, 31.0), repeat=width):
                yield (directions @ 2.0 ** np.array(exponents)).reshape(shape), np.zeros((*shape, 0)), False

    def _group_codes(self, count: int) -> Iterator[Float]:
        """Directions of one scale group, shape (count, 1), or (count, 3) with those of a real zero point."""
        if self.zero == "real":
            for codes in product(self.codes.tolist(), repeat=count):
                yield np.stack([np.array(codes), np.ones(count), -np.ones(count)], axis=1)
            return
        for box in self.signed_boxes():
            for codes in product(box.codes.tolist(), repeat=count):
                yield np.array(codes)[:, None]

    def _per_group(self, weights: Float, find: Callable[[Float], Explanation | None]) -> ScaleFit | None:
        """What a function finds for the values of each scale group; None where it finds nothing for one."""
        codes = np.zeros(weights.shape)
        numbers = np.tile([[1.0], [0.0], [1.0], [1.0]], self.groups)
        for g in range(self.groups):
            members = self.group == g
            if not members.any():
                continue
            values = weights[..., members]
            found = find(values.ravel())
            if found is None:
                return None
            codes[..., members] = found.codes.reshape(values.shape)
            numbers[:, g] = found.scale, found.zero_point, found.low, found.high
        scale, zero, low, high = numbers
        return ScaleFit(scale, zero, codes, low, high)

    def _explained(self, values: Float) -> Explanation | None:
        """Exactly, by numbers that give the values with one rounding if there are any."""
        distinct, inverse = np.unique(values, return_inverse=True)
        first = self._at_once(distinct)
        if first is not None:
            return replace(first, codes=first.codes[inverse])
        # Of a coarse type some number of the first interval gives the values: floating-point numbers are dense in it.
        for found in islice(self._explanations(distinct), _MOST_EXPLANATIONS if self.dtype == "float64" else 1):
            exactly = np.array_equal(self._rounded(found), distinct)
            if exactly or first is None:
                first = replace(found, codes=found.codes[inverse])
            if exactly:
                break
        return first

    def _at_once(self, distinct: Float) -> Explanation | None:
        """Of float64 weights that are products of float64 numbers, what explains them."""
        if self.dtype != "float64" or self.powers_of_two or self.zero == "real":
            return None
        if self.zero == "integer":
            span = len(self.codes) - 1
            return explain_at_once(distinct, np.arange(-float(span), span + 1.0), span)
        for box in self.signed_boxes():
            found = explain_at_once(distinct, box.codes)
            if found is not None:
                return box.explanation(found.scale, found.codes)
        return None

    def _explanations(self, distinct: Float) -> Iterator[Explanation]:
        levels = len(self.codes)
        if self.zero == "integer":
            yield from explain_shifted(distinct, levels, self.dtype)
        elif self.zero == "real":
            yield from explain_real(distinct, levels, self.dtype)
        else:
            for box in self.signed_boxes():
                for found in explain(distinct, box.codes, self.dtype, self.powers_of_two):
                    low, high = sorted((box.sign * found.low, box.sign * found.high))
                    yield Explanation(box.sign * found.scale, low, high, 0.0, box.sign * found.codes + 0.0)

    def _recognised(self, values: Float) -> Explanation | None:
        if self.zero == "real":
            return recognised_with_offset(values, len(self.codes), TOLERANCE)
        return recognised(values, self.signed_boxes(), self.powers_of_two, TOLERANCE)

    def _near(self, values: Float) -> Explanation:
        if self.zero == "real":
            return near_with_offset(values, len(self.codes), self.limit)
        return near_in_boxes(values, self.signed_boxes(), self.powers_of_two, self.limit)
