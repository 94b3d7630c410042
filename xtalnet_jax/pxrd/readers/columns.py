"""Text in columns (.xy .xye .csv .txt .dat), and intensities after ``start step stop``."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import NamedTuple

import numpy as np

from xtalnet_jax.pxrd.readers.base import Scan, grid
from xtalnet_jax.pxrd.readers.radiation import stated_wavelength

_COMMENT = ("#", ";", "!", "%", "'", '"', "//", "*", "_", "$", "@", "&")
_NUMBER = r"[+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:[eEdD][+-]?\d+)?|nan|inf(?:inity)?)"
_QUOTED = re.compile(r'"([+-]?\d*[.,]?\d+(?:[eE][+-]?\d+)?)"')
_ONLY_NUMBERS = re.compile(rf"(?i)^{_NUMBER}(?:[\s,;]+{_NUMBER})*[\s,;]*$")
_THREE_AND_TITLE = re.compile(rf"(?i)^\s*({_NUMBER})\s+({_NUMBER})\s+({_NUMBER})\s+\S")
_MAX_LINES = 300_000
_MAX_LINE = 10_000
_MAX_HEADER = 1000
_HEADER_ROWS = 3  # so many rows of numbers may stand in a header, above a line of text
_AXES = (  # by the name of a column; a name of none of these says nothing
    ("two_theta", r"2[\s_-]*th|two[\s_-]*th|(2|two)[\s_-]*θ|tth|angle|deg"),
    ("q", r"(q|scattering[\s_-]*vector|momentum[\s_-]*transfer)(?![a-z])"),
    ("d", r"d(?![a-z])([\s_-]*spacings?|[\s_-]*(\(|\[|nm|a\b|å|ang).*|)$|d[\s_-]*spacing"),
    ("theta", r"(theta|θ)(?![a-z])"),
    ("energy", r"energy|e?\s*[(\[]?kev"),
    ("time", r"time(?!\s*per)|tof\b"),
    ("channel", r"channel"),
)
_INTENSITY = r"int|count|cps|psd|i(?![a-z])|y(?![a-z])"
_OBSERVED = r"([yi][\s_-]*)?(obs|meas)"
_SIGMA = r"sig|err|esd|e\.s\.d|unc|std|σ|dy\b|di\b"


def _has_decimal_commas(lines: list[str]) -> bool:
    """Whether ``10,02 123`` means 10.02: commas within numbers, another separator, no points."""
    data = [
        t for t in (line.strip("\ufeff\x1a \t;") for line in lines) if re.match(r"[+-]?[\d,]", t)
    ]
    if not any(re.search(r"\d,\d", t) for t in data) or any(re.search(r"\d\.\d", t) for t in data):
        return False
    widths = Counter(len(re.split(r"[;\s]+", t)) for t in data if not re.search(r",\s", t))
    width, num = widths.most_common(1)[0] if widths else (0, 0)
    return width > 1 and num > 0.9 * len(data)


class _Table(NamedTuple):
    """Lines of a file taken apart."""

    header: list[str]  # every line that is not data, comments within and below the data too
    above: int  # how many of these stand above the data
    rows: list[list[float]]
    places: list[int]  # line number of every row


def _split(lines: list[str]) -> _Table:
    """Header lines, rows of numbers, and the line number of every row."""
    header: list[str] = []
    above = 0
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
        if not rows:
            above = len(header)
    return _Table(header, above, rows, places)


def _labels(header: list[str], width: int) -> list[str]:
    """Names of the columns: the last header line, or its last lines with one name each."""
    plain = [line.strip("#;!%'/* \t") for line in header]
    plain = [line for line in plain if line]
    if not plain:
        return []
    for pattern in (r"[\t,;]\s*", r"\s{2,}", r"\s+(?![(\[])"):
        labels = [t.strip(" \"'") for t in re.split(pattern, plain[-1])]
        labels = labels[:-1] if labels[-1] == "" else labels  # a separator ends the line
        if len(labels) == width or (len(labels) > 1 and "s+(" not in pattern):
            return labels
    listed = plain[-2:]  # Fit2D: a line for each of the two names
    if len(listed) == 2 and re.match(f"(?i){_INTENSITY}", listed[1]) and _named_axis(listed[0]):
        return listed
    words = plain[-1].split()
    return words if 1 < len(words) <= 2 * width else []


def _names(header: list[str], width: int) -> list[str]:
    """The same, unless it is a line of values (``Date, 12:30``)."""
    labels = _labels(header, width)
    return [] if any(re.fullmatch(r"[\d.:/+-]+", label) for label in labels[1:]) else labels


def _named_axis(label: str) -> str | None:
    return next((axis for axis, p in _AXES if re.match(f"(?i){p}", label.strip())), None)


def _columns(
    labels: list[str], width: int, suffix: str, axis: str | None
) -> tuple[int, int, int | None]:
    """Where abscissa, intensity and its uncertainty stand: by name, or in this order."""
    x, y, sigma = 0, 1, 2 if suffix == ".xye" and width > 2 else None
    if len(labels) != width:
        return x, y, sigma

    def first(pattern: str, others: tuple[int, ...]) -> int | None:
        found = (i for i, t in enumerate(labels) if re.match(f"(?i){pattern}", t))
        return next((i for i in found if i not in others), None)

    axes = [_named_axis(label) for label in labels]
    x = next((axes.index(a) for a in (axis, "two_theta", "q", "d") if a and a in axes), x)
    y = next((i for p in (_OBSERVED, _INTENSITY) if (i := first(p, (x,))) is not None), -1)
    if y < 0:
        y = 1 if x == 0 else x + 1 if x + 1 < width else 0
    spread = first(_SIGMA, (x, y))
    sigma = sigma if spread is None else spread
    return x, y, None if sigma in (x, y) else sigma


def _axis(label: str, sure: bool, given: str | None) -> tuple[str, float]:
    """What a column is by its name, and the factor to 1/angstrom, angstrom or degrees."""
    named = _named_axis(label)
    if not sure and named not in ("two_theta", "q", "d"):
        named = None  # a sentence, not names of columns
    axis = given or named or "two_theta"
    if axis not in ("two_theta", "q", "d"):
        raise ValueError(
            f"the abscissa is named {label[:30]!r}, expected 2-theta, q or d; convert it, or "
            "say what it is with axis='two_theta', 'q' or 'd'"
        )
    if named == axis and axis != "two_theta" and re.search(r"(?i)nm|nanomet", label):
        return axis, 0.1 if axis == "q" else 10.0
    if named == axis == "two_theta" and re.search(r"(?i)\brad(ian)?s?\b", label):
        return axis, math.degrees(1.0)
    return axis, 1.0


def _fits(start: float, step: float, stop: float, num_values: int) -> int:
    """Number of points of a stated range if so many values are there, otherwise 0.

    Up to ten values more are padding of the last line.
    """
    if not (step > 0 and 180 >= stop > start >= 0 and stop - start < step * 2 * num_values):
        return 0
    num = round((stop - start) / step) + 1
    return (
        num
        if 0 <= num_values - num <= 10 and abs(start + step * (num - 1) - stop) < step / 2
        else 0
    )


def _keyed_range(header: list[str]) -> tuple[float, float, float] | None:
    """``start``, ``step`` and ``stop`` where header lines name them (``*START = 10.0``)."""
    found = []
    for name in ("start|begin|first", "step|increment", "stop|end|finish|last"):
        pattern = (
            rf"(?i)\W*(?:scan|2?theta|data|angle)?[\s_-]?(?:{name})\w*[^\d\n=:,+-]{{0,20}}"
            rf"[=:,\s]\s*({_NUMBER})"
        )
        hit = next(
            (m for line in header[:_MAX_HEADER] if (m := re.match(pattern, line[:99]))), None
        )
        if hit is None:
            return None
        found.append(float(re.sub("[dD]", "e", hit[1])))
    return found[0], found[1], found[2]


def _on_stated_grid(table: _Table) -> Scan | None:
    """Intensities only, on a range that the header or a line ``start step stop`` states."""
    header, rows = table.header, table.rows
    keyed = _keyed_range(header)
    if keyed is not None and len({len(row) for row in rows[:-1]}) <= 1:
        values = np.array([v for row in rows for v in row])
        num = _fits(*keyed, len(values))
        if num and not (len(rows[0]) > 1 and abs(rows[0][0] - keyed[0]) < keyed[1]):
            return Scan(
                grid(keyed[0], keyed[1], num),
                values[:num],
                **stated_wavelength(header[:_MAX_HEADER]),
            )
    title = _THREE_AND_TITLE.match(header[table.above - 1]) if table.above else None
    if title:
        rows = [[float(re.sub("[dD]", "e", t)) for t in title.groups()], *rows]
    if len(rows) < 2 or len(rows[0]) != 3:
        return None
    start, second, third = rows[0]
    values = np.array([v for row in rows[1:] for v in row])
    for step, stop in ((second, third), (third, second)):
        num = _fits(start, step, stop, len(values))
        if num:
            return Scan(
                grid(start, step, num), values[:num], **stated_wavelength(header[:_MAX_HEADER])
            )
    return None


def _numbered(data: np.ndarray) -> bool:
    """Whether the first column only numbers the rows: 0, 1, 2, ... beside a second that rises."""
    first, second = data[:, 0], data[:, 1]
    rises = bool((np.diff(second) > 0).all())
    return data.shape[1] > 2 and np.array_equal(first - first[0], np.arange(len(data))) and rises


def read(text: str, suffix: str = ".xy", axis: str | None = None) -> Scan:
    """Read two to many columns: abscissa, intensity and, if named or ``.xye``, its uncertainty.

    Comment lines (``# ; ! % ' // *``) and a header are skipped, but searched for the wavelength,
    the names of the columns (which say where intensity and uncertainty stand, and whether the
    abscissa is 2-theta, q or d) and a range for files of intensities only. Separators are blanks,
    tabs, commas, semicolons; decimal commas are understood when another separator is present.

    Args:
        text: the file.
        suffix: of its name; the third column of ``.xye`` is the uncertainty.
        axis: ``two_theta``, ``q`` or ``d``: comes before what a name says.

    Raises:
        ValueError: no numbers, one column, ragged rows, text among the data, an abscissa of
            another kind, or neutron data.
    """
    lines = text.splitlines()
    if len(lines) > _MAX_LINES:
        raise ValueError(f"{len(lines)} lines are too many for one scan (limit {_MAX_LINES})")
    long = next((i for i, line in enumerate(lines, 1) if len(line) > _MAX_LINE), None)
    if long is not None:
        raise ValueError(
            f"line {long} has {len(lines[long - 1])} characters, expected a row of few numbers"
        )
    if '"' in text:  # spreadsheets put numbers in quotes
        lines = [_QUOTED.sub(lambda m: m[1].replace(",", "."), line) for line in lines]
    if _has_decimal_commas(lines):
        lines = [re.sub(r"(?<=\d),(?=\d)", ".", line) for line in lines]
    split = _split(lines)
    header, above, rows, places = split
    if re.search(r"(?i)neutron|time[ -]of[ -]flight|\btof\b", "\n".join(header[:_MAX_HEADER])):
        raise ValueError(
            "the header speaks of neutron or time-of-flight data; only X-ray patterns are supported"
        )
    if not rows:
        raise ValueError("no rows of numbers; expected two columns, 2-theta and intensity")
    on_grid = _on_stated_grid(split)
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
    data = np.array(rows)
    labels = _names(header[:above], width)
    x, y, sigma = _columns(labels, width, suffix, axis)
    label = labels[x] if labels else ""
    note = None
    if len(labels) != width and _numbered(data):
        x, y, note = 1, 2, "the first column numbers the rows; the second was taken"
    kind, factor = _axis(label, len(labels) == width, axis)
    stated = stated_wavelength(header[:_MAX_HEADER])
    meta = {**stated["meta"], "title": header[0][:200]} if header else {}
    meta["note"] = note
    if _named_axis(label) is None and axis is None and note is None:
        meta["note"] = "no column is named, the first was taken for 2-theta in degrees"
    if kind != "two_theta":
        meta["axis_from"] = label if axis is None else f"axis={axis!r}"
    spread = None if sigma is None else data[:, sigma]
    return Scan(data[:, x] * factor, data[:, y], kind, spread, stated["wavelength"], meta, places)
