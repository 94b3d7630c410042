"""Rounds and generations: what goes on, what becomes a parent, and known answers of evolution."""

import jax
import numpy as np
import pytest

from tests.direct_space import cells
from xtalnet_jax.crystals import wyckoff
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.direct_space import annealing, known_cell, mutation, placement, selection
from xtalnet_jax.direct_space.annealing import Arrangements
from xtalnet_jax.direct_space.placement import Placement, coordinates, random_placements, stacked
from xtalnet_jax.direct_space.selection import DEFAULT, Option, Round, evolved, lowest_price, prices
from xtalnet_jax.pxrd.simulate import simulate_pattern

KEY = jax.random.key(0)
NUM_NODES = 8
STILL = Round(24, 0, 0.0)
PEROVSKITE = Crystal(
    np.array([8, 8, 8, 22, 38]),
    np.array([[0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0.5], [0, 0, 0]]),
    3.905 * np.eye(3),
)


def rng(seed=0):
    return np.random.default_rng(seed)


def settings_of(*generation, **changes):
    return DEFAULT._replace(generation=generation, **changes)


def problem(crystal, *groups):
    """What is known of a crystal, and P1 and some groups as the search has them."""
    pattern = simulate_pattern([crystal])[0]
    cell = known_cell.known_cell(
        crystal.lattice, crystal.atomic_numbers, pattern, 0.2, 0.02, 0.3, 0.75
    )
    options = []
    for g in (wyckoff.P1, *groups):
        absent = known_cell.absences(cell.hkl, g)
        reflections = known_cell.reflections_of(cell, g, absent, NUM_NODES)
        options.append(Option(g.number, wyckoff.sites_of(g), reflections, float(bool(options))))
    return cell, options


def evaluated(cell, option, drawn):
    """Placements as they are, with what they cost."""
    return annealing.anneal(KEY, cell, [(option.reflections, stacked(drawn))], 0, 0.0)[0]


def priced(*values, free=0):
    """Arrangements with these prices, told by the place of their only atom."""
    n = len(values)
    project = np.zeros((n, NUM_NODES, 3, 3), np.float32)
    project[:, 0, range(free), range(free)] = 1
    p = Placement(
        np.zeros((n, NUM_NODES), np.int32),
        np.zeros((n, NUM_NODES, 3, 3), np.float32),
        np.zeros((n, NUM_NODES, 3), np.float32),
        project,
        np.zeros((n, NUM_NODES, 3), np.float32),
    )
    p.x[:, 0, 0] = values
    factor = 1 + DEFAULT.price * free
    return Arrangements(p, np.array(values) / factor - DEFAULT.misfit_floor, np.zeros(n))


def first_of(chosen):
    return {i: sorted(np.round(p.x[:, 0, 0].astype(float), 6).tolist()) for i, p in chosen.items()}


@pytest.fixture(scope="module")
def perovskite():
    return problem(PEROVSKITE, cells.group("cP", 221))


@pytest.fixture(scope="module")
def swapped(perovskite):
    """The truth with the metals exchanged, which nothing but an exchange repairs."""
    cell, options = perovskite
    sites = {tuple(np.round(s.shift, 3)): s for s in options[1].sites if s.num_free == 0}
    edge = next(s for s in options[1].sites if _is(s, PEROVSKITE.frac_coords[:3]))
    chosen = [edge, sites[0.0, 0.0, 0.0], sites[0.5, 0.5, 0.5]]
    return {1: evaluated(cell, options[1], [placement._placed(rng(), chosen, NUM_NODES)])}


def _is(site, atoms):
    own = site.rotations @ site.shift + site.translations
    return len(own) == len(atoms) and (cells.distances(own, atoms) < 1e-4).any(1).all()


# Prices -------------------------------------------------------------------------------------------


