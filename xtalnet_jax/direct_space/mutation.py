"""New placements from good ones: an atom moved, two elements exchanged, an element from another.

Where a search from random placements ends, often most atoms are right and a few are not; a small
change finds what a fresh start would have to find again in full (evolutionary search: Deaven and
Ho, Physical Review Letters 75, 288, 1995; here on Wyckoff positions; host, NumPy).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xtalnet_jax.direct_space.placement import Placement, blank_placement


class _Seat(NamedTuple):
    """One site with the atoms on it."""

    rotations: np.ndarray  # [m, 3, 3]
    translations: np.ndarray  # [m, 3]
    project: np.ndarray  # [3, 3]
    x: np.ndarray  # [3]


_Seating = list[list[_Seat]]
"""The seats of each element."""


def mutants(
    rng: np.random.Generator, parents: Placement, counts: Sequence[int], num: int
) -> list[Placement]:
    """Draw ``num`` changed copies of placements in one group.

    Args:
        rng: draws.
        parents: stacked, leading axis n.
        counts: number of atoms of each element, in the order of the atoms.
        num: of copies.
    """
    seatings = [_seating(parents, i, counts) for i in range(len(parents.x))]
    out = []
    for _ in range(num):
        seating = [list(seats) for seats in seatings[rng.integers(len(seatings))]]
        for _ in range(1 + int(rng.poisson(0.5))):
            kind = rng.choice(3, p=(0.5, 0.3, 0.2))
            if kind == 0:
                _move(rng, seating)
            elif kind == 1:
                _exchange(rng, seating)
            else:
                element = int(rng.integers(len(seating)))
                seating[element] = list(seatings[rng.integers(len(seatings))][element])
        out.append(_placement(seating, parents.x.shape[1]))
    return out


def _seating(placements: Placement, i: int, counts: Sequence[int]) -> _Seating:
    own = Placement(*(v[i] for v in placements))
    out, start = [], 0
    for count in counts:
        seats = []
        for s in np.unique(own.site[start : start + count]):
            rows = start + np.flatnonzero(own.site[start : start + count] == s)
            seats.append(
                _Seat(own.rotations[rows], own.translations[rows], own.project[s], own.x[s])
            )
        out.append(seats)
        start += count
    return out


def _move(rng: np.random.Generator, seating: _Seating) -> None:
    """Put the atoms of one site elsewhere on it."""
    places = [
        (e, k) for e, seats in enumerate(seating) for k, s in enumerate(seats) if s.project.any()
    ]
    if places:
        e, k = places[rng.integers(len(places))]
        seat = seating[e][k]
        seating[e][k] = seat._replace(x=seat.x + seat.project @ rng.uniform(-0.5, 0.5, 3))


def _exchange(rng: np.random.Generator, seating: _Seating) -> None:
    """Let two elements change places, on sites of equal multiplicity."""
    places = [(e, k) for e, seats in enumerate(seating) for k in range(len(seats))]
    e, k = places[rng.integers(len(places))]
    size = len(seating[e][k].rotations)
    others = [(f, j) for f, j in places if f != e and len(seating[f][j].rotations) == size]
    if others:
        f, j = others[rng.integers(len(others))]
        seating[e][k], seating[f][j] = seating[f][j], seating[e][k]


def _placement(seating: _Seating, num_nodes: int) -> Placement:
    out = blank_placement(num_nodes)
    start = 0
    for s, seat in enumerate(seat for seats in seating for seat in seats):
        rows = slice(start, start + len(seat.rotations))
        out.site[rows], out.rotations[rows] = s, seat.rotations
        out.translations[rows], out.project[s], out.x[s] = seat.translations, seat.project, seat.x
        start = rows.stop
    return out
