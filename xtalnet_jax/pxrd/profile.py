"""From powder lines to a profile: positions, widths, shapes, sums on a grid.

Pure, differentiable functions of one pattern; ``vmap`` gives batches. `render` is exact for any
width of each line, `render_uniform` needs one width for all and is much faster. Angles are
degrees of 2-theta.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.crystals import lattice as lattice_math
from xtalnet_jax.pxrd.instrument import Instrument
from xtalnet_jax.pxrd.pattern import Lines
from xtalnet_jax.pxrd.scattering import lorentz_polarisation

_TCH_FWHM = (1.0, 2.69269, 2.42843, 4.47163, 0.07842, 1.0)
_TCH_ETA = (1.36603, -0.47719, 0.11116)
_MIN_FWHM = 1e-3  # degrees; a negative Caglioti polynomial must not end in NaN
_LN2 = float(np.log(2.0))


def thompson_cox_hastings(gauss: jax.Array, lorentz: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Width and Lorentzian fraction of the pseudo-Voigt nearest to a Voigt.

    fwhm^5 = sum_k c_k gauss^(5-k) lorentz^k, eta = sum_k e_k (lorentz/fwhm)^k.
    Thompson, Cox & Hastings, J. Appl. Cryst. 20 (1987) 79.

    Args:
        gauss: [...] FWHM of the Gaussian, positive.
        lorentz: [...] FWHM of the Lorentzian, not negative.
    """
    # Relative to the sum, so that fifth powers of small widths do not underflow.
    total = gauss + lorentz
    g, l = gauss / total, lorentz / total
    fwhm = sum(c * g ** (5 - k) * l**k for k, c in enumerate(_TCH_FWHM)) ** 0.2
    share = l / fwhm
    eta = sum((e * share ** (k + 1) for k, e in enumerate(_TCH_ETA)), jnp.zeros_like(share))
    return total * fwhm, eta


def widths(two_theta: jax.Array, instrument: Instrument) -> tuple[jax.Array, jax.Array]:
    """FWHM (degrees) and Lorentzian fraction at angles [...] below 180; see `Instrument`."""
    theta = jnp.deg2rad(two_theta) / 2
    tan = jnp.tan(theta)
    square = instrument.u * tan**2 + instrument.v * tan + instrument.w
    gauss = jnp.sqrt(jnp.maximum(square, _MIN_FWHM**2))
    if instrument.eta is not None:
        return gauss, jnp.broadcast_to(jnp.asarray(instrument.eta, gauss.dtype), gauss.shape)
    lorentz = jnp.maximum(instrument.x / jnp.cos(theta) + instrument.y * tan, 0.0)
    return thompson_cox_hastings(gauss, lorentz)


def pseudo_voigt(delta: jax.Array, fwhm: jax.Array, eta: jax.Array) -> jax.Array:
    """eta * Lorentzian + (1 - eta) * Gaussian, unit area, at distance ``delta`` from the centre."""
    x = (2.0 * delta / fwhm) ** 2
    gauss = jnp.exp(-_LN2 * x) * (2.0 * np.sqrt(_LN2 / np.pi))
    lorentz = (2.0 / np.pi) / (1.0 + x)
    return (eta * lorentz + (1.0 - eta) * gauss) / fwhm


def positions(inv_d: jax.Array, wavelength: Any, instrument: Instrument) -> jax.Array:
    """Observed 2-theta [...]: Bragg's law, zero shift and sample displacement.

    90, with gradient 0, where 1/d is 0 or out of reach.
    """
    sin = 0.5 * inv_d * wavelength
    inside = (sin > 0) & (sin < 1)
    sin = jnp.where(inside, sin, 0.5)
    two_theta = 2.0 * jnp.rad2deg(jnp.arcsin(sin)) + instrument.zero_shift
    shifted = two_theta + instrument.displacement * jnp.sqrt(1.0 - sin**2)
    return jnp.where(inside, shifted, 90.0)


def march_dollase(hkl: jax.Array, lattice: jax.Array, r: jax.Array | float, axis: Any) -> jax.Array:
    """Texture factor (r^2 cos^2 a + sin^2 a / r)^(-3/2), a between the planes hkl and ``axis``.

    Dollase, J. Appl. Cryst. 19 (1986) 267. Its mean over the sphere is 1. Reflections of one 1/d
    differ in it, so it belongs to unmerged reflections.

    Args:
        hkl: [n_hkl, 3]; 000 gives the factor of a perpendicular plane.
        lattice: [3, 3].
        r: March parameter, positive.
        axis: Miller indices of the preferred plane.
    """
    recip = lattice_math.reciprocal(lattice)
    q = jnp.matmul(jnp.asarray(hkl, lattice.dtype), recip, precision=jax.lax.Precision.HIGHEST)
    pole = (jnp.asarray(axis, lattice.dtype)[:, None] * recip).sum(0)
    length2 = (q * q).sum(-1) * (pole * pole).sum()
    dot2 = (q * pole[None]).sum(-1) ** 2
    cos2 = jnp.where(length2 > 0, dot2 / jnp.where(length2 > 0, length2, 1.0), 0.0)
    return (r**2 * cos2 + (1.0 - cos2) / r) ** -1.5


