import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtalnet_jax.evaluation.agreement import (
    cosine_similarity,
    cross_correlation_similarity,
    r_wp,
    scale_factor,
)

RNG = np.random.default_rng(0)
OBSERVED = RNG.uniform(1.0, 5.0, 50)
CALCULATED = RNG.uniform(1.0, 5.0, 50)


def test_r_wp_known_values():
    assert r_wp(np.array([3.0, 4.0]), np.array([3.0, 4.0])) == 0.0
    assert r_wp(np.array([3.0, 4.0]), np.array([0.0, 4.0])) == pytest.approx(0.6)
    assert r_wp(OBSERVED, np.zeros(50)) == pytest.approx(1.0)
    # 1/sigma^2 weights: sqrt((1*1 + 4*4) / (1*9 + 4*16))
    weighted = r_wp(np.array([3.0, 4.0]), np.array([2.0, 6.0]), weight=np.array([1.0, 4.0]))
    assert weighted == pytest.approx(np.sqrt(17 / 73))


def test_background_cannot_flatter():
    background = np.full(50, 100.0)
    observed, calculated = OBSERVED + background, CALCULATED + background
    assert r_wp(observed, calculated) < 0.05
    assert r_wp(observed, calculated, background=background) == pytest.approx(
        r_wp(OBSERVED, CALCULATED)
    )


def test_fitted_scale_is_the_minimum():
    fitted = r_wp(OBSERVED, CALCULATED, fit_scale=True)
    best = scale_factor(OBSERVED, CALCULATED)
    assert fitted == pytest.approx(r_wp(OBSERVED, best * CALCULATED))
    assert fitted < r_wp(OBSERVED, 1.01 * best * CALCULATED)
    assert fitted < r_wp(OBSERVED, 0.99 * best * CALCULATED)
    # Pythagoras: the residual of the best multiple is the sine of the angle between the profiles.
    assert fitted**2 + cosine_similarity(OBSERVED, CALCULATED) ** 2 == pytest.approx(1.0)


def test_zero_weight_removes_a_point():
    weight = np.ones(50)
    weight[7] = 0.0
    spoiled = CALCULATED.copy()
    spoiled[7] = 1e6
    assert r_wp(OBSERVED, spoiled, weight) == pytest.approx(r_wp(OBSERVED, CALCULATED, weight))


def test_cosine_known_values():
    assert cosine_similarity(OBSERVED, 3 * OBSERVED) == pytest.approx(1.0)
    assert cosine_similarity(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 0.0
    assert cosine_similarity(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(0.5**0.5)
    assert cosine_similarity(np.zeros(4), np.ones(4)) == 0.0


def spike(position, num_bins=101):
    return np.eye(num_bins)[position]


@pytest.mark.parametrize("shift", [0, 1, 4, 9, 10, 30, -4])
def test_cross_correlation_of_two_spikes_is_the_triangle(shift):
    similarity = cross_correlation_similarity(spike(50), spike(50 + shift), step=0.1)
    assert similarity == pytest.approx(max(1 - abs(shift) * 0.1, 0.0), abs=1e-12)


def test_cross_correlation_is_the_double_sum():
    step, half_width = 0.1, 0.75
    offset = (np.arange(50)[:, None] - np.arange(50)[None, :]) * step
    w = np.maximum(1 - np.abs(offset) / half_width, 0.0)
    a, b = OBSERVED, CALCULATED
    expected = a @ w @ b / np.sqrt((a @ w @ a) * (b @ w @ b))
    assert cross_correlation_similarity(a, b, step, half_width) == pytest.approx(expected)


def test_narrow_triangle_is_the_cosine():
    similarity = cross_correlation_similarity(OBSERVED, CALCULATED, step=0.1, half_width=0.05)
    assert similarity == pytest.approx(cosine_similarity(OBSERVED, CALCULATED))


def test_the_ends_of_the_range_do_not_meet():
    assert cross_correlation_similarity(spike(0), spike(100), 0.1) == pytest.approx(0.0, abs=1e-12)


FUNCTIONS = [
    lambda a, b: r_wp(a, b),
    lambda a, b: r_wp(a, b, fit_scale=True),
    lambda a, b: cosine_similarity(a, b),
    lambda a, b: cross_correlation_similarity(a, b, 0.1),
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_jax_agrees_with_numpy_and_batches(function):
    a, b = np.stack([OBSERVED, CALCULATED]), np.stack([CALCULATED, CALCULATED])
    expected = [function(x, y) for x, y in zip(a, b)]
    np.testing.assert_allclose(function(a, b), expected, atol=1e-12)
    result = jax.jit(function)(jnp.asarray(a), jnp.asarray(b))
    assert isinstance(result, jax.Array)
    np.testing.assert_allclose(result, expected, atol=2e-4)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("case", ["equal", "no model", "nothing measured"])
def test_gradients_are_finite_where_roots_and_ratios_vanish(function, case):
    x = jnp.asarray(OBSERVED)
    a = jnp.zeros_like(x) if case == "nothing measured" else x
    b = jnp.zeros_like(x) if case == "no model" else x
    value, gradient = jax.value_and_grad(function, argnums=1)(a, b)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_nonsense_widths_are_refused():
    with pytest.raises(ValueError, match="half_width"):
        cross_correlation_similarity(OBSERVED, OBSERVED, step=0.1, half_width=0.0)
