"""Fused experts of transformers: one layer for each matrix of each expert, over the tokens that are routed to it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matrices import assert_close

import layerbounds as lb
from layerbounds.cli.main import main
from layerbounds.exceptions import InputError
from layerbounds.layers.files import load_layers

torch = pytest.importorskip("torch", reason="capture needs PyTorch")
transformers = pytest.importorskip("transformers", reason="its models need the transformers extra")
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

from layerbounds.capturing.targets import CaptureWarning  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:layer .* positions for", "ignore:never reached")

COMMON: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 12,
}
NARROW = {**COMMON, "moe_intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2}
LOCAL = {**COMMON, "num_local_experts": 4, "num_experts_per_tok": 2}
DEEP = {
    **COMMON,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 0,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
}
SIZES: dict[str, dict[str, Any]] = {
    "Mixtral": LOCAL,
    "Qwen2Moe": {**NARROW, "shared_expert_intermediate_size": 12, "decoder_sparse_step": 1},
    "Qwen3Moe": {**NARROW, "head_dim": 8, "decoder_sparse_step": 1},
    "Olmoe": {**COMMON, "num_experts": 4, "num_experts_per_tok": 2},
    "GptOss": {**LOCAL, "head_dim": 8},
    "DeepseekV3": DEEP,
    "GraniteMoe": LOCAL,
}
IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")


def build(name: str, implementation: str = "eager") -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES[name])
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    for value in model.parameters():
        # Of a size at which nothing is nearly linear, and biases and routers are not zero.
        value.data = 0.5 * torch.randn(value.shape)
    model.set_experts_implementation(implementation)
    return model.double().eval()


def experts_of(model: nn.Module) -> tuple[str, nn.Module]:
    return next((path, m) for path, m in model.named_modules() if "down_proj" in m._parameters)


def token_batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(32, (3, 11), generator=generator)} for _ in range(2)]


class Products(TorchFunctionMode):
    """Inputs and outputs of every product with a matrix of a stack, as the module's own loop computes them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._stacks = {p.untyped_storage().data_ptr(): name for name, p in module._parameters.items() if p.ndim == 3}
        self.seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__):
            name = self._stacks.get(args[1].untyped_storage().data_ptr())
            if name is not None:
                expert = args[1].storage_offset() // args[1].numel()
                self.seen.setdefault(f"{expert}.{name}", []).append((args[0].detach(), result.detach().clone()))
        return result


@contextmanager
def calls_of(module: nn.Module) -> Iterator[list[tuple[Any, Any]]]:
    calls: list[tuple[Any, Any]] = []
    handle = module.register_forward_pre_hook(lambda _, a, k: calls.append((a, k)), with_kwargs=True)
    yield calls
    handle.remove()


def products(module: nn.Module, calls: list[tuple[Any, Any]]) -> dict[str, tuple[Tensor, Tensor]]:
    with torch.no_grad(), Products(module) as watching:
        for arguments, keywords in calls:
            module(*arguments, **keywords)
    return {
        name: (torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs]))
        for name, pairs in watching.seen.items()
    }


@pytest.mark.parametrize("name", SIZES)
def test_a_change_of_an_expert_costs_what_its_gram_says(name: str) -> None:
    model, batches = build(name), token_batches()
    path, module = experts_of(model)
    layers = lb.capture(model, batches, f"{path}.*")
    with calls_of(module) as calls, torch.no_grad():
        for batch in batches:
            model(**batch)
    before = products(module, calls)
    assert set(layers) == {f"{path}.{end}" for end in before} and len(before) > 2
    tokens = sum(len(batch["input_ids"].reshape(-1)) for batch in batches)
    counts = layers.report.expert_tokens[path]
    assert set(counts) == set(range(4)) and sum(counts.values()) == 2 * tokens
    for end, (x, y) in before.items():
        layer = layers[f"{path}.{end}"]
        expert, stack = end.split(".")
        assert layer.samples == len(x) == counts[int(expert)]
        assert layer.provenance["kind"] == "expert" and layer.provenance["stack"] == stack
        assert_close(layer.gram[0], (x.T @ x / len(x)).numpy(), 1e-10)
        own = module._parameters[stack].data[int(expert)]
        matrix = own.T if layer.provenance["transposed"] else own
        np.testing.assert_array_equal(layer.matrix, matrix.numpy())
        change = torch.randn_like(matrix)
        matrix += change
        after = products(module, calls)[end][1]
        matrix -= change
        cost = float((after - y).square().sum() / len(x))
        assert float(np.einsum("oi,ij,oj->", change, layer.gram[0], change)) == pytest.approx(cost, rel=1e-9)


