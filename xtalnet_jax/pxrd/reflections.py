"""How strong the reflections of a crystal are (device side, differentiable).

F(hkl) = sum_j f_j(s) exp(2 pi i hkl . x_j) exp(-B_j s^2) with s = 1/(2d); the strength of a
reflection is |F|^2. Nothing here knows a wavelength. `hkl` says which reflections there are,
`simulate` merges them into powder lines.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.crystals import lattice as lattice_math
from xtalnet_jax.crystals.crystal import CrystalBatch
from xtalnet_jax.pxrd.hkl import Box, full_box
from xtalnet_jax.pxrd.pattern import Lines
from xtalnet_jax.pxrd.scattering import form_factors


def reflections(
    batch: CrystalBatch,
    hkl: Box | jax.Array | np.ndarray,
    inv_d_max: jax.Array | float,
    inv_d_min: jax.Array | float = 0.0,
    b_iso: jax.Array | float = 0.0,
    table: str = "pymatgen",
    num_species: int | None = None,
) -> Lines:
    """Unmerged reflections, differentiable with respect to lattice, coordinates and B.

    The bounds are a hard cut: a reflection that crosses them appears or disappears at once, so
    give a refinement a little more room than it shows.

    Args:
        batch: crystals.
        hkl: a box (H, K, L), for all indices of its `full_box` (n_hkl = (2H+1)(2K+1)(L+1), for
            lattices known only on the device; phases separate into one matrix product), or
            indices [n_graph, n_hkl, 3] of one half space where 000 is padding (`padded_hkl`).
        inv_d_max: 1/angstrom; strength is 0 outside of [inv_d_min, inv_d_max].
        inv_d_min: 1/angstrom.
        b_iso: isotropic B in square angstrom: scalar, [n_graph], or [n_graph, n_node].
        table: form factors, ``"pymatgen"`` or ``"it92"``.
        num_species: bound on the number of different elements in one crystal; counted if the
            batch is concrete, else 16. A crystal with more gets NaN.

    Returns:
        `Lines` with inv_d [n_graph, n_hkl] and strength |F|^2 * (number of listed and Friedel
        mates, 2 or 1) in electrons^2; both 0 where out of range.
    """
    if num_species is None:
        num_species = count_species(batch.atomic_numbers)
    lattice, frac = jnp.asarray(batch.lattice), jnp.asarray(batch.frac_coords)
    b_iso = jnp.asarray(b_iso, frac.dtype)
    box = hkl if isinstance(hkl, tuple) else None
    indices = jnp.asarray(full_box(box) if box else hkl, lattice.dtype)
    if box:
        indices = jnp.broadcast_to(indices, (lattice.shape[0], *indices.shape))
    inv_d = lattice_math.inv_d(indices, lattice)
    inside = (inv_d >= inv_d_min) & (inv_d <= inv_d_max) & (inv_d > 0)
    inv_d = jnp.where(inside, inv_d, 0.0)
    species, one_hot = split_species(jnp.asarray(batch.atomic_numbers), num_species, frac.dtype)
    if box and b_iso.ndim < 2:
        square = _box_squares(box, inv_d, frac, species, one_hot, b_iso, table)
    else:
        square = squares(indices, inv_d, frac, species, one_hot, b_iso, table)
    # In the plane l = 0 a full box lists both mates; a half list never does.
    mates = jnp.where(indices[..., 2] == 0, 1.0, 2.0).astype(square.dtype) if box else 2.0
    return Lines(inv_d, jnp.where(inside, square * mates, 0.0))


def squares(
    hkl: jax.Array,
    inv_d: jax.Array,
    frac_coords: jax.Array,
    species: jax.Array,
    one_hot: jax.Array,
    b_iso: jax.Array,
    table: str = "pymatgen",
) -> jax.Array:
    """|F|^2 for explicit indices, atom after atom: the memory is that of a few [n_graph, n_hkl].

    Args:
        hkl: [n_graph, n_hkl, 3], of the floating type of ``inv_d``.
        inv_d: [n_graph, n_hkl] 1/angstrom.
        frac_coords: [n_graph, n_node, 3].
        species: [n_graph, n_species] atomic numbers, see `split_species`.
        one_hot: [n_graph, n_node, n_species].
        b_iso: scalar, [n_graph] or [n_graph, n_node], square angstrom.
        table: form factors.

    Returns:
        [n_graph, n_hkl] electrons^2.
    """
    members = jnp.concatenate([frac_coords, jnp.ones_like(frac_coords[..., :1])], -1)[:, :, None]
    hkl = jnp.moveaxis(hkl, -1, 0)
    return grouped_squares(hkl, inv_d, members, species, one_hot, b_iso, table)


def grouped_squares(
    hkl: jax.Array,
    inv_d: jax.Array,
    members: jax.Array,
    species: jax.Array,
    one_hot: jax.Array,
    b_iso: jax.Array,
    table: str = "pymatgen",
) -> jax.Array:
    """`squares` of atoms in groups of one element: a group is weighted once, not each atom.

    Args:
        hkl: [3, n_graph, n_hkl], of the floating type of ``inv_d``.
        inv_d: [n_graph, n_hkl] 1/angstrom.
        members: [n_graph, n_group, size, 4]: fractional coordinates and occupancy (0: padding).
        species: [n_graph, n_species] atomic numbers.
        one_hot: [n_graph, n_group, n_species] element of each group.
        b_iso: scalar, [n_graph] or [n_graph, n_group], square angstrom.
        table: form factors.

    Returns:
        [n_graph, n_hkl] electrons^2.
    """
    s2 = 0.25 * inv_d**2
    f = jnp.unstack(form_factors(species, s2, table), axis=1)
    h, k, l = jnp.unstack(hkl)
    per_group = b_iso.ndim == 2

    @jax.checkpoint
    def add_group(total: Any, group: Any) -> Any:
        atoms, chosen, b = group
        real, imag = jnp.zeros_like(h), jnp.zeros_like(h)
        for x, y, z, occupancy in (jnp.unstack(a, axis=-1) for a in jnp.unstack(atoms, axis=1)):
            cos, sin = _cos_sin(h * x[:, None] + k * y[:, None] + l * z[:, None])
            real, imag = real + occupancy[:, None] * cos, imag + occupancy[:, None] * sin
        weight = sum(chosen[:, e, None] * f_e for e, f_e in enumerate(f))
        if per_group:
            weight = weight * jnp.exp(-b[:, None] * s2)
        return (total[0] + weight * real, total[1] + weight * imag), None

    # Phases are whole turns apart for equivalent atoms; near 0 they lose least to rounding.
    frac, occupancy = members[..., :3], members[..., 3:]
    members = jnp.concatenate([frac - jnp.round(frac), occupancy], -1)
    groups = [jnp.swapaxes(v, 0, 1) for v in (members, one_hot)]
    zero = jnp.zeros_like(inv_d)
    (real, imag), _ = jax.lax.scan(
        add_group, (zero, zero), (*groups, b_iso.T if per_group else jnp.zeros(len(groups[0])))
    )
    square = real**2 + imag**2
    return square if per_group else square * _overall_damping(b_iso, s2)


def count_species(atomic_numbers: Any) -> int:
    """Largest number of different elements in one crystal of [n_graph, n_node]; 16 if traced."""
    if isinstance(atomic_numbers, jax.core.Tracer):
        return min(atomic_numbers.shape[-1], 16)
    z = np.sort(np.asarray(atomic_numbers), -1)
    new = np.diff(z, axis=-1, prepend=0) > 0
    return max(int(new.sum(-1).max(initial=1)), 1)


def split_species(
    atomic_numbers: jax.Array, num_species: int, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """The different elements of each crystal, and which atom is of which.

    Args:
        atomic_numbers: [n_graph, n_node] int, 0 is padding.
        num_species: n_species, static.
        dtype: of the second result.

    Returns:
        Atomic numbers [n_graph, n_species], ascending, 0 where unused, and one-hot
        [n_graph, n_node, n_species]: NaN for a crystal of more elements, which must not pass
        unseen.
    """
    z = atomic_numbers
    ordered = jnp.sort(z, -1)
    new = jnp.diff(ordered, axis=-1, prepend=jnp.zeros_like(z[:, :1])) > 0
    rank = jnp.cumsum(new, -1)
    slots = jnp.arange(1, num_species + 1)
    hit = new[:, None, :] & (rank[:, None, :] == slots[None, :, None])
    species = (hit * ordered[:, None, :]).sum(-1)
    one_hot = ((z[:, :, None] == species[:, None, :]) & (z > 0)[:, :, None]).astype(dtype)
    return species, jnp.where((rank[:, -1] > num_species)[:, None, None], jnp.nan, one_hot)


def _overall_damping(b_iso: jax.Array, s2: jax.Array) -> jax.Array:
    return jnp.exp(-2.0 * (b_iso[:, None] if b_iso.ndim else b_iso) * s2)


def _box_squares(
    box: Box,
    inv_d: jax.Array,
    frac: jax.Array,
    species: jax.Array,
    one_hot: jax.Array,
    b_iso: jax.Array,
    table: str,
) -> jax.Array:
    """|F|^2 over a full box, [n_graph, n_hkl]."""
    s2 = 0.25 * inv_d**2
    f = form_factors(species, s2, table)
    real, imag = jax.vmap(partial(_box_sums, box))(frac, one_hot)
    square = (f * real).sum(1) ** 2 + (f * imag).sum(1) ** 2
    return square * _overall_damping(b_iso, s2)


def _box_sums(box: Box, frac: jax.Array, one_hot: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Real and imaginary part of sum_j exp(2 pi i hkl . x_j) per element, [n_species, n_hkl].

    exp(2 pi i (hx + ky + lz)) separates: sines of n (H + K + L) angles only, then one real
    matrix product over the atoms.
    """
    angles = [
        2 * np.pi * frac[:, i, None] * jnp.arange(-n if i < 2 else 0, n + 1, dtype=frac.dtype)[None]
        for i, n in enumerate(box)
    ]
    (cx, cy, cz), (sx, sy, sz) = ([f(a) for a in angles] for f in (jnp.cos, jnp.sin))
    plane_re = (cx[:, :, None] * cy[:, None] - sx[:, :, None] * sy[:, None]).reshape(len(frac), -1)
    plane_im = (cx[:, :, None] * sy[:, None] + sx[:, :, None] * cy[:, None]).reshape(len(frac), -1)
    axis_re, axis_im = (one_hot[:, :, None] * v[:, None, :] for v in (cz, sz))
    left = jnp.concatenate([plane_re, plane_im])  # [2 n_node, (2H+1)(2K+1)]
    right = jnp.stack(
        [jnp.concatenate([axis_re, -axis_im]), jnp.concatenate([axis_im, axis_re])], 1
    )  # [2 n_node, 2, n_species, L+1]
    out = jnp.einsum("nm,ncel->ceml", left, right, precision=jax.lax.Precision.HIGHEST)
    real, imag = out.reshape(2, one_hot.shape[1], -1)
    return real, imag


