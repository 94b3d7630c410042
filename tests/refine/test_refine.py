"""Known answers: perturbed crystals return, parameters of a noisy pattern are recovered."""

import numpy as np
import pytest

from xtalnet_jax.crystals.crystal import Crystal, stack_crystals
from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.pxrd.instrument import Instrument
from xtalnet_jax.pxrd.pattern import Pattern
from xtalnet_jax.pxrd.simulate import simulate_pattern
from xtalnet_jax.refine.refine import compare, refine
from xtalnet_jax.refine.settings import RefineSettings
from xtalnet_jax.refine.variants import displacement, free_variant, promising, start_variant

pytestmark = pytest.mark.optimised

INSTRUMENT = Instrument(w=0.01, u=0.0, x=0.0, y=0.0, eta=0.4)
SETTINGS = RefineSettings(chunk=3)


def shaken(crystal: Crystal, strain: float, move: float, seed: int) -> Crystal:
    """Copy with principal strains up to about ``strain`` and rms displacement ``move``."""
    rng = np.random.default_rng(seed)
    e = rng.uniform(-1, 1, size=(3, 3))
    e = (e + e.T) / 2
    lattice = crystal.lattice @ (np.eye(3) + strain * e / abs(np.linalg.eigvalsh(e)).max())
    u = rng.normal(size=crystal.frac_coords.shape)
    u *= move / np.sqrt((u**2).sum(1).mean())
    frac = (crystal.frac_coords + u @ np.linalg.inv(lattice)) % 1.0
    return Crystal(crystal.atomic_numbers, frac, lattice)


def strain_between(truth: Crystal, other: Crystal) -> float:
    f = np.linalg.inv(truth.lattice) @ other.lattice
    return float(np.abs(np.sqrt(np.linalg.eigvalsh(f.T @ f)) - 1).max())


@pytest.fixture(scope="module")
def rutile():
    """Rutile, its noisy pattern, three shaken copies and their refinement together."""
    truth = textbook_crystals()["rutile"]
    noisy, known = noisy_pattern(truth)
    copies = [
        shaken(truth, strain, move, seed)
        for seed, (strain, move) in enumerate([(0.02, 0.1), (0.05, 0.1), (0.0, 0.3)])
    ]
    return truth, noisy, known, copies, refine(copies, noisy, SETTINGS)


def noisy_pattern(truth: Crystal) -> tuple[Pattern, dict[str, float]]:
    """Counts of a pattern with zero shift, displacement parameters and a background."""
    known = {"zero_shift": 0.06, "fwhm": 0.1, "b_iso": 0.8, "eta": 0.4}
    instrument = INSTRUMENT._replace(zero_shift=known["zero_shift"], b_iso=known["b_iso"])
    clean = simulate_pattern(truth, two_theta_range=(15, 90), instrument=instrument)
    counts = 80 * clean.intensity + 100 - 0.5 * clean.two_theta
    drawn = np.random.default_rng(0).poisson(counts).astype(float)
    return clean._replace(intensity=drawn, sigma=np.sqrt(counts)), known


def test_shaken_copies_return(rutile):
    truth, _, _, copies, results = rutile
    for copy, r in zip(copies, results):
        assert strain_between(truth, r.crystal) < 1e-3
        assert displacement(truth, r.crystal) < 0.02
        assert np.array_equal(r.crystal.atomic_numbers, truth.atomic_numbers)
        assert r.moved == pytest.approx(displacement(copy, r.crystal))
    assert max(strain_between(truth, c) for c in copies) > 0.04
    assert [r.space_group for r in results] == [136] * 3


def test_instrument_is_recovered_within_its_uncertainties(rutile):
    _, _, known, _, results = rutile
    r = results[0]
    for name, value in known.items():
        assert 0 < r.esd[name] < 0.1
        assert abs(getattr(r, name) - value) < 5 * r.esd[name] + 0.002, name
    assert r.background[0] == pytest.approx(100 - 0.5 * 52.5, abs=1.0)
    assert r.background[1] == pytest.approx(-0.5 * 37.5, abs=1.0)


def test_cell_is_recovered_within_its_uncertainties(rutile):
    r = rutile[4][0]
    lengths = np.array([4.594, 4.594, 2.959])
    assert (r.cell_esd[:3] > 0).all()
    assert (r.cell_esd[:3] < 1e-3).all()
    assert (abs(r.cell[:3] - lengths) < 5 * r.cell_esd[:3]).all()
    assert np.allclose(r.cell[3:], 90, atol=1e-3)


def test_calculated_pattern_explains_the_counts(rutile):
    _, noisy, _, _, results = rutile
    r = results[0]
    assert np.array_equal(r.calculated.two_theta, noisy.two_theta)
    chi2 = np.mean(((noisy.intensity - r.calculated.intensity) / noisy.sigma) ** 2)
    assert chi2 < 1.3
    w = noisy.sigma**-2
    rwp = np.sqrt(
        (w * (noisy.intensity - r.calculated.intensity) ** 2).sum() / (w * noisy.intensity**2).sum()
    )
    assert r.rwp == pytest.approx(rwp, rel=0.4)  # r.rwp is that of the averaged grid
    below = np.polynomial.chebyshev.chebval(np.linspace(-1, 1, len(noisy.two_theta)), r.background)
    share = (w * (noisy.intensity - below) ** 2).sum() / (w * noisy.intensity**2).sum()
    assert share < 0.9
    assert r.rwp_net == pytest.approx(r.rwp / np.sqrt(share), rel=0.05)
    assert r.trajectory[-1] < r.trajectory[0]
    assert (np.diff(r.trajectory) <= 1e-9).all()


