"""Where nothing can be proven below a block of the Gram matrix its minorant is 0: tilts alone then price the box."""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np

import layerbounds as lb
from layerbounds.problems.tasks import make_task
from layerbounds.search.quantization.grid_units import make_units
from layerbounds.search.quantization.preparation import prepare
from layerbounds.search.quantization.tree import Tree


def test_the_tree_keeps_the_optimum_without_minorants() -> None:
    rng = np.random.default_rng(1)
    for _ in range(40):
        inputs = rng.normal(size=(9, 6)) + 2.0 * rng.normal(size=(9, 1))
        weight = rng.normal(size=(1, 6))
        scale = np.array([np.abs(weight).max() / rng.uniform(2.0, 4.0)])
        layer = lb.Layer(weight=weight, gram=inputs.T @ inputs / len(inputs))
        task = make_task(lb.quantization_problem(layer, bits=2, scale=scale), [0], None, None)
        prep = prepare(task.gram, 1.0)
        unit = make_units(task, dataclasses.replace(prep, minorants=np.zeros_like(prep.minorants)))
        points = np.array(list(product(*unit.levels.T)))
        errors = np.einsum("pi,ij,pj->p", points - unit.origin, unit.gram, points - unit.origin)
        tree = Tree(unit)
        tree.restart(float(errors.min()) * (1.0 + 1e-6))
        while not tree.run(10_000):
            pass
        assert tree.found is not None
        assert np.array_equal(unit.levels[tree.found, np.arange(6)], points[errors.argmin()])
