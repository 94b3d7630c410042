"""One self-contained page about a solution: opens offline, needs no other file."""

from __future__ import annotations

import html
import json
from importlib.resources import files
from typing import Any

import numpy as np

from xtalnet_jax.crystals.elements import ATOMIC_RADII, SYMBOLS
from xtalnet_jax.pxrd.simulate import simulate_peaks
from xtalnet_jax.solve.solution import MATCH, NONE, UNCERTAIN, Candidate, Solution

MAX_POINTS = 4000
"""Longer patterns are thinned for the plot; every maximum stays."""

COLUMNS = (
    *("rank", "formula", "space_group", "confidence", "rwp", "similarity"),
    *("a", "b", "c", "alpha", "beta", "gamma", "volume", "file"),
)
"""Of the page's table: those of `output.row`, what the ranking rests on first."""

LABELS = {MATCH: "match", UNCERTAIN: "uncertain", NONE: "no match"}


def report_html(solution: Solution, rows: list[dict[str, Any]]) -> str:
    """Return the page.

    Args:
        solution: what was found.
        rows: one table row per candidate, see `output.row`.
    """
    x, y = solution.pattern.two_theta, solution.pattern.intensity
    keep = _thinned(y)
    data = {
        "two_theta": np.round(x[keep], 4).tolist(),
        "observed": _rounded(y[keep]),
        "columns": COLUMNS,
        "candidates": [_candidate(c, row, x, keep) for c, row in zip(solution.candidates, rows)],
        "elements": _elements(solution),
        "summary": _summary(solution),
        "warnings": list(solution.warnings),
        "settings": {
            **solution.settings,
            "seconds": {k: round(v, 1) for k, v in solution.seconds.items()},
            **{f"pattern: {k}": str(v) for k, v in solution.pattern.meta.items()},
        },
    }
    # Without "<" nothing in the data can end the script element or open a comment in it.
    text = json.dumps(data, allow_nan=False, default=str).replace("<", "\\u003c")
    page = (files("xtalnet_jax.solve") / "report_template.html").read_text(encoding="utf-8")
    page = page.replace("__TITLE__", html.escape(solution.formula))
    page = page.replace("__VERDICT__", solution.verdict)
    return page.replace("__LABEL__", LABELS[solution.verdict]).replace("__DATA__", text)


def _candidate(c: Candidate, row: dict[str, Any], x: np.ndarray, keep: np.ndarray) -> dict:
    calculated = np.interp(x, c.calculated.two_theta, c.calculated.intensity)
    wavelength = c.calculated.wavelength
    ticks = simulate_peaks(c.crystal, wavelength, (float(x[0]), float(x[-1]))).two_theta
    atoms = zip(
        c.crystal.atomic_numbers.tolist(), np.round(c.crystal.frac_coords % 1.0, 5).tolist()
    )
    return {
        "row": row,
        "calculated": _rounded(calculated[keep]),
        "ticks": np.round(ticks, 3).tolist(),
        "lattice": np.round(c.crystal.lattice, 5).tolist(),
        "atoms": [[SYMBOLS[z], f] for z, f in atoms],
    }


def _thinned(y: np.ndarray) -> np.ndarray:
    """Indices of at most `MAX_POINTS` points: of each stretch its first and its highest."""
    if len(y) <= MAX_POINTS:
        return np.arange(len(y))
    stretches = np.array_split(np.arange(len(y)), MAX_POINTS // 2)
    return np.unique([i for s in stretches for i in (s[0], s[np.argmax(y[s])])])


def _rounded(y: np.ndarray) -> list[float]:
    digits = max(0, 4 - int(np.floor(np.log10(max(float(np.abs(y).max()), 1e-30)))))
    return np.round(np.nan_to_num(y), digits).tolist()


def _elements(solution: Solution) -> dict[str, list[Any]]:
    """Colour and radius (angstrom) of every element that occurs: colours by the golden angle."""
    numbers = sorted({int(z) for c in solution.candidates for z in c.crystal.atomic_numbers})
    hue = {z: round(210 + 137.508 * i) % 360 for i, z in enumerate(numbers)}
    return {SYMBOLS[z]: [f"hsl({hue[z]} 60% 55%)", float(ATOMIC_RADII[z])] for z in numbers}


def _summary(solution: Solution) -> str:
    if not solution.candidates:
        return "No candidate structure was found."
    best = solution.candidates[0]
    said = {
        "match": "explains the pattern",
        "uncertain": "may explain the pattern; check it",
        "none": "does not explain the pattern well enough to be believed",
    }[solution.verdict]
    return (
        f"The first of {len(solution.candidates)} candidates {said}: {best.space_group}, "
        f"R_wp {best.rwp:.3f}, confidence {best.confidence:.2f}."
    )
