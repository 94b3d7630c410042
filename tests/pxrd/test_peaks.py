"""Peak picking: the reference's rule, agreement of host and device, noise, batching."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import peak_prominences

from xtalnet_jax.pxrd.augment import Effects, peaks_from_lines
from xtalnet_jax.pxrd.pattern import (
    CU_KALPHA,
    Lines,
    Pattern,
    Peaks,
    inv_d_from_two_theta,
    two_theta_from_inv_d,
)
from xtalnet_jax.pxrd.peaks import (
    estimate_noise,
    find_maxima,
    find_peaks,
    peak_batch,
    prominence,
    reference_peaks,
)


def profile(angles, heights, fwhm=0.1, step=0.02, low=5.0, high=90.0, wavelength=CU_KALPHA):
    """Sum of pseudo-Voigt lines, half Lorentzian."""
    x = low + step * np.arange(round((high - low) / step) + 1)
    u = (x[:, None] - np.asarray(angles)) / (fwhm / 2)
    lorentz, gauss = 1 / (np.pi * (1 + u**2)), np.sqrt(np.log(2) / np.pi) * 2.0 ** (-(u**2))
    return Pattern(x, (0.5 * (lorentz + gauss) * np.asarray(heights)).sum(1), wavelength)


@pytest.fixture
def lines():
    rng = np.random.default_rng(0)
    inv_d = np.sort(rng.uniform(0.1, 0.9, (5, 40)), axis=1)
    strength = rng.uniform(0.05, 1, (5, 40)) * inv_d**2
    return Lines(inv_d.astype(np.float32), strength.astype(np.float32))


def test_reference_peaks_are_the_published_ones(golden):
    case = np.load(golden / "peaks_case.npz")
    index, height = reference_peaks(case["two_theta"], case["intensity"])
    np.testing.assert_array_equal(index, case["peak_id"])
    np.testing.assert_allclose(height, case["peak_intensity"], rtol=1e-12)
    index, _ = reference_peaks(case["two_theta"], case["resim_profile"])
    np.testing.assert_array_equal(index, case["resim_peak_id"])


def test_reference_peaks_of_nothing_are_refused():
    with pytest.raises(ValueError, match="highest intensity is 0"):
        reference_peaks(np.arange(9.0), np.zeros(9))


def test_prominence_is_that_of_scipy():
    y = np.cumsum(np.random.default_rng(1).standard_normal(300)).astype(np.float32)
    peaks = np.flatnonzero((y[1:-1] > y[:-2]) & (y[1:-1] > y[2:])) + 1
    expected = peak_prominences(y, peaks, wlen=2 * 9 + 1)[0]
    got = np.asarray(jax.jit(prominence, static_argnums=1)(jnp.asarray(y), 9))[peaks]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_find_maxima_places_a_parabola_and_pads():
    x = jnp.arange(60.0)
    y = jnp.maximum(1 - (x - 20.3) ** 2 / 9, 0) + 0.5 * jnp.maximum(1 - (x - 41.8) ** 2 / 9, 0)
    search = jax.jit(find_maxima, static_argnums=2)
    place, height, mask = search(y, jnp.full(60, 0.1), 5)
    np.testing.assert_array_equal(mask, [True, True, False, False, False])
    np.testing.assert_allclose(place, [20.3, 41.8, 0, 0, 0], atol=1e-4)
    np.testing.assert_allclose(height, [1, 0.5, 0, 0, 0], atol=1e-5)


def test_host_and_device_see_the_same_peaks(lines):
    device = peaks_from_lines(None, Lines(*map(jnp.asarray, lines)), Effects.clean(), 64)
    patterns = []
    for inv_d, strength in zip(*lines):
        angle = two_theta_from_inv_d(inv_d.astype(float), CU_KALPHA)
        theta = np.deg2rad(angle / 2)
        lp = (1 + np.cos(2 * theta) ** 2) / (np.sin(theta) ** 2 * np.cos(theta))
        patterns.append(profile(angle, strength * lp))
    host = peak_batch(patterns, 64)
    np.testing.assert_allclose(host.measured, device.measured, rtol=1e-5)
    for i in range(5):
        strong = np.asarray(device.mask[i] & (device.intensity[i] > 0.02))
        assert strong.sum() > 15
        gap = np.abs(np.asarray(device.position[i])[strong][:, None] - host.position[i][None])
        assert (gap.min(1) < 3e-4).mean() >= 0.95
        near = gap.argmin(1)[gap.min(1) < 3e-4]
        expected = np.asarray(device.intensity[i])[strong][gap.min(1) < 3e-4]
        np.testing.assert_allclose(host.intensity[i][near], expected, atol=0.03)


@pytest.mark.parametrize("step", [0.005, 0.02, 0.05])
def test_peaks_of_a_noisy_pattern_on_a_background(step):
    rng = np.random.default_rng(2)
    angles, heights = np.array([12.3, 25.0, 25.9, 40.21, 61.0, 77.7]), [1, 0.6, 0.3, 0.5, 0.1, 0.2]
    clean = profile(angles, heights, fwhm=0.2, step=step)
    counts = 2000 * clean.intensity / clean.intensity.max()
    counts = rng.poisson(counts + 150 + 300 * np.exp(-clean.two_theta / 10)).astype(float)
    peaks = find_peaks(clean._replace(intensity=counts))
    assert len(peaks.two_theta) == 6
    np.testing.assert_allclose(peaks.two_theta, angles, atol=0.03)
    np.testing.assert_allclose(peaks.intensity, 100 * np.array(heights), atol=12)
    assert peaks.intensity.max() == pytest.approx(100)
    assert (np.abs(peaks.intensity - 100 * np.array(heights)) < 5 * peaks.sigma + 3).all()


def test_pure_noise_has_no_peaks():
    rng = np.random.default_rng(3)
    x = 5 + 0.02 * np.arange(4000)
    with pytest.raises(ValueError, match="no peak stands out"):
        find_peaks(Pattern(x, rng.poisson(1000, 4000).astype(float), CU_KALPHA))


def test_noise_estimate_is_that_of_counting():
    rng = np.random.default_rng(4)
    clean = profile(np.arange(8.0, 88, 4), np.full(20, 300.0), fwhm=0.4).intensity + 200
    noise = estimate_noise(rng.poisson(clean).astype(float))
    np.testing.assert_allclose(np.median(noise / np.sqrt(clean)), 1, atol=0.15)
    assert np.median(estimate_noise(clean)) < 0.1 * np.sqrt(200)


def test_peak_batch_pads_orders_and_converts():
    peaks = Peaks(np.array([20.0, 30.0, 40.0]), np.array([50.0, 100.0, 2.0]))
    batch = peak_batch([peaks], 5, wavelength=1.0, two_theta_range=(10.0, 60.0))
    np.testing.assert_array_equal(batch.mask[0], [True, True, True, False, False])
    expected = inv_d_from_two_theta(np.array([30.0, 20.0, 40.0]), 1.0)
    np.testing.assert_allclose(batch.position[0, :3], expected, rtol=1e-6)
    np.testing.assert_allclose(batch.intensity[0], [1, 0.5, 0.02, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(batch.measured[0], inv_d_from_two_theta(np.array([10.0, 60.0]), 1.0))
    assert peak_batch([peaks], 2, wavelength=1.0).mask.sum() == 2
    with pytest.raises(ValueError, match="give the wavelength"):
        peak_batch([peaks], 5)
    with pytest.raises(ValueError, match="'hkl', expected"):
        peak_batch([peaks], 5, form="hkl", wavelength=1.0)


def test_grid_form_is_the_reference_at_any_wavelength(golden):
    case = np.load(golden / "peaks_case.npz")
    pattern = Pattern(case["two_theta"], case["intensity"], CU_KALPHA)
    batch = peak_batch([pattern], 32, form="grid")
    np.testing.assert_array_equal(np.sort(batch.position[0][batch.mask[0]]), case["peak_id"])
    inv_d = inv_d_from_two_theta(case["two_theta"], CU_KALPHA)
    short = Pattern(two_theta_from_inv_d(inv_d, 0.7), case["intensity"], 0.7)
    converted = peak_batch([short], 32, form="grid")
    np.testing.assert_array_equal(converted.position, batch.position)
