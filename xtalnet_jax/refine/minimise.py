"""Damped Gauss-Newton as a pair (init, step), and the annealing of the peak width around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from xtalnet_jax.refine.objective import Normal


class State(NamedTuple):
    """Best point so far with its normal equations, and the point to try next."""

    best: jax.Array  # [p]
    normal: Normal  # at best
    trial: jax.Array  # [p]
    damping: jax.Array  # []


def init(x: jax.Array, damping: jax.Array | float = 1e-2) -> State:
    """Start at ``x``; the first step only evaluates it."""
    p = x.shape[0]
    zero = jnp.zeros((), x.dtype)
    normal = Normal(zero + jnp.inf, zero + jnp.inf, jnp.zeros_like(x), jnp.zeros((p, p), x.dtype))
    return State(x, normal, x, jnp.asarray(damping, x.dtype))


def step(
    state: State, objective: Callable[[jax.Array], Normal], active: jax.Array, limit: jax.Array
) -> State:
    """Evaluate the trial, keep the better point, propose the next one.

    Levenberg's step with Marquardt's scaling, (A + damping diag A) d = -g; every component is
    held within ``limit`` by shortening the whole step. The objective is evaluated once.

    Args:
        state: from `init` or the step before.
        objective: x to `Normal`.
        active: [p] 1 for a variable that may move, 0 for one that is held.
        limit: [p] longest step.
    """
    new = objective(state.trial)
    better = new.cost < state.normal.cost
    pick = lambda a, b: jax.tree.map(lambda x, y: jnp.where(better, x, y), a, b)  # noqa: E731
    best, normal = pick((state.trial, new), (state.best, state.normal))
    damping = jnp.clip(state.damping * jnp.where(better, 0.3, 5.0), 1e-5, 1e3)
    return State(best, normal, best + _move(normal, damping, active, limit), damping)


def _move(normal: Normal, damping: jax.Array, active: jax.Array, limit: jax.Array) -> jax.Array:
    scale = jnp.sqrt(jnp.diagonal(normal.matrix) + 1e-12)
    a = normal.matrix / scale[:, None] / scale[None, :]
    a = a * active[:, None] * active[None, :]
    a = a + jnp.diag(1 - active) + (damping + 1e-6) * jnp.eye(len(scale), dtype=a.dtype)
    move = -jax.scipy.linalg.solve(a, normal.gradient / scale * active, assume_a="pos") / scale
    move = jnp.where(jnp.isfinite(move), move, 0.0)
    return move * jnp.minimum(1.0, 1.0 / jnp.maximum((jnp.abs(move) / limit).max(), 1e-12))
