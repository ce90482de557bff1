"""Layer files: what is written is read again, and what cannot be read is explained."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from layerbounds.arrays import Float
from layerbounds.exceptions import FileFormatError, InputError, UnknownNameError
from layerbounds.layers.files import find_layer, load_layers, save_layers
from layerbounds.layers.layer import Layer
from layerbounds.layers.layer_file import SCHEMA_KEY

MakeGram = Callable[..., Float]


@pytest.fixture
def layers(rng: np.random.Generator, random_gram: MakeGram) -> dict[str, Layer]:
    """Three layers whose order is not the alphabetical one: a plain, a grouped and a fully furnished one."""
    made = [
        Layer(rng.normal(size=(2, 3, 2, 2)).astype(np.float32), random_gram(12), "net.stem", samples=48),
        Layer(rng.normal(size=(4, 5)), np.stack([random_gram(5), random_gram(5)]), "net.grouped"),
        Layer(
            rng.normal(size=(3, 4)),
            random_gram(4),
            "head",
            target=rng.normal(size=(3, 4)),
            constant=[0.0, 0.25, 1.5],
            input_mean=rng.normal(size=4),
            samples=16,
            provenance={"model": "tiny", "images": 16},
        ),
    ]
    return {layer.name: layer for layer in made}


def assert_same(first: Layer, second: Layer) -> None:
    assert first.name == second.name
    assert first.weight.dtype == second.weight.dtype
    assert first.samples == second.samples
    assert first.provenance == second.provenance
    for key in ("weight", "gram", "target", "constant"):
        np.testing.assert_array_equal(getattr(first, key), getattr(second, key))
    if first.input_mean is None:
        assert second.input_mean is None
    else:
        np.testing.assert_array_equal(first.input_mean, second.input_mean)


def test_round_trip(layers: dict[str, Layer], tmp_path: Path) -> None:
    save_layers(tmp_path / "layers.safetensors", layers)
    loaded = load_layers(tmp_path / "layers.safetensors")
    assert list(loaded) == ["net.stem", "net.grouped", "head"]
    for name, layer in layers.items():
        assert_same(layer, loaded[name])


def test_projected_gram_is_stored_as_it_is_used(random_gram: MakeGram, tmp_path: Path) -> None:
    gram = random_gram(6, rank=3)
    layer = Layer(np.ones((1, 6)), gram - 1e-7 * np.linalg.eigvalsh(gram)[-1] * np.eye(6))
    assert layer.gram_reports[0].projected
    save_layers(tmp_path / "layers.safetensors", [layer])
    np.testing.assert_array_equal(load_layers(tmp_path / "layers.safetensors")["layer"].gram, layer.gram)


def test_the_file_follows_the_schema(layers: dict[str, Layer], tmp_path: Path) -> None:
    save_layers(tmp_path / "layers.safetensors", layers.values())
    with safe_open(str(tmp_path / "layers.safetensors"), framework="np") as handle:
        shapes = {key: tuple(handle.get_slice(key).get_shape()) for key in handle.keys()}  # noqa: SIM118
        metadata = handle.metadata()
    assert shapes == {
        "net.stem.weight": (2, 3, 2, 2),
        "net.stem.gram": (12, 12),
        "net.grouped.weight": (4, 5),
        "net.grouped.gram": (2, 5, 5),
        "head.weight": (3, 4),
        "head.gram": (4, 4),
        "head.target": (3, 4),
        "head.constant": (3,),
        "head.input_mean": (4,),
    }
    assert metadata[SCHEMA_KEY] == "1"
    assert json.loads(metadata["layers"])["head"] == {"samples": 16, "provenance": {"model": "tiny", "images": 16}}


def test_unused_tensors_are_ignored(tmp_path: Path) -> None:
    tensors = {
        "a.weight": np.ones((2, 3)),
        "a.gram": np.eye(3),
        "a.scale_3bit": np.full(2, np.nan),
        "b.weight": np.full((2, 3), np.nan),
        "c.gram": np.eye(3),
        "images": np.zeros((2, 2), dtype=np.uint8),
    }
    save_file(tensors, tmp_path / "foreign.safetensors")
    assert list(load_layers(tmp_path / "foreign.safetensors")) == ["a"]


def test_types_that_numpy_does_not_know(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="only PyTorch can write bfloat16")
    from safetensors.torch import save_file as save_tensors

    path = tmp_path / "half.safetensors"
    weight = torch.randn(2, 3)
    for kind in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        save_tensors({"a.weight": weight.to(kind), "a.gram": torch.eye(3)}, path)
        loaded = load_layers(path)["a"].weight
        assert loaded.dtype == np.float32
        np.testing.assert_array_equal(loaded, weight.to(kind).float().numpy())
    codes = {"a.weight": weight.to(torch.float8_e4m3fn), "a.weight_scale": torch.ones(1), "a.gram": torch.eye(3)}
    for kind in (torch.float8_e4m3fn, torch.int8):
        save_tensors({**codes, "a.weight": weight.to(kind)}, path)
        with pytest.raises(FileFormatError, match=r"has to be scaled by 'a\.weight_scale'"):
            load_layers(path)
    save_tensors({"a.weight": weight.to(torch.complex64), "a.gram": torch.eye(3)}, path)
    with pytest.raises(FileFormatError, match="of type C64"):
        load_layers(path)


def test_flat_weights_get_their_shape_from_the_metadata(tmp_path: Path) -> None:
    tensors = {"a.weight": np.arange(24.0).reshape(2, 12), "a.gram": np.eye(12)}
    save_file(tensors, tmp_path / "flat.safetensors", {"weight_shapes": json.dumps({"a": [2, 3, 2, 2]})})
    assert load_layers(tmp_path / "flat.safetensors")["a"].weight.shape == (2, 3, 2, 2)
    for useless in ([2, 13], "wide", [2, -1, 12], [2.0, 12.0]):
        save_file(tensors, tmp_path / "flat.safetensors", {"weight_shapes": json.dumps({"a": useless})})
        assert load_layers(tmp_path / "flat.safetensors")["a"].weight.shape == (2, 12)


def test_reference_layers_are_read_as_they_are(reference_data: Path) -> None:
    loaded = load_layers(reference_data / "resnet20_layers.safetensors")
    assert {name: layer.weight.shape for name, layer in loaded.items()} == {
        "linear": (10, 64),
        "layer1.0.conv1": (16, 16, 3, 3),
        "layer2.1.conv1": (32, 32, 3, 3),
        "layer3.2.conv2": (64, 64, 3, 3),
    }
    dead = {name: layer.gram_reports[0].dead for name, layer in loaded.items()}
    assert dead == {"linear": 0, "layer1.0.conv1": 18, "layer2.1.conv1": 9, "layer3.2.conv2": 9}


def test_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(FileFormatError, match="does not exist or is not a file"):
            load_layers(path)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_file(layers: dict[str, Layer], tmp_path: Path, keep: int) -> None:
    path = tmp_path / "layers.safetensors"
    save_layers(path, layers)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FileFormatError, match="truncated or of another format"):
        load_layers(path)


def test_foreign_file(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    np.savez(path, weight=np.ones(3))
    with pytest.raises(FileFormatError, match="truncated or of another format"):
        load_layers(path)


def test_file_without_layers(tmp_path: Path) -> None:
    save_file({"a.weight": np.ones((2, 3))}, tmp_path / "model.safetensors")
    with pytest.raises(FileFormatError, match="holds no layer"):
        load_layers(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({SCHEMA_KEY: "3"}, "has layer-file schema 3, this version reads up to 2"),
        ({SCHEMA_KEY: "new"}, "has layer-file schema new"),
        ({"layers": "{"}, "'layers' is not valid JSON"),
        ({"layers": "[1, 2]"}, "'layers' is not a JSON object"),
        ({"layers": '{"a": 3}'}, "the metadata of layer 'a'"),
        ({"layers": '{"a": {"provenance": "me"}}'}, "the metadata of layer 'a'"),
        ({"layers": '{"a": {"samples": -1}}'}, "samples is -1"),
        ({"weight_shapes": "7"}, "'weight_shapes' is not a JSON object"),
    ],
)
def test_wrong_metadata(tmp_path: Path, metadata: dict[str, str], words: str) -> None:
    save_file({"a.weight": np.ones((2, 3)), "a.gram": np.eye(3)}, tmp_path / "odd.safetensors", metadata)
    with pytest.raises(InputError, match=words):
        load_layers(tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"gram": np.diag([1.0, np.nan, 1.0])}, "'a': gram holds 1 NaN"),
        ({"weight": np.array([[1.0, np.inf, 0.0]])}, "'a': weight holds 1 NaN or infinite"),
        ({"gram": np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])}, "'a': gram is not symmetric"),
        ({"gram": -np.eye(3)}, "'a': gram is not positive semidefinite"),
        ({"gram": np.eye(4)}, "'a': gram has shape"),
    ],
)
def test_errors_in_layers_name_the_layer(tmp_path: Path, tensors: dict[str, Float], words: str) -> None:
    content = {"weight": np.ones((1, 3)), "gram": np.eye(3)} | tensors
    save_file({f"a.{key}": value for key, value in content.items()}, tmp_path / "odd.safetensors")
    with pytest.raises(InputError, match=words):
        load_layers(tmp_path / "odd.safetensors")


def test_names_must_differ(small_layer: Layer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two layers are called 'small'"):
        save_layers(tmp_path / "layers.safetensors", [small_layer, small_layer])
    with pytest.raises(InputError, match="no layers to save"):
        save_layers(tmp_path / "layers.safetensors", [])
    assert list(tmp_path.iterdir()) == []


def test_saving_is_atomic(small_layer: Layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "layers.safetensors"
    save_layers(path, [small_layer])
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("layerbounds.layers.files._write_safetensors", fail)
    with pytest.raises(InputError, match="disk full"):
        save_layers(path, [small_layer])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="permissions and links are those of POSIX")
def test_saved_files_have_ordinary_permissions_and_follow_links(small_layer: Layer, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    link = tmp_path / "layers.safetensors"
    link.symlink_to(tmp_path / "store" / "real.safetensors")
    (tmp_path / "ordinary").touch()
    save_layers(link, [small_layer])
    assert link.is_symlink()
    real = tmp_path / "store" / "real.safetensors"
    assert stat.S_IMODE(real.stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


def test_folder_must_exist(small_layer: Layer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; create it first"):
        save_layers(tmp_path / "absent" / "layers.safetensors", [small_layer])


def test_layers_are_found_by_name_or_unique_suffix(small_layer: Layer) -> None:
    layers = dict.fromkeys(["layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "head.proj", "conv2"], small_layer)
    layers["head.proj"] = other = Layer(np.ones((1, 2)), np.eye(2))
    assert find_layer(layers, "proj") is other
    assert find_layer(layers, "head.proj") is other
    assert find_layer(layers, "conv2") is small_layer  # the exact name wins over suffixes
    with pytest.raises(UnknownNameError, match=r"ambiguous: it may be layer1\.0\.conv1, layer2\.0\.conv1"):
        find_layer(layers, "conv1")
    with pytest.raises(UnknownNameError, match=r"did you mean head\.proj\?.*available: layer1"):
        find_layer(layers, "head.prj")
    with pytest.raises(UnknownNameError, match="there is no layer 'roj'"):
        find_layer(layers, "roj")
