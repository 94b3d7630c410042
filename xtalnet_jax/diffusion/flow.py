"""Flow matching for crystals: coordinates on the torus, the lattice as a standardised code.

Time runs from 0 (noise) to 1 (data). Paths are straight: ``x_t = x1 - (1 - t) d`` on the torus with
the centred displacement d, ``y_t = (1 - t) y0 + t y1`` for the lattice code; the targets are their
velocities ``d`` and ``y1 - y0`` (Lipman et al. 2023, arXiv:2210.02747; Chen and Lipman 2024,
arXiv:2302.03660 for geodesics; Miller et al. 2024, arXiv:2406.04713 for crystals).

Translation. A network that sees only differences of coordinates cannot know where the whole
crystal lies, so the mean over atoms of the velocity is neither predictable nor wanted. With iid
uniform noise and ``d_i = wrap(x1_i - x0_i)``, shifting all of x0 by the mean of d changes x0 by a
translation only: as a configuration up to translation it is still uniform noise. Its path to x1
has velocity ``d_i - mean(d)``. So path and target agree exactly, both free of the translation.

Known lattices. Where ``known`` is set the lattice code stands at the data for all times and only
the coordinates move: one network learns p(coordinates, lattice) and p(coordinates | lattice).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from xtalnet_jax.crystals.crystal import CrystalBatch
from xtalnet_jax.diffusion import coupling, noise
from xtalnet_jax.diffusion.lattice_code import LatticeStats, encode
from xtalnet_jax.numerics import masked_mean
from xtalnet_jax.types import DenoiseFn

MIN_REMAINING = 0.02
"""Floor of 1 - t where a prediction of the clean end is turned into a velocity."""


LATE = 2
"""Exponent of ``t = 1 - u^LATE``, u uniform, for ``time_sampling="late"``.