def test_price_counts_freedom_and_contacts():
    a = priced(0.5, 0.2, free=3)._replace(contact=np.array([0.0, 0.07]))
    np.testing.assert_allclose(prices(a), [0.5, 0.27])
    bare = a._replace(misfit=np.zeros(2), contact=np.zeros(2))
    np.testing.assert_allclose(prices(bare), 1e-3 * 1.3)
    np.testing.assert_allclose(prices(bare, DEFAULT._replace(price=0.5, misfit_floor=0.01)), 0.025)


def test_lowest_price_is_that_of_all_groups():
    assert lowest_price({0: priced(0.4), 5: priced(0.3, 0.1), 7: priced(0.2)}) == pytest.approx(0.1)


# What goes on -------------------------------------------------------------------------------------


def test_the_cheapest_of_all_groups_go_on_and_all_of_p1():
    population = {
        0: priced(9.0, 8.0),
        1: priced(0.5, 0.1, 0.4),
        2: priced(0.6, 0.7),
        3: priced(2.0),
    }
    for num, expected in (
        (3, {0: [8, 9], 1: [0.1, 0.4, 0.5]}),
        (4, {0: [8, 9], 1: [0.1, 0.4, 0.5], 2: [0.6]}),
        (1, {0: [8, 9], 1: [0.1]}),
        (50, {0: [8, 9], 1: [0.1, 0.4, 0.5], 2: [0.6, 0.7], 3: [2]}),
    ):
        assert first_of(selection._best(population, num, DEFAULT)) == expected


def test_parents_are_the_cheapest_without_p1_and_equal_prices_count_once():
    a, b = priced(0.1, 0.1019, 0.3, 0.103), priced(0.2, 0.3, 0.25)
    population = {0: priced(0.01), 1: a, 2: b}
    own = first_of(selection._parents(population, DEFAULT))
    assert own == {1: [0.1, 0.103, 0.3], 2: [0.2, 0.25]}  # 0.3 is in the first group already
    few = first_of(selection._parents(population, DEFAULT._replace(num_parents=3)))
    assert few == {1: [0.1, 0.103], 2: [0.2]}
    strict = DEFAULT._replace(same_price=0.0)
    assert first_of(selection._parents(population, strict))[1] == [0.1, 0.1019, 0.103, 0.3]
    assert selection._parents({0: priced(0.01)}, DEFAULT) == {}


def test_nearly_equal_prices_in_a_row_are_compared_with_the_last_parent():
    steps = priced(*(0.1 * 1.015**k for k in range(6)))
    (own,) = first_of(selection._parents({4: steps}, DEFAULT)).values()
    np.testing.assert_allclose(own, [0.1 * 1.015**k for k in (0, 2, 4)], rtol=1e-4)


def test_each_round_anneals_the_best_of_the_one_before(perovskite, monkeypatch):
    cell, options = perovskite
    seen, real = [], annealing.anneal

    def spy(key, cell, work, num_steps, heat, settings):
        out = real(key, cell, work, num_steps, heat, settings)
        n = [len(p.x) for _, p in work]
        seen.append((n, num_steps, heat, jax.random.key_data(key).tolist(), out))
        return out

    monkeypatch.setattr(annealing, "anneal", spy)
    start = PEROVSKITE._replace(
        frac_coords=PEROVSKITE.frac_coords + 0.1 * rng().normal(size=(5, 3))
    )
    drawn = {
        0: [placement.free_placement(start, NUM_NODES)],
        1: random_placements(rng(), options[1].sites, [3, 1, 1], 30, NUM_NODES),
    }
    rounds = (Round(4, 0, 0.0), Round(2, 3, 0.5), Round(1, 2, 1.0))
    done = selection.selected(KEY, cell, options, drawn, rounds)
    assert [s[:3] for s in seen] == [([1, 4], 0, 0.0), ([1, 2], 3, 0.5), ([1, 1], 2, 1.0)]
    assert len({str(s[3]) for s in seen}) == 3
    assert lowest_price(done) == min(lowest_price(dict(enumerate(s[4]))) for s in seen)
    assert set(done) == {0, 1}
    cheap = np.sort(prices(seen[0][4][1]))
    np.testing.assert_allclose(np.sort(prices(seen[1][4][1])), cheap[:2], atol=1e-6)


