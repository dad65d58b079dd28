"""Molecules from a grammar, to pre-train a model of SMILES without any data set. Needs RDKit (extra `chem`).

    molecule = cap ring (linker ring){0..2} cap

A ring is open at one or two places, a linker at two; every ring may also carry one cap at its side. The parts are those of
medicinal chemistry, easy ones and hard ones, so that what comes out spreads over QED, SA and donors (see `chemistry`): with
amides and without, from good to hopeless. All are drawn alike, which favours nothing that a reward asks for.

As prompts of `rl`: `path = "postgrad.mara.grammar:rows"`, see the recipe `molecules`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from postgrad.core.errors import ConfigError
from postgrad.mara import molecules as chem

PROMPT = "Molecule:"


def _parts(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# In the parts, {} is where the rest of the molecule goes on and {s} a side cap in parentheses, or nothing.
LEFT_CAPS = (
    "",
    *_parts("""
    C CC CC(C) CCCC CC(C)(C) C=CC F Cl Br N#C O N CO CN CN(C) S FC(F)(F) FC(F)O OC(=O) COC(=O) NC(=O) CNC(=O) CC(=O)N CC(=O)
    CS(=O)(=O) NS(=O)(=O) O=[N+]([O-]) OCC NC(=N) CSC C#C CCCCCC
"""),
)
RIGHT_CAPS = (
    "",
    *_parts("""
    C CC C(C)C CCCC C(C)(C)C CC=C F Cl Br C#N O N OC NC N(C)C S C(F)(F)F OC(F)F C(=O)O C(=O)OC C(N)=O C(=O)NC NC(C)=O C(C)=O
    S(C)(=O)=O S(N)(=O)=O [N+](=O)[O-] CCO C(=N)N CSC C#C CCCCCC
"""),
)
SIDE_CAPS = _parts("""
    C F Cl OC O N C#N C(F)(F)F [N+](=O)[O-] CC C(=O)O N(C)C
""")
LINKERS = (
    "",
    *_parts("""
    C CC CCC O CO OC N CN NC S CS C(=O) C(=O)N NC(=O) NC(=O)N CNC(=O) C(=O)NC S(=O)(=O) S(=O)(=O)N NS(=O)(=O) C=C C#C C(O)
    OCC C(=O)O N=N C=NN CSC C(C) C(F)(F) OCCO N(C)C C(=O)C
"""),
)
RINGS = _parts("""
    c1ccc{s}c({})c1 c1cc{s}c({})cc1 c1ccc{s}cc1{} c1cc{s}nc({})c1 c1nc{s}cc({})n1 c1cnc({})nc1 c1cc({})n[nH]1 c1csc({})n1
    c1cc{s}sc1{} c1cc{s}oc1{} n1cc{s}c({})n1 n1ccnc1{} c1noc({})n1 c1nnc({})o1 c1nnc({})s1 c1ccc2c(c1)nc({})[nH]2
    c1ccc2c(c1)c({})c[nH]2 c1ccc2ncc{s}c({})c2c1 c1ccc2c(c1)oc({})c2 c1ccc2c(c1)sc({})n2 C1CCN({})CC1 N1CCC({})CC1
    N1CCN({})CC1 C1CCC({})CC1 C1CCCC1{} N1CCCC1{} N1CCOC({})C1 C1CC1{} C1COC1{} C1CC2CCC1C2{} C1C2CC3CC1CC(C2)({})C3
    C1CCC2(CC1)OCC({})O2 N1C(=O)CSC1{} C1=CC(=O)CC1{} N1CC2CC1CN2{} C1OCC({})O1 c1cc2c(cc1{})OCO2 C1CCCCCC1{}
    C1(C)CC{s}CN1{}
""")

_MORE_RINGS, _SIDE = (0.25, 0.6, 0.15), 0.15
_STALE = 50
_NUMBERS = [str.maketrans("123", "".join(str(3 * depth + i) for i in (1, 2, 3))) for depth in range(3)]


def rows(size: int, seed: int = 0, prompt: str = PROMPT) -> Iterator[dict[str, Any]]:
    """`size` different molecules as rows {"prompt", "answer"}: a source of `[[data.tasks]]`.

    Raises:
        ConfigError, MissingExtraError: as `molecules`.
    """
    for smiles in molecules(size, seed):
        yield {"prompt": prompt, "answer": smiles}


def molecules(size: int, seed: int = 0) -> Iterator[str]:
    """`size` different molecules in canonical form; a longer list of the same seed begins with the shorter one.

    Draws that RDKit does not take for a molecule are drawn again. 50,000 take about 18 s of one core.

    Raises:
        ConfigError: more than the grammar has (above some millions).
        MissingExtraError: RDKit is not installed.
    """
    generator = random.Random(seed)
    seen: set[str] = set()
    in_vain = 0
    while len(seen) < size:
        smiles = chem.canonical(draw(generator))
        if smiles is None or smiles in seen:
            in_vain += 1
            if in_vain > _STALE * (len(seen) + 100):
                raise ConfigError(
                    f"The grammar gave {len(seen)} different molecules and hardly any more; ask for fewer than {size}."
                )
            continue
        seen.add(smiles)
        yield smiles


def draw(generator: random.Random) -> str:
    """One string of the grammar; nearly always valid SMILES, not canonical."""
    more = generator.choices(range(len(_MORE_RINGS)), _MORE_RINGS)[0]
    text = generator.choice(LEFT_CAPS) + _ring(generator, 0)
    for depth in range(1, more + 1):
        text = text.replace("{}", generator.choice(LINKERS) + _ring(generator, depth))
    return text.replace("{}", generator.choice(RIGHT_CAPS)).replace("()", "")


def _ring(generator: random.Random, depth: int) -> str:
    """A ring with its side cap; its bonds are numbered apart from those of the rings around it."""
    side = f"({generator.choice(SIDE_CAPS)})" if generator.random() < _SIDE else ""
    return generator.choice(RINGS).translate(_NUMBERS[depth]).replace("{s}", side)
