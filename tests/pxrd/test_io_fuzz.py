"""Damaged and hostile files: always a valid pattern or one sentence, soon, in little memory.

``XTALNET_FUZZ=10000 pytest -s`` tries that many and prints what became of them; the default is
quick. Times are those of the processor, so that a busy machine changes nothing.
"""

import io
import os
import re
import resource
import struct
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.pxrd.test_io_formats import (
    BANK,
    TEXT,
    UDF,
    X,
    brml,
    bruker_raw,
    counts,
    rasx,
    xrdml,
)
from xtalnet_jax.pxrd.io import load_pattern
from xtalnet_jax.pxrd.readers.base import MAX_BYTES

NUM = int(os.environ.get("XTALNET_FUZZ", "400"))
SECONDS, MEGABYTES = 6.0, 400.0
TOKENS = [
    b"nan",
    b"-1e308",
    b"1e999",
    b",",
    b";",
    b"\n",
    b"\0",
    b"\xff\xfe",
    b"<",
    b"'",
    b"_",
    b"9" * 400,
    b" " * 3000,
    b"\n" * 3000,
    b"/",
    b"\xef\xbb\xbf",
    b"<!DOCTYPE a>",
    b"BANK 1 99999999999 1 CONST 1000 5 0 0 STD\n",
    b"PK\x01\x02" * 9,
]
HUGE = [
    b"1e308",
    b"-1e308",
    b"9" * 30,
    b"0",
    b"-1",
    b"1e-300",
    b"2147483647",
    b"4294967296",
    b"nan",
]
ENCODINGS = [
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "utf-32",
    "utf-8-sig",
    "latin-1",
    "cp1252",
    "cp500",
]


