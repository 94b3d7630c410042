"""From crystals and a measured pattern to padded arrays of a few static sizes (host, NumPy)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.elements import ATOMIC_RADII
from xtalnet_jax.crystals.symmetry import Freedom
from xtalnet_jax.pxrd import preprocess
from xtalnet_jax.pxrd.hkl import hkl_table
from xtalnet_jax.pxrd.pattern import Pattern, inv_d_from_two_theta
from xtalnet_jax.refine.model import NUM_SHARED, Frame
from xtalnet_jax.refine.objective import Target
from xtalnet_jax.refine.stages import Levels, Trials

FEW_COORDS = 12
"""Free coordinates of a symmetric crystal that are compiled for; else it is all there can be."""
NODE_SIZES = (8, 12, 20, 32, 56, 104, 208, 400)
HKL_SIZES = tuple(128 * 2**k for k in range(8))
SPECIES_SIZES = (8, 16, 98)
FINE_SIZES = (256, 512, 1024, 2048)


class Sizes(NamedTuple):
    """Static shapes, rounded up so that few programs are compiled."""

    num_nodes: int
    num_species: int
    num_hkl: int
    num_coord: int


class Observed(NamedTuple):
    """One pattern, ready for both stages."""

    pattern: Pattern
    net: Pattern  # background subtracted
    target: Target  # regular grid with background columns
    edges: np.ndarray  # [2] first and last angle
    inv_d_max: float
    fwhm: float  # typical width of a peak, degrees
    noise: float  # standard deviation of one point of ``net``
    unit: float  # intensity that is 1 in ``target``
    smear: float  # degrees^2 added to FWHM^2 by the averaging over bins in ``target``


def observe(pattern: Pattern, num_background: int) -> Observed:
    """Check a pattern and bring it onto a regular grid.

    Raises:
        ValueError: the pattern cannot be refined against.
    """
    x, y = np.asarray(pattern.two_theta, float), np.asarray(pattern.intensity, float)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 50:
        raise ValueError(
            f"a pattern of {x.shape} angles and {y.shape} intensities cannot be refined against; "
            "expected two lists of one length, at least 50"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (np.diff(x) > 0).all()):
        raise ValueError("angles must increase strictly and all numbers must be finite")
    if not (y.max() > y.min() and y.max() > 0):
        raise ValueError("the pattern is flat: it has no peak to refine against")
    if not 0.05 < pattern.wavelength < 10 or x[0] < 0 or x[-1] >= 175:
        raise ValueError(
            f"wavelength {pattern.wavelength:g} angstrom with angles {x[0]:g} to {x[-1]:g}; "
            "expected 0.05 to 10 angstrom and angles between 0 and 175 degrees"
        )
    num_bins = max(n for n in FINE_SIZES if n <= max(len(x), FINE_SIZES[0]))
    step = (x[-1] - x[0]) / (num_bins - 1)
    pattern = pattern._replace(two_theta=x, intensity=y)
    regular = preprocess.resample(pattern, step * (1 - 1e-9), x[0], x[-1])
    grid, profile = regular.two_theta[:num_bins], regular.intensity[:num_bins]
    sigma = None if regular.sigma is None else np.asarray(regular.sigma)[:num_bins]
    u = np.linspace(-1, 1, num_bins)
    background = np.polynomial.chebyshev.chebvander(u, max(num_background - 1, 0))
    background = background[:, :num_background]
    scale = 1 / profile.max()
    target = Target(
        grid.astype(np.float32),
        (profile * scale).astype(np.float32),
        (_weights(profile, sigma) / scale).astype(np.float32),
        background.astype(np.float32),
    )
    noise = noise_level(y)
    net = _net(pattern, noise)
    return Observed(
        pattern,
        net,
        target,
        np.array([x[0], x[-1]], np.float32),
        float(inv_d_from_two_theta(x[-1], pattern.wavelength)),
        typical_fwhm(net),
        noise,
        1 / scale,
        # A box of width w has the variance w^2/12; FWHM^2 = 8 ln 2 variance.
        8 * np.log(2) / 12 * step**2 if step > 1.5 * float(np.median(np.diff(x))) else 0.0,
    )


def _weights(profile: np.ndarray, sigma: np.ndarray | None) -> np.ndarray:
    """1/sigma; without sigma that of counts, with a floor of 1 % of the maximum.

    The floor stands for errors that do not shrink with the intensity: a pattern without
    background has empty bins, whose weight would be infinite.
    """
    if sigma is not None and (sigma > 0).any():
        good = sigma > 0
        return np.where(good, 1 / np.where(good, sigma, 1.0), 0.0)
    return 1 / np.sqrt(np.maximum(profile, 0.01 * profile.max()) * profile.max())


def _net(pattern: Pattern, noise: float) -> Pattern:
    """Intensity above the background; a noiseless pattern that returns to zero has none."""
    y = pattern.intensity
    lowest = [np.percentile(block, 10) for block in np.array_split(y, 12)]
    if noise > 1e-4 * y.max() or max(lowest) > 0.005 * y.max() or y.min() < 0:
        return preprocess.subtract_background(pattern)
    return pattern


def noise_level(y: np.ndarray) -> float:
    """Standard deviation of independent noise: median of second differences, 0 without noise."""
    return float(np.median(np.abs(np.diff(y, 2))) / 0.6745 / 6**0.5)


def typical_fwhm(net: Pattern) -> float:
    """Width of the sharper peaks: lower quartile of the widths at half height of strong maxima."""
    x, y = net.two_theta, net.intensity
    y = np.convolve(y, [0.25, 0.5, 0.25], mode="same")
    top = np.flatnonzero((y[1:-1] >= y[:-2]) & (y[1:-1] > y[2:]) & (y[1:-1] > 0.1 * y.max())) + 1
    widths = []
    for i in top[np.argsort(-y[top])][:30]:
        left, right = i, i
        while left > 0 and y[left] > y[i] / 2:
            left -= 1
        while right < len(y) - 1 and y[right] > y[i] / 2:
            right += 1
        widths.append(x[right] - x[left] - (x[1] - x[0]))
    step = float(np.median(np.diff(x)))
    width = float(np.percentile(widths, 25)) if widths else 0.2
    return float(np.clip(width, 1.2 * step, 2.0))


def broaden(pattern: Pattern, grid: np.ndarray, fwhm: float) -> np.ndarray:
    """Pattern convolved with a Gaussian, on another rising grid."""
    x, weighted = pattern.two_theta, pattern.intensity * np.gradient(pattern.two_theta)
    reach, out = 3.0 * fwhm, np.zeros(len(grid))  # exp(-4 ln 2 * 9) is 1e-11
    for start in range(0, len(grid), 32):
        own = grid[start : start + 32]
        first, last = np.searchsorted(x, [own[0] - reach, own[-1] + reach])
        distance = (own[:, None] - x[None, first:last]) / fwhm
        out[start : start + 32] = np.exp(-4 * np.log(2) * distance**2) @ weighted[first:last]
    return out / fwhm * (4 * np.log(2) / np.pi) ** 0.5


def noise_left(observed: Observed, fwhm: float) -> float:
    """Standard deviation of the noise in the pattern broadened by a Gaussian of FWHM w.

    Averaging over it leaves the share sqrt(0.66 spacing / w).
    """
    spacing = float(np.median(np.diff(observed.pattern.two_theta)))
    return observed.noise * float(0.66 * spacing / fwhm) ** 0.5


def make_levels(
    observed: Observed,
    widths: Sequence[float],
    num_bins: int,
    floor: float,
) -> Levels:
    """Square-root profiles at several widths; peaks of the pattern's own width are allowed for.

    ``floor`` is raised to twice the noise that is left in the narrowest profile.
    """
    first, last = observed.edges
    grid = np.linspace(float(first), float(last), num_bins)
    least = 2.0 * (grid[1] - grid[0])
    added = [max(float(width), float(least)) for width in widths]
    profiles = [np.maximum(broaden(observed.net, grid, width), 0.0) for width in added]
    left = noise_left(observed, added[-1])
    floor = max(floor, 2.0 * left / max(profiles[-1].mean(), 1e-12))
    roots = [np.sqrt(z / max(z.mean(), 1e-12) + floor) - floor**0.5 for z in profiles]
    rows = [root / np.linalg.norm(root) for root in roots]
    fwhm = [np.hypot(width, observed.fwhm) for width in added]
    as_float = lambda v: np.asarray(v, np.float32)  # noqa: E731
    return Levels(as_float(grid), as_float(rows), as_float(fwhm), np.float32(floor))


def make_trials(
    crystals: Sequence[Crystal],
    freedoms: Sequence[Freedom],
    inv_d_max: float,
    sizes: Sizes,
    contact: float,
) -> Trials:
    """Pad candidates to one size; reflections beyond ``num_hkl`` (largest 1/d) are left out."""
    n, (num_nodes, num_species, num_hkl, num_coord) = len(crystals), sizes
    frac = np.zeros((n, num_nodes, 3))
    species = np.zeros((n, num_species), np.int32)
    one_hot = np.zeros((n, num_nodes, num_species))
    closest = np.zeros((n, num_nodes, num_nodes))
    coord = np.zeros((n, num_nodes, 3, num_coord))
    cell = np.zeros((n, 6, 6))
    lattices = np.stack([np.asarray(c.lattice, float) for c in crystals])
    hkl = np.zeros((n, num_hkl, 3))
    for i, (c, free) in enumerate(zip(crystals, freedoms)):
        z = np.asarray(c.atomic_numbers)
        kinds, which = np.unique(z, return_inverse=True)
        m = len(z)
        frac[i, :m] = c.frac_coords
        species[i, : len(kinds)] = kinds
        one_hot[i, np.arange(m), which] = 1.0
        radius = ATOMIC_RADII[z]
        closest[i, :m, :m] = contact * (radius[:, None] + radius[None])
        cell[i, :, : free.cell.shape[1]] = free.cell
        moves = np.einsum("jaq,ab->jbq", free.coord, np.linalg.inv(lattices[i]))
        coord[i, :m, :, : moves.shape[2]] = moves
        found = hkl_table(lattices[i : i + 1], inv_d_max).hkl[:num_hkl]
        hkl[i, : len(found)] = found
    f = lambda v: v.astype(np.float32)  # noqa: E731
    frame = Frame(
        species, f(one_hot), f(frac), f(lattices), f(hkl), f(2.0 * hkl.any(-1)), f(cell), f(coord)
    )
    num_atoms = np.array([len(c.atomic_numbers) for c in crystals], np.float32)
    return Trials(frame, f(closest), num_atoms)


def sizes_for(crystals: Sequence[Crystal], inv_d_max: float, num_free: int) -> Sizes:
    """Shapes that hold all of these crystals with their reflections up to ``inv_d_max``.

    The reflections of half a sphere number 2/3 pi inv_d_max^3 times the volume of the cell.
    ``num_free`` is the largest number of free coordinates.
    """
    volume = max(abs(np.linalg.det(np.asarray(c.lattice, float))) for c in crystals)
    reflections = int(2 / 3 * np.pi * inv_d_max**3 * volume * 1.05) + 24
    num_nodes = bucket(max(len(c.atomic_numbers) for c in crystals), NODE_SIZES)
    return Sizes(
        num_nodes,
        bucket(max(len(np.unique(c.atomic_numbers)) for c in crystals), SPECIES_SIZES),
        bucket(reflections, HKL_SIZES),
        FEW_COORDS if num_free <= FEW_COORDS else 3 * num_nodes,
    )


def bucket(value: int, sizes: Sequence[int]) -> int:
    """Smallest of ``sizes`` that holds ``value``, or the largest there is."""
    return next((s for s in sizes if s >= value), sizes[-1])


def num_variables(sizes: Sizes) -> int:
    """Length of the flat vector of variables."""
    return NUM_SHARED + sizes.num_coord
