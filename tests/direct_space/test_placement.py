"""Occupations of Wyckoff positions: contents, vacancies and what is free."""

from itertools import pairwise

import numpy as np
import pytest

from tests.direct_space import cells
from xtalnet_jax.crystals import wyckoff
from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.direct_space.placement import (
    coordinates,
    free_placement,
    num_free,
    random_placements,
    stacked,
)

CASES = [("tP", 136, [4, 2, 6]), ("cF", 227, [2, 4, 6]), ("oP", 47, [3, 3, 2, 5]), ("aP", 2, [7])]


def draw(name, number, counts, num=60, num_nodes=20, seed=0):
    sites = wyckoff.sites_of(cells.group(name, number))
    return random_placements(np.random.default_rng(seed), sites, counts, num, num_nodes)


@pytest.mark.parametrize(("name", "number", "counts"), CASES)
def test_each_element_has_its_atoms_on_whole_orbits(name, number, counts):
    g, drawn = cells.group(name, number), draw(name, number, counts)
    assert len(drawn) > 3
    bounds = np.cumsum([0, *counts])
    for atoms in coordinates(stacked(drawn)):
        for start, end in pairwise(bounds):
            own = atoms[start:end]
            images = np.einsum("oab,nb->noa", g.rotations, own) + g.translations
            near = cells.distances(images.reshape(-1, 3), own) < 1e-4
            assert near.any(1).all()


@pytest.mark.parametrize(("name", "number", "counts"), CASES)
def test_sites_without_freedom_are_used_once(name, number, counts):
    """No two atoms meet, though there are few sites without freedom and many atoms."""
    for atoms in coordinates(stacked(draw(name, number, counts))):
        atoms = atoms[: sum(counts)]
        assert (cells.distances(atoms, atoms) + np.eye(len(atoms))).min() > 1e-5


@pytest.mark.parametrize(("name", "number", "counts"), CASES)
def test_atoms_are_where_sites_and_coordinates_say(name, number, counts):
    g = cells.group(name, number)
    for p in draw(name, number, counts, num=10):
        used = np.unique(p.site[: sum(counts)])
        assert used.tolist() == list(range(len(used)))
        for s in used:
            rows = np.flatnonzero(p.site[: sum(counts)] == s)
            image = p.rotations[rows] @ p.x[s] + p.translations[rows]
            np.testing.assert_allclose(image[0], p.x[s])
            np.testing.assert_allclose(coordinates(stacked([p]))[0, rows], image, atol=1e-6)
            # Any allowed move keeps as many operations that leave the atom in place.
            moved = p.x[s] + p.project[s] @ np.array([0.123, -0.2, 0.3])
            still = g.rotations @ moved + g.translations - moved
            stable = (np.abs(still - np.round(still)) < 1e-9).all(-1).sum()
            assert stable * len(rows) == len(g.rotations)


def test_placements_without_freedom_are_listed_once():
    """SrTiO3 in Pm-3m: oxygen on 3c or 3d, the metals on 1a and 1b or the reverse."""
    drawn = draw("cP", 221, [3, 1, 1], num=200)
    assert len(drawn) == 4
    places = {np.round(c, 3).tobytes() for c in coordinates(stacked(drawn))[:, :5]}
    assert len(places) == 4
    assert (num_free(stacked(drawn)) == 0).all()


def test_freedom_is_that_of_the_sites():
    """Four atoms in Pnma: 4a or 4b, fixed, or 4c on the mirror plane."""
    drawn = draw("oP", 62, [4], num=100)
    free = num_free(stacked(drawn))
    assert sorted(set(free.tolist())) == [0, 2]
    assert (free == 0).sum() == 2
    assert num_free(stacked(draw("oP", 62, [4, 4], num=100))).max() == 4


@pytest.mark.parametrize(
    ("name", "number", "counts", "weights"),
    [
        ("oP", 62, [4], (4, 4, 12)),  # two fixed sites of four atoms, one with two coordinates
        ("aP", 2, [2], (*[1] * 8, 8)),  # eight fixed sites of one atom, a general pair
    ],
)
def test_large_sites_with_much_freedom_are_preferred_in_half_of_the_draws(
    name, number, counts, weights
):
    """In a quarter small ones are, in a quarter all are alike."""
    powers = np.array(weights, float)[None] ** np.array([[1], [1], [0], [-1]])
    share = (powers[:, -1] / powers.sum(1)).mean()
    num = 1500
    free = num_free(stacked(draw(name, number, counts, num=num))) > 0
    error = (share * (1 - share) / num) ** 0.5
    assert free.sum() / num == pytest.approx(share, abs=4 * error)


def test_all_elements_of_a_placement_share_the_preference():
    """Three pairs of atoms in P-1, each on the general position (8 of 16, 1 of 9, 1 of 65)."""
    num = 2000
    free = num_free(stacked(draw("aP", 2, [2, 2, 2], num=num)))
    share = np.mean([1 / 2**3, 1 / 2**3, 1 / 9**3, 1 / 65**3])
    assert (free == 9).sum() / num == pytest.approx(share, abs=4 * (share / num) ** 0.5)


@pytest.mark.parametrize(
    ("name", "number", "counts"),
    [
        ("cF", 227, [1]),  # no orbit of one atom
        ("cP", 205, [4, 6]),  # six is no sum of 4, 8 and 24
        ("cP", 195, [2, 2]),  # four atoms on the two sites of one atom
    ],
)
def test_impossible_contents_give_nothing(name, number, counts):
    assert draw(name, number, counts, num=10) == []


def test_equal_draws_are_equal_and_padding_is_not_seen():
    small, large = (draw("tP", 136, [4, 2], num=20, num_nodes=n) for n in (8, 20))
    assert len(small) == len(large)
    a, b = stacked(small), stacked(large)
    np.testing.assert_array_equal(num_free(a), num_free(b))
    np.testing.assert_array_equal(coordinates(a)[:, :6], coordinates(b)[:, :6])
    assert not b.x[:, 6:].any()
    assert not b.project[:, 6:].any()
    assert not b.rotations[:, 6:].any()


def test_free_placement_is_the_crystal_itself():
    crystal = textbook_crystals()["cuprite"]
    p = stacked([free_placement(crystal, 8)])
    np.testing.assert_allclose(coordinates(p)[0, :6], crystal.frac_coords, atol=1e-7)
    assert num_free(p).tolist() == [18]
    assert p.x.dtype == p.project.dtype == np.float32
    assert p.site.dtype == np.int32
    assert not p.x[0, 6:].any()
    assert not p.project[0, 6:].any()
    moved = p._replace(x=p.x + 0.1)
    np.testing.assert_allclose(coordinates(moved)[0, :6], crystal.frac_coords + 0.1, atol=1e-6)
