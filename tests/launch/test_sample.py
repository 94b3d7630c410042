"""The first command of a new user, as written in the README."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.pretrained.example import example_crystal
from xtalnet_jax.pretrained.weights import BUNDLED

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(
    not (BUNDLED / "default" / "generator.safetensors").is_file(), reason="no bundled weights yet"
)
def test_bundled_example_is_solved(tmp_path):
    from pymatgen.analysis.structure_matcher import StructureMatcher

    before = os.times()
    command = [sys.executable, "-m", "launch.sample", f"--out={tmp_path}"]
    env = os.environ | {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}  # as for a user
    answer = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    after = os.times()
    # Two minutes of two cores; a busy machine stretches the wall time, not this.
    assert after.children_user - before.children_user < 240
    for name in ("candidates.csv", "candidate_01.cif", "result.json", "report.html"):
        assert (tmp_path / name).stat().st_size > 100
    best = Crystal.from_file(tmp_path / "candidate_01.cif").to_structure()
    matcher = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
    assert matcher.fit(best, example_crystal().to_structure())
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["verdict"] in ("match", "uncertain")
    assert "verdict" in answer.stdout
