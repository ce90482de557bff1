"""Methods beside the certified interval of their own grid or pattern."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from layerbounds.arguments import flag
from layerbounds.comparison.records import MethodComparison, Progress, compare_problems
from layerbounds.exceptions import InputError
from layerbounds.layers.layer import Layer, as_layer
from layerbounds.problems.gram_range import fitted_grid, fitting_ranges
from layerbounds.problems.grids import Granularity, Grid, Range
from layerbounds.problems.joint import JointProblem
from layerbounds.problems.patterns import Pattern, as_pattern, parse_pattern
from layerbounds.problems.patterns.single_rows import NOfM
from layerbounds.problems.problem import Problem
from layerbounds.problems.pruning import pruning_problem
from layerbounds.problems.quantization import QuantizationProblem, quantization_problem
from layerbounds.problems.ranges.registry import find_range
from layerbounds.problems.storage import Mask
from layerbounds.progress import watched


def compare(
    layer: Layer,
    bits: int | Iterable[int] | None = None,
    *,
    density: float | Iterable[float] | None = None,
    k: int | Iterable[int] | None = None,
    pattern: str | Pattern | ArrayLike | Iterable[str | Pattern | ArrayLike] | None = None,
    share: int | Literal["all"] | None = None,
    axis: str | None = None,
    refit: bool = True,
    codebook: str | Iterable[str] | None = None,
    symmetric: bool | None = None,
    granularity: Granularity | None = None,
    range: Range | Iterable[Range] | None = None,
    scale: str | None = None,
    zero_point: str | None = None,
    signed_scale: bool = False,
    grids: Grid | Iterable[Grid] = (),
    joint: bool = False,
    mask: Mask = "none",
    methods: Iterable[str] | None = None,
    weights: Mapping[str, ArrayLike] | None = None,
    channels: Sequence[int] | None = None,
    time_limit: float | None = None,
    gap: float = 0.0,
    node_limit: int | None = None,
    backend: str = "auto",
    jobs: int | None = None,
    seed: int = 0,
    progress: Progress | bool | None = None,
) -> MethodComparison:
    """Run methods on a layer and put each beside the certified interval of its grid or pattern.

    Parameters
    ----------
    layer : Layer
    bits : int or iterable of int, optional
        Uniform grids.
    density : float or iterable of float, optional
        For the patterns that take one; unstructured pruning where ``pattern`` names none.
    k : int or iterable of int, optional
        Beside ``density`` or instead of it: numbers of kept inputs or units.
    pattern : str, array_like of int or iterable of these, optional
        As in `pruning_problem`; N:M patterns take neither ``density`` nor ``k``.
    share : int or "all", optional
        Of all patterns; default: as each says.
    axis : {"flat", "in_channels"}, optional
        Of the N:M patterns.
    refit : bool
        Whether pruning re-optimises what is kept.
    codebook : str or iterable of str, optional
        Codebook grids.
    symmetric, granularity
        As in `uniform_grid`.
    range : str or several, optional
        Names of ranges (docs/grids.md), or "all": those that fit the grid. Every range is a grid of its own, with its
        own bounds; default: "mse".
    scale : {"free"}, optional
        All scales: one certified interval for each ``bits`` and ``codebook``, and methods that start at the scales of
        every range that fits, or of ``range``, alternate with the best scales for their codes, and are scored by the
        best of it. Grids of the ranges themselves are compared as well if ``range`` is given.
    zero_point : {"free", "real"}, optional
        With ``scale``: as in `quantization_problem`.
    signed_scale : bool
        With ``scale``: scales may be negative, as those of ``range="llama.cpp"`` are.
    grids : Grid or iterable of Grid
        Further grids, taken as they are.
    joint : bool
        Prune and quantize at once (`joint_problem`): every grid with every pattern. Otherwise grids and patterns are
        problems of their own.
    mask : {"none", "bitmap", "entropy", "metadata"}
        What of a pattern's mask counts in ``bits_per_weight`` (docs/patterns.md).
    methods : iterable of str, optional
        Names of heuristics, with options as in ``"gptq:act_order=true"``; default: all that can treat the problem.
        A method for the other family is left out.
    weights : mapping of name to array_like, optional
        Weights from elsewhere, of shape (rows, *weight.shape[1:]) or (rows, n), rows being the chosen channels in their
        order, or all. Where they are not allowed on a grid, a second row has the nearest weights that are.
    channels, time_limit, gap, node_limit, backend, jobs, seed
        As in `solve`; the certified interval starts from the best weights of the methods.
    progress : bool or callable, optional
        True for a bar on a terminal or in a notebook; a function is called before each method and each search with
        (steps done, steps in all).

    Returns
    -------
    MethodComparison
        One dict for each row, with the fields of `layerbounds.comparison.records.Record`: what `pandas.DataFrame`
        reads. Its ``solutions`` are the certified intervals. After a Ctrl-C the rows that are finished; bounds that are
        not have the value None.

    Raises
    ------
    InputError
        If the arguments contradict each other, or no grid and no pattern is given.

    Examples
    --------
    >>> rows = lb.compare(layer, bits=2, methods=["rtn", "gptq"], channels=[0, 1], time_limit=1)
    >>> [row["method"] for row in rows]
    ['certified interval', 'rtn', 'gptq']
    """
    problems = comparison_problems(
        layer,
        bits=bits,
        density=density,
        k=k,
        pattern=pattern,
        share=share,
        axis=axis,
        refit=refit,
        codebook=codebook,
        symmetric=symmetric,
        granularity=granularity,
        range=range,
        scale=scale,
        zero_point=zero_point,
        signed_scale=signed_scale,
        grids=grids,
        joint=joint,
    )
    limits = {"time_limit": time_limit, "gap": gap, "node_limit": node_limit, "backend": backend}
    with watched(progress, layer.name, None, "steps") as told:
        return compare_problems(
            problems,
            methods=methods,
            weights=weights,
            channels=channels,
            jobs=jobs,
            seed=seed,
            limits=limits,
            progress=told,
            ranges=starting_ranges(range),
            mask=mask,
        )


def starting_ranges(range: Range | Iterable[Range] | None) -> list[Range]:
    """The ranges at which methods start where scales are free; none for all."""
    named = _several(range)
    return [] if "all" in named else named


def comparison_problems(
    layer: Layer,
    *,
    bits: int | Iterable[int] | None = None,
    density: float | Iterable[float] | None = None,
    k: int | Iterable[int] | None = None,
    pattern: str | Pattern | ArrayLike | Iterable[str | Pattern | ArrayLike] | None = None,
    share: int | Literal["all"] | None = None,
    axis: str | None = None,
    refit: bool = True,
    codebook: str | Iterable[str] | None = None,
    symmetric: bool | None = None,
    granularity: Granularity | None = None,
    range: Range | Iterable[Range] | None = None,
    scale: str | None = None,
    zero_point: str | None = None,
    signed_scale: bool = False,
    grids: Grid | Iterable[Grid] = (),
    joint: bool = False,
) -> list[Problem]:
    """The problems that `compare` treats, quantization first; parameters as there."""
    as_layer(layer)
    flag(refit, "refit")
    if symmetric is not None:
        flag(symmetric, "symmetric")
    flag(joint, "joint")
    fixed: list[QuantizationProblem] = []
    problems: list[Problem] = []
    widths, names, densities, counts = (_several(value) for value in (bits, codebook, density, k))
    choices = _choices(
        _patterns(pattern), axis, [{"density": d} for d in densities] + [{"k": count} for count in counts]
    )
    fitted = bool(widths or names)
    if not fitted and (range is not None or granularity is not None or symmetric is False):
        raise InputError("range, granularity and symmetric=False are for grids fitted here; pass bits or a codebook.")
    if symmetric is False and not widths:
        raise InputError("a codebook has no zero point; leave out symmetric=False.")
    if not refit and joint:
        raise InputError("kept weights take any level when they are quantized, too; leave out refit=False.")
    if not refit and not choices:
        raise InputError("refit=False is for pruning; pass a density or a pattern, or leave it out.")
    free = isinstance(scale, str) and scale == "free"
    flag(signed_scale, "signed_scale")
    if not free and (scale is not None or zero_point is not None or signed_scale):
        raise InputError(
            "scale may be 'free' here, and zero_point and signed_scale need scale='free'; pass given scales as grids."
        )
    if scale is not None and joint:
        raise InputError("pruning and quantization together need a fixed grid; leave out scale='free'.")
    if scale is not None and not fitted:
        raise InputError("scale='free' is for bits or a codebook; pass one of them.")
    ranges: list[Range] = (["mse"] if scale is None else []) if range is None else _several(range)
    for width in widths:
        for fit in _named(ranges, width, None, symmetric):
            grid = fitted_grid(layer, width, symmetric=symmetric, granularity=granularity, range=fit)
            fixed.append(QuantizationProblem(layer, grid))
    for name in names:
        for fit in _named(ranges, None, name, None):
            grid = fitted_grid(layer, codebook=name, granularity=granularity, range=fit)
            fixed.append(QuantizationProblem(layer, grid))
    if scale is not None:
        for width, name in [*((w, None) for w in widths), *((None, c) for c in names)]:
            problem = quantization_problem(
                layer,
                width,
                codebook=name,
                scale=scale,
                zero_point=zero_point if name is None else None,
                symmetric=symmetric if name is None else None,
                granularity=granularity,
                signed_scale=signed_scale,
            )
            problems.append(problem)
    given = [QuantizationProblem(layer, grid) for grid in _several(grids)]
    if joint and share is not None:
        raise InputError("quantized weights have a mask for each output channel; leave out share, or joint=True.")
    pruned = [pruning_problem(layer, **choice, share=share, refit=refit) for choice in choices]
    if joint:
        fixed += given
        if not fixed or not pruned:
            missing = "a density or an N:M pattern" if fixed else "bits, a codebook or a grid"
            raise InputError(f"joint=True puts every grid with every pattern; pass {missing}, too.")
        problems = [JointProblem(layer, q.grid, p.pattern, p.kept) for q in fixed for p in pruned]
    else:
        problems = [*fixed, *problems, *given, *pruned]
    if not problems:
        raise InputError("there is nothing to compare; pass bits, a codebook, a grid, a density or an N:M pattern.")
    unique = {problem.fingerprint(): problem for problem in reversed(problems)}
    return [problem for problem in problems if unique[problem.fingerprint()] is problem]


def _patterns(value: Any) -> list[Pattern]:
    """One pattern or several; an array of numbers is one, which has the unit of each input."""
    units = isinstance(value, np.ndarray) or (
        isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(v, (int, np.integer)) for v in value)
    )
    return [as_pattern(entry) for entry in ([value] if units or isinstance(value, Pattern) else _several(value))]


def _choices(rules: Sequence[Pattern], axis: str | None, kept: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The arguments of `pruning_problem` for every pattern with every density or number that it takes."""
    patterns = list(rules)
    if kept and not any(rule.needs_count for rule in patterns):
        # A density beside patterns that say themselves how much they keep is about none of them.
        patterns.insert(0, parse_pattern("unstructured"))
    if axis is not None and not any(isinstance(rule, NOfM) for rule in patterns):
        raise InputError("axis is for N:M patterns, and there is none; leave out axis.")
    choices: list[dict[str, Any]] = []
    for rule in patterns:
        if rule.needs_count and not kept:
            what = "units" if rule.counts_units else "inputs"
            raise InputError(f"pattern {rule.label!r} needs a density; pass the kept fraction of the {what}, or k.")
        along = {"axis": axis} if isinstance(rule, NOfM) else {}
        choices += [{"pattern": rule, **along, **share} for share in (kept if rule.needs_count else [{}])]
    return choices


def _named(ranges: Sequence[Range], bits: int | None, codebook: str | None, symmetric: bool | None) -> list[Range]:
    """The ranges of a grid, each once, in the order asked for; "all" are those that fit it."""
    names: list[Range] = []
    for fit in ranges:
        every = isinstance(fit, str) and fit == "all"
        names += fitting_ranges(bits, codebook, symmetric) if every else [find_range(fit).name]
    return list(dict.fromkeys(names))


def _several(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, (str, bytes, Mapping)):
        return [value]
    try:
        return list(value)
    except TypeError:
        return [value]
