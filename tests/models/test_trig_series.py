"""Interpolated trigonometric series against their sums."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtalnet_jax.models import trig_series
from xtalnet_jax.models.embeddings import fourier_differences
from xtalnet_jax.models.trig_series import grid_size, grid_values, interpolate, locate

WIDTHS = (1, 4, 128)
EDGES = np.array([0.0, 0.5, 1.0, -1.0, -1e-9, 1.0 - 2**-24, -0.25, 1.75])


def _points(count: int = 200) -> np.ndarray:
    x = np.random.default_rng(0).uniform(-1, 1, (count, 3))
    x[: len(EDGES)] = EDGES[:, None]
    return x.astype(np.float32)


def _sums(x: np.ndarray, num_freqs: int) -> tuple[np.ndarray, np.ndarray]:
    """Sines and cosines in float64, [n, 3 num_freqs]."""
    phase = 2 * np.pi * x.astype(float)[..., None] * np.arange(num_freqs)
    return np.sin(phase).reshape(len(x), -1), np.cos(phase).reshape(len(x), -1)


@pytest.mark.parametrize("num_freqs", WIDTHS)
def test_values_are_the_sums(num_freqs: int) -> None:
    to_sin, to_cos = jax.random.normal(jax.random.key(1), (2, 3 * num_freqs, 5))
    x = _points()
    sin, cos = _sums(x, num_freqs)
    found = interpolate(locate(jnp.asarray(x), num_freqs), grid_values(to_sin, to_cos))
    scale = (jnp.abs(to_sin) + jnp.abs(to_cos)).sum(0)
    wanted = sin @ np.asarray(to_sin) + cos @ np.asarray(to_cos)
    assert (np.abs(found - wanted) / np.asarray(scale)).max() < 4e-6


def test_each_wave_is_told_from_the_others() -> None:
    """Unit coefficients one at a time."""
    num_freqs = 16
    one, x = jnp.eye(3 * num_freqs), _points()
    sin, cos = _sums(x, num_freqs)
    points = locate(jnp.asarray(x), num_freqs)
    for coefficients, wanted in (((one, 0 * one), sin), ((0 * one, one), cos)):
        np.testing.assert_allclose(
            interpolate(points, grid_values(*coefficients)), wanted, atol=8e-6
        )


def test_errors_are_less_than_those_of_sines_made_in_float32() -> None:
    """The figures that the module's first lines give."""
    num_freqs, x = 128, np.random.default_rng(0).uniform(-1, 1, (300, 3)).astype("f")
    one, (sin, _) = jnp.eye(3 * num_freqs), _sums(x, num_freqs)
    found = interpolate(locate(jnp.asarray(x), num_freqs), grid_values(one, 0 * one))
    direct, _ = fourier_differences(jnp.asarray(x), num_freqs)
    assert np.abs(found - sin).max() < 3e-5 < np.abs(direct - sin).max() < 8e-5


@pytest.mark.parametrize("num_freqs", WIDTHS)
def test_gradient_by_the_coefficients_is_the_transposed_sum(num_freqs: int) -> None:
    x = _points()
    g = np.random.default_rng(2).normal(size=(len(x), 5)).astype("f")
    points = locate(jnp.asarray(x), num_freqs)
    zero = jnp.zeros((3 * num_freqs, 5))
    back = jax.vjp(lambda *w: interpolate(points, grid_values(*w)), zero, zero)[1](jnp.asarray(g))
    scale = np.abs(g).sum(0)
    for found, waves in zip(back, _sums(x, num_freqs)):
        assert (np.abs(found - waves.T @ g) / scale).max() < 4e-6


def test_the_gradient_of_the_tables_is_the_transpose_of_reading_them() -> None:
    """Points with two leading axes, some of them in one place."""
    x = jnp.asarray(_points(24)).reshape(4, 6, 3).at[1].set(0.3)
    points = locate(x, 4)
    keys = jax.random.split(jax.random.key(0), 4)
    tables = tuple(
        jax.random.normal(key, (grid_size(4) + trig_series.WIDTH - 1, 5)) for key in keys[:3]
    )
    value, back = jax.vjp(lambda t: interpolate(points, t), tables)
    g = jax.random.normal(keys[3], value.shape)
    (by_tables,) = back(g)
    paired = sum(float((a * b).sum()) for a, b in zip(by_tables, tables))
    assert value.shape == (4, 6, 5)
    assert float((value * g).sum()) == pytest.approx(paired, rel=1e-5)


def test_no_gradient_reaches_the_points() -> None:
    tables = grid_values(jnp.ones((12, 2)), jnp.ones((12, 2)))
    by_x = jax.grad(lambda x: interpolate(locate(x, 4), tables).sum())(jnp.asarray(_points(9)))
    assert not by_x.any()
