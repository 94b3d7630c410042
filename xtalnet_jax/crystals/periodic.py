"""Arithmetic of fractional coordinates on the torus (pure)."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def wrap(frac_coords: jax.Array) -> jax.Array:
    """Bring fractional coordinates [...] into [0, 1).

    Example:
        >>> wrap(jnp.array([-0.25, 1.0])).tolist()
        [0.75, 0.0]
    """
    wrapped = frac_coords - jnp.floor(frac_coords)
    # A tiny negative number plus one rounds to one, which is outside.
    return jnp.where(wrapped >= 1.0, 0.0, wrapped)


def shortest_difference(a: jax.Array, b: jax.Array) -> jax.Array:
    """a - b per fractional component, shifted by whole cells into [-0.5, 0.5).

    The shortest vector in an oblique cell may be another image; per component is what
    distributions on the torus need.

    Example:
        >>> shortest_difference(jnp.array([0.9, 0.5]), jnp.array([0.15, 0.0])).round(3).tolist()
        [-0.25, -0.5]
    """
    difference = a - b
    shifted = difference - jnp.floor(difference + 0.5)
    return jnp.where(shifted >= 0.5, -0.5, shifted)
