"""What a crystallographer checks by eye: formula units, symmetry, equal structures."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np

from xtalnet_jax.crystals.bravais import CENTRINGS
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.elements import parse_formula
from xtalnet_jax.crystals.lattice import matrix_from_parameters
from xtalnet_jax.crystals.reduction import standardise
from xtalnet_jax.data.standard import MIN_HEIGHT, VOLUME_PER_ATOM

COMMON_UNITS = (1, 2, 4, 3, 6, 8, 5, 7, 9, 10)
"""Formula units per primitive cell in falling order of frequency; later ones are not tried."""

MAX_UNITS_TRIED = 4

MOST_OFF_ANGLE = 0.02
"""Degrees that a right angle of a conventional cell may be off."""


def formula_units(
    formula: str, z: int | None, max_atoms: int, lattice: np.ndarray | None = None
) -> tuple[int, ...]:
    """Return the numbers of formula units (of the formula as written) to try, most likely first.

    Raises:
        ValueError: the formula does not parse, or even one unit (or ``z`` units) is too large.

    Example:
        >>> formula_units("TiO2", None, 20)
        (1, 2, 4, 3)
    """
    atoms = sum(parse_formula(formula).values())
    if z is not None:
        if z < 1:
            raise ValueError(f"z is {z}, expected at least 1 formula unit per primitive cell")
        if z * atoms > max_atoms:
            raise ValueError(
                f"{z} x {formula} has {z * atoms} atoms, these weights take at most {max_atoms} in "
                "the primitive cell"
            )
        return (z,)
    if atoms > max_atoms:
        raise ValueError(
            f"{formula} has {atoms} atoms, these weights take at most {max_atoms} in the primitive "
            "cell"
        )
    fitting = [u for u in COMMON_UNITS if u * atoms <= max_atoms]
    if lattice is not None:
        volume = abs(np.linalg.det(lattice))
        low, high = 8.0, 45.0  # cubic angstrom per atom, wider than any common solid
        fitting = [u for u in fitting if low <= volume / (u * atoms) <= high] or fitting
    return tuple(fitting[:MAX_UNITS_TRIED])


def lattice_from_hint(lattice: Any, space_group: str | int | None = None) -> np.ndarray | None:
    """Return the standard primitive cell [3, 3], as the training data have it, of a known one.

    Args:
        lattice: rows in angstrom, or six cell parameters in angstrom and degrees.
        space_group: known symbol or number. If it is of a centred lattice, and the angles are those
            of a conventional cell, the cell is taken for that and made primitive.

    Raises:
        ValueError: neither form, or no cell with positive volume.
    """
    if lattice is None:
        return None
    try:
        values = np.asarray(lattice, float)
    except (TypeError, ValueError):
        values = np.zeros(0)
    if values.shape == (6,):
        values = np.asarray(matrix_from_parameters(*jnp.asarray(values).reshape(2, 3)), float)
    if values.shape != (3, 3) or not np.isfinite(values).all() or abs(np.linalg.det(values)) < 1.0:
        raise ValueError(
            f"lattice {lattice} is no cell; expected six numbers a, b, c "
            "(angstrom), alpha, beta, gamma (degrees) or three vectors"
        )
    if space_group is not None:
        values = _primitive(values, space_group)
    return standardise(Crystal(np.array([1]), np.zeros((1, 3)), values)).lattice


def _primitive(cell: np.ndarray, space_group: str | int) -> np.ndarray:
    """The primitive one of a conventional cell; any other is returned as it is."""
    standard = space_group_from_hint(space_group) or "P"
    written = str(space_group).strip()[:1].upper()
    centring = written if written in CENTRINGS else standard[0]
    lengths = np.linalg.norm(cell, axis=1)
    angles = np.rad2deg(np.arccos(np.clip((cell @ cell.T) / np.outer(lengths, lengths), -1, 1)))
    oblique = np.abs(angles[[1, 0, 0], [2, 2, 1]] - 90.0) > MOST_OFF_ANGLE
    if centring == "R":
        hexagonal = oblique.tolist() == [False, False, True]
        return CENTRINGS["R"] @ cell if hexagonal else cell
    monoclinic = standard in map(space_group_from_hint, range(3, 16))
    return CENTRINGS[centring] @ cell if oblique.sum() <= monoclinic else cell


@cache
def _space_groups() -> dict[str, str]:
    """Canonical symbol for every spelling and number of the 230 space groups."""
    import spglib

    halls = map(spglib.get_spacegroup_type, range(1, 531))
    groups = [g for g in halls if g is not None]
    standard = {g.number: g.international_short for g in reversed(groups)}  # the first setting
    return {name: standard[g.number] for g in groups for name in _spellings(g)}


def _spellings(group: Any) -> tuple[str, ...]:
    short, full = group.international_short, group.international_full
    names = [str(group.number), short, full]
    if 3 <= group.number <= 15:  # monoclinic: P 1 2_1/n 1 is written P2_1/n
        names.append("".join(part for part in full.split() if part != "1"))
    if group.number in _BEFORE_1992:
        names.append(_BEFORE_1992[group.number])
    if group.pointgroup_international in ("m-3", "m-3m"):
        names.append(short.replace("-3", "3"))  # Fm3m, as before 1983
    return tuple(_plain(name) for name in names)


_BEFORE_1992 = {39: "Abm2", 41: "Aba2", 64: "Cmca", 67: "Cmma", 68: "Ccca"}
"""Symbols from before the e-glide (de Wolff et al., Acta Cryst. A48, 727, 1992)."""


def _plain(symbol: str) -> str:
    """Lower case without blanks and underscores, nor the setting after a colon."""
    return symbol.partition(":")[0].replace(" ", "").replace("_", "").lower()


def space_group_from_hint(space_group: str | int | None) -> str | None:
    """Return the standard short symbol for a symbol in any spelling or a number.

    Raises:
        ValueError: there is no such space group.

    Example:
        >>> space_group_from_hint("P 42/m n m"), space_group_from_hint(225)
        ('P4_2/mnm', 'Fm-3m')
    """
    if space_group is None:
        return None
    name = _plain(str(space_group))
    if name not in _space_groups():
        raise ValueError(f"space group {space_group!r} is unknown; write it like Fm-3m or 225")
    return _space_groups()[name]


def space_group_of(crystal: Crystal, symprec: float = 0.1) -> str:
    """Return the Hermann-Mauguin symbol found within ``symprec`` angstrom, ``"P1"`` if none is."""
    import spglib

    cell: Any = (crystal.lattice, crystal.frac_coords, crystal.atomic_numbers)
    try:
        found = spglib.get_symmetry_dataset(cell, symprec=symprec)
    except spglib.SpglibError:
        found = None
    return found.international if found is not None else "P1"


def is_possible(crystal: Crystal) -> bool:
    """Whether a proposal is a cell at all: finite, not flat, neither crushed nor exploded."""
    lattice = np.asarray(crystal.lattice, float)
    if not (np.isfinite(lattice).all() and np.isfinite(crystal.frac_coords).all()):
        return False
    volume = abs(np.linalg.det(lattice))
    low, high = VOLUME_PER_ATOM
    if not low <= volume / len(crystal.atomic_numbers) <= high:
        return False
    return bool(1.0 / np.linalg.norm(np.linalg.inv(lattice), axis=0).max() >= MIN_HEIGHT)


def group_equal(crystals: list[Crystal], goodness: np.ndarray) -> np.ndarray:
    """Number the different structures among candidates: [n] int, equal for equal structures.

    Candidates are visited from the best ``goodness`` down; each joins the first group whose first
    member it matches by pymatgen's ``StructureMatcher`` (its default, strict tolerances).
    """
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher()
    structures = [c.to_structure() for c in crystals]
    group = np.full(len(crystals), -1)
    leaders: list[int] = []
    for i in np.argsort(-np.asarray(goodness), kind="stable"):
        for number, leader in enumerate(leaders):
            if _volumes_differ(crystals[i], crystals[leader]):
                continue
            if matcher.fit(structures[i], structures[leader]):
                group[i] = number
                break
        else:
            group[i] = len(leaders)
            leaders.append(int(i))
    return group


def _volumes_differ(first: Crystal, second: Crystal) -> bool:
    """Whether volumes per atom differ by more than the matcher could forgive without scaling."""
    per_atom = [abs(np.linalg.det(c.lattice)) / len(c.atomic_numbers) for c in (first, second)]
    return bool(abs(np.log(per_atom[0] / per_atom[1])) > 0.15)
