"""Which reflections a cell has: boxes and lists of Miller indices (host, NumPy, float64).

One of hkl and -hkl is listed, never 000: without anomalous dispersion both are equally strong
(Friedel's law). A box is the same for every crystal, so it serves lattices that are only known
on the device; a list holds the reflections of one crystal and nothing else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Box = tuple[int, int, int]

_PART = 128  # crystals listed at a time
_SLACK = 1e-9  # of the largest 1/d^2: a reflection on the border is inside


class HklTable(NamedTuple):
    """Reflections of several crystals, those of crystal k in rows ``offset[k]:offset[k+1]``.

    Ordered by 1/d within a crystal.
    """

    hkl: np.ndarray  # [n_total, 3] int16
    inv_d: np.ndarray  # [n_total] float64, 1/angstrom
    offset: np.ndarray  # [n_crystal + 1] int64


def full_box(box: Box) -> np.ndarray:
    """Miller indices -H..H, -K..K, 0..L as [n_hkl, 3] int16, h slowest, 000 included."""
    axes = [np.arange(-n if i < 2 else 0, n + 1, dtype=np.int16) for i, n in enumerate(box)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def hkl_box_for(lattices: Any, inv_d_max: float | int, multiple: int = 4) -> Box:
    """Smallest box (H, K, L) that holds every reflection up to ``inv_d_max`` of every lattice.

    |h| = |q . a| <= |q| |a|, so H = floor(inv_d_max |a|) of the longest a is sufficient.
    The lattices should be Niggli-reduced: a long axis makes a large box.

    Args:
        lattices: [..., 3, 3] angstrom.
        inv_d_max: 1/angstrom.
        multiple: round each index up to a multiple of this, so that few shapes compile.
    """
    index = _box_indices(np.asarray(lattices).reshape(-1, 3, 3), inv_d_max).max(0)
    h, k, l = (int(-(-i // multiple) * multiple) for i in index)
    return h, k, l


def check_box(box: Box, lattices: Any, inv_d_max: float | int) -> None:
    """Refuse a box that would silently drop reflections.

    Raises:
        ValueError: the box is too small for a lattice.
    """
    needed = hkl_box_for(lattices, inv_d_max, multiple=1)
    if any(have < need for have, need in zip(box, needed)):
        raise ValueError(
            f"hkl box {box} is too small for 1/d up to {inv_d_max:g}: {needed} is needed; "
            "use hkl_box_for(lattices, inv_d_max)"
        )


def hkl_table(lattices: Any, inv_d_max: float | int, inv_d_min: float | int = 0.0) -> HklTable:
    """List the reflections with ``inv_d_min`` <= 1/d <= ``inv_d_max`` of each lattice.

    Args:
        lattices: [n_crystal, 3, 3] angstrom.
        inv_d_max: 1/angstrom.
        inv_d_min: 1/angstrom.

    Raises:
        ValueError: a lattice is flat, or not finite.
    """
    lattices = np.asarray(lattices, np.float64)
    det = np.linalg.det(lattices) if np.isfinite(lattices).all() else np.zeros(1)
    if (np.abs(det) < 1e-6).any():
        raise ValueError(
            "a lattice is flat or not finite; its rows must be three independent vectors"
        )
    # Few crystals at a time: every array of a part stays in the cache.
    parts = [
        _listed(lattices[i : i + _PART], inv_d_max, inv_d_min)
        for i in range(0, max(len(lattices), 1), _PART)
    ]
    hkl, inv_d, counts = (np.concatenate(v, axis=-1) for v in zip(*parts))
    return HklTable(hkl.T, inv_d, np.concatenate([[0], counts.cumsum()]))


def _listed(
    lattices: np.ndarray, inv_d_max: float | int, inv_d_min: float | int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The indices [3, n_total], 1/d [n_total] and number [n_crystal] of `hkl_table`."""
    owner, h, k, first, count, square_at = _columns(lattices, inv_d_max)
    column = np.repeat(np.arange(len(count)), count)
    l = np.arange(len(column)) + (first - count.cumsum() + count).take(column)
    square = square_at(column, l)
    counts = np.bincount(owner, count, len(lattices)).astype(np.int64)
    low = square < inv_d_min**2 - _SLACK * inv_d_max**2
    if low.any():
        counts -= np.bincount(owner.take(column[low]), minlength=len(lattices))
        column, l, square = column[~low], l[~low], square[~low]
    offset = np.concatenate([[0], counts.cumsum()])
    order = np.empty(len(square), np.int64)
    for a, b in zip(offset[:-1].tolist(), offset[1:].tolist()):
        order[a:b] = square[a:b].argsort()
        order[a:b] += a
    column = column.take(order)
    hkl = np.empty((3, len(order)), np.int16)  # component after component: read row by row
    hkl[0], hkl[1], hkl[2] = h.take(column), k.take(column), l.astype(np.int16).take(order)
    return hkl, np.sqrt(square.take(order)), counts


