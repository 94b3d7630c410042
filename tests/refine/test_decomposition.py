"""What a cell alone explains: bounds, known answers and an independent solver."""

import numpy as np
import pytest
from scipy.optimize import nnls

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.pxrd.hkl import hkl_table
from xtalnet_jax.pxrd.instrument import Instrument
from xtalnet_jax.pxrd.pattern import Pattern, two_theta_from_inv_d
from xtalnet_jax.pxrd.simulate import simulate_pattern
from xtalnet_jax.refine import decomposition, prepare
from xtalnet_jax.refine.decomposition import decomposed_rwp
from xtalnet_jax.refine.refine import compare, refine
from xtalnet_jax.refine.settings import RefineSettings

pytestmark = pytest.mark.optimised

RUTILE = textbook_crystals()["rutile"]
FWHM, ETA = 0.2, 0.4
SHAPE = (0.0, FWHM, 0.0, ETA)
GRID = np.linspace(15, 70, 1024)  # as many as `observe` takes: nothing is averaged
WAVELENGTH = 1.5406


def angles_of(lattice):
    inv_d = hkl_table(np.asarray(lattice)[None], 2 / WAVELENGTH).inv_d
    two_theta = two_theta_from_inv_d(inv_d, WAVELENGTH)
    return np.unique(np.round(two_theta[two_theta < 150], 7))


def peaks(centre, fwhm=FWHM, eta=ETA):
    """Columns of equal area [n_bin, n_line], from the definitions of the two shapes."""
    away = GRID[:, None] - np.atleast_1d(centre)[None]
    half, sigma = fwhm / 2, fwhm / (8 * np.log(2)) ** 0.5
    lorentz = half / np.pi / (away**2 + half**2)
    gauss = np.exp(-0.5 * (away / sigma) ** 2) / sigma / (2 * np.pi) ** 0.5
    return eta * lorentz + (1 - eta) * gauss


def observed_of(intensity, num_background=0, sigma=None):
    pattern = Pattern(GRID, intensity, WAVELENGTH, sigma)
    return prepare.observe(pattern, num_background)


def cell(lattice):
    return RUTILE._replace(lattice=np.asarray(lattice, float))


def measured(crystal=RUTILE, seed=0, **instrument):
    """Counts on a sloping background, with a zero shift."""
    shape = Instrument(w=0.01, u=0.0, x=0.0, y=0.0, eta=0.4, zero_shift=0.05)
    clean = simulate_pattern(crystal, two_theta_range=(15, 90), instrument=shape)
    counts = 80 * clean.intensity + 100 - 0.5 * clean.two_theta
    drawn = np.random.default_rng(seed).poisson(counts).astype(float)
    return clean._replace(intensity=drawn, sigma=np.sqrt(counts))


def test_the_true_cell_explains_all_whatever_the_atoms():
    """Intensities at random: no structure was behind them."""
    angles = angles_of(RUTILE.lattice)
    heights = np.random.default_rng(0).exponential(size=len(angles))
    observed = observed_of(peaks(angles) @ heights)
    assert decomposed_rwp(RUTILE, observed, *SHAPE) < 0.01
    moved = RUTILE._replace(frac_coords=np.random.default_rng(1).uniform(size=(6, 3)))
    assert decomposed_rwp(moved, observed, *SHAPE) == decomposed_rwp(RUTILE, observed, *SHAPE)
    assert decomposed_rwp(cell(RUTILE.lattice * 1.03), observed, *SHAPE) > 0.8


@pytest.mark.parametrize(
    "wrong",
    [(0.4, FWHM, 0.0, ETA), (0.0, 0.4, 0.0, ETA), (0.0, FWHM, 0.4, ETA), (0.0, FWHM, 0.0, 0.9)],
)
def test_the_shape_of_the_peaks_matters(wrong):
    angles = angles_of(RUTILE.lattice)
    observed = observed_of(peaks(angles).sum(1))
    assert decomposed_rwp(RUTILE, observed, *wrong) > 0.08
    assert decomposed_rwp(RUTILE, observed, *SHAPE) < 0.01


def test_zero_shift_and_width_are_those_of_the_refinement():
    """Lines at their angle and a shift; FWHM^2 = w^2 + (t tan theta)^2."""
    angles = angles_of(RUTILE.lattice)
    fwhm = np.hypot(FWHM, 0.5 * np.tan(np.deg2rad(angles / 2)))
    observed = observed_of(peaks(angles + 0.3, fwhm[None]).sum(1))
    assert decomposed_rwp(RUTILE, observed, 0.3, FWHM, 0.5, ETA) < 0.01
    assert decomposed_rwp(RUTILE, observed, -0.3, FWHM, 0.5, ETA) > 0.3


