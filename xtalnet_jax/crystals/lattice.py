"""Lattice mathematics: cell parameters, metric, reciprocal lattice, spacings (pure, batched).

Rows of a lattice are its vectors in angstrom; leading axes are free. The frame of
`matrix_from_parameters` is that of the reference: c along z, a in the xz plane.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


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
        >>> cell.round(3).diagonal()
        Array([3., 4., 5.], dtype=float32)
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
    """S = (1/2) log(L L^T) as [..., 6]: the diagonal S11, S22, S33, then S23, S13, S12.

    S is the logarithm of the lattice's symmetric polar part, free of its orientation; its trace is
    the logarithm of the volume. Values are right for every cell; gradients are not defined for
    equal eigenvalues (a cubic cell).
    """
    values, vectors = jnp.linalg.eigh(metric_tensor(lattice))
    s = _product(vectors * (0.5 * jnp.log(values))[..., None, :], jnp.swapaxes(vectors, -1, -2))
    return jnp.stack([s[..., i, j] for i, j in _SYMMETRIC], -1)


def lattice_from_log_metric(s6: jax.Array) -> jax.Array:
    """Inverse of `log_metric` up to rotation: the cell in the frame of `matrix_from_parameters`.

    Every real ``s6`` [..., 6] gives a valid cell, with finite gradients everywhere: the matrix
    exponential is a Taylor series with scaling and squaring.
    """
    trace = s6[..., :3].sum(-1)[..., None, None] / 3  # of S; exp of it is factored out
    rows = [[0, 5, 4], [5, 1, 3], [4, 3, 2]]
    identity = jnp.eye(3, dtype=s6.dtype)
    deviator = jnp.stack([jnp.stack([s6[..., k] for k in row], -1) for row in rows], -2)
    x = 2 * (deviator - trace * identity) / 2**_SQUARINGS
    power = term = jnp.broadcast_to(identity, x.shape)
    for order in range(1, 9):
        term = _product(term, x) / order
        power = power + term
    for _ in range(_SQUARINGS):
        power = _product(power, power)
    root = jnp.sqrt(jnp.stack([power[..., i, i] for i in range(3)], -1))
    cos = [power[..., i, j] / (root[..., i] * root[..., j]) for i, j in ((1, 2), (0, 2), (0, 1))]
    # Clipped a rounding error away from the flat cell, where arccos has no gradient.
    edge = 1 - 4 * jnp.finfo(s6.dtype).eps
    angles = jnp.rad2deg(jnp.arccos(jnp.clip(jnp.stack(cos, -1), -edge, edge)))
    return matrix_from_parameters(root * jnp.exp(trace[..., 0]), angles)


_SYMMETRIC = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
_SQUARINGS = 6


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    # Full float32 on accelerators whose default matrix product rounds its inputs.
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)