# Evolution ----------------------------------------------------------------------------------------


def test_two_exchanged_elements_are_put_right(perovskite, swapped):
    cell, options = perovskite
    assert lowest_price(swapped) > 0.05
    done = evolved(KEY, rng(), cell, options, swapped, 1, 0.004, settings_of(STILL))
    assert lowest_price(done) < 0.004
    a = done[1]
    best = coordinates(a.placements)[np.argmin(prices(a)), :5]
    found = Crystal(PEROVSKITE.atomic_numbers, best % 1.0, PEROVSKITE.lattice)
    assert PEROVSKITE.to_structure().matches(found.to_structure())


def test_without_exchanges_they_stay_as_they_are(perovskite, swapped, monkeypatch):
    """What was put right above was put right by the exchange."""
    cell, options = perovskite
    monkeypatch.setattr(mutation, "_exchange", lambda *_: None)
    done = evolved(KEY, rng(), cell, options, swapped, 2, 0.004, settings_of(STILL))
    assert lowest_price(done) == pytest.approx(lowest_price(swapped))


@pytest.fixture(scope="module")
def two_sites():
    """Two elements on mirror planes of Pnma; each parent has one of them right."""
    pnma = cells.group("oP", 62)
    plane = next(s for s in wyckoff.sites_of(pnma) if s.num_free == 2)
    crystal = cells.crystal_on("oP", [plane, plane], [8, 22], seed=5)
    cell, options = problem(crystal, cells.group("oP", 19), pnma)
    truth = placement._placed(rng(), [plane, plane], NUM_NODES)
    truth.x[:2] = crystal.frac_coords[[0, 4]]
    wrong = []
    for s in (0, 1):
        x = truth.x.copy()
        x[s] += plane.project @ np.array([0.2, 0.3, 0.25])
        wrong.append(truth._replace(x=x))
    return crystal, cell, options, truth, wrong


def test_each_parent_gives_the_element_that_it_has_right(two_sites, monkeypatch):
    _, cell, options, truth, wrong = two_sites
    monkeypatch.setattr(mutation, "_exchange", lambda *_: None)
    monkeypatch.setattr(mutation, "_move", lambda *_: None)
    least = lowest_price({2: evaluated(cell, options[2], [truth])})
    population = {2: evaluated(cell, options[2], wrong)}
    assert lowest_price(population) > 10 * least
    done = evolved(KEY, rng(), cell, options, population, 1, 0.0, settings_of(STILL))
    assert lowest_price(done) == pytest.approx(least, rel=1e-3)
    alone = {2: evaluated(cell, options[2], wrong[:1])}
    done = evolved(KEY, rng(), cell, options, alone, 2, 0.0, settings_of(STILL))
    assert lowest_price(done) == pytest.approx(lowest_price(alone))


def test_moves_and_annealing_find_the_truth_from_one_wrong_parent(two_sites):
    crystal, cell, options, _, wrong = two_sites
    population = {2: evaluated(cell, options[2], wrong[:1])}
    plan = settings_of(Round(64, 14, 0.0), Round(12, 60, 1.0))
    done = evolved(KEY, rng(), cell, options, population, 4, 0.006, plan)
    assert lowest_price(done) < 0.006
    best = coordinates(done[2].placements)[np.argmin(prices(done[2]))]
    found = Crystal(crystal.atomic_numbers, best % 1.0, crystal.lattice)
    assert crystal.to_structure().matches(found.to_structure())


def generations(monkeypatch):
    seen, real = [], selection.selected
    spy = lambda *args: seen.append(args) or real(*args)  # noqa: E731
    monkeypatch.setattr(selection, "selected", spy)
    return seen


