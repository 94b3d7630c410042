"""An untrained solver of the smallest size: everything works, nothing is known."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import cpcp, flow
from xtalnet_jax import experiment, tasks
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.lattice import parameters_from_matrix
from xtalnet_jax.data.fixtures import textbook_set
from xtalnet_jax.pretrained.weights import save_weights
from xtalnet_jax.pxrd.pattern import Pattern
from xtalnet_jax.refine.profile_fit import Refined
from xtalnet_jax.solve.ranking import FEATURES, Ranker, save_rankers
from xtalnet_jax.solve.solution import Candidate, Solution


def ranker(**coefficients: float) -> Ranker:
    """Logistic regression on the named features, not standardised."""
    weights = np.array([coefficients.get(name, 0.0) for name in FEATURES])
    return Ranker(np.zeros(len(FEATURES)), np.ones(len(FEATURES)), weights, -4.0)


def recipe(module: Any) -> Any:
    """The smoke recipe of a module of ``configs``, complete for the textbook crystals."""
    packed = textbook_set()
    return tasks.with_statistics(module.get_config("smoke"), packed.lattice, packed.num_atoms)


@lru_cache
def example(module: Any) -> Any:
    """The first batch of the smoke recipe: padded to 4 atoms, with empty crystals at the end."""
    batch = experiment.batches(recipe(module), textbook_set(), shuffle=False).batch(0)
    return jax.tree.map(jnp.asarray, batch)


@lru_cache
def parameters(module: Any) -> Any:
    """Untrained parameters of the smoke recipe."""
    task = tasks.task_from_config(recipe(module))
    return jax.device_get(jax.jit(task.init)(jax.random.key(0), example(module)))


def write_weights(folder: Path) -> Path:
    """Write what `load_solver` wants."""
    for name, module in (("cpcp", cpcp), ("generator", flow)):
        file = folder / f"{name}.safetensors"
        save_weights(file, parameters(module), recipe(module).to_dict())
    rankers = {"refined": ranker(log_misfit=-2.0), "raw": ranker(log_misfit=-2.0)}
    save_rankers(folder / "ranker.json", rankers)
    return folder


def refined(crystal: Crystal, pattern: Pattern, **changes: Any) -> Refined:
    """What a refinement says of a crystal whose pattern is half as high, on a background of 5."""
    lengths, angles = parameters_from_matrix(jnp.asarray(crystal.lattice))
    esd = {"zero_shift": 0.004, "fwhm": 0.002, "fwhm_tan": 0.01, "eta": 0.05, "b_iso": 0.12}
    values = {
        "crystal": crystal, "rwp": 0.03, "cosine": 0.99, "zero_shift": 0.021, "fwhm": 0.11,
        "fwhm_tan": 0.02, "eta": 0.4, "b_iso": 0.73, "scale": 2.5,
        "background": np.array([5.0, -1.0]),
        "calculated": pattern._replace(intensity=0.5 * pattern.intensity),
        "space_group": 136, "num_free": 4, "moved": 0.01,
        "cell": np.concatenate([lengths, angles]),
        "cell_esd": np.array([2e-4, 2e-4, 3e-4, 0, 0, 0]), "esd": esd, "trajectory": np.zeros(3),
    }  # fmt: skip
    made = Refined(**{name: values.get(name, 0.5) for name in Refined._fields})
    return made._replace(**changes)


def solution(candidates: list[Candidate], pattern: Pattern, **changes: Any) -> Solution:
    """A solution as `Solver.solve` would return it."""
    settings = {
        "formula": "TiO2", "num_candidates": len(candidates), "lattice": None, "refine": True,
        "seed": 7, "weights": "default", "wavelength": pattern.wavelength,
    }  # fmt: skip
    made = Solution(
        tuple(candidates), "match", pattern, "TiO2", settings, (), {"search": 1.25, "rank": 0.1}
    )
    return made._replace(**changes)
