"""Where the search for a cell starts: guesses, random cells, and cells solved from few peaks.

A peak at q = 1/d^2 with known indices is one linear equation for the reciprocal metric, so as many
of the lowest peaks as a Bravais lattice has free parameters, with small indices assigned to them,
give a cell: Werner, Eriksson & Westdahl (TREOR), J. Appl. Cryst. 18, 367 (1985). A triclinic cell
is put together from three axes and the diagonals of the parallelograms between them, as de Wolff,
Acta Cryst. 10, 590 (1957), and Visser (ITO), J. Appl. Cryst. 2, 89 (1969), do from zones. Most
assignments are wrong; the volume and the next peaks tell.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xtalnet_jax.crystals import bravais
from xtalnet_jax.refine.positions import Observed

_TESTED = 16  # lowest peaks that a solved cell is tested on
_AXES = 9  # lowest peaks among which the axes of a triclinic cell are
_TEST_SIGMA = 1.5  # standard deviations of a position within which a peak counts as met
_ANISOTROPY = 0.6  # standard deviation of the logarithm of 1/d^2 in cells of equal volume
_FIRST_INDEX = (4, 5)  # largest |h| + |k| + |l| given to a peak: primitive, centred lattices
_TEST_INDEX = 6  # ... and of the lines that a solved cell is tested with
_CHUNK = 1024  # solved cells that are tested at a time


def reciprocal_metrics(lattices: np.ndarray) -> np.ndarray:
    """Return the reciprocal metrics [n, 6], order of `positions.squares`, of lattices [n, 3, 3]."""
    inverse = np.linalg.inv(lattices)  # columns are the reciprocal vectors
    g = inverse.transpose(0, 2, 1) @ inverse
    return g[:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


def lattices_of(g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return lattices [n, 3, 3] with these reciprocal metrics, and where there is one [n]."""
    reciprocal = g[:, np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])]
    usable = np.isfinite(reciprocal).all((1, 2))
    reciprocal = np.where(usable[:, None, None], reciprocal, np.eye(3))
    usable &= np.linalg.eigvalsh(reciprocal)[:, 0] > 1e-5
    reciprocal = np.where(usable[:, None, None], reciprocal, np.eye(3))
    return np.linalg.cholesky(np.linalg.inv(reciprocal)), usable


def near_guesses(
    rng: np.random.Generator, guesses: np.ndarray, num: int, strains: Sequence[float]
) -> np.ndarray:
    """Return the guesses [n, 3, 3] and strained copies of them, ``num`` of each.

    Args:
        rng: source of randomness.
        guesses: lattices [n, 3, 3].
        num: copies of each, itself included.
        strains: standard deviations of the components of the strain, one of them for each copy.
    """
    size = (len(guesses), num, 3, 3)
    strain = rng.normal(0.0, 1.0, size) * rng.choice(strains, size[:2])[..., None, None]
    strain[:, 0] = 0.0
    copies = guesses[:, None] @ (np.eye(3) + (strain + strain.swapaxes(-1, -2)) / 2)
    return copies.reshape(-1, 3, 3)


def from_peaks(
    rng: np.random.Generator,
    lattice: str,
    observed: Observed,
    volume: tuple[float, float],
    num_draws: int,
    num_kept: int,
    shift_sigma: float = 0.05,
) -> np.ndarray:
    """Solve for primitive cells [n, 3, 3] from small indices drawn for the lowest peaks.

    Args:
        rng: source of randomness.
        lattice: Pearson's symbol, a key of `bravais.LATTICES`.
        observed: positions, the lowest first.
        volume: least and largest of the primitive cell, cubic angstrom.
        num_draws: assignments that are tried.
        num_kept: most cells returned, those that meet most of the lowest peaks.
        shift_sigma: half of the draws suppose that all peaks are shifted; standard deviation of
            the shift, degrees.
    """
    num = min(_TESTED, int(observed.weight.sum()))
    free = bravais.LATTICES[lattice].num_free
    if num < free + 1:
        return np.zeros((0, 3, 3))
    shift = rng.normal(0.0, shift_sigma, num_draws) * rng.integers(0, 2, num_draws)
    q = np.maximum(observed.q[:num] - shift[:, None] * observed.lean[:num, 0], 1e-6)
    if lattice == "aP":
        x = _from_diagonals(rng, q)
    else:
        x = _from_assignments(rng, lattice, q, float(np.sqrt(volume[0] * volume[1])))
    g = x @ bravais.metric_basis(lattice)
    centring = bravais.CENTRINGS[bravais.LATTICES[lattice].centring]
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.linalg.det(centring) / np.sqrt(_determinant(g))  # NaN: no cell
    right = (g[:, :3].min(1) > 0) & (g[:, 0] * g[:, 1] > g[:, 5] ** 2)
    right &= (size > volume[0]) & (size < volume[1])
    g, size = g[right], size[right]
    lines = x[right] @ _rows(lattice, _TEST_INDEX)[0].T
    met = _num_met(lines, q[right], observed.sigma[:num] * _TEST_SIGMA)
    best = np.argsort(-met, kind="stable")
    # The same cell comes in many settings and from many peaks; these numbers do not depend on it.
    invariant = np.stack([np.log(size) * 300, np.log(lines.min(1)) * 150, met * 5], -1)
    same = np.round(invariant[best])
    first = np.sort(np.unique(same, axis=0, return_index=True)[1])[:num_kept]
    cells, usable = lattices_of(g[best[first]])
    return centring @ cells[usable]