@pytest.mark.parametrize("name", ["Mixtral", "GptOss"])
def test_the_last_matrix_changes_the_output_of_the_module(name: str) -> None:
    """With shares of 1, what a token gets from an expert is the output of its last matrix."""
    model, batches = build(name), token_batches()
    path, module = experts_of(model)
    layers = lb.capture(model, batches, f"{path}.*down_proj")
    with calls_of(module) as calls, torch.no_grad():
        for batch in batches:
            model(**batch)

    def outputs() -> Tensor:
        with torch.no_grad():
            return torch.cat([module(a[0], a[1], torch.ones_like(a[2])) for a, _ in calls])

    before = outputs()
    for expert in range(4):
        layer = layers.get(f"{path}.{expert}.down_proj")
        if layer is None:
            continue
        own = module.down_proj.data[expert]
        change = torch.randn_like(own)
        own += change
        cost = float((outputs() - before).square().sum() / layer.samples)
        own -= change
        matrix = change.T if module.is_transposed else change
        assert float(np.einsum("oi,ij,oj->", matrix, layer.gram[0], matrix)) == pytest.approx(cost, rel=1e-9)


@pytest.mark.parametrize("name", ["Olmoe", "GptOss"])
def test_every_implementation_gives_the_same(name: str) -> None:
    # There is no grouped product in float64.
    eager, *others = (lb.capture(build(name, kind).float(), token_batches()) for kind in IMPLEMENTATIONS)
    for other in others:
        assert list(other) == list(eager)
        for key, layer in eager.items():
            assert layer.samples == other[key].samples
            assert_close(other[key].gram, layer.gram, 1e-5)


@pytest.mark.parametrize("name", SIZES)
def test_padded_tokens_reach_no_expert(name: str) -> None:
    model = build(name)
    mask = (torch.arange(6) < torch.tensor([6, 3, 5, 4])[:, None]).long()
    ids = torch.randint(3, 32, mask.shape)
    together = lb.capture(model, [{"input_ids": ids, "attention_mask": mask}])
    single = lb.capture(model, [{"input_ids": i[m][None]} for i, m in zip(ids, mask.bool(), strict=True)])
    path = experts_of(model)[0]
    assert together.report.expert_tokens == single.report.expert_tokens
    assert sum(together.report.expert_tokens[path].values()) == 2 * 18
    assert set(together) == set(single)
    for key, layer in together.items():
        assert layer.samples == single[key].samples
        np.testing.assert_allclose(layer.gram, single[key].gram, rtol=1e-6, atol=1e-8 * np.abs(layer.gram).max())


