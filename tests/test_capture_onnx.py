"""ONNX models: the same weights and Gram matrices as PyTorch's own run of the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_models import TensorProto, helper, model, node, onnx, value

import layerbounds as lb
from layerbounds.capturing.warning import CaptureWarning
from layerbounds.cli.main import main
from layerbounds.exceptions import FileFormatError, InputError

torch = pytest.importorskip("torch", reason="the reference is PyTorch")
from torch import nn  # noqa: E402


def same_layers(found: dict[str, lb.Layer], expected: dict[str, lb.Layer], names: dict[str, str]) -> None:
    assert list(found) == list(names)
    for name, other in names.items():
        layer, reference = found[name], expected[other]
        np.testing.assert_array_equal(layer.weight, reference.weight)
        scale = np.abs(reference.gram).max()
        np.testing.assert_allclose(layer.gram, reference.gram, atol=2e-6 * scale, rtol=0)
        assert layer.input_mean is not None and reference.input_mean is not None
        np.testing.assert_allclose(layer.input_mean, reference.input_mean, atol=1e-5)
        assert layer.samples == reference.samples
        assert layer.provenance["kind"] == reference.provenance["kind"]


CONVS: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    (nn.Conv2d, {"kernel_size": 3, "padding": 1}, {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}),
    (
        nn.Conv2d,
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (2, 1), "dilation": (1, 2), "groups": 2},
        {"pads": [2, 1, 2, 1], "strides": [2, 1], "dilations": [1, 2], "group": 2},
    ),
    (nn.Conv2d, {"kernel_size": 4, "padding": "same"}, {"auto_pad": "SAME_UPPER"}),
    (nn.Conv2d, {"kernel_size": 3, "groups": 4}, {"auto_pad": "VALID", "group": 4}),
    (nn.Conv1d, {"kernel_size": 3, "dilation": 2, "padding": 2}, {"pads": [2, 2], "dilations": [2]}),
    (nn.Conv3d, {"kernel_size": 2, "stride": 2}, {"strides": [2, 2, 2]}),
]


@pytest.mark.parametrize(("kind", "options", "attributes"), CONVS)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_convolutions(kind: Any, options: dict[str, Any], attributes: dict[str, Any], rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    module = kind(4, 8, **options)
    batches = [rng.normal(size=(3, 4, *(6, 7, 6)[: module.weight.ndim - 2])).astype(np.float32) for _ in range(2)]
    weights = {"conv.weight": module.weight.detach().numpy(), "conv.bias": module.bias.detach().numpy()}
    conv = node("Conv", ["x", *weights], "y", **attributes)
    found = lb.capture_onnx(model([conv], [value("x", None)], "y", weights), batches)
    expected = lb.capture(nn.Sequential(module), [torch.from_numpy(batch) for batch in batches])
    same_layers(found, expected, {"conv": "0"})
    assert found.report.batches == 2 and found.report.order == ("conv",)


@pytest.mark.parametrize("pads", ["SAME_UPPER", "SAME_LOWER"])
def test_padding_that_depends_on_the_size(pads: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 8, 7))
    weight = rng.normal(size=(5, 3, 3, 2)).astype(np.float32)
    graph = [node("Conv", ["x", "w"], "y", auto_pad=pads, strides=[2, 3])]
    found = lb.capture_onnx(model(graph, [value("x", None)], "y", {"w": weight}), [x])["w"]
    # 4 = 8/2 and 3 = 7/3, rounded up, windows of 3 and 2: one more pixel is needed along both axes.
    pad = (0, 1) if pads == "SAME_UPPER" else (1, 0)
    rows = lb.im2col(x.astype(np.float32), (3, 2), (2, 3), (pad, pad))
    expected = lb.Layer.from_activations(weight, rows)
    np.testing.assert_allclose(found.gram, expected.gram, atol=1e-5)


class Branches(nn.Module):
    """Matrix products in all ways that exporters write them, on one input."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(6, 4, bias=False), nn.Linear(6, 4, bias=False)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Any) -> Any:
        return self.query(x).sum() + self.key(x).sum() + self.down(torch.relu(self.up(x.flatten(0, 1)))).sum()


