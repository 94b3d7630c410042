"""What a data set refuses."""

import numpy as np
import pytest

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.data.standard import check_crystal

CUBE = Crystal(np.array([11, 17]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), np.eye(3) * 4.0)


def test_a_sound_crystal_passes():
    check_crystal(CUBE, max_atoms=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"atomic_numbers": np.zeros(0, int), "frac_coords": np.zeros((0, 3))}, "no atoms"),
        ({"frac_coords": np.zeros((3, 3))}, "coordinates of shape"),
        ({"atomic_numbers": np.array([11, 0])}, "atomic number 0"),
        ({"atomic_numbers": np.array([11, 119])}, "atomic number 119"),
        ({"frac_coords": np.array([[0, 0, np.nan], [0.5, 0.5, 0.5]])}, "not finite"),
        ({"lattice": np.eye(3) * 40}, "per atom"),
        ({"lattice": np.eye(3)}, "per atom"),
        ({"lattice": np.diag([20, 20, 0.4])}, "0.4 angstrom high"),
        ({"frac_coords": np.array([[0.01, 0, 0], [0.99, 0, 0]])}, "0.08 angstrom apart"),
    ],
)
def test_unsound_crystals_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_crystal(CUBE._replace(**change))


def test_too_many_atoms_are_refused():
    with pytest.raises(ValueError, match="has 2 atoms, at most 1"):
        check_crystal(CUBE, max_atoms=1)
