"""A crystal tower that sees what a powder pattern sees: the reflections of the cell.

Every lattice determines its reflections, and every reflection sums the atoms with their phases. The
tower lists the shortest reciprocal lattice vectors, sums learned scattering powers of the
elements over the atoms (structure factors in ``channels`` numbers instead of one), and mixes the
squared moduli with a transformer. Origin, orientation, the order of the atoms and the choice of
basis drop out by construction; the other hand of a structure looks the same, as it does to
powder diffraction. Cost: n atoms times reflections, where a graph network has n^2 pairs.

Source: structure factors as in International Tables for Crystallography B, section 1.2; the
learned sums are ours.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from xtalnet_jax.crystals import lattice as lattice_maths
from xtalnet_jax.crystals.crystal import CrystalBatch
from xtalnet_jax.models.embeddings import log_fourier
from xtalnet_jax.models.pxrd_encoder import LENGTHS
from xtalnet_jax.models.transformer import Encoder, LayerNorm, bert_init, dense
from xtalnet_jax.numerics import masked_mean
from xtalnet_jax.pxrd.hkl import full_box

BOX = (4, 5, 10)
"""Largest Miller indices along the shortest, middle and longest axis of a reduced cell."""

MAX_INV_D = 1.0
"""Reflections beyond (1/angstrom) lie outside ordinary laboratory patterns and are left out."""

_EXACT = jax.lax.Precision.HIGHEST


def half_box(box: tuple[int, int, int] = BOX) -> np.ndarray:
    """One of hkl and -hkl, [n_hkl, 3], without 000."""
    hkl = full_box(box).astype(np.int64)
    first = hkl[:, 2] * 10**6 + hkl[:, 1] * 10**3 + hkl[:, 0]  # > 0 for exactly one of a pair
    return hkl[first > 0]


def shortest_reflections(
    lattice: Float[Array, "n_graph 3 3"], num: int
) -> tuple[Int[Array, "n_graph {num} 3"], Float[Array, "n_graph {num}"], jax.Array]:
    """List up to ``num`` reflections of smallest 1/d: Miller indices, 1/d (1/angstrom), mask.

    A shell of equal 1/d that would be cut in two is left out whole, so that the list does not
    depend on the basis of the lattice.
    """
    order = jnp.argsort((lattice * lattice).sum(-1), -1)
    ascending = jnp.take_along_axis(lattice, order[..., None], 1)
    box = jnp.asarray(half_box(), lattice.dtype)
    inv_d = lattice_maths.inv_d(box, ascending)
    minus, index = jax.lax.top_k(-inv_d, num + 1)
    found = -minus
    mask = (found[:, :-1] < found[:, -1:] * (1 - 1e-4)) & (found[:, :-1] <= MAX_INV_D)
    hkl = jnp.asarray(half_box())[index[:, :-1]]
    back = jnp.argsort(order, -1)  # to the axes as they were given
    return jnp.take_along_axis(hkl, back[:, None], 2), found[:, :-1], mask


def normalised_intensity(
    hkl: Int[Array, "n_graph n_hkl 3"],
    frac_coords: Float[Array, "n_graph n_node 3"],
    power: Float[Array, "n_graph n_node c"],
) -> Float[Array, "n_graph n_hkl c"]:
    """Return ``|sum_j p_j exp(2 pi i h.x_j)|^2 / sum_j p_j^2`` for every scattering power p.

    Atoms at random places give 1 on average, in every cell. Source: normalised structure factors,
    International Tables for Crystallography B, section 2.2.
    """
    hkl = hkl.astype(frac_coords.dtype)
    turns = jnp.einsum("brk,bnk->brn", hkl, frac_coords, precision=_EXACT)
    phase = 2 * np.pi * (turns - jnp.round(turns))
    cosine = jnp.einsum("brn,bnc->brc", jnp.cos(phase), power)
    sine = jnp.einsum("brn,bnc->brc", jnp.sin(phase), power)
    return (cosine**2 + sine**2) / ((power * power).sum(1)[:, None] + 1e-6)


class ReflectionTower(nn.Module):
    """Transformer over the shortest reflections of a crystal.

    Attributes:
        width: of the tokens.
        ffn, heads, layers: of the transformer.
        channels: learned scattering powers of each element.
        num_reflections: listed for each crystal.
        num_freqs: waves that describe 1/d, as in the `PXRDEncoder`.
        dtype: of the transformer's products.
    """

    width: int = 512
    ffn: int = 2048
    heads: int = 16
    layers: int = 4
    channels: int = 32
    num_reflections: int = 128
    num_freqs: int = 64
    dtype: Any = None

    @nn.compact
    def __call__(self, batch: CrystalBatch) -> Float[Array, "n_graph width"]:
        """Return one feature for each crystal; a padded one gets a finite value."""
        real = batch.atomic_numbers > 0
        power = nn.Embed(
            100, self.channels, embedding_init=_scattering_init, name="scattering_power"
        )(jnp.maximum(batch.atomic_numbers - 1, 0))
        power = jnp.where(real[..., None], power, 0.0)
        lattice = jax.lax.stop_gradient(batch.lattice)
        hkl, inv_d, mask = shortest_reflections(lattice, self.num_reflections)
        square = normalised_intensity(hkl, batch.frac_coords, power)
        features = jnp.concatenate([jnp.sqrt(square + 1e-6), jnp.log(square + 1e-2)], -1)
        x = nn.Dense(self.width, kernel_init=bert_init, name="intensity_0")(features)
        x = jax.nn.relu(LayerNorm(name="intensity_norm")(x))
        x = nn.Dense(self.width, kernel_init=bert_init, name="intensity_1")(x)
        x = x + nn.Dense(self.width, name="position")(log_fourier(inv_d, self.num_freqs, *LENGTHS))
        log_volume = jnp.log(lattice_maths.volume(lattice))[:, None]
        whole = jnp.concatenate([masked_mean(power, real[..., None], 1), log_volume], -1)
        front = nn.Dense(self.width, name="whole")(whole)
        x = jnp.concatenate([front[:, None], x], 1)
        mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        encoder = Encoder(self.ffn, self.heads, self.layers, 0.0, self.dtype, name="encoder")
        x = encoder(x, mask, False)
        mean = masked_mean(x, mask[..., None], 1)
        return dense(self.width, "out", None)(jnp.concatenate([x[:, 0], mean], -1))


def _scattering_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """First channel proportional to Z, the others random: near to what X-rays see."""
    table = jax.random.normal(key, shape, dtype)
    return table.at[:, 0].set(jnp.arange(1, shape[0] + 1, dtype=dtype) / 30.0)
