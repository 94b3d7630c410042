"""Safetensors files and merging of weights."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from xtalnet_jax.data.examples import gather
from xtalnet_jax.data.fixtures import textbook_set
from xtalnet_jax.pretrained.merge import merge_params
from xtalnet_jax.pretrained.safetensors_io import load_safetensors, save_safetensors
from xtalnet_jax.pretrained.weights import load_weights, solver_files
from xtalnet_jax.tasks import task_from_config


def _params():
    return {
        "params": {
            "a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": jnp.ones(3)},
            "scale": np.float32(1.5).reshape(()),
            "count": np.arange(3, dtype=np.int32),
        }
    }


def test_round_trip(tmp_path):
    path, config = tmp_path / "new" / "w.safetensors", {"model": "CPCP", "sizes": [1, 2]}
    save_safetensors(path, _params(), config)
    params, found = load_safetensors(path)
    assert found == config
    assert list(params["params"]) == ["a", "count", "scale"]
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(params["params"]["a"][name], _params()["params"]["a"][name])
    assert params["params"]["scale"].shape == ()
    assert params["params"]["count"].dtype == np.int32
    assert os.listdir(path.parent) == ["w.safetensors"]


def test_half_precision_storage_is_half_the_size_and_comes_back_as_float32(tmp_path):
    numbers = np.random.default_rng(0).normal(size=(100, 100)).astype(np.float32)
    params = {"a": numbers, "index": np.arange(5)}
    sizes = {}
    for dtype in (None, "bfloat16"):
        path = tmp_path / f"{dtype}.safetensors"
        save_safetensors(path, params, {}, dtype)
        sizes[dtype] = path.stat().st_size
        found, _ = load_safetensors(path)
        assert found["a"].dtype == np.float32
        np.testing.assert_allclose(found["a"], numbers, rtol=2**-8 if dtype else 0)
        np.testing.assert_array_equal(found["index"], np.arange(5))
    assert sizes["bfloat16"] < 0.52 * sizes[None]


def test_bytes_are_a_quarter_of_the_size_and_right_to_half_a_step_of_their_column(tmp_path):
    rng = np.random.default_rng(0)
    numbers = (rng.normal(size=(2, 90, 70)) * rng.uniform(0.1, 10, (2, 1, 70))).astype(np.float32)
    numbers[:, :, 3] = 0.0
    params = {"a": {"kernel": numbers, "bias": np.ones(70, np.float32)}, "index": np.arange(5)}
    sizes = {}
    for dtype in (None, "int8"):
        path = tmp_path / f"{dtype}.safetensors"
        save_safetensors(path, params, {"model": "x"}, dtype)
        sizes[dtype] = path.stat().st_size
    found, config = load_safetensors(path)
    assert config == {"model": "x"}
    assert set(found["a"]) == {"kernel", "bias"}
    assert found["a"]["kernel"].dtype == np.float32
    step = np.abs(numbers).max(1, keepdims=True) / 127
    error = np.abs(found["a"]["kernel"] - numbers)
    assert (error <= 0.5001 * step).all()
    assert error.max() > 0.4 * step.min()
    np.testing.assert_array_equal(found["a"]["bias"], 1)
    np.testing.assert_array_equal(found["index"], np.arange(5))
    assert sizes["int8"] < 0.28 * sizes[None]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_safetensors(path, {"a": np.ones(2)}, {"version": 1})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_safetensors(path, {"a": np.zeros(2)}, {"version": 2})
    assert os.listdir(tmp_path) == ["w.safetensors"]
    params, config = load_safetensors(path)
    assert config == {"version": 1}
    np.testing.assert_array_equal(params["a"], 1)


def test_bad_files_and_values(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(ValueError, match='without "/"'):
        save_safetensors(path, {"a/b": np.ones(1)}, {})
    with pytest.raises(ValueError, match="JSON"):
        save_safetensors(path, {"a": np.ones(1)}, {"x": object()})
    assert not path.exists()
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="no readable safetensors file"):
        load_safetensors(path)
    from safetensors.numpy import save_file

    save_file({"a": np.ones(1)}, path)
    with pytest.raises(ValueError, match="no config"):
        load_safetensors(path)


def test_merge_takes_over_what_fits_and_lists_the_rest():
    loaded = {"params": {"encoder": {"w": np.full(2, 5.0)}, "tower": {"w": np.ones(3)}}}
    inited = {"params": {"encoder": {"w": np.zeros(2)}, "decoder": {"w": np.zeros(4)}}}
    params, missing, extra = merge_params(loaded, inited)
    np.testing.assert_array_equal(params["params"]["encoder"]["w"], 5.0)
    np.testing.assert_array_equal(params["params"]["decoder"]["w"], 0.0)
    assert missing == ["params/decoder/w"]
    assert extra == ["params/tower/w"]
    assert not inited["params"]["encoder"]["w"].any()


def test_merge_refuses_other_shapes_and_strangers():
    inited = {"a": np.zeros(2), "b": np.zeros(2)}
    with pytest.raises(ValueError, match=r"1 weights have another shape .* a: \(3,\) for \(2,\)"):
        merge_params({"a": np.zeros(3), "b": np.zeros(2)}, inited)
    with pytest.raises(ValueError, match="no weight has a place"):
        merge_params({"z": np.zeros(3)}, inited)


@pytest.mark.parametrize("name", ["default", "large"])
def test_bundled_weights_fit_the_recipe_that_is_in_them(name):
    """Names, shapes and finite values, of the generator as the task of its recipe would draw it."""
    towers, generator, ranker = solver_files(name)
    assert towers.parent.name == ranker.parent.name == "default"  # of both pairs
    params, recipe = load_weights(generator)
    config = ConfigDict(recipe)
    for part in ("encoder", "network"):
        assert config.model[part].dtype in ("float32", "bfloat16")
    example = gather(textbook_set(), np.arange(2), max(config.data.num_atoms_buckets))
    expected = jax.eval_shape(task_from_config(config).init, jax.random.key(0), example)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, expected)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    assert "/" not in recipe["data"]["train"].replace("data/", "")  # no machine's folders
