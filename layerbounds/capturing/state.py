"""What running a model changes beside its output, and how it is put back: random numbers and buffers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

#: Puts something back.
Restore = Callable[[], None]


@contextmanager
def preserved(*models: nn.Module) -> Iterator[None]:
    """Leave the random numbers of the caller, those of the models' own generators, and their buffers as they were."""
    undo = [_global_numbers()]
    for model in models:
        undo += [*map(_generator, generators(model).values()), *map(_buffers, model.modules())]
    try:
        yield
    finally:
        for restore in undo:
            restore()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let everything that draws from the global generators draw the numbers of a seed, and put the generators back."""
    restore = _global_numbers()
    try:
        # Not torch.manual_seed, which remembers each seed for devices that are not in use.
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(seed)
        if torch.backends.mps.is_available():
            torch.mps.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        yield
    finally:
        restore()


def draw_seed() -> int:
    """A seed that the state of torch's generator determines, without changing that state."""
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    return int(torch.randint(2**62, (1,), generator=generator))


def generators(model: nn.Module) -> dict[str, Any]:
    """Random number generators that modules hold as attributes, by path."""
    kinds = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
    return {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, kinds)
    }


def copy_generators(source: nn.Module, target: nn.Module) -> None:
    """Let the generators that the modules of one model hold go on as those of the same paths in another one."""
    own = generators(target)
    for path, generator in generators(source).items():
        if type(own.get(path)) is type(generator):
            _set_state(own[path], _state(generator))


def _global_numbers() -> Restore:
    cpu, python = torch.get_rng_state(), random.getstate()
    numpy = np.random.get_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def restore() -> None:
        torch.set_rng_state(cpu)
        if mps is not None:
            torch.mps.set_rng_state(mps)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        if cuda:
            torch.cuda.set_rng_state_all(cuda)

    return restore


def _generator(generator: Any) -> Restore:
    state = _state(generator)
    return lambda: _set_state(generator, state)


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state() if isinstance(generator, np.random.RandomState) else generator.getstate()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.setstate(state)


def _buffers(module: nn.Module) -> Restore:
    """Statistics, counters and caches, whether they are written in place or replaced."""
    registered = dict(module._buffers)
    contents = {
        name: value.detach().clone()
        for name, value in registered.items()
        if value is not None and value.layout == torch.strided and not value.is_meta
    }

    def restore() -> None:
        module._buffers.clear()
        module._buffers.update(registered)
        for name, content in contents.items():
            value = registered[name]
            assert value is not None
            if value.shape != content.shape:
                value.data = content
            elif not torch.equal(value, content):
                value.detach().copy_(content)

    return restore
