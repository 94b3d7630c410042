"""What a cell alone explains: every line of it with whatever intensity fits best.

Whole-pattern decomposition (Pawley, J. Appl. Cryst. 14, 357, 1981; Le Bail, Duroy and Fourquet,
Materials Research Bulletin 23, 447, 1988) with the cell and the peak shape of a refined
structure. No structure in this cell can fit better, so the difference is the structure's own: it
does not depend on noise, foreign lines or the shape of the peaks (host, NumPy).
"""

from __future__ import annotations

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.pxrd.hkl import hkl_table
from xtalnet_jax.pxrd.pattern import two_theta_from_inv_d
from xtalnet_jax.refine.chunks import LAST_MARGIN
from xtalnet_jax.refine.prepare import Observed

_SPACING = 0.3
"""Lines between two that are nearer to each other than this, in widths of a peak, are left out."""
_TAIL = 5.0
"""Lines outside of the pattern count if they are no further from it, in their widths."""
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

    inv_d_max = min(LAST_MARGIN * observed.inv_d_max, 2 / wavelength)
    inv_d = hkl_table(np.asarray(crystal.lattice, float)[None], inv_d_max).inv_d
    two_theta = two_theta_from_inv_d(inv_d, wavelength)
    centre, tan = two_theta + zero_shift, np.tan(np.deg2rad(0.5 * np.minimum(two_theta, 170.0)))
    width = np.sqrt(fwhm**2 + observed.smear + (fwhm_tan * tan) ** 2)
    near = (centre > grid[0] - _TAIL * width) & (centre < grid[-1] + _TAIL * width)
    if not near.any():
        return float(np.linalg.norm(left) / np.linalg.norm(y))
    centre, width = centre[near], width[near]
    rows = _spread(centre, _SPACING * width)
    centre, width = centre[rows], width[rows]

    lines = weight[:, None] * _pseudo_voigt(grid, centre, width, eta)
    lines -= columns @ (columns.T @ lines)
    lines /= np.linalg.norm(lines, axis=0) + 1e-12
    height = _nonnegative(lines.T @ lines, lines.T @ left)
    return float(np.linalg.norm(left - lines @ height) / np.linalg.norm(y))


def _spread(centre: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Rows of rising angles between which all others lie, in gaps of at most ``spacing`` [n].

    The outermost lines of a group stay: a peak between two can be made of both, one beside them
    cannot.
    """
    rows: list[int] = []
    for i, after in enumerate([*centre[1:], np.inf]):
        gap, step = (v - centre[rows[-1]] if rows else np.inf for v in (after, centre[i]))
        if gap > spacing[i] and step > 1e-3 * spacing[i]:  # equivalent reflections once
            rows.append(i)
    return np.array(rows)


def _pseudo_voigt(
    grid: np.ndarray, centre: np.ndarray, width: np.ndarray, eta: float
) -> np.ndarray:
    """Peaks [n_bin, n_line] of area pi / 2 * width."""
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