def branches() -> tuple[Branches, Any]:
    torch.manual_seed(1)
    module = Branches()
    state = {name: v.numpy() for name, v in module.state_dict().items()}
    weights = {
        "onnx::MatMul_1": np.ascontiguousarray(state["query.weight"].T),
        "key.weight": state["key.weight"],
        "flat": np.array([-1, 6]),
        **{name: state[name] for name in ("up.weight", "up.bias", "down.bias")},
        "down.weight": state["down.weight"] / np.float32(2),
    }
    nodes = [
        node("MatMul", ["x", "onnx::MatMul_1"], "q", "/block/block.0/query/MatMul"),
        node("Transpose", ["key.weight"], "key.t", perm=[1, 0]),
        node("MatMul", ["x", "key.t"], "k"),
        node("Reshape", ["x", "flat"], "rows"),
        node("Gemm", ["rows", "up.weight", "up.bias"], "u", transB=1),
        node("Relu", ["u"], "r"),
        node("Gemm", ["r", "down.weight", "down.bias"], "y", transB=1, alpha=2.0),
    ]
    return module, model(nodes, [value("x", ["batch", 5, 6])], "y", weights)


def test_matrix_products_of_all_layouts(rng: np.random.Generator) -> None:
    module, made = branches()
    batches = [rng.normal(size=(4, 5, 6)).astype(np.float32) for _ in range(3)]
    found = lb.capture_onnx(made, batches)
    expected = lb.capture(module, [torch.from_numpy(b) for b in batches])
    assert list(found) == ["block.0.query", "key", "up", "down"]
    # What a change of the initializer costs is twice the change of the product.
    np.testing.assert_array_equal(found["down"].weight * 2, expected["down"].weight)
    np.testing.assert_allclose(found["down"].gram, 4 * expected["down"].gram, atol=1e-5)
    del found["down"]
    same_layers(found, expected, {"block.0.query": "query", "key": "key", "up": "up"})
    assert found["key"].validated_gram is found["block.0.query"].validated_gram
    assert found["key"].provenance["initializer"] == "key.weight"
    assert found.report.gram_bytes == 8 * (36 + 36 + 64)
    again = lb.capture_onnx(made, batches, ["re:(key|down)"], memory_limit=100)
    assert again.report.passes == 2 and list(again) == ["key", "down"]
    np.testing.assert_array_equal(again["key"].gram, found["key"].gram)


def test_weights_on_the_left_and_shared_weights(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(4, 6)).astype(np.float32)
    nodes = [
        node("MatMul", ["w", "x"], "a"),
        node("MatMul", ["w", "z"], "b"),
        node("Concat", ["a", "b"], "y", axis=0),
    ]
    x, z = rng.normal(size=(2, 6, 5)), rng.normal(size=(3, 6, 5))
    found = lb.capture_onnx(model(nodes, [value("x", None), value("z", None)], "y", {"w": weight}), [{"x": x, "z": z}])[
        "w"
    ]
    rows = np.concatenate([x.swapaxes(1, 2).reshape(-1, 6), z.swapaxes(1, 2).reshape(-1, 6)]).astype(np.float32)
    expected = lb.Layer.from_activations(weight, rows)
    np.testing.assert_allclose(found.gram, expected.gram, atol=1e-6)
    np.testing.assert_array_equal(found.weight, weight)
    assert found.samples == 25 and found.provenance["calls"] == 2


def test_what_is_not_captured_is_named(rng: np.random.Generator) -> None:
    w = rng.normal(size=(6, 6)).astype(np.float32)
    weights = {
        "fc.weight": w,
        "codes": rng.integers(-8, 8, size=(6, 6)).astype(np.int8),
        "scale": np.array(0.1, dtype=np.float32),
        "stack": rng.normal(size=(2, 6, 6)).astype(np.float32),
        "up.weight": rng.normal(size=(1, 2, 3, 3)).astype(np.float32),
        "spare": rng.normal(size=(2, 6)).astype(np.float32),
    }
    nodes = [
        node("MatMul", ["x", "fc.weight"], "a"),
        node("DequantizeLinear", ["codes", "scale"], "real"),
        node("MatMul", ["a", "real"], "b", "coded"),
        node("MatMul", ["b", "stack"], "c", "experts"),
        node("Unsqueeze", ["b", "axes"], "d"),
        node("ConvTranspose", ["d", "up.weight"], "e", "deconv"),
        node("Mul", ["c", "spare_sum"], "f"),
        node("ReduceSum", ["spare"], "spare_sum", keepdims=0),
    ]
    nodes[6], nodes[7] = nodes[7], nodes[6]
    made = model(nodes, [value("x", None)], "f", {**weights, "axes": np.array([0])})
    batches = [rng.normal(size=(1, 8, 6))]
    with pytest.warns(CaptureWarning, match="coded has quantized weights") as caught:
        found = lb.capture_onnx(made, batches)
    assert list(found) == ["fc"]
    assert set(found.report.refused) == {"coded", "experts", "deconv"}
    assert "transposed convolution" in str(caught[0].message)
    assert set(found.report.other_parameters) == {"stack", "up.weight", "spare"}
    with pytest.raises(InputError, match=r"layer 'coded' has quantized weights \(DequantizeLinear\)"):
        lb.capture_onnx(made, batches, "coded")


