"""A candidate under way: symmetric copies of it, what free parameters cost, which became equal."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from xtalnet_jax.crystals import symmetry
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.refine.settings import RefineSettings


class Variant(NamedTuple):
    """A candidate under way."""

    source: int
    crystal: Crystal
    operations: symmetry.Operations
    freedom: symmetry.Freedom
    zero: float = 0.0
    misfit: float = np.inf


def displacement(before: Crystal, after: Crystal) -> float:
    """Root mean square move of the atoms, angstrom, a common shift taken off."""
    move = np.asarray(after.frac_coords, float) - np.asarray(before.frac_coords, float)
    move = (move - np.round(move)) @ np.asarray(after.lattice, float)
    return float(np.sqrt(((move - move.mean(0)) ** 2).sum(-1).mean()))


def free_variant(i: int, crystal: Crystal) -> Variant:
    """The candidate ``i`` itself, without symmetry."""
    operations = symmetry.identity_operations(crystal)
    return Variant(i, crystal, operations, symmetry.freedom(crystal, operations))


def start_variant(i: int, crystal: Crystal) -> Variant:
    """The candidate ``i`` with the symmetry that it has to within rounding."""
    found = symmetry.find_operations(crystal, 1e-3)
    if found is None or len(found.rotations) == 1:
        return free_variant(i, crystal)
    exact = symmetry.impose(crystal, found)
    if exact is None:
        return free_variant(i, crystal)
    return Variant(i, exact, found, symmetry.freedom(exact, found))


def symmetric_copies(variant: Variant, settings: RefineSettings) -> list[Variant]:
    """Copies on symmetries that are nearly there: of high order, moving the atoms little."""
    found = symmetry.nearest_symmetries(variant.crystal, settings.symmetry_misfits)
    order = len(variant.operations.rotations)
    found = [(c, o) for c, o in found if len(o.rotations) > order]

    def promise(pair: tuple[Crystal, symmetry.Operations]) -> float:
        moved = displacement(variant.crystal, pair[0])
        return np.log(len(pair[1].rotations)) - moved / settings.symmetry_scale

    found.sort(key=promise, reverse=True)
    return [
        variant._replace(crystal=c, operations=o, freedom=symmetry.freedom(c, o))
        for c, o in found[: settings.max_variants]
    ]


def price(variant: Variant, settings: RefineSettings) -> float:
    """Misfit with what its free parameters cost: of several copies the cheapest is kept."""
    num = variant.freedom.coord.shape[-1] + variant.freedom.cell.shape[-1]
    return (variant.misfit + settings.misfit_floor) * (1 + settings.price * num)


def promising(variants: list[Variant], settings: RefineSettings) -> list[int]:
    """Which variants may yet win: a misfit within a factor of the best one."""
    most = settings.hopeless * (min(v.misfit for v in variants) + settings.misfit_floor)
    return [i for i, v in enumerate(variants) if v.misfit <= most]


def first_of_equals(variants: list[Variant], tolerance: float) -> list[int]:
    """For each variant the first one that became the same structure, or itself."""
    out: list[int] = []
    for i, v in enumerate(variants):
        out.append(next((k for k in sorted(set(out)) if _same(variants[k], v, tolerance)), i))
    return out


def _same(a: Variant, b: Variant, tolerance: float) -> bool:
    """One symmetry, one cell (lengths to 0.1 %) and one misfit (to ``tolerance``)."""
    lengths = [np.linalg.norm(v.crystal.lattice, axis=-1) for v in (a, b)]
    return bool(
        a.operations.number == b.operations.number
        and a.freedom.coord.shape == b.freedom.coord.shape
        and abs(a.misfit - b.misfit) < tolerance * b.misfit
        and np.allclose(*lengths, rtol=1e-3)
    )
