"""Space groups that a known cell can have, and the positions of atoms in them (host, NumPy).

The lattice of a primitive cell has a conventional cell; every space group in every setting whose
translations are those of this lattice is a possible symmetry of the crystal (operations: spglib).
Its Wyckoff positions are found by probing: points on a fine grid and, through each special point,
generic points on its axes and planes; the operations that leave a point where it is tell the rest
(International Tables for Crystallography A, section 1.4.4).
"""

from __future__ import annotations

from bisect import bisect
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

_TOLERANCE = 1e-4
_GRIDS = (12, 8)
_NUM_SETTINGS = 530
_LAST_OF_FAMILY = (2.5, 15.5, 74.5, 142.5, 194.5)


class Group(NamedTuple):
    """A space group in the setting of one primitive cell: x -> W x + w, x a fractional column."""

    number: int
    rotations: np.ndarray  # [n_op, 3, 3] int, W; one of each, no pure translation but the identity
    translations: np.ndarray  # [n_op, 3] in [0, 1), w


P1 = Group(1, np.eye(3, dtype=int)[None], np.zeros((1, 3)))


class Site(NamedTuple):
    """A Wyckoff position: the orbit of ``project @ x + shift`` for any x."""

    project: np.ndarray  # [3, 3] onto the directions in which an atom may move, fractional
    shift: np.ndarray  # [3]
    num_free: int  # 0 to 3
    rotations: np.ndarray  # [multiplicity, 3, 3] float, that make the orbit from its first atom
    translations: np.ndarray  # [multiplicity, 3]


def groups_of_cell(lattice: np.ndarray, symprec: float = 0.05) -> list[Group]:
    """Space groups of the lattice's crystal family, in all settings, with just its translations.

    Args:
        lattice: [3, 3] rows of a primitive cell, angstrom.
        symprec: how far the lattice may be from its symmetry, angstrom.
    """
    import spglib

    lattice = np.asarray(lattice, float)
    point: Any = (lattice, np.zeros((1, 3)), [1])
    try:
        data = spglib.get_symmetry_dataset(point, symprec=symprec)
    except spglib.error.SpglibError:  # what later versions raise instead of returning None
        data = None
    if data is None:
        return groups_of_cell(lattice, symprec / 2) if symprec > 1e-3 else []
    to_conventional = np.asarray(data.transformation_matrix, float)
    family = bisect(_LAST_OF_FAMILY, data.number)
    metric = lattice @ lattice.T
    # Of lattice vectors that are off by symprec.
    tolerance = 2.5 * symprec * float(np.sqrt(np.diag(metric).max()))
    found: dict[tuple[int, bytes], Group] = {}
    for setting in range(1, _NUM_SETTINGS + 1):
        number, choice, rotations, translations = _setting(setting)
        # Choice 1 has the origin elsewhere than choice 2, which every such group has as well.
        if bisect(_LAST_OF_FAMILY, number) != family or choice.startswith("1"):
            continue
        group = _in_cell(number, rotations, translations, to_conventional)
        if group is None:
            continue
        w = group.rotations.astype(float)
        turned = np.einsum("oji,jk,okl->oil", w, metric, w)
        if np.abs(turned - metric).max() > tolerance:
            continue
        found.setdefault((number, _fingerprint(group)), group)
    return list(found.values())


@cache
def _setting(hall: int) -> tuple[int, str, np.ndarray, np.ndarray]:
    import spglib

    operations = spglib.get_symmetry_from_database(hall)
    kind = spglib.get_spacegroup_type(hall)
    assert operations is not None
    assert kind is not None
    return int(kind.number), kind.choice, operations["rotations"], operations["translations"]


def _in_cell(
    number: int, rotations: np.ndarray, translations: np.ndarray, to_conventional: np.ndarray
) -> Group | None:
    """Operations of a conventional cell in the primitive one; None where translations differ."""
    inverse = np.linalg.inv(to_conventional)
    pure = (rotations == np.eye(3, dtype=int)).all((1, 2))
    if pure.sum() != round(abs(np.linalg.det(inverse))):
        return None
    w = np.einsum("ab,obc,cd->oad", inverse, rotations, to_conventional)
    t = translations @ inverse.T
    if np.abs(w - np.round(w)).max() > _TOLERANCE:
        return None
    if np.abs(t[pure] - np.round(t[pure])).max() > _TOLERANCE:
        return None
    w = np.round(w).astype(int)
    _, first = np.unique(w.reshape(-1, 9), axis=0, return_index=True)
    first = np.sort(first)
    return Group(number, w[first], np.mod(np.round(t[first] * 48) / 48, 1.0))


def _fingerprint(group: Group) -> bytes:
    """Equal for equal operations up to their order."""
    rows = np.concatenate([group.rotations.reshape(-1, 9), np.round(group.translations * 48)], 1)
    return np.unique(rows.astype(int), axis=0).tobytes()


