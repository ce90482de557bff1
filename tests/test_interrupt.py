"""Ctrl-C during a preparation, and what is said before it."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.cancellation import Cancelled, checkpoint, interruptible
from layerbounds.cli.main import INTERRUPTED, main
from layerbounds.scheduling import stages
from layerbounds.search.quantization import effort, preparation

#: Seconds within which an interrupted call must return, on a busy machine.
PROMPT = 5.0


class Endless:
    """Work that looks for its cancellation between pieces, and never ends by itself."""

    def __init__(self) -> None:
        self.began, self.cancelled = threading.Event(), threading.Event()

    def __call__(self, *_: object) -> None:
        self.began.set()
        try:
            while True:
                checkpoint()
                time.sleep(0.01)
        except Cancelled:
            self.cancelled.set()
            raise


def press_ctrl_c(after: threading.Event) -> None:
    """Send SIGINT to this process as soon as an event has happened."""

    def wait() -> None:
        assert after.wait(60.0)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


@pytest.fixture
def endless(monkeypatch):
    """Preparations that never end, also of small layers."""
    work = Endless()
    monkeypatch.setattr(preparation, "_prepare", work)
    # What other tests prepared would be taken from there.
    preparation._cache.clear()
    monkeypatch.setattr(stages, "LONG_PREPARATION", 1)
    return work


def test_results_and_errors_pass():
    assert interruptible(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 // 0)


def test_checkpoints_outside_of_interruptible_work():
    checkpoint()


def test_interrupted_work_ends():
    work = Endless()
    press_ctrl_c(work.began)
    begin = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        interruptible(work)
    assert time.perf_counter() - begin < PROMPT
    assert work.cancelled.wait(PROMPT)


def test_preparation_in_python(endless, small_layer):
    press_ctrl_c(endless.began)
    with pytest.raises(KeyboardInterrupt):
        lb.solve(lb.quantization_problem(small_layer, 3), jobs=1)
    assert endless.cancelled.wait(PROMPT)


def test_preparation_on_the_command_line(endless, small_layer, tmp_path, capsys):
    path, out = tmp_path / "layers.safetensors", tmp_path / "out.json"
    lb.save_layers(path, [small_layer])
    press_ctrl_c(endless.began)
    code = main(["solve", "--input", str(path), "--layer", "small", "--bits", "3", "--json", str(out)])
    assert code == INTERRUPTED
    assert endless.cancelled.wait(PROMPT)
    assert "Traceback" not in capsys.readouterr().err


def test_pieces_of_a_preparation(random_gram, monkeypatch):
    """Between two looks there is no more than a few factorizations."""
    looks = 0

    def count() -> None:
        nonlocal looks
        looks += 1

    monkeypatch.setattr(preparation, "checkpoint", count)
    preparation._prepare(random_gram(30), 1.0)
    assert looks > 60


def test_long_preparations_are_announced(small_layer, monkeypatch, capsys):
    monkeypatch.setattr(effort, "ANNOUNCED", 1)
    speed = effort.Speed(0.1, 0.1, 0.1)
    monkeypatch.setattr(effort, "measure", lambda _: speed)
    moved = lb.Layer(small_layer.weight, small_layer.gram[0] * 1.25)
    lb.solve(lb.quantization_problem(moved, 2), channels=[0], jobs=1)
    said = capsys.readouterr().err
    assert f"preparing 6 inputs: about {effort.duration(effort.preparation_seconds(6, speed))}\n" in said
    # What is remembered is not announced again.
    lb.solve(lb.quantization_problem(moved, 3), channels=[0], jobs=1)
    assert "preparing" not in capsys.readouterr().err


def test_short_preparations_are_not(capsys):
    effort.announce(64, 1)
    assert capsys.readouterr().err == ""


def test_estimates_grow():
    speed = effort.measure()
    seconds = [effort.preparation_seconds(n, speed) for n in (1000, 2000, 3000, 6000)]
    assert np.all(np.diff(seconds) > 0)
    assert seconds[0] > 0


@pytest.mark.parametrize(("seconds", "text"), [(12.3, "12 s"), (720.0, "12 min"), (9000.0, "2.5 h")])
def test_durations(seconds, text):
    assert effort.duration(seconds) == text
