"""GGUF files written from a template: exact, everything else kept, and read by other software."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import dequantized, gguf, random_blocks, write_file
from numpy.typing import NDArray

import layerbounds as lb
from layerbounds.checkpoints.gguf.names import hugging_face_names
from layerbounds.checkpoints.writers import gguf as writer
from layerbounds.exceptions import FileFormatError, InputError, UnknownNameError, UnsupportedProblemError
from layerbounds.problems.grids import Grid

UP, QUERY = "model.layers.0.mlp.up_proj", "model.layers.0.self_attn.q_proj"


def weight_on(grid: Grid, codes: NDArray[Any], name: str = UP) -> lb.QuantizedWeight:
    return lb.QuantizedWeight(name, "made", grid, codes, codes.shape, "float32", 0)


def halves(rng: np.random.Generator, *shape: int) -> NDArray[np.float64]:
    return rng.normal(size=shape).astype(np.float16).astype(np.float64)


def template(folder: Path, rng: np.random.Generator) -> Path:
    return write_file(
        folder / "template.gguf",
        {
            "token_embd.weight": rng.normal(size=(7, 64)).astype(np.float32),
            "blk.0.attn_q.weight": (random_blocks(rng, "Q8_0", 8, 2), "Q8_0"),
            "blk.0.attn_norm.weight": np.ones(64, dtype=np.float32),
            "blk.0.ffn_up.weight": rng.normal(size=(8, 64)).astype(np.float16),
            "blk.0.ffn_down.weight": (random_blocks(rng, "Q6_K", 3, 1), "Q6_K"),
        },
        attention__head_count=2,
        block_count=1,
    )


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_written_is_what_was_read(tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
    """Bytes of any file come back: scales of 0, negative ones, subnormal ones, every code."""
    raw = random_blocks(rng, kind, 16, 3)
    path = write_file(tmp_path / "a.gguf", {"blk.0.ffn_up.weight": (raw, kind)})
    weight = lb.load_checkpoint(path)[UP]
    again = writer.tensors(weight, kind=kind)["weight"]
    # −0 is written as 0, and a scale of 0 has one code; else bytes are the same.
    assert np.array_equal(dequantized(again, kind), weight.loaded)
    same = np.repeat(weight.grid.scale != 0, again.shape[1] // 3, axis=1)
    minus = np.repeat(weight.grid.offset == 0, again.shape[1] // 3, axis=1) if kind.endswith("1") else ~same
    assert np.array_equal(again[same & ~minus], raw[same & ~minus]) and np.count_nonzero(same & ~minus) > 0


@pytest.mark.parametrize(
    ("kind", "codes", "zero"),
    [
        ("Q4_0", range(-8, 8), 0),
        ("Q4_0", range(-2, 2), 0),
        ("Q4_0", range(16), 8),
        ("Q4_1", range(16), 0),
        ("Q4_0", range(4), 0),
        ("Q5_0", range(-16, 16), 0),
        ("Q5_1", range(32), 0),
        ("Q8_0", range(-128, 128), 0),
        ("Q8_0", range(100), 50),
    ],
)
def test_grids_that_types_hold(rng: np.random.Generator, kind: str, codes: range, zero: int) -> None:
    grid = Grid(np.array(codes), halves(rng, 6, 2), zero, 64)
    chosen = rng.integers(0, len(codes), (6, 64)).astype(np.uint8)
    assert writer.kind_of(grid) == kind
    writer.check(grid)
    written = writer.tensors(weight_on(grid, chosen))["weight"]
    assert np.array_equal(dequantized(written, kind), weight_on(grid, chosen).loaded)


def test_one_scale_for_several_blocks_and_zero_points_of_each(rng: np.random.Generator) -> None:
    grid = Grid(range(16), halves(rng, 4, 1), rng.integers(7, 9, (4, 1)), 96)
    assert set(grid.zero_point.ravel()) == {7, 8} and writer.kind_of(grid) == "Q5_0"
    assert writer.kind_of(Grid(range(16), grid.scale * 1.001, grid.zero_point, 96)) == "Q4_1"
    weight = weight_on(grid, rng.integers(0, 16, (4, 96)))
    for kind in ("Q5_0", "Q8_0"):
        assert np.array_equal(dequantized(writer.tensors(weight, kind=kind)["weight"], kind), weight.loaded)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_rounded_grids_are_held(rng: np.random.Generator, bits: int, symmetric: bool) -> None:
    matrix = rng.normal(size=(5, 64))
    grid = lb.uniform_grid(matrix, bits, symmetric=symmetric, granularity=32)
    if bits == 8 and not symmetric:
        with pytest.raises(UnsupportedProblemError, match="codes less zero points go from"):
            writer.rounded(grid)
        return
    with pytest.raises(UnsupportedProblemError, match="as float16, and those of this grid are others"):
        writer.check(grid)
    near = writer.rounded(grid)
    writer.check(near)
    kind = writer.kind_of(near)
    # Few codes have room in Q4_0 wherever zero is.
    assert kind == {2: "Q4_0", 3: "Q4_0", 8: "Q8_0"}.get(bits, f"Q{bits}_{0 if symmetric else 1}")
    for channel in range(5):
        width = np.abs(grid.levels(channel)).max()
        assert np.abs(near.levels(channel) - grid.levels(channel)).max() <= 2**-10 * width
    codes = rng.integers(0, len(near.codes), (5, 64))
    assert np.array_equal(
        dequantized(writer.tensors(weight_on(near, codes))["weight"], kind), weight_on(near, codes).loaded
    )


def test_what_no_type_holds(rng: np.random.Generator) -> None:
    for grid, message in (
        (Grid(range(4), np.ones((2, 1)), 0, 48), "its 48 inputs are no multiple of 32"),
        (Grid(range(4), np.ones((2, 4)), 0, 64), "scales are for 32 inputs in a row, and its groups are others"),
        (lb.codebook_grid(rng.normal(size=(2, 64)), "nf4"), "its codes are no whole numbers"),
        (Grid(range(300), np.ones((2, 1)), 0, 32), "its codes go over 299 steps, more than 255"),
        (Grid(range(40), np.ones((2, 1)), 0.5, 32), "its zero points are no whole numbers"),
        (Grid(range(40), np.ones((2, 1)), 0, 32, offset=np.ones((2, 1))), "its levels have an offset"),
        (Grid(range(40), np.ones((2, 1)), -100, 32), "its codes less zero points go from 100 to 139"),
    ):
        with pytest.raises(UnsupportedProblemError, match=f"GGUF cannot hold this grid: {message}"):
            writer.check(grid)
    with pytest.raises(UnsupportedProblemError, match="Q4_0 cannot hold this grid: its codes go over 31 steps"):
        writer.check(Grid(range(32), np.ones((2, 1)), 0, 32), "Q4_0")
    with pytest.raises(UnsupportedProblemError, match="up to 65504"):
        writer.rounded(Grid(range(4), np.full((2, 1), 1e5), 0, 32))
    # Scale times zero point is no number of the type.
    with pytest.raises(UnsupportedProblemError, match="Q4_1 stores scales and minima as float16"):
        writer.check(Grid(range(16), np.full((2, 1), 0.0999755859375), 7, 32), "Q4_1")
    with pytest.raises(InputError, match=r"kind is 'Q4_K'; did you mean Q4_1 or Q4_0\? choose"):
        writer.kind_of(Grid(range(4), np.ones((2, 1)), 0, 32), "Q4_K")


def test_template_keeps_all_else(tmp_path: Path, rng: np.random.Generator) -> None:
    path, out = template(tmp_path, rng), tmp_path / "out.gguf"
    up = weight_on(Grid(range(-8, 8), halves(rng, 8, 2), 0, 64), rng.integers(0, 16, (8, 64)))
    query = weight_on(Grid(range(16), halves(rng, 8, 2), 0, 64, offset=halves(rng, 8, 2)), rng.integers(0, 16, (8, 64)))
    assert writer.replaceable(path) == {
        "model.embed_tokens": (7, 64),
        QUERY: (8, 64),
        UP: (8, 64),
        "model.layers.0.mlp.down_proj": (3, 256),
    }
    writer.write(path, out, {"blk.0.ffn_up": up, "self_attn.q_proj": query})
    before, after = gguf.GGUFReader(path), gguf.GGUFReader(out)
    assert {"general.quantization_version"} == set(after.fields) - set(before.fields)
    for name, field in before.fields.items():
        if not name.startswith("GGUF."):
            assert after.fields[name].contents() == field.contents()
    assert [tensor.name for tensor in after.tensors] == [tensor.name for tensor in before.tensors]
    for old, new in zip(before.tensors, after.tensors, strict=True):
        if old.name in ("blk.0.ffn_up.weight", "blk.0.attn_q.weight"):
            assert new.tensor_type.name == ("Q4_0" if "up" in old.name else "Q4_1")
        else:
            assert new.tensor_type == old.tensor_type and np.array_equal(new.data, old.data)
    checkpoint = lb.load_checkpoint(out)
    for name, weight in ((UP, up), (QUERY, query)):
        assert np.array_equal(checkpoint[name].weight, weight.weight)
    # Again, from what was written: nothing is added twice.
    writer.write(out, tmp_path / "again.gguf", {UP: up}, kinds="Q8_0")
    assert set(gguf.GGUFReader(tmp_path / "again.gguf").fields) == set(after.fields)
    checkpoint = lb.load_checkpoint(tmp_path / "again.gguf")
    assert np.array_equal(checkpoint[UP].weight, up.weight) and checkpoint[UP].format == "GGUF Q8_0, groups of 32"
    writer.write(out, out, {UP: up}, kinds={UP: "Q4_0"})
    assert lb.load_checkpoint(out)[UP].format == "GGUF Q4_0, groups of 32"


def test_templates_of_several_parts_become_one(tmp_path: Path, rng: np.random.Generator) -> None:
    paths = [tmp_path / f"m-{number:05d}-of-00002.gguf" for number in (1, 2)]
    for number, path in enumerate(paths):
        made = gguf.GGUFWriter(path, "llama")
        made.add_uint16("split.no", number)
        made.add_uint16("split.count", 2)
        made.add_tensor(
            f"blk.{number}.ffn_up.weight", random_blocks(rng, "Q5_0", 8, 2), raw_dtype=gguf.GGMLQuantizationType.Q5_0
        )
        made.write_header_to_file()
        made.write_kv_data_to_file()
        made.write_tensors_to_file()
        made.close()
    weight = weight_on(Grid(range(-8, 8), halves(rng, 8, 2), 0, 64), rng.integers(0, 16, (8, 64)))
    other = lb.load_checkpoint(paths[1])["model.layers.1.mlp.up_proj"].weight
    writer.write(paths[1], tmp_path / "one.gguf", {UP: weight})
    reader = gguf.GGUFReader(tmp_path / "one.gguf")
    assert not any(name.startswith("split.") for name in reader.fields) and len(reader.tensors) == 2
    checkpoint = lb.load_checkpoint(tmp_path / "one.gguf")
    assert np.array_equal(checkpoint[UP].weight, weight.weight)
    assert np.array_equal(checkpoint["model.layers.1.mlp.up_proj"].weight, other)


def test_what_a_template_cannot_take(tmp_path: Path, rng: np.random.Generator) -> None:
    path, out = template(tmp_path, rng), tmp_path / "out.gguf"
    weight = weight_on(Grid(range(-8, 8), halves(rng, 8, 2), 0, 64), rng.integers(0, 16, (8, 64)))
    with pytest.raises(UnknownNameError, match="no matrix in"):
        writer.write(path, out, {"model.layers.1.mlp.up_proj": weight})
    with pytest.raises(InputError, match=r"has the shape \(8, 64\), but tensor 'token_embd.weight' .* has \(7, 64\)"):
        writer.write(path, out, {"embed_tokens": weight})
    with pytest.raises(InputError, match=r"are both tensor 'blk\.0.ffn_up.weight'"):
        writer.write(path, out, {UP: weight, "blk.0.ffn_up": weight})
    unrounded = weight_on(Grid(range(32), np.full((8, 2), 0.1), 0, 64), rng.integers(0, 32, (8, 64)))
    with pytest.raises(UnsupportedProblemError, match="Q5_1 stores scales"):
        writer.write(path, out, {UP: unrounded})
    with pytest.raises(FileFormatError, match="is no GGUF file"):
        writer.write(tmp_path / "none.safetensors", out, {UP: weight})
    conv = lb.QuantizedWeight(UP, "made", weight.grid, weight.codes, (8, 16, 2, 2), "float32", 0)
    with pytest.raises(UnsupportedProblemError, match="has the shape"):
        writer.tensors(conv)
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_transformers_loads_what_is_written(tmp_path: Path, rng: np.random.Generator, architecture: str) -> None:
    """A template as the converter makes it, replaced layers, and transformers reads the weights that are reported."""
    transformers = pytest.importorskip("transformers", reason="it loads the file")
    torch = pytest.importorskip("torch")
    common = {"vocab_size": 48, "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    if architecture == "gpt2":
        config = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=1024, n_inner=256, **common)
    else:
        make = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[architecture]
        config = make(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            tie_word_embeddings=False,
            **common,
        )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    path = converted(tmp_path / "template.gguf", model, architecture)
    out = tmp_path / "out.gguf"
    weights = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D":
            if name == "lm_head":
                continue
            matrix = module.weight.detach().double().numpy()
            matrix = matrix.T if type(module).__name__ == "Conv1D" else matrix
            grid = writer.rounded(
                lb.uniform_grid(matrix, 4, symmetric="down" in name or "attn" in name, granularity=32)
            )
            codes = np.stack(
                [np.abs(grid.levels(row)[:, :] - matrix[row][:, None]).argmin(1) for row in range(len(matrix))]
            )
            # Levels of negative scales are mirrored.
            assert np.all(grid.scale > 0)
            weights[name] = weight_on(grid, codes, name)
    assert set(weights) <= set(writer.replaceable(path))
    writer.write(path, out, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file="out.gguf", dtype=torch.float32
        ).eval()
    checkpoint = lb.load_checkpoint(out)
    assert set(weights) == set(checkpoint)
    for name, weight in weights.items():
        theirs = loaded.get_submodule(name).weight.detach().numpy()
        theirs = theirs.T if architecture == "gpt2" else theirs
        assert np.array_equal(theirs, weight.loaded) and np.array_equal(checkpoint[name].weight, weight.weight), name
    for name, values in checkpoint.dense.items():
        assert np.array_equal(loaded.state_dict()[name].numpy(), values), name
    # And the whole: the model with these weights computes the same.
    with torch.no_grad():
        for name, weight in weights.items():
            values = torch.from_numpy(weight.loaded.T if architecture == "gpt2" else weight.loaded)
            model.get_submodule(name).weight.copy_(values)
        tokens = torch.arange(8)[None]
        assert torch.allclose(model(tokens).logits, loaded(tokens).logits, atol=1e-5)


#: Architectures of llama.cpp, and of transformers.
MODELS = {
    "apertus": "apertus", "arcee": "arcee", "bloom": "bloom", "cohere2": "cohere2", "command-r": "cohere",
    "exaone4": "exaone4", "falcon": "falcon", "gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text",
    "glm4moe": "glm4_moe", "gpt-oss": "gpt_oss", "gpt2": "gpt2", "gptneox": "gpt_neox", "granite": "granite",
    "granitemoe": "granitemoe", "llama": "llama", "mpt": "mpt", "olmo": "olmo", "olmo2": "olmo2", "olmoe": "olmoe",
    "phi2": "phi", "phi3": "phi3", "qwen2": "qwen2", "qwen2moe": "qwen2_moe", "qwen3": "qwen3", "qwen3moe": "qwen3_moe",
    "seed_oss": "seed_oss", "smollm3": "smollm3", "stablelm": "stablelm", "starcoder": "gpt_bigcode",
    "starcoder2": "starcoder2",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("architecture", MODELS)
def test_names_are_those_of_transformers(architecture: str) -> None:
    """Modules of a model, named in the file by the package's table, get their names back."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = transformers.AutoConfig.for_model(MODELS[architecture])
    config.num_hidden_layers = 2
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    number = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    table = gguf.get_tensor_name_map(number, 2)
    modules: dict[str, set[str]] = {}
    for key in model.state_dict():
        name = key.rpartition(".")[0]
        for prefix in ("", "transformer.", "model."):
            found = table.get_name(name.removeprefix(prefix))
            if found is not None:
                modules.setdefault(found, set()).add(name)
                break
    assert len(modules) >= 13
    names = hugging_face_names(architecture, modules)
    wrong = {name: names[name] for name, those in modules.items() if names[name] not in those}
    assert not wrong


def converted(path: Path, model: Any, architecture: str) -> Path:
    """A model as llama.cpp's converter stores it, all in float32: queries and keys paired, Conv1D transposed."""
    config = model.config
    made = gguf.GGUFWriter(path, architecture)
    made.add_block_count(config.num_hidden_layers)
    made.add_context_length(config.max_position_embeddings)
    made.add_embedding_length(config.hidden_size)
    made.add_head_count(config.num_attention_heads)
    if architecture == "gpt2":
        made.add_feed_forward_length(config.n_inner)
        made.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        made.add_feed_forward_length(config.intermediate_size)
        made.add_head_count_kv(config.num_key_value_heads)
        made.add_layer_norm_rms_eps(config.rms_norm_eps)
        made.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
        made.add_rope_freq_base(10000.0)
        made.add_vocab_size(config.vocab_size)
    made.add_token_list([f"t{token}" for token in range(config.vocab_size)])
    number = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            values = values.T
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        made.add_tensor(names.get_name(name, (".weight", ".bias")), np.ascontiguousarray(values))
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    return path
