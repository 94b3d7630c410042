"""How well a calculated pattern agrees with a measured one: pure functions of profiles.

Profiles are [..., n_bin] on one grid; the last axis is reduced. NumPy in, NumPy out; JAX in, JAX
out, with finite gradients also where the two are equal or one is zero.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def scale_factor(observed: Any, calculated: Any, weight: Any = None) -> Any:
    """Least-squares scale ``sum(w o c) / sum(w c^2)`` of c on o, [...]; 0 where c vanishes."""
    xp = _namespace(observed, calculated, weight)
    weight = xp.ones_like(observed) if weight is None else weight
    return _ratio(
        xp,
        (weight * observed * calculated).sum(-1),
        (weight * calculated * calculated).sum(-1),
    )


def r_wp(
    observed: Any,
    calculated: Any,
    weight: Any = None,
    background: Any = None,
    fit_scale: bool = False,
) -> Any:
    """Weighted profile R factor, as a fraction (0 = perfect).

    ``R_wp = sqrt( sum w (o - c)^2 / sum w (o - b)^2 )`` (Young, The Rietveld Method, 1993; with
    ``b = 0`` the usual one, with the background the one that a high background cannot flatter).

    Args:
        observed: [..., n_bin] measured intensities.
        calculated: [..., n_bin] calculated intensities, background included.
        weight: [..., n_bin], 1/sigma^2; None means 1. Zero leaves a point out.
        background: [..., n_bin] to take off the denominator (and, with ``fit_scale``, to keep out
            of the scaling); None means 0.
        fit_scale: scale ``calculated - background`` to ``observed - background`` first.

    Returns:
        [...]; 1 where the denominator vanishes.
    """
    xp = _namespace(observed, calculated, weight, background)
    weight = xp.ones_like(observed) if weight is None else weight
    background = xp.zeros_like(observed) if background is None else background
    signal, model = observed - background, calculated - background
    if fit_scale:
        model = scale_factor(signal, model, weight)[..., None] * model
    residual = (weight * (signal - model) ** 2).sum(-1)
    total = (weight * signal**2).sum(-1)
    return xp.where(total > 0, _safe_sqrt(xp, _ratio(xp, residual, total)), 1.0)


def cosine_similarity(a: Any, b: Any) -> Any:
    """Cosine of two profiles [..., n_bin]: 1 where they are proportional, 0 where one vanishes."""
    xp = _namespace(a, b)
    norm = _safe_sqrt(xp, (a * a).sum(-1)) * _safe_sqrt(xp, (b * b).sum(-1))
    return _ratio(xp, (a * b).sum(-1), norm)


def cross_correlation_similarity(
    a: Any, b: Any, step: float | int, half_width: float | int = 1.0
) -> Any:
    """Similarity of patterns that forgives small shifts of peaks, 0..1.

    ``S = c_ab / sqrt(c_aa c_bb)``, ``c_ab = sum_r w(r) sum_x a(x) b(x + r)`` with the triangle
    ``w(r) = max(1 - |r|/l, 0)`` (de Gelder, Wehrens & Hageman, J. Comput. Chem. 22, 273, 2001,
    eqs. 5-9).

    Args:
        a: [..., n_bin] intensities on an equidistant grid.
        b: [..., n_bin] intensities on the same grid.
        step: spacing of the grid, in the unit of ``half_width`` (degrees 2-theta).
        half_width: l, where the weight reaches 0; below ``step`` this is the cosine.

    Raises:
        ValueError: ``step`` or ``half_width`` is not positive.
    """
    if step <= 0 or half_width <= 0:
        raise ValueError(f"step={step}, half_width={half_width}; expected both to be positive")
    xp = _namespace(a, b)
    num_bins = a.shape[-1]
    offsets = np.arange(-(num_bins - 1), num_bins) * step
    kernel = np.maximum(1.0 - np.abs(offsets) / half_width, 0.0)
    length = 1 << int(np.ceil(np.log2(2 * num_bins)))
    transfer = xp.asarray(np.fft.rfft(np.roll(_pad(kernel, length), -(num_bins - 1))).real)

    def correlate(x: Any, y: Any) -> Any:
        spectrum = xp.fft.rfft(y, length) * transfer.reshape((1,) * (y.ndim - 1) + (-1,))
        return (x * xp.fft.irfft(spectrum, length)[..., :num_bins].astype(x.dtype)).sum(-1)

    norm = _safe_sqrt(xp, correlate(a, a)) * _safe_sqrt(xp, correlate(b, b))
    return _ratio(xp, correlate(a, b), norm)


def _pad(x: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([x, np.zeros(length - len(x))])


def _namespace(*arrays: Any) -> Any:
    return jnp if any(isinstance(x, jax.Array) for x in arrays) else np


def _safe_sqrt(xp: Any, x: Any) -> Any:
    """Square root whose value and gradient are 0 at 0 and below."""
    return xp.where(x > 0, xp.sqrt(xp.where(x > 0, x, 1.0)), 0.0)


def _ratio(xp: Any, numerator: Any, denominator: Any) -> Any:
    """``numerator / denominator``, 0 (with gradient 0) where the denominator is 0."""
    return xp.where(denominator > 0, numerator / xp.where(denominator > 0, denominator, 1.0), 0.0)
