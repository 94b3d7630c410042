"""Parameter-free features: of time, fractional differences, peaks and distances."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

_EXACT = jax.lax.Precision.HIGHEST

TORUS_PERIOD = np.float32(2 * np.pi)
"""2 pi as the reference rounds it. Its multiples are rounded to float32 as well, so that with
x64 enabled the network is the published one and not one that differs by 1e-5."""


def time_embedding(
    t: Num[Array, "*batch"], dim: int, dtype: Any = jnp.float32
) -> Float[Array, "*batch {dim}"]:
    """Sinusoids of a time: ``[sin(t f_k), cos(t f_k)]``, ``f_k = exp(-k ln(10^4) / (dim/2 - 1))``.

    The reference feeds the integer step 1..1000 without scaling; flow time in [0, 1] is to be
    multiplied by 1000 first. Source: Vaswani et al. 2017, section 3.5, in the form of DDPM.
    """
    half = dim // 2
    frequency = jnp.asarray(10000.0 ** (-np.arange(half) / (half - 1)), dtype)
    phase = t.astype(dtype)[..., None] * frequency.reshape((1,) * t.ndim + (half,))
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], -1)


def fourier_differences(
    difference: Float[Array, "*batch 3"], num_freqs: int
) -> tuple[Float[Array, "*batch d"], Float[Array, "*batch d"]]:
    """Sine and cosine of ``2 pi k difference`` for k = 0 .. num_freqs - 1 in each direction.

    Both are [..., 3 * num_freqs], the direction major (all k of x, then of y, of z). The sine part
    changes its sign when the difference does, the cosine part does not. Source: DiffCSP
    (arXiv 2309.04475), equation 9.
    """
    frequency = jnp.asarray(
        TORUS_PERIOD * np.arange(num_freqs, dtype=np.float32), difference.dtype
    ).reshape((1,) * difference.ndim + (num_freqs,))
    phase = (difference[..., None] * frequency).reshape(*difference.shape[:-1], 3 * num_freqs)
    return jnp.sin(phase), jnp.cos(phase)


def log_fourier(
    x: Float[Array, "*batch"], num: int, min_freq: float, max_freq: float
) -> Float[Array, "*batch {2*num}"]:
    """Sine and cosine of ``2 pi f x`` for ``num`` geometric frequencies from min to max.

    With x = 1/d the frequencies are lengths in angstrom: 0.25 is less than one turn over every
    pattern, and 1000 turns by 1.4 rad in 0.02 degrees of 2-theta (Cu K-alpha).
    """
    frequency = jnp.asarray(np.geomspace(min_freq, max_freq, num), x.dtype)
    phase = 2 * np.pi * x[..., None] * frequency.reshape((1,) * x.ndim + (num,))
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], -1)


def nearest_distance(
    difference: Float[Array, "*batch 3"], metric: Float[Array, "*batch 3 3"]
) -> Float[Array, "*batch"]:
    """Length (angstrom) of a fractional difference to its nearest periodic image.

    ``sqrt(min_n (x + n)^T G (x + n))`` over the 27 images around the wrapped difference, exact
    for a reduced cell. The gradient at distance 0 is 0.
    """
    shift = np.stack(np.meshgrid(*[[-1.0, 0.0, 1.0]] * 3, indexing="ij"), -1).reshape(-1, 3)
    wrapped = difference - jnp.round(difference)
    # |x + n|^2 = |x|^2 + 2 n.Gx + n.Gn: only the two small terms depend on the image.
    along = jnp.einsum("...ij,...j->...i", metric, wrapped, precision=_EXACT)
    shifts = jnp.asarray(shift, difference.dtype)
    mixed = jnp.matmul(along, shifts.T, precision=_EXACT)
    square = (along * wrapped).sum(-1)[..., None] + 2 * mixed
    square = square + jnp.einsum("ni,...ij,nj->...n", shifts, metric, shifts, precision=_EXACT)
    least = square.min(-1)
    positive = least > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, least, 1.0)), 0.0)


def radial_basis(distance: Float[Array, "*batch"], num: int) -> Float[Array, "*batch {num}"]:
    """Gaussians of log distance, centred from 0.7 to 12 angstrom, as wide as their spacing."""
    low, high = np.log(0.7), np.log(12.0)
    centre = jnp.asarray(np.linspace(low, high, num), distance.dtype)
    width = (high - low) / max(num - 1, 1)
    log_distance = jnp.log(jnp.maximum(distance, 0.1))[..., None]
    return jnp.exp(
        -0.5 * ((log_distance - centre.reshape((1,) * distance.ndim + (num,))) / width) ** 2
    )


def intensity_features(intensity: Float[Array, "*batch"]) -> Float[Array, "*batch 3"]:
    """``[I, sqrt(I), 1 + log10(I + 1e-3) / 3]`` of relative intensities: each in about 0..1.

    The square root goes with the structure factor and the logarithm with counting statistics, so
    weak lines are told apart. Finite gradient at I = 0.
    """
    safe = jnp.maximum(intensity, 0.0)
    return jnp.stack([safe, jnp.sqrt(safe + 1e-6), 1 + jnp.log10(safe + 1e-3) / 3], -1)


def fan_in_uniform(scale: float = 1.0) -> jax.nn.initializers.Initializer:
    """Uniform weights in ``+- scale / sqrt(fan_in)``: PyTorch's default of a linear layer."""
    return jax.nn.initializers.variance_scaling(scale**2 / 3.0, "fan_in", "uniform")
