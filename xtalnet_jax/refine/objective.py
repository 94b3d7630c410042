"""How badly a candidate explains a pattern, as a sum of squares with its normal equations.

Two objectives on a regular grid. The *coarse* one compares square roots of profiles broadened to
a given width, up to a factor: 1 - cos^2 of the angle between them; wide peaks make it smooth in
the cell. The *fine* one is the weighted profile residual of a Rietveld refinement: scale and a
Chebyshev background are eliminated by linear least squares. To both come restraints: atoms keep
their distance, and nothing moves far without a reason.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.refine import model
from xtalnet_jax.refine.model import Frame, Scalar, Sticks, Variables

LN2 = float(np.log(2.0))
HIGHEST = jax.lax.Precision.HIGHEST
IMAGES = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), -1).reshape(-1, 3)


class Normal(NamedTuple):
    """Value and Gauss-Newton normal equations of an objective at one point."""

    cost: jax.Array  # [] data and restraints
    misfit: jax.Array  # [] data only: 1 - cos^2, or R_wp^2
    gradient: jax.Array  # [p] half the gradient of the cost
    matrix: jax.Array  # [p, p] half the Gauss-Newton Hessian


class Target(NamedTuple):
    """One observed pattern on a regular grid."""

    two_theta: Any  # [n_bin] degrees
    profile: Any  # [n_bin] coarse: unit vector of square roots; fine: intensity
    weight: Any  # [n_bin] coarse: 1 inside the range; fine: 1/sigma, 0 outside
    background: Any  # [n_bin, n_term] columns of the linear background; n_term may be 0


class Restraints(NamedTuple):
    """Strengths of the penalties that need no pattern."""

    closest: jax.Array  # [n_node, n_node] shortest allowed distances, angstrom
    contact: jax.Array  # [] cost of a contact that is too short by 1 angstrom
    inertia: jax.Array  # [p] cost of moving a variable by one unit
    rest: jax.Array  # [p] where the variables rest


def peak_shapes(
    two_theta: jax.Array, centre: jax.Array, fwhm: jax.Array, eta: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Pseudo-Voigt peaks of area 1 [n_bin, n_hkl], and derivatives by centre, log FWHM and eta."""
    u = (two_theta[:, None] - centre[None, :]) / fwhm[None, :]
    square = 4.0 * u * u
    gauss = jnp.exp(-LN2 * square) * (2.0 * (LN2 / np.pi) ** 0.5 / fwhm)[None, :]
    lorentz = (2.0 / np.pi / fwhm)[None, :] / (1.0 + square)
    shape = eta * lorentz + (1.0 - eta) * gauss
    # -d shape / d u over 8 u
    fall = eta * lorentz / (1.0 + square) + (1.0 - eta) * LN2 * gauss
    return shape, 8.0 * u * fall / fwhm[None, :], 2.0 * square * fall - shape, lorentz - gauss


def peak_widths(v: Variables, two_theta: jax.Array) -> tuple[jax.Array, jax.Array]:
    """FWHM^2 = w^2 + (t tan theta)^2 at each stick, [n_hkl], and tan theta."""
    tan = jnp.tan(jnp.deg2rad(0.5 * jnp.minimum(two_theta, 170.0)))
    return jnp.sqrt(jnp.exp(2 * v.log_fwhm) + (v.fwhm_tan * tan) ** 2), tan


def profile_jacobian(grid: jax.Array, s: Sticks, v: Variables) -> tuple[jax.Array, jax.Array]:
    """Calculated profile [n_bin] and its Jacobian [n_bin, 11 + n_coord] ordered as Variables."""
    fwhm, tan = peak_widths(v, s.two_theta)
    shape, by_centre, by_log_fwhm, by_eta = peak_shapes(grid, s.two_theta + v.zero, fwhm, v.eta)
    amplitude = s.intensity
    along = jnp.matmul(shape, jnp.concatenate([amplitude[:, None], s.d_intensity], 1))
    shift = jnp.concatenate([s.d_two_theta, jnp.ones_like(amplitude)[:, None]], 1)
    moved = jnp.matmul(by_centre, amplitude[:, None] * shift)
    share = jnp.exp(2 * v.log_fwhm) / fwhm**2  # d log FWHM / d log w
    growth = v.fwhm_tan * tan**2 / fwhm**2  # d log FWHM / d t
    drift = jnp.deg2rad(0.5) * (v.fwhm_tan / fwhm) ** 2 * tan * (1 + tan**2)  # d .. / d two-theta
    wider = jnp.concatenate([jnp.stack([share, growth], 1), drift[:, None] * s.d_two_theta], 1)
    wider = jnp.matmul(by_log_fwhm, amplitude[:, None] * wider)
    eta = jnp.matmul(by_eta, amplitude[:, None])
    jacobian = jnp.concatenate(
        [
            along[:, 1:7] + moved[:, :6] + wider[:, 2:],
            moved[:, 6:],
            wider[:, :2],
            eta,
            along[:, 7:],
        ],
        1,
    )
    return along[:, 0], jacobian


