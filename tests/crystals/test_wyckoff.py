"""Groups and Wyckoff positions of cells, against the International Tables and spglib."""

import numpy as np
import pytest
import spglib

from tests.direct_space import cells
from xtalnet_jax.crystals import wyckoff

LAST = {"a": 2, "m": 15, "o": 74, "t": 142, "h": 194, "c": 230}  # group of each family

NUM_POSITIONS = {  # International Tables A, chapter 2.3
    1: 1, 2: 9, 12: 10, 14: 5, 15: 6, 38: 6, 47: 27, 57: 5, 61: 3, 62: 4, 63: 8, 69: 16, 70: 8,
    71: 15, 127: 12, 129: 11, 136: 11, 139: 15, 140: 13, 141: 9, 148: 6, 155: 6, 160: 3, 164: 10,
    166: 9, 167: 6, 176: 9, 180: 11, 186: 4, 187: 15, 191: 18, 193: 12, 194: 12, 198: 2, 205: 4,
    206: 5, 216: 9, 221: 14, 223: 12, 225: 12, 227: 9, 229: 12, 230: 8,
}  # fmt: skip

POSITIONS = {  # lattice, multiplicities in the conventional cell, free coordinates
    1: ("aP", [1], [3]),
    2: ("aP", [1] * 8 + [2], [0] * 8 + [3]),
    15: ("mC", [4] * 5 + [8], [0] * 4 + [1, 3]),
    62: ("oP", [4, 4, 4, 8], [0, 0, 2, 3]),
    88: ("tI", [4, 4, 8, 8, 8, 16], [0, 0, 0, 0, 1, 3]),
    122: ("tI", [4, 4, 8, 8, 16], [0, 0, 1, 1, 3]),
    136: ("tP", [2, 2, 4, 4, 4, 4, 4, 8, 8, 8, 16], [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3]),
    161: ("hR", [6, 18], [1, 3]),
    166: ("hR", [3, 3, 6, 9, 9, 18, 18, 18, 36], [0, 0, 1, 0, 0, 1, 1, 2, 3]),
    186: ("hP", [2, 2, 6, 12], [1, 1, 2, 3]),
    194: (
        "hP",
        [2, 2, 2, 2, 4, 4, 6, 6, 12, 12, 12, 24],
        [0, 0, 0, 0, 1, 1, 0, 1, 1, 2, 2, 3],
    ),
    205: ("cP", [4, 4, 8, 24], [0, 0, 1, 3]),
    216: ("cF", [4, 4, 4, 4, 16, 24, 24, 48, 96], [0, 0, 0, 0, 1, 1, 1, 2, 3]),
    225: (
        "cF",
        [4, 4, 8, 24, 24, 32, 48, 48, 48, 96, 96, 192],
        [0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 3],
    ),
    227: ("cF", [8, 8, 16, 16, 32, 48, 96, 96, 192], [0, 0, 0, 0, 1, 1, 2, 1, 3]),
    230: ("cI", [16, 16, 24, 24, 32, 48, 48, 96], [0, 0, 0, 0, 1, 1, 1, 3]),
}


def one_of_each(name):
    return {g.number: g for g in reversed(cells.groups(name))}


def numbers_of_lattice(name):
    """Space groups whose symbol begins with the letter of the centring."""
    last = LAST[name[0]]
    first = 1 + max((v for v in LAST.values() if v < last), default=0)
    letters = "AC" if name[1] == "C" else name[1]
    kinds = [spglib.get_spacegroup_type(hall) for hall in range(1, 531)]
    return {
        k.number for k in kinds if first <= k.number <= last and k.international_short[0] in letters
    }


def test_the_lattices_share_all_groups():
    assert sum(len(numbers_of_lattice(name)) for name in cells.BRAVAIS) == 230


@pytest.mark.parametrize("name", cells.BRAVAIS)
def test_a_lattice_has_the_groups_of_its_centring(name):
    assert {g.number for g in cells.groups(name)} == numbers_of_lattice(name)


