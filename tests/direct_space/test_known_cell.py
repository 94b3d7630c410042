"""Reflections of a known cell: absences and kinds of equal strength of the space groups."""

import numpy as np
import pytest

from tests.direct_space import cells
from xtalnet_jax.crystals import wyckoff
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.elements import ATOMIC_RADII
from xtalnet_jax.crystals.reduction import standardise
from xtalnet_jax.crystals.wyckoff import P1
from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.direct_space import known_cell
from xtalnet_jax.pxrd.hkl import hkl_table
from xtalnet_jax.pxrd.simulate import simulate_pattern

pytestmark = pytest.mark.optimised

TEXTBOOK = {"rutile": 136, "cuprite": 224, "wurtzite": 186, "cadmium_iodide": 164}
BUILT = [  # one of each Laue class that matters, on all its sites of few atoms
    ("aP", 2), ("mP", 14), ("mC", 15), ("oP", 62), ("oF", 70), ("tI", 88), ("tP", 136), ("hR", 148),
    ("hP", 152), ("hP", 157), ("hR", 161), ("hP", 176), ("hP", 186), ("cP", 205), ("cI", 217),
    ("cP", 198),
]  # fmt: skip


def prepared(crystal, atomic_numbers=None):
    numbers = crystal.atomic_numbers if atomic_numbers is None else atomic_numbers
    pattern = simulate_pattern([crystal])[0]
    return known_cell.known_cell(crystal.lattice, numbers, pattern, 0.2, 0.02, 0.3, 0.75)


def profile(cell, group, crystal, num_nodes=32):
    """Heights at the angles of the cell, with the reflections of a group."""
    absent = known_cell.absences(cell.hkl, group)
    r = known_cell.reflections_of(cell, group, absent, num_nodes)
    order = np.argsort(crystal.atomic_numbers, kind="stable")
    frac = np.zeros((num_nodes, 3))
    frac[: len(order)] = np.asarray(crystal.frac_coords)[order]
    strength = np.abs((r.amplitude * np.exp(2j * np.pi * frac @ r.hkl.T)).sum(0)) ** 2
    return (r.shape @ strength)[: len(cell.root)]


def misfit(cell, heights):
    root = np.sqrt(heights / heights.mean() + cell.floor) - cell.floor**0.5
    return 1 - (root @ cell.root) ** 2 / (root @ root)


def leaves_invariant(group, crystal):
    x, z = np.asarray(crystal.frac_coords, float), crystal.atomic_numbers
    return all(
        (cells.distances(x @ w.T + t, x) + 9 * (z[:, None] != z[None])).min(1).max() < 1e-4
        for w, t in zip(group.rotations, group.translations)
    )


def structure_factors(hkl, group, seed=0):
    """Of three atoms of unlike strength in general positions."""
    rng = np.random.default_rng(seed)
    x = np.einsum("oab,nb->noa", group.rotations, rng.uniform(size=(3, 3))) + group.translations
    waves = np.exp(2j * np.pi * np.einsum("hc,noc->hno", hkl, x)).sum(-1)
    return np.abs(waves @ np.array([1.0, 1.7, 2.9])) / len(group.rotations)


@pytest.fixture(scope="module")
def rutile():
    crystal = standardise(textbook_crystals()["rutile"])
    return crystal, prepared(crystal)


@pytest.mark.parametrize("name", TEXTBOOK)
def test_the_truth_fits_in_its_group_in_subgroups_and_in_p1(name):
    crystal = standardise(textbook_crystals()[name])
    # Of cuprite the origin of choice 1 is listed; some of its groups have that of choice 2.
    moved = crystal._replace(frac_coords=(crystal.frac_coords + 0.25) % 1.0)
    cell = prepared(crystal)
    free = profile(cell, P1, crystal)
    assert misfit(cell, free) < 1e-3
    groups = wyckoff.groups_of_cell(crystal.lattice)
    own = [(g, c) for g in groups for c in (crystal, moved) if leaves_invariant(g, c)]
    assert TEXTBOOK[name] in {g.number for g, _ in own}
    assert len(own) > 2
    for g, c in own:
        heights = profile(cell, g, c)
        np.testing.assert_allclose(heights, free, rtol=2e-4, atol=1e-5 * free.max())
        assert misfit(cell, heights) == pytest.approx(misfit(cell, free), abs=1e-6)


