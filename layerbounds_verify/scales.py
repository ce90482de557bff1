"""All scales: weights are roundings of s·c, a scale s > 0 for each group of inputs, codes c of one of few lists.

A tree divides all scales. On each part of them a dual point bounds the error: with v = s·c every input, and every
integer form of inputs, adds the least s²A − 2sB over its codes. Where one line of A − 2B/s takes over from another is
rounded down to a multiple of 2^−t, and what that may hide is charged; all else is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np

from layerbounds_verify.bounds import Minorant, is_semidefinite, is_semidefinite_exactly
from layerbounds_verify.exact import RefusedError, floats, integers, matrix_integers, power, product
from layerbounds_verify.reader import Certificate

#: Where the Gram matrix is singular weights are at most so many times the largest target.
LARGEST = 256.0
#: Larger than what float64 arithmetic loses, relative, in a sum of positive numbers.
UP = 1 + 1e-9
#: In place of the least of no numbers.
_NOTHING = 1 << 10_000


@dataclass
class Scales:
    """What scales and codes there are.

    Attributes
    ----------
    lists : list of ndarray
        Of codes, ascending; with real zero points of their differences from the code of one input.
    group : ndarray of int, shape (n,)
        The scale of each input.
    limit : float
        Largest size of a weight.
    real, powers : bool
        Whether zero points are real numbers; whether scales are powers of two.
    """

    lists: list[Any]
    group: Any
    limit: float
    real: bool
    powers: bool


def read_scales(certificate: Certificate, rows: list[int], live: Any, weights: Any) -> Scales:
    """What is allowed, after a look at whether some weights are."""
    tensors, problem = certificate.tensors, certificate.about["problem"]
    codes, group, zero = tensors["problem.codes"], tensors["problem.group"], problem["zero"]
    if problem["dtype"] != "float64" or zero not in ("none", "integer", "real") or np.any(np.diff(codes) <= 0):
        raise RefusedError("its codes do not ascend, or are of a kind that this checker does not know")
    shifted, powers = zero != "none", bool(problem["powers_of_two"])
    if (shifted and (powers or np.any(codes != np.arange(len(codes))))) or group.shape != weights.shape[1:]:
        raise RefusedError("its codes and zero points, or groups of inputs, do not fit together")
    lists, mirrored = [codes - code for code in codes] if shifted else [codes], 0.0 - codes[::-1]
    if problem["signed"] and not shifted and np.any(mirrored != codes):
        lists.append(mirrored)
    place = tensors["solution.channels"].tolist()
    chosen, real = tensors["solution.codes"][[place.index(row) for row in rows]], zero == "real"
    for g in np.unique(group):
        own, values = chosen[:, group == g].ravel(), weights[:, group == g].ravel()
        fits = any(np.isin(own, codes).all() for codes in (lists[:1] if real else lists))
        if not fits or not _explained(values, own, real, powers):
            raise RefusedError(f"no scale explains the weights of channel {rows[0]} by its codes")
    gram = certificate.gram[certificate.group_of(rows[0])][np.ix_(live, live)]
    limit, root = LARGEST * (float(np.abs(certificate.target[rows]).max()) or 1.0), np.sqrt(np.diag(gram))
    scaled = gram / root / root[:, None]
    np.fill_diagonal(scaled, 1.0 - 2.0**-39 * len(gram))
    limit = math.inf if is_semidefinite(scaled, np.zeros(gram.shape)) else limit
    if np.abs(weights).max() > limit:
        raise RefusedError(f"weights of channel {rows[0]} are larger than is allowed with a singular Gram matrix")
    return Scales(lists, np.unique(group[live], return_inverse=True)[1], limit, real, powers)


def _explained(values: Any, codes: Any, real: bool, powers: bool) -> bool:
    """Whether some s > 0, and with real zero points some o, make all values the float64 numbers nearest to s·code + o.

    Each value came from an interval of real numbers. Given s, an o exists where the intervals of any two codes allow
    one (on a line, sets that meet in pairs meet); without o the code 0 has the value 0. Two codes say from where to
    where s may be; ends belong to an interval if even mantissas are at both of its sides.
    """
    came_from = {} if real else {Fraction(0): (Fraction(0), Fraction(0), True)}
    for code in np.unique(codes).tolist():
        v, *others = np.unique(values[codes == code]).tolist()
        if others or (code == 0.0 and v != 0.0 and not real):
            return False
        if code or real:
            low, high = ((Fraction(v) + Fraction(math.nextafter(v, end))) / 2 for end in (-math.inf, math.inf))
            came_from[Fraction(code)] = low, high, (v / math.ulp(v)) % 2 == 0
    least, most = (Fraction(0), True), (Fraction(10) ** 400, True)
    for (c, first), (d, second) in combinations(sorted(came_from.items()), 2):
        closed = first[2] and second[2]
        least = max(least, ((second[0] - first[1]) / (d - c), not closed))
        most = min(most, ((second[1] - first[0]) / (d - c), closed))
    s, inside = most
    if powers and s > 0:
        s, inside = power_below(s if inside else s * (1 - Fraction(1, 1 << 2000))), True
    return s > least[0] or (s == least[0] and inside and not least[1])


def power_below(s: Fraction) -> Fraction:
    """The largest power of two that is not larger."""
    k = s.numerator.bit_length() - s.denominator.bit_length()
    return Fraction(2) ** (k if Fraction(2) ** k <= s else k - 1)


class Ray:
    """A problem whose weights are s·c with single lists of codes, as integers; K / factor is its Gram matrix.

    With real zero points of each group of inputs those are put in that are best, by elimination without fractions
    (Bareiss), and weights count from one input of each group, which is ``dropped``.
    """

    def __init__(self, gram: Any, target: Any, group: Any, dropped: Any) -> None:
        self.gram, self.b = matrix_integers(gram)
        self.a, self.factor = power(target), 1
        self.target, self.group, self.left = integers(target, self.a), group, np.arange(len(gram))
        if dropped is None:
            return
        if group[dropped].tolist() != list(range(group.max() + 1)):
            raise RefusedError("its points do not leave out one input of each group")
        for g in range(len(dropped)):
            column = self.gram[:, group == g].sum(axis=1)
            pivot = column[group == g].sum()
            if pivot <= 0:
                raise RefusedError("a zero point has no energy, so that it can be anything")
            self.gram, self.factor = (self.gram * pivot - np.outer(column, column)) // self.factor, pivot
        self.left = np.setdiff1d(self.left, dropped)
        self.gram, self.group = self.gram[np.ix_(self.left, self.left)], group[self.left]
        self.target = self.target[:, self.left] - self.target[:, dropped[self.group]]

    def prove(self, minorant: Minorant, exact: bool) -> None:
        """Refuse diag(d) + V diag(weights) Vᵀ unless it is below the Gram matrix and diag(shift)."""
        none = np.zeros((len(self.gram), 0)), np.zeros(0)
        forms, weights = none if minorant.forms is None else (minorant.forms, minorant.weights)
        b = max(self.b, power(minorant.d, minorant.shift, weights))
        rest = self.gram << (b - self.b)
        np.fill_diagonal(rest, np.diag(rest) + (integers(minorant.shift, b) - integers(minorant.d, b)) * self.factor)
        for form, weight in zip(forms.T.astype(int).astype(object), integers(weights, b) * self.factor, strict=True):
            m = np.flatnonzero(form)
            rest[np.ix_(m, m)] -= np.outer(form[m], form[m]) * weight
        proven = is_semidefinite_exactly(rest) if exact else is_semidefinite(floats(rest, b))
        if minorant.parts or np.any(minorant.d < 0) or not proven:
            raise RefusedError("its minorant is not proven to be below the Gram matrix")


def parts_of_scales(tree: dict[str, Any], groups: int, lists: int) -> Iterator[tuple[list[int], int, int, Any, Any]]:
    """Lists of codes, what the node says (axis and child), and lowest and highest scales of all leaves.

    Node k divides the scale of group axis[k] at at[k]: below is child[k], above the next one.
    """
    axis, at, child, root = (tree[name] for name in ("axis", "at", "child", "root"))
    if len(root) != 1 and (groups > 1 or len(root) != lists):
        raise RefusedError("its trees are neither one for all lists of codes nor one for each")
    stack = [
        ([k] if len(root) > 1 else list(range(lists)), int(node), [0.0] * groups, [math.inf] * groups)
        for k, node in enumerate(root)
    ]
    if not all(0 <= node < len(axis) for _, node, _, _ in stack) or not np.all((at > 0) | (axis < 0)):
        raise RefusedError("its trees have no root, or divide scales that are not positive")
    for _ in range(len(axis)):
        which, node, low, high = stack.pop()
        g, first = int(axis[node]), int(child[node])
        if g < 0:
            yield which, g, first, low, high
            if not stack:
                return
            continue
        if not node < first < len(axis) - 1 or g >= groups:
            raise RefusedError(f"node {node} of its tree divides what is not there, or has no two children")
        below, above = high.copy(), low.copy()
        below[g], above[g] = min(float(at[node]), high[g]), max(float(at[node]), low[g])
        stack += [(which, first, low, below), (which, first + 1, above, high)]
    raise RefusedError("its tree has a node with two parents")


class ScalePoints:
    """Dual points over scales: constants and what single inputs and forms add, in integers.

    Parameters
    ----------
    ray : Ray
    scales : Scales
    minorants : list of Minorant
        Proven.
    z : ndarray of shape (points, rows, n)
    rho : ndarray of shape (points, rows, forms)
        Multipliers, padded.
    ends : ndarray
        Scales that are to be whole.
    """

    def __init__(self, ray: Ray, scales: Scales, minorants: list[Minorant], z: Any, rho: Any, ends: Any) -> None:
        self.ray, self.scales, self.minorants, self.points, self.rho = ray, scales, minorants, z, rho
        parts = [p for m in minorants for p in (m.d, [] if m.weights is None else m.weights)]
        self.b = max(ray.b, power(*parts))
        self.a = max(ray.a, power(z), power(rho) - self.b)
        whole = all(np.array_equal(codes, np.rint(codes)) for codes in scales.lists)
        self.c, self.t = 0 if whole else power(*scales.lists), max(self.a, power(ends)) + 64
        self.z = integers(z, self.a)
        deviation = self.z - (ray.target << (self.a - ray.a))
        self.h = product(deviation, ray.gram) << (self.b - ray.b)
        self.value = ((deviation - 2 * self.z) * self.h).sum(axis=(1, 2))
        self.codes = [integers(codes, self.c) for codes in scales.lists]
        self.limit, self.kept = (1 + 2.0**-50) * scales.limit * (2 if scales.real else 1), dict[int, Any]()

    def beyond(self, low: list[float]) -> Fraction | None:
        """The error of weights that are 0, where all others are larger than allowed; else None."""
        smallest = min(float(np.abs(codes[codes != 0]).min(initial=np.inf)) for codes in self.scales.lists)
        if not Fraction(min(low)) * Fraction(smallest) > self.limit:
            return None
        value = int((self.ray.target @ self.ray.gram * self.ray.target).sum())
        return Fraction(value, self.ray.factor << (2 * self.ray.a + self.ray.b))

    def items(self, m: int) -> Any:
        """Forms of a minorant, its weights, the group of each input and form, and what these can be with each list."""
        if m not in self.kept:
            minorant, group, n = self.minorants[m], self.ray.group, len(self.ray.group)
            forms = np.zeros((n, 0), dtype=int) if minorant.forms is None else minorant.forms.astype(int)
            weights = minorant.d if minorant.forms is None else np.concatenate([minorant.d, minorant.weights])
            home = np.concatenate([group, group[np.argmax(forms != 0, axis=0)]])
            if (self.c and forms.size) or np.any((forms != 0) & (group[:, None] != home[n:])):
                raise RefusedError("a form of its minorant has inputs of several groups, or codes are not whole")
            tables = [_table(codes, forms) for codes in self.codes]
            self.kept[m] = forms.astype(object), integers(weights, self.b) * self.ray.factor, home, tables
        return self.kept[m]

    def bound(self, point: int, which: list[int], m: int, low: list[float], high: list[float]) -> Fraction:
        """The least bound of a point over some lists and scales."""
        forms, weights, home, tables = self.items(m)
        (rows, n), z, shift = self.z[point].shape, self.z[point], self.minorants[m].shift
        rho = integers(self.rho[point][:, : len(weights) - n], self.a + self.b) * self.ray.factor
        y = np.concatenate([z, z @ forms], axis=1)
        slope = weights * y - np.concatenate([self.h[point] - rho @ forms.T, rho], axis=1)
        result = Fraction(int(self.value[point] + (weights * y * y).sum()), 1 << (2 * self.a + self.b))
        for g, ends in enumerate(zip(low, high, strict=True)):
            own, d, b = home == g, np.tile(weights[home == g], rows), slope[:, home == g].ravel()
            result += min(self._least(d, b, np.tile(tables[k][own], (rows, 1)), *ends) for k in which)
        lost = UP * float(((self.limit + np.abs(self.points[point])) ** 2 * shift).sum()) if np.any(shift) else 0.0
        return result / self.ray.factor - Fraction(lost)

    def _least(self, d: Any, b: Any, table: Any, low: float, high: float) -> Fraction:
        """The least Σ min over c of s²dc² − 2sbc over scales, the codes of each item ascending.

        As s grows the best code, which is next to b/(ds), moves towards 0: from one to the next at s = 2b/(d·(their
        sum)). ŝ ≤ s is off by less than 2^−t, between them the sum is too high by at most s|d(c² − c'²)|·2^−t.
        """
        t, shift = self.t, self.t + self.c - self.a
        lower, upper, sign = table[:, :-1], table[:, 1:], np.sign(b)[:, None]
        moves = (lower < upper) & (d > 0)[:, None] & ((lower + upper) * sign > 0)
        item, sums = np.nonzero(moves)[0], (lower + upper)[moves]
        steps = ((lower - upper) * sign)[moves]
        at = (b[item] << (shift + 1)) // (d[item] * sums)
        # Towards 0 the squares of codes change by sum times step.
        falls, turns = d[item] * sums * steps, (b[item] * steps) << shift
        nearest = np.take_along_axis(table, np.argmin(np.abs(table), axis=1)[:, None], 1)[:, 0]
        first = np.where(b > 0, table[:, -1], np.where(b < 0, table[:, 0], nearest))
        square, along = int((d * first * first).sum()), int((b * first).sum()) << shift
        place, end = int(Fraction(low) * (1 << t)), None if high == math.inf else int(Fraction(high) * (1 << t))
        pieces, lost = [], 0
        for k in sorted(range(len(at)), key=at.__getitem__):
            if end is not None and at[k] > end:
                break
            if at[k] > place:
                pieces += self._piece(place, at[k], square, along)
                place = at[k]
            lost += int((at[k] + 1) * falls[k])
            square, along = square + int(falls[k]), along + int(turns[k])
        pieces += self._piece(place, end, square, along)
        return Fraction(min(pieces, default=_NOTHING) + lost, 1 << (2 * t + self.b + 2 * self.c))

    def _piece(self, p: int, q: int | None, square: int, along: int) -> list[int]:
        """The least s²·square − 2s·along for p ≤ s ≤ q, rounded down; nothing where no scale is there."""
        if q is None and square == 0 and along > 0:
            raise RefusedError("its minorant does not bound large scales")
        if self.scales.powers and (p or along > square):
            first, last = max(p - 1, 0).bit_length(), math.inf if q is None else q.bit_length() - 1
            best = first if along <= 0 else (along // square if square else q or 1).bit_length() - 1
            tried = [1 << int(min(max(k, first), last)) for k in (best, best + 1) if first <= last]
        elif along > p * square and (q is None or along < q * square):
            return [(-along * along) // square]
        else:
            tried = [p if along <= p * square else q or 0]
        return [s * (s * square - 2 * along) for s in tried]


def _table(codes: Any, forms: Any) -> Any:
    """What each input, and each form, can be: rows padded with their last entries."""
    rows = [codes.tolist()] * len(forms)
    for form in forms.T.tolist():
        ends = [sorted((f * codes[0], f * codes[-1])) for f in form if f]
        low, high = (sum(end[side] for end in ends) for side in (0, 1))
        rows.append(list(range(low, high + 1)))
    most = max(map(len, rows), default=1)
    return np.array([row + [row[-1]] * (most - len(row)) for row in rows], dtype=object).reshape(len(rows), most)
