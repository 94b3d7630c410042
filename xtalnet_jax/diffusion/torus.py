"""The wrapped normal distribution on the circle of length 1: density, score, moments, samples.

A fractional coordinate lives on R/Z. The normal distribution wrapped onto it is
``p(x) = sum_k N(x + k; 0, sigma^2)`` (Jing et al. 2022, arXiv:2206.01729; Jiao et al. 2023,
arXiv:2309.04475, appendix B). Everything here acts on each component alone. *Score* is grad log p.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NUM_IMAGES = 5
"""Periodic images on either side. At sigma = 0.5 the first one left out weighs exp(-60)."""


def wrap(displacement: Any) -> Any:
    """Return the shortest representative of a fractional displacement, in [-1/2, 1/2].

    Example:
        >>> wrap(np.array([0.75, -0.25, 2.0]))
        array([-0.25, -0.25,  0.  ])
    """
    xp = jnp if isinstance(displacement, jax.Array) else np
    return displacement - xp.round(displacement)


def _image_logits(x: Any, sigma: Any) -> tuple[Any, Any, Any]:
    """Return the array module, the images x + k and their Gaussian exponents, [..., 2K+1]."""
    xp = jnp if isinstance(x, jax.Array) or isinstance(sigma, jax.Array) else np
    images = xp.arange(-NUM_IMAGES, NUM_IMAGES + 1)
    shifted = wrap(x)[..., None] + images.reshape((1,) * xp.ndim(x) + (-1,)).astype(x.dtype)
    return xp, shifted, -0.5 * (shifted / sigma[..., None]) ** 2


def log_density(x: Any, sigma: Any) -> Any:
    """Log density of the wrapped normal with mean 0.

    Args:
        x: positions on the circle of length 1, any shape.
        sigma: standard deviation before wrapping, 0 < sigma <= 0.5, same number of axes as ``x``.

    Returns:
        log p(x), of the broadcast shape; NumPy in, NumPy out.
    """
    xp, _, logits = _image_logits(x, sigma)
    top = logits.max(-1)
    total = xp.exp(logits - top[..., None]).sum(-1)
    return xp.log(total) + top - xp.log(sigma) - 0.5 * float(np.log(2 * np.pi))


def score(x: Any, sigma: Any) -> Any:
    """Score d/dx log p(x) of the wrapped normal with mean 0.

    ``-sum_k w_k (x + k) / sigma^2`` with softmax weights w: finite for every sigma, where the ratio
    of sums is 0/0 at small sigma away from the integers. The reference's ``d_log_p`` is minus this.

    Args:
        x: positions on the circle of length 1, any shape.
        sigma: standard deviation before wrapping, 0 < sigma <= 0.5, same number of axes as ``x``.

    Returns:
        The score, of the broadcast shape; NumPy in, NumPy out.
    """
    xp, shifted, logits = _image_logits(x, sigma)
    weight = xp.exp(logits - logits.max(-1)[..., None])
    mean_displacement = (weight * shifted).sum(-1) / weight.sum(-1)
    return -mean_displacement / sigma**2


def score_second_moment(sigma: np.ndarray, num_points: int = 1024) -> np.ndarray:
    """E[score^2] under the wrapped normal, by the trapezoid rule in float64 on the host.

    The integrand is smooth and periodic, so the rule converges exponentially; ``num_points`` must
    resolve the smallest sigma (the spacing at most sigma / 4). For sigma -> 0 the value is
    1 / sigma^2.

    Raises:
        ValueError: a sigma lies outside the range that the rule and the images resolve.

    Example:
        >>> float(score_second_moment(np.array([0.01]))[0].round(3))
        10000.0
    """
    sigma = np.atleast_1d(np.asarray(sigma, np.float64))
    if sigma.size and not (sigma.min() * num_points >= 4 and sigma.max() <= 0.5):
        raise ValueError(
            f"sigma spans {sigma.min():g} to {sigma.max():g}, expected {4 / num_points:g} to 0.5: "
            "raise num_points for a smaller sigma"
        )
    half = np.linspace(0.0, 0.5, num_points // 2 + 1)  # the integrand is even
    weight = np.full(half.shape, 2.0 / num_points)
    weight[[0, -1]] /= 2
    density = np.exp(log_density(half[None], sigma[:, None]))
    return (density * score(half[None], sigma[:, None]) ** 2 * weight[None]).sum(-1)


def sample(key: jax.Array, sigma: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw from the wrapped normal with mean 0, in [0, 1), with the dtype of ``sigma``.

    ``sigma`` is a scalar or has the axes of ``shape``.
    """
    return (sigma * jax.random.normal(key, shape, sigma.dtype)) % 1.0
