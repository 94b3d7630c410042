"""How `load_pattern` repairs, refuses and asks, and what `save_pattern` writes."""

import zipfile

import numpy as np
import pytest

from tests.pxrd.test_io_formats import (
    BANK,
    CIF,
    RAS,
    UDF,
    UXD,
    X,
    Y,
    brml,
    counts,
    q_of,
    rows,
    xrdml,
)
from xtalnet_jax.pxrd.io import assumptions, load_pattern, save_pattern
from xtalnet_jax.pxrd.pattern import Pattern

SHORT = rows(x=X[:5], y=Y[:5])
BAD = [
    (".xy", "", "is empty"),
    (".xy", "hello\nworld\n", "no rows of numbers"),
    (".xy", rows("{y:.0f}"), "only one column"),
    (".xy", SHORT, "only 5 points"),
    (".xy", rows().replace("11.00 ", "nan "), r"line 21: \(nan"),
    (".xy", rows().replace("11.00 ", "1e999 "), r"line 21: \(inf"),
    (".xy", rows().replace("11.00 ", "9.00 "), r"line 21: 2-theta is 9 after 10\.95"),
    (".xy", rows().replace("11.00 ", "11.05 "), r"line 22: 2-theta is 11\.05 after"),
    (".xy", rows() + "12.", "line 61: 1 numbers where the rows before have 2"),
    (".xy", rows().replace("11.00 ", "abc "), "line 21: 'abc 1[0-9]*' stands among"),
    (".xy", rows(y=-Y), "expected positive counts"),
    (".xy", rows(y=0 * Y), "expected positive counts"),
    (".xy", rows(y=Y - 600), "fall to -500"),
    (".xy", rows(x=100 * X), "expected degrees within 0 to 180"),
    (".xy", rows("{x:.5f} {y:.0f}", np.deg2rad(X)), "at least one degree"),
    (".xy", "# neutron data\n" + rows(), "only X-ray patterns"),
    (".csv", rows("{x:.2f},{y:.1f}").replace(".", ","), "increasing|decimal commas"),
    (".xy", b"\x89PNG\r\n\x1a\n\0\0\0" * 40, "is binary"),
    (".xy", b"\xff\xfe1", "broken UTF-16"),
    (".doc", rows(), "'.doc' are not known"),
    (".gsas", BANK.replace("CONST", "SLOG ") + "STD\n" + counts(10), "time of flight"),
    (".gsas", "TIME_MAP 1\n", "time-of-flight"),
    (".gsas", BANK + "STD\n" + counts(10, y=Y[:40]), "40 points where the BANK line promises 60"),
    (".gsas", BANK + "ALT\n" + counts(10), "type ALT"),
    (".gsas", rows(), "no BANK line"),
    (".raw", b"RAW4.00" + bytes(2000), "'RAW4.00' binary files are not supported; export"),
    (".raw", b"RAW1.01" + bytes(2000), "ranges in the .raw file"),
    (
        ".uxd",
        UXD.replace("COUPLED", "PHI") + "_2THETACOUNTS\n" + rows(),
        "moves 'PHI', not 2-theta",
    ),
    (".uxd", UXD, "no _COUNTS"),
    (".udf", UDF + "1,2,3/", "is the file cut off"),
    (".ras", RAS.format(rows()).replace("*RAS_INT_END\n", ""), "is not a number|no \\*RAS_INT_END"),
    (".xrdml", xrdml(axis="Omega"), "not 2-theta"),
    (".xrdml", xrdml()[:-40], "XML is damaged"),
    (".xrdml", '<!DOCTYPE x [<!ENTITY a "b">]>' + xrdml(), "DOCTYPE or ENTITY"),
    (".xrdml", xrdml(data="1 2 x"), "not a number"),
    (".brml", b"PK\x03\x04" + bytes(100), "zip archive is damaged"),
    (".cif", "data_x\n_cell_length_a 4\n", "no measured powder pattern"),
    (".cif", "loop_ {", "no measured powder pattern"),
    (".cif", "loop_\n_pd_meas_counts_total 1 {", "CIF cannot be read"),
    (".cif", CIF.format(rows()) + "\n_diffrn_radiation_probe neutron\n", "neutron data"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_files_are_refused_in_one_sentence(tmp_path, case):
    suffix, content, message = BAD[case]
    path = tmp_path / ("p" + suffix)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        load_pattern(path, 1.5)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_folders_sizes_and_wavelengths(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no such file"):
        load_pattern(tmp_path / "none.xy")
    with pytest.raises(ValueError, match="not a folder"):
        load_pattern(tmp_path)
    path = tmp_path / "p.xy"
    path.write_text(rows())
    with pytest.raises(ValueError, match="expected a positive number of angstrom"):
        load_pattern(path, -1.0)
    with pytest.raises(ValueError, match=r"expected 0\.05 to 5 angstrom"):
        load_pattern(path, 15.4)
    monkeypatch.setattr("xtalnet_jax.pxrd.io.MAX_BYTES", 100)
    with pytest.raises(ValueError, match="too much for one pattern"):
        load_pattern(path, 1.5)


def test_archives_with_several_scans_or_too_much_inside_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "p.brml"
    brml(path, extra=["Experiment0/RawData1.xml"])
    with pytest.raises(ValueError, match="2 scans"):
        load_pattern(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("RawData0.xml", b" " * 3_000_000)
    monkeypatch.setattr("xtalnet_jax.pxrd.readers.base.MAX_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="more than any scan"):
        load_pattern(path)


def test_merged_scans_are_sorted_and_noted(tmp_path):
    path = tmp_path / "p.xy"
    path.write_text(rows(x=X[20:], y=Y[20:]) + rows(x=X[:25], y=Y[:25] + 2))
    pattern = load_pattern(path, 1.5)
    np.testing.assert_allclose(pattern.two_theta, X)
    np.testing.assert_allclose(pattern.intensity[20:25], Y[20:25] + 1)
    assert "2 merged scans" in pattern.meta["note"]


@pytest.mark.parametrize("suffix", [".xy", ".xye"])
def test_saved_patterns_come_back(tmp_path, suffix):
    sigma = np.sqrt(Y) if suffix == ".xye" else None
    pattern = Pattern(X, Y, 0.7093187, sigma)
    save_pattern(pattern, tmp_path / ("p" + suffix))
    back = load_pattern(tmp_path / ("p" + suffix))
    np.testing.assert_allclose(back.two_theta, X, rtol=1e-8)
    np.testing.assert_allclose(back.intensity, Y, rtol=1e-8)
    assert back.wavelength == pytest.approx(0.7093187, abs=1e-7)
    assert (back.sigma is None) == (sigma is None)


def test_saving_refuses_what_it_cannot_write(tmp_path):
    pattern = Pattern(X, Y, 1.5)
    with pytest.raises(ValueError, match="no uncertainties"):
        save_pattern(pattern, tmp_path / "p.xye")
    with pytest.raises(ValueError, match=r"not '\.raw'"):
        save_pattern(pattern, tmp_path / "p.raw")


@pytest.mark.parametrize(
    ("axis", "x"), [("q", q_of(X)), ("d", 0.5 / np.sin(np.deg2rad(X / 2)))], ids=["q", "d"]
)
def test_the_axis_can_be_given_and_is_reported(tmp_path, axis, x):
    path = tmp_path / "p.xy"
    path.write_text(rows("{x:.12f} {y:.0f}", x))
    pattern = load_pattern(path, 1.0, axis)
    np.testing.assert_allclose(pattern.two_theta, X, atol=1e-8)
    np.testing.assert_allclose(pattern.intensity, Y)
    assert axis in pattern.meta["axis_from"]
    with pytest.raises(ValueError, match="axis='r', expected one of two_theta, q, d"):
        load_pattern(path, 1.0, "r")
    path.write_text(f"{axis} (1/A), I\n" + rows("{x:.2f} {y:.0f}"))  # a wrong name is overruled
    np.testing.assert_allclose(load_pattern(path, 1.0, "two_theta").two_theta, X)


@pytest.mark.parametrize("name", ["Energy (keV)", "theta", "Time", "channel"])
def test_an_axis_of_another_kind_is_refused(tmp_path, name):
    path = tmp_path / "p.csv"
    path.write_text(f"{name},Counts\n" + rows("{x:.2f},{y:.0f}"))
    with pytest.raises(ValueError, match="expected 2-theta, q or d"):
        load_pattern(path, 1.5)


@pytest.mark.parametrize("header", ["d'Arcy, measured by Q", "Time: 12:30", "Date, 2020-01-02"])
def test_a_sentence_above_the_data_names_no_axis(tmp_path, header):
    path = tmp_path / "p.xy"
    path.write_text(f"{header}\n" + rows())
    np.testing.assert_allclose(load_pattern(path, 1.5).two_theta, X)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_encodings_and_line_ends(tmp_path, encoding):
    path = tmp_path / "p.txt"
    path.write_bytes(("Gerät\r\nλ".replace("λ", "K") + "\r\n" + rows()).encode(encoding))
    np.testing.assert_allclose(load_pattern(path, 1.5).two_theta, X)
    path.write_bytes(rows().replace("\n", "\r").encode(encoding))
    np.testing.assert_allclose(load_pattern(path, 1.5).intensity, Y)


@pytest.mark.parametrize(
    ("header", "wavelength"),
    [
        ("K-Alpha1 wavelength,1.5406", 1.5406),
        ("lambda = 1.5406, 1.5444", (1.5406 + 1.5444 / 2) / 1.5),
        ("LA=0.7093", 0.7093),
        ("Wavelength: 4.1321e-11 m", 0.41321),
        ("wavelength = 0.824849630835393", 0.824849630835393),
        ("Co Ka radiation", (1.788996 + 1.792835 / 2) / 1.5),
        ("La (0.85) Sr (0.15)", None),  # a composition, no wavelength
        ("CuKBr 0.5", None),
        ("K-Beta wavelength,1.39222", None),
        ("wavelength 0.7\n# wavelength 1.5406", None),  # a contradiction
    ],
)
def test_wavelengths_in_words(tmp_path, header, wavelength):
    path = tmp_path / "p.xy"
    path.write_text(f"# {header}\n" + rows())
    if wavelength is None:
        with pytest.raises(ValueError, match="does not state the wavelength"):
            load_pattern(path)
    else:
        pattern = load_pattern(path)
        assert pattern.wavelength == pytest.approx(wavelength)
        assert pattern.meta["wavelength_from"] in header


@pytest.mark.parametrize(
    ("given", "wavelength", "words"),
    [
        ("CuKa1", 1.540593, 'by the words "CuKa1"'),
        ("Cu K-alpha", (1.540593 + 1.544427 / 2) / 1.5, "doublet 1.54059 and 1.54443"),
        ("MoKα", (0.709317 + 0.713607 / 2) / 1.5, "doublet 0.709317 and 0.713607"),
        ("1,5406", 1.5406, None),
    ],
)
def test_the_wavelength_can_be_given_by_name_and_is_repeated(tmp_path, given, wavelength, words):
    path = tmp_path / "p.xy"
    path.write_text("# 2theta  counts\n" + rows())
    pattern = load_pattern(path, given)
    assert pattern.wavelength == pytest.approx(wavelength)
    said = assumptions(pattern)
    assert (words is None) == (said == [])
    assert words is None or words in said[0]
    for bad in ("Cu", "Ka", "XxKa1", "CuKb"):
        with pytest.raises(ValueError, match=r"expected angstrom, e\.g\. 1\.5406, or a line"):
            load_pattern(path, bad)


def test_what_was_taken_for_granted_is_said(tmp_path):
    path = tmp_path / "p.xy"
    path.write_text("# Cu Ka1 radiation\n" + rows())
    assert assumptions(load_pattern(path)) == [
        'wavelength 1.54059 angstrom, by the words "Cu Ka1"',
        "no column is named, the first was taken for 2-theta in degrees",
    ]
    assert "the file states 1.54059" in " ".join(assumptions(load_pattern(path, 0.71)))
    path.write_text("q (1/nm), I\n" + rows("{x:.12f} {y:.0f}", 10 * q_of(X)))
    (said,) = assumptions(load_pattern(path, 1.0))
    assert said == "abscissa converted to 2-theta, by 'q (1/nm)'"


def test_the_request_for_a_wavelength_names_the_anode(tmp_path):
    path = tmp_path / "p.udf"
    text = UDF.replace("LabdaAlpha", "Other").replace("Anode,Cu", "Anode,Co")
    path.write_text(text + ",".join(f"{v:.0f}" for v in Y) + "/\n")
    with pytest.raises(ValueError, match=r"anode Co.*1\.7890 or CoKa1 for Co K-alpha1"):
        load_pattern(path)
    assert load_pattern(path, 1.789).meta["anode"] == "Co"


def test_counts_wider_than_their_field_keep_their_first_digits(tmp_path):
    path = tmp_path / "p.gsas"
    path.write_text(BANK + "STD\n" + counts(10, y=Y * 1000))
    np.testing.assert_allclose(load_pattern(path, 1.5).intensity, Y * 1000)


@pytest.mark.parametrize(
    ("header", "row"),
    [
        (",2theta,Intensity", "{i},{x:.2f},{y:.0f}"),
        ("No.;Angle;Counts;", "{i};{x:.2f};{y:.0f};"),
        ("Intensity,2theta", "{y:.0f},{x:.2f}"),
        ('"2θ","Intensity"', '"{x:.2f}","{y:.0f}"'),
        ("# x, weight, y_obs, 2theta", "0,1,{y:.0f},{x:.2f}"),
        ("2theta (deg)   d (A)   I (counts)", "{x:.2f} 3.0 {y:.0f}"),
        ("Angle,Det1Disc1", "{x:.2f},{y:.0f}"),
        ("2theta,Imeas,Icalc,Iback", "{x:.2f},{y:.0f},4,5"),
    ],
)
def test_columns_are_found_by_their_names(tmp_path, header, row):
    path = tmp_path / "p.csv"
    data = (row.format(i=i, x=a, y=b) for i, (a, b) in enumerate(zip(X, Y)))
    path.write_text("\n".join([header, *data]) + "\n")
    pattern = load_pattern(path, 1.5)
    np.testing.assert_allclose(pattern.two_theta, X)
    np.testing.assert_allclose(pattern.intensity, Y)
    assert pattern.sigma is None


def test_quoted_decimal_commas_and_radians(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(rows('"{x:.2f}","{y:.0f}"').replace(".", ","))
    np.testing.assert_allclose(load_pattern(path, 1.5).two_theta, X)
    path.write_text("2theta (rad),I\n" + rows("{x:.12f},{y:.0f}", np.deg2rad(X)))
    np.testing.assert_allclose(load_pattern(path, 1.5).two_theta, X)


def test_row_numbers_are_no_angles(tmp_path):
    path = tmp_path / "p.dat"
    path.write_text("".join(f"{i} {x} {y}\n" for i, (x, y) in enumerate(zip(X, Y))))
    pattern = load_pattern(path, 1.5)
    np.testing.assert_allclose(pattern.two_theta, X)
    np.testing.assert_allclose(pattern.intensity, Y)
    assert "numbers the rows" in pattern.meta["note"]
