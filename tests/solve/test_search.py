import jax
import numpy as np
import pytest

from xtalnet_jax.crystals.reduction import standardise
from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.pxrd.peaks import peak_batch
from xtalnet_jax.pxrd.simulate import simulate_pattern
from xtalnet_jax.refine.structure_search import Found as Structure
from xtalnet_jax.solve import screen
from xtalnet_jax.solve import search as search_module
from xtalnet_jax.solve.search import DEFAULT, _shares, search

RUTILE = standardise(textbook_crystals()["rutile"])


@pytest.fixture(scope="module")
def measured():
    pattern = simulate_pattern([RUTILE])[0]
    return pattern, peak_batch([pattern], 64)


def test_agreement_knows_the_right_crystal(measured):
    pattern, peaks = measured
    wrong = RUTILE._replace(frac_coords=RUTILE.frac_coords[::-1].copy())
    larger = RUTILE._replace(lattice=RUTILE.lattice * 1.02)
    right, swapped, scaled = screen.agreement([RUTILE, wrong, larger], peaks, pattern.wavelength)
    assert right > 0.97
    assert swapped < right - 0.02
    assert scaled < 0.6


@pytest.mark.parametrize("factor", [0.88, 1.0, 1.15])
def test_rescaling_undoes_a_factor(measured, factor):
    pattern, peaks = measured
    off = RUTILE._replace(lattice=RUTILE.lattice * factor)
    found = screen.rescaled([off], peaks, pattern.wavelength)[0]
    np.testing.assert_allclose(found.lattice, RUTILE.lattice, rtol=0.006, atol=1e-6)
    assert screen.rescaled([], peaks, pattern.wavelength) == []


def test_cells_share_the_drawing_by_likelihood():
    shares = _shares([10.0, 10.0 - DEFAULT.temperature, -500.0], DEFAULT)
    assert shares.sum() == pytest.approx(1)
    assert shares[0] / shares[1] == pytest.approx(np.e)
    assert shares[2] < 1e-9


def test_search_finds_cell_units_and_atoms_with_a_blind_generator(measured):
    """Guesses of a wrong shape and random atoms: the pattern does the rest."""
    pattern, peaks = measured
    asked = []

    def propose(key, numbers, num, lattices=None):
        asked.append((len(numbers), num, lattices is not None))
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
        strain = rng.normal(0, 0.1, (num, 3, 3))
        guess = RUTILE.lattice * np.cbrt(len(numbers) / 6) @ (np.eye(3) + strain)
        cells = guess if lattices is None else lattices
        return [
            RUTILE._replace(
                atomic_numbers=numbers, frac_coords=rng.uniform(size=(len(numbers), 3)), lattice=c
            )
            for c in cells
        ]

    double = np.sort(np.tile(RUTILE.atomic_numbers, 2))
    found = search(jax.random.key(0), propose, [RUTILE.atomic_numbers, double], pattern, peaks, 8)
    assert abs(np.linalg.det(found.cells[0][0])) == pytest.approx(
        np.linalg.det(RUTILE.lattice), rel=0.01
    )
    assert len(found.crystals) == 8
    assert RUTILE.to_structure().matches(found.crystals[0].to_structure())
    assert [a[:2] for a in asked[:2]] == [(6, DEFAULT.num_guesses), (12, DEFAULT.num_guesses)]
    assert asked[2][2]

    known = search(
        jax.random.key(0), propose, [RUTILE.atomic_numbers], pattern, peaks, 4,
        RUTILE.lattice, anneal=False,
    )  # fmt: skip
    for crystal in known.crystals:
        np.testing.assert_allclose(crystal.lattice, RUTILE.lattice, atol=1e-5)


def at_random(key, numbers, num, lattices=None):
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    return [
        RUTILE._replace(atomic_numbers=numbers, frac_coords=rng.uniform(size=(len(numbers), 3)))
        for _ in range(num)
    ]


def structure(price, misfit=0.1, space_group=136):
    """One that is told from others by the place of its first atom."""
    frac = np.full((6, 3), price)
    return Structure(RUTILE._replace(frac_coords=frac), misfit, price, space_group, 1)


@pytest.mark.parametrize(("price", "num_searched"), [(0.9, 2), (1.1, 4)])
def test_no_other_cell_is_searched_once_one_is_solved(measured, monkeypatch, price, num_searched):
    pattern, peaks = measured
    contents = [RUTILE.atomic_numbers + k for k in range(4)]
    asked = []

    def found(key, lattice, numbers, pattern, starts):
        asked.append((numbers.tolist(), len(starts)))
        return [structure((price if len(asked) == 2 else 1.1) * DEFAULT.solved)]

    monkeypatch.setattr(search_module, "search_structures", found)
    search(jax.random.key(0), at_random, contents, pattern, peaks, 8, RUTILE.lattice)
    assert asked == [(c.tolist(), 2) for c in contents[:num_searched]]
    asked.clear()
    search(jax.random.key(0), at_random, contents, pattern, peaks, 8, RUTILE.lattice, anneal=False)
    assert asked == []


def test_half_are_structures_found_then_annealed_draws_then_draws_as_they_are(
    measured, monkeypatch
):
    pattern, peaks = measured
    cheap = [structure(0.1 + 0.01 * k) for k in range(7)]
    annealed = [structure(0.5 + 0.01 * k, 0.3 - 0.01 * k, 1) for k in range(4)]
    pool = [*annealed[:2], *cheap[::-1], *annealed[2:]]
    monkeypatch.setattr(search_module, "search_structures", lambda *_: pool)
    found = search(
        jax.random.key(0), at_random, [RUTILE.atomic_numbers], pattern, peaks, 10, RUTILE.lattice
    )
    assert len(found.crystals) == 10
    first = [float(c.frac_coords[0, 0]) for c in found.crystals[:7]]
    expected = [s.price for s in [*cheap[:5], annealed[3], annealed[2]]]
    np.testing.assert_allclose(first, expected)
    agreement = screen.agreement(found.crystals[7:], peaks, pattern.wavelength)
    assert (np.diff(agreement) <= 0).all()
