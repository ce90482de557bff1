"""Files from anywhere: every format and type read exactly or refused in one sentence, axes paired by meaning."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import layerbounds as lb
import layerbounds.layers.tensor_files as tensor_files
from layerbounds.cli.main import main
from layerbounds.contests.checkpoint import Checkpoint
from layerbounds.contests.contest import Contest, Rules
from layerbounds.exceptions import FileFormatError, InputError, LayerboundsError
from layerbounds.layers.tensor_files import open_tensors
from layerbounds.layers.weight_files import TRANSFORMERS_CONV1D, load_weights, read_layer_weights

MakeGram = Callable[..., np.ndarray[Any, Any]]


def make_layer(name: str, weight: Any, **provenance: Any) -> lb.Layer:
    n = int(np.prod(np.shape(weight)[1:]))
    x = np.random.default_rng(3).normal(size=(4 * n, n))
    return lb.Layer(weight, x.T @ x / len(x), name, provenance=provenance)


@pytest.fixture
def shards(tmp_path: Path, rng: np.random.Generator) -> tuple[Path, dict[str, np.ndarray[Any, Any]]]:
    """A folder with two shards and their index."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    tensors = {f"model.{name}.weight": rng.normal(size=(4, 6)) for name in ("a", "b", "c")}
    home = {
        "model.a.weight": "one.safetensors",
        "model.b.weight": "one.safetensors",
        "model.c.weight": "two.safetensors",
    }
    for file in ("one.safetensors", "two.safetensors"):
        save_file({key: value for key, value in tensors.items() if home[key] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": home}))
    return folder, tensors


# --- formats and types -----------------------------------------------------------------------------------------------


def test_shards_are_read_through_the_folder_or_the_index(
    shards: tuple[Path, dict[str, np.ndarray[Any, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tensors = shards
    read: list[str] = []
    real = tensor_files._Safetensors.read
    monkeypatch.setattr(tensor_files._Safetensors, "read", lambda self, name: read.append(name) or real(self, name))
    layer = make_layer("c", tensors["model.c.weight"])
    for path in (folder, folder / "model.safetensors.index.json", folder / "two.safetensors"):
        np.testing.assert_array_equal(load_weights(path, layer), layer.matrix)
    assert read == ["model.c.weight"] * 3
    # What is not needed may be absent.
    (folder / "one.safetensors").unlink()
    np.testing.assert_array_equal(load_weights(folder, layer, [2]), layer.matrix[[2]])
    with pytest.raises(
        FileFormatError, match=r"one\.safetensors, which model\.safetensors\.index\.json lists, does not"
    ):
        load_weights(folder, make_layer("a", tensors["model.a.weight"]))


def test_damaged_indexes_and_folders(tmp_path: Path, shards: tuple[Path, dict[str, np.ndarray[Any, Any]]]) -> None:
    folder, tensors = shards
    layer = make_layer("a", tensors["model.a.weight"])
    index = folder / "model.safetensors.index.json"
    for text in ("{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', "[" * 100_000, "\x00"):
        index.write_text(text)
        with pytest.raises(FileFormatError, match="is no index of safetensors shards"):
            load_weights(folder, layer)
    index.write_text('{"weight_map": {"a.weight": "one.safetensors", "a.weight": "two.safetensors"}}')
    with pytest.raises(FileFormatError, match=r"names 'a\.weight' twice"):
        load_weights(folder, layer)
    index.write_text('{"weight_map": {"a.weight": "one.safetensors"}}')
    with pytest.raises(FileFormatError, match=r"says that tensor 'a\.weight' is in one\.safetensors, and it is not"):
        load_weights(folder, layer)
    index.unlink()
    with pytest.raises(FileFormatError, match=r"holds 2 candidates \(one\.safetensors, two\.safetensors\)"):
        load_weights(folder, layer)
    (folder / "two.safetensors").unlink()
    np.testing.assert_array_equal(load_weights(folder, layer), layer.matrix)
    (folder / "one.safetensors").unlink()
    with pytest.raises(FileFormatError, match="holds neither model"):
        load_weights(folder, layer)


def header_of(text: str, data: bytes = b"") -> bytes:
    return len(text.encode()).to_bytes(8, "little") + text.encode() + data


GOOD = '"a.gram":{"dtype":"F64","shape":[1,1],"data_offsets":[0,8]}'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "header is incomplete"),
        (b"\x05\x00\x00\x00\x00\x00\x00\x00{", "header is incomplete"),
        (b"\xff" * 40, "header is incomplete"),
        (header_of("nothing"), "truncated or of another format"),
        (header_of("[1]"), "truncated or of another format"),
        (header_of("[" * 100_000), "truncated or of another format"),
        (header_of('{"a.weight": 3}'), "truncated or of another format"),
        (header_of('{"__metadata__": 3}'), "truncated or of another format"),
        (header_of('{"a.weight":{"dtype":"F64","shape":[1,-1],"data_offsets":[0,8]}}', bytes(8)), "shape or place"),
        (
            header_of('{"a.weight":{"dtype":"F64","shape":[2,1],"data_offsets":[0,8]}}', bytes(8)),
            "does not fit its shape",
        ),
        (header_of('{"a.weight":{"dtype":"F64","shape":[1,1],"data_offsets":[0,8]}}', bytes(4)), "is incomplete"),
        (header_of("{" + GOOD + "," + GOOD + "}", bytes(8)), "names 'a.gram' twice"),
        (
            header_of('{"a.weight":{"dtype":"F4","shape":[1,2],"data_offsets":[0,1]},' + GOOD + "}", bytes(8)),
            "is of type F4",
        ),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "pointer of Git LFS"),
    ],
)
def test_damaged_files_get_one_sentence(
    tmp_path: Path, content: bytes, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    for command in (["layers", "--input", path], ["solve", "--layer", "a", "--bits", 2, "--input", path]):
        assert main([str(c) for c in command]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        assert words in error
    with pytest.raises(FileFormatError):
        load_weights(path, make_layer("a", [[1.0]]))


def test_any_truncation_of_any_file_is_an_error_of_the_package(tmp_path: Path) -> None:
    path = tmp_path / "whole.safetensors"
    layer = make_layer("a", np.arange(6.0).reshape(2, 3))
    lb.save_layers(path, [layer])
    whole = path.read_bytes()
    for keep in range(0, len(whole), 7):
        path.write_bytes(whole[:keep])
        with pytest.raises(FileFormatError):
            lb.load_layers(path)
        with pytest.raises(FileFormatError):
            load_weights(path, layer)


def test_every_type_is_read_exactly_or_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="only PyTorch can write these types")
    from safetensors.torch import save_file as save_tensors

    codes = torch.arange(256, dtype=torch.uint8)
    kinds = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
    values = {str(kind): codes.clone().view(kind) for kind in kinds}
    values["bfloat16"] = torch.arange(0, 65536, 7, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    values["float16"] = torch.randn(3, 5).half()
    values["empty"] = torch.empty(0, 4, dtype=torch.bfloat16)
    values["scalar"] = torch.tensor(2.5, dtype=torch.bfloat16)
    save_tensors(values, tmp_path / "all.safetensors")
    torch.save(values, tmp_path / "all.pt")
    for path in (tmp_path / "all.safetensors", tmp_path / "all.pt"):
        with open_tensors(path) as file:
            for name, value in values.items():
                np.testing.assert_array_equal(file.read(name), value.float().numpy(), err_msg=f"{path.name} {name}")
                assert file.entry(name).shape == tuple(value.shape)
    layer = make_layer("a", rng.normal(size=(2, 3)))
    weight = torch.from_numpy(layer.matrix)
    for kind in (torch.int8, torch.uint8, torch.int32, torch.bool, torch.complex64, torch.float8_e8m0fnu):
        save_tensors({"a.weight": weight.to(torch.float32).to(kind)}, tmp_path / "w.safetensors")
        torch.save({"a.weight": weight.to(torch.float32).to(kind)}, tmp_path / "w.pt")
        for path in (tmp_path / "w.safetensors", tmp_path / "w.pt"):
            with pytest.raises(FileFormatError, match=r"'a\.weight' is of type .* not a type of weights"):
                load_weights(path, layer)
    # 8-bit floats are weights by themselves, and codes where something has to scale them.
    narrow = weight.to(torch.float8_e4m3fn)
    save_tensors({"a.weight": narrow}, tmp_path / "w.safetensors")
    np.testing.assert_array_equal(load_weights(tmp_path / "w.safetensors", layer), narrow.double().numpy())
    for scale in ("weight_scale", "weight_scale_inv", "scale_weight"):
        save_tensors({"a.weight": narrow, f"a.{scale}": torch.ones(1)}, tmp_path / "w.safetensors")
        with pytest.raises(FileFormatError, match=f"has to be scaled by 'a.{scale}'"):
            load_weights(tmp_path / "w.safetensors", layer)


def test_tensors_without_plain_values(tmp_path: Path, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="only PyTorch has such tensors")
    layer = make_layer("a", rng.normal(size=(2, 3)))
    weight = torch.from_numpy(layer.matrix).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        odd = {
            "sparse_coo": weight.to_sparse(),
            "sparse_csr": weight.to_sparse_csr(),
            "quantized": torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
            "meta": weight.to("meta"),
        }
        for words, value in odd.items():
            torch.save({"a.weight": value}, tmp_path / "w.pt")
            with pytest.raises(FileFormatError, match=words if words != "quantized" else "qint8"):
                load_weights(tmp_path / "w.pt", layer)


# --- axes and names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 8), (8, 8)])
def test_conv1d_of_transformers_is_transposed_by_its_provenance(
    tmp_path: Path, rng: np.random.Generator, shape: tuple[int, int]
) -> None:
    layer = make_layer("h.0.c_proj", rng.normal(size=shape), kind=TRANSFORMERS_CONV1D)
    path = tmp_path / "gpt2.safetensors"
    save_file({"transformer.h.0.c_proj.weight": np.ascontiguousarray(layer.matrix.T)}, path)
    found = read_layer_weights(path, layer, [3, 0])
    np.testing.assert_array_equal(found.values, layer.matrix[[3, 0]])
    assert "transformer.h.0.c_proj.weight is stored as (in, out)" in found.note
    # Files of the package say that their rows are output channels.
    save_file({"h.0.c_proj.weight": layer.matrix, "h.0.c_proj.channels": np.arange(shape[0])}, path)
    assert not read_layer_weights(path, layer).note
    np.testing.assert_array_equal(load_weights(path, layer), layer.matrix)
    lb.save_layers(path, [layer])
    np.testing.assert_array_equal(load_weights(path, layer), layer.matrix)
    solution = lb.solve(lb.quantization_problem(layer, bits=4), channels=[4, 1], time_limit=0, jobs=1)
    solution.save_weights(path)
    np.testing.assert_array_equal(load_weights(path, layer, [1]), solution.weights[[1]])
    save_file({"h.0.c_proj.weight": layer.matrix}, path)
    if shape[0] == shape[1]:
        with pytest.raises(InputError, match="seems to be transposed"):
            load_weights(path, layer)
    else:
        np.testing.assert_array_equal(load_weights(path, layer), layer.matrix)


def test_dense_weights_of_a_conv1d_checkpoint_have_no_error(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = make_layer("transformer.h.0.attn.c_proj", rng.normal(size=(6, 6)), kind=TRANSFORMERS_CONV1D)
    lb.save_layers(tmp_path / "layers.safetensors", [layer])
    save_file({"h.0.attn.c_proj.weight": layer.matrix.T.astype(np.float32).copy()}, tmp_path / "model.safetensors")
    command = [
        "compare",
        "--layer",
        "c_proj",
        "--bits",
        "8",
        "--input",
        tmp_path / "layers.safetensors",
        "--time-limit",
    ]
    options = [0, "--methods", "rtn", "--weights", tmp_path, "--json", tmp_path / "out.json"]
    assert main([str(c) for c in [*command, *options]]) == 0
    printed = capsys.readouterr()
    assert "is tensor h.0.attn.c_proj.weight" in printed.err and "was transposed" in printed.err
    rows = json.loads((tmp_path / "out.json").read_text())["records"]
    given = [row for row in rows if row["kind"] == "given"]
    assert given[0]["relative_error"] < 1e-12


def test_other_orders_of_the_axes_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "w.safetensors"
    square = make_layer("a", rng.normal(size=(6, 6)))
    noisy = square.matrix + 0.2 * rng.normal(size=(6, 6))
    save_file({"a.weight": noisy}, path)
    np.testing.assert_array_equal(load_weights(path, square), noisy)
    save_file({"a.weight": noisy.T.copy()}, path)
    with pytest.raises(InputError, match=r"axes in the order \(1, 0\): it seems to be transposed"):
        load_weights(path, square)
    # Weights of a symmetric matrix, or that have nothing to do with it, are nobody's transpose.
    for weight in (square.matrix + square.matrix.T, rng.normal(size=(6, 6))):
        save_file({"a.weight": weight}, path)
        np.testing.assert_array_equal(load_weights(path, make_layer("a", square.matrix)), weight)
    wide = make_layer("a", rng.normal(size=(4, 6)))
    for wrong in (wide.matrix.T, wide.matrix.reshape(8, 3), wide.matrix.ravel(), wide.matrix.reshape(4, 3, 2)):
        save_file({"a.weight": wrong.copy()}, path)
        with pytest.raises(InputError, match="has shape"):
            load_weights(path, wide)
    conv = make_layer("a", rng.normal(size=(3, 3, 3, 3)))
    save_file({"a.weight": conv.weight.reshape(3, 27)}, path)
    np.testing.assert_array_equal(load_weights(path, conv), conv.matrix)
    for order in ((2, 3, 1, 0), (1, 0, 2, 3), (0, 1, 3, 2)):
        save_file({"a.weight": conv.weight.transpose(order).copy()}, path)
        with pytest.raises(InputError, match="seems to be transposed"):
            load_weights(path, conv)
    save_file({"a.weight": np.zeros((3, 3, 2, 3))}, path)
    with pytest.raises(InputError, match=r"its axes seem to be in another order"):
        load_weights(path, make_layer("a", rng.normal(size=(3, 2, 3, 3))))


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("net.fc", "net.fc"),
        ("_orig_mod.net.fc", "net.fc"),
        ("net._orig_mod.fc", "net.fc"),
        ("module.net.fc", "net.fc"),
        ("model.module.net.fc", "net.fc"),
        ("_fsdp_wrapped_module.net._checkpoint_wrapped_module.fc", "net.fc"),
        ("net.fc", "model.net.fc"),
        ("fc", "model.net.fc"),
    ],
)
def test_names_with_what_wrappers_add(tmp_path: Path, rng: np.random.Generator, stored: str, name: str) -> None:
    layer = make_layer(name, rng.normal(size=(2, 3)))
    save_file({f"{stored}.weight": layer.matrix, "other.weight": np.zeros((2, 3))}, tmp_path / "w.safetensors")
    found = read_layer_weights(tmp_path / "w.safetensors", layer)
    np.testing.assert_array_equal(found.values, layer.matrix)
    assert bool(found.note) == (stored != name)


def test_tied_weights_and_folded_layers(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "w.safetensors"
    head = make_layer("lm_head", rng.normal(size=(4, 3)), kind="linear", tied_to=["transformer.wte"])
    save_file({"wte.weight": head.matrix, "h.0.fc.weight": np.zeros((4, 3))}, path)
    np.testing.assert_array_equal(load_weights(path, head), head.matrix)
    # Another form of the layer is no reason to take the tied weight.
    for other in ("lm_head.qweight", "lm_head.weight_packed", "_orig_mod.lm_head.weight_v"):
        save_file({"transformer.wte.weight": head.matrix, other: np.ones((4, 1), dtype=np.int32)}, path)
        with pytest.raises(FileFormatError, match=f"has '{other}' and no tensor lm_head.weight"):
            load_weights(path, head)
    save_file({"transformer.wte.weight": head.matrix, "lm_head.bias": np.ones(4)}, path)
    np.testing.assert_array_equal(load_weights(path, head), head.matrix)
    folded = make_layer("conv1", rng.normal(size=(4, 3)), folded_batchnorm="bn1")
    save_file({"conv1.weight": folded.matrix}, path)
    np.testing.assert_array_equal(load_weights(path, folded), folded.matrix)
    save_file({"module.conv1.weight": folded.matrix, "module.bn1.running_var": np.ones(4)}, path)
    with pytest.raises(InputError, match="has the batch normalisation 'bn1' folded"):
        load_weights(path, folded)


def test_channels_of_weight_files_are_checked(tmp_path: Path, rng: np.random.Generator) -> None:
    layer = make_layer("a", rng.normal(size=(3, 2)))
    for channels in ([0, 0], [0, 3], [-1, 0], [0.0, 1.0], []):
        save_file({"a.weight": layer.matrix[:2], "a.channels": np.asarray(channels)}, tmp_path / "w.safetensors")
        with pytest.raises(FileFormatError, match=r"a\.channels must list different output channels"):
            load_weights(tmp_path / "w.safetensors", layer)
    save_file({"a.weight": np.full((3, 2), np.nan)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"a\.weight in .*w\.safetensors holds 6 NaN"):
        load_weights(tmp_path / "w.safetensors", layer)


def test_weights_of_any_kind_of_file_in_compare(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch writes these files")
    layer = make_layer("net.fc", rng.normal(size=(2, 4)))
    lb.save_layers(tmp_path / "layers.safetensors", [layer])
    value = torch.from_numpy(layer.matrix).to(torch.bfloat16)
    torch.save({"state_dict": {"module.net.fc.weight": value}, "epoch": 1}, tmp_path / "w.pt")
    torch.save({"net.fc.weight": value.to(torch.int8)}, tmp_path / "codes.pt")
    torch.save(layer, tmp_path / "code.pt")
    command = ["compare", "--layer", "fc", "--bits", "2", "--input", str(tmp_path / "layers.safetensors"), "--methods"]
    command += ["rtn", "--time-limit", "0", "--weights"]
    assert main([*command, str(tmp_path / "w.pt")]) == 0
    assert "the weights are those of its entry 'state_dict'" in capsys.readouterr().err
    for name, words in (("codes.pt", "is of type I8"), ("code.pt", "whose code is never run")):
        assert main([*command, str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and words in error


# --- layer files -----------------------------------------------------------------------------------------------------


def test_provenance_that_json_does_not_know_is_kept(tmp_path: Path) -> None:
    class Thing:
        def __str__(self) -> str:
            return "a thing"

    loop: dict[str, Any] = {}
    loop["self"] = loop
    given = {
        "array": np.arange(3),
        "count": np.int64(4),
        "share": np.float32(0.5),
        "flag": np.bool_(True),
        "pair": (1, "two"),
        "set": {2, 1},
        "path": Path("some") / "file",
        1: "one",
        "1": "other",
        "thing": Thing(),
        "nan": float("nan"),
        "infinite": [np.inf],
        "complex": 1j,
        "long": np.longdouble(0.1),
        "bytes": b"ab",
        "loop": loop,
        "surrogate": "a\ud800b",
    }
    layer = lb.Layer(np.ones((1, 2)), np.eye(2), "a", provenance=given)
    path = tmp_path / "layers.safetensors"
    with pytest.warns(UserWarning, match=r"provenance of layer 'a': .*thing \(Thing\).* stored as text"):
        lb.save_layers(path, [layer])
    read = lb.load_layers(path)["a"].provenance
    assert len(read) == len(given)
    assert read["array"] == [0, 1, 2] and read["count"] == 4 and read["share"] == 0.5 and read["flag"] is True
    assert read["pair"] == [1, "two"] and read["set"] == [1, 2] and read["path"] == str(Path("some") / "file")
    assert read["1"] == "one" and read["1'"] == "other"
    assert read["thing"] == "a thing" and read["nan"] == "nan" and read["infinite"] == ["inf"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lb.save_layers(path, lb.load_layers(path))
    assert lb.load_layers(path)["a"].provenance == read


def test_layers_are_saved_under_the_names_of_the_mapping(tmp_path: Path) -> None:
    path = tmp_path / "layers.safetensors"
    lb.save_layers(path, {"first": lb.Layer(np.ones((1, 2)), np.eye(2)), "second": lb.Layer([[3.0]], [[1.0]])})
    assert {name: layer.name for name, layer in lb.load_layers(path).items()} == {"first": "first", "second": "second"}
    wrong: list[Any] = [3, "layers", [1], {"a": 1}, {3: lb.Layer([[3.0]], [[1.0]])}, lb.Layer([[3.0]], [[1.0]]), None]
    told = r"pass (a mapping of names to|what load_layers\(path\) returns|a list of layers)"
    for layers in wrong:
        with pytest.raises(InputError, match=told):
            lb.save_layers(path, layers)
    for name in (None, 3, "a" * 5000, "a\0b"):
        with pytest.raises(InputError, match=r"pass the path of a file|is no usable file name|does not exist"):
            lb.save_layers(name, [lb.Layer([[3.0]], [[1.0]])])  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"pass the path of a file|is no usable file name|does not exist"):
            lb.load_layers(name)  # type: ignore[arg-type]


def test_wrong_layers_get_one_sentence_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.safetensors"
    good = {"a.weight": np.ones((2, 3)), "a.gram": np.eye(3)}
    cases: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({"a.gram": np.full((3, 3), np.nan)}, {}),
        ({"a.gram": np.eye(3)[:, :2].copy()}, {}),
        ({"a.weight": np.ones(3)}, {}),
        ({"a.weight": np.array(1.0)}, {}),
        ({"a.weight": np.ones((0, 3))}, {}),
        ({"a.weight": np.full((2, 3), np.inf)}, {}),
        ({"a.target": np.ones((3, 3))}, {}),
        ({"a.constant": np.array([np.nan, 1.0])}, {}),
        ({"a.input_mean": np.ones(2)}, {}),
        ({"a.residual_mean": np.ones((2, 2))}, {}),
        ({}, {"layerbounds.schema": "²"}),
        ({}, {"layerbounds.schema": "9" * 5000}),
        ({}, {"layers": "[" * 100_000}),
        ({}, {"layers": '{"a": {"bias": 3}}'}),
        ({}, {"layers": '{"a": {"samples": 1.5}}'}),
        ({}, {"layers": '{"a": 1, "a": 2}'}),
    ]
    for tensors, metadata in cases:
        save_file({**good, **tensors}, path, metadata)
        with pytest.raises(LayerboundsError):
            lb.load_layers(path)
        assert main(["layers", "--input", str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1


def test_damaged_checkpoints_of_a_comparison(tmp_path: Path, small_layer: lb.Layer) -> None:
    def restored() -> Contest:
        contest = Contest(small_layer, (2,), [0], Rules(jobs=1))
        Checkpoint(tmp_path / "run").attach(contest)
        return contest

    first = restored()
    first.listeners[0](first)
    (path,) = (tmp_path / "run").iterdir()
    assert restored().completed == first.completed
    record = json.loads(path.read_text())
    contents = ["[]", "3", "null", "[" * 100_000, "{}", json.dumps({**record, "completed": "soon"})]
    for lower, upper in (
        ([float("nan")], [1.0]),
        ([2.0], [1.0]),
        ([-1.0], [None]),
        ([float("inf")], [None]),
        ([0.0], ["x"]),
        ([0.0], [float("nan")]),
        ([], [1.0]),
    ):
        (pair,) = record["compressions"]
        broken = {**pair, "quantization": {**pair["quantization"], "lower": lower, "upper": upper}}
        contents.append(json.dumps({**record, "compressions": [broken]}))
    contents.append(json.dumps({**record, "compressions": [{"bits": 2, "quantization": [], "pruning": {}}]}))
    contents.append(json.dumps(record).replace('"completed": ', '"completed": 1' + "0" * 400 + ', "old": '))
    for content in contents:
        path.write_text(content)
        with pytest.raises(FileFormatError, match="delete it to start this layer anew"):
            restored()
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(FileFormatError, match="delete it"):
        restored()


def test_a_checkpoint_of_codes_alone_is_called_that(tmp_path: Path, rng: np.random.Generator) -> None:
    weight = rng.normal(size=(3, 4))
    save_file({"a.qweight": np.ones((3, 4), dtype=np.int32), "a.scales": np.ones(3)}, tmp_path / "w.safetensors")
    with pytest.raises(FileFormatError, match=r"has 'a\.scales' and no tensor a\.weight"):
        load_weights(tmp_path / "w.safetensors", make_layer("a", weight))


def test_what_pytorch_says_about_code_is_not_repeated(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="reading .pt needs PyTorch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(FileFormatError) as caught, open_tensors(tmp_path / "model.pt"):
        pass
    assert str(caught.value).isprintable() and "save model.state_dict()" in str(caught.value)
