"""The same mathematics in the form that is quick on the machine at hand.

Measured on a processor with bfloat16 matrix units (jax 0.10): a product of bfloat16 operands that
accumulates *into float32* runs 2.5 to 5 times faster than in float32, but one that returns
bfloat16, or that contracts the rows of two matrices, is slower than float32. With a unit axis
before the rows, contracted as well, the latter is quick again (2.0 to 2.8 times float32). Random
bits of JAX's own generators cost 15 times what it costs to apply them.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

CACHE_BYTES = 4_000_000
"""Of one array that several operations go over in turn, see `num_blocks`."""


def dot_general(
    lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any, precision: Any = None, **kwargs: Any
) -> jax.Array:
    """``lax.dot_general`` for ``flax.linen.Dense``: last axis of ``lhs`` with the first of ``rhs``.

    On a CPU only the gradient is written otherwise than that of ``lax.dot_general``, for which XLA
    would transpose what comes back; of bfloat16 the result is float32, and what comes back is
    rounded to bfloat16 in both gradients.
    """
    if lhs.dtype != rhs.dtype or precision is not None or jax.default_backend() != "cpu":
        return jax.lax.dot_general(lhs, rhs, dimension_numbers, precision, **kwargs)
    rows = lhs.reshape(-1, lhs.shape[-1])
    return _product(rows, rhs).reshape(*lhs.shape[:-1], rhs.shape[-1])


def product(x: jax.Array, w: jax.Array, dtype: Any) -> jax.Array:
    """``x @ w`` of operands rounded to ``dtype``, by `dot_general`."""
    dims = (((x.ndim - 1,), (0,)), ((), ()))
    return dot_general(x.astype(dtype), w.astype(dtype), dims)


def _dot(x: jax.Array, w: jax.Array, axes: Any) -> jax.Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jax.lax.dot_general(x, w, (axes, ((), ())), preferred_element_type=wide)


@jax.custom_vjp
def _product(x: jax.Array, w: jax.Array) -> jax.Array:
    return _dot(x, w, ((1,), (0,)))


def _backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    g = g.astype(w.dtype)
    dx = _dot(g, w, ((1,), (1,)))
    half = x.dtype == jnp.bfloat16
    dw = _dot(x[None], g[None], ((0, 1), (0, 1))) if half else _dot(x, g, ((0,), (0,)))
    return dx.astype(x.dtype), dw.astype(w.dtype)


_product.defvjp(lambda x, w: (_product(x, w), (x, w)), _backward)


def gelu(x: jax.Array) -> jax.Array:
    """GELU in its exact form, ``jax.nn.gelu``; of bfloat16 by erf in float32, not by erfc.

    That is the less costly of the two: an encoder layer of 512 units, its attention apart, takes a
    fifth less of the processor.
    """
    if x.dtype != jnp.bfloat16:
        return jax.nn.gelu(x, approximate=False)
    return _half_gelu(x)


@jax.custom_vjp
def _half_gelu(x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def _half_gelu_back(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    wide = x.astype(jnp.float32)
    above = 0.5 - 0.5 * jax.lax.erf(wide * -math.sqrt(0.5))  # not of the sign above, see `silu`
    density = jnp.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
    return ((g * (above + wide * density)).astype(x.dtype),)


_half_gelu.defvjp(lambda x: (gelu(x), x), _half_gelu_back)


@jax.custom_vjp
def silu(x: jax.Array) -> jax.Array:
    """``jax.nn.silu``, rounded once to the type of ``x``; for the gradient only ``x`` is kept.

    XLA would merge equal terms of function and gradient and so keep them, in float32; the gradient
    is therefore written with the sigmoid of -x.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * jax.nn.sigmoid(wide)).astype(x.dtype)


def _silu_back(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    rest = jax.nn.sigmoid(-wide)
    return ((g * ((1.0 - rest) * (1.0 + wide * rest))).astype(x.dtype),)


silu.defvjp(lambda x: (silu(x), x), _silu_back)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, dtype: Any
) -> jax.Array:
    """``scale * (x - mean) / sqrt(variance + epsilon) + bias`` over the last axis, in ``dtype``.

    As ``flax.linen.LayerNorm`` with the two-pass variance, but the gradient keeps two numbers of
    each row in place of several arrays as large as ``x``.
    """
    return _normed(x, scale, bias, epsilon, dtype)[0]


def _normed(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, dtype: Any
) -> tuple[jax.Array, Any]:
    given, x = x, x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = x.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + epsilon)
    axes = (None,) * (x.ndim - 1)
    y = (x - mean) * (inverse * scale[axes]) + bias[axes]
    return y.astype(dtype), (given, mean, inverse, scale)


def _layer_norm_back(epsilon: float, dtype: Any, saved: Any, g: jax.Array) -> tuple[jax.Array, ...]:
    del epsilon, dtype
    x, mean, inverse, scale = saved
    g, rows = g.astype(mean.dtype), tuple(range(x.ndim - 1))
    # Both signs turned, so that no term is one of the function's, see `silu`.
    down, inverse = g * -scale[(None,) * len(rows)], -inverse
    normal = (mean - x) * inverse
    along = (down * normal).mean(-1, keepdims=True)
    by_x = inverse * (down - down.mean(-1, keepdims=True) - normal * along)
    by_scale, by_bias = (g * normal).sum(rows), g.sum(rows)
    return by_x.astype(x.dtype), by_scale.astype(scale.dtype), by_bias.astype(scale.dtype)


layer_norm.defvjp(_normed, _layer_norm_back)


def random_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform ``uint32`` numbers by hashing a counter with a key: good enough to drop units.

    Two multiply-xorshift rounds (constants of the "lowbias32" family), one word of the key before
    each. Elementwise, so that XLA fuses it into what uses it and no array of bits is stored.
    """
    if math.prod(shape) >= 2**32:
        raise ValueError(f"shape {shape} has 2^32 elements or more; use smaller batches")
    words = jax.random.bits(key, (2,), jnp.uint32)
    x = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        x = x + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    x = (x ^ words[0]) * jnp.uint32(0x9E3779B1)
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = ((x ^ (x >> 15)) + words[1]) * jnp.uint32(0x735A2D97)
    return x ^ (x >> 15)


def kept(key: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array:
    """Which numbers dropout leaves, each dropped with probability ``rate``."""
    return random_bits(key, shape) >= jnp.uint32(round(rate * 2**32))


def drop(key: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    """Set each number to 0 with probability ``rate`` and divide the others by ``1 - rate``."""
    return jnp.where(kept(key, x.shape, rate), x / (1.0 - rate), jnp.zeros((), x.dtype))


class Dropout(nn.Module):
    """`drop` with a key of the ``dropout`` stream."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """Return ``x`` itself if ``deterministic``."""
        if deterministic or self.rate == 0.0:
            return x
        return drop(self.make_rng("dropout"), x, self.rate)


def num_blocks(num_rows: int, row_bytes: int) -> int:
    """Into how many equal blocks to cut work on rows so that a block of it stays in the caches.

    1 on accelerators. On a CPU what does not fit is written to memory and read again by every
    elementwise operation: attention over 104 tokens with 64 heads is 2 times faster in blocks.
    """
    if jax.default_backend() != "cpu":
        return 1
    fitting = max(CACHE_BYTES // row_bytes, 1)
    return next(n for n in range(1, num_rows + 1) if num_rows % n == 0 and num_rows // n <= fitting)
