"""The page in a real browser without a network: its script runs through and fills every part."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.solve import tiny
from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.pxrd.simulate import simulate_pattern
from xtalnet_jax.solve import output
from xtalnet_jax.solve.solution import Candidate, Solution

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
RUTILE = textbook_crystals()["rutile"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
]


def rendered(page: Path, profile: Path, width: int) -> tuple[str, str]:
    """The document after its scripts ran, and what the browser had to say."""
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={profile}", f"--window-size={width},1500", "--enable-logging=stderr",
        "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    answer = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    return answer.stdout, answer.stderr


@pytest.fixture(scope="module")
def solution() -> Solution:
    pattern = simulate_pattern(RUTILE, two_theta_range=(20, 80), step=0.1)
    fit = tiny.refined(RUTILE, pattern)
    candidate = Candidate(RUTILE, 0.03, 0.9, 0.95, "P4_2/mnm", fit.calculated, 1, fit)
    return tiny.solution([candidate, candidate], pattern, warnings=("mind the gap",))


@pytest.mark.parametrize("width", [420, 1280])
def test_every_part_is_filled(solution, tmp_path, width):
    output.save_solution(solution, tmp_path)
    page, said = rendered(tmp_path / "report.html", tmp_path / "profile", width)
    assert not re.search(r"CONSOLE.*(Error|Refused|Failed)", said)
    assert page.count("<tr") == 3
    assert 'class="chosen"' in page
    assert "<h1>TiO<sub>2</sub>" in page
    assert "P4_2/mnm" in page[page.index('id="facts"') : page.index('id="plot"')]
    assert "mind the gap" in page[page.index('id="warnings"') : page.index('id="assumptions"')]
    plot = re.search(r'<canvas id="plot" width="(\d+)" height="(\d+)"', page)
    assert plot is not None
    assert 0.4 * width < int(plot[1]) < max(width, 520)  # no window is narrower than 500
    assert "_refine_special_details" in page[page.index('id="cif"') : page.index("Settings")]


def test_a_page_without_candidates_shows_the_pattern(solution, tmp_path):
    output.save_solution(solution._replace(candidates=(), verdict="none"), tmp_path)
    page, said = rendered(tmp_path / "report.html", tmp_path / "profile", 800)
    assert not re.search(r"CONSOLE.*(Error|Refused|Failed)", said)
    assert "No candidate structure was found" in page
    assert re.search(r'<canvas id="plot" width="\d+"', page)
