"""XML formats: PANalytical .xrdml, Bruker .brml (zip), Rigaku .rasx (zip)."""

from __future__ import annotations

import re
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from xtalnet_jax.pxrd.readers.base import Scan, decode, number, numbers, parse_xml, read_zip
from xtalnet_jax.pxrd.readers.radiation import doublet


def _text(root: Element, name: str) -> str | None:
    """Text of the first element of that name, wherever it stands."""
    found = next(root.iter(name), None)
    text = "" if found is None else (found.text or "").strip()
    return text or None


def _value(root: Element, name: str) -> float | None:
    """Number in the text, or in the attribute ``Value``, of the first element of that name."""
    found = next(root.iter(name), None)
    if found is None:
        return None
    stated = found.get("Value", found.text)
    value = number(stated, name) if stated and stated.strip() else 0.0
    unit = (found.get("unit") or found.get("Unit") or "").lower()
    return (10 * value if unit == "nm" else value) or None


def _xrdml_points(points: Element) -> tuple[np.ndarray, np.ndarray]:
    """Angles and intensities of one ``dataPoints`` element."""
    corrected, raw = points.find("intensities"), points.find("counts")
    stated = corrected if corrected is not None else raw
    if stated is None:
        raise ValueError("a scan without intensities in the .xrdml file")
    intensity = numbers(stated.text or "", "the intensities")
    factors = points.find("beamAttenuationFactors")
    if corrected is None and factors is not None:  # only raw counts lack the attenuator
        factor = numbers(factors.text or "", "beamAttenuationFactors")
        if len(factor) != len(intensity):
            raise ValueError(f"{len(factor)} attenuation factors for {len(intensity)} counts")
        intensity = intensity * factor
    axis = next((p for p in points.iter("positions") if p.get("axis") == "2Theta"), None)
    if axis is None:
        raise ValueError("the .xrdml file has no 2Theta positions; only powder scans are supported")
    listed = axis.find("listPositions")
    if listed is not None:
        x = numbers(listed.text or "", "the 2Theta positions")
    elif axis.find("startPosition") is None or axis.find("endPosition") is None:
        raise ValueError("2-theta stands still in this scan; only powder scans are supported")
    else:
        start, end = (number(axis.findtext(n), n) for n in ("startPosition", "endPosition"))
        x = np.linspace(start, end, len(intensity))
    return x, intensity


def read_xrdml(data: bytes) -> Scan:
    """PANalytical .xrdml, schema 1.0 to 2.x; repeated scans of one range are averaged.

    A scan with a monochromator in the incident beam has K-alpha1 only; otherwise both lines count.

    Raises:
        ValueError: no scan, a scan of another axis, or several scans that do not belong together.
    """
    root = parse_xml(data)
    scans = [s for s in root.iter("scan") if s.find("dataPoints") is not None]
    if not scans:
        raise ValueError("no scan with data points in the .xrdml file")
    axes = {s.get("scanAxis", "Gonio") for s in scans}
    if any(not re.search(r"(?i)gonio|2\s*theta", axis) for axis in axes):
        raise ValueError(
            f"the scan moves {sorted(axes)}, not 2-theta; only powder scans are supported"
        )
    points = [_xrdml_points(s.find("dataPoints")) for s in scans]  # type: ignore[arg-type]
    first = points[0][0]
    meta: dict[str, Any] = {"sample": _text(root, "id"), "anode": _text(root, "anodeMaterial")}
    if len(points) == 1:
        x, intensity = points[0]
    elif all(len(x) == len(first) and np.allclose(x, first, atol=1e-4) for x, _ in points):
        x, intensity = first, np.mean([y for _, y in points], axis=0)
        meta["note"] = f"mean of {len(points)} repeated scans"
    else:
        times = {_text(s, "commonCountingTime") for s in scans}
        if len(times) > 1:
            raise ValueError(f"{len(scans)} scans with different counting times; export one as .xy")
        x, intensity = (np.concatenate(parts) for parts in zip(*points))
    ratio = _value(root, "ratioKAlpha2KAlpha1")
    path = next(root.iter("incidentBeamPath"), None)
    if path is not None and path.find("monochromator") is not None:
        ratio = 0.0
    source = doublet(_value(root, "kAlpha1"), _value(root, "kAlpha2"), ratio)
    return Scan(x, intensity, wavelength=source["wavelength"], meta={**source["meta"], **meta})


