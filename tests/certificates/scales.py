"""Right certificates over all scales, and attacks on them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

import layerbounds as lb
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Dual
from layerbounds.search.scale import root


def dual_points(task: Task, rng: np.random.Generator) -> Dual:
    """Dual points for ranges of scales, grown for a number of steps."""
    with mock.patch.object(root, "working_time", side_effect=itertools.count().__next__):
        found = root.scale_dual(task, None, 20.0)
    assert found is not None
    return found


def problems(plain: lb.Layer, singular: lb.Layer) -> tuple[dict[str, lb.Problem], dict[str, lb.Problem]]:
    """Problems for dual points, and for searches."""

    def free(layer: lb.Layer, **how: Any) -> lb.Problem:
        return lb.quantization_problem(layer, scale="free", **how)

    dual = {
        "scales, points": free(plain, bits=3),
        "scales and real zero points, points": free(plain, bits=2, zero_point="real"),
        "scales of both signs, points": free(plain, bits=2, signed_scale=True),
        "scales of groups, points": free(plain, bits=2, granularity=4),
        "scales and real zero points of groups, points": free(plain, bits=2, granularity=4, zero_point="real"),
        "powers of two, points": free(plain, codebook="mxfp4"),
        "one scale, points": free(plain, bits=2, granularity="tensor", zero_point="free"),
    }
    search = {
        "scales, search": free(plain, bits=3),
        "scales and zero points, search": free(plain, bits=2, zero_point="free"),
        "scales and real zero points, search": free(plain, bits=2, zero_point="real"),
        "scales of nf4, search": free(plain, codebook="nf4"),
        "scales without a zero, search": free(plain, bits=1),
        "powers of two, search": free(plain, codebook="mxfp4"),
        "one scale, search": free(plain, bits=2, granularity="tensor"),
        "scales of a singular matrix, search": free(singular, bits=2),
    }
    return dual, search


def _changed(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda tensors, about: tensors.update({name: change(tensors[name])})


def _put(name: str, index: Any, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    def change(tensors: dict[str, Any], about: dict[str, Any]) -> None:
        tensors[name][index] = value

    return change


def _said(key: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda tensors, about: about["problem"].update({key: value})


def _moved(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    """A weight to the next number."""
    weights = tensors["solution.weights"]
    weights[0, 0] = np.nextafter(weights[0, 0], np.inf)
    tensors["solution.upper_bound"] *= 1.0 + 1e-9


def _enlarged(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    tensors["solution.weights"] *= 2.0**20


def _unpriced(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    tensors["proof.0.kappa"] = -tensors["proof.0.kappa"]


def _one_point_for_all(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    leaves = tensors["proof.0.axis"] < 0
    tensors["proof.0.child"][leaves] = tensors["proof.0.child"][leaves].max()


def _real_for_all(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    about["problem"]["zero"] = "real"
    tensors["solution.codes"] -= tensors["solution.codes"].min()


#: By name: the certificate, a change of it, and what the refusal has to say.
ATTACKS: dict[str, tuple[str, Callable[[dict[str, Any], dict[str, Any]], object], str]] = {}
for base in ("scales, points", "scales and real zero points, search"):
    ATTACKS |= {
        f"{base}: a weight moved by its last digit": (base, _moved, "no scale explains"),
        f"{base}: other codes": (base, _put("solution.codes", (0, 0), 0.5), "no scale explains"),
        f"{base}: codes of another channel": (base, _changed("solution.codes", lambda a: a[::-1].copy()), "no scale"),
        f"{base}: no codes of the weights": (base, lambda t, a: t.pop("solution.codes"), "incomplete"),
        f"{base}: a code too few": (base, _changed("problem.codes", lambda a: a[:-1].copy()), "scale|smaller"),
        f"{base}: codes descend": (base, _changed("problem.codes", lambda a: a[::-1].copy()), "do not ascend"),
        f"{base}: weights of another type": (base, _said("dtype", "float16"), "does not know"),
        f"{base}: zero points of another kind": (base, _said("zero", "some"), "does not know"),
        f"{base}: one scale for both rows": (base, _said("granularity", "tensor"), "no proof for each"),
        f"{base}: a node without children": (base, _put("proof.0.child", 0, 10**6), "no two children"),
        f"{base}: a node with two parents": (base, _put("proof.0.child", 2, 1), "no two children|two parents"),
        f"{base}: another group divided": (base, _put("proof.0.axis", 0, 5), "divides what is not there"),
        f"{base}: a tree missing": (base, _changed("proof.0.root", lambda a: a[:0].copy()), "neither one for all"),
        f"{base}: a root that is not there": (base, _put("proof.0.root", 0, 10**6), "no root"),
        f"{base}: divided at a negative scale": (base, _changed("proof.0.at", lambda a: -a), "not positive"),
        f"{base}: a scale that is not a number": (base, _put("proof.0.at", 0, np.nan), "NaN|not positive"),
        f"{base}: a point that is not there": (base, _put("proof.0.child", -1, 10**6), "names no point"),
        f"{base}: a point that is not a number": (base, _put("proof.0.z", (0, 0, 0), np.nan), "NaN"),
        f"{base}: a minorant that is not there": (base, _put("proof.0.minorant", 0, 7), "minorants that are not there"),
        f"{base}: a larger minorant": (base, _changed("proof.minorant.0.d", lambda a: 4.0 * a), "not proven"),
        f"{base}: a negative minorant": (base, _changed("proof.minorant.0.d", lambda a: -a), "not proven"),
        f"{base}: one point for all scales": (base, _one_point_for_all, "is claimed|smaller error|large scales"),
    }  # fmt: skip
for base in ("scales, search", "scales of nf4, search"):
    ATTACKS |= {
        f"{base}: a negative price": (base, _unpriced, "negative price"),
        f"{base}: no price": (base, lambda t, a: t.pop("proof.0.kappa"), "incomplete"),
        f"{base}: an order with gaps": (base, _changed("proof.0.order", lambda a: 0 * a), "no permutation"),
        f"{base}: nothing searched": (base, _changed("proof.0.axis", lambda a: np.maximum(a, -1)), "is claimed|large"),
        f"{base}: all searched": (base, _changed("proof.0.axis", lambda a: np.where(a < 0, -2, a)), "small scales"),
    }  # fmt: skip
ATTACKS |= {
    "one real zero point for both rows": ("one scale, points", _real_for_all, "share a real zero point"),
    "rows reach more": ("one scale, search", _changed("proof.0.lower", lambda a: 1.5 * a), "smaller error"),
    "rows reach less": ("one scale, search", _changed("proof.0.lower", lambda a: 0.5 * a), "at large scales"),
    "what rows reach is missing": ("one scale, search", lambda t, a: t.pop("proof.0.lower"), "incomplete"),
    "negative scales, too": ("scales, search", _said("signed", True), "neither one for all|smaller error|is claimed"),
    "powers of two only": ("scales, points", _said("powers_of_two", True), "no scale explains"),
    "zero points, too": ("scales, search", _said("zero", "integer"), "do not fit together"),
    "real zero points, too": ("scales and zero points, search", _said("zero", "real"), "incomplete|no scale|neither"),
    "integer zero points only": ("scales and real zero points, search", _said("zero", "integer"), "no scale explains"),
    "another input left out": (
        "scales and real zero points of groups, points", _changed("proof.0.dropped", lambda a: a[::-1].copy()),
        "leave out one input of each group",
    ),
    "nothing around the target": (
        "scales and real zero points, points", lambda t, a: a["proofs"][0].update({"around": [0]}), "wrong size|odd",
    ),
    "a scale for each input": (
        "scales of groups, points", _changed("problem.group", lambda a: np.arange(len(a))), "several groups",
    ),
    "weights that are not allowed to be so large": ("scales of a singular matrix, search", _enlarged, "larger than is"),
    "two powers of two in one part": (
        "powers of two, search", _changed("proof.0.at", lambda a: a * 8.0), "one power of two|is claimed|smaller error",
    ),
}  # fmt: skip