def sticks(lines: Lines, wavelength: Any, instrument: Instrument) -> tuple[jax.Array, jax.Array]:
    """Place lines [n_line] as an instrument sees them.

    Returns:
        2-theta and integrated intensity with Lorentz-polarisation factor and overall B, both
        [n_line], or [2 n_line] with the K-alpha2 lines behind those of K-alpha1.
    """
    strength = lines.strength * jnp.exp(-0.5 * instrument.b_iso * lines.inv_d**2)
    radiations = [(wavelength, 1.0)]
    # A plain 0 switches K-alpha2 off; anything else, also a traced value, keeps its gradient.
    if isinstance(instrument.kalpha2_ratio, jax.Array) or instrument.kalpha2_ratio != 0:
        radiations.append((instrument.kalpha2_wavelength, instrument.kalpha2_ratio))
    placed = [
        (
            positions(lines.inv_d, w, instrument),
            ratio * strength * lorentz_polarisation(lines.inv_d, w, instrument.monochromator_cos2),
        )
        for w, ratio in radiations
    ]
    two_theta, intensity = (jnp.concatenate(v) for v in zip(*placed))
    return two_theta, intensity


def render(
    grid: jax.Array,
    two_theta: jax.Array,
    intensity: jax.Array,
    fwhm: jax.Array,
    eta: jax.Array,
    chunk: int = 64,
) -> jax.Array:
    """Sum of pseudo-Voigt lines on any grid, exact; each line has its own width.

    Args:
        grid: [n_bin] degrees.
        two_theta: [n_line] degrees.
        intensity: [n_line] area of each line (intensity times degrees).
        fwhm: [n_line] degrees, positive also where padded.
        eta: [n_line].
        chunk: lines summed at a time, bounding the memory to n_bin * chunk.

    Returns:
        [n_bin].
    """
    pad = -len(two_theta) % chunk
    columns = [
        jnp.pad(v, (0, pad), constant_values=fill).reshape(-1, chunk)
        for v, fill in ((two_theta, 0.0), (intensity, 0.0), (fwhm, 1.0), (eta, 0.0))
    ]

    @jax.checkpoint
    def add(total: jax.Array, some: Any) -> Any:
        center, area, width, fraction = (v[:, None] for v in some)
        shape = pseudo_voigt(grid[None, :] - center, width, fraction)
        return total + (area * shape).sum(0), None

    return jax.lax.scan(add, jnp.zeros_like(grid), tuple(columns))[0]


def render_uniform(
    two_theta: jax.Array,
    intensity: jax.Array,
    start: float,
    step: float,
    num_bins: int,
    fwhm: jax.Array | float,
    eta: jax.Array | float,
) -> jax.Array:
    """The same with one width for all lines, on start + step * (0 .. num_bins - 1), by FFT.

    Lines are deposited as cubic B-splines and convolved with the profile's analytic Fourier
    transform, divided by that of the spline, sinc^4. Within 1e-3 of the maximum where fwhm is at
    least five steps; smooth (C2) in the positions. Lines outside of the grid do not contribute.

    Args:
        two_theta: [n_line] degrees.
        intensity: [n_line] area.
        start: degrees, static.
        step: degrees, static.
        num_bins: static.
        fwhm: degrees.
        eta: Lorentzian fraction.

    Returns:
        [num_bins].
    """
    size = _smooth_size(num_bins + num_bins // 4 + 8)  # room for the tails before they wrap
    place = (two_theta - start) / step
    inside = (place >= 0) & (place <= num_bins - 1)
    place = jnp.where(inside, place, 2.0)
    area = jnp.where(inside, intensity, 0.0)
    index = jnp.floor(place).astype(jnp.int32)
    w = place - index
    spline = ((1 - w) ** 3, 3 * w**3 - 6 * w**2 + 4, 1 + 3 * w + 3 * w**2 - 3 * w**3, w**3)
    deposit = jnp.stack(spline, -1) / 6 * area[:, None]
    where = index[:, None] + jnp.arange(4)[None, :]  # one bin late, undone at the end
    histogram = jnp.zeros(size, area.dtype).at[where].add(deposit, mode="drop")
    frequency = np.fft.rfftfreq(size, step)
    damping = np.pi * jnp.asarray(frequency, area.dtype) * fwhm
    shape = eta * jnp.exp(-damping) + (1.0 - eta) * jnp.exp(-(damping**2) / (4 * _LN2))
    shape = shape / jnp.asarray(np.sinc(frequency * step) ** 4 * step, area.dtype)
    return jnp.fft.irfft(jnp.fft.rfft(histogram) * shape, size)[1 : num_bins + 1]


def chebyshev(grid: jax.Array, coefficients: Any) -> jax.Array:
    """sum_k c_k T_k(u), u from -1 to 1 over the grid [n_bin]; 0 without coefficients."""
    u = 2.0 * (grid - grid[0]) / (grid[-1] - grid[0]) - 1.0
    before, now = u, jnp.ones_like(u)  # T_-1 = T_1
    total = jnp.zeros_like(u)
    for c in coefficients:
        total = total + c * now
        before, now = now, 2.0 * u * now - before
    return total


def profile(lines: Lines, grid: jax.Array, wavelength: Any, instrument: Instrument) -> jax.Array:
    """Profile of lines [n_line] on a grid [n_bin]: `sticks`, `widths`, `render`, no background."""
    two_theta, intensity = sticks(lines, wavelength, instrument)
    fwhm, eta = widths(two_theta, instrument)
    return render(grid, two_theta, intensity, fwhm, eta)


def _smooth_size(least: int) -> int:
    """Smallest 2^a 3^b 5^c, even, that is not below ``least``: a fast length for the FFT."""
    return min(
        2 ** max(1, int(np.ceil(np.log2(least / odd)))) * odd
        for odd in (1, 3, 5, 9, 15, 25, 27, 45, 75, 81, 125)
    )
