"""Indexing: find the unit cell from the positions of the lines, near guessed cells.

Every trial cell is a mixture model of the observed positions: a peak at q = 1/d^2 lies near one of
the cell's reflections (a normal distribution around each, all equally likely), or it is foreign (a
uniform distribution). The more reflections a cell has, the less each explains, so large cells that
fit anything do not win; this is what de Wolff's figure of merit M20 measures too (J. Appl. Cryst. 1,
108, 1968). Since q of a reflection is linear in the reciprocal metric, expectation-maximisation is
a sequence of 6 x 6 least-squares problems; it is run from many strained copies of every guess,
with a width of the normal distributions that shrinks to the precision of the peaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from xtalnet_jax.crystals.reduction import niggli_transform
from xtalnet_jax.pxrd.hkl import hkl_table
from xtalnet_jax.pxrd.pattern import PeakBatch


class IndexSettings(NamedTuple):
    """How to search."""

    num_trials: int = 96  # strained copies of every guess
    strain: float = 0.06  # standard deviation of each strain component of the copies
    widths: tuple[float, ...] = (0.03, 0.02, 0.014, 0.01, 0.007, 0.005, 0.003, 0.002, 0.001)
    """Relative in 1/d, rung after rung, on top of the precision of the peaks."""
    steps: int = 3  # updates per width
    two_theta_sigma: float = 0.02  # precision of a peak, degrees
    foreign: float = 0.05  # share of foreign peaks
    prior: float = 0.1  # standard deviation of a guess, relative in 1/d
    volume_sigma: float = 0.12  # of the logarithm of a guess's volume
    num_peaks: int = 40  # the lowest ones are used
    num_hkl: int = 256


DEFAULT = IndexSettings()


class Cell(NamedTuple):
    """One unit cell found."""

    lattice: np.ndarray  # [3, 3] rows, angstrom: integer combinations of the strained guess
    transform: np.ndarray  # [3, 3] integers, lattice = transform @ strained guess
    source: int  # which guess it came from
    score: float  # logarithm of the likelihood, relative to a pattern of foreign peaks


class Observed(NamedTuple):
    """Positions to explain; padded."""

    q: Any  # [n_peak] 1/d^2, 0 where padded
    sigma: Any  # [n_peak] its standard deviation
    weight: Any  # [n_peak] 0 where padded
    span: Any  # [2] first and last q looked at


def squares(hkl: Float[Array, "n_hkl 3"]) -> Float[Array, "n_hkl 6"]:
    """Return h^2, k^2, l^2, 2kl, 2hl, 2hk: q is their product with the reciprocal metric."""
    h, k, l = hkl[:, 0], hkl[:, 1], hkl[:, 2]  # noqa: E741
    return jnp.stack([h * h, k * k, l * l, 2 * k * l, 2 * h * l, 2 * h * k], -1)


def log_likelihood(
    g: Float[Array, "6"],
    terms: Float[Array, "n_hkl 6"],
    real: Float[Array, "n_hkl"],
    observed: Observed,
    sigma: Float[Array, "n_peak"],
    foreign: float,
) -> tuple[Float[Array, ""], Float[Array, "n_peak n_hkl"]]:
    """Return the log likelihood of the positions and the share of each reflection in each peak.

    Args:
        g: reciprocal metric, order of `squares`.
        terms: `squares` of the reflections.
        real: 1 for a reflection, 0 for padding.
        observed: positions.
        sigma: standard deviations to use.
        foreign: share of foreign peaks.
    """
    q = terms @ g
    low, high = observed.span[0], observed.span[1]
    inside = real * (q > low) * (q < high)
    density = (1 - foreign) / jnp.maximum(inside.sum(), 1.0)
    z = (observed.q[:, None] - q[None]) / sigma[:, None]
    normal = jnp.exp(-0.5 * z * z) * real[None] / (sigma[:, None] * (2 * jnp.pi) ** 0.5)
    explained = density * normal
    total = explained.sum(-1) + foreign / (high - low)
    gain = jnp.log(total * (high - low))
    return (observed.weight * gain).sum(), explained / total[:, None]


@partial(jax.jit, static_argnames=("settings",))
def _search(
    start: jax.Array, terms: jax.Array, real: jax.Array, observed: Observed, settings: IndexSettings
) -> tuple[jax.Array, jax.Array]:
    """Reciprocal metrics after the search and their log likelihoods, [n_trial, 6] and [n_trial]."""
    corner = jnp.asarray(
        squares(jnp.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0.0]]))
    )

    def one(g0: jax.Array) -> tuple[jax.Array, jax.Array]:
        expected = corner @ g0
        precision = 1 / (2 * settings.prior * expected) ** 2
        prior = (corner.T * precision[None]) @ corner
        prior_side = corner.T @ (precision * expected)

        def update(g: jax.Array, width: jax.Array) -> tuple[jax.Array, None]:
            sigma = jnp.hypot(observed.sigma, 2 * width * observed.q + 1e-9)
            _, share = log_likelihood(g, terms, real, observed, sigma, settings.foreign)
            share = share * (observed.weight / sigma**2)[:, None]
            normal = (terms.T * share.sum(0)[None]) @ terms + prior
            side = terms.T @ (share.T @ observed.q) + prior_side
            scale = 1 / jnp.sqrt(jnp.diagonal(normal))
            solved = jnp.linalg.solve(
                normal * scale[:, None] * scale[None] + 1e-6 * jnp.eye(6), side * scale
            )
            return solved * scale, None

        widths = jnp.repeat(jnp.asarray(settings.widths), settings.steps)
        g, _ = jax.lax.scan(update, g0, widths)
        return g, log_likelihood(g, terms, real, observed, observed.sigma, settings.foreign)[0]

    return jax.lax.map(one, start, batch_size=32)


def observed_positions(peaks: PeakBatch, wavelength: float, settings: IndexSettings) -> Observed:
    """List the lowest peaks of the single pattern in ``peaks`` (1/d form)."""
    mask = np.asarray(peaks.mask)[0]
    inv_d = np.asarray(peaks.position, float)[0][mask]
    order = np.argsort(inv_d)[: settings.num_peaks]
    inv_d, n = inv_d[order], settings.num_peaks
    q, sigma, weight = np.ones(n), np.ones(n), np.zeros(n)
    q[: len(inv_d)] = inv_d**2
    cos = np.sqrt(np.clip(1 - (inv_d * wavelength / 2) ** 2, 0.05, 1))
    sigma_inv_d = cos / wavelength * np.deg2rad(settings.two_theta_sigma)
    sigma[: len(inv_d)] = 2 * inv_d * sigma_inv_d
    weight[: len(inv_d)] = 1.0
    low = float(np.asarray(peaks.measured)[0, 0]) ** 2
    span = np.array([low, inv_d[-1] ** 2 * 1.02], np.float32)
    return Observed(*(v.astype(np.float32) for v in (q, sigma, weight, span)))


def index_cells(
    lattices: Sequence[np.ndarray],
    peaks: PeakBatch,
    wavelength: float,
    seed: int = 0,
    settings: IndexSettings = DEFAULT,
) -> list[Cell]:
    """Return the cells that explain the positions of the peaks, best first, each once.

    Args:
        lattices: guesses, [3, 3] rows in angstrom.
        peaks: one pattern, positions 1/d.
        wavelength: angstrom.
        seed: of the strains.
        settings: see `IndexSettings`.
    """
    observed = observed_positions(peaks, wavelength, settings)
    rng = np.random.default_rng(seed)
    found: list[Cell] = []
    volumes = np.log([abs(np.linalg.det(lattice)) for lattice in lattices])
    centre = float(np.median(volumes))
    for source, lattice in enumerate(np.asarray(lattices, float)):
        strain = rng.normal(0.0, settings.strain, (settings.num_trials, 3, 3))
        strain[0] = 0.0
        strained = lattice @ (np.eye(3) + (strain + strain.transpose(0, 2, 1)) / 2)
        hkl = hkl_table(lattice[None], float(np.sqrt(observed.span[1]) * 1.15)).hkl
        hkl = hkl[: settings.num_hkl]
        real = np.zeros(settings.num_hkl, np.float32)
        real[: len(hkl)] = 1
        hkl = np.pad(hkl, ((0, settings.num_hkl - len(hkl)), (0, 0)))
        g = _reciprocal_metrics(strained).astype(np.float32)
        g, score = _search(g, np.asarray(squares(hkl.astype(np.float32))), real, observed, settings)
        g, score = np.asarray(g, float), np.asarray(score, float)
        for k in np.argsort(-score)[:8]:
            direct = _lattice_of(g[k], strained[k])
            if direct is None:
                continue
            volume = np.log(abs(np.linalg.det(direct)))
            penalty = 0.5 * ((volume - centre) / settings.volume_sigma) ** 2
            transform = niggli_transform(direct)
            found.append(Cell(transform @ direct, transform, source, float(score[k] - penalty)))
    return _distinct(found)


def _reciprocal_metrics(lattices: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(lattices)  # columns are the reciprocal vectors
    g = inverse.transpose(0, 2, 1) @ inverse
    return g[:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


def _lattice_of(g: np.ndarray, like: np.ndarray) -> np.ndarray | None:
    """Lattice with this reciprocal metric; None if there is none."""
    reciprocal = g[np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])]
    if not np.isfinite(reciprocal).all() or np.linalg.eigvalsh(reciprocal)[0] <= 1e-6:
        return None
    return np.linalg.cholesky(np.linalg.inv(reciprocal))


def _distinct(cells: list[Cell], tolerance: float = 0.01) -> list[Cell]:
    """Best first; of cells whose reduced metrics agree within the tolerance only the best."""
    kept: list[Cell] = []
    shapes: list[np.ndarray] = []
    for cell in sorted(cells, key=lambda c: -c.score):
        metric = cell.lattice @ cell.lattice.T
        length = np.sqrt(np.diag(metric))
        shape = np.concatenate(
            [np.log(length), (metric / np.outer(length, length))[np.triu_indices(3, 1)]]
        )
        if all(np.abs(shape - other).max() > tolerance for other in shapes):
            kept.append(cell)
            shapes.append(shape)
    return kept
