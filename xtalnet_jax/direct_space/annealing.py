"""Search the coordinates of crystals whose cell is known: annealing in direct space.

With the cell, the angles of all lines are fixed and a profile is two small matrix products, so many
thousand arrangements are tried in the time of one profile refinement. Atoms move on their Wyckoff
positions (in P1 on their own) by gradient steps (Adam) on the misfit of square-root profiles and on
contacts that are too short, with Gaussian noise that is cooled to nothing (compare simulated
annealing: David, Shankland and Shankland, Chemical Communications 931, 1998).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.direct_space import known_cell
from xtalnet_jax.direct_space.known_cell import KnownCell, Reflections
from xtalnet_jax.direct_space.placement import Placement
from xtalnet_jax.refine.prepare import bucket

NODE_SIZES = (4, 8, 12, 20, 32, 56, 104, 208, 400)
CHUNK = 8
"""Arrangements at once: what they need stays in a small cache."""
NUM_THREADS = 2
"""Chunks at once; each is too small to be shared among the cores."""


class AnnealSettings(NamedTuple):
    """How to anneal."""

    cooled: float = 0.7  # share of the steps with noise
    noise: float = 0.04  # angstrom per step at the start
    step: float = 0.15  # angstrom, size of a gradient step at the start
    contact_cost: float = 0.05  # per square angstrom too short and atom


DEFAULT = AnnealSettings()


class Scene(NamedTuple):
    """What is the same for all arrangements in a cell."""

    lattice: Any  # [3, 3]
    root: Any  # [n_angle]
    num_angles: Any  # []
    floor: Any  # []
    closest: Any  # [n_node, n_node]
    num_atoms: Any  # []


class Arrangements(NamedTuple):
    """Atoms on the sites of one group, each with what it costs; leading axis n."""

    placements: Placement
    misfit: np.ndarray  # [n] 1 - cos^2
    contact: np.ndarray  # [n] cost of distances that are too short


def anneal(
    key: jax.Array,
    cell: KnownCell,
    groups: Sequence[tuple[Reflections, Placement]],
    num_steps: int,
    heat: float,
    settings: AnnealSettings = DEFAULT,
) -> list[Arrangements]:
    """Anneal the arrangements of several groups; each ends no worse than it started.

    Args:
        key: of the noise.
        cell: with contents and pattern.
        groups: reflections of each group and its arrangements, leading axis n.
        num_steps: of the annealing, 0 to evaluate only.
        heat: factor on the noise, 0 for descent only.
        settings: see `AnnealSettings`.
    """
    scene = _scene(cell, groups[0][1].x.shape[1]) if groups else None
    work: list[tuple[int, Reflections, Placement]] = []
    rows: list[tuple[int, np.ndarray]] = []
    for g, (reflections, placements) in enumerate(groups):
        for start in range(0, len(placements.x), CHUNK):
            own = np.arange(start, min(start + CHUNK, len(placements.x)))
            chosen = np.resize(own, CHUNK)
            work.append((len(work), reflections, Placement(*(v[chosen] for v in placements))))
            rows.append((g, own))

    def run(item: tuple[int, Reflections, Placement]) -> tuple[np.ndarray, ...]:
        number, reflections, placements = item
        found = _anneal(
            jax.random.fold_in(key, number), scene, reflections, placements,
            np.int32(num_steps), np.float32(heat), settings,
        )  # fmt: skip
        return tuple(np.asarray(v) for v in found)

    out = [
        Arrangements(p._replace(x=np.array(p.x)), np.zeros(len(p.x)), np.zeros(len(p.x)))
        for _, p in groups
    ]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for (g, own), (x, misfit, contact) in zip(rows, pool.map(run, work)):
            out[g].placements.x[own] = x[: len(own)]
            out[g].misfit[own], out[g].contact[own] = misfit[: len(own)], contact[: len(own)]
    return out


def num_nodes_for(num_atoms: int) -> int:
    """Number of atoms that placements are padded to."""
    return max(bucket(num_atoms, NODE_SIZES), num_atoms)


def _scene(cell: KnownCell, num_nodes: int) -> Scene:
    root, closest = known_cell.padded(cell, num_nodes)
    lattice = cell.lattice.astype(np.float32)
    num_angles, num_atoms = (np.float32(len(v)) for v in (cell.root, cell.atomic_numbers))
    return Scene(lattice, root, num_angles, np.float32(cell.floor), closest, num_atoms)


# Device -------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("settings",))
def _anneal(
    key: jax.Array,
    scene: Scene,
    reflections: Reflections,
    placements: Placement,
    num_steps: jax.Array,
    heat: jax.Array,
    settings: AnnealSettings,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """New ``x`` [n, n_node, 3], misfits and costs of contacts [n]."""
    inverse = jnp.linalg.inv(scene.lattice)
    keys = jax.random.split(key, len(placements.x))

    def one(key: jax.Array, start: Placement) -> tuple[jax.Array, jax.Array, jax.Array]:
        one_hot = jax.nn.one_hot(start.site, len(start.x), dtype=start.x.dtype)
        free = jnp.maximum(jnp.trace(start.project, axis1=1, axis2=2).sum() / 3, 1.0)

        def cost(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            first = (one_hot[:, :, None] * x[None]).sum(1)
            frac = (start.rotations * first[:, None, :]).sum(-1) + start.translations
            misfit = _misfit(scene, reflections, frac)
            contact = settings.contact_cost * _contacts(scene, frac)
            return misfit + contact, (misfit, contact)

        def allowed(cart: jax.Array) -> jax.Array:
            """Fractional moves that keep each site special, of Cartesian ones."""
            frac = _times(cart, inverse)
            return (start.project * frac[:, None, :]).sum(-1)

        def step(i: jax.Array, state: Any) -> Any:
            x, first, second = state
            gradient = _times(jax.grad(cost, has_aux=True)(x)[0], inverse.T)
            first = 0.9 * first + 0.1 * gradient
            size = (_times(allowed(gradient), scene.lattice) ** 2).sum()
            second = 0.98 * second + 0.02 * size / free
            done = i / num_steps
            warm = jnp.maximum(1 - done / settings.cooled, 0.0) ** 1.5
            rate = settings.step * jnp.maximum(1 - done, 0.1)
            scale = rate / (jnp.sqrt(second / (1 - 0.98 ** (i + 1))) + 1e-8)
            noise = jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
            move = heat * settings.noise * warm * noise - scale * first
            return x + allowed(move), first, second

        begin = (start.x, jnp.zeros_like(start.x), jnp.zeros((), start.x.dtype))
        x, _, _ = jax.lax.fori_loop(0, num_steps, step, begin)
        before, (misfit_before, contact_before) = cost(jnp.asarray(start.x))
        after, (misfit, contact) = cost(x)
        better = after < before
        return (
            jnp.where(better, x, start.x),
            jnp.where(better, misfit, misfit_before),
            jnp.where(better, contact, contact_before),
        )

    return jax.vmap(one)(keys, placements)


def _misfit(scene: Scene, reflections: Reflections, frac: jax.Array) -> jax.Array:
    """1 - cos^2 between the square roots of the profiles."""
    cos, sin = cos_sin(sum(frac[:, i, None] * reflections.hkl[None, :, i] for i in range(3)))
    real = (reflections.amplitude * cos).sum(0)
    imag = (reflections.amplitude * sin).sum(0)
    profile = reflections.shape @ (real**2 + imag**2)
    mean = profile.sum() / scene.num_angles + 1e-20
    root = jnp.sqrt(profile / mean + scene.floor) - scene.floor**0.5
    return 1 - (root @ scene.root) ** 2 / (root @ root + 1e-20)


def _contacts(scene: Scene, frac: jax.Array) -> jax.Array:
    """Sum over pairs of the squares of what they are too close, square angstrom per atom."""
    difference = frac[:, None] - frac[None]
    near = _times(difference - jnp.round(difference), scene.lattice)
    apart = (near**2).sum(-1) + jnp.eye(len(frac), dtype=frac.dtype) * 1e4
    short = jnp.maximum(scene.closest - jnp.sqrt(apart + 1e-6), 0.0)
    return (short**2).sum() / scene.num_atoms


def _times(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    """rows @ matrix [3, 3]; written out, because tiny matrix products are slow on CPUs."""
    across = (1,) * (rows.ndim - 1) + (3,)
    x, y, z = (rows[..., i, None] * matrix[i].reshape(across) for i in range(3))
    return x + y + z


def _coefficients(odd: bool, num: int) -> list[np.float32]:
    """Least squares in powers of t^2 for cos(2 pi t), or sin(2 pi t)/t, at Chebyshev nodes."""
    t = 0.5 * np.cos(np.linspace(0, np.pi, 2001))
    powers = (t**2)[:, None] ** np.arange(num) * (t[:, None] if odd else 1.0)
    wave = np.sin(2 * np.pi * t) if odd else np.cos(2 * np.pi * t)
    return [np.float32(c) for c in np.linalg.lstsq(powers, wave, rcond=None)[0]]


_COS, _SIN = _coefficients(odd=False, num=6), _coefficients(odd=True, num=5)


@jax.custom_vjp
def cos_sin(turns: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of angles in turns, to 1e-5: polynomials, as libm's are slow on CPUs."""
    t = turns - jnp.round(turns)
    cos, sin = jnp.full_like(t, _COS[-1]), jnp.full_like(t, _SIN[-1])
    for c in _COS[-2::-1]:
        cos = cos * t**2 + c
    for c in _SIN[-2::-1]:
        sin = sin * t**2 + c
    return cos, t * sin


def _cos_sin_forward(turns: jax.Array) -> tuple[Any, Any]:
    waves = cos_sin(turns)
    return waves, waves


def _cos_sin_backward(waves: Any, gradient: Any) -> tuple[jax.Array]:
    (cos, sin), (by_cos, by_sin) = waves, gradient
    return (2 * jnp.pi * (cos * by_sin - sin * by_cos),)


cos_sin.defvjp(_cos_sin_forward, _cos_sin_backward)
