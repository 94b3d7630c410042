"""Files and pymatgen structures."""

import numpy as np
import pytest

from xtalnet_jax.crystals import convert
from xtalnet_jax.crystals.crystal import Crystal


def perovskite() -> Crystal:
    frac = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    return Crystal(np.array([56, 22, 8, 8, 8]), frac, np.diag([4.0, 4.0, 4.1]))


def same(one: Crystal, other: Crystal) -> bool:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(primitive_cell=False, attempt_supercell=False, scale=False)
    return matcher.fit(one.to_structure(), other.to_structure())


@pytest.mark.parametrize("name", ["a.cif", "POSCAR", "a.vasp", "a.xyz"])
def test_files(tmp_path, name):
    crystal, path = perovskite(), tmp_path / name
    if name.endswith("xyz"):
        cart = crystal.frac_coords @ crystal.lattice
        cell = " ".join(map(str, crystal.lattice.ravel()))
        head = f'5\nLattice="{cell}" Properties=species:S:1:pos:R:3'
        rows = [f"{s} {x} {y} {z}" for s, (x, y, z) in zip(("Ba", "Ti", "O", "O", "O"), cart)]
        path.write_text("\n".join([head, *rows]))
    else:
        fmt = "cif" if name.endswith("cif") else "poscar"
        path.write_text(crystal.to_structure().to(fmt=fmt))
    read = Crystal.from_file(path)
    assert sorted(read.atomic_numbers) == [8, 8, 8, 22, 56]
    assert ((read.frac_coords >= 0) & (read.frac_coords < 1)).all()
    assert same(crystal, read)


def test_bad_files_are_explained(tmp_path):
    with pytest.raises(ValueError, match="no structure file"):
        Crystal.from_file(tmp_path / "missing.cif")
    (tmp_path / "broken.cif").write_text("data_x\n_cell_length_a 3\n")
    with pytest.raises(ValueError, match=r"cannot read .*broken\.cif"):
        Crystal.from_file(tmp_path / "broken.cif")
    (tmp_path / "molecule.xyz").write_text("1\nwater\nO 0 0 0\n")
    with pytest.raises(ValueError, match="Lattice"):
        Crystal.from_file(tmp_path / "molecule.xyz")


def test_disorder_is_refused():
    from pymatgen.core import Lattice, Structure

    mixed = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
    with pytest.raises(ValueError, match="disordered"):
        convert.crystal_from_structure(mixed)


def test_structure_round_trip():
    crystal = perovskite()
    again = Crystal.from_structure(crystal.to_structure())
    np.testing.assert_array_equal(again.atomic_numbers, crystal.atomic_numbers)
    np.testing.assert_allclose(again.frac_coords, crystal.frac_coords)
    np.testing.assert_allclose(again.lattice, crystal.lattice)