def test_few_positions_and_bad_batches(rng: np.random.Generator) -> None:
    _, made = branches()
    with pytest.warns(CaptureWarning, match="layer .* has 5 positions for 8 inputs.* singular"):
        assert lb.capture_onnx(made, [np.ones((1, 5, 6))]).report.few_positions == dict.fromkeys(
            ("block.0.query", "key", "up", "down"), 5
        )
    good = rng.normal(size=(4, 5, 6))
    for batches, words in (
        ([good, {"x": good, "labels": good}], "batch 1 has labels too many"),
        ([{"z": good}], "lacks x and has z too many"),
        ([good.astype(np.int64)], "holds int64, and the model takes float32"),
        ([good[:, :, :3]], r"the model failed .* its inputs are x \(batch, 5, 6\)"),
        ([good, good * 1e39], "batch 1 .* are not finite"),
        ([], "there are no batches"),
    ):
        with pytest.raises(InputError, match=words):
            lb.capture_onnx(made, batches, check=False)
    with pytest.raises(InputError, match="passes over the batches"):
        lb.capture_onnx(made, iter([good]), memory_limit=100)


def test_masks_are_not_ignored(rng: np.random.Generator) -> None:
    inputs = [value("x", None), value("attention_mask", None, TensorProto.INT64)]
    nodes = [
        node("Cast", ["attention_mask"], "m", to=TensorProto.FLOAT),
        node("Mul", ["x", "m"], "z"),
        node("MatMul", ["z", "w"], "y"),
    ]
    made = model(nodes, inputs, "y", {"w": rng.normal(size=(6, 4)).astype(np.float32)})
    full = {"x": rng.normal(size=(9, 6)), "attention_mask": np.ones((9, 1), dtype=np.int64)}
    padded = {**full, "attention_mask": np.arange(9)[:, None] > 2}
    assert lb.capture_onnx(made, [full])["w"].samples == 9
    with pytest.raises(InputError, match="batch 1 has an attention_mask"):
        lb.capture_onnx(made, [full, padded])
    assert lb.capture_onnx(made, [full, padded], mask=None)["w"].samples == 18


