"""From a recipe to weights on disk: encoder taken over, resumed as if never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from configs import ccsg, cpcp, flow
from tests.solve import tiny
from xtalnet_jax import experiment, tasks
from xtalnet_jax.data.fixtures import load_set, textbook_crystals, textbook_set
from xtalnet_jax.pretrained.weights import load_weights


def recipe(module: Any, num_steps: int = 2, **train: Any) -> Any:
    config = module.get_config("smoke")
    config.train.update(
        {"num_epochs": 0, "checkpoint_format": "npz", "tensorboard": False, **train}
    )
    config.train.optim.warmup_epochs = 0.0
    config.train.num_steps = num_steps
    return config


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpcp")
    experiment.run(recipe(cpcp), folder)
    return folder


def equal(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def test_weights_come_back_and_embed_alike(pretrained):
    params, stored = load_weights(pretrained)
    assert stored["task"] == "cpcp"
    assert not equal(params, tiny.parameters(cpcp))  # it moved
    config = recipe(cpcp)
    example = tiny.example(cpcp)
    first = tasks.make_embedder(config).crystals(params, example.crystals)
    from ml_collections import ConfigDict

    again = tasks.make_embedder(ConfigDict(stored)).crystals(params, example.crystals)
    np.testing.assert_array_equal(first, again)
    real = example.crystals.graph_mask
    np.testing.assert_allclose(np.linalg.norm(first, axis=-1)[real], 1.0, atol=1e-5)


def test_generator_takes_the_encoder_over(pretrained, tmp_path):
    config = recipe(flow, freeze=("params/pxrd_encoder",))
    config.init_from = str(pretrained)
    params = experiment.run(config, tmp_path)
    donor, _ = load_weights(pretrained)
    name = "pxrd_encoder"
    assert equal(params["params"][name], donor["params"][name])
    saved, stored = load_weights(tmp_path)
    assert equal(saved, params)
    assert set(stored["lattice_stats"]) == {"mean", "std"}
    assert (tmp_path / "metrics.jsonl").is_file()


def test_frozen_encoder_reads_each_pattern_of_the_set_but_once(tmp_path, monkeypatch):
    """With its answers at hand training goes as with the encoder in every step."""
    lines = textbook_set()
    own = {"peaks_inv_d": lines.lines_inv_d[:, :24], "peaks_strength": lines.lines_strength[:, :24]}
    measured = np.tile(np.float32([0.05, 1.0]), (lines.num_crystals, 1))
    monkeypatch.setattr(experiment, "load_set", lambda *_: lines._replace(**own, measured=measured))
    config = recipe(ccsg, num_steps=3)
    config.pattern.source = "own"
    assert tasks.pattern_encoder(config) is not None
    seen = []
    batches = experiment.EncodedBatches.batch

    def spy(self: Any, step: int) -> Any:
        seen.append(batches(self, step))
        return seen[-1]

    monkeypatch.setattr(experiment.EncodedBatches, "batch", spy)
    found = experiment.run(config, tmp_path / "once")
    assert len(seen) >= 3  # read, and not only made
    monkeypatch.setattr(tasks, "pattern_encoder", lambda _: None)
    wanted = experiment.run(config, tmp_path / "always")
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changed",
    [
        {"pattern.source": "lines"},
        {"train.freeze": ()},
        {"model.network.cross_attention": 1},
        {"task": "cpcp"},
    ],
)
def test_patterns_that_vary_or_learn_are_encoded_in_every_step(changed):
    config = recipe(ccsg)
    config.pattern.source = "own"
    with config.unlocked():
        config.update_from_flattened_dict(changed)
    assert tasks.pattern_encoder(config) is None


def test_resumed_run_equals_the_uninterrupted_one(tmp_path):
    config = recipe(cpcp, num_steps=3)
    whole = experiment.run(config, tmp_path / "whole")
    parts = tmp_path / "parts"
    first = experiment.run(config, parts, stop_after_seconds=0.0)
    assert not equal(first, whole)
    for _ in range(3):
        last = experiment.run(config, parts, stop_after_seconds=0.0)
    assert equal(last, whole)
    assert equal(load_weights(parts)[0], whole)


def test_stages_share_the_time_and_go_on_after_an_interruption(tmp_path, monkeypatch):
    """The second takes the encoder of the first; what is finished is not trained again."""
    first, second = recipe(cpcp, log_every=2), recipe(flow, log_every=2)
    second.init_from = "towers"
    stages = [("towers", first, 0.4), ("generator", second, 0.6)]
    calls: list[tuple[str, float]] = []
    run = experiment.run

    def watched(config: Any, workdir: Any, stop: float | None = None) -> Any:
        calls.append((Path(workdir).name, config.train.num_seconds))
        interrupted = len(calls) == 1
        return run(config, workdir, 0.0 if interrupted else stop)

    monkeypatch.setattr(experiment, "run", watched)
    seconds = 400.0  # the first one is stopped after one step
    assert experiment.run_in_turn(stages, tmp_path, seconds) == []
    assert not (tmp_path / "generator").exists()

    # As if most of the time had been used by now.
    (tmp_path / "spent.json").write_text('{"towers": 159.5}')
    monkeypatch.setattr(experiment, "run", lambda *a: calls.append(a) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        experiment.run_in_turn(stages, tmp_path, seconds)
    assert Path(calls[-1][1]).name == "generator"
    assert calls[-1][0].init_from == str(tmp_path / "towers")
    assert calls[-1][0].train.num_seconds == pytest.approx(240.0)
    assert second.init_from == "towers"  # the recipe given is not changed


def test_shares_that_are_not_all_of_the_time(tmp_path):
    with pytest.raises(ValueError, match=r"the shares of the stages are \[0.5\]"):
        experiment.run_in_turn([("towers", recipe(cpcp), 0.5)], tmp_path, 1.0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.train", "nowhere.npz", "no packed set at nowhere.npz"),
        ("init_from", "nowhere", "no weights at nowhere"),
        ("data.num_atoms_buckets", (1,), "no crystal of at most 1 atoms"),
        ("train.learning_rate", 1.0, "unknown training settings: learning_rate"),
    ],
)
def test_unusable_recipe(tmp_path, field, value, message):
    config = recipe(cpcp)
    *groups, last = field.split(".")
    group = config
    for name in groups:
        group = group[name]
    group[last] = value
    with pytest.raises(ValueError, match=message):
        experiment.run(config, tmp_path)


def test_textbook_set_is_in_standard_form():
    from xtalnet_jax.crystals.reduction import standardise
    from xtalnet_jax.data.standard import check_crystal

    packed = textbook_set()
    assert packed.num_crystals == len(textbook_crystals())
    for k in range(packed.num_crystals):
        crystal = packed.crystal(k)
        check_crystal(crystal)
        np.testing.assert_allclose(standardise(crystal).lattice, crystal.lattice, atol=1e-4)
    assert (packed.lines_strength.max(1) == 1).all()
    assert load_set("textbook", 4).num_atoms.max() == 4
