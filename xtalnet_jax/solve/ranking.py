"""Which candidate is right, and how sure are we: a small calibrated ranker.

A candidate is described by a handful of numbers (how well it fits the pattern, how similar its
embedding is, how often the generator proposed it, how close its atoms come); a logistic regression
fitted on validation crystals turns them into the probability that the candidate matches the true
structure. Candidates are ranked by that probability, which is also the published confidence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

FEATURES = (
    "log_misfit",
    "log_rwp_net",
    "excess",
    "similarity",
    "votes",
    "contact",
    "log_num_atoms",
    "log_num_free",
    "moved",
    "lead",
)
"""Names and order of the ranker's inputs, see `feature_matrix`."""

INPUTS = {
    "refined": tuple(n for n in FEATURES if n not in ("votes", "log_num_atoms", "moved")),
    "raw": FEATURES,
}
"""What the ranker of each kind of candidates looks at. Of refined ones, half come once from a
search, so that votes say little; size and displacement stand for the crystals it was fitted to:
without the three the logarithmic loss of first candidates is lower in cross-validation
(`benchmarks.ranker`)."""

SIGNS = {
    "log_misfit": -1, "log_rwp_net": -1, "excess": -1, "similarity": 1, "votes": 1, "lead": 1
}  # fmt: skip
"""Directions that are known: a better fit or more votes never make a structure less likely."""

LEADER_WEIGHT = 5.0
"""In a fit, of the structures that no other fits better than: the verdict is about them, and
most of the others are too easy to learn from."""


class Ranker(NamedTuple):
    """Logistic regression on standardised features."""

    mean: np.ndarray  # [num_features]
    scale: np.ndarray  # [num_features]
    coefficients: np.ndarray  # [num_features]
    intercept: float

    def confidence(self, features: np.ndarray) -> np.ndarray:
        """Return the probability of a match, [n], for features [n, num_features]."""
        z = (np.asarray(features, float) - self.mean) / self.scale
        return expit(z @ self.coefficients + self.intercept)

    def to_config(self) -> dict[str, Any]:
        """Return plain lists, as stored in a weights file."""
        return {
            "features": list(FEATURES),
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
            "coefficients": self.coefficients.tolist(),
            "intercept": float(self.intercept),
        }


def ranker_from_config(config: Mapping[str, Any]) -> Ranker:
    """Inverse of `Ranker.to_config`.

    Raises:
        ValueError: the stored features are not the ones this version computes.
    """
    if tuple(config["features"]) != FEATURES:
        raise ValueError(
            f"the stored ranker uses the features {list(config['features'])}, this version "
            f"computes {list(FEATURES)}; fit it again with `python -m launch.evaluate --fit_ranker`"
        )
    return Ranker(
        np.asarray(config["mean"], float),
        np.asarray(config["scale"], float),
        np.asarray(config["coefficients"], float),
        float(config["intercept"]),
    )


def feature_matrix(
    cosine: np.ndarray,
    rwp_net: np.ndarray,
    rwp_cell: np.ndarray,
    similarity: np.ndarray,
    votes: np.ndarray,
    contact: np.ndarray,
    num_atoms: np.ndarray,
    num_free: np.ndarray,
    moved: np.ndarray,
    group: np.ndarray,
) -> np.ndarray:
    """Return the ranker's inputs, [n, num_features].

    Args:
        cosine: cosine of square-root profiles after refinement, 0..1.
        rwp_net: weighted profile residual without background, 0..1 and above.
        rwp_cell: the same, if every line of the cell had the intensity that fits best.
        similarity: cosine similarity of pattern and crystal embedding.
        votes: share of the candidates that are the same structure, 0..1.
        contact: smallest distance over the sum of the two atomic radii; above 1 nothing is gained.
        num_atoms: atoms in the cell.
        num_free: structural parameters that were free in the refinement, 0 without one.
        moved: rms displacement of the atoms by the refinement, angstrom.
        group: [n] int, equal for candidates that are the same structure: a fit counts more if no
            other structure comes near it.
    """
    log_misfit = np.log10(np.clip(1.0 - np.asarray(cosine, float), 1e-4, None))
    columns = (
        log_misfit,
        np.log10(np.clip(rwp_net, 1e-3, 3.0)),
        _excess(rwp_net, rwp_cell),
        similarity,
        votes,
        np.clip(contact, 0.0, 1.0),
        np.log(num_atoms),
        np.log1p(num_free),
        np.clip(moved, 0.0, 2.0),
        _lead(log_misfit, np.asarray(group)),
    )
    return np.stack([np.broadcast_to(np.asarray(c, float), np.shape(cosine)) for c in columns], -1)