def test_candidates_do_not_influence_each_other(rutile):
    truth, noisy, _, copies, results = rutile
    alone = refine([copies[1]], noisy, SETTINGS)[0]
    assert strain_between(results[1].crystal, alone.crystal) < 1e-5
    assert displacement(results[1].crystal, alone.crystal) < 1e-3
    assert alone.rwp == pytest.approx(results[1].rwp, rel=1e-3)
    wrong = Crystal(truth.atomic_numbers, np.random.default_rng(9).random((6, 3)), truth.lattice)
    beside = refine([wrong, copies[1]], noisy, SETTINGS)
    assert beside[1].rwp == pytest.approx(alone.rwp, rel=1e-3)
    assert beside[0].rwp > 3 * beside[1].rwp


def test_compare_leaves_crystals_alone(rutile):
    truth, noisy, _, copies, results = rutile
    batch = stack_crystals([truth, *copies])
    compared = compare(batch, noisy, SETTINGS)
    assert displacement(copies[0], compared[1].crystal) < 1e-5
    assert strain_between(copies[0], compared[1].crystal) < 1e-6
    assert compared[0].rwp == pytest.approx(results[0].rwp, rel=0.3)
    assert compared[0].cosine > 0.98 > compared[1].cosine
    assert compared[1].rwp > 3 * compared[0].rwp


@pytest.mark.parametrize("name", ["perovskite", "cuprite"])
def test_other_structures_return_from_five_percent(name):
    truth = textbook_crystals()[name]
    pattern = simulate_pattern(truth, two_theta_range=(15, 90), instrument=INSTRUMENT)
    results = refine([shaken(truth, 0.05, 0.1, seed) for seed in range(3)], pattern, SETTINGS)
    for r in results:
        assert strain_between(truth, r.crystal) < 1e-3
        assert displacement(truth, r.crystal) < 0.02
        assert r.rwp < 0.05


def test_without_symmetry_all_coordinates_are_free():
    truth = textbook_crystals()["rutile"]
    pattern = simulate_pattern(truth, two_theta_range=(15, 90), instrument=INSTRUMENT)
    free = refine([shaken(truth, 0.02, 0.1, 0)], pattern, SETTINGS._replace(symmetry_misfits=()))[0]
    assert free.space_group == 1
    assert free.num_free == 6 + 15
    assert strain_between(truth, free.crystal) < 2e-3


BASE = textbook_crystals()["rutile"]
ANGLES = np.arange(15, 90, 0.05)
FLAT = Pattern(ANGLES, np.ones(len(ANGLES)), 1.54)
PEAK = FLAT._replace(intensity=np.exp(-((ANGLES - 30) ** 2)))


@pytest.mark.parametrize(
    ("crystals", "pattern", "words"),
    [
        ([BASE], FLAT, "flat"),
        ([BASE], PEAK._replace(wavelength=15406.0), "wavelength"),
        ([BASE], PEAK._replace(two_theta=ANGLES[::-1]), "increase"),
        ([BASE], PEAK._replace(two_theta=ANGLES[:20], intensity=np.ones(20)), "at least 50"),
        ([BASE._replace(lattice=np.zeros((3, 3)))], PEAK, "cubic angstrom"),
        ([BASE._replace(frac_coords=np.full((6, 3), np.nan))], PEAK, "not finite"),
        ([BASE._replace(atomic_numbers=np.full(6, 104))], PEAK, "104"),
        ([BASE._replace(atomic_numbers=np.ones(5))], PEAK, "expected"),
    ],
)
def test_bad_input_is_refused(crystals, pattern, words):
    for function in (refine, compare):
        with pytest.raises(ValueError, match=words):
            function(crystals, pattern)


def test_nothing_to_refine():
    assert refine([], PEAK) == []
    assert compare([], PEAK) == []


def test_equal_candidates_are_fitted_once(rutile):
    truth, noisy = rutile[0], rutile[1]
    swapped = truth._replace(frac_coords=truth.frac_coords + 0.5)  # another origin
    one, other = refine([truth, swapped], noisy, SETTINGS._replace(equal_misfits=1e-2))
    assert other.rwp == one.rwp
    assert other.crystal is one.crystal
    apart = refine([truth, swapped], noisy, SETTINGS)
    assert apart[1].crystal is not apart[0].crystal


def test_hopeless_candidates_are_told_by_their_misfit():
    one = free_variant(0, textbook_crystals()["rutile"])
    variants = [one._replace(misfit=m) for m in (0.002, 0.02, 0.03, np.inf)]
    assert promising(variants, SETTINGS._replace(hopeless=8.0)) == [0, 1]  # 8 (0.002 + 0.001)
    assert promising(variants, SETTINGS) == [0, 1, 2, 3]


def test_an_exactly_symmetric_candidate_keeps_its_symmetry():
    truth = textbook_crystals()["rutile"]
    symmetric, free = start_variant(0, truth), start_variant(1, shaken(truth, 0.0, 0.05, 0))
    assert symmetric.operations.number == 136
    assert symmetric.freedom.coord.shape[-1] == 1
    assert free.operations.number == 1
