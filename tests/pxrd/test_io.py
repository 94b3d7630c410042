"""Every reader on a file of its format, every way a file can be bad, and the measured cases."""

import json
import struct
import zipfile

import numpy as np
import pytest

from xtalnet_jax.pxrd.io import load_pattern, save_pattern
from xtalnet_jax.pxrd.pattern import Pattern

X = np.round(10 + 0.05 * np.arange(60), 4)
Y = np.round(100 + 900 * np.exp(-(((X - 11.5) / 0.2) ** 2)))
CU_MEAN = (1.5406 + 0.5 * 1.5444) / 1.5


def rows(pattern="{x:.2f} {y:.0f}", x=X, y=Y):
    return "\n".join(pattern.format(x=a, y=b, e=max(b, 1) ** 0.5) for a, b in zip(x, y)) + "\n"


def counts(per_line=8, width=8, y=Y):
    fields = [f"{int(v):>{width}d}" for v in y]
    parts = [fields[i : i + per_line] for i in range(0, len(fields), per_line)]
    return "\n".join("".join(p) for p in parts) + "\n"


BANK = f"title\nBANK 1 {len(X)} 6 CONST 1000 5 0 0 "
XRDML = (
    '<?xml version="1.0" encoding="UTF-8"?><xrdMeasurements xmlns="http://www.xrdml.com/1.7">'
    "<sample><id>S</id></sample><xrdMeasurement><usedWavelength>"
    '<kAlpha1 unit="Angstrom">1.5406</kAlpha1><kAlpha2 unit="Angstrom">1.5444</kAlpha2>'
    "<ratioKAlpha2KAlpha1>0.5</ratioKAlpha2KAlpha1></usedWavelength>"
    "<incidentBeamPath>{mono}</incidentBeamPath>"
    '<scan scanAxis="{axis}"><dataPoints><positions axis="2Theta">'
    f"<startPosition>{X[0]}</startPosition><endPosition>{X[-1]}</endPosition></positions>"
    "<intensities>{data}</intensities></dataPoints></scan></xrdMeasurement></xrdMeasurements>"
)


def xrdml(mono="", axis="Gonio", data=None):
    data = " ".join(f"{v:.0f}" for v in Y) if data is None else data
    return XRDML.format(mono=mono, axis=axis, data=data)


