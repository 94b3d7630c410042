"""From the variables of a refinement to sticks (positions, intensities) and their derivatives.

One candidate at a time; `vmap` makes batches. A least-squares step needs the whole Jacobian, but
it factorises: the sums of phases depend on the coordinates only, positions, form factors and the
Lorentz-polarisation factor on the cell only. So six forward derivatives for the cell and one
matrix product for the coordinates do, whatever the number of atoms.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xtalnet_jax.crystals import lattice as lattice_math
from xtalnet_jax.pxrd.scattering import form_factors, lorentz_polarisation

Scalar = jax.Array | float


class Frame(NamedTuple):
    """What does not change while one candidate is refined.

    The cell moves by a symmetric strain E, ``lattice @ expm(E)`` with E = cell_basis @ cell; the
    atoms by ``frac + coord_basis @ coord``. Directions that symmetry forbids are zero columns.
    """

    species: Any  # [n_species] int32 different elements, 0 where padded
    one_hot: Any  # [n_node, n_species] which element an atom is; zero row = padding
    frac_coords: Any  # [n_node, 3]
    lattice: Any  # [3, 3] angstrom
    hkl: Any  # [n_hkl, 3] float, 000 where padded
    multiplicity: Any  # [n_hkl] number of reflections that this one stands for
    cell_basis: Any  # [6, 6] Voigt strain (xx, yy, zz, yz, xz, xy) of each variable
    coord_basis: Any  # [n_node, 3, n_coord] fractional displacement by 1 angstrom


class Variables(NamedTuple):
    """What is refined. All start at 0 except the widths."""

    cell: jax.Array  # [6] strain, dimensionless
    zero: jax.Array  # [] zero shift, degrees 2-theta
    log_fwhm: jax.Array  # [] log of the constant part of the peak width, degrees
    fwhm_tan: jax.Array  # [] part of the peak width that grows with tan(theta), degrees
    eta: jax.Array  # [] Lorentzian share of the pseudo-Voigt
    b_iso: jax.Array  # [] square angstrom
    coord: jax.Array  # [n_coord] angstrom along coord_basis


NUM_SHARED = 11
"""Variables before ``coord`` in the flat vector."""


class Sticks(NamedTuple):
    """Positions and intensities of all reflections, with derivatives."""

    two_theta: jax.Array  # [n_hkl] degrees, without zero shift
    intensity: jax.Array  # [n_hkl]
    d_two_theta: jax.Array  # [n_hkl, 6] by cell
    d_intensity: jax.Array  # [n_hkl, 6 + 1 + n_coord] by cell, b_iso, coord


def to_vector(v: Variables) -> jax.Array:
    """Flatten to [11 + n_coord]."""
    return jnp.concatenate([jnp.atleast_1d(x) for x in v])


def from_vector(x: jax.Array) -> Variables:
    """Inverse of `to_vector`."""
    return Variables(x[:6], x[6], x[7], x[8], x[9], x[10], x[11:])


def strained_lattice(frame: Frame, cell: jax.Array) -> jax.Array:
    """``lattice @ expm(E)``, [3, 3]; the series to the fourth order is exact for |E| < 0.2."""
    xx, yy, zz, yz, xz, xy = jnp.unstack(frame.cell_basis @ cell)
    e = jnp.stack([jnp.stack([xx, xy, xz]), jnp.stack([xy, yy, yz]), jnp.stack([xz, yz, zz])])
    out = term = frame.lattice
    for order in range(1, 5):
        term = jnp.matmul(term, e, precision=jax.lax.Precision.HIGHEST) / order
        out = out + term
    return out


def moved_coords(frame: Frame, coord: jax.Array) -> jax.Array:
    """Fractional coordinates [n_node, 3] after the move ``coord``."""
    return frame.frac_coords + jnp.matmul(
        frame.coord_basis, coord, precision=jax.lax.Precision.HIGHEST
    )


def sticks(frame: Frame, v: Variables, wavelength: Scalar) -> tuple[jax.Array, jax.Array]:
    """Two-theta (degrees, [n_hkl]) and intensity of every reflection; padding has intensity 0."""
    real, imag, _, _ = _phase_sums(frame, moved_coords(frame, v.coord))
    return _placed(frame, _spacings(frame, v.cell), v.b_iso, real, imag, wavelength)


def sticks_with_derivatives(frame: Frame, v: Variables, wavelength: Scalar) -> Sticks:
    """`sticks` and its Jacobian by cell, b_iso and coord."""
    real, imag, cos, sin = _phase_sums(frame, moved_coords(frame, v.coord))
    inv_d, by_cell = _spacings(frame, v.cell), jax.jacfwd(_spacings, argnums=1)(frame, v.cell)
    # Reflections do not mix, so one tangent, or one pullback, of ones gives all derivatives.
    (two_theta, intensity), (d_two_theta, d_spacing) = jax.jvp(
        lambda q: _placed(frame, q, v.b_iso, real, imag, wavelength),
        (inv_d,),
        (jnp.ones_like(inv_d),),
    )
    _, pullback = jax.vjp(
        lambda r, i: _placed(frame, inv_d, v.b_iso, r, i, wavelength)[1], real, imag
    )
    d_real, d_imag = pullback(jnp.ones_like(intensity))  # [n_species, n_hkl]
    mix = lambda d: jnp.matmul(frame.one_hot, d, precision=jax.lax.Precision.HIGHEST)  # noqa: E731
    by_phase = 2 * jnp.pi * (mix(d_imag) * cos - mix(d_real) * sin)  # [n_node, n_hkl] per turn
    by_frac = by_phase[:, None, :] * frame.hkl.T[None, :, :]  # [n_node, 3, n_hkl]
    d_coord = jnp.einsum("jam,jaq->mq", by_frac, frame.coord_basis)
    d_b = -0.5 * inv_d**2 * intensity
    return Sticks(
        two_theta,
        intensity,
        d_two_theta[:, None] * by_cell,
        jnp.concatenate([d_spacing[:, None] * by_cell, d_b[:, None], d_coord], axis=1),
    )


def _spacings(frame: Frame, cell: jax.Array) -> jax.Array:
    return lattice_math.inv_d(frame.hkl, strained_lattice(frame, cell))


def phase_sums(frame: Frame, frac: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Real and imaginary part of sum_j exp(2 pi i hkl . x_j) per element, [n_species, n_hkl]."""
    real, imag, _, _ = _phase_sums(frame, frac)
    return real, imag


