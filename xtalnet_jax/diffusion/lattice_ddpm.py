"""Gaussian diffusion (DDPM) of the lattice matrix: forward noise, posterior, ancestral step.

Ho, Jain and Abbeel 2020 (arXiv:2006.11239), with a lattice state of any trailing shape. The
forward variance is ``(1 - alpha_bar_t) I``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from xtalnet_jax.diffusion.schedules import Schedules, at


def diffuse(
    clean: Float[Array, "n_graph *shape"],
    t: Int[Array, " n_graph"],
    epsilon: Float[Array, "n_graph *shape"],
    schedules: Schedules,
) -> Float[Array, "n_graph *shape"]:
    """Noise a clean lattice: ``L_t = sqrt(abar_t) L_0 + sqrt(1 - abar_t) epsilon``."""
    row = at(schedules, t, clean.ndim, clean.dtype)
    return jnp.sqrt(row.alpha_bars) * clean + jnp.sqrt(1 - row.alpha_bars) * epsilon


def epsilon_of(
    noisy: Float[Array, "n_graph *shape"],
    clean: Float[Array, "n_graph *shape"],
    t: Int[Array, " n_graph"],
    schedules: Schedules,
) -> Float[Array, "n_graph *shape"]:
    """Return the noise that `diffuse` must have added (t >= 1): what a perfect network predicts."""
    row = at(schedules, t, noisy.ndim, noisy.dtype)
    return (noisy - jnp.sqrt(row.alpha_bars) * clean) / jnp.sqrt(1 - row.alpha_bars)


def posterior(
    noisy: Float[Array, "n_graph *shape"],
    clean: Float[Array, "n_graph *shape"],
    t: Int[Array, " n_graph"],
    schedules: Schedules,
) -> tuple[Float[Array, "n_graph *shape"], Float[Array, "n_graph *ones"]]:
    """Mean and standard deviation of ``q(L_{t-1} | L_t, L_0)``, t >= 1 (equations 6 and 7)."""
    row = at(schedules, t, noisy.ndim, noisy.dtype)
    previous = at(schedules, t - 1, noisy.ndim, noisy.dtype)
    mean = (
        jnp.sqrt(previous.alpha_bars) * row.betas * clean
        + jnp.sqrt(row.alphas) * (1 - previous.alpha_bars) * noisy
    ) / (1 - row.alpha_bars)
    return mean, row.beta_sigmas


def ancestral_step(
    noisy: Float[Array, "n_graph *shape"],
    epsilon: Float[Array, "n_graph *shape"],
    t: Int[Array, " n_graph"],
    noise: Float[Array, "n_graph *shape"],
    schedules: Schedules,
) -> jax.Array:
    """Draw ``L_{t-1}`` from ``L_t`` and the predicted noise (algorithm 2).

    ``(L_t - beta_t / sqrt(1 - abar_t) epsilon) / sqrt(alpha_t) + beta_sigma_t noise``; no noise is
    added at t = 1, because ``beta_sigma_1 = 0``.
    """
    row = at(schedules, t, noisy.ndim, noisy.dtype)
    mean = (noisy - row.betas / jnp.sqrt(1 - row.alpha_bars) * epsilon) / jnp.sqrt(row.alphas)
    return mean + row.beta_sigmas * noise
