"""From crystals to powder lines: which reflections there are and how strong.

F(hkl) = sum_j f_j(s) exp(2 pi i hkl . x_j) exp(-B_j s^2), s = 1/(2d); the strength of a
reflection is |F|^2 and a powder line collects the reflections of one d. Nothing here knows a
wavelength. `reflections` is differentiable; `lines` merges and is meant for data.

Sums run over half of the reciprocal lattice: Friedel's law |F(hkl)| = |F(-hkl)| holds exactly
without anomalous dispersion.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.crystals import lattice as lattice_math
from xtalnet_jax.crystals.crystal import CrystalBatch
from xtalnet_jax.pxrd.pattern import Lines
from xtalnet_jax.pxrd.scattering import form_factors

Box = tuple[int, int, int]

MERGE_TOL = 2e-5
"""Reflections closer than this in 1/d (1/angstrom, 0.003 degree at Cu K-alpha) are one line."""

STRENGTH_FLOOR = 1e-7
"""Lines below this fraction of the strongest are numerical noise of extinct reflections."""


def half_box(box: Box) -> np.ndarray:
    """Miller indices -H..H, -K..K, 0..L as [n_hkl, 3]; of +-hkl at least one is in it."""
    h, k, l = box
    axes = (np.arange(-h, h + 1), np.arange(-k, k + 1), np.arange(l + 1))
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def hkl_box_for(lattices: Any, inv_d_max: float, multiple: int = 4) -> Box:
    """Smallest box (H, K, L) that holds every reflection up to ``inv_d_max`` of every lattice.

    |h| = |q . a| <= |q| |a|, so H = floor(inv_d_max * longest a) is exact and sufficient; it is
    rounded up to a multiple so that few shapes compile. Host function; the lattices should be
    Niggli-reduced, because a long axis makes a large box.

    Args:
        lattices: [..., 3, 3] angstrom.
        inv_d_max: 1/angstrom.
        multiple: round each index up to a multiple of this.
    """
    lengths = np.linalg.norm(np.asarray(lattices, np.float64).reshape(-1, 3, 3), axis=-1).max(0)
    index = np.floor(inv_d_max * lengths * (1 + 1e-6)).astype(int)
    h, k, l = (int(-(-max(i, 1) // multiple) * multiple) for i in index)
    return h, k, l


def check_box(box: Box, lattices: Any, inv_d_max: float) -> None:
    """Refuse a box that would silently drop reflections (host).

    Raises:
        ValueError: the box is too small for a lattice.
    """
    needed = hkl_box_for(lattices, inv_d_max, multiple=1)
    if any(have < need for have, need in zip(box, needed)):
        raise ValueError(
            f"hkl box {box} is too small for 1/d up to {inv_d_max:g}: {needed} is needed; "
            "use hkl_box_for(lattices, inv_d_max)"
        )


def reflections(
    batch: CrystalBatch,
    hkl: Box | jax.Array,
    inv_d_max: jax.Array | float,
    inv_d_min: jax.Array | float = 0.0,
    b_iso: jax.Array | float = 0.0,
    table: str = "pymatgen",
    num_species: int | None = None,
) -> Lines:
    """Unmerged reflections, differentiable with respect to lattice, coordinates and B.

    Args:
        batch: crystals.
        hkl: a box, for the half box of indices (shared by all crystals, phases separate into a
            matrix product), or explicit indices [n_graph, n_hkl, 3] of one half space, where
            000 is padding (`reflections_within` makes them).
        inv_d_max: 1/angstrom; reflections outside of [inv_d_min, inv_d_max] get strength 0.
        inv_d_min: 1/angstrom.
        b_iso: isotropic B in square angstrom: scalar, [n_graph], or [n_graph, n_node].
        table: form factors, ``"pymatgen"`` or ``"it92"``.
        num_species: bound on the number of different elements in one crystal; counted if the
            batch is concrete. A crystal with more gets NaN.

    Returns:
        `Lines` with inv_d [n_graph, n_hkl] and strength |F|^2 * (1 or 2, Friedel) in electrons^2;
        both 0 out of range.
    """
    if num_species is None:
        num_species = count_species(batch.atomic_numbers)
    lattice, frac = jnp.asarray(batch.lattice), jnp.asarray(batch.frac_coords)
    b_iso = jnp.asarray(b_iso, frac.dtype)
    box = hkl if isinstance(hkl, tuple) else None
    indices = jnp.asarray(half_box(box) if box else hkl, lattice.dtype)
    if indices.ndim == 2:
        indices = jnp.broadcast_to(indices, (lattice.shape[0], *indices.shape))
    inv_d = lattice_math.inv_d(indices, lattice)
    inside = (inv_d >= inv_d_min) & (inv_d <= inv_d_max) & (inv_d > 0)
    inv_d = jnp.where(inside, inv_d, 0.0)
    s2 = 0.25 * inv_d**2
    species, one_hot = _species(jnp.asarray(batch.atomic_numbers), num_species, frac.dtype)
    f = form_factors(species, s2, table)  # [n_graph, n_species, n_hkl]
    if b_iso.ndim < 2:
        sums = jax.vmap(partial(_box_sums, box)) if box else jax.vmap(_list_sums)
        real, imag = sums(frac, one_hot) if box else sums(indices, frac, one_hot)
        damping = (
            jnp.exp(-2.0 * b_iso[..., None] * s2) if b_iso.ndim else jnp.exp(-2.0 * b_iso * s2)
        )
        square = ((f * real).sum(1) ** 2 + (f * imag).sum(1) ** 2) * damping
    else:
        square = jax.vmap(_damped_square)(indices, frac, one_hot, f, b_iso, s2)
    friedel = jnp.where(indices[..., 2] == 0, 1.0, 2.0) if box else 2.0
    return Lines(inv_d, jnp.where(inside, square * friedel, 0.0))


def count_species(atomic_numbers: Any) -> int:
    """Largest number of different elements in one crystal of [n_graph, n_node]; 16 if traced."""
    if isinstance(atomic_numbers, jax.core.Tracer):
        return min(atomic_numbers.shape[-1], 16)
    z = np.sort(np.asarray(atomic_numbers), -1)
    new = np.diff(z, axis=-1, prepend=0) > 0
    return max(int(new.sum(-1).max(initial=1)), 1)


def _species(z: jax.Array, num_species: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Different elements of each crystal [n_graph, n_species] and one-hot [n_graph, n_node, n_species]."""
    ordered = jnp.sort(z, -1)
    new = jnp.diff(ordered, axis=-1, prepend=jnp.zeros_like(z[:, :1])) > 0
    rank = jnp.cumsum(new, -1)
    slots = jnp.arange(1, num_species + 1)
    hit = new[:, None, :] & (rank[:, None, :] == slots[None, :, None])
    species = (hit * ordered[:, None, :]).sum(-1)
    one_hot = ((z[:, :, None] == species[:, None, :]) & (z > 0)[:, :, None]).astype(dtype)
    # More elements than slots must not pass unseen.
    return species, jnp.where((rank[:, -1] > num_species)[:, None, None], jnp.nan, one_hot)


