"""Transformer over the atoms of a cell: attention that sees the geometry of every pair.

The second backbone beside `xtalnet_jax.models.cspnet.CSPNet`, behind the same call. CSPNet runs an
MLP of full width on every pair in every layer, n^2 d^2; here a narrow vector ``psi_ij`` is made of
each pair once, and layers only attend to it, n d^2 + n^2 d. A softmax of scalars cannot say *where*
an atom should move, so ``psi_ij`` is appended both to the key and to the value of atom j as atom i
sees it, in the manner of invariant point attention:

    score_ij = q_i . k_j + p_i . psi_ij - s d_ij,    out_i = W [sum_j a_ij v_j, sum_j a_ij psi_ij]

(per head, scales left out). The slope s of the distance d_ij differs from head to head and is
trained from values (`SLOPES`) at which some heads see the nearest neighbours only, so that in a
cell of a hundred atoms they need not be found first (meant for that; not compared without).
The sines in ``psi`` change sign with the displacement: that is what makes the result a direction.

Sources: Vaswani et al. 2017; AlphaFold 2 (doi 10.1038/s41586-021-03819-2), supplement, algorithm
22; Shaw et al. 2018 (arXiv 1803.02155) for relative keys and values; Press et al. 2022 (arXiv
2108.12409) for slopes; DiT (arXiv 2212.09748) for the zero-initialised modulation.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from xtalnet_jax.models import transformer
from xtalnet_jax.models.attention import attend
from xtalnet_jax.models.embeddings import fan_in_uniform
from xtalnet_jax.models.pair_features import pair_features, separation
from xtalnet_jax.models.transformer import CrossAttention, LayerNorm

SLOPES = (2.0, 0.1)
"""Of the first and the last head before training, in logits per angstrom; geometric between."""

_EXACT = jax.lax.Precision.HIGHEST


def _dense(features: int, name: str, dtype: Any) -> nn.Dense:
    return transformer.dense(features, name, dtype, fan_in_uniform())


class CellEmbedding(nn.Module):
    """Hidden features of the cell, in full precision: small differences of its numbers matter."""

    width: int

    @nn.compact
    def __call__(self, lattice_features: Float[Array, "n_graph k"]) -> Float[Array, "n_graph d"]:
        """Inputs of any scale, such as a metric tensor in angstrom^2, are compressed first."""
        dense = nn.Dense(self.width, kernel_init=fan_in_uniform(), precision=_EXACT, name="dense")
        return jax.nn.silu(dense(jnp.arcsinh(lattice_features)))


class PairEmbedding(nn.Module):
    """``psi_ij``: an MLP of the displacement and distance from i to j, both atoms, and the cell."""

    width: int
    num_freqs: int
    num_radial: int
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "n_graph n_node d"],
        frac_coords: Float[Array, "n_graph n_node 3"],
        cell: Float[Array, "n_graph k"],
        metric: Float[Array, "n_graph 3 3"] | None,
    ) -> tuple[
        Float[Array, "n_graph n_node n_node p"], Float[Array, "n_graph n_node n_node"] | None
    ]:
        """Return normalised features and distances (angstrom; None without metric).

        Of all ordered pairs (i, j), an atom with itself included.
        """
        difference = frac_coords[:, None] - frac_coords[:, :, None]
        if metric is not None:
            metric = jnp.broadcast_to(metric[:, None, None], (*difference.shape, 3))
        apart = separation(difference, metric, self.num_radial, detach=False)
        features = pair_features(apart, self.num_freqs, self.num_radial)
        x = LayerNorm(name="atom_norm")(h)
        receiver, sender = jnp.split(_dense(2 * self.width, "atoms", self.dtype)(x), 2, -1)
        by_cell = nn.Dense(self.width, kernel_init=fan_in_uniform(), name="cell")(cell)
        hidden = _dense(self.width, "features", self.dtype)(jnp.concatenate(features, -1))
        hidden = hidden + receiver[:, :, None] + sender[:, None] + by_cell[:, None, None]
        hidden = _dense(self.width, "out", self.dtype)(jax.nn.silu(hidden))
        return LayerNorm(name="norm")(hidden), apart.distance


class AtomLayer(nn.Module):
    """``h + attention(LN(h), psi)``, then ``h + ffn(LN(h))`` gated (SwiGLU).

    The cell scales and shifts both normalised inputs, not at all before training.
    """

    heads: int
    expand: int
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "n_graph n_node d"],
        pairs: Float[Array, "n_graph n_node n_node p"],
        cell: Float[Array, "n_graph k"],
        mask: Bool[Array, "n_graph n_node"],
        distance: Float[Array, "n_graph n_node n_node"] | None = None,
    ) -> Float[Array, "n_graph n_node d"]:
        """Update the atoms; padded ones are not looked at."""
        n_graph, n_node, width = h.shape
        num_pair = pairs.shape[-1]

        def per_head(x: jax.Array, parts: int) -> jax.Array:
            return x.reshape(n_graph, n_node, parts * self.heads, -1)

        zeros = nn.initializers.zeros
        modulation = nn.Dense(4 * width, kernel_init=zeros, name="modulation")(cell)[:, None]
        scale, shift, ffn_scale, ffn_shift = jnp.split(modulation, 4, -1)

        x = LayerNorm(name="attention_norm")(h) * (1 + scale) + shift
        qkv = per_head(_dense(3 * width, "qkv", self.dtype)(x), 3)
        query, key, value = jnp.split(qkv, 3, 2)
        pairs = pairs.astype(value.dtype)
        pair_query = per_head(_dense(self.heads * num_pair, "pair_query", self.dtype)(x), 1)
        pair_query = pair_query * jnp.asarray(1 / np.sqrt(num_pair), pair_query.dtype)
        bias = jnp.einsum("gihp,gijp->ghij", pair_query, pairs)
        if distance is not None:
            slope = self.param("slope", lambda _: jnp.geomspace(*SLOPES, self.heads))
            bias = bias - slope[None, :, None, None] * distance[:, None]
        weight = attend(query, key, mask, bias)
        mixed = jnp.einsum("ghij,gjhd->gihd", weight, value)
        seen = jnp.einsum("ghij,gijp->gihp", weight, pairs)
        mixed = jnp.concatenate([mixed, seen], -1).reshape(n_graph, n_node, -1)
        h = h + _dense(width, "out", self.dtype)(mixed).astype(h.dtype)

        y = LayerNorm(name="ffn_norm")(h) * (1 + ffn_scale) + ffn_shift
        gate, y = jnp.split(_dense(2 * self.expand * width, "fc1", self.dtype)(y), 2, -1)
        y = _dense(width, "fc2", self.dtype)(jax.nn.silu(gate) * y)
        return h + y.astype(h.dtype)


class Block(nn.Module):
    """``num`` x `AtomLayer`, then one look at the pattern tokens, if there are any."""

    num: int
    heads: int
    expand: int
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "n_graph n_node d"],
        pairs: Float[Array, "n_graph n_node n_node p"],
        cell: Float[Array, "n_graph k"],
        mask: Bool[Array, "n_graph n_node"],
        distance: Float[Array, "n_graph n_node n_node"] | None,
        tokens: Float[Array, "n_graph n_token c"] | None,
        token_mask: Bool[Array, "n_graph n_token"] | None,
    ) -> tuple[Float[Array, "n_graph n_node d"], None]:
        """Return ``(h, None)``, as `flax.linen.scan` wants it."""
        for i in range(self.num):
            h = AtomLayer(self.heads, self.expand, self.dtype, name=f"layer_{i}")(
                h, pairs, cell, mask, distance
            )
        if tokens is not None and token_mask is not None:
            h = CrossAttention(self.heads, self.dtype, name="look")(h, tokens, token_mask)
        return h, None


class AtomTransformer(nn.Module):
    """``layers`` x `AtomLayer` and a final LayerNorm; heads belong to the models that use it.

    The layers are the turns of one loop over equal blocks (`Block`), their parameters stacked: a
    program that is traced and compiled once for all of them, whatever their number.

    Symmetries as for `xtalnet_jax.models.cspnet.CSPNet`: invariant to lattice rotation if the
    lattice features are, to periodic translation of all atoms, and equivariant to their order.

    Attributes:
        width: Feature width d, a multiple of ``heads``.
        layers: Number of layers.
        heads: Attention heads, among atoms and to the pattern tokens.
        pair_width: Length of ``psi_ij``.
        expand: Width of the gated feed-forward layer over d.
        num_freqs: Frequencies k = 0 .. num_freqs - 1 in each of three directions.
        num_radial: Radial functions of the nearest distance of each pair; 0 goes without metric.
        cross_attention: Every so many layers the atoms attend to the pattern tokens; 0 = never.
            ``layers`` is a multiple of it.
        dtype: Type of the large products ("bfloat16" on accelerators); coordinates, phases,
            lattice numbers, norms and the residual stream keep the type of the input.
        remat: Recompute each block in the backward pass instead of storing what is inside.
    """

    width: int = 512
    layers: int = 12
    heads: int = 8
    pair_width: int = 64
    expand: int = 2
    num_freqs: int = 16
    num_radial: int = 0
    cross_attention: int = 0
    dtype: Any = None
    remat: bool = False

    def setup(self) -> None:
        """Create the layers."""
        if self.width % self.heads:
            raise ValueError(
                f"width is {self.width} and heads is {self.heads}; the width must be a multiple"
            )
        per_block = self.cross_attention or 1
        if self.layers % per_block:
            raise ValueError(
                f"layers is {self.layers} and cross_attention is {per_block}; the atoms look at "
                "the pattern after every so many layers, so layers must be a multiple of it"
            )
        self.cell = CellEmbedding(self.pair_width)
        self.pairs = PairEmbedding(self.pair_width, self.num_freqs, self.num_radial, self.dtype)
        self.blocks = nn.scan(
            nn.remat(Block, prevent_cse=False) if self.remat else Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.layers // per_block,
        )(per_block, self.heads, self.expand, self.dtype)
        self.final_norm = LayerNorm()

    def __call__(
        self,
        h: Float[Array, "n_graph n_node d"],
        frac_coords: Float[Array, "n_graph n_node 3"],
        lattice_features: Float[Array, "n_graph k"],
        node_mask: Bool[Array, "n_graph n_node"],
        *,
        metric: Float[Array, "n_graph 3 3"] | None = None,
        tokens: Float[Array, "n_graph n_token c"] | None = None,
        token_mask: Bool[Array, "n_graph n_token"] | None = None,
    ) -> Float[Array, "n_graph n_node d"]:
        """Turn initial atom features into final ones; padded atoms come out as 0.

        ``metric`` (L L^T) is needed when ``num_radial`` > 0, ``tokens`` and their mask when
        ``cross_attention`` > 0.
        """
        if not self.cross_attention:
            tokens = token_mask = None
        elif tokens is None or token_mask is None:
            raise ValueError(
                "cross_attention > 0 needs the tokens of each pattern (tokens=..., token_mask=...)"
            )
        cell = self.cell(lattice_features)
        pairs, distance = self.pairs(h, frac_coords, cell, metric)
        h, _ = self.blocks(h, pairs, cell, node_mask, distance, tokens, token_mask)
        return jnp.where(node_mask[..., None], self.final_norm(h), 0.0)
