"""Indexing: find the unit cell from the positions of the lines, near guessed cells.

Trial cells are judged by the mixture model of `positions`. As q = 1/d^2 of a reflection is linear
in the reciprocal metric, expectation-maximisation is a sequence of small least-squares problems for
the metric, the zero shift and the displacement; it is run from many strained copies of every guess
and from random cells of every Bravais lattice, with a width of the normal distributions that
shrinks to the precision of the peaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.crystals import bravais, symmetry
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.reduction import niggli_transform
from xtalnet_jax.indexing.positions import (
    Observed,
    Precision,
    log_likelihood,
    observed_positions,
    squares,
)
from xtalnet_jax.pxrd.hkl import hkl_table
from xtalnet_jax.pxrd.pattern import PeakBatch


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
    precision: Precision = Precision()
    prior: float = 0.1  # standard deviation of a start, relative in 1/d
    volume_scale: float = 0.05  # of the logarithm of the guessed volume: Student's t, 3 degrees
    num_coarse: tuple[int, int] = (20, 96)  # lowest peaks and reflections in the coarse round
    num_fine: tuple[int, int] = (40, 256)  # ... and in the others
    num_selected: int = 2048  # ends of the coarse round that go on
    num_kept: int = 200  # ends of the fine round that are looked at more closely
    num_polished: int = 24  # different cells whose nearest symmetries are tried
    symprecs: tuple[float, ...] = (0.4, 0.2, 0.1, 0.05)  # angstrom
    price: float = 1.8  # of a free cell parameter: half the logarithm of the number of peaks


DEFAULT = IndexSettings()
LENIENT = DEFAULT._replace(precision=Precision(two_theta_sigma=0.06, foreign=0.2))
"""For poor data and samples with foreign peaks."""


class Cell(NamedTuple):
    """One unit cell found."""

    lattice: np.ndarray  # [3, 3] rows, angstrom, Niggli-reduced
    score: float  # logarithm of the likelihood, relative to a pattern of foreign peaks
    shift: np.ndarray  # [2] zero shift and displacement, degrees: see `positions.true_angle`
    num_peaks: int = 0  # that were to be explained


@partial(jax.jit, static_argnames=("settings", "widths"))
def _search(
    start: jax.Array,
    hkl: jax.Array,
    real: jax.Array,
    observed: Observed,
    settings: IndexSettings,
    widths: tuple[float, ...],
    last: Any = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Reciprocal metrics [n_trial, 6], shifts [n_trial, 2], log likelihoods [n_trial] at the end.

    ``last`` is the relative width at which the likelihood is taken.
    """

    def width_of(width: Any) -> jax.Array:
        return jnp.hypot(observed.sigma, 2 * width * observed.q)

    corner = squares(
        jnp.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0.0]])
    )

    drift = 1 / jnp.asarray(settings.precision.shift_sigma) ** 2

    def one(trial: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        g0, hkl, real = trial
        terms = squares(hkl)
        expected = corner @ g0
        precision = 1 / (2 * settings.prior * expected) ** 2
        prior = jax.scipy.linalg.block_diag((corner.T * precision[None]) @ corner, jnp.diag(drift))
        prior_side = jnp.concatenate([corner.T @ (precision * expected), jnp.zeros(2)])

        def value(x: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
            return log_likelihood(x[:6], x[6:], terms, real, observed, sigma, settings.precision)

        def update(x: jax.Array, width: jax.Array) -> tuple[jax.Array, None]:
            pull = value(x, width_of(width))[1]
            mixed = terms.T @ (pull.T @ observed.lean)
            own = observed.lean.T @ (pull.sum(1)[:, None] * observed.lean)
            normal = jnp.block([[(terms.T * pull.sum(0)[None]) @ terms, mixed], [mixed.T, own]])
            side = jnp.concatenate(
                [terms.T @ (pull.T @ observed.q), observed.lean.T @ (pull.sum(1) * observed.q)]
            )
            normal, side = normal + prior, side + prior_side
            scale = 1 / jnp.sqrt(jnp.diagonal(normal))
            solved = jnp.linalg.solve(
                normal * scale[:, None] * scale[None] + 1e-6 * jnp.eye(8), side * scale
            )
            return solved * scale, None

        start = jnp.concatenate([g0, jnp.zeros(2)])
        x, _ = jax.lax.scan(update, start, jnp.repeat(jnp.asarray(widths), settings.steps))
        cost = 0.5 * (drift * x[6:] ** 2).sum()
        return x[:6], x[6:], value(x, width_of(last))[0] - cost

    return jax.lax.map(one, (start, hkl, real), batch_size=32)


def _run(
    starts: np.ndarray,
    observed: Observed,
    settings: IndexSettings,
    widths: tuple[float, ...],
    num_hkl: int,
    margin: float,
    last: Any = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells and shifts after a round, and log likelihoods; -inf where there is no cell."""
    hkl, real = _reflections(starts, float(np.sqrt(observed.span[1])) * margin, num_hkl)
    g = _reciprocal_metrics(starts).astype(np.float32)
    g, shift, score = _search(g, hkl, real, observed, settings, widths, last)
    ends, usable = _lattices_of(np.asarray(g, float))
    return ends, np.asarray(shift, float), np.where(usable, np.asarray(score, float), -np.inf)


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
        ratio = np.log(np.abs(np.linalg.det(cells)) / volume) / settings.volume_scale
        return 2 * np.log1p(ratio**2 / 3)

    cells, num_free = _starts(np.random.default_rng(seed), guesses, volume, settings)
    cost = settings.price * num_free  # a symmetric start stays symmetric in the fit
    observed, num_hkl = _observed(peaks, wavelength, settings, settings.num_coarse, volume)
    last = settings.coarse[-1]
    cells, _, score = _run(cells, observed, settings, settings.coarse, num_hkl, 1.15, last)
    best = np.argsort(surprise(cells) + cost - score, kind="stable")[: settings.num_selected]
    cells, cost = cells[best], cost[best]

    observed, num_hkl = _observed(peaks, wavelength, settings, settings.num_fine, volume)
    cells, shift, score = _run(cells, observed, settings, settings.fine, num_hkl, 1.1)
    score = score - surprise(cells) - cost
    best = np.argsort(-score, kind="stable")[: settings.num_kept]
    found = [_reduced(cells[k], score[k], shift[k]) for k in best if np.isfinite(score[k])]
    polished = _polished(distinct(found)[: settings.num_polished], observed, settings)
    num_peaks = int(observed.weight.sum())
    judged = [
        c._replace(score=c.score - float(surprise(c.lattice[None])[0]), num_peaks=num_peaks)
        for c in polished
    ]
    return distinct(judged)


def _observed(
    peaks: PeakBatch,
    wavelength: float,
    settings: IndexSettings,
    nums: tuple[int, int],
    volume: float,
) -> tuple[Observed, int]:
    """Lowest peaks of a round and how many reflections are listed to explain them.

    Peaks beyond the last listed reflection of a cell of this volume cannot be explained: those of
    half a sphere number 2/3 pi inv_d^3 times the volume, here with room for larger cells.
    """
    num_peaks, num_hkl = nums
    inv_d_max = (num_hkl / (1.25 * 2 / 3 * np.pi * volume)) ** (1 / 3)
    return observed_positions(peaks, wavelength, settings.precision, num_peaks, inv_d_max), num_hkl


def shift_in(lattice: np.ndarray, peaks: PeakBatch, wavelength: float) -> np.ndarray:
    """Zero shift and displacement [2] in degrees of a pattern whose cell is known."""
    known = Cell(np.asarray(lattice, float), 0.0, np.zeros(2))
    volume = abs(float(np.linalg.det(known.lattice)))
    observed, _ = _observed(peaks, wavelength, DEFAULT, DEFAULT.num_fine, volume)
    return _polished([known], observed, DEFAULT)[0].shift


def _reduced(lattice: np.ndarray, score: float, shift: np.ndarray) -> Cell:
    return Cell(niggli_transform(lattice) @ lattice, float(score), shift)


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
    num_hkl = settings.num_fine[1]
    ends, shift, score = _run(padded, observed, settings, settings.polish, num_hkl, 1.05)
    value = score[: len(lattices)] - np.array(prices)
    out = []
    for i in range(len(cells)):
        k = max((k for k, source in enumerate(sources) if source == i), key=lambda k: value[k])
        if np.isfinite(value[k]):
            out.append(_reduced(ends[k], value[k], shift[k]))
    return out


def _starts(
    rng: np.random.Generator, guesses: np.ndarray, volume: float, settings: IndexSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Cells to start from [n_trial, 3, 3] and their free parameters [n_trial].

    The guesses, strained copies of them, and random cells of every Bravais lattice.
    """
    size = (len(guesses), settings.num_strained, 3, 3)
    strain = rng.normal(0.0, 1.0, size) * rng.choice(settings.strains, size[:2])[..., None, None]
    strain[:, 0] = 0.0
    copies = guesses[:, None] @ (np.eye(3) + (strain + strain.swapaxes(-1, -2)) / 2)
    cells, free = [copies.reshape(-1, 3, 3)], [np.full(copies.size // 9, 6)]
    for name, num in settings.num_random:
        ratio = np.clip(settings.volume_scale * rng.standard_t(3, num), -0.5, 0.5)
        cells.append(bravais.random_cells(rng, name, volume * np.exp(ratio)))
        free.append(np.full(num, bravais.LATTICES[name].num_free))
    starts, num_free = np.concatenate(cells), np.concatenate(free)
    usable = np.linalg.det(starts) > 0.3 * volume
    return starts[usable], num_free[usable]


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


def distinct(cells: list[Cell], tolerance: float = 0.01) -> list[Cell]:
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
