"""Variants in padded chunks of few static shapes, to the device and back."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.refine import model, prepare, stages
from xtalnet_jax.refine.settings import RefineSettings
from xtalnet_jax.refine.stages import CELL, COORD, ETA, FWHM_TAN, LOG_FWHM, ZERO, Strengths
from xtalnet_jax.refine.variants import Variant

FIRST_MARGIN, SECOND_MARGIN, LAST_MARGIN = 1.1, 1.04, 1.02
"""Reflections are listed up to this factor beyond the last 1/d, because cells may grow."""


def strengths_of(s: RefineSettings) -> Strengths:
    """Restraints and step limits of the settings, for the device."""
    values = (s.contact_cost, s.cell_cost, s.coord_cost, s.zero_cost, s.step_cell, s.step_coord)
    return Strengths(*(np.float32(v) for v in values))


def chunks_of(
    variants: list[Variant],
    observed: prepare.Observed,
    settings: RefineSettings,
    margin: float,
    bins: int,
) -> list[tuple[list[int], stages.Trials, np.ndarray]]:
    """Split into padded chunks of few static shapes: rows, trials, start.

    Crystals with few free coordinates are apart from the others, for which much more is computed.
    """
    inv_d_max = observed.inv_d_max * margin
    free = np.array([v.freedom.coord.shape[-1] for v in variants])
    symmetric = free <= prepare.FEW_COORDS
    out = []
    for chosen in (np.flatnonzero(symmetric), np.flatnonzero(~symmetric)):
        if not len(chosen):
            continue
        crystals, most = [v.crystal for v in variants], int(free[chosen].max())
        sizes = prepare.sizes_for(crystals, observed.inv_d_max * FIRST_MARGIN, most)
        chunk = settings.chunk or _chunk_size(sizes.num_hkl * bins)
        for start in range(0, len(chosen), chunk):
            rows = chosen[start : start + chunk].tolist()
            filled = [variants[i] for i in rows + rows[:1] * (chunk - len(rows))]
            trials = prepare.make_trials(
                [v.crystal for v in filled], [v.freedom for v in filled], inv_d_max, sizes,
                settings.contact,
            )  # fmt: skip
            x = np.zeros((chunk, prepare.num_variables(sizes)), np.float32)
            x[:, ZERO] = [v.zero for v in filled]
            x[:, LOG_FWHM] = np.log(observed.fwhm)
            x[:, ETA], x[:, FWHM_TAN] = 0.5, 0.3 * observed.fwhm
            out.append((rows, trials, x))
    return out


def _chunk_size(work: int) -> int:
    """Candidates at once: few on a CPU, whose caches are small, many on an accelerator."""
    room = 2**21 if jax.default_backend() == "cpu" else 2**27
    return int(np.clip(room // work, 1, 4 if jax.default_backend() == "cpu" else 64))


def placed(v: Variant, moved: Any, k: int, zero: float, misfit: float) -> Variant:
    """The variant where row ``k`` of ``moved`` has it; unmoved if that is not finite."""
    lattice, frac = moved
    n = len(v.crystal.atomic_numbers)
    crystal = Crystal(v.crystal.atomic_numbers, np.mod(frac[k, :n], 1.0), lattice[k])
    if not (np.isfinite(lattice[k]).all() and np.isfinite(frac[k, :n]).all()):
        return v
    return v._replace(crystal=crystal, zero=zero, misfit=misfit)


@jax.jit
def _moved(frame: model.Frame, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return (
        jax.vmap(model.strained_lattice)(frame, x[:, CELL]),
        jax.vmap(model.moved_coords)(frame, x[:, COORD]),
    )


def moved_crystals(frame: model.Frame, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Lattices [n, 3, 3] and coordinates [n, n_node, 3] for the variables x [n, p]."""
    lattice, frac = _moved(frame, x)
    return np.asarray(lattice, float), np.asarray(frac, float)
