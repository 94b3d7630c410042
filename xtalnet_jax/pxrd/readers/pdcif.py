"""Powder CIF (.cif) with a measured pattern: the ``_pd_`` items of the IUCr powder dictionary."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from xtalnet_jax.pxrd.readers.base import Scan, grid

_ANGLES = ("_pd_meas_2theta_scan", "_pd_meas_2theta_corrected", "_pd_proc_2theta_corrected")
_INTENSITIES = (
    "_pd_meas_counts_total",
    "_pd_meas_intensity_total",
    "_pd_proc_intensity_total",
    "_pd_meas_intensity_net",
    "_pd_proc_intensity_net",
)
_NO_PATTERN = (
    "no measured powder pattern in the CIF (a crystal structure only?); expected a loop with "
    "_pd_meas_2theta_scan and _pd_meas_counts_total or _pd_proc_intensity_total"
)


def _wavelength(block: Any, as_number: Any) -> float | None:
    """Wavelength of a block; the weighted mean if several with weights are listed."""
    for name in ("_diffrn_radiation_wavelength", "_pd_proc_wavelength"):
        for tag in (name, name + "_value"):
            values = [as_number(v) for v in block.find_values(tag)]
            if values and all(math.isfinite(v) and v > 0 for v in values):
                weights = [
                    as_number(v) for v in block.find_values("_diffrn_radiation_wavelength_wt")
                ]
                if len(weights) != len(values) or not sum(weights) > 0:
                    weights = [1.0] + [0.0] * (len(values) - 1)
                return sum(w * v for w, v in zip(weights, values)) / sum(weights)
    return None


def read(text: str) -> Scan:
    """Read the first block with a measured pattern.

    Raises:
        ValueError: not a CIF, no measured pattern, neutron or time-of-flight data.
    """
    from gemmi import cif

    if not re.search(rf"(?m)^[ \t]*(?:{'|'.join(_INTENSITIES)})\s", text):
        raise ValueError(_NO_PATTERN)
    try:
        document = cif.read_string(text)
    except (ValueError, RuntimeError) as error:
        # Publication files often break the grammar far from the pattern: take its block alone.
        tag = re.search(rf"(?m)^[ \t]*(?:{'|'.join(_INTENSITIES)})\s", text)
        heads = [m.start() for m in re.finditer(r"(?m)^data_\S", text)] + [len(text)]
        head = max((h for h in heads if tag and h < tag.start()), default=None)
        try:
            if head is None:
                raise error
            document = cif.read_string(text[head : min(h for h in heads if h > head)])
        except (ValueError, RuntimeError):
            raise ValueError(f"the CIF cannot be read ({str(error)[:120]})") from None
    if re.search(r"(?m)^[ \t]*_pd_meas_time_of_flight\b", text):
        raise ValueError("this is time-of-flight data; only X-ray patterns are supported")
    as_number = cif.as_number
    for block in document:
        column = next((c for name in _INTENSITIES if (c := block.find_values(name))), None)
        if column is None or len(column) < 2:
            continue
        probe = block.find_value("_diffrn_radiation_probe") or ""
        if "neutron" in probe.lower():
            raise ValueError("this is neutron data; only X-ray patterns are supported")
        intensity = np.array([as_number(v) for v in column])
        angles = next((c for name in _ANGLES if (c := block.find_values(name))), None)
        if angles is not None and len(angles) == len(column):
            x = np.array([as_number(v) for v in angles])
        else:
            first, step = (
                as_number(block.find_value(f"_pd_meas_2theta_range_{k}") or "?")
                for k in ("min", "inc")
            )
            if not (math.isfinite(first) and math.isfinite(step)):
                raise ValueError("the CIF has intensities but no 2-theta for them")
            x = grid(first, step, len(intensity))
        wavelength = _wavelength(block, as_number)
        if wavelength is None:  # programs state it with the structure, in another block
            stated = {_wavelength(b, as_number) for b in document} - {None}
            wavelength = stated.pop() if len(stated) == 1 else None
        return Scan(x, intensity, wavelength=wavelength, meta={"block": block.name})
    raise ValueError(_NO_PATTERN)
