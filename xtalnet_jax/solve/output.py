"""Write a solution to a folder: CIF files, a table, a JSON record and the report.

Files appear complete or not at all: everything is written to a temporary folder beside the
destination and moved into place at the end.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from xtalnet_jax.crystals.elements import formula_of
from xtalnet_jax.crystals.lattice import parameters_from_matrix
from xtalnet_jax.solve.report import report_html
from xtalnet_jax.solve.solution import Candidate, Solution
from xtalnet_jax.version import __version__

_CELL = ("a", "b", "c", "alpha", "beta", "gamma")
_JUDGED = ("rwp", "similarity", "confidence")
COLUMNS = ("rank", "file", "formula", "space_group", *_CELL, "volume", *_JUDGED)
"""Of ``candidates.csv``."""

SYMPREC = 0.1
"""Angstrom within which the CIF files are symmetrised."""


def save_solution(solution: Solution, folder: str | Path) -> list[Path]:
    """Write ``candidates.csv``, ``candidate_01.cif`` ..., ``result.json`` and ``report.html``.

    Files of an earlier solution in the folder are replaced, other files are left alone.

    Returns:
        The paths written.

    Raises:
        ValueError: the folder cannot be written.
    """
    folder = writable_folder(folder)
    texts = {
        cif_name(i): cif_text(c, solution, i) for i, c in enumerate(solution.candidates, start=1)
    }
    texts["candidates.csv"] = table_text(solution)
    texts["result.json"] = json.dumps(record(solution), indent=1, allow_nan=False) + "\n"
    rows = [row(c, i) for i, c in enumerate(solution.candidates, start=1)]
    texts["report.html"] = report_html(solution, rows)
    staging = Path(tempfile.mkdtemp(dir=folder, prefix=".writing-"))
    try:
        for name, text in texts.items():
            (staging / name).write_text(text, encoding="utf-8")
        for old in folder.glob("candidate_*.cif"):
            if old.name not in texts:
                old.unlink()
        for name in texts:
            os.replace(staging / name, folder / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [folder / name for name in texts]


def writable_folder(folder: str | Path) -> Path:
    """Make the folder if need be and see that files can be written: before hours of work.

    Raises:
        ValueError: they cannot.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ValueError(
            f"cannot write to the folder {folder} ({error.strerror}); choose another one"
        ) from None


def cif_name(rank: int) -> str:
    """File name of the candidate of that rank, from 1."""
    return f"candidate_{rank:02d}.cif"


def row(candidate: Candidate, rank: int) -> dict[str, Any]:
    """Return one line of the table, by column name; numbers that are not finite are None."""
    lengths, angles = parameters_from_matrix(jnp.asarray(candidate.crystal.lattice))
    numbers = dict(zip(_CELL, [*lengths, *angles]))
    numbers["volume"] = abs(np.linalg.det(candidate.crystal.lattice))
    for name in _JUDGED:
        numbers[name] = getattr(candidate, name)
    return {
        "rank": rank,
        "file": cif_name(rank),
        "formula": formula_of(candidate.crystal.atomic_numbers),
        "space_group": candidate.space_group,
        **{k: round(float(v), 5) if np.isfinite(v) else None for k, v in numbers.items()},
    }


def table_text(solution: Solution) -> str:
    """Return ``candidates.csv``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row(c, i) for i, c in enumerate(solution.candidates, start=1))
    return text.getvalue()


def record(solution: Solution) -> dict[str, Any]:
    """Return ``result.json``: everything but the patterns."""
    return {
        "verdict": solution.verdict,
        "formula": solution.formula,
        "settings": dict(solution.settings),
        "warnings": list(solution.warnings),
        "seconds": {k: round(v, 2) for k, v in solution.seconds.items()},
        "candidates": [
            {**row(c, i), "votes": c.votes} for i, c in enumerate(solution.candidates, start=1)
        ],
        "version": __version__,
    }


def cif_text(candidate: Candidate, solution: Solution, rank: int) -> str:
    """Return the candidate as a CIF, symmetrised at 0.1 angstrom where that keeps the structure."""
    from pymatgen.io.cif import CifWriter

    structure = candidate.structure
    symmetric = candidate.space_group != "P1" and _survives_symmetry(structure)
    body = str(CifWriter(structure, symprec=SYMPREC if symmetric else None))
    head = (
        f"# xtalnet_jax {__version__}, candidate {rank}: R_wp {candidate.rwp:.4f}, "
        f"confidence {candidate.confidence:.3f}, verdict {solution.verdict}\n"
    )
    return head + body


def _survives_symmetry(structure: Any) -> bool:
    """Whether the symmetrised structure is still the same one: close atoms may have merged."""
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer
    from spglib.error import SpglibError

    try:
        refined = SpacegroupAnalyzer(structure, symprec=SYMPREC).get_refined_structure()
    except (TypeError, ValueError, SpglibError):  # the search gives up on an odd cell
        return False
    return bool(StructureMatcher(scale=False).fit(structure, refined))
