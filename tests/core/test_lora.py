"""LoRA: merged weights against peft's own merge, saving and loading, what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rooms.rl.conftest import CONFIGS, build
from transformers import AutoModelForCausalLM

from postgrad.core.errors import ModelError
from postgrad.core.models import LoraConfig
from postgrad.core.models.lora import (
    adapter_dropout,
    add_lora,
    count_lora,
    is_lora,
    load_adapter,
    merged_weights,
    save_lora,
)

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft on a newer transformers
TOKENS = torch.tensor([[5, 6, 7, 8, 9]])


def adapted(name: str = "qwen3", seed: int = 0, **options: Any) -> Any:
    """A peft model whose adapter is not zero."""
    module = add_lora(build(name).module, LoraConfig(rank=3, alpha=5.0, **options), seed)
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.1)
    return module.eval()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_weights_are_pefts(name: str, dtype: torch.dtype) -> None:
    base = build(name).module.to(dtype)
    untouched = {key: value.clone() for key, value in base.state_dict().items()}
    module = add_lora(base, LoraConfig(rank=3, alpha=5.0), 0)
    for key, value in merged_weights(module).items():  # B = 0: nothing has changed yet
        assert torch.equal(value, untouched[key]), key
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            assert parameter.requires_grad == ("lora_" in key)
            if "lora_B" in key:
                parameter.normal_(std=0.1)
    ours = merged_weights(module)
    assert list(ours) == list(untouched)
    theirs = copy.deepcopy(module).merge_and_unload().state_dict()
    changed = 0
    for key, value in theirs.items():
        assert ours[key].dtype == dtype
        assert torch.equal(ours[key], value), key
        changed += not torch.equal(value, untouched[key])
    assert changed >= 4
    for key, value in untouched.items():  # merging left the base alone
        live = dict(module.get_base_model().state_dict())
        assert torch.equal(
            live.get(key, live.get(f"{key.rpartition('.')[0]}.base_layer.{key.rpartition('.')[2]}")), value
        )


def test_the_merged_weight_by_hand() -> None:
    module = adapted(target_modules=("q_proj",))
    layer = module.get_base_model().model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = layer.base_layer.weight + 5.0 / 3 * b @ a
    weights = merged_weights(module)
    torch.testing.assert_close(weights["model.layers.0.self_attn.q_proj.weight"], expected.detach())
    assert weights["model.layers.0.self_attn.k_proj.weight"] is not None
    plain = build().module
    plain.load_state_dict(weights)
    torch.testing.assert_close(plain(TOKENS).logits, module(TOKENS).logits, rtol=1e-4, atol=1e-5)


def test_what_is_saved_is_read_by_transformers_and_by_peft(tmp_path: Path) -> None:
    module = adapted()
    expected = module(TOKENS).logits.detach()
    save_lora(module, tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(merged(TOKENS).logits, expected, rtol=1e-4, atol=1e-5)
    names = sorted(path.name for path in (tmp_path / "adapter").iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    theirs = peft.PeftModel.from_pretrained(build().module, tmp_path / "adapter")
    assert torch.equal(theirs(TOKENS).logits, expected)
    again = add_lora(build().module, LoraConfig(rank=3, alpha=5.0), 9)
    load_adapter(again, tmp_path)
    assert torch.equal(again.eval()(TOKENS).logits, expected)
    other = add_lora(build().module, LoraConfig(rank=2), 0)
    with pytest.raises(ModelError, match="cannot be read"):
        load_adapter(other, tmp_path)
    with pytest.raises(ModelError, match="cannot be read"):
        load_adapter(again, tmp_path / "nowhere")


def test_the_seed_draws_the_adapter_and_leaves_the_global_generator_alone() -> None:
    def first(seed: int) -> torch.Tensor:
        module = add_lora(build().module, LoraConfig(), seed)
        return next(p for n, p in module.named_parameters() if "lora_A" in n).detach()

    torch.manual_seed(3)
    before = torch.get_rng_state()
    module = build().module
    torch.set_rng_state(before)
    add_lora(module, LoraConfig(), 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_dropout_acts_within_its_context_only_and_by_its_seed() -> None:
    module = adapted(dropout=0.5)
    plain = module(TOKENS).logits
    drawn = []
    for seed in (1, 1, 2):
        with adapter_dropout(module, seed):
            drawn.append(module(TOKENS).logits)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], plain)
    assert torch.equal(module(TOKENS).logits, plain)
    assert not module.training


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("targets", ["all-linear", "some"])
def test_parameters_are_counted_as_peft_makes_them(name: str, targets: str) -> None:
    some = ("c_attn",) if name == "gpt2" else ("q_proj", "mlp.down_proj")
    config = LoraConfig(rank=3, target_modules="all-linear" if targets == "all-linear" else some)
    expected = count_lora(build(name).module, config)
    module = add_lora(build(name).module, config, 0)
    assert is_lora(module)
    assert not is_lora(build(name).module)
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == expected


def test_targets_that_cannot_be_adapted_are_refused() -> None:
    with pytest.raises(ModelError, match=r"linear layers are called .*q_proj"):
        add_lora(build().module, LoraConfig(target_modules=("attention",)), 0)
    for name in ("lm_head", "embed_tokens"):
        with pytest.raises(ModelError, match="the head or the embedding"):
            add_lora(build().module, LoraConfig(target_modules=("q_proj", name)), 0)
    with pytest.raises(ValueError, match="target_modules is empty"):
        LoraConfig(target_modules=())
