"""What a solution leaves on disk, and what its page may not do."""

from __future__ import annotations

import csv
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.solve import tiny
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.pxrd.io import load_pattern
from xtalnet_jax.pxrd.pattern import Pattern
from xtalnet_jax.pxrd.simulate import simulate_pattern
from xtalnet_jax.solve import cif, output, report
from xtalnet_jax.solve.plausibility import space_group_of
from xtalnet_jax.solve.solution import Candidate, Solution, verdict_of

HEADER = "rank,file,formula,space_group,a,b,c,alpha,beta,gamma,volume,rwp,similarity,confidence"
RUTILE = textbook_crystals()["rutile"]


def displaced(seed: int) -> Crystal:
    move = 0.03 * np.random.default_rng(seed).normal(size=RUTILE.frac_coords.shape)
    return RUTILE._replace(frac_coords=(RUTILE.frac_coords + move) % 1.0)


def crowded() -> Crystal:
    """Two oxygens 0.09 angstrom apart: symmetrising at 0.1 angstrom would merge them."""
    numbers = np.append(RUTILE.atomic_numbers, 8)
    extra = RUTILE.frac_coords[-1:] + [[0.0, 0.0, 0.03]]
    return RUTILE._replace(
        atomic_numbers=numbers, frac_coords=np.concatenate([RUTILE.frac_coords, extra])
    )


@pytest.fixture(scope="module")
def pattern() -> Pattern:
    found = simulate_pattern(RUTILE, two_theta_range=(20, 80), step=0.1)
    return found._replace(
        meta={
            "file": "scan.xy",
            "sample": "</script><script>alert(1)</script>",
            "wavelengths": (1.540593, 1.544427),
            "note": "negative angles dropped; 3 points without uncertainty got the median one",
        }
    )


@pytest.fixture(scope="module")
def solved(pattern: Pattern) -> Solution:
    crystals = [RUTILE, displaced(0), crowded()]
    judged = [(0.03, 0.9, 0.95), (0.3, 0.4, 0.2), (float("nan"), 0.1, 0.01)]
    candidates = [
        Candidate(c, *numbers, space_group_of(c), fit.calculated, 1, fit)
        for c, numbers in zip(crystals, judged)
        for fit in [tiny.refined(c, pattern)]
    ]
    return tiny.solution(candidates, pattern, warnings=('a "warning" with <b>', "</script>"))


# Files --------------------------------------------------------------------------------------------


def test_files_and_columns(solved, tmp_path):
    paths = output.save_solution(solved, tmp_path / "deep" / "out")
    names = {p.name for p in (tmp_path / "deep" / "out").iterdir()}
    assert names == {p.name for p in paths}
    cifs = [f"candidate_0{i}.cif" for i in (1, 2, 3)]
    assert names == {"candidates.csv", "result.json", "report.html", *cifs}
    text = (tmp_path / "deep" / "out" / "candidates.csv").read_text()
    assert text.splitlines()[0] == HEADER
    first, second, third = csv.DictReader(text.splitlines())
    assert (first["rank"], first["file"], first["formula"]) == ("1", "candidate_01.cif", "Ti2O4")
    assert first["space_group"] == "P4_2/mnm"
    cell = [float(first[k]) for k in ("a", "b", "c", "alpha", "beta", "gamma", "volume")]
    np.testing.assert_allclose(cell, [4.594, 4.594, 2.959, 90, 90, 90, 62.449], atol=1e-3)
    assert [float(first[k]) for k in ("rwp", "similarity", "confidence")] == [0.03, 0.9, 0.95]
    assert second["space_group"] == "P1"
    assert third["rwp"] == ""


def test_result_is_strict_json(solved, tmp_path):
    output.save_solution(solved, tmp_path)

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "result.json").read_text()
    result = json.loads(text, parse_constant=refuse)
    assert result["verdict"] == "match"
    assert result["formula"] == "TiO2"
    assert [c["rank"] for c in result["candidates"]] == [1, 2, 3]
    assert result["candidates"][2]["rwp"] is None
    assert result["candidates"][0]["votes"] == 1
    assert result["warnings"] == list(solved.warnings)
    assert result["seconds"]["search"] == 1.25
    assert "doublet" in result["assumptions"][0]
    assert result["pattern"]["file"] == "scan.xy"
    assert result["candidates"][0]["refined"]["b_iso"] == [0.73, 0.12]
    assert result["candidates"][0]["refined"]["a"] == [4.594, 0.0002]