def _excess(rwp_net: np.ndarray, rwp_cell: np.ndarray) -> np.ndarray:
    """How much worse than its cell a structure fits, 0 to 1; below 5 % of R_wp little matters."""
    return np.clip(np.log10((rwp_net + 0.05) / (rwp_cell + 0.05)), 0.0, 1.0)


def _lead(log_misfit: np.ndarray, group: np.ndarray) -> np.ndarray:
    """By how much each misfit is smaller than that of the best other structure, -2 to 2."""
    out = np.full(len(group), 2.0)
    for i, own in enumerate(group):
        others = log_misfit[group != own]
        if len(others):
            out[i] = others.min() - log_misfit[i]
    return np.clip(out, -2.0, 2.0)


def load_rankers(path: str | Path) -> dict[str, Ranker]:
    """Read the rankers of a ``ranker.json``: one for refined, one for raw candidates.

    Raises:
        ValueError: see `ranker_from_config`.
    """
    stored = json.loads(Path(path).read_text(encoding="utf-8"))
    return {kind: ranker_from_config(config) for kind, config in stored.items()}


def save_rankers(path: str | Path, rankers: Mapping[str, Ranker]) -> None:
    """Write a ``ranker.json``."""
    text = json.dumps({kind: r.to_config() for kind, r in rankers.items()}, indent=1)
    Path(path).write_text(text + "\n", encoding="utf-8")


def fit_ranker(
    features: np.ndarray,
    matched: np.ndarray,
    penalty: float = 1.0,
    inputs: Sequence[str] = FEATURES,
) -> Ranker:
    """Fit by maximum likelihood with a ridge penalty on the standardised coefficients.

    Coefficients keep the `SIGNS` that are known, which few data may contradict by chance; leading
    structures weigh more (`LEADER_WEIGHT`).

    Args:
        features: [n, num_features] of validation candidates (see `feature_matrix`).
        matched: [n] bool, whether each candidate matched the true structure.
        penalty: weight of the ridge term, in units of one candidate's log likelihood.
        inputs: names of the features to use, see `INPUTS`; the others get coefficients of 0.

    Raises:
        ValueError: all candidates or none matched, so that nothing can be learned.
    """
    x, y = np.asarray(features, float), np.asarray(matched, float)
    if not 0.0 < y.mean() < 1.0:
        raise ValueError(
            f"{int(y.sum())} of {len(y)} candidates matched; fitting a ranker needs matches "
            "and misses"
        )
    weight = np.where(x[:, FEATURES.index("lead")] >= 0, LEADER_WEIGHT, 1.0)
    mean, scale = x.mean(0), np.maximum(x.std(0), 1e-6)
    z = (x - mean) / scale

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        logit = z @ theta[1:] + theta[0]
        value = weight @ (np.logaddexp(0.0, logit) - y * logit)
        value += 0.5 * penalty * theta[1:] @ theta[1:]
        error = weight * (expit(logit) - y)
        return value, np.concatenate([[error.sum()], z.T @ error + penalty * theta[1:]])

    span = {-1: (None, 0.0), 0: (None, None), 1: (0.0, None)}
    bounds = [span[0]]
    bounds += [span[SIGNS.get(name, 0)] if name in inputs else (0.0, 0.0) for name in FEATURES]
    start = np.zeros(x.shape[1] + 1)
    theta = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return Ranker(mean, scale, theta[1:], float(theta[0]))
