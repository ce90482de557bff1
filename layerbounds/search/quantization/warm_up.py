"""Compile the kernels of the quantization search before the first clock runs."""

from __future__ import annotations

import functools
import threading

import numpy as np

from layerbounds.bounds.minorants.diagonal import maximize_minorant
from layerbounds.bounds.quantization.block_relaxation import refine_blocks
from layerbounds.bounds.quantization.split_relaxation import SplitWeights, evaluate_split
from layerbounds.problems.levels import Levels
from layerbounds.problems.tasks import Task
from layerbounds.proofs import Control
from layerbounds.search.quantization.box_tree import BoxTree
from layerbounds.search.quantization.channel_search import ChannelSearch
from layerbounds.search.quantization.preparation import prepare

_N = 6


@functools.cache
def compile_blocks() -> None:
    """The same for the block relaxation of larger instances."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(3 * _N, _N))
    gram = inputs.T @ inputs
    levels = np.ascontiguousarray(np.tile(np.arange(4.0)[:, None], _N))
    origin = rng.uniform(0.0, 3.0, _N)
    refine_blocks(gram, origin, levels, np.full(_N, 4), maximize_minorant(gram, np.ones(_N)), origin, rounds=2)


@functools.cache
def compile_quantization() -> None:
    """Run every kernel once on a small instance; later calls in the process do nothing."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(3 * _N, _N))
    gram = inputs.T @ inputs
    levels = np.tile(np.arange(4.0), (_N, 1))
    task = Task(
        rows=(0,),
        gram=gram,
        targets=rng.uniform(0.0, 3.0, (1, _N)),
        constants=np.zeros(1),
        energy=1.0,
        live=np.ones(_N, dtype=np.bool_),
        allowed=Levels(levels, levels, np.ones(_N), np.zeros(_N), uniform=True),
    )
    control = Control(60.0, 0.0, 1000, 0, 1, threading.Event())
    search = ChannelSearch(task, prepare(gram, 1.0), control)
    search.tree.steps[:] = 1
    search.attempt(search.upper, 500, learn=True)
    search.improve(1)
    search.relax()
    search.collect_leaves(0.0)
    unit = search.unit
    plain = SplitWeights(np.zeros((_N, 0)), unit.minorants[_N], np.zeros(0))
    root = evaluate_split(unit.gram, unit.origin, unit.levels, plain, unit.origin, np.zeros(0))
    BoxTree(unit, root).grow(np.inf, lambda: False)
