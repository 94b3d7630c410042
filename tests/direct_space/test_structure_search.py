"""Textbook crystals are solved from cell, contents and pattern alone."""

import jax
import numpy as np
import pytest

from tests.direct_space import cells
from xtalnet_jax.crystals import wyckoff
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.reduction import standardise
from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.direct_space import annealing, known_cell, mutation, structure_search
from xtalnet_jax.direct_space.selection import Round
from xtalnet_jax.direct_space.structure_search import (
    DEFAULT,
    begin_search,
    continue_search,
    search_structures,
)
from xtalnet_jax.pxrd.simulate import simulate_pattern

pytestmark = pytest.mark.optimised


def with_rounds(settings, *rounds, **changes):
    return settings._replace(selection=settings.selection._replace(rounds=rounds), **changes)


ROUNDS = (Round(400, 14, 0.0), Round(60, 30, 1.0), Round(16, 60, 1.0))
QUICK = with_rounds(DEFAULT, *ROUNDS, symprecs=(0.05,), num_generations=(0, 0))
CRYSTALS = {name: standardise(c) for name, c in textbook_crystals().items()}
KEY = jax.random.key(0)


def solved(crystal, lattice=None, starts=(), settings=QUICK, key=KEY):
    pattern = simulate_pattern([crystal])[0]
    lattice = crystal.lattice if lattice is None else lattice
    return search_structures(key, lattice, crystal.atomic_numbers, pattern, starts, settings)


@pytest.fixture(scope="module")
def rutile():
    many = with_rounds(QUICK, *ROUNDS[:2], Round(60, 4, 0.0))
    return CRYSTALS["rutile"], solved(CRYSTALS["rutile"], settings=many)


@pytest.mark.parametrize(
    ("name", "num_free"), [("rutile", 1), ("cuprite", 0), ("wurtzite", 2), ("cadmium_iodide", 1)]
)
def test_textbook_crystals_are_found_first(name, num_free):
    """With no more freedom than their Wyckoff positions have."""
    crystal = CRYSTALS[name]
    found = solved(crystal)
    assert found[0].misfit < 2e-3
    assert found[0].num_free == num_free
    assert crystal.to_structure().matches(found[0].crystal.to_structure())


def test_what_is_found_has_the_cell_and_its_contents_and_is_in_order(rutile):
    crystal, found = rutile
    assert len(found) > 1
    for f in found:
        assert f.crystal.atomic_numbers.tolist() == [8, 8, 8, 8, 22, 22]
        assert f.crystal.frac_coords.shape == (6, 3)
        assert 0 <= f.crystal.frac_coords.min() <= f.crystal.frac_coords.max() < 1
        np.testing.assert_array_equal(f.crystal.lattice, crystal.lattice)
        s = QUICK.selection
        least = (f.misfit + s.misfit_floor) * (1 + s.price * f.num_free)
        assert f.price >= least * (1 - 1e-6)  # short contacts cost as well
    prices = [f.price for f in found]
    assert prices == sorted(prices)


def test_each_structure_is_returned_once():
    """All but a few of the last draws end in the truth."""
    crystal = CRYSTALS["rutile"]
    truth = crystal.to_structure()
    alike = [truth.matches(f.crystal.to_structure()) for f in solved(crystal)]
    assert sum(alike) == 1


def test_the_lattice_may_be_a_little_wrong():
    crystal = CRYSTALS["rutile"]
    strain = np.diag([1.003, 0.998, 0.999])
    found = solved(crystal, crystal.lattice @ strain)
    assert crystal.to_structure().matches(found[0].crystal.to_structure())