UXD = "; Bruker\n_FILEVERSION=2\n_WL1=1.5406\n_WL2=1.5444\n_WLRATIO=0.5\n_DRIVE='COUPLED'\n"
UDF = (
    "SampleIdent,S,/\nAnode,Cu,/\nLabdaAlpha1, 1.5406,/\nLabdaAlpha2, 1.5444,/\n"
    f"RatioAlpha21, 0.5,/\nDataAngleRange, {X[0]}, {X[-1]},/\nScanStepSize, 0.05,/\nRawScan\n"
)
RAS = (
    '*RAS_DATA_START\n*RAS_HEADER_START\n*HW_XG_WAVE_LENGTH_ALPHA1 "1.5406"\n'
    '*HW_XG_WAVE_LENGTH_ALPHA2 "1.5444"\n*MEAS_SCAN_AXIS_X_INTERNAL "TwoThetaTheta"\n'
    "*RAS_HEADER_END\n*RAS_INT_START\n{}*RAS_INT_END\n*RAS_DATA_END\n"
)
CIF = (
    "data_x\n_diffrn_radiation_wavelength 0.7\nloop_\n_pd_meas_2theta_scan\n"
    "_pd_meas_counts_total\n{}"
)
TEXT = [
    (".xy", rows(), None, None),
    (".xye", rows("{x:.2f} {y:.0f} {e:.6f}"), None, None),
    (".csv", "2theta,counts\n" + rows("{x:.2f},{y:.0f}"), None, None),
    (".csv", rows("{x:.2f};{y:.1f}").replace(".", ","), None, None),
    (".txt", rows("{x:.2f}\t{y:.1f}").replace(".", ","), None, None),
    (".txt", "\ufeffSample é\nWavelength = 0.7093 A\n" + rows(), 0.7093, None),
    (
        ".txt",
        "##X-RAY WAVELENGTH=1.541838\n" + rows("{x:.2f}, {y:.3f}") + "##END=\n\n",
        1.541838,
        None,
    ),
    (".dat", "# Cu Kalpha1\r\n" + rows().replace("\n", "\r\n"), 1.540593, None),
    (".dat", "! Cu Ka radiation\n" + rows(), 1.541871, None),
    (".dat", f"{X[0]} 0.05 {X[-1]}\n" + counts(), None, None),
    (".dat", f"{X[0]} 0.05 {X[-1]} a title\n" + rows("{y:.0f}"), None, None),
    (".xy", f"{len(X)}\n" + rows(), None, None),
    (".xy", rows(x=X[::-1], y=Y[::-1]), None, None),
    (
        ".csv",
        "Q (1/A),I\n" + rows("{x:.9f},{y:.0f}", 4 * np.pi * np.sin(np.deg2rad(X / 2))),
        None,
        1.0,
    ),
    (".csv", "d (A),I\n" + rows("{x:.12f},{y:.0f}", 0.5 / np.sin(np.deg2rad(X / 2))), None, 1.0),
    (".gsas", BANK + "STD\n" + counts(10), None, None),
    (".xra", "Cu Ka data\n" + BANK + "STD\n" + counts(10), 1.541871, None),
    (".fxye", BANK + "FXYE\n" + rows("{x:.4f} {y:.0f} {e:.4f}", 100 * X), None, None),
    (".gsa", BANK + "FXY\n" + rows("{x:.4f} {y:.0f}", 100 * X), None, None),
    (".raw", BANK + "STD\n" + counts(10), None, None),
    (".uxd", UXD + "_START=10\n_STEPSIZE=0.05\n_COUNTS\n" + counts(), CU_MEAN, None),
    (".uxd", UXD + "_2THETACOUNTS\n" + rows(), CU_MEAN, None),
    (".udf", UDF + ",".join(f"{v:.0f}" for v in Y) + "/\n", CU_MEAN, None),
    (".ras", RAS.format(rows("{x:.2f} {y:.1f} 1.0")), CU_MEAN, None),
    (".xrdml", xrdml(), CU_MEAN, None),
    (".xrdml", xrdml(mono="<monochromator/>"), 1.5406, None),
    (".cif", CIF.format(rows()), 0.7, None),
    (".cif", "_no_block 1\n" + CIF.format(rows()), 0.7, None),
]


@pytest.mark.parametrize("case", range(len(TEXT)))
def test_text_formats(tmp_path, case):
    suffix, text, stated, given = TEXT[case]
    path = tmp_path / ("p" + suffix)
    path.write_bytes(text.encode("utf-8"))
    if stated is None:
        with pytest.raises(ValueError, match="give --wavelength"):
            load_pattern(path)
        given = given or 1.5
    pattern = load_pattern(path, given)
    np.testing.assert_allclose(pattern.two_theta, X, atol=1e-6)
    np.testing.assert_allclose(pattern.intensity, Y)
    assert pattern.wavelength == pytest.approx(given or stated, abs=2e-6)
    if suffix in (".xye", ".fxye"):
        np.testing.assert_allclose(pattern.sigma, np.sqrt(Y), rtol=1e-4)
    else:
        assert pattern.sigma is None
    if stated is not None:  # what the user says comes first
        assert load_pattern(path, 1.23).wavelength == 1.23