def profile(grid: jax.Array, frame: Frame, v: Variables, wavelength: Scalar) -> jax.Array:
    """Calculated pseudo-Voigt profile [n_bin], arbitrary scale, without background."""
    two_theta, intensity = model.sticks(frame, v, wavelength)
    fwhm, _ = peak_widths(v, two_theta)
    return peak_shapes(grid, two_theta + v.zero, fwhm, v.eta)[0] @ intensity


def square_root(
    z: jax.Array, weight: jax.Array, floor: Scalar
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """sqrt(z / mean(z) + floor) - sqrt(floor) where weight is 1, and its derivative's two factors.

    d out = slope * (dz - z * mean(dz) / mean(z)), with slope as returned second and mean third.
    The floor keeps the slope finite where nothing diffracts.
    """
    mean = (z * weight).sum() / weight.sum() + 1e-20
    root = jnp.sqrt(z / mean + floor)
    return weight * (root - floor**0.5), weight * 0.5 / (root * mean), mean


def coarse_normal(
    frame: Frame,
    v: Variables,
    wavelength: Scalar,
    target: Target,
    edges: jax.Array,
    floor: Scalar,
) -> Normal:
    """1 - cos^2 between the square roots of the broadened profiles.

    Reflections outside of ``edges`` (first and last measured angle) fade out, because the
    broadened observed profile does not contain them either.
    """
    s = model.sticks_with_derivatives(frame, v, wavelength)
    s = _fade(s, edges, jnp.exp(v.log_fwhm))
    z, jacobian = profile_jacobian(target.two_theta, s, v)
    root, slope, mean = square_root(z, target.weight, floor)
    by_mean = (jacobian * target.weight[:, None]).sum(0) / target.weight.sum() / mean
    jacobian = slope[:, None] * (jacobian - z[:, None] * by_mean[None, :])
    return _projected(target.profile, root[:, None], jacobian)[0]


def coarse_root(
    frame: Frame,
    v: Variables,
    wavelength: Scalar,
    grid: jax.Array,
    edges: jax.Array,
    floor: Scalar,
) -> jax.Array:
    """Square root of the broadened profile [n_bin] that `coarse_normal` compares."""
    two_theta, intensity = model.sticks(frame, v, wavelength)
    inside, _ = _window(two_theta, edges, jnp.exp(v.log_fwhm))
    fwhm, _ = peak_widths(v, two_theta)
    z = peak_shapes(grid, two_theta + v.zero, fwhm, v.eta)[0] @ (intensity * inside)
    return square_root(z, jnp.ones_like(z), floor)[0]


def fine_normal(
    frame: Frame, v: Variables, wavelength: Scalar, target: Target
) -> tuple[Normal, jax.Array]:
    """R_wp^2 = sum w (y - y_calc)^2 / sum w y^2, and scale and background [1 + n_term]."""
    s = model.sticks_with_derivatives(frame, v, wavelength)
    z, jacobian = profile_jacobian(target.two_theta, s, v)
    w = target.weight / jnp.sqrt(((target.weight * target.profile) ** 2).sum())
    # The profile as such is huge (electrons squared): bring it to the size of the observed one.
    unit = jnp.sqrt((w * z) @ (w * z)) + 1e-20
    linear = jnp.concatenate([z[:, None] / unit, target.background], 1)
    normal, c = _projected(w * target.profile, w[:, None] * linear, w[:, None] * jacobian / unit)
    return normal, c.at[0].divide(unit)


def _projected(
    observed: jax.Array, linear: jax.Array, jacobian: jax.Array
) -> tuple[Normal, jax.Array]:
    """Least squares in which the coefficients of ``linear`` are solved for, not iterated.

    Variable projection with Kaufman's approximation: the gradient is exact. ``jacobian`` is that
    of the first column of ``linear``. (Golub and Pereyra, SIAM J. Numer. Anal. 10, 413, 1973;
    Kaufman, BIT 15, 49, 1975.)
    """
    size = jnp.sqrt((linear**2).sum(0)) + 1e-20
    q, r = jnp.linalg.qr(linear / size[None, :])
    along = jnp.matmul(q.T, observed, precision=HIGHEST)
    coefficients = jax.scipy.linalg.solve_triangular(r, along) / size
    residual = observed - jnp.matmul(q, along, precision=HIGHEST)
    j = coefficients[0] * jacobian
    j = j - jnp.matmul(q, jnp.matmul(q.T, j, precision=HIGHEST), precision=HIGHEST)
    cost = residual @ residual
    return (
        Normal(cost, cost, -jnp.matmul(j.T, residual), jnp.matmul(j.T, j)),
        coefficients,
    )


def _fade(s: Sticks, edges: jax.Array, fwhm: jax.Array) -> Sticks:
    """Multiply intensities by a smooth window over the measured range."""
    inside, slope = _window(s.two_theta, edges, fwhm)
    d_intensity = s.d_intensity * inside[:, None]
    by_cell = (s.intensity * slope)[:, None] * s.d_two_theta
    return s._replace(
        intensity=s.intensity * inside, d_intensity=d_intensity.at[:, :6].add(by_cell)
    )


def _window(two_theta: jax.Array, edges: jax.Array, fwhm: jax.Array) -> tuple[jax.Array, jax.Array]:
    width = 0.1 + 0.1 * fwhm
    low = jax.nn.sigmoid((two_theta - edges[0]) / width)
    high = jax.nn.sigmoid((edges[1] - two_theta) / width)
    return low * high, low * high * (high - low) / width


def restrained(normal: Normal, frame: Frame, x: jax.Array, r: Restraints) -> Normal:
    """Add the cost of short contacts and of displacement to a data term."""
    moved = x - r.rest
    violation, jacobian = short_contacts(frame, x, r.closest)
    cost = r.contact * (violation @ violation) + (r.inertia * moved) @ moved
    gradient = r.contact * (jacobian.T @ violation) + r.inertia * moved
    matrix = r.contact * (jacobian.T @ jacobian) + jnp.diag(r.inertia)
    return Normal(
        normal.cost + cost, normal.misfit, normal.gradient + gradient, normal.matrix + matrix
    )


def short_contacts(frame: Frame, x: jax.Array, closest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """By how much each pair is closer than allowed, angstrom [n_pair], and Jacobian [n_pair, p].

    Each pair counts with its nearest image among 27 cells; an atom and its own images are a pair.
    """
    n = frame.frac_coords.shape[0]
    first, second = np.triu_indices(n)
    v = model.from_vector(x)
    frac = model.moved_coords(frame, v.coord)
    lattice = model.strained_lattice(frame, v.cell)
    delta = frac[second] - frac[first]
    delta = delta - jnp.round(delta)
    images = delta[:, None, :] + jnp.asarray(IMAGES, frac.dtype)[None]
    square = (jnp.matmul(images, lattice, precision=HIGHEST) ** 2).sum(-1)
    square = jnp.where((first == second)[:, None] & (IMAGES == 0).all(-1)[None, :], 1e6, square)
    nearest = square.argmin(-1)
    image = jnp.take_along_axis(images, nearest[:, None, None], 1)[:, 0]  # [n_pair, 3]
    cart = jnp.matmul(image, lattice, precision=HIGHEST)
    distance = jnp.sqrt((cart**2).sum(-1) + 1e-6)
    violation = jnp.maximum(closest[first, second] - distance, 0.0)
    direction = jnp.where(violation > 0, -1 / distance, 0.0)[:, None] * cart  # d violation / d cart
    basis = jnp.matmul(
        (frame.coord_basis[second] - frame.coord_basis[first]).swapaxes(1, 2), lattice
    )
    by_coord = (basis * direction[:, None, :]).sum(-1)  # [n_pair, n_coord]
    by_lattice = jax.jacfwd(model.strained_lattice, argnums=1)(frame, v.cell)  # [3, 3, 6]
    by_cell = jnp.einsum("pi,ijc,pj->pc", image, by_lattice, direction, precision=HIGHEST)
    blank = jnp.zeros((len(first), model.NUM_SHARED - 6), by_cell.dtype)
    return violation, jnp.concatenate([by_cell, blank, by_coord], 1)
