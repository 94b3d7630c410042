"""The last stage: profile refinement of every variant, and what it tells."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.crystals import lattice as lattice_math
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.pxrd.pattern import Pattern
from xtalnet_jax.refine import model, objective, prepare, stages
from xtalnet_jax.refine.chunks import LAST_MARGIN, chunks_of, moved_crystals, placed, strengths_of
from xtalnet_jax.refine.decomposition import decomposed_rwp
from xtalnet_jax.refine.settings import RefineSettings
from xtalnet_jax.refine.stages import B_ISO, CELL, COORD, ETA, FWHM_TAN, LOG_FWHM, ZERO
from xtalnet_jax.refine.variants import Variant, promising


class Refined(NamedTuple):
    """One candidate after refinement."""

    crystal: Crystal
    rwp: float  # weighted profile residual, 0..1
    rwp_net: float  # the same relative to the profile without background, 0..1 and above
    rwp_cell: float  # what the cell alone reaches with free intensities, see `decomposition`
    cosine: float  # of the square-root profiles, background subtracted, peaks a little widened
    zero_shift: float  # degrees 2-theta
    fwhm: float  # constant part of the peak width, degrees
    fwhm_tan: float  # part that grows with tan(theta): FWHM^2 = fwhm^2 + (fwhm_tan tan theta)^2
    eta: float  # Lorentzian share
    b_iso: float  # square angstrom
    scale: float
    background: np.ndarray  # [num_background] Chebyshev coefficients over the measured range
    calculated: Pattern  # on the angles of the measured pattern
    space_group: int  # number of the symmetry that was kept
    num_free: int  # structural parameters that were free: cell and coordinates
    moved: float  # rms displacement of the atoms, angstrom, without a common shift
    cell: np.ndarray  # [6] a, b, c (angstrom), alpha, beta, gamma (degrees)
    cell_esd: np.ndarray  # [6] standard uncertainties of cell
    esd: dict[str, float]  # standard uncertainties of zero_shift, fwhm, fwhm_tan, eta, b_iso
    trajectory: np.ndarray  # [n_step] cost during the profile refinement


def profile_fits(
    variants: list[Variant], observed: prepare.Observed, settings: RefineSettings, free: bool
) -> list[Refined]:
    """Fit every variant to the profile; without ``free`` the crystal stays as it is."""
    if not variants:
        return []
    wavelength = np.float32(observed.pattern.wavelength)
    grid = observed.pattern.two_theta.astype(np.float32)
    narrow = prepare.make_levels(observed, [0.5], settings.bins, settings.floor)
    out: list[Any] = [None] * len(variants)
    for rows, trials, x, num_steps in _work(variants, observed, settings):
        fitted = stages.fit_profile(
            trials, x, observed.target, wavelength,
            _schedule(x.shape[1], max(settings.profile_steps), free), np.int32(num_steps),
            strengths_of(settings),
        )  # fmt: skip
        fitted = fitted._replace(x=_unsmeared(fitted.x, observed.smear))
        host = jax.tree.map(np.asarray, fitted)
        lattice, frac = moved_crystals(trials.frame, fitted.x)
        curves = np.asarray(_curves(trials.frame, fitted.x, grid, wavelength), float)
        cosine = np.asarray(_cosines(trials.frame, fitted.x, narrow, wavelength, observed.edges))
        cells, cell_esd = (np.asarray(a, float) for a in _cells(trials.frame, *_cov(fitted)))
        for k, i in enumerate(rows):
            v = placed(variants[i], (lattice, frac), k, 0.0, 0.0)
            out[i] = _result(
                v, host, k, curves[k], float(cosine[k]), cells[k], cell_esd[k], observed
            )
    return out


def _work(
    variants: list[Variant], observed: prepare.Observed, settings: RefineSettings
) -> list[tuple[list[int], stages.Trials, np.ndarray, int]]:
    """Chunks with their number of steps: what was given up gets few."""
    going = promising(variants, settings)
    rest = sorted(set(range(len(variants))) - set(going))
    bins, out = len(observed.target.two_theta), []
    for chosen, num_steps in zip((going, rest), settings.profile_steps):
        own = [variants[i] for i in chosen]
        for rows, trials, x in chunks_of(own, observed, settings, LAST_MARGIN, bins):
            out.append(([chosen[k] for k in rows], trials, x, num_steps))
    return out


def _unsmeared(x: Any, smear: float) -> np.ndarray:
    """Take the averaging over bins off the width; x is [n_trial, p]."""
    x = np.array(x)
    square = np.exp(2 * x[:, LOG_FWHM])
    x[:, LOG_FWHM] = 0.5 * np.log(np.maximum(square - smear, 0.25 * square))
    return x


def _schedule(p: int, steps: int, free: bool) -> np.ndarray:
    """Which variables move when: peaks first, then the cell, then all; [n_step, p]."""
    active = np.zeros((steps, p), np.float32)
    active[:, [ZERO, LOG_FWHM, FWHM_TAN, ETA]] = 1
    if free:
        active[2:, CELL] = 1
        active[4:, B_ISO] = 1
        active[4:, COORD] = 1
    return active


@jax.jit
def _curves(frame: model.Frame, x: jax.Array, grid: jax.Array, wavelength: jax.Array) -> jax.Array:
    one = lambda a: objective.profile(grid, a[0], model.from_vector(a[1]), wavelength)  # noqa: E731
    return jax.lax.map(one, (frame, x))


@jax.jit
def _cosines(
    frame: model.Frame, x: jax.Array, level: stages.Levels, wavelength: Any, edges: Any
) -> jax.Array:
    """Cosine of the square-root profiles at the single width of ``level``."""

    def one(a: tuple[model.Frame, jax.Array]) -> jax.Array:
        frame, x = a
        v = model.from_vector(x)
        # Broadening by a Gaussian leaves the Lorentzian part as wide as it was.
        share = v.eta * jnp.minimum(jnp.exp(v.log_fwhm) / level.fwhm[0], 1.0)
        v = v._replace(log_fwhm=jnp.log(level.fwhm[0]), eta=share)
        root = objective.coarse_root(frame, v, wavelength, level.two_theta, edges, level.floor)
        return (root @ level.profile[0]) / jnp.sqrt(root @ root + 1e-20)

    return jax.lax.map(one, (frame, x))


def _cov(fitted: stages.Fitted) -> tuple[Any, Any]:
    return fitted.x[:, CELL], fitted.covariance[:, CELL, CELL]


@jax.jit
def _cells(
    frame: model.Frame, cell: jax.Array, covariance: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Cell parameters [n, 6] and standard uncertainties, carried over from those of the strain."""

    def parameters(frame: model.Frame, cell: jax.Array) -> jax.Array:
        lattice = model.strained_lattice(frame, cell)
        return jnp.concatenate(lattice_math.parameters_from_matrix(lattice))

    def one(frame: model.Frame, cell: jax.Array, covariance: jax.Array):
        j = jax.jacfwd(parameters, argnums=1)(frame, cell)
        variance = jnp.einsum("ia,ab,ib->i", j, covariance, j)
        return parameters(frame, cell), jnp.sqrt(jnp.maximum(variance, 0.0))

    return jax.vmap(one)(frame, cell, covariance)


