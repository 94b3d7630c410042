"""Many crystals in little memory, and which of them have a composition: what an index looks up in.

60 bytes a crystal and 7 an atom, so that a million cells of ten atoms take 0.13 GB beside their
vectors. Coordinates are steps of 1/65536 of the cell edge (1e-4 angstrom of 10).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal, pack_crystals
from xtalnet_jax.crystals.elements import ATOMIC_NUMBERS, parse_formula, reduce_formula

_STEPS = 1 << 16
_WORD = 64  # bits


class Composition(NamedTuple):
    """What is known of the composition; the default is nothing."""

    formula: str | None = None  # in any multiple: TiO2 is also Ti2O4
    elements: Sequence[str] = ()  # all of these are in the crystal
    only_elements: Sequence[str] | None = None  # nothing else is in it
    exclude_elements: Sequence[str] = ()  # none of these is in it

    def checked(self) -> Composition:
        """Return it; ValueError for an unknown element or a formula that cannot be read."""
        _bits([*self.elements, *(self.only_elements or ()), *self.exclude_elements])
        if self.formula is not None:
            parse_formula(self.formula)
        return self


class CrystalTable(NamedTuple):
    """Crystals as flat arrays (host); crystal k owns the atoms ``offset[k]:offset[k + 1]``."""

    offset: np.ndarray  # [n + 1] int64
    atomic_numbers: np.ndarray  # [n_atom] uint8
    frac_coords: np.ndarray  # [n_atom, 3] uint16, steps of 1/65536
    lattice: np.ndarray  # [n, 3, 3] float32, angstrom, rows are the lattice vectors
    present: np.ndarray  # [n, 2] uint64, bit Z set where the element is in the crystal

    @classmethod
    def from_crystals(cls, crystals: Sequence[Crystal]) -> CrystalTable:
        """Make a table.

        Raises:
            ValueError: there are no crystals.
        """
        numbers, frac, lattice, offset = pack_crystals(crystals)
        steps = np.rint(np.asarray(frac, np.float64) * _STEPS).astype(np.int64) % _STEPS
        word, bit = np.divmod(np.asarray(numbers, np.uint64), np.uint64(_WORD))
        bits = np.where(
            word[:, None] == np.arange(2, dtype=np.uint64)[None], np.uint64(1) << bit[:, None], 0
        ).astype(np.uint64)
        present = np.bitwise_or.reduceat(bits, offset[:-1])
        return cls(
            np.asarray(offset, np.int64),
            np.asarray(numbers, np.uint8),
            steps.astype(np.uint16),
            np.asarray(lattice, np.float32),
            present,
        )

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> CrystalTable:
        """Take the fields out of a mapping; KeyError if one is not there."""
        return cls(*(arrays[name] for name in cls._fields))

    @property
    def num_crystals(self) -> int:
        """How many crystals there are (``len`` of a NamedTuple is its number of fields)."""
        return len(self.lattice)

    def crystal(self, k: int) -> Crystal:
        """Crystal ``k``, its coordinates rounded to 1/65536."""
        atoms = slice(self.offset[k], self.offset[k + 1])
        frac = self.frac_coords[atoms].astype(np.float64) / _STEPS
        return Crystal(self.atomic_numbers[atoms].astype(np.int32), frac, self.lattice[k])

    def having(self, composition: Composition) -> np.ndarray | None:
        """Which crystals have a composition, [n] bool; None where nothing is asked.

        Raises:
            ValueError: an unknown element or a formula that cannot be read.
        """
        formula, required, only, excluded = composition.checked()
        if formula is None and only is None and not required and not excluded:
            return None
        mask = np.ones(self.num_crystals, bool)
        if required:
            mask &= self._elements_are(lambda present, bits: (present & bits) == bits, required)
        if only is not None:
            mask &= self._elements_are(lambda present, bits: (present & ~bits) == 0, only)
        if excluded:
            mask &= self._elements_are(lambda present, bits: (present & bits) == 0, excluded)
        if formula is not None:
            counts, _ = reduce_formula(parse_formula(formula))
            mask &= self._elements_are(np.equal, counts)
            rows = np.flatnonzero(mask)
            mask[rows] = self._multiples(rows, counts)
        return mask

    def _elements_are(
        self, holds: Callable[[np.ndarray, np.uint64], np.ndarray], symbols: Iterable[str]
    ) -> np.ndarray:
        """Whether ``holds(present, bits)`` for both words of bits, [n]."""
        first, second = _bits(symbols)
        return holds(self.present[:, 0], first) & holds(self.present[:, 1], second)

    def _multiples(self, rows: np.ndarray, counts: Mapping[str, int]) -> np.ndarray:
        """Whether crystals that hold just the elements of ``counts`` are a multiple of it."""
        size = self.offset[rows + 1] - self.offset[rows]
        owner = np.repeat(np.arange(len(rows)), size)
        first = np.cumsum(size) - size
        atoms = np.arange(len(owner)) - first[owner] + self.offset[rows][owner]
        numbers = self.atomic_numbers[atoms]
        units, left = np.divmod(size, sum(counts.values()))
        found = left == 0
        for symbol, count in counts.items():
            own = np.bincount(owner[numbers == ATOMIC_NUMBERS[symbol]], minlength=len(rows))
            found &= own == units * count
        return found


def concatenate(tables: Sequence[CrystalTable]) -> CrystalTable:
    """Join tables in order."""
    sizes = np.concatenate([np.diff(t.offset) for t in tables])
    joined = {
        name: np.concatenate([getattr(t, name) for t in tables])
        for name in CrystalTable._fields
        if name != "offset"
    }
    return CrystalTable(offset=np.concatenate([[0], np.cumsum(sizes)]), **joined)


def _bits(symbols: Iterable[str]) -> np.ndarray:
    """The set of elements, [2] uint64."""
    numbers = []
    for symbol in symbols:
        if symbol not in ATOMIC_NUMBERS:
            raise ValueError(f"unknown element {symbol!r}; write symbols like Ti and O")
        numbers.append(ATOMIC_NUMBERS[symbol])
    both = reduce(lambda total, z: total | (1 << z), numbers, 0)
    return np.array([both % (1 << _WORD), both >> _WORD], np.uint64)
