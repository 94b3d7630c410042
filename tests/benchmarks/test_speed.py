"""The speed benchmarks run end to end on tiny networks and write what they promise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import inputs, layouts, sampling, scaling, startup, training

NETWORKS = {
    "model.encoder.width": 16,
    "model.encoder.ffn": 16,
    "model.encoder.heads": 2,
    "model.encoder.layers": 1,
    "model.network.width": 16,
    "model.network.layers": 1,
    "model.network.num_freqs": 4,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    count = np.array([2, 3, 6])
    intensity = rng.uniform(0.1, 1, (3, 5)).astype(np.float32)
    intensity[0, 3:] = 0
    np.savez(
        tmp_path / inputs.SIZES["MP-20"].file,
        num_atoms=count,
        atom_types=rng.integers(1, 90, 11),
        frac_coords=rng.random((11, 3), np.float32),
        lengths=np.full((3, 3), 5, np.float32),
        angles=np.full((3, 3), 90, np.float32),
        peak_id=rng.integers(500, 1300, (3, 5)),
        peak_intensity=intensity,
    )
    return tmp_path


def case(folder: Path, **fields: object) -> dict:
    common = {"size": "MP-20", "inputs": str(folder), "repeats": 1, "overrides": NETWORKS}
    return common | fields


def test_inputs_survive_the_way_into_a_recipe(folder: Path) -> None:
    from xtalnet_jax.tasks import to_form

    packed = inputs.load_inputs(folder, "MP-20")
    with np.load(folder / inputs.SIZES["MP-20"].file) as data:
        assert [len(packed.crystal(k).atomic_numbers) for k in range(3)] == [2, 3, 6]
        np.testing.assert_array_equal(packed.crystal(2).frac_coords, data["frac_coords"][5:])
        (batch,) = training.cut(packed, (6,), "one batch")
        peaks = to_form(batch.peaks, training.recipe("cpcp", {}))
        np.testing.assert_array_equal(peaks.mask, data["peak_intensity"] > 0)
        expected = np.where(peaks.mask, data["peak_id"], 0)
        np.testing.assert_array_equal(peaks.position, expected)


@pytest.mark.parametrize(
    ("task", "layout"), [("ccsg", "buckets"), ("ccsg, encoded", "mixed"), ("cpcp", "mixed")]
)
def test_training_step_is_timed(folder: Path, task: str, layout: str) -> None:
    found = training.measure(case(folder, task=task, layout=layout))
    assert found["crystals_per_s"] > 0
    assert 0.05 < found["peak_gb"] < 64


@pytest.mark.parametrize(("task", "evaluations"), [("flow", 2), ("ccsg", 2000)])
def test_sampling_is_timed(folder: Path, task: str, evaluations: int) -> None:
    found = sampling.measure(case(folder, task=task, num_steps=2))
    assert found["evaluations"] == evaluations
    assert np.isfinite(found["s_per_candidate"])


@pytest.mark.slow
def test_scaling_measures_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    published = training.recipe
    monkeypatch.setattr(scaling, "recipe", lambda task, o: published(task, NETWORKS | o))
    options = {"what": "training", "num_atoms": 5, "width": 16, "batch": 2, "chunk": 1}
    options |= {"overrides": {}, "limit": 4.0}
    found = scaling.measure(options | {"repeats": 1})
    assert found["s"] > 0
    refused = scaling.measure(options | {"repeats": 1, "limit": 0.0})
    assert np.isnan(refused["s"])
    assert refused["temporary_gb"] == found["temporary_gb"] > 0


def test_commands_are_found_and_results_written(tmp_path: Path) -> None:
    assert {"train", "sample", "evaluate"} <= set(startup.commands())
    path = tmp_path / "out" / "table.json"
    inputs.write(path, "A title", [{"what": "a", "s": 0.12345}], ["A note."])
    content = json.loads(path.read_text())
    assert content["rows"] == [{"what": "a", "s": 0.12345}]
    assert content["provenance"]["versions"]["jax"]
    assert "| a | 0.123 |" in path.with_suffix(".md").read_text()


def test_layouts_are_timed_on_the_same_crystals() -> None:
    rows = layouts.compare((2, 5), ["sparse", "square"], 1, width=16, layers=1, num_freqs=4)
    assert [row["layout"] for row in rows] == ["sparse", "square"]
    assert all(row["forward_ms"] > 0 and row["gradient_ms"] > 0 for row in rows)
    assert rows[0]["difference"] == 0
    assert 0 < rows[1]["difference"] < 1e-4