def _phase_sums(frame: Frame, frac: jax.Array) -> tuple[jax.Array, ...]:
    """sum_j exp(2 pi i hkl . x_j) per element [n_species, n_hkl], and the terms [n_node, n_hkl]."""
    turns = sum(frac[:, i, None] * frame.hkl[None, :, i] for i in range(3))
    angle = 2 * jnp.pi * (turns - jnp.round(turns))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    real, imag = (
        jnp.matmul(frame.one_hot.T, t, precision=jax.lax.Precision.HIGHEST) for t in (cos, sin)
    )
    return real, imag, cos, sin


def _placed(
    frame: Frame,
    inv_d: jax.Array,
    b_iso: jax.Array,
    real: jax.Array,
    imag: jax.Array,
    wavelength: Scalar,
) -> tuple[jax.Array, jax.Array]:
    """Two-theta and intensity from 1/d and the sums of phases, [n_hkl] or [n_species, n_hkl]."""
    s2 = 0.25 * inv_d**2
    f = form_factors(frame.species, s2)  # [n_species, n_hkl]
    square = (f * real).sum(0) ** 2 + (f * imag).sum(0) ** 2
    factor = frame.multiplicity * jnp.exp(-2.0 * b_iso * s2)
    sin_theta = 0.5 * wavelength * inv_d
    reached = sin_theta < 0.999
    two_theta = 2 * jnp.rad2deg(jnp.arcsin(jnp.where(reached, sin_theta, 0.999)))
    lp = jnp.where(reached, lorentz_polarisation(inv_d, wavelength), 0.0)
    return two_theta, square * factor * lp