def test_starts_are_annealed_in_p1_and_returned():
    """A crystal that no cubic group holds, from a start that is displaced."""
    frac = np.array([[0, 0, 0], [0.5, 0.5, 0.1], [0.5, 0, 0.45], [0.05, 0.5, 0.6]])
    truth = Crystal(np.array([8, 8, 22, 22]), frac, 4.2 * np.eye(3))
    move = np.random.default_rng(0).normal(0, 0.05, (4, 3))
    start = truth._replace(frac_coords=frac + move)
    found = solved(truth, starts=[start])
    assert [(f.space_group, f.num_free) for f in found] == [(1, 12)]
    assert found[0].misfit < 2e-3
    assert truth.to_structure().matches(found[0].crystal.to_structure())


def test_starts_come_in_any_order_of_the_atoms_and_none_is_dropped():
    """The truth and something hopeless, both as they are."""
    crystal = CRYSTALS["rutile"]
    rng = np.random.default_rng(0)
    order = np.array([2, 0, 3, 4, 1, 5])
    truth = crystal._replace(
        atomic_numbers=crystal.atomic_numbers[order], frac_coords=crystal.frac_coords[order]
    )
    hopeless = crystal._replace(frac_coords=rng.uniform(size=(6, 3)))
    short = with_rounds(QUICK, Round(200, 0, 0.0), Round(3, 0, 0.0))
    found = solved(crystal, starts=[truth, hopeless], settings=short)
    own = sorted((f for f in found if f.space_group == 1), key=lambda f: f.misfit)
    assert len(own) == 2
    assert own[0].misfit < 1e-3
    assert own[1].misfit > 0.1


def test_equal_keys_give_equal_results_and_others_do_not():
    crystal, short = CRYSTALS["rutile"], with_rounds(QUICK, *ROUNDS[:2])
    found, again, other = (
        solved(crystal, settings=short, key=jax.random.key(k)) for k in (0, 0, 1)
    )
    assert len(found) > 1
    assert [f[1:] for f in again] == [f[1:] for f in found]
    for a, b in zip(again, found):
        np.testing.assert_array_equal(a.crystal.frac_coords, b.crystal.frac_coords)
    assert [f[1:] for f in other] != [f[1:] for f in found]


def test_groups_whose_absences_contradict_the_pattern_are_not_tried(monkeypatch):
    """What is annealed reflects wherever the pattern is; without the rule it does not."""
    crystal = CRYSTALS["rutile"]
    missed, real = [], annealing.anneal

    def spy(key, cell, groups, *rest):
        n = len(cell.root)
        for reflections, _ in groups:
            dark = reflections.shape[:n].sum(1) <= 0.02
            missed.append(float((cell.root[dark] ** 2).sum()))
        return real(key, cell, groups, *rest)

    monkeypatch.setattr(annealing, "anneal", spy)
    tiny = with_rounds(QUICK, Round(150, 2, 0.0))
    solved(crystal, settings=tiny)
    assert 15 < len(missed) < len(wyckoff.groups_of_cell(crystal.lattice))
    assert max(missed) < QUICK.surplus
    missed.clear()
    solved(crystal, settings=tiny._replace(surplus=1.0))
    assert max(missed) > 0.1


def test_more_is_tried_until_something_explains_the_pattern(monkeypatch):
    """The pattern of another crystal: all repeats; its own: one."""
    crystal = CRYSTALS["perovskite"]
    asked, real = [], wyckoff.groups_of_cell

    def spy(lattice, symprec):
        asked.append(symprec)
        return real(lattice, symprec)

    monkeypatch.setattr(structure_search.wyckoff, "groups_of_cell", spy)
    tiny = with_rounds(QUICK, Round(100, 10, 0.0), Round(8, 20, 0.0), symprecs=(0.05, 0.01))
    found = solved(crystal, settings=tiny)
    assert asked == [0.05]
    assert crystal.to_structure().matches(found[0].crystal.to_structure())
    asked.clear()
    other = simulate_pattern([CRYSTALS["caesium_chloride"]])[0]
    hopeless = tiny._replace(plausible=0.0)
    search_structures(KEY, crystal.lattice, crystal.atomic_numbers, other, settings=hopeless)
    assert asked == [0.05, 0.01]


