"""From peaks and compositions to crystals worth refining.

1. A first draw of the generator for every composition says which volumes and shapes to expect.
2. Indexing near these guesses finds the cells that explain the positions of the peaks; as all
   compositions compete for the same peaks, this also judges the number of formula units.
3. The generator draws crystals inside the best cells.
4. In these cells structures are searched in direct space: atoms on the Wyckoff positions of every
   space group that the pattern allows, and the draws with all atoms free; in the best two
   cells more is tried until something explains the pattern.
5. Half of what goes on are the structures found; the rest are annealed draws and the draws whose
   lines agree best with the peaks, among them the first draw, scaled to the peaks, in case that no
   cell was right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.reduction import standard_frame
from xtalnet_jax.direct_space.structure_search import Found as Structure
from xtalnet_jax.direct_space.structure_search import Searched, begin_search, continue_search
from xtalnet_jax.indexing import indexing, positions
from xtalnet_jax.pxrd.pattern import (
    Pattern,
    PeakBatch,
    inv_d_from_two_theta,
    two_theta_from_inv_d,
)
from xtalnet_jax.solve import screen

ProposeFn = Callable[..., list[Crystal]]
"""``propose(key, atomic_numbers, num, lattices=None)``: crystals of the generator."""


class SearchSettings(NamedTuple):
    """How many of what."""

    num_guesses: int = 20  # first draw, for each composition
    num_cells: int = 4  # cells in which crystals are drawn
    enough: float = 1.25  # log likelihood per peak below which cells are searched again
    temperature: float = 8.0  # of the cells' log likelihoods: how the drawing is shared
    oversampling: int = 1  # crystals drawn in cells for each one that goes on
    least_share: float = 0.1  # of that of the best cell; cells with less are left out
    solved: float = 0.008  # price of a structure after which no other cell is searched
    num_continued: int = 2  # cells in which more is tried
    near: float = 2.0  # times the lowest price, for those cells
    share_found: float = 0.5  # of what goes on: structures found
    share_annealed: float = 0.2  # of what goes on: annealed draws


DEFAULT = SearchSettings()

_ATTEMPTS = (indexing.DEFAULT, indexing.DEFAULT, indexing.LENIENT)


class Found(NamedTuple):
    """Crystals worth refining."""

    crystals: list[Crystal]
    cells: list[tuple[np.ndarray, float]]  # lattices drawn in, and their log likelihoods


class _Cell(NamedTuple):
    composition: int
    lattice: np.ndarray
    score: float
    shift: np.ndarray  # [2] see `positions.true_angle`
    num_peaks: int  # that were to be explained


def search(
    key: jax.Array,
    propose: ProposeFn,
    compositions: list[np.ndarray],
    pattern: Pattern,
    peaks: PeakBatch,
    num_candidates: int,
    known_cell: np.ndarray | None = None,
    anneal: bool = True,
    settings: SearchSettings = DEFAULT,
) -> Found:
    """Return at most ``num_candidates`` crystals that agree well with the pattern.

    Args:
        key: of the generator.
        propose: draws crystals.
        compositions: atomic numbers of every cell content to consider.
        pattern: the profile.
        peaks: its peaks, positions 1/d.
        num_candidates: crystals wanted.
        known_cell: lattice, if it is known; nothing is indexed then.
        anneal: whether to anneal copies of the crystals.
        settings: see `SearchSettings`.
    """
    key_guess, key_draw, key_anneal = jax.random.split(key, 3)
    wavelength, most = pattern.wavelength, settings.oversampling * num_candidates
    drawn: list[Crystal] = []
    guesses: dict[int, list[np.ndarray]] = {}
    if known_cell is None:
        for i, numbers in enumerate(compositions):
            some = propose(jax.random.fold_in(key_guess, i), numbers, settings.num_guesses)
            drawn += screen.rescaled(some, peaks, wavelength)
            guesses[i] = [c.lattice for c in some]
        cells = _best_cells(guesses, peaks, wavelength, settings)
    else:
        shift = indexing.shift_in(known_cell, peaks, wavelength)
        cells = [_Cell(i, known_cell, 0.0, shift, 0) for i in range(len(compositions))]
    if cells:
        pattern, peaks = aligned(pattern, peaks, cells[0].shift)
    shares = _shares([c.score for c in cells], settings)
    begun: list[Searched] = []
    for k, (cell, share) in enumerate(zip(cells, shares)):
        if not share:
            continue
        numbers, lattice = compositions[cell.composition], standard_frame(cell.lattice)
        cells_of_draws = np.tile(lattice, (max(1, round(share * most)), 1, 1))
        own = jax.random.fold_in(key_draw, k)
        inside = propose(own, numbers, len(cells_of_draws), cells_of_draws)
        drawn += inside
        solved = any(s.found and s.found[0].price < settings.solved for s in begun)
        if anneal and not solved:
            own = jax.random.fold_in(key_anneal, k)
            begun.append(begin_search(own, lattice, numbers, pattern, inside))
    chosen = _chosen(_continued(key_anneal, begun, settings), num_candidates, settings)
    agreement = screen.agreement(drawn, peaks, wavelength)
    best = np.argsort(-agreement, kind="stable")[: num_candidates - len(chosen)]
    used = [(c.lattice, c.score) for c in cells]
    return Found(chosen + [drawn[k] for k in best], used)


def _continued(key: jax.Array, begun: list[Searched], settings: SearchSettings) -> list[Structure]:
    """Structures of all cells; where the cheapest are, more is tried."""
    begun = sorted((s for s in begun if s.found), key=lambda s: s.found[0].price)
    out: list[Structure] = []
    solved = False
    for k, searched in enumerate(begun):
        near = searched.found[0].price < settings.near * begun[0].found[0].price
        if near and k < settings.num_continued and not solved:
            out += continue_search(jax.random.fold_in(key, k), searched)
            solved = min(s.price for s in out) < settings.solved
        else:
            out += searched.found
    return out


def _chosen(
    structures: list[Structure], num_candidates: int, settings: SearchSettings
) -> list[Crystal]:
    """The cheapest explanations, and the best annealed draws."""
    structures = sorted(structures, key=lambda s: s.price)
    found = structures[: round(settings.share_found * num_candidates)]
    rest = [s for s in structures[len(found) :] if s.space_group == 1]
    rest.sort(key=lambda s: s.misfit)
    return [s.crystal for s in found + rest[: round(settings.share_annealed * num_candidates)]]


def _best_cells(
    guesses: dict[int, list[np.ndarray]],
    peaks: PeakBatch,
    wavelength: float,
    settings: SearchSettings,
) -> list[_Cell]:
    """Cells for all compositions, best first; searched again where no cell explains the peaks.

    Scores are log likelihoods relative to peaks of no cell, so those of different precisions
    compare.
    """
    cells: dict[int, list[indexing.Cell]] = {i: [] for i in guesses}
    found: list[_Cell] = []
    for seed, precision in enumerate(_ATTEMPTS):
        for i, lattices in guesses.items():
            if lattices:
                new = indexing.index_cells(lattices, peaks, wavelength, seed, precision)
                cells[i] = indexing.distinct(cells[i] + new)
        found = [_Cell(i, *c) for i, own in cells.items() for c in own]
        found = sorted(found, key=lambda c: -c.score)[: settings.num_cells]
        if found and found[0].score > settings.enough * found[0].num_peaks:
            break
    return found


def aligned(pattern: Pattern, peaks: PeakBatch, shift: np.ndarray) -> tuple[Pattern, PeakBatch]:
    """Pattern and peaks without the zero shift and displacement that the best cell tells."""
    mask, wavelength = np.asarray(peaks.mask), pattern.wavelength
    measured = two_theta_from_inv_d(np.asarray(peaks.position, float), wavelength)
    position = inv_d_from_two_theta(positions.true_angle(measured, shift), wavelength)
    position = np.where(mask, np.maximum(position, 1e-3), 0.0).astype(np.float32)
    angles = positions.true_angle(pattern.two_theta, shift)
    first = int(np.argmax(angles > 0))
    sigma = None if pattern.sigma is None else pattern.sigma[first:]
    moved = pattern._replace(
        two_theta=angles[first:], intensity=pattern.intensity[first:], sigma=sigma
    )
    return moved, peaks._replace(position=position)


def _shares(scores: list[float], settings: SearchSettings) -> np.ndarray:
    """Share of the drawing that each cell gets; nothing, if much less than the best."""
    if not scores:
        return np.zeros(0)
    weight = np.exp((np.array(scores) - max(scores)) / settings.temperature)
    weight[weight < settings.least_share] = 0.0
    return weight / weight.sum()
