"""Damaged files: always a valid pattern or one sentence, never another exception.

``XTALNET_FUZZ=20000`` tries that many mutations; the default is quick.
"""

import os
import warnings

import numpy as np
import pytest

from tests.pxrd.test_io_formats import TEXT, brml, bruker_raw, rasx
from xtalnet_jax.pxrd.io import load_pattern

NUM = int(os.environ.get("XTALNET_FUZZ", "400"))
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
]


def mutate(rng, data):
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, max(len(data), 1)))
        kind = rng.integers(0, 7)
        if kind == 0:
            data = data[:at]
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
        else:
            data = bytearray(bytes(data).decode("latin-1").encode(("utf-16", "utf-8")[at % 2]))
    return bytes(data)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    found = [(suffix, text.encode()) for suffix, text, _, _ in TEXT]
    for suffix, write in ((".brml", brml), (".rasx", rasx), (".raw", bruker_raw)):
        write(folder / ("seed" + suffix))
        found.append((suffix, (folder / ("seed" + suffix)).read_bytes()))
    return found


def test_damaged_files_never_crash(tmp_path, seeds):
    rng = np.random.default_rng(0)
    valid, complaints = 0, []
    for i in range(NUM):
        suffix, data = seeds[i % len(seeds)]
        path = tmp_path / ("p" + suffix)
        path.write_bytes(mutate(rng, data))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                pattern = load_pattern(path, 1.5 if i % 3 else None)
        except ValueError as error:
            sentence = str(error).removeprefix(str(path))
            complaints.append((len(sentence) < len(str(error)), len(sentence), "\n" in sentence))
        else:
            valid += 1
            assert (np.diff(pattern.two_theta) > 0).all()
            assert np.isfinite(pattern.intensity).all()
            assert pattern.intensity.max() > 0
            assert 0 <= pattern.two_theta[0] < pattern.two_theta[-1] <= 180
            assert pattern.sigma is None or (pattern.sigma > 0).all()
    assert 0 < valid < NUM
    named, lengths, broken = map(np.array, zip(*complaints))
    assert named.all()
    assert lengths.max() < 600
    assert not broken.any()
