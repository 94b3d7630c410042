"""One standard cell for every crystal: Niggli-reduced, in a fixed orientation.

The field compares and generates Niggli-reduced primitive cells in one fixed orientation; doing it
once, when a set is packed or a crystal comes in, keeps the choice out of models and metrics.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal

NIGGLI_TOLERANCES = (1e-2, 1e-3, 1e-5)
"""Square angstrom within which the reduction takes two scalar products for equal, tried in turn.

A symmetric cell has ties, which rounding must not decide: with 1e-5, noise of 1e-7 in the lattice
(float32) leads to another of the equivalent cells in one of five Materials Project crystals, with
1e-2 in one of a thousand. A wide tolerance can fail to converge, hence the others.
"""


def standardise(crystal: Crystal, niggli: bool = True) -> Crystal:
    """Return the same crystal in its Niggli cell, in the standard frame, wrapped into [0, 1).

    The new lattice vectors are an integer combination ``T @ lattice`` with det T = 1, so the
    fractional coordinates become ``frac @ inv(T)`` without rounding errors of a rotation. The frame
    is that of ``Lattice.from_parameters``: c along z, a in the x-z plane, right-handed.

    Args:
        crystal: any cell, also a left-handed one.
        niggli: False keeps the cell and only turns it into the standard frame.

    Raises:
        ValueError: the lattice is singular, not finite, or cannot be reduced.
    """
    lattice = np.asarray(crystal.lattice, np.float64)
    frac = np.asarray(crystal.frac_coords, np.float64)
    volume = np.linalg.det(lattice) if np.isfinite(lattice).all() else 0.0
    if abs(volume) < 1e-6:
        raise ValueError(f"the lattice {lattice.round(3).tolist()} spans no volume")
    if volume < 0:  # the same crystal with all three vectors reversed is right-handed
        lattice, frac = -lattice, -frac
    if niggli:
        transform = niggli_transform(lattice)
        lattice, frac = transform @ lattice, frac @ np.linalg.inv(transform)
    return Crystal(np.asarray(crystal.atomic_numbers), wrap(frac), standard_frame(lattice))


def primitive(crystal: Crystal, symprec: float = 0.01) -> Crystal:
    """Return the crystal in a primitive cell, its atoms where they are; itself where it has one.

    Args:
        crystal: any cell.
        symprec: angstrom within which translated atoms are the same (spglib).
    """
    import spglib

    numbers = np.asarray(crystal.atomic_numbers)
    cell: Any = (np.asarray(crystal.lattice, float), np.asarray(crystal.frac_coords), numbers)
    try:
        found = spglib.standardize_cell(cell, to_primitive=True, no_idealize=True, symprec=symprec)
    except spglib.error.SpglibError:  # what later versions raise instead of returning None
        found = None
    if found is None or len(found[2]) >= len(numbers):
        return crystal
    lattice, frac_coords, kept = map(np.asarray, found)
    return Crystal(kept, frac_coords, lattice)


def niggli_transform(lattice: np.ndarray) -> np.ndarray:
    """Integer matrix T, det T = 1, for which ``T @ lattice`` is Niggli-reduced.

    Raises:
        ValueError: the reduction does not converge.
    """
    import spglib

    for tolerance in NIGGLI_TOLERANCES:
        try:
            reduced = spglib.niggli_reduce(lattice, tolerance)
        except spglib.error.SpglibError:  # what later versions raise instead of returning None
            continue
        if reduced is None:
            continue
        transform = np.rint(reduced @ np.linalg.inv(lattice))
        determinant = np.rint(np.linalg.det(transform))
        if abs(determinant) == 1:
            return transform * determinant
    raise ValueError(f"the lattice {lattice.round(3).tolist()} has no Niggli reduction")


def standard_frame(lattice: np.ndarray) -> np.ndarray:
    """Rotate right-handed lattice vectors [3, 3] so that c is along z and a in the x-z plane."""
    a, _, c = lattice
    z = c / np.linalg.norm(c)
    x = a - (a @ z) * z
    x = x / np.linalg.norm(x)
    turned = lattice @ np.stack([x, np.cross(z, x), z], axis=1)
    turned[0, 1] = turned[2, 0] = turned[2, 1] = 0.0
    return turned


def wrap(frac_coords: np.ndarray) -> np.ndarray:
    """Fractional coordinates in [0, 1) as float32, also where rounding up would give 1."""
    wrapped = (np.asarray(frac_coords, np.float64) % 1.0).astype(np.float32)
    return np.where(wrapped >= 1.0, np.float32(0.0), wrapped)
