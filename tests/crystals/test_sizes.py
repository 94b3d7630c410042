"""Groups of rows with sizes of their own."""

import jax
import numpy as np
import pytest

from xtalnet_jax.crystals.crystal import CrystalBatch
from xtalnet_jax.crystals.sizes import Sizes

SIZES = Sizes((2, 1), (2, 4))


def test_groups_cover_all_rows_in_order():
    assert list(SIZES.groups(3)) == [(slice(0, 2), 2), (slice(2, 3), 4)]


def test_split_cuts_rows_and_padding():
    numbers = np.array([[1, 0, 0, 0], [2, 3, 0, 0], [4, 5, 6, 7]])
    coords = np.arange(36.0).reshape(3, 4, 3)
    batch = CrystalBatch(numbers, coords, np.arange(27.0).reshape(3, 3, 3))
    small, large = SIZES.split(batch)
    np.testing.assert_array_equal(small.atomic_numbers, [[1, 0], [2, 3]])
    np.testing.assert_array_equal(small.frac_coords, batch.frac_coords[:2, :2])
    np.testing.assert_array_equal(large.frac_coords, batch.frac_coords[2:])
    np.testing.assert_array_equal(large.lattice, batch.lattice[2:])


def test_sizes_of_another_batch_are_refused():
    with pytest.raises(ValueError, match=r"a batch of 6 crystals .*train\.accumulate must be 1"):
        list(SIZES.groups(6))


def test_sizes_are_part_of_the_structure_not_of_the_data():
    assert jax.tree.leaves(SIZES) == []
    assert jax.tree.structure(SIZES) == jax.tree.structure(Sizes((2, 1), (2, 4)))
    assert jax.tree.structure(SIZES) != jax.tree.structure(Sizes((1, 2), (2, 4)))
