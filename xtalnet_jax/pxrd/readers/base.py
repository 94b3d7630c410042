"""What every reader returns, and the safe ways to open text, XML and zip archives.

Files come from anywhere, so nothing here trusts them: sizes are checked before memory is used,
XML with a DOCTYPE is refused (entity bombs), and every complaint is a ``ValueError`` of one
sentence. Readers name the line; the name of the file is put in front by `io.load_pattern`.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

MAX_BYTES = 32_000_000
"""Largest file, or largest sum of the members of a zip archive after unpacking."""
MAX_WORDS = 1_200_000
"""Most words and most lines of a text; a long scan has a tenth of that."""
MAX_TAGS = 300_000
MAX_MEMBERS = 5_000


class Scan(NamedTuple):
    """One scan as a file states it, before anything was checked."""

    x: Any  # [n] abscissa
    intensity: Any  # [n]
    axis: str = "two_theta"  # or "q" (1/angstrom) or "d" (angstrom)
    sigma: Any = None  # [n] or None
    wavelength: float | None = None  # angstrom, if the file states it
    meta: Mapping[str, Any] = {}
    lines: Sequence[int] | None = None  # line numbers of the points, for error messages


def _check_length(text: str) -> None:
    """Refuse more words or lines than any scan has, before they become Python objects."""
    data = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
    is_break, is_gap = np.zeros((2, 256), bool)
    is_break[[10, 11, 12, 13, 28, 29, 30, 0x85, 0xA8, 0xA9]] = True  # the last of U+0085, U+2028, 9
    is_gap[[9, 10, 11, 12, 13, 32, 44, 59]] = True
    num_words = num_lines = 0
    for start in range(0, len(data), 1 << 22):
        part = data[start : start + (1 << 22)]
        gap = is_gap[part]
        num_words += int(np.count_nonzero(gap[1:] & ~gap[:-1])) + 1
        num_lines += int(np.count_nonzero(is_break[part]))
    if max(num_words, num_lines) > MAX_WORDS:
        raise ValueError(
            f"{max(num_words, num_lines)} words or lines are too many for one pattern "
            f"(limit {MAX_WORDS}); export one scan as .xy"
        )


def _wide(head: bytes) -> str | None:
    """UTF-16 by its byte-order mark, or without one by every second byte being zero."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    for encoding, zeros, letters in (
        ("utf-16-le", head[1::2], head[::2]),
        ("utf-16-be", head[::2], head[1::2]),
    ):
        if len(zeros) > 8 and zeros.count(0) > 0.95 * len(zeros) and 0 not in letters:
            return encoding
    return None


def decode(data: bytes) -> str:
    """Text of a file in UTF-8, UTF-16 or Latin-1, with or without a byte-order mark.

    Raises:
        ValueError: the bytes are not text, or too many words or lines.
    """
    head = data[:65536]
    wide = _wide(head)
    control = sum(head.count(bytes([c])) for c in range(32) if c not in (9, 10, 12, 13, 26))
    if wide:
        try:
            text = data.decode(wide)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"the text is broken UTF-16 ({error.reason}); save it as UTF-8"
            ) from None
    elif b"\0" in data or control > 0.01 * len(head) + 1:
        raise ValueError(
            "the file is binary, not text; export the scan as .xy (2-theta, intensity)"
        )
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    _check_length(text)
    return text.removeprefix("\ufeff")


def parse_xml(data: bytes) -> ElementTree.Element:
    """Parse XML without a document type, and drop the namespaces from the tags.

    Raises:
        ValueError: not well-formed, too many tags, or it has a DOCTYPE or ENTITY.
    """
    text = decode(data)
    if re.search(r"<!\s*(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise ValueError(
            "the XML declares a DOCTYPE or ENTITY, which no instrument writes; refused"
        )
    num_tags = max(text.count("<"), text.count("="))
    if num_tags > MAX_TAGS:
        raise ValueError(
            f"{num_tags} tags or attributes are too many for one scan (limit {MAX_TAGS})"
        )
    try:
        root = ElementTree.fromstring(re.sub(r"\A\s*<\?xml[^>]*\?>", "", text))
    except ElementTree.ParseError as error:
        raise ValueError(f"the XML is damaged ({error}); export the scan again") from None
    except ValueError as error:
        raise ValueError(f"the XML cannot be read ({error}); export the scan again") from None
    for element in root.iter():
        if isinstance(element.tag, str):
            element.tag = element.tag.rpartition("}")[2]
    return root


def read_zip(data: bytes, pattern: str) -> dict[str, bytes]:
    """Members of a zip archive whose name matches ``pattern``, in the order of their numbers.

    What the archive says about sizes is not believed: reading stops at the stated size, and the
    stated sizes together may not exceed `MAX_BYTES`. Only the two ways of packing that instruments
    use are unpacked (others may claim gigabytes for their dictionary).

    Raises:
        ValueError: not a zip archive, damaged, encrypted, or too large when unpacked.
    """
    if data.count(b"PK\x01\x02") > MAX_MEMBERS:
        raise ValueError(f"the archive has more than {MAX_MEMBERS} parts; export the scan as .xy")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [m for m in archive.infolist() if re.search(pattern, m.filename)]
            total = sum(m.file_size for m in members)
            if len(members) > 1000 or total > MAX_BYTES:
                raise ValueError(
                    f"unpacked, the archive has {len(members)} parts of {total / 1e6:.0f} MB, "
                    f"more than any scan ({MAX_BYTES / 1e6:.0f} MB); export the scan as .xy"
                )
            if {m.compress_type for m in members} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise ValueError(
                    "the archive is packed in an unusual way (not deflate); export the scan as .xy"
                )
            found = {}
            for member in members:
                with archive.open(member) as handle:
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
        sorted(found.items(), key=lambda item: [int(n[:9]) for n in re.findall(r"\d+", item[0])])
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
