"""Random unit cells of every Bravais lattice, as primitive cells of a wanted volume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

CENTRINGS = {
    "P": np.eye(3),
    "I": np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]) / 2,
    "F": np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2,
    "A": np.array([[2, 0, 0], [0, 1, -1], [0, 1, 1]]) / 2,
    "B": np.array([[1, 0, -1], [0, 2, 0], [1, 0, 1]]) / 2,
    "C": np.array([[1, -1, 0], [1, 1, 0], [0, 0, 2]]) / 2,
    "R": np.array([[2, 1, 1], [-1, 1, 1], [-1, -2, 1]]) / 3,  # obverse setting, hexagonal axes
}
"""Rows are primitive vectors in terms of the conventional ones."""


class Bravais(NamedTuple):
    """A Bravais lattice: which parameters of its conventional cell are free."""

    ratios: tuple[int, int, int]  # a, b, c: equal numbers are equal lengths
    angles: tuple[float, float, float]  # degrees; 0 is free
    centring: str

    @property
    def num_free(self) -> int:
        """Free cell parameters.

        Example:
            >>> [LATTICES[name].num_free for name in ("cF", "hR", "oP", "mC", "aP")]
            [1, 2, 3, 4, 6]
        """
        return len(set(self.ratios)) + self.angles.count(0)


LATTICES: Mapping[str, Bravais] = {
    "cP": Bravais((0, 0, 0), (90, 90, 90), "P"),
    "cI": Bravais((0, 0, 0), (90, 90, 90), "I"),
    "cF": Bravais((0, 0, 0), (90, 90, 90), "F"),
    "tP": Bravais((0, 0, 1), (90, 90, 90), "P"),
    "tI": Bravais((0, 0, 1), (90, 90, 90), "I"),
    "hP": Bravais((0, 0, 1), (90, 90, 120), "P"),
    "hR": Bravais((0, 0, 1), (90, 90, 120), "R"),
    "oP": Bravais((0, 1, 2), (90, 90, 90), "P"),
    "oI": Bravais((0, 1, 2), (90, 90, 90), "I"),
    "oF": Bravais((0, 1, 2), (90, 90, 90), "F"),
    "oC": Bravais((0, 1, 2), (90, 90, 90), "C"),
    "mP": Bravais((0, 1, 2), (90, 0, 90), "P"),
    "mC": Bravais((0, 1, 2), (90, 0, 90), "C"),
    "aP": Bravais((0, 1, 2), (0, 0, 0), "P"),
}
"""The fourteen lattices by Pearson's symbols."""


def random_cells(
    rng: np.random.Generator,
    lattice: str,
    volume: np.ndarray,
    ratio_sigma: float = 0.55,
) -> np.ndarray:
    """Draw primitive cells [n, 3, 3] (rows, angstrom) of one Bravais lattice.

    Args:
        rng: source of randomness.
        lattice: Pearson's symbol, a key of `LATTICES`.
        volume: [n] of each primitive cell, cubic angstrom.
        ratio_sigma: standard deviation of the logarithm of each independent length.

    Example:
        >>> cells = random_cells(np.random.default_rng(0), "cF", np.full(5, 40.0))
        >>> np.linalg.det(cells).round(3).tolist()
        [40.0, 40.0, 40.0, 40.0, 40.0]
    """
    kind, num = LATTICES[lattice], len(volume)
    lengths = np.exp(rng.normal(0.0, ratio_sigma, (num, 3)))[:, kind.ratios]
    free = rng.uniform(65.0, 115.0, (num, 3))
    if lattice[0] == "m":
        free = rng.uniform(90.0, 130.0, (num, 3))
    angles = np.deg2rad(np.where(np.array(kind.angles) == 0, free, kind.angles))
    cos = np.cos(angles)
    metric = np.ones((num, 3, 3))
    for (i, j), angle in {(1, 2): 0, (0, 2): 1, (0, 1): 2}.items():
        metric[:, i, j] = metric[:, j, i] = cos[:, angle]
    metric *= lengths[:, :, None] * lengths[:, None, :]
    possible = np.linalg.eigvalsh(metric)[:, 0] > 1e-3
    metric[~possible] = np.eye(3)
    cells = CENTRINGS[kind.centring] @ np.linalg.cholesky(metric)
    return cells * np.cbrt(volume / np.linalg.det(cells))[:, None, None]
