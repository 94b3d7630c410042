"""Text in columns (.xy .xye .csv .txt .dat), and intensities after ``start step stop``."""

from __future__ import annotations

import re

import numpy as np

from xtalnet_jax.pxrd.readers.base import Scan, grid, stated_wavelength

_COMMENT = ("#", ";", "!", "%", "'", '"', "//", "*", "_", "$", "@", "&")
_NUMBER = r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eEdD][+-]?\d+)?|nan|inf(?:inity)?)"
_ONLY_NUMBERS = re.compile(rf"(?i)^{_NUMBER}(?:[\s,;]+{_NUMBER})*[\s,;]*$")
_THREE_AND_TITLE = re.compile(rf"(?i)^\s*({_NUMBER})\s+({_NUMBER})\s+({_NUMBER})\s+\S")
_HEADER_ROWS = 3  # so many rows of numbers may stand in a header, above a line of text


def _has_decimal_commas(lines: list[str]) -> bool:
    """Whether ``10,02 123`` means 10.02: commas within numbers and another separator besides."""
    data = [t for t in (line.strip() for line in lines) if re.match(r"[+-]?[\d.,]", t)]
    decimal = [
        t
        for t in data
        if re.search(r"\d,\d", t)
        and re.search(r"\d[\t; ]+[+-]?\d", t)
        and not re.search(r"\d\.\d", t)
    ]
    return len(decimal) > 0.5 * len(data) > 0


def _split(lines: list[str]) -> tuple[list[str], list[list[float]], list[int]]:
    """Header lines, rows of numbers, and the line number of every row."""
    header: list[str] = []
    rows: list[list[float]] = []
    places: list[int] = []
    for place, line in enumerate(lines, 1):
        line = line.strip("\x1a\ufeff \t")
        if _ONLY_NUMBERS.match(line):
            tokens = [t for t in re.split(r"[\s,;]+", line) if t]
            rows.append([float(re.sub("[dD]", "e", t)) for t in tokens])
            places.append(place)
        elif line.startswith(_COMMENT):
            header.append(line)
        elif line and len(rows) > _HEADER_ROWS:
            raise ValueError(
                f"line {place}: {line[:40]!r} stands among the data, expected numbers; put # "
                "before comments, and no decimal commas into comma-separated columns"
            )
        elif line:  # what looked like data so far was a header too
            header.extend([*(lines[p - 1].strip() for p in places), line])
            rows, places = [], []
    return header, rows, places


def _axis(labels: list[str]) -> tuple[str, float]:
    """What the first column is by its label, and the factor to 1/angstrom or angstrom."""
    first = labels[0].strip(" \"'#").lower() if len(labels) > 1 else ""
    if re.match(r"q\b|q[\s_]*[(\[/]", first):
        return "q", 0.1 if "nm" in first else 1.0
    if re.match(r"d([\s_-]*spacing|[\s_]*[(\[])|d$", first):
        return "d", 10.0 if "nm" in first else 1.0
    return "two_theta", 1.0


def _labels(header: list[str]) -> list[str]:
    """Names of the columns, as far as the last header line looks like that."""
    last = header[-1].strip("#;!%'/* \t") if header else ""
    labels = re.split(r"[\t,;]|\s{2,}", last)
    return labels if len(labels) > 1 else last.split()


def _on_stated_grid(header: list[str], rows: list[list[float]]) -> Scan | None:
    """A line ``start step stop`` (or ``start stop step``) followed by intensities only."""
    title = _THREE_AND_TITLE.match(header[-1]) if header else None
    if title:
        rows = [[float(re.sub("[dD]", "e", t)) for t in title.groups()], *rows]
    if len(rows) < 2 or len(rows[0]) != 3:
        return None
    start, second, third = rows[0]
    values = np.array([v for row in rows[1:] for v in row])
    for step, stop in ((second, third), (third, second)):
        if step > 0 and 180 >= stop > start >= 0 and stop - start < step * 2 * len(values):
            num = round((stop - start) / step) + 1
            if 0 <= len(values) - num <= 10 and abs(start + step * (num - 1) - stop) < 0.5 * step:
                return Scan(grid(start, step, num), values[:num], **stated_wavelength(header))
    return None


def read(text: str, suffix: str = ".xy") -> Scan:
    """Read two to many columns: abscissa, intensity and, if labelled or ``.xye``, its uncertainty.

    Comment lines (``# ; ! % ' // *``) and a header are skipped, but searched for the wavelength and
    the names of the columns. Separators are blanks, tabs, commas, semicolons; decimal commas are
    understood when another separator is present.

    Raises:
        ValueError: no numbers, one column, ragged rows, text among the data, or neutron data.
    """
    lines = text.splitlines()
    if _has_decimal_commas(lines):
        lines = [re.sub(r"(?<=\d),(?=\d)", ".", line) for line in lines]
    header, rows, places = _split(lines)
    if re.search(r"(?i)neutron|time[ -]of[ -]flight|\btof\b", "\n".join(header)):
        raise ValueError(
            "the header speaks of neutron or time-of-flight data; only X-ray patterns are supported"
        )
    if not rows:
        raise ValueError("no rows of numbers; expected two columns, 2-theta and intensity")
    on_grid = _on_stated_grid(header, rows)
    if on_grid is not None:
        return on_grid
    if len(rows[0]) == 1 and rows[0][0] == len(rows) - 1 and len(rows) > 1 < len(rows[1]):
        rows, places = rows[1:], places[1:]  # the number of points stands first
    width = len(rows[0])
    ragged = next((i for i, row in enumerate(rows) if len(row) != width), None)
    if ragged is not None:
        raise ValueError(
            f"line {places[ragged]}: {len(rows[ragged])} numbers where the rows before have "
            f"{width}; is the file cut off, or are decimal commas mixed with comma separators?"
        )
    if width == 1:
        raise ValueError("only one column of numbers; expected two, 2-theta and intensity")
    table = np.array(rows)
    labels = _labels(header)
    axis, factor = _axis(labels)
    named = len(labels) > 2 and re.search(r"(?i)sig|err|esd|e\.s\.d|unc", labels[2])
    sigma = table[:, 2] if width > 2 and (suffix == ".xye" or named) else None
    stated = stated_wavelength(header)
    meta = {**stated["meta"], "title": header[0][:200]} if header else {}
    return Scan(table[:, 0] * factor, table[:, 1], axis, sigma, stated["wavelength"], meta, places)
