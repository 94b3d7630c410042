"""From crystals to powder lines, peaks and patterns.

Two ways to the same lines: `lines` works on the device, under ``jit``, for crystals that only
exist there; `lines_of` simulates whole data sets from the host, where the reflections of each
cell can be listed exactly and merged in float64. `simulate_peaks` and `simulate_pattern` are what
a chemist wants of one crystal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.crystals.crystal import Crystal, CrystalBatch, PackedCrystals, pack_crystals
from xtalnet_jax.pxrd.hkl import Box, HklTable, check_box, hkl_box_for, hkl_table
from xtalnet_jax.pxrd.pattern import CU_KALPHA, Lines, Peaks, two_theta_from_inv_d
from xtalnet_jax.pxrd.reflections import count_species, reflections, squares
from xtalnet_jax.pxrd.scattering import check_tabulated, lorentz_polarisation

__all__ = [
    "MERGE_TOL",
    "STRENGTH_FLOOR",
    "hkl_box_for",
    "lines",
    "lines_of",
    "merge_lines",
    "reflections",
    "simulate_peaks",
]

MERGE_TOL = 2e-5
"""Reflections closer than this in 1/d (1/angstrom, 0.003 degree at Cu K-alpha) are one line."""

STRENGTH_FLOOR = 1e-7
"""Lines below this fraction of the strongest are numerical noise of extinct reflections."""

_EXACT_TOL = 1e-7  # 1/angstrom: about pymatgen's 1e-5 degree, possible with float64 positions
_ROW = 64  # reflections of one crystal per row of a block
_BLOCKS = (512, 64)  # rows per block: few shapes, each compiled once
_ATOMS = (5, 10, 15, 20, 30, 40, 52, 64, 80, 100, 150, 200, 300, 400)
_SPECIES = (4, 8, 98)


def lines(
    batch: CrystalBatch,
    hkl_box: Box | jax.Array | np.ndarray,
    inv_d_max: float,
    num_lines: int,
    inv_d_min: float = 0.0,
    b_iso: jax.Array | float = 0.0,
    merge_tol: float = MERGE_TOL,
    table: str = "pymatgen",
    num_species: int | None = None,
) -> Lines:
    """Powder lines of a batch on the device: merged, strongest 1, ordered by 1/d, padded with 0.

    Where there are more than ``num_lines``, those with the largest strength / inv_d^2 stay: the
    Lorentz factor goes like 1/inv_d^2, so these are the strongest of a measured pattern.

    Args:
        batch: crystals.
        hkl_box: box of Miller indices (`hkl_box_for`), checked if the lattices are concrete, or
            indices as for `reflections`.
        inv_d_max: 1/angstrom.
        num_lines: n_line, static.
        inv_d_min: 1/angstrom.
        b_iso: isotropic B in square angstrom: scalar, [n_graph] or [n_graph, n_node].
        merge_tol: reflections whose 1/d differ by less become one line; it must stay well above
            the rounding of float32, 1e-6.
        table: form factors, ``"pymatgen"`` or ``"it92"``.
        num_species: see `reflections`.

    Returns:
        `Lines` with [n_graph, num_lines].

    Raises:
        ValueError: the box is too small for a lattice.
    """
    if num_species is None:
        num_species = count_species(batch.atomic_numbers)
    simulate = _lines_in_list
    if isinstance(hkl_box, tuple):
        simulate = _lines_in_box
        if not isinstance(batch.lattice, jax.core.Tracer):
            check_box(hkl_box, batch.lattice, inv_d_max)
    bounds = (inv_d_max, inv_d_min, b_iso)
    return simulate(batch, hkl_box, *bounds, table, num_species, num_lines, merge_tol)


def _lines(batch: Any, hkl: Any, *args: Any) -> Lines:
    *args, num_lines, merge_tol = args
    return merge_lines(reflections(batch, hkl, *args), num_lines, merge_tol)


_lines_in_box = jax.jit(_lines, static_argnums=(1, 5, 6, 7))
_lines_in_list = jax.jit(_lines, static_argnums=(5, 6, 7))


def merge_lines(found: Lines, num_lines: int, merge_tol: jax.Array | float) -> Lines:
    """Collect reflections [n_graph, n_hkl] of one 1/d into lines [n_graph, n_line]; see `lines`."""
    return jax.vmap(partial(_merge_one, num_lines, merge_tol))(*found)


def _merge_one(num_lines: int, tol: Any, inv_d: jax.Array, strength: jax.Array) -> Lines:
    num_hkl = inv_d.shape[0]
    position, strength = jax.lax.sort_key_val(jnp.where(inv_d > 0, inv_d, jnp.inf), strength)
    gap = jnp.diff(position, prepend=position[:1]) > tol  # inf - inf is NaN, which is no gap
    line = jnp.cumsum(gap)
    total = jax.ops.segment_sum(strength, line, num_hkl, indices_are_sorted=True)
    first = jax.ops.segment_min(position, line, num_hkl, indices_are_sorted=True)
    strongest = total.max()  # NaN (an unknown element) spreads to all lines of the crystal
    total = total / jnp.where(strongest == 0, 1.0, strongest)
    keep = jnp.isfinite(first) & ~(total <= STRENGTH_FLOOR)
    rank = jnp.where(keep, jnp.nan_to_num(total, nan=1.0) / jnp.where(keep, first, 1.0) ** 2, -1.0)
    score, index = jax.lax.top_k(rank, min(num_lines, num_hkl))
    index = jnp.sort(jnp.where(score > 0, index, num_hkl))
    real = index < num_hkl
    pad = (0, max(num_lines - num_hkl, 0))
    chosen = (jnp.where(real, v[jnp.where(real, index, 0)], 0.0) for v in (first, total))
    return Lines(*(jnp.pad(v, pad) for v in chosen))


def lines_of(
    crystals: Sequence[Crystal] | PackedCrystals,
    inv_d_max: float,
    num_lines: int,
    batch_size: int = 2048,
    progress: Callable[[int, int], None] | None = None,
    inv_d_min: float = 0.0,
    b_iso: float = 0.0,
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
        found = _line_table(some, inv_d_max, inv_d_min, b_iso, merge_tol, table)
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


def simulate_peaks(
    crystal: Crystal | Sequence[Crystal],
    wavelength: float = CU_KALPHA,
    two_theta_range: tuple[float, float] = (5.0, 90.0),
    b_iso: float = 0.0,
    table: str = "pymatgen",
) -> Any:
    """Peaks of an ideal powder diffractometer: sticks with Lorentz-polarisation factor.

    Args:
        crystal: one crystal or a list.
        wavelength: angstrom.
        two_theta_range: degrees.
        b_iso: overall B in square angstrom.
        table: form factors, ``"pymatgen"`` or ``"it92"``.

    Returns:
        `Peaks`, ordered by angle, strongest 100, without lines below 0.001; a list of them for a
        list of crystals.

    Raises:
        ValueError: impossible range or wavelength, or a crystal that cannot be simulated.

    Example:
        >>> corner_and_centre = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
        >>> cscl = Crystal(np.array([55, 17]), corner_and_centre, np.eye(3) * 4.12)
        >>> simulate_peaks(cscl).two_theta[:2].round(2)
        array([21.57, 30.69])
    """
    if isinstance(crystal, Crystal):
        return simulate_peaks([crystal], wavelength, two_theta_range, b_iso, table)[0]
    bounds = inv_d_range(wavelength, two_theta_range)
    packed = pack_crystals(crystal)
    found = _line_table(packed, bounds[1], bounds[0], b_iso, _EXACT_TOL, table)
    factor = np.asarray(lorentz_polarisation(found.inv_d.astype(np.float32), wavelength))
    angle = two_theta_from_inv_d(found.inv_d, wavelength)
    peaks = []
    for a, b in zip(found.offset[:-1], found.offset[1:]):
        intensity = found.strength[a:b] * factor[a:b]
        intensity = 100.0 * intensity / intensity.max(initial=1e-30)
        keep = intensity > 1e-3
        peaks.append(Peaks(angle[a:b][keep], intensity[keep]))
    return peaks


def inv_d_range(wavelength: float, two_theta_range: tuple[float, float]) -> tuple[float, float]:
    """The range of 1/d (1/angstrom) of a range of angles (degrees), checked.

    Raises:
        ValueError: not 0 <= first < last < 180, or the wavelength is not positive.
    """
    first, last = two_theta_range
    if not 0 <= first < last < 180:
        raise ValueError(f"two_theta_range {first:g} to {last:g} must rise within 0 to 180 degrees")
    if not wavelength > 0:
        raise ValueError(f"wavelength {wavelength:g} must be positive (angstrom)")
    low, high = (2 * np.sin(np.deg2rad(t / 2)) / wavelength for t in two_theta_range)
    return float(low), float(high)


class _LineTable(NamedTuple):
    """Lines of several crystals, those of crystal k in ``offset[k]:offset[k+1]``, rising 1/d."""

    inv_d: np.ndarray  # [n_total] float64
    strength: np.ndarray  # [n_total] float64, strongest of a crystal 1
    offset: np.ndarray  # [n_crystal + 1]


def _line_table(
    packed: PackedCrystals,
    inv_d_max: float,
    inv_d_min: float,
    b_iso: float,
    merge_tol: float,
    table: str,
) -> _LineTable:
    check_tabulated(packed.atomic_numbers)
    listed = hkl_table(packed.lattice, inv_d_max, inv_d_min)
    if not len(listed.hkl):
        return _LineTable(np.zeros(0), np.zeros(0), listed.offset)
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
    return _LineTable(listed.inv_d[start][keep], total[keep], kept_offset)


def _strengths(packed: PackedCrystals, listed: HklTable, b_iso: float, table: str) -> np.ndarray:
    """|F|^2 [n_total] of all listed reflections.

    The unit of work is a row: `_ROW` reflections of one crystal. Blocks of rows have few different
    shapes whatever the cells are. The last row of a crystal may run over into the next crystal's
    reflections; what it computes there is not read.
    """
    atoms, counts = np.diff(packed.offset), np.diff(listed.offset)
    species, slot, num_species = _species_slots(packed)
    size = np.stack([_round_up(_ATOMS, atoms), _round_up(_SPECIES, num_species)])
    row_counts = -(-counts // _ROW)
    first_row = row_counts.cumsum() - row_counts
    owner = np.repeat(np.arange(len(counts)), row_counts)
    start = listed.offset[owner] + (np.arange(len(owner)) - first_row[owner]) * _ROW
    reach, inv_d = np.arange(_ROW), listed.inv_d.astype(np.float32)
    pending = []
    for num_nodes, width in np.unique(size, axis=1).T:
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
    species = np.zeros((num_crystals, _SPECIES[-1]), np.int32)
    species[np.arange(_SPECIES[-1]) < num_species[:, None]] = pairs % 128
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


def _round_up(steps: Sequence[int], value: np.ndarray) -> np.ndarray:
    """The smallest step that holds each value; beyond the last one, multiples of it."""
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