def test_a_family_that_cannot_hold_the_contents_is_not_the_end(monkeypatch):
    """No group at the first precision: the beginning itself goes on to the next one."""
    crystal, real = CRYSTALS["perovskite"], wyckoff.groups_of_cell
    monkeypatch.setattr(
        structure_search.wyckoff,
        "groups_of_cell",
        lambda lattice, symprec: [] if symprec == 0.05 else real(lattice, symprec),
    )
    tiny = with_rounds(QUICK, Round(100, 10, 0.0), Round(8, 20, 0.0), symprecs=(0.05, 0.01))
    pattern = simulate_pattern([crystal])[0]
    searched = begin_search(KEY, crystal.lattice, crystal.atomic_numbers, pattern, (), tiny)
    assert searched.num_repeats == 2
    assert crystal.to_structure().matches(searched.found[0].crystal.to_structure())


@pytest.fixture(scope="module")
def begun():
    """Two elements on mirror planes of Pnma, of which the random placements are far."""
    pnma = cells.group("oP", 62)
    plane = next(s for s in wyckoff.sites_of(pnma) if s.num_free == 2)
    crystal = cells.crystal_on("oP", [plane, plane], [8, 22], seed=5)
    s = with_rounds(QUICK, Round(30, 0, 0.0), num_generations=(9, 1), solved=0.006)
    generation = (Round(120, 14, 0.0), Round(24, 60, 1.0))
    s = s._replace(selection=s.selection._replace(generation=generation))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wyckoff, "groups_of_cell", lambda *_: [pnma, cells.group("oP", 19)])
        pattern = simulate_pattern([crystal])[0]
        return crystal, s, begin_search(
            KEY, crystal.lattice, crystal.atomic_numbers, pattern, (), s
        )  # fmt: skip


def test_changed_copies_are_tried_until_one_explains_the_pattern(begun):
    crystal, settings, searched = begun
    assert searched.found[0].price > 10 * settings.solved
    assert not searched.again
    found = continue_search(KEY, searched, settings)
    assert found[0].price < settings.solved
    assert found[0].space_group == 62
    assert crystal.to_structure().matches(found[0].crystal.to_structure())
    assert [f.price for f in found] == sorted(f.price for f in found)
    assert {f.price for f in searched.found} <= {f.price for f in found}
    whole = [(f.price, f.space_group) for f in found]
    assert len(set(whole)) == len(whole)


@pytest.mark.parametrize(("again", "num"), [(False, 3), (True, 1)])
def test_fewer_generations_where_the_best_was_found_twice(begun, monkeypatch, again, num):
    _, settings, searched = begun
    generations, real = [], mutation.mutants

    def spy(rng, parents, *rest):
        generations.append(parents)
        return real(rng, parents, *rest)

    monkeypatch.setattr(mutation, "mutants", spy)
    # Of one parent there are copies in one group only.
    own = settings.selection._replace(num_parents=1, generation=(Round(2, 0, 0.0),))
    settings = settings._replace(num_generations=(3, 1), selection=own)
    continue_search(KEY, searched._replace(again=again), settings)
    assert len(generations) == num
    assert continue_search(KEY, searched, settings._replace(solved=1e3)) is searched.found
    assert len(generations) == num


