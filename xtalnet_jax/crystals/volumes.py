"""How large a cell is expected to be: every element takes about the same room in all solids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from xtalnet_jax.crystals.elements import ATOMIC_NUMBERS, SYMBOLS

TABLE = Path(__file__).with_name("atomic_volumes.json")
"""Cubic angstrom per atom by symbol, written by ``python -m benchmarks.atomic_volumes``."""

ROUNDS = 10
SMALLEST_RESIDUAL = 0.03  # of log volume, below which all crystals weigh the same in a fit


@cache
def atomic_volumes() -> np.ndarray:
    """[num_elements] cubic angstrom by atomic number; the median where no crystal told."""
    known = json.loads(TABLE.read_text(encoding="utf-8"))
    volumes = np.full(len(SYMBOLS), np.median(list(known.values())))
    volumes[[ATOMIC_NUMBERS[symbol] for symbol in known]] = list(known.values())
    return volumes


def volume_ratio(atomic_numbers: np.ndarray, lattice: np.ndarray) -> float:
    """Volume of a cell [3, 3] (rows, angstrom) over the sum of its atoms' `atomic_volumes`.

    Example:
        >>> round(volume_ratio(np.array([11, 17]), np.eye(3) * 44.9 ** (1 / 3)), 1)
        1.1
    """
    expected = atomic_volumes()[np.asarray(atomic_numbers)].sum()
    return float(abs(np.linalg.det(np.asarray(lattice, float))) / expected)


def fit_atomic_volumes(
    atomic_numbers: Sequence[np.ndarray], volumes: np.ndarray
) -> dict[str, float]:
    """Fit a volume to each element so that their sums are the volumes of crystals.

    Non-negative least squares of relative errors, weighted again and again so that it is about
    their absolute value to the power 3/2 (outliers count less than in least squares).

    Args:
        atomic_numbers: of all atoms of each cell.
        volumes: [n] of the cells, cubic angstrom.
    """
    counts = np.stack([np.bincount(z, minlength=len(SYMBOLS)) for z in atomic_numbers]).astype(
        float
    )
    present = counts.sum(0) > 0
    relative = counts[:, present] / np.asarray(volumes, float)[:, None]
    weight = np.ones(len(relative))
    for _ in range(ROUNDS):
        fitted, _ = nnls(relative * weight[:, None], weight)
        residual = np.abs(np.log(np.maximum(relative @ fitted, 1e-3)))
        weight = np.maximum(residual, SMALLEST_RESIDUAL) ** -0.25
    return dict(zip(np.array(SYMBOLS)[present].tolist(), fitted.tolist()))
