"""Changed copies of placements: elements, Wyckoff positions and what each change may change."""

import numpy as np
import pytest

from tests.direct_space import cells
from xtalnet_jax.crystals import wyckoff
from xtalnet_jax.direct_space import mutation
from xtalnet_jax.direct_space.mutation import mutants
from xtalnet_jax.direct_space.placement import Placement, coordinates, random_placements, stacked

CASES = [("tP", 136, [4, 2, 6]), ("cF", 227, [2, 4, 6]), ("oP", 62, [4, 4, 8]), ("hP", 152, [3, 6])]
NUM_NODES = 20


def parents_of(name, number, counts, num=6, seed=0):
    sites = wyckoff.sites_of(cells.group(name, number))
    rng = np.random.default_rng(seed)
    drawn = random_placements(rng, sites, counts, num, NUM_NODES)
    return stacked(drawn)


def copies_of(parents, counts, num=80, seed=1):
    return stacked(mutants(np.random.default_rng(seed), parents, counts, num))


def only(monkeypatch, chosen):
    """Let all changes be of one kind: what is called and what is not."""
    for name in ("_move", "_exchange"):
        if name != chosen:
            monkeypatch.setattr(mutation, name, lambda *_: None)


def bounds(counts):
    ends = np.cumsum(counts)
    return list(zip(ends - counts, ends))


def elements(atoms, counts):
    return [atoms[start:end] for start, end in bounds(np.array(counts))]


def same_points(a, b):
    """Equal sets of atoms up to order and lattice vectors."""
    return len(a) == len(b) and bool((cells.distances(a, b) < 1e-4).any(1).all())


def seats(p, i, counts):
    """Of each element the sites: number of atoms, freedom and first atom."""
    out = []
    for start, end in bounds(np.array(counts)):
        rows = p.site[i, start:end]
        own = [
            ((rows == s).sum(), round(float(np.trace(p.project[i, s]))), p.x[i, s])
            for s in np.unique(rows)
        ]
        out.append(own)
    return out


@pytest.mark.parametrize(("name", "number", "counts"), CASES)
def test_symmetric_images_of_atoms_are_atoms_of_the_same_element(name, number, counts):
    g, parents = cells.group(name, number), parents_of(name, number, counts)
    copies = copies_of(parents, counts)
    assert len(copies.x) == 80
    changed = 0
    before = coordinates(parents)
    for atoms in coordinates(copies):
        for own in elements(atoms, counts):
            images = np.einsum("oab,nb->noa", g.rotations, own) + g.translations
            assert (cells.distances(images.reshape(-1, 3), own) < 1e-4).any(1).all()
        changed += not any(
            all(map(same_points, elements(atoms, counts), elements(b, counts))) for b in before
        )
    assert changed > 10


@pytest.mark.parametrize(("name", "number", "counts"), CASES)
def test_atoms_stay_on_sites_of_as_many_atoms_and_as_much_freedom(name, number, counts):
    """The sites of each element add up to it, and each one keeps its atoms apart."""
    g = cells.group(name, number)
    copies = copies_of(parents_of(name, number, counts), counts)
    n = sum(counts)
    for i in range(len(copies.x)):
        assert [sum(s[0] for s in own) for own in seats(copies, i, counts)] == counts
        used = np.unique(copies.site[i, :n])
        assert used.tolist() == list(range(len(used)))
        for s in used:
            rows = np.flatnonzero(copies.site[i, :n] == s)
            assert (np.diff(rows) == 1).all()
            x, project = (np.asarray(v[i, s], float) for v in (copies.x, copies.project))
            image = copies.rotations[i, rows] @ x + copies.translations[i, rows]
            np.testing.assert_allclose(image[0], x, atol=1e-5)
            moved = x + project @ np.array([0.123, -0.2, 0.3])
            still = g.rotations @ moved + g.translations - moved
            stable = (np.abs(still - np.round(still)) < 1e-4).all(-1).sum()
            assert stable * len(rows) == len(g.rotations)


def test_padding_is_zero_and_types_are_kept():
    counts = [4, 2, 6]
    parents = parents_of("tP", 136, counts)
    copies = copies_of(parents, counts)
    for a, b in zip(copies, parents):
        assert a.dtype == b.dtype
        assert a.shape[1:] == b.shape[1:]
    for v in (copies.site, copies.rotations, copies.translations):
        assert not v[:, 12:].any()
    used = copies.site.max(1)
    for own, last in zip(zip(copies.project, copies.x), used):
        assert not any(v[last + 1 :].any() for v in own)
    assert copies.site.max() < 12


def test_parents_are_not_changed():
    counts = [4, 4, 8]
    parents = parents_of("oP", 62, counts)
    before = Placement(*(v.copy() for v in parents))
    copies_of(parents, counts)
    for a, b in zip(before, parents):
        np.testing.assert_array_equal(a, b)


def test_equal_draws_are_equal_and_others_are_not():
    counts = [4, 2, 6]
    parents = parents_of("tP", 136, counts)
    a, b, other = (copies_of(parents, counts, 20, seed) for seed in (0, 0, 1))
    for v, w in zip(a, b):
        np.testing.assert_array_equal(v, w)
    assert not np.array_equal(a.x, other.x)