def test_cifs_read_back_to_the_structures(solved, tmp_path):
    from pymatgen.analysis.structure_matcher import StructureMatcher

    output.save_solution(solved, tmp_path)
    matcher = StructureMatcher(stol=0.1, scale=False, primitive_cell=True)
    for rank, candidate in enumerate(solved.candidates[:2], start=1):
        text = (tmp_path / output.cif_name(rank)).read_text()
        read = Crystal.from_file(tmp_path / output.cif_name(rank))
        assert matcher.fit(read.to_structure(), candidate.structure)
        assert text.startswith(f"# xtalnet_jax {output.__version__}, candidate {rank}: R_wp")
    assert "P4_2/mnm" in (tmp_path / "candidate_01.cif").read_text()
    assert "'P 1'" in (tmp_path / "candidate_02.cif").read_text()


def test_no_atom_is_lost_to_symmetry(solved):
    claimed = solved.candidates[2]._replace(space_group="P4_2/mnm")
    setting = cif.conventional(claimed)
    assert not setting.symmetrised
    assert cif.conventional(solved.candidates[0]).symmetrised
    text = cif.cif_text(claimed, solved, 3, setting)
    assert "'P 1'" in text
    assert len(re.findall(r"^O O\d+ ", text, re.MULTILINE)) == 5


def test_how_far_symmetry_moved_the_atoms_is_said(solved):
    frac = RUTILE.frac_coords.copy()
    frac[0, 2] += 0.02  # 0.06 angstrom along c
    candidate = solved.candidates[0]._replace(crystal=RUTILE._replace(frac_coords=frac))
    assert 0.02 < cif.conventional(candidate).moved < 0.06
    assert cif.conventional(solved.candidates[0]).moved < 1e-3


# CIF ----------------------------------------------------------------------------------------------


def blocks(folder: Path) -> Any:
    from gemmi import cif as gemmi_cif

    return [gemmi_cif.read(str(f)).sole_block() for f in sorted(folder.glob("candidate_*.cif"))]


def test_cif_says_symmetry_parameters_and_how_it_was_made(solved, tmp_path):
    from gemmi import cif as gemmi_cif

    output.save_solution(solved, tmp_path)
    first, second, third = blocks(tmp_path)

    def value(name: str) -> str:
        return gemmi_cif.as_string(first.find_value(name))

    assert value("_symmetry_space_group_name_H-M") == "P4_2/mnm"
    assert len(first.find_values("_symmetry_equiv_pos_as_xyz")) == 16
    assert value("_cell_length_a") == "4.5940(2)"
    assert value("_cell_length_c") == "2.9590(3)"
    assert value("_cell_angle_gamma") == "90"
    assert list(first.find_values("_atom_site_B_iso_or_equiv")) == ["0.73(12)"] * 2
    assert value("_pd_proc_ls_prof_wR_factor") == "0.03000"
    assert value("_diffrn_radiation_wavelength") == "1.541840"
    assert value("_pd_calib_2theta_offset") == "-0.021(4)"
    assert value("_refine_ls_number_parameters") == "12"
    assert f"xtalnet_jax {output.__version__}, weights default, seed 7" in value(
        "_computing_structure_solution"
    )
    assert json.loads(value("_xtalnet_settings")) == dict(solved.settings)
    assert "doublet 1.54059 and 1.54443" in value("_xtalnet_assumptions")
    assert "moving atoms by at most 0.000 angstrom" in value("_refine_special_details")
    assert "without symmetry" in second.find_value("_refine_special_details")
    assert third.find_value("_pd_proc_ls_prof_wR_factor") is None  # it is not known


