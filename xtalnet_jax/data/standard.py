"""The checks that every crystal of a data set must pass, after `reduction.standardise`."""

from __future__ import annotations

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal

MIN_DISTANCE = 0.5
"""Closest approach of two atoms that is believed, angstrom (as pymatgen's ``is_valid``)."""

MIN_HEIGHT = 2 * MIN_DISTANCE
"""Smallest distance between opposite faces of a cell, angstrom.

Above it the nearest image of any pair closer than `MIN_DISTANCE` is found by rounding.
"""

VOLUME_PER_ATOM = (1.0, 2000.0)
"""Cubic angstrom; crushed and exploded cells are outside, the emptiest frameworks inside."""

MAX_ATOMIC_NUMBER = 98
"""Californium, the last element with tabulated form factors."""


def check_crystal(crystal: Crystal, max_atoms: int | None = None) -> None:
    """Refuse what no model should be trained on.

    Assumes a reduced cell (`standardise`), so that one image per pair is enough.

    Raises:
        ValueError: no or too many atoms, unknown elements, a value that is not finite, a flat cell,
            an absurd volume, or two atoms nearer than `MIN_DISTANCE`.
    """
    numbers, frac, lattice = crystal
    n = len(numbers)
    if n == 0:
        raise ValueError("it has no atoms")
    if max_atoms is not None and n > max_atoms:
        raise ValueError(f"it has {n} atoms, at most {max_atoms} are taken")
    if frac.shape != (n, 3):
        raise ValueError(f"it has {n} atoms but coordinates of shape {frac.shape}")
    if numbers.min() < 1 or numbers.max() > MAX_ATOMIC_NUMBER:
        worst = numbers.min() if numbers.min() < 1 else numbers.max()
        raise ValueError(f"atomic number {worst} is not within 1..{MAX_ATOMIC_NUMBER}")
    if not np.isfinite(frac).all():
        raise ValueError("a coordinate is not finite")
    volume = abs(np.linalg.det(lattice))
    low, high = VOLUME_PER_ATOM
    if not low <= volume / n <= high:
        raise ValueError(
            f"{volume / n:.3g} cubic angstrom per atom is not within {low:g}..{high:g}"
        )
    heights = 1.0 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    if heights.min() < MIN_HEIGHT:
        raise ValueError(f"its cell is only {heights.min():.2g} angstrom high")
    if n > 1:
        upper = np.triu_indices(n, 1)
        delta = frac[upper[0]].astype(np.float64) - frac[upper[1]]
        nearest = np.linalg.norm((delta - np.rint(delta)) @ lattice, axis=1).min()
        if nearest < MIN_DISTANCE:
            raise ValueError(f"two atoms are {nearest:.2g} angstrom apart")