@pytest.mark.parametrize("name", ["Mixtral", "GptOss"])
def test_experts_behind_other_layers_are_compared_token_by_token(name: str) -> None:
    model, batches = build(name), token_batches()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for path, value in other.named_parameters():
            if "self_attn" in path:
                value += 0.2 * torch.randn_like(value)
    path, module = experts_of(model)
    twin = other.get_submodule(path)
    layers = lb.capture(model, batches, f"{path}.*", compressed_model=other)
    with calls_of(module) as calls, calls_of(twin) as twins, torch.no_grad():
        for batch in batches:
            model(**batch)
            other(**batch)
    own, its = (torch.cat([a[1] for a, _ in seen]) for seen in (calls, twins))
    assert not torch.equal(own.sort().values, its.sort().values)
    dense, seen = (torch.cat([a[0] for a, _ in part]) for part in (calls, twins))
    reached = 0
    for expert in range(4):
        chosen = (its == expert).any(1)
        if not chosen.any():
            continue
        reached += 1
        # All tokens that the compressed model's expert gets, as they would go through the dense one.
        ids, ones = torch.full((int(chosen.sum()), 1), expert), torch.ones(int(chosen.sum()), 1).double()
        exact = products(module, [((dense[chosen], ids, ones), {})])
        compressed = products(module, [((seen[chosen], ids, ones), {})])
        for end in (f"{expert}.gate_up_proj", f"{expert}.down_proj"):
            layer = layers[f"{path}.{end}"]
            x, hat = exact[end][0], compressed[end][0]
            w = torch.from_numpy(np.array(layer.matrix))
            v = w + torch.randn_like(w)
            cost = (hat @ v.T - x @ w.T).square().sum(0) / len(x)
            shift = v.numpy() - layer.target
            said = np.einsum("oi,ij,oj->o", shift, layer.gram[0], shift) + layer.constant
            np.testing.assert_allclose(said, cost.numpy(), rtol=1e-7)
            assert layer.samples == len(x)
    assert reached > 1


def test_names_and_what_belongs_to_no_layer() -> None:
    model = build("Mixtral")
    path = experts_of(model)[0]
    layers = lb.capture(model, token_batches(), "experts.2.down_proj")
    assert list(layers) == [f"{path}.2.down_proj"] and layers.report.expert_tokens[path].keys() == {2}
    every = lb.capture(model, token_batches())
    assert every.report.other_parameters == ("model.layers.0.mlp.gate.weight",)
    np.testing.assert_array_equal(every[f"{path}.2.down_proj"].gram, layers[f"{path}.2.down_proj"].gram)
    small = lb.capture(model, token_batches(), memory_limit=4000)
    assert len(small.report.plan.passes) > 3 and set(small) == set(every)
    for name, layer in every.items():
        np.testing.assert_array_equal(small[name].gram, layer.gram)


def test_experts_without_tokens_are_listed() -> None:
    model = build("Mixtral")
    path, module = experts_of(model)
    router = model.get_submodule(path.replace("experts", "gate"))

    def avoid(_: Any, arguments: Any, output: Any) -> Any:
        logits, shares, index = output
        return logits, shares, torch.where(index == 3, 4, index)

    router.register_forward_hook(avoid)
    model.set_experts_implementation("eager")
    with pytest.warns(CaptureWarning, match=r"never reached, and not captured: .*experts\.3\.gate_up_proj"):
        layers = lb.capture(model, token_batches(), f"{path}.*")
    assert layers.report.expert_tokens[path][3] == 0
    assert layers.report.unreached == (f"{path}.3.gate_up_proj", f"{path}.3.down_proj")
    assert f"{path}.3.down_proj" not in layers and len(layers) == 6
    assert module.num_experts == 4


def test_experts_that_compute_something_else_are_refused() -> None:
    model = build("Mixtral")
    experts_of(model)[1].register_forward_hook(lambda _, a, y: 1.5 * y)
    with pytest.raises(InputError, match=r"differs from what the matrices of its experts give by .* check=False"):
        lb.capture(model, token_batches())
    assert len(lb.capture(model, token_batches(), check=False)) > 8
    stacks = transformers.Llama4ForCausalLM(
        transformers.Llama4TextConfig(**{**LOCAL, "head_dim": 8, "intermediate_size_mlp": 12, "attn_scale": 0.1})
    )
    with pytest.raises(InputError, match=r"experts' computes with stacks of matrices in a way that capture does not"):
        lb.capture(stacks, token_batches(), "model.layers.0.feed_forward.experts")


def test_quantized_activations_leave_experts() -> None:
    from layerbounds.capturing.activations import quantize_activations

    model = build("Mixtral")
    with pytest.raises(InputError, match="get their inputs from no hook"):
        quantize_activations(model, 8, layers=f"{experts_of(model)[0]}.0.down_proj")
    with pytest.warns(CaptureWarning, match="get their inputs from no hook"):
        quantize_activations(model, 8)


