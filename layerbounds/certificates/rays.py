"""Searches over all scales that a checker repeats: parts of the scales, and where the search of each begins.

What is searched, and why: docs/certificates.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from layerbounds.arrays import Float
from layerbounds.bounds.quantization.box import box_multipliers
from layerbounds.bounds.scale.projection import counted_from, project
from layerbounds.certificates.dual import Parts
from layerbounds.certificates.log import rounded
from layerbounds.problems.scaled import ScaledLevels
from layerbounds.problems.tasks import Task
from layerbounds.proofs import ScaleMinorant
from layerbounds.search.quantization.preparation import Preparation, order_exponent, prepare
from layerbounds.search.scale.cells import largest_scale, layout, least_of_smaller
from layerbounds.search.scale.rays import Ray, make_ray

#: λ, the price of scales outside a part, in units of the lower end, where that is far below f(0), and next to it;
#: not less than a share of f(0).
PRICE, HIGH_PRICE, LEAST_PRICE = 12.0, 2.0, 1e-7
#: What the price may take off the bound within a part, as a share of it times the number of inputs.
LOSS = 1.0
#: Widths of parts that the root excludes, in units of those that are searched.
WIDTHS = (16.0, 8.0, 4.0, 2.0)
#: The half width of a part, at most, relative to its middle.
WIDEST = 0.7
#: More parts of the scales than this are not searched: next to f(0) they are small.
MOST_PARTS = 1000
#: Powers of two beyond those that count, at most.
MOST_POWERS = 40
#: So much larger scales than those that count are divided further.
LARGER = 64.0
#: Beyond what float64 arithmetic loses here.
MARGIN = 1e-9


#: A list's parts of the scales, from small ones on (−1 and a dual point, or −2 and a tilt), and where they end.
_Chain = tuple[list[tuple[int, Float]], list[float]]


@dataclass(eq=False)
class Trees:
    """Trees over scales that are being written, one for each list of codes."""

    axis: list[int] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    child: list[int] = field(default_factory=list)
    root: list[int] = field(default_factory=list)
    points: list[Float] = field(default_factory=list)

    def add(self, parts: list[tuple[int, Float]], ends: list[float]) -> None:
        """The tree of one more list of codes."""
        self.root.append(len(self.axis))
        for number, (kind, z) in enumerate(parts):
            if number < len(ends):
                self._node(0, ends[number], len(self.axis) + 1)
            self._node(kind, 0.0, len(self.points))
            self.points.append(rounded(z))

    def _node(self, axis: int, at: float, child: int) -> None:
        self.axis.append(axis)
        self.at.append(at)
        self.child.append(child)

    def parts(self) -> Parts:
        """The tensors."""
        numbers: Parts = {name: np.array(getattr(self, name), dtype=np.int32) for name in ("axis", "child", "root")}
        use = np.zeros(len(self.points), dtype=np.int32)
        z = np.array(self.points).reshape(len(self.points), -1, self.points[0].shape[-1])
        return {**numbers, "at": np.array(self.at), "z": z, "minorant": use}


def ray_search(task: Task[ScaledLevels], lower: float) -> tuple[Parts, ScaleMinorant] | None:
    """A search of all scales of one channel, and the minorant of its points; None where there is none.

    Parameters
    ----------
    task : Task
    lower : float
        The claimed lower end without the constant.
    """
    allowed = task.allowed
    singular = np.isfinite(allowed.limit)
    if allowed.rows > 1 or allowed.groups > 1 or not lower > 0.0 or (singular and allowed.zero == "real"):
        return None
    gram, target, limit = task.gram, task.target, allowed.limit
    dropped: tuple[int, ...] = ()
    if allowed.zero == "real":
        dropped = counted_from(gram, allowed.group)
        found = project(gram, allowed.group, dropped) if len(gram) > 1 else None
        if found is None:
            return None
        gram, left = found
        target, limit = target[left] - target[dropped[0]], 2.0 * limit
    prep, trees = prepare(gram, order_exponent(len(gram))), Trees()
    d = np.empty(len(gram))
    d[prep.order] = prep.minorants[-1]
    search = _Fixed(prep) if allowed.powers_of_two else Priced(gram, target, lower, prep)
    for codes in allowed.boxes():
        ray = make_ray(prep, target, codes)
        chain = search.parts(ray, target, lower * (1.0 + MARGIN), limit)
        if chain is None:
            return None
        trees.add(*chain)
    parts = {**trees.parts(), **search.tensors()}
    if dropped:
        parts["dropped"] = np.array(dropped, dtype=np.int32)
    return parts, ScaleMinorant(d, np.zeros((len(gram), 0)), np.zeros(0))


def small_scales(ray: Ray, t: float) -> Float:
    """The point of the box at the scale 1/t, for all smaller ones."""
    low, high, n = float(ray.codes[0]), float(ray.codes[-1]), ray.size
    z = np.zeros(n)
    if low <= 0.0 <= high:
        origin, sides = t * ray.target, np.zeros(n, dtype=np.int64)
        h, _ = box_multipliers(ray.prep.covariance, origin, np.full(n, low), np.full(n, high), sides)
        z[ray.prep.order] = (origin + ray.prep.covariance @ h) / t
    return z


class _Fixed:
    """Powers of two: each is searched by itself."""

    def __init__(self, prep: Preparation) -> None:
        self.prep = prep

    def tensors(self) -> Parts:
        """The order and the diagonals of the searches."""
        return {"order": self.prep.order.astype(np.int64), "minorants": self.prep.minorants}

    def parts(self, ray: Ray, target: Float, cut: float, limit: float) -> _Chain | None:
        """All parts of the scales; None where some cannot be bounded."""
        most = largest_scale(ray, target[self.prep.order], cut, limit)
        found = layout(most, lambda t: least_of_smaller(ray, t) > cut, 1.0, True)
        if found is None:
            return None
        prep, n = self.prep, ray.size
        low, high = np.full(n, ray.codes[0]), np.full(n, ray.codes[-1])
        parts, ends = [(-1, small_scales(ray, float(found[-1, 0])))], []
        for t in [*found[::-1, 0].tolist(), *self._larger(ray, float(found[0, 0]), cut)]:
            h, _ = box_multipliers(prep.covariance, t * ray.target, low, high, np.zeros(n, dtype=np.int64))
            z = np.empty(n)
            z[prep.order] = t * ray.target + prep.covariance @ h
            parts.append((-2, z))
            ends.append(0.75 / t)
        # Beyond them weights are 0, or larger than allowed, or the point 0 says that their error is larger.
        ends.append(2.0 * ends[-1])
        parts.append((-1, np.zeros(n)))
        return parts, ends

    def _larger(self, ray: Ray, t: float, cut: float) -> list[float]:
        """Below t, from which on the search counts, those of larger scales that the point 0 does not exclude."""
        d, pull = self.prep.minorants[-1], self.prep.gram @ ray.target
        scales = 2.0 ** np.arange(1, MOST_POWERS + 1) / t
        v = scales[:, None, None] * ray.codes
        value = float(ray.target @ pull) + np.sum(np.min(d[:, None] * v**2 - 2.0 * pull[:, None] * v, axis=2), axis=1)
        below = np.flatnonzero(value < cut * (1.0 + MARGIN))
        return (1.0 / scales[: below[-1] + 1]).tolist() if len(below) else []


class Priced:
    """All scales: a quadratic form of the codes bounds the error in each part of them."""

    def __init__(self, gram: Float, target: Float, lower: float, prep: Preparation, times: float = 1.0) -> None:
        pull = gram @ target
        energy = float(target @ pull)
        near = min(lower / energy, 1.0)
        self.price = max(times * (PRICE + (HIGH_PRICE - PRICE) * near) * lower, LEAST_PRICE * energy)
        self.kappa = energy + self.price - lower
        self.prep = prepare(gram - np.outer(pull, pull) / self.kappa, order_exponent(len(gram)))
        self.target, self.pull, self.lower = target[self.prep.order], pull[self.prep.order], lower
        spare = max(min(lower, energy - lower), LEAST_PRICE * energy)
        self.width = float(np.sqrt(LOSS * spare / (self.price * len(gram))))

    def tensors(self) -> Parts:
        """The order and the diagonals of the searches, and κ."""
        order = self.prep.order.astype(np.int64)
        return {"order": order, "minorants": self.prep.minorants, "kappa": np.array([self.kappa])}

    def parts(self, ray: Ray, target: Float, cut: float, limit: float) -> _Chain | None:
        """All parts of the scales; None where some cannot be bounded."""
        most = largest_scale(ray, target[ray.prep.order], cut, limit)
        if float(np.max(self.pull[:, None] * ray.codes, axis=1).sum()) <= 0.0:
            # No codes are better than no weights, as the point 0 says at once.
            return [(-1, np.zeros(ray.size))], []
        unit = most or 1.0
        found = layout(most, lambda t: least_of_smaller(ray, t / unit) > cut, unit, False)
        if found is None:
            return None
        upper, first = float(found[-1, 1]) / unit, 1.0 / unit
        parts, ends = [(-1, small_scales(ray, upper))], [1.0 / upper]
        # Without a code 0 the root can exclude all larger scales at once, which is worth some more parts.
        farthest = first if np.any(ray.codes == 0.0) or np.isfinite(limit) else first / LARGER
        while upper > first or (upper > farthest and not self.tilt(ray.codes, 0.0, upper, cut)[1]):
            for times in WIDTHS:
                share = min(times * self.width, WIDEST)
                lower = upper * (1.0 - share) / (1.0 + share)
                z, excluded = self.tilt(ray.codes, lower, upper, cut)
                if excluded:
                    break
            else:
                lower = upper * (1.0 - self.width) / (1.0 + self.width)
                z, _ = self.tilt(ray.codes, lower, upper, cut)
            parts.append((-2, z))
            ends.append(1.0 / lower)
            upper = lower
            if len(parts) > MOST_PARTS:
                return None
        if np.isfinite(limit):
            # Weights other than 0 are larger than allowed.
            parts.append((-1, np.zeros(ray.size)))
        else:
            parts.append((-2, self.tilt(ray.codes, 0.0, upper, cut)[0]))
        return parts, ends

    def tilt(self, codes: Float, lower: float, upper: float, cut: float) -> tuple[Float, bool]:
        """Where the form is least within the box, for t in between; whether the root's bound excludes it all."""
        prep, n, kappa = self.prep, self.prep.size, self.kappa
        m, away = 0.5 * (lower + upper), 0.5 * (upper - lower)
        centre = self.target * (m * self.price / (self.price - self.lower))
        low, high = np.full(n, codes[0]), np.full(n, codes[-1])
        h, _ = box_multipliers(prep.covariance, centre, low, high, np.zeros(n, dtype=np.int64))
        z = centre + prep.covariance @ h
        y = z - m * self.target
        moved = prep.gram @ y
        slope = moved - cut * m / kappa * self.pull
        value = float(y @ moved) - 2.0 * cut * m / kappa * float(self.pull @ y) - (cut * m) ** 2 / kappa
        value -= self.price * away**2 + cut * m * m
        step = codes[:, None] - z
        terms = 2.0 * slope * step + prep.minorants[n] * step**2
        size = float(np.abs(terms).max(axis=0).sum()) + abs(value)
        point = np.empty(n)
        point[prep.order] = z
        return point, value + float(terms.min(axis=0).sum()) > MARGIN * size
