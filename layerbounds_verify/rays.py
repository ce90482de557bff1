"""Lower ends over all scales: the leaves of a tree, bounded by dual points or searched (docs/certificates.md).

With t = 1/s, f(sq) < C exactly if F(q, t) − Ct² < 0, F(q, t) = (q − tw)ᵀH(q − tw). For |t − m| ≤ δ and λ ≥ 0 that is at
least its sum with λ((t − m)² − δ²), whose minimum over *all* t is a quadratic form of the codes alone: with g = Hw,
κ = wᵀHw + λ − C > 0 and y = q − mw

    κ·(the minimum) = yᵀ(κH − ggᵀ)y − 2Cm gᵀy − (Cm)² − κ(λδ² + Cm²).

All codes where it is negative are looked for, in the order and with the diagonals of one search for all such parts of
the scales, and those that are found are judged exactly, at their own best scale.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from layerbounds_verify.bounds import prove, read_minorant
from layerbounds_verify.codes import Codes
from layerbounds_verify.exact import RefusedError, U, below, floats, integers, power, product
from layerbounds_verify.grids import MOST_NODES, tightened
from layerbounds_verify.reader import Certificate
from layerbounds_verify.scales import UP, Ray, ScalePoints, Scales, parts_of_scales, power_below
from layerbounds_verify.search import Search


def over_scales(
    certificate: Certificate, rows: list[int], index: int, gram: Any, target: Any, scales: Scales, claim: Fraction,
    exact: bool,
) -> Fraction:  # fmt: skip
    """What a proof gives for all allowed weights, without the constant; of searches no more than the claim."""
    tensors, proof = certificate.tensors, certificate.about["proofs"][index]
    part = {key.rsplit(".", 1)[1]: tensors[key] for key in tensors if key.startswith(f"proof.{index}.")}
    if scales.real and len(rows) > 1:
        raise RefusedError("rows that share a real zero point count their codes from different ones")
    ray = Ray(gram, target, scales.group, part["dropped"] if scales.real else None)
    many, n = ray.target.shape
    minorants = [read_minorant(tensors, f"proof.minorant.{m}", n) for m in proof["minorants"]]
    for number, minorant in zip(proof["minorants"], minorants, strict=True):
        key = str(number), certificate.group_of(rows[0]), ray.left.tobytes()
        if key not in certificate.proven:
            ray.prove(minorant, exact)
            certificate.proven.add(key)
    around = minorants
    if scales.real:
        around = [read_minorant(tensors, f"proof.minorant.{proof['around'][0]}", len(gram))]
        prove(gram, around[0], None, exact)
    d, shift = (np.max([getattr(m, name) for m in around], axis=0) for name in ("d", "shift"))
    rounding = _Roundings(gram, target, d, shift, scales)
    z, use = part["z"].reshape(-1, many, n), part["minorant"]
    rho = part.get("multipliers", np.zeros((len(z), many, 0)))
    if len(use) != len(z) or rho.shape[:2] != z.shape[:2] or np.any((use < 0) | (use >= len(minorants))):
        raise RefusedError("its points name minorants that are not there, or lack multipliers")
    leaves = list(parts_of_scales(part, int(scales.group.max()) + 1, len(scales.lists)))
    if any(not 0 <= leaf[2] < len(z) for leaf in leaves):
        raise RefusedError("a leaf of its tree names no point")
    searched = [leaf for leaf in leaves if leaf[1] < -1]
    used = sorted({number for _, kind, number, _, _ in leaves if kind == -1})
    points = ScalePoints(ray, scales, minorants, z[used], rho[used], part["at"])
    found = [
        points.beyond(low) or points.bound(used.index(number), which, int(use[number]), low, high)
        for which, kind, number, low, high in leaves
        if kind == -1 and all(x <= y for x, y in zip(low, high, strict=True))
    ]
    if not searched:
        return rounding.of(min(found))
    wanted = rounding.before(claim)
    if found and min(found) < wanted:
        raise RefusedError(
            f"a point of its tree proves a lower end of {below(min(found)):.17g}, and {float(wanted):.17g} is claimed"
        )
    if scales.group.any() or (many > 1 and scales.powers):
        raise RefusedError("this checker searches no scales of groups, and no powers of two that rows share")
    cells = [_Cells(ray, row, scales, part, claim, rounding) for row in range(many)]
    for which, _, number, (low,), (high,) in searched:
        for codes in (scales.lists[k] for k in which):
            if many > 1:
                _of_rows(cells, z[number], codes, (low, high), part["lower"][number], wanted)
                continue
            cells[0].judge(*cells[0].search(z[number, 0], codes, low, high, cells[0].cut))
    return claim


def _of_rows(cells: list[_Cells], z: Any, codes: Any, ends: tuple[float, float], least: Any, wanted: Fraction) -> None:
    """Refuse scales at which rows are below what is wanted together.

    Each row has an error of at least ``least``. Where one has what is then left to what is wanted more than that, the
    sum is large enough. Other choices of all rows are few: all are looked for, and at each scale the lowest count.
    """
    own = [Fraction(x) for x in least.tolist()]
    spare = max(wanted - sum(own), Fraction(0))
    if spare and ends[1] == math.inf:
        raise RefusedError("its rows do not reach what is claimed at large scales")
    lists = [cell.lines(z[r], codes, ends, own[r], spare) for r, cell in enumerate(cells)]
    if not spare or not all(lists):
        return
    s, high = map(Fraction, ends)
    total = sum(cell.energy for cell in cells)
    while True:
        now = [min(lines, key=lambda line: (s * line[0] - 2 * line[1], line[0])) for lines in lists]
        pairs = ((a, b) for a, lines in zip(now, lists, strict=True) for b in lines if b[0] < a[0])
        end = min([high, *(x for x in (2 * (a[1] - b[1]) / (a[0] - b[0]) for a, b in pairs) if x > s)])
        square, along = (sum(line[side] for line in now) for side in (0, 1))
        best = min(max(along / square if square else s, s), end)
        if total + best * (best * square - 2 * along) < wanted:
            raise RefusedError("codes of all rows at one scale have a smaller error than it claims")
        if end == high:
            return
        s = end


class _Roundings:
    """What rounding weights once can lower an error by: ‖v − x‖_H ≤ Σ √H_ii |v_i − x_i|, |v_i − x_i| ≤ u|x_i|.

    Of weights with an error below C, |v_i − w_i| ≤ √(C/d_i); where H is singular, H + diag(shift) ⪰ 0 and the limit
    take the place of H ⪰ diag(d). Powers of two are not rounded.
    """

    def __init__(self, gram: Any, target: Any, d: Any, shift: Any, scales: Scales) -> None:
        self.norms, self.target, self.shift, self.scales = np.sqrt(np.diag(gram) + shift), target, shift, scales
        self.d = np.zeros(len(d)) if np.any(shift) else d
        self.lost = Fraction(0)
        if np.any(shift) and not scales.powers:
            with np.errstate(over="ignore", invalid="ignore"):
                self.lost = Fraction(UP * float(((scales.limit + np.abs(target)) ** 2 * shift).sum()))

    def norm(self, value: Fraction) -> float:
        """‖v − x‖, at most, of weights v with an error below a value."""
        if self.scales.powers:
            return 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = np.minimum(np.abs(self.target) + np.sqrt(float(value) / self.d), self.scales.limit)
        if not np.all(np.isfinite(reach)):
            raise RefusedError("its minorant is not positive, so that nothing bounds the weights that are rounded")
        return UP * float(((U * reach + 2.0**-1074) @ self.norms).sum())

    def of(self, value: Fraction) -> Fraction:
        """A lower bound on all f(v) where all f(x) are at least a value."""
        if value <= 0:
            return Fraction(0)
        return max(value - Fraction(UP * 2.0 * math.sqrt(float(value)) * self.norm(value)) - self.lost, Fraction(0))

    def before(self, claim: Fraction) -> Fraction:
        """What all f(x) have to reach, so that all f(v) reach a claim."""
        high = max(claim + self.lost, Fraction(0))
        norm = self.norm(high)
        return high + Fraction(UP * (2.0 * math.sqrt(float(high)) * norm + norm * norm))


class _Cells:
    """Parts of the scales of one row, in which all codes are looked for whose error is below a cut."""

    def __init__(
        self, ray: Ray, row: int, scales: Scales, part: dict[str, Any], claim: Fraction, rounding: _Roundings
    ) -> None:
        self.ray, self.scales, self.rounding, self.claim = ray, scales, rounding, max(claim, Fraction(0))
        rows, n = ray.target.shape
        self.order, minorants = part["order"].reshape(rows, n)[row], part["minorants"].reshape(rows, n + 1, n)[row]
        if sorted(self.order.tolist()) != list(range(n)):
            raise RefusedError("its search has an order that is no permutation")
        self.target, self.pull = ray.target[row], ray.gram @ ray.target[row]
        self.energy = Fraction(int(self.target @ self.pull), 1 << (2 * ray.a + ray.b))
        self.cut = rounding.before(claim) * ray.factor
        self.kappa = Fraction(0) if scales.powers else Fraction(part["kappa"].ravel()[row].item()) * ray.factor
        self.whole, self.unit = ray.gram, ray.b
        if not scales.powers:
            k, more = self.kappa.denominator.bit_length() - 1, 2 * ray.a + ray.b
            self.unit = max(k + ray.b, more + ray.b)
            self.whole = (ray.gram * self.kappa.numerator) << (self.unit - k - ray.b)
            self.whole = self.whole - (np.outer(self.pull, self.pull) << (self.unit - more - ray.b))
        self.matrix, self.matrix_of_ray = floats(self.whole, self.unit), floats(ray.gram, ray.b)
        size = float(self.kappa * ray.factor) if self.kappa else 1.0
        self.ordered, self.minorants = self.matrix[np.ix_(self.order, self.order)], minorants * size

    def search(self, z: Any, codes: Any, low: float, high: float, cut: Fraction) -> tuple[Any, Fraction]:
        """All codes of a list that are below a cut at some scale of a part, and perhaps some more; a scale of it."""
        if low > high:
            return np.zeros((0, len(self.order))), Fraction(0)
        if low == 0.0:
            raise RefusedError("its searches do not end at small scales")
        ray, price = self.ray, self.kappa - self.energy + cut
        if not self.scales.powers and min(self.kappa, price) <= 0:
            raise RefusedError("its searches give scales outside their parts a negative price")
        m = Fraction(0.5 / low + 0.5 / high)
        away = max(m - (1 / Fraction(high) if high < math.inf else 0), 1 / Fraction(low) - m)
        if self.scales.powers:
            s = power_below(Fraction(high)) if high < math.inf else Fraction(0)
            if not s / 2 < Fraction(low) <= s:
                raise RefusedError("a part of its scales does not have one power of two")
            m, away = 1 / s, Fraction(0)
        # In units of 2⁻ᵖ codes, of 2⁻ᵉ y = z − mw, of 2⁻ʰ its slopes.
        k, p = m.denominator.bit_length() - 1, power(z, codes)
        e = max(p, k + ray.a)
        y = (integers(z, p) << (e - p)) - ((self.target * m.numerator) << (e - k - ray.a))
        tilt = Fraction(0) if self.scales.powers else cut * m
        moved = self.whole @ y
        j, g = tilt.denominator.bit_length() - 1, ray.a + ray.b
        h = max(self.unit + e, j + g)
        slope = (moved << (h - self.unit - e)) - ((self.pull * tilt.numerator) << (h - j - g))
        value = Fraction(int(y @ moved), 1 << (self.unit + 2 * e)) - 2 * tilt * Fraction(
            int(self.pull @ y), 1 << (g + e)
        )
        value -= tilt * tilt + (self.kappa * (price * away * away + cut * m * m) if self.kappa else cut * m * m)
        steps, order, bound = (integers(codes, p) - integers(z, p)[:, None])[self.order], self.order, -below(value)
        step, d = floats(steps, p).T, self.minorants
        if np.array_equal(codes - codes[0], np.arange(len(codes))):
            # The first step is −y, but for its rounding.
            pull, off = floats(2 * slope, h)[order], UP * floats(abs(integers(step[0], p) - steps[:, 0]), p)
            search = Codes(self.ordered, d, pull, -step[0], off, np.full(len(pull), len(codes)), bound)
            leaves = search.below(bound)
        else:
            # Entries of the matrix are rounded.
            size, cost = np.abs(step).max(axis=0), floats(2 * slope[order, None] * steps, h + p).T
            bound += 1.01 * U * float(size @ np.abs(self.ordered) @ size)
            step, cost, count, start = tightened(step, cost, d[-1], self.ordered, bound)
            leaves = start + Search(self.ordered, step, cost, count, d, True).below(bound, MOST_NODES)
        found = np.empty(leaves.shape)
        found[:, order] = codes[leaves]
        return found, 1 / m

    def lines(
        self, z: Any, codes: Any, ends: tuple[float, float], least: Fraction, spare: Fraction
    ) -> list[tuple[Fraction, Fraction]]:
        """qᵀHq and gᵀq of all codes that are below the sum of two numbers in a part; the first one is below none."""
        kept, (low, high) = [], ends
        for square, along in self.of(self.search(z, codes, low, high, least + spare)[0]):
            if square < 0 or (square == 0 and along):
                raise RefusedError("codes that its searches find have no energy")
            # Where float64 leaves no doubt that they are not below.
            x, y, energy = float(square), float(along), float(self.energy)
            s = min(max(y / x if x else 0.0, low), high)
            if x and energy + s * (s * x - 2.0 * y) - 1e-12 * (energy + s * (s * x + 2.0 * abs(y))) > least + spare:
                continue
            exactly = max(along / square if square else Fraction(0), Fraction(low))
            exactly = exactly if high == math.inf else min(exactly, Fraction(high))
            value = self.energy + exactly * (exactly * square - 2 * along)
            if value < least:
                raise RefusedError("codes of a row have a smaller error than it claims")
            kept += [(square, along)] if value < least + spare else []
        return kept

    def of(self, found: Any) -> list[tuple[Fraction, Fraction]]:
        """qᵀHq and gᵀq of codes, shape (codes, n)."""
        p = 0 if np.array_equal(found, np.rint(found)) else power(found)
        c, units = integers(found, p), (1 << (self.ray.b + 2 * p), 1 << (self.ray.a + self.ray.b + p))
        squares, along = (product(c, self.ray.gram) * c).sum(axis=1), c @ self.pull
        return [(Fraction(int(x), units[0]), Fraction(int(y), units[1])) for x, y in zip(squares, along, strict=True)]

    def judge(self, found: Any, at: Fraction) -> None:
        """Refuse codes that are below what is wanted at some scale, or at a power of two."""
        for q, (square, along) in zip(found, self.of(found), strict=True):
            one = self.scales.powers or not np.any(q)
            if square <= 0 and not one:
                raise RefusedError("codes that its searches find have no energy")
            s = at if one else max(along / square, Fraction(0))
            value, wanted = self.energy + s * (s * square - 2 * along), self.cut if self.scales.real else self.claim
            value -= Fraction(0) if one or self.scales.real else self._rounded(q, s, square)
            if value < wanted:
                raise RefusedError("codes at some scale have a smaller error than it claims")

    def _rounded(self, q: Any, s: Fraction, square: Fraction) -> Fraction:
        """What roundings of any multiples of some codes can be below their error at their best scale s.

        Off by τ from it the error is more by τ²qᵀHq, and a rounding moves weight i by at most u(s + |τ|)|q_i|, along a
        slope of at most |h_i| + |τ (Hq)_i|, h = H(sq − w).
        """
        size = [Fraction(x) for x in np.abs(q).tolist()]
        p = power(q)
        moved = [Fraction(int(x), 1 << (self.ray.b + p)) for x in self.ray.gram @ integers(q, p)]
        pull = [Fraction(int(x), 1 << (self.ray.a + self.ray.b)) for x in self.pull]
        slope = sum((x * abs(s * m - g) for x, m, g in zip(size, moved, pull, strict=True)), Fraction(0))
        turn = sum((x * abs(m) for x, m in zip(size, moved, strict=True)), Fraction(0))
        u, most = Fraction(U), Fraction(1.01 * float(np.abs(q) @ np.abs(self.matrix_of_ray) @ np.abs(q)))
        # Numbers below the smallest normal one are rounded by more: as if s were larger.
        s += Fraction(2.0**-1022) / min(x for x in size if x)
        bend, fall = square - 2 * u * turn - u * u * most, u * (slope + s * turn) + u * u * s * most
        if bend <= 0:
            raise RefusedError("codes have so little energy that rounding can hide them")
        return 2 * u * s * slope + u * u * s * s * most + fall * fall / bend
