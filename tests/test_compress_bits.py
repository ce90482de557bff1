"""Bits for each layer of a model: patterns, files of other tools, what stays as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import layerbounds as lb
from layerbounds.cli.bits import parse_choices
from layerbounds.exceptions import InputError

torch = pytest.importorskip("torch", reason="compression of models needs PyTorch")
from torch import Tensor, nn  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:layer .* positions for")


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()


@pytest.fixture
def batches() -> list[Tensor]:
    return [torch.randn(40, 6, dtype=torch.float64)]


def levels(model: nn.Module, name: str) -> int:
    """The most values in a row of a layer."""
    return max(len(row.unique()) for row in model.get_submodule(name).weight.detach())


def test_the_first_pattern_counts_and_the_rest_stays(model: nn.Sequential, batches: list[Tensor]) -> None:
    bits = {"re:2": 16, "0": {"bits": 1, "granularity": "tensor"}, "[02]": 3}
    result = lb.compress(model, batches, bits=bits, intervals=False)
    assert list(result.layers) == ["0"] and result.left == {"2": "as asked", "4": "bits name nothing for it"}
    assert len(result.model[0].weight.detach().abs().unique()) == 1
    assert torch.equal(result.model[2].weight, model[2].weight)
    assert torch.equal(result.model[4].weight, model[4].weight)


def test_layers_of_several_kinds(model: nn.Sequential, batches: list[Tensor]) -> None:
    bits: dict[str, Any] = {
        "0": {"bits": 2, "symmetric": False},
        "2": {"bits": None, "pattern": "2:4"},
        "4": {"bits": 3, "density": 0.5},
    }
    model[2] = nn.Linear(8, 4).double()
    model[0] = nn.Linear(6, 8).double()
    result = lb.compress(model, batches, bits=bits, granularity=3, intervals=False)
    assert result.method == "gptq, obs, obc"
    assert [outcome.allowed.split(" ")[0] for outcome in result.layers.values()] == ["2-bit", "pruning", "joint"]
    assert levels(result.model, "0") <= 8 and levels(result.model, "2") > 4
    assert all(int((row != 0).sum()) <= 2 for row in result.model[4].weight)


def test_a_file_of_another_tool_chooses(model: nn.Sequential, batches: list[Tensor], tmp_path: Path) -> None:
    file = tmp_path / "quantize_config.json"
    rules = {"+:^0$": {"bits": 3, "group_size": 2, "sym": True}, "-:^2$": {}}
    file.write_text(json.dumps({"bits": 2, "group_size": -1, "sym": False, "dynamic": rules}))
    result = lb.compress(model, batches, bits=f"gptqmodel:{file}", intervals=False)
    assert [outcome.allowed for outcome in result.layers.values()] == [
        "3-bit symmetric per group of 2, mse",
        "2-bit asymmetric per channel, mse",
    ]
    assert result.left == {"2": "as asked"}


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        ({}, "an empty mapping"),
        ({"0": 16, "2": None}, "leave all layers as they are"),
        ({"0": 9}, "bits"),
        ({0: 4}, "has? the key|have the key 0"),
        ({"0": {"bit": 4}}, "say 'bit'; did you mean bits\\? choose bits, granularity"),
        ({"0": {"bits": 4, "range": "ms"}}, "ms"),
        ({"0": {"bits": 4, "granularity": "rows"}}, "granularity is 'rows'"),
        ({"0": 4, "7": 3}, "there is no layer '7'"),
        ("4", "pass a number, a mapping"),
        ("gguf:file", "there is no format 'gguf'"),
        ("gptqmodel:absent.json", "cannot read"),
    ],
)
def test_wrong_bits_cost_no_run_of_the_model(
    model: nn.Sequential, batches: list[Tensor], bits: Any, words: str
) -> None:
    model.forward = None  # type: ignore[method-assign, assignment]
    with pytest.raises(InputError, match=words):
        lb.compress(model, batches, bits=bits)


def test_choices_of_the_command_line() -> None:
    assert parse_choices(None) is None and parse_choices(["4"]) == 4
    assert parse_choices(["llm-compressor:a.yaml"]) == "llm-compressor:a.yaml"
    assert parse_choices(["3/32/asymmetric"]) == {"*": {"bits": 3, "granularity": 32, "symmetric": False}}
    assert parse_choices(["2", r"re:.*(a|b){1,2}=4/channel", "lm_head=16"]) == {
        r"re:.*(a|b){1,2}": {"bits": 4, "granularity": "channel"},
        "lm_head": 16,
        "*": 2,
    }
    for texts in (["a"], ["4", "3"], ["a=4", "a=3"], ["a=4/x"], ["a=4/3/3"], ["*=4", "3"], ["a="]):
        with pytest.raises(InputError, match="bits"):
            parse_choices(texts)
