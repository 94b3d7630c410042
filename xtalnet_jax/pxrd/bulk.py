"""Powder lines of whole data sets, simulated from the host.

The reflections of each cell are listed exactly (`hkl`), their strengths computed on the device in
blocks of few shapes, and lines merged in float64. The lines are those of `simulate.lines`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.crystals.crystal import Crystal, PackedCrystals, pack_crystals
from xtalnet_jax.pxrd.hkl import HklTable, hkl_table
from xtalnet_jax.pxrd.pattern import Lines
from xtalnet_jax.pxrd.reflections import grouped_squares
from xtalnet_jax.pxrd.scattering import check_tabulated

MERGE_TOL = 2e-5
"""Reflections closer than this in 1/d (1/angstrom, 0.003 degree at Cu K-alpha) are one line."""

STRENGTH_FLOOR = 1e-7
"""Lines below this fraction of the strongest are numerical noise of extinct reflections."""

_ROW = 64  # reflections of one crystal per row of a block
_BLOCKS = (512, 64)  # rows per block: few shapes, each compiled once
_GROUP = 4  # atoms of one element whose phases are added before they are weighted
GROUP_STEPS = (2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 30, 40, 50, 75, 100)
SPECIES_STEPS = (3, 5, 8, 98)


def lines_of(
    crystals: Sequence[Crystal] | PackedCrystals,
    inv_d_max: float | int,
    num_lines: int,
    batch_size: int = 1024,
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
        batch_size: crystals of one batch; two batches are in memory at a time.
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

    def fill(start: int) -> int:
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
        return start + len(counts)

    # Two at a time: the host lists and merges one batch while the device works on the other.
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(fill, range(0, num_crystals, batch_size)):
            if progress is not None:
                progress(done, num_crystals)
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
    atoms = _grouped(packed)
    counts, num_groups = np.diff(listed.offset), np.diff(atoms.offset)
    size = round_up(GROUP_STEPS, num_groups) * 128 + round_up(SPECIES_STEPS, atoms.num_species)
    row_counts = -(-counts // _ROW)
    first_row = row_counts.cumsum() - row_counts
    owner = np.repeat(np.arange(len(counts)), row_counts)
    start = listed.offset[owner] + (np.arange(len(owner)) - first_row[owner]) * _ROW
    hkl = _windows(listed.hkl.T)
    inv_d = _windows(listed.inv_d.astype(np.float32))
    size, pending = size[owner], []
    for shape in np.unique(size).tolist():
        length, width = divmod(shape, 128)
        reach = np.arange(length)
        rows = np.flatnonzero(size == shape)
        while len(rows):
            block = next((n for n in _BLOCKS if len(rows) > n // 2), _BLOCKS[-1])
            now, rows = rows[:block], rows[block:]
            full = np.pad(now, (0, block - len(now)), mode="edge")
            whose = owner[full]
            group = np.minimum(atoms.offset[whose, None] + reach, atoms.offset[-1] - 1)
            slot = np.where(reach < num_groups[whose, None], atoms.slot[group], -1)
            members, species = atoms.members[group], atoms.species[whose, :width]
            reflections = (hkl[:, start[full]], inv_d[start[full]])
            pending.append(
                (now, _block_squares(*reflections, members, species, slot, b_iso, table))
            )
    out = np.empty((len(owner), _ROW), np.float32)
    for now, value in pending:  # the device works on the later blocks meanwhile
        out[now] = np.asarray(value)[: len(now)]
    shift = first_row * _ROW - listed.offset[:-1]
    return out.ravel().take(np.arange(listed.offset[-1]) + np.repeat(shift, counts))


@partial(jax.jit, static_argnums=6)
def _block_squares(
    hkl: jax.Array,
    inv_d: jax.Array,
    members: jax.Array,
    species: jax.Array,
    slot: jax.Array,
    b_iso: jax.Array,
    table: str,
) -> jax.Array:
    one_hot = jax.nn.one_hot(slot, species.shape[1], dtype=inv_d.dtype)  # slot -1: no atom
    hkl, b_iso = hkl.astype(inv_d.dtype), jnp.asarray(b_iso, inv_d.dtype)
    return grouped_squares(hkl, inv_d, members, species, one_hot, b_iso, table)


class _Groups(NamedTuple):
    """Atoms of several crystals in groups of `_GROUP` of one element."""

    members: np.ndarray  # [n_group, _GROUP, 4] float32: fractional coordinates, 1 (0: padding)
    slot: np.ndarray  # [n_group] which of the crystal's elements
    offset: np.ndarray  # [n_crystal + 1] groups of crystal k: offset[k]:offset[k + 1]
    species: np.ndarray  # [n_crystal, 98] elements of each crystal, 0 where unused
    num_species: np.ndarray  # [n_crystal]


def _grouped(packed: PackedCrystals) -> _Groups:
    num_crystals = len(packed.lattice)
    owner = np.repeat(np.arange(num_crystals), np.diff(packed.offset))
    pair = owner * 128 + packed.atomic_numbers
    order = np.argsort(pair, kind="stable")  # quick: atoms mostly come element by element
    pair = pair.take(order)
    first = np.flatnonzero(np.diff(pair, prepend=-1))  # of each element of each crystal
    counts = np.diff(first, append=len(pair))
    groups = -(-counts // _GROUP)
    group = groups.cumsum() - groups
    bounds = np.searchsorted(pair[first], np.arange(num_crystals + 1) * 128)
    num_species = np.diff(bounds)
    species = np.zeros((num_crystals, SPECIES_STEPS[-1]), np.int32)
    species[np.arange(SPECIES_STEPS[-1]) < num_species[:, None]] = pair[first] % 128
    slot = np.repeat(np.arange(len(first)) - np.repeat(bounds[:-1], num_species), groups)
    members = np.zeros((groups.sum(), _GROUP, 4), np.float32)
    place = np.arange(len(pair)) + np.repeat(group * _GROUP - first, counts)
    flat = members.reshape(-1, 4)
    flat[place, :3] = packed.frac_coords[order]
    flat[place, 3] = 1.0
    offset = np.append(group, groups.sum())[bounds]
    return _Groups(members, slot, offset, species, num_species)


def _windows(values: np.ndarray) -> np.ndarray:
    """All runs of `_ROW` along the last axis, as a view of one padded copy."""
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, _ROW)])
    return np.lib.stride_tricks.sliding_window_view(padded, _ROW, axis=-1)


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