def _background_factor(observed: prepare.Observed, coefficients: np.ndarray) -> float:
    """sqrt(sum w y^2 / sum w (y - background)^2), at most 100."""
    y, weight = observed.target.profile, observed.target.weight
    net = weight * (y - observed.target.background @ coefficients)
    return float(
        np.sqrt(((weight * y) ** 2).sum() / max((net**2).sum(), 1e-4 * ((weight * y) ** 2).sum()))
    )


def _result(
    v: Variant,
    fitted: stages.Fitted,
    k: int,
    curve: np.ndarray,
    cosine: float,
    cell: np.ndarray,
    cell_esd: np.ndarray,
    observed: prepare.Observed,
) -> Refined:
    x, pattern = fitted.x[k], observed.pattern
    scale, background = fitted.linear[k, 0] * observed.unit, fitted.linear[k, 1:] * observed.unit
    u = np.interp(pattern.two_theta, observed.edges.astype(float), [-1.0, 1.0])
    below = np.polynomial.chebyshev.chebval(u, background) if len(background) else 0.0
    calculated = pattern._replace(intensity=np.asarray(scale * curve + below), sigma=None, meta={})
    esd = np.sqrt(np.maximum(np.diagonal(fitted.covariance[k]), 0.0))
    shape = float(x[ZERO]), float(np.exp(x[LOG_FWHM])), float(x[FWHM_TAN]), float(x[ETA])
    # d FWHM = FWHM d log FWHM
    uncertain = {
        "zero_shift": esd[ZERO], "fwhm": esd[LOG_FWHM] * np.exp(x[LOG_FWHM]),
        "fwhm_tan": esd[FWHM_TAN], "eta": esd[ETA], "b_iso": esd[B_ISO],
    }  # fmt: skip
    return Refined(
        crystal=v.crystal,
        rwp=float(fitted.rwp[k]),
        rwp_net=float(fitted.rwp[k])
        * _background_factor(observed, np.asarray(fitted.linear[k, 1:])),
        rwp_cell=decomposed_rwp(v.crystal, observed, *shape),
        cosine=cosine,
        zero_shift=shape[0],
        fwhm=shape[1],
        fwhm_tan=shape[2],
        eta=shape[3],
        b_iso=float(x[B_ISO]),
        scale=float(scale),
        background=np.asarray(background),
        calculated=calculated,
        space_group=v.operations.number,
        num_free=v.freedom.cell.shape[-1] + v.freedom.coord.shape[-1],
        moved=0.0,
        cell=cell,
        cell_esd=cell_esd,
        esd={name: float(value) for name, value in uncertain.items()},
        trajectory=np.asarray(fitted.trajectory[k]),
    )
