"""Molecules: rewards against RDKit called by hand, the grammar, the picture, the recipe from an empty folder, the benchmark."""

from __future__ import annotations

import importlib
import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from postgrad.cli import main
from postgrad.core.config import read_toml
from postgrad.core.errors import ConfigError, DataError, MissingExtraError
from postgrad.core.recipes import find_recipe
from postgrad.core.run import Run
from postgrad.core.types import Prompt

pytest.importorskip("rdkit")

from rdkit import Chem, RDConfig
from rdkit.Chem import QED, rdMolDescriptors

from postgrad.mara import chemistry, diversity, grammar, molecules, pictures
from postgrad.tasks.function import load_function
from postgrad.tasks.worker import checked_score

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
PROMPT = Prompt(id="p", text="Molecule:")
PARACETAMOL, CAFFEINE, MANNITOL = "CC(=O)Nc1ccc(O)cc1", "Cn1cnc2c1c(=O)n(C)c(=O)n2C", "OCC(O)C(O)C(O)C(O)CO"
STRANGE = [
    *("", " ", "\n", "\x00", "héllo", "nonsense", "C1CC", "c1ccc", "[CH5]", "CCO name", "CC>>CC", "InChI=1S/CH4", "[R]"),
    *("*", "*CC", "C-*", "[C,N]", "CC |$a;b$|", "C" * 1001, "(" * 500, "C1" * 400, "\ud800", "C\u200bC"),
]  # fmt: skip
"""What is no molecule of its own."""
EXOTIC = [
    *("[Na+].[Cl-]", "C.C.C", "[CH3]", "[CH2]", "[H][H]", "[H]", "[He]", "[U]", "[O-2]", "[Fe]", "[13C]", "[2H]C", "N#N"),
    *("C%99CC%99", "[C@@H](F)(Cl)Br", "[n+]1ccccc1C", "F[P-](F)(F)(F)(F)F.[Na+]", "C" * 300, "C~C", "[#6]", "B1OO1"),
]  # fmt: skip
"""Salts, radicals, atoms, isotopes, queries: RDKit reads them."""


@pytest.fixture(scope="module")
def sascorer() -> ModuleType:
    """RDKit's own scorer, imported by its folder as its README says."""
    folder = str(Path(RDConfig.RDContribDir) / "SA_Score")
    sys.path.append(folder)
    try:
        return importlib.import_module("sascorer")
    finally:
        sys.path.remove(folder)


# -- rewards ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "smiles", [PARACETAMOL, CAFFEINE, "c1ccccc1", "CC(C)Cc1ccc(cc1)C(C)C(=O)O", "C1C2CC3CC1CC(C2)C3"]
)
def test_synth_is_its_formula_by_independent_calls(smiles: str, sascorer: ModuleType) -> None:
    molecule = Chem.MolFromSmiles(smiles)
    donors = rdMolDescriptors.CalcNumLipinskiHBD(molecule)
    assert donors < 4
    expected = QED.qed(molecule) / (1 + math.exp(-2 * (4 - sascorer.calculateScore(molecule))))
    assert chemistry.synth(PROMPT, smiles) == pytest.approx(expected, abs=1e-12)
    assert chemistry.synth(PROMPT, f" {smiles}\n") == chemistry.synth(PROMPT, smiles)


def test_known_numbers() -> None:
    """Paracetamol: QED 0.595, SA 1.41, two donors; σ(2·2.59) = 0.994."""
    assert QED.qed(Chem.MolFromSmiles(PARACETAMOL)) == pytest.approx(0.595, abs=1e-3)
    assert chemistry.accessibility(PARACETAMOL) == pytest.approx(1.407, abs=1e-2)
    assert chemistry.synth(PROMPT, PARACETAMOL) == pytest.approx(0.5951 * 0.9944, abs=2e-3)


def test_four_donors_are_too_many() -> None:
    assert chemistry.synth(PROMPT, MANNITOL) == 0.0  # six
    assert chemistry.synth(PROMPT, "NCC(N)C") > 0.0  # two: RDKit counts atoms that have hydrogen
    for smiles, donors in (("OCC(O)C(O)C", 3), ("OCC(O)C(O)CO", 4)):
        assert rdMolDescriptors.CalcNumHBD(Chem.MolFromSmiles(smiles)) == donors
        assert (chemistry.synth(PROMPT, smiles) > 0) == (donors < 4)


