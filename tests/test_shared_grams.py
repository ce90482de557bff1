"""Layers that share a Gram matrix: one array in memory, one tensor in the file; and files read layer by layer."""

from __future__ import annotations

import json
import mmap
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import layerbounds as lb
from layerbounds.arrays import Float
from layerbounds.cli.main import main
from layerbounds.exceptions import FileFormatError, InputError, UnknownNameError
from layerbounds.layers import layer_file
from layerbounds.layers.bias import with_refitted_bias
from layerbounds.layers.gram import ValidatedGram, repair_gram, symmetrise
from layerbounds.layers.layer_file import SCHEMA_KEY, LayerFile
from layerbounds.layers.weight_files import load_weights

MakeGram = Callable[..., Float]


@pytest.fixture
def trio(rng: np.random.Generator, random_gram: MakeGram) -> dict[str, lb.Layer]:
    """Three projections of the same inputs, and one of other inputs."""
    first = lb.Layer(rng.normal(size=(4, 6)), random_gram(6), "a.q", input_mean=np.full(6, 0.01))
    k, v = (
        lb.Layer(rng.normal(size=(out, 6)), first.validated_gram, name, input_mean=first.input_mean)
        for name, out in (("a.k", 2), ("a.v", 3))
    )
    other = lb.Layer(rng.normal(size=(6, 4)), random_gram(4), "a.o")
    return {layer.name: layer for layer in (first, k, v, other)}


def contents(path: Path) -> tuple[set[str], dict[str, str]]:
    with safe_open(str(path), framework="np") as handle:
        return set(handle.keys()), handle.metadata()


def test_a_shared_matrix_is_one_object(trio: dict[str, lb.Layer]) -> None:
    assert trio["a.k"].gram is trio["a.q"].gram
    assert trio["a.k"].gram_reports is trio["a.q"].gram_reports
    with pytest.raises(InputError, match=r"'wide': gram has shape \(6, 6\) but the weight has 7 inputs"):
        lb.Layer(np.ones((2, 7)), trio["a.q"].validated_gram, "wide")


def test_an_array_is_copied_and_validated_again(trio: dict[str, lb.Layer]) -> None:
    array = trio["a.q"].gram
    layer = lb.Layer(np.ones((2, 6)), array)
    assert layer.gram is not array
    np.testing.assert_array_equal(layer.gram, array)


