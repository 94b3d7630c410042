"""Softmax attention: with its weights at hand, and without ever keeping them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from xtalnet_jax.models.fast import kept, later, num_blocks
from xtalnet_jax.models.packed_tokens import PackedTokens, pack, unpack

MASKED = -1e30
"""Score of a key that is not to be looked at: its weight is 0 exactly, beside any other key."""

NUM_LENGTHS = 4
"""To so many lengths the tokens of a graph are cut in `mixed_rows`; each is compiled."""


def _scores(
    query: jax.Array, key: jax.Array, mask: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """Scores [n_graph, n_head, n_query, n_key] of ``[n_graph, n_head, n, d]``."""
    scale = jnp.asarray(1.0 / np.sqrt(query.shape[-1]), query.dtype)
    score = _dot("bhqd,bhkd->bhqk", query * scale, key)
    if bias is not None:
        score = score + bias
    return jnp.where(mask[:, None, None], score, MASKED)


def _dot(formula: str, one: jax.Array, other: jax.Array) -> jax.Array:
    """Einsum of numbers rounded to the type of the second, accumulated in float32 at least."""
    wide = jnp.promote_types(other.dtype, jnp.float32)
    return jnp.einsum(formula, one.astype(other.dtype), other, preferred_element_type=wide)


def _by_head(*arrays: jax.Array) -> list[jax.Array]:
    """``[n_graph, n, n_head, d]`` -> ``[n_graph, n_head, n, d]``, in the type of the products.

    On a CPU that is float32 at least: products as small as those of one head are slower in
    bfloat16 there.
    """
    heads = [jnp.swapaxes(a, 1, 2) for a in arrays]
    if jax.default_backend() != "cpu":
        return heads
    return [a.astype(jnp.promote_types(a.dtype, jnp.float32)) for a in heads]


def attend(
    query: Float[Array, "n_graph n_query n_head d"],
    key: Float[Array, "n_graph n_key n_head d"],
    mask: Bool[Array, "n_graph n_key"],
    bias: Float[Array, "n_graph n_head n_query n_key"] | None = None,
) -> Float[Array, "n_graph n_head n_query n_key"]:
    """Attention weights, scale 1/sqrt(d), in the type of the keys; on a CPU in float32 at least.

    ``bias`` is added to the scaled scores.
    Masked keys get weight 0; a query without any key gets weights 0, not NaN.
    """
    query, key = _by_head(query, key)
    weight = jax.nn.softmax(_scores(query, key, mask, bias), -1)
    return jnp.where(mask[:, None, None], weight, 0.0).astype(key.dtype)


def mixed_values(
    query: Float[Array, "n_graph n_query n_head d"],
    key: Float[Array, "n_graph n_key n_head d"],
    value: Float[Array, "n_graph n_key n_head d"],
    mask: Bool[Array, "n_graph n_key"],
    dropout: float = 0.0,
    rng: jax.Array | None = None,
) -> Float[Array, "n_graph n_query n_head d"]:
    """Return the values weighted as in `attend`, with dropout of the weights.

    In blocks of graphs, one after another, where that is quicker (`fast.num_blocks`). Weights are
    computed again for the gradient, so that those of all graphs are never in memory.

    Args:
        query: what is looked for.
        key: what it is compared with.
        value: what is mixed.
        mask: which keys may be looked at.
        dropout: rate; 0 for none.
        rng: key of the dropout; needed with ``dropout`` > 0.
    """
    return _mixed(dropout, _key(rng, dropout), mask, query, key, value)


def mixed_rows(
    qkv: Float[Array, "n_row n_head3 d"],
    packed: PackedTokens,
    dropout: float = 0.0,
    rng: jax.Array | None = None,
) -> Float[Array, "n_row n_head d"]:
    """`mixed_values` among the tokens of each graph, which are in consecutive rows.

    On a CPU one graph after another, each with as many tokens as it has, rounded up to one of
    `NUM_LENGTHS` lengths, and none is moved; on accelerators all at once, padded.

    Args:
        qkv: heads of the queries, then of the keys, then of the values.
        packed: where the tokens are.
        dropout: rate; 0 for none.
        rng: key of the dropout; needed with ``dropout`` > 0.
    """
    if jax.default_backend() == "cpu":
        return _mixed(dropout, _key(rng, dropout), packed, qkv)
    query, key, value = jnp.split(unpack(qkv, packed), 3, 2)
    mask = packed.row < len(qkv)
    return pack(mixed_values(query, key, value, mask, dropout, rng), packed)


def _key(rng: jax.Array | None, dropout: float) -> jax.Array:
    if dropout and rng is None:
        raise ValueError("dropout of attention weights needs a key, rng is None")
    return jax.random.key(0) if rng is None else rng


Where = Bool[Array, "n_graph n_key"] | PackedTokens
"""The mask of padded queries, keys and values, or the rows of joint ones."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mixed(dropout: float, rng: jax.Array, where: Where, *inputs: jax.Array) -> jax.Array:
    return _forward(dropout, rng, where, *inputs)[0]


