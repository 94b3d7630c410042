"""One self-contained page about a solution: opens offline, needs no other file."""

from __future__ import annotations

import html
import json
from importlib.resources import files
from typing import Any

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.elements import SYMBOLS
from xtalnet_jax.pxrd.io import assumptions
from xtalnet_jax.pxrd.simulate import simulate_peaks
from xtalnet_jax.solve.cif import with_esd
from xtalnet_jax.solve.solution import MATCH, NONE, UNCERTAIN, Candidate, Solution
from xtalnet_jax.version import __version__
from xtalnet_jax.viz.structures import bonded_pairs, element_look, with_boundary_images

MAX_POINTS = 10_000
"""Longer patterns are thinned for the plot; every maximum stays."""

COLUMNS = (
    *("rank", "formula", "space_group", "confidence", "rwp", "similarity"),
    *("a", "b", "c", "alpha", "beta", "gamma", "volume", "file"),
)
"""Of the page's table: those of `output.row`, what the ranking rests on first."""

LABELS = {MATCH: "match", UNCERTAIN: "uncertain", NONE: "no match"}


def report_html(
    solution: Solution,
    rows: list[dict[str, Any]],
    structures: list[Crystal],
    cifs: list[str],
) -> str:
    """Return the page.

    Args:
        solution: what was found.
        rows: one table row per candidate, see `output.row`.
        structures: the candidates as they are to be drawn.
        cifs: their CIF files.
    """
    x, y = solution.pattern.two_theta, solution.pattern.intensity
    keep = _thinned(y)
    shown = zip(solution.candidates, rows, structures, cifs)
    data = {
        "two_theta": np.round(x[keep], 4).tolist(),
        "observed": _rounded(y[keep]),
        "wavelength": float(solution.pattern.wavelength),
        "processed": "K\u03b12 removed" if "stripped" in solution.pattern.meta else "",
        "columns": COLUMNS,
        "candidates": [_candidate(*one, x, keep) for one in shown],
        "elements": _elements(structures),
        "summary": summary(solution),
        "warnings": list(solution.warnings),
        "assumptions": assumptions(solution.pattern),
        "settings": {
            **solution.settings,
            "program": f"xtalnet_jax {__version__}",
            "seconds": {k: round(v, 1) for k, v in solution.seconds.items()},
            "pattern: points": f"{len(x)}, {x[0]:.6g} to {x[-1]:.6g} degrees",
            **{f"pattern: {k}": str(v) for k, v in solution.pattern.meta.items()},
        },
    }
    # Without "<" nothing in the data can end the script element or open a comment in it.
    text = json.dumps(data, allow_nan=False, default=str).replace("<", "\\u003c")
    page = (files("xtalnet_jax.solve") / "report_template.html").read_text(encoding="utf-8")
    page = page.replace("__TITLE__", html.escape(solution.formula))
    page = page.replace("__VERDICT__", solution.verdict)
    return page.replace("__LABEL__", LABELS[solution.verdict]).replace("__DATA__", text)


def _candidate(
    c: Candidate, row: dict[str, Any], structure: Crystal, cif: str, x: np.ndarray, keep: np.ndarray
) -> dict[str, Any]:
    x = x[keep]
    calculated = np.interp(x, c.calculated.two_theta, c.calculated.intensity)
    below = c.background
    if below is not None:
        below = np.interp(x, c.calculated.two_theta, below)
    wavelength = c.calculated.wavelength
    ticks = simulate_peaks(c.crystal, wavelength, (float(x[0]), float(x[-1]))).two_theta
    numbers, frac = with_boundary_images(structure)
    cart = frac @ np.asarray(structure.lattice, float)
    shift = 0.0 if c.fit is None else c.fit.zero_shift
    return {
        "row": row,
        "facts": _facts(c, row),
        "calculated": _rounded(calculated),
        "background": None if below is None else _rounded(below),
        "ticks": np.round(ticks + shift, 3).tolist(),
        "lattice": np.round(structure.lattice, 5).tolist(),
        "atoms": [[SYMBOLS[z], *r] for z, r in zip(numbers, np.round(cart, 4).tolist())],
        "bonds": bonded_pairs(numbers, cart).tolist(),
        "cif": cif,
    }


def _facts(c: Candidate, row: dict[str, Any]) -> list[list[str]]:
    """What a reader wants to know of one candidate: [name, text] pairs."""
    lengths = ", ".join(f"{row[k]:.4f}" for k in "abc")
    angles = ", ".join(f"{row[k]:.2f}\u00b0" for k in ("alpha", "beta", "gamma"))
    facts = [
        ["space group", row["space_group"]],
        ["cell content", row["formula"]],
        ["a, b, c", f"{lengths} \u00c5"],
        ["\u03b1, \u03b2, \u03b3", angles],
        ["volume", f"{row['volume']:.2f} \u00c5\u00b3"],
        ["R_wp", "" if row["rwp"] is None else f"{100 * row['rwp']:.1f} %"],
        ["confidence", f"{100 * c.confidence:.0f} %"],
    ]
    if c.fit is not None:
        facts.insert(-1, ["R_wp of the cell alone", f"{100 * c.fit.rwp_cell:.1f} %"])
        esd = c.fit.esd
        facts += [
            ["zero shift", f"{with_esd(c.fit.zero_shift, esd.get('zero_shift'))}\u00b0"],
            ["peak width", f"{with_esd(c.fit.fwhm, esd.get('fwhm'))}\u00b0"],
            ["B", f"{with_esd(c.fit.b_iso, esd.get('b_iso'))} \u00c5\u00b2"],
        ]
    return facts


def _thinned(y: np.ndarray) -> np.ndarray:
    """Indices of at most `MAX_POINTS` points: of each stretch its first and its highest."""
    if len(y) <= MAX_POINTS:
        return np.arange(len(y))
    stretches = np.array_split(np.arange(len(y)), MAX_POINTS // 2)
    return np.unique([i for s in stretches for i in (s[0], s[np.argmax(y[s])])])


def _rounded(y: np.ndarray) -> list[float]:
    digits = max(0, 4 - int(np.floor(np.log10(max(float(np.abs(y).max()), 1e-30)))))
    return np.round(np.nan_to_num(y), digits).tolist()


def _elements(structures: list[Crystal]) -> dict[str, list[Any]]:
    """Colour and radius (angstrom) of every element that occurs."""
    looks = {
        SYMBOLS[z]: element_look(z)
        for z in sorted({int(z) for c in structures for z in c.atomic_numbers})
    }
    return {
        symbol: ["#" + bytes(round(255 * v) for v in colour).hex(), radius]
        for symbol, (colour, radius) in looks.items()
    }


def summary(solution: Solution) -> str:
    """Say in one sentence what was found."""
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
        f"R_wp {best.rwp:.3f}, confidence {best.confidence:.2f}. "
        f"Probability that none of them is right: {solution.none_right:.2f}."
    )
