"""Text formats with keywords: Bruker .uxd, Philips .udf, Rigaku .ras.

The keywords were taken from files in circulation; nothing is guessed: a scan that does not move
2-theta, or several scans counted differently, are refused.
"""

from __future__ import annotations

import re

import numpy as np

from xtalnet_jax.pxrd.readers.base import Scan, grid, number, numbers
from xtalnet_jax.pxrd.readers.radiation import doublet


def _optional(value: str | None, what: str) -> float | None:
    return None if not value else number(value, what)


def _require_two_theta(axis: str | None) -> None:
    """Refuse rocking curves, phi scans and the like."""
    plain = re.sub(r"[^a-z0-9]", "", (axis or "coupled").lower())
    if not re.search(r"2theta|twotheta|coupled|gonio|locked", plain):
        raise ValueError(f"the scan moves {axis!r}, not 2-theta; only powder scans are supported")


def read_uxd(text: str) -> Scan:
    """Bruker .uxd: ``_KEY=value`` lines, then ``_COUNTS``, ``_CPS``, or these after ``_2THETA``.

    Raises:
        ValueError: no data block, a scan of another axis, or ranges counted differently.
    """
    keys: dict[str, str] = {}
    blocks: list[tuple[dict[str, str], bool, list[str]]] = []
    for place, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith(";"):
            continue
        marker = re.fullmatch(r"_(2THETA)?(COUNTS|CPS)(\s*=.*)?", line, re.IGNORECASE)
        if marker:
            blocks.append((dict(keys), bool(marker[1]), []))
        elif line.startswith("_"):
            key, _, value = line[1:].partition("=")
            keys[key.strip().upper()] = value.strip().strip("'\"")
        elif blocks:
            blocks[-1][2].append(line)
        else:
            raise ValueError(f"line {place}: {line[:40]!r} before any _COUNTS or _2THETACOUNTS")
    if not blocks:
        raise ValueError("no _COUNTS or _2THETACOUNTS block in the .uxd file")
    if len({b[0].get("STEPTIME") for b in blocks}) > 1:
        raise ValueError(f"{len(blocks)} ranges with different _STEPTIME; export one range as .xy")
    x, intensity = [], []
    for keys, paired, lines in blocks:
        _require_two_theta(keys.get("DRIVE"))
        values = numbers("\n".join(lines), "the data block")
        if paired:
            if len(values) % 2:
                raise ValueError(
                    "an odd number of values after _2THETACOUNTS; is the file cut off?"
                )
            x.append(values[0::2])
            intensity.append(values[1::2])
        else:
            start = number(keys.get("START", keys.get("2THETA")), "_START")
            x.append(grid(start, number(keys.get("STEPSIZE"), "_STEPSIZE"), len(values)))
            intensity.append(values)
    if keys.get("WL_UNIT", "A").upper() == "NM":
        raise ValueError("_WL_UNIT is nm, expected angstrom; export the scan as .xy")
    waves = [_optional(keys.get(k), k) for k in ("WL1", "WL2", "WLRATIO")]
    source = doublet(*waves)
    source["meta"] = {**source["meta"], "anode": keys.get("ANODE"), "sample": keys.get("SAMPLE")}
    return Scan(np.concatenate(x), np.concatenate(intensity), **source)


def read_udf(text: str) -> Scan:
    """Philips .udf: ``Key,value,/`` lines, then ``RawScan`` and the counts.

    Raises:
        ValueError: a key is missing, or the number of counts is not that of the range.
    """
    head, marker, body = text.partition("RawScan")
    if not marker:
        raise ValueError("no RawScan block in the .udf file")
    keys = {}
    for line in head.splitlines():
        key, _, value = line.partition(",")
        keys[key.strip()] = re.sub(r",?\s*/\s*$", "", value).strip()
    ends = numbers(keys.get("DataAngleRange", ""), "DataAngleRange")
    if len(ends) < 2:
        raise ValueError("no DataAngleRange with start and end in the .udf file")
    step = number(keys.get("ScanStepSize"), "ScanStepSize")
    values = numbers(body.replace("/", " "), "the RawScan block")
    x = grid(ends[0], step, len(values))
    if abs(x[-1] - ends[1]) > 1.5 * step:
        raise ValueError(
            f"the counts end at {x[-1]:.3f} degrees, DataAngleRange at {ends[1]}; "
            "is the file cut off?"
        )
    names = (("LabdaAlpha1", "LambdaAlpha1"), ("LabdaAlpha2", "LambdaAlpha2"), ("RatioAlpha21",))
    source = doublet(
        *(_optional(next((keys[k] for k in n if k in keys), None), n[0]) for n in names)
    )
    source["meta"] = {
        **source["meta"],
        "anode": keys.get("Anode"),
        "sample": keys.get("SampleIdent"),
    }
    return Scan(x, values, **source)


def read_ras(text: str) -> Scan:
    """Rigaku .ras: ``*KEY "value"`` lines, then rows of angle, intensity, attenuation factor.

    Raises:
        ValueError: no data block, a scan of another axis, or scans at different speeds.
    """
    x: list[float] = []
    intensity: list[float] = []
    speeds: set[str | None] = set()
    keys: dict[str, str] = {}
    rows: list[list[float]] | None = None
    for place, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if line.startswith("*RAS_INT_START"):
            rows = []
        elif line.startswith("*RAS_INT_END") and rows is not None:
            _require_two_theta(keys.get("MEAS_SCAN_AXIS_X_INTERNAL", keys.get("MEAS_SCAN_AXIS_X")))
            speeds.add(keys.get("MEAS_SCAN_SPEED"))
            x.extend(r[0] for r in rows)
            intensity.extend(r[1] * (r[2] if len(r) > 2 else 1.0) for r in rows)
            rows = None
        elif rows is not None and line:
            row = numbers(line, f"line {place}")
            if len(row) not in (2, 3):
                raise ValueError(
                    f"line {place}: {len(row)} numbers, expected angle, intensity, factor"
                )
            rows.append(list(row))
        elif line.startswith("*"):
            key, _, value = line[1:].partition(" ")
            keys[key] = value.strip().strip('"')
    if rows is not None:
        raise ValueError("no *RAS_INT_END after the data; is the file cut off?")
    if not x:
        raise ValueError("no *RAS_INT_START block in the .ras file")
    if len(speeds) > 1:
        raise ValueError("several scans at different speeds; export one scan as .xy")
    names = ("HW_XG_WAVE_LENGTH_ALPHA1", "HW_XG_WAVE_LENGTH_ALPHA2")
    source = doublet(*(_optional(keys.get(n), n) for n in names))
    source["meta"] = {
        **source["meta"],
        "anode": keys.get("HW_XG_TARGET_NAME"),
        "sample": keys.get("FILE_SAMPLE"),
    }
    return Scan(np.array(x), np.array(intensity), **source)
