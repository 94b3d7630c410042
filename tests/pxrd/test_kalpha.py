import numpy as np
import pytest

from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.pxrd.instrument import Instrument
from xtalnet_jax.pxrd.kalpha import single_wavelength
from xtalnet_jax.pxrd.pattern import CU_KALPHA, Pattern
from xtalnet_jax.pxrd.peaks import find_peaks
from xtalnet_jax.pxrd.readers.radiation import ANODES
from xtalnet_jax.pxrd.simulate import simulate_pattern

ALPHA1, ALPHA2 = ANODES["Cu"]
MEAN = (2 * ALPHA1 + ALPHA2) / 3
RUTILE = textbook_crystals()["rutile"]


def measured(ratio: float, wavelength: float = MEAN) -> Pattern:
    instrument = Instrument(kalpha2_ratio=ratio, kalpha2_wavelength=ALPHA2, background=(4.0, -1.0))
    return simulate_pattern(RUTILE, ALPHA1, instrument=instrument)._replace(wavelength=wavelength)


def test_a_doublet_is_taken_out_and_the_background_stays():
    alone, out = measured(0.0), single_wavelength(measured(0.5))
    assert out.wavelength == ALPHA1
    assert out.meta["stripped"] == (ALPHA1, ALPHA2)
    scale = (alone.intensity - 5).max() / (out.intensity - 5).max()
    difference = scale * (out.intensity - 5) - (alone.intensity - 5)
    assert np.abs(difference).max() < 3
    np.testing.assert_allclose(
        find_peaks(out).two_theta[:8], find_peaks(alone).two_theta[:8], atol=0.01
    )
    assert single_wavelength(out) is out


@pytest.mark.parametrize("wavelength", [CU_KALPHA, MEAN])
def test_a_single_line_stays_a_single_line(wavelength):
    """The mean wavelength is also what simulated patterns have, without any K-alpha2."""
    pattern = simulate_pattern(RUTILE, wavelength)
    assert single_wavelength(pattern) is pattern


def test_what_the_file_says_counts():
    stated = measured(0.5)._replace(meta={"wavelengths": (ALPHA1,)})
    assert single_wavelength(stated) is stated
    synchrotron = simulate_pattern(RUTILE, 0.8)
    assert single_wavelength(synchrotron) is synchrotron
    both = measured(0.5, 1.5)._replace(meta={"wavelengths": (ALPHA1, ALPHA2)})
    assert single_wavelength(both).wavelength == ALPHA1
