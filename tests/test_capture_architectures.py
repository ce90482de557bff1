"""Models of transformers as they are: padded batches of any shape give what their sequences give alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.exceptions import InputError

torch = pytest.importorskip("torch", reason="capture needs PyTorch")
transformers = pytest.importorskip("transformers", reason="its models need the transformers extra")
from torch import Tensor, nn  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:layer .* positions for", "ignore:never reached", "ignore:layer .* is not"
)

SMALL: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 24}
MODELS = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SMALL, num_attention_heads=4)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=4)
    ),
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SMALL, num_attention_heads=4, num_key_value_heads=2)
    ),
    "qwen3 (normalised heads)": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**SMALL, num_attention_heads=4, num_key_value_heads=2, head_dim=4)
    ),
    "opt": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=1,
            ffn_dim=24,
            num_attention_heads=4,
            word_embed_proj_dim=16,
        )
    ),
    "t5 encoder": lambda: transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4)
    ),
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def batch_of(sequences: int, tokens: int, left: bool) -> dict[str, Tensor]:
    lengths = tokens - torch.arange(sequences) % tokens
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    return {"input_ids": torch.randint(3, 32, mask.shape), "attention_mask": mask.flip(1) if left else mask}


def alone(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    return [
        {"input_ids": i[m][None], "attention_mask": torch.ones(1, int(m.sum()))} for i, m in zip(ids, mask, strict=True)
    ]


# As many sequences as tokens and heads, and other numbers.
@pytest.mark.parametrize(("name", "shape"), [*((name, (4, 4)) for name in MODELS), ("bert", (3, 7))])
def test_padded_batches_give_what_their_sequences_give(name: str, shape: tuple[int, int]) -> None:
    model = MODELS[name]().double()
    batch = batch_of(*shape, left=False)
    together, single = lb.capture(model, [batch]), lb.capture(model, alone(batch))
    assert list(together) == list(single)
    for key, layer in together.items():
        assert layer.samples == single[key].samples
        np.testing.assert_allclose(layer.gram, single[key].gram, rtol=1e-6, atol=1e-8 * np.abs(layer.gram).max())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_padding_before_the_tokens(name: str) -> None:
    model = MODELS[name]().double()
    batch = batch_of(4, 4, left=True)
    single = lb.capture(model, alone(batch))
    # Positions are counted from the first token where the model takes them; relative ones need no help.
    for key, layer in lb.capture(model, [batch]).items():
        np.testing.assert_allclose(layer.gram, single[key].gram, rtol=1e-6, atol=1e-6 * np.abs(layer.gram).max())


class Mixture(nn.Module):
    """Experts called as transformers did before it fused them: only those that have tokens, on their tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate, self.head = nn.Embedding(32, 8), nn.Linear(8, 4, bias=False), nn.Linear(8, 8)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8)) for _ in range(4))
        self.double()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids)
        shape, x = x.shape, x.reshape(-1, 8)
        scores, chosen = torch.topk(self.gate(x).softmax(-1), 2)
        result = torch.zeros_like(x)
        hits = nn.functional.one_hot(chosen, 4).permute(2, 1, 0)
        for expert in hits.sum((-1, -2)).nonzero()[:, 0].tolist():
            place, rows = torch.where(hits[expert])
            result.index_add_(0, rows, self.experts[expert](x[rows]) * scores[rows, place, None])
        return self.head((x + result).reshape(shape))


def test_mixtures_of_experts() -> None:
    model = Mixture()
    batch = batch_of(6, 6, left=False)
    with pytest.raises(InputError, match=r"layer 'experts\.\d\.0' sees inputs of shape .* cannot be applied"):
        lb.capture(model, [batch])
    whole = lb.capture(model, alone(batch))
    assert len(whole) == 10
    some = lb.capture(model, [batch], ["gate", "head"])
    for name in ("gate", "head"):
        np.testing.assert_allclose(some[name].gram, whole[name].gram, rtol=1e-9, atol=1e-12)
    result = lb.compress(model, [batch], "rtn", bits=3, intervals=False)
    assert list(result.layers) == ["gate", "head"] and len(result.refused) == 8
    unpadded = {"input_ids": torch.randint(3, 32, (20, 20)), "attention_mask": None}
    sequential = lb.compress(model, [unpadded], "rtn", bits=2, intervals=False)
    assert {"gate", "head"} <= set(sequential.layers)
    assert len(sequential.layers) + len(sequential.refused) == 10


def test_text_beside_images() -> None:
    config = transformers.CLIPConfig(
        text_config={"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
                     "num_attention_heads": 2, "max_position_embeddings": 16, "eos_token_id": 2},
        vision_config={"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "image_size": 8, "patch_size": 4},
        projection_dim=8,
    )  # fmt: skip
    model = transformers.CLIPModel(config)
    # As many patches, and one more for the class, as tokens.
    batch = {**batch_of(5, 5, left=False), "pixel_values": torch.randn(5, 3, 8, 8)}
    layers = lb.capture(model, [batch], ["text_model.*", "visual_projection", "text_projection"])
    assert layers["text_model.encoder.layers.0.mlp.fc1"].samples == int(batch["attention_mask"].sum())
    assert layers["visual_projection"].samples == 5
    with pytest.raises(InputError, match=r"layer 'vision_model\..*' sees inputs .*\(its rows are not tokens\)"):
        lb.capture(model, [batch], "vision_model.encoder.*")
