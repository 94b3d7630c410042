"""Parameter-free features against their formulas, one number at a time."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtalnet_jax.models import embeddings


def test_time_embedding_by_hand():
    out = embeddings.time_embedding(jnp.array([3, 1000]), 8)
    rates = [10000 ** (-k / 3) for k in range(4)]
    for row, t in zip(out, (3, 1000)):
        expected = [math.sin(t * f) for f in rates] + [math.cos(t * f) for f in rates]
        np.testing.assert_allclose(row, expected, atol=1e-4)


@pytest.mark.shared
@pytest.mark.parametrize("dim", [32, 256])
def test_time_embedding_of_the_reference(golden, dim):
    file = np.load(golden / "schedules.npz")
    out = embeddings.time_embedding(jnp.asarray(file["time_t"], jnp.int32), dim)
    np.testing.assert_allclose(out, file[f"time_emb_{dim}"], atol=1.2e-4)


def test_fourier_differences_by_hand():
    d = jnp.array([0.1, -0.4, 0.25])
    sin, cos = embeddings.fourier_differences(d, 5)
    assert sin.shape == (15,)
    for axis, k in itertools.product(range(3), range(5)):
        phase = 2 * math.pi * k * float(d[axis])
        assert float(sin[5 * axis + k]) == pytest.approx(math.sin(phase), abs=1e-5)
        assert float(cos[5 * axis + k]) == pytest.approx(math.cos(phase), abs=1e-5)
    odd, even = embeddings.fourier_differences(-d, 5)
    np.testing.assert_array_equal(odd, -sin)
    np.testing.assert_array_equal(even, cos)


def test_log_fourier_resolves_a_step_of_the_grid():
    """Two angles 0.02 degrees apart differ clearly, and far ones are not taken for one another."""
    two_theta = np.arange(5, 90, 0.02)
    position = jnp.asarray(2 * np.sin(np.deg2rad(two_theta / 2)) / 1.54184)
    features = np.asarray(embeddings.log_fourier(position, 64, 0.25, 1000.0))
    step = np.linalg.norm(np.diff(features, axis=0), axis=1)
    assert step.min() > 1.0
    some = features[::50]
    distance = np.linalg.norm(some[:, None] - some[None], axis=-1) + 99 * np.eye(len(some))
    assert distance.min() > 3.0


def test_nearest_distance_is_the_nearest():
    rng = np.random.default_rng(0)
    lattice = 5 * np.eye(3) + rng.normal(size=(40, 3, 3)) * 0.8
    difference = rng.uniform(-2, 2, (40, 3))
    images = np.stack(np.meshgrid(*[np.arange(-5, 6)] * 3), -1).reshape(-1, 3)
    cart = np.einsum("bni,bij->bnj", difference[:, None] + images[None], lattice)
    expected = np.linalg.norm(cart, axis=-1).min(1)
    metric = jnp.asarray(lattice @ lattice.swapaxes(1, 2), jnp.float32)
    found = embeddings.nearest_distance(jnp.asarray(difference, jnp.float32), metric)
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_nearest_distance_has_a_gradient_at_zero():
    grad = jax.grad(lambda d: embeddings.nearest_distance(d, jnp.eye(3)))
    assert not grad(jnp.zeros(3)).any()
    np.testing.assert_allclose(grad(jnp.array([0.3, 0.0, 1.0])), [1.0, 0, 0], atol=1e-6)


def test_radial_basis_peaks_at_its_centres():
    centres = jnp.asarray(np.geomspace(0.7, 12.0, 6))
    basis = embeddings.radial_basis(centres, 6)
    np.testing.assert_allclose(jnp.diagonal(basis), 1.0, rtol=1e-5)
    np.testing.assert_allclose(basis[0, 1:3], np.exp([-0.5, -2.0]), rtol=1e-4)
    assert embeddings.radial_basis(centres, 0).shape == (6, 0)


def test_intensity_features():
    values = jnp.array([0.0, 0.01, 1.0])
    out = embeddings.intensity_features(values)
    np.testing.assert_allclose(out[:, 0], values)
    np.testing.assert_allclose(out[1:, 1], [0.1, 1.0], rtol=1e-4)
    np.testing.assert_allclose(out[:, 2], [0.0, 1 + math.log10(0.011) / 3, 1.0], atol=2e-4)
    slope = jax.jacobian(embeddings.intensity_features)(jnp.array([0.0, -1e-3]))
    assert bool(jnp.isfinite(slope).all())


def test_fan_in_uniform_is_the_default_of_a_torch_linear_layer():
    kernel = embeddings.fan_in_uniform()(jax.random.key(0), (400, 300))
    assert 0.99 / 20 < float(jnp.abs(kernel).max()) <= 1 / 20
    assert float(kernel.std()) == pytest.approx(1 / 20 / math.sqrt(3), rel=0.01)
