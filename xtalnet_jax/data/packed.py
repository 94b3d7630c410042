"""A whole data set as a few flat NumPy arrays: what training reads, and a small file.

Nothing is parsed, reduced or simulated after packing; `packing` makes these sets from a
`sources.Source`, `batches` cuts padded batches out of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal

_FORMAT = 1
_STEPS = 65535  # positions are stored as uint16, so to within inv_d_max / 131070


class PackedSet(NamedTuple):
    """Crystals in standard form with their powder lines, flattened (host side, NumPy).

    Crystal k owns the atoms ``offset[k]:offset[k + 1]``.
    """

    id: np.ndarray  # [n] str
    num_atoms: np.ndarray  # [n] int32
    offset: np.ndarray  # [n + 1] int64
    atomic_numbers: np.ndarray  # [sum num_atoms] uint8
    frac_coords: np.ndarray  # [sum num_atoms, 3] float32 in [0, 1)
    lattice: np.ndarray  # [n, 3, 3] float32, angstrom, rows are vectors
    lines_inv_d: np.ndarray  # [n, num_lines] float32, 1/angstrom, 0 where padded
    lines_strength: np.ndarray  # [n, num_lines] float32, strongest 1, 0 where padded
    peaks_inv_d: (
        np.ndarray
    )  # [n, num_peaks] float32, of the source's own patterns; num_peaks may be 0
    peaks_strength: np.ndarray  # [n, num_peaks] float32, strongest 1, 0 where padded
    measured: np.ndarray  # [n, 2] float32, range of the own pattern in 1/angstrom, 0 where none

    @property
    def num_crystals(self) -> int:
        """How many crystals the set holds (``len`` of a NamedTuple is its number of fields)."""
        return len(self.num_atoms)

    def crystal(self, k: int) -> Crystal:
        """Crystal ``k`` without padding."""
        atoms = slice(self.offset[k], self.offset[k + 1])
        numbers = self.atomic_numbers[atoms].astype(np.int32)
        return Crystal(numbers, self.frac_coords[atoms], self.lattice[k])

    def select(self, rows: np.ndarray) -> PackedSet:
        """The set of the given rows (indices or a boolean mask), in that order."""
        rows = np.arange(self.num_crystals)[rows]
        atoms = np.concatenate(
            [np.arange(self.offset[k], self.offset[k + 1]) for k in rows] or [np.zeros(0, np.int64)]
        )
        per_crystal = {k: getattr(self, k)[rows] for k in self._fields if k not in _PER_ATOM}
        per_crystal["offset"] = _offset(self.num_atoms[rows])
        per_atom = {k: getattr(self, k)[atoms] for k in ("atomic_numbers", "frac_coords")}
        return PackedSet(**per_crystal, **per_atom)


_PER_ATOM = ("offset", "atomic_numbers", "frac_coords")


def from_crystals(
    ids: Sequence[str],
    crystals: Sequence[Crystal],
    lines: tuple[np.ndarray, np.ndarray],
    peaks: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> PackedSet:
    """Flatten crystals, their lines (inv_d, strength) and peaks (inv_d, strength, measured)."""
    n = len(crystals)
    num_atoms = np.array([len(c.atomic_numbers) for c in crystals], np.int32)
    empty = np.zeros((n, 0), np.float32)
    peaks_inv_d, peaks_strength, measured = peaks or (empty, empty, np.zeros((n, 2), np.float32))

    def flat(values: list[np.ndarray], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.concatenate([np.zeros(shape), *values]).astype(dtype)

    return PackedSet(
        id=np.array(ids, np.str_) if n else np.zeros(0, "U1"),
        num_atoms=num_atoms,
        offset=_offset(num_atoms),
        atomic_numbers=flat([c.atomic_numbers for c in crystals], (0,), np.uint8),
        frac_coords=flat([c.frac_coords for c in crystals], (0, 3), np.float32),
        lattice=np.array([c.lattice for c in crystals], np.float32).reshape(n, 3, 3),
        lines_inv_d=np.asarray(lines[0], np.float32),
        lines_strength=np.asarray(lines[1], np.float32),
        peaks_inv_d=np.asarray(peaks_inv_d, np.float32),
        peaks_strength=np.asarray(peaks_strength, np.float32),
        measured=np.asarray(measured, np.float32),
    )


def concatenate(sets: Sequence[PackedSet]) -> PackedSet:
    """Join sets in order; lines and peaks are padded to the longest."""

    def joined(name: str) -> np.ndarray:
        arrays = [getattr(s, name) for s in sets]
        if name.startswith(("lines_", "peaks_")):
            width = max(a.shape[1] for a in arrays)
            arrays = [np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in arrays]
        return np.concatenate(arrays)

    fields = {name: joined(name) for name in PackedSet._fields if name != "offset"}
    return PackedSet(offset=_offset(fields["num_atoms"]), **fields)


def save(
    packed: PackedSet,
    path: str | Path,
    meta: Mapping[str, Any] | None = None,
    exact: bool = False,
) -> None:
    """Write the set as one ``.npz``, atomically: a reader sees the old file or the new one.

    Positions of lines are stored as uint16 steps of the largest one, strengths as float16 (relative
    error 5e-4): a fifth of the size in memory, and finer than any powder pattern can tell.

    Args:
        packed: the set.
        path: where to.
        meta: anything JSON can hold; `load_meta` returns it.
        exact: store lines and peaks as they are.
    """
    path = Path(path)
    arrays = packed._asdict()
    del arrays["offset"]
    for kind in () if exact else ("lines", "peaks"):
        inv_d, strength = arrays.pop(f"{kind}_inv_d"), arrays.pop(f"{kind}_strength")
        step = (float(inv_d.max(initial=0.0)) or 1.0) / _STEPS
        arrays[f"{kind}_step"] = np.float64(step)
        arrays[f"{kind}_position"] = np.rint(inv_d / step).astype(np.uint16)
        half = strength.astype(np.float16)
        # A weak line must stay a line: 0 means padding.
        lost = (half == 0) & (strength > 0)
        arrays[f"{kind}_strength"] = np.where(lost, np.finfo(np.float16).smallest_subnormal, half)
    arrays["meta"] = np.array(json.dumps({**(meta or {}), "format": _FORMAT}))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: str | Path) -> PackedSet:
    """Read what `save` wrote.

    Raises:
        ValueError: no such file, or not a packed set of this version.
    """
    arrays = _read(path)
    fields = {k: arrays[k] for k in PackedSet._fields if k in arrays}
    for kind in ("lines", "peaks"):
        if f"{kind}_step" in arrays:
            inv_d = arrays[f"{kind}_position"] * arrays[f"{kind}_step"]
            fields[f"{kind}_inv_d"] = inv_d.astype(np.float32)
            fields[f"{kind}_strength"] = arrays[f"{kind}_strength"].astype(np.float32)
    return PackedSet(offset=_offset(arrays["num_atoms"]), **fields)


def load_meta(path: str | Path) -> dict[str, Any]:
    """How the set at ``path`` was made, without reading its arrays; ValueError as `load`."""
    return json.loads(str(_read(path, only="meta")["meta"]))


def _read(path: str | Path, only: str | None = None) -> dict[str, np.ndarray]:
    if not Path(path).is_file():
        raise ValueError(f"there is no packed set at {path}: make it with launch.prepare")
    try:
        with np.load(path) as file:
            found = json.loads(str(file["meta"])).get("format")
            arrays = {k: file[k] for k in ([only] if only else file.files)}
    except Exception as error:
        raise ValueError(
            f"{path} is not a packed set ({error}): make it with launch.prepare"
        ) from None
    if found != _FORMAT:
        raise ValueError(f"{path} has format {found}, expected {_FORMAT}: prepare it again")
    return arrays


def _offset(num_atoms: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(num_atoms, dtype=np.int64)])