def _columns(lattices: np.ndarray, inv_d_max: float | int) -> tuple[Any, ...]:
    """Cut the half sphere of each crystal into columns of equal h and k.

    In a column 1/d^2 is a parabola in l, so the reflections inside the sphere are an interval,
    found without looking at those outside.

    Returns:
        Of each column the crystal, h, k, the first l and the number of reflections, and 1/d^2 as a
        function of columns and l.
    """
    recip = np.linalg.inv(lattices)
    g = (np.swapaxes(recip, 1, 2) @ recip).reshape(-1, 9).T
    h_max, k_max, _ = _box_indices(lattices, inv_d_max).T
    wide = 2 * h_max + 1
    num_columns = wide * (k_max + 1)
    owner = np.repeat(np.arange(len(wide)), num_columns)
    number = np.arange(len(owner)) - (num_columns.cumsum() - num_columns).take(owner)
    wide = wide.take(owner)
    k = number // wide
    h = number - k * wide - h_max.take(owner)
    g11, g12, g13, g22, g23, g33 = (g[i].take(owner) for i in (0, 1, 2, 4, 5, 8))
    at_zero = h * (h * g11 + 2 * k * g12) + k * k * g22  # 1/d^2 = at_zero + l (slope + l g33)
    slope = 2 * (h * g13 + k * g23)
    middle = -0.5 * slope / g33
    room = middle**2 - (at_zero - inv_d_max**2 * (1 + _SLACK)) / g33
    half = np.sqrt(np.maximum(room, 0.0))
    centre = (h == 0) & (k == 0)
    first = np.where(centre, 1.0, np.ceil(middle - half))
    count = np.maximum(np.floor(middle + half) - first + 1, 0.0)
    keep = (room >= 0) & (count > 0) & ((k > 0) | (h >= 0))
    at_zero, slope, g33 = at_zero[keep], slope[keep], g33[keep]

    def square_at(column: np.ndarray, l: np.ndarray) -> np.ndarray:
        return at_zero.take(column) + l * (slope.take(column) + l * g33.take(column))

    first, count = first[keep].astype(np.int64), count[keep].astype(np.int64)
    h, k = h[keep].astype(np.int16), k[keep].astype(np.int16)
    return owner[keep], h, k, first, count, square_at


def padded_hkl(table: HklTable, num_hkl: int | None = None, multiple: int = 64) -> np.ndarray:
    """Pad a table to [n_crystal, num_hkl, 3] int16 with 000, as `reflections` takes it.

    Raises:
        ValueError: a crystal has more than ``num_hkl`` reflections.
    """
    counts = np.diff(table.offset)
    largest = int(counts.max(initial=1))
    num_hkl = -(-largest // multiple) * multiple if num_hkl is None else num_hkl
    if largest > num_hkl:
        raise ValueError(f"a crystal has {largest} reflections, num_hkl = {num_hkl} holds fewer")
    out = np.zeros((len(counts), num_hkl, 3), np.int16)
    out[np.arange(num_hkl) < counts[:, None]] = table.hkl
    return out


def _box_indices(lattices: np.ndarray, inv_d_max: float | int) -> np.ndarray:
    lengths = np.linalg.norm(np.asarray(lattices, np.float64), axis=-1)
    return np.maximum(np.floor(inv_d_max * lengths * (1 + 1e-6)).astype(int), 1)
