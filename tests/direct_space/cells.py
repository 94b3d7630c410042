"""A primitive cell of each Bravais lattice, and crystals built on Wyckoff positions."""

from __future__ import annotations

from functools import cache

import numpy as np

from xtalnet_jax.crystals import wyckoff
from xtalnet_jax.crystals.crystal import Crystal

CENTRING = {  # primitive vectors in terms of conventional ones (International Tables A, 3.1.1)
    "P": np.eye(3),
    "C": np.array([[0.5, 0.5, 0], [-0.5, 0.5, 0], [0, 0, 1]]),
    "I": np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]) / 2,
    "F": np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2,
    "R": np.array([[2, 1, 1], [-1, 1, 1], [-1, -2, 1]]) / 3,
}
PARAMETERS = {
    "aP": (4.1, 5.2, 6.3, 80, 95, 103),
    "mP": (4.1, 5.2, 6.3, 90, 101, 90),
    "mC": (7.1, 5.2, 6.3, 90, 106, 90),
    "oP": (4.1, 5.2, 6.3, 90, 90, 90),
    "oC": (4.1, 5.2, 6.3, 90, 90, 90),
    "oI": (4.1, 5.2, 6.3, 90, 90, 90),
    "oF": (5.1, 6.2, 7.3, 90, 90, 90),
    "tP": (4.1, 4.1, 6.3, 90, 90, 90),
    "tI": (4.1, 4.1, 6.3, 90, 90, 90),
    "hP": (4.1, 4.1, 6.3, 90, 90, 120),
    "hR": (4.1, 4.1, 9.7, 90, 90, 120),
    "cP": (4.1, 4.1, 4.1, 90, 90, 90),
    "cI": (4.6, 4.6, 4.6, 90, 90, 90),
    "cF": (5.6, 5.6, 5.6, 90, 90, 90),
}
BRAVAIS = tuple(PARAMETERS)


def rows_of(a: float, b: float, c: float, *angles: float) -> np.ndarray:
    ca, cb, cg = np.cos(np.deg2rad(angles))
    sg = np.sin(np.deg2rad(angles[2]))
    cy = (ca - cb * cg) / sg
    return np.array(
        [[a, 0, 0], [b * cg, b * sg, 0], [c * cb, c * cy, c * np.sqrt(1 - cb**2 - cy**2)]]
    )


def primitive(name: str) -> np.ndarray:
    """Primitive cell [3, 3] of a Bravais lattice; the conventional one is ``PARAMETERS``."""
    return CENTRING[name[1]] @ rows_of(*PARAMETERS[name])


@cache
def groups(name: str) -> tuple[wyckoff.Group, ...]:
    return tuple(wyckoff.groups_of_cell(primitive(name)))


def group(name: str, number: int) -> wyckoff.Group:
    return next(g for g in groups(name) if g.number == number)


def orbit(site: wyckoff.Site, x: np.ndarray) -> np.ndarray:
    first = site.project @ x + site.shift
    return site.rotations @ first + site.translations


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Largest fractional difference [n_a, n_b] up to lattice vectors."""
    away = a[:, None] - b[None]
    return np.abs(away - np.round(away)).max(-1)


def crystal_on(name: str, sites: list[wyckoff.Site], numbers: list[int], seed: int = 0) -> Crystal:
    """One element on each of some sites, at random coordinates; elements in rising order."""
    rng = np.random.default_rng(seed)
    atoms = [orbit(site, rng.uniform(size=3)) for site in sites]
    z = np.repeat(numbers, [len(a) for a in atoms])
    return Crystal(z, np.concatenate(atoms) % 1.0, primitive(name))
