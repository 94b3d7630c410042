"""Peak picking: the same definition of a peak on the device (`find_maxima`) and for measured data.

A peak is a local maximum whose height and prominence exceed a fraction of the strongest peak and a
multiple of the noise. `find_peaks` adds what only real data need: rebinning, background, and an
estimate of the noise. `reference_peaks` is the published model's own rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.pxrd.pattern import (
    CU_KALPHA,
    Pattern,
    PeakBatch,
    Peaks,
    inv_d_from_two_theta,
    two_theta_from_inv_d,
)
from xtalnet_jax.pxrd.preprocess import background, resample
from xtalnet_jax.types import Array, Bool, Float

PROMINENCE_WINDOW = 16
"""Bins on either side of a maximum that are searched for its foot."""
MIN_PROMINENCE = 0.005
"""Smallest peak, relative to the strongest."""
NUM_SIGMA = 4.0
"""Smallest peak in standard deviations of the noise after smoothing."""
SMOOTHING = (0.0625, 0.25, 0.375, 0.25, 0.0625)
"""Binomial smoothing of noisy patterns before the search."""
SMOOTHING_GAIN = float(np.sqrt(np.square(SMOOTHING).sum()))
"""What smoothing leaves of the standard deviation of white noise."""

GRID_START, GRID_STEP, GRID_SIZE = 3.0, 0.02, 2048  # degrees; the reference's table of positions


def prominence(profile: Float[Array, " n_bin"], window: int) -> Float[Array, " n_bin"]:
    """Height of every point above the higher of its two feet.

    A foot is the lowest point before the profile rises above the point itself, or the window ends:
    the definition of ``scipy.signal.peak_prominences`` with ``wlen = 2 window + 1``.
    """
    size = len(profile)
    padded = jnp.pad(profile, window, mode="edge")

    def foot(direction: int) -> Array:
        lowest, below = profile, jnp.ones(profile.shape, bool)
        for shift in range(1, window + 1):
            begin = window + direction * shift
            other = padded[begin : begin + size]
            below = below & (other <= profile)
            lowest = jnp.where(below, jnp.minimum(lowest, other), lowest)
        return lowest

    return profile - jnp.maximum(foot(-1), foot(1))


def find_maxima(
    profile: Float[Array, " n_bin"], threshold: Float[Array, " n_bin"], num_peaks: int
) -> tuple[Float[Array, " n_peak"], Float[Array, " n_peak"], Bool[Array, " n_peak"]]:
    """Strongest local maxima of a profile whose height and prominence exceed a threshold.

    Args:
        profile: intensities on an equidistant grid.
        threshold: smallest height and prominence at every point.
        num_peaks: size of the result (static).

    Returns:
        Place in bins and height (of a parabola through three points), and mask; by falling height
        of the highest bin.
    """
    rises = jnp.pad(profile[1:] > profile[:-1], (1, 0))
    falls = jnp.pad(profile[:-1] >= profile[1:], (0, 1))
    found = rises & falls & (profile > threshold)
    found = found & (prominence(profile, PROMINENCE_WINDOW) > threshold)
    height = jnp.where(found, profile, 0.0)
    # Two neighbours cannot both be maxima, so one number per pair loses nothing.
    pairs = jnp.pad(height, (0, len(height) % 2)).reshape(-1, 2)
    num_found = min(num_peaks, len(pairs))
    top, pair = jax.lax.top_k(pairs.max(-1), num_found)
    mask = top > 0
    centre = jnp.where(mask, 2 * pair + pairs.argmax(-1)[pair], 1)
    centre = jnp.clip(centre, 1, len(profile) - 2)
    before, at, after = profile[centre - 1], profile[centre], profile[centre + 1]
    curvature = jnp.where(mask, jnp.maximum(2 * at - before - after, 1e-12), 1.0)
    offset = jnp.where(mask, jnp.clip(0.5 * (after - before) / curvature, -0.5, 0.5), 0.0)
    peak = jnp.where(mask, at + 0.25 * (after - before) * offset, 0.0)
    fill = (0, num_peaks - num_found)
    place = jnp.where(mask, centre + offset, 0.0)
    return jnp.pad(place, fill), jnp.pad(peak, fill), jnp.pad(mask, fill)


def reference_peaks(two_theta: np.ndarray, intensity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Peaks as the published model picks them: tokens (grid index, height).

    ``y <- (y - min y) / max y``, then ``scipy.signal.find_peaks(height=0.01, prominence=0.02)``;
    the index is ``round((2theta - 3) / 0.02)``.

    Args:
        two_theta: [n_bin] degrees, Cu K-alpha.
        intensity: [n_bin].

    Returns:
        Index and height, both [n_peak], by rising angle.

    Raises:
        ValueError: no positive intensity.
    """
    from scipy.signal import find_peaks as find_with_scipy

    highest = np.max(intensity)
    if not highest > 0:
        raise ValueError(f"the highest intensity is {highest:g}, expected a positive one")
    y = (intensity - np.min(intensity)) / highest
    found, _ = find_with_scipy(y, height=0.01, prominence=0.02)
    return np.rint((two_theta[found] - GRID_START) / GRID_STEP).astype(int), y[found]


