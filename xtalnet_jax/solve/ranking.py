"""Which candidate is right, and how sure are we: a small calibrated ranker.

A candidate is described by a handful of numbers (how well it fits the pattern, how similar its
embedding is, how often the generator proposed it, how close its atoms come, how usual its volume
is). The different
structures of a pattern exclude each other, and none of them may be right: a multinomial logit
(McFadden, in Frontiers in Econometrics, 1974) over them and "none", fitted on validation
crystals, turns the numbers into probabilities that add up to one. Candidates are ranked by their
probability, which is also the published confidence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

FEATURES = (
    "log_misfit",
    "log_rwp_net",
    "poor_fit",
    "excess",
    "similarity",
    "votes",
    "crowding",
    "volume",
    "log_num_atoms",
    "log_num_free",
    "moved",
)
"""Names and order of the ranker's inputs, see `feature_matrix`."""

INPUTS = {
    "refined": ("poor_fit", "excess", "crowding", "volume", "log_num_free"),
    "raw": FEATURES,
}
"""What the ranker of each kind of candidates looks at. Refined ones all look like the pattern, so
that the similarity of embeddings, the cosine and R_wp itself tell no more (`benchmarks.ranker`
compares); half of them come once from a search, so that votes say little; size and displacement
stand for the crystals it was fitted to."""

SIGNS = {
    "log_misfit": -1, "log_rwp_net": -1, "poor_fit": -1, "excess": -1, "similarity": 1, "votes": 1,
    "crowding": -1, "volume": -1,
}  # fmt: skip
"""Directions that are known: a better fit, more votes, usual distances or a usual volume never make
a structure less likely."""

POOR_RWP = 0.25
"""R_wp above which a fit counts against a structure all the more: noise and texture of a
laboratory seldom explain as much."""

USUAL_VOLUME = 0.1
"""Logarithm of volume over expected volume up to which a cell is as good as any other."""

PENALTY = 0.3
"""Of the ridge in `fit_ranker`, in units of one pattern's log likelihood."""

WRONG_SHARE = 0.25
"""Of all questions, those without a right answer, as the fit assumes: see `pooled`."""


class Question(NamedTuple):
    """The different structures proposed for one pattern, and which of them are right."""

    features: np.ndarray  # [n, num_features], see `feature_matrix`; n may be 0
    matched: np.ndarray  # [n] bool
    weight: float = 1.0  # in a fit


class Ranker(NamedTuple):
    """Multinomial logit on standardised features; "none" has utility 0."""

    mean: np.ndarray  # [num_features]
    scale: np.ndarray  # [num_features]
    coefficients: np.ndarray  # [num_features]
    intercept: float

    def confidence(self, features: np.ndarray) -> np.ndarray:
        """Return the probability that each of the different structures of a pattern is right.

        Args:
            features: [n, num_features], of all `different` structures for one pattern.

        Returns:
            [n], not more than 1 together: the rest is the probability that none is right.
        """
        z = (np.asarray(features, float) - self.mean) / self.scale
        utility = z @ self.coefficients + self.intercept
        return np.exp(utility - logsumexp(np.append(utility, 0.0)))

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
    """Inverse of `Ranker.to_config`; features that it was not fitted to do not count.

    Raises:
        ValueError: it looks at a feature that this version does not compute.
    """
    names = list(config["features"])
    used = [name for name, c in zip(names, config["coefficients"]) if c]
    unknown = [name for name in used if name not in FEATURES]
    if unknown:
        raise ValueError(
            f"the stored ranker uses the features {unknown}, this version computes "
            f"{list(FEATURES)}; fit it again with `python -m launch.evaluate --fit_ranker`"
        )

    def by_name(values: Sequence[float], default: float) -> np.ndarray:
        known = dict(zip(names, values))
        return np.array([known.get(name, default) for name in FEATURES], float)

    return Ranker(
        by_name(config["mean"], 0.0),
        by_name(config["scale"], 1.0),
        by_name(config["coefficients"], 0.0),
        float(config["intercept"]),
    )


