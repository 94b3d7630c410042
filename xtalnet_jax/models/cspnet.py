"""CSPNet: a periodic graph network on the complete graph of each crystal (SPEC section 5)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xtalnet_jax.crystals.lattice import metric_tensor
from xtalnet_jax.models import pairs as pair
from xtalnet_jax.models import transformer
from xtalnet_jax.models.edge_list import EdgeList, edge_list
from xtalnet_jax.models.embeddings import fan_in_uniform
from xtalnet_jax.models.fast import product, silu
from xtalnet_jax.models.pair_features import EdgeKernel
from xtalnet_jax.models.transformer import CrossAttention, LayerNorm


class _Affine(nn.Module):
    """Kernel and bias of a dense layer, handed out to be applied in parts or inside a loop."""

    inputs: int
    features: int

    @nn.compact
    def __call__(self) -> EdgeKernel:
        kernel = self.param("kernel", fan_in_uniform(), (self.inputs, self.features))
        return EdgeKernel(kernel, self.param("bias", nn.initializers.zeros, (self.features,)))


class CSPLayer(nn.Module):
    """``h + node_mlp([LN(h), mean_j edge_mlp([LN(h)_i, LN(h)_j, g, psi(f_j - f_i)])])``."""

    width: int
    num_pair: int
    dtype: Any = None

    @nn.compact
    def __call__(self, h: jax.Array, lattice_features: jax.Array, pairs: pair.Pairs) -> jax.Array:
        """Update atom features [n_graph, n_node, d], or [n_atom, d] with an `EdgeList`."""

        def dense(name: str) -> nn.Dense:
            return transformer.dense(self.width, name, self.dtype, fan_in_uniform())

        x = LayerNorm(name="norm")(h)
        dtype = h.dtype if self.dtype is None else self.dtype
        inputs = 2 * self.width + lattice_features.shape[-1] + self.num_pair
        first = _Affine(inputs, self.width, name="edge_0")()
        second = _Affine(self.width, self.width, name="edge_1")()

        def rest(message: jax.Array) -> jax.Array:
            message = product(message, second.kernel, dtype, of=silu)
            bias = second.bias.astype(dtype).reshape((1,) * (message.ndim - 1) + (self.width,))
            return silu((message + bias).astype(dtype))

        mean = pair.mean_messages(pairs, x, lattice_features, first, rest, dtype)
        y = jax.nn.silu(dense("node_0")(jnp.concatenate([x, mean], -1)))
        return h + jax.nn.silu(dense("node_1")(y)).astype(h.dtype)


class CSPNet(nn.Module):
    """``layers`` x `CSPLayer` and a final LayerNorm; heads belong to the models that use it.

    Invariant to lattice rotation if the lattice features are, to periodic translation of all
    atoms, and equivariant to their order. Sources: DiffCSP (arXiv 2309.04475), section 4.3;
    XtalNet (arXiv 2401.03862), section 4.

    Attributes:
        width: Feature width d.
        layers: Number of layers.
        num_freqs: Frequencies k = 0 .. num_freqs - 1 in each of three directions.
        layout: ``"sparse"`` (edge list, segment sums), ``"offsets"``, ``"square"``, or ``"dense"``:
            the quicker of offsets and square. Same parameters, see `xtalnet_jax.models.pairs`.
        detach: No gradient to the coordinates through the pair features, as in the reference.
        num_radial: Radial functions of the nearest distance added to each pair; 0 is the paper.
        cross_attention: Every so many layers the atoms attend to the pattern tokens; 0 = never.
        heads: Heads of that attention.
        dtype: Type of the large products ("bfloat16" on accelerators); coordinates, phases,
            lattice numbers and the residual stream keep the type of the input.
        remat: Recompute each layer in the backward pass instead of storing its messages.
        chunk: Offsets or receivers that a layer handles at a time, for large cells: pairs of one
            block, ``chunk * n_node`` of each crystal, are in memory, in both passes. None: all
            pairs at once.
    """

    width: int = 512
    layers: int = 6
    num_freqs: int = 128
    layout: str = "dense"
    detach: bool = True
    num_radial: int = 0
    cross_attention: int = 0
    heads: int = 8
    dtype: Any = None
    remat: bool = False
    chunk: int | None = None

    def setup(self) -> None:
        """Create the layers; names follow the reference's order."""
        if self.layout not in pair.LAYOUTS:
            known = ", ".join(f'"{name}"' for name in pair.LAYOUTS)
            raise ValueError(f'layout is "{self.layout}", expected one of {known}')
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk is {self.chunk}, expected at least 1, or None for all at once")
        layer = nn.remat(CSPLayer) if self.remat else CSPLayer
        num_pair = 6 * self.num_freqs + self.num_radial
        self.layer = [layer(self.width, num_pair, self.dtype) for _ in range(self.layers)]
        every = self.cross_attention
        looks = self.layers // every if every else 0
        self.look = [CrossAttention(self.heads, self.dtype) for _ in range(looks)]
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
        if self.look and (tokens is None or token_mask is None):
            raise ValueError(
                "cross_attention > 0 needs the tokens of each pattern (tokens=..., token_mask=...)"
            )
        pairs = pair.make_pairs(
            frac_coords,
            node_mask,
            self.num_freqs,
            layout=self.layout,
            dtype=frac_coords.dtype if self.dtype is None else self.dtype,
            metric=metric,
            num_radial=self.num_radial,
            detach=self.detach,
            chunk=self.chunk,
        )
        n_graph, n_node, width = h.shape
        if isinstance(pairs, EdgeList):
            h = h.reshape(-1, width)
        for i, layer in enumerate(self.layer):
            h = layer(h, lattice_features, pairs)
            if self.look and (i + 1) % self.cross_attention == 0:
                assert tokens is not None
                assert token_mask is not None
                look = self.look[(i + 1) // self.cross_attention - 1]
                h = look(h.reshape(n_graph, n_node, width), tokens, token_mask).reshape(h.shape)
        h = self.final_norm(h).reshape(n_graph, n_node, width)
        return jnp.where(node_mask[..., None], h, 0.0)

    def on_graphs(
        self, h: Float[Array, "n_atom d"], graphs: Any, lattice_features: Float[Array, "n_graph k"]
    ) -> Float[Array, "n_atom d"]:
        """The same network on a ``jraph.GraphsTuple`` (see `xtalnet_jax.crystals.graph.to_graphs`).

        Reads ``nodes["frac_coords"]``, ``nodes["atomic_numbers"]`` (0 = padding),
        ``globals["lattice"]``, ``senders``, ``receivers`` and ``n_node``.
        """
        if self.look:
            raise ValueError("cross_attention works on padded batches only, not on a GraphsTuple")
        graph = node_graph(graphs)
        node_mask = graphs.nodes["atomic_numbers"] > 0
        edges = edge_list(
            graphs.nodes["frac_coords"],
            node_mask,
            graphs.senders,
            graphs.receivers,
            graph[graphs.receivers],
            self.num_freqs,
            metric=metric_tensor(graphs.globals["lattice"]) if self.num_radial else None,
            num_radial=self.num_radial,
            detach=self.detach,
        )
        for layer in self.layer:
            h = layer(h, lattice_features, edges)
        return jnp.where(node_mask[:, None], self.final_norm(h), 0.0)


def node_graph(graphs: Any) -> jax.Array:
    """Index of the crystal of every atom of a ``jraph.GraphsTuple``, [n_atom]."""
    num_atoms = graphs.nodes["atomic_numbers"].shape[0]
    return jnp.repeat(
        jnp.arange(graphs.n_node.shape[0]), graphs.n_node, total_repeat_length=num_atoms
    )
