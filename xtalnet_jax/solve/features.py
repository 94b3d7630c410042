"""Candidates with what was measured on them, and the ranker's view of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xtalnet_jax.crystals import typical
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.solve import plausibility, ranking

if TYPE_CHECKING:
    from xtalnet_jax.refine.profile_fit import Refined


class Fit(NamedTuple):
    """Candidates with all that ranking needs to know; arrays are parallel to ``crystals``."""

    crystals: list[Crystal]
    rwp_net: np.ndarray  # [n] R_wp relative to the profile without background
    rwp_cell: np.ndarray  # [n] the same for the cell alone, see `refine.decomposition`
    cosine: np.ndarray  # [n]
    similarity: np.ndarray  # [n]
    num_free: np.ndarray  # [n] free structural parameters, 0 without refinement
    moved: np.ndarray  # [n] angstrom
    refined: list[Refined]  # all that was fitted; empty if the profile was not looked at


class Features(NamedTuple):
    """The ranker's view of candidates."""

    matrix: np.ndarray  # [n, num_features]
    group: np.ndarray  # [n] int, equal for candidates that are the same structure


def features_of(fit: Fit, merge: bool = True) -> Features:
    """Compute what the ranker looks at, see `ranking.feature_matrix`.

    Without ``merge`` every candidate counts as a structure of its own, which saves comparing them.
    """
    every = np.arange(len(fit.crystals))
    group = plausibility.group_equal(fit.crystals, fit.cosine) if merge else every
    votes = np.array([(group == g).mean() for g in group])
    crowding = np.array([typical.crowding(c) for c in fit.crystals])
    volume = np.array([typical.volume_ratio(c.atomic_numbers, c.lattice) for c in fit.crystals])
    sizes = np.array([len(c.atomic_numbers) for c in fit.crystals])
    matrix = ranking.feature_matrix(
        fit.cosine,
        fit.rwp_net,
        fit.rwp_cell,
        fit.similarity,
        votes,
        crowding,
        volume,
        sizes,
        fit.num_free,
        fit.moved,
    )
    return Features(matrix, group)
