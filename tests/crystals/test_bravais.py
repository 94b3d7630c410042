import numpy as np
import pytest

from xtalnet_jax.crystals.bravais import LATTICES, random_cells

ORDER = {"a": 2, "m": 4, "o": 8, "t": 16, "c": 48}
"""Operations of the lattice's point group by crystal family."""


@pytest.mark.parametrize("lattice", LATTICES)
def test_cells_have_the_volume_and_the_point_group_of_their_lattice(lattice):
    import spglib

    cells = random_cells(np.random.default_rng(1), lattice, np.full(6, 70.0))
    np.testing.assert_allclose(np.linalg.det(cells), 70.0, rtol=1e-9)
    order = {"hP": 24, "hR": 12}.get(lattice, ORDER.get(lattice[0]))
    for cell in cells:
        found = spglib.get_symmetry((cell, [[0, 0, 0]], [1]), symprec=1e-5)
        assert len(found["rotations"]) == order  # a primitive cell has no centring translations


def test_each_cell_has_its_own_volume_and_shape():
    wanted = np.linspace(20.0, 90.0, 4000)
    cells = random_cells(np.random.default_rng(0), "oP", wanted, ratio_sigma=0.3)
    np.testing.assert_allclose(np.linalg.det(cells), wanted, rtol=1e-9)
    logs = np.log(np.linalg.norm(cells, axis=-1))
    assert (logs[:, 0] - logs[:, 1]).std() == pytest.approx(0.3 * 2**0.5, rel=0.1)
