import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.lattice import matrix_from_parameters, parameters_from_matrix
from xtalnet_jax.crystals.reduction import standardise
from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.indexing import indexing
from xtalnet_jax.indexing.indexing import DEFAULT, index_cells
from xtalnet_jax.indexing.positions import log_likelihood, observed_positions, squares, true_angle
from xtalnet_jax.pxrd.pattern import (
    CU_KALPHA,
    PeakBatch,
    inv_d_from_two_theta,
    two_theta_from_inv_d,
)
from xtalnet_jax.pxrd.simulate import lines_of

pytestmark = pytest.mark.optimised

RANGE = tuple(float(inv_d_from_two_theta(x, CU_KALPHA)) for x in (5.0, 90.0))


def peaks_of(crystal: Crystal, num: int = 48) -> PeakBatch:
    lines = lines_of([crystal], inv_d_max=RANGE[1], num_lines=num, inv_d_min=RANGE[0])
    mask = lines.strength > 1e-3
    return PeakBatch(lines.inv_d * mask, lines.strength * mask, mask, np.array([RANGE], "f"))


def cell(*parameters: float) -> np.ndarray:
    values = jnp.asarray(parameters).reshape(2, 3)
    return np.asarray(matrix_from_parameters(*values), float)


def parameters(lattice: np.ndarray) -> np.ndarray:
    return np.concatenate([np.asarray(v) for v in parameters_from_matrix(jnp.asarray(lattice))])


def test_squares_times_reciprocal_metric_is_the_square_of_inverse_d():
    lattice = cell(4.0, 5.0, 7.0, 80.0, 95.0, 110.0)
    hkl = np.array([[1, 0, 0], [1, -2, 3], [0, 2, 1], [-3, 1, 2]], np.float32)
    g = indexing._reciprocal_metrics(lattice[None])[0]
    inv_d = np.linalg.norm(hkl @ np.linalg.inv(lattice).T, axis=-1)
    np.testing.assert_allclose(squares(jnp.asarray(hkl)) @ g, inv_d**2, rtol=1e-5)
    back, usable = indexing._lattices_of(g[None])
    assert usable.all()
    np.testing.assert_allclose(back[0] @ back[0].T, lattice @ lattice.T, rtol=1e-6)


def test_the_right_cell_is_likelier_than_a_wrong_one_and_than_its_supercell():
    rutile = standardise(textbook_crystals()["rutile"])
    observed = observed_positions(peaks_of(rutile), CU_KALPHA, DEFAULT.precision, 40)

    def value(lattice: np.ndarray) -> float:
        hkl, real = indexing._reflections(lattice[None], 0.95, 256)
        g = indexing._reciprocal_metrics(lattice[None])[0].astype(np.float32)
        terms = squares(jnp.asarray(hkl[0]))
        sigma = jnp.asarray(observed.sigma)
        return float(
            log_likelihood(
                jnp.asarray(g),
                jnp.zeros(2),
                terms,
                jnp.asarray(real[0]),
                observed,
                sigma,
                DEFAULT.precision,
            )[0]
        )

    right = value(rutile.lattice)
    assert right > value(rutile.lattice * 1.01) + 20
    assert right > value(np.diag([1.0, 1.0, 2.0]) @ rutile.lattice) + 5


@pytest.mark.parametrize(
    "crystal",
    [
        textbook_crystals()["rutile"],
        textbook_crystals()["wurtzite"],
        Crystal(
            np.array([22, 8, 8, 56]),
            np.array([[0.1, 0.2, 0.3], [0.4, 0.3, 0.8], [0.7, 0.9, 0.1], [0.5, 0.6, 0.55]]),
            cell(4.1, 5.2, 6.4, 90.0, 107.0, 90.0),
        ),
    ],
    ids=["rutile", "wurtzite", "monoclinic"],
)
def test_finds_the_cell_from_guesses_that_are_far_off(crystal):
    """Guesses have the right volume to a few per cent and a wrong shape."""
    truth = standardise(crystal).lattice
    rng = np.random.default_rng(0)
    guesses = []
    for _ in range(8):
        strain = rng.normal(0, 0.15, (3, 3))
        guess = truth @ (np.eye(3) + (strain + strain.T) / 2)
        ratio = np.linalg.det(truth) * np.exp(rng.normal(0, 0.05)) / abs(np.linalg.det(guess))
        guesses.append(guess * np.cbrt(ratio))
    found = index_cells(guesses, peaks_of(standardise(crystal)), CU_KALPHA)
    error = np.abs(parameters(found[0].lattice) - parameters(truth))
    assert error[:3].max() < 0.01
    assert error[3:].max() < 0.2
    assert found[0].score > found[1].score
    again = index_cells(guesses, peaks_of(standardise(crystal)), CU_KALPHA)
    np.testing.assert_array_equal(again[0].lattice, found[0].lattice)


def shifted(peaks: PeakBatch, zero: float, displacement: float) -> PeakBatch:
    angle = two_theta_from_inv_d(peaks.position, CU_KALPHA)
    angle = angle + zero + displacement * np.cos(np.deg2rad(angle / 2))
    position = np.where(peaks.mask, inv_d_from_two_theta(angle, CU_KALPHA), 0.0)
    return peaks._replace(position=position.astype(np.float32))


def test_zero_shift_and_displacement_do_not_spoil_the_cell():
    """Without them as parameters the cell is 0.3 % too small, and the lines are missed by 0.1."""
    crystal = standardise(textbook_crystals()["rutile"])
    peaks = shifted(peaks_of(crystal), 0.04, 0.1)
    found = index_cells([crystal.lattice * 1.01], peaks, CU_KALPHA)[0]
    np.testing.assert_allclose(parameters(found.lattice), parameters(crystal.lattice), rtol=1e-3)
    for angle in (20.0, 50.0, 80.0):
        right = angle - 0.04 - 0.1 * np.cos(np.deg2rad(angle / 2))
        assert true_angle(angle, found.shift) == pytest.approx(right, abs=0.02)
    known = indexing.shift_in(crystal.lattice, peaks, CU_KALPHA)
    np.testing.assert_allclose(true_angle(50.0, known), true_angle(50.0, found.shift), atol=0.01)


def test_a_long_range_does_not_favour_small_cells():
    """Short wavelengths see more reflections than are listed; peaks beyond these must not count."""
    crystal = standardise(textbook_crystals()["fluorite"])
    lines = lines_of([crystal], inv_d_max=1.7, num_lines=64, inv_d_min=0.1)
    mask = lines.strength > 1e-3
    span = np.array([[0.1, 1.7]], np.float32)
    peaks = PeakBatch(lines.inv_d * mask, lines.strength * mask, mask, span)
    found = index_cells([crystal.lattice * 0.96], peaks, 0.8)[0]
    np.testing.assert_allclose(parameters(found.lattice), parameters(crystal.lattice), rtol=1e-3)


def test_the_search_climbs():
    """Each update of expectation-maximisation must not lower the likelihood at a fixed width."""
    rutile = standardise(textbook_crystals()["rutile"])
    settings = DEFAULT._replace(prior=10.0, steps=1)
    observed = observed_positions(peaks_of(rutile), CU_KALPHA, settings.precision, 40)
    start = rutile.lattice[None] @ np.diag([1.01, 0.995, 1.006])
    values = []
    for num in range(1, 5):
        widths = (0.01,) * num
        values.append(indexing._run(start, observed, settings, widths, 128, 1.1, 0.01)[2][0])
    assert (np.diff(values) > -1e-2).all()
    assert values[-1] > values[0] + 0.1
    assert not jax.tree.leaves(indexing.distinct([]))
