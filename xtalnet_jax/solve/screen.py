"""How well do the lines of a crystal agree with the measured peaks, before any refinement?

Both are drawn as broad lines on a logarithmic axis of 1/d and correlated. There, scaling a cell by
s shifts the whole pattern: the best common factor is the maximum of a cross-correlation
(`rescaled`), found at once over a wide range, where refinement would get stuck between lines.
"""

from __future__ import annotations

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.pxrd.pattern import PeakBatch
from xtalnet_jax.pxrd.simulate import lines_of

NARROW = 0.004
"""Standard deviation of a line on the logarithmic axis where the cell is known."""
WIDE = 0.012
"""The same where the cell is only right up to a factor."""
PRIOR = 0.08
"""Standard deviation of the generator's error of the cell lengths, relative."""
PRIOR_WEIGHT = 0.01
"""What one standard deviation squared costs, in units of the correlation."""
LARGEST = 0.22
"""Largest logarithm of the factor that is tried."""
NUM_LINES = 128


def agreement(
    crystals: list[Crystal], peaks: PeakBatch, wavelength: float, stretch: float = 0.0
) -> np.ndarray:
    """Cosine of the square-root line patterns of each crystal and the peaks, [n], 0..1.

    Args:
        crystals: candidates.
        peaks: one row, positions in 1/angstrom.
        wavelength: angstrom, for the Lorentz-polarisation factor.
        stretch: largest relative change of the cell edges, all alike, that may improve it.
    """
    return _compared(crystals, peaks, wavelength, NARROW, float(np.log1p(stretch)))[0]


def rescaled(crystals: list[Crystal], peaks: PeakBatch, wavelength: float) -> list[Crystal]:
    """Return the crystals with each cell multiplied by its best factor, 0.80 to 1.25.

    Args:
        crystals: candidates.
        peaks: one row, positions in 1/angstrom.
        wavelength: angstrom, for the Lorentz-polarisation factor (taken at the unscaled angle).
    """
    factors = _compared(crystals, peaks, wavelength, WIDE, LARGEST)[1]
    return [c._replace(lattice=np.asarray(c.lattice) * f) for c, f in zip(crystals, factors)]


def _compared(
    crystals: list[Crystal], peaks: PeakBatch, wavelength: float, spread: float, largest: float
) -> tuple[np.ndarray, np.ndarray]:
    """Best correlation of each crystal and the factor of its cell where it is, [n] each."""
    cosine, factor = np.zeros(len(crystals)), np.ones(len(crystals))
    if not crystals:
        return cosine, factor
    step = spread / 4
    mask = np.asarray(peaks.mask)[0]
    low, high = np.log(np.maximum(np.asarray(peaks.measured, float)[0], 0.02))
    axis = np.arange(low, high, step)
    position, intensity = (np.asarray(v, float)[0][mask] for v in peaks[:2])
    observed = _profile(axis, position, intensity, spread)
    observed /= np.linalg.norm(observed)
    reach = int(largest / step)
    wide = low + step * np.arange(-reach, len(axis) + reach)
    shifts = np.arange(-reach, reach + 1)  # a cell larger by exp(k step) has its lines lower by k
    prior = PRIOR_WEIGHT * (shifts * step / PRIOR) ** 2
    lines = lines_of(crystals, inv_d_max=float(np.exp(high + largest)), num_lines=NUM_LINES)
    for i, (inv_d, strength) in enumerate(zip(lines.inv_d, lines.strength)):
        real = (inv_d > 0) & (inv_d * wavelength < 1.98)
        if not real.any():
            continue
        height = strength[real] * _lorentz_polarisation(inv_d[real], wavelength)
        profile = _profile(wide, inv_d[real], height, spread)
        windows = np.lib.stride_tricks.sliding_window_view(profile, len(axis))[reach + shifts]
        norm = np.linalg.norm(windows, axis=1)
        score = windows @ observed / np.where(norm > 0, norm, np.inf) - prior
        best = int(np.argmax(score))
        cosine[i], factor[i] = score[best], np.exp(step * shifts[best])
    return cosine, factor


def _profile(
    axis: np.ndarray, inv_d: np.ndarray, intensity: np.ndarray, spread: float
) -> np.ndarray:
    """Square roots of intensities as broad lines on the logarithmic axis, cut at 4 sigma."""
    step = axis[1] - axis[0]
    near = np.arange(-int(4 * spread / step), int(4 * spread / step) + 1)
    place = (np.log(inv_d) - axis[0]) / step
    index = np.rint(place).astype(int)[:, None] + near[None]
    height = np.exp(-0.5 * ((index - place[:, None]) * step / spread) ** 2)
    height *= np.sqrt(intensity)[:, None]
    inside = (index >= 0) & (index < len(axis))
    return np.bincount(index[inside], height[inside], len(axis))


def _lorentz_polarisation(inv_d: np.ndarray, wavelength: float) -> np.ndarray:
    """(1 + cos^2 2 theta) / (sin^2 theta cos theta)."""
    sin = inv_d * wavelength / 2
    return (1 + (1 - 2 * sin**2) ** 2) / (sin**2 * np.sqrt(1 - sin**2))
