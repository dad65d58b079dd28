"""Loading, saving and refusing models; fp32 logits."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from postgrad.core.config import resolve
from postgrad.core.errors import ConfigError, ModelError
from postgrad.core.models import Model, ModelConfig, fp32_head, latest_checkpoint, load, save
from postgrad.core.models.head import has_fp32_head
from postgrad.core.models.model import resolve_device, resolve_dtype
from postgrad.core.models.phrases import build_tokenizer

VOCAB = 264


def qwen(*, tied: bool = True, **options: object) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCAB,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=48,
            tie_word_embeddings=tied,
            bos_token_id=None,
            **{"eos_token_id": 1, **sizes, **options},
        )
    )


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB, n_positions=40, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1
        )
    )


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer(["xq\n", "7"], VOCAB, 48)


@pytest.fixture
def folder(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A complete model directory."""
    path = tmp_path / "model"
    save(Model(qwen(), tokenizer), path)
    return path


def edit(path: Path, **changes: object) -> None:
    """Set keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_config_needs_no_torch() -> None:
    code = "import sys, postgrad.core.models as m; m.ModelConfig(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_config_round_trip_and_refusals() -> None:
    config = resolve(ModelConfig, overrides={"embedded.steps": 7, "path": "x"})
    assert ModelConfig.model_validate(config.model_dump(mode="json")) == config
    with pytest.raises(ConfigError, match="num_kv_heads 3 does not divide num_heads 4"):
        resolve(ModelConfig, overrides={"embedded.num_kv_heads": 3})
    with pytest.raises(ConfigError, match="dtype"):
        resolve(ModelConfig, overrides={"dtype": "float16"})


def test_unknown_name_of_the_public_face() -> None:
    import postgrad.core.models as face

    assert face.__all__ == sorted(face.__all__)
    assert all(getattr(face, name) is not None for name in face.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = face.lode


def test_load_gives_what_was_saved(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    original, model = qwen().eval(), load(folder)
    tokens = torch.tensor([[5, 9, 200, 7]])
    assert torch.equal(model.module(tokens).logits, original(tokens).logits)
    assert not model.module.training
    assert (model.device.type, model.dtype) == ("cuda" if torch.cuda.is_available() else "cpu", model.dtype)
    assert model.num_parameters == sum(p.numel() for p in original.parameters())
    assert (model.context_length, model.stop_token_ids, model.pad_token_id) == (48, (1,), 0)
    assert (model.source, model.revision) == (str(folder), None)
    assert model.tokenizer.get_vocab() == tokenizer.get_vocab()


def test_saved_directory_is_plain_hugging_face(folder: Path) -> None:
    assert not list(folder.glob("*.bin"))
    module = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(module, Qwen3ForCausalLM)
    text = "xq 12 é"
    auto = AutoTokenizer.from_pretrained(folder)
    assert auto.decode(auto(text)["input_ids"]) == text


def test_dtype_and_device() -> None:
    cpu = torch.device("cpu")
    assert resolve_dtype("auto", cpu) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype("bfloat16", cpu) == torch.bfloat16
    with pytest.raises(ModelError, match=r"Unknown dtype 'float16'\. Valid: auto, float32, bfloat16"):
        resolve_dtype("float16", cpu)
    with pytest.raises(ModelError, match="Unknown device 'gpu'"):
        resolve_device("gpu")
    with pytest.raises(ModelError, match="cuda:99"):
        resolve_device("cuda:99")


def test_load_casts(folder: Path) -> None:
    assert load(folder, device="cpu").dtype == torch.float32
    assert load(folder, device="cpu", dtype="bfloat16").dtype == torch.bfloat16


def test_run_directory_resolves_to_its_latest_checkpoint(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (run / "run.json").write_text("{}")
    with pytest.raises(ModelError, match="has no checkpoint yet"):
        load(run)
    for step in (9, 10):
        shutil.copytree(folder, run / "checkpoints" / f"step_{step}")
    (run / "checkpoints" / "step_11.tmp").mkdir()
    (run / "checkpoints" / "step_new").mkdir()
    assert latest_checkpoint(run) == run / "checkpoints" / "step_10"
    assert latest_checkpoint(run / "checkpoints") == run / "checkpoints" / "step_10"
    assert latest_checkpoint(tmp_path / "nowhere") is None
    assert load(run).num_parameters == load(folder).num_parameters


def test_stop_tokens_come_from_generation_config_and_tokenizer(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[3, 1, 2])
    assert load(folder).stop_token_ids == (3, 1, 2)
    edit(folder / "generation_config.json", eos_token_id=2)
    assert load(folder).stop_token_ids == (2, 1)


def test_tokenizer_without_pad_is_left_alone(folder: Path, tmp_path: Path) -> None:
    edit(folder / "tokenizer_config.json", pad_token=None)
    model = load(folder)
    assert model.pad_token_id == 1
    save(model, tmp_path / "again")
    assert "pad_token" not in json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())


def test_no_end_token_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = tmp_path / "endless"
    save(Model(qwen(eos_token_id=None), tokenizer), path)
    assert load(path).stop_token_ids == (1,)
    edit(path / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ModelError, match=r"no end-of-sequence token.*tokenizer\.eos_token ="):
        load(path)


def test_absent_paths_are_refused_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="Did you mean 'model'"):
        load(folder.parent / "modell")
    with pytest.raises(ModelError, match=r"parent .* does not exist either"):
        load(folder.parent / "a" / "b")
    with pytest.raises(ModelError, match="is a file"):
        load(folder / "config.json")
    with pytest.raises(ModelError, match="path is empty"):
        load("")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match=r"'nobody/nothing' is neither a directory here .*HF_HUB_OFFLINE is set"
    ):
        load("nobody/nothing")


def test_directory_without_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model directory: it has no config\.json"):
        load(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds an adapter"):
        load(tmp_path)


def test_missing_and_pickled_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    with pytest.raises(ModelError, match=r"no weights \(\*\.safetensors\)"):
        load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model\.bin\).*Convert them once"):
        load(folder)
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"weights in .* cannot be loaded"):
        load(folder)


def test_incomplete_weights_are_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensors .*layers\.1\.mlp\.up_proj"):
        load(folder)


def test_tokenizer_troubles_are_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer in .* cannot be loaded"):
        load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer \(none of tokenizer\.json"):
        load(folder)


def test_vocabulary_above_the_embedding_is_refused(tmp_path: Path) -> None:
    big = build_tokenizer(
        ["alpha beta gamma delta epsilon zeta eta theta iota"] * 5 + ["alpha beta 7"] * 5, 300, 48
    )
    assert len(big) <= VOCAB
    big.add_tokens([f"<extra_{i}>" for i in range(10)])
    save(Model(qwen(), big), tmp_path / "m")
    with pytest.raises(ModelError, match=r"has token id \d+, but the model has only 264 embeddings"):
        load(tmp_path / "m")


@pytest.mark.parametrize("kind", ["masked", "encoder-decoder"])
def test_other_architectures_are_refused(
    kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    if kind == "masked":
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        module = BertForMaskedLM(BertConfig(vocab_size=VOCAB, **sizes))
    else:
        module = T5ForConditionalGeneration(
            T5Config(vocab_size=VOCAB, d_model=16, d_ff=16, d_kv=8, num_heads=2, num_layers=1)
        )
    save(Model(module, tokenizer), tmp_path)
    with pytest.raises(ModelError, match=f"not a causal language model but {type(module).__name__}"):
        load(tmp_path)


def test_unknown_model_type_is_refused(folder: Path) -> None:
    edit(folder / "config.json", model_type="no_such_type")
    with pytest.raises(ModelError, match=r"config\.json cannot be used .*trust_remote_code"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be used"):
        load(folder)


def test_load_is_silent(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    load(folder)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


HEADS = {
    "qwen3 tied": lambda: qwen(tied=True, initializer_range=0.5),
    "qwen3 untied": lambda: qwen(tied=False, initializer_range=0.5),
    "gpt2 tied": gpt2,
}


@pytest.mark.parametrize("name", HEADS)
def test_fp32_head(name: str) -> None:
    module = HEADS[name]().to(torch.bfloat16).eval()
    keys, tokens = list(module.state_dict()), torch.tensor([[5, 9, 200, 7], [3, 3, 1, 60]])
    plain = module(tokens).logits
    fp32_head(module)
    fp32_head(module, True)
    assert has_fp32_head(module)
    assert list(module.state_dict()) == keys
    trunk = module.model if hasattr(module, "model") else module.transformer
    hidden, head = trunk(tokens)[0], module.get_output_embeddings()
    assert hidden.dtype == torch.bfloat16
    logits = module(tokens).logits
    expected = hidden.double() @ head.weight.double().T
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)
    assert (plain.double() - expected).abs().max() > 10 * (logits.double() - expected).abs().max()
    fp32_head(module, False)
    fp32_head(module, False)
    assert not has_fp32_head(module)
    assert torch.equal(module(tokens).logits, plain)


@pytest.mark.parametrize("name", HEADS)
def test_fp32_head_gradient_reaches_the_right_parameter(name: str) -> None:
    """A fp64 copy is the reference; embedding gradients hold both uses of a tied weight."""
    module = HEADS[name]().to(torch.bfloat16).eval()
    reference = copy.deepcopy(module).double()
    fp32_head(module)
    tokens = torch.tensor([[5, 9, 200, 7]])
    for network in (module, reference):
        logits = network(tokens).logits
        F.cross_entropy(logits[0, :-1], tokens[0, 1:]).backward()
    names = {name for name, parameter in module.named_parameters() if parameter.grad is None}
    assert names == {name for name, parameter in reference.named_parameters() if parameter.grad is None}
    for part in (module.get_output_embeddings(), module.get_input_embeddings()):
        other = {id(module.get_output_embeddings()): reference.get_output_embeddings()}.get(
            id(part), reference.get_input_embeddings()
        )
        assert part.weight.grad.dtype == torch.bfloat16
        cosine = F.cosine_similarity(part.weight.grad.double().flatten(), other.weight.grad.flatten(), dim=0)
        assert cosine > 0.999


def test_fp32_head_survives_deepcopy_autocast_and_saving(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    module = qwen().to(torch.bfloat16).eval()
    fp32_head(module)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.get_output_embeddings().weight.mul_(2)
    tokens = torch.tensor([[5, 9]])
    assert not torch.allclose(twin(tokens).logits, module(tokens).logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(tokens).logits.dtype == torch.float32
    save(Model(module, tokenizer), tmp_path)
    assert (
        load(tmp_path, device="cpu", dtype="bfloat16").module.state_dict().keys()
        == module.state_dict().keys()
    )


def test_fp32_head_needs_a_linear_head() -> None:
    module = qwen()
    module.set_output_embeddings(torch.nn.Identity())
    with pytest.raises(ModelError, match=r"need a linear LM head .* has Identity"):
        fp32_head(module)
