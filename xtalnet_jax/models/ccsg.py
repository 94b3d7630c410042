"""CCSG: the crystal generator conditioned on a pattern, as a denoiser and as a velocity field.

`CCSG` is the network of the paper's section 4.3 (noise of the lattice matrix, normalised target
of the coordinates). `FlowCCSG` is our default: the same backbone predicting velocities of the
coordinates and of six lattice numbers. Both encode a pattern once (`condition`) and are then
called many times by a sampler (`denoise`); both satisfy `xtalnet_jax.types.DenoiseFn` after
binding the condition and the species.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Float, Int

from xtalnet_jax.crystals.lattice import metric_tensor
from xtalnet_jax.models.atom_transformer import AtomTransformer
from xtalnet_jax.models.cpcp import species_embedding, species_index
from xtalnet_jax.models.cspnet import CSPNet
from xtalnet_jax.models.embeddings import fan_in_uniform, time_embedding
from xtalnet_jax.models.kinds import module_of_kind
from xtalnet_jax.models.pxrd_encoder import PXRDEncoder
from xtalnet_jax.numerics import masked_mean


class Condition(NamedTuple):
    """What the generator knows of a pattern."""

    pooled: jax.Array  # [n_graph, d] the pattern as a whole
    tokens: jax.Array | None  # [n_graph, n_peak, d] its peaks, 0 where padded; None if unused
    mask: jax.Array  # [n_graph, n_peak] bool
    known_lattice: jax.Array  # [n_graph] bool: the lattice state is the true one at all times


BACKBONES = {"cspnet": CSPNet, "transformer": AtomTransformer}
"""What ``network["kind"]`` chooses from; all are called alike."""


class AtomInput(nn.Module):
    """Initial atom features from species, per-crystal numbers and the pattern.

    ``fusion="cat"``: ``Linear([species, numbers, pattern])`` per atom, the paper's default.
    ``fusion="add"``: the pattern is one more node, see `backbone`.
    """

    width: int
    fusion: str = "cat"

    @nn.compact
    def __call__(
        self, atomic_numbers: jax.Array, numbers: jax.Array, pooled: jax.Array
    ) -> jax.Array:
        """Return [n_graph, n_node (+ 1 for "add"), width]."""
        species = species_embedding(self.width, "species")(species_index(atomic_numbers))
        shared = jnp.concatenate([numbers, pooled], -1) if self.fusion == "cat" else numbers
        shared = jnp.broadcast_to(shared[:, None], (*species.shape[:2], shared.shape[-1]))
        dense = nn.Dense(self.width, kernel_init=fan_in_uniform(), name="atom")
        h = dense(jnp.concatenate([species, shared], -1))
        if self.fusion == "cat":
            return h
        node = nn.Dense(self.width, kernel_init=fan_in_uniform(), name="pattern")(pooled)
        return jnp.concatenate([h, node[:, None]], 1)


def backbone(
    network: CSPNet | AtomTransformer,
    h: jax.Array,
    frac_coords: jax.Array,
    lattice_features: jax.Array,
    node_mask: jax.Array,
    condition: Condition,
    metric: jax.Array | None = None,
) -> jax.Array:
    """Run the network; with one node more than atoms, that one sits at (1/2, 1/2, 1/2).

    The additional node ("add" fusion) is linked to every atom like an atom of the cell, takes part
    in all means, and is left out of the result [n_graph, n_node, d].
    """
    n_graph, n_node = node_mask.shape
    if h.shape[1] > n_node:
        centre = jnp.full((n_graph, 1, 3), 0.5, frac_coords.dtype)
        frac_coords = jnp.concatenate([frac_coords, centre], 1)
        node_mask = jnp.pad(node_mask, ((0, 0), (0, 1)), constant_values=True)
    extra = {}
    if network.cross_attention and condition.tokens is not None:
        tokens = jnp.concatenate([condition.pooled[:, None], condition.tokens], 1)
        token_mask = jnp.pad(condition.mask, ((0, 0), (1, 0)), constant_values=True)
        extra = {"tokens": tokens, "token_mask": token_mask}
    h = network(h, frac_coords, lattice_features, node_mask, metric=metric, **extra)
    return h[:, :n_node]


def _condition(
    encoder: PXRDEncoder,
    network: CSPNet | AtomTransformer,
    peaks: Any,
    train: bool,
    frozen: bool,
) -> Condition:
    front = not network.cross_attention
    features = encoder(peaks, train, frozen=frozen, front=front)
    return Condition(*features, jnp.zeros(len(peaks.mask), bool))


def _check_fusion(fusion: str) -> None:
    if fusion not in ("cat", "add"):
        raise ValueError(f'fusion is "{fusion}", expected "cat" or "add"')


class CCSG(nn.Module):
    """The paper's denoiser.

    Attributes:
        encoder: Fields of the `PXRDEncoder`.
        network: Fields of the backbone, see `kinds.module_of_kind`.
        time_dim: Width of the time features.
        fusion: How the pattern enters, ``"cat"`` or ``"add"``; see `AtomInput`.
    """

    encoder: Mapping[str, Any] = FrozenDict()
    network: Mapping[str, Any] = FrozenDict()
    time_dim: int = 256
    fusion: str = "cat"

    def setup(self) -> None:
        """Create encoder, network and heads."""
        _check_fusion(self.fusion)
        self.pxrd_encoder = PXRDEncoder(**self.encoder)
        self.decoder = module_of_kind(BACKBONES, self.network)
        self.atom_input = AtomInput(self.decoder.width, self.fusion)
        self.coord_head = nn.Dense(3, use_bias=False, kernel_init=fan_in_uniform())
        self.lattice_head = nn.Dense(9, use_bias=False, kernel_init=fan_in_uniform())

    def condition(self, peaks: Any, train: bool = False, frozen: bool = False) -> Condition:
        """Encode patterns, see `PXRDEncoder`."""
        return _condition(self.pxrd_encoder, self.decoder, peaks, train, frozen)

    def denoise(
        self,
        condition: Condition,
        atomic_numbers: Int[Array, "n_graph n_node"],
        frac_coords: Float[Array, "n_graph n_node 3"],
        lattice: Float[Array, "n_graph 3 3"],
        t: jax.Array,
        train: bool = False,
    ) -> tuple[Float[Array, "n_graph n_node 3"], Float[Array, "n_graph 3 3"]]:
        """Return the normalised coordinate target (minus the score) and the lattice noise.

        ``t`` [n_graph] counts diffusion steps 1..T. The lattice output is ``M(h) @ L``, so it
        turns with the lattice. ``train`` changes nothing: the decoder has no dropout.
        """
        del train
        mask = atomic_numbers > 0
        time = time_embedding(t, self.time_dim, frac_coords.dtype)
        h = self.atom_input(atomic_numbers, time, condition.pooled)
        metric = metric_tensor(lattice)
        features = metric.reshape(-1, 9)
        h = backbone(self.decoder, h, frac_coords, features, mask, condition, metric)
        mixing = self.lattice_head(masked_mean(h, mask[..., None], 1)).reshape(-1, 3, 3)
        noise = jnp.einsum("gij,gjk->gik", mixing, lattice, precision=jax.lax.Precision.HIGHEST)
        return self.coord_head(h), noise

    def __call__(
        self,
        peaks: Any,
        atomic_numbers: jax.Array,
        frac_coords: jax.Array,
        lattice: jax.Array,
        t: jax.Array,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """`condition`, then `denoise`."""
        condition = self.condition(peaks, train)
        return self.denoise(condition, atomic_numbers, frac_coords, lattice, t, train)


class FlowCCSG(nn.Module):
    """Velocity field of coordinates and of a standardised six-vector of the lattice.

    Time is continuous in [0, 1]; the lattice state ``y`` is what
    `xtalnet_jax.diffusion.lattice_code.encode` returns. The number of atoms is a further input.
    With ``num_radial`` > 0 in ``network`` the pairs also see distances, for which `denoise` needs
    the metric tensor of the state.

    Attributes:
        encoder: Fields of the `PXRDEncoder` (continuous positions unless said otherwise).
        network: Fields of the backbone, see `kinds.module_of_kind` (cross-attention in every second
            layer unless said).
        time_dim: Width of the time features.
        fusion: How the pooled pattern enters, see `AtomInput`.
    """

    encoder: Mapping[str, Any] = FrozenDict()
    network: Mapping[str, Any] = FrozenDict()
    time_dim: int = 256
    fusion: str = "cat"

    def setup(self) -> None:
        """Create encoder, network and heads."""
        _check_fusion(self.fusion)
        self.pxrd_encoder = PXRDEncoder(**{"position": "fourier", **self.encoder})
        self.decoder = module_of_kind(BACKBONES, {"cross_attention": 2, **self.network})
        self.atom_input = AtomInput(self.decoder.width, self.fusion)
        small = fan_in_uniform(0.1)
        self.coord_head = nn.Dense(3, use_bias=False, kernel_init=small)
        self.lattice_hidden = nn.Dense(self.decoder.width, kernel_init=fan_in_uniform())
        self.lattice_head = nn.Dense(6, kernel_init=small)

    def condition(self, peaks: Any, train: bool = False, frozen: bool = False) -> Condition:
        """Encode patterns, see `PXRDEncoder`."""
        return _condition(self.pxrd_encoder, self.decoder, peaks, train, frozen)

    def denoise(
        self,
        condition: Condition,
        atomic_numbers: Int[Array, "n_graph n_node"],
        frac_coords: Float[Array, "n_graph n_node 3"],
        lattice: Float[Array, "n_graph 6"],
        t: Float[Array, "n_graph"],
        train: bool = False,
        metric: Float[Array, "n_graph 3 3"] | None = None,
    ) -> tuple[Float[Array, "n_graph n_node 3"], Float[Array, "n_graph 6"]]:
        """Return the velocities of the fractional coordinates and of the lattice numbers.

        ``metric`` is L L^T of the state in angstrom^2, only used if ``num_radial`` > 0.
        """
        del train
        mask = atomic_numbers > 0
        dtype = frac_coords.dtype
        time = time_embedding(1000.0 * t, self.time_dim, dtype)
        count = jnp.log(jnp.maximum(mask.sum(-1), 1).astype(dtype))[:, None]
        phase = count * jnp.arange(1, 9, dtype=dtype)[None]
        known = condition.known_lattice.astype(dtype)[:, None]
        numbers = jnp.concatenate([time, count / 3, jnp.sin(phase), jnp.cos(phase), known], -1)
        h = self.atom_input(atomic_numbers, numbers, condition.pooled)
        h = backbone(self.decoder, h, frac_coords, lattice, mask, condition, metric)
        mean = masked_mean(h, mask[..., None], 1)
        pooled = jnp.concatenate([mean, condition.pooled, lattice, numbers], -1)
        return self.coord_head(h), self.lattice_head(jax.nn.silu(self.lattice_hidden(pooled)))

    def __call__(
        self,
        peaks: Any,
        atomic_numbers: jax.Array,
        frac_coords: jax.Array,
        lattice: jax.Array,
        t: jax.Array,
        train: bool = False,
        metric: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """`condition`, then `denoise`."""
        condition = self.condition(peaks, train)
        return self.denoise(condition, atomic_numbers, frac_coords, lattice, t, train, metric)
