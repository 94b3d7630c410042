"""The state of a training run and the running average of its parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from xtalnet_jax.types import Params, PyTree

__all__ = ["TrainState", "averaged_params", "init_state", "update_average"]


class TrainState(NamedTuple):
    """All that a run needs to go on; random numbers follow from the seed and ``step``."""

    step: Any  # int32 scalar, number of steps done
    num_steps: Any  # int32 scalar, steps of the run, which the learning rate depends on
    params: Params
    ema_params: Params  # running average, or () where it is off
    opt_state: PyTree


def init_state(
    params: Params, tx: optax.GradientTransformation, ema: bool, num_steps: int = 0
) -> TrainState:
    """The state before the first step; the average starts at the parameters themselves."""
    average = jax.tree.map(jnp.copy, params) if ema else ()
    length = jnp.asarray(num_steps, jnp.int32)
    return TrainState(jnp.zeros((), jnp.int32), length, params, average, tx.init(params))


def averaged_params(state: TrainState) -> Params:
    """The parameters to evaluate with: the running average where there is one."""
    return state.ema_params if jax.tree.leaves(state.ema_params) else state.params


def update_average(
    average: Params, params: Params, step: jax.Array, decay: float, frozen: PyTree
) -> Params:
    """``average <- d average + (1 - d) params`` with ``d = min(decay, (1 + step) / (10 + step))``.

    The ramp lets the average forget the random start quickly, in place of a later division by
    ``1 - decay**step``. Frozen leaves are passed through bit for bit.

    Args:
        average: the running average.
        params: the parameters after this step.
        step: number of steps done before this one.
        decay: its limit, in [0, 1).
        frozen: tree of bool like ``params``.
    """

    def blend(old: Any, new: Any, fixed: bool) -> Any:
        if fixed:
            return new
        t = step.astype(new.dtype)
        d = jnp.minimum(jnp.asarray(decay, new.dtype), (1 + t) / (10 + t))
        return new + d * (old - new)

    return jax.tree.map(blend, average, params, frozen)
