"""Solve a structure in a known cell: every space group, Wyckoff positions at random, annealing.

Space groups whose absences contradict the pattern are left out. In all others atoms are put on
Wyckoff positions at random, moved downhill a little, and the better ones annealed longer and
longer. What is free must pay for itself, so that a group is preferred to its subgroups. As long as
nothing explains the pattern, more is tried: fresh draws, then changed copies of the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from xtalnet_jax.crystals import wyckoff
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.direct_space import annealing, known_cell, placement, selection
from xtalnet_jax.direct_space.known_cell import KnownCell
from xtalnet_jax.direct_space.placement import Placement
from xtalnet_jax.direct_space.selection import Option, Population, SelectionSettings
from xtalnet_jax.pxrd.pattern import Pattern


class SearchSettings(NamedTuple):
    """How much to try; misfits are 1 - cos^2 of square-root profiles."""

    solved: float = 0.004  # price at which no more is tried
    symprecs: tuple[float, ...] = (0.05, 0.01, 0.002)  # angstrom; how near the lattice must be to
    # its symmetry, in each repeat of all rounds
    num_generations: tuple[int, int] = (6, 1)  # of changed copies; second: the best was found twice
    surplus: float = 0.03  # misfit that the absences of a group may cause at least
    fwhm: float = 0.2  # degrees, added to the width of the peaks
    floor: float = 0.02  # under the square root, in units of the mean intensity
    b_iso: float = 0.3  # square angstrom
    contact: float = 0.75  # shortest distance allowed, in sums of atomic radii
    plausible: float = 0.04  # price at which it is enough to find the same twice
    same_price: float = 0.05  # relative; for the same
    same_misfit: float = 0.02  # relative; with equal distances it is the same structure
    selection: SelectionSettings = selection.DEFAULT


DEFAULT = SearchSettings()


class Found(NamedTuple):
    """A structure in the known cell."""

    crystal: Crystal  # atoms ordered by atomic number
    misfit: float  # 1 - cos^2
    price: float  # misfit with what its freedom and its short contacts cost; order by this
    space_group: int  # searched in; the crystal may have more symmetry
    num_free: int  # coordinates


class Searched(NamedTuple):
    """How far the search in one cell has come."""

    found: list[Found]  # different structures, best first
    cell: KnownCell
    options: list[Option]  # groups of the repeat that found the best
    population: Population  # of that repeat
    again: bool  # whether the last repeat found the best of those before again
    num_repeats: int  # done


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
    searched = begin_search(key, lattice, atomic_numbers, pattern, starts, settings)
    return continue_search(key, searched, settings)


def begin_search(
    key: jax.Array,
    lattice: np.ndarray,
    atomic_numbers: np.ndarray,
    pattern: Pattern,
    starts: Sequence[Crystal] = (),
    settings: SearchSettings = DEFAULT,
) -> Searched:
    """Search from random placements; arguments and errors of `search_structures`."""
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
    searched = _repeated(key, Searched([], cell, [], {}, False, 0), starts, s)
    while not searched.found and searched.num_repeats < len(s.symprecs):
        searched = _repeated(key, searched, (), s)
    return searched


def continue_search(
    key: jax.Array, searched: Searched, settings: SearchSettings = DEFAULT
) -> list[Found]:
    """Repeat with fresh draws, then try changed copies of the best, until that is enough.

    Args:
        key: of all draws; that of `begin_search` will do.
        searched: from `begin_search`.
        settings: see `SearchSettings`.
    """
    s = settings
    while searched.num_repeats < len(s.symprecs) and not _enough(searched, s):
        searched = _repeated(key, searched, (), s)
    found, cell, options, population, again, num_repeats = searched
    if not found or found[0].price < s.solved:
        return found
    key = jax.random.fold_in(key, num_repeats)
    rng, num = _generator(key), s.num_generations[again]
    population = selection.evolved(key, rng, cell, options, population, num, s.solved, s.selection)
    return _different(found + _found(cell, options, population, s), s)


def _repeated(
    key: jax.Array, searched: Searched, starts: Sequence[Crystal], settings: SearchSettings
) -> Searched:
    """All rounds once more, with groups of the next precision."""
    s, cell, k = settings, searched.cell, searched.num_repeats
    key = jax.random.fold_in(key, k)
    num_nodes = annealing.num_nodes_for(len(cell.atomic_numbers))
    options = _options(cell, wyckoff.groups_of_cell(cell.lattice, s.symprecs[k]), num_nodes, s)
    drawn = _draw(_generator(key), cell, options, num_nodes, s)
    if starts:
        drawn[0] = [placement.free_placement(_ordered(c), num_nodes) for c in starts]
    done = searched._replace(num_repeats=k + 1)
    if not drawn:  # no group of this family holds such contents
        return done
    population = selection.selected(key, cell, options, drawn, s.selection.rounds, s.selection)
    new, before = _found(cell, options, population, s), searched.found
    done = done._replace(found=_different(before + new, s))
    if not before or new[0].price < before[0].price:
        done = done._replace(options=options, population=population)
    again = bool(before) and abs(new[0].price / before[0].price - 1) < s.same_price
    return done._replace(again=again)


def _enough(searched: Searched, settings: SearchSettings) -> bool:
    """Whether the best explains the pattern, or is plausible and was found twice."""
    bound = settings.plausible if searched.again else settings.solved
    return bool(searched.found) and searched.found[0].price < bound


def _generator(key: jax.Array) -> np.random.Generator:
    return np.random.default_rng(int(jax.random.bits(key)))


def _ordered(crystal: Crystal) -> Crystal:
    order = np.argsort(crystal.atomic_numbers, kind="stable")
    return crystal._replace(
        atomic_numbers=np.asarray(crystal.atomic_numbers)[order],
        frac_coords=np.asarray(crystal.frac_coords)[order],
    )


def _options(
    cell: KnownCell, groups: list[wyckoff.Group], num_nodes: int, settings: SearchSettings
) -> list[Option]:
    """P1 for starts from elsewhere, then the groups whose absences the pattern allows."""
    out: list[Option] = []
    for group in (wyckoff.P1, *groups):
        absent = known_cell.absences(cell.hkl, group)
        if known_cell.unexplained(cell, absent) > settings.surplus:
            continue
        reflections = known_cell.reflections_of(cell, group, absent, num_nodes)
        weight = len(group.rotations) ** 0.5 if out else 0.0
        out.append(Option(group.number, wyckoff.sites_of(group), reflections, weight))
    return out


def _draw(
    rng: np.random.Generator,
    cell: KnownCell,
    options: list[Option],
    num_nodes: int,
    settings: SearchSettings,
) -> dict[int, list[Placement]]:
    """Placements at random for each group, more for groups of high order."""
    counts = np.unique(cell.atomic_numbers, return_counts=True)[1].tolist()
    total = sum(o.weight for o in options)
    share = settings.selection.rounds[0].num / max(total, 1.0)
    out: dict[int, list[Placement]] = {}
    for i, option in enumerate(options[1:], 1):
        number = max(4, round(share * option.weight))
        drawn = placement.random_placements(rng, option.sites, counts, number, num_nodes)
        if drawn:
            out[i] = drawn
    return out


def _found(
    cell: KnownCell, options: list[Option], population: Population, settings: SearchSettings
) -> list[Found]:
    """All of a population, cheapest first."""
    n = len(cell.atomic_numbers)
    out = []
    for i, a in population.items():
        price, num_free = selection.prices(a, settings.selection), placement.num_free(a.placements)
        frac = np.mod(placement.coordinates(a.placements), 1.0)
        for j in range(len(price)):
            crystal = Crystal(cell.atomic_numbers, frac[j, :n], cell.lattice)
            found = float(a.misfit[j]), float(price[j]), options[i].number, int(num_free[j])
            out.append(Found(crystal, *found))
    return sorted(out, key=lambda f: f.price)


def _different(found: list[Found], settings: SearchSettings) -> list[Found]:
    """Each structure once, cheapest first."""
    out: list[Found] = []
    prints: list[np.ndarray] = []
    for f in sorted(found, key=lambda f: f.price):
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
