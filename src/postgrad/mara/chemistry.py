"""The rewards of the paper's molecules (arXiv 2510.20817, §6): how drug-like, and how easily made. Needs RDKit (extra `chem`).

    --data.tasks.reward postgrad.mara.chemistry:synth

QED is drug-likeness in [0, 1] (Bickerton et al. 2012), SA synthetic accessibility from 1, easy, to 10 (Ertl & Schuffenhauer
2009), HBD the number of hydrogen bond donors. The molecule is the completion without white space around it. What is no
molecule (invalid, empty, longer than `molecules.MAX_CHARACTERS`, or with a wildcard atom) has reward 0: that is data.

Start at `synth`; `grammar.py` makes molecules to begin with.
"""

from __future__ import annotations

import importlib.util
import math
from functools import cache
from pathlib import Path
from typing import Any

from postgrad.core.errors import DataError
from postgrad.core.types import Prompt
from postgrad.mara import molecules

AMIDE_SMARTS = "[$([CX3](=[OX1])[#6]),$([CX3;H1,H2]=[OX1])][NX3]"
"""A carbonyl with carbon or hydrogen on one side and a three-bonded nitrogen on the other: amides, lactams, imides; not ureas,
not carbamates."""

_MAX_DONORS = 4
_SA_CENTRE, _SA_SLOPE = 4.0, 2.0


def synth(prompt: Prompt, completion: str) -> float:
    """QED · σ(2(4 − SA)) · [HBD < 4], in [0, 1].

    Raises:
        MissingExtraError: RDKit is not installed.
        DataError: this RDKit comes without its SA scorer.
    """
    return synth_score(completion)


def amide(prompt: Prompt, completion: str) -> float:
    """`synth` of a molecule with an amide (`AMIDE_SMARTS`), else 0. Raises as `synth`."""
    return synth_score(completion) if has_amide(completion) else 0.0


def synth_score(smiles: str) -> float:
    """The number of `synth`, of a SMILES string."""
    from rdkit.Chem.QED import qed
    from rdkit.Chem.rdMolDescriptors import CalcNumHBD

    molecule = _definite(smiles)
    if molecule is None or CalcNumHBD(molecule) >= _MAX_DONORS:
        return 0.0
    value = float(qed(molecule)) * _sigmoid(_SA_SLOPE * (_SA_CENTRE - _scorer().calculateScore(molecule)))
    return min(1.0, value) if math.isfinite(value) else 0.0


def has_amide(smiles: str) -> bool:
    """Whether the string is a molecule with an amide. Acetanilide has one, urea has none."""
    molecule = _definite(smiles)
    return molecule is not None and bool(molecule.HasSubstructMatch(_amide_pattern()))


def accessibility(smiles: str) -> float:
    """SA of a molecule, 1 (easy to make) to 10; NaN of what is none. Raises as `synth`."""
    molecule = _definite(smiles)
    return math.nan if molecule is None else float(_scorer().calculateScore(molecule))


def _definite(smiles: str) -> Any | None:
    """The molecule, or None; one with a wildcard atom stands for many and is none."""
    molecule = molecules.parse(smiles)
    if molecule is None or any(atom.GetAtomicNum() == 0 for atom in molecule.GetAtoms()):
        return None
    return molecule


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


@cache
def _amide_pattern() -> Any:
    from rdkit.Chem import MolFromSmarts

    return MolFromSmarts(AMIDE_SMARTS)


@cache
def _scorer() -> Any:
    """RDKit's own `sascorer`, which lies beside the package, not in it; reading its 4 MB of fragments takes a second."""
    from rdkit import RDConfig

    path = Path(RDConfig.RDContribDir) / "SA_Score" / "sascorer.py"
    if not path.is_file():
        raise DataError(
            f"This RDKit comes without its SA scorer (no file {path}). The wheels of PyPI have it: pip install rdkit; elsewhere "
            "copy Contrib/SA_Score of RDKit's repository to that place."
        )
    spec = importlib.util.spec_from_file_location("postgrad_sascorer", path)
    if spec is None or spec.loader is None:
        raise DataError(f"RDKit's SA scorer {path} cannot be imported as Python.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