def estimate_noise(intensity: np.ndarray, num_blocks: int = 8) -> np.ndarray:
    """Standard noise [n_bin], from second differences: sigma^2 = a(2theta)^2 + k y.

    ``a`` is a median over the lower half of the points of each of ``num_blocks`` parts of the
    range (a subtracted background leaves its noise behind, more of it at low angles); ``k``, 1 for
    raw counts, a median over the upper half of all points. Where most points lie on peaks their
    curvature is taken for noise, so this is an upper bound.
    """
    second = np.zeros_like(intensity)
    second[1:-1] = (intensity[2:] - 2 * intensity[1:-1] + intensity[:-2]) ** 2 / 6
    second[[0, -1]] = second[[1, -2]]
    variance = second / 0.4549  # the median of the square of a standard normal variable
    level = np.convolve(np.pad(intensity, 5, mode="edge"), np.full(11, 1 / 11), "valid")
    level = np.maximum(level - level.min(), 0.0)
    blocks = [b for b in np.array_split(np.arange(len(intensity)), num_blocks) if len(b)]
    floors = [np.median(variance[b[level[b] <= np.median(level[b])]]) for b in blocks]
    floor = np.interp(np.arange(len(intensity)), [b.mean() for b in blocks], floors)
    high = level > np.median(level)
    slope = float(np.median((variance - floor)[high] / level[high])) if high.any() else 0.0
    return np.sqrt(floor + max(slope, 0.0) * level)


def _search_grid(pattern: Pattern) -> Pattern:
    """The pattern and its noise on an equidistant grid: if noisy, about the grid of training.

    A line keeps at least three points; without noise, and for very fine steps, at least five.
    """
    from scipy.signal import peak_widths

    x = pattern.two_theta
    native = float(np.median(np.diff(x)))
    strongest = int(np.argmax(pattern.intensity))
    width = native * float(peak_widths(pattern.intensity, [strongest])[0][0])
    # On its own grid the noise is white; resampling correlates neighbours.
    sigma = estimate_noise(pattern.intensity) if pattern.sigma is None else pattern.sigma
    noisy = np.median(sigma) > 2e-3 * np.ptp(pattern.intensity)
    coarse = min(width / 3 if noisy else width / 5, (x[-1] - x[0]) / 2124)
    return resample(pattern._replace(sigma=sigma), max(native, coarse))


