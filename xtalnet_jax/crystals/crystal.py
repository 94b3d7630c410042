"""What a crystal is: one `Crystal` (host, NumPy) and a padded `CrystalBatch` (device).

Convention: rows of ``lattice`` are the lattice vectors in angstrom, ``cart = frac @ lattice``.
Conversion from and to files and pymatgen lives in `convert`, graphs in `graph`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Crystal(NamedTuple):
    """One crystal structure M = (A, F, L) of the paper's section 4."""

    atomic_numbers: np.ndarray  # [n] int
    frac_coords: np.ndarray  # [n, 3] in [0, 1)
    lattice: np.ndarray  # [3, 3] angstrom, rows are the lattice vectors

    @classmethod
    def from_file(cls, path: str | Path) -> Crystal:
        """Read a CIF, POSCAR or extended-XYZ file; see `convert.crystal_from_file`."""
        from xtalnet_jax.crystals import convert

        return convert.crystal_from_file(path)

    @classmethod
    def from_structure(cls, structure: Any) -> Crystal:
        """Take over an ordered ``pymatgen.core.Structure``."""
        from xtalnet_jax.crystals import convert

        return convert.crystal_from_structure(structure)

    def to_structure(self) -> Any:
        """Return the ``pymatgen.core.Structure``."""
        from xtalnet_jax.crystals import convert

        return convert.structure_from_crystal(self)


class CrystalBatch(NamedTuple):
    """Crystals padded to one number of atoms; a padded atom has atomic number 0.

    The dense form is the one every hot path uses: a fully connected graph over n atoms is a dense
    n x n block. `graph.to_graphs` gives the same batch as a ``jraph.GraphsTuple``. Fields are
    NumPy arrays on the host, JAX arrays on the device.
    """

    atomic_numbers: Any  # [n_graph, n_node] int32, 0 where padded
    frac_coords: Any  # [n_graph, n_node, 3]
    lattice: Any  # [n_graph, 3, 3] angstrom; identity for a padded crystal

    @property
    def node_mask(self) -> Any:
        """[n_graph, n_node] bool, True for a real atom."""
        return self.atomic_numbers > 0

    @property
    def graph_mask(self) -> Any:
        """[n_graph] bool, True for a real crystal."""
        return (self.atomic_numbers > 0).any(-1)

    @property
    def num_atoms(self) -> Any:
        """[n_graph] int, number of real atoms."""
        return (self.atomic_numbers > 0).sum(-1)


def stack_crystals(
    crystals: Sequence[Crystal], num_nodes: int | None = None, num_graphs: int | None = None
) -> CrystalBatch:
    """Pad crystals to ``num_nodes`` atoms and ``num_graphs`` crystals (NumPy arrays, float32).

    Raises:
        ValueError: a crystal has more atoms than ``num_nodes``, or there are more crystals than
            ``num_graphs``.

    Example:
        >>> c = Crystal(np.array([11, 17]), np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]]), np.eye(3) * 4)
        >>> stack_crystals([c], num_nodes=3).atomic_numbers
        array([[11, 17,  0]], dtype=int32)
    """
    largest = max((len(c.atomic_numbers) for c in crystals), default=0)
    num_nodes = largest if num_nodes is None else num_nodes
    num_graphs = len(crystals) if num_graphs is None else num_graphs
    if largest > num_nodes:
        raise ValueError(
            f"a crystal has {largest} atoms, but the batch holds at most {num_nodes} per crystal"
        )
    if len(crystals) > num_graphs:
        raise ValueError(
            f"{len(crystals)} crystals given, but the batch holds at most {num_graphs}"
        )
    atomic_numbers = np.zeros((num_graphs, num_nodes), np.int32)
    frac_coords = np.zeros((num_graphs, num_nodes, 3), np.float32)
    lattice = np.tile(np.eye(3, dtype=np.float32), (num_graphs, 1, 1))
    for i, c in enumerate(crystals):
        n = len(c.atomic_numbers)
        atomic_numbers[i, :n] = c.atomic_numbers
        frac_coords[i, :n] = c.frac_coords
        lattice[i] = c.lattice
    return CrystalBatch(atomic_numbers, frac_coords, lattice)


def unstack_crystals(batch: CrystalBatch) -> list[Crystal]:
    """Return the real crystals of a batch, without their padding."""
    numbers, coords, lattice = (np.asarray(x) for x in batch)
    return [
        Crystal(z[z > 0], x[z > 0] % 1.0, cell)
        for z, x, cell in zip(numbers, coords, lattice)
        if (z > 0).any()
    ]


class PackedCrystals(NamedTuple):
    """Many crystals as flat arrays (host); crystal k is rows ``offset[k]:offset[k+1]``."""

    atomic_numbers: np.ndarray  # [n_total] int
    frac_coords: np.ndarray  # [n_total, 3]
    lattice: np.ndarray  # [n_crystal, 3, 3] angstrom
    offset: np.ndarray  # [n_crystal + 1] int


def pack_crystals(crystals: Sequence[Crystal]) -> PackedCrystals:
    """Join crystals into flat arrays.

    Raises:
        ValueError: there are no crystals.
    """
    if not len(crystals):
        raise ValueError("no crystals given; at least one is needed")
    sizes = [len(c.atomic_numbers) for c in crystals]
    return PackedCrystals(
        np.concatenate([c.atomic_numbers for c in crystals]),
        np.concatenate([np.reshape(c.frac_coords, (-1, 3)) for c in crystals]),
        np.stack([c.lattice for c in crystals]),
        np.concatenate([[0], np.cumsum(sizes)]),
    )


def unpack_crystals(packed: PackedCrystals) -> list[Crystal]:
    """Split flat arrays into crystals."""
    bounds = zip(packed.offset[:-1], packed.offset[1:])
    return [
        Crystal(packed.atomic_numbers[a:b], packed.frac_coords[a:b], cell)
        for (a, b), cell in zip(bounds, packed.lattice)
    ]
