"""The autoencoder finds what was planted, is the same after saving, and refuses what it cannot use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from postgrad.core.config import validate
from postgrad.core.errors import ConfigError, DataError, ModelError, TrainingError
from postgrad.thought import Autoencoder, AutoencoderConfig, fast_ica, fit, ops, read_structure
from postgrad.thought.structure import Structure

WIDTHS = (5, 5)
QUICK = AutoencoderConfig(
    num_thoughts=3,
    warmup_steps=20,
    ramp_steps=50,
    sparse_steps=250,
    refit_steps=100,
    lr=5e-3,
    penalty=0.1,
    batch_size=128,
)


def planted(samples: int = 2000) -> tuple[Tensor, Tensor]:
    """Thought 0 is of the first agent, 1 of both, 2 of the second; states are linear in them."""
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(samples, 3, generator=generator) - 0.5
    thoughts = -uniforms.sign() * (1 - 2 * uniforms.abs()).clamp(min=1e-6).log() / 2**0.5
    mixing = torch.zeros(10, 3)
    for row, thought in enumerate([0, 0, 1, 1, 0, 1, 1, 2, 2, 2]):
        mixing[row, thought] = 1.0 + 0.3 * row
    mixing[4, 1], mixing[9, 1] = 0.7, -0.8
    return thoughts, thoughts @ mixing.T


def test_fast_ica_finds_independent_sources() -> None:
    thoughts, states = planted()
    found = fast_ica(states, 3, torch.Generator().manual_seed(1))
    assert found.converged
    sources = found.sources(states)
    matched = ops.mean_correlation(sources[:1000], thoughts[:1000], sources[1000:], thoughts[1000:])
    assert matched.mcc > 0.99
    torch.testing.assert_close(sources.var(0, correction=0), torch.ones(3), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        sources @ found.mixing.T.float() + found.mean.float(), states, rtol=1e-3, atol=1e-3
    )
    with pytest.raises(DataError, match="3 directions"):
        fast_ica(states, 4)


@pytest.mark.parametrize("start", ["ica", "random"])
def test_who_holds_what_is_found(start: str) -> None:
    thoughts, states = planted()
    fitted = fit(states, WIDTHS, QUICK.model_copy(update={"start": start}), log_every=50)
    found = fitted.autoencoder.encode(states).detach()
    matched = ops.mean_correlation(found[:1000], thoughts[:1000], found[1000:], thoughts[1000:])
    assert matched.mcc > (0.97 if start == "ica" else 0.9)
    assert fitted.explained > 0.9
    if start == "random":  # may keep a trace of a thought at another agent
        return
    structure = read_structure(fitted.autoencoder, states)
    assert structure.held[matched.assignment].tolist() == [[True, False], [True, True], [False, True]]
    assert structure.histogram() == (0, 2, 1)
    assert fitted.explained > 0.9
    assert structure.warnings() == []
    assert structure.shared() == structure.shared(0, 1) == [int(matched.assignment[1])]
    assert structure.private(0) == [int(matched.assignment[0])]
    assert {point.agreement for point in structure.stability((0.1,))} == {1.0}
    assert len(fitted.curve) == 9


def test_the_same_seed_gives_the_same_and_saving_changes_nothing(tmp_path: Path) -> None:
    _, states = planted(300)
    config = QUICK.model_copy(
        update={"sparse_steps": 10, "refit_steps": 5, "penalty": None, "backend": "sampled"}
    )
    first, second = fit(states, WIDTHS, config), fit(states, WIDTHS, config)
    assert first.autoencoder.fingerprint() == second.autoencoder.fingerprint()
    assert first.penalty_weight == second.penalty_weight != 0.3
    first.autoencoder.save(tmp_path / "thoughts")
    loaded = Autoencoder.load(tmp_path / "thoughts")
    torch.testing.assert_close(loaded.encode(states), first.autoencoder.encode(states), rtol=0, atol=0)
    z = loaded.encode(states)
    torch.testing.assert_close(loaded.decode(z), first.autoencoder.decode(z), rtol=0, atol=0)
    path = tmp_path / "thoughts" / "autoencoder.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "sha256": "0"}))
    with pytest.raises(ModelError, match="another SHA-256"):
        Autoencoder.load(tmp_path / "thoughts")
    with pytest.raises(ModelError, match="no autoencoder"):
        Autoencoder.load(tmp_path / "nowhere")


def test_thoughts_are_standardised_and_the_jacobian_is_the_decoders() -> None:
    _, states = planted(300)
    model = fit(states, WIDTHS, QUICK.model_copy(update={"sparse_steps": 10, "refit_steps": 5})).autoencoder
    z = model.encode(states).detach()
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(3), atol=1e-2, rtol=0)
    whole = torch.func.vmap(torch.func.jacrev(lambda one: model.decode(one[None])[0]))(z)
    expected = (whole / model.deviation[:, None]).square().mean(0).sqrt()
    torch.testing.assert_close(model.jacobian_rms(states), expected, rtol=1e-3, atol=1e-5)
    model.mask[0, 1] = 0  # the first agent does not hold thought 1
    assert model.jacobian_rms(states)[:5, 1].abs().max() == 0


def test_larger_thoughts_do_not_make_the_penalty_smaller() -> None:
    """Fact 1: with the norm the loss is the same however the encoder scales its output; without it the penalty can shrink."""
    _, states = planted(300)
    model = Autoencoder(WIDTHS, QUICK, torch.Generator().manual_seed(0)).train()
    before = model.losses(states)
    with torch.no_grad():
        model.encode_out *= 10
        model.encode_skip *= 10
    for a, b in zip(before, model.losses(states), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_used_is_refused() -> None:
    _, states = planted(50)
    with pytest.raises(DataError, match=r"\[samples, 11\]"):
        fit(states, (5, 6), QUICK)
    with pytest.raises(DataError, match="at least 2"):
        fit(states[:1], WIDTHS, QUICK)
    with pytest.raises(DataError, match="1 of 50"):
        fit(states.index_fill(0, torch.tensor([3]), torch.nan), WIDTHS, QUICK)
    with pytest.raises(ConfigError, match="nothing to train"):
        validate(AutoencoderConfig, {"warmup_steps": 0, "ramp_steps": 0, "sparse_steps": 0})
    with pytest.raises(TrainingError, match="lower lr"):
        fit(states * 1e3, WIDTHS, QUICK.model_copy(update={"lr": 1e30, "start": "random"}))


def test_collapsed_structures_are_named() -> None:
    rms = torch.ones(2, 3)
    none = Structure(rms, rms.T, 0.1, torch.tensor([[True, False], [False, True], [False, False]]))
    assert "No thought is shared" in none.warnings()[0]
    assert "1 of 3" in none.warnings()[1]
    assert "selects nothing" in Structure(rms, rms.T, 0.1, torch.ones(3, 2, dtype=torch.bool)).warnings()[0]
