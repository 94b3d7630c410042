"""Positions of peaks as a mixture model: how likely are they for a cell, and what pulls on it?

A peak at q = 1/d^2 lies near one of the cell's reflections (a normal distribution around each, all
equally likely, wider for a share of the peaks, which overlap with others), or it is foreign (a
uniform distribution). The more reflections a cell has, the less each explains, so large cells that
fit anything do not win; de Wolff's figure of merit M20 measures the same (J. Appl. Cryst. 1, 108,
1968). Zero shift and displacement of the sample move all peaks together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from xtalnet_jax.pxrd.pattern import PeakBatch

_FEWEST = 8
"""Peaks that are kept whatever the limit."""


class Precision(NamedTuple):
    """How well peaks can be trusted."""

    two_theta_sigma: float = 0.02  # standard deviation of a position, degrees
    overlapped: tuple[float, float] = (0.3, 3.0)  # share of less precise peaks, how much less
    foreign: float = 0.05  # share of foreign peaks
    shift_sigma: tuple[float, float] = (0.05, 0.08)  # of zero shift and displacement, degrees


class Observed(NamedTuple):
    """Positions to explain; padded."""

    q: Any  # [n_peak] 1/d^2, 1 where padded
    sigma: Any  # [n_peak] its standard deviation
    weight: Any  # [n_peak] 0 where padded
    lean: Any  # [n_peak, 2] change of q per degree of zero shift and of displacement
    span: Any  # [2] first and last q looked at


def squares(hkl: Float[Array, "n_hkl 3"]) -> Float[Array, "n_hkl 6"]:
    """Return h^2, k^2, l^2, 2kl, 2hl, 2hk: q is their product with the reciprocal metric."""
    h, k, l = hkl[:, 0], hkl[:, 1], hkl[:, 2]
    return jnp.stack([h * h, k * k, l * l, 2 * k * l, 2 * h * l, 2 * h * k], -1)


def log_likelihood(
    g: Float[Array, "6"],
    shift: Float[Array, "2"],
    terms: Float[Array, "n_hkl 6"],
    real: Float[Array, "n_hkl"],
    observed: Observed,
    sigma: Float[Array, "n_peak"],
    precision: Precision,
) -> tuple[Float[Array, ""], Float[Array, "n_peak n_hkl"]]:
    """Return the log likelihood of the positions and the pull of each reflection on each peak.

    The pull is the posterior probability over the variance, summed over the two precisions.

    Args:
        g: reciprocal metric, order of `squares`.
        shift: zero shift and displacement, degrees.
        terms: `squares` of the reflections.
        real: 1 for a reflection, 0 for padding.
        observed: positions.
        sigma: standard deviations to use.
        precision: shares of foreign and of less precise peaks.
    """
    q = terms @ g
    low, high = observed.span[0], observed.span[1]
    inside = real * (q > low) * (q < high)
    density = (1 - precision.foreign) / jnp.maximum(inside.sum(), 1.0)
    distance = (observed.q - observed.lean @ shift)[:, None] - q[None]
    rough, factor = precision.overlapped
    explained = pull = jnp.zeros_like(distance)
    for share, width in ((1 - rough, sigma[:, None]), (rough, factor * sigma[:, None])):
        normal = jnp.exp(-0.5 * (distance / width) ** 2) * real[None]
        part = density * share * normal / (width * (2 * jnp.pi) ** 0.5)
        explained, pull = explained + part, pull + part / width**2
    total = explained.sum(-1) + precision.foreign / (high - low)
    gain = jnp.log(total * (high - low))
    return (observed.weight * gain).sum(), pull * (observed.weight / total)[:, None]


def observed_positions(
    peaks: PeakBatch,
    wavelength: float,
    precision: Precision,
    num_peaks: int,
    inv_d_max: float = np.inf,
) -> Observed:
    """List the lowest peaks, below ``inv_d_max``, of the single pattern in ``peaks`` (1/d form)."""
    mask = np.asarray(peaks.mask)[0]
    inv_d = np.asarray(peaks.position, float)[0][mask]
    inv_d, n = np.sort(inv_d)[:num_peaks], num_peaks
    inv_d = inv_d[: max(_FEWEST, int((inv_d < inv_d_max).sum()))]
    q, sigma, weight, lean = np.ones(n), np.ones(n), np.zeros(n), np.zeros((n, 2))
    q[: len(inv_d)] = inv_d**2
    cos = np.sqrt(np.clip(1 - (inv_d * wavelength / 2) ** 2, 0.05, 1))
    per_degree = 2 * inv_d * cos / wavelength * np.deg2rad(1.0)  # dq / d(2 theta)
    sigma[: len(inv_d)] = per_degree * precision.two_theta_sigma
    weight[: len(inv_d)] = 1.0
    lean[: len(inv_d)] = np.stack([per_degree, per_degree * cos], -1)
    low = float(np.asarray(peaks.measured)[0, 0]) ** 2
    span = np.array([low, inv_d[-1] ** 2 * 1.02], np.float32)
    return Observed(*(v.astype(np.float32) for v in (q, sigma, weight, lean, span)))


def true_angle(two_theta: Any, shift: np.ndarray) -> Any:
    """2-theta without a zero shift and a displacement (degrees, ``shift`` [2])."""
    angle = np.asarray(two_theta, float)
    return angle - shift[0] - shift[1] * np.cos(np.deg2rad(angle / 2))
