"""Crystals from and to files and pymatgen (host; pymatgen is imported when needed)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal

if TYPE_CHECKING:
    from pymatgen.core import Structure


def crystal_from_file(path: str | Path) -> Crystal:
    """Read a CIF, POSCAR/CONTCAR or extended-XYZ file; the first structure if there are several.

    Raises:
        ValueError: no such file, not readable, disordered, or without a cell.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no structure file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pymatgen reports every rounded coordinate
            structure = _read_extxyz(path) if path.suffix == ".xyz" else _read_pymatgen(path)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"cannot read a crystal structure from {path} ({reason}); "
            "CIF, POSCAR and extended XYZ with a Lattice are understood"
        ) from error
    return crystal_from_structure(structure)


def crystal_from_structure(structure: Structure) -> Crystal:
    """Take over an ordered pymatgen structure; coordinates are wrapped into [0, 1).

    Raises:
        ValueError: the structure is disordered (partial or mixed occupancy).
    """
    if not structure.is_ordered:
        raise ValueError(
            f"{structure.composition.reduced_formula} is disordered (sites with partial or mixed "
            "occupancy); give an ordered structure, for instance an ordered supercell"
        )
    frac = np.asarray(structure.frac_coords, np.float64).reshape(-1, 3) % 1.0
    return Crystal(
        np.array([site.specie.Z for site in structure], np.int32),
        np.where(frac >= 1.0, 0.0, frac),  # -1e-20 % 1 is 1
        np.array(structure.lattice.matrix),
    )


def structure_from_crystal(crystal: Crystal) -> Structure:
    """Return the pymatgen structure of a crystal."""
    from pymatgen.core import Lattice, Structure

    numbers = np.asarray(crystal.atomic_numbers).tolist()
    lattice = Lattice(np.asarray(crystal.lattice, np.float64))
    return Structure(lattice, numbers, np.asarray(crystal.frac_coords, np.float64))


def _read_pymatgen(path: Path) -> Structure:
    from pymatgen.core import Structure
    from pymatgen.io.cif import CifParser
    from pymatgen.io.vasp import Poscar

    if path.suffix.lower() in (".cif", ".mcif"):
        return CifParser(path).parse_structures(primitive=False)[0]
    if path.suffix.lower() in (".poscar", ".vasp") or path.name.upper().startswith(
        ("POSCAR", "CONTCAR")
    ):
        return Poscar.from_file(path).structure
    return Structure.from_file(path)


def _read_extxyz(path: Path) -> Structure:
    """Read the first frame of extended XYZ: a count, Lattice="..." and Properties, the atoms."""
    import re

    from pymatgen.core import Lattice, Structure

    count, comment, *rows = path.read_text().splitlines()
    found = re.search(r'Lattice\s*=\s*"([^"]+)"', comment)
    if not found:
        raise ValueError('no Lattice="..." in the second line')
    lattice = Lattice(np.array(found.group(1).split(), float).reshape(3, 3))
    layout = re.search(r"Properties\s*=\s*(\S+)", comment)
    fields = (layout.group(1) if layout else "species:S:1:pos:R:3").split(":")
    columns, place = {}, 0
    for name, _, width in zip(fields[::3], fields[1::3], fields[2::3]):
        columns[name.lower()] = place
        place += int(width)
    table = [row.split() for row in rows[: int(count)]]
    if len(table) < int(count):
        raise ValueError(f"{count} atoms announced, {len(table)} found")
    species = [row[columns["species"]] for row in table]
    first = columns["pos"]
    positions = [[float(v) for v in row[first : first + 3]] for row in table]
    return Structure(lattice, species, positions, coords_are_cartesian=True)
