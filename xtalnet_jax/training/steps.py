"""The compiled part of training: one optimiser step, one evaluation step."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from xtalnet_jax.training.optim import Schedule
from xtalnet_jax.training.state import TrainState, update_average
from xtalnet_jax.training.task import Task
from xtalnet_jax.types import Params, PyTree

__all__ = ["make_eval_step", "make_train_step", "scan_steps"]

Metrics = dict[str, ArrayLike]
TrainStep = Callable[[TrainState, PyTree, PyTree], tuple[TrainState, Metrics]]
GatherFn = Callable[[PyTree, PyTree], PyTree]


def make_train_step(
    task: Task,
    tx: optax.GradientTransformation,
    schedule: Schedule,
    frozen: PyTree,
    *,
    seed: int = 0,
    ema_decay: float = 0.0,
    accumulate: int = 1,
    gather: GatherFn | None = None,
    axis_name: str | None = None,
) -> TrainStep:
    """``step(state, resident, batch) -> (state, metrics)``, pure, to be compiled by the caller.

    The key of a step is ``fold_in(key(seed), step)``, and under ``axis_name`` of the device too, so
    that devices draw different noise. Loss and gradient are those of the local rows, averaged over
    devices; this is the gradient of the global mean also where the loss gathers other rows.

    Args:
        task: what to minimise.
        tx: the optimiser, without a learning rate.
        schedule: the learning rate of a step.
        frozen: tree of bool like the parameters; no gradient is computed for these.
        seed: of all random numbers.
        ema_decay: of the running average; 0 where ``state.ema_params`` is ().
        accumulate: the batch is cut into so many equal parts and their gradients are averaged. This
            equals one large batch for losses that are means over rows, not for contrastive ones.
        gather: makes the batch out of ``(resident, batch)``, for data that live on the device.
        axis_name: name of the device axis under pmap.

    Returns:
        The step. Its metrics are ``loss``, ``grad_norm`` (before clipping), ``learning_rate`` and
        those of the task.
    """

    def loss_fn(params: Params, key: jax.Array, batch: PyTree) -> tuple[jax.Array, Metrics]:
        params = jax.tree.map(
            lambda p, fixed: jax.lax.stop_gradient(p) if fixed else p, params, frozen
        )
        loss, metrics = task.loss(params, key, batch, True, axis_name)
        return loss, _named(loss, metrics)

    grad_fn = jax.grad(loss_fn, has_aux=True)

    def gradients(params: Params, key: jax.Array, batch: PyTree) -> tuple[Params, Metrics]:
        if accumulate == 1:
            return grad_fn(params, key, batch)
        parts = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)
        keys = jax.random.split(key, accumulate)
        shapes = jax.eval_shape(grad_fn, params, key, jax.tree.map(lambda x: x[0], parts))
        total = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def add(total: PyTree, part: tuple) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, total, grad_fn(params, *part)), None

        total, _ = jax.lax.scan(add, total, (keys, parts))
        return jax.tree.map(lambda x: x / accumulate, total)

    def step(state: TrainState, resident: PyTree, batch: PyTree) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        if gather is not None:
            batch = gather(resident, batch)
        grads, metrics = gradients(state.params, key, batch)
        if axis_name is not None:
            grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        rate = jnp.asarray(schedule(state.step, state.num_steps))
        updates = jax.tree.map(lambda u: rate.astype(u.dtype) * u, updates)
        params = optax.apply_updates(state.params, updates)
        average = state.ema_params
        if ema_decay:
            average = update_average(average, params, state.step, ema_decay, frozen)
        metrics["grad_norm"] = optax.tree.norm(grads)
        metrics["learning_rate"] = rate
        return TrainState(state.step + 1, state.num_steps, params, average, opt_state), metrics

    return step


def scan_steps(step: TrainStep) -> TrainStep:
    """Several steps in one call: batches and metrics get a leading axis of steps."""

    def steps(state: TrainState, resident: PyTree, batches: PyTree) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda s, batch: step(s, resident, batch), state, batches)

    return steps


def make_eval_step(
    task: Task, *, seed: int = 0, gather: GatherFn | None = None, axis_name: str | None = None
) -> Callable[[Params, jax.Array, PyTree, PyTree], Metrics]:
    """``step(params, index, resident, batch) -> metrics`` with ``train=False``.

    The key depends only on the ``index`` of the batch, so that two evaluations see the same noise.
    """

    def step(params: Params, index: jax.Array, resident: PyTree, batch: PyTree) -> Metrics:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 2**31 - 1), index)
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        if gather is not None:
            batch = gather(resident, batch)
        metrics = _named(*task.loss(params, key, batch, False, axis_name))
        return metrics if axis_name is None else jax.lax.pmean(metrics, axis_name)

    return step


def _named(loss: jax.Array, metrics: Metrics) -> Metrics:
    taken = {"loss", "grad_norm", "learning_rate"} & set(metrics)
    if taken:
        raise ValueError(f"the task logs {taken}, which the training step logs itself; rename it")
    return {"loss": loss, **metrics}
