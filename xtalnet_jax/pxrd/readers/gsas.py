"""GSAS powder data (.gsa .gsas .gss .xra .fxye .raw): constant-wavelength banks.

Layout after A. C. Larson and R. B. Von Dreele, "General Structure Analysis System (GSAS)", LANL
report LAUR 86-748 (2004), "GSAS standard powder data file": a ``BANK`` line with the number of
channels, records and the binning, then records of 80 characters; angles are in centidegrees.
"""

from __future__ import annotations

import re

import numpy as np

from xtalnet_jax.pxrd.readers.base import Scan, grid, number, numbers
from xtalnet_jax.pxrd.readers.radiation import stated_wavelength


def is_gsas(text: str) -> bool:
    """Whether a ``BANK`` or ``TIME_MAP`` line is there."""
    return (
        re.search(r"(?m)^[ \t]*(BANK[ \t]+\d+[ \t]+\d+[ \t]+\d+[ \t]+\w|TIME_MAP)", text[:100_000])
        is not None
    )


def _fields(lines: list[str], skip: int) -> list[str]:
    """Fields of eight characters, of which ``skip`` are dropped; or free format.

    Fixed columns are taken where every line ends on a field boundary. Characters to be dropped
    that are blank in some fields and digits in others belong to long counts and are kept.
    """
    lines = [line.rstrip() for line in lines if line.strip()]
    if any(len(line) % 8 for line in lines):
        return [token for line in lines for token in re.split(r"[\s,]+", line) if token]
    fields = [line[i : i + 8] for line in lines for i in range(0, len(line), 8)]
    dropped = {field[:skip].strip() for field in fields}
    return fields if "" in dropped and len(dropped) > 1 else [field[skip:] for field in fields]


def read(text: str) -> Scan:
    """Read one constant-wavelength bank of type STD, ESD, FXY or FXYE.

    Raises:
        ValueError: time of flight, several banks, an unknown type, or fewer points than promised.
    """
    if re.search(r"(?m)^[ \t]*TIME_MAP", text):
        raise ValueError(
            "this is time-of-flight data (TIME_MAP); only X-ray patterns are supported"
        )
    lines = text.splitlines()
    banks = [i for i, line in enumerate(lines) if re.match(r"\s*BANK\s+\d", line)]
    if len(banks) != 1:
        raise ValueError(f"{len(banks)} banks in the file; export one bank, or as .xye")
    fields = lines[banks[0]].split()
    if len(fields) < 5:
        raise ValueError(f"line {banks[0] + 1}: the BANK line is cut off")
    binning = fields[4].upper()
    if binning not in ("CONST", "CONS"):
        raise ValueError(
            f"line {banks[0] + 1}: binning {binning} (time of flight) is not supported, only CONST "
            "(constant wavelength X-ray data)"
        )
    num = int(number(fields[2], "the number of channels"))
    kind = (
        fields[-1].upper() if re.fullmatch(r"(?i)[a-z]+", fields[-1]) and len(fields) > 5 else "STD"
    )
    body = [line for line in lines[banks[0] + 1 :] if not line.startswith("#")]
    sigma = None
    if kind in ("FXYE", "FXY"):
        table = numbers("\n".join(body), "the bank")
        columns = 3 if kind == "FXYE" else 2
        table = table[: len(table) // columns * columns].reshape(-1, columns)[:num]
        x, intensity = table[:, 0] / 100, table[:, 1]
        sigma = table[:, 2] if kind == "FXYE" else None
    elif kind in ("STD", "ESD"):
        coefficients = [number(f, "the start or step in the BANK line") for f in fields[5:7]]
        if len(coefficients) < 2:
            raise ValueError(f"line {banks[0] + 1}: no start and step in the BANK line")
        # STD: two characters count the detectors, six hold the mean counts.
        values = numbers(" ".join(_fields(body, 2 if kind == "STD" else 0)), "the bank")
        if kind == "ESD":
            values, sigma = values[0::2][:num], values[1::2][:num]
        intensity = values[:num]
        x = (
            grid(coefficients[0] / 100, coefficients[1] / 100, len(intensity))
            if len(intensity)
            else values
        )
    else:
        raise ValueError(
            f"line {banks[0] + 1}: records of type {kind[:10]} are not supported; export as .xye"
        )
    if len(intensity) < num:
        raise ValueError(
            f"{len(intensity)} points where the BANK line promises {num}; is the file cut off?"
        )
    return Scan(x, np.asarray(intensity), "two_theta", sigma, **_source(lines[: banks[0]]))


def _source(header: list[str]) -> dict:
    stated = stated_wavelength(header)
    return stated | {"meta": {**stated["meta"], "title": header[0].strip() if header else ""}}