@pytest.mark.parametrize("seed", range(4))
def test_no_refined_structure_fits_better(seed):
    """The truth, a wrong structure in the cell and one in a wrong cell, with their own shapes."""
    rng = np.random.default_rng(seed)
    pattern = measured(seed=seed)
    wrong = RUTILE._replace(frac_coords=rng.uniform(size=(6, 3)))
    strained = wrong._replace(lattice=RUTILE.lattice * rng.uniform(0.96, 1.04, 3)[:, None])
    for r in compare([RUTILE, wrong, strained], pattern, RefineSettings(chunk=3)):
        observed = prepare.observe(pattern, RefineSettings().num_background)
        shape = r.zero_shift, r.fwhm, r.fwhm_tan, r.eta
        assert r.rwp_cell == decomposed_rwp(r.crystal, observed, *shape)
        assert r.rwp_cell < 1.02 * r.rwp


def test_the_right_structure_reaches_its_cell_and_a_wrong_one_does_not():
    wrong = RUTILE._replace(frac_coords=np.random.default_rng(0).uniform(size=(6, 3)))
    right, other = refine([RUTILE, wrong], measured(), RefineSettings(chunk=3))
    assert right.rwp_cell == pytest.approx(right.rwp, rel=0.05)
    assert other.rwp_cell < 1.3 * right.rwp_cell
    assert other.rwp > 3 * other.rwp_cell


def direct(lattice, observed, shape):
    """Every line at its own angle, background of either sign, by another solver."""
    zero, fwhm, _, eta = shape
    target = observed.target
    weight = np.asarray(target.weight, float)[:, None]
    angles = angles_of(lattice) + zero
    angles = angles[(angles > GRID[0] - 1) & (angles < GRID[-1] + 1)]
    lines = peaks(angles, fwhm, eta)
    background = np.asarray(target.background, float)
    np.testing.assert_allclose(target.two_theta, GRID, rtol=1e-5)
    matrix = weight * np.concatenate([lines, background, -background], 1)
    size = np.linalg.norm(matrix, axis=0)
    y = weight[:, 0] * np.asarray(target.profile, float)
    return nnls(matrix / size, y, maxiter=10000)[1] / np.linalg.norm(y)


@pytest.mark.parametrize("scale", [1.0, 1.002, 1.05])
def test_residual_is_that_of_a_direct_solution(scale):
    rng = np.random.default_rng(3)
    angles = angles_of(RUTILE.lattice)
    y = peaks(angles) @ rng.exponential(size=len(angles)) + 1.0 + 0.01 * GRID
    observed = observed_of(y + rng.normal(0, 0.05, len(y)), 4, np.full(len(y), 0.05))
    lattice = RUTILE.lattice * scale
    expected = direct(lattice, observed, SHAPE)
    assert decomposed_rwp(cell(lattice), observed, *SHAPE) == pytest.approx(expected, rel=2e-3)
    assert (expected > 0.1) == (scale > 1.0)


@pytest.mark.parametrize("seed", range(4))
def test_lines_that_nearly_coincide_are_all_there(seed):
    """A cell that is nearly cubic, of each group of lines one strong, the first, last or any."""
    rng = np.random.default_rng(seed)
    lattice = np.diag(5.0 * (1 + rng.uniform(-0.004, 0.004, 3)))
    angles = angles_of(lattice)
    groups = np.split(angles, np.flatnonzero(np.diff(angles) > 1.2 * FWHM) + 1)
    chosen = [g[[0, -1, rng.integers(len(g))][seed % 3]] for g in groups]
    observed = observed_of(peaks(np.array(chosen)).sum(1))
    found = decomposed_rwp(cell(lattice), observed, *SHAPE)
    assert found < 0.02
    assert found == pytest.approx(direct(lattice, observed, SHAPE), abs=0.01)


def test_intensities_are_never_negative():
    """A dip where a line should be stays: other lines and background cannot fill it."""
    angles = angles_of(RUTILE.lattice)
    inside = angles[(angles > 20) & (angles < 65)]
    y = 20.0 - 5 * peaks(inside[3])[:, 0]
    observed = observed_of(y, 1)
    alone = decomposed_rwp(cell(0.2 * np.eye(3)), observed, *SHAPE)
    assert alone > 0.02
    assert decomposed_rwp(RUTILE, observed, *SHAPE) > 0.8 * alone
    up = observed_of(20.0 + 5 * peaks(inside[3])[:, 0], 1)
    assert decomposed_rwp(RUTILE, up, *SHAPE) < 2e-3


