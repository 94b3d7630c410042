"""Symmetric InfoNCE between two sets of unit vectors, with negatives from the global batch.

Radford et al. 2021 (CLIP, arXiv:2103.00020), figure 3; here patterns against crystals.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MAX_SCALE = 100.0
"""The learned scale is clamped here, as in CLIP."""


def scale_from_log(log_scale: Any) -> jax.Array:
    """Return the factor of the cosine similarities: ``min(exp(log_scale), 100)``."""
    return jnp.minimum(jnp.exp(log_scale), MAX_SCALE)


def _is_label(labels: jax.Array, logits: jax.Array) -> jax.Array:
    return labels[:, None] == jnp.arange(logits.shape[1])[None]


def _cross_entropy(logits: jax.Array, labels: jax.Array, allowed: jax.Array) -> jax.Array:
    """-log softmax at the label over the allowed columns, [rows]; the label is always allowed."""
    logits = jnp.where(allowed | _is_label(labels, logits), logits, -jnp.inf)
    at_label = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
    return jax.nn.logsumexp(logits, -1) - at_label


def info_nce(
    pattern_vectors: Float[Array, "n_graph d"],
    crystal_vectors: Float[Array, "n_graph d"],
    scale: Any,
    mask: Any = None,
    ids: Any = None,
    axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Contrastive loss of paired unit vectors, the mean of both directions.

    Under ``pmap`` or ``shard_map`` with ``axis_name`` the candidates are gathered from all devices,
    the rows are the device's own. The returned loss is then this device's share: its mean over
    devices (``pmean`` of loss and gradients, or the mean outside) is the loss of the global batch,
    also if devices hold different numbers of real rows. Without ``axis_name`` on several devices
    the negatives are those of each device alone.

    Args:
        pattern_vectors: unit vectors, row i belongs to row i of ``crystal_vectors``.
        crystal_vectors: unit vectors.
        scale: inverse temperature, see `scale_from_log`.
        mask: [n_graph] bool, True = real pair; a padded pair is neither query nor candidate.
        ids: [n_graph] integers; another pair with the same id is the same crystal and no negative.
        axis_name: mapped axis over which the batch is spread.

    Returns:
        ``(loss, metrics)``: ``loss_pattern`` and ``loss_crystal`` (pattern finds crystal, crystal
        finds pattern) and their top-1 hit rates ``top1_pattern`` and ``top1_crystal`` within the
        batch. If no pair is real, all are 0.
    """
    num_rows = pattern_vectors.shape[0]
    mask = jnp.ones(num_rows, bool) if mask is None else jnp.asarray(mask)

    def gather(x: jax.Array) -> jax.Array:
        return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)

    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * num_rows
    labels = first + jnp.arange(num_rows)
    all_mask = gather(mask)
    allowed = jnp.broadcast_to(all_mask[None], (num_rows, all_mask.shape[0]))
    if ids is not None:
        allowed &= jnp.asarray(ids)[:, None] != gather(jnp.asarray(ids))[None]
    # weights so that the mean over devices is the mean over all real rows, not a mean of means
    num_devices = all_mask.shape[0] // num_rows
    weight = mask * (num_devices / jnp.maximum(all_mask.sum(), 1))
    weight = weight.astype(pattern_vectors.dtype)

    def direction(query: jax.Array, candidates: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = scale * jnp.matmul(query, gather(candidates).T, precision="highest")
        loss = _cross_entropy(logits, labels, allowed)
        own = jnp.take_along_axis(logits, labels[:, None], 1)
        beaten = (logits >= own) & allowed & ~_is_label(labels, logits)
        return (weight * loss).sum(), (weight * ~beaten.any(-1)).sum()

    loss_pattern, top1_pattern = direction(pattern_vectors, crystal_vectors)
    loss_crystal, top1_crystal = direction(crystal_vectors, pattern_vectors)
    metrics = {
        "loss_pattern": loss_pattern,
        "loss_crystal": loss_crystal,
        "top1_pattern": top1_pattern,
        "top1_crystal": top1_crystal,
    }
    return (loss_pattern + loss_crystal) / 2, metrics