def _from_assignments(
    rng: np.random.Generator, lattice: str, q: np.ndarray, volume: float
) -> np.ndarray:
    """Free reciprocal parameters [n, n_free]; NaN where the indices do not determine them.

    A line is the likelier for a peak, the closer they are in a cell of this volume that is as long
    as it is wide.
    """
    centring = bravais.CENTRINGS[bravais.LATTICES[lattice].centring]
    rows, square = _rows(lattice, _FIRST_INDEX[lattice[1] != "P"])
    expected = square * (np.linalg.det(centring) / volume) ** (2 / 3)
    free = rows.shape[1]
    peak = np.argsort(rng.random((len(q), min(q.shape[1], free + 4))), axis=1)[:, :free]
    index = np.zeros_like(peak)
    for k in range(peak.max() + 1):
        here = peak == k
        weight = np.exp(-0.5 * (np.log(np.median(q[:, k]) / expected) / _ANISOTROPY) ** 2)
        index[here] = rng.choice(len(rows), int(here.sum()), p=weight / weight.sum())
    matrix = rows[index]
    singular = np.abs(np.linalg.det(matrix)) < 0.1
    matrix[singular] = np.eye(free)
    solved = np.linalg.solve(matrix, np.take_along_axis(q, peak, 1)[..., None])[..., 0]
    solved[singular] = np.nan
    return solved


def _from_diagonals(rng: np.random.Generator, q: np.ndarray) -> np.ndarray:
    """Reciprocal metrics [n, 6] of triclinic cells.

    Three of the lowest peaks are the axes, or, as axes may be extinct, their second orders. A
    diagonal of a reduced parallelogram with sides Q1 <= Q2 lies between Q2 and Q2 + 2 Q1.
    """
    n, num = q.shape
    axis = np.argsort(rng.random((n, min(_AXES, num))), axis=1)[:, :3]
    side = np.take_along_axis(q, axis, 1) / rng.choice([1, 4], (n, 3), p=[0.9, 0.1])
    side.sort(axis=1)
    g = np.empty((n, 6))
    g[:, :3] = side
    sign = rng.choice([-1.0, 1.0], n)  # of all products: only that of the three matters
    for column, i, j in ((3, 1, 2), (4, 0, 2), (5, 0, 1)):
        low = (q < side[:, j, None] * 0.999).sum(1)
        high = (q < (side[:, j] + 2 * side[:, i])[:, None] * 1.001).sum(1)
        pick = np.minimum(low + (rng.random(n) * (high - low)).astype(int), num - 1)
        diagonal = np.take_along_axis(q, pick[:, None], 1)[:, 0]
        g[:, column] = sign * np.abs(diagonal - side[:, i] - side[:, j]) / 2
    return g


def _rows(lattice: str, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of the free parameters in q of the lines with |h| + |k| + |l| <= ``most``.

    Returns:
        [n_line, n_free], and [n_line] h^2 + k^2 + l^2 of one reflection of each line.
    """
    axis = np.arange(-most, most + 1)
    hkl = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    hkl = hkl[len(hkl) // 2 + 1 :]  # after 000: not both hkl and -hkl
    hkl = hkl[np.abs(hkl).sum(1) <= most]
    primitive = hkl @ bravais.CENTRINGS[bravais.LATTICES[lattice].centring].T
    hkl = hkl[np.abs(primitive - np.round(primitive)).max(1) < 1e-6]
    h, k, l = hkl.T
    terms = np.stack([h * h, k * k, l * l, 2 * k * l, 2 * h * l, 2 * h * k], -1).astype(float)
    rows = terms @ bravais.metric_basis(lattice).T
    rows, first = np.unique(rows, axis=0, return_index=True)
    return rows, (hkl[first] ** 2).sum(1)


def _num_met(lines: np.ndarray, q: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """How many of the peaks [n, n_peak] lie on lines [n, n_line] of each cell, smoothly counted."""
    met = np.zeros(len(lines))
    for part in (slice(i, i + _CHUNK) for i in range(0, len(lines), _CHUNK)):
        some = lines[part].astype(np.float32)
        for k in range(q.shape[1]):
            off = np.abs(some - q[part, k, None].astype(np.float32)).min(1) / sigma[k]
            met[part] += 1 / (1 + off**4)
    return met


def _determinant(g: np.ndarray) -> np.ndarray:
    a, b, c, d, e, f = g.T
    return a * b * c + 2 * d * e * f - a * d**2 - b * e**2 - c * f**2