def _forward(dropout: float, rng: jax.Array, where: Where, *inputs: jax.Array) -> Any:
    def block(rng: jax.Array, mask: jax.Array, *inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        q, k, v = _heads(inputs)
        score = _scores(q, k, mask)
        top = score.max(-1, keepdims=True)
        weight = jnp.exp(score - top)
        total = weight.sum(-1, keepdims=True)
        if dropout:
            weight = jnp.where(kept(rng, weight.shape, dropout), weight, 0.0)
        mixed = _dot("bhqk,bhkd->bhqd", weight, v) / (total * (1.0 - dropout))
        mixed = jnp.where(_wanted(inputs, mask), jnp.swapaxes(mixed, 1, 2), 0.0)
        return mixed, jnp.swapaxes(top + jnp.log(total), 1, 2)

    mixed, log_total = _in_turn(block, rng, where, inputs)
    mixed = mixed.astype(inputs[-1].dtype)
    return mixed, (rng, where, inputs, mixed, log_total)


def _backward(dropout: float, saved: tuple[Any, ...], g: jax.Array) -> tuple[Any, ...]:
    rng, where, inputs, *results = saved

    def block(rng: jax.Array, mask: jax.Array, *arrays: jax.Array) -> list[jax.Array]:
        *inputs, mixed, log_total, g = arrays
        q, k, v = _heads(inputs)
        wanted = _wanted(inputs, mask)  # other queries: weight 0, not exp(score - any number)
        g, log_total = jnp.where(wanted, g, 0.0), jnp.where(wanted, log_total, -MASKED)
        mixed, log_total, g = _by_head(mixed, log_total, g)
        weight = jnp.exp(_scores(q, k, mask) - log_total)
        along = _dot("bhqd,de->bhqe", g * mixed, jnp.ones((g.shape[-1], 1), g.dtype))
        g = g / (1.0 - dropout)
        left, by_weight = weight, _dot("bhqd,bhkd->bhqk", g, v)
        if dropout:
            keep = kept(rng, weight.shape, dropout)
            left, by_weight = (jnp.where(keep, x, 0.0) for x in (left, by_weight))
        by_score = weight * (by_weight - along) / np.sqrt(q.shape[-1])
        left, by_score = left.astype(g.dtype), by_score.astype(q.dtype)
        # Slow are products that contract the rows of both; not so with the narrow one first.
        by_query = _dot("bhqk,bhkd->bhqd", by_score, k)
        by_key = _dot("bhdq,bhqk->bhdk", jnp.swapaxes(q, 2, 3), by_score)
        by_value = _dot("bhdq,bhqk->bhdk", jnp.swapaxes(g, 2, 3), left)
        return _back(len(inputs) == 1, jnp.swapaxes(by_query, 2, 3), by_key, by_value)

    gradients = _in_turn(block, rng, where, inputs, (*results, g))
    return None, None, *(x.astype(like.dtype) for x, like in zip(gradients, inputs))


_mixed.defvjp(_forward, _backward)


def _heads(inputs: Sequence[jax.Array]) -> list[jax.Array]:
    """Query, key and value, `_by_head`, of what `mixed_values` or `mixed_rows` were given."""
    return _by_head(*(jnp.split(inputs[0], 3, 2) if len(inputs) == 1 else inputs))


def _back(joint: bool, *gradients: jax.Array) -> list[jax.Array]:
    """Gradients of the ``inputs`` from those of `_heads`, as ``[n_graph, n_head, d, n]``."""
    parts = [jnp.moveaxis(x, 3, 1) for x in gradients]
    return [jnp.concatenate(parts, 2)] if joint else parts


def _wanted(inputs: Sequence[jax.Array], mask: jax.Array) -> jax.Array:
    """Which queries have a value, [n_graph, n_query or 1, 1, 1]."""
    wanted = mask if len(inputs) == 1 else mask.any(1, keepdims=True)
    return wanted[:, :, None, None]


def _in_turn(
    f: Callable[..., Any],
    rng: jax.Array,
    where: Where,
    inputs: Sequence[jax.Array],
    more: Sequence[jax.Array] = (),
) -> Any:
    """``f(key, mask, *inputs, *more)`` on a few graphs at a time, [n_graph, n, n_head, d]."""
    if isinstance(where, PackedTokens):
        return _graph_by_graph(f, rng, where, (*inputs, *more))
    n_graph, n_query, n_head, _ = inputs[0].shape
    blocks = num_blocks(n_graph, 4 * n_head * n_query * where.shape[1])
    keys = jax.random.split(rng, blocks)
    arrays = (where, *inputs, *more)
    if blocks == 1:
        return f(keys[0], *arrays)
    rows = (a.reshape(blocks, -1, *a.shape[1:]) for a in arrays)
    out = jax.lax.map(lambda row: f(*row), (keys, *rows))
    return jax.tree.map(lambda a: a.reshape(n_graph, *a.shape[2:]), out)


def _graph_by_graph(
    f: Callable[..., Any], rng: jax.Array, packed: PackedTokens, arrays: Sequence[jax.Array]
) -> Any:
    """`_in_turn` on rows; values that ``f`` returns must be 0 where its mask is False."""
    n_row, (n_graph, n_token) = len(arrays[0]), packed.row.shape
    count = (packed.row < n_row).sum(1)
    start = jnp.cumsum(count) - count
    # A graph reads beyond its rows, masked, and what it writes there those to come write over.
    arrays = [jnp.pad(a, ((0, n_token), (0, 0), (0, 0))) for a in arrays]
    quarters = {-(-n_token * i // NUM_LENGTHS // 8) * 8 for i in range(1, NUM_LENGTHS)}
    lengths = [*sorted(n for n in quarters if n < n_token), n_token]

    def first(n: int, rng: jax.Array, start: jax.Array, count: jax.Array) -> list[jax.Array]:
        rows = [jax.lax.dynamic_slice_in_dim(a, start, n)[None] for a in arrays]
        rows = jax.lax.optimization_barrier(rows)  # or XLA would convert all rows beforehand
        out = f(rng, (jnp.arange(n) < count)[None], *rows)
        return [jnp.pad(a[0], ((0, n_token - n), (0, 0), (0, 0))) for a in out]

    def graph(out: list[jax.Array], which: tuple[jax.Array, ...]) -> tuple[list[jax.Array], None]:
        _, start, count = which
        branch = jnp.searchsorted(jnp.asarray(lengths), count)
        parts = jax.lax.switch(branch, [functools.partial(first, n) for n in lengths], *which)
        update = jax.lax.dynamic_update_slice_in_dim
        return [update(a, b, start, 0) for a, b in zip(out, parts)], None

    which = (jax.random.split(rng, n_graph), start, count)
    like = jax.eval_shape(lambda which: first(n_token, *which), jax.tree.map(lambda a: a[0], which))
    out = [jnp.zeros((n_row + n_token, *a.shape[1:]), a.dtype) for a in like]
    out = [later(a, arrays[-1]) for a in out]
    out, _ = jax.lax.scan(graph, out, which)
    return [a[:n_row] for a in out]
