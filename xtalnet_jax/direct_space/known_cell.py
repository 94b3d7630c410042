"""What a known cell and a pattern fix, whatever the atoms do (host, NumPy).

The cell places every reflection, so the profile needs to be compared at these angles only, and a
reflection's share in each of them is known. A space group says which reflections are absent and
which are equally strong; one of each kind is enough.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.crystals.elements import ATOMIC_RADII
from xtalnet_jax.crystals.wyckoff import Group
from xtalnet_jax.pxrd.hkl import hkl_table
from xtalnet_jax.pxrd.pattern import Pattern, two_theta_from_inv_d
from xtalnet_jax.pxrd.scattering import form_factors, lorentz_polarisation
from xtalnet_jax.refine import prepare

SPACING = 0.35
"""Angles at which profiles are compared are at least this far apart, in widths of a peak."""
MAX_ANGLES = 192
ANGLE_SIZES = (64, 128, 192)
REFLECTION_SIZES = (64, 128, 256, 512, 1024, 2048)


class KnownCell(NamedTuple):
    """Reflections of a cell with given contents, and the pattern where they are."""

    lattice: np.ndarray  # [3, 3] angstrom
    atomic_numbers: np.ndarray  # [n] rising
    root: np.ndarray  # [n_angle] unit vector: square root of the broadened profile
    floor: float  # under the square root, in units of the mean intensity
    hkl: np.ndarray  # [n_hkl, 3] int, one of hkl and -hkl
    amplitude: np.ndarray  # [n_species, n_hkl] form factors with the root of all other factors
    shape: np.ndarray  # [n_angle, n_hkl] height of a reflection of intensity 1
    closest: np.ndarray  # [n, n] shortest distances allowed, angstrom


class Reflections(NamedTuple):
    """The different reflections of one group, padded; arrays for the device."""

    hkl: Any  # [n_hkl, 3] float
    amplitude: Any  # [n_node, n_hkl] of each atom
    shape: Any  # [n_angle, n_hkl]


def known_cell(
    lattice: np.ndarray,
    atomic_numbers: np.ndarray,
    pattern: Pattern,
    fwhm: float,
    floor: float,
    b_iso: float,
    contact: float,
) -> KnownCell:
    """Prepare the comparison of a pattern with crystals of one cell.

    Args:
        lattice: [3, 3] primitive cell, angstrom.
        atomic_numbers: contents of the cell, in any order.
        pattern: measured or calculated.
        fwhm: degrees, added to the width of the peaks.
        floor: under the square root, in units of the mean intensity; raised to twice the noise.
        b_iso: square angstrom, of all atoms.
        contact: shortest distance allowed, in sums of atomic radii.

    Raises:
        ValueError: a pattern that cannot be compared with, or no reflection of the cell in it.
    """
    observed = prepare.observe(pattern, 0)
    table = hkl_table(np.asarray(lattice, float)[None], observed.inv_d_max)
    two_theta = two_theta_from_inv_d(table.inv_d, pattern.wavelength)
    inside = (two_theta > observed.edges[0]) & (two_theta < observed.edges[1])
    width = float(np.hypot(fwhm, observed.fwhm))
    if not inside.any():
        raise ValueError(
            f"no reflection of the cell {np.round(lattice, 3).tolist()} lies between "
            f"{observed.edges[0]:g} and {observed.edges[1]:g} degrees; is it given in angstrom?"
        )
    angles = _apart(two_theta[inside], SPACING * width)[:MAX_ANGLES]
    inside &= two_theta <= angles.max() + SPACING * width
    hkl, inv_d, two_theta = table.hkl[inside].astype(int), table.inv_d[inside], two_theta[inside]
    root, floor = _root(observed, angles, fwhm, floor)
    numbers = np.sort(np.asarray(atomic_numbers))
    radius = ATOMIC_RADII[numbers]
    return KnownCell(
        np.asarray(lattice, float),
        numbers,
        root,
        floor,
        hkl,
        _amplitudes(np.unique(numbers), inv_d, pattern.wavelength, b_iso),
        np.exp(-4 * np.log(2) * ((angles[:, None] - two_theta[None]) / width) ** 2),
        contact * (radius[:, None] + radius[None]),
    )


def _apart(values: np.ndarray, spacing: float) -> np.ndarray:
    """Of rising values each first one that is further than ``spacing`` from the last chosen."""
    out: list[float] = []
    for value in values:
        if not out or value - out[-1] > spacing:
            out.append(float(value))
    return np.array(out)


def _amplitudes(
    species: np.ndarray, inv_d: np.ndarray, wavelength: float, b_iso: float
) -> np.ndarray:
    """Form factors with the root of all other factors [n_species, n_hkl].

    Padded on the way, as every new shape is compiled anew.
    """
    n = len(species), len(inv_d)
    species = np.pad(species, (0, prepare.bucket(n[0], prepare.SPECIES_SIZES) - n[0]))
    inv_d = np.pad(inv_d, (0, (1 << n[1].bit_length()) - n[1]), constant_values=inv_d[-1])
    out = _scattering(species, inv_d.astype(np.float32), np.float32(wavelength), np.float32(b_iso))
    return np.asarray(out)[: n[0], : n[1]]


@jax.jit
def _scattering(species: Any, inv_d: Any, wavelength: Any, b_iso: Any) -> jax.Array:
    s2 = 0.25 * inv_d**2
    power = jnp.sqrt(lorentz_polarisation(inv_d, wavelength))
    return form_factors(species, s2) * (jnp.exp(-b_iso * s2) * power)[None]


def _root(
    observed: prepare.Observed, angles: np.ndarray, fwhm: float, floor: float
) -> tuple[np.ndarray, float]:
    """Square root of the broadened pattern, as a unit vector, and the floor under it."""
    profile = np.maximum(prepare.broaden(observed.net, angles, fwhm), 0.0)
    mean = max(float(profile.mean()), 1e-12)
    floor = max(floor, 2.0 * prepare.noise_left(observed, fwhm) / mean)
    root = np.sqrt(profile / mean + floor) - floor**0.5
    return root / max(float(np.linalg.norm(root)), 1e-12), floor


def absences(hkl: np.ndarray, group: Group) -> np.ndarray:
    """Which reflections [n_hkl, 3] a group extinguishes: h W = h, but h . w is no whole number."""
    image = np.einsum("ha,oab->hob", hkl, group.rotations)
    phase = hkl @ group.translations.T
    same = (image == hkl[:, None]).all(-1)
    return (same & (np.abs(phase - np.round(phase)) > 1e-3)).any(1)


def unexplained(cell: KnownCell, absent: np.ndarray) -> float:
    """Least misfit 1 - cos^2 that a group can reach: what lies where nothing else reflects."""
    reached = cell.shape[:, ~absent].sum(1) > 0.02
    return float((cell.root[~reached] ** 2).sum())


def reflections_of(
    cell: KnownCell, group: Group, absent: np.ndarray, num_nodes: int
) -> Reflections:
    """One reflection of each kind, with its multiplicity, padded to a size that is compiled.

    Reflections of the group's Laue class and Friedel mates are equally strong. Those of largest
    1/d are left out if there are more than the largest size.
    """
    rows = np.flatnonzero(~absent)
    first, multiplicity = _kinds(cell.hkl[rows], group)
    num_hkl = prepare.bucket(len(first), REFLECTION_SIZES)
    rows, multiplicity = rows[first][:num_hkl], multiplicity[:num_hkl]
    n = len(rows)
    hkl = np.zeros((num_hkl, 3), np.float32)
    amplitude = np.zeros((num_nodes, num_hkl), np.float32)
    shape = np.zeros((prepare.bucket(len(cell.root), ANGLE_SIZES), num_hkl), np.float32)
    hkl[:n] = cell.hkl[rows]
    species = np.unique(cell.atomic_numbers, return_inverse=True)[1]
    amplitude[: len(species), :n] = (cell.amplitude[:, rows] * np.sqrt(2.0 * multiplicity))[species]
    shape[: len(cell.root), :n] = cell.shape[:, rows]
    return Reflections(hkl, amplitude, shape)


def _kinds(hkl: np.ndarray, group: Group) -> tuple[np.ndarray, np.ndarray]:
    """First of each kind of equally strong reflections, in the given order, and how many."""
    if not len(hkl):
        return np.zeros(0, int), np.zeros(0, int)
    image = np.einsum("ha,oab->hob", hkl, group.rotations)
    image = np.concatenate([image, -image], 1)
    base = 2 * int(np.abs(image).max()) + 1
    code = (image @ np.array([base**2, base, 1])).max(1)
    _, first, count = np.unique(code, return_index=True, return_counts=True)
    order = np.argsort(first)
    return first[order], count[order]


def padded(cell: KnownCell, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """The square root of the pattern, and the shortest distances, in compiled sizes."""
    root = np.zeros(prepare.bucket(len(cell.root), ANGLE_SIZES), np.float32)
    root[: len(cell.root)] = cell.root
    n = len(cell.atomic_numbers)
    closest = np.zeros((num_nodes, num_nodes), np.float32)
    closest[:n, :n] = cell.closest
    return root, closest
