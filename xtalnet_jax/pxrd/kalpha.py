"""The K-alpha doublet of laboratory tubes: is it in a pattern, and how does one get rid of it?"""

from __future__ import annotations

import numpy as np

from xtalnet_jax.pxrd.pattern import Pattern
from xtalnet_jax.pxrd.preprocess import background
from xtalnet_jax.pxrd.readers.radiation import ANODES

RATIO = 0.5
"""Intensity of K-alpha2 over K-alpha1."""
LARGEST_DIP = 0.06
"""Area below zero after stripping, over the area above: where there was no K-alpha2, each resolved
line leaves a dip of half its height behind."""


def single_wavelength(pattern: Pattern) -> Pattern:
    """Return the pattern without its K-alpha2 part, if it has one, else as it is.

    Stripped are patterns whose file names two wavelengths, or whose wavelength is the weighted mean
    of a tube's doublet, unless that would dig holes: then there is no K-alpha2. Background stays.

    Args:
        pattern: measured or calculated, with or without background.

    Returns:
        The pattern at the K-alpha1 wavelength, both named in ``meta["stripped"]``; or ``pattern``.
    """
    lines = _doublet(pattern)
    if lines is None or len(pattern.two_theta) < 50:
        return pattern
    under = background(pattern)
    net = pattern._replace(intensity=pattern.intensity - under)
    ratio = float(pattern.meta.get("kalpha_ratio", RATIO))
    pure = strip_kalpha2(net, *lines, ratio)
    if _dip(pure.intensity) - _dip(net.intensity) > LARGEST_DIP:
        return pattern
    meta = {**pattern.meta, "wavelengths": (pure.wavelength,), "stripped": lines}
    return pure._replace(intensity=pure.intensity + under, meta=meta)


def _doublet(pattern: Pattern) -> tuple[float, float] | None:
    """K-alpha1 and K-alpha2 that the pattern was, or may have been, measured with."""
    stated = pattern.meta.get("wavelengths", ())
    if len(stated) == 2 and 0 < stated[0] < stated[1]:
        return float(stated[0]), float(stated[1])
    for first, second in ANODES.values():
        mean = (first + RATIO * second) / (1 + RATIO)
        if len(stated) != 1 and abs(pattern.wavelength - mean) < 0.25 * (second - first):
            return first, second
    return None


def _dip(y: np.ndarray) -> float:
    """Area below zero over the area above, after smoothing noise away."""
    smooth = np.convolve(y, np.full(5, 0.2), "same")
    noise = 1.5 * float(np.median(np.abs(smooth)))
    below = np.where(smooth < -noise, -smooth, 0.0).sum()
    return float(below / max(np.where(smooth > noise, smooth, 0.0).sum(), 1e-12))


def strip_kalpha2(
    pattern: Pattern, alpha1: float = 1.540593, alpha2: float = 1.544427, ratio: float = 0.5
) -> Pattern:
    """Remove the K-alpha2 part (W. A. Rachinger, J. Sci. Instrum. 25, 254, 1948).

    Going up in angle, the intensity at 2-theta contains ``ratio`` times the pure K-alpha1 intensity
    at the smaller angle where K-alpha1 meets the same plane spacing, sin(theta1) = sin(theta)
    alpha1 / alpha2. Subtract the background first: it has no K-alpha2 part.

    Raises:
        ValueError: ``alpha2`` is not the longer wavelength.
    """
    if not 0 < alpha1 < alpha2:
        raise ValueError(f"alpha1 = {alpha1} and alpha2 = {alpha2}; expected 0 < alpha1 < alpha2")
    x = np.asarray(pattern.two_theta, float)
    sine = np.sin(np.deg2rad(x / 2)) * alpha1 / alpha2
    partner = 2 * np.rad2deg(np.arcsin(sine))
    below = np.searchsorted(x, partner, side="right") - 1
    pure = np.array(pattern.intensity, float)
    for i in range(len(x)):
        j = below[i]
        if j < 0:
            continue
        # Within the first bins the partner lies in the bin of the point itself: solve for it.
        weight = (partner[i] - x[j]) / (x[j + 1] - x[j]) if j + 1 < len(x) else 0.0
        if j + 1 < i:
            pure[i] -= ratio * ((1 - weight) * pure[j] + weight * pure[j + 1])
        elif j + 1 == i:
            pure[i] = (pure[i] - ratio * (1 - weight) * pure[j]) / (1 + ratio * weight)
        else:
            pure[i] /= 1 + ratio
    return pattern._replace(intensity=pure, wavelength=alpha1)
