"""Powder lines of whole data sets, simulated from the host.

The reflections of each cell are listed exactly (`hkl`), their strengths computed on the device in
blocks of few shapes, and lines merged in float64. The lines are those of `simulate.lines`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.crystals.crystal import Crystal, PackedCrystals, pack_crystals
from xtalnet_jax.pxrd.hkl import HklTable, hkl_table
from xtalnet_jax.pxrd.pattern import Lines
from xtalnet_jax.pxrd.reflections import squares
from xtalnet_jax.pxrd.scattering import check_tabulated

MERGE_TOL = 2e-5
"""Reflections closer than this in 1/d (1/angstrom, 0.003 degree at Cu K-alpha) are one line."""

STRENGTH_FLOOR = 1e-7
"""Lines below this fraction of the strongest are numerical noise of extinct reflections."""

_ROW = 64  # reflections of one crystal per row of a block
_BLOCKS = (512, 64)  # rows per block: few shapes, each compiled once
ATOM_STEPS = (5, 10, 15, 20, 30, 40, 52, 64, 80, 100, 150, 200, 300, 400)
SPECIES_STEPS = (3, 5, 8, 98)


def lines_of(
    crystals: Sequence[Crystal] | PackedCrystals,
    inv_d_max: float | int,
    num_lines: int,
    batch_size: int = 2048,
    progress: Callable[[int, int], None] | None = None,
    inv_d_min: float | int = 0.0,
    b_iso: float | int = 0.0,
    merge_tol: float = MERGE_TOL,
    table: str = "pymatgen",
) -> Lines:
    """Powder lines of any number of crystals, from the host: the fast way for a data set.

    The same lines as `lines` gives, but only reflections inside the sphere are computed, crystals
    are sorted by size, and the merging is done in float64.

    Args:
        crystals: any mix of sizes and cells.
        inv_d_max: 1/angstrom.
        num_lines: n_line.
        batch_size: crystals in memory at a time.
        progress: called with (crystals done, all crystals).
        inv_d_min: 1/angstrom.
        b_iso: overall B in square angstrom.
        merge_tol: 1/angstrom.
        table: form factors, ``"pymatgen"`` or ``"it92"``.

    Returns:
        `Lines` of NumPy float32 arrays [n_crystal, num_lines].

    Raises:
        ValueError: no crystals, an element without form factor, or a flat lattice.
    """
    packed = crystals if isinstance(crystals, PackedCrystals) else pack_crystals(crystals)
    num_crystals = len(packed.lattice)
    inv_d, strength = np.zeros((2, num_crystals, num_lines), np.float32)
    for start in range(0, num_crystals, batch_size):
        some = _part(packed, start, min(start + batch_size, num_crystals))
        found = line_table(some, inv_d_max, inv_d_min, b_iso, merge_tol, table)
        rank = found.strength / found.inv_d**2
        counts = np.diff(found.offset)
        keep = np.ones(len(rank), bool)
        for k in np.flatnonzero(counts > num_lines):
            own = slice(found.offset[k], found.offset[k + 1])
            keep[own] = rank[own] >= np.partition(rank[own], -num_lines)[-num_lines]
            keep[own] &= keep[own].cumsum() <= num_lines  # equal ranks must not overflow
        held = np.arange(num_lines) < np.minimum(counts, num_lines)[:, None]
        inv_d[start : start + len(counts)][held] = found.inv_d[keep]
        strength[start : start + len(counts)][held] = found.strength[keep]
        if progress is not None:
            progress(start + len(counts), num_crystals)
    return Lines(inv_d, strength)


class LineTable(NamedTuple):
    """Lines of several crystals, those of crystal k in ``offset[k]:offset[k+1]``, rising 1/d."""

    inv_d: np.ndarray  # [n_total] float64
    strength: np.ndarray  # [n_total] float64, strongest of a crystal 1
    offset: np.ndarray  # [n_crystal + 1]


def line_table(
    packed: PackedCrystals,
    inv_d_max: float | int,
    inv_d_min: float | int,
    b_iso: float | int,
    merge_tol: float,
    table: str,
) -> LineTable:
    """Find the lines of each crystal, all of them; the arguments are those of `lines_of`."""
    check_tabulated(packed.atomic_numbers)
    listed = hkl_table(packed.lattice, inv_d_max, inv_d_min)
    if not len(listed.hkl):
        return LineTable(np.zeros(0), np.zeros(0), listed.offset)
    strength = _strengths(packed, listed, b_iso, table)
    new = np.diff(listed.inv_d, prepend=-1.0) > merge_tol
    some = np.flatnonzero(np.diff(listed.offset))  # crystals that have a reflection
    new[listed.offset[some]] = True
    start = np.flatnonzero(new)
    total = np.add.reduceat(strength.astype(np.float64), start)
    offset = np.searchsorted(start, listed.offset)
    counts = np.diff(offset)
    strongest = np.maximum.reduceat(total, offset[some])
    total /= np.repeat(np.maximum(strongest, 1e-30), counts[some])
    keep = total > STRENGTH_FLOOR
    kept_offset = np.concatenate([[0], keep.cumsum()])[offset]
    return LineTable(listed.inv_d[start][keep], total[keep], kept_offset)


def _strengths(
    packed: PackedCrystals, listed: HklTable, b_iso: float | int, table: str
) -> np.ndarray:
    """|F|^2 [n_total] of all listed reflections.

    The unit of work is a row: `_ROW` reflections of one crystal. Blocks of rows have few different
    shapes whatever the cells are. The last row of a crystal may run over into the next crystal's
    reflections; what it computes there is not read.
    """
    atoms, counts = np.diff(packed.offset), np.diff(listed.offset)
    species, slot, num_species = _species_slots(packed)
    size = np.stack([round_up(ATOM_STEPS, atoms), round_up(SPECIES_STEPS, num_species)])
    row_counts = -(-counts // _ROW)
    first_row = row_counts.cumsum() - row_counts
    owner = np.repeat(np.arange(len(counts)), row_counts)
    start = listed.offset[owner] + (np.arange(len(owner)) - first_row[owner]) * _ROW
    reach, inv_d = np.arange(_ROW), listed.inv_d.astype(np.float32)
    pending = []
    for num_nodes, width in np.unique(size, axis=1).T.tolist():
        same = (size[0] == num_nodes) & (size[1] == width)
        frac, slots = _padded(packed, same, slot, num_nodes)
        local = np.cumsum(same) - 1
        rows = np.flatnonzero(same[owner])
        while len(rows):
            block = next((n for n in _BLOCKS if len(rows) > n // 2), _BLOCKS[-1])
            now, rows = rows[:block], rows[block:]
            full = np.pad(now, (0, block - len(now)), mode="edge")
            which = np.minimum(start[full, None] + reach, len(inv_d) - 1)
            whose = owner[full]
            arrays = (listed.hkl.take(which, 0), inv_d.take(which), frac[local[whose]])
            elements = (species[whose, :width], slots[local[whose]])
            pending.append((now, _block_squares(*arrays, *elements, b_iso, table)))
    out = np.empty((len(owner), _ROW), np.float32)
    for now, value in pending:  # the device works on the later blocks meanwhile
        out[now] = np.asarray(value)[: len(now)]
    shift = first_row * _ROW - listed.offset[:-1]
    return out.ravel()[np.arange(len(inv_d)) + np.repeat(shift, counts)]


@partial(jax.jit, static_argnums=6)
def _block_squares(
    hkl: jax.Array,
    inv_d: jax.Array,
    frac_coords: jax.Array,
    species: jax.Array,
    slots: jax.Array,
    b_iso: jax.Array,
    table: str,
) -> jax.Array:
    one_hot = jax.nn.one_hot(slots, species.shape[1], dtype=inv_d.dtype)  # slot -1: no atom
    hkl, b_iso = hkl.astype(inv_d.dtype), jnp.asarray(b_iso, inv_d.dtype)
    return squares(hkl, inv_d, frac_coords, species, one_hot, b_iso, table)


def _species_slots(packed: PackedCrystals) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Elements of each crystal [n_crystal, 98], slot of each atom [n_total], number of elements."""
    num_crystals = len(packed.lattice)
    owner = np.repeat(np.arange(num_crystals), np.diff(packed.offset))
    pairs, which = np.unique(owner * 128 + packed.atomic_numbers, return_inverse=True)
    bounds = np.searchsorted(pairs, np.arange(num_crystals + 1) * 128)
    num_species = np.diff(bounds)
    species = np.zeros((num_crystals, SPECIES_STEPS[-1]), np.int32)
    species[np.arange(SPECIES_STEPS[-1]) < num_species[:, None]] = pairs % 128
    return species, which - bounds[owner], num_species


