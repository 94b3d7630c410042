"""How a refinement goes about its work."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class RefineSettings(NamedTuple):
    """How to refine; the defaults were tuned on perturbed validation crystals.

    Restraints are costs in the units of the misfits, 1 - cos^2 and R_wp^2.
    """

    first_widths: tuple[float, ...] = (4.0, 2.6, 1.7, 1.1, 0.75, 0.5)  # degrees
    second_widths: tuple[float, ...] = (0.9, 0.7, 0.55, 0.45, 0.38, 0.33)
    steps: int = 4  # evaluations per width
    bins: int = 512  # points of the grid of both rounds
    equal_misfits: float = 0.0  # relative; candidates so alike, with one cell and symmetry, count
    # as one structure, and the first is fitted to the profile for all of them
    profile_steps: tuple[int, int] = (12, 5)  # second: of candidates that were given up
    num_background: int = 6  # Chebyshev terms of the profile refinement
    floor: float = 0.02  # under the square root, in units of the mean intensity
    symmetry_misfits: tuple[float, ...] = (0.1, 0.2, 0.35, 0.5, 0.7)  # angstrom; () for none
    max_variants: int = 3  # symmetrised copies per candidate
    symmetry_scale: float = 0.15  # angstrom of displacement that cost a factor e of the order
    hopeless: float = np.inf  # candidates with so many times the misfit of the best are given up
    price: float = 0.1  # factor on the misfit per free coordinate, as 1 + price * number
    misfit_floor: float = 1e-3  # misfits below are as good as 0
    contact: float = 0.7  # shortest distance allowed, in sums of atomic radii
    contact_cost: float = 0.02  # per square angstrom too short
    cell_cost: float = 0.02  # per squared strain
    coord_cost: float = 2e-3  # per square angstrom and atom
    zero_cost: float = 0.02  # per square degree
    step_cell: float = 0.02
    step_coord: float = 0.15  # angstrom
    chunk: int | None = None  # candidates per compiled call; None: by device


DEFAULT = RefineSettings()
MANY = DEFAULT._replace(equal_misfits=3e-3, hopeless=8.0)
"""For many candidates of one pattern, of which some become the same and most are wrong."""
