"""Reading and writing powder patterns: any instrument's file in, one checked `Pattern` out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from xtalnet_jax.pxrd.pattern import Pattern
from xtalnet_jax.pxrd.preprocess import merge_points, two_theta_from_d, two_theta_from_q
from xtalnet_jax.pxrd.readers import (
    bruker_raw,
    columns,
    gsas,
    pdcif,
    vendor_text,
    vendor_xml,
)
from xtalnet_jax.pxrd.readers.base import MAX_BYTES, Scan, decode
from xtalnet_jax.pxrd.readers.radiation import ANODES, doublet, named_wavelength

MIN_POINTS = 10
MAX_INTENSITY = 1e30  # beyond it is no count of photons, and single precision overflows
MAX_SCANS = 20
AXES = ("two_theta", "q", "d")
_TEXT: dict[str, Callable[[str], Scan]] = {
    ".uxd": vendor_text.read_uxd,
    ".udf": vendor_text.read_udf,
    ".ras": vendor_text.read_ras,
    ".cif": pdcif.read,
}
_ZIP: dict[str, Callable[[bytes], Scan]] = {
    ".brml": vendor_xml.read_brml,
    ".rasx": vendor_xml.read_rasx,
}
_COLUMNS = (".xy", ".xye", ".csv", ".txt", ".dat", ".asc", ".tsv", ".xyd", ".chi")
_GSAS = (".gsa", ".gsas", ".gss", ".gda", ".xra", ".fxye", ".raw")


def _read(path: Path, axis: str | None) -> Scan:
    """Choose the reader by the suffix, and by the content where a suffix is ambiguous."""
    suffix = path.suffix.lower()
    data = path.read_bytes()
    if suffix in _ZIP:
        return _ZIP[suffix](data)
    if suffix == ".xrdml":
        return vendor_xml.read_xrdml(data)
    if data[:3] == b"RAW" and suffix == ".raw" and b"\0" in data[:2000]:
        return bruker_raw.read(data)
    if suffix not in (*_TEXT, *_COLUMNS, *_GSAS):
        unknown = f"files of type {suffix!r}" if suffix else "files without a suffix"
        raise ValueError(
            f"{unknown} are not known; export the scan as .xy, .xye, .csv, .xrdml, .brml, .ras, "
            ".uxd, GSAS or powder CIF"
        )
    text = decode(data)
    if suffix in _TEXT:
        return _TEXT[suffix](text)
    if suffix in _GSAS or gsas.is_gsas(text):
        if not gsas.is_gsas(text):
            raise ValueError("no BANK line; expected GSAS powder data (or rename the file to .xy)")
        return gsas.read(text)
    return columns.read(text, suffix, axis)


def _line(scan: Scan, i: int) -> str:
    return (
        f"line {scan.lines[i]}: "
        if scan.lines is not None and i < len(scan.lines)
        else f"point {i + 1}: "
    )


def _ordered(scan: Scan, x: np.ndarray, y: np.ndarray, sigma: np.ndarray | None) -> tuple:
    """Angles strictly increasing: reversed and merged scans are put in order, others refused."""
    rises = np.diff(x) > 0
    if rises.all():
        return x, y, sigma, ""
    if not rises.any() and (np.diff(x) < 0).all():
        return (
            x[::-1],
            y[::-1],
            None if sigma is None else sigma[::-1],
            "angles were falling; reversed",
        )
    breaks = np.flatnonzero(~rises)
    falls = np.flatnonzero(np.diff(x) < 0)
    if len(breaks) < MAX_SCANS:
        steps = [np.diff(part) for part in np.split(x, breaks + 1)]
        if all(len(s) >= 9 and s.max() <= 1.5 * np.median(s) for s in steps):
            note = f"{len(steps)} merged scans; sorted, same angles averaged"
            return *merge_points(x, y, sigma), note
    i = int(falls[0] if len(falls) else breaks[0]) + 1
    raise ValueError(
        f"{_line(scan, i)}2-theta is {x[i]:g} after {x[i - 1]:g}, expected increasing angles; "
        "is the first column 2-theta, and does the file hold one scan?"
    )


def _ask_for_wavelength(anode: str | None) -> str:
    """The request, with the values for the anode where the file names it."""
    name = next((a for a in ANODES if str(anode).strip().lower().startswith(a.lower())), None)
    said, name = f" (anode {name})" if name else "", name or "Cu"
    return (
        f"the file does not state the wavelength{said}; give --wavelength (wavelength=...): "
        f"{doublet(*ANODES[name])['wavelength']:.4f} or {name}Ka for {name} K-alpha (the doublet, "
        f"most laboratories), {ANODES[name][0]:.4f} or {name}Ka1 for {name} K-alpha1 alone"
    )


def _checked(scan: Scan, wavelength: float | None, axis: str | None) -> Pattern:
    """Turn a scan into a pattern, or say what is wrong with it."""
    x, y = np.asarray(scan.x, float).ravel(), np.asarray(scan.intensity, float).ravel()
    sigma = None if scan.sigma is None else np.asarray(scan.sigma, float).ravel()
    meta = {k: v for k, v in scan.meta.items() if v is not None}
    notes = [meta.pop("note")] if "note" in meta else []
    if len(x) != len(y) or (sigma is not None and len(sigma) != len(y)):
        raise ValueError(f"{len(x)} angles for {len(y)} intensities; is the file cut off?")
    if len(x) < MIN_POINTS:
        raise ValueError(f"only {len(x)} points; a pattern has at least {MIN_POINTS}")
    bad = np.flatnonzero(~(np.isfinite(x) & np.isfinite(y)))
    if len(bad):
        i = int(bad[0])
        raise ValueError(f"{_line(scan, i)}({x[i]}, {y[i]}) is not finite; remove such points")
    if wavelength is None:
        wavelength = scan.wavelength
    else:
        if scan.wavelength is not None and abs(wavelength - scan.wavelength) > 0.01 * wavelength:
            notes.append(f"the file states {scan.wavelength:.6g} angstrom")
        meta.pop("wavelengths", None)
    if wavelength is None:
        raise ValueError(_ask_for_wavelength(meta.get("anode")))
    if not 0.05 <= wavelength <= 5:
        raise ValueError(f"the wavelength is {wavelength:g}, expected 0.05 to 5 angstrom")
    axis = axis or scan.axis
    if axis == "q":
        x = two_theta_from_q(x, wavelength)
    elif axis == "d":
        x = two_theta_from_d(x, wavelength)
    x, y, sigma, note = _ordered(scan, x, y, sigma)
    notes += [note] if note else []
    if x[0] < 0 and x[-1] > 1:
        keep = x >= 0  # a scan through the direct beam
        x, y, sigma = x[keep], y[keep], None if sigma is None else sigma[keep]
        notes.append("negative angles dropped")
    if x[0] < 0 or x[-1] > 180 or x[-1] - x[0] < 1:
        raise ValueError(
            f"2-theta runs from {x[0]:g} to {x[-1]:g}, expected degrees within 0 to 180 and "
            "at least one degree; is the first column 2-theta (not energy, time or radians)?"
        )
    high, low = float(y.max()), float(y.min())
    if high <= 0 or high == low:
        raise ValueError(
            f"all intensities are {low:g} to {high:g}; expected positive counts that vary"
        )
    if not high <= MAX_INTENSITY:
        raise ValueError(f"intensities reach {high:g}, expected counts below {MAX_INTENSITY:g}")
    if low < -0.1 * high:
        raise ValueError(
            f"intensities fall to {low:g} with a maximum of {high:g}; expected counts, not a "
            "difference curve or a logarithm"
        )
    if sigma is not None:
        known = np.isfinite(sigma) & (sigma > 0)
        if not known.all():
            notes.append(f"{(~known).sum()} points without uncertainty got the median one")
        sigma = np.where(known, sigma, np.median(sigma[known])) if known.any() else None
    if notes:
        meta["note"] = "; ".join(notes)
    return Pattern(x.copy(), y.copy(), float(wavelength), sigma, meta)


def load_pattern(
    path: str | Path, wavelength: float | str | None = None, axis: str | None = None
) -> Pattern:
    """Read a powder pattern.

    Formats: columns (.xy .xye .csv .txt .dat), PANalytical .xrdml, Bruker .brml, .uxd and .raw
    (RAW1.01), Rigaku .ras and .rasx, Philips .udf, GSAS (.gsa .gsas .xra .fxye .raw), powder CIF.

    Args:
        path: the file.
        wavelength: angstrom, or a line by name as ``"CuKa1"`` or ``"CuKa"`` (the doublet);
            overrides what the file states, and is needed if it states nothing. Of a K-alpha
            doublet the intensity-weighted mean is taken.
        axis: what the abscissa is where the file does not say it: ``two_theta`` (degrees), ``q``
            (1/angstrom, 4 pi sin(theta) / wavelength) or ``d`` (angstrom). By default the name of
            the column decides, and without one it is 2-theta.

    Returns:
        The pattern with strictly increasing 2-theta; ``meta`` holds what the file said
        (``wavelengths``, ``anode``, ``sample``, ``title``), by which words a header gave the
        wavelength or the axis (``wavelength_from``, ``axis_from``), and every ``note`` of a repair;
        `assumptions` puts what was taken for granted into sentences.

    Raises:
        ValueError: anything is wrong with the file; one sentence with the file and the fix.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise ValueError("no such file")
        if not path.is_file():
            raise ValueError("not a file; give the pattern itself, not a folder")
        size = path.stat().st_size
        if size == 0:
            raise ValueError("the file is empty")
        if size > MAX_BYTES:
            raise ValueError(
                f"{size / 1e6:.0f} MB are too much for one pattern (limit {MAX_BYTES / 1e6:.0f} MB)"
            )
        given = named_wavelength(wavelength) if isinstance(wavelength, str) else {}
        wavelength = given.get("wavelength", wavelength)
        if wavelength is not None and not (np.isfinite(wavelength) and wavelength > 0):
            raise ValueError(f"wavelength={wavelength}, expected a positive number of angstrom")
        if axis is not None and axis not in AXES:
            raise ValueError(f"axis={axis!r}, expected one of {', '.join(AXES)}")
        with np.errstate(all="ignore"):  # what overflows is found by the checks
            pattern = _checked(_read(path, axis), wavelength, axis)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return pattern._replace(meta={**pattern.meta, **given.get("meta", {}), "file": path.name})


