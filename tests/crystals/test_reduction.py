"""The standard form is the same crystal, and does not depend on the cell that came in."""

import numpy as np
import pytest
import spglib

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.reduction import primitive, standard_frame, standardise, wrap

UNIMODULAR = np.array([[2, 1, 0], [1, 1, 0], [-3, 1, 1]])  # determinant 1


def random_crystal(seed: int, n: int = 5) -> Crystal:
    rng = np.random.default_rng(seed)
    lattice = rng.normal(0, 2, (3, 3)) + 6 * np.eye(3)
    return Crystal(rng.integers(1, 90, n), rng.random((n, 3)), lattice)


def distances(crystal: Crystal, reach: float = 7.0) -> np.ndarray:
    """Sorted (distance, Z_i Z_j) of all pairs within reach: the crystal, whatever the cell."""
    z, frac, lattice = (np.asarray(v, np.float64) for v in crystal)
    heights = 1 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    box = np.ceil(reach / heights).astype(int) + 1
    axes = [np.arange(-b, b + 1) for b in box]
    images = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    delta = frac[:, None, None] - frac[None, :, None] + images[None, None]
    length = np.linalg.norm(delta @ lattice, axis=-1)
    weight = np.broadcast_to((z[:, None] * z[None])[..., None], length.shape)
    kept = length < reach
    return np.array(sorted(zip(length[kept].round(3), weight[kept])))


@pytest.mark.parametrize("seed", range(8))
def test_interatomic_distances_are_those_of_the_crystal_given(seed):
    crystal = random_crystal(seed)
    skewed = Crystal(
        crystal.atomic_numbers,
        crystal.frac_coords @ np.linalg.inv(UNIMODULAR),
        UNIMODULAR @ crystal.lattice,
    )
    if seed % 2:  # a left-handed frame must not turn the crystal into its mirror image
        skewed = skewed._replace(
            lattice=skewed.lattice[[1, 0, 2]], frac_coords=skewed.frac_coords[:, [1, 0, 2]]
        )
    a, b = distances(crystal, 6.0), distances(standardise(skewed), 6.0)
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, atol=2.1e-3)


def signed_volumes(crystal: Crystal) -> float:
    """Triple product of three differences of atoms: its sign is the handedness of the crystal."""
    delta = crystal.frac_coords[1:4] - crystal.frac_coords[0]
    return float(np.linalg.det(delta @ crystal.lattice))


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2]])
def test_handedness_of_the_crystal_is_kept(order):
    # Atoms close together, so that the same images stay nearest whatever the cell.
    frac = 0.5 + 0.1 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    crystal = Crystal(np.array([1, 6, 7, 8]), frac[:, order], (np.eye(3) * 6)[order])
    result = standardise(crystal, niggli=False)
    delta = result.frac_coords[1:4] - result.frac_coords[0]
    delta -= np.rint(delta)
    assert np.linalg.det(delta @ result.lattice) == pytest.approx(signed_volumes(crystal), rel=1e-4)
    assert np.linalg.det(result.lattice) > 0


@pytest.mark.parametrize("seed", range(5))
def test_cell_is_niggli_and_in_the_frame_of_its_parameters(seed):
    from pymatgen.core import Lattice

    result = standardise(random_crystal(seed))
    a, _, c = result.lattice
    assert a[1] == c[0] == c[1] == 0
    assert c[2] > 0
    assert np.linalg.det(result.lattice) > 0
    again = Lattice.from_parameters(*Lattice(result.lattice).parameters).matrix
    np.testing.assert_allclose(result.lattice, again, atol=1e-6)
    metric = np.asarray(spglib.niggli_reduce(result.lattice))
    np.testing.assert_allclose(metric @ metric.T, result.lattice @ result.lattice.T, atol=1e-6)


def test_rounding_does_not_choose_between_equivalent_cells(structures):
    from xtalnet_jax.data.sources import open_source

    source = open_source(structures / "mp20_test.npz")
    rng = np.random.default_rng(0)
    changed = 0
    rows = rng.choice(len(source), 200, replace=False)
    for row in rows:
        crystal = source[int(row)].crystal
        noise = 1 + 1e-7 * rng.standard_normal((3, 3))
        cells = (crystal.lattice, (UNIMODULAR @ crystal.lattice) * noise)
        first, second = (standardise(crystal._replace(lattice=c)).lattice for c in cells)
        changed += not np.allclose(first @ first.T, second @ second.T, atol=0.05)
    assert changed <= 4  # 40 with a tolerance of 1e-5


def test_structure_matcher_sees_no_change(structures):
    from pymatgen.analysis.structure_matcher import StructureMatcher

    from xtalnet_jax.data.sources import open_source

    source = open_source(structures / "mp20_test.npz")
    matcher = StructureMatcher(primitive_cell=False, stol=0.01, ltol=0.01, angle_tol=0.1)
    for row in range(0, len(source), len(source) // 12):
        crystal = source[row].crystal
        assert matcher.fit(_structure(crystal), _structure(standardise(crystal)))


def _structure(crystal):
    from pymatgen.core import Structure

    return Structure(crystal.lattice, crystal.atomic_numbers, crystal.frac_coords)


def test_standard_frame_is_a_rotation():
    lattice = random_crystal(3).lattice
    turned = standard_frame(lattice)
    np.testing.assert_allclose(turned @ turned.T, lattice @ lattice.T, atol=1e-9)
    assert np.linalg.det(turned) == pytest.approx(np.linalg.det(lattice))


def test_wrapped_coordinates_stay_below_one_in_float32():
    wrapped = wrap(np.array([[-1e-12, 1.0, 0.25]]))
    assert wrapped.dtype == np.float32
    np.testing.assert_array_equal(wrapped, np.array([[0.0, 0.0, 0.25]], np.float32))


CUBE = Crystal(np.array([11, 17]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), np.eye(3) * 4.0)


@pytest.mark.parametrize("lattice", [np.zeros((3, 3)), np.full((3, 3), np.nan)])
def test_lattice_without_volume_is_refused(lattice):
    with pytest.raises(ValueError, match="spans no volume"):
        standardise(CUBE._replace(lattice=lattice))


def _diamond(conventional):
    from pymatgen.core import Lattice, Structure

    silicon = Structure.from_spacegroup("Fd-3m", Lattice.cubic(5.431), ["Si"], [[0.0] * 3])
    return Crystal.from_structure(silicon if conventional else silicon.get_primitive_structure())


def test_primitive_cell_of_a_conventional_one():
    conventional, cell = _diamond(True), primitive(_diamond(True))
    assert len(conventional.atomic_numbers) == 8
    assert cell.atomic_numbers.tolist() == [14, 14]
    volume = abs(np.linalg.det(cell.lattice))
    assert volume == pytest.approx(abs(np.linalg.det(conventional.lattice)) / 4, rel=1e-5)
    # the atoms did not move: each lies on an atom of the conventional cell
    cartesian = np.asarray(cell.frac_coords) @ cell.lattice
    frac = cartesian @ np.linalg.inv(conventional.lattice)
    apart = (frac[:, None] - np.asarray(conventional.frac_coords)[None] + 0.5) % 1.0 - 0.5
    assert np.linalg.norm(apart, axis=-1).min(1).max() < 1e-4


def test_a_primitive_cell_is_left_alone():
    cell = _diamond(False)
    assert primitive(cell) is cell
    displaced = _diamond(True)
    coords = np.array(displaced.frac_coords)
    coords[0, 0] += 0.02  # 0.1 angstrom: no longer a translation of the others
    displaced = displaced._replace(frac_coords=coords)
    assert primitive(displaced) is displaced
