"""Predictor-corrector sampling of the reference's diffusion, as ``(init, step)`` and one scan.

For t = T..1 a Langevin corrector on the coordinates, then an ancestral predictor on coordinates
(variance exploding) and lattice (DDPM), the network evaluated once for each; no noise at t = 1
(Song et al. 2021, arXiv:2011.13456, appendix G; Jiao et al. 2023, arXiv:2309.04475, algorithm 2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from xtalnet_jax.crystals.crystal import CrystalBatch
from xtalnet_jax.diffusion import lattice_ddpm, losses, noise, torus
from xtalnet_jax.diffusion.schedules import Schedules, at
from xtalnet_jax.types import DenoiseFn


class SamplerState(NamedTuple):
    """Where a batch of crystals stands; step t is the next to be taken."""

    frac_coords: jax.Array  # [n_graph, n_node, 3] in [0, 1)
    lattice: jax.Array  # [n_graph, 3, 3]
    t: jax.Array  # [] int32, T at the start, 0 at the end


class StepNoise(NamedTuple):
    """Standard normal numbers of one step; unused at t = 1."""

    corrector: jax.Array  # [n_graph, n_node, 3]
    predictor: jax.Array  # [n_graph, n_node, 3]
    lattice: jax.Array  # [n_graph, 3, 3]


class StepInfo(NamedTuple):
    """What happened within a step."""

    half_coords: jax.Array  # [n_graph, n_node, 3] after the corrector, not wrapped
    corrector: tuple[jax.Array, jax.Array]  # the network's outputs before the corrector
    predictor: tuple[jax.Array, jax.Array]  # and before the predictor


class Sampler(NamedTuple):
    """``init(keys, ...) -> state`` and ``step(keys, state, ...) -> (state, info)``."""

    init: Callable[..., Any]
    step: Callable[..., Any]


def predictor_corrector(
    denoise_fn: DenoiseFn, schedules: Schedules, langevin_step: float = 1e-5
) -> Sampler:
    """Build the sampler of the reference.

    ``init(keys, num_nodes, dtype)`` draws the state at t = T from the prior, ``step(keys, state,
    step_noise=None)`` goes from t to t - 1. ``keys`` is one key per crystal, [n_graph], the same
    for all steps: every draw folds in t. ``step_noise`` replaces the draws.

    Args:
        denoise_fn: coordinates' normalised target (minus the score) and the lattice's epsilon.
        schedules: the tables the denoiser was trained with.
        langevin_step: step of the corrector at t = 1; it grows with ``sigma_t^2``.
    """

    def init(keys: jax.Array, num_nodes: int, dtype: Any = float) -> SamplerState:
        keys = noise.fold_in(keys, 0)
        return SamplerState(
            noise.per_atom(noise.fold_in(keys, 0), num_nodes, jax.random.uniform, dtype),
            noise.per_crystal(noise.fold_in(keys, 1), (3, 3), jax.random.normal, dtype),
            jnp.asarray(schedules.num_steps, jnp.int32),
        )

    def draw(keys: jax.Array, state: SamplerState) -> StepNoise:
        keys, dtype = noise.fold_in(keys, state.t), state.frac_coords.dtype
        coord = noise.per_atom(
            noise.fold_in(keys, 0), state.frac_coords.shape[1], jax.random.normal, dtype, (2, 3)
        )
        lattice = noise.per_crystal(noise.fold_in(keys, 1), (3, 3), jax.random.normal, dtype)
        return StepNoise(coord[:, :, 0], coord[:, :, 1], lattice)

    def step(
        keys: jax.Array, state: SamplerState, step_noise: StepNoise | None = None
    ) -> tuple[SamplerState, StepInfo]:
        x, lattice, t = state
        z = draw(keys, state) if step_noise is None else step_noise
        steps = jnp.full(x.shape[:1], t)
        now, before = at(schedules, t, 3, x.dtype), at(schedules, t - 1, 3, x.dtype)
        minus_score_scale = jnp.sqrt(now.score_second_moments)

        corrector = denoise_fn(x, lattice, steps)
        size = langevin_step * (now.sigmas / schedules.sigmas[1].astype(x.dtype)) ** 2
        kick = jnp.where(t > 1, jnp.sqrt(2 * size), 0.0)
        half = x - size * minus_score_scale * corrector[0] + kick * z.corrector

        predictor = denoise_fn(half, lattice, steps)
        removed = now.sigmas**2 - before.sigmas**2
        spread = before.sigmas * jnp.sqrt(removed) / now.sigmas  # 0 at t = 1
        x = half - removed * minus_score_scale * predictor[0] + spread * z.predictor
        lattice = lattice_ddpm.ancestral_step(lattice, predictor[1], steps, z.lattice, schedules)
        return SamplerState(x % 1.0, lattice, t - 1), StepInfo(half, corrector, predictor)

    return Sampler(init, step)


def keep_known(
    denoise_fn: DenoiseFn,
    schedules: Schedules,
    lattice: jax.Array | None = None,
    frac_coords: jax.Array | None = None,
) -> DenoiseFn:
    """Replace the network's opinion of what is known by the exact answer.

    The known part then runs down a true sample of its noising process, which is what the network
    saw in training at every t, and arrives at the known value.

    Args:
        denoise_fn: the network.
        schedules: the tables of the process.
        lattice: [n_graph, 3, 3] angstrom, or None where it is to be found.
        frac_coords: [n_graph, n_node, 3], or None where they are to be found.
    """

    def denoise(x: jax.Array, cell: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        coord, epsilon = denoise_fn(x, cell, t)
        if frac_coords is not None:
            coord = losses.coordinate_target(torus.wrap(x - frac_coords), t, schedules)
        if lattice is not None:
            epsilon = lattice_ddpm.epsilon_of(cell, lattice, t, schedules)
        return coord, epsilon

    return denoise


def tidy(atomic_numbers: jax.Array, frac_coords: jax.Array, lattice: jax.Array) -> CrystalBatch:
    """Return a batch with coordinates in [0, 1) and neutral padding."""
    batch = CrystalBatch(jnp.asarray(atomic_numbers), frac_coords, lattice)
    identity = jnp.eye(3, dtype=lattice.dtype)[None]
    return batch._replace(
        frac_coords=jnp.where(batch.node_mask[:, :, None], frac_coords % 1.0, 0.0),
        lattice=jnp.where(batch.graph_mask[:, None, None], lattice, identity),
    )


def sample(
    key: jax.Array,
    denoise_fn: DenoiseFn,
    atomic_numbers: Int[Array, "n_graph n_node"],
    schedules: Schedules,
    *,
    langevin_step: float = 1e-5,
    lattice: Float[Array, "n_graph 3 3"] | None = None,
    frac_coords: Float[Array, "n_graph n_node 3"] | None = None,
    start: SamplerState | None = None,
    step_noise: StepNoise | None = None,
    trajectory: bool = False,
) -> tuple[CrystalBatch, SamplerState | None]:
    """Draw one crystal for every row of ``atomic_numbers``.

    A crystal depends on its own key and on what the denoiser makes of its own row, not on its
    neighbours in the batch, nor on the padding.

    Args:
        key: one key, or one per crystal [n_graph].
        denoise_fn: network or oracle with species, mask and condition bound.
        atomic_numbers: composition of each crystal, 0 where padded.
        schedules: tables; their length sets the number of steps.
        langevin_step: step of the corrector at t = 1.
        lattice: known lattice, kept (see `keep_known`).
        frac_coords: known coordinates, kept.
        start: state at t = T instead of a draw from the prior.
        step_noise: noise of all steps, leading axis T, the first step taken first.
        trajectory: also return the states after every step.

    Returns:
        ``(crystals, states)``; ``states`` has a leading axis T, or is None.
    """
    num_graphs, num_nodes = atomic_numbers.shape
    keys = noise.crystal_keys(key, num_graphs)
    known = keep_known(denoise_fn, schedules, lattice, frac_coords)
    init, step = predictor_corrector(known, schedules, langevin_step)
    state = init(keys, num_nodes, schedules.sigmas.dtype) if start is None else start

    def body(state: SamplerState, z: StepNoise | None) -> tuple[SamplerState, SamplerState | None]:
        state, _ = step(keys, state, z)
        return state, state if trajectory else None

    state, states = jax.lax.scan(body, state, step_noise, length=schedules.num_steps)
    found_coords = state.frac_coords if frac_coords is None else frac_coords
    found_lattice = state.lattice if lattice is None else lattice
    return tidy(atomic_numbers, found_coords, found_lattice), states
