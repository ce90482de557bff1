"""The command that asks for what a run was asked for, written from its manifest."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerbounds.network.folder import LAYERS
from layerbounds.network.result import NetworkRun
from layerbounds.problems.rows import rows_text

#: Rules of a run, and the options that say them where they are not the default.
_RULES = {
    "granularity": "--granularity",
    "range": "--range",
    "scale": "--scale",
    "zero_point": "--zero-point",
    "mask": "--mask",
    "share": "--share",
    "axis": "--axis",
}
_DEFAULTS = {"granularity": "channel", "range": "mse", "mask": "bitmap"}


def command(run: NetworkRun) -> str:
    """A `layerbounds run` of the same compressions, methods and layers; limits of time are left out.

    Files and folders are called by their own names: pages are sent to others, who have them elsewhere.

    Parameters
    ----------
    run : NetworkRun
    """
    about = run.about
    words = ["layerbounds", "run"]
    if about["source"]["kind"] == "file":
        words += ["--input", Path(about["source"]["path"]).name]
    elif about["source"]["kind"] == "memory":
        words += ["--input", f"{_name(run)}/{LAYERS}"]
    words += ["--problems", ",".join(contender(choice.spec) for choice in run.choices)]
    rules = run.choices[0].rules
    for name, option in _RULES.items():
        value = rules.get(name)
        if value is not None and value != _DEFAULTS.get(name):
            words += [option, str(value)]
    if not rules.get("symmetric", True):
        words.append("--asymmetric")
    if not rules.get("refit", True):
        words.append("--mask-only")
    methods = about.get("options", {}).get("methods")
    if methods:
        words += ["--methods", ",".join(methods.values() if isinstance(methods, Mapping) else methods)]
    words += _channels(run)
    backend = about.get("options", {}).get("backend", "auto")
    if backend != "auto":
        words += ["--backend", str(backend)]
    if about.get("seed"):
        words += ["--seed", str(about["seed"])]
    return shlex.join([*words, "--out", _name(run)])


def _name(run: NetworkRun) -> str:
    return run.folder.path.resolve().name


def _channels(run: NetworkRun) -> list[str]:
    """How the channels were chosen, where options can say it."""
    drawn = [sum(layer.sample["counts"]) for layer in run.layers if layer.sample is not None]
    if any(drawn):
        return ["--channels-sample", str(max(drawn))]
    parts = {tuple(layer.channels) for layer in run.layers}
    whole = all(len(layer.channels) == layer.shape[0] for layer in run.layers)
    return [] if whole or len(parts) > 1 else ["--channels", rows_text(parts.pop())]


def contender(spec: Mapping[str, Any]) -> str:
    """A compression as `--problems` reads it."""
    parts = [str(spec[name]) for name in ("bits", "codebook", "pattern") if spec.get(name) is not None]
    if spec.get("density") is not None:
        parts.append(repr(float(spec["density"])))
    parts += [f"{name}={spec[name]}" for name in ("k", "share") if spec.get(name) is not None]
    return "+".join(parts)