def test_a_move_changes_one_site_along_its_freedom():
    counts = [4, 4, 8]
    parents = parents_of("oP", 62, counts, num=12)
    rng = np.random.default_rng(0)
    moved = []
    for i in list(range(len(parents.x))) * 8:
        before = mutation._seating(parents, i, counts)
        after = [list(own) for own in before]
        mutation._move(rng, after)
        pairs = [(a, b) for x, y in zip(before, after) for a, b in zip(x, y, strict=True)]
        other = [(a, b) for a, b in pairs if b is not a]
        if not any(a.project.any() for a, _ in pairs):
            assert not other
            continue
        ((a, b),) = other
        step = b.x - a.x
        np.testing.assert_allclose(a.project @ step, step, atol=1e-6)
        assert np.abs(step).max() > 0
        for name in ("rotations", "translations", "project"):
            assert getattr(a, name) is getattr(b, name)
        moved.append([a is p for p, _ in pairs].index(True))
    assert len(moved) > 50
    assert set(moved) >= {0, 1, 2}


@pytest.mark.parametrize(("name", "number"), [("oP", 62), ("cP", 198), ("hP", 156), ("cF", 227)])
def test_moves_go_far_along_all_that_is_free_without_a_drift(name, number):
    rng = np.random.default_rng(0)
    for site in wyckoff.sites_of(cells.group(name, number)):
        if not site.num_free:
            continue
        seat = mutation._Seat(site.rotations, site.translations, site.project, site.shift)
        steps = []
        for _ in range(400):
            seating = [[seat]]
            mutation._move(rng, seating)
            steps.append(seating[0][0].x - seat.x)
        steps = np.array(steps)
        assert np.linalg.matrix_rank(steps, tol=1e-3) == site.num_free
        half = np.abs(site.project).sum(1) / 2  # the corners of a cube of edges 1
        assert (np.abs(steps).max(0) <= half + 1e-9).all()
        assert (np.abs(steps).max(0) >= 0.6 * half).all()
        np.testing.assert_allclose(steps.mean(0), 0, atol=4 * steps.std(0).max() / 20)


def test_an_exchange_swaps_sites_of_two_elements_with_equal_numbers_of_atoms():
    counts = [4, 2, 6]
    parents = parents_of("tP", 136, counts, num=12)
    rng = np.random.default_rng(0)
    swapped = 0
    for i in list(range(len(parents.x))) * 8:
        before = mutation._seating(parents, i, counts)
        after = [list(own) for own in before]
        mutation._exchange(rng, after)
        flat = [(e, s) for e, own in enumerate(before) for s in own]
        places = [(e, s) for e, own in enumerate(after) for s in own]
        assert sorted(id(s) for _, s in flat) == sorted(id(s) for _, s in places)
        new = [(e, f, s) for (e, s), (f, t) in zip(flat, places) if s is not t for f in [f]]
        if not new:
            continue
        (e, _, a), (f, _, b) = new
        assert e != f
        assert len(a.rotations) == len(b.rotations)
        assert any(s is a for s in after[f])
        assert any(s is b for s in after[e])
        swapped += 1
    assert swapped > 20


def test_no_exchange_without_sites_of_equal_numbers_of_atoms():
    """Two fixed atoms and a pair of one element, six of another: of these nothing is equal."""
    parents = parents_of("cP", 221, [1, 3])
    rng = np.random.default_rng(0)
    for i in range(len(parents.x)):
        seating = mutation._seating(parents, i, [1, 3])
        after = [list(own) for own in seating]
        mutation._exchange(rng, after)
        assert all(a is b for x, y in zip(seating, after) for a, b in zip(x, y, strict=True))


def test_inheriting_takes_all_of_an_element_from_one_parent(monkeypatch):
    only(monkeypatch, None)
    counts = [4, 2, 6]
    parents = parents_of("tP", 136, counts, num=6)
    copies = copies_of(parents, counts, 120)
    before = [elements(atoms, counts) for atoms in coordinates(parents)]
    mixed = 0
    for atoms in coordinates(copies):
        sources = [
            {k for k, b in enumerate(before) if same_points(own, b[e])}
            for e, own in enumerate(elements(atoms, counts))
        ]
        assert all(sources)
        mixed += not set.intersection(*sources)
    assert mixed > 10


@pytest.mark.parametrize(("chosen", "share"), [("_move", 0.5), ("_exchange", 0.3)])
def test_half_of_the_changes_are_moves_and_a_third_exchanges(monkeypatch, chosen, share):
    """A copy has 1.5 changes on average, of which 20 % inherit an element."""
    calls, num = [], 600
    only(monkeypatch, None)
    monkeypatch.setattr(mutation, chosen, lambda rng, seating: calls.append(chosen))
    copies_of(parents_of("tP", 136, [4, 2, 6]), [4, 2, 6], num)
    # The number of changes is 1 + Poisson(0.5), so its variance is 0.5.
    error = (num * (1.5 * share * (1 - share) + 0.5 * share**2)) ** 0.5
    assert len(calls) == pytest.approx(1.5 * share * num, abs=4 * error)


def test_every_copy_is_changed_at_least_once(monkeypatch):
    """Of one parent with freedom all moves are seen; what it inherits from itself is not."""
    monkeypatch.setattr(mutation, "_exchange", mutation._move)
    counts = [8]
    parents = parents_of("oP", 62, counts, num=12)
    free = [i for i in range(len(parents.x)) if parents.project[i].any()]
    one = Placement(*(v[free[:1]] for v in parents))
    copies = copies_of(one, counts, 400)
    same = [np.array_equal(one.x[0], x) for x in copies.x]
    share = 0.2  # that the last change takes the only element from the only parent
    assert np.mean(same) == pytest.approx(share, abs=4 * (share / 400) ** 0.5)
