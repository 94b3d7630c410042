"""Many files: one folder each, one table, and nothing stops at a bad one."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.solve import tiny
from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.pxrd.io import load_pattern, save_pattern
from xtalnet_jax.pxrd.simulate import simulate_pattern
from xtalnet_jax.solve.batch import COLUMNS, folder_names, matching_files, solve_files
from xtalnet_jax.solve.solution import Candidate, Solution

RUTILE = textbook_crystals()["rutile"]


def solve(path: Path) -> Solution:
    pattern = load_pattern(path)
    if pattern.meta["file"] == "broken.xy":
        raise RuntimeError("out of\nmemory")
    fit = tiny.refined(RUTILE, pattern)
    candidate = Candidate(RUTILE, 0.03, 0.9, 0.95, "P4_2/mnm", fit.calculated, 1, fit)
    return tiny.solution([candidate], pattern, warnings=("mind the gap",))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    pattern = simulate_pattern(RUTILE, two_theta_range=(20, 60), step=0.1)
    for name in ("a.xy", "b.xy", "broken.xy"):
        save_pattern(pattern, folder / name)
    save_pattern(pattern._replace(sigma=np.ones_like(pattern.intensity)), folder / "b.xye")
    (folder / "c.xy").write_text("no pattern\n")
    return folder


def test_a_table_for_all_and_bad_files_stop_nothing(scans, tmp_path):
    files = matching_files([f"{scans}/*.xy", f"{scans}/*.xy*"])
    assert [f.name for f in files] == ["a.xy", "b.xy", "broken.xy", "c.xy", "b.xye"]
    told: list[str] = []
    rows = solve_files(files, solve, tmp_path / "out", told.append)
    verdicts = [row["verdict"] for row in rows]
    assert verdicts == ["match", "match", "error", "error", "match"]
    table = (tmp_path / "out" / "table.csv").read_text()
    assert table.splitlines()[0] == ",".join(COLUMNS)
    read = list(csv.DictReader(table.splitlines()))
    assert [r["verdict"] for r in read] == verdicts
    assert (read[0]["space_group"], read[0]["message"]) == ("P4_2/mnm", "mind the gap")
    assert float(read[0]["a"]) == pytest.approx(4.594, abs=1e-4)
    assert float(read[0]["seconds"]) == pytest.approx(1.4, abs=0.1)
    assert read[2]["message"] == "RuntimeError: out of memory"
    assert "no rows of numbers" in read[3]["message"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a", "b_xy", "b_xye", "table.csv"}
    for row in rows:
        if "folder" in row:
            assert (tmp_path / "out" / row["folder"] / "report.html").is_file()
    assert "1 of 5" in told[0]
    assert sum(text.startswith("error: ") for text in told) == 2


def test_the_table_is_there_after_an_interruption(scans, tmp_path):
    def interrupted(path: Path) -> Solution:
        if path.name == "b.xy":
            raise KeyboardInterrupt
        return solve(path)

    with pytest.raises(KeyboardInterrupt):
        solve_files(matching_files([f"{scans}/*.xy"]), interrupted, tmp_path / "out")
    assert len((tmp_path / "out" / "table.csv").read_text().splitlines()) == 2


def test_no_solution_is_a_row_too(scans, tmp_path):
    def nothing(path: Path) -> Solution:
        return solve(path)._replace(candidates=(), verdict="none")

    (row,) = solve_files([scans / "a.xy"], nothing, tmp_path / "out")
    assert (row["verdict"], row["candidates"]) == ("none", 0)
    assert "space_group" not in row


def test_a_pattern_that_matches_nothing(scans):
    with pytest.raises(ValueError, match="no file matches"):
        matching_files([f"{scans}/*.xy", f"{scans}/*.xrdml"])


def test_folder_names_are_different():
    names = folder_names([Path(p) for p in ("1/a.xy", "2/a.xy", "2/b.xy", "c.xy", "c.xye")])
    assert names == ["a_xy_1", "a_xy_2", "b", "c_xy", "c_xye"]
