"""What every reader returns, and the safe ways to open text, XML and zip archives.

Files come from anywhere, so nothing here trusts them: sizes are checked before memory is used,
XML with a DOCTYPE is refused (entity bombs), and every complaint is a ``ValueError`` of one
sentence. Readers name the line; the name of the file is put in front by `io.load_pattern`.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

MAX_BYTES = 200_000_000
"""Largest file, or largest member of a zip archive after unpacking."""
MAX_LINES = 2_000_000

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


class Scan(NamedTuple):
    """One scan as a file states it, before anything was checked."""

    x: Any  # [n] abscissa
    intensity: Any  # [n]
    axis: str = "two_theta"  # or "q" (1/angstrom) or "d" (angstrom)
    sigma: Any = None  # [n] or None
    wavelength: float | None = None  # angstrom, if the file states it
    meta: Mapping[str, Any] = {}
    lines: Sequence[int] | None = None  # line numbers of the points, for error messages


def decode(data: bytes) -> str:
    """Text of a file in UTF-8, UTF-16 with a byte-order mark, or Latin-1.

    Raises:
        ValueError: the bytes are not text, or too many lines.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            text = data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"the text is broken UTF-16 ({error.reason}); save it as UTF-8"
            ) from None
    else:
        head = data[:65536]
        control = sum(head.count(bytes([c])) for c in range(32) if c not in (9, 10, 12, 13, 26))
        if b"\0" in data or control > 0.01 * len(head) + 1:
            raise ValueError(
                "the file is binary, not text; export the scan as .xy (2-theta, intensity)"
            )
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    num_lines = text.count("\n") + text.count("\r")
    if num_lines > 2 * MAX_LINES:
        raise ValueError(f"{num_lines} lines are too many for one pattern (limit {MAX_LINES})")
    return text


def parse_xml(data: bytes) -> ElementTree.Element:
    """Parse XML without a document type, and drop the namespaces from the tags.

    Raises:
        ValueError: not well-formed, or it has a DOCTYPE or ENTITY.
    """
    text = decode(data)
    if re.search(r"<!\s*(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise ValueError(
            "the XML declares a DOCTYPE or ENTITY, which no instrument writes; refused"
        )
    try:
        root = ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text))
    except ElementTree.ParseError as error:
        raise ValueError(f"the XML is damaged ({error}); export the scan again") from None
    except ValueError as error:
        raise ValueError(f"the XML cannot be read ({error}); export the scan again") from None
    for element in root.iter():
        if isinstance(element.tag, str):
            element.tag = element.tag.rpartition("}")[2]
    return root


def read_zip(path: Any, pattern: str) -> dict[str, bytes]:
    """Members of a zip archive whose name matches ``pattern``, in the order of their numbers.

    Raises:
        ValueError: not a zip archive, damaged, encrypted, or too large when unpacked.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if re.search(pattern, m.filename)]
            if len(members) > 1000 or sum(m.file_size for m in members) > MAX_BYTES:
                raise ValueError(
                    f"unpacked, the archive has {len(members)} parts of "
                    f"{sum(m.file_size for m in members) / 1e6:.0f} MB, more than any scan "
                    f"({MAX_BYTES / 1e6:.0f} MB); export the scan as .xy"
                )
            found = {}
            for member in members:
                with archive.open(member) as handle:  # the size in the directory may be a lie
                    found[member.filename] = handle.read(member.file_size + 1)[: member.file_size]
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        RuntimeError,
        NotImplementedError,
    ) as e:
        raise ValueError(
            f"the zip archive is damaged or encrypted ({e}); export it again"
        ) from None
    except (KeyError, IndexError, OverflowError, UnicodeError, LookupError, MemoryError) as e:
        raise ValueError(f"the zip archive is damaged ({e!r}); export it again") from None
    return dict(
        sorted(found.items(), key=lambda item: [int(n) for n in re.findall(r"\d+", item[0])])
    )


def number(text: Any, what: str) -> float:
    """``float(text)`` with a sentence for the error."""
    try:
        value = float(str(text).strip())
    except ValueError:
        raise ValueError(f"{what} is {str(text)[:40]!r}, expected a number") from None
    if not np.isfinite(value):
        raise ValueError(f"{what} is {value}, expected a finite number")
    return value


def numbers(text: str, what: str, separators: str = r"[\s,;]+") -> np.ndarray:
    """All numbers of a text."""
    tokens = [t for t in re.split(separators, text) if t]
    try:
        return np.array(tokens, dtype=float)
    except ValueError as error:
        raise ValueError(
            f"{what} holds something that is not a number ({str(error)[-60:]})"
        ) from None


def grid(start: float, step: float, num: int) -> np.ndarray:
    """``num`` angles from ``start``; refuses what is not a powder scan."""
    if not (step > 0 and num > 0 and start + step * num < 1e4):
        raise ValueError(
            f"the scan starts at {start} with step {step} and {num} points; expected a step > 0"
        )
    return start + step * np.arange(num)


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


def stated_wavelength(header: Sequence[str]) -> dict[str, Any]:
    """Wavelength that a free-text header states, in angstrom or as "Cu K-alpha"."""
    text = "\n".join(header)
    found = re.search(
        r"(?i)(?:wave\s*length|lambda|\bLA|\bWL)1?\b[^\d\n]{0,25}?(\d\.\d{2,9})(?!\d*\s*nm)", text
    )
    if found:
        return {"wavelength": float(found[1]), "meta": {"wavelength_from": found[0].strip()}}
    found = re.search(
        r"\b(Cr|Fe|Co|Cu|Mo|Ag)[\s-]*K[\s_-]*(?:alpha|α|a)[\s_-]*(1?)(?![a-z0-9])", text
    )
    if found:
        alpha1, alpha2 = ANODES[found[1]]
        both = not found[2] or re.search(r"(?i)K[\s_-]*(?:alpha|α|a)[\s_-]*2", text)
        radiation = doublet(alpha1, alpha2 if both else None)
        return radiation | {"meta": {**radiation["meta"], "wavelength_from": found[0].strip()}}
    return {"wavelength": None, "meta": {}}