def _cos_sin(turns: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin of 2 pi ``turns``; several times faster than the library on a CPU in float32.

    Whole turns are taken off, then two polynomials in the square of the rest, within 1e-10 of
    exact arithmetic (Chebyshev fits on [0, 1/4]).
    """
    turns = turns - jnp.round(turns)
    if turns.dtype != jnp.float32:
        return jnp.cos(2 * np.pi * turns), jnp.sin(2 * np.pi * turns)
    x = turns * turns
    return _horner(_COS, x), turns * _horner(_SIN, x)


def _horner(coefficients: tuple[float, ...], x: jax.Array) -> jax.Array:
    total = jnp.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        total = total * x + c
    return total


def _fit_in_square(fn: Any, degree: int = 7) -> tuple[float, ...]:
    """Power coefficients of a polynomial p with p(t^2) = fn(t) on |t| <= 1/2."""
    fit = np.polynomial.Chebyshev.interpolate(lambda x: fn(np.sqrt(x)), degree, [0.0, 0.25])
    return tuple(map(float, fit.convert(kind=np.polynomial.Polynomial).coef))


_COS = _fit_in_square(lambda t: np.cos(2 * np.pi * t))
_SIN = _fit_in_square(lambda t: 2 * np.pi * np.sinc(2 * t))