def different(features: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Rows of the different structures, ascending: of each group the one that fits best."""
    best: dict[int, int] = {}
    for row in np.argsort(features[:, FEATURES.index("log_rwp_net")], kind="stable"):
        best.setdefault(int(group[row]), int(row))
    return np.array(sorted(best.values()), int)


def feature_matrix(
    cosine: np.ndarray,
    rwp_net: np.ndarray,
    rwp_cell: np.ndarray,
    similarity: np.ndarray,
    votes: np.ndarray,
    crowding: np.ndarray,
    volume: np.ndarray,
    num_atoms: np.ndarray,
    num_free: np.ndarray,
    moved: np.ndarray,
) -> np.ndarray:
    """Return the ranker's inputs, [n, num_features].

    Args:
        cosine: cosine of square-root profiles after refinement, 0..1.
        rwp_net: weighted profile residual without background, 0..1 and above.
        rwp_cell: the same, if every line of the cell had the intensity that fits best.
        similarity: cosine similarity of pattern and crystal embedding.
        votes: share of the candidates that are the same structure, 0..1.
        crowding: of the closest atoms (`crystals.typical.crowding`).
        volume: of the cell, over the one expected of its atoms (`crystals.typical.volume_ratio`).
        num_atoms: atoms in the cell.
        num_free: structural parameters that were free in the refinement, 0 without one.
        moved: rms displacement of the atoms by the refinement, angstrom.
    """
    log_rwp_net = np.log10(np.clip(rwp_net, 1e-3, 3.0))
    columns = (
        np.log10(np.clip(1.0 - np.asarray(cosine, float), 1e-4, None)),
        log_rwp_net,
        np.maximum(log_rwp_net - np.log10(POOR_RWP), 0.0),
        _excess(rwp_net, rwp_cell),
        similarity,
        votes,
        np.clip(crowding, 0.0, 0.5),
        np.maximum(np.abs(np.log(np.clip(volume, 0.1, 10.0))) - USUAL_VOLUME, 0.0),
        np.log(num_atoms),
        np.log1p(num_free),
        np.clip(moved, 0.0, 2.0),
    )
    return np.stack([np.broadcast_to(np.asarray(c, float), np.shape(cosine)) for c in columns], -1)


def _excess(rwp_net: np.ndarray, rwp_cell: np.ndarray) -> np.ndarray:
    """How much worse than its cell a structure fits, 0 to 2; below 5 % of R_wp little matters.

    It counts by how well the cell fits: of a clean pattern the right structure explains all,
    of a textured one nobody's intensities are right.
    """
    worse = np.clip(np.log10((rwp_net + 0.05) / (rwp_cell + 0.05)), 0.0, 1.0)
    return worse * -np.log10(np.clip(rwp_cell, 0.01, 1.0))


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


def pooled(right: Sequence[Question], wrong: Sequence[Question]) -> list[Question]:
    """Weigh questions without right answer (`solve.controls`) as a `WRONG_SHARE` of all."""
    weight = WRONG_SHARE / (1.0 - WRONG_SHARE) * len(right) / max(len(wrong), 1)
    return [*right, *(q._replace(weight=weight) for q in wrong)]


def fit_ranker(
    questions: Sequence[Question],
    penalty: float | int = PENALTY,
    inputs: Sequence[str] = FEATURES,
) -> Ranker:
    """Fit by maximum likelihood with a ridge penalty on the standardised coefficients.

    Coefficients keep the `SIGNS` that are known, which few data may contradict by chance.

    Args:
        questions: validation patterns; right is any of the structures that matched, or "none".
        penalty: weight of the ridge term, in units of one pattern's log likelihood.
        inputs: names of the features to use, see `INPUTS`; the others get coefficients of 0.

    Raises:
        ValueError: all structures or none matched, so that nothing can be learned.
    """
    x = np.concatenate([q.features for q in questions]).astype(float)
    y = np.concatenate([q.matched for q in questions]).astype(bool)
    if not 0.0 < y.mean() < 1.0:
        raise ValueError(
            f"{int(y.sum())} of {len(y)} structures matched; fitting a ranker needs matches "
            "and misses"
        )
    mean, scale = x.mean(0), np.maximum(x.std(0), 1e-6)
    widest = max(len(q.matched) for q in questions)
    z = np.zeros((len(questions), widest + 1, x.shape[1] + 1))  # the last place is "none"
    possible, right = np.zeros((2, len(questions), widest + 1), bool)
    weight = np.array([q.weight for q in questions])[:, None]
    for i, (features, matched, _) in enumerate(questions):
        n = len(matched)
        z[i, :n] = np.c_[(features - mean) / scale, np.ones(n)]
        possible[i, :n], possible[i, -1] = True, True
        right[i, :n], right[i, -1] = matched, not np.any(matched)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        utility = z @ theta
        every = logsumexp(np.where(possible, utility, -np.inf), axis=1, keepdims=True)
        correct = logsumexp(np.where(right, utility, -np.inf), axis=1, keepdims=True)
        error = possible * np.exp(utility - every) - right * np.exp(utility - correct)
        error *= weight
        ridge = np.append(penalty * theta[:-1], 0.0)
        value = (weight * (every - correct)).sum() + 0.5 * ridge @ theta
        return value, np.einsum("ip,ipf->f", error, z) + ridge

    span = {-1: (None, 0.0), 0: (None, None), 1: (0.0, None)}
    bounds = [span[SIGNS.get(name, 0)] if name in inputs else (0.0, 0.0) for name in FEATURES]
    start = np.zeros(x.shape[1] + 1)
    theta = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[*bounds, span[0]]).x
    return Ranker(mean, scale, theta[:-1], float(theta[-1]))
