"""Few-step sampling of a flow-matching model: Euler or Heun in one scan, optionally with churn."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from xtalnet_jax.crystals.crystal import CrystalBatch
from xtalnet_jax.diffusion import noise
from xtalnet_jax.diffusion.coupling import remove_mean
from xtalnet_jax.diffusion.lattice_code import LatticeStats, decode, encode
from xtalnet_jax.diffusion.sampler import Sampler, tidy
from xtalnet_jax.types import DenoiseFn


class FlowSampling(NamedTuple):
    """Static choices of the sampler (hashable)."""

    num_steps: int = 20
    method: str = "euler"  # or "heun": second order, two evaluations a step, one in the last
    coord_speed: float = 0.0  # c of s(t) = 1 + c t, which multiplies the coordinate velocity
    churn: float = 0.0  # before each step, go back by this many steps in time, adding noise
    coord_spread: float = 0.25  # rms component of the training paths, scales the coordinate churn
    late: float = 1.0  # step k of n ends at t = 1 - (1 - k/n)^late: above 1, short steps at the end


class FlowState(NamedTuple):
    """Where a batch of crystals stands on its way from noise to data."""

    frac_coords: jax.Array  # [n_graph, n_node, 3] in [0, 1)
    code: jax.Array  # [n_graph, 6] lattice code
    step: jax.Array  # [] int32, steps taken; for the time see `FlowSampling.late`


DEFAULT = FlowSampling()


def check_sampling(options: FlowSampling) -> FlowSampling:
    """Return the options unchanged, or raise ValueError naming the one that cannot be used."""
    if options.num_steps < 1:
        raise ValueError(f"num_steps is {options.num_steps}, expected at least 1")
    if options.method not in ("euler", "heun"):
        raise ValueError(f"method is {options.method!r}, expected 'euler' or 'heun'")
    if options.churn < 0 or options.coord_spread < 0:
        raise ValueError(
            f"churn is {options.churn} and coord_spread {options.coord_spread}, expected 0 or more"
        )
    if options.late < 1:
        raise ValueError(f"late is {options.late}, expected at least 1")
    return options


def _time(step: jax.Array, options: FlowSampling) -> jax.Array:
    """Time after ``step`` (a float) of the steps."""
    return 1 - jnp.maximum(1 - step / options.num_steps, 0.0) ** options.late


def _go_back(
    keys: jax.Array, x: jax.Array, code: jax.Array, step: jax.Array, options: FlowSampling
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the state as it was ``churn`` steps before, with fresh noise.

    For the lattice code this is exact: from the marginal of ``t y1 + (1 - t) y0`` to the one of the
    earlier time. On the torus the displacement still ahead is treated as normal with the given
    spread, which is an approximation.
    """
    t, earlier = (_time(jnp.maximum(step - back, 0.0), options) for back in (0, options.churn))
    scale = jnp.where(t > 0, earlier / jnp.where(t > 0, t, 1.0), 1.0)
    code_std = jnp.sqrt(jnp.maximum((1 - earlier) ** 2 - (scale * (1 - t)) ** 2, 0.0))
    coord_std = options.coord_spread * jnp.sqrt(jnp.maximum((1 - earlier) ** 2 - (1 - t) ** 2, 0.0))
    normal = jax.random.normal
    code_noise = noise.per_crystal(noise.fold_in(keys, 0), (6,), normal, x.dtype)
    coord_noise = noise.per_atom(noise.fold_in(keys, 1), x.shape[1], normal, x.dtype)
    return x + coord_std * coord_noise, scale * code + code_std * code_noise, earlier


