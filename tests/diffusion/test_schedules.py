import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtalnet_jax.diffusion.schedules import Schedules, at, cosine_betas, make_schedules

NAMES = {
    "betas": "betas",
    "alphas": "alphas",
    "alpha_bars": "alphas_cumprod",
    "beta_sigmas": "beta_sigmas",
    "sigmas": "sigmas",
}


@pytest.mark.parametrize("name", NAMES)
def test_tables_equal_the_references(golden, name):
    # the reference takes 1 - f(t)/f(t-1) in float32, which leaves 1e-7 absolute: 1e-3 of a beta
    expected = np.load(golden / "schedules.npz")[NAMES[name]]
    np.testing.assert_allclose(getattr(make_schedules(), name), expected, rtol=1e-3, atol=1e-9)


def test_reference_scale_of_sampler20_too(golden):
    data = np.load(golden / "narrow_sampler20_small.npz")
    ours = make_schedules(20)
    np.testing.assert_allclose(ours.betas, data["sched/beta_scheduler.betas"], rtol=1e-4)
    np.testing.assert_allclose(ours.sigmas, data["sched/sigma_scheduler.sigmas"], rtol=1e-6)


def test_identities_of_the_tables():
    s = make_schedules(200)
    assert s.num_steps == 200
    for table in s:
        assert table.shape == (201,)
    assert s.betas[0] == 0
    assert s.alpha_bars[0] == 1
    assert s.sigmas[0] == 0
    assert s.beta_sigmas[1] == 0
    assert s.score_second_moments[0] == 1
    np.testing.assert_allclose(s.alpha_bars[1:] / s.alpha_bars[:-1], s.alphas[1:], rtol=1e-6)
    ratio = np.asarray(s.sigmas[2:] / s.sigmas[1:-1])
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    assert cosine_betas(1000).min() >= 0
    assert cosine_betas(1000)[1:].min() == 1e-4
    assert cosine_betas(1000).max() == 0.9999


def test_given_second_moments_and_what_is_refused(golden):
    table = np.load(golden / "schedules.npz")["sigmas_norm"]
    given = make_schedules(score_second_moments=table)
    np.testing.assert_array_equal(given.score_second_moments, table)
    with pytest.raises(ValueError, match=r"shape \(1001,\), expected \(501,\)"):
        make_schedules(500, score_second_moments=table)
    with pytest.raises(ValueError, match="num_steps is 1"):
        make_schedules(1)
    with pytest.raises(ValueError, match="sigma_min"):
        make_schedules(10, sigma_min=0.5, sigma_max=0.1)


def test_at_picks_rows_under_jit():
    s = make_schedules(10)
    t = jnp.array([1, 10])
    row = jax.jit(lambda t: at(s, t, 3, jnp.bfloat16))(t)
    assert isinstance(row, Schedules)
    assert row.sigmas.shape == (2, 1, 1)
    assert row.sigmas.dtype == jnp.bfloat16
    np.testing.assert_array_equal(row.sigmas.ravel(), s.sigmas[t].astype(jnp.bfloat16))
