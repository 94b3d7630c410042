"""The comparison of backbones runs end to end on textbook crystals and accounts for its time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import backbones


def case(folder: Path, kind: str) -> dict:
    sizes = {"model.network.width": 16, "model.network.layers": 2, "data.num_atoms_buckets": (6,)}
    return {
        "kind": kind,
        "workdir": str(folder),
        "seconds": 0.0,
        "variant": "smoke",
        "train": "",
        "eval": "",
        "evaluations": 2,
        "pace_steps": 4,
        "overrides": sizes,
    }


def test_recipes_differ_in_the_backbone_only(tmp_path: Path) -> None:
    ours, theirs = (backbones.recipe(case(tmp_path, k)).to_dict() for k in backbones.VARIANTS)
    kinds = [config["model"].pop("network")["kind"] for config in (ours, theirs)]
    assert kinds == ["cspnet", "transformer"]
    assert ours == theirs


def test_evaluations_are_left_out_of_the_time() -> None:
    losses = dict.fromkeys(backbones.LOSSES, 1.0)
    train = [(10, 100.0, 0.5), (20, 103.0, 1.0), (30, 112.0, 1.5)]
    records = [{"split": "train", "step": s, "time": t, "epoch": e} for s, t, e in train]
    for place, (step, time) in ((2, (20, 109.0)), (4, (30, 118.0))):
        records.insert(place, {"split": "eval", "step": step, "time": time, **losses})
    first, last = backbones.curve(records, num_crystals=8, pace=0.2)
    assert first == {"step": 20, "crystals": 8, "seconds": 2.0 + 3.0, **losses}
    assert last == {"step": 30, "crystals": 12, "seconds": 2.0 + 3.0 + 3.0, **losses}


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(backbones.VARIANTS))
def test_a_backbone_is_trained_to_the_end_of_its_schedule(tmp_path: Path, kind: str) -> None:
    found = backbones.measure(case(tmp_path, kind))
    json.dumps(found)
    records = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    train = [r for r in map(json.loads, records) if r["split"] == "train"]
    assert train[-1]["step"] == found["num_steps"] == found["points"][-1]["step"]
    assert train[-1]["learning_rate"] < 0.6 * max(r["learning_rate"] for r in train)
    assert found["points"][-1]["crystals"] > found["num_steps"]
    assert found["points"][-1]["seconds"] > 0
    assert 0 < found["backbone_parameters"] < found["parameters"]
    assert f"{kind}: {found['parameters']:,} parameters" in backbones.summary(kind, found)
