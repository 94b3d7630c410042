"""The ablations differ in what the paper says they do, and the command for all of them works."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import ablations
from tests.solve import tiny
from xtalnet_jax import tasks

ROWS = list(ablations.TABLE)


def module(name: str) -> Any:
    return importlib.import_module(f"configs.ablation_{name}")


@pytest.mark.parametrize("arg", ["", "cpu", "smoke"])
def test_recipes_differ_in_one_thing_after_the_other(arg):
    recipes = {name: module(name).get_config(arg).to_dict() for name in ROWS}
    pretrained = recipes["frozen"]["init_from"]
    assert bool(pretrained) == (arg != "smoke")
    for name, row in ablations.TABLE.items():
        recipe = recipes[name]
        assert recipe["init_from"] == (pretrained if row.pretrained else "")
        assert recipe["train"].pop("freeze") == (("params/pxrd_encoder",) if row.frozen else ())
        assert recipe["model"].pop("fusion") == row.fusion
        recipe.pop("init_from")
    assert all(recipe == recipes["frozen"] for recipe in recipes.values())
    assert recipes["frozen"]["task"] == "ccsg"
    assert recipes["frozen"]["model"]["network"]["width"] == {"": 512, "cpu": 128, "smoke": 32}[arg]


@pytest.mark.parametrize("name", ROWS)
def test_unknown_variant_is_refused(name):
    with pytest.raises(ValueError, match="unknown variant 'tiny'"):
        module(name).get_config("tiny")


@pytest.mark.parametrize("name", ["frozen", "scratch_add"])  # the others have the task of "frozen"
def test_the_loss_is_finite(name):
    task = tasks.task_from_config(tiny.recipe(module(name)))
    example = tiny.example(module(name))

    @jax.jit
    def loss() -> Any:
        params = task.init(jax.random.key(0), example)
        return task.loss(params, jax.random.key(1), example, True, None)[0]

    assert np.isfinite(loss())


def case(folder: Path, **fields: Any) -> dict[str, Any]:
    options = {"data": "textbook", "eval": "textbook", "variant": "smoke", "steps": 2}
    options |= {"diffusion_steps": 3, "num_items": 2, "num_candidates": 3}
    return options | {"workdir": str(folder)} | fields


def test_all_start_from_the_same_pretraining_or_from_nothing(tmp_path):
    for name, row in ablations.TABLE.items():
        config = ablations.recipe(case(tmp_path, name=name))
        assert config.init_from == (str(tmp_path / "cpcp") if row.pretrained else "")
        assert config.train.num_steps == 2
        assert config.diffusion.num_steps == 3
    assert ablations.recipe(case(tmp_path, name="cpcp")).task == "cpcp"


def test_rows_of_the_table():
    found = {
        "num_items": 80,
        "ranked": {"1": {"match %": [0.5, 0.4, 0.6], "RMSE": [0.1, 0.05, 0.2]}, "3": {}},
        "random": {"1": [0.25, 0.2, 0.3], "3": [0.5, 0.4, 0.6]},
    }
    found["ranked"]["3"] = {"match %": [0.0, 0.0, 0.1]}
    first, third = ablations.rows_of("unfrozen", found)
    assert (first["C"], first["F"], first["P"], first["k"]) == ("yes", "", "cat", 1)
    assert (first["match_%"], first["low"], first["high"]) == (50.0, 40.0, 60.0)
    assert (first["random_order_%"], first["rmse"]) == (25.0, 0.1)
    assert (third["paper_match_%"], third["paper_rmse"]) == (77.5, 0.43)
    assert math.isnan(third["rmse"])


@pytest.mark.slow
def test_two_steps_of_everything(tmp_path):
    assert ablations.measure(case(tmp_path, name="cpcp")) == {}
    for name in ("frozen", "scratch_add"):
        found = json.loads(json.dumps(ablations.measure(case(tmp_path, name=name))))
        assert found["num_items"] == 2
        assert [row["k"] for row in ablations.rows_of(name, found)] == [1, 3]


def test_an_interrupted_training_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("xtalnet_jax.experiment.run", lambda config, workdir: {})
    case = {"name": "scratch", "workdir": str(tmp_path), "variant": "smoke", "steps": 2}
    case |= {"data": "textbook", "eval": "textbook", "diffusion_steps": 2}
    with pytest.raises(SystemExit, match="was interrupted: give the command again"):
        ablations.measure(case)
