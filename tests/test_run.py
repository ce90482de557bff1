"""Runs over networks: what they find out, where they search, and how they go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.network.entries import find_entry
from layerbounds.network.pairs import equal_bits
from layerbounds.network.worth import worth

HERE: dict[str, Any] = {"parallel": "threads", "jobs": 1}


def make_layers(count: int = 3, seed: int = 0) -> dict[str, lb.Layer]:
    """Small layers of different shapes; one has a dead input, one a convolution's kernel."""
    rng = np.random.default_rng(seed)
    shapes = [(3, 5), (4, 2, 2, 2), (2, 6), (5, 4)][:count]
    layers = {}
    for number, shape in enumerate(shapes):
        n = int(np.prod(shape[1:]))
        inputs = rng.normal(size=(60, n)) @ rng.normal(size=(n, n))
        inputs[:, 1] *= number != 2
        name = f"block.{number}"
        layers[name] = lb.Layer(rng.normal(size=shape), inputs.T @ inputs / 60, name)
    return layers


def same_intervals(first: lb.NetworkRun, second: lb.NetworkRun) -> bool:
    return all(
        np.array_equal(a.lower, b.lower) and np.array_equal(a.upper, b.upper)
        for a, b in zip(first.entries, second.entries, strict=True)
    )


def test_intervals_are_those_of_solve(tmp_path: Path) -> None:
    layers = make_layers()
    run = lb.run(layers, out=tmp_path / "run", bits=[2, 3], density=0.5, pattern=["unstructured", "2:4"], **HERE)
    assert run.complete and not run.interrupted
    assert [choice.name for choice in run.choices] == ["INT2", "INT3", "pruned to density 0.5", "pruned to 2:4"]
    for entry in run.entries:
        layer = layers[entry.layer.name]
        if entry.choice.name.startswith("INT"):
            problem: lb.QuantizationProblem | lb.PruningProblem = lb.quantization_problem(
                layer, int(entry.choice.name[3:])
            )
        elif entry.choice.name.endswith("2:4"):
            problem = lb.pruning_problem(layer, pattern="2:4")
        else:
            problem = lb.pruning_problem(layer, density=0.5)
        assert entry.fingerprint == problem.fingerprint()
        solution = lb.solve(problem, jobs=1)
        assert solution.status == ["optimal"] * len(solution.sets) == entry.status
        assert np.all(entry.lower <= solution.upper_bound) and np.all(solution.lower_bound <= entry.upper)
        for label, score in entry.methods.items():
            method = lb.evaluate(problem, lb.run_heuristic(label, problem))
            np.testing.assert_allclose(score.errors, method.error, rtol=1e-9)
            assert score.feasible and np.all(score.errors >= entry.lower * (1 - 1e-9))
        weights = run.weights(entry.layer.name, entry.choice.name)
        assert weights.shape == layer.weight.shape
        reached = lb.evaluate(problem, weights)
        assert reached.feasible.all()
        np.testing.assert_allclose(reached.error, entry.upper, rtol=1e-9, atol=1e-12 * entry.layer.energy)
    assert same_intervals(run, lb.load_run(tmp_path / "run"))


def test_a_finished_run_has_nothing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = make_layers()
    first = lb.run(layers, out=tmp_path / "run", bits=2, **HERE)
    monkeypatch.setattr("layerbounds.network.dispatch.carry_out", None)
    again = lb.run(layers, out=tmp_path / "run", bits=2, **HERE)
    assert same_intervals(first, again)


def test_more_methods_are_added_later(tmp_path: Path) -> None:
    layers = make_layers()
    lb.run(layers, out=tmp_path / "run", bits=2, methods=["rtn"], **HERE)
    given = {name: layer.weight for name, layer in layers.items()}
    run = lb.run(layers, out=tmp_path / "run", bits=2, methods=["rtn", "gptq"], weights={"dense": given}, **HERE)
    for entry in run.entries:
        assert set(entry.methods) == {"rtn", "gptq", "dense"}
        assert entry.methods["dense"].given and not entry.methods["dense"].feasible
        np.testing.assert_allclose(entry.methods["dense"].errors, 0.0, atol=1e-12)
    other = {name: np.zeros_like(layer.weight) for name, layer in layers.items()}
    with pytest.raises(lb.LayerboundsError, match="another name"):
        lb.run(layers, out=tmp_path / "run", bits=2, weights={"dense": other}, **HERE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 3}, "other compressions"),
        ({"bits": 2, "granularity": "tensor"}, "other compressions"),
        ({"bits": 2, "seed": 1}, "another seed"),
        ({"bits": 2, "channels": [0]}, "other layers or channels"),
        ({"bits": 2, "layers": make_layers(seed=1)}, "other layers or channels"),
        ({"bits": 2, "layers": make_layers(2)}, "other layers or channels"),
    ],
)
def test_another_run_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arguments = {"layers": make_layers(), "out": tmp_path / "run", "bits": 2, "time_limit": 0.0, **HERE}
    first = lb.run(**arguments)
    with pytest.raises(lb.LayerboundsError, match=message):
        lb.run(**{**arguments, **change})
    assert same_intervals(first, lb.load_run(tmp_path / "run"))


def test_a_compression_that_a_layer_cannot_have_is_said(tmp_path: Path) -> None:
    run = lb.run(make_layers(), out=tmp_path / "run", bits=2, k=3, pattern="channel", time_limit=0.0, **HERE)
    refused = {entry.layer.name: entry.refused for entry in run.entries if entry.choice.name.startswith("pruned")}
    assert refused["block.0"] is None and "2" in str(refused["block.1"])
    assert run.complete
    with pytest.raises(lb.LayerboundsError, match="no layer can have"):
        lb.run(make_layers(1), out=tmp_path / "other", k=30, pattern="channel", **HERE)


