"""Lattice mathematics: cell parameters, metric, reciprocal lattice, spacings (pure, batched).

Rows of a lattice are its vectors in angstrom; leading axes are free. The frame of
`matrix_from_parameters` is that of the reference: c along z, a in the xz plane.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def matrix_from_parameters(lengths: jax.Array, angles_deg: jax.Array) -> jax.Array:
    """Lattice with c along z and a in the xz plane.

    cos(gamma*) = (cos alpha cos beta - cos gamma) / (sin alpha sin beta), clamped to [-1, 1];
    a = a (sin beta, 0, cos beta), b = b (-sin alpha cos gamma*, sin alpha sin gamma*, cos alpha),
    c = c (0, 0, 1).

    Args:
        lengths: [..., 3] a, b, c in angstrom.
        angles_deg: [..., 3] alpha, beta, gamma in degrees.

    Returns:
        [..., 3, 3].

    Example:
        >>> cell = matrix_from_parameters(jnp.array([3.0, 4.0, 5.0]), jnp.full(3, 90.0))
        >>> [round(float(x), 3) for x in cell.diagonal()]
        [3.0, 4.0, 5.0]
    """
    a, b, c = jnp.unstack(lengths, axis=-1)
    angles = jnp.deg2rad(angles_deg)
    (cos_al, cos_be, cos_ga), (sin_al, sin_be, _) = (
        jnp.unstack(f(angles), axis=-1) for f in (jnp.cos, jnp.sin)
    )
    cos_star = jnp.clip((cos_al * cos_be - cos_ga) / (sin_al * sin_be), -1.0, 1.0)
    # sin = sqrt((1 - c)(1 + c)) has an infinite slope at +-1, where the cell is flat anyway.
    square = (1.0 - cos_star) * (1.0 + cos_star)
    sin_star = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    zero = jnp.zeros_like(a)
    rows = (
        (a * sin_be, zero, a * cos_be),
        (-b * sin_al * cos_star, b * sin_al * sin_star, b * cos_al),
        (zero, zero, c),
    )
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def parameters_from_matrix(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Lengths [..., 3] (angstrom) and angles [..., 3] (degrees) of a lattice [..., 3, 3].

    Rotation and handedness are lost.
    """
    lengths = jnp.sqrt((matrix**2).sum(-1))
    unit = matrix / lengths[..., None]
    after, before = jnp.roll(unit, -1, -2), jnp.roll(unit, -2, -2)
    cos = jnp.clip((after * before).sum(-1), -1.0, 1.0)
    return lengths, jnp.rad2deg(jnp.arccos(cos))


def volume(lattice: jax.Array) -> jax.Array:
    """Unsigned cell volume [...] in cubic angstrom."""
    a, b, c = jnp.unstack(lattice, axis=-2)
    return jnp.abs((a * jnp.cross(b, c)).sum(-1))


def metric_tensor(lattice: jax.Array) -> jax.Array:
    """G = L L^T, [..., 3, 3] in square angstrom; invariant to rotation."""
    return _product(lattice, jnp.swapaxes(lattice, -1, -2))


def reciprocal(lattice: jax.Array) -> jax.Array:
    """Reciprocal lattice, rows a*, b*, c* in 1/angstrom, without the factor 2 pi: a . a* = 1.

    Written with cross products, so a batch costs no factorisation.
    """
    a, b, c = jnp.unstack(lattice, axis=-2)
    rows = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], -2)
    return rows / (a * rows[..., 0, :]).sum(-1)[..., None, None]


def inv_d(hkl: jax.Array, lattice: jax.Array) -> jax.Array:
    """1/d = |h a* + k b* + l c*| in 1/angstrom; 0 with gradient 0 for hkl = 000.

    Args:
        hkl: [..., n_hkl, 3] Miller indices, leading axes broadcast against the lattice's.
        lattice: [..., 3, 3].

    Returns:
        [..., n_hkl].
    """
    q = _product(jnp.asarray(hkl, lattice.dtype), reciprocal(lattice))
    square = (q * q).sum(-1)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def log_metric(lattice: jax.Array) -> jax.Array:
    """S = log(L L^T) / 2 as [..., 6]: the diagonal S11, S22, S33, then S23, S13, S12.

    S is the logarithm of the lattice's symmetric polar part, free of its orientation; its trace is
    the logarithm of the volume, and every real S is a cell. Values are right for every cell;
    gradients are not defined for equal eigenvalues (a cubic cell).
    """
    values, vectors = jnp.linalg.eigh(metric_tensor(lattice))
    scaled = vectors * (0.5 * jnp.log(values))[..., None, :]
    s = _product(scaled, jnp.swapaxes(vectors, -1, -2))
    return s[..., *_UPPER]


def lattice_from_log_metric(s6: jax.Array) -> jax.Array:
    """Invert `log_metric`: the lattice exp(S), turned into the frame of `matrix_from_parameters`.

    The exponential is a scaled and squared Taylor series, so gradients are finite where
    eigenvalues coincide (cubic cells).

    Args:
        s6: [..., 6].

    Returns:
        [..., 3, 3], right-handed, with positive volume for every input.
    """
    symmetric = s6[..., _FULL]
    mean = s6[..., :3].sum(-1) / 3.0
    eye = jnp.eye(3, dtype=s6.dtype)
    eye = jnp.broadcast_to(eye, symmetric.shape)
    # The trace is a number and needs no series; the rest is small for real cells.
    x = (symmetric - mean[..., None, None] * eye) / 2**_SQUARINGS
    series = eye
    for order in range(_TAYLOR, 0, -1):
        series = eye + _product(x, series) / order
    for _ in range(_SQUARINGS):
        series = _product(series, series)
    a, b, c = jnp.unstack(series * jnp.exp(mean)[..., None, None], axis=-2)
    z = c / _length(c)
    x_axis = a - _dot(a, z) * z
    x_axis = x_axis / _length(x_axis)
    y = jnp.cross(z, x_axis)
    zero = jnp.zeros_like(_dot(a, z))
    rows = (
        (_dot(a, x_axis), zero, _dot(a, z)),
        (_dot(b, x_axis), _dot(b, y), _dot(b, z)),
        (zero, zero, _length(c)),
    )
    return jnp.stack([jnp.concatenate(row, -1) for row in rows], -2)


_UPPER = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))  # Voigt's order
_FULL = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
_SQUARINGS, _TAYLOR = 5, 8


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    return (x * y).sum(-1, keepdims=True)


def _length(x: jax.Array) -> jax.Array:
    return jnp.sqrt(_dot(x, x))


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    # Full float32 on accelerators whose default matrix product rounds its inputs.
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)
