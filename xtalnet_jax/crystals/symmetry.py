"""Which symmetry a candidate nearly has, and which moves keep it (host, NumPy).

A generator's candidate is symmetric only up to its noise. `symmetrize` finds the space groups it
has at several tolerances and moves it exactly onto each; `freedom` lists the strains and
displacements that keep the symmetry, so that a refinement has few variables and cannot lose it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal

LARGEST_MOVE = 1.2
"""An atom that would move further than this (angstrom) does not belong to the symmetry."""

_VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))


class Operations(NamedTuple):
    """Symmetry operations x -> W x + w of one crystal (x a column), and how they permute atoms."""

    rotations: np.ndarray  # [n_op, 3, 3] int, W
    translations: np.ndarray  # [n_op, 3], w
    permutations: np.ndarray  # [n_op, n] int; atom j is sent onto atom permutations[op, j]
    number: int  # space group


class Freedom(NamedTuple):
    """Moves that keep the symmetry: orthonormal columns, in angstrom and in strain."""

    cell: np.ndarray  # [6, n_cell] Voigt strain (xx, yy, zz, yz, xz, xy)
    coord: np.ndarray  # [n, 3, n_coord] Cartesian displacement; no shift of all atoms together


def identity_operations(crystal: Crystal) -> Operations:
    """Operations of P1."""
    n = len(crystal.atomic_numbers)
    return Operations(np.eye(3, dtype=int)[None], np.zeros((1, 3)), np.arange(n)[None], 1)


def symmetrize(
    crystal: Crystal, symprecs: Sequence[float] = (0.5, 0.3, 0.2, 0.1, 0.05, 0.01)
) -> list[tuple[Crystal, Operations]]:
    """Return the crystal moved onto every symmetry that it nearly has, highest symmetry first.

    Cell setting, atoms and their order stay. P1 is not listed, and of two tolerances with the same
    space group only the first that works is.

    Args:
        crystal: any.
        symprecs: tolerances for spglib, angstrom.
    """
    found: dict[tuple[int, int], tuple[Crystal, Operations]] = {}
    for symprec in sorted(symprecs, reverse=True):
        operations = find_operations(crystal, symprec)
        if operations is None or len(operations.rotations) < 2:
            continue
        kind = (operations.number, len(operations.rotations))
        if kind not in found:
            moved = impose(crystal, operations)
            if moved is not None:
                found[kind] = (moved, operations)
    return sorted(found.values(), key=lambda pair: -len(pair[1].rotations))


def find_operations(crystal: Crystal, symprec: float) -> Operations | None:
    """Space-group operations at a tolerance (spglib), or None where there is no consistent set."""
    import spglib

    cell: Any = (
        np.asarray(crystal.lattice, float),
        np.asarray(crystal.frac_coords, float),
        np.asarray(crystal.atomic_numbers, int),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            data = spglib.get_symmetry_dataset(cell, symprec=symprec)
        except Exception:  # newer versions raise where older ones return None
            return None
    if data is None:
        return None
    permutations = _permutations(crystal, data.rotations, data.translations)
    if permutations is None:
        return None
    return Operations(data.rotations, data.translations, permutations, int(data.number))


def nearest_symmetries(
    crystal: Crystal, largest: Sequence[float] = (0.2, 0.35, 0.5, 0.7)
) -> list[tuple[Crystal, Operations]]:
    """Return the crystal moved onto symmetries that its atoms may miss by several 0.1 angstrom.

    `symmetrize` asks for one tolerance that all distances meet, which fails where noise is large.
    Here the lattice proposes the rotations (its own point group), the atoms the translation that
    fits each best; atoms are then averaged over all operations that fit to within a threshold.
    Different thresholds give different symmetries; each is listed once.

    Args:
        crystal: its cell must have its symmetry to 0.2 angstrom, the atoms need not.
        largest: rms distances, angstrom, up to which an operation takes part.
    """
    fitted = _fitted_operations(crystal)
    found: dict[tuple[int, int], tuple[Crystal, Operations]] = {}
    for threshold in largest:
        chosen = [op for op in fitted if op[3] <= threshold]
        moved = _averaged(crystal, chosen) if len(chosen) > 1 else None
        operations = None if moved is None else find_operations(moved, 0.1)
        if operations is not None and len(operations.rotations) > 1:
            exact = impose(crystal, operations)
            kind = (operations.number, len(operations.rotations))
            if exact is not None and kind not in found:
                found[kind] = (exact, operations)
    return list(found.values())


_Fitted = tuple[np.ndarray, np.ndarray, np.ndarray, float]  # W, w, permutation, rms distance


def _fitted_operations(crystal: Crystal) -> list[_Fitted]:
    """For every rotation of the lattice the translation that fits the atoms best."""
    empty = Crystal(np.array([1]), np.zeros((1, 3)), crystal.lattice)
    point_group = find_operations(empty, 0.2)
    z, x = np.asarray(crystal.atomic_numbers), np.asarray(crystal.frac_coords, float)
    rotations = np.eye(3, dtype=int)[None] if point_group is None else point_group.rotations
    kinds, counts = np.unique(z, return_counts=True)
    rare = np.flatnonzero(z == kinds[counts.argmin()])
    out = []
    for w in rotations:
        turned = x @ w.T
        each = (_fit_translation(crystal, turned, x[j] - turned[rare[0]]) for j in rare)
        tries = [t for t in each if t is not None]
        if tries:
            shift, permutation, rms = min(tries, key=lambda t: t[2])
            out.append((w, shift, permutation, rms))
    return out


def _fit_translation(
    crystal: Crystal, turned: np.ndarray, shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Improve a translation; also which atom goes where, and the rms distance (angstrom)."""
    z, x = np.asarray(crystal.atomic_numbers), np.asarray(crystal.frac_coords, float)
    lattice = np.asarray(crystal.lattice, float)
    for _ in range(3):
        delta = (turned + shift)[:, None] - x[None]
        delta -= np.round(delta)
        square = ((delta @ lattice) ** 2).sum(-1)
        square[z[:, None] != z[None]] = np.inf
        permutation = square.argmin(-1)
        if len(np.unique(permutation)) < len(z):
            return None
        mean = delta[np.arange(len(z)), permutation].mean(0)
        shift = shift - mean
    rest = delta[np.arange(len(z)), permutation] - mean
    return shift, permutation, float(np.sqrt(((rest @ lattice) ** 2).sum(-1).mean()))


