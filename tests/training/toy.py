"""A small regression to train on: no crystals, one second."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.training.task import Task


class Source:
    """Random inputs of a fixed function; steps of two sizes if ``ragged``."""

    num_steps_per_epoch = 10

    def __init__(self, rows: int = 16, ragged: bool = False):
        self.rows, self.ragged = rows, ragged

    def batch(self, step: int) -> dict[str, np.ndarray]:
        rows = 2 * self.rows if self.ragged and step % 3 == 0 else self.rows
        x = np.random.default_rng(step).normal(size=(rows, 8)).astype(np.float32)
        return {"x": x, "y": np.sin(x.sum(1))}


class Resident:
    """The same rows every epoch, kept on the device."""

    num_steps_per_epoch = 4

    def __init__(self):
        self.resident = Source(64).batch(0)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        start = 16 * (step % 4)
        return {"rows": np.arange(start, start + 16, dtype=np.int32)}

    def kinds(self) -> list[dict[str, np.ndarray]]:
        return [self.batch(0)]

    def gather(self, resident, batch):
        return jax.tree.map(lambda x: x[batch["rows"]], resident)


def init(key, batch):
    key_in, key_out = jax.random.split(key)
    width = batch["x"].shape[1]
    return {
        "params": {
            "encoder": {"w": 0.3 * jax.random.normal(key_in, (width, 32)), "b": jnp.zeros(32)},
            "head": {"w": 0.1 * jax.random.normal(key_out, (32, 1))},
        }
    }


def loss(params, key, batch, train, axis_name):
    layers = params["params"]
    hidden = jnp.tanh(batch["x"] @ layers["encoder"]["w"] + layers["encoder"]["b"][None])
    error = (hidden @ layers["head"]["w"])[:, 0] - batch["y"]
    return (error**2).mean(), {"mae": jnp.abs(error).mean()}


def noisy_loss(params, key, batch, train, axis_name):
    """The same with random inputs during training, so that keys matter."""
    if train:
        noise = 0.1 * jax.random.normal(key, batch["x"].shape, batch["x"].dtype)
        batch = {**batch, "x": batch["x"] + noise}
    return loss(params, key, batch, train, axis_name)


def poisoned_loss(params, key, batch, train, axis_name):
    """Infinite where an input exceeds 3.5."""
    value, metrics = loss(params, key, batch, train, axis_name)
    return value, {**metrics, "worst": jnp.where(batch["x"].max() > 3.5, jnp.inf, 1.0)}


def contrastive_loss(params, key, batch, train, axis_name):
    """InfoNCE of inputs against shifted inputs, with the negatives of all devices."""

    def embed(x):
        hidden = jnp.tanh(x @ params["params"]["encoder"]["w"])
        return hidden / jnp.linalg.norm(hidden, axis=1, keepdims=True)

    left, right = embed(batch["x"]), embed(batch["x"] + 0.5)
    label = jnp.arange(len(left))
    draws = jax.random.normal(key, (1,))
    if axis_name is not None:
        label = label + jax.lax.axis_index(axis_name) * len(left)
        right, draws = jax.lax.all_gather((right, draws), axis_name, tiled=True)
    logits = jax.nn.log_softmax(5 * left @ right.T)
    return -jnp.take_along_axis(logits, label[:, None], 1).mean(), {"spread": draws.std()}


plain = Task(init, loss, "toy")
noisy = Task(init, noisy_loss, "noisy")
poisoned = Task(init, poisoned_loss, "poisoned")
contrastive = Task(init, contrastive_loss, "contrastive")


def config(**fields) -> dict:
    """A short run with small files."""
    return {
        "num_steps": 20,
        "log_every": 5,
        "checkpoint_format": "npz",
        "optim": {"learning_rate": 1e-2},
        "tensorboard": False,
    } | fields


def equal(a, b) -> bool:
    """Bit for bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)
