"""Schedules, Adam, clipping, freezing and the average against known answers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training import toy
from xtalnet_jax.training.config import complete_config
from xtalnet_jax.training.optim import (
    cosine_schedule,
    frozen_mask,
    make_optimizer,
    make_schedule,
    reference_factor,
)
from xtalnet_jax.training.state import init_state, update_average
from xtalnet_jax.training.steps import make_train_step

PARAMS = toy.init(jax.random.key(0), toy.Source().batch(0))


def run(config: dict, params=PARAMS, num_steps: int = 8, task=toy.plain, **options):
    cfg = complete_config({"num_steps": num_steps, **config})
    frozen = frozen_mask(params, cfg.freeze)
    schedule = make_schedule(cfg.optim, num_steps, 10)
    tx = make_optimizer(cfg, frozen)
    step = jax.jit(make_train_step(task, tx, schedule, frozen, ema_decay=cfg.ema_decay, **options))
    state = init_state(params, tx, cfg.ema_decay > 0, num_steps)
    metrics = {}
    for i in range(num_steps):
        state, metrics = step(state, (), toy.Source().batch(i))
    return state, metrics


def grad(params, i):
    return jax.grad(lambda p: toy.loss(p, None, toy.Source().batch(i), True, None)[0])(params)


def test_reference_schedule_is_the_published_one(golden):
    factor = np.load(golden / "schedules.npz")["lr_factor_by_epoch"]
    ours = reference_factor(np.arange(401), 400, 20)
    np.testing.assert_allclose(ours, factor, atol=1e-6)
    optim = complete_config(
        {"num_epochs": 400, "optim": {"schedule": "reference", "warmup_epochs": 20}}
    ).optim
    schedule = make_schedule(optim, 400 * 7, 7)
    steps = np.arange(0, 2800, 11)
    np.testing.assert_allclose(schedule(steps, 2800), 1e-3 * factor[steps // 7], atol=1e-9)


def test_cosine_schedule_has_no_wasted_step_and_ends_where_it_should():
    factor = cosine_schedule(10, 0.1)
    values = np.asarray(factor(np.arange(120), 100))
    np.testing.assert_allclose(values[:10], np.arange(1, 11) / 11, rtol=1e-6)
    assert values[10] == 1.0
    np.testing.assert_allclose(values[55], 0.55, rtol=1e-6)
    np.testing.assert_allclose(values[100:], 0.1, rtol=1e-6)
    assert (np.diff(values[10:101]) < 0).all()


def test_constant_schedule_warms_up_in_epochs():
    optim = complete_config(
        {"num_epochs": 9, "optim": {"schedule": "constant", "warmup_epochs": 0.5}}
    ).optim
    values = np.asarray(make_schedule(optim, 90, 10)(np.arange(90), 90))
    np.testing.assert_allclose(values[:5], 1e-3 * np.arange(1, 6) / 6, rtol=1e-6)
    np.testing.assert_allclose(values[5:], 1e-3, rtol=1e-6)


def test_warmup_longer_than_the_run_is_refused():
    optim = complete_config({"num_steps": 5, "optim": {"warmup_steps": 5}}).optim
    with pytest.raises(ValueError, match="warm-up of 5 steps"):
        make_schedule(optim, 5, 10)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_follows_the_textbook(name):
    """Against a NumPy Adam in float64, with weight decay and the bias corrections written out."""
    b1, b2, eps, rate, decay = 0.8, 0.95, 1e-3, 1e-2, 0.3
    state, _ = run(
        {
            "optim": {
                "name": name,
                "schedule": "constant",
                "learning_rate": rate,
                "betas": (b1, b2),
                "eps": eps,
                "weight_decay": decay,
            }
        }
    )
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), PARAMS)
    mean = jax.tree.map(np.zeros_like, params)
    square = jax.tree.map(np.zeros_like, params)
    coupled = decay if name == "adam" else 0.0
    for i in range(8):
        gradient = grad(jax.tree.map(jnp.float32, params), i)
        gradient = jax.tree.map(lambda g, p: np.asarray(g) + coupled * p, gradient, params)
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, mean, gradient)
        square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, square, gradient)

        def move(p, m, v, i=i):
            step = m / (1 - b1 ** (i + 1)) / (np.sqrt(v / (1 - b2 ** (i + 1))) + eps)
            return p - rate * (step + (decay * p if name == "adamw" else 0.0))

        params = jax.tree.map(move, params, mean, square)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), state.params, params)


def test_trajectory_is_that_of_plain_optax():
    state, _ = run({"optim": {"learning_rate": 1e-2, "schedule": "constant"}})
    tx = optax.adam(1e-2)
    params, opt_state = PARAMS, tx.init(PARAMS)
    for i in range(8):
        updates, opt_state = tx.update(grad(params, i), opt_state, params)
        params = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params, params)


def test_only_matrices_decay_if_so_wished():
    big = jax.tree.map(jnp.ones_like, PARAMS)
    optim = {"name": "adamw", "weight_decay": 10.0, "schedule": "constant"}
    every, _ = run({"optim": optim}, big, 1)
    some, _ = run({"optim": {**optim, "decay_matrices_only": True}}, big, 1)
    plain, _ = run({"optim": {**optim, "weight_decay": 0.0}}, big, 1)
    encoder = [s.params["params"]["encoder"] for s in (every, some, plain)]
    assert toy.equal(encoder[0]["w"], encoder[1]["w"])
    assert toy.equal(encoder[1]["b"], encoder[2]["b"])
    assert not toy.equal(encoder[0]["b"], encoder[2]["b"])


def test_clipping_bounds_the_gradient_that_adam_sees():
    clip = 1e-3
    state, metrics = run({"clip": clip, "optim": {"betas": (0.0, 0.999)}}, num_steps=1)
    (moments,) = [s for s in state.opt_state if hasattr(s, "mu")]
    np.testing.assert_allclose(optax.tree.norm(moments.mu), clip, rtol=1e-5)
    assert metrics["grad_norm"] > 10 * clip
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grad(PARAMS, 0)), rtol=1e-5)


def test_frozen_parameters_keep_every_bit_and_have_no_moments():
    config = {"ema_decay": 0.9, "optim": {"name": "adamw", "weight_decay": 0.1}, "clip": 1.0}
    state, _ = run({**config, "freeze": ["params/encoder"]})
    for tree in (state.params, state.ema_params):
        assert toy.equal(tree["params"]["encoder"], PARAMS["params"]["encoder"])
        assert not toy.equal(tree["params"]["head"], PARAMS["params"]["head"])
    shapes = [x.shape for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sorted(shapes) == [(32, 1), (32, 1)]  # the two moments of the head, no others
    free, _ = run(config)
    assert not toy.equal(free.params["params"]["encoder"], PARAMS["params"]["encoder"])
    _, metrics = run({**config, "freeze": ["params/encoder"]}, num_steps=1)
    head = grad(PARAMS, 0)["params"]["head"]["w"]  # the norm is of this, without the encoder's
    np.testing.assert_allclose(metrics["grad_norm"], jnp.linalg.norm(head), rtol=1e-5)


def test_random_numbers_change_with_seed_and_step_and_nothing_else():
    cfg = complete_config({"num_steps": 1})
    frozen = frozen_mask(PARAMS, ())
    tx = make_optimizer(cfg, frozen)
    state, batch = init_state(PARAMS, tx, False), toy.Source().batch(0)

    def loss(seed, step):
        advance = jax.jit(make_train_step(toy.noisy, tx, lambda *_: 0.0, frozen, seed=seed))
        return float(advance(state._replace(step=jnp.int32(step)), (), batch)[1]["loss"])

    losses = [loss(0, 0), loss(0, 1), loss(1, 0), loss(1, 1)]
    assert len(set(losses)) == 4
    assert loss(1, 1) == losses[3]


def test_prefix_means_whole_components():
    mask = frozen_mask(PARAMS, ("params/head",))["params"]
    assert mask == {"encoder": {"w": False, "b": False}, "head": {"w": True}}
    with pytest.raises(ValueError, match="'params/enc' matches no parameter"):
        frozen_mask(PARAMS, ("params/enc",))


def test_average_has_its_closed_form():
    """Constant decay 0.1 < (1 + t) / (10 + t) for t >= 1; at t = 0 they are equal."""
    values = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    average = {"x": jnp.zeros(3)}
    for t, value in enumerate(values):
        average = update_average(average, {"x": value}, jnp.int32(t), 0.1, {"x": False})
    expected = sum(0.9 * 0.1 ** (5 - t) * value for t, value in enumerate(values))
    np.testing.assert_allclose(average["x"], expected, atol=1e-6)


def test_average_starts_quickly():
    first = update_average(
        {"x": jnp.ones(1)}, {"x": jnp.zeros(1)}, jnp.int32(0), 0.999, {"x": False}
    )
    np.testing.assert_allclose(first["x"], 0.1, rtol=1e-6)
    late = update_average(
        {"x": jnp.ones(1)}, {"x": jnp.zeros(1)}, jnp.int32(10**6), 0.9, {"x": False}
    )
    np.testing.assert_allclose(late["x"], 0.9, rtol=1e-6)


def test_accumulated_gradient_is_that_of_the_whole_batch():
    optim = {"optim": {"learning_rate": 1e-2}}
    whole, metrics = run(optim)
    parts, metrics_parts = run(optim, accumulate=4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole.params, parts.params
    )
    np.testing.assert_allclose(metrics["mae"], metrics_parts["mae"], rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_steps": 5, "lr": 1, "optim": {"warmup": 2}}, "settings: lr, optim.warmup;"),
        ({}, "exactly one of num_epochs, num_steps and"),
        ({"num_steps": 5, "num_epochs": 1}, "exactly one of num_epochs, num_steps and"),
        ({"num_steps": 2.5}, "num_steps must be whole, got 2.5"),
        ({"num_steps": "5"}, "num_steps must be a number"),
        ({"num_steps": 5, "freeze": "params"}, "freeze must be a list"),
        ({"num_steps": 5, "optim": {"name": "sgd"}}, "optim.name must be one of adam, adamw"),
        ({"num_steps": 5, "ema_decay": 1.0}, "ema_decay"),
        ({"num_steps": 5, "log_every": 5, "steps_per_dispatch": 2}, "multiple of"),
    ],
)
def test_bad_settings_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        complete_config(config)