def test_a_second_repeat_that_finds_the_same_is_noticed(monkeypatch):
    """Atoms of perovskite have no freedom, so that all draws find the same; one is no proof."""
    crystal = CRYSTALS["perovskite"]
    pattern = simulate_pattern([crystal])[0]
    tiny = with_rounds(QUICK, Round(100, 0, 0.0), num_generations=(3, 1), solved=0.0)
    asked, generations, real = [], [], wyckoff.groups_of_cell
    monkeypatch.setattr(
        wyckoff, "groups_of_cell", lambda *args: asked.append(args[1]) or real(*args)
    )
    monkeypatch.setattr(
        structure_search.selection,
        "evolved",
        lambda *args: generations.append(args[5]) or args[4],
    )
    for symprecs, plausible, repeats, num in (
        ((0.05,), 0.04, [0.05], 3),
        ((0.05, 0.01), 0.04, [0.05, 0.01], 1),
        ((0.05, 0.01, 0.002), 0.04, [0.05, 0.01], 1),
        ((0.05, 0.01, 0.002), 0.0, [0.05, 0.01, 0.002], 1),
    ):
        s = tiny._replace(symprecs=symprecs, plausible=plausible)
        asked.clear()
        found = search_structures(KEY, crystal.lattice, crystal.atomic_numbers, pattern, settings=s)
        assert asked == repeats
        assert generations.pop() == num
        assert crystal.to_structure().matches(found[0].crystal.to_structure())


def test_groups_are_looked_at_again_when_the_lattice_gets_others(monkeypatch):
    """As many as before, or none at all: the lists are compared, not their lengths."""
    crystal = CRYSTALS["perovskite"]
    groups = {g.number: g for g in wyckoff.groups_of_cell(crystal.lattice)}
    lists = iter([[], [groups[221]], [groups[200]]])
    monkeypatch.setattr(structure_search.wyckoff, "groups_of_cell", lambda *_: next(lists))
    used = []
    real = structure_search.wyckoff.sites_of
    monkeypatch.setattr(
        structure_search.wyckoff,
        "sites_of",
        lambda g: used.append((g.number, len(g.rotations))) or real(g),
    )
    tiny = with_rounds(
        QUICK, Round(20, 0, 0.0), symprecs=(0.05, 0.01, 0.002), solved=0.0, plausible=0.0
    )
    solved(crystal, settings=tiny)
    assert used == [(1, 1), (1, 1), (221, 48), (1, 1), (200, 24)]


def test_starts_of_other_contents_are_refused():
    with pytest.raises(ValueError, match="contents of the cell"):
        solved(CRYSTALS["rutile"], starts=[CRYSTALS["perovskite"]])


def test_contents_that_fit_no_group_give_nothing():
    """Two atoms of each of two elements in a cubic cell of one lattice point."""
    pattern = simulate_pattern([CRYSTALS["perovskite"]])[0]
    numbers = np.array([8, 8, 22, 22])
    assert search_structures(KEY, np.eye(3) * 3.905, numbers, pattern, settings=QUICK) == []


def test_misfits_are_those_of_the_known_cell(rutile):
    """Each figure belongs to the crystal beside it."""
    crystal, found = rutile
    s = QUICK
    cell = known_cell.known_cell(
        crystal.lattice, crystal.atomic_numbers, simulate_pattern([crystal])[0],
        s.fwhm, s.floor, s.b_iso, s.contact,
    )  # fmt: skip
    every = np.zeros(len(cell.hkl), bool)
    r = known_cell.reflections_of(cell, wyckoff.P1, every, 6)
    n = len(cell.root)
    for f in found:
        waves = np.exp(2j * np.pi * f.crystal.frac_coords @ r.hkl.T)
        heights = (r.shape @ np.abs((r.amplitude * waves).sum(0)) ** 2)[:n]
        root = np.sqrt(heights / heights.mean() + cell.floor) - cell.floor**0.5
        misfit = 1 - (root @ cell.root) ** 2 / (root @ root)
        assert f.misfit == pytest.approx(misfit, abs=1e-3)


def test_a_flat_pattern_is_refused():
    crystal = CRYSTALS["rutile"]
    pattern = simulate_pattern([crystal])[0]
    flat = pattern._replace(intensity=np.ones_like(pattern.intensity))
    with pytest.raises(ValueError, match="flat"):
        search_structures(KEY, crystal.lattice, crystal.atomic_numbers, flat)
