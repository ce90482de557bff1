"""Attacks: a right certificate, a change of it, and what the refusal has to say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from certificates import scales
from certificates.correct import CORRECT, write
from layerbounds.certify.solution_file import SOLUTIONS
from layerbounds.layers.files import write_tensors
from layerbounds.layers.sealed_files import DIGEST_KEY, digest
from layerbounds.layers.tensor_files import read_tensors

#: From the tensors and the metadata, which it changes, to nothing.
Change = Callable[[dict[str, Any], dict[str, Any]], object]


@dataclass(frozen=True)
class Attack:
    """One wrong certificate."""

    base: str
    change: Change
    says: str


def forge(path: Path, change: Change, *, seal: bool = True, **metadata: str) -> None:
    """Change a file, and give it the digest of what it then holds."""
    tensors, before = read_tensors(path)
    tensors = {name: np.array(array) for name, array in tensors.items()}
    about = json.loads(before[SOLUTIONS.key])
    change(tensors, about)
    text = json.dumps(about)
    sealed = {DIGEST_KEY: digest(tensors, text)} if seal else {}
    write_tensors(path, tensors, {**before, SOLUTIONS.key: text, **sealed, **metadata})


def attacked(name: str, folder: Path) -> Path:
    """The file of an attack."""
    attack = INCORRECT[name]
    path = write(attack.base, folder)
    forge(path, attack.change)
    return path


def _scaled(name: str, factor: float) -> Change:
    def change(tensors: dict[str, Any], about: dict[str, Any]) -> None:
        tensors[name] = tensors[name] * factor

    return change


def _set(name: str, index: Any, value: Any) -> Change:
    def change(tensors: dict[str, Any], about: dict[str, Any]) -> None:
        tensors[name][index] = value

    return change


def _added(name: str, index: Any, value: Any) -> Change:
    def change(tensors: dict[str, Any], about: dict[str, Any]) -> None:
        tensors[name][index] += value

    return change


def _about(*path: Any, value: Any) -> Change:
    def change(tensors: dict[str, Any], about: dict[str, Any]) -> None:
        *inner, last = path
        place: Any = about
        for step in inner:
            place = place[step]
        place[last] = value

    return change


def _removed(name: str) -> Change:
    return lambda tensors, about: tensors.pop(name)


def _swapped(first: str, second: str) -> Change:
    def change(tensors: dict[str, Any], about: dict[str, Any]) -> None:
        tensors[first], tensors[second] = tensors[second], tensors[first]

    return change


def _reversed(name: str) -> Change:
    def change(tensors: dict[str, Any], about: dict[str, Any]) -> None:
        tensors[name] = tensors[name][::-1].copy()

    return change


def _another_level(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    codes, scale = tensors["problem.grid.codes"], tensors["problem.grid.scale"]
    levels = scale[0, 0] * codes
    weight = tensors["solution.weights"]
    weight[0, 0] = levels[0] if weight[0, 0] != levels[0] else levels[-1]


def _one_more(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    """All weights kept, at the values that they had."""
    tensors["solution.weights"] = tensors["layer.weight"].copy()


def _resized(name: str, part: slice) -> Change:
    def change(tensors: dict[str, Any], about: dict[str, Any]) -> None:
        tensors[name] = tensors[name][part].copy()

    return change


def _another_input(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    """Every node divides another input than its leaves were bounded for."""
    axis = tensors["proof.0.axis"]
    axis[axis >= 0] = (axis[axis >= 0] + 1) % 7


def _at_leaf(value: int) -> Change:
    """Another evidence of the first leaf."""
    return lambda tensors, about: tensors["proof.0.child"].__setitem__(
        np.flatnonzero(tensors["proof.0.axis"] < 0)[0], value
    )


def _no_evidence(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    tensors["proof.0.child"][tensors["proof.0.axis"] < 0] = -1


def _of_level_leaves(base: str) -> dict[str, Attack]:
    """Attacks on trees where kept weights take given values."""
    claimed = "is claimed|not proven|several weights"
    attacks = {
        "nodes divide other inputs": (_another_input, f"{claimed}|not there"),
        "one leaf for all": (_one_leaf, claimed),
        "children of the next node": (_added("proof.0.child", 0, 1), "without a parent"),
        "a circle": (_set("proof.0.child", 0, 0), "without a parent"),
        "children behind the end": (_set("proof.0.child", 0, 10**6), "without a parent"),
        "two parents": (_set("proof.0.axis", -1, 0), "without a parent"),
        "an input that is not there": (_set("proof.0.axis", 0, 99), "what is not there"),
        "a tree cut off": (_resized("proof.0.axis", slice(-1)), "without a parent|odd"),
        "no tree": (_resized("proof.0.axis", slice(0)), "without a parent|odd"),
        "evidence that is not there": (_at_leaf(10**6), "that is not there"),
        "negative evidence": (_at_leaf(-9), "that is not there"),
        "no evidence": (_no_evidence, "several weights"),
        "larger diagonals": (_scaled("proof.0.d", 4.0), "not proven to be below"),
        "smaller diagonals": (_scaled("proof.0.d", 0.01), "is claimed"),
        "other points": (_scaled("proof.0.z", 1.3), claimed),
        "a point that is not a number": (_set("proof.0.z", (0, 0), np.nan), "NaN"),
        "endless points": (_scaled("proof.0.z", 1e30), "too large|is claimed|not proven|incomplete"),
        "a minorant that is not there": (_set("proof.0.minorant", 0, 99), "not there"),
        "points missing": (_resized("proof.0.z", slice(-1)), "not there|odd"),
    }
    return {f"{base}: {name}": Attack(base, change, says) for name, (change, says) in attacks.items()}


def _one_leaf(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    """Everything by what bounds but a part."""
    evidence = tensors["proof.0.child"][tensors["proof.0.axis"] < 0].max()
    for name, value in (("axis", -1), ("at", -1), ("child", evidence)):
        tensors[f"proof.0.{name}"] = np.array([value], dtype=np.int32)


def _skipped(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    """The root's children are those of its first child, so that what its second child holds is nowhere."""
    axis, child = tensors["proof.0.axis"], tensors["proof.0.child"]
    inner = [k for k in (child[0], child[0] + 1) if axis[k] >= 0]
    axis[0], child[0] = axis[inner[0]], child[inner[0]]


