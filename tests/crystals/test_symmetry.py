"""Symmetry that is nearly there is found, imposed, and kept by the moves it allows."""

import numpy as np
import pytest
from spglib import get_symmetry_dataset

from xtalnet_jax.crystals import symmetry
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.data.fixtures import textbook_crystals

KNOWN = {  # space group, free cell parameters, free coordinates
    "perovskite": (221, 1, 0),
    "rutile": (136, 2, 1),
    "wurtzite": (186, 2, 1),
    "cadmium_iodide": (164, 2, 1),
    "fluorite": (225, 1, 0),
}


def number(crystal: Crystal, symprec: float = 1e-3) -> int:
    return get_symmetry_dataset(
        (crystal.lattice, crystal.frac_coords, crystal.atomic_numbers), symprec=symprec
    ).number


def shaken(crystal: Crystal, strain: float, move: float, seed: int = 0) -> Crystal:
    rng = np.random.default_rng(seed)
    e = rng.normal(size=(3, 3)) * strain
    lattice = crystal.lattice @ (np.eye(3) + (e + e.T) / 2)
    u = rng.normal(size=crystal.frac_coords.shape) * move
    return Crystal(
        crystal.atomic_numbers, crystal.frac_coords + u @ np.linalg.inv(lattice), lattice
    )


@pytest.mark.parametrize("name", KNOWN)
def test_degrees_of_freedom_are_those_of_the_wyckoff_positions(name):
    crystal = textbook_crystals()[name]
    operations = symmetry.find_operations(crystal, 1e-3)
    free = symmetry.freedom(crystal, operations)
    assert (operations.number, free.cell.shape[1], free.coord.shape[2]) == KNOWN[name]


def test_free_crystal_may_do_anything_but_shift_as_a_whole():
    crystal = textbook_crystals()["rutile"]
    free = symmetry.freedom(crystal, symmetry.identity_operations(crystal))
    assert free.cell.shape == (6, 6)
    assert free.coord.shape == (6, 3, 15)
    assert np.allclose(free.coord.sum(0), 0, atol=1e-12)
    flat = free.coord.reshape(18, 15)
    assert np.allclose(flat.T @ flat, np.eye(15), atol=1e-12)


@pytest.mark.parametrize("name", KNOWN)
def test_shaken_crystal_regains_its_space_group(name):
    truth = textbook_crystals()[name]
    crystal = shaken(truth, 0.005, 0.05)
    assert number(crystal, 1e-2) != KNOWN[name][0]
    best, operations = symmetry.symmetrize(crystal)[0]
    assert operations.number == KNOWN[name][0]
    assert number(best) == KNOWN[name][0]
    assert np.array_equal(best.atomic_numbers, truth.atomic_numbers)
    again = symmetry.impose(best, operations)
    assert np.allclose(again.lattice, best.lattice, atol=1e-9)
    difference = again.frac_coords - best.frac_coords
    assert np.allclose(difference - np.round(difference), 0, atol=1e-9)


def test_lower_symmetries_are_offered_too_and_are_distinct():
    found = symmetry.symmetrize(shaken(textbook_crystals()["rutile"], 0.01, 0.1), [0.5, 0.3, 0.1])
    orders = [len(operations.rotations) for _, operations in found]
    assert orders == sorted(orders, reverse=True)
    assert len({(o.number, len(o.rotations)) for _, o in found}) == len(found)


@pytest.mark.parametrize("name", KNOWN)
def test_allowed_moves_keep_the_space_group(name):
    crystal = textbook_crystals()[name]
    operations = symmetry.find_operations(crystal, 1e-3)
    free = symmetry.freedom(crystal, operations)
    rng = np.random.default_rng(1)
    xx, yy, zz, yz, xz, xy = free.cell @ rng.normal(size=free.cell.shape[1]) * 0.03
    e = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    u = free.coord @ rng.normal(size=free.coord.shape[2]) * 0.05
    lattice = crystal.lattice @ (np.eye(3) + e)
    frac = crystal.frac_coords + u @ np.linalg.inv(crystal.lattice)
    assert number(Crystal(crystal.atomic_numbers, frac, lattice)) == KNOWN[name][0]


def test_supercell_keeps_its_atoms_and_gains_translations():
    c = textbook_crystals()["caesium_chloride"]
    twice = Crystal(
        np.tile(c.atomic_numbers, 2),
        np.concatenate([c.frac_coords, c.frac_coords + [1, 0, 0]]) / [2, 1, 1],
        c.lattice * np.array([[2], [1], [1]]),
    )
    best, operations = symmetry.symmetrize(shaken(twice, 0.002, 0.03))[0]
    assert operations.number == 221
    assert len(best.atomic_numbers) == 4
    pure = np.all(operations.rotations == np.eye(3, dtype=int), axis=(1, 2))
    assert pure.sum() == 2


def test_structure_far_from_any_symmetry_offers_none():
    rng = np.random.default_rng(5)
    crystal = Crystal(np.array([3, 8, 22, 26]), rng.random((4, 3)), np.diag([4.0, 5.3, 7.1]) + 0.4)
    assert symmetry.symmetrize(crystal, [0.05]) == []


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_atoms_far_off_still_show_the_symmetry_of_their_lattice(name, seed):
    """0.15 angstrom per coordinate: no common tolerance recognises that, the lattice does."""
    truth = textbook_crystals()[name]
    crystal = shaken(truth, 0.002, 0.15, seed)
    strict = [o.number for _, o in symmetry.symmetrize(crystal, (0.1, 0.05))]
    assert KNOWN[name][0] not in strict
    found = symmetry.nearest_symmetries(crystal, (0.35, 0.5, 0.7))
    moved, operations = next(f for f in found if f[1].number == KNOWN[name][0])
    assert number(moved, 1e-4) == KNOWN[name][0]
    assert len(operations.rotations) == len(symmetry.find_operations(truth, 1e-3).rotations)
    cell = np.linalg.inv(crystal.lattice) @ moved.lattice
    np.testing.assert_allclose(cell, cell.T, atol=1e-5)  # strains, no rotation


def test_atoms_without_symmetry_get_none():
    rng = np.random.default_rng(0)
    crystal = Crystal(np.array([22, 8, 8, 56, 8]), rng.uniform(size=(5, 3)), np.eye(3) * 6.0)
    assert symmetry.nearest_symmetries(crystal, (0.1, 0.2)) == []