def test_background_is_free():
    """Any sum of its columns, of either sign, changes only what the residual is relative to."""
    angles = angles_of(RUTILE.lattice)
    y, noise = peaks(angles).sum(1), np.random.default_rng(0).normal(0, 0.05, len(GRID))
    u = np.linspace(-1, 1, len(GRID))
    below = 4 - 2 * u + 3 * u**2
    sigma = np.ones(len(GRID))
    residual = []
    for added in (0.0, below, -below):
        own = observed_of(y + noise + added, 3, sigma)
        norm = np.linalg.norm(own.target.weight * own.target.profile)
        residual.append(decomposed_rwp(RUTILE, own, *SHAPE) * norm)
    np.testing.assert_allclose(residual, residual[0], rtol=0.01)
    own = observed_of(y + noise + below, 2, sigma)  # no parabola
    assert decomposed_rwp(RUTILE, own, *SHAPE) * norm > 3 * residual[0]


@pytest.mark.parametrize("num_background", [0, 3])
def test_a_cell_without_a_line_in_range_leaves_all_but_the_background(num_background):
    observed = observed_of(peaks(angles_of(RUTILE.lattice)).sum(1) + 0.5, num_background)
    target = observed.target
    weight = np.asarray(target.weight, float)
    y, columns = weight * target.profile, weight[:, None] * np.asarray(target.background, float)
    rest = y - columns @ np.linalg.lstsq(columns, y, rcond=None)[0]
    expected = np.linalg.norm(rest) / np.linalg.norm(y)
    assert (expected == 1) == (num_background == 0)
    found = decomposed_rwp(cell(0.2 * np.eye(3)), observed, *SHAPE)
    assert found == pytest.approx(expected, rel=1e-5)


def test_averaging_over_bins_widens_the_peaks():
    """Two points fall into one bin here; peaks that are three bins wide become wider by it."""
    fine, angles = np.linspace(15, 70, 2000), angles_of(RUTILE.lattice)
    away = (fine[:, None] - angles[None]) / 0.15
    pattern = Pattern(fine, np.exp(-4 * np.log(2) * away**2).sum(1), WAVELENGTH)
    observed = prepare.observe(pattern, 0)
    assert observed.smear > 0
    found = [
        decomposed_rwp(
            RUTILE, observed._replace(smear=factor * observed.smear), 0.0, 0.15, 0.0, 0.0
        )
        for factor in (1.0, 0.0, -1.0)
    ]
    assert found[0] < 0.6 * found[1] < 0.6 * found[2]


def test_tails_of_lines_outside_reach_into_the_pattern():
    """One line a width before the first angle, one a width behind the last."""
    lattice = np.diag([WAVELENGTH / 2 / np.sin(np.deg2rad(a / 2)) for a in (14.8, 70.2, 64.0)])
    angles = angles_of(lattice)
    heights = np.where(np.abs(angles - 64) < 0.01, 1.0, 0.0)
    for outside in (14.8, 70.2):
        own = heights + np.where(np.abs(angles - outside) < 0.01, 9.0, 0.0)
        observed = observed_of(peaks(angles) @ own)
        assert decomposed_rwp(cell(lattice), observed, *SHAPE) < 0.02


def test_spread_lines_have_all_others_between_them():
    rng = np.random.default_rng(0)
    for size in (1, 2, 30):
        centre = np.sort(rng.uniform(0, 4, size))
        centre = np.sort(np.concatenate([centre, centre[:1] + 1e-12]))
        spacing = 0.3 * rng.uniform(0.9, 1.1, len(centre))
        kept = centre[decomposition._spread(centre, spacing)]
        assert kept[0] == centre[0]
        assert kept[-1] == pytest.approx(centre[-1], abs=1e-9)
        assert (np.diff(kept) > 1e-6).all()
        for value in centre:
            after = np.searchsorted(kept, value)
            if np.abs(kept - value).min() > 1e-9:
                assert kept[after] - kept[after - 1] <= 0.33 + 1e-9
    dense = np.linspace(0, 4, 401)
    kept = dense[decomposition._spread(dense, np.full(401, 0.305))]
    np.testing.assert_allclose(np.diff(kept)[:-1], 0.30, atol=1e-9)


@pytest.mark.parametrize("size", [3, 30])
def test_nonnegative_solution_is_the_least(size):
    """Gradient 0 where x > 0 and not negative elsewhere: the conditions of Karush, Kuhn, Tucker."""
    rng = np.random.default_rng(size)
    a = rng.normal(size=(4 * size, size)) + 0.3
    b = rng.normal(size=4 * size) + 0.1
    x = decomposition._nonnegative(a.T @ a, a.T @ b)
    np.testing.assert_allclose(x, nnls(a, b)[0], atol=1e-5)
    assert 0 < (x == 0).sum() < size or size == 3
    gradient = a.T @ (a @ x - b)
    assert np.abs(gradient[x > 0]).max(initial=0) < 1e-3
    assert gradient.min() > -1e-3


def test_the_crystal_is_not_changed():
    before = Crystal(*(np.array(v) for v in RUTILE))
    decomposed_rwp(RUTILE, observed_of(peaks(30.0)[:, 0]), *SHAPE)
    for a, b in zip(before, RUTILE):
        np.testing.assert_array_equal(a, b)
