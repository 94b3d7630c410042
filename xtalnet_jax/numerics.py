"""Numerical helpers without domain words: masked reductions and safe functions."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def masked_mean(x: jax.Array, mask: jax.Array, axis: int | tuple[int, ...] = -1) -> jax.Array:
    """Mean of ``x`` over ``axis`` where ``mask`` is True; 0 (with gradient 0) where nothing is.

    ``mask`` must broadcast against ``x``.
    """
    weight = jnp.broadcast_to(mask, x.shape).astype(x.dtype)
    return (x * weight).sum(axis) / jnp.maximum(weight.sum(axis), 1.0)


def safe_norm(x: jax.Array, axis: int = -1, keepdims: bool = False) -> jax.Array:
    """Euclidean norm whose gradient at 0 is 0 instead of NaN."""
    square = (x * x).sum(axis, keepdims=keepdims)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def unit(x: jax.Array, axis: int = -1) -> jax.Array:
    """``x`` scaled to norm 1; the zero vector stays zero, with finite gradient."""
    norm = safe_norm(x, axis, keepdims=True)
    return x / jnp.where(norm > 0, norm, 1.0)
