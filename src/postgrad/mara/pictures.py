"""Molecules as a picture: which of many to draw, and their grid. Needs RDKit (extra `chem`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from postgrad.mara import molecules

NUM_DRAWN = 24
_COLUMNS, _WIDTH, _HEIGHT = 6, 180, 150
_COLOURS = {9: (0.0, 0.45, 0.4), 16: (0.55, 0.4, 0.0), 17: (0.0, 0.5, 0.1), 35: (0.5, 0.25, 0.05)}
"""Of fluorine, sulphur, chlorine, bromine: darker than RDKit's, which are pale on white."""
_COMMENT = re.compile(r"<\?xml.*?\?>|<!--.*?-->", re.DOTALL)
_SIZE = re.compile(r"(<svg[^>]*?)\s+width='\d+px'\s+height='\d+px'")
_PICK_SEED = 1


class Drawn(NamedTuple):
    """A molecule to draw: its SMILES, and its reward if it has one."""

    smiles: str
    reward: float | None


def choose(rewards: Mapping[str, float | None], count: int = NUM_DRAWN) -> list[Drawn]:
    """At most `count` of different molecules, as unlike each other as can be, best reward first.

    The first is the best one; each further one is that whose nearest chosen one is farthest by Tanimoto distance.

    Args:
        rewards: of the molecules to choose from, by SMILES; None = unknown.
        count: most that are chosen.

    >>> [drawn.smiles for drawn in choose({"CCO": 0.5, "CCCO": 0.4, "c1ccccc1": 0.1}, count=2)]
    ['CCO', 'c1ccccc1']
    """
    drawn = sorted((Drawn(*item) for item in rewards.items()), key=_worst_last)
    if len(drawn) > count:
        marks = molecules.fingerprints([one.smiles for one in drawn])
        from rdkit.SimDivFilters.rdSimDivPickers import MaxMinPicker

        picked = MaxMinPicker().LazyBitVectorPick(marks, len(marks), count, firstPicks=[0], seed=_PICK_SEED)
        drawn = [drawn[index] for index in sorted(picked)]
    return drawn


def _worst_last(drawn: Drawn) -> tuple[float, str]:
    return (0.0 if drawn.reward is None else -drawn.reward, drawn.smiles)


def grid(drawn: Sequence[Drawn]) -> str:
    """An SVG of the molecules in rows of six with their rewards below, on white; without XML header, free to scale.

    It holds no text of its input: RDKit draws letters as lines, too.

    Raises:
        DataError: a string is no molecule.
        MissingExtraError: RDKit is not installed.
    """
    found = [molecules.require(one.smiles) for one in drawn]
    from rdkit.Chem.Draw import rdMolDraw2D

    columns = min(_COLUMNS, max(1, len(found)))
    height = _HEIGHT * max(1, -(-len(found) // columns))
    canvas = rdMolDraw2D.MolDraw2DSVG(_WIDTH * columns, height, _WIDTH, _HEIGHT)
    options = canvas.drawOptions()
    options.drawMolsSameScale = False
    options.padding, options.bondLineWidth = 0.06, 1.4
    options.minFontSize, options.legendFontSize, options.legendFraction = 11, 14, 0.14
    options.setBackgroundColour((1.0, 1.0, 1.0, 1.0))
    options.updateAtomPalette(_COLOURS)
    legends = ["" if one.reward is None else f"{one.reward:.2f}" for one in drawn]
    canvas.DrawMolecules(found, legends=legends)
    canvas.FinishDrawing()
    return _SIZE.sub(r"\1", _COMMENT.sub("", canvas.GetDrawingText())).strip()
