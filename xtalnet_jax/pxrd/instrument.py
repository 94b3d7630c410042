"""What a diffractometer does to powder lines, as plain numbers."""

from __future__ import annotations

from typing import Any, NamedTuple


class Instrument(NamedTuple):
    """Parameters of one pattern besides the crystal; all but ``texture_axis`` differentiable.

    Angles are degrees of 2-theta. Widths are full widths at half maximum,
    ``gauss^2 = u tan^2 + v tan + w`` (Caglioti, Paoletti & Ricci 1958, degrees^2) and
    ``lorentz = x / cos + y tan`` (degrees; crystallite size and microstrain), tan and cos of theta.
    They combine to a pseudo-Voigt after Thompson, Cox & Hastings (1987). With ``eta`` given, the
    Gaussian width is the width, ``eta`` the Lorentzian fraction, and x, y are not used.
    """

    u: Any = 0.0  # degrees^2
    v: Any = 0.0  # degrees^2
    w: Any = 0.006  # degrees^2
    x: Any = 0.04  # degrees; 0.04 is a crystallite size of about 0.2 micrometre at Cu K-alpha
    y: Any = 0.02  # degrees
    eta: Any = None  # Lorentzian fraction 0..1, or None
    zero_shift: Any = 0.0  # degrees, added to every position
    displacement: Any = 0.0  # degrees, times cos(theta): a sample off the axis
    kalpha2_ratio: Any = 0.0  # intensity of K-alpha2 over K-alpha1; 0.5 without monochromator
    kalpha2_wavelength: Any = 1.54439  # angstrom
    monochromator_cos2: Any = 1.0  # cos^2 of the monochromator's 2-theta; 1 without
    texture: Any = 1.0  # March-Dollase r; below 1 plates, above 1 needles, 1 none
    texture_axis: tuple[float, float, float] = (0, 0, 1)  # hkl of the preferred plane
    b_iso: Any = 0.0  # overall displacement parameter B, angstrom^2
    background: Any = ()  # Chebyshev coefficients over the grid; the highest point is 100
