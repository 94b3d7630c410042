"""Known structures as templates: crystals of the same stoichiometry with their elements exchanged.

Most new compounds crystallise in the structure of a known one. A template has as many atoms of each
element as the cell in question, whatever the elements are; these are exchanged for the most similar
ones by Mendeleev number (Pettifor, Solid State Commun. 51, 31, 1984: elements that replace each
other in crystals stand close together), the cell is scaled to the new atoms and to the peaks, and
the lines decide. Where cells are known the template is put into them, in every setting that fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import permutations, product
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from xtalnet_jax.crystals import typical
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.elements import SYMBOLS
from xtalnet_jax.data.fixtures import load_set
from xtalnet_jax.data.packed import PackedSet
from xtalnet_jax.pxrd.pattern import PeakBatch
from xtalnet_jax.solve import plausibility, screen

MOST = 200
"""Exchanges, the most similar ones, whose lines are compared with the peaks."""
MOST_IN_CELL = 20
"""Of these the best, which are put into given cells."""
MOST_PERMUTED = 4
"""Elements of equal counts that are exchanged in every order; more only in the cheapest."""
LENGTH_TOLERANCE, ANGLE_TOLERANCE = 0.15, 10.0
"""How far a template's cell of the right volume may be off a given one, relative and degrees."""
SETTINGS = 6
"""Ways of putting a template into a given cell that are tried."""

_Counts = dict[int, int]


class Templates(NamedTuple):
    """A set of known crystals, found by the numbers of atoms of their elements."""

    crystals: PackedSet
    rows: dict[tuple[int, ...], np.ndarray]  # by the sorted numbers of atoms
    name: str

    @classmethod
    def build(cls, crystals: PackedSet, name: str) -> Templates:
        """Sort the crystals of a set, which are primitive cells in standard form."""
        rows: dict[tuple[int, ...], list[int]] = {}
        for k in range(crystals.num_crystals):
            atoms = slice(crystals.offset[k], crystals.offset[k + 1])
            rows.setdefault(_stoichiometry(_counts(crystals.atomic_numbers[atoms])), []).append(k)
        return cls(crystals, {key: np.array(own) for key, own in rows.items()}, name)

    @classmethod
    def load(cls, path: str) -> Templates:
        """Read sets that ``launch.prepare`` wrote, separated by commas.

        Raises:
            ValueError: there is no such set.
        """
        return cls.build(load_set(path), path)

    def exchanged(self, atomic_numbers: np.ndarray, most: int = MOST) -> list[Crystal]:
        """Return crystals of the given atoms made of templates, the most similar exchanges first.

        Each cell is scaled by the typical volumes of the old and the new atoms.

        Args:
            atomic_numbers: [n] of the wanted cell content.
            most: crystals returned, at most.
        """
        wanted = _counts(atomic_numbers)
        ways = [
            (cost, int(k), way)
            for k in self.rows.get(_stoichiometry(wanted), ())
            for cost, way in exchanges(_counts(self.crystals.crystal(int(k))[0]), wanted)
        ]
        ways.sort(key=lambda item: item[:2])
        return [_exchanged(self.crystals.crystal(k), way) for _, k, way in ways[:most]]

    def propose(
        self,
        atomic_numbers: np.ndarray,
        peaks: PeakBatch,
        wavelength: float,
        num: int,
        lattices: np.ndarray | None = None,
    ) -> list[Crystal]:
        """Return at most ``num`` different crystals, those whose lines agree best with the peaks.

        Args:
            atomic_numbers: [n] of the wanted cell content.
            peaks: one row, positions in 1/angstrom.
            wavelength: angstrom, for the Lorentz-polarisation factor.
            num: crystals wanted.
            lattices: [m, 3, 3] cells to put the templates into; without, each template has its own,
                scaled to the peaks.
        """
        made = screen.rescaled(self.exchanged(atomic_numbers), peaks, wavelength)
        if lattices is None:
            return _best(made, peaks, wavelength, num)
        near = _best(made, peaks, wavelength, MOST_IN_CELL)
        cells = np.unique(np.asarray(lattices, np.float32), axis=0)
        inside = [c for cell in cells for template in near for c in settings_in(template, cell)]
        return _best(inside, peaks, wavelength, num)


