"""Allocation of the bits of a run, from Python and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.cli.main import main
from layerbounds.exceptions import FileFormatError, InputError
from layerbounds.network.allocate import allocation_front, layer_options
from layerbounds.problems.layer_bits import layer_bits


@pytest.fixture(scope="module")
def layers() -> dict[str, lb.Layer]:
    rng = np.random.default_rng(3)
    found = {}
    for number, shape in enumerate([(4, 6), (3, 2, 2, 2), (2, 5)]):
        n = int(np.prod(shape[1:]))
        inputs = rng.normal(size=(50, n)) @ rng.normal(size=(n, n))
        found[f"block.{number}"] = lb.Layer(rng.normal(size=shape), inputs.T @ inputs / 50, f"block.{number}")
    return found


@pytest.fixture(scope="module")
def run(layers: dict[str, lb.Layer], tmp_path_factory: pytest.TempPathFactory) -> lb.NetworkRun:
    return lb.run(
        layers, out=tmp_path_factory.mktemp("allocated") / "run", bits=[2, 3, 4], density=0.5,
        pattern=["unstructured", "2:4"], methods=[], time_limit=0.0, parallel="threads", jobs=1,
    )  # fmt: skip


def test_options_are_those_of_the_run(run: lb.NetworkRun, layers: dict[str, lb.Layer]) -> None:
    for table, layer in zip(layer_options(run, dense=True), layers.values(), strict=True):
        assert [option.name for option in table.options] == [*(c.name for c in run.choices), "16 bits"]
        assert table.options[0].storage == layer_bits(lb.quantization_problem(layer, 2))
        assert table.options[-1].storage == 16 * layer.weight.size and table.options[-1].upper == 0.0
        assert table.scale == pytest.approx(1.0 / layer.energy().sum())
        assert table.options[3].expressible["density"] == 0.5
        assert table.options[4].expressible["pattern"] == "2:4"


def test_allocations(run: lb.NetworkRun) -> None:
    found = lb.allocate(run, 7.0)
    assert found.storage <= 7.0 * found.weights
    assert 0 < found.best[0] <= found.best[1] <= found.error[1]
    assert found.regret <= found.error[1] - found.best[0]
    again = lb.allocate(run.folder.path, 7.0)
    assert again.choices == found.choices and again.to_dict() == found.to_dict()
    assert "masks (bitmap)" in found.convention and "relative" in found.objective
    assert "7 bits per weight" in found.statement()
    # A layer that does not count gets what is smallest, or lets it be.
    energies = {layer.name: layer.energy for layer in run.layers}
    absolute = lb.allocate(run, 7.0, weights_of="uniform")
    given = lb.allocate(run, 7.0, weights_of=energies)
    assert given.best == pytest.approx(absolute.best, rel=1e-9)
    assert lb.allocate(run, 16.0, dense=True).error == (0.0, 0.0)
    assert lb.allocate(run, 7.0, weights_of=dict.fromkeys(energies, 0)).regret == 0.0
    points = allocation_front(run)
    assert points[-1].upper <= found.best[1] * (1 + 1e-12) <= points[0].upper


def test_weights_of_layers_in_files(run: lb.NetworkRun, tmp_path: Path) -> None:
    table, record = tmp_path / "weights.csv", tmp_path / "weights.json"
    numbers = {"block.0": 2.0, "block.1": 1.0, "block.2": 0.5}
    table.write_text("layer,weight\n" + "".join(f"{k},{v}\n\n" for k, v in numbers.items()))
    record.write_text(json.dumps(numbers))
    expected = lb.allocate(run, 7.0, weights_of=numbers).to_dict()
    assert lb.allocate(run, 7.0, weights_of=table).to_dict() == expected
    assert lb.allocate(run, 7.0, weights_of=str(record)).to_dict() == expected
    for text, words in {
        "block.0,1\n": "layer 'block.1' has no weight",
        "block.0,1\nblock.0,2\n": "twice",
        "a,b\nblock.0;1\n": "no layer,weight",
        "block.9,1\n": "no layer 'block.9'",
        "{": "no JSON",
        '{"block.0": "x"}': "weight of layer 'block.0'",
        "block.0,-1\n": "weight of layer 'block.0'",
    }.items():
        table.write_text(text)
        with pytest.raises(InputError, match=words):
            lb.allocate(run, 7.0, weights_of=table)
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileFormatError, match="UTF-8"):
        lb.allocate(run, 7.0, weights_of=table)
    with pytest.raises(InputError, match="cannot read"):
        lb.allocate(run, 7.0, weights_of=tmp_path / "absent")
    with pytest.raises(InputError, match="less than the smallest"):
        lb.allocate(run, 0.5)


def test_somebody_elses_allocation(run: lb.NetworkRun, tmp_path: Path) -> None:
    file = tmp_path / "quantize_config.json"
    file.write_text(json.dumps({"bits": 3, "group_size": -1, "dynamic": {r"+:block\.1": {"bits": 4}}}))
    scored = lb.score_allocation(run, file, "gptqmodel")
    assert scored.choices == {"block.0": "INT3", "block.1": "INT4", "block.2": "INT3"}
    best = lb.allocate(run, scored.bits_per_weight * (1 + 1e-12))
    assert scored.best == pytest.approx(best.best) and best.regret <= scored.regret
    assert scored.error[1] - scored.best[1] <= scored.regret * (1 + 1e-9)
    generous = lb.score_allocation(run, file, "gptqmodel", budget=16.0)
    assert generous.regret >= scored.regret
    with pytest.raises(InputError, match="more than the"):
        lb.score_allocation(run, file, "gptqmodel", budget=5.0)


def test_the_command(run: lb.NetworkRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = str(run.folder.path), tmp_path / "dynamic.json"
    assert main(["allocate", folder, "--budget", "4.5", "--front", "--export", f"gptqmodel:{file}"]) == 0
    shown = capsys.readouterr().out
    assert "bits per weight" in shown and "block.1" in shown and "INT2 for all layers" in shown
    assert "masks (bitmap)" in shown and "least error" in shown
    out = tmp_path / "record.json"
    assert main(["allocate", folder, "--json", str(out), "--score", f"gptqmodel:{file}", "--budget", "9"]) == 0
    assert "dynamic.json (gptqmodel)" in capsys.readouterr().out
    record = json.loads(out.read_text())
    assert record["allocation"]["budget"] == pytest.approx(9, rel=0.02)
    assert record["scores"][0]["allocation"]["regret"] >= 0
    for options, words in {
        ("--budget", "0.1"): "less than the smallest",
        ("--export", "gptqmodel"): "write TOOL:FILE",
        ("--export", "other:x"): "there is no format",
        ("--score", f"gptqmodel:{tmp_path / 'absent'}"): "cannot read",
        ("--export", f"llama.cpp:{tmp_path / 'x'}"): "llama.cpp cannot express",
        ("--export", f"gptqmodel:{file}", "--score", f"gptqmodel:{file}"): "choose another name",
    }.items():
        assert main(["allocate", folder, "--budget", "6", *options]) == 2
        assert words in capsys.readouterr().err
    assert main(["allocate", str(tmp_path / "nothing")]) == 2


def test_search_where_the_regret_comes_from(layers: dict[str, lb.Layer], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    lb.run(layers, out=folder, bits=[2, 3, 4], methods=[], time_limit=0.0, parallel="threads", jobs=1)
    before = lb.allocate(folder, 4.5)
    assert (
        main(["allocate", str(folder), "--budget", "4.5", "--refine", "0.5s", "--json", str(tmp_path / "o.json")]) == 0
    )
    after = lb.allocate(folder, 4.5)
    assert after.regret <= before.regret
    assert before.best[0] <= after.best[0] <= after.best[1] <= before.best[1]