def assumptions(pattern: Pattern) -> list[str]:
    """What reading the file took for granted, as sentences for people: wavelength, axis, repairs.

    Example:
        >>> import numpy as np
        >>> meta = {"wavelength_from": "Cu Ka1", "note": "negative angles dropped"}
        >>> assumptions(Pattern(np.arange(3.0), np.ones(3), 1.540593, meta=meta))
        ['wavelength 1.54059 angstrom, by the words "Cu Ka1"', 'negative angles dropped']
    """
    meta, said = pattern.meta, []
    lines, words = meta.get("wavelengths", ()), meta.get("wavelength_from")
    if len(lines) == 2:
        first, second = (f"{v:.6g}" for v in lines)
        said.append(
            f"wavelength {pattern.wavelength:.6g} angstrom, the weighted mean of the K-alpha "
            f"doublet {first} and {second}" + (f' ("{words}")' if words else "")
        )
    elif words and "stripped" not in meta:
        said.append(f'wavelength {pattern.wavelength:.6g} angstrom, by the words "{words}"')
    if "stripped" in meta:  # by `kalpha.single_wavelength`
        said.append(
            f"K-alpha2 ({meta['stripped'][1]:.6g} angstrom) was taken off the pattern, K-alpha1 "
            f"({meta['stripped'][0]:.6g} angstrom) remains"
        )
    if meta.get("axis_from"):
        said.append(f"abscissa converted to 2-theta, by {meta['axis_from']!r}")
    return said + (str(meta["note"]).split("; ") if meta.get("note") else [])


def save_pattern(pattern: Pattern, path: str | Path) -> None:
    """Write ``.xy`` or, with uncertainties, ``.xye``; the wavelength stands in the first line.

    Raises:
        ValueError: another suffix, or ``.xye`` without uncertainties.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".xy", ".xye"):
        raise ValueError(f"{path}: patterns are written as .xy or .xye, not {suffix!r}")
    parts = [pattern.two_theta, pattern.intensity]
    if suffix == ".xye":
        if pattern.sigma is None:
            raise ValueError(f"{path}: the pattern has no uncertainties; write it as .xy")
        parts.append(pattern.sigma)
    header = f"wavelength = {pattern.wavelength:.7f} angstrom"
    np.savetxt(path, np.column_stack(parts), fmt="%.9g", header=header)
