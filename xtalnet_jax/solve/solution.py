"""What a solve returns: ranked candidates, a verdict, and everything a report repeats."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.pxrd.pattern import Pattern

if TYPE_CHECKING:
    from xtalnet_jax.refine.profile_fit import Refined

MATCH, UNCERTAIN, NONE = "match", "uncertain", "none"

MATCH_CONFIDENCE, NONE_CONFIDENCE = 0.7, 0.15
"""A first candidate at least this sure is called a match; if all together are less sure than the
second, nothing was found."""


class Candidate(NamedTuple):
    """One proposed structure; candidates of a `Solution` are ordered by ``confidence``."""

    crystal: Crystal
    rwp: float  # weighted profile residual, 0 is perfect; nan where it was not computed
    similarity: float  # cosine of the embeddings of pattern and crystal, -1..1
    confidence: float  # calibrated probability that this is the right structure, 0..1
    space_group: str  # Hermann-Mauguin symbol found at 0.1 angstrom
    calculated: Pattern  # the pattern of this structure on the measured grid
    votes: int  # how many generated candidates became this structure
    fit: Refined | None = None  # zero shift, widths, B, background and their uncertainties
    evidence: Mapping[str, float] = MappingProxyType({})  # inputs of the ranker by name

    @property
    def structure(self) -> Any:
        """The ``pymatgen.core.Structure``."""
        return self.crystal.to_structure()

    @property
    def background(self) -> np.ndarray | None:
        """Background that was refined, [n_bin] on the angles of ``calculated``."""
        if self.fit is None or not len(self.fit.background):
            return None
        x = np.asarray(self.calculated.two_theta, float)
        u = np.interp(x, [x[0], x[-1]], [-1.0, 1.0])
        return np.asarray(np.polynomial.chebyshev.chebval(u, self.fit.background))


class Solution(NamedTuple):
    """Ranked candidates for one pattern, best first."""

    candidates: tuple[Candidate, ...]
    verdict: str  # "match", "uncertain" or "none"
    pattern: Pattern  # as measured
    formula: str
    settings: Mapping[str, Any]  # what was asked for and with which weights
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]  # time of each stage

    @property
    def none_right(self) -> float:
        """Calibrated probability that none of the candidates is the right structure, 0..1."""
        return max(0.0, 1.0 - sum(c.confidence for c in self.candidates))


def verdict_of(confidences: list[float]) -> str:
    """Return the verdict for the confidences of the ranked candidates.

    Example:
        >>> verdict_of([0.8, 0.1]), verdict_of([0.1, 0.1]), verdict_of([0.1]), verdict_of([])
        ('match', 'uncertain', 'none', 'none')
    """
    if max(confidences, default=0.0) >= MATCH_CONFIDENCE:
        return MATCH
    return UNCERTAIN if sum(confidences) >= NONE_CONFIDENCE else NONE