def exchanges(template: _Counts, wanted: _Counts) -> Iterator[tuple[float, dict[int, int]]]:
    """Yield the ways of exchanging elements that keep the counts: (cost, new element of each old).

    The cost is the mean over atoms of the difference in Mendeleev number.

    Example:
        >>> min(exchanges({22: 1, 38: 1, 8: 3}, {9: 3, 12: 1, 11: 1}), key=lambda way: way[0])[1]
        {22: 12, 38: 11, 8: 9}
    """
    number, num_atoms = mendeleev_numbers(), sum(template.values())
    choices = []
    for count in sorted(set(template.values())):
        old = [z for z, n in template.items() if n == count]
        new = [z for z, n in wanted.items() if n == count]
        if len(old) <= MOST_PERMUTED:
            choices.append([list(zip(old, order)) for order in permutations(new)])
        else:
            row, column = linear_sum_assignment(np.abs(number[old][:, None] - number[new][None]))
            choices.append([[(old[i], new[j]) for i, j in zip(row, column)]])
    for parts in product(*choices):
        way = dict(pair for part in parts for pair in part)
        cost = sum(n * abs(number[z] - number[way[z]]) for z, n in template.items())
        yield float(cost / num_atoms), {z: way[z] for z in template}


def settings_in(crystal: Crystal, lattice: np.ndarray) -> list[Crystal]:
    """Put a crystal into a cell [3, 3] (rows, angstrom) of about its shape, in different settings.

    The volume does not matter. Nothing is returned where the cell has another shape.
    """
    from pymatgen.core import Lattice

    target = Lattice(np.asarray(lattice, float))
    own = Lattice(np.asarray(crystal.lattice, float)).scale(target.volume)
    found: list[Crystal] = []
    mappings = own.find_all_mappings(
        target, LENGTH_TOLERANCE, ANGLE_TOLERANCE, skip_rotation_matrix=True
    )
    for _, _, matrix in mappings:
        if round(abs(np.linalg.det(matrix))) != 1:
            continue
        frac = np.asarray(crystal.frac_coords, float) @ np.linalg.inv(matrix) % 1.0
        found.append(Crystal(crystal.atomic_numbers, frac, np.asarray(lattice, np.float32)))
        if len(found) == SETTINGS:
            break
    return found


@cache
def mendeleev_numbers() -> np.ndarray:
    """Return Pettifor's number of each element by atomic number; 0 after Lr, and for padding."""
    from pymatgen.core import Element

    numbers = np.zeros(len(SYMBOLS))
    last = SYMBOLS.index("Lr")
    numbers[1 : last + 1] = [Element(symbol).mendeleev_no for symbol in SYMBOLS[1 : last + 1]]
    return numbers


def _best(crystals: list[Crystal], peaks: PeakBatch, wavelength: float, num: int) -> list[Crystal]:
    """The best of the different structures, best first."""
    crystals = [c for c in crystals if plausibility.is_possible(c)]
    agreement = screen.agreement(crystals, peaks, wavelength)
    order = np.argsort(-agreement, kind="stable")[: 3 * num]
    crystals, agreement = [crystals[k] for k in order], agreement[order]
    group = plausibility.group_equal(crystals, agreement)
    first = np.unique(group, return_index=True)[1]
    return [crystals[k] for k in np.sort(first)[:num]]


def _exchanged(template: Crystal, way: dict[int, int]) -> Crystal:
    old, frac, lattice = template
    new = np.array([way[int(z)] for z in old], np.int32)
    volumes = typical.typical().volumes
    scale = np.cbrt(volumes[new].sum() / volumes[old].sum())
    order = np.argsort(new, kind="stable")
    return Crystal(new[order], np.asarray(frac)[order], np.asarray(lattice) * np.float32(scale))


def _counts(atomic_numbers: Sequence[int] | np.ndarray) -> _Counts:
    elements, counts = np.unique(atomic_numbers, return_counts=True)
    return dict(zip(elements.tolist(), counts.tolist()))


def _stoichiometry(counts: _Counts) -> tuple[int, ...]:
    return tuple(sorted(counts.values()))
