"""Crystal structures from powder X-ray diffraction patterns, in JAX.

Every public name is importable from here and loaded on first use, so that ``import xtalnet_jax``
takes milliseconds::

    from xtalnet_jax import load_pattern, load_solver
    solution = load_solver("default").solve(load_pattern("scan.xy", wavelength=1.5406), "TiO2")
    solution.verdict, solution.candidates[0].structure
"""

from importlib import import_module
from typing import Any

from xtalnet_jax.version import __version__

_HOME = {
    "Crystal": "crystals.crystal",
    "Pattern": "pxrd.pattern",
    "Peaks": "pxrd.pattern",
    "Instrument": "pxrd.instrument",
    "simulate_peaks": "pxrd.simulate",
    "simulate_pattern": "pxrd.simulate",
    "load_pattern": "pxrd.io",
    "save_pattern": "pxrd.io",
    "load_reference_checkpoint": "pretrained.reference",
    "Solver": "solve.solver",
    "Solution": "solve.solver",
    "Candidate": "solve.solver",
    "load_solver": "solve.solver",
    "RetrievalIndex": "solve.retrieval",
}

__all__ = ["__version__", "refine", *_HOME]


def __getattr__(name: str) -> Any:
    if name == "refine":  # a package that can be called, see there
        return import_module("xtalnet_jax.refine")
    if name not in _HOME:
        raise AttributeError(f"module 'xtalnet_jax' has no attribute {name!r}")
    value = getattr(import_module(f"xtalnet_jax.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
