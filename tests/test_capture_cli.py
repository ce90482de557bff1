"""The commands capture and compress: models, weights and data from files, and what is said about wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.cli.main import main
from layerbounds.layers.files import load_layers

torch = pytest.importorskip("torch", reason="capture needs PyTorch")
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

FACTORY = """
import torch
from torch import nn


def build():
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))


def prepare(batch):
    return torch.from_numpy(batch / 255.0).float()


def fail(*arguments):
    raise ValueError("no luck")


number = 3
spare = nn.Linear(2, 2)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> Path:
    """A factory, its weights in several formats, and images in several formats."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_factory.py").write_text(FACTORY)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))
    state = model.state_dict()
    save_file(state, "w.safetensors")
    torch.save(state, "w.pt")
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, "parallel.pt")
    torch.save(model, "code.pt")
    save_file({**state, "more": torch.ones(2)}, "more.safetensors")
    save_file({"0.weight": state["0.weight"]}, "less.safetensors")
    save_file({**state, "3.bias": torch.ones(7)}, "shape.safetensors")
    images = rng.integers(0, 256, size=(20, 2, 6, 6), dtype=np.uint8)
    np.save("images.npy", images)
    np.savez("images.npz", first=images, second=images[:5])
    np.save("floats.npy", images / 255.0)
    save_file({"first": torch.from_numpy(images)}, "images.safetensors")
    Path("broken.npz").write_bytes(b"PK nothing")
    Path("words.txt").write_text("some words\n")
    return tmp_path


def run(*arguments: Any) -> int:
    return main([str(a) for a in arguments])


BASE = ["capture", "--model", "tiny_factory:build", "--out", "c.safetensors"]
IMAGES = ["--data", "images.npy", "--divide", "255"]


def test_capture_agrees_with_the_library(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(*BASE, "--weights", "w.safetensors", *IMAGES, "--mean", ".5,.4", "--std", ".2", "--batch-size", 7)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "2 layers: 21 kB of Gram matrices" in printed.err and "one pass over the batches" in printed.err
    assert "conv" not in printed.err and "3x2x3x3" in printed.out
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))
    model.load_state_dict(load_file("w.safetensors"))
    images = (np.load("images.npy") / 255.0 - np.array([0.5, 0.4])[:, None, None]) / 0.2
    expected = lb.capture(model, [torch.from_numpy(images.astype(np.float32))])
    layers = load_layers("c.safetensors")
    assert list(layers) == ["0", "3"]
    for name, layer in layers.items():
        np.testing.assert_allclose(layer.gram, expected[name].gram, rtol=1e-5, atol=1e-9)
        np.testing.assert_array_equal(layer.weight, expected[name].weight)
        assert layer.samples == expected[name].samples
    source = layers["0"].provenance["source"]
    assert source["weights"] == "w.safetensors" and len(source["weights_sha256"]) == 64
    assert source["data_samples"] == 20 and source["mean"] == ".5,.4"
    assert sorted(p.name for p in folder.iterdir() if "c.safe" in p.name) == ["c.safetensors"]


@pytest.mark.parametrize(
    "how",
    [
        ["--weights", "w.pt", *IMAGES],
        ["--weights", "parallel.pt", *IMAGES],
        ["--weights", "w.safetensors", "--data", "images.npz", "--key", "first", "--divide", "255"],
        ["--weights", "w.safetensors", "--data", "images.safetensors", "--divide", "255"],
        ["--weights", "w.safetensors", "--data", "floats.npy"],
        ["--weights", "w.safetensors", "--data", "images.npy", "--preprocess", "tiny_factory.py:prepare"],
        ["--weights", "w.safetensors", *IMAGES, "--memory-limit", "18.5kB", "--device", "cpu"],
    ],
)
def test_formats_give_the_same_layers(folder: Path, how: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*BASE, "--weights", "w.safetensors", *IMAGES) == 0
    plain = load_layers("c.safetensors")
    assert run("capture", "--model", "tiny_factory.py:build", "--out", "d.safetensors", *how) == 0
    for name, layer in load_layers("d.safetensors").items():
        np.testing.assert_allclose(layer.gram, plain[name].gram, rtol=1e-5, atol=1e-9)
    assert ("2 passes" in capsys.readouterr().err) == ("--memory-limit" in how)


def test_options_of_capture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = ["--weights", "w.safetensors"]
    quantized = ["--activation-bits", "4", "--activation-scheme", "static", "--activation-asymmetric"]
    assert run(*BASE, *weights, *IMAGES, "--layers", "0", "--limit", 3, *quantized, "--json", "-") == 0
    record = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in record["layers"]] == ["0"] and record["batches"] == 1 and record["passes"] == 1
    layer = load_layers("c.safetensors")["0"]
    assert layer.samples == 3 * 16 and layer.constant.any() and layer.provenance["activations"]["bits"] == 4
    state = load_file("w.safetensors")
    save_file({**state, "0.weight": state["0.weight"] + 0.1}, "other.safetensors")
    assert run(*BASE, *weights, *IMAGES, "--compressed-weights", "other.safetensors", "--dtype", "float32") == 0
    layers = load_layers("c.safetensors")
    assert not np.array_equal(layers["3"].target, layers["3"].matrix)
    np.testing.assert_array_equal(layers["0"].target, layers["0"].matrix)
    assert layers["3"].provenance["accumulated_in"] == "float32"
    assert "warning: layer '3' has 20 positions for 48 inputs" in capsys.readouterr().err


WEIGHTS = ["--weights", "w.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "tiny_factory", *IMAGES], "--model is 'tiny_factory'; write module:name"),
        (["--model", "absent:build", *IMAGES], "--model: importing absent failed (ModuleNotFoundError"),
        (["--model", "absent.py:build", *IMAGES], "absent.py does not exist"),
        (["--model", "tiny_factory:absent", *IMAGES], "tiny_factory has no 'absent'"),
        (["--model", "tiny_factory:fail", *IMAGES], "tiny_factory:fail() failed (ValueError: no luck)"),
        (["--model", "tiny_factory:number", *IMAGES], "tiny_factory:number() failed (TypeError"),
        (["--model", ".", *IMAGES], ". is a folder without config.json"),
        (["--weights", "absent.pt", *IMAGES], "absent.pt does not exist"),
        (["--weights", "code.pt", *IMAGES], "code.pt cannot be read as plain tensors"),
        (["--weights", "images.npy", *IMAGES], "images.npy cannot be read as a safetensors file"),
        (["--weights", "more.safetensors", *IMAGES], "more.safetensors has tensors that the model lacks: more"),
        (["--weights", "less.safetensors", *IMAGES], "less.safetensors lacks 0.bias, 3.weight, 3.bias"),
        (["--weights", "shape.safetensors", *IMAGES], "does not fit the model"),
        (["--data", "images.npy"], "the data are bytes, as images are stored"),
        (["--data", "absent.npy"], "absent.npy does not exist"),
        (["--data", "broken.npz"], "broken.npz cannot be read as an array"),
        (["--data", "images.npz"], "holds 2 arrays (first, second); choose one with --key"),
        (["--data", "images.npz", "--key", "third"], "there is no array in images.npz: 'third'"),
        (["--data", "floats.npy", "--key", "first"], "leave out --key"),
        (["--data", "words.txt"], "needs the tokenizer of a model directory"),
        ([*IMAGES, "--mean", "1,2,3"], "mean has 3 values for data of shape (20, 2, 6, 6)"),
        ([*IMAGES, "--std", "0"], "divide and std must not be zero"),
        ([*IMAGES, "--std", "a"], "--std is 'a'; write numbers separated by commas"),
        ([*IMAGES, "--preprocess", "tiny_factory:prepare"], "pass either --preprocess or"),
        (["--data", "images.npy", "--preprocess", "tiny_factory:fail"], "--preprocess failed on batch 0"),
        ([*IMAGES, "--limit", "0"], "the limit is 0"),
        ([*IMAGES, "--batch-size", "0"], "the batch size is 0"),
        ([*IMAGES, "--layers", "conv9"], "there is no layer 'conv9'"),
        ([*IMAGES, "--memory-limit", "much"], "memory_limit is 'much'"),
        ([*IMAGES, "--dtype", "int8"], "accumulate in float64 or float32"),
        ([*IMAGES, "--activation-bits", "1"], "pass 2 to 8"),
        ([*IMAGES, "--out", "absent/c.safetensors"], "the folder absent does not exist"),
        (["--model", "tiny_factory:spare", *IMAGES], "the model failed (RuntimeError: mat1 and mat2"),
    ],
)
def test_wrong_input_gets_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(*BASE, *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and words in error
    assert not list(folder.glob("c.safetensors*"))


def test_compress_writes_weights_that_fit_the_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compress", "--model", "tiny_factory:build", *WEIGHTS, *IMAGES, "--out", "q.safetensors"]
    assert run(*command, "--bits", 3, "--bias", "refit", "--json", "q.json") == 0
    printed = capsys.readouterr()
    assert "q.safetensors · gptq" in printed.out and "lower %" in printed.out
    record = json.loads(Path("q.json").read_text())
    assert [row["layer"] for row in record["layers"]] == ["0", "3"]
    for row in record["layers"]:
        assert 0 <= row["relative_lower_bound"] <= row["relative_error"]
    state = load_file("q.safetensors")
    dense = load_file("w.safetensors")
    assert state.keys() == dense.keys()
    for name in ("0", "3"):
        rows = state[f"{name}.weight"].flatten(1)
        assert all(len(row.unique()) <= 8 for row in rows)
        assert not torch.equal(state[f"{name}.bias"], dense[f"{name}.bias"])
    # What was written can be read as weights again.
    assert run(*BASE, "--weights", "q.safetensors", *IMAGES) == 0
    assert run(*command, "--pattern", "2:4", "--method", "wanda", "--mask-only", "--no-intervals", "--independent") == 0
    kept = load_file("q.safetensors")["3.weight"].reshape(4, 12, 4)
    assert torch.all((kept != 0).sum(-1) <= 2)
    assert run(*command, "--bits", 4, "--pattern", "2:4", "--no-intervals", "--json", "both.json") == 0
    assert json.loads(Path("both.json").read_text())["method"] == "obc"
    both = load_file("q.safetensors")["3.weight"].reshape(4, 12, 4)
    assert torch.all((both != 0).sum(-1) <= 2)
    assert all(len(row.unique()) <= 16 for row in both.flatten(1))
    assert run(*command) == 2
    assert "pass bits to quantize, density or pattern to prune, or both" in capsys.readouterr().err


def test_solve_with_a_refitted_bias(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["solve", "--layer", "conv1", "--bits", 3, "--channels", "0:1", "--time-limit", 5, "--json", "-"]
    upper = {}
    for bias in ("keep", "refit"):
        assert run(*command, "--bias", bias) == 0
        record = json.loads(capsys.readouterr().out)
        upper[bias] = record["channels"][0]["upper_bound"]
        assert ("bias re-fitted" in record["problem"]["allowed"]) == (bias == "refit")
    assert 0 < upper["refit"] <= upper["keep"]
    assert run(*command, "--bias", "free") == 2
    assert "choose 'keep' or 'refit'" in capsys.readouterr().err


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    from layerbounds.capturing.loading import load_weights, save_state

    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return model

    first, second = tied(), tied()
    save_state(tmp_path / "w.safetensors", first.state_dict(), ["0"])
    assert "1.weight" not in load_file(tmp_path / "w.safetensors")
    load_weights(second, tmp_path / "w.safetensors")
    assert torch.equal(second[1].weight, first[1].weight)


@pytest.mark.slow
def test_resnet20_agrees_with_the_reference_grams(
    reference_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "capture.safetensors"
    names = ["layer2.1.conv1", "layer3.2.conv2", "linear"]
    layers = [part for name in names for part in ("--layers", name)]
    scaling = ["--divide", "255", "--mean", ".485,.456,.406", "--std", ".229,.224,.225"]
    data = ["--data", reference_data / "cifar10_subset.npz", "--key", "calib_images", *scaling]
    model = ["--model", f"{EXAMPLES / 'resnet20.py'}:resnet20"]
    weights = ["--weights", reference_data / "resnet20_cifar10.safetensors"]
    assert run("capture", *model, *weights, *data, *layers, "--out", path, "--batch-size", 128) == 0
    captured, reference = load_layers(path), load_layers(reference_data / "resnet20_layers.safetensors")
    assert list(captured) == names
    for name, layer in captured.items():
        expected = reference[name]
        np.testing.assert_array_equal(layer.weight, expected.weight)
        assert np.abs(layer.gram - expected.gram).max() <= 1e-6 * np.abs(expected.gram).max()
        assert layer.gram_reports[0].dead == expected.gram_reports[0].dead
    assert run("solve", "--input", path, "--layer", "linear", "--bits", 3, "--channels", "0:1", "--time-limit", 5) == 0
    assert "linear: 1 of 1 channel proven optimal" in capsys.readouterr().out


def test_capture_help_lists_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("capture", "--help") == 0
    assert "--memory-limit" in capsys.readouterr().out


# --- weights from elsewhere ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "wrap", "said"),
    [
        ("", None, ""),
        ("module.", None, "'module.' was taken off"),
        ("model.", None, "'model.' was taken off"),
        ("module.model.", None, "'module.model.' was taken off"),
        ("_orig_mod.", None, "'_orig_mod' was taken out"),
        ("_orig_mod.module.", None, "'module.' was taken off"),
        ("", "state_dict", "those of its entry 'state_dict'"),
        ("", "model", "those of its entry 'model'"),
        ("module.", "model_state_dict", "'module.' was taken off"),
        ("_fsdp_wrapped_module.", "model.state_dict", "those of its entry 'model.state_dict'"),
    ],
)
def test_names_and_dicts_around_a_state_dict(
    folder: Path, prefix: str, wrap: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_file("w.safetensors")
    content: Any = {f"{prefix}{key}": value for key, value in state.items()}
    if wrap is None:
        save_file(content, "foreign.safetensors")
    for part in reversed(wrap.split(".") if wrap else []):
        content = {part: content, "epoch": 3, "optimizer": {"state": {}, "param_groups": [1]}}
    torch.save(content, "foreign.pt")
    for path in ["foreign.pt"] if wrap else ["foreign.pt", "foreign.safetensors"]:
        assert run(*BASE, "--weights", path, *IMAGES) == 0
        assert (f"note: {path}: " in capsys.readouterr().err) == bool(said)
        layers = load_layers("c.safetensors")
        np.testing.assert_array_equal(layers["3"].weight, state["3.weight"].numpy())
        assert said in "; ".join(layers["3"].provenance["source"].get("weights_notes", []))


def test_wrapped_models_take_plain_state_dicts(tmp_path: Path) -> None:
    from layerbounds.capturing.loading import load_weights

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))

    outer = Outer()
    state = {k: v for k, v in outer.model.state_dict().items() if k != "1.num_batches_tracked"}
    state["0.weight"] = torch.ones(3, 2, dtype=torch.bfloat16)
    save_file({**state, "position_ids": torch.arange(3)}, tmp_path / "w.safetensors")
    notes = load_weights(outer, tmp_path / "w.safetensors")
    assert torch.equal(outer.model[0].weight, torch.ones(3, 2))
    assert notes == ["'model.' was put before the names", "position_ids is not used"]
    # What a module converts itself is its own affair: weight normalisation knows its older names.
    plain = nn.Linear(2, 3)
    older = {"weight_v": plain.weight.detach(), "weight_g": torch.ones(3, 1), "bias": torch.zeros(3)}
    save_file({f"module.{key}": value for key, value in older.items()}, tmp_path / "w.safetensors")
    normalised = nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))
    load_weights(normalised, tmp_path / "w.safetensors")
    torch.testing.assert_close(normalised.weight, nn.functional.normalize(plain.weight))
    parallel = nn.DataParallel(nn.Linear(2, 3))
    save_file({"_orig_mod.weight": torch.ones(3, 2), "_orig_mod.bias": torch.ones(3)}, tmp_path / "w.safetensors")
    load_weights(parallel, tmp_path / "w.safetensors")
    assert torch.equal(parallel.module.weight, torch.ones(3, 2))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:TypedStorage is deprecated")
def test_weights_that_are_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = load_file("w.safetensors")
    weight = state["0.weight"]
    cases: list[tuple[Any, str]] = [
        ({**state, "0.weight": weight.to(torch.int8)}, "tensor '0.weight' is of type I8"),
        ({**state, "0.weight": weight.to(torch.bool)}, "tensor '0.weight' is of type BOOL"),
        ({**state, "0.weight": weight.to_sparse()}, "of type sparse_coo"),
        ({**state, "0.weight": torch.quantize_per_tensor(weight, 0.1, 0, torch.quint8)}, "of type quint8"),
        ({**state, "0.weight": weight.to("meta")}, "of type meta, without values"),
        ({**state, "0.weight": weight.to(torch.complex64)}, "of type complex64"),
        ({**state, "0.weight": weight / 0}, "tensor '0.weight' holds NaN or infinite values"),
        (
            {**state, "0.weight": weight.to(torch.float8_e4m3fn), "0.weight_scale": torch.ones(1)},
            "has to be scaled by '0.weight_scale'",
        ),
        (
            {f"other.{key}": value for key, value in state.items()},
            "3.bias and has tensors that the model lacks: other.",
        ),
        ({**state, "_orig_mod.0.weight": weight}, "has several tensors that the model knows by one name"),
        ({"state_dict": state, "model": state}, "holds several state dicts (state_dict, model)"),
        ({"optimizer": {"state": {}}}, "holds no state dict"),
        ([weight], "holds no state dict"),
        (weight, "holds no state dict"),
        ({}, "holds no state dict"),
        ({**state, "0.weight": "text"}, "holds no state dict"),
    ]
    for content, words in cases:
        torch.save(content, "odd.pt")
        assert run(*BASE, "--weights", "odd.pt", *IMAGES) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: odd.pt") and words in error
    save_file({**state, "0.weight": weight.to(torch.float8_e5m2)}, "narrow.safetensors")
    assert run(*BASE, "--weights", "narrow.safetensors", *IMAGES) == 0
    np.testing.assert_array_equal(
        load_layers("c.safetensors")["0"].weight, weight.to(torch.float8_e5m2).float().numpy()
    )
    whole = Path("w.pt").read_bytes()
    for keep in range(0, len(whole), 509):
        Path("cut.pt").write_bytes(whole[:keep])
        assert run(*BASE, "--weights", "cut.pt", *IMAGES) == 2
        assert "error: cut.pt cannot be read as plain tensors" in capsys.readouterr().err


def test_models_with_extra_state(tmp_path: Path) -> None:
    from layerbounds.capturing.loading import load_weights, save_state
    from layerbounds.capturing.targets import CaptureWarning

    class Counting(nn.Linear):
        count = 1

        def get_extra_state(self) -> Any:
            return {"count": self.count}

        def set_extra_state(self, state: Any) -> None:
            self.count = state["count"]

    first, second = Counting(2, 2), Counting(2, 2)
    first.count = 5
    torch.save({f"module.{key}": value for key, value in first.state_dict().items()}, tmp_path / "w.pt")
    load_weights(second, tmp_path / "w.pt")
    assert second.count == 5 and torch.equal(first.weight, second.weight)
    with pytest.warns(CaptureWarning, match="cannot hold _extra_state"):
        save_state(tmp_path / "w.safetensors", first.state_dict(), [])
    third = Counting(2, 2)
    load_weights(third, tmp_path / "w.safetensors")
    assert third.count == 1 and torch.equal(first.weight, third.weight)


def test_models_on_the_meta_device(folder: Path) -> None:
    from layerbounds.capturing.loading import load_weights
    from layerbounds.exceptions import InputError

    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).to("meta")
    with pytest.raises(InputError, match="on the meta device, where nothing can be loaded"):
        load_weights(model, folder / "w.safetensors")


def test_damaged_arrays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("number.npy", np.float64(3.0))
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("number.npy", "objects.npy"):
        assert run(*BASE, "--data", name) == 2
        assert "error: " in capsys.readouterr().err
    for name in ("images.npz", "images.npy", "images.safetensors"):
        whole = Path(name).read_bytes()
        for keep in range(0, len(whole), len(whole) // 7):
            path = Path(f"cut{Path(name).suffix}")
            path.write_bytes(whole[:keep])
            assert run(*BASE, "--data", path, "--divide", 255, *(["--key", "second"] if "npz" in name else [])) == 2
            error = capsys.readouterr().err
            assert "error: " in error and str(path) in error
    for wrong in (["--mean", "nan"], ["--std", "inf"], ["--divide", "nan"]):
        assert run(*BASE, *IMAGES, *wrong) == 2
        assert "finite numbers" in capsys.readouterr().err
    Path("leaves.py").write_text("import sys\nsys.exit(0)\n")
    assert run("capture", "--model", "leaves.py:build", "--out", "c.safetensors", *IMAGES) == 2
    assert "importing leaves.py failed (SystemExit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "x.npy", "--activation-asymmetric"], "pass --activation-bits, too"),
        (["--data", "x.npy", "--activation-scheme", "static"], "pass --activation-bits, too"),
        (["--data", "x.npy", "--max-tokens", "7"], "--max-tokens is about text, and x.npy is read as an array"),
        (["--data", "x.txt", "--divide", "2"], "--divide is about arrays, and x.txt is read as text"),
        (["--data", "x.txt", "--key", "a"], "--key is about arrays"),
    ],
)
def test_options_without_effect(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.ones((4, 3)))
    Path("x.txt").write_text("text", encoding="utf-8")
    assert main(["capture", "--model", "none:none", "--out", "out.safetensors", *words]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out.safetensors").exists()
