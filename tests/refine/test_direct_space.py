import jax
import numpy as np
import pytest

from xtalnet_jax.crystals.reduction import standardise
from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.pxrd.simulate import simulate_pattern
from xtalnet_jax.refine.direct_space import DEFAULT, anneal_coordinates

SETTINGS = DEFAULT._replace(fwhm=0.5, steps=200, bins=256, chunk=6)


def shaken(crystal, size, seed):
    rng = np.random.default_rng(seed)
    move = rng.normal(0, size, crystal.frac_coords.shape) @ np.linalg.inv(crystal.lattice)
    return crystal._replace(frac_coords=np.mod(crystal.frac_coords + move, 1.0))


@pytest.fixture(scope="module")
def rutile():
    return standardise(textbook_crystals()["rutile"])


def test_displaced_atoms_find_their_places_and_the_cell_stays(rutile):
    pattern = simulate_pattern([rutile])[0]
    starts = [shaken(rutile, 0.5, seed) for seed in range(6)]
    found, misfit = anneal_coordinates(jax.random.key(0), starts, pattern, SETTINGS)
    best = int(np.argmin(misfit))
    assert misfit[best] < 0.015
    assert rutile.to_structure().matches(found[best].to_structure())
    for crystal in found:
        np.testing.assert_array_equal(crystal.lattice, rutile.lattice)
        np.testing.assert_array_equal(crystal.atomic_numbers, rutile.atomic_numbers)


def test_misfit_of_the_truth_is_small_and_that_of_another_pattern_is_not(rutile):
    quiet = SETTINGS._replace(noise=0.0, step=1e-6, steps=2)
    cuprite = standardise(textbook_crystals()["cuprite"])
    patterns = simulate_pattern([rutile, cuprite])
    own, other = (anneal_coordinates(jax.random.key(0), [rutile], p, quiet)[1][0] for p in patterns)
    assert own < 0.015  # tails of the peaks
    assert other > 0.1


def test_each_candidate_is_on_its_own(rutile):
    pattern = simulate_pattern([rutile])[0]
    starts = [shaken(rutile, 0.2, k) for k in range(3)]
    together = anneal_coordinates(jax.random.key(0), starts, pattern, SETTINGS)[0]
    alone = anneal_coordinates(jax.random.key(0), starts[:1], pattern, SETTINGS)[0]
    np.testing.assert_allclose(together[0].frac_coords, alone[0].frac_coords, atol=1e-4)


def test_no_candidates(rutile):
    pattern = simulate_pattern([rutile])[0]
    found, misfit = anneal_coordinates(jax.random.key(0), [], pattern)
    assert found == []
    assert misfit.shape == (0,)
