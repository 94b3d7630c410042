"""Noise tables of the reference's diffusion: T + 1 entries, index 0 is the clean end.

The lattice follows a cosine DDPM schedule, the coordinates a geometric ladder of wrapped normals
(Jiao et al. 2023, arXiv:2309.04475, section 4; Nichol and Dhariwal 2021, arXiv:2102.09672).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.diffusion import torus


class Schedules(NamedTuple):
    """Tables of a diffusion with T steps, indexed by t = 0..T; also one row of them, see `at`."""

    betas: jax.Array  # [n_step + 1] variance added to the lattice in step t; 0 at t = 0
    alphas: jax.Array  # [n_step + 1] 1 - beta
    alpha_bars: jax.Array  # [n_step + 1] product of the alphas up to t; 1 at t = 0
    beta_sigmas: jax.Array  # [n_step + 1] standard deviation of q(L_{t-1} | L_t, L_0)
    sigmas: jax.Array  # [n_step + 1] width of the wrapped normal; 0 at t = 0
    score_second_moments: jax.Array  # [n_step + 1] E[score^2] at sigma_t; 1 at t = 0

    @property
    def num_steps(self) -> int:
        """T, the number of diffusion steps."""
        return self.betas.shape[0] - 1


def cosine_betas(num_steps: int, s: float = 0.008) -> np.ndarray:
    """Betas of the cosine schedule, clipped to [1e-4, 0.9999], with a 0 in front, float64 [T + 1].

    ``beta_t = 1 - f(t) / f(t - 1)``, ``f(t) = cos^2((t / T + s) / (1 + s) * pi / 2)`` (Nichol and
    Dhariwal 2021, equation 17).
    """
    f = np.cos((np.arange(num_steps + 1) / num_steps + s) / (1 + s) * np.pi / 2) ** 2
    return np.concatenate([[0.0], np.clip(1 - f[1:] / f[:-1], 1e-4, 0.9999)])


def geometric_sigmas(
    num_steps: int, sigma_min: float = 0.005, sigma_max: float = 0.5
) -> np.ndarray:
    """Widths from ``sigma_min`` (t = 1) to ``sigma_max`` (t = T), a 0 in front, float64 [T + 1]."""
    return np.concatenate([[0.0], np.geomspace(sigma_min, sigma_max, num_steps)])


@lru_cache
def _tables(num_steps: int, sigma_min: float, sigma_max: float) -> tuple[np.ndarray, ...]:
    betas = cosine_betas(num_steps)
    alphas = 1 - betas
    alpha_bars = np.cumprod(alphas)
    variance = betas[1:] * (1 - alpha_bars[:-1]) / (1 - alpha_bars[1:])
    sigmas = geometric_sigmas(num_steps, sigma_min, sigma_max)
    moments = np.concatenate([[1.0], torus.score_second_moment(sigmas[1:])])
    beta_sigmas = np.concatenate([[0.0], np.sqrt(variance)])
    return betas, alphas, alpha_bars, beta_sigmas, sigmas, moments


def make_schedules(
    num_steps: int = 1000,
    sigma_min: float = 0.005,
    sigma_max: float = 0.5,
    score_second_moments: Any = None,
) -> Schedules:
    """Build the tables (in float64 on the host, cached; then JAX's default float type).

    Args:
        num_steps: T, at least 2.
        sigma_min: width of the coordinate noise at t = 1.
        sigma_max: width of the coordinate noise at t = T, at most 0.5.
        score_second_moments: [T + 1] table to use instead of the quadrature; a checkpoint of the
            reference carries its own Monte-Carlo estimate, which its weights have learned.

    Raises:
        ValueError: a table of the wrong length, or widths out of order or range.
    """
    if num_steps < 2:
        raise ValueError(f"num_steps is {num_steps}, expected at least 2")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"expected 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    schedules = Schedules(*(jnp.asarray(x) for x in _tables(num_steps, sigma_min, sigma_max)))
    if score_second_moments is None:
        return schedules
    if np.shape(score_second_moments) != (num_steps + 1,):
        raise ValueError(
            f"score_second_moments has shape {np.shape(score_second_moments)}, expected "
            f"({num_steps + 1},): one entry for each step and one for the clean end"
        )
    table = jnp.asarray(score_second_moments, schedules.sigmas.dtype)
    return schedules._replace(score_second_moments=table)


def at(schedules: Schedules, t: jax.Array, ndim: int, dtype: Any) -> Schedules:
    """Return the entries at step ``t`` [n_graph], shaped [n_graph, 1, ...] with ``ndim`` axes."""
    shape = t.shape + (1,) * (ndim - t.ndim)
    return Schedules(*(table[t].reshape(shape).astype(dtype) for table in schedules))
