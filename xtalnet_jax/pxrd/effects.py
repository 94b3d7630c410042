"""How patterns are measured: ranges of experimental effects, and one instrument drawn from them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xtalnet_jax.pxrd.pattern import CU_KALPHA
from xtalnet_jax.pxrd.peaks import MIN_PROMINENCE, NUM_SIGMA
from xtalnet_jax.types import Array, Key

Range = tuple[float, float]


class Effects(NamedTuple):
    """How patterns are measured: every ``Range`` is drawn once per pattern, (x, x) fixes it.

    Angles and widths are in degrees 2-theta for Cu K-alpha and are scaled with the wavelength,
    as a crystallite size or a misplaced sample does at small angles. All fields are Python
    numbers: an ``Effects`` is static under ``jit`` (close over it, or mark it static).
    """

    radiations: tuple[tuple[float, float, float], ...] = ((CU_KALPHA, 0.0, 1.0),)
    """(mean wavelength in angstrom, relative K-alpha2 - K-alpha1 splitting, weight)."""
    start: Range = (5.0, 5.0)  # first angle measured
    end: Range = (90.0, 90.0)  # last angle measured
    num_bins: int = 4251  # points of the grid, whatever the range
    fwhm: Range = (0.1, 0.1)  # full width at half maximum at the first angle, log-uniform
    widening: Range = (1.0, 1.0)  # width at the last angle over width at the first
    lorentzian: Range = (0.5, 0.5)  # fraction of the pseudo-Voigt that is Lorentzian
    zero_shift: Range = (0.0, 0.0)  # added to every angle
    displacement: Range = (0.0, 0.0)  # added times cos(theta): a sample off the axis
    b_factor: Range = (0.0, 0.0)  # angstrom^2, overall; exp(-2 B s^2), s = sin(theta)/lambda
    texture: Range = (0.0, 0.0)  # standard deviation of the logarithm of a line's strength
    impurity: Range = (0.0, 0.0)  # strongest foreign line relative to the strongest own line
    num_impurity: int = 0  # foreign lines
    impurity_fraction: float = 0.0  # how many of the patterns have them
    background: Range = (0.0, 0.0)  # under the strongest peak, relative to it, log-uniform if > 0
    residue: Range = (0.0, 0.0)  # waviness left by background subtraction, of the background
    noise: Range = (0.0, 0.0)  # 1 / sqrt(counts in the strongest peak), log-uniform if > 0
    min_prominence: float = MIN_PROMINENCE  # smallest peak kept, relative to the strongest
    num_sigma: float = NUM_SIGMA  # ... and in standard deviations of the noise
    clean_fraction: float = 0.0  # how many of the patterns stay as in ``Effects.clean()``

    @classmethod
    def clean(cls, **changes: Any) -> Effects:
        """Cu K-alpha, 5 to 90 degrees, step 0.02, no noise: deterministic, needs no key."""
        return cls()._replace(**changes)

    @classmethod
    def measured(cls, **changes: Any) -> Effects:
        """Laboratory and synchrotron patterns of ordinary quality: the training preset.

        A fifth of the patterns stay clean (on the same, coarser grid).
        """
        return cls(
            radiations=(
                (CU_KALPHA, 0.00249, 4.0),
                (1.54060, 0.0, 3.0),
                (1.79026, 0.00217, 0.5),
                (0.71073, 0.00605, 1.0),
                (0.61993, 0.0, 0.5),
                (0.41300, 0.0, 1.0),
            ),
            start=(4.0, 20.0),
            end=(60.0, 120.0),
            num_bins=2125,
            fwhm=(0.06, 0.5),
            widening=(1.0, 2.5),
            lorentzian=(0.1, 1.0),
            zero_shift=(-0.04, 0.04),
            displacement=(-0.08, 0.08),
            b_factor=(0.0, 2.0),
            texture=(0.0, 0.5),
            impurity=(0.01, 0.3),
            num_impurity=6,
            impurity_fraction=0.3,
            background=(0.01, 0.5),
            residue=(0.0, 0.05),
            noise=(0.004, 0.05),
            clean_fraction=0.2,
        )._replace(**changes)


class Instrument(NamedTuple):
    """What was drawn for one pattern; every field is a scalar (batched under ``vmap``)."""

    wavelength: Array  # angstrom
    splitting: Array  # (lambda2 - lambda1) / lambda; 0 for monochromatic
    start: Array  # degrees at this wavelength
    end: Array
    fwhm: Array
    widening: Array
    lorentzian: Array
    zero_shift: Array
    displacement: Array
    b_factor: Array
    texture: Array
    impurity: Array
    background: Array
    residue: Array
    noise: Array


def require_key(key: Key[Array, ""] | None, cause: str) -> Key[Array, ""]:
    """Return ``key``, or say that ``cause`` needs one."""
    if key is None:
        raise ValueError(
            f"these Effects are random ({cause}), so peaks_from_lines needs a key; "
            "give one, or use Effects.clean()"
        )
    return key


def uniform(key: Key[Array, ""] | None, span: Range, log: bool = False) -> Array:
    """Draw from ``span``; a degenerate one needs no key and costs nothing."""
    low, high = span
    if low == high:
        return jnp.asarray(low, float)
    key = require_key(key, f"a range {low}..{high}")
    if log and low > 0:
        return jnp.exp(jax.random.uniform(key, (), float, jnp.log(low), jnp.log(high)))
    return jax.random.uniform(key, (), float, low, high)


def _angle_at(two_theta_cu: Array, wavelength: Array) -> Array:
    """2-theta (degrees) at ``wavelength`` of the plane spacing seen there with Cu K-alpha."""
    sine = jnp.sin(jnp.deg2rad(two_theta_cu / 2)) * wavelength / CU_KALPHA
    return 2 * jnp.rad2deg(
        jnp.arcsin(jnp.clip(sine, 0.0, 0.97))
    )  # no instrument passes 152 degrees


def draw_instrument(key: Key[Array, ""] | None, effects: Effects) -> Instrument:
    """Draw the instrument of one pattern.

    Raises:
        ValueError: ``key`` is None although the effects are random.
    """
    keys = [None] * 16 if key is None else list(jax.random.split(key, 16))
    wavelengths, splittings, weights = (jnp.asarray(x, float) for x in zip(*effects.radiations))
    which: Array | int = 0
    if len(effects.radiations) > 1:
        edges = jnp.cumsum(weights / weights.sum())
        which = (uniform(keys[0], (0.0, 1.0)) > edges[:-1]).sum()
    wavelength = wavelengths[which]
    scale = wavelength / CU_KALPHA
    has_impurity: Array | float = 1.0
    if 0 < effects.impurity_fraction < 1 and effects.num_impurity:
        has_impurity = uniform(keys[1], (0.0, 1.0)) < effects.impurity_fraction
    return Instrument(
        wavelength=wavelength,
        splitting=splittings[which],
        start=_angle_at(uniform(keys[2], effects.start), wavelength),
        end=_angle_at(uniform(keys[3], effects.end), wavelength),
        fwhm=scale * uniform(keys[4], effects.fwhm, log=True),
        widening=uniform(keys[5], effects.widening),
        lorentzian=uniform(keys[6], effects.lorentzian),
        zero_shift=scale * uniform(keys[7], effects.zero_shift),
        displacement=scale * uniform(keys[8], effects.displacement),
        b_factor=uniform(keys[9], effects.b_factor),
        texture=uniform(keys[10], effects.texture),
        impurity=has_impurity * uniform(keys[11], effects.impurity, log=True),
        background=uniform(keys[12], effects.background, log=True),
        residue=uniform(keys[13], effects.residue),
        noise=uniform(keys[14], effects.noise, log=True),
    )
