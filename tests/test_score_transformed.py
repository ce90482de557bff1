"""Checkpoints whose scales were folded into normalisations, or that were transformed otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_checkpoints import ATTENTION, BEHIND, BLOCK, MLP, N, Toy, checkpoint, quantized, stored, stored_gguf

import layerbounds as lb
from layerbounds.cli.main import main
from layerbounds.exceptions import InputError, UnsupportedProblemError
from layerbounds.layers.files import write_tensors
from layerbounds.scoring.feeds import added_to_norms, linear_before, linear_partner, norm_before, share_behind
from layerbounds.scoring.likeness import column_factors, row_factors
from layerbounds.scoring.transformed import scaled

FACTORS = np.exp(np.random.default_rng(7).normal(0, 0.6, N))


def folded(norm: str, names: list[str]) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        tensors[f"{BLOCK}{norm}.weight"] /= FACTORS
        for name in names:
            tensors[f"{name}.weight"] *= FACTORS

    return change


def quick(*args: Any, **options: Any) -> lb.Scores:
    return lb.score(*args, **{"channels": [9], "total_time": 0.1, "jobs": 1, "node_limit": 1, **options})


@pytest.fixture
def toy() -> Toy:
    return Toy()


def test_scales_folded_into_a_norm_are_undone_exactly(toy: Toy, tmp_path: Path) -> None:
    original, layers = toy.save(tmp_path / "dense"), toy.layers()
    path = stored(tmp_path / "awq", toy, folded("input_layernorm", ATTENTION))
    rows = list(range(0, N, 8))
    scores = quick(path, layers, original=original, channels=rows)
    assert scores.refused == {} and scores.unmatched == []
    checkpoint = lb.load_checkpoint(path)
    norm = checkpoint.dense[f"{BLOCK}input_layernorm.weight"]
    for name in ATTENTION:
        # What the quantized model really computes, on the calibration inputs.
        seen, weight = toy.normalised * norm, checkpoint[name].weight
        want = np.mean((seen @ weight[rows].T - toy.inputs(name) @ layers[name].matrix[rows].T) ** 2, axis=0).sum()
        found = scores[name]
        assert found.error == pytest.approx(want, rel=1e-9)
        assert found.factors == f"{BLOCK}input_layernorm" and found.own is not None
        assert found.own.lower_bound <= found.own.upper_bound <= want * (1 + 1e-9)
    assert scores[MLP[0]].factors is None and scores[BEHIND].factors is None


def test_folded_scales_are_refused_without_the_original(toy: Toy, tmp_path: Path) -> None:
    path = stored(tmp_path / "awq", toy, folded("input_layernorm", ATTENTION))
    scores = quick(path, toy.layers())
    assert sorted(scores.refused) == sorted(ATTENTION)
    for name, why in scores.refused.items():
        assert name in why and "pass the original" in why
    with pytest.raises(UnsupportedProblemError, match="q_proj"):
        quick(path, toy.layers(), "q_proj")


def test_the_folder_of_the_capture_is_the_original_where_it_still_is(toy: Toy, tmp_path: Path) -> None:
    original = toy.save(tmp_path / "dense")
    about = {"source": {"model": str(original)}}
    layers = {n: lb.Layer.from_activations(x.weight, toy.inputs(n), n) for n, x in toy.layers().items()}
    for layer in layers.values():
        layer.provenance.update(about)
    path = stored(tmp_path / "awq", toy, folded("post_attention_layernorm", MLP))
    scores = quick(path, layers, [MLP[0], ATTENTION[0]])
    assert scores.original is not None and scores.refused == {}
    assert [s.layer for s in scores if s.factors] == MLP[:1]
    # Another model in its place is none.
    toy.dense = {name: value + np.float16(1) for name, value in toy.dense.items()}
    write_tensors(original / "model.safetensors", toy.dense, {})
    assert quick(path, layers, ATTENTION[:1]).original is None


def test_another_model_as_original_is_an_error(toy: Toy, tmp_path: Path) -> None:
    path, layers = stored(tmp_path / "gptq", toy), toy.layers()
    toy.dense[f"{ATTENTION[0]}.weight"] = toy.dense[f"{ATTENTION[0]}.weight"] * 2
    with pytest.raises(InputError, match="other weights"):
        quick(path, layers, original=toy.save(tmp_path / "dense"))


def test_an_untouched_model_needs_nothing_undone(toy: Toy, tmp_path: Path) -> None:
    layers = toy.layers()
    scores = quick(stored(tmp_path / "gptq", toy), layers, original=toy.save(tmp_path / "dense"))
    assert scores.refused == {} and all(s.factors is None for s in scores) and len(scores) == 6


def test_factors_between_linear_layers_are_refused_by_name(toy: Toy, tmp_path: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors[f"{ATTENTION[2]}.weight"] /= FACTORS[:, None]
        tensors[f"{BEHIND}.weight"] *= FACTORS

    scores = quick(stored(tmp_path / "awq", toy, change), toy.layers(), original=toy.save(tmp_path / "dense"))
    assert set(scores.refused) == {ATTENTION[2], BEHIND}
    assert "value projection" in scores.refused[BEHIND] and "outputs scaled" in scores.refused[ATTENTION[2]]


def test_factors_between_linear_layers_are_estimated_where_that_is_asked_for(toy: Toy, tmp_path: Path) -> None:
    names = (ATTENTION[2], BEHIND)

    def change(tensors: dict[str, Any]) -> None:
        tensors[f"{names[0]}.weight"] /= FACTORS[:, None]
        tensors[f"{names[1]}.weight"] *= FACTORS

    path, layers = stored(tmp_path / "awq", toy, change), toy.layers()
    scores = quick(path, layers, names, original=toy.save(tmp_path / "dense"), estimate=True, channels=[1, 9])
    checkpoint = lb.load_checkpoint(path)
    true = (checkpoint[names[0]].weight * FACTORS[:, None], checkpoint[names[1]].weight / FACTORS)
    for name, weight in zip(names, true, strict=True):
        want = np.mean((toy.inputs(name) @ (weight - layers[name].matrix).T) ** 2, axis=0)[[1, 9]].sum()
        found = scores[name]
        assert found.estimated and found.error == pytest.approx(want, rel=0.1)
        assert found.own is not None and found.own.lower_bound <= found.own.upper_bound <= found.error * (1 + 1e-9)
        assert found.relative_error == pytest.approx(found.error / layers[name].energy()[[1, 9]].sum())
        assert any("estimated" in text for text in (*found.notes, found.factors or ""))
    # The layer behind needs the one before it.
    del layers[names[0]]
    with pytest.raises(UnsupportedProblemError, match="inputs scaled"):
        quick(path, layers, BEHIND, estimate=True)


def rotation() -> Any:
    return np.linalg.qr(np.random.default_rng(5).normal(size=(N, N)))[0]


def test_a_rotated_model_is_refused_with_the_names_of_the_layers(toy: Toy, tmp_path: Path) -> None:
    turn = rotation()

    def change(tensors: dict[str, Any]) -> None:
        for norm, names in (("input_layernorm", ATTENTION), ("post_attention_layernorm", MLP)):
            for name in names:
                tensors[f"{name}.weight"] = (tensors[f"{name}.weight"] * tensors[f"{BLOCK}{norm}.weight"]) @ turn
            tensors[f"{BLOCK}{norm}.weight"] = np.ones(N)
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] @ turn

    path = stored(tmp_path / "rotated", toy, change)
    with pytest.raises(UnsupportedProblemError, match=r"q_proj' belongs to a model that was transformed"):
        quick(path, toy.layers(), ATTENTION, original=toy.save(tmp_path / "dense"))
    scores = quick(path, toy.layers(), ATTENTION)
    assert [s.status for s in scores] == ["suspected mismatch"] * 3
    assert all(s.own is None and s.relative_error is not None and s.relative_error > 1 for s in scores)


def test_norms_that_share_nothing_with_the_original_are_refused(toy: Toy, tmp_path: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors[f"{BLOCK}input_layernorm.weight"][3] = 0.0

    path = stored(tmp_path / "cut", toy, change)
    scores = quick(path, toy.layers(), original=toy.save(tmp_path / "dense"))
    assert set(scores.refused) == set(ATTENTION)
    assert all("is 0 at 1 of its inputs" in why for why in scores.refused.values())


def test_scaling_a_layer_keeps_its_errors() -> None:
    rng = np.random.default_rng(0)
    layer = lb.Layer.from_activations(rng.normal(size=(3, 6)), rng.normal(size=(40, 6)), "a")
    factors = np.array([0.5, -2.0, 1.0, 3.0, 0.1, 1.7])
    other = scaled(layer, factors)
    weights = rng.normal(size=(3, 6))
    problem, same = lb.pruning_problem(layer, k=6), lb.pruning_problem(other, k=6)
    np.testing.assert_allclose(
        lb.evaluate(problem, weights * factors).error, lb.evaluate(same, weights).error, rtol=1e-12
    )
    np.testing.assert_allclose(layer.energy(), other.energy(), rtol=1e-12)
    assert other.input_mean is not None and layer.input_mean is not None
    np.testing.assert_allclose(other.input_mean, layer.input_mean * factors)


def test_the_interval_holds_the_best_of_what_the_checkpoint_could_have_stored() -> None:
    rng = np.random.default_rng(4)
    for _ in range(5):
        layer = lb.Layer.from_activations(rng.normal(size=(1, 5)), rng.normal(size=(30, 5)), "a")
        factors = np.exp(rng.normal(size=5))
        grid = lb.uniform_grid(layer.matrix / factors, 2)
        points = np.stack(np.meshgrid(*grid.levels(0), indexing="ij"), axis=-1).reshape(-1, 5)
        d = points * factors - layer.matrix[0]
        least = np.einsum("ij,jk,ik->i", d, layer.gram[0], d).min()
        found = lb.solve(lb.quantization_problem(scaled(layer, factors), grid=grid), jobs=1)
        assert found.lower_bound[0] <= least * (1 + 1e-9) and least <= found.upper_bound[0] * (1 + 1e-9)
        assert found.upper_bound[0] == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_quantization_alone_does_not_look_like_scaling(bits: int, method: str) -> None:
    for layer in lb.demo_layers().values():
        problem = lb.quantization_problem(layer, bits)
        weights, live = lb.run_heuristic(method, problem).reshape(layer.matrix.shape), layer.live()
        own, dense = weights[:, live], layer.matrix[:, live]
        assert not column_factors(own, dense).beyond() and not row_factors(own, dense).beyond()


def test_columns_that_a_coarse_grid_loses_do_not_look_like_scaling() -> None:
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(64, 40)) * np.exp(rng.normal(0, 0.7, 40))
    layer = lb.Layer.from_activations(matrix, rng.normal(size=(200, 40)), "a")
    grid = lb.uniform_grid(matrix, 2, range="minmax")
    weights = grid.nearest(matrix)
    assert column_factors(weights, matrix).beyond()
    assert len(quick(checkpoint({"a": quantized("a", grid, weights)}), [layer])) == 1


def test_norms_by_the_names_of_models() -> None:
    llama = {f"{BLOCK}{n}.weight" for n in ("input_layernorm", "post_attention_layernorm")} | {"model.norm.weight"}
    assert norm_before(f"{BLOCK}mlp.up_proj", llama) == f"{BLOCK}post_attention_layernorm"
    assert norm_before(f"{BLOCK}mlp.experts.7.gate_proj", llama) == f"{BLOCK}post_attention_layernorm"
    assert norm_before("lm_head", llama) == "model.norm"
    assert norm_before(BEHIND, llama) is None and linear_before(BEHIND) is not None
    gemma = llama | {f"{BLOCK}{n}_feedforward_layernorm.weight" for n in ("pre", "post")}
    assert norm_before(f"{BLOCK}mlp.up_proj", gemma) == f"{BLOCK}pre_feedforward_layernorm"
    # The normalisations of OLMo 2 stand behind the layers.
    olmo = {f"{BLOCK}{n}.weight" for n in ("post_attention_layernorm", "post_feedforward_layernorm")}
    assert norm_before(f"{BLOCK}mlp.up_proj", olmo) is None
    gpt2 = {f"transformer.h.1.{n}.weight" for n in ("ln_1", "ln_2")}
    assert norm_before("transformer.h.1.attn.c_attn", gpt2) == "transformer.h.1.ln_1"
    assert norm_before("transformer.h.1.mlp.c_fc", gpt2) == "transformer.h.1.ln_2"
    assert linear_partner("h.1.attn.c_proj") == "h.1.attn.c_attn" and linear_partner(f"{BLOCK}mlp.up_proj") is None
    assert share_behind("h.1.attn.c_attn") * 6 == 2 and share_behind(f"{BLOCK}mlp.up_proj") == 1
    assert share_behind(f"{BLOCK}mlp.down_proj") == 0
    assert added_to_norms({"model_type": "gemma2"}) == 1.0 and added_to_norms({"model_type": "llama"}) == 0.0


@pytest.mark.parametrize("form", ["gptq", "compressed-tensors", "gguf"])
def test_files_of_all_forms_are_scored(form: str, toy: Toy, tmp_path: Path) -> None:
    original, layers = toy.save(tmp_path / "dense"), toy.layers()
    if form == "gguf":
        pytest.importorskip("gguf", reason="writes the file")
        path = stored_gguf(tmp_path / "model.gguf", toy)
    else:
        path = stored(tmp_path / "quantized", toy, form=form)
    scores = quick(path, layers, ["q_proj", "up_proj"], scale="free", original=original)
    assert scores.refused == {} and len(scores) == 2
    for found in scores:
        assert found.relative_error is not None and found.relative_error < 0.05
        assert found.own is not None and found.free is not None
        assert found.free.lower_bound <= found.own.upper_bound <= found.error * (1 + 1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_llama_with_folded_scales_from_capture_to_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch", reason="captures a model")
    transformers = pytest.importorskip("transformers", reason="makes a model")
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = transformers.LlamaConfig(**sizes, num_hidden_layers=2, vocab_size=60)
    model = transformers.LlamaForCausalLM(config).eval()
    for name, value in model.named_parameters():
        value.data.normal_(1.0 if "norm" in name else 0.0, 0.3).copy_(value.half().float())
    model.save_pretrained(tmp_path / "Llama")
    ids = torch.randint(0, 60, (6, 20), generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "ids.npy", ids.numpy())
    source = {"source": {"model": str(tmp_path / "Llama")}}
    layers = lb.capture(model, [{"input_ids": ids}], "model.layers.*", provenance=source)
    lb.save_layers(tmp_path / "capture.safetensors", layers)
    state = {name: value.double().numpy() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    factors = np.exp(np.random.default_rng(0).normal(0, 0.5, 32))
    norm = f"{BLOCK}input_layernorm.weight"
    state[norm] = state[norm] / factors
    for name in ATTENTION:
        state[f"{name}.weight"] = state[f"{name}.weight"] * factors
    toy = Toy()
    toy.dense = state
    path = stored(tmp_path / "Llama-AWQ", toy)
    given = ["--checkpoint", str(path), "--input", str(tmp_path / "capture.safetensors"), "--total-time", "0.2"]
    assert main(["score", *given, "--json", str(tmp_path / "score.json"), "--jobs", "1"]) == 0
    shown = capsys.readouterr()
    assert f"of {BLOCK}input_layernorm undone" in shown.out, shown
    record = json.loads((tmp_path / "score.json").read_text(encoding="utf-8"))
    assert len(record["layers"]) == 14 and record["refused"] == {}
    # The quantized model itself: what its first projections give on the same tokens.
    decoded = lb.load_checkpoint(path)
    quantized_model = transformers.LlamaForCausalLM(config).eval().double()
    parts = {f"{name}.weight": decoded[name].weight for name in decoded} | dict(decoded.dense)
    quantized_model.load_state_dict({name: torch.tensor(value) for name, value in parts.items()}, strict=False)
    outputs: dict[str, list[Any]] = {name: [] for name in ATTENTION}
    for network in (model.double(), quantized_model):
        for name in ATTENTION:
            network.get_submodule(name).register_forward_hook(lambda m, x, y, name=name: outputs[name].append(y))
        with torch.no_grad():
            network(input_ids=ids)
    for name in ATTENTION:
        dense, other = (y.reshape(-1, y.shape[-1]).numpy() for y in outputs[name])
        want = np.mean((dense - other) ** 2, axis=0).sum()
        found = next(row for row in record["layers"] if row["layer"] == name)
        assert found["error"] == pytest.approx(want, rel=1e-4) and found["factors"] == norm.removesuffix(".weight")
        assert found["own"]["at_most_percent"] > found["own"]["at_least_percent"] >= 0


def test_factors_behind_an_activation_are_undone() -> None:
    rng = np.random.default_rng(2)
    name, scales = "gpt_neox.layers.0.mlp.dense_4h_to_h", np.exp(rng.normal(0, 0.5, 12))
    layer = lb.Layer.from_activations(rng.normal(size=(16, 12)), np.abs(rng.normal(size=(90, 12))), name)
    grid = lb.uniform_grid(layer.matrix * scales, 4)
    weight = quantized(name, grid, grid.nearest(layer.matrix * scales))
    tensors = {"gpt_neox.layers.0.mlp.act.scales": scales}
    found = quick(checkpoint({name: weight}, tensors), [layer])[name]
    d = weight.weight[9] / scales - layer.matrix[9]
    assert found.factors == "gpt_neox.layers.0.mlp.act.scales" and not found.estimated
    assert found.error == pytest.approx(d @ layer.gram[0] @ d)
    with pytest.raises(UnsupportedProblemError, match="inputs scaled"):
        quick(checkpoint({name: weight}), [layer])


def test_a_shifted_bias_of_a_norm_is_refused(toy: Toy, tmp_path: Path) -> None:
    bias = f"{BLOCK}input_layernorm.bias"
    toy.dense[bias] = np.linspace(0.5, 1.5, N).astype(np.float16)

    def fold(tensors: dict[str, Any]) -> None:
        folded("input_layernorm", ATTENTION)(tensors)
        tensors[bias] /= FACTORS

    def shift(tensors: dict[str, Any]) -> None:
        fold(tensors)
        tensors[bias] += 0.3

    layers, original = toy.layers(), toy.save(tmp_path / "dense")
    scores = quick(stored(tmp_path / "scaled", toy, fold), layers, "q_proj", original=original)
    assert scores.layers[0].factors == f"{BLOCK}input_layernorm"
    with pytest.raises(UnsupportedProblemError, match="shifted"):
        quick(stored(tmp_path / "shifted", toy, shift), layers, "q_proj", original=original)


def test_other_biases_of_layers_are_refused_unless_biases_are_refitted(toy: Toy, tmp_path: Path) -> None:
    bias = f"{ATTENTION[0]}.bias"
    toy.dense[bias] = np.linspace(0.5, 1.5, N).astype(np.float16)

    def change(tensors: dict[str, Any]) -> None:
        tensors[bias] += 0.1

    path, layers, original = stored(tmp_path / "q", toy, change), toy.layers(), toy.save(tmp_path / "dense")
    with pytest.raises(UnsupportedProblemError, match="--bias refit"):
        quick(path, layers, "q_proj", original=original)
    # A bias that the original does not have is another one, too, unless it is 0.
    del toy.dense[bias]
    without = toy.save(tmp_path / "without")
    with pytest.raises(UnsupportedProblemError, match="--bias refit"):
        quick(path, layers, "q_proj", original=without)
    toy.dense[bias] = np.zeros(N, dtype=np.float16)
    assert len(quick(stored(tmp_path / "zero", toy), layers, "q_proj", original=without)) == 1
    found = quick(path, layers, "q_proj", original=original, bias="refit").layers[0]
    assert found.own is not None and "bias re-fitted" in found.own.label
