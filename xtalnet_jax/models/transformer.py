"""Masked pre-LN transformer encoder, and cross-attention from atoms to what it makes."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xtalnet_jax.models import fast
from xtalnet_jax.models.attention import mixed_rows, mixed_values
from xtalnet_jax.models.fast import Dropout, gelu
from xtalnet_jax.models.packed_tokens import PackedTokens, pack, packed_tokens, unpack

bert_init = nn.initializers.normal(0.02)
lecun = nn.initializers.lecun_normal()


def dense(
    features: int,
    name: str,
    dtype: Any = None,
    init: Any = bert_init,
    of: fast.Activation | None = None,
) -> nn.Dense:
    """Dense layer, of an activation of its input if given, by `fast.dot_general`."""
    dot = functools.partial(fast.dot_general, of=of)
    return nn.Dense(features, kernel_init=init, dtype=dtype, dot_general=dot, name=name)


class LayerNorm(nn.Module):
    """`fast.layer_norm` with the parameters of ``flax.linen.LayerNorm``."""

    epsilon: float = 1e-5  # the reference's
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*tokens d"]) -> jax.Array:
        """Normalise each token; the result is of ``dtype``, by default float32 at least."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        dtype = self.dtype or jnp.promote_types(x.dtype, scale.dtype)
        return fast.layer_norm(x, scale, bias, self.epsilon, dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention with a key-padding mask."""

    heads: int
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*tokens d"],
        mask: Bool[Array, "n_graph n_token"],
        train: bool,
        packed: PackedTokens | None = None,
        front: bool = False,
    ) -> jax.Array:
        """Mix the tokens; masked ones are not looked at.

        ``x`` holds tokens [n_graph, n_token, d], or rows [n_row, d] if they are ``packed``. With
        ``front`` what comes out is that of the first tokens alone, [n_graph, d].
        """
        width = x.shape[-1]
        qkv = dense(3 * width, "qkv", self.dtype)(x).astype(x.dtype)
        dropout = self.dropout if train else 0.0
        rng = self.make_rng("dropout") if dropout else None
        if packed is not None and not front:
            mixed = mixed_rows(qkv.reshape(len(x), 3 * self.heads, -1), packed, dropout, rng)
        else:
            qkv = qkv if packed is None else unpack(qkv, packed)
            query, key, value = jnp.split(qkv.reshape(*mask.shape, 3 * self.heads, -1), 3, 2)
            query = query[:, :1] if front else query
            mixed = mixed_values(query, key, value, mask, dropout, rng)
            mixed = mixed[:, 0] if front else mixed
        mixed = mixed.reshape(*mixed.shape[:-2], width)
        return dense(width, "out", self.dtype)(mixed)


class CrossAttention(nn.Module):
    """Pre-LN residual attention from atoms to the tokens of a pattern."""

    heads: int = 8
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "n_graph n_node d"],
        tokens: Float[Array, "n_graph n_token c"],
        mask: Bool[Array, "n_graph n_token"],
    ) -> Float[Array, "n_graph n_node d"]:
        """Return ``h + attention(LN(h), tokens)``."""
        width = h.shape[-1]
        x = LayerNorm(dtype=self.dtype, name="norm")(h)
        query = dense(width, "query", self.dtype, lecun)(x)
        key, value = jnp.split(dense(2 * width, "key_value", self.dtype, lecun)(tokens), 2, -1)
        query, key, value = (a.reshape(*a.shape[:2], self.heads, -1) for a in (query, key, value))
        mixed = mixed_values(query, key, value, mask).reshape(h.shape)
        return h + dense(width, "out", self.dtype, lecun)(mixed).astype(h.dtype)


class EncoderLayer(nn.Module):
    """``x + attention(LN(x))``, then ``x + ffn(LN(x))`` with the erf form of GELU."""

    ffn: int
    heads: int
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*tokens d"],
        mask: Bool[Array, "n_graph n_token"],
        train: bool,
        packed: PackedTokens | None = None,
        front: bool = False,
    ) -> jax.Array:
        """Apply the layer (`SelfAttention` on shapes); the residual stream keeps its own type."""
        drop = Dropout(self.dropout)
        attention = SelfAttention(self.heads, self.dropout, self.dtype, name="attention")
        normed = LayerNorm(dtype=self.dtype, name="attention_norm")(x)
        mixed = attention(normed, mask, train, packed, front)
        if front:
            x = x[:, 0] if packed is None else x[packed.row[:, 0]]
        x = x + drop(mixed, deterministic=not train).astype(x.dtype)
        y = LayerNorm(dtype=self.dtype, name="ffn_norm")(x)
        y = dense(self.ffn, "fc1", self.dtype)(y).astype(y.dtype)
        y = dense(x.shape[-1], "fc2", self.dtype, of=gelu)(y)
        return x + drop(y, deterministic=not train).astype(x.dtype)


class Encoder(nn.Module):
    """LayerNorm and dropout on the embeddings, ``layers`` pre-LN layers, a final LayerNorm."""

    ffn: int = 2048
    heads: int = 64
    layers: int = 8
    dropout: float = 0.1
    dtype: Any = None
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n_graph n_token d"],
        mask: Bool[Array, "n_graph n_token"],
        train: bool,
        num_rows: int | None = None,
        front: bool = False,
    ) -> jax.Array:
        """Encode embeddings; masked tokens come out as 0 and influence nothing.

        Args:
            x: embeddings.
            mask: which tokens are real; with ``front`` the first of each graph must be.
            train: with dropout.
            num_rows: compute the dense layers on so many rows, into which the real tokens must fit;
                by default on all tokens.
            front: return the first token of each graph alone, [n_graph, d]; the last layer then
                computes no other.
        """
        packed = None
        if num_rows is not None and num_rows < mask.size:
            packed = packed_tokens(mask, num_rows)
            x = pack(x, packed)
        x = LayerNorm(name="embedding_norm")(x)
        x = Dropout(self.dropout)(x, deterministic=not train)
        if packed is None:
            x = jnp.where(mask[..., None], x, 0.0)
        layer = nn.remat(EncoderLayer, static_argnums=(3, 5)) if self.remat else EncoderLayer
        for i in range(self.layers):
            last = front and i == self.layers - 1
            block = layer(self.ffn, self.heads, self.dropout, self.dtype, name=f"layer_{i}")
            x = block(x, mask, train, packed, last)
        x = LayerNorm(name="final_norm")(x)
        if front:
            return x
        if packed is not None:
            x = unpack(x, packed)
        return jnp.where(mask[..., None], x, 0.0)