def brml(path, datum="1,1,{x},{h},{y}", views=True, extra=()):
    view = (
        '<DataViews><RawDataView Start="0" Length="1" LogicName="MeasuredTime"/>'
        '<RawDataView Start="2" Length="2"><Varying><FieldDefinitions AxisId="TwoTheta"/>'
        '<FieldDefinitions AxisId="Theta"/></Varying></RawDataView>'
        '<RawDataView Start="4" Length="1"><Recording/></RawDataView></DataViews>'
    )
    data = "".join(f"<Datum>{datum.format(x=a, h=a / 2, y=b)}</Datum>" for a, b in zip(X, Y))
    xml = (
        '<RawData><FixedInformation><Tube><WaveLengthAlpha1 Unit="A" Value="1.5406"/>'
        '<WaveLengthAlpha2 Unit="A" Value="1.5444"/><WaveLengthRatio Value="0.5"/></Tube>'
        '</FixedInformation><DataRoutes><DataRoute RouteFlag="Final"><ScanInformation><ScanAxes>'
        '<ScanAxisInfo AxisId="TwoTheta"/><ScanAxisInfo AxisId="Theta"/></ScanAxes>'
        f"</ScanInformation>{data}{view if views else ''}</DataRoute></DataRoutes></RawData>"
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("Experiment0/RawData0.xml", xml)
        for name in extra:
            archive.writestr(name, xml)


def rasx(path, axis="TwoThetaTheta"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("Data0/Profile0.txt", "\ufeff" + rows("{x:.2f}\t{y:.1f}\t1"))
        archive.writestr(
            "Data0/MesurementConditions0.xml",
            f"<C><AxisName>{axis}</AxisName><WavelengthKalpha1>1.5406</WavelengthKalpha1>"
            "<WavelengthKalpha2>1.5444</WavelengthKalpha2></C>",
        )


def bruker_raw(path, num_ranges=1):
    header = bytearray(712)
    header[:7] = b"RAW1.01"
    struct.pack_into("<i", header, 12, num_ranges)
    struct.pack_into("<4d", header, 624, 1.5406, 1.5444, 1.39, 0.5)
    block = bytearray(304)
    struct.pack_into("<ii", block, 0, 304, len(X))
    struct.pack_into("<dd", block, 8, X[0] / 2, X[0])
    struct.pack_into("<d", block, 176, 0.05)
    path.write_bytes(bytes(header + block) + Y.astype("<f4").tobytes())


@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        (".brml", brml),
        (".brml", lambda path: brml(path, views=False)),
        (".rasx", rasx),
        (".raw", bruker_raw),
    ],
)
def test_binary_formats(tmp_path, suffix, write):
    path = tmp_path / ("p" + suffix)
    write(path)
    pattern = load_pattern(path)
    np.testing.assert_allclose(pattern.two_theta, X, atol=1e-6)
    np.testing.assert_allclose(pattern.intensity, Y)
    assert pattern.wavelength == pytest.approx(CU_MEAN)
    assert pattern.meta["wavelengths"] == (1.5406, 1.5444)


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
    (".cif", "loop_ {", "CIF cannot be read"),
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


NO_SCAN = (".cif", ".exp", ".prm", ".pcr", ".md", "")
CIF_WITH_SCAN = ("crystalyze_HoNdV2O8", "crystalyze_LuOF")  # others hold a structure or a part


def test_measured_cases_load_equal_to_their_tables(shared):
    folder = shared / "data" / "experimental"
    num = 0
    for i, case in enumerate(json.loads((folder / "cases.json").read_text())):
        truth = np.loadtxt(folder / case["name"] / "pattern.csv", delimiter=",", skiprows=1)
        files = [p for p in (folder / case["name"]).iterdir() if p.suffix.lower() not in NO_SCAN]
        originals = [p for p in files if p.name != "pattern.csv"] or (files if i % 8 == 0 else [])
        if case["name"] in CIF_WITH_SCAN:
            originals.append(folder / case["name"] / "original.cif")
        for path in originals:
            pattern = load_pattern(path, case["wavelength_A"][0])
            # The tables are rounded to 5 decimals and 6 digits.
            np.testing.assert_allclose(pattern.two_theta, truth[:, 0], atol=6e-6, err_msg=str(path))
            np.testing.assert_allclose(pattern.intensity, truth[:, 1], rtol=1e-5, atol=1e-5)
            num += 1
    assert num >= 47


@pytest.mark.parametrize(
    ("folder", "file", "wavelength"),
    [
        ("ozakary_RbNb2O5F", "original.xrdml", 1.541874),
        ("crystallm_pi_Anatase", "original.txt", 1.54059),
        ("crystalyze_LuOF", "original.cif", 1.540562),
        ("gsas_PbSO4", "PBSO4.XRA", 1.541871),
        ("crystalyze_KBi3", "original.cif", 0.406626),
    ],
)
def test_measured_cases_state_their_wavelength(shared, folder, file, wavelength):
    pattern = load_pattern(shared / "data" / "experimental" / folder / file)
    assert pattern.wavelength == pytest.approx(wavelength, abs=1e-6)