def _padded(
    packed: PackedCrystals, which: np.ndarray, slot: np.ndarray, num_nodes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [n, num_nodes, 3] and slots [n, num_nodes] (-1 where padded) of some crystals."""
    atoms = np.diff(packed.offset)
    held = np.arange(num_nodes) < atoms[which, None]
    mine = np.repeat(which, atoms)
    frac = np.zeros((len(held), num_nodes, 3), np.float32)
    slots = np.full((len(held), num_nodes), -1, np.int32)
    frac[held], slots[held] = packed.frac_coords[mine], slot[mine]
    return frac, slots


def round_up(steps: Sequence[int], value: np.ndarray) -> np.ndarray:
    """Return the smallest step that holds each value; beyond the last one, multiples of it."""
    within = np.asarray(steps)[np.minimum(np.searchsorted(steps, value), len(steps) - 1)]
    return np.where(value > steps[-1], -(-value // steps[-1]) * steps[-1], within)


def _part(packed: PackedCrystals, start: int, stop: int) -> PackedCrystals:
    a, b = packed.offset[start], packed.offset[stop]
    return PackedCrystals(
        packed.atomic_numbers[a:b].astype(np.int64),
        packed.frac_coords[a:b],
        packed.lattice[start:stop],
        packed.offset[start : stop + 1] - a,
    )
