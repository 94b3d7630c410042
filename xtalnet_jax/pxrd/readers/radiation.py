"""Wavelength and radiation as a file states them: K-alpha doublets, and words in a free header."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# K-alpha1 and K-alpha2 in angstrom: Hoelzer et al., Phys. Rev. A 56, 4554 (1997) for Cr, Fe, Co,
# Cu; Bearden, Rev. Mod. Phys. 39, 78 (1967), on the same scale for Mo and Ag.
ANODES = {
    "Cr": (2.289726, 2.293651),
    "Fe": (1.936041, 1.939973),
    "Co": (1.788996, 1.792835),
    "Cu": (1.540593, 1.544427),
    "Mo": (0.709317, 0.713607),
    "Ag": (0.559422, 0.563813),
}

_VALUE = r"(?<!\d[.,])(?<![\d.])((?:\d[.,]|\.)\d{1,16}(?:[eE][+-]?\d{1,3})?)(?![\d.])"
_WORD = re.compile(
    r"(?:(?i:wave[\s_-]{0,3}length|lambda)|λ|\b(?:LA|WL|la|wl)(?=[12]?\s{0,9}[=:]))"
    r"(?i:[\s_-]{0,3}(?:K[\s_-]?)?(?:alpha|α))?[\s_-]{0,3}[12]?(?![A-Za-z0-9])"
    rf"[^\d\n]{{0,25}}?{_VALUE}(?:[\s,;/]{{1,9}}{_VALUE})?"
)
_LINE_NAME = re.compile(
    r"\b(Cr|Fe|Co|Cu|Mo|Ag)[\s-]{0,3}K[\s_-]{0,3}(?:alpha|α|a)[\s_-]{0,3}(1?)(?![a-z0-9])"
)


def doublet(
    alpha1: float | None, alpha2: float | None, ratio: float | None = 0.5
) -> dict[str, Any]:
    """Wavelength and meta for a stated K-alpha doublet: the intensity-weighted mean of the two."""
    if not alpha1:
        return {"wavelength": None, "meta": {}}
    if not alpha2 or ratio == 0 or alpha2 < alpha1 or alpha2 > 1.05 * alpha1:
        return {"wavelength": alpha1, "meta": {"wavelengths": (alpha1,)}}
    ratio = 0.5 if ratio is None or not 0 < ratio <= 1 else ratio
    mean = (alpha1 + ratio * alpha2) / (1 + ratio)
    return {"wavelength": mean, "meta": {"wavelengths": (alpha1, alpha2), "kalpha_ratio": ratio}}


def _stated_values(header: Sequence[str]) -> tuple[list[float], str]:
    """Wavelengths in angstrom that the header names, in its order, and the words for them."""
    values: list[float] = []
    words: list[str] = []
    for line in header:
        found = _WORD.search(line[:500])
        if not found or re.search(r"(?i)beta|β", line[:500]):
            continue
        factor = 10.0 if re.search(r"(?i)(?<![a-z])nm\b|nanomet", line[:500]) else 1.0
        words.append(found[0].strip())
        stated = [factor * float(v.replace(",", ".")) for v in found.groups() if v]
        values += [1e10 * v if v < 1e-8 else v for v in stated]  # some programs state metres
    return list(dict.fromkeys(values)), "; ".join(words[:2])


def stated_wavelength(header: Sequence[str]) -> dict[str, Any]:
    """Wavelength that a free-text header states: in numbers (angstrom or nm), or as "Cu K-alpha".

    Two numbers within 5 % are a K-alpha doublet; numbers that contradict each other say nothing.
    """
    values, words = _stated_values(header)
    if values:
        ratio = next(
            (
                float(m[1].replace(",", "."))
                for line in header
                if (m := re.search(rf"(?i)ratio[^\n]{{0,40}}?{_VALUE}\s*$", line[:500]))
            ),
            0.5,
        )
        radiation = (
            doublet(values[0], values[1], ratio) if len(values) == 2 else doublet(values[0], None)
        )
        if len(values) > 1 and len(radiation["meta"]["wavelengths"]) != len(values):
            return {"wavelength": None, "meta": {}}
        if len(values) == 1:
            radiation["meta"] = {}
        return radiation | {"meta": {**radiation["meta"], "wavelength_from": words}}
    text = "\n".join(header)
    found = _LINE_NAME.search(text)
    if found:
        alpha1, alpha2 = ANODES[found[1]]
        both = not found[2] or re.search(r"(?i)K[\s_-]{0,3}(?:alpha|α|a)[\s_-]{0,3}2", text)
        radiation = doublet(alpha1, alpha2 if both else None)
        return radiation | {"meta": {**radiation["meta"], "wavelength_from": found[0].strip()}}
    return {"wavelength": None, "meta": {}}


def named_wavelength(text: str) -> dict[str, Any]:
    """Wavelength that a person gives: angstrom, or a line as ``CuKa`` (doublet) or ``Mo K-alpha1``.

    Raises:
        ValueError: neither.
    """
    try:
        return {"wavelength": float(text.replace(",", "."))}
    except ValueError:
        pass
    found = _LINE_NAME.fullmatch(text.strip())
    if not found:
        raise ValueError(
            f"wavelength={text[:30]!r}, expected angstrom, e.g. 1.5406, or a line, e.g. CuKa1 or "
            f"CuKa (for the doublet) of {', '.join(ANODES)}"
        )
    alpha1, alpha2 = ANODES[found[1]]
    radiation = doublet(alpha1, None if found[2] else alpha2)
    return radiation | {"meta": {**radiation["meta"], "wavelength_from": text.strip()}}