@pytest.mark.parametrize("name", ["Mixtral", "GptOss"])
def test_compressed_experts(name: str) -> None:
    """The matrices are those that the interval of each layer is about, behind all layers before it."""
    model, batches = build(name), token_batches()
    path, module = experts_of(model)
    result = lb.compress(model, batches, "rtn", bits=3, intervals=False)
    twin = result.model.get_submodule(path)
    captured = lb.capture(model, batches, compressed_model=result.model)
    reached = [key for key in result.layers if key.startswith(path)]
    assert len(reached) > 4 and not result.refused
    for key in reached:
        expert, stack = key.removeprefix(f"{path}.").split(".")
        own = twin._parameters[stack].data[int(expert)]
        assert not torch.equal(own, module._parameters[stack].data[int(expert)])
        matrix = (own.T if twin.is_transposed else own).numpy()
        assert max(len(np.unique(row.round(9))) for row in matrix) <= 8
        # Everything before an expert is compressed when its turn comes, so that it sees these inputs in the end.
        layer = captured[key]
        shift = matrix - layer.target
        cost = np.einsum("oi,ij,oj->o", shift, layer.gram[0], shift) + layer.constant
        np.testing.assert_allclose(result.layers[key].loaded_error, cost, rtol=1e-6)
    for expert in range(4):
        if f"{path}.{expert}.down_proj" not in reached:
            assert torch.equal(twin.down_proj[expert], module.down_proj[expert])


def test_biases_of_compressed_experts() -> None:
    model, batches = build("GptOss"), token_batches()
    path, module = experts_of(model)
    options: dict[str, Any] = {"bits": 3, "intervals": False, "bias": "refit", "layers": f"{path}.*.down_proj"}
    result = lb.compress(model, batches, "rtn", **options)
    assert not torch.equal(result.model.get_submodule(path).down_proj_bias, module.down_proj_bias)
    model = build("Mixtral")
    with pytest.warns(CaptureWarning), pytest.raises(InputError, match="has no bias that could be re-fitted"):
        lb.compress(model, batches, "rtn", **{**options, "layers": f"{experts_of(model)[0]}.*.down_proj"})


def test_files_have_no_place_for_experts(tmp_path: Path) -> None:
    model = build("Mixtral").float()
    model.save_pretrained(tmp_path)
    with pytest.warns(CaptureWarning, match="is a matrix of fused experts, which has no tensor of its own"):
        result = lb.compress(model, token_batches(), "rtn", bits=4, intervals=False, format="dense", template=tmp_path)
    path = experts_of(model)[0]
    assert f"{path}.0.down_proj" in result.refused and "model.layers.0.self_attn.q_proj" in result.layers
    result.save(tmp_path / "out")
    loaded = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.get_submodule(path).down_proj, experts_of(model)[1].down_proj)
    q = "model.layers.0.self_attn.q_proj"
    assert torch.equal(loaded.get_submodule(q).weight, result.model.get_submodule(q).weight)


def test_experts_in_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from test_capture_transformers import TEXT, write_tokenizer

    build("Qwen3Moe").half().save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model", pad_token="[PAD]")
    (tmp_path / "text.txt").write_text(TEXT)
    out, record = tmp_path / "c.safetensors", tmp_path / "c.json"
    command = ["capture", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "text.txt"), "--out", str(out)]
    assert main([*command, "--layers", "*experts*", "--json", str(record)]) == 0
    said = capsys.readouterr().err
    assert "note: experts of model.layers.0.mlp.experts got " in said
    counts = json.loads(record.read_text())["expert_tokens"]["model.layers.0.mlp.experts"]
    layers = load_layers(out)
    assert {name: layer.samples for name, layer in layers.items()} == {
        f"model.layers.0.mlp.experts.{expert}.{stack}": count
        for expert, count in counts.items()
        for stack in ("gate_up_proj", "down_proj")
        if count
    }
    # For which transformers' own choice of a product does not work.
    assert main([*command, "--layers", "*experts.0.*", "--model-dtype", "float64"]) == 0
    assert all(layer.provenance["source"]["model_dtype"] == "float64" for layer in load_layers(out).values())
