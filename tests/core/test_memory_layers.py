"""Memory layers in models of several families: equal at first, saved and loaded, generating, taught without a dense gradient."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)

from postgrad.core.config import validate
from postgrad.core.errors import ConfigError, ModelError
from postgrad.core.models.memory import (
    Accesses,
    MemoryConfig,
    Selection,
    attach,
    memory_config,
    memory_layers,
    set_index,
)
from postgrad.core.models.memory.layer import MemoryLayer

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
CONFIGS = {
    "qwen3": lambda: Qwen3Config(**SIZES, tie_word_embeddings=True),
    "llama": lambda: LlamaConfig(**SIZES),
    "gpt2": lambda: GPT2Config(vocab_size=61, n_positions=64, n_embd=32, n_layer=3, n_head=4),
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES, sliding_window=5, layer_types=["sliding_attention"] * 2 + ["full_attention"]
    ),
    "moe": lambda: Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
}
SMALL = {"num_slots": 30, "num_heads": 2, "top_k": 4, "key_dim": 9}


def build(name: str = "qwen3") -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()


def tokens() -> torch.Tensor:
    return torch.randint(0, 61, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("mode", ["additive", "replace"])
def test_attach_save_and_load(name: str, mode: str, tmp_path: Path) -> None:
    module = build(name)
    with torch.no_grad():
        before = module(tokens()).logits
        layers = attach(module, MemoryConfig(layers=(1, 2), mode=mode, **SMALL))  # type: ignore[arg-type]
        after = module(tokens()).logits
        assert list(memory_layers(module).values()) == layers
        assert (after - before).abs().max() > 1e-5
        if mode == "additive":
            for layer in layers:
                layer.scale.zero_()  # type: ignore[union-attr]
            assert torch.equal(module(tokens()).logits, before)
            for layer in layers:
                layer.scale.fill_(0.5)  # type: ignore[union-attr]
        expected = module(tokens()).logits
        module.save_pretrained(tmp_path)
        from postgrad.core.models.model import _load_module

        loaded = _load_module(tmp_path, torch.float32, trust_remote_code=False)
        assert memory_config(loaded) == memory_config(module)
        assert torch.equal(loaded(tokens()).logits, expected)
        assert torch.equal(copy.deepcopy(loaded)(tokens()).logits, expected)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    if mode == "additive":  # without postgrad it is the model that it was
        torch.testing.assert_close(plain(tokens()).logits, before)


def test_two_models_and_two_layers_share_only_what_they_are_told_to() -> None:
    own, shared, other = build(), build(), build()
    attach(own, MemoryConfig(layers=(0, 2), **SMALL))
    layers = attach(shared, MemoryConfig(layers=(0, 2), shared_values=True, **SMALL))
    attach(other, MemoryConfig(layers=(0, 2), shared_values=True, **SMALL))
    assert layers[0].table is layers[1].table
    assert sum(name.endswith("values.weight") for name in shared.state_dict()) == 1
    assert sum(name.endswith("values.weight") for name in own.state_dict()) == 2
    with torch.no_grad():
        layers[0].table.weight.zero_()
    assert all(
        bool((x.table.weight != 0).any())
        for x in (*memory_layers(other).values(), *memory_layers(own).values())
    )


def test_the_layer_is_the_equation(tmp_path: Path) -> None:
    """out = (Σ_h Σ_k softmax(K_I q)·V_I ⊙ silu(W1 x)) W2, token by token, head by head, over all pairs of half keys."""
    config = MemoryConfig(layers=(0,), mode="replace", **SMALL)
    layer = MemoryLayer(config, 32)
    layer.reset(torch.Generator().manual_seed(3))
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(4))
    found = layer(x)
    for b in range(2):
        for t in range(3):
            query = (layer.query.weight @ x[b, t]).view(2, 9)
            y = torch.zeros(32)
            for h in range(2):
                halves = [norm(part) for norm, part in zip(layer.norms, query[h].split([4, 5]), strict=True)]
                scores = (layer.keys[0][h] @ halves[0])[:, None] + (layer.keys[1][h] @ halves[1])[None]
                top = scores.flatten().topk(4)
                y = y + (top.values.softmax(0)[:, None] * layer.table.weight[top.indices]).sum(0)
            expected = layer.out.weight @ (y * torch.nn.functional.silu(layer.gate.weight @ x[b, t]))
            torch.testing.assert_close(found[b, t], expected, rtol=1e-4, atol=1e-6)


def test_teaching_differentiates_the_chosen_rows_alone_and_stops_at_the_first_memory() -> None:
    module = build()
    layers = attach(module, MemoryConfig(layers=(1, 2), scale=1.0, **SMALL))
    module.requires_grad_(False)

    def choose(found: Accesses) -> torch.Tensor:
        return found.slots.unique()[::2]

    for layer in layers:
        layer.selection = Selection(choose)
    out = module(tokens(), labels=tokens())
    out.loss.backward()
    assert not any(p.grad is not None for p in module.parameters())
    selections = [layer.selection for layer in layers]
    compact = [selection.active.grad for selection in selections]  # type: ignore[union-attr]
    for layer in layers:
        layer.selection = None
        layer.table.weight.requires_grad_()
    module(tokens(), labels=tokens()).loss.backward()
    for layer, selection, gradient in zip(layers, selections, compact, strict=True):
        assert gradient is not None
        torch.testing.assert_close(gradient, layer.table.weight.grad[selection.rows], rtol=1e-4, atol=1e-7)  # type: ignore[index, union-attr]


PQ = {"pq_subvectors": 4, "pq_codes": 3, "pq_share": 0.3, "pq_candidates": 4}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_of_flat_keys_is_read_by_pq_and_back_with_the_same_weights(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    from postgrad.core.models.model import _load_module

    module = build("gpt2").to(dtype)
    layers = attach(module, MemoryConfig(layers=(1, 2), index="flat", scale=1.0, **SMALL))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        flat = module(tokens()).logits
        set_index(module, "pq", pq_share=1.0, pq_candidates=30)
        torch.testing.assert_close(module(tokens()).logits, flat)  # all keys are candidates
        set_index(module, "pq", **PQ)
        few = module(tokens()).logits
        assert not torch.equal(few, flat)
        assert module.state_dict().keys() == before.keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
        module.save_pretrained(tmp_path)
        loaded = _load_module(tmp_path, dtype, trust_remote_code=False)
        assert memory_config(loaded) == layers[0].config
        assert torch.equal(loaded(tokens()).logits, few)
        set_index(loaded, "flat")
        assert torch.equal(loaded(tokens()).logits, flat)


def test_codes_follow_the_keys_and_trained_keys_are_looked_up_exactly() -> None:
    layer = MemoryLayer(MemoryConfig(layers=(0,), index="pq", **SMALL, **PQ), 32)
    layer.reset(torch.Generator().manual_seed(0))
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(1))

    def slots(layer: MemoryLayer, index: str = "pq") -> torch.Tensor:
        layer.config = layer.config.model_copy(update={"index": index})
        with torch.no_grad():
            return layer.look_up(x).slots

    flat, first = slots(layer, "flat"), slots(layer)
    assert not torch.equal(first, flat)
    assert torch.equal(layer.look_up(x).slots, flat)  # the keys want a gradient
    layer.look_up(x).scores.sum().backward()
    assert layer.keys[0].grad.abs().sum() > 0
    layer.keys.requires_grad_(False)
    assert torch.equal(layer.look_up(x).slots, first)
    made = layer._codes
    assert slots(layer) is not first
    assert layer._codes is made  # not made twice
    twin = copy.deepcopy(layer)
    for changed in (layer, twin):
        with torch.no_grad():
            changed.keys[0].copy_(
                torch.randn(changed.keys[0].shape, generator=torch.Generator().manual_seed(2))
            )
        fresh = copy.deepcopy(changed)
        assert torch.equal(slots(changed), slots(fresh))
        assert not torch.equal(slots(changed), first)
    layer.keys[0] = torch.nn.Parameter(twin.keys[0].flip(1), requires_grad=False)
    assert torch.equal(slots(layer), slots(copy.deepcopy(layer)))


def test_only_flat_keys_change_their_index() -> None:
    module = build()
    with pytest.raises(ModelError, match="received no memory"):
        set_index(module, "pq")
    attach(module, MemoryConfig(layers=(1,), index="pq", **SMALL))
    with pytest.raises(ModelError, match="num_slots would be other weights"):
        set_index(module, "flat", num_slots=31)
    with pytest.raises(ConfigError, match="pq_share"):
        set_index(module, "pq", pq_share=0.0)
    product = build()
    attach(product, MemoryConfig(layers=(1,), **SMALL))
    with pytest.raises(ModelError, match="received index 'product'"):
        set_index(product, "pq")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": []}, "at least 1 item"),
        ({"layers": [1, 1]}, "different blocks"),
        ({"layers": [1], "num_slots": 3, "top_k": 4}, "cannot be read from num_slots = 3"),
        ({"layers": [1], "slots": 3}, "Unknown key 'slots'"),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        validate(MemoryConfig, options)


def test_impossible_places_are_refused_and_damage_is_noticed(tmp_path: Path) -> None:
    module = build()
    with pytest.raises(ModelError, match="blocks 0 to 2"):
        attach(module, MemoryConfig(layers=(3,), **SMALL))
    attach(module, MemoryConfig(layers=(1,), **SMALL))
    with pytest.raises(ModelError, match="has memory layers already"):
        attach(module, MemoryConfig(layers=(1,), **SMALL))
    module.save_pretrained(tmp_path)
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("model.layers.1.mlp.memory.values.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    from postgrad.core.models.model import _load_module

    with pytest.raises(ModelError, match=r"values\.weight should have shape \(30, 32\), found nothing"):
        _load_module(tmp_path, torch.float32, trust_remote_code=False)
