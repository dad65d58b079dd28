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


MAX_CHARACTERS = 1000
"""A longer string is not read: RDKit's time grows faster than its length."""


def parse(smiles: str) -> Any | None:
    """RDKit's molecule, or None if the string is empty, too long, or no SMILES.

    White space inside makes it none: RDKit would take what follows for the molecule's name.

    Raises:
        MissingExtraError: RDKit is not installed.
    """
    chem = _chem()
    if not smiles.isascii() or len(smiles) > MAX_CHARACTERS or len(smiles.split()) != 1:
        return None
    molecule = chem.MolFromSmiles(smiles.strip())
    return molecule if molecule is not None and molecule.GetNumAtoms() else None


def require(smiles: str, place: str = "") -> Any:
    """`parse` where the string must be a molecule; `place` begins the message.

    Raises:
        DataError: it is none.
        MissingExtraError: RDKit is not installed.
    """
    molecule = parse(smiles)
    if molecule is None:
        raise DataError(
            f"{place}no molecule: {smiles[:80]!r}. Leave out those whose molecules.canonical is None."
        )
    return molecule


def canonical(smiles: str) -> str | None:
    """RDKit's canonical SMILES, or None if the string is no molecule (see `parse`). "OCC" and "CCO" both give "CCO"."""
    molecule = parse(smiles)
    return None if molecule is None else _chem().MolToSmiles(molecule)


def fingerprints(smiles: Sequence[str], radius: int = 2, num_bits: int = 2048) -> list[Any]:
    """Morgan fingerprints (RDKit bit vectors), one per string.

    Raises:
        DataError: a string is no molecule; names the first such.
        MissingExtraError: RDKit is not installed.
    """
    _chem()
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=num_bits)
    return [
        generator.GetFingerprint(require(text, f"string {position} is "))
        for position, text in enumerate(smiles)
    ]


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