@pytest.mark.parametrize(("name", "number"), BUILT)
def test_reflections_of_a_group_are_those_of_p1(name, number):
    sites = wyckoff.sites_of(cells.group(name, number))
    chosen = [sites[-1], sites[0]] if len(sites[-1].rotations) < 13 else [sites[-2], sites[-3]]
    crystal = cells.crystal_on(name, chosen, [8, 22])
    cell = prepared(crystal)
    free = profile(cell, P1, crystal)
    heights = profile(cell, cells.group(name, number), crystal)
    np.testing.assert_allclose(heights, free, rtol=2e-4, atol=1e-5 * free.max())
    assert misfit(cell, free) < 5e-3  # tails of the peaks


def test_kinds_of_a_group_are_not_equally_strong_without_it(rutile):
    """The equality of the profiles is not empty: it fails as soon as one atom moves."""
    crystal, cell = rutile
    frac = np.array(crystal.frac_coords)
    frac[0] += [0.11, 0.03, 0.0]
    moved = crystal._replace(frac_coords=frac)
    own = next(g for g in wyckoff.groups_of_cell(crystal.lattice) if g.number == 136)
    heights = [profile(cell, g, moved) for g in (P1, own)]
    assert np.abs(heights[0] - heights[1]).max() > 0.1 * heights[0].max()


@pytest.mark.parametrize(("name", "number"), [("tP", 75), ("hP", 152), ("mP", 4), ("cP", 195)])
def test_one_reflection_stands_for_all_of_its_strength(rutile, name, number):
    """As many kinds as strengths of a crystal in general, Friedel mates alike; 1/d rises."""
    lattice, g = cells.primitive(name), cells.group(name, number)
    hkl = hkl_table(lattice[None], 0.9).hkl.astype(int)
    n = len(hkl)
    cell = rutile[1]._replace(
        lattice=lattice, hkl=hkl, amplitude=np.ones((2, n)), shape=np.ones((3, n)), root=np.ones(3)
    )
    absent = known_cell.absences(hkl, g)
    r = known_cell.reflections_of(cell, g, absent, 8)
    real = r.shape[0] > 0
    strengths = np.unique(np.round(structure_factors(hkl[~absent], g), 9))
    assert real.sum() == len(strengths) < (~absent).sum()
    assert (r.amplitude[0, real] ** 2).sum() == pytest.approx(2 * (~absent).sum())
    inv_d = np.linalg.norm(r.hkl[real] @ np.linalg.inv(lattice).T, axis=1)
    assert (np.diff(inv_d) > -1e-5).all()


@pytest.mark.parametrize("name", cells.BRAVAIS)
def test_absent_is_what_general_positions_extinguish(name):
    axis = np.arange(-4, 5)
    hkl = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    for g in {g.number: g for g in cells.groups(name)}.values():
        absent = known_cell.absences(hkl, g)
        strength = structure_factors(hkl, g)
        np.testing.assert_array_equal(absent, strength < 1e-9)


def even(v):
    return v % 2 == 0


RULES = {  # International Tables A, 2.3: what is not absent
    ("mP", 14): lambda h, k, l: ((k != 0) | even(l)) & ((h != 0) | (l != 0) | even(k)),
    ("oP", 62): lambda h, k, l: (
        ((h != 0) | even(k + l))
        & ((l != 0) | even(h))
        & ((k != 0) | (l != 0) | even(h))
        & ((h != 0) | (l != 0) | even(k))
        & ((h != 0) | (k != 0) | even(l))
    ),
    ("cF", 225): lambda h, k, l: even(h + k),
    ("cF", 227): lambda h, k, l: (
        ((h != 0) | ((k + l) % 4 == 0))
        & ((k != 0) | ((h + l) % 4 == 0))
        & ((l != 0) | ((h + k) % 4 == 0))
    ),
}


@pytest.mark.parametrize(("name", "number"), RULES)
def test_absences_are_those_of_the_tables(name, number):
    """P2_1/c, Pnma and diamond, whose 200 is absent by the d glide and whose 220 is not."""
    axis = np.arange(-5, 6)
    hkl = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    conventional = np.round(hkl @ np.linalg.inv(cells.CENTRING[name[1]]).T).astype(int)
    expected = ~RULES[name, number](*conventional.T)
    settings = [g for g in cells.groups(name) if g.number == number]
    assert any(np.array_equal(known_cell.absences(hkl, g), expected) for g in settings)
    assert expected.any() == (number != 225)


