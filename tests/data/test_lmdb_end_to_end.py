"""The authors' data form goes through every command unchanged, and cannot run code on the way."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.data import cases
from xtalnet_jax.data import packed as packed_sets
from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.evaluation.tables import load_results
from xtalnet_jax.pretrained.weights import load_weights
from xtalnet_jax.pxrd.simulate import simulate_pattern

ROOT = Path(__file__).parents[2]
NAMES = tuple(textbook_crystals())
SPLITS = {"train": NAMES, "val": NAMES[:8]}
SPAN = (float(cases.TWO_THETA[0]), float(cases.TWO_THETA[-1]))


class Recipes(NamedTuple):
    """A pair of recipes that a user would train one after the other."""

    cpcp: str
    generator: str
    flags: tuple[str, ...]  # for both


RECIPES = {
    "default": Recipes("cpcp.py:smoke", "flow.py:smoke", ()),
    "paper": Recipes(
        "cpcp_hmof100.py:smoke", "ccsg_hmof100.py:smoke", ("--config.pattern.source=own",)
    ),
}


class Malicious:
    """Writes a file when it is unpickled by anyone who trusts it."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def command(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", f"launch.{name}", *map(str, arguments)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(line)}\n{done.stdout}\n{done.stderr}"
    return done


def records(names: tuple[str, ...]) -> list[dict]:
    """What the authors' script writes for each crystal: its cell, and its pattern on their grid."""
    crystals = [textbook_crystals()[name] for name in names]
    patterns = simulate_pattern(crystals, two_theta_range=SPAN)
    made = []
    for name, crystal, pattern in zip(names, crystals, patterns):
        np.testing.assert_allclose(pattern.two_theta, cases.TWO_THETA, atol=1e-3)
        made.append({**cases.lmdb_record(crystal), "id": name, "y": np.asarray(pattern.intensity)})
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train.lmdb`` and ``val.lmdb``; the third record of the first would run code."""
    place = tmp_path_factory.mktemp("hmof")
    for split, names in SPLITS.items():
        values = [pickle.dumps(record) for record in records(names)]
        if split == "train":
            evil = {**records(names[:1])[0], "id": "evil", "y": Malicious(place / "ran")}
            values.insert(2, pickle.dumps(evil))
        cases.write_lmdb(place / f"{split}.lmdb", values)
    return place


@pytest.fixture(scope="module")
def prepared(folder: Path) -> dict[str, Path]:
    """The packed set of each split, and what the command said of the first."""
    paths = {split: folder / "packed" / f"{split}.npz" for split in SPLITS}
    for split, path in paths.items():
        done = command("prepare", f"--source={folder}", f"--split={split}", f"--out={path}")
        path.with_suffix(".out").write_text(done.stdout)
    return paths


def test_a_malicious_record_is_refused_and_the_rest_is_prepared(folder, prepared):
    assert not (folder / "ran").exists()
    said = prepared["train"].with_suffix(".out").read_text()
    assert "1 records left out" in said
    (bad,) = json.loads(Path(f"{prepared['train']}.bad.json").read_text())
    assert bad["id"] == "record 2"
    assert "mkdir, which is neither a NumPy array nor a plain container" in bad["reason"]
    assert not Path(f"{prepared['val']}.bad.json").exists()
    for split, names in SPLITS.items():
        packed = packed_sets.load(prepared[split])
        assert list(packed.id) == list(names)
        for k, name in enumerate(names):
            found, expected = packed.crystal(k), textbook_crystals()[name]
            assert sorted(found.atomic_numbers) == sorted(expected.atomic_numbers)
            volumes = [abs(np.linalg.det(c.lattice)) for c in (found, expected)]
            assert volumes[0] == pytest.approx(volumes[1], rel=1e-5)
    pickle.loads(pickle.dumps(Malicious(folder / "ran")))  # the record is what it claims to be
    assert (folder / "ran").exists()


def test_own_patterns_arrive_as_peaks(prepared):
    packed = packed_sets.load(prepared["val"])
    ends = 2 * np.sin(np.radians(np.array(SPAN)) / 2) / 1.54184  # Cu K-alpha
    np.testing.assert_allclose(packed.measured, [ends] * len(SPLITS["val"]), rtol=1e-5)
    num_compared = 0
    for inv_d, strength, lines, heights in zip(
        packed.peaks_inv_d, packed.peaks_strength, packed.lines_inv_d, packed.lines_strength
    ):
        inside = lines[(heights > 0) & (lines > 0.04) & (lines < 0.33)]
        if len(inside):  # to within the grid; at the end of the range tails end in false peaks
            own = inv_d[(strength > 0) & (inv_d < 0.333)]
            distance = np.abs(own[:, None] - inside[None])
            assert distance.min(0).max() < 3e-4
            assert distance.min(1).max() < 3e-4
            num_compared += 1
    assert num_compared >= 4


def metrics(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("recipes", RECIPES.values(), ids=RECIPES)
def test_pretrain_train_evaluate(prepared, tmp_path, recipes):
    data = [f"--config.data.{k}={prepared[s]}" for k, s in (("train", "train"), ("eval", "val"))]
    runs = {"cpcp": tmp_path / "cpcp", "generator": tmp_path / "generator"}
    for kind, name, more in (
        ("cpcp", "pretrain", ()),
        ("generator", "train", (f"--config.init_from={runs['cpcp']}",)),
    ):
        recipe = f"--config=configs/{getattr(recipes, kind)}"
        command(name, recipe, *data, *recipes.flags, *more, f"--workdir={runs[kind]}")
        logged = metrics(runs[kind])
        losses = [v for row in logged for k, v in row.items() if k.startswith("loss")]
        assert len(losses) > 2
        assert np.isfinite(losses).all()
        _, stored = load_weights(runs[kind])
        assert stored["data"]["train"] == str(prepared["train"])
        assert stored["pattern"]["source"] == ("own" if recipes.flags else "lines")

    weights, out = tmp_path / "weights", tmp_path / "out"
    weights.mkdir()
    for kind, run in runs.items():
        shutil.copy(run / "weights.safetensors", weights / f"{kind}.safetensors")
    options = ("--num_items=2", "--num_candidates=2", "--noprofile", "--controls=", "--workers=1")
    val = prepared["val"]
    done = command("evaluate", f"--data={val}", f"--weights={weights}", f"--out={out}", *options)
    rows = load_results(out / "results.json")
    assert (out / "results.md").read_text().strip() in done.stdout
    assert {row.setting.dataset for row in rows} == {"val"}
    found = [row for row in rows if "retrieval" in row.setting.method]
    made = [row for row in rows if "generated" in row.setting.method]
    assert found
    assert made
    assert {row.setting.num_candidates for row in found} == {len(SPLITS["val"])}
    assert {row.num_items for row in made} == {2}
    shares = [v.value for row in rows for name, v in row.values.items() if name.endswith("%")]
    assert all(0 <= share <= 1 for share in shares)
    lines = (out / "generated.jsonl").read_text().splitlines()
    assert len({json.loads(line)["id"] for line in lines} & set(SPLITS["val"])) == 2
