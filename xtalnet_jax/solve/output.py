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
from typing import Any, NamedTuple

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.elements import formula_of
from xtalnet_jax.pxrd.io import assumptions
from xtalnet_jax.solve.cif import Setting, cif_text, conventional
from xtalnet_jax.solve.report import report_html
from xtalnet_jax.solve.solution import Candidate, Solution
from xtalnet_jax.version import __version__

_CELL = ("a", "b", "c", "alpha", "beta", "gamma")
_JUDGED = ("rwp", "similarity", "confidence")
COLUMNS = ("rank", "file", "formula", "space_group", *_CELL, "volume", *_JUDGED)
"""Of ``candidates.csv``."""

_FITTED = ("rwp_cell", "zero_shift", "fwhm", "fwhm_tan", "eta", "b_iso", "scale")


class Shown(NamedTuple):
    """A candidate in the setting in which all files show it."""

    candidate: Candidate
    rank: int  # from 1
    setting: Setting


def save_solution(solution: Solution, folder: str | Path) -> list[Path]:
    """Write ``candidates.csv``, ``candidate_01.cif`` ..., ``result.json`` and ``report.html``.

    Files of an earlier solution in the folder are replaced, other files are left alone.

    Returns:
        The paths written.

    Raises:
        ValueError: the folder cannot be written.
    """
    folder = writable_folder(folder)
    shown = [Shown(c, i, conventional(c)) for i, c in enumerate(solution.candidates, start=1)]
    cifs = [cif_text(s.candidate, solution, s.rank, s.setting) for s in shown]
    texts = {cif_name(s.rank): text for s, text in zip(shown, cifs)}
    for first in shown[:1]:  # the best one comes with the profile, a powder CIF
        texts[cif_name(1)] = cif_text(first.candidate, solution, 1, first.setting, profile=True)
    rows = [row(s) for s in shown]
    texts["candidates.csv"] = table_text(rows)
    texts["result.json"] = json.dumps(record(solution, shown), indent=1, allow_nan=False) + "\n"
    structures = [Crystal.from_structure(s.setting.structure) for s in shown]
    texts["report.html"] = report_html(solution, rows, structures, cifs)
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


def row(shown: Shown) -> dict[str, Any]:
    """Return one line of the table, by column name; numbers that are not finite are None.

    The cell is that of the CIF: conventional where the structure could be symmetrised.
    """
    structure = shown.setting.structure.get_sorted_structure()  # by electronegativity
    numbers = dict(zip(_CELL, structure.lattice.parameters))
    numbers["volume"] = structure.volume
    for name in _JUDGED:
        numbers[name] = getattr(shown.candidate, name)
    return {
        "rank": shown.rank,
        "file": cif_name(shown.rank),
        "formula": formula_of(np.array([site.specie.Z for site in structure])),
        "space_group": shown.candidate.space_group,
        **{k: _finite(v) for k, v in numbers.items()},
    }


def table_text(rows: list[dict[str, Any]]) -> str:
    """Return ``candidates.csv``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def record(solution: Solution, shown: list[Shown]) -> dict[str, Any]:
    """Return ``result.json``: everything but the profiles."""
    pattern = solution.pattern
    x = pattern.two_theta
    return {
        "verdict": solution.verdict,
        "none_right": round(solution.none_right, 4),
        "formula": solution.formula,
        "settings": dict(solution.settings),
        "warnings": list(solution.warnings),
        "assumptions": assumptions(pattern),
        "pattern": {
            "points": len(x),
            "two_theta": [_finite(x[0]), _finite(x[-1])],
            "wavelength": float(pattern.wavelength),
            "uncertainties": pattern.sigma is not None,
            **{k: str(v) for k, v in pattern.meta.items()},
        },
        "seconds": {k: round(v, 2) for k, v in solution.seconds.items()},
        "candidates": [
            {**row(s), "votes": s.candidate.votes, "refined": _fitted(s.candidate)} for s in shown
        ],
        "version": __version__,
    }


def _fitted(candidate: Candidate) -> dict[str, Any] | None:
    """What was fitted, of the cell in which it was: [value, standard uncertainty or None]."""
    fit = candidate.fit
    if fit is None:
        return None
    pairs = {name: (getattr(fit, name), fit.esd.get(name)) for name in _FITTED}
    pairs |= {name: (v, e) for name, v, e in zip(_CELL, fit.cell, fit.cell_esd)}
    return {
        **{
            name: [_finite(v), None if e is None else _finite(e, 7)]
            for name, (v, e) in pairs.items()
        },
        "background": [_finite(v) for v in fit.background],
        "free_structural_parameters": fit.num_free,
    }


def _finite(value: Any, digits: int = 5) -> float | None:
    return round(float(value), digits) if np.isfinite(value) else None
