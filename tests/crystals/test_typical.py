"""Sizes of elements are found from those of crystals, and foretell those of textbook cells."""

import numpy as np
import pytest

from xtalnet_jax.crystals import typical
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.elements import ATOMIC_NUMBERS, SYMBOLS
from xtalnet_jax.data.fixtures import textbook_crystals

TEXTBOOK = textbook_crystals()


def compounds(rng, num=400):
    """Random compounds of four elements, and their volumes if each element has its own."""
    own = {8: 11.0, 14: 4.0, 20: 26.0, 56: 38.0}
    numbers = [rng.choice(list(own), rng.integers(1, 12)) for _ in range(num)]
    return own, numbers, np.array([sum(own[z] for z in row) for row in numbers])


def test_sizes_that_made_the_data_are_found():
    own, numbers, cells = compounds(np.random.default_rng(0))
    found = typical.fit_sizes(numbers, cells)
    assert {ATOMIC_NUMBERS[symbol] for symbol in found} == set(own)
    assert [found[SYMBOLS[z]] for z in own] == pytest.approx(list(own.values()), rel=1e-6)


def test_a_few_absurd_cells_change_little():
    rng = np.random.default_rng(1)
    own, numbers, cells = compounds(rng)
    cells = cells * np.exp(0.05 * rng.normal(size=len(cells)))
    cells[:20] *= 5.0
    found = typical.fit_sizes(numbers, cells)
    assert [found[SYMBOLS[z]] for z in own] == pytest.approx(list(own.values()), rel=0.1)


def dimer(first: int, second: int, distance: float) -> Crystal:
    """Two atoms far from their images."""
    coords = np.array([[0.1, 0.2, 0.3], [0.1 + distance / 12, 0.2, 0.3]])
    return Crystal(np.array([first, second]), coords, 12.0 * np.eye(3))


def test_radii_and_corrections_of_pairs_that_made_the_data_are_found():
    radii, special = {3: 1.2, 8: 0.7, 9: 0.6, 17: 1.0}, {(3, 9): 1.15, (9, 3): 1.15}
    pairs = [(a, b) for a in radii for b in radii]
    usual = {(a, b): (radii[a] + radii[b]) * special.get((a, b), 1.0) for a, b in pairs}
    made = typical.fit([dimer(a, b, usual[a, b]) for a, b in pairs for _ in range(50)])
    found = [made["radii"][SYMBOLS[z]] for z in radii]
    assert found == pytest.approx([*radii.values()], rel=0.06)  # the special pair pulls
    for a, b in pairs:
        pair = "-".join(SYMBOLS[z] for z in sorted((a, b)))
        sizes = made["radii"][SYMBOLS[a]] + made["radii"][SYMBOLS[b]]
        assert sizes * np.exp(made["corrections"][pair]) == pytest.approx(usual[a, b], rel=0.02)
    assert made["corrections"]["Li-F"] > 0.07
    few = typical.fit([dimer(a, b, usual[a, b]) for a, b in pairs])
    assert 0.0 < few["corrections"]["Li-F"] < made["corrections"]["Li-F"]


def test_nearest_neighbours_are_those_of_the_textbook():
    _, distance = typical.nearest_neighbours(TEXTBOOK["silicon"])
    np.testing.assert_allclose(distance, 3**0.5 / 4 * 5.4310, rtol=1e-3)
    caesium = TEXTBOOK["caesium_chloride"]
    neighbour, distance = typical.nearest_neighbours(caesium)
    assert neighbour.tolist() == [1, 0]
    np.testing.assert_allclose(distance, 3**0.5 / 2 * caesium.lattice[0, 0], rtol=1e-5)
    alone = Crystal(np.array([14]), np.zeros((1, 3)), 2.7 * np.eye(3))
    assert typical.nearest_neighbours(alone)[1] == pytest.approx(2.7)


def test_textbook_crystals_are_usual():
    ratios = [typical.volume_ratio(c.atomic_numbers, c.lattice) for c in TEXTBOOK.values()]
    assert all(0.6 < ratio < 1.6 for ratio in ratios), ratios
    assert np.median(np.abs(np.log(ratios))) < 0.15
    assert max(typical.crowding(c) for c in TEXTBOOK.values()) < 0.15


def test_crowding_is_the_logarithm_of_the_shortest_over_the_usual_distance():
    usual = float(typical.typical().distance(np.array([11]), np.array([17]))[0])
    assert usual == pytest.approx(2.8, abs=0.15)
    assert typical.crowding(dimer(11, 17, usual / 1.3)) == pytest.approx(np.log(1.3), rel=1e-5)
    assert typical.crowding(dimer(11, 17, usual * 1.3)) == 0.0
    assert np.isfinite(typical.crowding(dimer(11, 17, 0.0)))


def test_ratio_is_of_the_volume_and_not_of_the_cell_chosen():
    crystal = TEXTBOOK["silicon"]
    one = typical.volume_ratio(crystal.atomic_numbers, crystal.lattice)
    sheared = np.array([[1, 0, 0], [2, 1, 0], [0, -1, -1]]) @ crystal.lattice
    assert typical.volume_ratio(crystal.atomic_numbers, sheared) == pytest.approx(one)
    double = np.diag([2, 1, 1]) @ crystal.lattice
    assert typical.volume_ratio(crystal.atomic_numbers, double) == pytest.approx(2 * one)


def test_elements_without_data_get_the_median():
    table = typical.typical()
    assert table.volumes.shape == table.radii.shape == (len(SYMBOLS),)
    assert table.corrections.shape == (len(SYMBOLS), len(SYMBOLS))
    np.testing.assert_array_equal(table.corrections, table.corrections.T)
    for sizes in (table.volumes, table.radii):
        assert (sizes > 0).all()
        assert sizes[ATOMIC_NUMBERS["Og"]] == pytest.approx(np.median(sizes), rel=0.2)
    assert table.volumes[ATOMIC_NUMBERS["Cs"]] > 2 * table.volumes[ATOMIC_NUMBERS["O"]]
