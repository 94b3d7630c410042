"""A sample of every format, as instruments and programs write it, and that it is read rightly."""

import struct
import zipfile

import numpy as np
import pytest

from xtalnet_jax.pxrd.io import load_pattern

X = np.round(10 + 0.05 * np.arange(60), 4)
Y = np.round(100 + 900 * np.exp(-(((X - 11.5) / 0.2) ** 2)))
CU_MEAN = (1.5406 + 0.5 * 1.5444) / 1.5


def rows(pattern="{x:.2f} {y:.0f}", x=X, y=Y):
    return "\n".join(pattern.format(x=a, y=b, e=max(b, 1) ** 0.5) for a, b in zip(x, y)) + "\n"


def counts(per_line=8, field="{:>8d}", y=Y):
    fields = [field.format(int(v)) for v in y]
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


def q_of(two_theta):
    return 4 * np.pi * np.sin(np.deg2rad(two_theta / 2))


def esd_fields():
    fields = [f"{v:>8}" for y in Y for v in (f"{y:.0f}", f"{y**0.5:.3f}")]
    return "\n".join("".join(fields[i : i + 10]) for i in range(0, len(fields), 10)) + "\n"


def listed_xrdml():
    """Version 2 with every angle listed, raw counts and an attenuator."""
    grid = f"<startPosition>{X[0]}</startPosition><endPosition>{X[-1]}</endPosition>"
    listed = "<listPositions>" + " ".join(f"{v}" for v in X) + "</listPositions>"
    factors = " ".join(["1"] * 30 + ["2"] * 30)
    counted = " ".join(f"{v:.1f}" for v in Y / np.repeat([1, 2], 30))
    text = xrdml(data="DATA").replace(grid, listed).replace("\n", "\r\n")
    return text.replace(
        "<intensities>DATA</intensities>",
        f"<beamAttenuationFactors>{factors}</beamAttenuationFactors><counts>{counted}</counts>",
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
    # PANalytical: conditions, and the intensity not in the second column.
    (
        ".csv",
        "[Measurement conditions]\nSample identification,S\nAnode material,Cu\nScan axis,Gonio\n"
        "K-Alpha1 wavelength,1.5406\nK-Alpha2 wavelength,1.5444\nRatio K-Alpha2/K-Alpha1,0.5\n"
        "Divergence slit,Fixed 0.38 mm\n\n[Scan points]\nAngle,TimePerStep,Intensity,ESD\n"
        + rows("{x:.2f},99.4,{y:.0f},{e:.6f}"),
        CU_MEAN,
        None,
    ),
    (".chi", f"S.tif\n2-Theta Angle (Degrees)\nIntensity\n   {len(X)}\n" + rows(), None, None),
    (
        ".chi",
        f"S.tif\nQ (Inverse Nanometers)\nIntensity\n   {len(X)}\n"
        + rows(" {x:.8e} {y:.7e}", 10 * q_of(X)),
        None,
        1.0,
    ),
    (
        ".dat",
        "# == pyFAI calibration ==\n# Wavelength: 1.000000e-10m\n#   q_nm^-1     I     sigma\n"
        + rows("{x:.9e} {y:.6e} {e:.6e}", 10 * q_of(X)),
        1.0,
        None,
    ),
    (
        ".asc",
        "*TYPE = Raw\n*WAVE_LENGTH1 = 1.5406\n*WAVE_LENGTH2 = 1.5444\n*START = 10.00\n"
        f"*STOP = {X[-1]}\n*STEP = 0.05\n*COUNT = {len(X)}\n"
        + "".join(" " + ", ".join(f"{v:.0f}" for v in Y[i : i + 4]) + "\n" for i in range(0, 60, 4))
        + "*END\n",
        CU_MEAN,
        None,
    ),
    (".csv", "2theta;yobs;ycalc;diff\r\n" + rows("{x:.2f};{y:.0f};7;1"), None, None),
    (".txt", "Winkel (°)\tImpulse\n" + rows("{x:g}\t{y:.0f}").replace(".", ","), None, None),
    (".txt", "Wavelength: 0.07093 nm\n" + rows("{x:.4f}   {y:.1f}"), 0.7093, None),
    (
        ".txt",
        "Wellenlänge λ = 0,7093 Å\n" + rows("{x:.2f}\t{y:.1f}").replace(".", ","),
        0.7093,
        None,
    ),
    (".csv", "sep=;\n2Theta [deg];Counts;Error\n" + rows("{x:.2f};{y:.0f};{e:.6f}"), None, None),
    (".dat", "XYDATA\nINTER 1.0 1.0 0\nTEMP 295.0\n" + rows("{x:.3f} {y:.1f} {e:.6f}"), None, None),
    (".gda", BANK + "ESD\n" + esd_fields(), None, None),
    (".gsas", BANK + "STD\n" + counts(10, " 1{:>6d}"), None, None),
    (
        ".fxye",
        "Automatically generated file\n# Calibrated wavelength = 0.413 A\n"
        + BANK.replace("title\n", "").replace("CONST", "CONS")
        + "FXYE\n"
        + rows("{x:.4f} {y:.0f} {e:.4f}", 100 * X),
        0.413,
        None,
    ),
    (".uxd", UXD + "_START=10\n_STEPSIZE=0.05\n_CPS\n" + rows("{y:.1f}"), CU_MEAN, None),
    (".xrdml", listed_xrdml(), CU_MEAN, None),
    (
        ".cif",
        "data_x\n_pd_meas_2theta_range_min 10\n_pd_meas_2theta_range_inc 0.05\nloop_\n"
        "_diffrn_radiation_wavelength\n_diffrn_radiation_wavelength_wt\n1.5406 1.0\n1.5444 0.5\n"
        "loop_\n_pd_meas_counts_total\n_pd_calc_intensity_total\n" + rows("{y:.0f}(20) 7.5"),
        CU_MEAN,
        None,
    ),
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
    if suffix in (".xye", ".fxye", ".gda") or any(w in text for w in ("ESD", "Error", "sigma")):
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