def _averaged(crystal: Crystal, chosen: Sequence[_Fitted], rounds: int = 4) -> Crystal | None:
    """Average over operations whose translations are fitted anew to the atoms in each round."""
    x = np.asarray(crystal.frac_coords, float)
    for _ in range(rounds):
        total = np.zeros_like(x)
        for rotation, shift, permutation, _ in chosen:
            image = x @ rotation.T + shift
            away = image - x[permutation]
            away -= np.round(away)
            total[permutation] += away - away.mean(0)
        x = x + total / len(chosen)
    lattice = _averaged_lattice(crystal.lattice, np.stack([op[0] for op in chosen]))
    return Crystal(crystal.atomic_numbers, x % 1.0, lattice)


def _averaged_lattice(lattice: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """The metric becomes the mean of W^T G W, by a symmetric strain, which keeps the orientation.

    Row vectors: a_i' = sum_j W_ji a_j, G' = W^T G W.
    """
    lattice, w = np.asarray(lattice, float), rotations.astype(float)
    metric = np.einsum("oji,jk,okl->il", w, lattice @ lattice.T, w) / len(w)
    inverse = np.linalg.inv(lattice)
    values, vectors = np.linalg.eigh(inverse @ metric @ inverse.T)
    return lattice @ (vectors * np.sqrt(values)) @ vectors.T


def _permutations(
    crystal: Crystal, rotations: np.ndarray, translations: np.ndarray
) -> np.ndarray | None:
    x, z = np.asarray(crystal.frac_coords, float), np.asarray(crystal.atomic_numbers)
    image = np.einsum("oab,jb->oja", rotations, x) + translations[:, None]
    delta = image[:, :, None] - x[None, None]
    delta -= np.round(delta)
    square = ((delta @ np.asarray(crystal.lattice, float)) ** 2).sum(-1)
    square[:, z[:, None] != z[None]] = np.inf
    target = square.argmin(-1)  # [n_op, n]
    onto = (np.sort(target, -1) == np.arange(len(z))).all()
    return target if onto and square.min(-1).max() < LARGEST_MOVE**2 else None


def impose(crystal: Crystal, operations: Operations) -> Crystal | None:
    """Average a crystal over its operations; None if an atom would move too far."""
    lattice = np.asarray(crystal.lattice, float)
    x = np.asarray(crystal.frac_coords, float)
    w = operations.rotations.astype(float)
    image = np.einsum("oab,jb->oja", w, x) + operations.translations[:, None]
    shift = image - x[operations.permutations]
    shift -= np.round(shift)
    total = np.zeros_like(x)
    np.add.at(total, operations.permutations, shift)
    move = total / len(w)
    if np.sqrt(((move @ lattice) ** 2).sum(-1)).max(initial=0.0) > LARGEST_MOVE:
        return None
    averaged = _averaged_lattice(lattice, operations.rotations)
    return Crystal(crystal.atomic_numbers, (x + move) % 1.0, averaged)


def freedom(crystal: Crystal, operations: Operations) -> Freedom:
    """Basis of the strains and displacements that all operations leave unchanged.

    Projectors onto the invariants are means over the group; their eigenvectors of eigenvalue 1
    are the basis.
    """
    lattice = np.asarray(crystal.lattice, float)
    n = len(crystal.atomic_numbers)
    inverse = np.linalg.inv(lattice)
    # Cartesian row vectors: u' = u inverse W^T lattice.
    rotations = np.einsum("ab,ocb,cd->oad", inverse, operations.rotations.astype(float), lattice)
    scale = np.array([1, 1, 1, 2**0.5, 2**0.5, 2**0.5])
    basis = np.zeros((6, 3, 3))
    for k, (i, j) in enumerate(zip(*_VOIGT)):
        basis[k, i, j] = basis[k, j, i] = 1 / scale[k]
    turned = np.einsum("oba,kbc,ocd->kad", rotations, basis, rotations) / len(rotations)
    projector = np.einsum("kab,lab->kl", turned, basis)
    cell = _invariant(projector) / scale[:, None]

    displacement = np.zeros((n, 3, n, 3))
    for rotation, target in zip(rotations, operations.permutations):
        displacement[target, :, np.arange(n)] += rotation.T / len(rotations)
    projector = displacement.reshape(3 * n, 3 * n)
    together = np.tile(np.eye(3), (n, 1)) / n**0.5
    projector = projector - together @ (together.T @ projector)
    return Freedom(cell, _invariant(projector).reshape(n, 3, -1))


def _invariant(projector: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh((projector + projector.T) / 2)
    return vectors[:, values > 0.5]
