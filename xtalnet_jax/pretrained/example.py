"""The bundled example: a laboratory-like scan of potassium tantalate, KTaO3, a
cubic perovskite whose composition the bundled weights were not trained on.

``python -m benchmarks.example_pattern`` made the files from the textbook structure: Cu K-alpha
doublet, background, counting noise, zero shift, sample displacement, some texture.
"""

from __future__ import annotations

from pathlib import Path

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.pxrd.io import load_pattern
from xtalnet_jax.pxrd.pattern import Pattern

FOLDER = Path(__file__).parent / "examples"
FORMULA = "KTaO3"
WAVELENGTH = 1.5406


def example_pattern() -> Pattern:
    """Return the measured pattern."""
    return load_pattern(FOLDER / "potassium_tantalate.xy", WAVELENGTH)


def example_formula() -> str:
    """Return its reduced formula."""
    return FORMULA


def example_crystal() -> Crystal:
    """Return the structure the pattern was made from."""
    return Crystal.from_file(FOLDER / "potassium_tantalate.cif")
