"""What a crystallographer checks by eye: formula units, contacts, symmetry, equal structures."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from xtalnet_jax.crystals.convert import niggli
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.elements import SYMBOLS, parse_formula
from xtalnet_jax.crystals.lattice import matrix_from_parameters

COMMON_UNITS = (1, 2, 4, 3, 6, 8, 5, 7, 9, 10)
"""Formula units per primitive cell in falling order of frequency; later ones are not tried."""

MAX_UNITS_TRIED = 4


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


def lattice_from_hint(lattice: Any) -> np.ndarray | None:
    """Return a Niggli-reduced [3, 3] cell for a matrix or for six cell parameters.

    Raises:
        ValueError: neither form, or no cell with positive volume.
    """
    if lattice is None:
        return None
    values = np.asarray(lattice, float)
    if values.shape == (6,):
        values = np.asarray(matrix_from_parameters(values[:3], values[3:]))
    if values.shape != (3, 3) or not np.isfinite(values).all() or abs(np.linalg.det(values)) < 1.0:
        raise ValueError(
            f"lattice {np.asarray(lattice).tolist()} is no cell; expected six numbers a, b, c "
            "(angstrom), alpha, beta, gamma (degrees) or three vectors"
        )
    return niggli(Crystal(np.array([1]), np.zeros((1, 3)), values)).lattice


@cache
def _space_groups() -> dict[str, str]:
    """Canonical symbol for every spelling and number of the 230 space groups."""
    import spglib

    groups = [spglib.get_spacegroup_type(hall) for hall in range(1, 531)]
    standard = {g.number: g.international_short for g in reversed(groups)}  # the first setting
    return {name: standard[g.number] for g in groups for name in _spellings(g)}


def _spellings(group: Any) -> tuple[str, ...]:
    names = (str(group.number), group.international_short, group.international_full)
    return tuple(n.replace(" ", "").replace("_", "").lower() for n in names)


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
    name = str(space_group).replace(" ", "").replace("_", "").lower()
    if name not in _space_groups():
        raise ValueError(f"space group {space_group!r} is unknown; write it like Fm-3m or 225")
    return _space_groups()[name]


def space_group_of(crystal: Crystal, symprec: float = 0.1) -> str:
    """Return the Hermann-Mauguin symbol found within ``symprec`` angstrom, ``"P1"`` if none is."""
    import spglib

    cell = (crystal.lattice, crystal.frac_coords, crystal.atomic_numbers)
    try:
        found = spglib.get_symmetry_dataset(cell, symprec=symprec)
    except spglib.SpglibError:
        found = None
    return found.international if found is not None else "P1"


@cache
def atomic_radius(atomic_number: int) -> float:
    """Return the empirical radius in angstrom (Slater 1964), 1.5 where there is none."""
    from pymatgen.core import Element

    radius = Element(SYMBOLS[atomic_number]).atomic_radius
    return float(radius) if radius else 1.5


def shortest_contact(crystal: Crystal) -> float:
    """Return the smallest distance over the sum of the two atomic radii (Slater 1964).

    Periodic images are those of the 27 cells around a reduced cell; below about 0.6 atoms overlap.
    """
    radii = np.array([atomic_radius(int(z)) for z in crystal.atomic_numbers])
    images = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
    difference = crystal.frac_coords[None] - crystal.frac_coords[:, None]
    shifted = difference[:, :, None] - np.round(difference)[:, :, None] + images
    distance = np.linalg.norm(shifted @ crystal.lattice, axis=-1)
    distance[np.arange(len(radii)), np.arange(len(radii)), len(images) // 2] = np.inf
    return float((distance.min(-1) / (radii[:, None] + radii[None])).min())


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
    return abs(np.log(per_atom[0] / per_atom[1])) > 0.15
