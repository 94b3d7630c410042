"""Elements and formulas: symbols, masses, and what a chemist writes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import gcd

import numpy as np

_SYMBOL_TEXT = """
X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As
Se Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd
Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am
Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
"""

SYMBOLS: tuple[str, ...] = tuple(_SYMBOL_TEXT.split())
"""Symbol of each atomic number; 0 is X, padding."""

ATOMIC_NUMBERS: dict[str, int] = {symbol: z for z, symbol in enumerate(SYMBOLS) if z}

MASSES: np.ndarray = np.array(
    [
        *(0.0, 1.008, 4.0026, 6.94, 9.0122, 10.81, 12.011, 14.007, 15.999, 18.998, 20.180),
        *(22.990, 24.305, 26.982, 28.085, 30.974, 32.06, 35.45, 39.95, 39.098, 40.078),
        *(44.956, 47.867, 50.942, 51.996, 54.938, 55.845, 58.933, 58.693, 63.546, 65.38),
        *(69.723, 72.630, 74.922, 78.971, 79.904, 83.798, 85.468, 87.62, 88.906, 91.224),
        *(92.906, 95.95, 97.0, 101.07, 102.91, 106.42, 107.87, 112.41, 114.82, 118.71),
        *(121.76, 127.60, 126.90, 131.29, 132.91, 137.33, 138.91, 140.12, 140.91, 144.24),
        *(145.0, 150.36, 151.96, 157.25, 158.93, 162.50, 164.93, 167.26, 168.93, 173.05),
        *(174.97, 178.49, 180.95, 183.84, 186.21, 190.23, 192.22, 195.08, 196.97, 200.59),
        *(204.38, 207.2, 208.98, 209.0, 210.0, 222.0, 223.0, 226.0, 227.0, 232.04),
        *(231.04, 238.03, 237.0, 244.0, 243.0, 247.0, 247.0, 251.0, 252.0, 257.0),
        *(258.0, 259.0, 262.0, 267.0, 268.0, 269.0, 270.0, 269.0, 277.0, 281.0),
        *(282.0, 285.0, 286.0, 290.0, 290.0, 293.0, 294.0, 294.0),
    ]
)
"""Abridged standard atomic weights (IUPAC 2021), mass number of a long-lived isotope where none."""

_RADII = np.array(
    [
        *(np.nan, 0.25, np.nan, 1.45, 1.05, 0.85, 0.7, 0.65, 0.6, 0.5, np.nan),
        *(1.8, 1.5, 1.25, 1.1, 1.0, 1.0, 1.0, 0.71, 2.2, 1.8),
        *(1.6, 1.4, 1.35, 1.4, 1.4, 1.4, 1.35, 1.35, 1.35, 1.35),
        *(1.3, 1.25, 1.15, 1.15, 1.15, np.nan, 2.35, 2.0, 1.8, 1.55),
        *(1.45, 1.45, 1.35, 1.3, 1.35, 1.4, 1.6, 1.55, 1.55, 1.45),
        *(1.45, 1.4, 1.4, np.nan, 2.6, 2.15, 1.95, 1.85, 1.85, 1.85),
        *(1.85, 1.85, 1.85, 1.8, 1.75, 1.75, 1.75, 1.75, 1.75, 1.75),
        *(1.75, 1.55, 1.45, 1.35, 1.35, 1.3, 1.35, 1.35, 1.35, 1.5),
        *(1.9, 1.8, 1.6, 1.9, np.nan, np.nan, np.nan, 2.15, 1.95, 1.8),
        *(1.8, 1.75, 1.75, 1.75, 1.75),
        *([np.nan] * 23),
    ]
)

ATOMIC_RADII: np.ndarray = np.where(np.isnan(_RADII), 1.5, _RADII)
"""Empirical radii in angstrom (Slater, J. Chem. Phys. 41, 3199, 1964), 1.5 where there is none."""


def has_radius(number: int) -> bool:
    """Whether an element has an empirical radius: the ones that crystals are commonly made of."""
    return not np.isnan(_RADII[number])


_TOKEN = re.compile(r"([A-Z][a-z]?)|([(\[{])|([)\]}])|(\d+(?:\.\d+)?)|([·*•])|(\S)")
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def parse_formula(formula: str) -> dict[str, int]:
    """Count the atoms of a formula, in the order of first appearance.

    Nested brackets of any kind and hydrates (``CuSO4·5H2O``) are understood.

    Raises:
        ValueError: an unknown element, a decimal or zero count, unbalanced brackets, a stray
            character, or nothing at all.

    Example:
        >>> parse_formula("Li2(MnO3)2")
        {'Li': 2, 'Mn': 2, 'O': 6}
    """
    total: dict[str, int] = {}
    parts = re.split("[·*•]", formula)
    for part in parts:
        leading = re.match(r"\s*(\d+)(?![\d.])", part) if len(parts) > 1 else None
        factor = int(leading.group(1)) if leading else 1
        counts = _parse_part(part[leading.end() :] if leading else part, formula)
        for symbol, count in counts.items():
            total[symbol] = total.get(symbol, 0) + factor * count
    if not total or min(total.values()) < 1:
        raise ValueError(f"formula {formula!r} has no atoms; write it like Li2MnO3")
    return total


def reduce_formula(counts: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Divide by the greatest common divisor: (reduced counts, number of formula units).

    Example:
        >>> reduce_formula({"Li": 4, "O": 2})
        ({'Li': 2, 'O': 1}, 2)
    """
    factor = gcd(*counts.values())
    return {symbol: count // factor for symbol, count in counts.items()}, factor


def atomic_numbers_from_formula(formula: str, z: int = 1) -> np.ndarray:
    """Atomic numbers of ``z`` formula units as written, [n] int32, atoms of an element together.

    Raises:
        ValueError: a bad formula, or ``z`` is not a positive whole number.

    Example:
        >>> atomic_numbers_from_formula("H2O", z=2)
        array([1, 1, 1, 1, 8, 8], dtype=int32)
    """
    if z != int(z) or z < 1:
        raise ValueError(f"z = {z} formula units; a whole number of at least 1 is needed")
    counts = parse_formula(formula)
    numbers = [ATOMIC_NUMBERS[symbol] for symbol in counts]
    return np.repeat(np.array(numbers, np.int32), [int(z) * c for c in counts.values()])


def formula_of(atomic_numbers: np.ndarray) -> str:
    """Write atoms as a formula, in the order of first appearance; padding is ignored.

    Example:
        >>> formula_of(np.array([11, 17, 17]))
        'NaCl2'
    """
    counts: dict[int, int] = {}
    for number in np.asarray(atomic_numbers).tolist():
        if number:
            counts[number] = counts.get(number, 0) + 1
    return "".join(SYMBOLS[n] + (str(c) if c > 1 else "") for n, c in counts.items())


def _parse_part(text: str, formula: str) -> dict[str, int]:
    stack: list[tuple[str, dict[str, int]]] = [("", {})]
    last: dict[str, int] = {}  # what a following number multiplies
    for symbol, opening, closing, number, _, stray in _TOKEN.findall(text):
        if stray or (number and not last):
            raise ValueError(f"cannot read {stray or number!r} in formula {formula!r}")
        if number:
            if "." in number or int(number) < 1:
                raise ValueError(
                    f"the count {number} in formula {formula!r} is not a positive whole number; "
                    "disordered compositions are not supported, multiply the formula up"
                )
            _add(stack[-1][1], last, int(number) - 1)
            last = {}
        elif opening:
            stack.append((_CLOSING[opening], {}))
            last = {}
        elif closing:
            expected, inner = stack.pop()
            if closing != expected or not stack:
                raise ValueError(f"the brackets of formula {formula!r} do not match")
            _add(stack[-1][1], inner, 1)
            last = inner
        else:
            if symbol not in ATOMIC_NUMBERS:
                raise ValueError(f"unknown element {symbol!r} in formula {formula!r}")
            last = {symbol: 1}
            _add(stack[-1][1], last, 1)
    if len(stack) > 1:
        raise ValueError(f"the brackets of formula {formula!r} do not match")
    return stack[0][1]


def _add(total: dict[str, int], more: Mapping[str, int], factor: int) -> None:
    for symbol, count in more.items():
        total[symbol] = total.get(symbol, 0) + factor * count
