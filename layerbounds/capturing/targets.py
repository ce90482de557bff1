"""Which modules of a model are captured, under which names."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from layerbounds.arguments import shown
from layerbounds.capturing.experts import ExpertGeometry, expert_layers
from layerbounds.capturing.geometry import Geometry, describe_module
from layerbounds.capturing.warning import CaptureWarning as CaptureWarning
from layerbounds.exceptions import InputError
from layerbounds.names import is_pattern, match_name, match_names


@dataclass(frozen=True, eq=False)
class Target:
    """A layer to capture: the modules that share one weight.

    Attributes
    ----------
    name : str
        Dotted path of the first of them.
    modules : tuple of nn.Module
        Usually one; several distinct modules may be tied to the same weight.
    paths : tuple of str
        Their paths in the model, in the same order.
    aliases : tuple of str
        All names under which the weight is found in the model, beside ``name``; those of modules that are not layers
        (an embedding tied to the output layer) are among them.
    geometry : Geometry
    """

    name: str
    modules: tuple[nn.Module, ...]
    paths: tuple[str, ...]
    aliases: tuple[str, ...]
    geometry: Geometry

    @property
    def module(self) -> nn.Module:
        """The first module."""
        return self.modules[0]


def unwrap(model: nn.Module) -> nn.Module:
    """The module behind `torch.compile` and `nn.DataParallel`, whose hooks and names are the plain ones."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by dotted path, each under all its names; the model itself is called by its class."""
    return {
        path or type(model).__name__.lower(): module for path, module in model.named_modules(remove_duplicate=False)
    }


def find_targets(
    model: nn.Module, selection: str | Iterable[str] | None, *, experts: str | None = None
) -> tuple[list[Target], dict[str, str]]:
    """Choose the layers of a model.

    Parameters
    ----------
    model : nn.Module
    selection : str or iterable of str, optional
        Names and patterns, see `match_names`; default: all layers.
    experts : str, optional
        Why the matrices of fused experts are refused; default: they are layers.

    Returns
    -------
    targets : list of Target
        In the order of ``model.named_modules()``.
    refused : dict of str to str
        Layers that cannot be captured and why, where they were not asked for by name.

    Raises
    ------
    UnknownNameError
        If a name or pattern matches nothing.
    InputError
        If a layer asked for by name cannot be captured, or the model has no layer.
    """
    found: dict[str, Geometry] = {}
    refused: dict[str, str] = {}
    modules = named_modules(model)
    paths: dict[str, str] = {}
    for name, module in modules.items():
        stacks = expert_layers(module)
        if isinstance(stacks, str):
            refused[name] = stacks
        for end, matrix in stacks.items() if isinstance(stacks, dict) else ():
            own = f"{name}.{end}"
            paths[own] = name
            if experts is None:
                found[own] = matrix
            else:
                refused[own] = experts
        geometry = describe_module(module)
        if isinstance(geometry, str):
            refused[name] = geometry
        elif geometry is not None:
            found[name] = geometry
    if selection is not None:
        wanted = [selection] if isinstance(selection, str) or not isinstance(selection, Iterable) else list(selection)
        if not all(isinstance(name, str) for name in wanted):
            raise InputError(f"layers is {shown(selection)}; pass a name, a pattern, or a list of them.")
        every = [*(name for name in modules if name in found or name in refused), *paths]
        chosen = match_names(wanted, every, "layer")
        by_name = {match_name(t, every, "layer") for t in wanted if t in every or not is_pattern(t)}
        for name in chosen:
            if name in refused and name in by_name:
                raise InputError(f"layer {name!r} {refused[name]}.")
        found = {name: geometry for name, geometry in found.items() if name in chosen}
        refused = {name: reason for name, reason in refused.items() if name in chosen}
    for reason in dict.fromkeys(refused.values()):
        names = [name for name, own in refused.items() if own == reason]
        if reason == experts:
            warnings.warn(
                f"layer {names[0]!r} and {len(names) - 1} others: each {reason}", CaptureWarning, stacklevel=3
            )
            continue
        for name in names:
            warnings.warn(f"layer {name!r} {reason}", CaptureWarning, stacklevel=3)
    if not found:
        raise InputError(
            f"{type(model).__name__} has no layer to capture; capture knows Linear, Conv1d, Conv2d, Conv3d and the "
            "Conv1D of transformers."
        )
    return _merge(found, modules, paths), refused


def _merge(found: dict[str, Geometry], modules: dict[str, nn.Module], paths: dict[str, str]) -> list[Target]:
    """Put modules that share a weight into one target: one matrix has to serve all their inputs.

    ``paths`` says in which module the experts are.
    """
    owners: dict[int, list[str]] = {}
    for name, module in modules.items():
        weight = module._parameters.get("weight")
        if weight is not None:
            owners.setdefault(id(weight), []).append(name)
    targets: list[Target] = []
    done: set[str] = set()
    for name, geometry in found.items():
        if name in done:
            continue
        if name in paths:
            # A module that the model has under several names is captured once.
            path, module = paths[name], modules[paths[name]]
            aliases = tuple(own + name.removeprefix(path) for own in modules if modules[own] is module and own != path)
            done.update(aliases)
            targets.append(Target(name, (module,), (path,), aliases, geometry))
            continue
        weight = modules[name]._parameters.get("weight")
        # A computed weight (weight normalisation, say) is nobody else's.
        names = [name] if weight is None else owners[id(weight)]
        tied = [other for other in names if other in found]
        done.update(tied)
        for other in tied:
            if found[other] != geometry:
                raise InputError(
                    f"layers {name!r} and {other!r} share a weight but use it differently (layout, stride, padding or "
                    "dilation), which capture does not support; leave one of them out."
                )
        unique = {modules[other]: other for other in reversed(tied)}
        places = tuple(reversed(unique.values()))
        aliases = tuple(other for other in names if other != name)
        targets.append(Target(name, tuple(modules[path] for path in places), places, aliases, geometry))
    return targets


def other_parameters(model: nn.Module, targets: Sequence[Target]) -> tuple[str, ...]:
    """Parameters of two or more axes that no captured layer and no embedding owns, such as those of routers."""
    known = {id(module._parameters.get("weight")) for target in targets for module in target.modules}
    for target in targets:
        if isinstance(target.geometry, ExpertGeometry):
            stack = target.geometry.stack
            known |= {id(target.module._parameters.get(name)) for name in (stack, f"{stack}_bias")}
    known |= {id(m.weight) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    # The matrices from which a weight is computed (weight normalisation, pruning) are those of that weight.
    computed = tuple(
        f"{path}.{part}"
        for target in targets
        for path in target.paths
        for part in ("parametrizations.", "weight_orig", "weight_g", "weight_v")
    )
    return tuple(
        name
        for name, value in model.named_parameters()
        if not isinstance(value, nn.parameter.UninitializedParameter)
        and value.ndim >= 2
        and id(value) not in known
        and not name.startswith(computed)
    )