def test_the_best_cif_holds_the_pattern_and_reads_back_as_one(solved, tmp_path):
    from gemmi import cif as gemmi_cif

    output.save_solution(solved, tmp_path)
    first, second, _ = blocks(tmp_path)
    read = load_pattern(tmp_path / "candidate_01.cif")
    np.testing.assert_allclose(read.two_theta, solved.pattern.two_theta, rtol=1e-7)
    np.testing.assert_allclose(read.intensity, solved.pattern.intensity, rtol=1e-6, atol=1e-6)
    assert read.wavelength == pytest.approx(solved.pattern.wavelength)

    def column(name: str) -> np.ndarray:
        return np.array([gemmi_cif.as_number(v) for v in first.find_values(name)])

    half = 0.5 * solved.pattern.intensity
    np.testing.assert_allclose(column("_pd_calc_intensity_total"), half, rtol=1e-5, atol=1e-8)
    straight = 5.0 - np.linspace(-1, 1, len(half))
    np.testing.assert_allclose(column("_pd_proc_intensity_bkg_calc"), straight, rtol=1e-5)
    assert not list(second.find_values("_pd_meas_2theta_scan"))


def test_a_pattern_without_its_second_line_is_called_processed(solved, tmp_path):
    meta = {"stripped": (1.540593, 1.544427), "wavelengths": (1.540593,), "file": "scan.xy"}
    stripped = solved.pattern._replace(meta=meta, wavelength=1.540593)
    output.save_solution(solved._replace(pattern=stripped), tmp_path)
    first = blocks(tmp_path)[0]
    assert not list(first.find_values("_pd_meas_intensity_total"))
    assert len(list(first.find_values("_pd_proc_intensity_total"))) == len(stripped.two_theta)
    assert "K-alpha2" in first.find_value("_pd_proc_info_data_reduction")
    assert "K-alpha2" in json.loads((tmp_path / "result.json").read_text())["assumptions"][0]
    assert load_pattern(tmp_path / "candidate_01.cif").wavelength == pytest.approx(1.540593)


def test_pymatgen_reads_the_cifs_without_a_word(solved, tmp_path, recwarn):
    from pymatgen.core import Structure

    output.save_solution(solved, tmp_path)
    for rank, num_atoms in ((1, 6), (2, 6), (3, 7)):
        recwarn.clear()
        read = Structure.from_file(tmp_path / output.cif_name(rank))
        assert len(read) == num_atoms
        assert not [w for w in recwarn if "CIF" in str(w.message)]


def test_long_and_foreign_text_is_still_a_cif(solved, tmp_path):
    from gemmi import cif as gemmi_cif

    meta = {"file": "ä b'c\".xy", "note": "line\nbreak; " + "x" * 5000 + "; ;"}
    odd = solved._replace(pattern=solved.pattern._replace(meta=meta))
    output.save_solution(odd, tmp_path)
    text = (tmp_path / "candidate_01.cif").read_text(encoding="ascii")
    assert max(map(len, text.splitlines())) <= 2048
    block = gemmi_cif.read_string(text).sole_block()
    assert "b'c" in gemmi_cif.as_string(block.find_value("_pd_meas_special_details"))


def test_uncertainties_of_centred_cells_are_left_out_where_unknown(solved):
    salt = textbook_crystals()["rock_salt"]
    fit = tiny.refined(salt, solved.pattern, cell_esd=np.full(6, 4e-4))
    candidate = solved.candidates[0]._replace(crystal=salt, fit=fit, space_group="Fm-3m")
    lattice = cif.conventional(candidate).structure.lattice
    a = np.linalg.norm(salt.lattice[0])
    esd = cif.cell_esd(lattice, fit)
    np.testing.assert_allclose(esd[:3], 4e-4 * lattice.a / a)
    assert esd[3:] == [None] * 3
    stretched = lattice.matrix * [1.0, 1.0, 1.3]
    assert cif.cell_esd(type(lattice)(stretched), fit) == [None] * 6


