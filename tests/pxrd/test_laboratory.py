import numpy as np
import pytest

from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.pxrd.laboratory import DEFAULT, laboratory_patterns
from xtalnet_jax.pxrd.pattern import CU_KALPHA
from xtalnet_jax.pxrd.peaks import find_peaks
from xtalnet_jax.pxrd.readers.radiation import ANODES
from xtalnet_jax.pxrd.simulate import simulate_peaks

CRYSTALS = list(textbook_crystals().values())[:4]


def test_patterns_are_counts_within_the_ranges_and_repeat_with_the_seed():
    patterns = laboratory_patterns(CRYSTALS, seed=3)
    again = laboratory_patterns(CRYSTALS[:2], seed=3)
    other = laboratory_patterns(CRYSTALS[:1], seed=4)[0]
    np.testing.assert_array_equal(patterns[1].intensity, again[1].intensity)
    assert not np.array_equal(patterns[0].intensity, other.intensity)
    for pattern in patterns:
        np.testing.assert_array_equal(pattern.intensity, np.rint(pattern.intensity))
        assert (pattern.intensity >= 0).all()
        assert DEFAULT.start[0] <= pattern.two_theta[0] <= DEFAULT.start[1]
        assert pattern.two_theta[-1] <= DEFAULT.end[1] + 1e-9
        known = (ANODES["Cu"][0], CU_KALPHA)
        assert np.abs(np.array(known) - pattern.wavelength).min() < 1e-4


def test_without_faults_the_peaks_are_those_of_the_crystal():
    calm = DEFAULT._replace(
        kalpha2=0.0, zero_shift=0.0, displacement=0.0, texture=0.0, impure=0.0,
        counts=(1e6, 1e6), background=(0.01, 0.01), size=(0.01, 0.02), b_iso=(0.0, 0.0),
    )  # fmt: skip
    pattern = laboratory_patterns(CRYSTALS[:1], ranges=calm)[0]
    span = (float(pattern.two_theta[0]), float(pattern.two_theta[-1]))
    true = simulate_peaks(CRYSTALS[0], pattern.wavelength, span)
    found = find_peaks(pattern)
    strong = true.two_theta[true.intensity > 5]
    for angle in strong:
        assert np.abs(found.two_theta - angle).min() < 0.03


@pytest.mark.parametrize("fault", ["zero_shift", "displacement"])
def test_shifts_move_the_peaks(fault):
    calm = DEFAULT._replace(kalpha2=0.0, zero_shift=0.0, displacement=0.0, impure=0.0)
    before, after = (
        laboratory_patterns(CRYSTALS[:1], seed=1, ranges=calm._replace(**{fault: size}))[0]
        for size in (0.0, 0.5)
    )
    moved = find_peaks(after).two_theta[0] - find_peaks(before).two_theta[0]
    assert 0.05 < abs(moved) < 2.0
