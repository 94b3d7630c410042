"""Fit candidate crystals to a powder pattern: `refine` and `compare`.

1. Every candidate, with the symmetry that it exactly has: cell and coordinates against square-root
   profiles, peaks annealed from wide to narrow.
2. Symmetries that promising candidates nearly have are imposed; each symmetrised copy and the
   candidate itself are annealed on with their own freedom, and the best explanation is kept, where
   free coordinates must earn their number. Then once more, if that one is nearly more symmetric.
3. Profile refinement of that one: cell, coordinates, zero shift, peak shape, B, scale, background.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.crystals import lattice as lattice_math
from xtalnet_jax.crystals.crystal import Crystal, CrystalBatch, unstack_crystals
from xtalnet_jax.pxrd.pattern import Pattern
from xtalnet_jax.pxrd.scattering import check_tabulated
from xtalnet_jax.refine import model, objective, prepare, stages
from xtalnet_jax.refine.settings import DEFAULT, RefineSettings
from xtalnet_jax.refine.stages import B_ISO, CELL, COORD, ETA, FWHM_TAN, LOG_FWHM, ZERO, Strengths
from xtalnet_jax.refine.variants import (
    Variant,
    displacement,
    first_of_equals,
    free_variant,
    price,
    promising,
    start_variant,
    symmetric_copies,
)

FIRST_MARGIN, SECOND_MARGIN, LAST_MARGIN = 1.1, 1.04, 1.02
"""Reflections are listed up to this factor beyond the last 1/d, because cells may grow."""


class Refined(NamedTuple):
    """One candidate after refinement."""

    crystal: Crystal
    rwp: float  # weighted profile residual, 0..1
    rwp_net: float  # the same relative to the profile without background, 0..1 and above
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


def refine(
    crystals: Sequence[Crystal] | CrystalBatch,
    pattern: Pattern,
    settings: RefineSettings = DEFAULT,
) -> list[Refined]:
    """Refine every candidate against a pattern; results are in the order of the candidates.

    Candidates do not influence each other, atoms keep their order and the cell its setting (but
    see ``equal_misfits``).

    Args:
        crystals: candidates; cells should be reduced, a long axis costs time.
        pattern: measured or calculated, with or without background.
        settings: see `RefineSettings`.

    Raises:
        ValueError: an empty or impossible candidate, an element without form factor, or a
            pattern that cannot be refined against.
    """
    crystals = _checked(crystals)
    observed = prepare.observe(pattern, settings.num_background)
    if not crystals:
        return []
    variants = [start_variant(i, c) for i, c in enumerate(crystals)]
    variants = _annealed(variants, observed, settings, settings.first_widths, FIRST_MARGIN, 0)
    best, going = variants, promising(variants, settings)
    own = [best[i]._replace(misfit=np.inf) for i in going]
    for extra in (own, []):
        # The second time, moved atoms may show a symmetry that was hidden before.
        copies = [c for i in going for c in symmetric_copies(best[i], settings)] + extra
        copies = _annealed(copies, observed, settings, settings.second_widths, SECOND_MARGIN, 1)
        pool = copies if extra else [*best, *copies]
        cheapest = {
            i: min((v for v in pool if v.source == i), key=partial(price, settings=settings))
            for i in going
        }
        best = [cheapest.get(i, v) for i, v in enumerate(best)]
    first = first_of_equals(best, settings.equal_misfits)
    kept = sorted(set(first))
    fits = _profile_fits([best[i] for i in kept], observed, settings, free=True)
    fitted = dict(zip(kept, fits))
    ends = [fitted[i].crystal if i in fitted else v.crystal for i, v in enumerate(best)]
    return [
        fitted[k]._replace(moved=displacement(before, end))
        for k, before, end in zip(first, crystals, ends)
    ]


def compare(
    crystals: Sequence[Crystal] | CrystalBatch,
    pattern: Pattern,
    settings: RefineSettings = DEFAULT,
) -> list[Refined]:
    """Like `refine`, but the crystals stay: only scale, background, zero shift and peak shape fit.

    Raises:
        ValueError: as `refine`.
    """
    crystals = _checked(crystals)
    observed = prepare.observe(pattern, settings.num_background)
    variants = [free_variant(i, c) for i, c in enumerate(crystals)]
    return _profile_fits(variants, observed, settings, free=False)


def _checked(crystals: Sequence[Crystal] | CrystalBatch) -> list[Crystal]:
    if isinstance(crystals, CrystalBatch):
        crystals = unstack_crystals(crystals)
    if isinstance(crystals, Crystal):
        raise ValueError("refine takes a list of crystals; write refine([crystal], pattern)")
    for i, c in enumerate(crystals):
        z, x, lattice = (np.asarray(v) for v in c)
        if len(z) == 0 or x.shape != (len(z), 3) or lattice.shape != (3, 3):
            raise ValueError(
                f"candidate {i + 1} has {len(z)} atoms, coordinates {x.shape} and lattice "
                f"{lattice.shape}; expected n atoms, [n, 3] and [3, 3]"
            )
        if not (np.isfinite(x).all() and np.isfinite(lattice).all()):
            raise ValueError(f"candidate {i + 1} has coordinates or a lattice that are not finite")
        if abs(np.linalg.det(lattice)) < 1.0:
            raise ValueError(
                f"candidate {i + 1} has a cell of {abs(np.linalg.det(lattice)):.3g} cubic angstrom"
            )
        check_tabulated(z)
    return list(crystals)


# Stages -------------------------------------------------------------------------------------------


def _strengths(s: RefineSettings) -> Strengths:
    values = (s.contact_cost, s.cell_cost, s.coord_cost, s.zero_cost, s.step_cell, s.step_coord)
    return Strengths(*(np.float32(v) for v in values))


def _chunks(
    variants: list[Variant],
    observed: prepare.Observed,
    settings: RefineSettings,
    margin: float,
    bins: int,
) -> list[tuple[list[int], stages.Trials, np.ndarray]]:
    """Split into padded chunks of few static shapes: rows, trials, start.

    Crystals with few free coordinates are apart from the others, for which much more is computed.
    """
    inv_d_max = observed.inv_d_max * margin
    free = np.array([v.freedom.coord.shape[-1] for v in variants])
    symmetric = free <= prepare.FEW_COORDS
    out = []
    for chosen in (np.flatnonzero(symmetric), np.flatnonzero(~symmetric)):
        if not len(chosen):
            continue
        crystals, most = [v.crystal for v in variants], int(free[chosen].max())
        sizes = prepare.sizes_for(crystals, observed.inv_d_max * FIRST_MARGIN, most)
        chunk = settings.chunk or _chunk_size(sizes.num_hkl * bins)
        for start in range(0, len(chosen), chunk):
            rows = chosen[start : start + chunk].tolist()
            filled = [variants[i] for i in rows + rows[:1] * (chunk - len(rows))]
            trials = prepare.make_trials(
                [v.crystal for v in filled], [v.freedom for v in filled], inv_d_max, sizes,
                settings.contact,
            )  # fmt: skip
            x = np.zeros((chunk, prepare.num_variables(sizes)), np.float32)
            x[:, ZERO] = [v.zero for v in filled]
            x[:, LOG_FWHM] = np.log(observed.fwhm)
            x[:, ETA], x[:, FWHM_TAN] = 0.5, 0.3 * observed.fwhm
            out.append((rows, trials, x))
    return out


def _chunk_size(work: int) -> int:
    """Candidates at once: few on a CPU, whose caches are small, many on an accelerator."""
    room = 2**21 if jax.default_backend() == "cpu" else 2**27
    return int(np.clip(room // work, 1, 4 if jax.default_backend() == "cpu" else 64))


def _annealed(
    variants: list[Variant],
    observed: prepare.Observed,
    settings: RefineSettings,
    widths: Sequence[float],
    margin: float,
    free_eta: int,
) -> list[Variant]:
    """Move variants through peaks of all widths; their Lorentzian share matters when narrow."""
    if not variants:
        return []
    levels = prepare.make_levels(observed, widths, settings.bins, settings.floor)
    out = list(variants)
    for rows, trials, x in _chunks(variants, observed, settings, margin, settings.bins):
        x[:, ETA], x[:, FWHM_TAN] = 0.1 * free_eta, 0.0
        active = np.ones(x.shape[1], np.float32)
        active[[LOG_FWHM, FWHM_TAN, B_ISO]], active[ETA] = 0, free_eta
        found = stages.anneal(
            trials, x, levels, np.float32(observed.pattern.wavelength), observed.edges,
            active, _strengths(settings), settings.steps,
        )  # fmt: skip
        moved = _moved(trials.frame, found.x)
        shift, misfit = np.asarray(found.x)[:, ZERO], np.asarray(found.misfit)[:, -1]
        for k, i in enumerate(rows):
            out[i] = _place(variants[i], moved, k, float(shift[k]), float(misfit[k]))
    return out


def _place(v: Variant, moved: Any, k: int, zero: float, misfit: float) -> Variant:
    lattice, frac = moved
    n = len(v.crystal.atomic_numbers)
    crystal = Crystal(v.crystal.atomic_numbers, np.mod(frac[k, :n], 1.0), lattice[k])
    if not (np.isfinite(lattice[k]).all() and np.isfinite(frac[k, :n]).all()):
        return v
    return v._replace(crystal=crystal, zero=zero, misfit=misfit)


@jax.jit
def _moved_arrays(frame: model.Frame, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return (
        jax.vmap(model.strained_lattice)(frame, x[:, CELL]),
        jax.vmap(model.moved_coords)(frame, x[:, COORD]),
    )


def _moved(frame: model.Frame, x: Any) -> tuple[np.ndarray, np.ndarray]:
    lattice, frac = _moved_arrays(frame, x)
    return np.asarray(lattice, float), np.asarray(frac, float)


def _profile_fits(
    variants: list[Variant], observed: prepare.Observed, settings: RefineSettings, free: bool
) -> list[Refined]:
    if not variants:
        return []
    wavelength = np.float32(observed.pattern.wavelength)
    bins = len(observed.target.two_theta)
    grid = observed.pattern.two_theta.astype(np.float32)
    narrow = prepare.make_levels(observed, [0.5], settings.bins, settings.floor)
    out: list[Any] = [None] * len(variants)
    for rows, trials, x in _chunks(variants, observed, settings, LAST_MARGIN, bins):
        fitted = stages.fit_profile(
            trials, x, observed.target, wavelength,
            _schedule(x.shape[1], settings.profile_steps, free), _strengths(settings),
        )  # fmt: skip
        fitted = fitted._replace(x=_unsmeared(fitted.x, observed.smear))
        host = jax.tree.map(np.asarray, fitted)
        lattice, frac = _moved(trials.frame, fitted.x)
        curves = np.asarray(_curves(trials.frame, fitted.x, grid, wavelength), float)
        cosine = np.asarray(_cosines(trials.frame, fitted.x, narrow, wavelength, observed.edges))
        cells, cell_esd = (np.asarray(a, float) for a in _cells(trials.frame, *_cov(fitted)))
        for k, i in enumerate(rows):
            v = _place(variants[i], (lattice, frac), k, 0.0, 0.0)
            out[i] = _result(
                v, host, k, curves[k], float(cosine[k]), cells[k], cell_esd[k], observed
            )
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
        cosine=cosine,
        zero_shift=float(x[ZERO]),
        fwhm=float(np.exp(x[LOG_FWHM])),
        fwhm_tan=float(x[FWHM_TAN]),
        eta=float(x[ETA]),
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
