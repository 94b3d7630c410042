"""What is on the disk: formats, damage, retention, and the log."""

from __future__ import annotations

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training import toy
from xtalnet_jax.training import checkpoint
from xtalnet_jax.training.metrics_log import MetricsLog, read_metrics
from xtalnet_jax.training.payload import read_arrays, write_arrays
from xtalnet_jax.training.state import init_state

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
SHAPES = jax.eval_shape(
    lambda key: init_state(toy.init(key, toy.Source().batch(0)), TX, True), jax.random.key(0)
)


def make_state(step: int):
    params = toy.init(jax.random.key(step), toy.Source().batch(0))
    return jax.device_get(init_state(params, TX, True)._replace(step=jnp.int32(step)))


@pytest.mark.parametrize("format", ["npz", "orbax"])
def test_round_trip(tmp_path, format):
    state = make_state(7)
    checkpoint.save(tmp_path, state, {"task": "toy"}, format=format)
    restored, meta = checkpoint.restore(tmp_path, SHAPES)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert toy.equal(restored, state)
    assert meta["task"] == "toy"
    assert meta["step"] == checkpoint.latest_step(tmp_path) == 7
    params, meta = checkpoint.load_params(tmp_path, average=False)
    assert toy.equal(params, state.params)
    assert jax.tree.structure(params) == jax.tree.structure(state.params)


def test_nothing_to_restore(tmp_path):
    assert checkpoint.restore(tmp_path / "none", SHAPES) is None
    assert checkpoint.latest_step(tmp_path / "none") is None
    with pytest.raises(ValueError, match="no readable checkpoint"):
        checkpoint.load_params(tmp_path)


def test_average_is_loaded_where_there_is_one(tmp_path):
    state = make_state(3)
    state = state._replace(ema_params=jax.tree.map(lambda x: x + 1, state.params))
    checkpoint.save(tmp_path / "a", state, {}, format="npz")
    assert toy.equal(checkpoint.load_params(tmp_path / "a")[0], state.ema_params)
    checkpoint.save(tmp_path / "b", state._replace(ema_params=()), {}, format="npz")
    assert toy.equal(checkpoint.load_params(tmp_path / "b")[0], state.params)


def test_files_stay_below_their_limit(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"a/{i}": rng.normal(size=n).astype(np.float32) for i, n in enumerate((40000, 3, 0))}
    arrays |= {f"b/{i}": rng.normal(size=(50, 30)) for i in range(30)}
    arrays["c"] = np.asarray(jnp.arange(70000, dtype=jnp.bfloat16).reshape(7, 10000))
    arrays["d"] = np.int32(5)
    limit = 64 * 1024
    write_arrays(tmp_path, arrays, "npz", limit)
    sizes = [file.stat().st_size for file in tmp_path.glob("part-*.npz")]
    assert len(sizes) > 5
    assert max(sizes) <= limit
    back = read_arrays(tmp_path)
    assert list(back) == list(arrays)
    for path, array in arrays.items():
        assert back[path].dtype == array.dtype
        assert back[path].shape == np.shape(array)
        assert back[path].tobytes() == np.asarray(array).tobytes()


def test_parts_too_small_for_anything(tmp_path):
    with pytest.raises(ValueError, match="too small"):
        write_arrays(tmp_path, {"a": np.zeros(3)}, "npz", 100)


def damage_cut(directory):
    file = directory / "part-0000.npz"
    file.write_bytes(file.read_bytes()[:-2000])


def damage_flip(directory):
    file = directory / "part-0000.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def damage_meta(directory):
    (directory / "meta.json").unlink()


def damage_table(directory):
    (directory / "arrays.json").write_text("{")


@pytest.mark.parametrize("damage", [damage_cut, damage_flip, damage_meta, damage_table])
def test_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, damage):
    for step in (1, 2):
        checkpoint.save(tmp_path, make_state(step), {}, format="npz")
    damage(tmp_path / "00000002")
    with pytest.warns(UserWarning, match="checkpoint 2 .* damaged"):
        state, _ = checkpoint.restore(tmp_path, SHAPES)
    assert toy.equal(state, make_state(1))
    with pytest.warns(UserWarning, match="damaged"):
        assert toy.equal(checkpoint.load_params(tmp_path)[0], make_state(1).params)


def test_damaged_orbax_checkpoint_is_skipped(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, make_state(step), {})
    for file in (tmp_path / "00000002" / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="checkpoint 2 .* damaged"):
        state, _ = checkpoint.restore(tmp_path, SHAPES)
    assert toy.equal(state, make_state(1))


def test_half_written_checkpoint_is_not_seen_and_is_swept_away(tmp_path):
    checkpoint.save(tmp_path, make_state(1), {}, format="npz")
    half = tmp_path / ".tmp-00000002-1"
    half.mkdir()
    (half / "part-0000.npz").write_bytes(b"PK")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert int(checkpoint.restore(tmp_path, SHAPES)[0].step) == 1
    checkpoint.save(tmp_path, make_state(3), {}, format="npz")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000001", "00000003"]


def test_all_damaged_is_an_error(tmp_path):
    damage_cut(checkpoint.save(tmp_path, make_state(1), {}, format="npz"))
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="all"):
        checkpoint.restore(tmp_path, SHAPES)


def test_latest_and_best_are_kept(tmp_path):
    for step, metric in enumerate([3.0, 1.0, None, 2.0, float("nan"), 5.0], start=1):
        checkpoint.save(tmp_path, make_state(step), {}, format="npz", keep=2, metric=metric)
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [2, 5, 6]
    assert checkpoint.best_metric(tmp_path) == 1.0


def test_state_that_is_not_finite_is_never_written(tmp_path):
    state = make_state(4)
    state.params["params"]["head"]["w"] = np.full((32, 1), np.nan, np.float32)
    with pytest.raises(checkpoint.NonFiniteError, match=r"params/params/head/w .* step 4"):
        checkpoint.save(tmp_path, state, {}, format="npz")
    assert not list(tmp_path.iterdir())


def test_checkpoint_of_another_model_is_refused(tmp_path):
    state = make_state(1)
    checkpoint.save(tmp_path, state, {}, format="npz")
    with pytest.raises(ValueError, match="lacks nothing and has unexpected"):
        checkpoint.restore(tmp_path, SHAPES._replace(ema_params=()))
    narrow = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), SHAPES)
    with pytest.raises(ValueError, match=r"expected .*\(1,"):
        checkpoint.restore(tmp_path, narrow)


def test_log_is_cut_back_to_the_resumed_step(tmp_path):
    log = MetricsLog(tmp_path, 0, tensorboard=False)
    for step in (5, 10, 15):
        log.write(step, "train", {"loss": float(step)})
    log.write(10, "eval", {"loss": 0.0})
    log.close()
    path = tmp_path / "metrics.jsonl"
    with open(path, "a") as file:
        file.write('{"step": 20, "spl')
    log = MetricsLog(tmp_path, 10, tensorboard=False)
    log.write(15, "train", {"loss": -1.0})
    log.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == read_metrics(path)
    assert [(row["step"], row["split"], row["loss"]) for row in rows] == [
        (5, "train", 5.0),
        (10, "train", 10.0),
        (10, "eval", 0.0),
        (15, "train", -1.0),
    ]