What remains of a path at time t is 1 - t of it. In a cell of 15 angstrom the atoms come within a
bond length of their places, where there is something to learn from neighbours, only near the end:
here the remaining 0.1 gets a third of the draws instead of a tenth.
"""


class FlowConfig(NamedTuple):
    """Static choices of the flow-matching loss (hashable)."""

    coord_weight: float = 10.0  # the coordinate velocity has a variance of at most 1/12
    lattice_weight: float = 1.0
    time_sampling: str = "uniform"  # "logit_normal": the middle of the path; "late": see `LATE`
    num_sweeps: int = 2  # of `coupling.couple`; 0 pairs noise and data as drawn
    prediction: str = "velocity"  # or "clean": see `velocity_from_clean`
    known_lattice: float = 0.0  # share of the crystals whose lattice is given


DEFAULT = FlowConfig()


class FlowNoise(NamedTuple):
    """All randomness of one evaluation of the loss."""

    t: jax.Array  # [n_graph] in (0, 1)
    lattice: jax.Array  # [n_graph, 6] standard normal, the code at t = 0
    coord: jax.Array  # [n_graph, n_node, 3] uniform, the coordinates at t = 0


class FlowPoint(NamedTuple):
    """A point on the path and the velocities there."""

    frac_coords: jax.Array  # [n_graph, n_node, 3] in [0, 1)
    lattice: jax.Array  # [n_graph, 6]
    coord_velocity: jax.Array  # [n_graph, n_node, 3] mean 0 over the atoms, 0 where padded
    lattice_velocity: jax.Array  # [n_graph, 6]


def check_config(config: FlowConfig) -> FlowConfig:
    """Return the config unchanged, or raise ValueError naming the field that cannot be used."""
    choices = {
        "time_sampling": ("uniform", "logit_normal", "late"),
        "prediction": ("velocity", "clean"),
    }
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f"{name} is {getattr(config, name)!r}, expected one of {allowed}")
    if config.num_sweeps < 0:
        raise ValueError(f"num_sweeps is {config.num_sweeps}, expected 0 or more")
    if not 0 <= config.known_lattice <= 1:
        raise ValueError(f"known_lattice is {config.known_lattice}, expected a share of 0 to 1")
    return config


def draw_flow_noise(
    key: jax.Array, batch: CrystalBatch, time_sampling: str = "uniform"
) -> FlowNoise:
    """Draw time, lattice code and coordinates at t = 0, all per crystal and per atom."""
    num_graphs, num_nodes = batch.atomic_numbers.shape
    key_t, key_lattice, key_coord = (
        noise.crystal_keys(k, num_graphs) for k in jax.random.split(key, 3)
    )
    dtype = jnp.result_type(batch.frac_coords)
    if time_sampling == "logit_normal":
        t = jax.nn.sigmoid(noise.per_crystal(key_t, (), jax.random.normal, dtype))
    elif time_sampling == "late":
        t = 1 - noise.per_crystal(key_t, (), jax.random.uniform, dtype) ** LATE
    else:
        t = noise.per_crystal(key_t, (), jax.random.uniform, dtype)
    return FlowNoise(
        t,
        noise.per_crystal(key_lattice, (6,), jax.random.normal, dtype),
        noise.per_atom(key_coord, num_nodes, jax.random.uniform, dtype),
    )


def draw_known(key: jax.Array, num_graphs: int, share: float) -> Bool[Array, " n_graph"]:
    """Draw the crystals whose lattice is given, on average a ``share`` of them."""
    keys = noise.crystal_keys(key, num_graphs)
    return noise.per_crystal(keys, (), jax.random.uniform, jnp.float32) < share


def interpolate(
    batch: CrystalBatch,
    draws: FlowNoise,
    stats: LatticeStats,
    num_sweeps: int = 2,
    known: Bool[Array, " n_graph"] | None = None,
) -> FlowPoint:
    """Return the point at time t on the path from ``draws`` to the crystals, and its velocity.

    The lattice code stays at the data where ``known``.
    """
    x0 = coupling.couple(draws.coord, batch.frac_coords, batch.atomic_numbers, num_sweeps)
    displacement = coupling.centred_displacement(x0, batch.frac_coords, batch.node_mask)
    code = encode(batch.lattice, batch.num_atoms, stats)
    remaining = 1 - draws.t
    start = draws.lattice if known is None else jnp.where(known[:, None], code, draws.lattice)
    return FlowPoint(
        (batch.frac_coords - remaining[:, None, None] * displacement) % 1.0,
        remaining[:, None] * start + draws.t[:, None] * code,
        displacement,
        code - start,
    )


def velocity_from_clean(denoise_fn: DenoiseFn) -> DenoiseFn:
    """Turn a network that predicts the clean end into one that predicts velocities.

    Its outputs are the displacement still ahead, ``(1 - t) d``, and the clean lattice code ``y1``;
    dividing by 1 - t (at least `MIN_REMAINING`) gives the velocities.
    """

    def velocity(
        frac_coords: jax.Array, lattice: jax.Array, t: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        ahead, clean = denoise_fn(frac_coords, lattice, t)
        rate = 1 / jnp.maximum(1 - t, MIN_REMAINING)
        return ahead * rate[:, None, None], (clean - lattice) * rate[:, None]

    return velocity


def loss_given_noise(
    denoise_fn: DenoiseFn,
    batch: CrystalBatch,
    draws: FlowNoise,
    stats: LatticeStats,
    config: FlowConfig = DEFAULT,
    known: Bool[Array, " n_graph"] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Masked mean square error of both velocities, a deterministic function of ``draws``.

    The mean over atoms of the coordinate prediction is removed first: the target has none. With
    ``prediction="clean"`` the errors are those of the clean end (velocity errors times 1 - t).
    Crystals whose lattice is ``known`` (``denoise_fn`` has to be told as well) have no lattice
    error to make.

    Returns:
        ``(loss, metrics)``; metrics are ``loss_lattice``, ``loss_coord`` (means over all numbers
        of real crystals and atoms, unweighted) and ``path_length``, the root mean square
        displacement per component that the coupling left.
    """
    batch = jax.tree.map(jnp.asarray, batch)
    point = interpolate(batch, draws, stats, config.num_sweeps, known)
    coord, lattice = denoise_fn(point.frac_coords, point.lattice, draws.t)
    coord = coupling.remove_mean(coord, batch.node_mask)
    coord_target, lattice_target = point.coord_velocity, point.lattice_velocity
    if config.prediction == "clean":
        coord_target = (1 - draws.t)[:, None, None] * coord_target
        lattice_target = encode(batch.lattice, batch.num_atoms, stats)
    node_mask, moving = batch.node_mask[:, :, None], batch.graph_mask
    if known is not None:
        moving = moving & ~known
    loss_coord = masked_mean((coord - coord_target) ** 2, node_mask, (0, 1, 2))
    loss_lattice = masked_mean((lattice - lattice_target) ** 2, moving[:, None], (0, 1))
    path = jnp.sqrt(masked_mean(point.coord_velocity**2, node_mask, (0, 1, 2)))
    loss = config.coord_weight * loss_coord + config.lattice_weight * loss_lattice
    return loss, {"loss_lattice": loss_lattice, "loss_coord": loss_coord, "path_length": path}


def flow_loss(
    key: jax.Array,
    denoise_fn: DenoiseFn,
    batch: CrystalBatch,
    stats: LatticeStats,
    config: FlowConfig = DEFAULT,
    known: Bool[Array, " n_graph"] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`loss_given_noise` with fresh noise: the training loss of flow matching.

    Raises:
        ValueError: a field of ``config`` has no meaning (at trace time).
    """
    draws = draw_flow_noise(key, batch, check_config(config).time_sampling)
    return loss_given_noise(denoise_fn, batch, draws, stats, config, known)


def oracle_velocity(batch: CrystalBatch, stats: LatticeStats) -> DenoiseFn:
    """Return the exact velocity of a data set that holds, for each row, that one crystal alone.

    Coordinates move along the shortest displacement to it, without the mean over atoms.
    """
    code = encode(batch.lattice, batch.num_atoms, stats)

    def velocity(
        frac_coords: jax.Array, lattice: jax.Array, t: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        remaining = 1 - t
        rate = jnp.where(remaining > 0, 1 / jnp.where(remaining > 0, remaining, 1.0), 0.0)
        ahead = coupling.centred_displacement(frac_coords, batch.frac_coords, batch.node_mask)
        return ahead * rate[:, None, None], (code - lattice) * rate[:, None]

    return velocity
