"""Annealing in a known cell: derivatives, allowed moves, contacts, independence of padding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.direct_space import cells
from xtalnet_jax.crystals import wyckoff
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.reduction import standardise
from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.direct_space import annealing, known_cell, placement
from xtalnet_jax.direct_space.annealing import CHUNK, DEFAULT, anneal, cos_sin
from xtalnet_jax.pxrd.simulate import simulate_pattern

pytestmark = pytest.mark.optimised

RUTILE = standardise(textbook_crystals()["rutile"])
KEY = jax.random.key(0)


def prepared(crystal, contact=0.75):
    pattern = simulate_pattern([crystal])[0]
    return known_cell.known_cell(
        crystal.lattice, crystal.atomic_numbers, pattern, 0.2, 0.02, 0.3, contact
    )


def reflections(cell, group=wyckoff.P1, num_nodes=8):
    absent = known_cell.absences(cell.hkl, group)
    return known_cell.reflections_of(cell, group, absent, num_nodes)


def shaken(crystal, size, num, num_nodes=8, seed=0):
    """Arrangements with all atoms free, displaced by ``size`` angstrom."""
    rng = np.random.default_rng(seed)
    order = np.argsort(crystal.atomic_numbers, kind="stable")
    frac = np.asarray(crystal.frac_coords)[order]
    moves = rng.normal(0, size, (num, *frac.shape)) @ np.linalg.inv(crystal.lattice)
    starts = [crystal._replace(frac_coords=frac + move) for move in moves]
    return placement.stacked([placement.free_placement(c, num_nodes) for c in starts])


@pytest.fixture(scope="module")
def cell():
    return prepared(RUTILE)


@pytest.fixture(scope="module")
def symmetric(cell):
    """Random arrangements on the sites of P4_2/mnm, and of one of its mirror groups."""
    groups = {g.number: g for g in wyckoff.groups_of_cell(cell.lattice)}
    rng = np.random.default_rng(1)
    out = []
    for number in (136, 127):
        sites = wyckoff.sites_of(groups[number])
        drawn = placement.random_placements(rng, sites, [4, 2], 40, 8)
        drawn = [p for p in drawn if placement.num_free(placement.stacked([p]))[0] > 0]
        out.append((reflections(cell, groups[number]), placement.stacked(drawn[: CHUNK + 3])))
    return out


def profile_cost(cell, hkl_of_p1, frac):
    """Misfit and contacts in float64; contacts to the nearest of all images."""
    r = hkl_of_p1
    waves = np.exp(2j * np.pi * frac @ np.asarray(r.hkl, float).T)
    profile = r.shape @ np.abs((r.amplitude[: len(frac)] * waves).sum(0)) ** 2
    profile = profile[: len(cell.root)]
    root = np.sqrt(profile / profile.mean() + cell.floor) - cell.floor**0.5
    misfit = 1 - (root @ cell.root) ** 2 / (root @ root)
    images = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    away = (frac[:, None, None] - frac[None, :, None] + images) @ cell.lattice
    apart = np.sqrt((away**2).sum(-1)).min(-1) + 100 * np.eye(len(frac))
    short = np.maximum(cell.closest - apart, 0)
    return misfit, (short**2).sum() / len(frac)


def test_cosine_and_sine_are_those_of_numpy():
    turns = np.linspace(-30, 30, 40001).astype(np.float32)
    cos, sin = cos_sin(jnp.asarray(turns))
    np.testing.assert_allclose(cos, np.cos(2 * np.pi * turns.astype(float)), atol=2e-5)
    np.testing.assert_allclose(sin, np.sin(2 * np.pi * turns.astype(float)), atol=2e-5)


def test_derivatives_of_cosine_and_sine():
    turns = jnp.linspace(-1.3, 2.2, 200)
    weight = jnp.linspace(-1, 2, 200)

    def total(waves, t):
        cos, sin = waves(t)
        return (weight * cos + (1 - weight**2) * sin).sum()

    def exact(t):
        return jnp.cos(2 * jnp.pi * t), jnp.sin(2 * jnp.pi * t)

    own, right = (jax.grad(partial(total, waves))(turns) for waves in (cos_sin, exact))
    np.testing.assert_allclose(own, right, atol=1e-3)


def test_misfit_and_contacts_are_those_of_the_formulas(cell):
    r = reflections(cell)
    starts = shaken(RUTILE, 0.5, 3)
    found = anneal(KEY, cell, [(r, starts)], 0, 0.0)[0]
    for x, misfit, contact in zip(starts.x, found.misfit, found.contact):
        right, short = profile_cost(cell, r, x[:6].astype(float))
        assert misfit == pytest.approx(right, abs=3e-4)
        assert contact == pytest.approx(DEFAULT.contact_cost * short, abs=1e-4)
    assert found.contact.max() > 1e-3
    np.testing.assert_array_equal(found.placements.x, starts.x)
    truth = anneal(KEY, cell, [(r, shaken(RUTILE, 0.0, 1))], 0, 0.0)[0]
    assert truth.misfit[0] < 1e-3
    assert truth.contact[0] == 0


def test_nothing_ends_worse_than_it_started(cell, symmetric):
    """Much noise, and more arrangements than fit in a chunk."""
    before = anneal(KEY, cell, symmetric, 0, 0.0)
    after = anneal(KEY, cell, symmetric, 12, 6.0)
    again = anneal(KEY, cell, [(r, a.placements) for (r, _), a in zip(symmetric, after)], 0, 0.0)
    for b, a, c, (_, p) in zip(before, after, again, symmetric):
        assert len(a.misfit) == len(p.x)
        assert (a.misfit + a.contact <= b.misfit + b.contact + 1e-6).all()
        assert (a.misfit + a.contact < b.misfit + b.contact - 1e-3).any()
        np.testing.assert_allclose(a.misfit, c.misfit, atol=2e-5)
        np.testing.assert_allclose(a.contact, c.contact, atol=2e-5)


def test_atoms_keep_to_their_sites(cell, symmetric):
    """Those without freedom stay, those on axes and planes move along them, heat or not."""
    for heat in (0.0, 3.0):
        for (_, p), found in zip(symmetric, anneal(KEY, cell, symmetric, 12, heat)):
            move = found.placements.x - p.x
            along = np.einsum("nsab,nsb->nsa", p.project, move)
            np.testing.assert_allclose(move, along, atol=2e-6)
            assert np.abs(move).max() > 0.02
            fixed = np.trace(p.project, axis1=2, axis2=3) < 0.5
            assert fixed.any()
            np.testing.assert_array_equal(move[fixed], 0)


def test_axes_of_a_hexagonal_cell_are_kept():
    """P6_3/mmc, 6h: x, 2x, 1/4, whose projector is not symmetric in fractional coordinates."""
    g = cells.group("hP", 194)
    sites = wyckoff.sites_of(g)
    axis = next(s for s in sites if s.num_free == 1 and len(s.rotations) == 6)
    pair = next(s for s in sites if s.num_free == 0)
    assert np.abs(axis.project - axis.project.T).max() > 0.2
    own = prepared(cells.crystal_on("hP", [axis, pair], [8, 22]))
    rng = np.random.default_rng(0)
    p = placement.stacked(placement.random_placements(rng, [axis, pair], [6, 2], CHUNK, 8))
    found = anneal(KEY, own, [(reflections(own, g), p)], 12, 3.0)[0]
    move = found.placements.x - p.x
    along = np.einsum("nsab,nsb->nsa", p.project, move)
    np.testing.assert_allclose(move, along, atol=2e-6)
    assert np.abs(move[:, 0]).max() > 0.02
    in_p1 = reflections(own)
    atoms = placement.coordinates(found.placements)[:, :8]
    for x, misfit, contact in zip(atoms, found.misfit, found.contact):
        right, short = profile_cost(own, in_p1, x)
        assert misfit == pytest.approx(right, abs=5e-4)
        assert contact == pytest.approx(DEFAULT.contact_cost * short, abs=1e-4)


def test_atoms_in_a_mirror_plane_stay_in_it():
    """Pnma: all atoms on 4c, y = 1/4 or 3/4, while x and z move."""
    g = cells.group("oP", 62)
    site = next(s for s in wyckoff.sites_of(g) if s.num_free == 2)
    crystal = cells.crystal_on("oP", [site, site], [8, 22])
    own = prepared(crystal)
    drawn = placement.random_placements(np.random.default_rng(0), [site], [4, 4], CHUNK, 8)
    p = placement.stacked(drawn)
    found = anneal(KEY, own, [(reflections(own, g), p)], 12, 3.0)[0].placements
    atoms = placement.coordinates(found)
    height = atoms[..., 1] * 4
    assert np.abs(height - np.round(height)).max() < 1e-4
    assert (np.round(height) % 2 == 1).all()
    assert np.abs(placement.coordinates(p) - atoms)[..., [0, 2]].max((0, 1)).min() > 0.02


def test_short_contacts_cost_their_square_and_are_pushed_apart(cell):
    """Two oxygen atoms 0.5 angstrom closer than allowed: 0.5^2 for both, over six atoms."""
    bare = cell._replace(root=np.zeros_like(cell.root))
    p = shaken(RUTILE, 0.0, 1)
    lattice = cell.lattice
    away = np.array([cell.closest[0, 1] - 0.5, 0, 0]) @ np.linalg.inv(lattice)
    others = np.array([[0.5, 0.5, 0.5]] * 4)
    x = p.x.copy()
    x[0, 0], x[0, 1], x[0, 2:6] = 0.0, away, others
    only = np.zeros_like(cell.closest)
    only[0, 1] = only[1, 0] = cell.closest[0, 1]
    bare = bare._replace(closest=only)
    start = [(reflections(cell), p._replace(x=x))]
    before = anneal(KEY, bare, start, 0, 0.0)[0]
    assert before.contact[0] == pytest.approx(DEFAULT.contact_cost * 2 * 0.25 / 6, rel=1e-3)
    after = anneal(KEY, bare, start, 30, 0.0, DEFAULT)[0]
    assert after.contact[0] < 1e-3 * before.contact[0]
    np.testing.assert_allclose(after.placements.x[0, 2:], x[0, 2:], atol=1e-6)


def test_displaced_atoms_find_their_places(cell):
    found = anneal(KEY, cell, [(reflections(cell), shaken(RUTILE, 0.4, CHUNK))], 150, 1.0)[0]
    best = int(np.argmin(found.misfit))
    assert found.misfit[best] < 2e-3
    frac = placement.coordinates(found.placements)[best, :6]
    crystal = Crystal(cell.atomic_numbers, frac % 1.0, cell.lattice)
    assert RUTILE.to_structure().matches(crystal.to_structure())


def test_noise_helps_nothing_when_it_is_cold_and_depends_on_the_key(cell):
    work = [(reflections(cell), shaken(RUTILE, 0.5, 3))]
    hot = [anneal(jax.random.key(k), cell, work, 12, 3.0)[0] for k in (0, 0, 1)]
    np.testing.assert_array_equal(hot[0].placements.x, hot[1].placements.x)
    np.testing.assert_array_equal(hot[0].misfit, hot[1].misfit)
    assert np.abs(hot[0].placements.x - hot[2].placements.x).max() > 1e-3
    cold = [anneal(jax.random.key(k), cell, work, 12, 0.0)[0] for k in (0, 1)]
    np.testing.assert_array_equal(cold[0].placements.x, cold[1].placements.x)


def test_each_arrangement_is_on_its_own(cell):
    r, many = reflections(cell), shaken(RUTILE, 0.5, CHUNK + 3)
    alone = placement.Placement(*(v[CHUNK + 1 :] for v in many))
    together = anneal(KEY, cell, [(r, many)], 12, 0.0)[0]
    apart = anneal(KEY, cell, [(r, alone)], 12, 0.0)[0]
    np.testing.assert_allclose(together.placements.x[CHUNK + 1 :], apart.placements.x, atol=1e-6)
    np.testing.assert_allclose(together.misfit[CHUNK + 1 :], apart.misfit, atol=1e-6)


def test_padding_changes_nothing(cell):
    small, large = (
        anneal(KEY, cell, [(reflections(cell, num_nodes=n), shaken(RUTILE, 0.3, 3, n))], 6, 0.0)[0]
        for n in (8, 12)
    )
    np.testing.assert_allclose(small.placements.x[:, :6], large.placements.x[:, :6], atol=1e-4)
    np.testing.assert_allclose(small.misfit, large.misfit, atol=1e-4)
    np.testing.assert_allclose(small.contact, large.contact, atol=1e-5)
    assert not large.placements.x[:, 6:].any()


def test_a_step_in_a_skewed_cell_goes_straight_downhill():
    """Against the Cartesian gradient, whose fractional form is -G^-1 grad; a tenth of the step."""
    lattice = cells.rows_of(4.6, 5.9, 7.1, 72, 63, 66)
    rng = np.random.default_rng(3)
    truth = Crystal(np.array([8, 8, 22, 22]), rng.uniform(size=(4, 3)), lattice)
    cell = prepared(truth, contact=0.9)
    r = reflections(cell, num_nodes=4)
    gentle = DEFAULT._replace(step=0.02)
    p = shaken(truth, 0.3, 4, 4)
    before, after = (anneal(KEY, cell, [(r, p)], n, 0.0, gentle)[0] for n in (0, 1))
    assert (after.misfit + after.contact < before.misfit + before.contact).all()

    def cost(x):
        misfit, short = profile_cost(cell, r, x.reshape(4, 3))
        return misfit + gentle.contact_cost * short

    for start, end in zip(p.x.astype(float), after.placements.x.astype(float)):
        eye = 1e-5 * np.eye(12)
        flat = start.ravel()
        slope = np.array([(cost(flat + e) - cost(flat - e)) / 2e-5 for e in eye]).reshape(4, 3)
        downhill = -slope @ np.linalg.inv(lattice @ lattice.T) @ lattice
        move = (end - start) @ lattice
        cosine = (move * downhill).sum() / np.linalg.norm(move) / np.linalg.norm(downhill)
        assert cosine > 0.999
        assert np.sqrt((move**2).sum(-1).mean()) == pytest.approx(0.1 * gentle.step, rel=1e-3)


def test_no_groups_and_sizes():
    empty = anneal(KEY, prepared(RUTILE), [], 5, 1.0)
    assert empty == []
    assert [annealing.num_nodes_for(n) for n in (1, 4, 5, 9)] == [4, 4, 8, 12]