def _box_sums(box: Box, frac: jax.Array, one_hot: jax.Array) -> tuple[jax.Array, jax.Array]:
    """sum_j exp(2 pi i hkl . x_j) per element over the half box: real, imaginary [n_species, n_hkl].

    exp(2 pi i (hx + ky + lz)) separates: sines of n (H + K + L) angles only, then one real
    matrix product over the atoms.
    """
    h, k, l = box
    axes = (np.arange(-h, h + 1), np.arange(-k, k + 1), np.arange(l + 1))
    angle = [2 * np.pi * frac[:, i, None] * jnp.asarray(a, frac.dtype) for i, a in enumerate(axes)]
    (cx, cy, cz), (sx, sy, sz) = ([f(a) for a in angle] for f in (jnp.cos, jnp.sin))
    plane_re = (cx[:, :, None] * cy[:, None] - sx[:, :, None] * sy[:, None]).reshape(len(frac), -1)
    plane_im = (cx[:, :, None] * sy[:, None] + sx[:, :, None] * cy[:, None]).reshape(len(frac), -1)
    axis_re, axis_im = (one_hot[:, :, None] * v[:, None, :] for v in (cz, sz))
    left = jnp.concatenate([plane_re, plane_im])  # [2 n_node, HK]
    right = jnp.stack(
        [jnp.concatenate([axis_re, -axis_im]), jnp.concatenate([axis_im, axis_re])], 1
    )  # [2 n_node, 2, n_species, L]
    out = jnp.einsum("nm,ncel->ceml", left, right, precision=jax.lax.Precision.HIGHEST)
    real, imag = out.reshape(2, one_hot.shape[1], -1)
    return real, imag