def test_earlier_candidates_go_other_files_stay(solved, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    output.save_solution(solved, tmp_path)
    output.save_solution(solved._replace(candidates=solved.candidates[:1]), tmp_path)
    assert sorted(p.name for p in tmp_path.glob("candidate_*.cif")) == ["candidate_01.cif"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.glob(".writing*"))


def test_nothing_found_is_written_too(solved, tmp_path):
    output.save_solution(solved._replace(candidates=(), verdict="none"), tmp_path)
    assert (tmp_path / "candidates.csv").read_text() == HEADER + "\n"
    assert "No candidate structure was found" in (tmp_path / "report.html").read_text()


def test_folder_that_cannot_be_written(solved, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(ValueError, match="cannot write to the folder"):
            output.save_solution(solved, folder)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_failure_midway_leaves_the_earlier_solution(solved, tmp_path, monkeypatch):
    output.save_solution(solved, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    write = Path.write_text

    def full_disk(self: Path, *args: Any, **kwargs: Any) -> int:
        if self.name == "report.html":
            raise OSError(28, "No space left on device")
        return write(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space"):
        output.save_solution(solved._replace(candidates=solved.candidates[:1]), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# Report -------------------------------------------------------------------------------------------


def page_of(solution: Solution) -> tuple[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        output.save_solution(solution, folder)
        page = (Path(folder) / "report.html").read_text(encoding="utf-8")
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return page, json.loads(text[1])


def test_page_needs_nothing_from_outside(solved):
    page, _ = page_of(solved)
    assert not re.search(r"https?:|//cdn|@import|url\(|src=|<link", page)
    assert not re.search(r"__[A-Z]+__", page)


def test_data_of_the_page_are_those_of_the_solution(solved):
    _, data = page_of(solved)
    np.testing.assert_allclose(data["two_theta"], solved.pattern.two_theta, atol=1e-4)
    np.testing.assert_allclose(data["observed"], solved.pattern.intensity, atol=1e-2)
    first = data["candidates"][0]
    assert len(first["calculated"]) == len(data["two_theta"])
    assert [a[0] for a in first["atoms"]].count("Ti") == 9  # eight corners and the middle
    ends = {tuple(sorted(first["atoms"][k][0] for k in bond)) for bond in first["bonds"]}
    assert ends == {("O", "Ti")}
    assert first["ticks"][0] == pytest.approx(27.457 + 0.021, abs=2e-3)  # rutile 110, zero shift
    np.testing.assert_allclose(first["background"], 5.0 - np.linspace(-1, 1, 601), atol=1e-3)
    assert "_pd_meas_2theta_scan" not in first["cif"]
    assert ["zero shift", "0.021(4)°"] in first["facts"]
    assert "doublet" in data["assumptions"][0]
    assert data["assumptions"][1] == "negative angles dropped"
    assert data["candidates"][2]["row"]["rwp"] is None
    assert set(data["elements"]) == {"Ti", "O"}
    assert sorted(data["columns"]) == sorted(HEADER.split(","))


def test_hostile_text_stays_text(solved):
    page, data = page_of(solved)
    assert data["settings"]["pattern: sample"] == solved.pattern.meta["sample"]
    assert data["warnings"] == list(solved.warnings)
    assert page.count("</script>") == 2
    assert page.count("<script") == 2
    assert "alert(1)</" not in page
    hostile = solved._replace(formula="<img src=x>", warnings=("<!--<script>",))
    page, data = page_of(hostile)
    assert "<img" not in page
    assert "<!--" not in page
    assert data["warnings"] == ["<!--<script>"]


def test_long_patterns_are_thinned_but_keep_their_maxima(solved):
    x = np.linspace(5, 90, 20001)
    y = np.zeros_like(x)
    y[[17, 5003, 19990]] = 10.0, 30.0, 20.0
    _, data = page_of(solved._replace(pattern=Pattern(x, y, 1.54184)))
    assert len(data["two_theta"]) <= report.MAX_POINTS
    assert sorted(v for v in data["observed"] if v) == [10.0, 20.0, 30.0]


def test_scan_from_zero_to_wide_angles_can_be_reported(solved):
    x = np.linspace(0, 170, 500)
    page_of(solved._replace(pattern=Pattern(x, np.sin(x) ** 2, 1.54184)))


# Verdict ------------------------------------------------------------------------------------------


def test_verdict():
    assert verdict_of([0.1, 0.7]) == "match"
    assert verdict_of([0.69]) == verdict_of([0.15]) == "uncertain"
    assert verdict_of([0.149]) == verdict_of([]) == "none"
    assert verdict_of([0.1, 0.05]) == "uncertain"  # one of the two is right, who knows which


def test_probability_that_none_is_right(solved: Solution):
    made = [c._replace(confidence=sure) for c, sure in zip(solved.candidates, (0.5, 0.3))]
    assert solved._replace(candidates=tuple(made)).none_right == pytest.approx(0.2)
    assert solved._replace(candidates=()).none_right == 1.0
