"""The reference's denoising loss for crystals, split into drawing noise and scoring a denoiser.

L = |eps - eps_hat|^2 for the lattice and for the coordinates the score of the wrapped normal
divided by its root mean square (lambda_t weighting). Means run over numbers, not over crystals: a
crystal of 20 atoms counts ten times one of 2 in the coordinate part, as in the reference.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from xtalnet_jax.crystals.crystal import CrystalBatch
from xtalnet_jax.diffusion import lattice_ddpm, noise, torus
from xtalnet_jax.diffusion.schedules import Schedules, at
from xtalnet_jax.numerics import masked_mean
from xtalnet_jax.types import DenoiseFn


class DiffusionNoise(NamedTuple):
    """All randomness of one evaluation of the loss."""

    t: jax.Array  # [n_graph] int, 1..T
    lattice: jax.Array  # [n_graph, 3, 3] standard normal
    coord: jax.Array  # [n_graph, n_node, 3] standard normal


def draw_noise(key: jax.Array, batch: CrystalBatch, num_steps: int) -> DiffusionNoise:
    """Draw t uniformly on 1..num_steps and standard normal noise, all per crystal and per atom."""
    num_graphs, num_nodes = batch.atomic_numbers.shape
    key_t, key_lattice, key_coord = (
        noise.crystal_keys(k, num_graphs) for k in jax.random.split(key, 3)
    )
    t = jax.vmap(lambda k: jax.random.randint(k, (), 1, num_steps + 1))(key_t)
    dtype = jnp.result_type(batch.frac_coords)
    return DiffusionNoise(
        t,
        noise.per_crystal(key_lattice, (3, 3), jax.random.normal, dtype),
        noise.per_atom(key_coord, num_nodes, jax.random.normal, dtype),
    )


def coordinate_target(
    displacement: Float[Array, "n_graph n_node 3"],
    t: Int[Array, " n_graph"],
    schedules: Schedules,
) -> Float[Array, "n_graph n_node 3"]:
    """**Minus** the score of the wrapped normal at ``displacement`` = F_t - F_0, scaled to rms 1.

    The sign is the reference's: positive for a small positive displacement, so a sampler subtracts
    it. Multiply by ``sqrt(score_second_moments[t])`` to get minus the score.
    """
    row = at(schedules, t, displacement.ndim, displacement.dtype)
    return -torus.score(displacement, row.sigmas) / jnp.sqrt(row.score_second_moments)


def add_noise(
    batch: CrystalBatch, draws: DiffusionNoise, schedules: Schedules
) -> tuple[CrystalBatch, jax.Array]:
    """Return the batch at step t and the coordinate target [n_graph, n_node, 3].

    ``F_t = (F_0 + sigma_t eps) mod 1``, ``L_t = sqrt(abar_t) L_0 + sqrt(1 - abar_t) eps``.
    """
    row = at(schedules, draws.t, 3, batch.frac_coords.dtype)
    displacement = row.sigmas * draws.coord
    noisy = batch._replace(
        frac_coords=(batch.frac_coords + displacement) % 1.0,
        lattice=lattice_ddpm.diffuse(batch.lattice, draws.t, draws.lattice, schedules),
    )
    return noisy, coordinate_target(displacement, draws.t, schedules)


def loss_given_noise(
    denoise_fn: DenoiseFn,
    batch: CrystalBatch,
    draws: DiffusionNoise,
    schedules: Schedules,
    lattice_weight: float = 1.0,
    coord_weight: float = 1.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of a denoiser on one noised batch, a deterministic function of ``draws``.

    Returns:
        ``(loss, metrics)`` with metrics ``loss_lattice`` (mean over the 9 numbers of every real
        crystal) and ``loss_coord`` (mean over the components of all real atoms).
    """
    batch = jax.tree.map(jnp.asarray, batch)
    noisy, target = add_noise(batch, draws, schedules)
    coord, epsilon = denoise_fn(noisy.frac_coords, noisy.lattice, draws.t)
    everything = (0, 1, 2)
    loss_lattice = masked_mean(
        (epsilon - draws.lattice) ** 2, batch.graph_mask[:, None, None], everything
    )
    loss_coord = masked_mean((coord - target) ** 2, batch.node_mask[:, :, None], everything)
    loss = lattice_weight * loss_lattice + coord_weight * loss_coord
    return loss, {"loss_lattice": loss_lattice, "loss_coord": loss_coord}


def diffusion_loss(
    key: jax.Array,
    denoise_fn: DenoiseFn,
    batch: CrystalBatch,
    schedules: Schedules,
    lattice_weight: float = 1.0,
    coord_weight: float = 1.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`loss_given_noise` with fresh noise: the training loss of CCSG."""
    draws = draw_noise(key, batch, schedules.num_steps)
    return loss_given_noise(denoise_fn, batch, draws, schedules, lattice_weight, coord_weight)


def oracle_denoiser(batch: CrystalBatch, schedules: Schedules) -> DenoiseFn:
    """Return the exact denoiser of a data set that holds, for each row, that one crystal alone."""

    def denoise(
        frac_coords: jax.Array, lattice: jax.Array, t: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        displacement = torus.wrap(frac_coords - batch.frac_coords)
        coord = coordinate_target(displacement, t, schedules)
        return coord, lattice_ddpm.epsilon_of(lattice, batch.lattice, t, schedules)

    return denoise