def mutate(rng, data):
    """One to four damages: cut, bit flip, inserted token, deletion, repetition, noise, encoding,
    another number, a long repetition."""
    data = bytearray(data)
    for _ in range(min(int(rng.geometric(0.6)), 4)):
        at = int(rng.integers(0, max(len(data), 1)))
        kind = rng.integers(0, 9)
        if kind == 0:
            data = data[: at if rng.random() < 0.9 else 0]
        elif kind == 1 and data:
            data[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 2:
            data[at:at] = TOKENS[rng.integers(0, len(TOKENS))]
        elif kind == 3:
            del data[at : at + int(rng.integers(1, 60))]
        elif kind == 4:
            data[at:at] = data[at : at + int(rng.integers(1, 200))]
        elif kind == 5:
            data[at:at] = rng.integers(0, 256, int(rng.integers(1, 20)), dtype=np.uint8).tobytes()
        elif kind == 6:
            text = bytes(data).decode("utf-8", "replace")
            data = bytearray(text.encode(ENCODINGS[at % len(ENCODINGS)], "replace"))
        elif kind == 7:
            number = re.compile(rb"\d+(?:\.\d+)?").search(data, at)
            if number:
                data[slice(*number.span())] = HUGE[rng.integers(0, len(HUGE))]
        elif len(data) < 10**5:
            data[at:at] = data[at : at + int(rng.integers(1, 200))] * 2000
    return bytes(data)


def mutate_inside(rng, data):
    """Damage the members of a zip archive, or swap and drop them, and pack it again."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(packed, "w", 8) as new:
        for name in old.namelist():
            kind = rng.random()
            if kind > 0.1:
                new.writestr(name, mutate(rng, old.read(name)) if kind > 0.3 else old.read(name))
    return packed.getvalue()


def packed(name, content, method=zipfile.ZIP_DEFLATED):
    handle = io.BytesIO()
    with zipfile.ZipFile(handle, "w", method) as archive:
        archive.writestr(name, content)
    return handle.getvalue()


def lying_zip():
    """The directory states ten bytes where many megabytes are packed."""
    data = bytearray(packed("Data0/Profile0.txt", b"1 2 3\n" * 5_000_000))
    for mark, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        struct.pack_into("<I", data, data.index(mark) + offset, 10)
    return bytes(data)


def nested_zip():
    return packed("Data0/Profile0.txt", packed("Profile0.txt", b"\0" * 20_000_000))


def declared_raw():
    header = bytearray(712 + 304)
    header[:7] = b"RAW1.01"
    struct.pack_into("<i", header, 12, 1)
    struct.pack_into("<ii", header, 712, 304, 2**31 - 1)
    return bytes(header)


BOMBS = {
    "member too large": (".rasx", lambda: packed("Data0/Profile0.txt", bytes(2 * MAX_BYTES))),
    "member just within": (".rasx", lambda: packed("Data0/Profile0.txt", b" " * (MAX_BYTES - 1))),
    "many points": (".brml", lambda: packed("RawData0.xml", b"<a>" + b"<Datum>1</Datum>" * 10**6)),
    "lying sizes": (".rasx", lying_zip),
    "zip in a zip": (".rasx", nested_zip),
    "lzma": (".brml", lambda: packed("RawData0.xml", b" " * 10**6, zipfile.ZIP_LZMA)),
    "huge directory": (".brml", lambda: b"PK\x01\x02" * 10**6),
    "entities": (
        ".xrdml",
        lambda: b'<!DOCTYPE a [<!ENTITY b "' + b"x" * 10**4 + b'">]><a>' + b"&b;" * 10**5 + b"</a>",
    ),
    "tags": (".xrdml", lambda: b"<a>" * (MAX_BYTES // 3)),
    "deep": (".xrdml", lambda: b"<a>" * 140_000 + b"</a>" * 140_000),
    "attributes": (
        ".xrdml",
        lambda: b"<a " + b" ".join(b'a%d="1"' % i for i in range(10**6)) + b"/>",
    ),
    "too large": (".xy", lambda: b"1 2\n" * (MAX_BYTES // 4 + 1)),
    "one long line": (".xy", lambda: b"1 " * 500_000),
    "one long number": (".xy", lambda: b"10 " + b"9" * (MAX_BYTES - 5) + b"x\n"),
    "blank lines": (".cif", lambda: b"\n" * 10**6 + b"_pd_meas_counts_total 1"),
    "blank lines in GSAS": (".gsas", lambda: b" \n" * 500_000 + b"TIME"),
    "long header": (".txt", lambda: b"# start wavelength lambda Cu\n" * 200_000 + b"10 1\n"),
    "zigzag": (".xy", lambda: b"10 1\n11 2\n" * 120_000),
    "declared bank": (
        ".gsas",
        lambda: BANK.replace(" 60 ", " 999999999999 ").encode() + b"STD\n 1",
    ),
    "declared range": (".udf", lambda: UDF.replace("0.05", "1e-300").encode() + b"1,2,3/\n"),
    "declared raw": (".raw", declared_raw),
    "end in infinity": (".xrdml", lambda: xrdml().replace(str(X[-1]), "1e308").encode()),
    "zeros": (".xy", lambda: bytes(10**6)),
    "odd bytes": (".dat", lambda: counts().encode("cp500")),
}


def peak_memory(reset=False):
    """Largest resident size in MB since the last reset (Linux), elsewhere ever."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) / 1024
    except (OSError, TypeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Judge:
    """Loads files, checks what comes back, and keeps count."""

    def __init__(self, folder):
        self.folder, self.seen = folder, Counter()
        self.longest, self.grown = (0.0, ""), (0.0, "")  # seconds, megabytes; and which file

    def __call__(self, suffix, data, wavelength, name=""):
        path = self.folder / ("p" + suffix)
        path.write_bytes(data)
        memory, begin = peak_memory(reset=True), time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                pattern = load_pattern(path, wavelength)
        except ValueError as error:
            self.seen["refused"] += 1
            sentence = str(error)
            assert sentence.startswith(f"{path}: ")
            assert len(sentence) < len(str(path)) + 600
            assert "\n" not in sentence
        else:
            self.seen["parsed"] += 1
            assert (np.diff(pattern.two_theta) > 0).all()
            assert np.isfinite(pattern.intensity).all()
            assert 0 < pattern.intensity.max() < 1e31
            assert 0 <= pattern.two_theta[0] < pattern.two_theta[-1] <= 180
            assert pattern.sigma is None or (pattern.sigma > 0).all()
            assert 0.05 <= pattern.wavelength <= 5
        seconds = time.process_time() - begin
        self.longest = max(self.longest, (seconds, name + suffix))
        self.grown = max(self.grown, (peak_memory() - memory, name + suffix))
        assert seconds < SECONDS
        assert self.grown[0] < MEGABYTES


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    found = [(suffix, text.encode()) for suffix, text, _, _ in TEXT]
    writers = (
        (".brml", brml),
        (".brml", lambda path: brml(path, views=False)),
        (".rasx", rasx),
        (".raw", bruker_raw),
    )
    for suffix, write in writers:
        write(folder / ("seed" + suffix))
        found.append((suffix, (folder / ("seed" + suffix)).read_bytes()))
    return found


def test_the_seeds_are_of_every_format(seeds):
    known = ".xy .xye .csv .txt .dat .asc .chi .xrdml .brml .raw .ras .rasx .gsas .gsa .gda .xra"
    assert {suffix for suffix, _ in seeds} == {*known.split(), ".fxye", ".uxd", ".udf", ".cif"}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_soon_and_in_little_memory(tmp_path, name):
    suffix, make = BOMBS[name]
    data = make()
    judge = Judge(tmp_path)
    judge(suffix, data, 1.5, name)
    assert judge.seen["refused"] == 1


def test_damaged_files_never_crash(tmp_path, seeds):
    first = int(os.environ.get("XTALNET_FUZZ_SEED", "0"))
    rng = np.random.default_rng(first)
    judge, bombs = Judge(tmp_path), list(BOMBS.items())
    for i in range(NUM):
        if i % 200 == 199:
            name, (suffix, make) = bombs[(i // 200 + 12 * first) % len(bombs)]
            data = make()
        else:
            suffix, data = seeds[i % len(seeds)]
            name = ""
        inside = data[:2] == b"PK" and not name and rng.random() < 0.5
        damaged = (mutate_inside if inside else mutate)(rng, data)
        judge(suffix, damaged, 1.5 if i % 3 else None, name)
    (seconds, slow), (size, large) = judge.longest, judge.grown
    print(
        f"\n{NUM} files: {judge.seen['parsed']} parsed, {judge.seen['refused']} refused; "
        f"longest {seconds:.2f} s ({slow}), most memory {size:.0f} MB ({large})"
    )
    assert judge.seen["parsed"] > 0.05 * NUM
    assert judge.seen["refused"] > 0.05 * NUM
