"""What is usual in solids: the room that an element takes, and how close two elements come.

Both are tables fitted to training crystals (``python -m benchmarks.typical``): volumes of cells
are sums of atomic volumes to about 10 %, distances between nearest neighbours sums of radii to 9 %,
and to 5 % with a correction for each pair of elements that was seen often enough.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.elements import ATOMIC_NUMBERS, SYMBOLS

FILE = Path(__file__).with_name("typical.json")

ROUNDS = 10
SMALLEST_RESIDUAL = 0.03  # of a logarithm, below which all data weigh the same in a fit

FEW = 4.0
"""Pairs of elements are corrected as if so many distances without correction had been seen."""


class Typical(NamedTuple):
    """Tables by atomic number; elements that no crystal told of get medians."""

    volumes: np.ndarray  # [num_elements] cubic angstrom
    radii: np.ndarray  # [num_elements] angstrom
    corrections: np.ndarray  # [num_elements, num_elements], of the logarithm of a distance

    def distance(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Typical distance of nearest neighbours in angstrom, by atomic numbers."""
        return (self.radii[first] + self.radii[second]) * np.exp(self.corrections[first, second])


@cache
def typical() -> Typical:
    """Return the tables that come with the package."""
    stored = json.loads(FILE.read_text(encoding="utf-8"))
    num = len(SYMBOLS)
    corrections = np.zeros((num, num))
    for pair, value in stored["corrections"].items():
        i, j = (ATOMIC_NUMBERS[symbol] for symbol in pair.split("-"))
        corrections[i, j] = corrections[j, i] = value
    return Typical(_by_number(stored["volumes"]), _by_number(stored["radii"]), corrections)


def volume_ratio(atomic_numbers: np.ndarray, lattice: np.ndarray) -> float:
    """Volume of a cell [3, 3] (rows, angstrom) over the sum of the volumes of its atoms.

    Example:
        >>> round(volume_ratio(np.array([11, 17]), np.eye(3) * 44.9 ** (1 / 3)), 1)
        0.9
    """
    expected = typical().volumes[np.asarray(atomic_numbers)].sum()
    return float(abs(np.linalg.det(np.asarray(lattice, float))) / expected)


def crowding(crystal: Crystal) -> float:
    """How far the closest atoms come below their typical distance: logarithm, 0 where none does.

    For each atom its nearest neighbour counts; the worst atom decides.
    """
    numbers = np.asarray(crystal.atomic_numbers)
    neighbour, distance = nearest_neighbours(crystal)
    usual = typical().distance(numbers, numbers[neighbour])
    return float(np.log(usual / np.maximum(distance, 1e-3)).max().clip(0.0))


def nearest_neighbours(crystal: Crystal) -> tuple[np.ndarray, np.ndarray]:
    """Nearest neighbour of every atom: index of the atom it is an image of, distance in angstrom.

    Periodic images are those of the 27 cells around a reduced cell.
    """
    coords = np.asarray(crystal.frac_coords, float)
    images = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
    difference = coords[None] - coords[:, None]
    difference = difference - np.round(difference)
    apart = (difference[:, :, None] + images) @ np.asarray(crystal.lattice, float)
    distance = np.linalg.norm(apart, axis=-1)
    every = np.arange(len(coords))
    distance[every, every, len(images) // 2] = np.inf
    distance = distance.min(-1)
    neighbour = distance.argmin(-1)
    return neighbour, distance[every, neighbour]


# Fitting ----------------------------------------------------------------------------------------


def fit(crystals: Iterable[Crystal]) -> dict[str, Any]:
    """Fit the tables, as they are stored: volumes, radii and corrections by symbols."""
    crystals = list(crystals)
    volumes = [abs(np.linalg.det(np.asarray(c.lattice, float))) for c in crystals]
    numbers = [np.asarray(c.atomic_numbers) for c in crystals]
    pairs, distances = _neighbour_distances(crystals)
    radii = fit_sizes(list(pairs), distances)
    table = _by_number(radii)
    residual = np.log(distances / table[pairs].sum(1))
    corrections = {}
    code = pairs.min(1) * len(SYMBOLS) + pairs.max(1)
    for key in np.unique(code):
        own = residual[code == key]
        i, j = divmod(int(key), len(SYMBOLS))
        corrections[f"{SYMBOLS[i]}-{SYMBOLS[j]}"] = np.median(own) * len(own) / (len(own) + FEW)
    made = {
        "volumes": fit_sizes(numbers, np.array(volumes)),
        "radii": radii,
        "corrections": corrections,
    }
    return {name: {k: round(float(v), 3) for k, v in own.items()} for name, own in made.items()}


def fit_sizes(atomic_numbers: Sequence[np.ndarray], totals: np.ndarray) -> dict[str, float]:
    """Fit a size to each element so that their sums are given totals.

    Non-negative least squares of relative errors, weighted again and again so that it is about
    their absolute value to the power 3/2 (outliers count less than in least squares).

    Args:
        atomic_numbers: of the atoms that make each total, [n_i].
        totals: [n] volumes of cells, or distances between two atoms.
    """
    counts = np.stack([np.bincount(z, minlength=len(SYMBOLS)) for z in atomic_numbers])
    present = counts.sum(0) > 0
    relative = counts[:, present] / np.asarray(totals, float)[:, None]
    weight = np.ones(len(relative))
    fitted = np.zeros(int(present.sum()))
    for _ in range(ROUNDS):
        # The normal equations as a square root: as many rows as elements, not as data.
        root = np.asarray(np.linalg.qr(np.c_[relative * weight[:, None], weight], mode="r"))
        fitted, _ = nnls(root[:, :-1], root[:, -1])
        residual = np.abs(np.log(np.maximum(relative @ fitted, 1e-3)))
        weight = np.maximum(residual, SMALLEST_RESIDUAL) ** -0.25
    return dict(zip(np.array(SYMBOLS)[present].tolist(), fitted.tolist()))


def _neighbour_distances(crystals: Sequence[Crystal]) -> tuple[np.ndarray, np.ndarray]:
    """Different nearest-neighbour distances of each crystal: pairs [n, 2], angstrom [n]."""
    found = []
    for crystal in crystals:
        numbers = np.asarray(crystal.atomic_numbers)
        neighbour, distance = nearest_neighbours(crystal)
        found.append(np.unique(np.c_[numbers, numbers[neighbour], distance.round(3)], axis=0))
    rows = np.concatenate(found)
    return rows[:, :2].astype(int), rows[:, 2]


def _by_number(table: dict[str, float]) -> np.ndarray:
    values = np.full(len(SYMBOLS), np.median(list(table.values())))
    values[[ATOMIC_NUMBERS[symbol] for symbol in table]] = list(table.values())
    return values
