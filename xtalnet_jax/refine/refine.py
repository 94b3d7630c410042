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

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal, CrystalBatch, unstack_crystals
from xtalnet_jax.pxrd.pattern import Pattern
from xtalnet_jax.pxrd.scattering import check_tabulated
from xtalnet_jax.refine import prepare, stages
from xtalnet_jax.refine.chunks import (
    FIRST_MARGIN,
    SECOND_MARGIN,
    chunks_of,
    moved_crystals,
    placed,
    strengths_of,
)
from xtalnet_jax.refine.profile_fit import Refined, profile_fits
from xtalnet_jax.refine.settings import DEFAULT, RefineSettings
from xtalnet_jax.refine.stages import B_ISO, ETA, FWHM_TAN, LOG_FWHM, ZERO
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
    fits = profile_fits([best[i] for i in kept], observed, settings, free=True)
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
    return profile_fits(variants, observed, settings, free=False)


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
    for rows, trials, x in chunks_of(variants, observed, settings, margin, settings.bins):
        x[:, ETA], x[:, FWHM_TAN] = 0.1 * free_eta, 0.0
        active = np.ones(x.shape[1], np.float32)
        active[[LOG_FWHM, FWHM_TAN, B_ISO]], active[ETA] = 0, free_eta
        found = stages.anneal(
            trials, x, levels, np.float32(observed.pattern.wavelength), observed.edges,
            active, strengths_of(settings), settings.steps,
        )  # fmt: skip
        moved = moved_crystals(trials.frame, found.x)
        shift, misfit = np.asarray(found.x)[:, ZERO], np.asarray(found.misfit)[:, -1]
        for k, i in enumerate(rows):
            out[i] = placed(variants[i], moved, k, float(shift[k]), float(misfit[k]))
    return out
