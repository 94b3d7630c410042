"""The retrieve command: one folder of CIFs in, the right crystals out, filtered and resumed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.data import cases
from tests.solve import tiny
from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.pxrd.io import save_pattern
from xtalnet_jax.pxrd.simulate import simulate_pattern

ROOT = Path(__file__).parents[2]
NAMES = ("rutile", "perovskite", "rock_salt", "wurtzite")


def retrieve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.retrieve", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("retrieve")
    for name in ("weights", "cifs"):
        (place / name).mkdir()
    tiny.write_weights(place / "weights")
    for name in NAMES:
        (place / "cifs" / f"{name}.cif").write_text(cases.cif(textbook_crystals()[name]))
    (place / "cifs" / "broken.cif").write_text(cases.BROKEN_CIF)
    save_pattern(simulate_pattern(textbook_crystals()["rutile"]), place / "scan.xy")
    return place


def test_build_then_ask_with_filters(folder):
    index, scan = f"--index={folder / 'index.npz'}", f"--pattern={folder / 'scan.xy'}"
    weights = f"--weights={folder / 'weights'}"
    built = retrieve(f"--build={folder / 'cifs'}", index, weights, scan)
    assert "5/5 records, 1 left out" in built.stderr
    assert "left out broken: not a readable CIF" in built.stderr
    said, *answer = built.stdout.splitlines()
    assert said.endswith("index.npz: 4 crystals; 1 records left out")
    assert not (folder / "index.npz.partial").exists()
    rank, agreement, similarity, name, formula = answer[0].split()
    assert (rank, name, formula) == ("1", "rutile", "Ti2O4")
    assert float(agreement) > 0.95
    assert -1 <= float(similarity) <= 1
    assert {line.split()[3] for line in answer} == set(NAMES)

    asked = retrieve(index, scan, "--elements=O", "--exclude_elements=Ti", "--rerank=0")
    (only,) = asked.stdout.splitlines()
    assert only.split()[1] == "-"
    assert only.split()[3:] == ["wurtzite", "Zn2O2"]
