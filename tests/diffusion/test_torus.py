import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtalnet_jax.diffusion import torus

SIGMAS = [0.005, 0.02, 0.1, 0.25, 0.5]
CIRCLE = np.linspace(-1.0, 1.0, 401)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_score_is_the_gradient_of_the_log_density_everywhere(sigma):
    # away from the half-way point, where at small sigma the score jumps between two images
    x = jnp.asarray(CIRCLE[np.abs(np.abs(torus.wrap(CIRCLE)) - 0.5) > 1e-3], jnp.float32)
    s = jnp.full_like(x, sigma)
    gradient = jax.vmap(jax.grad(torus.log_density))(x, s)
    np.testing.assert_allclose(torus.score(x, s), gradient, rtol=2e-5, atol=2e-5 / sigma)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_score_in_float64_agrees_with_differences_of_the_log_density(sigma):
    x, step = np.linspace(-0.49, 0.49, 99), 1e-3 * sigma
    s = np.full_like(x, sigma)
    difference = (torus.log_density(x + step, s) - torus.log_density(x - step, s)) / (2 * step)
    np.testing.assert_allclose(torus.score(x, s), difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_density_integrates_to_one(sigma):
    x = np.linspace(0, 1, 2000, endpoint=False)
    assert np.exp(torus.log_density(x, np.full_like(x, sigma))).mean() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_everything_is_finite_and_periodic_with_finite_second_gradients(sigma):
    x = jnp.asarray(CIRCLE, jnp.float32)
    s = jnp.full_like(x, sigma)
    score = torus.score(x, s)
    assert np.isfinite(score).all()
    assert np.isfinite(jax.vmap(jax.grad(torus.score))(x, s)).all()
    assert np.isfinite(jax.vmap(jax.grad(torus.score, argnums=1))(x, s)).all()
    np.testing.assert_allclose(torus.score(-x, s), -score, rtol=1e-5, atol=1e-6 / sigma)
    inside = np.abs(np.abs(torus.wrap(CIRCLE)) - 0.5) > 1e-3
    moved = torus.score(x + 3, s)
    np.testing.assert_allclose(moved[inside], score[inside], rtol=1e-3, atol=1e-6 / sigma**2)


def test_score_is_minus_the_references_d_log_p(golden):
    data = np.load(golden / "wrapped_normal.npz")
    x, sigma = (np.broadcast_to(data[k], data["dlogp_f64"].shape) for k in ("x", "sigma"))
    finite = np.isfinite(data["dlogp_f64"])
    assert 0.3 < finite.mean() < 1
    # the reference sums 21 images of sigma <= 0.5; where they are finite they are exact
    ours = -torus.score(x.astype(np.float64), sigma.astype(np.float64))
    scale = 1 / sigma[finite]
    assert np.abs((ours[finite] - data["dlogp_f64"][finite]) / scale).max() < 1e-6
    assert np.isfinite(ours).all()

    z, train_sigma = data["train_z"], data["train_sigma"][None].repeat(64, 0)
    train = -torus.score(jnp.asarray(z * train_sigma), jnp.asarray(train_sigma))
    error = (np.asarray(train) - data["train_dlogp_f32"]) * train_sigma
    assert np.abs(error).max() < 2e-5


def test_second_moment_against_the_quadrature_and_a_sample(golden):
    data = np.load(golden / "schedules.npz")
    ours = torus.score_second_moment(data["sigmas"][1:].astype(np.float64))
    np.testing.assert_allclose(ours, data["sigmas_norm_quadrature_f64"][1:], rtol=1e-6)


@pytest.mark.parametrize("sigma", [0.01, 0.2, 0.5])
def test_second_moment_and_density_describe_the_samples(sigma):
    draws = torus.sample(jax.random.key(0), jnp.float32(sigma), (40_000,))
    assert draws.dtype == jnp.float32
    assert ((draws >= 0) & (draws < 1)).all()
    square = torus.score(draws, jnp.full_like(draws, sigma)) ** 2
    error = square.std() / np.sqrt(square.size)
    assert abs(square.mean() - torus.score_second_moment(np.array([sigma]))[0]) < 4.5 * error
    # E[cos 2 pi x] of a wrapped normal is exp(-2 pi^2 sigma^2); E[sin] = 0
    wave = np.exp(2j * np.pi * np.asarray(draws))
    expected = np.exp(-2 * np.pi**2 * sigma**2)
    for value, target in ((wave.real, expected), (wave.imag, 0.0)):
        assert abs(value.mean() - target) < 4.5 * value.std() / np.sqrt(value.size)


@pytest.mark.parametrize("sigma", [0.001, 0.6])
def test_second_moment_refuses_what_it_cannot_resolve(sigma):
    with pytest.raises(ValueError, match="sigma spans"):
        torus.score_second_moment(np.array([sigma]))
