import jax
import numpy as np
import pytest

from xtalnet_jax.crystals.reduction import standardise
from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.direct_space.structure_search import Found as Structure
from xtalnet_jax.direct_space.structure_search import Searched
from xtalnet_jax.pxrd.peaks import peak_batch
from xtalnet_jax.pxrd.simulate import simulate_pattern
from xtalnet_jax.solve import screen
from xtalnet_jax.solve import search as search_module
from xtalnet_jax.solve.search import DEFAULT, _shares, search

pytestmark = pytest.mark.optimised

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


def searched(found):
    return Searched(found, None, [], {}, False, 1)


@pytest.mark.parametrize(("price", "num_searched"), [(0.9, 2), (1.1, 4)])
def test_no_other_cell_is_searched_once_one_is_solved(measured, monkeypatch, price, num_searched):
    pattern, peaks = measured
    contents = [RUTILE.atomic_numbers + k for k in range(4)]
    asked = []

    def begun(key, lattice, numbers, pattern, starts):
        asked.append((numbers.tolist(), len(starts)))
        return searched([structure((price if len(asked) == 2 else 1.1) * DEFAULT.solved)])

    monkeypatch.setattr(search_module, "begin_search", begun)
    monkeypatch.setattr(search_module, "continue_search", lambda _, s: s.found)
    search(jax.random.key(0), at_random, contents, pattern, peaks, 8, RUTILE.lattice)
    assert asked == [(c.tolist(), 2) for c in contents[:num_searched]]
    asked.clear()
    search(jax.random.key(0), at_random, contents, pattern, peaks, 8, RUTILE.lattice, anneal=False)
    assert asked == []


@pytest.mark.parametrize(
    ("prices", "more", "expected"),
    [
        # One cell has nothing; of three that are near each other the best two are gone on with.
        ([[], [0.3, 0.4], [0.2, 0.6], [0.25]], 0.1, [0.2, 0.25]),
        ([[0.3, 0.4], [0.2, 0.6], [0.11], [0.25]], 0.1, [0.11, 0.2]),
        ([[0.3, 0.4], [0.22, 0.6], [0.11]], 0.1, [0.11]),  # not below twice the lowest price
        ([[0.3], [0.2], [0.25]], 0.9 * DEFAULT.solved, [0.2]),
        ([[0.3], [0.2], [0.25]], 1.1 * DEFAULT.solved, [0.2, 0.25]),
    ],
)
def test_the_search_goes_on_in_two_cells_at_most_until_one_is_solved(
    measured, monkeypatch, prices, more, expected
):
    pattern, peaks = measured
    begun, continued = (searched([structure(p) for p in own]) for own in prices), []

    def one_more(key, one):
        continued.append((one.found[0].price, str(jax.random.key_data(key))))
        return [structure(more), *one.found]

    monkeypatch.setattr(search_module, "begin_search", lambda *_: next(begun))
    monkeypatch.setattr(search_module, "continue_search", one_more)
    contents = [RUTILE.atomic_numbers] * len(prices)
    found = search(jax.random.key(0), at_random, contents, pattern, peaks, 20, RUTILE.lattice)
    assert [price for price, _ in continued] == expected
    assert len({key for _, key in continued}) == len(continued)
    every = sorted([p for own in prices for p in own] + [more] * len(expected))
    first = [float(c.frac_coords[0, 0]) for c in found.crystals[: len(every)]]
    np.testing.assert_allclose(first, every)


def test_cells_without_any_structure_leave_the_draws(measured, monkeypatch):
    pattern, peaks = measured
    monkeypatch.setattr(search_module, "begin_search", lambda *_: searched([]))
    contents = [RUTILE.atomic_numbers]
    found = search(jax.random.key(0), at_random, contents, pattern, peaks, 4, RUTILE.lattice)
    assert len(found.crystals) == 4


def test_half_are_structures_found_then_annealed_draws_then_draws_as_they_are(
    measured, monkeypatch
):
    pattern, peaks = measured
    cheap = [structure(0.1 + 0.01 * k) for k in range(7)]
    annealed = [structure(0.5 + 0.01 * k, 0.3 - 0.01 * k, 1) for k in range(4)]
    pool = [*annealed[:2], *cheap[::-1], *annealed[2:]]
    monkeypatch.setattr(search_module, "begin_search", lambda *_: searched(pool))
    monkeypatch.setattr(search_module, "continue_search", lambda _, s: s.found)
    found = search(
        jax.random.key(0), at_random, [RUTILE.atomic_numbers], pattern, peaks, 10, RUTILE.lattice
    )
    assert len(found.crystals) == 10
    first = [float(c.frac_coords[0, 0]) for c in found.crystals[:7]]
    expected = [s.price for s in [*cheap[:5], annealed[3], annealed[2]]]
    np.testing.assert_allclose(first, expected)
    agreement = screen.agreement(found.crystals[7:], peaks, pattern.wavelength)
    assert (np.diff(agreement) <= 0).all()
