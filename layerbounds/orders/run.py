"""Run orders of pruning and quantization on a layer, and the joint problem beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arguments import flag, members, one_of, real_number, shown, thread_count, whole_number
from layerbounds.arrays import Float
from layerbounds.certify.kept_inputs import error_interval
from layerbounds.exceptions import CertificationError, InputError
from layerbounds.kernels.factorization import UNIT, cholesky
from layerbounds.layers.bias import Bias
from layerbounds.layers.layer import Layer
from layerbounds.methods.specs import MethodSpec, parse_method
from layerbounds.orders.all_scales import check_all_scales, joint_over_scales
from layerbounds.orders.definitions import SCALE_RULES, Kind, Order, find_orders
from layerbounds.orders.gap import OrderGap, StageRecord
from layerbounds.orders.kept import rows_of
from layerbounds.orders.others import FOUND, NONE
from layerbounds.orders.stages import EXACT, State, Workshop
from layerbounds.problems.gram_range import fitted_grid
from layerbounds.problems.grids import Granularity, Grid, Range
from layerbounds.problems.joint import JointProblem, joint_problem
from layerbounds.problems.patterns import Pattern
from layerbounds.problems.problem import check_channels
from layerbounds.progress import check_listener, watched
from layerbounds.solve import solve

#: Pivots below so many roundings, times the number of inputs, count as zero.
SINGULAR = 1024
#: Called before each piece of work with (pieces done, pieces in all).
Progress = Callable[[int, int], None]
#: Who does the pruning and the quantization of an order; None does it exactly.
Pair = tuple[MethodSpec | None, MethodSpec | None]


def order_gap(
    layer: Layer,
    bits: int | None = None,
    *,
    density: float | None = None,
    k: int | None = None,
    pattern: str | Pattern = "unstructured",
    orders: Iterable[str] | None = None,
    pairs: Iterable[str] = (),
    scale_rule: str = "dense",
    grid: Grid | None = None,
    scale: ArrayLike | None = None,
    zero_point: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    g_idx: ArrayLike | None = None,
    symmetric: bool | None = None,
    granularity: Granularity | None = None,
    range: Range | None = None,
    codebook: str | ArrayLike | None = None,
    bias: Bias = "keep",
    channels: Sequence[int] | None = None,
    look: bool = True,
    all_scales: bool = False,
    time_limit: float = 10.0,
    node_limit: int | None = None,
    backend: str = "auto",
    jobs: int | None = None,
    seed: int = 0,
    progress: Progress | bool | None = None,
) -> OrderGap:
    """Certified errors of pruning before quantizing, of quantizing before pruning, and of both at once.

    Each order is a chain of stages (docs/joint.md). Its interval is that of its last stage, for the weights that the
    stages before it found; it decides between orders only where those are proven optimal and no others lie within 1e-6.

    Parameters
    ----------
    layer : Layer
    bits, grid, scale, zero_point, offset, g_idx, symmetric, granularity, range, codebook
        The grid, as in `joint_problem`.
    density, k, pattern
        What may be kept, as in `pruning_problem`.
    orders : iterable of {"PQ", "MQ", "MQb", "QP", "QPQ"}, optional
        Default: all.
    pairs : iterable of str
        Pairs ``"PRUNING+QUANTIZATION"`` of heuristics to do the stages, too, each with options as in ``"wanda+gptq"``,
        ``"exact+rtn"`` or ``"magnitude+gptq:act_order=true"``; ``exact`` solves the stage. Every order is run with
        every pair, under the key ``"PQ wanda+gptq"``.
    scale_rule : {"dense", "kept"}
        ``"dense"``: all grids have the scales of the dense weights. ``"kept"``: quantization after pruning has scales
        fitted to what is kept, with one scale for each channel.
    bias : {"keep", "refit"}
        Whether the layer's bias stays as it is or is re-fitted together with the weights.
    channels : sequence of int, optional
        Default: all.
    look : bool
        Whether to look for other weights within 1e-6 of the least error of a stage; without that no order is settled.
    all_scales : bool
        Whether to enclose the joint optimum over all scales, too: for few inputs (n ≤ 32), one scale for each channel
        and no zero points. It takes some hundred problems and at most 6 ``time_limit`` for each channel.
    time_limit : float
        Seconds of search per channel and stage.
    node_limit, backend, jobs, seed
        As in `solve`.
    progress : bool or callable, optional
        True for a bar on a terminal or in a notebook; a function is called before each piece of work with (pieces done,
        pieces in all).

    Returns
    -------
    OrderGap
        After a Ctrl-C what is finished.

    Raises
    ------
    InputError
        If the arguments contradict each other.
    CertificationError
        If certified bounds contradict each other.

    Examples
    --------
    >>> gap = lb.order_gap(layer, bits=3, k=4, orders=["PQ", "QP"], channels=[0], time_limit=1)
    >>> low, high = gap.totals("joint")
    >>> low <= high
    True
    """
    check_listener(progress)
    plan = Plan(
        layer,
        bits,
        {
            "grid": grid, "scale": scale, "zero_point": zero_point, "offset": offset, "g_idx": g_idx,
            "symmetric": symmetric, "granularity": granularity, "range": range, "codebook": codebook,
        },
        {"density": density, "k": k, "pattern": pattern},
        orders,
        pairs,
        scale_rule,
        bias,
        all_scales,
    )  # fmt: skip
    shop = workshop(
        plan,
        channels,
        look=look,
        time_limit=time_limit,
        node_limit=node_limit,
        backend=backend,
        jobs=jobs,
        seed=seed,
    )
    with watched(progress, layer.name, None, "steps") as told:
        return run_orders(plan, shop, told)


def workshop(
    plan: Plan,
    channels: Sequence[int] | None = None,
    *,
    look: bool = True,
    time_limit: float = 10.0,
    node_limit: int | None = None,
    backend: str = "auto",
    jobs: int | None = None,
    seed: int = 0,
) -> Workshop:
    """Where the orders of a plan are run, and of others for its layer; arguments as in `order_gap`."""
    rows = check_channels(plan.problem, channels)
    real_number(time_limit, "time_limit", 0.0, unit="number of seconds")
    threads = thread_count(jobs)
    limits = {
        "time_limit": time_limit, "node_limit": node_limit, "backend": backend, "jobs": threads,
        "seed": whole_number(seed, "seed"),
    }  # fmt: skip
    return Workshop(rows_of(plan.problem.layer, rows), rows, limits, threads, seed, flag(look, "look"))


class Plan:
    """Orders on one grid and one pattern, checked; arguments as in `order_gap`."""

    def __init__(
        self,
        layer: Layer,
        bits: int | None,
        grid: Mapping[str, Any],
        pattern: Mapping[str, Any],
        orders: Iterable[str] | None,
        pairs: Iterable[str],
        scale_rule: str,
        bias: Bias,
        all_scales: bool = False,
    ) -> None:
        self.scale_rule = one_of(scale_rule, "scale_rule", tuple(SCALE_RULES))
        if scale_rule == "kept":
            for name in ("grid", "scale", "zero_point", "offset", "g_idx"):
                if grid[name] is not None:
                    raise InputError(f"scale_rule 'kept' fits the scales itself; leave out {name}.")
        self.problem = joint_problem(layer, bits, bias=bias, **grid, **pattern)
        if scale_rule == "kept" and (self.problem.grid.scale.shape[1] > 1 or grid["granularity"] == "tensor"):
            raise InputError("scale_rule 'kept' needs one scale for each channel; pass granularity='channel'.")
        self.all_scales = flag(all_scales, "all_scales")
        if all_scales:
            check_all_scales(self.problem)
        self.fit = {"bits": bits, **{name: grid[name] for name in ("symmetric", "range", "codebook")}}
        if self.fit["range"] is None:
            self.fit["range"] = "mse"
        self.orders = find_orders(orders)
        self.pairs: dict[str, Pair] = {EXACT: (None, None)}
        for text in _texts(pairs):
            pair = parse_pair(text)
            self.pairs[pair_label(pair)] = pair
        first = next((o.name for o in self.orders if o.prunes_first), "PQ")
        last = next((o.name for o in self.orders if not o.prunes_first), "QP")
        self.contestants = first, last

    def key(self, order: Order, pair: str) -> str:
        """How a result is called."""
        return order.name if pair == EXACT else f"{order.name} {pair}"

    @property
    def definitions(self) -> dict[str, str]:
        """Of all results, the scale rule and the joint problem."""
        texts = {"joint": f"the best weights of: {self.problem.label}", "scale": SCALE_RULES[self.scale_rule]}
        if self.all_scales:
            texts["joint over all scales"] = "the best weights of such problems, whatever the scale"
        for order in self.orders:
            for pair in self.pairs:
                by = "every stage proven or in an interval" if pair == EXACT else f"stages by {pair}"
                texts[self.key(order, pair)] = f"{order.definition}; {by}"
        return texts


def parse_pair(text: str) -> Pair:
    """Read ``PRUNING+QUANTIZATION``, each a method with options or ``exact``."""
    parts = [part.strip() for part in text.split("+")]
    if len(parts) != 2 or not all(parts):
        raise InputError(f"pair {shown(text)} cannot be read; write PRUNING+QUANTIZATION, such as wanda+gptq.")
    first, second = (None if part.lower() == EXACT else parse_method(part) for part in parts)
    return first, second


def pair_label(pair: Pair) -> str:
    """The pair as users write it; ``exact`` for two exact stages."""
    if pair == (None, None):
        return EXACT
    return "+".join(EXACT if spec is None else spec.label for spec in pair)


def _texts(pairs: Iterable[str]) -> list[str]:
    texts = [pairs] if isinstance(pairs, str) else members(pairs, "pairs")
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"a pair of methods is {shown(text)}; pass a text such as 'wanda+gptq'.")
    return texts


@dataclass(eq=False)
class _Result:
    """One order with one pair of methods."""

    state: State
    grid: Grid
    stages: list[StageRecord] = field(default_factory=list)


def run_orders(plan: Plan, shop: Workshop, progress: Progress | None = None) -> OrderGap:
    """Run what is planned on the channels of a workshop; Ctrl-C keeps what is finished."""
    begin, channels = time.perf_counter(), shop.channels
    dense = plan.problem.grid.rows(channels)
    names = [(order, pair) for pair in plan.pairs for order in plan.orders]
    results: dict[str, _Result] = {}
    interrupted = False
    joint: _Joint | None = None
    steps = len(names) + 1 + plan.all_scales
    everywhere = None
    try:
        for done, (order, pair) in enumerate(names):
            if progress is not None:
                progress(done, steps)
            results[plan.key(order, pair)] = _run(plan, order, plan.pairs[pair], dense, shop)
        if progress is not None:
            progress(len(names), steps)
        joint = _joint(plan, results, shop)
        interrupted = joint.interrupted
        if plan.all_scales and not interrupted:
            if progress is not None:
                progress(len(names) + 1, steps)
            everywhere = _over_all_scales(plan, dense, joint, shop)
    except KeyboardInterrupt:
        interrupted = True
    if joint is None:
        joint = _unsolved(results, shop.layer)
    problem = plan.problem
    return OrderGap(
        layer=problem.layer.name,
        channels=channels,
        grid=problem.grid.label,
        pattern=problem.pattern.label
        + (f" k={problem.kept} of {problem.layer.in_features}" if problem.pattern.needs_count else ""),
        scale_rule=plan.scale_rule,
        definitions=plan.definitions,
        intervals={name: _above(result.state.intervals, joint.at[name]) for name, result in results.items()},
        joint=joint.interval,
        joint_at=joint.at,
        weights={**{name: result.state.weights for name, result in results.items()}, "joint": joint.weights},
        scale={name: result.grid.scale for name, result in results.items()},
        stages={name: result.stages for name, result in results.items()},
        energy=shop.layer.energy(),
        contestants=plan.contestants,
        joint_over_scales=everywhere,
        seconds=time.perf_counter() - begin,
        interrupted=interrupted,
    )


def _run(plan: Plan, order: Order, pair: Pair, dense: Grid, shop: Workshop) -> _Result:
    """One order, stage by stage."""
    problem = plan.problem
    result = _Result(shop.begin(), dense)
    for number, stage in enumerate(order.stages, 1):
        last = number == len(order.stages)
        pruned = result.state.mask is not None
        if stage.kind == "quantize":
            if pruned and plan.scale_rule == "kept":
                result.grid = _fitted_to_kept(plan, result.state, dense, shop.layer)
                if order.stages[number - 2].kind == Kind.PRUNE_REFIT and pair[0] is None:
                    result.stages[-1] = _with_other_refits(result.stages[-1], result.state, shop.layer)
            method = pair[1]
        else:
            method = pair[0]
        result.state, record = shop.run(stage, result.state, problem.pattern, problem.kept, result.grid, method, last)
        result.stages.append(record)
    return result


def _fitted_to_kept(plan: Plan, state: State, dense: Grid, layer: Layer) -> Grid:
    """The grid with a scale for each channel that is fitted to what is kept of it."""
    assert state.mask is not None
    scale, zero, offset = dense.scale.copy(), dense.zero_point.copy(), dense.offset.copy()
    # Weights that are on a grid already would only give it back.
    weights = layer.matrix if state.quantized else state.weights
    for row, mask in enumerate(state.mask):
        kept = np.flatnonzero(mask)
        if len(kept):
            gram = layer.channel_gram(row)[np.ix_(kept, kept)]
            own = fitted_grid(Layer(weights[row, kept][None], gram, layer.name), granularity="channel", **plan.fit)
            scale[row], zero[row], offset[row] = own.scale[0], own.zero_point[0], own.offset[0]
    label = f"{dense.label}, of what is kept"
    return Grid(dense.codes, scale, zero, dense.in_features, uniform=dense.uniform, label=label, offset=offset)


def _with_other_refits(record: StageRecord, state: State, layer: Layer) -> StageRecord:
    """Where inputs that are kept depend on each other, other refits on the same support are as good: scales differ."""
    assert state.mask is not None
    others = list(record.others)
    for row, mask in enumerate(state.mask):
        kept = np.flatnonzero(mask & layer.live(layer.group_of(row)))
        gram = layer.channel_gram(row)[np.ix_(kept, kept)]
        factor = cholesky(gram)
        regular = factor is not None and np.all(np.diag(factor) ** 2 > SINGULAR * len(kept) * UNIT * np.diag(gram))
        if others[row] == NONE and not regular:
            others[row] = FOUND
    return replace(record, others=others)


@dataclass(frozen=True, eq=False)
class _Joint:
    """Joint optima: at the grids of the orders, and the best of them."""

    at: dict[str, Float]
    interval: Float
    weights: Float
    interrupted: bool


def _joint(plan: Plan, results: Mapping[str, _Result], shop: Workshop) -> _Joint:
    """Solve the joint problem at every grid with which an order ended, from the weights of the best order."""
    layer, problem = shop.layer, plan.problem
    rows: dict[tuple[int, bytes], list[str]] = {}
    for name, result in results.items():
        for row in range(layer.out_features):
            parts = result.grid.scale, result.grid.zero_point, result.grid.offset
            key = row, b"".join(part[row].tobytes() for part in parts)
            rows.setdefault(key, []).append(name)
    cases = list(rows)
    first = [results[rows[key][0]].grid for key in cases]
    scale, zero, offset = (
        np.stack([getattr(g, part)[row] for g, (row, _) in zip(first, cases, strict=True)])
        for part in ("scale", "zero_point", "offset")
    )
    grid = Grid(
        problem.grid.codes,
        scale,
        zero,
        problem.grid.in_features,
        uniform=problem.grid.uniform,
        label=problem.grid.label,
        group=problem.grid.group,
        offset=offset,
    )
    starts = np.stack([_best([results[name] for name in rows[key]], key[0]) for key in cases])
    several = JointProblem(rows_of(layer, [row for row, _ in cases]), grid, problem.pattern, problem.kept)
    solution = solve(several, warm_start=starts, **shop.limits)
    weights = solution.weights.reshape(len(cases), -1)
    at = {name: np.empty((layer.out_features, 2)) for name in results}
    best, interval = np.empty((layer.out_features, layer.in_features)), np.full((layer.out_features, 2), np.inf)
    for i, key in enumerate(cases):
        row, low, high = key[0], float(solution.lower_bound[i]), float(solution.upper_bound[i])
        for name in rows[key]:
            end = results[name].state.intervals[row, 1]
            # The order's weights are allowed in the joint problem, from which it was started.
            own = error_interval(layer, row, results[name].state.weights[row])[1]
            if low > min(own, end):
                raise CertificationError(
                    f"the lower bound {low:.17g} of the joint problem exceeds the error {min(own, end):.17g} of order "
                    f"{name!r}; please report this with the layer file."
                )
            high = min(high, own)
        for name in rows[key]:
            at[name][row] = low, high
        if high < interval[row, 1]:
            best[row] = weights[i]
        interval[row] = np.minimum(interval[row], (low, high))
    return _Joint(at, interval, best, solution.interrupted)


def _over_all_scales(plan: Plan, dense: Grid, joint: _Joint, shop: Workshop) -> Float:
    """Intervals of the joint optimum over all scales: no worse than at those with which the orders ended."""
    problem = JointProblem(shop.layer, dense, plan.problem.pattern, plan.problem.kept)
    seconds = 6.0 * shop.limits["time_limit"]
    bounds = joint_over_scales(problem, time_limit=seconds, seed=shop.seed).bounds
    high = np.minimum(bounds[:, 1], joint.interval[:, 1])
    if np.any(bounds[:, 0] > high):
        raise CertificationError(
            "a lower bound over all scales exceeds the error of weights at one of them; please report this with the "
            "layer file."
        )
    return np.stack([bounds[:, 0], high], axis=1)


def _unsolved(results: Mapping[str, _Result], layer: Layer) -> _Joint:
    """What orders say about a joint problem that was not solved."""
    interval = np.stack([layer.constant, np.full(layer.out_features, np.inf)], axis=1)
    weights = np.zeros_like(layer.matrix)
    at = {}
    for name, result in results.items():
        ends = np.array([error_interval(layer, r, w)[1] for r, w in enumerate(result.state.weights)])
        better = ends < interval[:, 1]
        weights[better], interval[better, 1] = result.state.weights[better], ends[better]
        at[name] = np.stack([layer.constant, ends], axis=1)
    return _Joint(at, interval, weights, True)


def _best(results: Sequence[_Result], row: int) -> Float:
    """The weights of least error that orders ended with."""
    state = min((result.state for result in results), key=lambda state: float(state.intervals[row, 1]))
    return np.asarray(state.weights[row])


def _above(order: Float, joint: Float) -> Float:
    """An order's intervals, raised to what the joint problem proves: the order's weights are allowed there."""
    return np.stack([np.minimum(np.maximum(order[:, 0], joint[:, 0]), order[:, 1]), order[:, 1]], axis=1)