def test_shared_matrices_are_stored_and_read_once(
    trio: dict[str, lb.Layer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "layers.safetensors"
    lb.save_layers(path, trio)
    names, metadata = contents(path)
    assert {name for name in names if name.endswith(".gram")} == {"a.q.gram", "a.o.gram"}
    assert metadata[SCHEMA_KEY] == "2"
    info = json.loads(metadata["layers"])
    assert [info[name].get("gram") for name in trio] == [None, "a.q.gram", "a.q.gram", None]
    validated: list[str] = []
    monkeypatch.setattr(layer_file, "ValidatedGram", lambda m, what: validated.append(what) or ValidatedGram(m, what))
    loaded = lb.load_layers(path)
    assert validated == ["layer 'a.q': gram", "layer 'a.o': gram"]
    assert list(loaded) == list(trio)
    assert loaded["a.q"].gram is loaded["a.k"].gram is loaded["a.v"].gram
    for name, layer in trio.items():
        np.testing.assert_array_equal(loaded[name].gram, layer.gram)
        np.testing.assert_array_equal(loaded[name].weight, layer.weight)
    again = tmp_path / "again.safetensors"
    lb.save_layers(again, loaded)
    assert again.read_bytes() == path.read_bytes()


def test_equal_matrices_are_stored_once_and_nearly_equal_ones_are_not(
    rng: np.random.Generator, random_gram: MakeGram, tmp_path: Path
) -> None:
    gram = random_gram(5)
    gram = 0.5 * (gram + gram.T)
    changed = gram.copy()
    # The last row alone, by one unit in the last place.
    changed[4, 4] = np.nextafter(gram[4, 4], 2 * gram[4, 4])
    layers = [lb.Layer(rng.normal(size=(2, 5)), g, name) for name, g in zip("abc", (gram, gram, changed), strict=True)]
    lb.save_layers(tmp_path / "layers.safetensors", layers)
    assert {name for name in contents(tmp_path / "layers.safetensors")[0] if name.endswith("gram")} == {
        "a.gram",
        "c.gram",
    }
    loaded = lb.load_layers(tmp_path / "layers.safetensors")
    assert loaded["a"].gram is loaded["b"].gram
    for layer in layers:
        np.testing.assert_array_equal(loaded[layer.name].gram, layer.gram)


def test_groups_share_all_their_matrices(rng: np.random.Generator, random_gram: MakeGram, tmp_path: Path) -> None:
    first = lb.Layer(rng.normal(size=(4, 3)), np.stack([random_gram(3), random_gram(3)]), "a")
    second = lb.Layer(rng.normal(size=(2, 3)), first.validated_gram, "b")
    lb.save_layers(tmp_path / "layers.safetensors", [first, second])
    loaded = lb.load_layers(tmp_path / "layers.safetensors")
    assert loaded["b"].gram is loaded["a"].gram
    assert loaded["b"].groups == 2


def test_sharing_halves_the_file(rng: np.random.Generator, random_gram: MakeGram, tmp_path: Path) -> None:
    layer = lb.Layer(rng.normal(size=(2, 64)), random_gram(64), "a")
    other = lb.Layer(rng.normal(size=(2, 64)), layer.validated_gram, "b")
    alone = lb.Layer(other.weight, random_gram(64), "b")
    sizes = []
    for layers in ([layer, alone], [layer, other]):
        lb.save_layers(tmp_path / "layers.safetensors", layers)
        sizes.append((tmp_path / "layers.safetensors").stat().st_size)
    assert sizes[0] - sizes[1] == pytest.approx(8 * 64 * 64, abs=200)


def test_files_without_shared_matrices_stay_readable_for_older_versions(
    trio: dict[str, lb.Layer], tmp_path: Path
) -> None:
    lb.save_layers(tmp_path / "layers.safetensors", [trio["a.q"], trio["a.o"]])
    names, metadata = contents(tmp_path / "layers.safetensors")
    assert metadata[SCHEMA_KEY] == "1"
    assert {"a.q.gram", "a.o.gram"} <= names


@pytest.mark.parametrize("version", [None, "1"])
def test_version_1_files_are_read(version: str | None, tmp_path: Path) -> None:
    info = {name: {"samples": 7, "provenance": {"by": "hand"}, "gram": "absent"} for name in ("b", "a")}
    metadata = {"layers": json.dumps(info)} | ({} if version is None else {SCHEMA_KEY: version})
    tensors = {
        f"{name}.{part}": value for name in "ab" for part, value in (("weight", np.ones((2, 3))), ("gram", np.eye(3)))
    }
    save_file(tensors, tmp_path / "old.safetensors", metadata)
    loaded = lb.load_layers(tmp_path / "old.safetensors")
    # The word "gram" means something from version 2 on.
    assert list(loaded) == ["b", "a"]
    assert loaded["a"].samples == 7 and loaded["a"].provenance == {"by": "hand"}
    assert loaded["a"].gram is not loaded["b"].gram


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gram": "a.z.gram"}, "layer 'a.k' is tensor 'a.z.gram', which is not in the file"),
        ({"gram": 7}, "layer 'a.k' is tensor 7, which is not in the file"),
        ({"gram": ["a.q.gram"]}, "is not in the file"),
        ({"gram": "a.o.gram"}, r"'a.o.gram', whose shape \(4, 4\) does not fit weights of shape \(2, 6\)"),
        ({"gram": "a.q.input_mean"}, r"whose shape \(6,\) does not fit"),
        ({"gram": "a.q.weight"}, r"whose shape \(4, 6\) does not fit"),
        ({"provenance": 3}, "the metadata of layer 'a.k' are not JSON objects"),
    ],
)
def test_wrong_references_get_one_sentence(
    change: dict[str, object], words: str, trio: dict[str, lb.Layer], tmp_path: Path
) -> None:
    path = tmp_path / "layers.safetensors"
    lb.save_layers(path, trio)
    tensors, metadata = load_file(path), contents(path)[1]
    info = json.loads(metadata["layers"])
    info["a.k"] |= change
    save_file(tensors, path, metadata | {"layers": json.dumps(info)})
    with pytest.raises(FileFormatError, match=words):
        lb.load_layers(path)


def test_a_reference_needs_weights_and_excludes_a_matrix_of_its_own(trio: dict[str, lb.Layer], tmp_path: Path) -> None:
    path = tmp_path / "layers.safetensors"
    lb.save_layers(path, trio)
    tensors, metadata = load_file(path), contents(path)[1]
    save_file(tensors | {"a.k.gram": np.eye(6)}, path, metadata)
    with pytest.raises(FileFormatError, match=r"and there is a tensor a\.k\.gram too"):
        lb.load_layers(path)
    save_file({key: value for key, value in tensors.items() if key != "a.k.weight"}, path, metadata)
    with pytest.raises(FileFormatError, match=r"and there is no tensor a\.k\.weight"):
        lb.load_layers(path)