@pytest.mark.parametrize(
    ("smiles", "expected"),
    [
        (PARACETAMOL, True),
        ("CN(C)C=O", True),
        ("O=C1CCCN1", True),
        ("O=C1CCC(=O)N1", True),
        ("NC(N)=O", False),
        ("COC(=O)NC", False),
        ("O=c1cccc[nH]1", False),
        ("CC(=O)OC", False),
        ("CC(=N)N", False),
        ("CC(=O)N=O", False),
        ("no molecule", False),
    ],
)
def test_amides(smiles: str, expected: bool) -> None:
    assert chemistry.has_amide(smiles) is expected
    assert chemistry.amide(PROMPT, smiles) == (chemistry.synth(PROMPT, smiles) if expected else 0.0)


@pytest.mark.parametrize("text", STRANGE)
def test_what_is_no_molecule_has_reward_zero(text: str) -> None:
    assert chemistry.synth(PROMPT, text) == chemistry.amide(PROMPT, text) == 0.0
    assert math.isnan(chemistry.accessibility(text))
    assert "*" in text or molecules.canonical(text) is None or text == "[C,N]"


@pytest.mark.parametrize("smiles", EXOTIC)
def test_exotic_molecules_have_finite_rewards(smiles: str) -> None:
    for reward in (chemistry.synth, chemistry.amide):
        assert checked_score(reward(PROMPT, smiles))[1] == "ok"
        assert 0.0 <= reward(PROMPT, smiles) <= 1.0


