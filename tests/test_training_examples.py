"""The experiments of docs/training.md: their statistics, their files, and a small run of each."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import layerbounds as lb

pytest.importorskip("torch")
pytest.importorskip("sklearn")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(scope="module")
def shared() -> Iterator[Any]:
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module("digits_training")
    sys.path.remove(str(EXAMPLES))


def test_intervals_cover_the_mean_over_networks_and_images(shared: Any) -> None:
    rng = np.random.default_rng(0)
    truth, inside, trials = 0.3, 0, 400
    for _ in range(trials):
        # Each network, each image and each pair of them is off by something.
        values = truth + rng.normal(size=(5, 1)) + 3 * rng.normal(size=(1, 60)) + rng.normal(size=(5, 60))
        found = shared.estimate(values)
        inside += abs(found.mean - truth) <= found.half
    assert inside / trials >= 0.95
    assert found.half == pytest.approx(found.error * stats.t.ppf(0.975, 4))


def test_a_difference_is_decided_only_beyond_its_interval(shared: Any) -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(5, 100))
    assert shared.verdict(shared.estimate(noise - 2.0), "first", "second") == "first"
    assert shared.verdict(shared.estimate(noise + 2.0), "first", "second") == "second"
    assert shared.verdict(shared.estimate(noise), "first", "second") == "not decided"


def test_finished_runs_are_kept_and_tables_go_between_their_marks(shared: Any, tmp_path: Path) -> None:
    made = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"loss": [1.0, 2.0]}

    for _ in range(2):
        assert shared.kept(tmp_path, "run", make)["loss"].tolist() == [1.0, 2.0]
    assert made == [1]
    docs = tmp_path / "page.md"
    docs.write_text("before\n<!-- a -->\nold\n<!-- end of a -->\nafter\n", encoding="utf-8")
    shared.insert(docs, "a", shared.table(["", "x"], [["row", "1"]]))
    text = "before\n<!-- a -->\n| | x |\n|---|---:|\n| row | 1 |\n<!-- end of a -->\nafter\n"
    assert docs.read_text(encoding="utf-8") == text.replace("| | x |", "|  | x |")
    with pytest.raises(lb.LayerboundsError, match="no marks"):
        shared.insert(docs, "b", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["methods", "orders", "layers"])
def test_a_small_run(name: str, shared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = importlib.import_module(f"training_{name}")
    train = importlib.import_module("train_demo")
    monkeypatch.setattr(train, "STEPS", 5)
    for module, attribute, value in (
        (shared, "EPOCHS", 1),
        (experiment, "EPOCHS", 1),
        (experiment, "SEEDS", (0, 1)),
        (experiment, "BITS", (3,)),
        (experiment, "STRENGTHS", ((3, 0.5), (4, 0.5))),
        (experiment, "CHANNELS", 1),
        (experiment, "SEARCH", 0.0),
        (experiment, "FREE_SEARCH", 0.0),
    ):
        monkeypatch.setattr(module, attribute, value, raising=False)
    if name == "layers":
        monkeypatch.setattr(experiment, "COMPRESSIONS", dict(list(experiment.COMPRESSIONS.items())[::2]))
    docs = tmp_path / "page.md"
    (tmp_path / "figures").mkdir()
    docs.write_text(f"<!-- {name} -->\n<!-- end of {name} -->\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [name, "--out", str(tmp_path / "out"), "--docs", str(docs)])
    pictures = [experiment.PICTURE] if name == "layers" else []
    assert shared.main(experiment.NAME, "", experiment.run, pictures) == 0
    record = json.loads((tmp_path / "out" / f"{name}.json").read_text(encoding="utf-8"))
    assert record["rows"] and (tmp_path / "out" / f"{name}.csv").read_text(encoding="utf-8").count("\n") > 1
    text = docs.read_text(encoding="utf-8")
    assert text.count("|---|") >= 2 and "nan" not in text.lower()
    assert all((tmp_path / "figures" / picture).exists() for picture in pictures)
