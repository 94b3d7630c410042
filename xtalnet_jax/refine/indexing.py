"""Indexing: find the unit cell from the positions of the lines, near guessed cells.

Every trial cell is a mixture model of the observed positions: a peak at q = 1/d^2 lies near one of
the cell's reflections (a normal distribution around each, all equally likely), or it is foreign (a
uniform distribution). The more reflections a cell has, the less each explains, so large cells that
fit anything do not win; de Wolff's figure of merit M20 measures the same (J. Appl. Cryst. 1,
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

from xtalnet_jax.crystals import bravais
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.reduction import niggli_transform
from xtalnet_jax.pxrd.hkl import hkl_table
from xtalnet_jax.pxrd.pattern import PeakBatch
from xtalnet_jax.refine import symmetry


class IndexSettings(NamedTuple):
    """How to search."""

    num_strained: int = 64  # strained copies of every guess
    strains: tuple[float, ...] = (0.03, 0.06, 0.12)  # standard deviations of strain components
    num_random: tuple[tuple[str, int], ...] = (
        ("cP", 24), ("cI", 24), ("cF", 24), ("tP", 96), ("tI", 96), ("hP", 96), ("hR", 96),
        ("oP", 400), ("oI", 300), ("oF", 300), ("oC", 400), ("mP", 800), ("mC", 800),
    )  # fmt: skip
    """Random cells of each Bravais lattice."""
    coarse: tuple[float, ...] = (0.03, 0.02, 0.014)
    fine: tuple[float, ...] = (0.012, 0.009, 0.006, 0.004, 0.002, 0.001)
    polish: tuple[float, ...] = (0.0015, 0.0007)
    """Widths, relative in 1/d, on top of the precision of the peaks, of three rounds."""
    steps: int = 3  # updates per width
    two_theta_sigma: float = 0.02  # precision of a peak, degrees
    foreign: float = 0.05  # share of foreign peaks
    prior: float = 0.1  # standard deviation of a start, relative in 1/d
    volume_sigma: float = 0.08  # of the logarithm of the guessed volume
    num_coarse: tuple[int, int] = (20, 96)  # lowest peaks and reflections in the coarse round
    num_fine: tuple[int, int] = (40, 256)  # ... and in the others
    num_selected: int = 2048  # ends of the coarse round that go on
    num_kept: int = 200  # ends of the fine round that are looked at more closely
    num_polished: int = 24  # different cells whose nearest symmetries are tried
    symprecs: tuple[float, ...] = (0.4, 0.2, 0.1, 0.05)  # angstrom
    price: float = 1.8  # of a free cell parameter: half the logarithm of the number of peaks


DEFAULT = IndexSettings()
MISALIGNED = IndexSettings(two_theta_sigma=0.06, foreign=0.2)
"""For instruments with zero shift or displacement, and for samples with foreign peaks."""


class Cell(NamedTuple):
    """One unit cell found."""

    lattice: np.ndarray  # [3, 3] rows, angstrom, Niggli-reduced
    score: float  # logarithm of the likelihood, relative to a pattern of foreign peaks


class Observed(NamedTuple):
    """Positions to explain; padded."""

    q: Any  # [n_peak] 1/d^2, 1 where padded
    sigma: Any  # [n_peak] its standard deviation
    weight: Any  # [n_peak] 0 where padded
    span: Any  # [2] first and last q looked at


def squares(hkl: Float[Array, "n_hkl 3"]) -> Float[Array, "n_hkl 6"]:
    """Return h^2, k^2, l^2, 2kl, 2hl, 2hk: q is their product with the reciprocal metric."""
    h, k, l = hkl[:, 0], hkl[:, 1], hkl[:, 2]
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


@partial(jax.jit, static_argnames=("settings", "widths"))
def _search(
    start: jax.Array,
    hkl: jax.Array,
    real: jax.Array,
    observed: Observed,
    settings: IndexSettings,
    widths: tuple[float, ...],
    last: Any = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Reciprocal metrics after the search and their log likelihoods, [n_trial, 6] and [n_trial].

    ``last`` is the relative width at which the likelihood is taken.
    """

    def width_of(width: Any) -> jax.Array:
        return jnp.hypot(observed.sigma, 2 * width * observed.q)

    corner = squares(
        jnp.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0.0]])
    )

    def one(trial: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        g0, hkl, real = trial
        terms = squares(hkl)
        expected = corner @ g0
        precision = 1 / (2 * settings.prior * expected) ** 2
        prior = (corner.T * precision[None]) @ corner
        prior_side = corner.T @ (precision * expected)

        def update(g: jax.Array, width: jax.Array) -> tuple[jax.Array, None]:
            sigma = width_of(width)
            _, share = log_likelihood(g, terms, real, observed, sigma, settings.foreign)
            share = share * (observed.weight / sigma**2)[:, None]
            normal = (terms.T * share.sum(0)[None]) @ terms + prior
            side = terms.T @ (share.T @ observed.q) + prior_side
            scale = 1 / jnp.sqrt(jnp.diagonal(normal))
            solved = jnp.linalg.solve(
                normal * scale[:, None] * scale[None] + 1e-6 * jnp.eye(6), side * scale
            )
            return solved * scale, None

        g, _ = jax.lax.scan(update, g0, jnp.repeat(jnp.asarray(widths), settings.steps))
        return g, log_likelihood(g, terms, real, observed, width_of(last), settings.foreign)[0]

    return jax.lax.map(one, (start, hkl, real), batch_size=32)


def _run(
    starts: np.ndarray,
    observed: Observed,
    settings: IndexSettings,
    widths: tuple[float, ...],
    num_hkl: int,
    margin: float,
    last: Any = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Cells after a round and their log likelihoods; -inf where there is no cell."""
    hkl, real = _reflections(starts, float(np.sqrt(observed.span[1])) * margin, num_hkl)
    g = _reciprocal_metrics(starts).astype(np.float32)
    g, score = _search(g, hkl, real, observed, settings, widths, last)
    ends, usable = _lattices_of(np.asarray(g, float))
    return ends, np.where(usable, np.asarray(score, float), -np.inf)


def observed_positions(
    peaks: PeakBatch, wavelength: float, settings: IndexSettings, num_peaks: int
) -> Observed:
    """List the lowest peaks of the single pattern in ``peaks`` (1/d form)."""
    mask = np.asarray(peaks.mask)[0]
    inv_d = np.asarray(peaks.position, float)[0][mask]
    inv_d, n = np.sort(inv_d)[:num_peaks], num_peaks
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
    """Return the primitive cells that explain the positions of the peaks, best first, each once.

    Args:
        lattices: guesses, [3, 3] rows in angstrom; the median of their volumes is believed.
        peaks: one pattern, positions 1/d.
        wavelength: angstrom.
        seed: of the random cells.
        settings: see `IndexSettings`.
    """
    guesses = np.asarray(lattices, float)
    volume = float(np.median(np.abs(np.linalg.det(guesses))))

    def surprise(cells: np.ndarray) -> np.ndarray:
        ratio = np.log(np.abs(np.linalg.det(cells)) / volume) / settings.volume_sigma
        return 0.5 * ratio**2

    cells = _starts(np.random.default_rng(seed), guesses, volume, settings)
    num_peaks, num_hkl = settings.num_coarse
    observed = observed_positions(peaks, wavelength, settings, num_peaks)
    last = settings.coarse[-1]
    cells, score = _run(cells, observed, settings, settings.coarse, num_hkl, 1.15, last)
    cells = cells[np.argsort(surprise(cells) - score, kind="stable")[: settings.num_selected]]

    num_peaks, num_hkl = settings.num_fine
    observed = observed_positions(peaks, wavelength, settings, num_peaks)
    cells, score = _run(cells, observed, settings, settings.fine, num_hkl, 1.1)
    score = score - surprise(cells)
    best = np.argsort(-score, kind="stable")[: settings.num_kept]
    found = [_reduced(cells[k], score[k]) for k in best if np.isfinite(score[k])]
    polished = _polished(_distinct(found)[: settings.num_polished], observed, settings)
    return _distinct([Cell(c, value - float(surprise(c[None])[0])) for c, value in polished])


def _reduced(lattice: np.ndarray, score: float) -> Cell:
    return Cell(niggli_transform(lattice) @ lattice, float(score))


def _polished(cells: list[Cell], observed: Observed, settings: IndexSettings) -> list[Cell]:
    """Each cell or its copy on the best symmetry that it nearly has, refitted, Niggli-reduced.

    A free parameter must earn its price. Symmetric cells stay symmetric in the fit.
    """
    lattices, sources, prices = [], [], []
    for i, cell in enumerate(cells):
        atom = Crystal(np.array([1]), np.zeros((1, 3)), cell.lattice)
        copies = [(atom, symmetry.identity_operations(atom))]
        for crystal, operations in copies + symmetry.symmetrize(atom, settings.symprecs):
            lattices.append(crystal.lattice)
            sources.append(i)
            num_free = symmetry.freedom(crystal, operations).cell.shape[-1]
            prices.append(settings.price * num_free)
    if not lattices:
        return []
    most = settings.num_polished * (1 + len(settings.symprecs))
    padded = np.stack(lattices + lattices[:1] * (most - len(lattices)))
    ends, score = _run(padded, observed, settings, settings.polish, settings.num_fine[1], 1.05)
    value = score[: len(lattices)] - np.array(prices)
    out = []
    for i in range(len(cells)):
        k = max((k for k, source in enumerate(sources) if source == i), key=lambda k: value[k])
        if np.isfinite(value[k]):
            out.append(_reduced(ends[k], value[k]))
    return out


def _starts(
    rng: np.random.Generator, guesses: np.ndarray, volume: float, settings: IndexSettings
) -> np.ndarray:
    """Cells to start from, [n_trial, 3, 3]: the guesses, strained copies of them, random cells."""
    size = (len(guesses), settings.num_strained, 3, 3)
    strain = rng.normal(0.0, 1.0, size) * rng.choice(settings.strains, size[:2])[..., None, None]
    strain[:, 0] = 0.0
    copies = guesses[:, None] @ (np.eye(3) + (strain + strain.swapaxes(-1, -2)) / 2)
    random = [
        bravais.random_cells(rng, lattice, num, volume, settings.volume_sigma)
        for lattice, num in settings.num_random
    ]
    starts = np.concatenate([copies.reshape(-1, 3, 3), *random])
    return starts[np.linalg.det(starts) > 0.3 * volume]


def _reflections(
    lattices: np.ndarray, inv_d_max: float, num_hkl: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lowest reflections of each lattice, [n, num_hkl, 3], and 1 where there is one, 0 else."""
    table = hkl_table(lattices, inv_d_max)
    hkl = np.zeros((len(lattices), num_hkl, 3), np.float32)
    real = np.zeros((len(lattices), num_hkl), np.float32)
    for i, (first, last) in enumerate(zip(table.offset[:-1], table.offset[1:])):
        part = table.hkl[first : min(last, first + num_hkl)]
        hkl[i, : len(part)], real[i, : len(part)] = part, 1.0
    return hkl, real


def _reciprocal_metrics(lattices: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(lattices)  # columns are the reciprocal vectors
    g = inverse.transpose(0, 2, 1) @ inverse
    return g[:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


def _lattices_of(g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lattices [n, 3, 3] with these reciprocal metrics, and where there is one [n]."""
    reciprocal = g[:, np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])]
    usable = np.isfinite(reciprocal).all((1, 2))
    reciprocal = np.where(usable[:, None, None], reciprocal, np.eye(3))
    usable &= np.linalg.eigvalsh(reciprocal)[:, 0] > 1e-5
    reciprocal = np.where(usable[:, None, None], reciprocal, np.eye(3))
    return np.linalg.cholesky(np.linalg.inv(reciprocal)), usable


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
