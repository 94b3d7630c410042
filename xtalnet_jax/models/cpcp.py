"""CPCP: a pattern tower and a crystal tower that meet in one space (the paper's section 4.2).

The loss over a batch of such pairs is `xtalnet_jax.contrastive`; nothing here knows of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Float

from xtalnet_jax.crystals import lattice as lattice_maths
from xtalnet_jax.crystals.crystal import CrystalBatch
from xtalnet_jax.crystals.sizes import Sizes
from xtalnet_jax.models.cspnet import CSPNet, node_graph
from xtalnet_jax.models.embeddings import fan_in_uniform
from xtalnet_jax.models.fast import behind
from xtalnet_jax.models.kinds import module_of_kind
from xtalnet_jax.models.pxrd_encoder import PXRDEncoder
from xtalnet_jax.models.reflection_tower import ReflectionTower
from xtalnet_jax.numerics import masked_mean, unit

MAX_SCALE = 100.0
NUM_SPECIES = 100

CRYSTAL_NETWORKS = {"cspnet": CSPNet, "reflections": ReflectionTower}
"""What ``network["kind"]`` chooses from: the paper's graph of atoms, or the cell's reflections."""


def species_embedding(width: int, name: str | None = None) -> nn.Embed:
    """Table of 100 trained vectors; row Z - 1, see `species_index`."""
    return nn.Embed(NUM_SPECIES, width, embedding_init=nn.initializers.normal(1.0), name=name)


def species_index(atomic_numbers: jax.Array) -> jax.Array:
    """Row of the species table; padding (0) reads the first row and is masked later."""
    return jnp.maximum(atomic_numbers - 1, 0)


def lattice_numbers(lattice: Float[Array, "n_graph 3 3"], form: str) -> jax.Array:
    """Orientation-free numbers of a lattice: ``"metric"`` [n_graph, 9] or ``"log_metric"`` [.., 6].

    ``flatten(L L^T)`` in angstrom^2 is the paper's; ``(1/2) log(L L^T)`` is of order 1 for cells
    of every size. No gradient passes through the logarithm (its eigenvectors are not unique for a
    cubic cell).
    """
    if form == "metric":
        return lattice_maths.metric_tensor(lattice).reshape(-1, 9)
    if form == "log_metric":
        return jax.lax.stop_gradient(lattice_maths.log_metric(lattice))
    raise ValueError(f'lattice_form is "{form}", expected "metric" or "log_metric"')


class CPCP(nn.Module):
    """Contrastive model of patterns and crystals.

    Attributes:
        encoder: Fields of the `PXRDEncoder`.
        network: Fields of the `CSPNet`, or of the `ReflectionTower` where its ``kind`` is
            "reflections".
        projection: Width of the common space if patterns get a linear map to it; by default the
            encoder's width without a map, as in the paper.
        lattice_form: What CSPNet sees of the cell, see `lattice_numbers`.
        init_log_scale: Where the logarithm of the inverse temperature starts; 1 is the paper's,
            3 (temperature 0.05) learns faster.
    """

    encoder: Mapping[str, Any] = FrozenDict()
    network: Mapping[str, Any] = FrozenDict()
    projection: int | None = None
    lattice_form: str = "metric"
    init_log_scale: float = 1.0

    def setup(self) -> None:
        """Create both towers and the temperature."""
        self.pxrd_encoder = PXRDEncoder(**self.encoder)
        self.crystal_network = module_of_kind(CRYSTAL_NETWORKS, self.network)
        if self._on_atoms:
            self.species = species_embedding(self.crystal_network.width)
        self.crystal_head = self._linear(self.projection or self.pxrd_encoder.width)
        if self.projection:
            self.pattern_head = self._linear(self.projection)
        self.logit_scale = self.param(
            "logit_scale", nn.initializers.constant(self.init_log_scale), ()
        )

    @property
    def _on_atoms(self) -> bool:
        return self.network.get("kind", "cspnet") == "cspnet"

    def _linear(self, width: int) -> nn.Dense:
        return nn.Dense(width, use_bias=False, kernel_init=fan_in_uniform())

    def embed_patterns(self, peaks: Any, train: bool = False) -> Float[Array, "n_graph d"]:
        """Unit vectors of patterns (`xtalnet_jax.pxrd.pattern.PeakBatch`)."""
        pooled = self.pxrd_encoder(peaks, train, front=True).pooled
        return unit(self.pattern_head(pooled) if self.projection else pooled)

    def embed_crystals(
        self, batch: CrystalBatch, train: bool = False, sizes: Sizes | None = None
    ) -> Float[Array, "n_graph d"]:
        """Unit vectors of crystals; 0 for a padded one. ``train`` changes nothing (no dropout).

        With ``sizes`` each group of rows is computed at its own padded size.
        """
        del train
        if sizes is None:
            return self._embed(batch)
        parts: list[jax.Array] = []
        for part in sizes.split(batch):
            parts.append(self._embed(part, parts[-1] if parts else None))
        return jnp.concatenate(parts)

    def _embed(self, batch: CrystalBatch, others: jax.Array | None = None) -> jax.Array:
        """Embed crystals; the gradient is through with these before it comes to the others."""
        batch = jax.tree.map(jnp.asarray, batch)
        mask = batch.atomic_numbers > 0
        if not self._on_atoms:
            feature = self.crystal_head(self.crystal_network(batch))
            return unit(jnp.where(mask.any(1)[:, None], feature, 0.0))
        metric = lattice_maths.metric_tensor(batch.lattice)
        h = self.species(species_index(batch.atomic_numbers))
        h = self.crystal_network(
            behind(h, others),
            batch.frac_coords,
            lattice_numbers(batch.lattice, self.lattice_form),
            mask,
            metric=metric,
        )
        return unit(self.crystal_head(masked_mean(h, mask[..., None], 1)))

    def embed_graphs(self, graphs: Any) -> Float[Array, "n_graph d"]:
        """`embed_crystals` on a ``jraph.GraphsTuple`` of `xtalnet_jax.crystals.graph.to_graphs`.

        Raises:
            ValueError: the crystal tower is not a graph network.
        """
        if not self._on_atoms:
            raise ValueError("graphs are read by a network of kind 'cspnet', not 'reflections'")
        graphs = jax.tree.map(jnp.asarray, graphs)
        numbers = graphs.nodes["atomic_numbers"]
        features = lattice_numbers(graphs.globals["lattice"], self.lattice_form)
        h = self.crystal_network.on_graphs(self.species(species_index(numbers)), graphs, features)
        num_graphs, graph = graphs.n_node.shape[0], node_graph(graphs)
        count = jax.ops.segment_sum((numbers > 0).astype(h.dtype), graph, num_graphs)
        mean = jax.ops.segment_sum(h, graph, num_graphs) / jnp.maximum(count, 1.0)[:, None]
        return unit(self.crystal_head(mean))

    def __call__(
        self, peaks: Any, batch: CrystalBatch, train: bool = False, sizes: Sizes | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return unit vectors of patterns and crystals [n_graph, d] and the scale of their cosine.

        The scale is ``min(exp(logit_scale), 100)``; it starts at ``exp(init_log_scale)``.
        """
        scale = jnp.minimum(jnp.exp(self.logit_scale), MAX_SCALE)
        crystals = self.embed_crystals(batch, train, sizes)
        return self.embed_patterns(peaks, train), crystals, scale
