"""Volumes of elements are found from those of crystals, and foretell those of textbook cells."""

import numpy as np
import pytest

from xtalnet_jax.crystals import volumes
from xtalnet_jax.crystals.elements import ATOMIC_NUMBERS, SYMBOLS
from xtalnet_jax.data.fixtures import textbook_crystals


def compounds(rng, num=400):
    """Random compounds of four elements, and their volumes if each element has its own."""
    own = {8: 11.0, 14: 4.0, 20: 26.0, 56: 38.0}
    numbers = [rng.choice(list(own), rng.integers(1, 12)) for _ in range(num)]
    return own, numbers, np.array([sum(own[z] for z in row) for row in numbers])


def test_volumes_that_made_the_data_are_found():
    own, numbers, cells = compounds(np.random.default_rng(0))
    found = volumes.fit_atomic_volumes(numbers, cells)
    assert {ATOMIC_NUMBERS[symbol] for symbol in found} == set(own)
    assert [found[SYMBOLS[z]] for z in own] == pytest.approx(list(own.values()), rel=1e-6)


def test_a_few_absurd_cells_change_little():
    rng = np.random.default_rng(1)
    own, numbers, cells = compounds(rng)
    cells = cells * np.exp(0.05 * rng.normal(size=len(cells)))
    cells[:20] *= 5.0
    found = volumes.fit_atomic_volumes(numbers, cells)
    assert [found[SYMBOLS[z]] for z in own] == pytest.approx(list(own.values()), rel=0.1)


def test_textbook_cells_have_about_the_expected_volume():
    ratios = {
        name: volumes.volume_ratio(c.atomic_numbers, c.lattice)
        for name, c in textbook_crystals().items()
    }
    assert all(0.6 < ratio < 1.6 for ratio in ratios.values()), ratios
    assert np.median(np.abs(np.log(list(ratios.values())))) < 0.15


def test_ratio_is_of_the_volume_and_not_of_the_cell_chosen():
    crystal = next(iter(textbook_crystals().values()))
    one = volumes.volume_ratio(crystal.atomic_numbers, crystal.lattice)
    sheared = np.array([[1, 0, 0], [2, 1, 0], [0, -1, -1]]) @ crystal.lattice
    assert volumes.volume_ratio(crystal.atomic_numbers, sheared) == pytest.approx(one)
    double = np.diag([2, 1, 1]) @ crystal.lattice
    assert volumes.volume_ratio(crystal.atomic_numbers, double) == pytest.approx(2 * one)


def test_elements_without_data_get_the_median():
    table = volumes.atomic_volumes()
    assert table.shape == (len(SYMBOLS),)
    assert (table > 0).all()
    assert table[ATOMIC_NUMBERS["Og"]] == pytest.approx(np.median(table), rel=0.2)
    assert table[ATOMIC_NUMBERS["Cs"]] > 2 * table[ATOMIC_NUMBERS["O"]]
