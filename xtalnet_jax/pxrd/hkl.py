"""Which reflections a cell has: boxes and lists of Miller indices (host, NumPy, float64).

One of hkl and -hkl is listed, never 000: without anomalous dispersion both are equally strong
(Friedel's law). A box is the same for every crystal, so it serves lattices that are only known
on the device; a list holds the reflections of one crystal and nothing else.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

Box = tuple[int, int, int]


class HklTable(NamedTuple):
    """Reflections of several crystals, those of crystal k in rows ``offset[k]:offset[k+1]``.

    Ordered by 1/d within a crystal.
    """

    hkl: np.ndarray  # [n_total, 3] int16
    inv_d: np.ndarray  # [n_total] float64, 1/angstrom
    offset: np.ndarray  # [n_crystal + 1] int64


@lru_cache(maxsize=1024)
def half_box(box: Box) -> np.ndarray:
    """Miller indices of one half space within |h| <= H, |k| <= K, l <= L: [n_hkl, 3] int16.

    Ordered with 000 and its discarded half of the plane l = 0 left out: l > 0, or l = 0 and k > 0,
    or k = l = 0 and h > 0.
    """
    h, k, l = full_box(box).T
    half = (l > 0) | ((l == 0) & ((k > 0) | ((k == 0) & (h > 0))))
    return full_box(box)[half]


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
    recip = np.linalg.inv(lattices)
    metric = np.swapaxes(recip, 1, 2) @ recip
    six = metric[:, (0, 1, 2, 0, 0, 1), (0, 1, 2, 1, 2, 2)]
    boxes = _box_indices(lattices, inv_d_max)
    unique, group = np.unique(boxes, axis=0, return_inverse=True)
    by_group = np.argsort(group.ravel(), kind="stable")
    members = np.split(by_group, np.bincount(group.ravel())[:-1].cumsum())
    parts = []  # (crystals, reflections of each, hkl, square of 1/d)
    for box, crystals in zip(unique, members):
        hkl, products = _products(tuple(map(int, box)))
        step = max(1, 2**15 // len(hkl))  # small enough to stay in the cache
        for chunk in (crystals[i : i + step] for i in range(0, len(crystals), step)):
            # einsum and not @: for an inner length of six, BLAS threads cost more than they give.
            square = np.einsum("cs,sm->cm", six[chunk], products)
            counts, column, square = _ordered(square, inv_d_min**2, inv_d_max**2)
            parts.append((chunk, counts, hkl.take(column, 0), square))
    counts = np.zeros(len(lattices), np.int64)
    for chunk, count, _, _ in parts:
        counts[chunk] = count
    offset = np.concatenate([[0], counts.cumsum()])
    hkl, square = np.empty((offset[-1], 3), np.int16), np.empty(offset[-1])
    for chunk, count, some_hkl, some_square in parts:
        target = np.arange(count.sum()) + np.repeat(offset[chunk] - count.cumsum() + count, count)
        hkl[target], square[target] = some_hkl, some_square
    return HklTable(hkl, np.sqrt(square), offset)


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


@lru_cache(maxsize=1024)
def _products(box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the half box and the six products whose weights in 1/d^2 are the metric's."""
    hkl = half_box(box)
    h, k, l = hkl.T.astype(np.float64)
    return hkl, np.stack([h * h, k * k, l * l, 2 * h * k, 2 * h * l, 2 * k * l])


def _ordered(
    square: np.ndarray, low: float | int, high: float | int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entries of [n, n_hkl] within bounds: count of each row, then columns and values in order."""
    slack = 1e-9 * high
    inside = (square <= high + slack) & (square >= low - slack)
    counts = inside.sum(1)
    held = np.arange(counts.max(initial=0)) < counts[:, None]
    value = np.full(held.shape, np.inf)
    value[held] = found = square[inside]
    order = np.argsort(value, axis=1)[held]  # padding sorts last, so the first counts are real
    order += np.repeat(counts.cumsum() - counts, counts)
    return counts, np.nonzero(inside)[1].take(order), found.take(order)
