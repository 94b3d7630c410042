"""Rounds of annealing: what is best goes on, longer; then generations of changed copies of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from xtalnet_jax.crystals import wyckoff
from xtalnet_jax.direct_space import annealing, mutation, placement
from xtalnet_jax.direct_space.annealing import AnnealSettings, Arrangements
from xtalnet_jax.direct_space.known_cell import KnownCell, Reflections
from xtalnet_jax.direct_space.placement import Placement


class Round(NamedTuple):
    """One round of the selection."""

    num: int  # arrangements
    num_steps: int
    heat: float


class SelectionSettings(NamedTuple):
    """How much to try; misfits are 1 - cos^2 of square-root profiles."""

    rounds: tuple[Round, ...] = (Round(2400, 14, 0.0), Round(480, 40, 1.0), Round(96, 120, 1.0))
    generation: tuple[Round, ...] = (Round(480, 40, 1.0), Round(96, 120, 1.0))
    num_parents: int = 32  # arrangements that a generation comes from
    price: float = 0.1  # factor on the misfit per free parameter, as 1 + price * number
    misfit_floor: float = 1e-3  # misfits below are as good as 0
    same_price: float = 0.02  # relative; of arrangements nearer than this one is a parent
    anneal: AnnealSettings = annealing.DEFAULT


DEFAULT = SelectionSettings()


class Option(NamedTuple):
    """A group that the pattern allows."""

    number: int
    sites: list[wyckoff.Site]
    reflections: Reflections
    weight: float  # of the drawing, 0 for P1


Population = dict[int, Arrangements]
"""Arrangements in each group, by the number of the option; 0 is P1."""


def selected(
    key: jax.Array,
    cell: KnownCell,
    options: Sequence[Option],
    drawn: dict[int, list[Placement]],
    rounds: Sequence[Round],
    settings: SelectionSettings = DEFAULT,
) -> Population:
    """Anneal longer and longer what is best."""
    own = {i: placement.stacked(p) for i, p in drawn.items()}
    done: Population = {}
    for k, plan in enumerate(rounds):
        if k:
            own = _best(done, plan.num, settings)
        work = [(options[i].reflections, p) for i, p in own.items()]
        annealed = annealing.anneal(
            jax.random.fold_in(key, k), cell, work, plan.num_steps, plan.heat, settings.anneal
        )
        done = dict(zip(own, annealed))
    return done


def evolved(
    key: jax.Array,
    rng: np.random.Generator,
    cell: KnownCell,
    options: Sequence[Option],
    population: Population,
    num_generations: int,
    enough: float,
    settings: SelectionSettings = DEFAULT,
) -> Population:
    """Add generations of changed copies of the best, until one costs less than ``enough``."""
    counts = np.unique(cell.atomic_numbers, return_counts=True)[1].tolist()
    for generation in range(num_generations):
        parents = _parents(population, settings)
        total = sum(len(p.x) for p in parents.values())
        if not total or lowest_price(population, settings) < enough:
            break
        share = settings.generation[0].num / total
        drawn = {
            i: mutation.mutants(rng, p, counts, max(1, round(share * len(p.x))))
            for i, p in parents.items()
        }
        own = jax.random.fold_in(key, generation)
        new = selected(own, cell, options, drawn, settings.generation, settings)
        population = {
            i: _joined([p[i] for p in (population, new) if i in p]) for i in {*population, *new}
        }
    return population


def prices(a: Arrangements, settings: SelectionSettings = DEFAULT) -> np.ndarray:
    """Misfit, with what freedom and short contacts cost, [n]."""
    num_free = placement.num_free(a.placements)
    return (a.misfit + settings.misfit_floor) * (1 + settings.price * num_free) + a.contact


def lowest_price(population: Population, settings: SelectionSettings = DEFAULT) -> float:
    """Price of the best of all groups."""
    return float(min(prices(a, settings).min() for a in population.values()))


def _best(population: Population, num: int, settings: SelectionSettings) -> dict[int, Placement]:
    own = {i: prices(a, settings) for i, a in population.items()}
    every = np.sort(np.concatenate(list(own.values())))
    bound = every[min(num, len(every)) - 1]
    # Starts from elsewhere (P1) pay for much freedom; they stay because there is no second draw.
    chosen = {i: np.flatnonzero((p <= bound) | (i == 0)) for i, p in own.items()}
    return {i: _rows(population[i], rows) for i, rows in chosen.items() if len(rows)}


def _parents(population: Population, settings: SelectionSettings) -> dict[int, Placement]:
    """The best in groups other than P1, of equally priced ones one."""
    every = sorted(
        (price, i, k)
        for i, a in population.items()
        for k, price in enumerate(prices(a, settings))
        if i
    )
    rows: dict[int, list[int]] = {}
    last, num = -1.0, 0
    for price, i, k in every:
        if num == settings.num_parents:
            break
        if price > last * (1 + settings.same_price):
            rows.setdefault(i, []).append(k)
            last, num = price, num + 1
    return {i: _rows(population[i], np.array(own)) for i, own in rows.items()}


def _rows(a: Arrangements, rows: np.ndarray) -> Placement:
    return Placement(*(v[rows] for v in a.placements))


def _joined(parts: list[Arrangements]) -> Arrangements:
    return jax.tree.map(lambda *v: np.concatenate(v), *parts)