def test_coupled_rows_and_groups(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    grams = np.stack([a @ a.T for a in rng.normal(size=(2, 4, 9))])
    layer = lb.Layer(rng.normal(size=(6, 4)), grams, "grouped")
    run = lb.run([layer], out=tmp_path / "run", density=0.5, pattern="column", channels=[0], **HERE)
    entry = run.entries[0]
    assert entry.sets == [[0, 1, 2]] and entry.layer.channels == [0, 1, 2]
    solution = lb.solve(lb.pruning_problem(layer, density=0.5, pattern="column"), channels=[0, 1, 2], jobs=1)
    assert entry.lower[0] <= solution.upper_bound[0] and solution.lower_bound[0] <= entry.upper[0]


def test_certificates_verify(tmp_path: Path) -> None:
    layers = make_layers(2)
    lb.run(layers, out=tmp_path / "run", bits=2, certificates=tmp_path / "proofs", **HERE)
    files = sorted((tmp_path / "proofs").iterdir())
    assert len(files) == 2
    for file in files:
        assert lb.verify(file, tmp_path / "run" / "layers.safetensors")


def test_pairs_at_equal_bits(tmp_path: Path) -> None:
    run = lb.run(
        make_layers(1),
        out=tmp_path / "run",
        bits=[2, 4, 8],
        density=[0.125, 0.5],
        pattern=["unstructured", "2:4", "1:4"],
        time_limit=0.0,
        methods=[],
        **HERE,
    )
    names = [
        (a.choice.name, b.choice.name)
        for a, b in ((run.grid[0][i], run.grid[0][j]) for i, j in equal_bits(run.grid[0]))
    ]
    assert names == [
        ("INT2", "pruned to density 0.125"),
        ("INT4", "pruned to 1:4"),
        ("INT8", "pruned to density 0.5"),
        ("INT8", "pruned to 2:4"),
    ]


def test_search_goes_where_an_allocation_depends_on_it(tmp_path: Path) -> None:
    run = lb.run(make_layers(), out=tmp_path / "run", bits=[2, 3, 4], time_limit=0.0, methods=[], **HERE)
    for entry in run.entries:
        entry.lower, entry.upper = entry.lower * 0, np.full(len(entry.sets), entry.layer.energy / len(entry.sets))
    settled = find_entry(run.entries, "block.0", "INT2")
    value = worth(run.grid, [3.0 + 16 / 4], alone=True)
    assert value[settled.number] >= 0 and max(value.values()) > 0
    # An option so bad that no allocation would take it is worth nothing.
    hopeless = find_entry(run.entries, "block.1", "INT2")
    hopeless.lower = hopeless.upper.copy() * 1e6
    hopeless.upper = hopeless.lower
    assert worth(run.grid, [3.0 + 16 / 4], alone=True)[hopeless.number] == 0.0


def test_sums_of_entries(tmp_path: Path) -> None:
    run = lb.run(make_layers(), out=tmp_path / "run", bits=2, **HERE)
    for entry in run.entries:
        low, high = entry.interval
        assert low <= entry.lower.sum() * (1 + 1e-12) and high >= entry.upper.sum() * (1 - 1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": [2, 2]},
        {},
        {"bits": 2, "joint": True},
        {"density": 2.0},
        {"pattern": "channel"},
        {"problems": ["pruned"]},
        {"bits": 2, "methods": ["magnitude"]},
        {"bits": 2, "total_time": 0},
        {"bits": 2, "channels": [7]},
        {"bits": 2, "parallel": "nowhere"},
        {"bits": 2, "weights": {"a": {"missing": np.zeros(3)}}},
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(lb.LayerboundsError) as caught:
        lb.run(make_layers(1), out=tmp_path / "run", **{**HERE, **wrong})
    assert "\n" not in str(caught.value)


def test_a_sample_says_what_it_is_about(tmp_path: Path) -> None:
    layers = make_layers()
    run = lb.run(layers, out=tmp_path / "run", bits=2, density=0.5, pattern="column", sample=2, methods=[], **HERE)
    whole = lb.run(layers, out=tmp_path / "whole", bits=2, density=0.5, pattern="column", methods=[], **HERE)
    drawn = {"block.1": [0, 1, 2, 3]}
    for entry, all_of_it in zip(run.entries, whole.entries, strict=True):
        # Columns are shared by all rows: what a draw meets is taken with all that it is bound to.
        assert entry.layer.channels == drawn.get(entry.layer.name, list(range(entry.layer.shape[0])))
        said = run.statement(entry)
        assert said is not None and whole.statement(all_of_it) is None
        assert said.certified[0] * entry.layer.whole_energy <= all_of_it.upper.sum() * (1 + 1e-9)
    quantized = lb.run(layers, out=tmp_path / "some", bits=2, sample=2, methods=[], **HERE)
    for entry in quantized.entries:
        said = quantized.statement(entry)
        assert said is not None and 1 <= len(entry.layer.channels) <= 2
        assert "certified" in str(said) and (said.sample.whole or "confidence" in str(said))
    again = lb.load_run(tmp_path / "some")
    assert [entry.layer.sample for entry in again.entries] == [entry.layer.sample for entry in quantized.entries]
