"""Right size first: scale a candidate's cell so that its lines fall on the measured peaks.

Scaling a cell by s divides every 1/d by s: on a logarithmic axis the whole pattern shifts. So the
best common factor is the maximum of a cross-correlation, found at once over a wide range, where
refinement of the cell would get stuck between lines.
"""

from __future__ import annotations

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.pxrd.pattern import PeakBatch
from xtalnet_jax.pxrd.simulate import lines_of

STEP = 0.002
"""Of the logarithmic axis: 0.2 % of a cell length."""
SPREAD = 0.012
"""Standard deviation given to every line: a cell is only off by a factor to first order."""
PRIOR = 0.08
"""Standard deviation of the generator's error of the cell lengths, relative."""
PRIOR_WEIGHT = 0.01
"""What one standard deviation squared costs, in units of the correlation."""
LARGEST = 0.22
"""Largest logarithm of the factor that is tried."""
NUM_LINES = 128


def rescaled(crystals: list[Crystal], peaks: PeakBatch, wavelength: float) -> list[Crystal]:
    """Return the crystals with each cell multiplied by its best factor, 0.80 to 1.25.

    Args:
        crystals: candidates.
        peaks: one row, positions in 1/angstrom.
        wavelength: angstrom, for the Lorentz-polarisation factor (taken at the unscaled angle).
    """
    if not crystals:
        return []
    mask = np.asarray(peaks.mask)[0]
    low, high = np.log(np.maximum(np.asarray(peaks.measured, float)[0], 0.02))
    axis = np.arange(low, high, STEP)
    position, intensity = (np.asarray(v, float)[0][mask] for v in peaks[:2])
    observed = _profile(axis, position, intensity)
    observed /= np.linalg.norm(observed)
    reach = int(LARGEST / STEP)
    wide = low + STEP * np.arange(-reach, len(axis) + reach)
    shifts = np.arange(-reach, reach + 1)  # a cell larger by exp(k STEP) has its lines lower by k
    prior = PRIOR_WEIGHT * (shifts * STEP / PRIOR) ** 2
    lines = lines_of(crystals, inv_d_max=float(np.exp(high + LARGEST)), num_lines=NUM_LINES)
    out = []
    for crystal, inv_d, strength in zip(crystals, lines.inv_d, lines.strength):
        real = (inv_d > 0) & (inv_d * wavelength < 1.98)
        if not real.any():
            out.append(crystal)
            continue
        height = strength[real] * _lorentz_polarisation(inv_d[real], wavelength)
        profile = _profile(wide, inv_d[real], height)
        windows = np.lib.stride_tricks.sliding_window_view(profile, len(axis))[reach + shifts]
        norm = np.linalg.norm(windows, axis=1)
        score = windows @ observed / np.where(norm > 0, norm, np.inf) - prior
        factor = np.exp(STEP * shifts[int(np.argmax(score))])
        out.append(crystal._replace(lattice=np.asarray(crystal.lattice) * factor))
    return out


def _profile(axis: np.ndarray, inv_d: np.ndarray, intensity: np.ndarray) -> np.ndarray:
    """Square roots of intensities as broad lines on the logarithmic axis."""
    distance = (axis[:, None] - np.log(inv_d)[None]) / SPREAD
    return np.exp(-0.5 * distance**2) @ np.sqrt(intensity)


def _lorentz_polarisation(inv_d: np.ndarray, wavelength: float) -> np.ndarray:
    """(1 + cos^2 2 theta) / (sin^2 theta cos theta)."""
    sin = inv_d * wavelength / 2
    return (1 + (1 - 2 * sin**2) ** 2) / (sin**2 * np.sqrt(1 - sin**2))
