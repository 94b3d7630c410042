"""Every measured case: its original files load to the numbers of its table, or are refused rightly.

The last test prints how many (``pytest -s``).
"""

import functools
import json
import re
from collections import Counter

import numpy as np
import pytest

from tests.conftest import SHARED
from xtalnet_jax.pxrd.io import load_pattern

LIST = SHARED / "data" / "experimental" / "cases.json"
CASES = {c["name"]: c for c in json.loads(LIST.read_text())} if LIST.is_file() else {}
SCANS = (".xy", ".xye", ".csv", ".txt", ".dat", ".xrdml", ".xra", ".gsas")
PROFILE_IN_CIF = re.compile(
    r"(?m)^\s*_pd_(?:meas_counts_total|(?:meas|proc)_intensity_(?:total|net))\s*$"
)


def holds_a_scan(path):
    """By suffix; a CIF by the header of a loop with intensities (others are structures)."""
    if path.suffix == ".cif":
        return PROFILE_IN_CIF.search(path.read_text("latin-1")) is not None
    return path.suffix.lower() in SCANS


def load_as_a_user(path, case):
    """The pattern, and whether the file stated its wavelength."""
    try:
        return load_pattern(path), True
    except ValueError as error:
        if "does not state the wavelength" not in str(error):
            raise
        return load_pattern(path, case["wavelength_A"][0]), False


def assert_same(pattern, truth, partial):
    if partial:  # programs write the refined range only
        at = np.abs(truth[:, 0][:, None] - pattern.two_theta[None, :]).argmin(0)
        assert len(set(at)) == len(at) > 100
        truth = truth[at]
    # The tables are rounded to 5 decimals and 6 digits.
    np.testing.assert_allclose(pattern.two_theta, truth[:, 0], rtol=0, atol=6e-6)
    np.testing.assert_allclose(pattern.intensity, truth[:, 1], rtol=1e-5, atol=1e-5)


@functools.cache
def judge(name, folder):
    """What became of every file of a case; fails where it is not right."""
    case, found = CASES[name], Counter()
    truth = np.loadtxt(folder / name / "pattern.csv", delimiter=",", skiprows=1)
    assert len(truth) == case["n_points"]
    for path in sorted((folder / name).iterdir()):
        kind = "table" if path.name == "pattern.csv" else "original"
        if not holds_a_scan(path):
            with pytest.raises(ValueError, match=r"no measured powder pattern|are not known"):
                load_pattern(path)
            found["no scan, refused"] += 1
            continue
        pattern, stated = load_as_a_user(path, case)
        partial = path.suffix == ".cif" and len(pattern.two_theta) < len(truth)
        assert_same(pattern, truth, partial)
        if stated:
            lines = case["wavelength_A"]
            assert min(lines) - 1e-4 <= pattern.wavelength <= max(lines) + 1e-4
        found[f"{kind}, wavelength {'stated' if stated else 'asked for'}"] += 1
        if path.suffix == ".xye":
            assert pattern.sigma is not None
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_files_of_a_case_hold_what_its_table_says(shared, name):
    found = judge(name, shared / "data" / "experimental")
    assert found["table, wavelength asked for"] == 1, "the table has no header with a wavelength"


def test_every_format_of_the_cases_is_there_and_counted(shared):
    folder = shared / "data" / "experimental"
    total = sum((judge(name, folder) for name in CASES), Counter())  # each case is read once
    suffixes = {
        p.suffix.lower()
        for name in CASES
        for p in (folder / name).iterdir()
        if p.name != "pattern.csv" and holds_a_scan(p)
    }
    print("", *(f"{num:4d} {what}" for what, num in sorted(total.items())), sep="\n")
    print("formats of originals:", *sorted(suffixes))
    assert suffixes == {*SCANS, ".cif"}
    assert total["original, wavelength stated"] >= 9
    assert total["original, wavelength asked for"] >= 30


@pytest.mark.parametrize(
    ("name", "file", "wavelength"),
    [
        ("ozakary_RbNb2O5F", "original.xrdml", (1.540598 + 0.5 * 1.544426) / 1.5),
        ("crystallm_pi_Anatase", "original.txt", 1.54059),
        ("crystalyze_LuOF", "original.cif", 1.540562),
        ("gsas_PbSO4", "PBSO4.XRA", (1.540593 + 0.5 * 1.544427) / 1.5),
        ("crystalyze_KBi3", "original.cif", 0.406626),
    ],
)
def test_the_stated_wavelength_is_read_to_its_last_digit(shared, name, file, wavelength):
    pattern = load_pattern(shared / "data" / "experimental" / name / file)
    assert pattern.wavelength == pytest.approx(wavelength, abs=1e-8)
