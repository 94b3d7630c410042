"""Preparing patterns: identities, known answers, and what must be refused."""

import numpy as np
import pytest

from xtalnet_jax.pxrd import preprocess
from xtalnet_jax.pxrd.kalpha import strip_kalpha2
from xtalnet_jax.pxrd.pattern import CU_KALPHA, Pattern


def lines(angles, heights, x, fwhm=0.08):
    u = (x[:, None] - np.asarray(angles)) / (fwhm / 2)
    return (np.asarray(heights) / (1 + u**2) ** 2).sum(1)


@pytest.fixture
def pattern():
    x = 10 + 0.02 * np.arange(3501)
    y = 1000 * lines([20, 33, 47.5, 60], [1, 0.5, 0.8, 0.2], x, fwhm=0.2)
    return Pattern(x, y + 50, CU_KALPHA, np.sqrt(y + 50))


def test_normalise_spans_zero_to_one_and_scales_the_uncertainty(pattern):
    out = preprocess.normalise(pattern)
    assert out.intensity.min() == 0
    assert out.intensity.max() == 1
    scale = np.ptp(pattern.intensity)
    np.testing.assert_allclose(out.sigma * scale, pattern.sigma)
    with pytest.raises(ValueError, match="constant pattern"):
        preprocess.normalise(pattern._replace(intensity=np.ones(3501)))


def test_crop_keeps_the_range(pattern):
    out = preprocess.crop(pattern, 30, 40)
    assert out.two_theta[0] >= 30 > out.two_theta[0] - 0.03
    assert len(out.two_theta) == len(out.intensity) == len(out.sigma)
    with pytest.raises(ValueError, match="no points between 100 and 120"):
        preprocess.crop(pattern, 100, 120)


def test_resample_on_its_own_grid_changes_nothing(pattern):
    out = preprocess.resample(pattern, 0.02)
    np.testing.assert_allclose(out.two_theta, pattern.two_theta, atol=1e-9)
    np.testing.assert_allclose(out.intensity, pattern.intensity, rtol=1e-6)


@pytest.mark.parametrize("step", [0.007, 0.05, 0.13])
def test_resample_keeps_the_area(pattern, step):
    out = preprocess.resample(pattern, step)
    area = np.trapezoid(pattern.intensity, pattern.two_theta)
    assert np.trapezoid(out.intensity, out.two_theta) == pytest.approx(area, rel=3e-3)


def test_resample_averages_the_noise(pattern):
    noisy = pattern._replace(intensity=100 + np.random.default_rng(0).standard_normal(3501))
    noisy = noisy._replace(sigma=np.ones(3501))
    out = preprocess.resample(noisy, 0.2)
    assert out.intensity[1:-1].std() == pytest.approx(np.sqrt(0.1), rel=0.15)
    np.testing.assert_allclose(out.sigma, np.sqrt(0.1), rtol=1e-6)
    with pytest.raises(ValueError, match="cannot resample"):
        preprocess.resample(pattern, 0.0)


@pytest.mark.parametrize("method", ["arpls", "asls"])
def test_background_is_found_under_the_peaks(pattern, method):
    expected = 90 + 200 * np.exp(-pattern.two_theta / 20)
    raised = pattern.intensity - 50 + expected
    if method == "arpls":  # it learns from the noise what lies above the background
        raised = np.random.default_rng(1).poisson(raised).astype(float)
    raised = pattern._replace(intensity=raised)
    fit = preprocess.background(raised, method=method)
    assert np.median(np.abs(fit - expected)) < 3
    left = preprocess.subtract_background(raised, method=method)
    np.testing.assert_allclose(left.intensity, raised.intensity - fit)
    with pytest.raises(ValueError, match="'snip' is unknown"):
        preprocess.background(pattern, method="snip")


def test_kalpha2_stripping_inverts_its_addition():
    x = 20 + 0.01 * np.arange(9001)
    alpha1, alpha2 = 1.540593, 1.544427
    angles, heights = np.array([25.0, 50.0, 75.0, 105.0]), np.array([1, 0.7, 0.5, 0.9])
    second = 2 * np.rad2deg(np.arcsin(np.sin(np.deg2rad(angles / 2)) * alpha2 / alpha1))
    # The second line is the first on a stretched axis: wider by d(2theta2) / d(2theta1).
    stretch = np.tan(np.deg2rad(second / 2)) / np.tan(np.deg2rad(angles / 2))
    both = lines(angles, heights, x)
    for a, h, s in zip(second, heights, stretch):
        both = both + lines([a], [h / 2], x, fwhm=0.08 * s)
    out = strip_kalpha2(Pattern(x, both, 1.5418), alpha1, alpha2)
    np.testing.assert_allclose(out.intensity, lines(angles, heights, x), atol=0.02)
    assert out.wavelength == alpha1
    with pytest.raises(ValueError, match="alpha1 < alpha2"):
        strip_kalpha2(Pattern(x, both, 1.5418), alpha2, alpha1)


def test_merge_points_sorts_and_averages():
    x, y, sigma = preprocess.merge_points([3, 1, 2, 1], [30.0, 10, 20, 14], [1.0, 3, 1, 4])
    np.testing.assert_array_equal(x, [1, 2, 3])
    np.testing.assert_array_equal(y, [12, 20, 30])
    np.testing.assert_allclose(sigma, [2.5, 1, 1])


def test_other_axes_become_angles():
    angles = np.array([10.0, 45.0, 120.0])
    d = 0.9 / (2 * np.sin(np.deg2rad(angles / 2)))
    np.testing.assert_allclose(preprocess.two_theta_from_d(d, 0.9), angles)
    np.testing.assert_allclose(preprocess.two_theta_from_q(2 * np.pi / d, 0.9), angles)
    with pytest.raises(ValueError, match="cannot be reached"):
        preprocess.two_theta_from_q([30.0], 1.5)
    with pytest.raises(ValueError, match="must be positive"):
        preprocess.two_theta_from_d([1.0, 0.0], 1.5)


def test_background_where_no_point_weighs_enough(pattern, monkeypatch):
    """arpls ends in a singular system on some patterns without noise (rounding decides)."""
    from pybaselines import Baseline

    def singular(*args, **kwargs):
        raise np.linalg.LinAlgError("leading minor not positive definite")

    expected = preprocess.background(pattern, method="asls")
    monkeypatch.setattr(Baseline, "arpls", singular)
    np.testing.assert_array_equal(preprocess.background(pattern), expected)