def test_evolution_stops_when_it_is_good_enough(perovskite, swapped, monkeypatch):
    cell, options = perovskite
    seen, plan = generations(monkeypatch), settings_of(STILL)
    price = lowest_price(swapped)
    same = evolved(KEY, rng(), cell, options, swapped, 5, price * 1.01, plan)
    assert same is swapped
    assert not seen
    evolved(KEY, rng(), cell, options, swapped, 5, price * 0.99, plan)
    assert len(seen) == 1  # the exchange was enough
    evolved(KEY, rng(), cell, options, swapped, 5, 0.0, plan)
    assert len(seen) == 6
    assert len({str(jax.random.key_data(args[0])) for args in seen[1:]}) == 5
    assert evolved(KEY, rng(), cell, options, swapped, 0, 0.0, plan) is swapped


def test_nothing_comes_from_p1_alone(perovskite, monkeypatch):
    cell, options = perovskite
    seen = generations(monkeypatch)
    start = PEROVSKITE._replace(frac_coords=rng().uniform(size=(5, 3)))
    alone = {0: evaluated(cell, options[0], [placement.free_placement(start, NUM_NODES)])}
    assert evolved(KEY, rng(), cell, options, alone, 3, 0.0, settings_of(STILL)) is alone
    assert not seen


def test_what_there_was_stays_and_the_best_is_never_lost(two_sites):
    _, cell, options, truth, wrong = two_sites
    free = placement.free_placement(two_sites[0], NUM_NODES)
    population = {
        0: evaluated(cell, options[0], [free]),
        1: evaluated(
            cell, options[1], random_placements(rng(), options[1].sites, [4, 4], 5, NUM_NODES)
        ),
        2: evaluated(cell, options[2], [wrong[0], truth, wrong[1]]),
    }
    # One of what is new goes on, so that copies of the truth are no reason.
    plan = settings_of(Round(40, 0, 0.0), Round(1, 3, 1.0), num_parents=4)
    last = population
    for num in (1, 2, 3):
        done = evolved(KEY, rng(3), cell, options, population, num, 0.0, plan)
        assert set(done) == {0, 1, 2}
        for i, a in population.items():
            n = len(a.misfit)
            np.testing.assert_array_equal(done[i].placements.x[:n], a.placements.x)
            np.testing.assert_array_equal(done[i].misfit[:n], a.misfit)
            assert len(done[i].misfit) == len(done[i].contact) == len(done[i].placements.x)
        assert lowest_price(done) <= lowest_price(last)
        assert sum(len(a.misfit) for a in done.values()) > sum(len(a.misfit) for a in last.values())
        last = done
    assert len(last[0].misfit) == 1


def test_parents_of_each_group_have_copies_in_proportion(two_sites, monkeypatch):
    _, cell, options, _, wrong = two_sites
    population = {
        1: evaluated(
            cell, options[1], random_placements(rng(), options[1].sites, [4, 4], 3, NUM_NODES)
        ),
        2: evaluated(cell, options[2], wrong[:1]),
    }
    seen = generations(monkeypatch)
    evolved(
        KEY,
        rng(),
        cell,
        options,
        population,
        1,
        0.0,
        settings_of(Round(40, 0, 0.0), same_price=0.0),
    )
    drawn, rounds = seen[0][3], seen[0][4]
    assert {i: len(p) for i, p in drawn.items()} == {1: 30, 2: 10}
    assert rounds == (Round(40, 0, 0.0),)
    seen.clear()
    evolved(
        KEY, rng(), cell, options, population, 1, 0.0, settings_of(Round(1, 0, 0.0), same_price=0.0)
    )
    assert {i: len(p) for i, p in seen[0][3].items()} == {1: 1, 2: 1}


def test_equal_draws_evolve_equally(two_sites):
    _, cell, options, _, wrong = two_sites
    population = {2: evaluated(cell, options[2], wrong)}
    plan = settings_of(Round(16, 2, 1.0))
    a, b, other = (
        evolved(key, rng(seed), cell, options, population, 2, 0.0, plan)[2]
        for key, seed in ((KEY, 0), (KEY, 0), (KEY, 1))
    )
    np.testing.assert_array_equal(a.placements.x, b.placements.x)
    assert not np.array_equal(a.placements.x, other.placements.x)