def find_peaks(
    pattern: Pattern,
    min_prominence: float = MIN_PROMINENCE,
    num_sigma: float = 1.15 * NUM_SIGMA,
    subtract: bool = True,
) -> Peaks:
    """Find the peaks of a measured pattern.

    Rebins to an equidistant grid, subtracts the background, estimates the noise (from
    ``pattern.sigma`` if known, else from the data), smooths if there is noise, and keeps the maxima
    whose height and prominence exceed ``min_prominence`` of the strongest and ``num_sigma`` of the
    local noise. The same search as `find_maxima` does on the device.

    Args:
        pattern: the pattern.
        min_prominence: relative to the strongest peak.
        num_sigma: in units of the noise; more than on the device, where the noise is known exactly.
        subtract: whether to estimate and subtract a background.

    Returns:
        Peaks by rising angle, the strongest 100, with the standard uncertainty of the intensity.

    Raises:
        ValueError: no peak stands out.
    """
    from scipy.signal import find_peaks as find_with_scipy

    even = _search_grid(pattern)
    y = even.intensity - (background(even) if subtract else even.intensity.min())
    sigma = np.asarray(even.sigma)  # known or estimated by now
    if np.median(sigma) > 1e-4 * y.max():
        y = np.convolve(np.pad(y, 2, mode="edge"), SMOOTHING, "valid")
        sigma = SMOOTHING_GAIN * sigma
    threshold = np.maximum(min_prominence * y.max(), num_sigma * sigma)
    found, _ = find_with_scipy(
        y, height=threshold, prominence=threshold, wlen=2 * PROMINENCE_WINDOW + 1
    )
    if not len(found):
        raise ValueError(
            f"no peak stands out of the noise between {pattern.two_theta[0]:g} and "
            f"{pattern.two_theta[-1]:g} degrees; is this a powder pattern of a crystal?"
        )
    before, at, after = y[found - 1], y[found], y[found + 1]
    offset = 0.5 * (after - before) / np.maximum(2 * at - before - after, 1e-12 * y.max())
    offset = np.clip(offset, -0.5, 0.5)
    height = at + 0.25 * (after - before) * offset
    angle = even.two_theta[found] + offset * (even.two_theta[1] - even.two_theta[0])
    scale = 100 / height.max()
    return Peaks(angle, scale * height, scale * sigma[found])


def _tokens(source: Pattern | Peaks, wavelength: float, form: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions and intensities (strongest 1) of one pattern, in any order."""
    if form == "grid" and isinstance(source, Pattern):
        angles = source.two_theta
        if abs(wavelength - CU_KALPHA) > 0.005:
            angles = two_theta_from_inv_d(inv_d_from_two_theta(angles, wavelength), CU_KALPHA)
        index, height = reference_peaks(angles, source.intensity)
    else:
        peaks = find_peaks(source) if isinstance(source, Pattern) else source
        height = peaks.intensity / max(float(np.max(peaks.intensity)), 1e-30)
        inv_d = inv_d_from_two_theta(peaks.two_theta, wavelength)
        if form == "inv_d":
            return inv_d, height
        angles = two_theta_from_inv_d(inv_d, CU_KALPHA)
        index = np.rint((angles - GRID_START) / GRID_STEP).astype(int)
    inside = (index >= 0) & (index < GRID_SIZE)
    return index[inside].astype(float), height[inside]


def peak_batch(
    patterns: Sequence[Pattern | Peaks],
    num_peaks: int,
    form: str = "inv_d",
    wavelength: float | None = None,
    two_theta_range: tuple[float, float] | None = None,
) -> PeakBatch:
    """Pad the peaks of several patterns, strongest first.

    Args:
        patterns: patterns (searched by `find_peaks`, or `reference_peaks` for the grid) or peaks.
        num_peaks: size of the peak axis; of more peaks the strongest are kept.
        form: ``"inv_d"``, positions 1/d in 1/angstrom; ``"grid"``, indices of the reference's table
            (3 degrees + 0.02 degrees * index, Cu K-alpha, 0..2047).
        wavelength: angstrom, for entries that are `Peaks`.
        two_theta_range: measured range in degrees, for entries that are `Peaks`; by default from
            the first to the last peak.

    Returns:
        NumPy arrays in float32.

    Raises:
        ValueError: an unknown form, or `Peaks` without a wavelength.
    """
    if form not in ("inv_d", "grid"):
        raise ValueError(f"form is {form!r}, expected 'inv_d' or 'grid'")
    shape = (len(patterns), num_peaks)
    batch = PeakBatch(
        np.zeros(shape, np.float32),
        np.zeros(shape, np.float32),
        np.zeros(shape, bool),
        np.zeros((len(patterns), 2), np.float32),
    )
    for i, source in enumerate(patterns):
        own = source.wavelength if isinstance(source, Pattern) else wavelength
        if own is None:
            raise ValueError(f"entry {i} is a list of peaks; give the wavelength in angstrom")
        position, height = _tokens(source, own, form)
        order = np.argsort(-height, kind="stable")[:num_peaks]
        num = len(order)
        batch.position[i, :num], batch.intensity[i, :num] = position[order], height[order]
        batch.mask[i, :num] = True
        ends = source.two_theta[[0, -1]] if len(source.two_theta) else np.zeros(2)
        if not isinstance(source, Pattern) and two_theta_range is not None:
            ends = np.asarray(two_theta_range, float)
        batch.measured[i] = inv_d_from_two_theta(ends, own)
    return batch
