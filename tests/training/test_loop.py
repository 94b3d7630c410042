"""The loop in one process: resuming, stopping, evaluating, failing."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import toy
from xtalnet_jax.training import checkpoint
from xtalnet_jax.training.loop import train
from xtalnet_jax.training.metrics_log import read_metrics
from xtalnet_jax.training.parallel import make_parallel
from xtalnet_jax.training.prefetch import prefetch


class Stopping(toy.Source):
    """Sends a signal to this process when a certain step is asked for."""

    def __init__(self, step: int, number: int):
        super().__init__()
        self.step, self.number = step, number

    def batch(self, step: int):
        if step == self.step:
            os.kill(os.getpid(), self.number)
        return super().batch(step)


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"steps_per_dispatch": 5, "optim": {"schedule": "reference", "warmup_epochs": 1}},
        {"accumulate": 2, "freeze": ["params/encoder"], "clip": 0.1},
    ],
)
def test_resumed_run_equals_uninterrupted_one(tmp_path, extra):
    config = toy.config(ema_decay=0.9, seed=3, **extra)
    source = toy.Source(ragged=True)
    whole = train(toy.noisy, source, config, tmp_path / "a", stream=None)
    for _ in range(3):  # each call stops after one dispatch
        state = train(toy.noisy, source, config, tmp_path / "b", None, 0.0, stream=None)
        assert 0 < state.step < 20
    state = train(toy.noisy, source, config, tmp_path / "b", stream=None)
    assert int(state.step) == int(whole.step) == 20
    assert toy.equal(whole, state)
    a, b = (read_metrics(tmp_path / x / "metrics.jsonl") for x in "ab")
    assert [row["step"] for row in a] == [row["step"] for row in b] == [5, 10, 15, 20]


def test_loss_goes_down_and_the_seed_matters(tmp_path):
    config = toy.config(num_steps=150, log_every=50)
    states = [
        train(toy.noisy, toy.Resident(), config | {"seed": s}, tmp_path / str(s), stream=None)
        for s in (0, 1)
    ]
    assert not toy.equal(states[0].params, states[1].params)
    losses = [row["loss"] for row in read_metrics(tmp_path / "0" / "metrics.jsonl")]
    assert losses[2] < 0.6 * losses[0]


def test_resident_data_train_like_the_same_rows_sent(tmp_path):
    resident = toy.Resident()

    class Sent:
        num_steps_per_epoch = 4

        def batch(self, step):
            rows = resident.batch(step)["rows"]
            return {name: x[rows] for name, x in resident.resident.items()}

    a = train(toy.noisy, resident, toy.config(), tmp_path / "a", stream=None)
    b = train(toy.noisy, Sent(), toy.config(), tmp_path / "b", stream=None)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a.params, b.params)


def test_scanned_steps_are_the_same_steps(tmp_path):
    source = toy.Source()
    a = train(toy.noisy, source, toy.config(), tmp_path / "a", stream=None)
    b = train(toy.noisy, source, toy.config(steps_per_dispatch=5), tmp_path / "b", stream=None)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a.params, b.params)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_run_with_a_checkpoint(tmp_path, number):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stream = io.StringIO()
    config = toy.config(num_steps=2000, log_every=500)
    state = train(toy.plain, Stopping(30, number), config, tmp_path, stream=stream)
    step = int(state.step)
    assert 20 < step < 40  # the source is asked a little ahead of the step
    assert checkpoint.latest_step(tmp_path / "checkpoints") == step
    assert f"stopped by {number.name} after step {step}" in stream.getvalue()
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_non_finite_metric_is_named_with_its_step(tmp_path):
    source = toy.Source()
    bad = next(i for i in range(100) if source.batch(i)["x"].max() > 3.5)
    assert bad > 3
    config = toy.config(num_steps=100, log_every=50, checkpoint_every_steps=1, checkpoint_keep=99)
    with pytest.raises(checkpoint.NonFiniteError, match=f"step {bad}: worst is inf"):
        train(toy.poisoned, source, config, tmp_path / "often", stream=None)
    assert checkpoint.latest_step(tmp_path / "often" / "checkpoints") == bad
    with pytest.raises(checkpoint.NonFiniteError, match=f"step {bad}: worst is inf"):
        train(
            toy.poisoned,
            source,
            config | {"checkpoint_every_steps": 0},
            tmp_path / "seldom",
            stream=None,
        )
    assert checkpoint.latest_step(tmp_path / "seldom" / "checkpoints") is None


def test_evaluation_is_repeatable_weighted_and_chooses_the_best(tmp_path):
    class Uneven:
        num_steps_per_epoch = 2

        def batch(self, step):
            return toy.Source(rows=(8, 24)[step]).batch(step)

    seen = []

    def more(params, step):
        seen.append((params, step))
        return {"score": -step}

    config = toy.config(eval_every=5, ema_decay=0.5, best_metric="-score", checkpoint_keep=1)
    state = train(
        toy.noisy, toy.Source(), config, tmp_path, Uneven(), evaluate_fn=more, stream=None
    )
    rows = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["split"] == "eval"]
    assert [r["step"] for r in rows] == [5, 10, 15, 20]
    both = [toy.loss(state.ema_params, None, Uneven().batch(i), False, None)[0] for i in (0, 1)]
    np.testing.assert_allclose(rows[-1]["loss"], 0.25 * both[0] + 0.75 * both[1], rtol=1e-5)
    assert toy.equal(seen[-1][0], state.ema_params)
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert kept == [5, 20]  # -score is smallest, so best, at 5


def test_progress_and_config_are_written(tmp_path):
    stream = io.StringIO()
    train(toy.plain, toy.Source(), toy.config(), tmp_path, record={"width": 32}, stream=stream)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("toy 20/20 100.0% | loss ")
    assert lines[-1].endswith("rows/s | 0:00:00 left")
    about = json.loads((tmp_path / "config.json").read_text())
    assert about["record"] == {"width": 32}
    assert about["config"]["optim"]["learning_rate"] == 1e-2
    assert about["versions"]["jax"] == jax.__version__
    _, meta = checkpoint.load_params(tmp_path)
    assert meta["record"] == {"width": 32}
    (row, *_) = read_metrics(tmp_path / "metrics.jsonl")
    assert row.keys() >= {"loss", "mae", "grad_norm", "learning_rate", "epoch", "rows_per_s"}


def test_terminal_line_is_rewritten_in_place(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    train(toy.plain, toy.Source(), toy.config(), tmp_path, stream=stream)
    assert stream.getvalue().count("\r") == 4
    assert stream.getvalue().count("\n") == 1


def test_run_in_progress_is_not_mixed_with_another(tmp_path):
    train(toy.plain, toy.Source(), toy.config(), tmp_path, stream=None)
    with pytest.raises(ValueError, match="holds a run with seed=0, not 1"):
        train(toy.plain, toy.Source(), toy.config(seed=1), tmp_path, stream=None)
    with pytest.raises(ValueError, match="holds a run with task='toy', not 'noisy'"):
        train(toy.noisy, toy.Source(), toy.config(), tmp_path, stream=None)
    stream = io.StringIO()
    longer = toy.config(num_steps=25, log_every=1)
    state = train(toy.plain, toy.Source(), longer, tmp_path, stream=stream)
    assert state.step == 25
    assert "log_every 5 -> 1, num_steps 20 -> 25" in stream.getvalue()
    assert "resumed toy from step 20" in stream.getvalue()
    steps = [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == [5, 10, 15, 20, 21, 22, 23, 24, 25]


def test_pretrained_parameters_are_taken_over(tmp_path):
    given = np.full((8, 32), 0.25, jnp.zeros(()).dtype)

    def initialize(params):
        params["params"]["encoder"]["w"] = given
        return params

    config = toy.config(freeze=["params/encoder"])
    state = train(
        toy.plain, toy.Source(), config, tmp_path / "a", initialize=initialize, stream=None
    )
    assert toy.equal(state.params["params"]["encoder"]["w"], given)
    with pytest.raises(ValueError, match="initialize changed"):
        train(toy.plain, toy.Source(), config, tmp_path / "b", initialize=lambda p: p["params"])


def test_task_may_not_log_what_the_step_logs(tmp_path):
    task = toy.plain._replace(loss=lambda *a: (toy.loss(*a)[0], {"grad_norm": 0.0}))
    with pytest.raises(ValueError, match="grad_norm"):
        train(task, toy.Source(), toy.config(), tmp_path, stream=None)


def test_error_of_the_source_reaches_the_caller(tmp_path):
    class Broken(toy.Source):
        def batch(self, step):
            if step == 7:
                raise OSError("disk gone")
            return super().batch(step)

    with pytest.raises(OSError, match="disk gone"):
        train(toy.plain, Broken(), toy.config(), tmp_path, stream=None)


def test_prefetch_keeps_order_stays_bounded_and_ends():
    made = []
    items = prefetch(lambda i: made.append(i) or i * i, range(100), 3)
    assert [next(items) for _ in range(5)] == [0, 1, 4, 9, 16]
    items.close()
    assert len(made) <= 5 + 3 + 2
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]
    assert list(prefetch(abs, range(-3, 0), 1)) == [3, 2, 1]


def test_each_shape_compiles_once(tmp_path):
    traces = []

    def loss(params, key, batch, train, axis_name):
        traces.append(batch["x"].shape)
        return toy.loss(params, key, batch, train, axis_name)

    task = toy.plain._replace(loss=loss)
    train(task, toy.Source(ragged=True), toy.config(), tmp_path, stream=None)
    assert sorted(traces) == [(16, 8), (32, 8)]


def test_a_run_by_the_clock_ends_in_time_with_a_learning_rate_of_nothing(tmp_path):
    """On data that live on the device, whose one shape is compiled before the first step."""
    config = toy.config(num_steps=0, num_seconds=4.0, log_every=2)
    begin = time.monotonic()
    state = train(toy.plain, toy.Resident(), config, tmp_path, stream=None)
    assert 3.0 < time.monotonic() - begin < 15.0
    assert int(state.step) == int(state.num_steps)
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["split"] == "train"]
    rates = [r["learning_rate"] for r in records]
    np.testing.assert_allclose(rates[0], 1e-2, rtol=1e-4)  # the pace is not known yet
    assert rates[-1] < 1e-3
    assert np.mean(np.diff(rates) <= 1e-4) > 0.8
    losses = [r["loss"] for r in records]  # of two steps each, four in an epoch
    assert np.mean(losses[-2:]) < np.mean(losses[:2])


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_programs_compiled_ahead_are_those_that_run(kind):
    """Two sizes are traced beforehand and never again, a third one when it comes."""
    traces = []

    def step(state, batch):
        traces.append(batch["x"].shape)
        return state + batch["x"].sum(), batch["x"].mean()

    parallel = make_parallel(kind)
    state = parallel.replicate(np.float32(0))
    batches = {n: parallel.shard([{"x": np.ones(n, np.float32)}]) for n in (2, 3, 5)}
    advance = parallel.compile_ahead(step, [(state, batches[2]), (state, batches[3])], donate=(0,))
    assert traces == [(2,), (3,)]
    for n, expected in ((3, 3.0), (2, 5.0), (3, 8.0), (5, 13.0), (5, 18.0)):
        state, mean = advance(state, batches[n])
        assert float(parallel.fetch(state)) == expected
        assert float(parallel.fetch(mean)) == 1.0
    assert traces == [(2,), (3,), (5,)]