def _list_sums(hkl: jax.Array, frac: jax.Array, one_hot: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same for explicit indices [n_hkl, 3]."""
    cos, sin = _phases(hkl, frac)
    precision = jax.lax.Precision.HIGHEST
    real, imag = (jnp.einsum("ne,nm->em", one_hot, v, precision=precision) for v in (cos, sin))
    return real, imag


def _phases(hkl: jax.Array, frac: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin of 2 pi hkl . x, [n_node, n_hkl]; whole turns are taken off first."""
    turns = sum(frac[:, i, None] * hkl[None, :, i] for i in range(3))
    angle = 2 * np.pi * (turns - jnp.round(turns))
    return jnp.cos(angle), jnp.sin(angle)


def _damped_square(
    hkl: jax.Array, frac: jax.Array, one_hot: jax.Array, f: jax.Array, b: jax.Array, s2: jax.Array
) -> jax.Array:
    """|F|^2 [n_hkl] with one B per atom."""
    weight = jnp.matmul(one_hot, f, precision=jax.lax.Precision.HIGHEST) * jnp.exp(
        -b[:, None] * s2[None, :]
    )
    return sum((weight * v).sum(0) ** 2 for v in _phases(hkl, frac))


def lines(
    batch: CrystalBatch,
    hkl_box: Box | jax.Array,
    inv_d_max: float,
    num_lines: int,
    inv_d_min: float = 0.0,
    b_iso: jax.Array | float = 0.0,
    merge_tol: float = MERGE_TOL,
    table: str = "pymatgen",
    num_species: int | None = None,
) -> Lines:
    """Powder lines of a batch, merged, strongest 1, ordered by 1/d, padded with 0.

    Where there are more than ``num_lines``, those with the largest strength / inv_d^2 stay: the
    Lorentz factor goes like 1/inv_d^2, so these are the strongest of a measured pattern.

    The arguments are those of `reflections`; a concrete box is checked against the lattices.

    Args:
        batch: crystals.
        hkl_box: box or explicit indices.
        inv_d_max: 1/angstrom.
        num_lines: n_line, static.
        inv_d_min: 1/angstrom.
        b_iso: square angstrom.
        merge_tol: reflections whose 1/d differ by less become one line; must stay well above the
            rounding of float32, 1e-6.
        table: form factors.
        num_species: see `reflections`.

    Returns:
        `Lines` with [n_graph, num_lines].

    Raises:
        ValueError: the box is too small for a lattice.
    """
    if num_species is None:
        num_species = count_species(batch.atomic_numbers)
    if isinstance(hkl_box, tuple) and not isinstance(batch.lattice, jax.core.Tracer):
        check_box(hkl_box, batch.lattice, inv_d_max)
    return _lines(
        batch, hkl_box, inv_d_max, num_lines, inv_d_min, b_iso, merge_tol, table, num_species
    )


@partial(jax.jit, static_argnums=(1, 3, 7, 8))
def _lines_in_box(batch, box, inv_d_max, num_lines, inv_d_min, b_iso, tol, table, num_species):
    found = reflections(batch, box, inv_d_max, inv_d_min, b_iso, table, num_species)
    return merge_lines(found, num_lines, tol)


@partial(jax.jit, static_argnums=(3, 7, 8))
def _lines_of_list(batch, hkl, inv_d_max, num_lines, inv_d_min, b_iso, tol, table, num_species):
    found = reflections(batch, hkl, inv_d_max, inv_d_min, b_iso, table, num_species)
    return merge_lines(found, num_lines, tol)


def _lines(batch: CrystalBatch, hkl: Any, *args: Any) -> Lines:
    jitted = _lines_in_box if isinstance(hkl, tuple) else _lines_of_list
    return jitted(batch, hkl, *args)


def merge_lines(found: Lines, num_lines: int, merge_tol: jax.Array | float) -> Lines:
    """Collect reflections of one 1/d into lines; see `lines`. [n_graph, n_hkl] to [n_graph, n_line]."""
    return jax.vmap(partial(_merge_one, num_lines, merge_tol))(*found)


def _merge_one(num_lines: int, tol: Any, inv_d: jax.Array, strength: jax.Array) -> Lines:
    num_hkl = inv_d.shape[0]
    position, strength = jax.lax.sort_key_val(jnp.where(inv_d > 0, inv_d, jnp.inf), strength)
    gap = jnp.diff(position, prepend=position[:1]) > tol  # inf - inf is nan: not a gap
    line = jnp.cumsum(gap)
    total = jax.ops.segment_sum(strength, line, num_hkl, indices_are_sorted=True)
    first = jax.ops.segment_min(position, line, num_hkl, indices_are_sorted=True)
    strongest = total.max()
    total = total / jnp.where(strongest > 0, strongest, 1.0)
    keep = (total > STRENGTH_FLOOR) & jnp.isfinite(first)
    # A NaN strength (unknown element) must show up, not be dropped.
    keep = keep | (jnp.isnan(total) & jnp.isfinite(first))
    rank = jnp.where(keep, total / jnp.where(keep, first, 1.0) ** 2, -1.0)
    score, index = jax.lax.top_k(rank, min(num_lines, num_hkl))
    index = jnp.sort(jnp.where(score > 0, index, num_hkl))
    real = index < num_hkl
    index = jnp.where(real, index, 0)
    pad = ((0, max(num_lines - num_hkl, 0)),)
    chosen = (jnp.where(real, v[index], 0.0) for v in (first, total))
    return Lines(*(jnp.pad(v, pad) for v in chosen))
