"""Values with their 95 % intervals: Wilson for proportions, bootstrap over items for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A measured value with its confidence interval."""

    value: float
    low: float
    high: float


def wilson(successes: float | int, total: int, level: float = 0.95) -> Estimate:
    """Wilson score interval of a proportion (E. B. Wilson, J. Am. Stat. Assoc. 22, 209, 1927).

    ``successes`` may be fractional: a mean of probabilities varies no more than a mean of coin
    tosses with the same mean, so the interval is then conservative.

    Raises:
        ValueError: ``total`` is not positive or ``successes`` lies outside 0..total.

    Example:
        >>> [round(x, 4) for x in wilson(5, 10)]
        [0.5, 0.2366, 0.7634]
    """
    if total <= 0:
        raise ValueError(f"a proportion of {total} items is undefined; expected at least one item")
    if not -1e-9 <= successes <= total * (1 + 1e-9):
        raise ValueError(f"{successes} successes of {total} items; expected 0 to {total}")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p = min(max(successes / total, 0.0), 1.0)
    shrink = 1 + z * z / total
    centre = (p + z * z / (2 * total)) / shrink
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / shrink
    # At p = 0 and 1 the bounds are exact; rounding must not push them past the value.
    return Estimate(p, min(max(centre - half, 0.0), p), max(min(centre + half, 1.0), p))


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    num_items: int,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap of ``statistic(indices)`` over items drawn with replacement.

    Args:
        statistic: maps an index array [num_items] to a number; NaN means "undefined for this
            resample" and is left out.
        num_items: number of independent items; the value itself is ``statistic(arange)``.
        num_resamples: number of resamples.
        level: coverage of the interval.
        seed: seed of the resampling, so that a table can be made again.

    Raises:
        ValueError: ``num_items`` is not positive.
    """
    if num_items <= 0:
        raise ValueError(f"cannot resample {num_items} items; expected at least one")
    rng = np.random.default_rng(seed)
    value = float(statistic(np.arange(num_items)))
    resampled = np.array(
        [statistic(rng.integers(0, num_items, num_items)) for _ in range(num_resamples)]
    )
    resampled = resampled[np.isfinite(resampled)]
    if not np.isfinite(value) or not len(resampled):
        return Estimate(value, math.nan, math.nan)
    low, high = np.quantile(resampled, [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(value, float(low), float(high))