def test_only_the_layers_asked_for_are_read(trio: dict[str, lb.Layer], tmp_path: Path) -> None:
    path = tmp_path / "layers.safetensors"
    lb.save_layers(path, trio)
    tensors, metadata = load_file(path), contents(path)[1]
    # What is not read may be wrong.
    tensors["a.o.gram"] = -np.eye(4)
    save_file(tensors, path, metadata)
    assert list(lb.load_layers(path, "a.k")) == ["a.k"]
    chosen = lb.load_layers(path, ["v", "a.[qk]"])
    assert list(chosen) == ["a.q", "a.k", "a.v"]
    assert chosen["a.q"].gram is chosen["a.v"].gram
    with pytest.raises(UnknownNameError, match="z"):
        lb.load_layers(path, "z")
    with pytest.raises(InputError, match=r"'a\.o': gram is not positive semidefinite"):
        lb.load_layers(path)
    # The commands too.
    assert main(["solve", "--input", str(path), "--layer", "a.k", "--bits", "3", "--time-limit", "1"]) == 0
    assert main(["solve", "--input", str(path), "--layer", "a.o", "--bits", "3", "--time-limit", "1"]) == 2


def test_matrices_may_stay_on_disk(
    trio: dict[str, lb.Layer], rng: np.random.Generator, random_gram: MakeGram, tmp_path: Path
) -> None:
    path = tmp_path / "layers.safetensors"
    rough = random_gram(5)
    rough[1, 0] *= 1.0 + 1e-9
    rough[2] = rough[:, 2] = 0.0
    tensors = {f"{name}.gram": layer.gram[0] for name, layer in trio.items()} | {
        "rough.gram": rough,
        "single.gram": random_gram(5).astype(np.float32),
        "odd.bytes": np.zeros(3, dtype=np.uint8),
    }
    bases = [name.removesuffix(".gram") for name in tensors if name.endswith(".gram")]
    tensors |= {f"{base}.weight": np.ones((2, len(tensors[f"{base}.gram"])), dtype=np.float32) for base in bases}
    save_file(tensors, path)
    before = path.read_bytes()
    mapped, read = lb.load_layers(path, memory_map=True), lb.load_layers(path)
    for name, layer in read.items():
        np.testing.assert_array_equal(mapped[name].gram, layer.gram)
        assert mapped[name].gram_reports == layer.gram_reports
        assert type(mapped[name].gram) is np.ndarray
        problem = lb.quantization_problem(mapped[name], bits=2)
        assert problem.fingerprint() == lb.quantization_problem(layer, bits=2).fingerprint()

    def owner(array: object) -> object:
        base = getattr(array, "base", None)
        return array if base is None else owner(base)

    # Of float32 there is a converted copy in memory.
    on_disk = {name for name, layer in mapped.items() if isinstance(owner(layer.gram), mmap.mmap)}
    assert on_disk == set(bases) - {"single"}
    # Repairs are in memory alone.
    assert mapped["rough"].gram_reports[0].asymmetry > 0
    assert path.read_bytes() == before
    lb.save_layers(path, mapped)
    np.testing.assert_array_equal(lb.load_layers(path)["rough"].gram, mapped["rough"].gram)
    with pytest.raises(InputError, match="memory_map"):
        lb.load_layers(path, memory_map="yes")


def test_a_layer_file_is_a_mapping(trio: dict[str, lb.Layer], tmp_path: Path) -> None:
    path = tmp_path / "layers.safetensors"
    lb.save_layers(path, trio)
    file = LayerFile(path)
    assert list(file) == list(trio) and len(file) == 4
    assert "a.k" in file and "z" not in file and 3 not in file
    assert [file.gram_of(name) for name in file] == ["a.q", "a.q", "a.q", "a.o"]
    k = file["a.k"]
    assert file["a.k"] is k
    assert file["a.v"].gram is k.gram
    with pytest.raises(KeyError):
        file["z"]