def _brml_columns(route: Element, width: int) -> tuple[int, int]:
    """Where 2-theta and the counts stand in a ``Datum``, by the ``DataViews`` of the file."""
    angle, counts = None, None
    for view in route.iter("RawDataView"):
        start, length = (
            int(number(view.get("Start"), "Start")),
            int(number(view.get("Length"), "Length")),
        )
        fields = [f.get("AxisId", f.get("FieldName")) for f in view.iter("FieldDefinitions")]
        if "TwoTheta" in fields:
            angle = start + fields.index("TwoTheta")
        if view.find("Recording") is not None:
            if length != 1:
                raise ValueError(
                    "snapshots of an area detector, not a scan; export the scan as .xy"
                )
            counts = start if counts is None else counts
    axes = [a.get("AxisId", a.get("AxisName")) for a in route.iter("ScanAxisInfo")]
    if not any(True for _ in route.iter("RawDataView")) and "TwoTheta" in axes:
        # Older files: measured time, absorption factor, the axes, the counts.
        angle, counts = 2 + axes.index("TwoTheta"), width - 1
    if angle is None or counts is None or not 0 <= max(angle, counts) < width or angle == counts:
        raise ValueError(
            "the .brml file has no column of 2-theta or of counts; export the scan as .xy"
        )
    return angle, counts


def read_brml(data: bytes) -> Scan:
    """Bruker .brml: a zip with one ``RawData*.xml`` per scan, a ``Datum`` per step.

    Raises:
        ValueError: not such an archive, several scans, or a scan of another axis.
    """
    members = read_zip(data, r"(?i)(RawData\d*|MeasurementContainer)\.xml$")
    raws = [v for k, v in members.items() if "rawdata" in k.lower()]
    if len(raws) != 1:
        raise ValueError(
            f"{len(raws)} scans in the .brml file, expected one; export the scan as .xy"
        )
    root = parse_xml(raws[0])
    routes = [r for r in root.iter("DataRoute") if r.find("Datum") is not None]
    if not routes:
        raise ValueError("no measured points (Datum) in the .brml file")
    route = next((r for r in routes if r.get("RouteFlag") == "Final"), routes[0])
    rows = [numbers(d.text or "", "a Datum", r"[\s,]+") for d in route.iter("Datum")]
    width = len(rows[0])
    if any(len(row) != width for row in rows) or width < 3:
        raise ValueError(
            "the points of the .brml file have different lengths; export the scan as .xy"
        )
    table = np.stack(rows)
    angle, counts = _brml_columns(route, width)
    homes = [root, *(parse_xml(v) for k, v in members.items() if "measurement" in k.lower())]
    names = ("WaveLengthAlpha1", "WaveLengthAlpha2", "WaveLengthRatio")
    stated = next((h for h in homes if _value(h, names[0])), root)
    source = doublet(*(_value(stated, n) for n in names))
    meta = {**source["meta"], "anode": _text(stated, "TubeMaterial")}
    return Scan(table[:, angle], table[:, counts], wavelength=source["wavelength"], meta=meta)


def read_rasx(data: bytes) -> Scan:
    """Rigaku .rasx: a zip with ``Profile0.txt`` (angle, intensity, attenuation) and its conditions.

    Raises:
        ValueError: not such an archive, several scans, or a scan of another axis.
    """
    members = read_zip(data, r"(?i)(Profile\d+\.txt|Mea?surementConditions\d+\.xml)$")
    profiles = [v for k, v in members.items() if "profile" in k.lower()]
    conditions = [parse_xml(v) for k, v in members.items() if "conditions" in k.lower()]
    if len(profiles) != 1 or len(conditions) > 1:
        raise ValueError(
            f"{len(profiles)} scans in the .rasx file, expected one; export the scan as .xy"
        )
    text = decode(profiles[0])
    rows = [numbers(line, "a row of the profile") for line in text.splitlines() if line.strip()]
    if not rows or any(len(row) != len(rows[0]) for row in rows) or len(rows[0]) not in (2, 3):
        raise ValueError(
            "the profile of the .rasx file is not rows of angle, intensity, attenuation"
        )
    table = np.stack(rows)
    intensity = table[:, 1] * (table[:, 2] if table.shape[1] == 3 else 1.0)
    if not conditions:
        return Scan(table[:, 0], intensity)
    axis = _text(conditions[0], "AxisName")
    if axis and not re.search(r"(?i)two\s*theta|2\s*theta", axis):
        raise ValueError(
            f"the scan moves {axis[:30]!r}, not 2-theta; only powder scans are supported"
        )
    source = doublet(*(_value(conditions[0], f"WavelengthKalpha{i}") for i in (1, 2)))
    meta = {**source["meta"], "anode": _text(conditions[0], "TargetName")}
    return Scan(table[:, 0], intensity, wavelength=source["wavelength"], meta=meta)
