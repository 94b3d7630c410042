"""What a cell alone explains: every line of it with whatever intensity fits best.

Whole-pattern decomposition (Pawley, J. Appl. Cryst. 14, 357, 1981; Le Bail, Duroy and Fourquet,
Mater. Res. Bull. 23, 447, 1988) with the cell and the peak shape of a refined structure. No
structure in this cell can fit better, so the difference is the structure's own: it does not
depend on noise, foreign lines or the shape of the peaks (host, NumPy).
"""

from __future__ import annotations

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.pxrd.hkl import hkl_table
from xtalnet_jax.pxrd.pattern import two_theta_from_inv_d
from xtalnet_jax.refine.prepare import Observed, apart

_SPACING = 0.3
"""Lines nearer to each other than this, in widths of a peak, count as one."""
_STEPS = 300


def decomposed_rwp(
    crystal: Crystal,
    observed: Observed,
    zero_shift: float,
    fwhm: float,
    fwhm_tan: float,
    eta: float,
) -> float:
    """Return the R_wp, 0..1, of the best intensities and background.

    Args:
        crystal: its cell.
        observed: the pattern, binned.
        zero_shift: degrees.
        fwhm: constant part of the width of a peak, degrees.
        fwhm_tan: part that grows with tan(theta), degrees.
        eta: Lorentzian share.
    """
    target, wavelength = observed.target, observed.pattern.wavelength
    grid, weight = (np.asarray(v, float) for v in (target.two_theta, target.weight))
    y = weight * np.asarray(target.profile, float)
    columns = np.linalg.qr(weight[:, None] * np.asarray(target.background, float))[0]
    left = y - columns @ (columns.T @ y)

    inv_d = hkl_table(np.asarray(crystal.lattice, float)[None], observed.inv_d_max).inv_d
    centre = np.sort(two_theta_from_inv_d(inv_d, wavelength)) + zero_shift
    centre = centre[(centre > grid[0]) & (centre < grid[-1])]
    if not len(centre):
        return float(np.linalg.norm(left) / np.linalg.norm(y))
    square = fwhm**2 + observed.smear
    width = np.sqrt(square + (fwhm_tan * np.tan(np.deg2rad(0.5 * centre))) ** 2)
    centre = apart(centre, _SPACING * float(np.median(width)))
    width = np.sqrt(square + (fwhm_tan * np.tan(np.deg2rad(0.5 * centre))) ** 2)

    lines = weight[:, None] * _pseudo_voigt(grid, centre, width, eta)
    lines -= columns @ (columns.T @ lines)
    lines /= np.linalg.norm(lines, axis=0) + 1e-12
    height = _nonnegative(lines.T @ lines, lines.T @ left)
    return float(np.linalg.norm(left - lines @ height) / np.linalg.norm(y))


def _pseudo_voigt(
    grid: np.ndarray, centre: np.ndarray, width: np.ndarray, eta: float
) -> np.ndarray:
    """Peaks [n_bin, n_line] of area proportional to 1 / width."""
    u = 4.0 * ((grid[:, None] - centre[None]) / width[None]) ** 2
    gauss = (np.pi * np.log(2)) ** 0.5 * np.exp(-np.log(2) * u)
    return eta / (1.0 + u) + (1.0 - eta) * gauss


def _nonnegative(matrix: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Minimise x A x / 2 - b x for x >= 0: accelerated projected gradient with restarts.

    (Beck and Teboulle, SIAM J. Imaging Sci. 2, 183, 2009; O'Donoghue and Candes, Found. Comput.
    Math. 15, 715, 2015.)
    """
    step = 1.0 / max(float(np.abs(matrix).sum(0).max()), 1e-12)
    x = ahead = np.zeros_like(side)
    momentum = 1.0
    for _ in range(_STEPS):
        new = np.maximum(ahead - step * (matrix @ ahead - side), 0.0)
        if (ahead - new) @ (new - x) > 0:
            momentum = 1.0
        grown = 0.5 * (1 + (1 + 4 * momentum**2) ** 0.5)
        ahead = new + (momentum - 1) / grown * (new - x)
        x, momentum = new, grown
    return x
