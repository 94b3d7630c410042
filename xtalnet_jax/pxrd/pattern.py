"""What a powder pattern is: measured profile, list of peaks, and instrument-free powder lines.

Everything downstream of a reader works on these containers. Reading files is `io`, simulating is
`simulate`, finding peaks is `peaks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

CU_KALPHA = 1.54184
"""Weighted mean of the Cu K-alpha doublet, angstrom (as in pymatgen's ``CuKa``)."""


class Pattern(NamedTuple):
    """One measured or calculated powder pattern (host side, NumPy).

    ``two_theta`` is strictly increasing and need not be equidistant.
    """

    two_theta: np.ndarray  # [n_bin] degrees
    intensity: np.ndarray  # [n_bin] arbitrary units
    wavelength: float  # angstrom
    sigma: np.ndarray | None = None  # [n_bin] standard uncertainty of intensity, if known
    meta: Mapping[str, Any] = {}  # what the file said: radiation, sample, reader, assumptions


class Peaks(NamedTuple):
    """Peaks of one pattern (host side, NumPy), ordered by angle; the strongest is 100."""

    two_theta: np.ndarray  # [n_peak] degrees
    intensity: np.ndarray  # [n_peak] relative, 0..100
    sigma: np.ndarray | None = None  # [n_peak] standard uncertainty of intensity, if known


class PeakBatch(NamedTuple):
    """Padded peak lists of several patterns: what a pattern encoder reads (device side).

    ``position`` is 1/d in 1/angstrom for the wavelength-free default, or the index on the
    2-theta grid for the reference's position table.
    """

    position: Any  # [n_graph, n_peak] 1/angstrom (or grid index); 0 where padded
    intensity: Any  # [n_graph, n_peak] 0..1, the strongest is 1; 0 where padded
    mask: Any  # [n_graph, n_peak] bool, True = real peak
    measured: Any  # [n_graph, 2] first and last measured 1/d, 1/angstrom


class Lines(NamedTuple):
    """Powder lines of several crystals before any instrument (device side).

    From these a pattern follows at any wavelength, range and line width: no Lorentz-polarisation
    factor and no cut in angle is contained.
    """

    inv_d: Any  # [n_graph, n_line] 1/d = 2 sin(theta)/lambda in 1/angstrom; 0 where padded
    strength: Any  # [n_graph, n_line] multiplicity * |F|^2, the strongest is 1; 0 where padded


def inv_d_from_two_theta(two_theta_deg: Any, wavelength: Any) -> Any:
    """Return 1/d = 2 sin(theta)/lambda (1/angstrom) for 2-theta in degrees (Bragg's law, n = 1).

    Example:
        >>> round(float(inv_d_from_two_theta(60.0, 1.0)), 6)
        1.0
    """
    xp = jax.numpy if isinstance(two_theta_deg, jax.Array) else np
    return 2.0 * xp.sin(xp.deg2rad(two_theta_deg) / 2.0) / wavelength


def two_theta_from_inv_d(inv_d: Any, wavelength: Any) -> Any:
    """Return 2-theta in degrees for 1/d (1/angstrom); 180 where the line cannot be reached.

    Example:
        >>> round(float(two_theta_from_inv_d(1.0, 1.0)), 6)
        60.0
    """
    xp = jax.numpy if isinstance(inv_d, jax.Array) else np
    return 2.0 * xp.rad2deg(xp.arcsin(xp.minimum(inv_d * wavelength / 2.0, 1.0)))