def test_the_listing_says_which_layers_share(
    trio: dict[str, lb.Layer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "layers.safetensors", tmp_path / "out.json"
    lb.save_layers(path, trio)
    assert main(["layers", "--input", str(path), "--json", str(out)]) == 0
    assert "Gram matrix of" in capsys.readouterr().out
    assert [row["gram_of"] for row in json.loads(out.read_text())["layers"]] == ["a.q", "a.q", "a.q", "a.o"]
    assert main(["layers"]) == 0
    assert "Gram matrix of" not in capsys.readouterr().out


def test_a_layer_file_is_its_own_checkpoint_whatever_is_shared(trio: dict[str, lb.Layer], tmp_path: Path) -> None:
    """The axes of weights in a layer file are those of the layer, with and without a tensor NAME.gram beside them."""
    path = tmp_path / "layers.safetensors"
    square = lb.Layer(np.arange(36.0).reshape(6, 6), trio["a.q"].validated_gram, "b")
    square.provenance["kind"] = "transformers Conv1D"
    lb.save_layers(path, [trio["a.q"], square])
    np.testing.assert_array_equal(load_weights(path, square), square.matrix)


def test_refitted_biases_keep_the_sharing(trio: dict[str, lb.Layer], rng: np.random.Generator) -> None:
    centred = {name: with_refitted_bias(trio[name]) for name in ("a.q", "a.k", "a.v")}
    assert centred["a.q"].gram is centred["a.k"].gram is centred["a.v"].gram
    mean = trio["a.q"].input_mean
    assert mean is not None
    np.testing.assert_array_equal(centred["a.q"].gram[0], trio["a.q"].gram[0] - np.outer(mean, mean))
    moved = lb.Layer(trio["a.k"].weight, trio["a.q"].validated_gram, "moved", input_mean=np.full(6, 0.02))
    assert with_refitted_bias(moved).gram is not centred["a.q"].gram


@pytest.mark.parametrize("n", [1, 511, 512, 513, 700])
def test_matrices_are_symmetrised_in_blocks(n: int, rng: np.random.Generator) -> None:
    matrix = rng.normal(size=(n, n))
    mean, largest = 0.5 * (matrix + matrix.T), np.abs(matrix - matrix.T).max()
    assert symmetrise(matrix) == largest
    np.testing.assert_array_equal(matrix, mean)
    assert symmetrise(matrix) == 0.0


def test_repairs_of_matrices_larger_than_a_block(rng: np.random.Generator) -> None:
    n, rank = 520, 40
    x = rng.normal(size=(rank, n))
    x[:, 5] = 0.0
    gram = x.T @ x / rank
    rough = gram.astype(np.float32).astype(np.float64)
    report = repair_gram(rough, "gram")
    assert report.projected and report.dead == 1
    values = np.linalg.eigvalsh(rough)
    assert values[0] >= -n * np.finfo(float).eps * values[-1]
    np.testing.assert_allclose(rough, gram, atol=1e-6 * values[-1])
    np.testing.assert_array_equal(rough, rough.T)
    again = rough.copy()
    assert not repair_gram(again, "gram").projected
    np.testing.assert_array_equal(again, rough)


def test_large_singular_matrices_need_no_eigenvalues(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerbounds.layers.gram._MANY", 50)
    monkeypatch.setattr("scipy.linalg.eigvalsh", None)
    x = rng.normal(size=(30, 80))
    gram = x.T @ x / 30
    layer = lb.Layer(np.ones((1, 80)), gram)
    report = layer.gram_reports[0]
    assert not report.projected and report.min_eigenvalue == -80 * np.finfo(float).eps
    np.testing.assert_array_equal(layer.gram[0], 0.5 * (gram + gram.T))
    monkeypatch.undo()
    monkeypatch.setattr("layerbounds.layers.gram._MANY", 50)
    shifted = lb.Layer(np.ones((1, 80)), gram - 1e-8 * np.linalg.eigvalsh(gram)[-1] * np.eye(80))
    assert shifted.gram_reports[0].projected
    assert shifted.gram_reports[0].min_eigenvalue == pytest.approx(-1e-8, rel=1e-3)
    with pytest.raises(InputError, match="not positive semidefinite"):
        lb.Layer(np.ones((1, 80)), gram - 0.1 * np.eye(80))


def test_energies_are_computed_once(trio: dict[str, lb.Layer]) -> None:
    layer = trio["a.q"]
    first = layer.energy()
    before = first.copy()
    first[:] = -1.0
    np.testing.assert_array_equal(layer.energy(), before)


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_building_a_layer_takes_two_matrices(
    kind: type, random_gram: MakeGram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerbounds.layers.gram._BLOCK", 32)
    monkeypatch.setattr("layerbounds.layers.bias._STRIPE", 32)
    n = 600
    gram = random_gram(n).astype(kind)
    gram[3] = gram[:, 3] = 0.0
    save_file({"a.weight": np.ones((2, n)), "a.gram": gram}, tmp_path / "large.safetensors")
    tracemalloc.start()
    try:
        layer = lb.load_layers(tmp_path / "large.safetensors")["a"]
        # The matrix, and the copy that is factorized.
        assert tracemalloc.get_traced_memory()[1] < 2.2 * layer.gram.nbytes
        tracemalloc.reset_peak()
        with_refitted_bias(lb.Layer(layer.weight, layer.validated_gram, input_mean=np.zeros(n)))
        assert tracemalloc.get_traced_memory()[1] < 3.2 * layer.gram.nbytes
    finally:
        tracemalloc.stop()