def test_rewards_of_broken_smiles_are_rewards() -> None:
    """Cut, doubled and shuffled molecules: what a model says while it learns."""
    generator = random.Random(0)
    for smiles in grammar.molecules(40, 5):
        letters = list(smiles)
        generator.shuffle(letters)
        for text in (smiles[: len(smiles) // 2], smiles * 2, "".join(letters), smiles + ".", smiles[::-1]):
            assert 0.0 <= chemistry.amide(PROMPT, text) <= chemistry.synth(PROMPT, text) <= 1.0


def test_the_rewards_load_by_name_without_torch() -> None:
    assert load_function("postgrad.mara.chemistry:synth")(PROMPT, "CCO") > 0.3
    code = (
        "import sys, postgrad.mara.chemistry as c, postgrad.mara.grammar as g; list(g.rows(2)); c.synth_score('C'); "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_without_rdkit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    for call in (
        lambda: chemistry.synth(PROMPT, "CCO"),
        lambda: next(grammar.molecules(1)),
        lambda: pictures.grid([pictures.Drawn("C", None)]),
    ):
        with pytest.raises(MissingExtraError, match=r"postgrad\[chem\]"):
            call()


def test_without_the_sa_scorer_its_place_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(RDConfig, "RDContribDir", str(tmp_path))
    chemistry._scorer.cache_clear()
    try:
        with pytest.raises(DataError, match=r"without its SA scorer \(no file .*SA_Score.sascorer.py\)"):
            chemistry.synth(PROMPT, "CCO")
    finally:
        chemistry._scorer.cache_clear()


# -- the grammar -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn() -> list[str]:
    return list(grammar.molecules(3000, 0))


def test_molecules_of_the_grammar_are_valid_canonical_and_different(drawn: list[str]) -> None:
    assert len(set(drawn)) == len(drawn) == 3000
    assert all(Chem.MolToSmiles(Chem.MolFromSmiles(smiles)) == smiles for smiles in drawn)
    assert max(map(len, drawn)) < 112  # fits the recipe's model beside its prompt


def test_a_seed_fixes_the_molecules_and_a_longer_list_begins_with_the_shorter(drawn: list[str]) -> None:
    assert list(grammar.molecules(500, 0)) == drawn[:500]
    other = list(grammar.molecules(500, 1))
    assert len(set(other) & set(drawn)) < 50


def test_nearly_every_draw_is_a_molecule() -> None:
    generator = random.Random(4)
    valid = [molecules.canonical(grammar.draw(generator)) is not None for _ in range(1000)]
    assert sum(valid) >= 980


def test_the_grammar_leaves_something_to_find(drawn: list[str]) -> None:
    rewards = np.array([chemistry.synth_score(smiles) for smiles in drawn[:1000]])
    amides = np.array([chemistry.has_amide(smiles) for smiles in drawn[:1000]])
    assert 0.15 < amides.mean() < 0.5
    assert 0.005 < (rewards >= 0.8).mean() < 0.1
    assert (rewards[amides] >= 0.8).any()
    assert (rewards < 0.2).mean() > 0.1


def test_a_grammar_that_runs_dry_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LEFT_CAPS", "RIGHT_CAPS", "LINKERS"):
        monkeypatch.setattr(grammar, name, ("C",))
    monkeypatch.setattr(grammar, "RINGS", ("C1CC1{}",))
    monkeypatch.setattr(grammar, "_STALE", 1)
    with pytest.raises(ConfigError, match="ask for fewer than 50"):
        list(grammar.molecules(50))


# -- the picture -----------------------------------------------------------------------------------------------------------


def test_a_choice_begins_with_the_best_and_is_unlike_by_a_slow_reference(drawn: list[str]) -> None:
    rewards = {smiles: chemistry.synth_score(smiles) for smiles in drawn[:40]}
    chosen = pictures.choose(rewards, count=8)
    ranked = sorted(rewards, key=lambda smiles: (-rewards[smiles], smiles))
    distance = 1 - molecules.tanimoto(ranked)
    picked = [0]
    while len(picked) < 8:  # max-min by the definition
        nearest = distance[:, picked].min(axis=1)
        picked.append(int(nearest.argmax()))
    reached = distance[np.ix_(picked, picked)][np.triu_indices(8, 1)].min()
    mine = [ranked.index(one.smiles) for one in chosen]
    assert distance[np.ix_(mine, mine)][np.triu_indices(8, 1)].min() == pytest.approx(reached)
    assert chosen[0].smiles == ranked[0]
    assert mine == sorted(mine)
    assert pictures.choose(rewards, count=8) == chosen
    assert len(pictures.choose(rewards, count=100)) == 40


def test_a_grid_is_one_svg_without_any_text_of_its_input() -> None:
    svg = pictures.grid([pictures.Drawn("CCO", 0.5), pictures.Drawn("c1ccccc1", None)])
    assert svg.startswith("<svg")
    assert svg.endswith("</svg>")
    assert "viewBox" in svg
    assert not re.search(r"<script|<\?xml|<!--|CCO|width='\d+px'", svg)
    with pytest.raises(DataError, match="no molecule: '<script>'"):
        pictures.grid([pictures.Drawn("<script>", 1.0)])


def test_measure_draws_the_good_molecules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = {"CCO": 0.9, "OCC": 0.95, "c1ccccc1": 0.8, "CCN": 0.1, "<script>alert(1)</script>": 0.99}
    rows = [json.dumps({"completion": text, "score": score}) for text, score in said.items()]
    Path("a.jsonl").write_text("\n".join(rows))
    assert main(["mara", "measure", "a.jsonl", "--molecules", "--tau", "0.5", "--out", "m"]) == 0
    assert Path("m/figures/molecules-a.csv").read_text() == "smiles,reward\nCCO,0.95\nc1ccccc1,0.8\n"
    page = Path("m/report.html").read_text()
    assert Path("m/figures/molecules-a.svg").read_text() in page
    assert "2 of the good ones" in page
    assert "<script>alert" not in page
    assert main(["report", "m"]) == 0
    assert Path("m/report.html").read_text() == page
    assert main(["mara", "measure", "a.jsonl", "--molecules", "--tau", "2", "--out", "none"]) == 0
    assert not list(Path("none/figures").glob("molecules*"))
    monkeypatch.setitem(sys.modules, "rdkit", None)  # a report is rewritten elsewhere, too
    assert main(["report", "m"]) == 0
    assert "2 of the good ones" not in Path("m/report.html").read_text()


# -- the recipe ------------------------------------------------------------------------------------------------------------

TINY = [
    *("--model.embedded.hidden-size", "16", "--model.embedded.num-layers", "1", "--model.embedded.steps", "30"),
    *("--model.embedded.demonstrations", "300", "--data.tasks", '[{name="m",path="postgrad.mara.grammar:rows",size=300,'
      'reward="postgrad.mara.chemistry:synth"}]'),
    *("--steps", "3", "--algorithm.samples-per-prompt", "8", "--eval.samples-per-prompt", "4", "--engine.slots", "8"),
    *("--length.max-completion-tokens", "40", "--run.samples-per-group", "8"),
]  # fmt: skip


@pytest.mark.slow
def test_the_recipe_trains_from_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POSTGRAD_CACHE", str(tmp_path / "cache"))
    assert main(["rl", "train", "molecules", "--out", "runs/mol", *TINY]) == 0
    run = Run.open(Path("runs/mol"))
    rows = [row for row in run.samples() if row["phase"] == "train"]
    assert len(rows) == 3 * 8
    for row in rows:
        assert row["score"] == pytest.approx(chemistry.synth_score(row["completion"]))
    assert {row["status"] for row in rows} == {"ok"}
    assert all(row["loss/skipped"] == 0.0 for row in run.metrics() if row["step"])
    assert main(["mara", "measure", "runs/mol", "--molecules", "--tau", "0.01", "--out", "m"]) == 0


def test_the_recipe_is_reinvent_with_mara() -> None:
    from postgrad.mara.config import MaraConfig
    from postgrad.rl.config import make_config

    config = make_config(read_toml(find_recipe("molecules")))
    algorithm = config.algorithm
    assert (algorithm.loss, algorithm.baseline, algorithm.advantage_norm) == ("reinforce", "none", "none")
    assert (algorithm.reward, algorithm.history_threshold, algorithm.prompts_per_batch) == ("raw", None, 1)
    assert config.data.holdout_fraction == 0
    assert MaraConfig(**config.mara).method == "mara"


# -- the benchmark ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    pytest.importorskip("scipy")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("mara_chemistry")
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_the_benchmark_counts_molecules_once(bench: ModuleType) -> None:
    """Ethanol twice in two spellings, an invalid string with a score that it cannot have, benzene."""
    said = [("CCO", 0.9), ("OCC", 0.9), ("nope", 0.0), ("c1ccccc1", 0.84), ("CCN", 0.1)]
    rows = [{"completion": text, "score": score, "step": 1 + i // 3} for i, (text, score) in enumerate(said)]
    found = bench.measure(rows)
    assert (found["yield_80"], found["yield_85"]) == (2, 1)
    assert found["ob100_80"] is None
    assert found["circles_80"] == 2
    assert found["int_div_80"] == pytest.approx(diversity.internal_diversity(np.eye(2)))
    assert (found["valid"], found["unique"]) == (pytest.approx(0.8), pytest.approx(0.75))
    assert found["reward_course"] == [pytest.approx(0.6), pytest.approx(0.47)]


def test_the_benchmark_compares_by_seed_and_counts_who_reached(bench: ModuleType) -> None:
    ours = [{"ob100_80": 900}, {"ob100_80": None}, {"ob100_80": 800}]
    peer = [{"ob100_80": 1000}, {"ob100_80": 950}, {"ob100_80": 920}]
    found = bench.compare(ours, peer, "ob100_80")
    assert (found["ours_reached"], found["peer_reached"], found["pairs"]) == (2, 3, 2)
    mean, half = found["difference"]
    assert mean == -110
    assert half == pytest.approx(12.7062 * 10, rel=1e-4)  # t of one degree of freedom, standard error 10
    assert found["verdict"] == "null"
    assert bench.verdict(-110, 50, -1) == "better"


def test_the_benchmark_goes_on_where_it_stopped(bench: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(
        json.dumps({"task": "synth", "arm": "MARA", "seed": 1, "settings": {}}) + '\n{"task": "sy'
    )
    assert [bench.identity(row) for row in bench.read_results(path)] == [("synth", "MARA", 1)]
    assert bench.read_results(tmp_path / "none.jsonl") == []
