"""Atoms on Wyckoff positions: which sites each element may take, drawn at random (host, NumPy)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.wyckoff import Site

_TRIES, _MISSES = 20, 5
"""Draws for one placement; failures after which a group in which none succeeded is left."""
_TASTES = (1.0, 1.0, 0.0, -1.0)
"""Powers of a site's size and freedom that its chance is proportional to; one is drawn for each
placement. Most structures prefer large free sites, layered and ordered ones small special sites."""


class Placement(NamedTuple):
    """Where atoms are, in terms of what is free; site s has a first atom at ``x[s]``.

    Atom j is at ``rotations[j] @ x[site[j]] + translations[j]``. There are as many rows for sites
    as for atoms; those that are not used are zero.
    """

    site: np.ndarray  # [n_node] int
    rotations: np.ndarray  # [n_node, 3, 3] fractional
    translations: np.ndarray  # [n_node, 3]
    project: np.ndarray  # [n_node, 3, 3] fractional, onto the moves that keep a site special
    x: np.ndarray  # [n_node, 3]


def free_placement(crystal: Crystal, num_nodes: int) -> Placement:
    """Every atom a site of its own, free to go anywhere; padded to ``num_nodes``."""
    n = len(crystal.atomic_numbers)
    eye = np.tile(np.eye(3), (num_nodes, 1, 1))
    x = np.zeros((num_nodes, 3))
    x[:n] = crystal.frac_coords
    project = eye * (np.arange(num_nodes) < n)[:, None, None]
    return Placement(np.arange(num_nodes), eye, np.zeros((num_nodes, 3)), project, x)


def blank_placement(num_nodes: int) -> Placement:
    """No atoms; rows to be filled."""
    return Placement(
        np.zeros(num_nodes, int),
        np.zeros((num_nodes, 3, 3)),
        np.zeros((num_nodes, 3)),
        np.zeros((num_nodes, 3, 3)),
        np.zeros((num_nodes, 3)),
    )


def stacked(placements: Sequence[Placement]) -> Placement:
    """Placements of one size with a leading axis, float32."""
    arrays = [np.stack(v) for v in zip(*placements)]
    return Placement(arrays[0].astype(np.int32), *(v.astype(np.float32) for v in arrays[1:]))


def coordinates(placements: Placement) -> np.ndarray:
    """Fractional coordinates of all atoms of stacked placements [n, n_node, 3]."""
    first = np.take_along_axis(placements.x, placements.site[..., None], -2).astype(float)
    turned = np.einsum("njab,njb->nja", placements.rotations, first)
    return turned + placements.translations


def num_free(placements: Placement) -> np.ndarray:
    """Coordinates that may change, of stacked placements [n]."""
    return np.round(np.trace(placements.project, axis1=2, axis2=3).sum(-1)).astype(int)


def random_placements(
    rng: np.random.Generator,
    sites: Sequence[Site],
    counts: Sequence[int],
    num: int,
    num_nodes: int,
) -> list[Placement]:
    """Draw occupations of the sites by all elements, and positions in them, at random.

    Atoms come element by element in the order of ``counts``. Large sites with much freedom are
    preferred in half of the draws. Placements without any freedom are listed once each.

    Args:
        rng: draws.
        sites: of one group, from `wyckoff.sites_of`.
        counts: number of atoms of each element in the primitive cell.
        num: draws; fewer placements are returned where equal ones or none were found.
        num_nodes: rows to pad to.
    """
    size = np.array([len(s.rotations) for s in sites])
    free = np.array([s.num_free for s in sites])
    reachable = _reachable(size, max(counts))
    if not reachable[list(counts)].all():
        return []
    out: list[Placement] = []
    seen: set[tuple[int, ...]] = set()
    misses = 0
    for _ in range(num):
        chosen = None
        for _ in range(_TRIES):
            chosen = _occupation(rng, size, free, reachable, counts)
            if chosen is not None:
                break
        if chosen is None:
            misses += 1
            if misses == _MISSES and not out:
                break
            continue
        if not any(free[i] for i in chosen):
            key = tuple(chosen)
            if key in seen:
                continue
            seen.add(key)
        out.append(_placed(rng, [sites[i] for i in chosen], num_nodes))
    return out


def _reachable(size: np.ndarray, most: int) -> np.ndarray:
    """Which numbers of atoms some sum of multiplicities gives, [most + 1]."""
    out = np.zeros(most + 1, bool)
    out[0] = True
    for n in range(1, most + 1):
        out[n] = any(out[n - s] for s in np.unique(size) if s <= n)
    return out


def _occupation(
    rng: np.random.Generator,
    size: np.ndarray,
    free: np.ndarray,
    reachable: np.ndarray,
    counts: Sequence[int],
) -> list[int] | None:
    """Sites in the order of the elements; None where special positions ran out."""
    vacant = np.ones(len(size), bool)
    found: dict[int, list[int]] = {}
    taste = (size * (1.0 + free)) ** _TASTES[int(rng.random() * len(_TASTES))]
    for element in rng.permutation(len(counts)):
        rest, own = counts[element], []
        while rest > 0:
            left = rest - size
            possible = vacant & (left >= 0) & reachable[np.maximum(left, 0)]
            chance = np.cumsum(possible * taste)
            if not chance[-1] > 0:
                return None
            i = int(np.searchsorted(chance, rng.random() * chance[-1], side="right"))
            vacant[i] = free[i] > 0
            own.append(i)
            rest -= size[i]
        found[element] = sorted(own)
    return [i for element in range(len(counts)) for i in found[element]]


def _placed(rng: np.random.Generator, sites: list[Site], num_nodes: int) -> Placement:
    out = blank_placement(num_nodes)
    start = 0
    for s, site in enumerate(sites):
        rows = slice(start, start + len(site.rotations))
        out.site[rows], out.rotations[rows] = s, site.rotations
        out.translations[rows] = site.translations
        out.project[s] = site.project
        out.x[s] = site.project @ rng.uniform(0, 1, 3) + site.shift
        start = rows.stop
    return out
