"""Preparing a measured pattern: small pure functions, `Pattern` in, `Pattern` out (host side)."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from xtalnet_jax.pxrd.pattern import Pattern


def _with(pattern: Pattern, factor: Any = 1.0, **changes: Any) -> Pattern:
    """Pattern with changes, its uncertainty scaled by ``factor``."""
    changes.setdefault("sigma", None if pattern.sigma is None else pattern.sigma * factor)
    return pattern._replace(**changes)


def normalise(pattern: Pattern) -> Pattern:
    """Scale so that the lowest point is 0 and the highest 1.

    Raises:
        ValueError: the pattern is constant.
    """
    low, high = float(pattern.intensity.min()), float(pattern.intensity.max())
    if not high > low:
        raise ValueError(f"all intensities are {low:g}; a constant pattern cannot be normalised")
    return _with(pattern, 1 / (high - low), intensity=(pattern.intensity - low) / (high - low))


def crop(pattern: Pattern, low: float | int, high: float | int) -> Pattern:
    """Keep ``low <= 2-theta <= high`` (degrees).

    Raises:
        ValueError: fewer than two points are left.
    """
    keep = (pattern.two_theta >= low) & (pattern.two_theta <= high)
    if keep.sum() < 2:
        raise ValueError(
            f"no points between {low:g} and {high:g} degrees; the pattern runs from "
            f"{pattern.two_theta[0]:g} to {pattern.two_theta[-1]:g}"
        )
    sigma = None if pattern.sigma is None else pattern.sigma[keep]
    return pattern._replace(
        two_theta=pattern.two_theta[keep], intensity=pattern.intensity[keep], sigma=sigma
    )


def resample(
    pattern: Pattern, step: float, low: float | None = None, high: float | None = None
) -> Pattern:
    """Linear interpolation onto ``low, low + step, ...`` (degrees; the measured range by default).

    A coarser step averages: every new point is the mean of the interpolated pattern over its bin,
    so that no narrow line falls between points. Uncertainties shrink accordingly.

    Raises:
        ValueError: the step is not positive, or the range reaches outside the measured one.
    """
    x, y = pattern.two_theta, pattern.intensity
    low = float(x[0]) if low is None else low
    high = float(x[-1]) if high is None else high
    if not step > 0 or low < x[0] - step or high > x[-1] + step or high <= low:
        raise ValueError(
            f"cannot resample {x[0]:g}..{x[-1]:g} degrees to {low:g}..{high:g} with step {step:g}"
        )
    grid = low + step * np.arange(int(np.floor((high - low) / step + 1e-6)) + 1)
    native = float(np.median(np.diff(x)))
    if step <= 1.5 * native:
        intensity, points = np.interp(grid, x, y), 1.0
    else:  # exact mean of the piecewise linear curve over each bin, by its integral
        area = np.concatenate([[0.0], np.cumsum(0.5 * (y[1:] + y[:-1]) * np.diff(x))])

        def integral(at: np.ndarray) -> np.ndarray:
            i = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
            past = at - x[i]
            slope = (y[i + 1] - y[i]) / (x[i + 1] - x[i])
            return area[i] + past * (y[i] + 0.5 * slope * past)

        left, right = np.maximum(grid - step / 2, x[0]), np.minimum(grid + step / 2, x[-1])
        intensity = (integral(right) - integral(left)) / (right - left)
        points = step / native
    sigma = None if pattern.sigma is None else np.interp(grid, x, pattern.sigma) / np.sqrt(points)
    return pattern._replace(two_theta=grid, intensity=intensity, sigma=sigma)


def background(pattern: Pattern, smoothness: float = 20.0, method: str = "arpls") -> np.ndarray:
    """Slowly varying background [n_bin] under the peaks (pybaselines).

    Args:
        pattern: equidistant, or nearly so.
        smoothness: width in degrees over which the background may bend; the penalty of the
            Whittaker smoother grows with its fourth power in points.
        method: ``arpls`` (Baek et al., Analyst 140, 250, 2015) or ``asls`` (Eilers and Boelens,
            2005), which suits patterns without noise and steps in where the weights that
            ``arpls`` gives leave nothing to fit.

    Raises:
        ValueError: an unknown method, or too few points.
    """
    if method not in ("arpls", "asls"):
        raise ValueError(f"background method {method!r} is unknown; use 'arpls' or 'asls'")
    if len(pattern.two_theta) < 5:
        raise ValueError(f"{len(pattern.two_theta)} points are too few to estimate a background")
    from pybaselines import Baseline

    step = float(np.median(np.diff(pattern.two_theta)))
    # A second-difference penalty lam halves waves of period 2 pi lam^(1/4) points.
    penalty = max((smoothness / step / (2 * np.pi)) ** 4, 10.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a pattern without noise makes arpls stop early
        baseline = Baseline(pattern.two_theta)
        try:
            fit, _ = getattr(baseline, method)(pattern.intensity, lam=penalty)
        except np.linalg.LinAlgError:
            fit, _ = baseline.asls(pattern.intensity, lam=penalty)
    return np.asarray(fit)


def subtract_background(
    pattern: Pattern, smoothness: float = 20.0, method: str = "arpls"
) -> Pattern:
    """Pattern without its `background`; the uncertainty stays that of the counts."""
    return pattern._replace(intensity=pattern.intensity - background(pattern, smoothness, method))


def merge_points(
    two_theta: Any, intensity: Any, sigma: Any = None
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Sort by angle, and average points at the same angle (sigma of the mean)."""
    unique, where, count = np.unique(two_theta, return_inverse=True, return_counts=True)
    mean = np.bincount(where, intensity) / count
    if sigma is not None:
        sigma = np.sqrt(np.bincount(where, np.square(sigma))) / count
    return unique, mean, sigma


def two_theta_from_q(q: Any, wavelength: float) -> np.ndarray:
    """2-theta in degrees for q = 4 pi sin(theta) / lambda in 1/angstrom.

    Raises:
        ValueError: a q that cannot be reached with this wavelength.
    """
    sine = np.asarray(q, float) * wavelength / (4 * np.pi)
    if np.any(sine > 1) or np.any(sine < 0):
        raise ValueError(
            f"q up to {np.max(q):.3g} 1/angstrom cannot be reached with {wavelength:g} angstrom; "
            "is q in 1/nm, or the wavelength wrong?"
        )
    return 2 * np.rad2deg(np.arcsin(sine))


def two_theta_from_d(d: Any, wavelength: float) -> np.ndarray:
    """2-theta in degrees for plane spacings d in angstrom.

    Raises:
        ValueError: a spacing that is not positive, or cannot be reached with this wavelength.
    """
    d = np.asarray(d, float)
    if np.any(d <= 0):
        raise ValueError(f"plane spacings must be positive, the smallest is {d.min():g}")
    return two_theta_from_q(2 * np.pi / d, wavelength)