def flow_sampler(
    denoise_fn: DenoiseFn, node_mask: jax.Array, options: FlowSampling = DEFAULT
) -> Sampler:
    """Build the sampler: ``init(keys, dtype)`` and ``step(keys, state) -> (state, velocities)``.

    ``denoise_fn`` returns velocities (wrap a network that predicts the clean end in
    `flow.velocity_from_clean`). The mean over atoms of the coordinate velocity is removed.
    ``keys`` is one key per crystal, [n_graph], the same for all steps.

    Raises:
        ValueError: an option has no meaning.
    """
    check_sampling(options)
    num_nodes = node_mask.shape[1]

    def init(keys: jax.Array, dtype: Any = float) -> FlowState:
        keys = noise.fold_in(keys, 0)
        return FlowState(
            noise.per_atom(noise.fold_in(keys, 0), num_nodes, jax.random.uniform, dtype),
            noise.per_crystal(noise.fold_in(keys, 1), (6,), jax.random.normal, dtype),
            jnp.asarray(0, jnp.int32),
        )

    def velocity(x: jax.Array, code: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        coord, lattice = denoise_fn(x, code, jnp.broadcast_to(t, x.shape[:1]))
        return (1 + options.coord_speed * t) * remove_mean(coord, node_mask), lattice

    def step(keys: jax.Array, state: FlowState) -> tuple[FlowState, tuple[jax.Array, jax.Array]]:
        x, code, index = state
        begin = index.astype(x.dtype)
        t, end = _time(begin, options), _time(begin + 1, options)
        if options.churn:
            x, code, t = _go_back(noise.fold_in(keys, index + 1), x, code, begin, options)
        first = velocity(x, code, t)

        def mean_velocity() -> tuple[jax.Array, jax.Array]:
            there = (x + (end - t) * first[0], code + (end - t) * first[1], end)
            return jax.tree.map(lambda a, b: (a + b) / 2, first, velocity(*there))

        used = first
        if options.method == "heun":  # a velocity at t = 1 would be that of no path: Euler there
            is_last = index + 1 == options.num_steps
            used = jax.lax.cond(is_last, lambda: first, mean_velocity)
        x, code = x + (end - t) * used[0], code + (end - t) * used[1]
        return FlowState(x % 1.0, code, index + 1), used

    return Sampler(init, step)


def keep_lattice(denoise_fn: DenoiseFn, known_code: Float[Array, "n_graph 6"]) -> DenoiseFn:
    """Show the network a known lattice code at all times (see `flow.interpolate`)."""

    def denoise(x: jax.Array, code: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        coord, _ = denoise_fn(x, known_code, t)
        return coord, jnp.zeros_like(code)

    return denoise


def flow_sample(
    key: jax.Array,
    denoise_fn: DenoiseFn,
    atomic_numbers: Int[Array, "n_graph n_node"],
    stats: LatticeStats,
    options: FlowSampling = DEFAULT,
    *,
    lattice: Float[Array, "n_graph 3 3"] | None = None,
    start: FlowState | None = None,
    trajectory: bool = False,
    dtype: Any = float,
) -> tuple[CrystalBatch, FlowState | None]:
    """Draw one crystal for every row of ``atomic_numbers`` by integrating the velocity field.

    A crystal depends on its own key and on what the denoiser makes of its own row, not on its
    neighbours in the batch, nor on the padding.

    Args:
        key: one key, or one per crystal [n_graph].
        denoise_fn: velocities of coordinates and lattice code, with everything else bound.
        atomic_numbers: composition of each crystal, 0 where padded.
        stats: statistics of the lattice code the network was trained with.
        options: number of steps, method, speed and churn.
        lattice: known lattice, kept; ``denoise_fn`` has to know that it is known.
        start: state at t = 0 instead of a draw from the prior.
        trajectory: also return the states after every step.
        dtype: float type of a drawn start.

    Returns:
        ``(crystals, states)``; ``states`` has a leading axis num_steps, or is None.

    Raises:
        ValueError: an option has no meaning.
    """
    batch = CrystalBatch(jnp.asarray(atomic_numbers), None, None)
    keys = noise.crystal_keys(key, atomic_numbers.shape[0])
    if lattice is not None:
        denoise_fn = keep_lattice(denoise_fn, encode(lattice, batch.num_atoms, stats))
    init, step = flow_sampler(denoise_fn, batch.node_mask, options)

    def body(state: FlowState, _: None) -> tuple[FlowState, FlowState | None]:
        state, _ = step(keys, state)
        return state, state if trajectory else None

    state = init(keys, dtype) if start is None else start
    state, states = jax.lax.scan(body, state, None, length=options.num_steps)
    found = decode(state.code, batch.num_atoms, stats) if lattice is None else lattice
    return tidy(atomic_numbers, state.frac_coords, found), states
