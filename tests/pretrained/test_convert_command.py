"""`python -m launch.convert` as a user meets it."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.pretrained.test_reference import _state
from xtalnet_jax.pretrained.convert_torch import reference_params
from xtalnet_jax.pretrained.safetensors_io import load_safetensors

ROOT = Path(__file__).parents[2]


def _convert(*args):
    command = [sys.executable, "-m", "launch.convert", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_convert(tmp_path):
    source, out = tmp_path / "state.npz", tmp_path / "w.safetensors"
    np.savez(source, **_state("ccsg"))
    done = _convert(f"--checkpoint={source}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    params, config = load_safetensors(out)
    assert config["model"] == "CCSG"
    expected = reference_params(_state("ccsg"))
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_help_answers_without_jax():
    code = (
        "import sys; sys.argv = ['convert', '--help']\n"
        "import runpy\n"
        "try: runpy.run_module('launch.convert', run_name='__main__')\n"
        "except SystemExit as e: assert not e.code\n"
        "assert 'jax' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--checkpoint" in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--checkpoint=missing.ckpt", "--out=w.safetensors"], "no file missing.ckpt"),
        (["--checkpoint=missing.ckpt", "--out=w.npz"], "ends in .safetensors"),
        (["--out=w.safetensors"], "--checkpoint"),
        (["--checkpoint=a", "--out=w.safetensors", "--dtype=int8"], "int8"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(args, message):
    done = _convert(*args)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
