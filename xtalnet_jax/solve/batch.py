"""Solve many files: a folder for each, one table for all, and no bad file stops the others."""

from __future__ import annotations

import csv
import glob
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xtalnet_jax.solve import output
from xtalnet_jax.solve.cif import conventional
from xtalnet_jax.solve.solution import Solution

COLUMNS = (
    *("file", "folder", "verdict", "confidence", "rwp", "formula", "space_group"),
    *("a", "b", "c", "alpha", "beta", "gamma", "volume", "candidates", "seconds", "message"),
)
"""Of ``table.csv``; ``verdict`` is ``error`` where a file could not be solved."""

ERROR = "error"


def matching_files(patterns: Sequence[str]) -> list[Path]:
    """Files that match any of the patterns (``*``, ``?``, ``**``), sorted, each once.

    Raises:
        ValueError: a pattern matches no file.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        expanded = os.path.expanduser(pattern)
        files = [Path(p) for p in sorted(glob.glob(expanded, recursive=True)) if Path(p).is_file()]
        if not files:
            raise ValueError(f"no file matches {pattern!r}; put the pattern into quotes")
        found.update(dict.fromkeys(files))
    return list(found)


def folder_names(files: Sequence[Path]) -> list[str]:
    """One name for each file: its stem, its full name where stems are equal, then a number."""
    stems = [f.stem for f in files]
    names = [f.stem if stems.count(f.stem) == 1 else f.name.replace(".", "_") for f in files]
    return [n if names.count(n) == 1 else f"{n}_{i}" for i, n in enumerate(names, start=1)]


def solve_files(
    files: Sequence[Path],
    solve: Callable[[Path], Solution],
    out: str | Path,
    report: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Solve every file into ``out/NAME`` and keep ``out/table.csv`` up to date.

    Args:
        files: what to solve.
        solve: reads and solves one file.
        out: folder of all results.
        report: called with a short text before each file and after one that failed.

    Returns:
        The rows of the table, see `COLUMNS`; those of files that failed say why in ``message``.

    Raises:
        ValueError: ``out`` cannot be written.
    """
    out = output.writable_folder(out)
    rows: list[dict[str, Any]] = []
    for number, (path, name) in enumerate(zip(files, folder_names(files)), start=1):
        report(f"{number} of {len(files)}: {path}")
        try:
            solution = solve(path)
            output.save_solution(solution, out / name)
            rows.append({"file": str(path), **_found(solution, name)})
        except Exception as error:  # whatever is wrong with one file, the others are solved
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            message = kind + " ".join(str(error).split())
            rows.append({"file": str(path), "verdict": ERROR, "message": message})
            report(f"error: {message}")
        _replace(out / "table.csv", table_text(rows))
    return rows


def table_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return ``table.csv``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _found(solution: Solution, folder: str) -> dict[str, Any]:
    best = {}
    if solution.candidates:
        first = solution.candidates[0]
        row = output.row(output.Shown(first, 1, conventional(first)))
        best = {k: v for k, v in row.items() if k in COLUMNS and k != "file"}
    return {
        **best,
        "folder": folder,
        "verdict": solution.verdict,
        "candidates": len(solution.candidates),
        "seconds": round(sum(solution.seconds.values()), 1),
        "message": "; ".join(solution.warnings),
    }


def _replace(path: Path, text: str) -> None:
    beside = path.with_suffix(".tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