def _nan(name: str) -> Change:
    return _set(name, (0,), np.nan)


def _other_evidence(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    child, leaf = tensors["proof.0.child"], tensors["proof.0.axis"] < 0
    child[leaf] = np.roll(child[leaf], 1)


def _root_alone(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    for part, value in (("axis", -1), ("at", -1), ("child", 0)):
        tensors[f"proof.0.{part}"] = np.array([value], dtype=np.int32)


def _other_levels(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    at = tensors["proof.0.at"]
    at[at >= 0] = np.maximum(at[at >= 0] - 1, 0)


def _scaled_together(proof: float, ends: float) -> Change:
    def change(tensors: dict[str, Any], about: dict[str, Any]) -> None:
        tensors["proof.0.d"] *= proof
        tensors["solution.lower_bound"] *= ends

    return change


_HIGHER = "is claimed|smaller error"


def _attacks() -> dict[str, Attack]:
    found: dict[str, Attack] = {}
    for base in CORRECT:
        found[f"{base}: lower ends raised"] = Attack(base, _scaled("solution.lower_bound", 1 + 1e-6), _HIGHER)
        found[f"{base}: upper ends lowered"] = Attack(
            base, _scaled("solution.upper_bound", 1 - 1e-6), "have an error of"
        )
        found[f"{base}: another target"] = Attack(
            base, lambda t, a: t.update({"layer.target": t["layer.weight"] * 1.01}), "error|claimed"
        )
    for base in ("3 bits, diagonal", "nf4, blocks", "3 bits, search", "joint, diagonal"):
        found[f"{base}: off the grid"] = Attack(base, _added("solution.weights", (0, 0), 1e-9), "no level of its grid")
        found[f"{base}: another scale"] = Attack(base, _scaled("problem.grid.scale", 1 + 1e-12), "no level of its grid")
        found[f"{base}: constant left out"] = Attack(base, _scaled("layer.constant", 0.5), _HIGHER)
        found[f"{base}: constant raised"] = Attack(base, _scaled("layer.constant", 2.0), "have an error of")
        found[f"{base}: negative constant"] = Attack(base, _scaled("layer.constant", -1.0), "negative constant")
        found[f"{base}: weights of another channel"] = Attack(
            base, _reversed("solution.weights"), "no level|an error of"
        )
        found[f"{base}: indefinite Gram matrix"] = Attack(
            base, _set("layer.gram", (0, 0), 1e-9), "not positive semidefinite"
        )
        found[f"{base}: asymmetric Gram matrix"] = Attack(base, _added("layer.gram", (0, 1), 1e-3), "not symmetric")
        found[f"{base}: NaN in the Gram matrix"] = Attack(base, _nan("layer.gram"), "NaN")
        found[f"{base}: NaN among the weights"] = Attack(base, _nan("solution.weights"), "NaN")
        found[f"{base}: NaN as an end"] = Attack(base, _nan("solution.upper_bound"), "nan is claimed")
        found[f"{base}: NaN as a point"] = Attack(base, _nan("proof.0.z"), "NaN")
        found[f"{base}: a point of another length"] = Attack(
            base, lambda t, a: t.update({"proof.0.z": t["proof.0.z"][:-1].copy()}), "wrong shape|odd"
        )
        found[f"{base}: no point"] = Attack(base, _removed("proof.0.z"), "incomplete")
        found[f"{base}: an unknown kind"] = Attack(base, _about("proofs", 0, "kind", value="sure"), "kind 'sure'")
        found[f"{base}: nothing but a claim"] = Attack(base, _about("proofs", 0, "kind", value="trivial"), "is claimed")
        found[f"{base}: a proof too few"] = Attack(base, lambda t, a: a["proofs"].pop(), "no proof for each")
        found[f"{base}: no proofs"] = Attack(base, lambda t, a: a.pop("proofs"), "without proofs")
    for base in ("minima, forms", "minima, search", "joint minima, diagonal"):
        moved, gone = _added("problem.grid.offset", (0, 0), 1e-12), _removed("problem.grid.offset")
        found[f"{base}: another offset"] = Attack(base, moved, "no level of its grid")
        found[f"{base}: no offsets"] = Attack(base, gone, "no level of its grid")
        fewer = _resized("problem.grid.offset", slice(0, 1))
        found[f"{base}: offsets of one channel"] = Attack(base, fewer, "group of scales that is not there")
        found[f"{base}: NaN as an offset"] = Attack(base, _nan("problem.grid.offset"), "no level of its grid")
    for base in ("3 bits, diagonal", "3 bits, search"):
        found[f"{base}: another level"] = Attack(base, _another_level, "have an error of")
    for base in ("3 bits, diagonal", "refit, diagonal", "mask, diagonal", "joint, diagonal", "3 bits, forms"):
        found[f"{base}: larger diagonal"] = Attack(base, _scaled("proof.minorant.0.d", 1.8), "not proven to be below")
        found[f"{base}: points swapped"] = Attack(base, _swapped("proof.0.z", "proof.1.z"), "is claimed")
        found[f"{base}: no minorant"] = Attack(
            base, _about("proofs", 0, "minorant", value=9), "not proven|claimed|limit"
        )
        found[f"{base}: negative shift"] = Attack(
            base, lambda t, a: t.update({"proof.minorant.0.shift": np.full(7, -1e-3)}), "negative shift"
        )
        found[f"{base}: shift added"] = Attack(
            base, lambda t, a: t.update({"proof.minorant.0.shift": np.full(7, 1e-3)}), "is claimed|limit"
        )
        found[f"{base}: diagonal of another length"] = Attack(
            base, lambda t, a: t.update({"proof.minorant.0.d": t["proof.minorant.0.d"][1:].copy()}), "wrong size|odd"
        )
    for base in (
        "3 bits, blocks",
        "refit, blocks",
        "mask, blocks",
        "2:4, blocks",
        "joint, blocks",
        "joint 2:4, blocks",
    ):
        found[f"{base}: larger blocks"] = Attack(
            base, _scaled("proof.minorant.0.values", 1.2), "not proven to be below"
        )
        found[f"{base}: asymmetric block"] = Attack(base, _added("proof.minorant.0.values", 1, 1e-9), "not symmetric")
        found[f"{base}: entries missing"] = Attack(
            base, lambda t, a: t.update({"proof.minorant.0.values": t["proof.minorant.0.values"][:-1].copy()}), "odd"
        )
        found[f"{base}: blocks exchanged"] = Attack(
            base, _reversed("proof.minorant.0.values"), "not proven|not symmetric|is claimed"
        )
    for base in ("2:4, blocks", "joint 2:4, blocks", "refit, blocks"):
        found[f"{base}: blocks across groups"] = Attack(
            base,
            lambda t, a: t["proof.minorant.0.block"].__setitem__(slice(None), [0, 0, 1, 1, 0, 1, 1]),
            "parts of|odd|symmetric|not proven",
        )
    for base in ("3 bits, forms", "mirrored scales, forms"):
        which = "1" if base.startswith("mirrored") else "0"
        found[f"{base}: other multipliers"] = Attack(base, _scaled(f"proof.{which}.multipliers", -30.0), "is claimed")
        found[f"{base}: multipliers missing"] = Attack(base, _removed(f"proof.{which}.multipliers"), "incomplete")
    for base in ("3 bits, blocks and forms", "mirrored scales, blocks and forms"):
        found |= {
            f"{base}: {what}": Attack(base, change, says)
            for what, change, says in (
                ("larger blocks", _scaled("proof.minorant.0.values", 1.5), "not proven to be below"),
                ("larger weights", _scaled("proof.minorant.0.weights", 40.0), "not proven to be below"),
                ("a negative weight", _scaled("proof.minorant.0.weights", -1.0), "negative weight"),
                ("a coefficient doubled", _scaled("proof.minorant.0.forms", 8), "not proven to be below"),
                ("a fraction as coefficient", _scaled("proof.minorant.0.forms", 0.5), "no small integers"),
                ("a form too few", _resized("proof.minorant.0.weights", slice(1, None)), "no small integers"),
                ("other multipliers", _scaled("proof.0.multipliers", -100.0), "is claimed"),
                ("a multiplier too few", _resized("proof.0.multipliers", slice(1, None)), "not one for each form"),
                ("multipliers missing", _removed("proof.0.multipliers"), "incomplete"),
                ("NaN as a multiplier", _nan("proof.0.multipliers"), "NaN|odd"),
                ("points swapped", _swapped("proof.0.z", "proof.1.z"), "is claimed"),
                ("asymmetric block", _added("proof.minorant.0.values", 1, 1e-9), "not symmetric"),
                ("blocks missing", _removed("proof.minorant.0.block"), "is claimed|not proven"),
            )
        }
    for base in ("joint, leaves", "joint 2:4, leaves", "joint block:2, leaves", "mask, leaves"):
        found |= _of_level_leaves(base)
    for base in ("refit, search", "2:4, search"):
        found[f"{base}: nodes divide other inputs"] = Attack(
            base, _another_input, "is claimed|not proven|not there|limit"
        )
        found[f"{base}: one leaf for all"] = Attack(base, _one_leaf, "is claimed|not proven|limit")
        found[f"{base}: children of the next node"] = Attack(
            base, _added("proof.0.child", 0, 1), "two parents|is claimed|not proven|no two children|limit"
        )
        found[f"{base}: a circle"] = Attack(base, _set("proof.0.child", 0, 0), "no two children")
        found[f"{base}: children behind the end"] = Attack(base, _set("proof.0.child", 0, 10**6), "no two children")
        found[f"{base}: an input that is not there"] = Attack(base, _set("proof.0.axis", 0, 7), "what is not there")
        found[f"{base}: a tree cut off"] = Attack(
            base, _resized("proof.0.axis", slice(-1)), "no two children|odd|parents"
        )
        found[f"{base}: no tree"] = Attack(base, _resized("proof.0.axis", slice(0)), "two parents|odd")
        found[f"{base}: evidence that is not there"] = Attack(
            base,
            lambda t, a: t["proof.0.child"].__setitem__(np.flatnonzero(t["proof.0.axis"] < 0)[0], 10**6),
            "that is not there",
        )
        found[f"{base}: negative evidence"] = Attack(
            base,
            lambda t, a: t["proof.0.child"].__setitem__(np.flatnonzero(t["proof.0.axis"] < 0)[0], -9),
            "that is not there",
        )
        found[f"{base}: larger diagonals"] = Attack(base, _scaled("proof.0.d", 4.0), "not proven to be below")
        found[f"{base}: a minorant that is not there"] = Attack(base, _set("proof.0.minorant", 0, 99), "not there")
        found[f"{base}: points moved"] = Attack(base, _scaled("proof.0.z", 1.5), "is claimed")
        found[f"{base}: NaN in a point"] = Attack(base, _nan("proof.0.z"), "NaN")
        found[f"{base}: a point too few"] = Attack(base, _resized("proof.0.z", slice(-1)), "not there|not one|odd")
        found[f"{base}: points of another length"] = Attack(
            base, lambda t, a: t.update({"proof.0.z": t["proof.0.z"][:, :-1].copy()}), "odd"
        )
        found[f"{base}: no diagonals"] = Attack(base, _removed("proof.0.d"), "incomplete")
    for base in ("3 bits, boxes", "mirrored scales, boxes"):
        found |= {
            f"{base}: other multipliers": Attack(base, _scaled("proof.0.multipliers", -30_000.0), "is claimed"),
            f"{base}: a multiplier too few": Attack(
                base,
                lambda t, a: t.update({"proof.0.multipliers": t["proof.0.multipliers"][:, 1:].copy()}),
                "wrong shape",
            ),
            f"{base}: a point too few": Attack(
                base, lambda t, a: t.update({"proof.0.z": t["proof.0.z"][:-1].copy()}), "wrong shape"
            ),
            f"{base}: larger diagonal": Attack(base, _scaled("proof.minorant.0.d", 1.9), "not proven"),
            f"{base}: forms doubled": Attack(base, _scaled("proof.minorant.0.forms", 8), "not proven"),
            f"{base}: no forms": Attack(
                base,
                lambda t, a: [t.pop(f"proof.minorant.0.{part}") for part in ("forms", "weights")],
                "without integer forms",
            ),
            f"{base}: NaN as a point": Attack(base, _set("proof.0.z", (0, 0), np.nan), "too large"),
            f"{base}: evidence that is not there": Attack(
                base, lambda t, a: t["proof.0.child"].__setitem__(t["proof.0.axis"] < 0, 99), "not there"
            ),
            f"{base}: no evidence": Attack(
                base, lambda t, a: t["proof.0.child"].__setitem__(t["proof.0.axis"] < 0, -1), "not there"
            ),
            f"{base}: another evidence at each leaf": Attack(base, _other_evidence, "is claimed"),
            f"{base}: the root is a leaf": Attack(base, _root_alone, "is claimed"),
            f"{base}: divided at other levels": Attack(base, _other_levels, "is claimed"),
            f"{base}: another input divided": Attack(
                base, lambda t, a: t["proof.0.axis"].__setitem__(t["proof.0.axis"] == 0, 1), "is claimed"
            ),
            f"{base}: an input that is not there": Attack(
                base, lambda t, a: t["proof.0.axis"].__setitem__(t["proof.0.axis"] >= 0, 7), "what is not there"
            ),
            f"{base}: a unit divided": Attack(
                base, lambda t, a: t["proof.0.at"].__setitem__(t["proof.0.axis"] >= 0, -1), "what is not there"
            ),
            f"{base}: nodes with two parents": Attack(
                base, lambda t, a: t["proof.0.child"].__setitem__(2, t["proof.0.child"][0]), "two parents|claimed|there"
            ),
            f"{base}: wider levels": Attack(base, _scaled("problem.grid.scale", 2.0), "no level of its grid"),
        }
    found |= {
        "free codebook, search: a value more": Attack(
            "free codebook, search", _about("problem", "count", value=4), "smaller error"
        ),
        "free codebook, search: no diagonal": Attack("free codebook, search", _removed("proof.0.d"), "incomplete"),
        "free codebook, search: a diagonal that is too large": Attack(
            "free codebook, search", _scaled_together(proof=1e3, ends=1 + 1e-6), "smaller error"
        ),
        "free codebook, search: divisions of another problem": Attack(
            "3 bits, diagonal", _about("proofs", 0, "kind", value="divisions"), "'divisions'"
        ),
        "a form's coefficient doubled": Attack("3 bits, forms", _scaled("proof.minorant.0.forms", 8.0), "not proven"),
        "a fraction as coefficient": Attack(
            "3 bits, forms", _scaled("proof.minorant.0.forms", 0.5), "no small integers"
        ),
        "a negative weight": Attack("3 bits, forms", _scaled("proof.minorant.0.weights", -1.0), "negative weight"),
        "larger weights": Attack("3 bits, forms", _scaled("proof.minorant.0.weights", 40.0), "not proven"),
        "forms on a codebook": Attack(
            "3 bits, forms", _set("problem.grid.codes", 0, -4.5), "no level|do not follow one another"
        ),
        "too many kept": Attack("refit, diagonal", _one_more, "keep more than pattern 'unstructured'"),
        "too many of four": Attack("2:4, blocks", _one_more, "keep more than pattern '2:4'"),
        "too many blocks": Attack("block:2, blocks", _one_more, "keep more than pattern 'block:2'"),
        "a kept weight changed": Attack("mask, diagonal", _scaled("solution.weights", 1.5), "were changed"),
        "the dense weight changed": Attack("mask, blocks", _scaled("layer.weight", 1.5), "were changed|error"),
        "one more may be kept": Attack("refit, diagonal", _about("problem", "kept", value=5), "is claimed"),
        "half of one more": Attack("refit, diagonal", _about("problem", "kept", value=4.5), "knows no pattern"),
        "a looser pattern": Attack("2:4, blocks", _about("problem", "pattern", value="3:4"), "is claimed"),
        "an unknown pattern": Attack("2:4, blocks", _about("problem", "pattern", value="two:four"), "knows no pattern"),
        "a tighter pattern": Attack("2:4, blocks", _about("problem", "pattern", value="1:4"), "keep more than"),
        "refit after all": Attack("mask, diagonal", _about("problem", "refit", value=True), "is claimed|error"),
        "one mask for both rows": Attack("refit, diagonal", _about("problem", "share", value=2), "no proof for each"),
        "an unknown family": Attack("refit, diagonal", _about("problem", "family", value="guess"), "family 'guess'"),
        "a raised diagonal": Attack(
            "refit, diagonal", _about("layer", "reports", 0, "raised", value=0.01), "raised by more"
        ),
        "a branch left out": Attack("refit, search", _skipped, "is claimed|not proven|limit"),
        "levels divided that there are none of": Attack(
            "refit, search", lambda t, a: t["proof.0.at"].__setitem__(t["proof.0.axis"] >= 0, 0), "what is not there"
        ),
        "an order with gaps": Attack("3 bits, search", _set("proof.0.order", 0, 1), "no permutation"),
        "minorants cut off": Attack(
            "3 bits, search",
            lambda t, a: t.update({"proof.0.minorants": t["proof.0.minorants"][1:].copy()}),
            "wrong shape",
        ),
        "a search of a pruning problem": Attack(
            "refit, diagonal", _about("proofs", 0, "kind", value="enumeration"), "knows no proofs"
        ),
        "one more value": Attack("free codebook, diagonal", _about("problem", "count", value=3), "is claimed"),
        "a value too many": Attack("free codebook, diagonal", _one_more, "take more than 2 values"),
        "values without a limit": Attack(
            "free codebook, diagonal", _scaled("proof.minorant.0.d", -1.0), "is not positive"
        ),
        "blocks for values": Attack(
            "free codebook, diagonal",
            lambda t, a: t.update(
                {"proof.minorant.0.block": np.arange(7) // 7, "proof.minorant.0.values": np.zeros(49)}
            ),
            "no diagonal|not proven",
        ),
        "negative prices": Attack("joint, search", _scaled("proof.0.price", -1.0), "prices are negative"),
        "a price too few": Attack(
            "joint 2:4, search", lambda t, a: t.update({"proof.0.price": t["proof.0.price"][1:].copy()}), "prices"
        ),
        "no prices": Attack("mask, search", _removed("proof.0.price"), "incomplete"),
        "no sets": Attack(
            "mask, search", lambda t, a: t.update({"solution.channels": np.zeros(0, dtype=int)}), "odd|nothing"
        ),
        "joint: one more may be kept": Attack("joint, search", _about("problem", "kept", value=5), "smaller error"),
        "mask: one more may be kept": Attack("mask, search", _about("problem", "kept", value=5), "smaller error"),
        "joint: a looser pattern": Attack(
            "joint 2:4, search", _about("problem", "pattern", value="3:4"), "smaller error"
        ),
        "channels twice": Attack(
            "3 bits, diagonal", _set("solution.channels", 1, 0), "not all there|no proof for each"
        ),
        "a channel that is not there": Attack(
            "3 bits, diagonal", _set("solution.channels", 1, 5), "not all there|no proof"
        ),
        "a channel before the first": Attack(
            "3 bits, diagonal",
            lambda t, a: (t["solution.channels"].__isub__(2), a.update(sets=[[-2], [-1]])),
            "not all there",
        ),
        "a group of scales before the first": Attack(
            "3 bits, diagonal", _set("problem.grid.group", 0, -1), "group of scales that is not there"
        ),
        "channels swapped": Attack("3 bits, diagonal", _reversed("solution.channels"), "no proof for each"),
        "a bound too few": Attack(
            "3 bits, diagonal", lambda t, a: t.update({"solution.lower_bound": np.zeros(1)}), "not one for each"
        ),
        "another shape of weights": Attack(
            "3 bits, diagonal", lambda t, a: t.update({"solution.weights": np.zeros((2, 4))}), "odd|not one for each"
        ),
        "energy of a dead input": Attack("3 bits, diagonal", _set("layer.gram", (2, 2), 1.0), "claimed|odd|shape|size"),
        "a row of a dead input": Attack("3 bits, diagonal", _set("layer.gram", ((2, 1), (1, 2)), 1e-3), "semidefinite"),
    }
    return found | _of_tiles() | {name: Attack(*attack) for name, attack in scales.ATTACKS.items()}


def _all_like_the_first(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    """Each row still fits its pattern on its own."""
    weight = tensors["solution.weights"]
    weight[:] = np.where(weight[0] != 0.0, tensors["layer.weight"], 0.0)


def _other_rows(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    """The trees of two rows, exchanged."""
    for part in ("axis", "at", "child", "z", "minorant", "d"):
        _swapped(f"proof.0.row.0.{part}", f"proof.0.row.1.{part}")(tensors, about)


def _of_tiles() -> dict[str, Attack]:
    dual, search, mask, venom = (
        "transposable, prices",
        "transposable, search",
        "transposable mask, search",
        "venom, search",
    )
    return {
        "tiles: a negative price": Attack(dual, _set("proof.0.price", (1, 2), -1e-3), "one is negative"),
        "tiles: prices of one row": Attack(
            dual, lambda t, a: t.update({"proof.0.price": t["proof.0.price"][:1].copy()}), "not one for each row"
        ),
        "tiles: larger prices": Attack(dual, _scaled("proof.0.price", 9.0), "is claimed"),
        "tiles: other prices": Attack(search, _scaled("proof.0.price", 2.0), "is claimed"),
        "tiles: no prices": Attack(search, _removed("proof.0.price"), "incomplete"),
        "tiles: a larger diagonal": Attack(dual, _scaled("proof.0.d", 3.0), "not proven"),
        "tiles: a larger diagonal of a leaf": Attack(search, _scaled("proof.0.row.3.d", 9.0), "not proven"),
        "tiles: a row without a tree": Attack(search, _removed("proof.0.row.2.axis"), "incomplete"),
        "tiles: trees of other rows": Attack(search, _other_rows, "is claimed|not proven"),
        "tiles: a tree of its root alone": Attack(
            search,
            lambda t, a: t.update({f"proof.0.row.0.{part}": np.array([v]) for part, v in _ROOT.items()}),
            "is claimed",
        ),
        "tiles: a leaf of other evidence": Attack(
            search, lambda t, a: t.update({"proof.0.row.1.child": _moved(t, 1)}), "is claimed|not proven|not there"
        ),
        "tiles: a looser pattern": Attack(
            search, _about("problem", "pattern", value="transposable:3:4"), "is claimed|not proven"
        ),
        "tiles: a tighter pattern": Attack(
            search, _about("problem", "pattern", value="transposable:1:4"), "keep more than"
        ),
        "tiles: rows bound by a smaller tile": Attack(
            search, _about("problem", "pattern", value="transposable:2:3"), "bound in another way"
        ),
        "tiles: an odd pattern": Attack(
            search, _about("problem", "pattern", value="transposable:2"), "knows no pattern"
        ),
        "tiles: one mask instead": Attack(search, _about("problem", "pattern", value="2:4"), "keep more than"),
        "tiles: smaller bands": Attack(search, _about("problem", "share", value=2), "no proof for each"),
        "tiles: a column too full": Attack(search, _all_like_the_first, "keep more than"),
        "tiles: a column too full, masks": Attack(mask, _all_like_the_first, "keep more than"),
        "tiles: a row too full": Attack(mask, _one_more, "keep more than"),
        "tiles: a kept weight changed": Attack(mask, _scaled("solution.weights", 1.5), "were changed"),
        "tiles: refit after all": Attack(mask, _about("problem", "refit", value=True), "is claimed|without a limit"),
        "venom: more rows": Attack(venom, _about("problem", "pattern", value="venom:4:1:5"), "bound in another way"),
        "venom: a looser pattern": Attack(
            venom, _about("problem", "pattern", value="venom:3:2:5"), "is claimed|not proven"
        ),
        "venom: proven for one mask of all rows": Attack(
            "2:3 of rows mask, search", _about("problem", "pattern", value="venom:2:2:3"), "incomplete"
        ),
        "venom: proven for one refitted mask": Attack(
            "2:3 of rows refit, search", _about("problem", "pattern", value="venom:2:2:3"), "incomplete"
        ),
        "venom: as a transposable pattern": Attack(
            venom, _about("problem", "pattern", value="transposable:1:3"), "keep more than|is claimed"
        ),
    }


#: A tree whose root is bounded by the first evidence.
_ROOT = {"axis": -1, "at": -1, "child": 0}


def _moved(tensors: dict[str, Any], row: int) -> Any:
    """The children of a row's tree with the leaves' evidence turned round by one."""
    child, leaf = tensors[f"proof.0.row.{row}.child"].copy(), tensors[f"proof.0.row.{row}.axis"] < 0
    child[leaf] = np.roll(child[leaf], 1)
    return child


def _for_each(*names: str) -> Change:
    """Tensors of a kind, the largest part of each dropped."""

    def change(tensors: dict[str, Any], about: dict[str, Any]) -> None:
        for name in names:
            tensors[name] = tensors[name][:-1].copy()

    return change


def _first_leaf(tensors: dict[str, Any]) -> int:
    return int(np.flatnonzero(tensors["proof.0.axis"] < 0)[0])


def _leaf(name: str, value: Any) -> Change:
    """Another value at the first leaf."""

    def change(tensors: dict[str, Any], about: dict[str, Any]) -> None:
        tensors[f"proof.0.{name}"][_first_leaf(tensors)] = value

    return change


def _a_second_parent(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    inner = np.flatnonzero(tensors["proof.0.axis"] >= 0)
    tensors["proof.0.child"][inner[-1]] = tensors["proof.0.child"][inner[0]]


def _root_alone(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    """A tree without divisions."""
    for name, value in (("axis", -1), ("at", -1), ("child", 0)):
        tensors[f"proof.0.{name}"] = np.array([value], dtype=np.int32)


def _all_dropped(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    tensors["proof.0.weights"][:] = 0.0


def _without_a_column(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    tensors["proof.0.values"] = tensors["proof.0.values"][:, 1:].copy()


def _another_mask(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    """One row keeps other inputs than the others."""
    weights = tensors["solution.weights"]
    weights[0] = np.where(weights[0] == 0.0, weights[1] + 1.0, 0.0)


def _of_rows() -> dict[str, Attack]:
    """Attacks on rows that have one mask, masks of units, and choices of output channels."""
    found: dict[str, Attack] = {}
    trees = {
        "refit": ("columns", "heads", "2:3 of rows", "block:3", "filters with a metric"),
        "mask": ("2:3 of rows", "block:3", "filters with a metric"),
    }
    for word, names in trees.items():
        for base in (f"{name} {word}, search" for name in names):
            found |= {
                f"{base}: {what}": Attack(base, change, says)
                for what, change, says in (
                    ("evidence that is not there", _leaf("child", 10**6), "that is not there"),
                    ("negative evidence", _leaf("child", -2), "that is not there"),
                    ("a division of a unit that is not there", _leaf("axis", 99), "divides what is not there"),
                    ("two parents", _a_second_parent, "two parents|divides what is not there"),
                    ("nothing divided", _root_alone, "is claimed|may be kept there"),
                    ("evidence cut off", _for_each("proof.0.minorant"), "not one|odd|not there"),
                    ("no minorants", _set("proof.0.minorant", slice(None), 10**6), "that is not there"),
                    ("another kind", _about("proofs", 0, "kind", value="dual"), "incomplete|knows no|not about"),
                )
            }
    for base in ("columns refit, search", "heads refit, search", "filters with a metric mask, search"):
        more = _about("problem", "kept", value=5)
        found[f"{base}: one more may be kept"] = Attack(base, more, "is claimed|may be kept there")
    for base in ("columns refit, search", "heads refit, search", "filters with a metric refit, search"):
        found |= {
            f"{base}: larger blocks": Attack(base, _scaled("proof.0.values", 2.0), "not proven to be below"),
            f"{base}: indefinite blocks": Attack(base, _scaled("proof.0.values", -1.0), "not positive definite"),
            f"{base}: NaN in a block": Attack(base, _nan("proof.0.values"), "NaN|too large|odd"),
            f"{base}: entries missing": Attack(
                base,
                lambda t, a: t.update({"proof.0.values": t["proof.0.values"][:, 1:].copy()}),
                "entry for each pair",
            ),
            f"{base}: evidence of another leaf": Attack(base, _leaf("child", 1), "is claimed|may be kept there"),
            f"{base}: a weight above 1": Attack(base, _scaled("proof.0.weights", 2.0), "from 0 to 1"),
            f"{base}: everything dropped": Attack(base, _all_dropped, "may be kept there"),
        }
    for base in ("columns refit, dual", "heads refit, dual", "heads refit, blocks"):
        found |= {
            f"{base}: too many kept": Attack(base, _one_more, "keep more than"),
            f"{base}: another mask in one row": Attack(base, _another_mask, "keep more than|an error of"),
            f"{base}: points of other rows": Attack(base, _reversed("proof.0.z"), "is claimed"),
            f"{base}: a class that is not there": Attack(base, _set("proof.0.row_class", 0, 7), "that is not there"),
            f"{base}: a row without a class": Attack(base, _for_each("proof.0.row_class"), "not one for each row"),
            f"{base}: a row without a point": Attack(base, _for_each("proof.0.z"), "not one for each row"),
            f"{base}: no mask in common": Attack(base, _about("problem", "share", value=1), "no proof for each"),
            f"{base}: kept weights stay": Attack(base, _about("problem", "refit", value=False), "changed|knows no"),
            f"{base}: about masks": Attack(base, _about("proofs", 0, "units", value=True), "may change weights"),
        }
    found["heads refit, dual: larger blocks"] = Attack(
        "heads refit, dual", _scaled("proof.minorant.1.values", 1.5), "not proven to be below"
    )
    found["heads refit, dual: other blocks in a class"] = Attack(
        "heads refit, dual", _reversed("proof.minorant.1.block"), "different blocks|not proven|symmetric|odd"
    )
    for base in ("columns mask, dual", "heads mask, dual", "filters with a metric mask, dual"):
        found |= {
            f"{base}: larger diagonal": Attack(base, _scaled("proof.minorant.0.d", 1.5), "not proven to be below"),
            f"{base}: about weights": Attack(base, _about("proofs", 0, "units", value=False), "knows no|not about"),
            f"{base}: a kept weight changed": Attack(base, _scaled("solution.weights", 1.5), "were changed"),
            f"{base}: another point": Attack(base, _scaled("proof.0.z", -3.0), "is claimed"),
        }
    for base, says in (("heads mask, blocks", "prices"), ("heads mask, blocks", "is claimed")):
        change = _scaled("proof.0.price", -1.0) if says == "prices" else _scaled("proof.0.price", 9.0)
        found[f"{base}: {says}"] = Attack(base, change, says)
    for base in ("filters refit", "filters mask", "filters with a metric refit, dual"):
        found |= {
            f"{base}: a channel too many": Attack(base, _one_more, "more output channels are kept"),
            f"{base}: one more may be kept": Attack(base, _about("problem", "kept", value=3), "is claimed"),
            f"{base}: another proof": Attack(
                base, _about("proofs", 0, "kind", value="leaves"), "not about|odd|incomplete|knows no"
            ),
        }
    base = "filters with a metric refit, dual"
    found |= {
        f"{base}: other rows": Attack(base, _scaled("proof.0.rows", 1.1), "is claimed"),
        f"{base}: a larger metric": Attack(base, _scaled("problem.metrics", 1.5), "an error of"),
        f"{base}: a smaller metric": Attack(base, _scaled("problem.metrics", 0.5), "not proven|is claimed"),
        f"{base}: an asymmetric metric": Attack(base, _set("problem.metrics", (0, 0, 1), 9.0), "not positive semidef"),
        f"{base}: an indefinite metric": Attack(base, _scaled("problem.metrics", -1.0), "not positive semidefinite"),
        f"{base}: no metric": Attack(base, _removed("problem.metrics"), "an error of|claimed"),
        f"{base}: constants": Attack(
            base, lambda t, a: t.update({"layer.constant": np.full(5, 0.1)}), "have constants"
        ),
    }
    return found


INCORRECT = _attacks() | _of_rows()

#: Damage that needs no forger: bytes to bytes, and what the refusal has to say.
DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda data: data[:-100], "no whole safetensors file"),
    "header truncated": (lambda data: data[:50], "no whole safetensors file"),
    "empty": (lambda data: b"", "no whole safetensors file"),
    "a bit flipped": (lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "damaged"),
    "foreign": (lambda data: b"# a text\n" * 99, "no whole safetensors file"),
}
SCHEMAS = {"newer": {SOLUTIONS.schema_key: "3"}, "none": {SOLUTIONS.schema_key: ""}}