def sites_of(group: Group) -> list[Site]:
    """Wyckoff positions, those without freedom first; the general position is the last."""
    w, t = group.rotations, group.translations
    return list(_sites(w.tobytes(), t.tobytes(), len(w)))


@lru_cache(maxsize=1024)
def _sites(rotations: bytes, translations: bytes, order: int) -> tuple[Site, ...]:
    w = np.frombuffer(rotations, int).reshape(order, 3, 3).astype(float)
    t = np.frombuffer(translations).reshape(order, 3)
    grids = [np.stack(np.meshgrid(*[np.arange(n) / n] * 3, indexing="ij"), -1) for n in _GRIDS]
    points = np.concatenate([g.reshape(-1, 3) for g in grids])
    points = points[_fixes(w, t, points).sum(1) > 1]
    points = points[_one_of_orbit(w, t, points)]
    stable = _fixes(w, t, points)
    probes = [points[_num_free(w, stable) == 0]]
    generic = np.array([0.137, 0.291, 0.419])
    for point, kind in zip(points, stable):
        along = np.einsum("oab,b->oa", _mean_powers(w[kind]), generic)
        along = np.concatenate([along, (w[kind].mean(0) @ generic)[None]])
        along = along[np.abs(along).max(1) > _TOLERANCE]
        along = along[np.unique(np.round(along, 6), axis=0, return_index=True)[1]]
        probes.append(point + along)
    probes.append(generic[None])
    candidates = np.concatenate(probes)
    stable = _fixes(w, t, candidates)
    return tuple(_unique_sites(w, t, candidates, stable))


def _one_of_orbit(w: np.ndarray, t: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Indices of one point of each orbit; all coordinates are multiples of 1/48."""
    image = np.einsum("oab,pb->poa", w, points) + t[None]
    code = np.mod(np.round(image * 48), 48) @ np.array([48.0**2, 48.0, 1.0])
    return np.unique(code.min(1), return_index=True)[1]


def _mean_powers(rotations: np.ndarray) -> np.ndarray:
    """Projectors on the axis or plane of each rotation: means of its powers (orders divide 12)."""
    total, power = np.zeros_like(rotations), rotations
    for _ in range(12):
        total, power = total + power, power @ rotations
    return total / 12


def _fixes(w: np.ndarray, t: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Which operations leave which points where they are, up to a lattice vector."""
    away = np.einsum("oab,pb->poa", w, points) + t[None] - points[:, None]
    return (np.abs(away - np.round(away)) < _TOLERANCE).all(-1)


def _num_free(w: np.ndarray, stable: np.ndarray) -> np.ndarray:
    """In how many directions points may move: the trace of the mean of their rotations."""
    return np.round(np.einsum("po,oaa->p", stable, w) / stable.sum(1)).astype(int)


def _unique_sites(
    w: np.ndarray, t: np.ndarray, points: np.ndarray, stable: np.ndarray
) -> list[Site]:
    free, order = _num_free(w, stable), stable.sum(1)
    projects = np.einsum("po,oab->pab", stable, w) / order[:, None, None]
    shifts = points - np.einsum("pab,pb->pa", projects, points)
    # Most probes of one axis or plane are told apart by nothing; the rest are compared in turn.
    keys = np.concatenate([projects.reshape(-1, 9), np.mod(shifts + 1e-6, 1.0)], 1)
    _, rows = np.unique(np.round(keys, 4), axis=0, return_index=True)
    cells = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    found: list[Site] = []
    for p in rows[np.lexsort([-order[rows], free[rows]])]:
        multiplicity = len(w) // int(order[p])
        alike = [s for s in found if (s.num_free, len(s.rotations)) == (free[p], multiplicity)]
        image = w @ points[p] + t
        if alike:
            turned = w @ projects[p] @ np.linalg.inv(w)
            if any(_meets(s, image, turned, cells) for s in alike):
                continue
        _, first = np.unique(np.round(np.mod(image + 1e-6, 1.0), 3), axis=0, return_index=True)
        first = np.sort(first)
        if len(first) == multiplicity:
            found.append(Site(projects[p], shifts[p], int(free[p]), w[first], t[first]))
    return found


def _meets(site: Site, images: np.ndarray, projects: np.ndarray, cells: np.ndarray) -> bool:
    """Whether one of the images, of equal freedom, lies on the site itself."""
    parallel = np.abs(projects - site.project).max((1, 2)) < _TOLERANCE
    if not parallel.any():
        return False
    rest = images[parallel][:, None] + cells[None]
    away = rest - rest @ site.project.T - site.shift
    return bool((np.abs(away).max(-1) < _TOLERANCE).any())
