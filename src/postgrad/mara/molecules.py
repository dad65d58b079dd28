"""Molecules: canonical SMILES, Tanimoto similarity, #Circles. Needs RDKit (extra `chem`).

Fingerprints are Morgan's with radius 2 and 2,048 bits (ECFP4). A string that is no molecule has no canonical form (None):
that is data. Giving one to a function that needs a molecule is an error. Start at `canonical`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from postgrad.core.errors import DataError, MissingExtraError


def _chem() -> Any:
    try:
        from rdkit import Chem, RDLogger
    except ImportError as error:
        raise MissingExtraError("rdkit", "chem", "Comparing molecules") from error
    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
    return Chem


def canonical(smiles: str) -> str | None:
    """RDKit's canonical SMILES, or None if the string is empty or no molecule. "OCC" and "CCO" both give "CCO"."""
    molecule = _chem().MolFromSmiles(smiles)
    return _chem().MolToSmiles(molecule) if molecule is not None and molecule.GetNumAtoms() else None


def fingerprints(smiles: Sequence[str], radius: int = 2, num_bits: int = 2048) -> list[Any]:
    """Morgan fingerprints (RDKit bit vectors), one per string.

    Raises:
        DataError: a string is no molecule; names the first such.
        MissingExtraError: RDKit is not installed.
    """
    chem = _chem()
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=num_bits)
    found: list[Any] = []
    for position, text in enumerate(smiles):
        molecule = chem.MolFromSmiles(text)
        if molecule is None:
            raise DataError(
                f"string {position} is no molecule: {text!r}. Leave out those whose molecules.canonical is None."
            )
        found.append(generator.GetFingerprint(molecule))
    return found


def tanimoto(smiles: Sequence[str], radius: int = 2, num_bits: int = 2048) -> NDArray[np.float64]:
    """|a ∧ b|/|a ∨ b| of the fingerprints, [N, N]; for `diversity.internal_diversity`, `circles`, `vendi_score`."""
    marks = fingerprints(smiles, radius, num_bits)
    from rdkit import DataStructs

    rows = [DataStructs.BulkTanimotoSimilarity(mark, marks) for mark in marks]
    return np.array(rows, float).reshape(len(marks), len(marks))


def circles(smiles: Sequence[str], threshold: float = 0.75, radius: int = 2, num_bits: int = 2048) -> int:
    """`diversity.circles` of the Tanimoto similarity, by RDKit's LeaderPicker: the same count without the N × N matrix."""
    marks = fingerprints(smiles, radius, num_bits)
    if not marks:
        return 0
    from rdkit.SimDivFilters import rdSimDivPickers

    return len(rdSimDivPickers.LeaderPicker().LazyBitVectorPick(marks, len(marks), threshold))
