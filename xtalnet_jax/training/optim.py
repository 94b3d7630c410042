"""Optimiser and learning-rate schedule from a config, and which parameters are frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from xtalnet_jax.types import Params, PyTree

__all__ = ["cosine_schedule", "frozen_mask", "make_optimizer", "make_schedule", "reference_factor"]

Schedule = Callable[[Any, Any], jax.Array]
"""Learning rate of ``(steps done, steps of the run)``. The length is an argument, so that a program
serves runs of every length, and one whose length follows from the clock (`num_seconds`)."""


def reference_factor(epoch: Any, num_epochs: Any, warmup_epochs: float | int) -> jax.Array:
    """The reference's factor of the learning rate, constant during an epoch (counted from 0).

    ``(1 + cos(pi epoch / num_epochs)) / 2``, times ``(epoch + 1) / (warmup_epochs + 1)`` while that
    is below 1. Unlike :func:`cosine_schedule` the cosine runs during the warm-up too.
    """
    epoch = jnp.asarray(epoch)
    ramp = jnp.minimum((epoch + 1) / (warmup_epochs + 1), 1.0)
    return 0.5 * (1 + jnp.cos(jnp.pi * epoch / num_epochs)) * ramp


def cosine_schedule(warmup_steps: int, final_factor: float | int = 0.0) -> Schedule:
    """Linear warm-up to 1, then half a cosine to ``final_factor`` at ``num_steps``, and constant.

    The first step has factor ``1 / (warmup_steps + 1)``, not 0, which would be a step wasted.
    """

    def factor(step: Any, num_steps: Any) -> jax.Array:
        ramp = (step + 1) / (warmup_steps + 1)
        length = jnp.maximum(num_steps - warmup_steps, 1)
        progress = jnp.clip((step - warmup_steps) / length, 0.0, 1.0)
        cosine = final_factor + (1 - final_factor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(step < warmup_steps, ramp, cosine)

    return factor


def make_schedule(optim: ConfigDict, num_steps: int, steps_per_epoch: int) -> Schedule:
    """Learning rate as a function of the number of steps done and to do.

    ``num_steps`` is the length known now, against which the warm-up is checked; 0 if unknown.
    """
    warmup = optim.warmup_steps or round(optim.warmup_epochs * steps_per_epoch)
    if num_steps and warmup >= num_steps:
        raise ValueError(
            f"the warm-up of {warmup} steps is not shorter than the run of {num_steps} steps; "
            "lower optim.warmup_steps or optim.warmup_epochs"
        )
    if optim.schedule == "constant":
        return lambda step, _: optim.learning_rate * jnp.minimum((step + 1) / (warmup + 1), 1.0)
    if optim.schedule == "reference":
        warmup_epochs = warmup / steps_per_epoch

        def by_epoch(step: Any, num_steps: Any) -> jax.Array:
            epoch, num_epochs = step // steps_per_epoch, num_steps / steps_per_epoch
            return optim.learning_rate * reference_factor(epoch, num_epochs, warmup_epochs)

        return by_epoch
    factor = cosine_schedule(warmup, optim.final_factor)
    return lambda step, num_steps: optim.learning_rate * factor(step, num_steps)


def frozen_mask(params: Params, prefixes: tuple[str, ...]) -> PyTree:
    """Tree of bool: which leaves lie under one of the path ``prefixes`` (whole path components).

    Raises:
        ValueError: a prefix matches no parameter.
    """
    wanted = {prefix: prefix.strip("/") for prefix in prefixes}
    paths = [_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for prefix, clean in wanted.items():
        if not any(_under(path, clean) for path in paths):
            heads = sorted({"/".join(path.split("/")[:2]) for path in paths})
            raise ValueError(
                f"freeze={prefix!r} matches no parameter; paths start with {', '.join(heads)}"
            )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(_under(_path(path), clean) for clean in wanted.values()), params
    )


def make_optimizer(config: ConfigDict, frozen: PyTree) -> optax.GradientTransformation:
    """Clip by global norm, Adam or AdamW; frozen leaves get no update, no moments.

    The updates are those of a learning rate of 1; the training step multiplies them with its own.

    With ``adam`` the weight decay is added to the clipped gradient (as in the original L2 form),
    with ``adamw`` to the update. The norm that is clipped is that of the trained parameters only.

    Args:
        config: a complete training config.
        frozen: tree of bool like the parameters, from :func:`frozen_mask`.
    """
    optim = config.optim
    mask = (lambda p: jax.tree.map(lambda x: x.ndim >= 2, p)) if optim.decay_matrices_only else None
    decay = [optax.add_decayed_weights(optim.weight_decay, mask)] if optim.weight_decay else []
    adam = [optax.scale_by_adam(*optim.betas, eps=optim.eps)]
    tx = optax.chain(
        *([optax.clip_by_global_norm(config.clip)] if config.clip else []),
        *(decay + adam if optim.name == "adam" else adam + decay),
        optax.scale(-1.0),
    )
    if not any(jax.tree.leaves(frozen)):
        return tx
    labels = jax.tree.map(lambda fixed: "frozen" if fixed else "trained", frozen)
    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)


def _path(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix + "/")
