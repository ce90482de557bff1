"""The best compression of every layer within a budget of bits, with what is proven about it.

With errors e known only as l ≤ e ≤ u, the least total OPT(e) lies in [OPT(l), OPT(u)], and an allocation y is worse
than the best by at most its regret, Σu_y − OPT(ê), where ê is u for y's own choices and l for all others
(docs/allocation.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from layerbounds.allocation.fixed_point import FixedPoint, fixed_point, outward, rounded_up, total_of, weighted
from layerbounds.allocation.formats import export
from layerbounds.allocation.knapsack import solve
from layerbounds.allocation.options import LayerOptions, Option, check_layers, chosen_options
from layerbounds.allocation.wording import readable
from layerbounds.arguments import real_number, whole_number
from layerbounds.display import Bar, Displayed, Shape, Summary, Table
from layerbounds.display.outward import ends as written
from layerbounds.exceptions import InputError
from layerbounds.frames import Kind, data_frame
from layerbounds.suggestions import did_you_mean

#: Where between the lower ends and the upper ones optima are tried as allocations.
_SHARES = (0.0, 0.4, 0.5, 0.7, 1.0)
#: Rivals that are tried as allocations, and looked for where more search would help.
_ROUNDS = 3


@dataclass(frozen=True)
class UniformRival:
    """One option for all layers, beside the allocation.

    Attributes
    ----------
    name : str
    storage : int
        Bits of all layers.
    error : tuple of float
        Certified interval of its total error.
    gain : tuple of float
        Certified interval of how much larger its error is than that of the allocation: layers with the same choice
        cancel.
    """

    name: str
    storage: int
    error: tuple[float, float]
    gain: tuple[float, float]

    @property
    def proven(self) -> bool:
        """Whether the allocation is certainly better."""
        return self.gain[0] > 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "storage": self.storage,
            "error": list(self.error),
            "gain": list(self.gain),
            "proven": self.proven,
        }


@dataclass(frozen=True)
class SearchEnd:
    """An end of an interval that holds the regret up.

    Attributes
    ----------
    layer, option : str
    end : {"lower", "upper"}
        Which end more search would have to move.
    gain : float
        How much of the regret it may take away at most: the width of the interval, weighted, but not more than the
        regret.
    """

    layer: str
    option: str
    end: str
    gain: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"layer": self.layer, "option": self.option, "end": self.end, "gain": self.gain}


@dataclass(frozen=True, repr=False)
class Allocation(Displayed):
    """An option for every layer, and what is proven about it.

    Errors are sums over the layers, each multiplied by its scale.

    Attributes
    ----------
    layers : tuple of LayerOptions
        What there was to choose from.
    choices : dict of str to str
        The option of each layer.
    budget_bits : int
        Bits that all layers may take together.
    storage : int
        Bits that they take.
    best : tuple of float
        Certified interval of the least total error of any allocation within the budget.
    error : tuple of float
        Certified interval of this one's total error.
    regret : float
        Certified bound on how much larger its error is than that of the best allocation within the budget; infinite
        where an upper end is.
    rivals : tuple of UniformRival
        The options that all layers have, as far as they fit.
    where_more_search_helps : tuple of SearchEnd
        The largest gains first.
    convention : str
        How bits are counted, in a sentence.
    objective : str
        What the scales are, in a sentence.

    Examples
    --------
    >>> allocation = lb.allocate(run, budget=5.0)
    >>> allocation.choices
    {'conv1': 'INT3'}
    >>> allocation.regret
    0.0
    """

    layers: tuple[LayerOptions, ...] = field(repr=False)
    choices: dict[str, str]
    budget_bits: int
    storage: int
    best: tuple[float, float]
    error: tuple[float, float]
    regret: float
    rivals: tuple[UniformRival, ...] = ()
    where_more_search_helps: tuple[SearchEnd, ...] = ()
    convention: str = ""
    objective: str = ""

    @property
    def weights(self) -> int:
        """Number of weights of all layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def budget(self) -> float:
        """Bits per weight that there are."""
        return self.budget_bits / max(self.weights, 1)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight that it takes."""
        return self.storage / max(self.weights, 1)

    @property
    def relative_regret(self) -> float:
        """The regret as a share of the upper end of the error."""
        if self.regret == 0.0:
            return 0.0
        return self.regret / self.error[1] if math.isfinite(self.regret) and self.error[1] > 0.0 else math.inf

    def option(self, layer: str) -> Option:
        """What is chosen for a layer.

        Raises
        ------
        InputError
            If there is no such layer.

        Examples
        --------
        >>> lb.allocate(run, budget=5.0).option("conv1").name
        'INT3'
        """
        entry = self._entry(layer)
        return entry.options[entry.index(self.choices[entry.name])]

    def interval(self, layer: str) -> tuple[float, float]:
        """Certified interval of a layer's part of the total error.

        Examples
        --------
        >>> low, high = lb.allocate(run, budget=5.0).interval("conv1")
        >>> low <= high
        True
        """
        entry = self._entry(layer)
        return _total([entry], [entry.index(self.choices[entry.name])])

    def _entry(self, layer: str) -> LayerOptions:
        for entry in self.layers:
            if entry.name == layer:
                return entry
        names = [entry.name for entry in self.layers]
        hint = did_you_mean(layer, names)
        raise InputError(f"there is no layer {layer!r} in the allocation; {hint}it has {', '.join(names[:20])}.")

    def export(self, tool: str) -> str:
        """The text of a file that makes a tool compress the layers like this.

        Parameters
        ----------
        tool : str
            As in `layerbounds.allocation.formats`.

        Raises
        ------
        InputError
            If the tool cannot express what is chosen for a layer.

        Examples
        --------
        >>> print(lb.allocate(run, budget=5.0).export("gptqmodel"), end="")
        {
          "bits": 3,
          "group_size": -1,
          "sym": true,
          "dynamic": {
            "+:^conv1$": {
              "bits": 3,
              "group_size": -1,
              "sym": true
            }
          }
        }
        """
        return export(self.layers, self.choices, tool)

    def sentences(self) -> list[str]:
        """What is known, for people; numbers are rounded outward.

        Examples
        --------
        >>> lb.allocate(run, budget=5.0).sentences()[1]
        'It is proven to be a best one.'
        """
        error, best = (
            " to ".join([readable(low, False), readable(high, True)]) for low, high in (self.error, self.best)
        )
        budget, used = f"{self.budget:.4g}", f"{self.bits_per_weight:.4g}"
        said = [
            f"Within {budget} bits per weight ({used} used) the error of this allocation is {error}, that of the best "
            f"one {best}."
        ]
        if math.isinf(self.regret):
            said.append("Some upper ends are infinite, so that nothing is known of its regret.")
        elif self.regret == 0.0:
            said.append("It is proven to be a best one.")
        else:
            share = readable(100.0 * self.relative_regret, True)
            said.append(
                f"It is worse than the best one by at most {readable(self.regret, True)}, {share} % of its upper end."
            )
        for rival in self.rivals:
            if all(choice == rival.name for choice in self.choices.values()):
                said.append(f"It is {rival.name} for all layers.")
                continue
            low, high = readable(rival.gain[0], False), readable(rival.gain[1], True)
            verdict = "is proven to be worse" if rival.proven else "is not proven to be worse"
            said.append(f"{rival.name} for all layers {verdict}: by {low} to {high}.")
        return said

    def statement(self) -> str:
        """`sentences` as one text.

        Examples
        --------
        >>> lb.allocate(run, budget=5.0).statement().startswith("Within 5 bits per weight")
        True
        """
        return " ".join(self.sentences())

    def to_dict(self) -> dict[str, Any]:
        """For JSON.

        Examples
        --------
        >>> lb.allocate(run, budget=5.0).to_dict()["bits_per_weight"]
        4.777777777777778
        """
        return {
            "budget": self.budget,
            "budget_bits": self.budget_bits,
            "weights": self.weights,
            "storage": self.storage,
            "bits_per_weight": self.bits_per_weight,
            "best": list(self.best),
            "error": list(self.error),
            "regret": self.regret,
            "relative_regret": self.relative_regret,
            "layers": [
                {
                    "layer": layer.name,
                    "weights": layer.weights,
                    "scale": layer.scale,
                    "option": self.choices[layer.name],
                    "storage": self.option(layer.name).storage,
                    "error": list(self.interval(layer.name)),
                }
                for layer in self.layers
            ],
            "uniform": [rival.to_dict() for rival in self.rivals],
            "where_more_search_helps": [end.to_dict() for end in self.where_more_search_helps],
            "convention": self.convention,
            "objective": self.objective,
        }

    def to_frame(self) -> Any:
        """A table with a row for each layer.

        Returns
        -------
        pandas.DataFrame
            ``layer``, ``option``, ``weights``, ``storage_bits``, ``bits_per_weight``, ``scale``, and the ends of its
            part of the total error, ``lower_bound`` and ``upper_bound``.

        Raises
        ------
        MissingExtraError
            Without pandas.

        Examples
        --------
        >>> lb.allocate(run, 4).to_frame()["layer"].tolist()
        ['conv1']
        """
        kinds: dict[str, Kind] = {"layer": "text", "option": "text", "weights": "whole", "storage_bits": "whole"}
        kinds |= dict.fromkeys(("bits_per_weight", "scale", "lower_bound", "upper_bound"), "real")
        rows: list[dict[str, Any]] = []
        for layer in self.layers:
            option, (low, high) = self.option(layer.name), self.interval(layer.name)
            bits = option.storage / layer.weights if layer.weights else None
            row = {"layer": layer.name, "option": option.name, "weights": layer.weights}
            row |= {"storage_bits": option.storage, "bits_per_weight": bits, "scale": layer.scale}
            rows.append({**row, "lower_bound": low, "upper_bound": high})
        return data_frame(kinds, rows)

    def _summary(self) -> Summary:
        count = len(self.layers)
        return Summary(f"{count} layer{'' if count == 1 else 's'}", self.sentences())

    def _tables(self) -> list[Table]:
        rows: list[list[str | Bar | None]] = []
        for layer in self.layers:
            option, span = self.option(layer.name), self.interval(layer.name)
            bits = f"{option.storage / layer.weights:.4g}" if layer.weights else ""
            words = written(span)
            rows.append([layer.name, option.name, bits, words, Bar(*span, f"{layer.name}: {words}")])
        kinds: dict[str, Shape] = {"layer": "text", "choice": "text", "bits": "number", "error": "number"}
        return [Table({**kinds, "certified interval": "bar"}, rows, note=self.objective)]

    def saying(self, convention: str, objective: str) -> Allocation:
        """The same with sentences on bits and scales.

        Examples
        --------
        >>> lb.allocate(run, budget=5.0).saying("Scales are not counted.", "Errors are summed.").convention
        'Scales are not counted.'
        """
        return replace(self, convention=convention, objective=objective)


def bits_of_budget(layers: Sequence[LayerOptions], budget: float) -> int:
    """Bits that all layers may take together at so many bits per weight.

    Raises
    ------
    InputError
        If the budget is no number of at least 0.
    """
    number = real_number(budget, "budget", 0.0, unit="number of bits per weight")
    return math.floor(Fraction(number) * sum(layer.weights for layer in layers))


def allocate(layers: Sequence[LayerOptions], budget_bits: int) -> Allocation:
    """The allocation of smallest certified regret among sensible ones, and the interval of the best one.

    Tried are the optima at the lower ends, at the upper ends and between them, each option for all layers, and the
    worst rivals of the best of these.

    Parameters
    ----------
    layers : sequence of LayerOptions
    budget_bits : int
        Bits that all layers may take together.

    Raises
    ------
    InputError
        If nothing fits into the budget, or the layers are not what they should be.
    """
    layers, budget_bits = _checked(layers, budget_bits)
    table = fixed_point(layers, budget_bits)
    tried = {choice: _judged(table, budget_bits, choice) for choice in _candidates(layers, table, budget_bits)}
    for _ in range(_ROUNDS):
        best = min(tried, key=lambda choice: _merit(layers, tried[choice].regret, choice))
        rival = tried[best].rival
        if rival in tried:
            break
        tried[rival] = _judged(table, budget_bits, rival)
    best = min(tried, key=lambda choice: _merit(layers, tried[choice].regret, choice))
    return _described(layers, table, budget_bits, best, tried[best])


def score(layers: Sequence[LayerOptions], choice: Mapping[str, str], budget_bits: int | None = None) -> Allocation:
    """A given allocation beside the best one within a budget.

    Parameters
    ----------
    layers : sequence of LayerOptions
    choice : mapping from layers to names of options
    budget_bits : int, optional
        Default: what the allocation takes.

    Raises
    ------
    InputError
        If it does not fit into the budget, or names what there is not.
    """
    layers = check_layers(layers)
    numbers = tuple(chosen_options(layers, choice))
    storage = _storage(layers, numbers)
    layers, budget_bits = _checked(layers, storage if budget_bits is None else budget_bits)
    if storage > budget_bits:
        raise InputError(f"the allocation takes {storage} bits, more than the {budget_bits} of the budget; raise it.")
    table = fixed_point(layers, budget_bits)
    return _described(layers, table, budget_bits, numbers, _judged(table, budget_bits, numbers))


def regret(layers: Sequence[LayerOptions], budget_bits: int, choice: Mapping[str, str]) -> float:
    """Certified bound on how much larger an allocation's error is than that of the best one within a budget.

    Parameters
    ----------
    layers : sequence of LayerOptions
    budget_bits : int
    choice : mapping from layers to names of options

    Raises
    ------
    InputError
        As in `score`.
    """
    return score(layers, choice, budget_bits).regret


def _checked(layers: Sequence[LayerOptions], budget_bits: int) -> tuple[tuple[LayerOptions, ...], int]:
    checked = check_layers(layers)
    budget = whole_number(budget_bits, "budget_bits", 0)
    least = sum(min(option.storage for option in layer.options) for layer in checked)
    if least > budget:
        weights = max(sum(layer.weights for layer in checked), 1)
        raise InputError(
            f"the budget of {budget} bits ({budget / weights:.4g} per weight) is less than the smallest options take, "
            f"{least} bits ({least / weights:.4g} per weight, with scales and masks); raise it, or add smaller options."
        )
    return checked, budget


def _storage(layers: Sequence[LayerOptions], choice: Sequence[int]) -> int:
    return sum(layer.options[c].storage for layer, c in zip(layers, choice, strict=True))


def _total(layers: Sequence[LayerOptions], choice: Sequence[int]) -> tuple[float, float]:
    """Certified interval of the total error of a choice."""
    lower, upper = weighted(layers)
    return outward(total_of(lower, choice) or Fraction(0), total_of(upper, choice))


def _merit(layers: Sequence[LayerOptions], regret: float, choice: Sequence[int]) -> tuple[float, float, float, int]:
    """Smaller is better: the regret, then the upper end, the lower end and the storage."""
    chosen = [(layer.scale, layer.options[c]) for layer, c in zip(layers, choice, strict=True) if layer.scale > 0.0]
    # A plain sum: what overflows is infinite.
    lower, upper = (sum(scale * getattr(option, end) for scale, option in chosen) for end in ("lower", "upper"))
    return regret, upper, lower, _storage(layers, choice)


def _candidates(layers: Sequence[LayerOptions], table: FixedPoint, budget: int) -> list[tuple[int, ...]]:
    found = [solve(table.between(share), budget) for share in _SHARES]
    choices = [tuple(entry[1]) for entry in found if entry is not None]
    if not choices:
        lowest = solve(table.of_lower(), budget)
        assert lowest is not None
        choices.append(tuple(lowest[1]))
    return choices + [choice for _, choice in _uniform(layers, budget)]


def _uniform(layers: Sequence[LayerOptions], budget: int) -> list[tuple[str, tuple[int, ...]]]:
    """The options that all layers have and that fit, by name."""
    names = [option.name for option in layers[0].options]
    common = [name for name in names if all(name in {o.name for o in layer.options} for layer in layers)]
    choices = [(name, tuple(layer.index(name) for layer in layers)) for name in common]
    return [(name, choice) for name, choice in choices if _storage(layers, choice) <= budget]


@dataclass(frozen=True)
class _Judged:
    """The regret of an allocation, and the one that may be better by so much."""

    regret: float
    rival: tuple[int, ...]


def _judged(table: FixedPoint, budget: int, choice: Sequence[int]) -> _Judged:
    found = solve(table.against(choice), budget)
    assert found is not None
    worst = 0
    for ends, c in zip(table.exact_upper, choice, strict=True):
        end = ends[c]
        if end is None:
            return _Judged(math.inf, tuple(found[1]))
        worst += math.ceil(end / table.unit)
    return _Judged(rounded_up(max(worst - found[0], 0) * table.unit), tuple(found[1]))


def _described(
    layers: tuple[LayerOptions, ...], table: FixedPoint, budget: int, choice: tuple[int, ...], judged: _Judged
) -> Allocation:
    low, high = solve(table.of_lower(), budget), solve(table.of_upper(), budget)
    assert low is not None
    # Whatever fits is no better than the best: sums of exact ends are smaller than those of rounded ones.
    uppers = [total_of(table.exact_upper, c) for c in ([choice] if high is None else [choice, high[1]])]
    return Allocation(
        layers=layers,
        choices={layer.name: layer.options[c].name for layer, c in zip(layers, choice, strict=True)},
        budget_bits=budget,
        storage=_storage(layers, choice),
        best=outward(low[0] * table.unit, min((u for u in uppers if u is not None), default=None)),
        error=_total(layers, choice),
        regret=judged.regret,
        rivals=tuple(_rivals(layers, table, budget, choice)),
        where_more_search_helps=tuple(_ends(layers, table, budget, choice, judged)),
    )


def _rivals(
    layers: Sequence[LayerOptions], table: FixedPoint, budget: int, choice: Sequence[int]
) -> list[UniformRival]:
    rivals = []
    for name, other in _uniform(layers, budget):
        differ = [i for i, (mine, its) in enumerate(zip(choice, other, strict=True)) if mine != its]
        most, least = _excess(table, other, choice, differ), _excess(table, choice, other, differ)
        gain = (-math.inf if least is None else -rounded_up(least), math.inf if most is None else rounded_up(most))
        rivals.append(UniformRival(name, _storage(layers, other), _total(layers, other), gain))
    return rivals


def _excess(table: FixedPoint, one: Sequence[int], other: Sequence[int], where: Sequence[int]) -> Fraction | None:
    """How much larger the error of one choice than that of another may be, in some layers; None for infinitely."""
    total = Fraction(0)
    for i in where:
        high, low = table.exact_upper[i][one[i]], table.exact_lower[i][other[i]]
        if high is None or low is None:
            return None
        total += high - low
    return total


def _ends(
    layers: Sequence[LayerOptions], table: FixedPoint, budget: int, choice: Sequence[int], judged: _Judged
) -> list[SearchEnd]:
    """The ends that the regret depends on: those of the worst rival, then of what is worst if these were moved."""
    if judged.regret == 0.0:
        return []
    found: dict[tuple[str, str, str], float] = {}
    items, rival = table.against(choice), judged.rival
    for round_ in range(_ROUNDS):
        for i, (mine, its) in enumerate(zip(choice, rival, strict=True)):
            if mine == its:
                continue
            layer = layers[i]
            for c, end in ((its, "lower"), (mine, "upper")):
                option = layer.options[c]
                width = layer.scale * (option.upper - option.lower) if layer.scale else 0.0
                if width > 0.0:
                    found.setdefault((layer.name, option.name, end), min(width, judged.regret))
            # As if search had closed the rival's interval from below.
            items[i].cost[its] = table.upper[i][its]
        if round_ < _ROUNDS - 1:
            solved = solve(items, budget)
            assert solved is not None
            rival = tuple(solved[1])
    ends = [SearchEnd(*key, gain) for key, gain in found.items()]
    return sorted(ends, key=lambda end: -end.gain)