def test_wrong_outputs_are_noticed(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    from layerbounds.capturing.onnx.rows import ConvRows

    monkeypatch.setattr(ConvRows, "pads", lambda self, sizes: ((0, 2), (0, 2)))
    conv = node("Conv", ["x", "w"], "y", pads=[1, 1, 1, 1])
    made = model([conv], [value("x", None)], "y", {"w": rng.normal(size=(4, 2, 3, 3)).astype(np.float32)})
    with pytest.raises(lb.LayerboundsError, match="layer 'w': the outputs of its node are not its weights times"):
        lb.capture_onnx(made, [rng.normal(size=(3, 2, 6, 6))])


def test_a_file_with_external_data_and_functions(tmp_path: Path, rng: np.random.Generator) -> None:
    module, made = branches()
    function = helper.make_function(
        "local", "Twice", ["v"], ["w"], [node("Add", ["v", "v"], "w")], [helper.make_opsetid("", 17)]
    )
    made.functions.append(function)
    made.opset_import.append(helper.make_opsetid("local", 1))
    made.graph.node[0].input[0] = "double"
    made.graph.node.insert(0, helper.make_node("Twice", ["x"], ["double"], domain="local"))
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    batch = rng.normal(size=(8, 5, 6)).astype(np.float32)
    found = lb.capture_onnx(tmp_path / "m.onnx", [batch])
    expected = lb.capture(module, [torch.from_numpy(batch)])
    np.testing.assert_allclose(found["block.0.query"].gram, 4 * expected["query"].gram, rtol=1e-5, atol=1e-5)
    (tmp_path / "m.data").unlink()
    with pytest.raises(FileFormatError, match="external data"):
        lb.capture_onnx(tmp_path / "m.onnx", [batch])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> Path:
    monkeypatch.chdir(tmp_path)
    _, made = branches()
    onnx.save(made, "one.onnx")
    inputs = [value("ids", None, TensorProto.INT64), value("x", None)]
    nodes = [
        node("Gather", ["table", "ids"], "rows"),
        node("Add", ["rows", "x"], "sum"),
        node("MatMul", ["sum", "fc.weight"], "y"),
    ]
    weights = {name: rng.normal(size=(6, 6)).astype(np.float32) for name in ("table", "fc.weight")}
    onnx.save(model(nodes, inputs, "y", weights), "two.onnx")
    x = rng.normal(size=(9, 5, 6))
    np.savez("data.npz", x=x, ids=rng.integers(0, 6, (9, 5)), short=x[:4])
    np.save("x.npy", x)
    np.save("bytes.npy", rng.integers(0, 256, (9, 5, 6), dtype=np.uint8))
    Path("words.txt").write_text("words\n")
    Path("bad.onnx").write_bytes(b"no model")
    return tmp_path


def run(*arguments: Any) -> int:
    return main(["capture", *map(str, arguments), "--out", "c.safetensors"])


def test_command(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "one.onnx", "--data", "data.npz", "--batch-size", 4, "--limit", 8, "--json", "c.json"]
    assert run(*arguments) == 0, capsys.readouterr().err
    printed = capsys.readouterr()
    assert "block.0.query" in printed.out
    layers = lb.load_layers("c.safetensors")
    x = np.load("x.npy")[:8]
    expected = lb.capture_onnx("one.onnx", [x[:4], x[4:]])
    for name, layer in expected.items():
        np.testing.assert_array_equal(layers[name].gram, layer.gram)
        assert layers[name].provenance["source"]["data_samples"] == 8
    record = json.loads(Path("c.json").read_text())
    assert record["batches"] == 2 and [row["name"] for row in record["layers"]] == list(expected)
    assert run("--model", "two.onnx", "--data", "data.npz", "--layers", "fc") == 0
    assert lb.load_layers("c.safetensors")["fc"].samples == 45
    scaled = ["--divide", 255, "--mean", 0.5, "--std", 0.2]
    assert run("--model", "one.onnx", "--data", "bytes.npy", *scaled, "--memory-limit", 100) == 0
    pixels = (np.load("bytes.npy") / 255 - 0.5) / 0.2
    scaled_layers = lb.load_layers("c.safetensors")
    np.testing.assert_allclose(scaled_layers["up"].gram, lb.capture_onnx("one.onnx", [pixels])["up"].gram, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "one.onnx", "--data", "words.txt"], "for which an ONNX model has no tokenizer"),
        (["--model", "one.onnx", "--data", "bytes.npy"], "the data are bytes"),
        (["--model", "one.onnx", "--data", "x.npy", "--device", "cpu"], "--device is about models of PyTorch"),
        (["--model", "one.onnx", "--data", "x.npy", "--limit", "0"], "the limit is 0"),
        (["--model", "one.onnx", "--data", "x.npy", "--layers", "conv"], "there is no layer 'conv'"),
        (["--model", "two.onnx", "--data", "x.npy"], "the model has the inputs ids, x; pass a .npz file"),
        (["--model", "two.onnx", "--data", "data.npz", "--key", "x"], "--key is about one array"),
        (["--model", "bad.onnx", "--data", "x.npy"], "bad.onnx cannot be read as an ONNX model"),
        (["--model", "absent.onnx", "--data", "x.npy"], "absent.onnx does not exist"),
    ],
)
def test_wrong_commands_get_one_sentence(
    files: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(*arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and words in error


def test_compress_refuses_onnx_models(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compress", "--model", "one.onnx", "--data", "x.npy", "--bits", "4", "--out", "c.safetensors"]
    assert main(command) == 2
    assert "one.onnx is an ONNX model, which capture reads and compress does not" in capsys.readouterr().err
