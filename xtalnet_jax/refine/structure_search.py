"""Solve a structure in a known cell: every space group, Wyckoff positions at random, annealing.

Space groups whose absences contradict the pattern are left out. In all others atoms are put on
Wyckoff positions at random, moved downhill a little, and the better ones annealed longer and
longer. What is free must pay for itself, so that a group is preferred to its subgroups. As long as
nothing explains the pattern, more is tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.pxrd.pattern import Pattern
from xtalnet_jax.refine import direct_space, known_cell, placement, wyckoff
from xtalnet_jax.refine.direct_space import AnnealSettings, Arrangements
from xtalnet_jax.refine.known_cell import KnownCell, Reflections
from xtalnet_jax.refine.placement import Placement


class Round(NamedTuple):
    """One round of the selection."""

    num: int  # arrangements
    num_steps: int
    heat: float


class SearchSettings(NamedTuple):
    """How much to try; misfits are 1 - cos^2 of square-root profiles."""

    rounds: tuple[Round, ...] = (Round(2400, 14, 0.0), Round(480, 40, 1.0), Round(96, 120, 1.0))
    solved: float = 0.008  # price at which no more is tried
    symprecs: tuple[float, ...] = (0.05, 0.01, 0.002)  # angstrom; how near the lattice must be to
    # its symmetry, in each repeat of all rounds
    surplus: float = 0.03  # misfit that the absences of a group may cause at least
    fwhm: float = 0.2  # degrees, added to the width of the peaks
    floor: float = 0.02  # under the square root, in units of the mean intensity
    b_iso: float = 0.3  # square angstrom
    contact: float = 0.75  # shortest distance allowed, in sums of atomic radii
    price: float = 0.1  # factor on the misfit per free parameter, as 1 + price * number
    misfit_floor: float = 1e-3  # misfits below are as good as 0
    plausible: float = 0.04  # price at which it is enough to find the same twice
    same_price: float = 0.05  # relative; for the same
    same_misfit: float = 0.02  # relative; with equal distances it is the same structure
    anneal: AnnealSettings = direct_space.DEFAULT


DEFAULT = SearchSettings()


class Found(NamedTuple):
    """A structure in the known cell."""

    crystal: Crystal  # atoms ordered by atomic number
    misfit: float  # 1 - cos^2
    price: float  # misfit with what its freedom and its short contacts cost; order by this
    space_group: int  # searched in; the crystal may have more symmetry
    num_free: int  # coordinates


class _Option(NamedTuple):
    """A group that the pattern allows."""

    number: int
    sites: list[wyckoff.Site]
    reflections: Reflections
    weight: float


def search_structures(
    key: jax.Array,
    lattice: np.ndarray,
    atomic_numbers: np.ndarray,
    pattern: Pattern,
    starts: Sequence[Crystal] = (),
    settings: SearchSettings = DEFAULT,
) -> list[Found]:
    """Return different structures in a cell, the best explanation first.

    Args:
        key: of all draws; equal keys give equal results.
        lattice: [3, 3] primitive cell, right to about 0.5 %, angstrom.
        atomic_numbers: contents of the cell.
        pattern: measured or calculated, without zero shift.
        starts: crystals of these contents from elsewhere, whose coordinates are annealed in P1 and
            returned as well, unless they became equal to a cheaper structure.
        settings: see `SearchSettings`.

    Raises:
        ValueError: a pattern that cannot be compared with, a cell without reflections in it, or a
            start of other contents.
    """
    s = settings
    cell = known_cell.known_cell(
        lattice, atomic_numbers, pattern, s.fwhm, s.floor, s.b_iso, s.contact
    )
    for c in starts:
        if sorted(c.atomic_numbers) != cell.atomic_numbers.tolist():
            raise ValueError(
                f"a start has the atoms {sorted(np.asarray(c.atomic_numbers).tolist())}, the cell "
                f"{cell.atomic_numbers.tolist()}; starts must have the contents of the cell"
            )
    num_nodes = direct_space.num_nodes_for(len(cell.atomic_numbers))
    options: list[_Option] = []
    groups: list[wyckoff.Group] = []
    rng = np.random.default_rng(int(jax.random.bits(jax.random.fold_in(key, 0))))
    pool: list[Found] = []
    for k, symprec in enumerate(s.symprecs):
        before, groups = groups, wyckoff.groups_of_cell(cell.lattice, symprec)
        if [g.number for g in groups] != [g.number for g in before] or not options:
            options = _options(cell, groups, num_nodes, s)
        drawn = _draw(rng, cell, options, num_nodes, s)
        if k == 0 and starts:
            drawn[0] = [placement.free_placement(_ordered(c), num_nodes) for c in starts]
        if not drawn:  # no group of this family holds such contents
            continue
        new = _selected(jax.random.fold_in(key, k + 1), cell, options, drawn, s)
        again = bool(pool and new) and abs(_cheapest(new) / _cheapest(pool) - 1) < s.same_price
        pool = _different(sorted(pool + new, key=lambda f: f.price), s)
        if pool[0].price < (s.plausible if again else s.solved):
            break
    return pool


def _cheapest(found: list[Found]) -> float:
    return min(f.price for f in found)


def _ordered(crystal: Crystal) -> Crystal:
    order = np.argsort(crystal.atomic_numbers, kind="stable")
    return crystal._replace(
        atomic_numbers=np.asarray(crystal.atomic_numbers)[order],
        frac_coords=np.asarray(crystal.frac_coords)[order],
    )


def _options(
    cell: KnownCell, groups: list[wyckoff.Group], num_nodes: int, settings: SearchSettings
) -> list[_Option]:
    """P1 for starts from elsewhere, then the groups whose absences the pattern allows."""
    out: list[_Option] = []
    for group in (wyckoff.P1, *groups):
        absent = known_cell.absences(cell.hkl, group)
        if known_cell.unexplained(cell, absent) > settings.surplus:
            continue
        reflections = known_cell.reflections_of(cell, group, absent, num_nodes)
        weight = len(group.rotations) ** 0.5 if out else 0.0
        out.append(_Option(group.number, wyckoff.sites_of(group), reflections, weight))
    return out


def _draw(
    rng: np.random.Generator,
    cell: KnownCell,
    options: list[_Option],
    num_nodes: int,
    settings: SearchSettings,
) -> dict[int, list[Placement]]:
    """Placements at random for each group, more for groups of high order."""
    counts = np.unique(cell.atomic_numbers, return_counts=True)[1].tolist()
    total = sum(o.weight for o in options)
    share = settings.rounds[0].num / max(total, 1.0)
    out: dict[int, list[Placement]] = {}
    for i, option in enumerate(options[1:], 1):
        number = max(4, round(share * option.weight))
        drawn = placement.random_placements(rng, option.sites, counts, number, num_nodes)
        if drawn:
            out[i] = drawn
    return out


def _selected(
    key: jax.Array,
    cell: KnownCell,
    options: list[_Option],
    drawn: dict[int, list[Placement]],
    settings: SearchSettings,
) -> list[Found]:
    """Anneal longer and longer what is best."""
    own = {i: placement.stacked(p) for i, p in drawn.items()}
    done: dict[int, Arrangements] = {}
    for k, plan in enumerate(settings.rounds):
        if k:
            own = _best(done, plan.num, settings)
        work = [(options[i].reflections, p) for i, p in own.items()]
        annealed = direct_space.anneal(
            jax.random.fold_in(key, k), cell, work, plan.num_steps, plan.heat, settings.anneal
        )
        done = dict(zip(own, annealed))
    n = len(cell.atomic_numbers)
    out = []
    for i, a in done.items():
        price, num_free = _prices(a, settings), placement.num_free(a.placements)
        frac = np.mod(placement.coordinates(a.placements), 1.0)
        for j in range(len(price)):
            crystal = Crystal(cell.atomic_numbers, frac[j, :n], cell.lattice)
            found = float(a.misfit[j]), float(price[j]), options[i].number, int(num_free[j])
            out.append(Found(crystal, *found))
    return out


def _prices(a: Arrangements, settings: SearchSettings) -> np.ndarray:
    num_free = placement.num_free(a.placements)
    return (a.misfit + settings.misfit_floor) * (1 + settings.price * num_free) + a.contact


def _best(
    done: dict[int, Arrangements], num: int, settings: SearchSettings
) -> dict[int, Placement]:
    prices = {i: _prices(a, settings) for i, a in done.items()}
    every = np.sort(np.concatenate(list(prices.values())))
    bound = every[min(num, len(every)) - 1]
    # Starts from elsewhere (P1) pay for much freedom; they stay because there is no second draw.
    chosen = {i: np.flatnonzero((p <= bound) | (i == 0)) for i, p in prices.items()}
    return {
        i: Placement(*(v[rows] for v in done[i].placements))
        for i, rows in chosen.items()
        if len(rows)
    }


def _different(found: list[Found], settings: SearchSettings) -> list[Found]:
    """Of structures ordered by price each once."""
    out: list[Found] = []
    prints: list[np.ndarray] = []
    for f in found:
        own = _nearest_distances(f.crystal)
        same = any(
            abs(f.misfit - o.misfit) < settings.same_misfit * f.misfit + 1e-4
            and np.abs(own - p).max() < 0.05
            for o, p in zip(out, prints)
        )
        if not same:
            out.append(f)
            prints.append(own)
    return out


def _nearest_distances(crystal: Crystal) -> np.ndarray:
    """Of each atom the distance to its nearest neighbour, sorted within each element, angstrom."""
    x, lattice = np.asarray(crystal.frac_coords), np.asarray(crystal.lattice)
    delta = x[:, None] - x[None]
    square = (((delta - np.round(delta)) @ lattice) ** 2).sum(-1) + 1e4 * np.eye(len(x))
    nearest = np.sqrt(square.min(1))
    return nearest[np.lexsort([nearest, crystal.atomic_numbers])]
