"""Search the coordinates of crystals whose cell is known: annealing in direct space.

With the cell, the positions of all lines and the shape of every reflection on the angle grid are
fixed, so a profile is one matrix product and thousands of coordinate sets are tried in the time of
one profile refinement. Gradient steps (Adam) on the misfit of square-root profiles and on contacts
that are too short, with Gaussian noise that is cooled to nothing (compare simulated annealing:
David, Shankland and Shankland, Chemical Communications 931, 1998).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.pxrd.pattern import Pattern
from xtalnet_jax.pxrd.scattering import form_factors, lorentz_polarisation
from xtalnet_jax.refine import model, objective, prepare, stages, symmetry


class AnnealSettings(NamedTuple):
    """How to anneal."""

    fwhm: float = 0.2  # degrees, added to the width of the peaks
    bins: int = 640
    floor: float = 0.02  # under the square root, in units of the mean intensity
    steps: int = 300
    cooled: float = 0.7  # share of the steps with noise
    noise: float = 0.03  # angstrom per step at the start
    step: float = 0.1  # angstrom, size of a gradient step at the start
    contact: float = 0.75  # shortest distance allowed, in sums of atomic radii
    contact_cost: float = 0.05  # per square angstrom too short and atom
    chunk: int = 20


DEFAULT = AnnealSettings()


class _Fixed(NamedTuple):
    """What a known cell fixes; leading axis n_trial under `vmap`."""

    amplitude: Any  # [n_species, n_hkl] form factors with the root of all other factors
    shape: Any  # [n_bin, n_hkl] profile of a reflection of intensity 1


@partial(jax.jit, static_argnames=("settings",))
def _anneal(
    key: jax.Array,
    trials: stages.Trials,
    levels: stages.Levels,
    wavelength: Any,
    edges: Any,
    settings: AnnealSettings,
) -> tuple[jax.Array, jax.Array]:
    """Fractional coordinates [n_trial, n_node, 3] and misfits [n_trial]."""
    num_noisy = settings.cooled * settings.steps

    def one(args: tuple[jax.Array, stages.Trials]) -> tuple[jax.Array, jax.Array]:
        key, trial = args
        frame, fixed = trial.frame, _fixed(trial.frame, levels, wavelength, edges)
        real = frame.one_hot.sum(-1, keepdims=True)
        inverse = jnp.linalg.inv(frame.lattice)

        def misfit(frac: jax.Array) -> jax.Array:
            cos, sin = model.phase_sums(frame, frac)
            f_real, f_imag = (fixed.amplitude * cos).sum(0), (fixed.amplitude * sin).sum(0)
            profile = fixed.shape @ (f_real**2 + f_imag**2)
            root = objective.square_root(profile, jnp.ones_like(profile), levels.floor)[0]
            return 1 - (root @ levels.profile[0]) ** 2 / (root @ root + 1e-20)

        def cost(frac: jax.Array) -> jax.Array:
            difference = frac[:, None] - frac[None]
            near = (difference - jnp.round(difference)) @ frame.lattice
            apart = (near**2).sum(-1) + jnp.eye(len(frac)) * 1e4
            short = jnp.maximum(trial.closest - jnp.sqrt(apart + 1e-6), 0.0)
            return misfit(frac) + settings.contact_cost * (short**2).sum() / trial.num_atoms

        def step(state: Any, i: jax.Array) -> tuple[Any, None]:
            frac, first, second = state
            # The gradient by Cartesian displacements: frac = cart @ inverse.
            gradient = jax.grad(cost)(frac) @ inverse.T
            first = 0.9 * first + 0.1 * gradient
            second = 0.98 * second + 0.02 * (gradient**2).sum() / trial.num_atoms
            heat = jnp.maximum(1 - i / num_noisy, 0.0)
            rate = settings.step * jnp.maximum(heat, 0.1)
            scale = 1 / (jnp.sqrt(second / (1 - 0.98 ** (i + 1))) + 1e-8)
            noise = settings.noise * heat**1.5
            noise = noise * jax.random.normal(jax.random.fold_in(key, i), frac.shape)
            move = noise - rate * scale * first
            move = move - (move * real).sum(0, keepdims=True) / trial.num_atoms
            return (frac + (move * real) @ inverse, first, second), None

        start = (frame.frac_coords, jnp.zeros_like(frame.frac_coords), jnp.zeros(()))
        (frac, _, _), _ = jax.lax.scan(step, start, jnp.arange(settings.steps))
        return frac, misfit(frac)

    return jax.lax.map(one, (key, trials))


def _fixed(frame: model.Frame, levels: stages.Levels, wavelength: Any, edges: Any) -> _Fixed:
    inv_d = jnp.linalg.norm(frame.hkl @ jnp.linalg.inv(frame.lattice).T, axis=-1)
    sin_theta = jnp.clip(0.5 * wavelength * inv_d, 1e-3, 0.999)
    two_theta = 2 * jnp.rad2deg(jnp.arcsin(sin_theta))
    inside = (frame.multiplicity > 0) & (two_theta > edges[0]) & (two_theta < edges[1])
    power = frame.multiplicity * lorentz_polarisation(2 * sin_theta / wavelength, wavelength)
    f = form_factors(frame.species, 0.25 * inv_d**2)
    amplitude = f * jnp.sqrt(jnp.where(inside, power, 0.0))[None]
    fwhm = jnp.full_like(two_theta, levels.fwhm[0])
    shape = objective.peak_shapes(levels.two_theta, two_theta, fwhm, jnp.zeros(()))[0]
    return _Fixed(amplitude, shape)


def anneal_coordinates(
    key: jax.Array,
    crystals: Sequence[Crystal],
    pattern: Pattern,
    settings: AnnealSettings = DEFAULT,
) -> tuple[list[Crystal], np.ndarray]:
    """Anneal the atoms of crystals in their own cells, which stay.

    Args:
        key: of the noise.
        crystals: candidates with about the right cell (0.5 %).
        pattern: measured or calculated.
        settings: see `AnnealSettings`.

    Returns:
        The crystals with new coordinates and their misfits 1 - cos^2 [n], in the given order.

    Raises:
        ValueError: a pattern that cannot be compared with.
    """
    observed = prepare.observe(pattern, 0)
    levels = prepare.make_levels(observed, (settings.fwhm,), settings.bins, settings.floor)
    wavelength = np.float32(pattern.wavelength)
    crystals = list(crystals)
    keys = jax.random.split(key, -(-len(crystals) // settings.chunk) * settings.chunk)
    out: list[Crystal] = []
    misfits = np.zeros(len(crystals))
    if not crystals:
        return out, misfits
    sizes = prepare.sizes_for(crystals, observed.inv_d_max)
    for start in range(0, len(crystals), settings.chunk):
        part = crystals[start : start + settings.chunk]
        filled = part + part[:1] * (settings.chunk - len(part))
        fixed = [symmetry.freedom(c, symmetry.identity_operations(c)) for c in filled]
        trials = prepare.make_trials(filled, fixed, observed.inv_d_max, sizes, settings.contact)
        frac, misfit = _anneal(
            keys[start : start + settings.chunk], trials, levels, wavelength,
            observed.edges, settings,
        )  # fmt: skip
        misfits[start : start + len(part)] = np.asarray(misfit)[: len(part)]
        for crystal, x in zip(part, np.asarray(frac, float)):
            placed = np.mod(x[: len(crystal.atomic_numbers)], 1.0)
            out.append(crystal._replace(frac_coords=placed))
    return out, misfits
