"""The prepare command: help at once, one sentence for bad input, the same result when resumed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.data import cases
from xtalnet_jax.data import packed as packed_sets
from xtalnet_jax.data import packing

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "launch.prepare"]


def prepare(*flags, check=True):
    done = subprocess.run([*COMMAND, *map(str, flags)], cwd=ROOT, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


def test_help_answers_without_importing_jax():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['prepare', '--help']\n"
        "try:\n    runpy.run_module('launch.prepare', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert 'jax' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--source" in done.stdout
    assert "--max_atoms" in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out=p.npz"], "give either --source=PATH or --dataset=NAME"),
        (["--source=x"], "--out must name the .npz to write"),
        (["--source=nowhere", "--out=p.npz"], "there is nothing at nowhere"),
        (["--dataset=mp20", "--out=p.npz"], "needs --manual_dir"),
        (["--dataset=mp20", "--manual_dir=nowhere", "--out=p.npz"], "there is no folder nowhere"),
        (["--source=README.md", "--out=p.npz", "--num_lines=0"], "num_lines"),
        (["--sauce=x"], "sauce"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(flags, message):
    done = prepare(*flags, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not Path(ROOT, "p.npz").exists()


def test_cif_folder_becomes_a_packed_set(tmp_path):
    (tmp_path / "cifs").mkdir()
    for i, crystal in enumerate(cases.crystals(3)):
        (tmp_path / "cifs" / f"{i}.cif").write_text(cases.cif(crystal))
    (tmp_path / "cifs" / "broken.cif").write_text(cases.BROKEN_CIF)
    out = tmp_path / "deep" / "p.npz"
    done = prepare(f"--source={tmp_path / 'cifs'}", f"--out={out}", "--num_lines=16")
    assert "left out broken: not a readable CIF" in done.stdout
    assert "3 crystals of at most" in done.stdout
    assert "4/4 records, 1 left out" in done.stderr
    packed = packed_sets.load(out)
    assert list(packed.id) == ["0", "1", "2"]
    assert packed.lines_inv_d.shape == (3, 16)
    written = out.stat().st_mtime_ns
    prepare(f"--source={tmp_path / 'cifs'}", f"--out={out}", "--num_lines=16")
    assert out.stat().st_mtime_ns == written


def test_named_data_set(tmp_path):
    cases.write_npz(tmp_path / "val.npz", cases.crystals(3))
    out = tmp_path / "p.npz"
    prepare("--dataset=npz", f"--manual_dir={tmp_path}", "--split=val", f"--out={out}")
    assert packed_sets.load(out).num_crystals == 3
    assert (tmp_path / "tfds" / "npz").is_dir()


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on(tmp_path):
    num = 2 * packing.CHUNK
    path = cases.write_npz(tmp_path / "some.npz", cases.crystals(num, max_atoms=2))
    out = tmp_path / "p.npz"
    flags = [f"--source={path}", f"--out={out}", "--num_lines=8", "--inv_d_max=0.3"]
    with subprocess.Popen([*COMMAND, *flags], cwd=ROOT, stderr=subprocess.PIPE) as running:
        parts = out.with_name("p.npz.parts")
        while not list(parts.glob("*/000000.npz")) and running.poll() is None:
            time.sleep(0.002)
        os.kill(running.pid, signal.SIGKILL)
    assert not out.exists()
    done = prepare(*flags)
    first = next(line for line in done.stderr.splitlines() if "records" in line)
    assert f"{packing.CHUNK}/{num} records" in first
    assert " 0/s" in first  # found, not made
    packed = packed_sets.load(out)
    np.testing.assert_array_equal(packed.id, [f"c{i}" for i in range(num)])
    assert not parts.exists()