@pytest.mark.parametrize("name", cells.BRAVAIS)
def test_operations_form_groups_of_isometries(name):
    lattice = cells.primitive(name)
    metric = lattice @ lattice.T
    for g in cells.groups(name):
        w, t = g.rotations, g.translations
        np.testing.assert_array_equal(w[0], np.eye(3))
        np.testing.assert_array_equal(t[0], 0)
        turned = w.swapaxes(1, 2) @ metric @ w
        np.testing.assert_allclose(turned, np.tile(metric, (len(w), 1, 1)), atol=1e-9)
        codes = {m.tobytes(): k for k, m in enumerate(w)}
        assert len(codes) == len(w)
        product = np.einsum("iab,jbc->ijac", w, w)
        shift = np.einsum("iab,jb->ija", w, t) + t[:, None]
        which = [[codes[np.ascontiguousarray(m).tobytes()] for m in row] for row in product]
        away = shift - t[np.array(which)]
        assert np.abs(away - np.round(away)).max() < 1e-9


def test_numbers_of_positions_are_those_of_the_tables():
    """1731 positions in all; every setting of a group has as many."""
    found = {}
    for name in cells.BRAVAIS:
        for g in cells.groups(name):
            found.setdefault(g.number, set()).add(len(wyckoff.sites_of(g)))
    assert all(len(v) == 1 for v in found.values())
    found = {k: v.pop() for k, v in found.items()}
    assert {k: found[k] for k in NUM_POSITIONS} == NUM_POSITIONS
    assert sum(found.values()) == 1731


@pytest.mark.parametrize("number", POSITIONS)
def test_multiplicities_and_freedom_are_those_of_the_tables(number):
    name, multiplicity, free = POSITIONS[number]
    centring = round(1 / np.linalg.det(cells.CENTRING[name[1]]))
    sites = wyckoff.sites_of(cells.group(name, number))
    found = [(len(s.rotations) * centring, s.num_free) for s in sites]
    assert sorted(found) == sorted(zip(multiplicity, free))
    assert [s.num_free for s in sites] == sorted(free)
    assert all(round(np.trace(s.project)) == s.num_free for s in sites)


@pytest.mark.parametrize("name", cells.BRAVAIS)
def test_orbits_are_invariant_and_their_points_differ(name):
    rng = np.random.default_rng(0)
    for g in one_of_each(name).values():
        for site in wyckoff.sites_of(g):
            atoms = cells.orbit(site, rng.uniform(size=3))
            images = np.einsum("oab,nb->noa", g.rotations, atoms) + g.translations
            assert cells.distances(images.reshape(-1, 3), atoms).min(1).max() < 1e-6
            assert (cells.distances(atoms, atoms) + np.eye(len(atoms))).min() > 1e-4


@pytest.mark.parametrize("name", cells.BRAVAIS)
def test_spglib_finds_the_group_that_was_meant(name):
    """Two general positions have no other symmetry; special ones keep all there is."""
    for number, g in one_of_each(name).items():
        sites = wyckoff.sites_of(g)
        general = sites[-1]
        crystal = cells.crystal_on(name, [general, general, sites[0]], [5, 6, 7])
        data = spglib.get_symmetry_dataset(
            (crystal.lattice, crystal.frac_coords, crystal.atomic_numbers), symprec=1e-4
        )
        assert data.number == number


def test_sites_of_equal_groups_are_found_once():
    g = cells.group("hP", 194)
    again = wyckoff.sites_of(g._replace(rotations=g.rotations.copy()))
    assert all(a is b for a, b in zip(wyckoff.sites_of(g), again))


def test_a_lattice_within_symprec_counts_and_one_beyond_falls_to_a_lower_family():
    def numbers(distortion, **options):
        lattice = cells.rows_of(4.6, 4.6 + distortion, 2.96, 90, 90, 90)
        return {g.number for g in wyckoff.groups_of_cell(lattice, **options)}

    assert numbers(0.02) == numbers(0.0) == numbers_of_lattice("tP")
    assert numbers(0.2) == numbers_of_lattice("oP")
    assert numbers(0.02, symprec=0.005) == numbers_of_lattice("oP")
    slanted = cells.rows_of(4.6, 4.6, 2.96, 90, 90, 97)
    assert {g.number for g in wyckoff.groups_of_cell(slanted)} == numbers_of_lattice("oC")


def test_cells_of_one_lattice_have_the_same_groups():
    lattice = cells.primitive("oI")
    other = np.array([[1, 1, 0], [0, 1, 0], [2, 1, 1]]) @ lattice
    settings = [sorted(g.number for g in wyckoff.groups_of_cell(c)) for c in (lattice, other)]
    assert settings[0] == settings[1]
