"""A dozen textbook crystals: smoke configurations, documentation and tests need no data set.

Cell parameters are rounded literature values at room temperature (Wyckoff, *Crystal Structures*,
2nd ed., Interscience 1963), given as primitive or conventional cells of at most 12 atoms.
"""

from __future__ import annotations

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.elements import SYMBOLS
from xtalnet_jax.crystals.reduction import standardise
from xtalnet_jax.data.packed import PackedSet, concatenate, from_crystals, load
from xtalnet_jax.pxrd.simulate import lines_of


def _crystal(cell: tuple[float | int, ...], sites: str) -> Crystal:
    """Build a crystal from (a, b, c, alpha, beta, gamma) and ``"El x y z; ..."``."""
    a, b, c, *angles = cell
    ca, cb, cg = np.cos(np.deg2rad(angles))
    sg = np.sin(np.deg2rad(angles[2]))
    cy = (ca - cb * cg) / sg
    lattice = np.array(
        [[a, 0, 0], [b * cg, b * sg, 0], [c * cb, c * cy, c * np.sqrt(1 - cb**2 - cy**2)]]
    )
    rows = [site.split() for site in sites.split(";")]
    numbers = np.array([SYMBOLS.index(row[0]) for row in rows])
    coords = np.array([[fraction(v) for v in row[1:]] for row in rows]) % 1.0
    return Crystal(numbers, coords, lattice)


def fraction(text: str) -> float:
    """Read ``"1/3"``, ``"-0.25"`` or ``"0"``.

    Example:
        >>> fraction("3/4")
        0.75
    """
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom or 1)


def _fcc(a: float) -> tuple[float | int, ...]:
    return (a / 2**0.5,) * 3 + (60.0,) * 3


def textbook_crystals() -> dict[str, Crystal]:
    """Return the crystals by name.

    Example:
        >>> len(textbook_crystals()["rutile"].atomic_numbers)
        6
    """
    return {
        "silicon": _crystal(_fcc(5.431), "Si 0 0 0; Si 1/4 1/4 1/4"),
        "rock_salt": _crystal(_fcc(5.640), "Na 0 0 0; Cl 1/2 1/2 1/2"),
        "caesium_chloride": _crystal((4.123,) * 3 + (90,) * 3, "Cs 0 0 0; Cl 1/2 1/2 1/2"),
        "zinc_blende": _crystal(_fcc(5.653), "Ga 0 0 0; As 1/4 1/4 1/4"),
        "wurtzite": _crystal(
            (3.250, 3.250, 5.207, 90, 90, 120),
            "Zn 1/3 2/3 0; Zn 2/3 1/3 1/2; O 1/3 2/3 0.382; O 2/3 1/3 0.882",
        ),
        "fluorite": _crystal(_fcc(5.463), "Ca 0 0 0; F 1/4 1/4 1/4; F 3/4 3/4 3/4"),
        "perovskite": _crystal(
            (3.905,) * 3 + (90,) * 3,
            "Sr 0 0 0; Ti 1/2 1/2 1/2; O 1/2 1/2 0; O 1/2 0 1/2; O 0 1/2 1/2",
        ),
        "potassium_tantalate": _crystal(
            (3.989,) * 3 + (90,) * 3,
            "K 0 0 0; Ta 1/2 1/2 1/2; O 1/2 1/2 0; O 1/2 0 1/2; O 0 1/2 1/2",
        ),
        "magnesium_diboride": _crystal(
            (3.086, 3.086, 3.524, 90, 90, 120), "Mg 0 0 0; B 1/3 2/3 1/2; B 2/3 1/3 1/2"
        ),
        "rutile": _crystal(
            (4.594, 4.594, 2.959, 90, 90, 90),
            "Ti 0 0 0; Ti 1/2 1/2 1/2; O 0.305 0.305 0; O -0.305 -0.305 0;"
            "O 0.805 0.195 1/2; O 0.195 0.805 1/2",
        ),
        "cadmium_iodide": _crystal(
            (4.240, 4.240, 6.840, 90, 90, 120), "Cd 0 0 0; I 1/3 2/3 0.25; I 2/3 1/3 0.75"
        ),
        "graphite": _crystal(
            (2.456, 2.456, 6.696, 90, 90, 120), "C 0 0 1/4; C 0 0 3/4; C 1/3 2/3 1/4; C 2/3 1/3 3/4"
        ),
        "cuprite": _crystal(
            (4.270,) * 3 + (90,) * 3,
            "O 0 0 0; O 1/2 1/2 1/2; Cu 1/4 1/4 1/4; Cu 3/4 3/4 1/4; Cu 3/4 1/4 3/4;Cu 1/4 3/4 3/4",
        ),
    }


def textbook_set(num_lines: int = 64) -> PackedSet:
    """Return the crystals in standard form, with their powder lines: the ``"textbook"`` set."""
    crystals = {name: standardise(c) for name, c in textbook_crystals().items()}
    lines = lines_of(list(crystals.values()), inv_d_max=1.0, num_lines=num_lines)
    return from_crystals(list(crystals), list(crystals.values()), lines)


TEXTBOOK = "textbook"
"""Name of the built-in data set of textbook crystals (`textbook_set`)."""


def load_set(path: str, max_atoms: int | None = None) -> PackedSet:
    """Read packed sets written by ``launch.prepare``, or the built-in ``"textbook"`` one.

    ``path`` may name several, separated by commas, which are joined. Crystals of more than
    ``max_atoms`` atoms are left out.

    Raises:
        ValueError: there is no such set, or nothing is left of it.
    """
    sets = [textbook_set() if name == TEXTBOOK else load(name) for name in path.split(",")]
    packed = sets[0] if len(sets) == 1 else concatenate(sets)
    if max_atoms is not None and (packed.num_atoms > max_atoms).any():
        packed = packed.select(packed.num_atoms <= max_atoms)
    if not packed.num_crystals:
        raise ValueError(f"{path} holds no crystal of at most {max_atoms} atoms")
    return packed
