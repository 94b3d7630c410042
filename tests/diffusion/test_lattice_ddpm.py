import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtalnet_jax.diffusion import lattice_ddpm
from xtalnet_jax.diffusion.schedules import make_schedules

SCHEDULES = make_schedules(50)


def test_posterior_is_bayes_rule_on_a_grid():
    """q(L_{t-1} | L_t, L_0) is proportional to q(L_t | L_{t-1}) q(L_{t-1} | L_0)."""
    clean, noisy = 3.0, 1.7
    for t in (2, 7, 30):
        beta, before = float(SCHEDULES.betas[t]), float(SCHEDULES.alpha_bars[t - 1])
        grid = np.linspace(-10, 10, 200_001)
        log = -((noisy - np.sqrt(1 - beta) * grid) ** 2) / (2 * beta)
        log -= (grid - np.sqrt(before) * clean) ** 2 / (2 * (1 - before))
        weight = np.exp(log - log.max())
        weight /= weight.sum()
        mean = (weight * grid).sum()
        std = np.sqrt((weight * (grid - mean) ** 2).sum())
        ones = jnp.ones((1, 1))
        ours = lattice_ddpm.posterior(noisy * ones, clean * ones, jnp.array([t]), SCHEDULES)
        np.testing.assert_allclose(np.ravel(ours), [mean, std], rtol=2e-4)


@pytest.mark.parametrize("t", [1, 2, 25, 49])
def test_ancestral_step_with_the_true_noise_is_the_posterior(t):
    key_clean, key_noise, key_step = jax.random.split(jax.random.key(t), 3)
    clean, epsilon, z = (jax.random.normal(k, (2, 3, 3)) for k in (key_clean, key_noise, key_step))
    steps = jnp.full(2, t)
    noisy = lattice_ddpm.diffuse(clean, steps, epsilon, SCHEDULES)
    np.testing.assert_allclose(
        lattice_ddpm.epsilon_of(noisy, clean, steps, SCHEDULES), epsilon, rtol=1e-3, atol=1e-3
    )
    mean, std = lattice_ddpm.posterior(noisy, clean, steps, SCHEDULES)
    step = lattice_ddpm.ancestral_step(noisy, epsilon, steps, z, SCHEDULES)
    np.testing.assert_allclose(step, mean + std * z, atol=2e-4)


def test_forward_marginal_is_what_single_steps_build_up():
    """Applying q(L_t | L_{t-1}) t times gives mean sqrt(abar) L_0 and variance 1 - abar."""
    clean, t = jnp.full((20_000, 1), 2.0), 12
    chain = clean
    for i in range(1, t + 1):
        beta = SCHEDULES.betas[i]
        noise = jax.random.normal(jax.random.key(i), clean.shape)
        chain = jnp.sqrt(1 - beta) * chain + jnp.sqrt(beta) * noise
    once = lattice_ddpm.diffuse(
        clean,
        jnp.full(len(clean), t),
        jax.random.normal(jax.random.key(99), clean.shape),
        SCHEDULES,
    )
    for a, b in ((chain, once), (chain**2, once**2)):
        error = jnp.sqrt((a.var() + b.var()) / a.size)
        assert abs(a.mean() - b.mean()) < 4.5 * error


def test_trailing_shape_is_free():
    state = jnp.ones((4, 6))
    out = lattice_ddpm.diffuse(state, jnp.full(4, 3), 0 * state, SCHEDULES)
    np.testing.assert_allclose(out, jnp.sqrt(SCHEDULES.alpha_bars[3]) * state, rtol=1e-6)