def test_forbidden_strong_lines_are_unexplained(rutile):
    """P4/mcc has no 101, the second strongest line of rutile."""
    _, cell = rutile

    def missed(group):
        return known_cell.unexplained(cell, known_cell.absences(cell.hkl, group))

    lattice_groups = {g.number: g for g in wyckoff.groups_of_cell(cell.lattice)}
    assert missed(P1) == 0
    assert missed(lattice_groups[136]) < 1e-3
    assert missed(lattice_groups[124]) > 0.1
    every = np.ones(len(cell.hkl), bool)
    assert known_cell.unexplained(cell, every) == pytest.approx(1)


def test_unexplained_bounds_the_misfit(rutile):
    """Whatever the atoms do, a group that forbids lines fits no better."""
    _, cell = rutile
    rng = np.random.default_rng(0)
    for g in wyckoff.groups_of_cell(cell.lattice)[::6]:
        least = known_cell.unexplained(cell, known_cell.absences(cell.hkl, g))
        for _ in range(3):
            crystal = Crystal(cell.atomic_numbers, rng.uniform(size=(6, 3)), cell.lattice)
            assert misfit(cell, profile(cell, g, crystal)) > least - 1e-2


def test_angles_are_apart_and_all_reflections_are_near_one(rutile):
    crystal, cell = rutile
    near = np.exp(-4 * np.log(2) * known_cell.SPACING**2)
    assert cell.shape.max(0).min() >= near
    np.testing.assert_array_equal(cell.shape.max(1), 1)
    at_angles = cell.shape[:, cell.shape.argmax(1)]
    assert (at_angles - np.eye(len(at_angles))).max() < near
    assert np.linalg.norm(cell.root) == pytest.approx(1)
    inv_d = np.linalg.norm(cell.hkl @ np.linalg.inv(crystal.lattice).T, axis=1)
    assert (np.diff(inv_d) > -1e-9).all()


def test_order_of_the_atoms_does_not_matter(rutile):
    crystal, cell = rutile
    again = prepared(crystal, crystal.atomic_numbers[::-1])
    for a, b in zip(cell, again):
        np.testing.assert_array_equal(a, b)
    assert cell.atomic_numbers.tolist() == [8, 8, 8, 8, 22, 22]
    assert cell.closest[0, 5] == pytest.approx(0.75 * (ATOMIC_RADII[8] + ATOMIC_RADII[22]))


def test_padding_changes_nothing(rutile):
    _, cell = rutile
    g = wyckoff.groups_of_cell(cell.lattice)[-1]
    absent = known_cell.absences(cell.hkl, g)
    small, large = (known_cell.reflections_of(cell, g, absent, n) for n in (8, 20))
    np.testing.assert_array_equal(small.amplitude[:6], large.amplitude[:6])
    assert not large.amplitude[6:].any()
    real = small.amplitude.any(0)
    assert 0 < real.sum() < len(real)
    assert not small.shape[:, ~real].any()
    assert not small.shape[len(cell.root) :].any()
    assert len(small.hkl) in known_cell.REFLECTION_SIZES
    root, closest = known_cell.padded(cell, 20)
    assert len(root) == len(small.shape)
    assert not root[len(cell.root) :].any()
    assert not closest[6:].any()
    np.testing.assert_allclose(closest[:6, :6], cell.closest, rtol=1e-6)


def test_a_pattern_without_peaks_is_refused(rutile):
    crystal, _ = rutile
    pattern = simulate_pattern([crystal])[0]
    flat = pattern._replace(intensity=np.ones_like(pattern.intensity))
    with pytest.raises(ValueError, match="flat"):
        known_cell.known_cell(crystal.lattice, crystal.atomic_numbers, flat, 0.2, 0.02, 0.3, 0.75)


def test_a_cell_without_reflections_in_the_pattern_is_refused(rutile):
    crystal, _ = rutile
    pattern = simulate_pattern([crystal])[0]
    with pytest.raises(ValueError, match="no reflection of the cell"):
        known_cell.known_cell(
            crystal.lattice / 10, crystal.atomic_numbers, pattern, 0.2, 0.02, 0.3, 0.75
        )
