"""Small data sets on disk, in the forms of the field, for the tests of this folder."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal


def crystals(num: int, seed: int = 0, max_atoms: int = 6) -> list[Crystal]:
    """Sound random crystals: atoms on a coarse grid, so that none come too close."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3) / 3
    found = []
    for _ in range(num):
        n = rng.integers(1, max_atoms + 1)
        frac = rng.permutation(grid)[:n] + rng.random(3) / 3
        lattice = np.diag(rng.uniform(4.5, 6.0, 3)) + rng.normal(0, 0.1, (3, 3))
        found.append(Crystal(rng.integers(1, 90, n), frac % 1, lattice))
    return found


def write_npz(path: Path, some: list[Crystal], **extra: np.ndarray) -> Path:
    sizes = [len(c.atomic_numbers) for c in some]
    np.savez(
        path,
        id=np.array([f"c{i}" for i in range(len(some))]),
        num_atoms=np.array(sizes, np.int32),
        offset=np.concatenate([[0], np.cumsum(sizes)]),
        atomic_numbers=np.concatenate([c.atomic_numbers for c in some]).astype(np.uint8),
        frac_coords=np.concatenate([c.frac_coords for c in some]).astype(np.float32),
        lattice=np.stack([c.lattice for c in some]),
        **extra,
    )
    return path


TWO_THETA = np.round(np.arange(3.0, 30.01, 0.02), 2)
PEAK_ANGLES = (6.4, 9.06, 17.3)


def profile(seed: int = 0) -> np.ndarray:
    """A pattern on the grid of the paper, with three peaks on grid points."""
    heights = np.random.default_rng(seed).uniform(20, 100, 3)
    shape = np.exp(-(((TWO_THETA[:, None] - np.array(PEAK_ANGLES)) / 0.05) ** 2))
    return (shape * heights).sum(1)


def lmdb_record(crystal: Crystal, seed: int = 0) -> dict:
    from pymatgen.core import Lattice

    return {
        "atom_type": [int(z) for z in crystal.atomic_numbers],
        "atom_frac_pos": np.asarray(crystal.frac_coords),
        "atoms_num": len(crystal.atomic_numbers),
        "parameters": np.array(Lattice(crystal.lattice).parameters),
        "x": TWO_THETA,
        "y": profile(seed),
    }


def write_lmdb(path: Path, values: list[bytes], subdir: bool = False) -> Path:
    import lmdb

    environment = lmdb.open(str(path), subdir=subdir, map_size=1 << 24)
    with environment.begin(write=True) as transaction:
        for i, value in enumerate(values):
            transaction.put(str(i).encode(), value)
        transaction.put(b"length", pickle.dumps(len(values)))
    environment.close()
    return path


def cif(crystal: Crystal) -> str:
    return crystal.to_structure().to(fmt="cif")


BROKEN_CIF = "data_nothing\n_cell_length_a 4\nloop_\n_atom_site_label\nNa1\n"
