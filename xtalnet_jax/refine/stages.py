"""The two loops of a refinement, each one compiled program for a chunk of candidates.

`anneal` fits cell and coordinates to square-root profiles whose peaks are first wide, then
narrow; `fit_profile` is the weighted profile refinement at the end. Both are scans over
`minimise.step` and independent between candidates.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xtalnet_jax.refine import minimise, objective
from xtalnet_jax.refine.model import NUM_SHARED, Frame, from_vector
from xtalnet_jax.refine.objective import Restraints, Target

CELL, ZERO, LOG_FWHM, FWHM_TAN, ETA, B_ISO = slice(0, 6), 6, 7, 8, 9, 10
COORD = slice(NUM_SHARED, None)


class Trials(NamedTuple):
    """A chunk of candidates on the device; leading axis n_trial everywhere."""

    frame: Frame
    closest: Any  # [n_trial, n_node, n_node] shortest allowed distances, angstrom
    num_atoms: Any  # [n_trial] float


class Levels(NamedTuple):
    """What `anneal` fits, level after level, from wide peaks to narrow ones."""

    two_theta: Any  # [n_bin] degrees
    profile: Any  # [n_level, n_bin] unit vectors: square roots of the broadened pattern
    fwhm: Any  # [n_level] degrees
    floor: Any  # [] offset under the square root, in units of the mean intensity


class Strengths(NamedTuple):
    """Restraints and step limits, see `RefineSettings` for their meaning."""

    contact: Any
    cell: Any
    coord: Any
    zero: Any
    step_cell: Any
    step_coord: Any


class Annealed(NamedTuple):
    """What `anneal` found."""

    x: jax.Array  # [n_trial, p]
    misfit: jax.Array  # [n_trial, n_level] 1 - cos^2 at the end of each level


class Fitted(NamedTuple):
    """What `fit_profile` found."""

    x: jax.Array  # [n_trial, p]
    linear: jax.Array  # [n_trial, 1 + n_term] scale and background coefficients
    rwp: jax.Array  # [n_trial]
    trajectory: jax.Array  # [n_trial, n_step] best cost so far
    covariance: jax.Array  # [n_trial, p, p] of x, for unit weight scaled by the misfit


@partial(jax.jit, static_argnames=("num_steps",))
def anneal(
    trials: Trials,
    x: jax.Array,
    levels: Levels,
    wavelength: jax.Array,
    edges: jax.Array,
    active: jax.Array,
    strengths: Strengths,
    num_steps: int,
) -> Annealed:
    """Fit each candidate to every level in turn, ``num_steps`` evaluations a level.

    Args:
        trials: candidates.
        x: [n_trial, p] start.
        levels: observed pattern.
        wavelength: angstrom.
        edges: [2] first and last measured angle.
        active: [p] 1 for variables that move.
        strengths: restraints.
        num_steps: static.
    """

    def one(trial: Trials, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        rest, ones = x, jnp.ones(len(x), x.dtype)
        inertia = 0 * ones
        inertia = inertia.at[CELL].set(strengths.cell).at[ZERO].set(strengths.zero)
        inertia = inertia.at[COORD].set(strengths.coord / trial.num_atoms)
        limit = ones.at[CELL].set(strengths.step_cell).at[ZERO].set(0.1)
        limit = limit.at[COORD].set(strengths.step_coord)
        low, high = bounds(x)
        restraints = Restraints(trial.closest, strengths.contact, inertia, rest)

        def level(carry, now):
            x, damping = carry
            profile, fwhm = now
            target = Target(
                levels.two_theta, profile, jnp.ones_like(profile), profile[:, None][:, :0]
            )

            def cost(x):
                v = from_vector(x)._replace(log_fwhm=jnp.log(fwhm))
                normal = objective.coarse_normal(
                    trial.frame, v, wavelength, target, edges, levels.floor
                )
                return objective.restrained(normal, trial.frame, x, restraints)

            def body(state, _):
                state = minimise.step(state, cost, active, limit)
                return state._replace(trial=jnp.clip(state.trial, low, high)), None

            state = minimise.init(x, damping)
            state, _ = jax.lax.scan(body, state, None, length=num_steps)
            return (state.best, jnp.minimum(state.damping, 0.1)), state.normal.misfit

        start = x, jnp.asarray(1e-2, x.dtype)
        (x, _), misfit = jax.lax.scan(level, start, (levels.profile, levels.fwhm))
        return x, misfit

    return Annealed(*jax.vmap(one)(trials, x))


@jax.jit
def fit_profile(
    trials: Trials,
    x: jax.Array,
    target: Target,
    wavelength: jax.Array,
    active: jax.Array,
    num_steps: jax.Array,
    strengths: Strengths,
) -> Fitted:
    """Refine everything against the profile itself; minimises R_wp^2 plus restraints.

    Args:
        trials: candidates.
        x: [n_trial, p] start; resting place of the restraints.
        target: observed pattern.
        wavelength: angstrom.
        active: [n_step, p] which variables move in which step.
        num_steps: steps to take, at most n_step; not static.
        strengths: restraints.
    """

    def one(trial: Trials, x: jax.Array) -> Fitted:
        ones = jnp.ones(len(x), x.dtype)
        inertia = (1e-9 * ones).at[ETA].set(1e-5).at[B_ISO].set(1e-4)
        inertia = inertia.at[COORD].set(strengths.coord / trial.num_atoms)
        limit = (0.1 * ones).at[CELL].set(0.003).at[ZERO].set(0.03).at[LOG_FWHM].set(0.3)
        low, high = bounds(x)
        restraints = Restraints(trial.closest, strengths.contact, inertia, x)

        def cost(x):
            normal, _ = objective.fine_normal(trial.frame, from_vector(x), wavelength, target)
            return objective.restrained(normal, trial.frame, x, restraints)

        def body(i, carry):
            state, trajectory = carry
            state = minimise.step(state, cost, active[i], limit)
            state = state._replace(trial=jnp.clip(state.trial, low, high))
            return state, jnp.where(every < i, trajectory, state.normal.cost)

        every = jnp.arange(len(active))
        start = minimise.init(x, 1e-3), jnp.zeros(len(active), x.dtype)
        state, trajectory = jax.lax.fori_loop(0, num_steps, body, start)
        normal, linear = objective.fine_normal(
            trial.frame, from_vector(state.best), wavelength, target
        )
        covariance = _covariance(normal, active.max(0), (target.weight > 0).sum())
        return Fitted(state.best, linear, jnp.sqrt(normal.misfit), trajectory, covariance)

    return jax.vmap(one)(trials, x)


def bounds(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Smallest and largest value of each variable; nothing but the peak shape and B is bounded."""
    wide = jnp.full_like(x, 1e6)
    low = (-wide).at[LOG_FWHM].set(-4.6).at[FWHM_TAN].set(1e-3).at[ETA].set(0.0)
    high = wide.at[LOG_FWHM].set(2.0).at[FWHM_TAN].set(2.0).at[ETA].set(1.0)
    return low.at[B_ISO].set(0.0), high.at[B_ISO].set(8.0)


def _covariance(normal: objective.Normal, active: jax.Array, num_points: jax.Array) -> jax.Array:
    """s^2 A^-1 over the variables that moved; 0 for those that did not or do not matter."""
    diagonal = jnp.diagonal(normal.matrix)
    moved = active * (diagonal > 1e-12 * diagonal.max())
    scale = jnp.sqrt(jnp.where(moved > 0, diagonal, 1.0))
    a = normal.matrix / scale[:, None] / scale[None, :] * moved[:, None] * moved[None, :]
    a = a + jnp.diag(1 - moved) + 1e-6 * jnp.eye(len(scale), dtype=a.dtype)
    inverse = jnp.linalg.inv(a) * moved[:, None] * moved[None, :]
    variance = normal.misfit / jnp.maximum(num_points - moved.sum(), 1.0)
    return variance * inverse / scale[:, None] / scale[None, :]
