"""The same mathematics in the form that is quick on the machine at hand.

Measured on a processor with bfloat16 matrix units (jax 0.10): a product of bfloat16 operands that
accumulates *into float32* runs 2.5 to 5 times faster than in float32, but one that returns
bfloat16, or that contracts the rows of two matrices, is slower than float32. With a unit axis
before the rows, contracted as well, the latter is quick again (2.0 to 2.8 times float32). Random
bits of JAX's own generators cost 15 times what it costs to apply them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

CACHE_BYTES = 4_000_000
"""Of one array that several operations go over in turn, see `num_blocks`."""


@dataclasses.dataclass(frozen=True)
class Activation:
    """An elementwise function, rounded once to the type of its input.

    For the gradient only the input is kept, and the function computed again.

    Attributes:
        curve: its value and its slope at numbers of any type, in float32 at least.
    """

    curve: Callable[[jax.Array], tuple[jax.Array, jax.Array]]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the function."""
        return _activated(self, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _activated(activation: Activation, x: jax.Array) -> jax.Array:
    return activation.curve(x)[0].astype(x.dtype)


def _activated_back(activation: Activation, x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    return ((g * activation.curve(later(x, g))[1]).astype(x.dtype),)


_activated.defvjp(lambda activation, x: (_activated(activation, x), x), _activated_back)


def later(x: jax.Array, g: jax.Array) -> jax.Array:
    """``x``, which XLA takes for something that is there with ``g`` only, what comes back.

    What a gradient computes of ``x`` alone XLA would find equal to what the function has computed,
    or compute as soon as ``x`` is there, and hold from then on: even a number of each row spread
    over the row, and arrays of zeros.
    """
    if g.size == 0:
        return x
    return x + jnp.where(g.reshape(-1)[0] > 0, 0.0, -0.0).astype(x.dtype)


def behind(x: jax.Array, other: jax.Array | None) -> jax.Array:
    """``x``; the gradient is through with ``x`` before it comes to what made ``other``, if given.

    Parts that do not depend on each other XLA would take through the gradient side by side, and
    hold what it computes for all of them at once.
    """
    return x if other is None else _behind(x, other)


@jax.custom_vjp
def _behind(x: jax.Array, other: jax.Array) -> jax.Array:
    return x


def _behind_back(other: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    return g, later(jnp.zeros_like(other), g)


_behind.defvjp(lambda x, other: (x, other), _behind_back)


def _silu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = _wide(x)
    share = jax.nn.sigmoid(x)
    return x * share, share * (1.0 + x * (1.0 - share))


def _gelu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = _wide(x)
    below = 0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5))
    return x * below, below + x * jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


silu = Activation(_silu)
"""``jax.nn.silu``."""

gelu = Activation(_gelu)
"""GELU in its exact form, by erf: ``jax.nn.gelu`` takes erfc, which costs several passes."""


def dot_general(
    lhs: jax.Array,
    rhs: jax.Array,
    dimension_numbers: Any,
    precision: Any = None,
    *,
    of: Activation | None = None,
    **kwargs: Any,
) -> jax.Array:
    """``lax.dot_general`` for ``flax.linen.Dense``: last axis of ``lhs`` with the first of ``rhs``.

    On a CPU only the gradient is written otherwise than that of ``lax.dot_general``, for which XLA
    would transpose what comes back; of bfloat16 the result is float32, and what comes back is
    rounded to bfloat16 in both gradients. With ``of`` the left operand is that function of ``lhs``,
    and on a CPU it is not kept for the gradient.
    """
    if lhs.dtype != rhs.dtype or precision is not None or jax.default_backend() != "cpu":
        lhs = lhs if of is None else of(lhs)
        return jax.lax.dot_general(lhs, rhs, dimension_numbers, precision, **kwargs)
    return _product(of, lhs, rhs)


def product(x: jax.Array, w: jax.Array, dtype: Any, of: Activation | None = None) -> jax.Array:
    """``of(x) @ w`` of operands rounded to ``dtype``, by `dot_general`."""
    dims = (((x.ndim - 1,), (0,)), ((), ()))
    return dot_general(x.astype(dtype), w.astype(dtype), dims, of=of)


def _dot(x: jax.Array, w: jax.Array, axes: Any) -> jax.Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jax.lax.dot_general(x, w, (axes, ((), ())), preferred_element_type=wide)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(of: Activation | None, x: jax.Array, w: jax.Array) -> jax.Array:
    y = _dot(_rows(x if of is None else of(x)), w, ((1,), (0,)))
    return y.reshape(*x.shape[:-1], w.shape[1])


def _product_back(
    of: Activation | None, saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    g = _rows(g.astype(w.dtype))
    left, slope = (x, None) if of is None else of.curve(later(x, g))
    left = _rows(left.astype(x.dtype))
    dx = _dot(g, w, ((1,), (1,))).reshape(x.shape)
    half = x.dtype == jnp.bfloat16
    dw = _dot(left[None], g[None], ((0, 1), (0, 1))) if half else _dot(left, g, ((0,), (0,)))
    dx = dx if slope is None else dx * slope
    return dx.astype(x.dtype), dw.astype(w.dtype)


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


_product.defvjp(lambda of, x, w: (_product(of, x, w), (x, w)), _product_back)


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
    x, mean, inverse, scale = (later(a, g) for a in saved)
    g, rows = g.astype(mean.dtype), tuple(range(x.ndim - 1))
    down = g * scale[(None,) * len(rows)]
    normal = (x - mean) * inverse
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
