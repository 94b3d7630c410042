"""Powder lines through an instrument and back: known positions, padding, gradients, presets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtalnet_jax.pxrd.augment import peaks_from_lines
from xtalnet_jax.pxrd.effects import Effects, draw_instrument
from xtalnet_jax.pxrd.pattern import CU_KALPHA, Lines, inv_d_from_two_theta, two_theta_from_inv_d

MEASURED = Effects.measured(clean_fraction=0.0)


def cubic_lines(a=4.0, repeat=1, pad=0):
    squares = sorted({h * h + k * k + m * m for h in range(5) for k in range(5) for m in range(5)})
    inv_d = np.sqrt(np.array(squares[1:])) / a
    inv_d = np.pad(inv_d[inv_d < 1.29], (0, pad)).astype(np.float32)
    strength = np.where(inv_d > 0, 0.3 + 0.7 * np.cos(7 * inv_d) ** 2, 0).astype(np.float32)
    return Lines(jnp.tile(inv_d, (repeat, 1)), jnp.tile(strength, (repeat, 1)))


def found(batch, i=0):
    keep = np.asarray(batch.mask[i])
    return np.asarray(batch.position[i])[keep], np.asarray(batch.intensity[i])[keep]


def test_clean_returns_the_lines_in_range_with_the_lorentz_polarisation_factor():
    lines = cubic_lines()
    batch = peaks_from_lines(None, lines, Effects.clean(), 64)
    position, intensity = found(batch)
    inv_d, strength = np.asarray(lines.inv_d[0]), np.asarray(lines.strength[0])
    angle = two_theta_from_inv_d(inv_d, CU_KALPHA)
    inside = (angle > 5) & (angle < 90)
    theta = np.deg2rad(angle / 2)
    expected = strength * (1 + np.cos(2 * theta) ** 2) / (np.sin(theta) ** 2 * np.cos(theta))
    order = np.argsort(position)
    np.testing.assert_allclose(
        two_theta_from_inv_d(position[order], CU_KALPHA), angle[inside], atol=2e-3
    )
    np.testing.assert_allclose(
        intensity[order], (expected / expected[inside].max())[inside], atol=0.01
    )
    assert (np.diff(intensity) <= 0.02).all()
    assert intensity.max() == pytest.approx(1)
    np.testing.assert_allclose(
        batch.measured[0], inv_d_from_two_theta(np.array([5.0, 90.0]), CU_KALPHA), rtol=1e-5
    )


def test_few_slots_keep_the_strongest():
    many = peaks_from_lines(None, cubic_lines(), Effects.clean(), 64)
    few = peaks_from_lines(None, cubic_lines(), Effects.clean(), 3)
    np.testing.assert_array_equal(few.position, many.position[:, :3])
    np.testing.assert_array_equal(few.intensity, many.intensity[:, :3])


def test_zero_shift_and_displacement_move_peaks_to_larger_angles():
    plain = peaks_from_lines(None, cubic_lines(), Effects.clean(), 64)
    for name, factor in (("zero_shift", lambda _: 1.0), ("displacement", np.cos)):
        moved = peaks_from_lines(None, cubic_lines(), Effects.clean(**{name: (0.1, 0.1)}), 64)
        before = np.sort(two_theta_from_inv_d(found(plain)[0], CU_KALPHA))
        after = np.sort(two_theta_from_inv_d(found(moved)[0], CU_KALPHA))
        np.testing.assert_allclose(after - before, 0.1 * factor(np.deg2rad(before / 2)), atol=3e-3)


def test_thermal_motion_damps_as_exp_minus_2_b_s_squared():
    plain = peaks_from_lines(None, cubic_lines(), Effects.clean(), 64)
    warm = peaks_from_lines(None, cubic_lines(), Effects.clean(b_factor=(2.0, 2.0)), 64)
    position, before = (v[np.argsort(found(plain)[0])] for v in found(plain))
    after = found(warm)[1][np.argsort(found(warm)[0])]
    expected = before * np.exp(-2 * 2.0 * (position / 2) ** 2)
    np.testing.assert_allclose(after, expected / expected.max(), atol=0.01)


def test_a_doublet_splits_at_high_angle_and_its_mean_stays():
    effects = Effects.clean(radiations=((CU_KALPHA, 0.00249, 1.0),), fwhm=(0.06, 0.06))
    lines = Lines(jnp.array([[0.25, 1.12]]), jnp.array([[1.0, 1.0]]))
    batch = peaks_from_lines(None, lines, effects._replace(end=(130.0, 130.0)), 8)
    position, intensity = found(batch)
    low, high = position[position < 0.5], np.sort(position[position > 0.5])
    assert len(low) == 1
    assert len(high) == 2
    assert low[0] == pytest.approx(0.25, abs=2e-4)
    assert high.mean() == pytest.approx(1.12 * (1 + 0.00249 / 6), abs=1e-3)
    assert high[1] / high[0] == pytest.approx(1.00249, abs=2e-4)
    pair = intensity[position > 0.5][np.argsort(position[position > 0.5])]
    assert pair[0] / pair[1] == pytest.approx(2, rel=0.1)


def test_padding_changes_nothing():
    key = jax.random.key(1)
    effects = MEASURED._replace(texture=(0.0, 0.0))  # its draw has the shape of the lines
    plain = peaks_from_lines(key, cubic_lines(), effects, 32)
    padded = peaks_from_lines(key, cubic_lines(pad=40), effects, 32)
    for a, b in zip(plain, padded):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_padded_crystal_is_masked_and_gradients_are_finite():
    effects = Effects.measured()
    lines = cubic_lines(repeat=2)
    lines = Lines(lines.inv_d.at[1].set(0), lines.strength.at[1].set(0))

    def total(x):
        batch = peaks_from_lines(jax.random.key(0), x, effects, 32)
        return batch.position.sum() + batch.intensity.sum(), batch

    gradient, batch = jax.jit(jax.grad(total, has_aux=True))(lines)
    assert batch.mask[0].any()
    assert not batch.mask[1].any()
    assert not batch.position[1].any()
    assert not batch.intensity[1].any()
    for leaf in jax.tree.leaves((gradient, batch._replace(mask=batch.position))):
        assert bool(jnp.isfinite(leaf).all())
    assert not gradient.inv_d[1].any()
    assert not gradient.strength[1].any()


def test_the_position_of_a_peak_follows_its_line():
    lines = cubic_lines()

    def strongest(shift):
        moved = Lines(lines.inv_d * (1 + shift), lines.strength)
        return peaks_from_lines(None, moved, Effects.clean(), 64).position[0, 0]

    expected = strongest(0.0)
    assert float(jax.grad(strongest)(0.0)) == pytest.approx(float(expected), rel=0.15)
    slope = (strongest(1e-3) - strongest(-1e-3)) / 2e-3
    assert float(slope) == pytest.approx(float(expected), rel=0.05)


def test_measured_is_random_reproducible_and_close_to_the_truth():
    lines = cubic_lines(repeat=64)

    def run(key):
        return peaks_from_lines(key, lines, MEASURED, 32)

    batch, again, other = run(jax.random.key(1)), run(jax.random.key(1)), run(jax.random.key(2))
    np.testing.assert_array_equal(batch.position, again.position)
    assert not np.array_equal(batch.position, other.position)
    truth = np.asarray(lines.inv_d[0])
    errors = []
    for i in range(64):
        position, intensity = found(batch, i)
        assert len(position) >= 1
        assert intensity.max() == pytest.approx(1)
        low, high = np.asarray(batch.measured[i])
        assert (position >= low - 1e-6).all()
        assert (position <= high + 1e-6).all()
        errors.append(np.abs(position[intensity > 0.3][:, None] - truth[None]).min(1))
    # Zero shift, displacement and the doublet: some 0.1 degree, 0.002 in 1/d for Cu K-alpha.
    assert np.quantile(np.concatenate(errors), 0.9) < 2e-3


def test_a_pattern_does_not_depend_on_its_neighbours():
    lines = cubic_lines(repeat=64)
    other = Lines(lines.inv_d.at[1:].multiply(0.9), lines.strength)
    key = jax.random.key(3)
    a, b = (peaks_from_lines(key, x, MEASURED, 32) for x in (lines, other))
    np.testing.assert_array_equal(a.position[0], b.position[0])
    assert not np.array_equal(a.position[1], b.position[1])


def test_clean_fraction_leaves_that_many_clean():
    lines = cubic_lines(repeat=200)
    effects = Effects.measured(clean_fraction=0.25)
    batch = peaks_from_lines(jax.random.key(4), lines, effects, 16)
    clean = peaks_from_lines(None, cubic_lines(), Effects.clean(num_bins=effects.num_bins), 16)
    same = np.abs(np.asarray(batch.measured) - np.asarray(clean.measured)).max(1) < 1e-6
    assert 0.15 < same.mean() < 0.35
    positions = np.asarray(batch.position)[same]  # smoothing and thresholds may differ, not places
    assert np.abs(positions[:, 0] - np.asarray(clean.position)[0, 0]).max() < 2e-4


def test_drawn_instruments_stay_in_their_ranges():
    draw = jax.vmap(lambda key: draw_instrument(key, MEASURED))
    drawn = draw(jax.random.split(jax.random.key(5), 500))
    scale = np.asarray(drawn.wavelength) / CU_KALPHA
    width = np.asarray(drawn.fwhm) / scale
    assert MEASURED.fwhm[0] <= width.min() < 0.08
    assert 0.35 < width.max() <= MEASURED.fwhm[1] * 1.0001
    assert (np.asarray(drawn.end) > np.asarray(drawn.start)).all()
    assert np.asarray(drawn.end).max() < 153
    stated = np.array([r[0] for r in MEASURED.radiations])
    weights = np.array([r[2] for r in MEASURED.radiations])
    share = np.isclose(np.asarray(drawn.wavelength)[:, None], stated[None], rtol=1e-5).mean(0)
    np.testing.assert_allclose(share, weights / weights.sum(), atol=0.07)
    assert 0.2 < (np.asarray(drawn.impurity) > 0).mean() < 0.4


def test_random_effects_need_a_key():
    with pytest.raises(ValueError, match="needs a key"):
        peaks_from_lines(None, cubic_lines(), MEASURED, 8)
