"""Does a confidence mean what it says: reliability curve, calibration error, Brier score."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from xtalnet_jax.evaluation.intervals import wilson

Binning = Literal["uniform", "quantile"]


class ReliabilityCurve(NamedTuple):
    """Confidence against accuracy, one entry per bin that is not empty."""

    confidence: np.ndarray  # [n_bin] mean confidence
    accuracy: np.ndarray  # [n_bin] fraction that was right
    low: np.ndarray  # [n_bin] 95 % Wilson interval of the accuracy
    high: np.ndarray  # [n_bin]
    n_items: np.ndarray  # [n_bin] int, predictions in the bin


def reliability_curve(
    confidence: Any, correct: Any, num_bins: int = 10, binning: Binning = "uniform"
) -> ReliabilityCurve:
    """Bin predictions by confidence and compare with how often they were right.

    Args:
        confidence: [n] stated probability of being right, 0..1.
        correct: [n] bool, whether it was right.
        num_bins: number of bins; the last one contains confidence 1.
        binning: ``uniform`` in confidence, or ``quantile``: bins of equal counts.

    Raises:
        ValueError: lengths differ, nothing is given, or a confidence lies outside 0..1.
    """
    p, y = _checked(confidence, correct)
    if num_bins < 1:
        raise ValueError(f"num_bins={num_bins}; expected at least 1")
    if binning == "uniform":
        which = np.minimum((p * num_bins).astype(int), num_bins - 1)
    else:  # equal confidences share a bin
        edges = np.quantile(p, np.arange(1, num_bins) / num_bins)
        which = np.searchsorted(edges, p, side="right")
    which = np.unique(which, return_inverse=True)[1]  # numbers only the bins that are used
    count = np.bincount(which)
    right = np.bincount(which, y)
    intervals = [wilson(float(r), int(n)) for r, n in zip(right, count)]
    return ReliabilityCurve(
        confidence=np.bincount(which, p) / count,
        accuracy=right / count,
        low=np.array([i.low for i in intervals]),
        high=np.array([i.high for i in intervals]),
        n_items=count,
    )


def expected_calibration_error(
    confidence: Any, correct: Any, num_bins: int = 10, binning: Binning = "uniform"
) -> float:
    """Mean over the predictions of |accuracy - confidence| of their bin (Naeini et al., AAAI 2015).

    Example:
        >>> expected_calibration_error([0.75, 0.75, 0.75, 0.75], [1, 1, 1, 0])
        0.0
    """
    curve = reliability_curve(confidence, correct, num_bins, binning)
    gap = np.abs(curve.accuracy - curve.confidence)
    return float((curve.n_items * gap).sum() / curve.n_items.sum())


def brier_score(confidence: Any, correct: Any) -> float:
    """Mean of (confidence - correct)^2 (Brier, Mon. Weather Rev. 78, 1, 1950); 0 is perfect.

    Example:
        >>> brier_score([1.0, 0.5], [1, 0])
        0.125
    """
    p, y = _checked(confidence, correct)
    return float(((p - y) ** 2).mean())


def _checked(confidence: Any, correct: Any) -> tuple[np.ndarray, np.ndarray]:
    p, y = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if p.ndim != 1 or p.shape != y.shape or not p.size:
        raise ValueError(
            f"confidence has shape {p.shape}, correct {y.shape}; expected two equal lengths [n] > 0"
        )
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"confidence spans {p.min()} to {p.max()}; expected 0 to 1")
    if not np.isin(y, (0.0, 1.0)).all():
        raise ValueError("correct has values other than 0 and 1; expected booleans")
    return p, y
