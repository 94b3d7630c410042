"""From crystals to powder lines, peaks and patterns.

Two ways to the same lines: `lines` works on the device, under ``jit``, for crystals that only
exist there; `lines_of` simulates whole data sets from the host, where the reflections of each
cell can be listed exactly and merged in float64. `simulate_peaks` and `simulate_pattern` are what
a chemist wants of one crystal.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.crystals.crystal import Crystal, CrystalBatch, pack_crystals, stack_crystals
from xtalnet_jax.pxrd import bulk
from xtalnet_jax.pxrd.bulk import MERGE_TOL, STRENGTH_FLOOR, lines_of
from xtalnet_jax.pxrd.hkl import Box, HklTable, check_box, hkl_box_for, hkl_table, padded_hkl
from xtalnet_jax.pxrd.instrument import Instrument
from xtalnet_jax.pxrd.pattern import CU_KALPHA, Lines, Pattern, Peaks, two_theta_from_inv_d
from xtalnet_jax.pxrd.profile import chebyshev, march_dollase, profile
from xtalnet_jax.pxrd.reflections import count_species, reflections
from xtalnet_jax.pxrd.scattering import check_tabulated, lorentz_polarisation

__all__ = [
    "MERGE_TOL",
    "STRENGTH_FLOOR",
    "hkl_box_for",
    "lines",
    "lines_of",
    "merge_lines",
    "reflections",
    "simulate_pattern",
    "simulate_peaks",
]

Number = float | int

_EXACT_TOL = 1e-7  # 1/angstrom: about pymatgen's 1e-5 degree, possible with float64 positions
_ATOM_STEPS = (5, 10, 15, 20, 30, 40, 52, 64, 80, 100, 150, 200, 300, 400)  # few shapes


def lines(
    batch: CrystalBatch,
    hkl_box: Box | jax.Array | np.ndarray,
    inv_d_max: Number,
    num_lines: int,
    inv_d_min: Number = 0.0,
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
    *options, num_lines, merge_tol = args
    return merge_lines(reflections(batch, hkl, *options), num_lines, merge_tol)


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


def simulate_peaks(
    crystal: Crystal | Sequence[Crystal],
    wavelength: Number = CU_KALPHA,
    two_theta_range: Sequence[Number] = (5.0, 90.0),
    b_iso: Number = 0.0,
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
    found = bulk.line_table(packed, bounds[1], bounds[0], b_iso, _EXACT_TOL, table)
    factor = np.asarray(lorentz_polarisation(found.inv_d.astype(np.float32), wavelength))
    angle = two_theta_from_inv_d(found.inv_d, wavelength)
    peaks = []
    for a, b in zip(found.offset[:-1], found.offset[1:]):
        intensity = found.strength[a:b] * factor[a:b]
        intensity = 100.0 * intensity / intensity.max(initial=1e-30)
        keep = intensity > 1e-3
        peaks.append(Peaks(angle[a:b][keep], intensity[keep]))
    return peaks


def simulate_pattern(
    crystal: Crystal | Sequence[Crystal],
    wavelength: Number = CU_KALPHA,
    two_theta_range: Sequence[Number] = (5.0, 90.0),
    step: Number = 0.02,
    instrument: Instrument = Instrument(),  # noqa: B008 (immutable)
    table: str = "pymatgen",
) -> Any:
    """Powder profile on an equidistant grid, its highest point (without background) 100.

    Args:
        crystal: one crystal or a list.
        wavelength: angstrom (K-alpha1 if the instrument has a K-alpha2).
        two_theta_range: degrees; lines up to a degree outside still send their tails in.
        step: degrees.
        instrument: widths, shifts, texture, background.
        table: form factors, ``"pymatgen"`` or ``"it92"``.

    Returns:
        `Pattern`; a list of them for a list of crystals.

    Raises:
        ValueError: impossible range, step or wavelength, or a crystal that cannot be simulated.
    """
    if isinstance(crystal, Crystal):
        return simulate_pattern([crystal], wavelength, two_theta_range, step, instrument, table)[0]
    inv_d_range(wavelength, two_theta_range)
    first, last = two_theta_range
    if not 0 < step <= last - first:
        raise ValueError(f"step {step:g} must be positive and at most the range, {last - first:g}")
    low, high = inv_d_range(wavelength, (max(first - 1.0, 0.0), min(last + 1.0, 179.0)))
    check_tabulated(np.concatenate([c.atomic_numbers for c in crystal]))
    grid = first + step * np.arange(int((last - first) / step + 1e-6) + 1)
    listed = hkl_table(np.stack([c.lattice for c in crystal]), high, low)
    a, b, c = map(float, instrument.texture_axis)
    plain = instrument._replace(texture_axis=(a, b, c))
    patterns = []
    for k, one in enumerate(crystal):
        own = slice(listed.offset[k], listed.offset[k + 1])
        count = int(own.stop - own.start)
        hkl = padded_hkl(
            HklTable(listed.hkl[own], listed.inv_d[own], np.array([0, count])),
            max(64, 1 << (count - 1).bit_length()),  # few shapes
        )
        num_nodes = int(bulk.round_up(_ATOM_STEPS, np.array(len(one.atomic_numbers))))
        batch = stack_crystals([one], num_nodes)
        num_species = count_species(batch.atomic_numbers)
        values = _profile_of(
            batch, hkl, grid.astype(np.float32), wavelength, plain, (high, low), table, num_species
        )
        patterns.append(Pattern(grid, np.asarray(values, np.float64), wavelength))
    return patterns


@partial(jax.jit, static_argnums=(6, 7))
def _profile_of(
    batch: CrystalBatch,
    hkl: jax.Array,
    grid: jax.Array,
    wavelength: jax.Array,
    instrument: Instrument,
    bounds: tuple[jax.Array, jax.Array],
    table: str,
    num_species: int,
) -> jax.Array:
    found = reflections(batch, hkl, *bounds, table=table, num_species=num_species)
    texture = (instrument.texture, instrument.texture_axis)
    factor = march_dollase(hkl[0], batch.lattice[0], *texture)
    one = Lines(found.inv_d[0], found.strength[0] * factor)
    ideal = profile(one, grid, wavelength, instrument)
    highest = ideal.max()
    scaled = 100.0 * ideal / jnp.where(highest > 0, highest, 1.0)
    return scaled + chebyshev(grid, instrument.background)


def inv_d_range(wavelength: Number, two_theta_range: Sequence[Number]) -> tuple[float, float]:
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
