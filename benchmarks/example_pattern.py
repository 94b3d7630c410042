"""Make the bundled example: ``python -m benchmarks.example_pattern``.

A scan of KTaO3 as a laboratory diffractometer would give it, with 3,000 counts in the strongest
peak above a background of 10 to 20 %.
"""

from __future__ import annotations

import numpy as np

from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.pretrained.example import FOLDER, WAVELENGTH
from xtalnet_jax.pxrd.instrument import Instrument
from xtalnet_jax.pxrd.io import save_pattern
from xtalnet_jax.pxrd.simulate import simulate_pattern

COUNTS = 3000.0


def main() -> None:
    """Simulate, add counting noise, write the pattern and the structure."""
    crystal = textbook_crystals()["potassium_tantalate"]
    instrument = Instrument(
        u=0.01,
        v=-0.004,
        w=0.008,
        x=0.06,
        y=0.05,
        zero_shift=0.02,
        displacement=-0.015,
        kalpha2_ratio=0.5,
        texture=0.92,
        texture_axis=(0, 0, 1),
        b_iso=0.5,
        background=(11.0, -6.0, 2.5, -0.8),
    )
    ideal = simulate_pattern(crystal, WAVELENGTH, (10.0, 90.0), 0.02, instrument)
    mean = np.maximum(ideal.intensity, 0.1) * COUNTS / 100.0
    counts = np.random.default_rng(7).poisson(mean).astype(float)
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_pattern(ideal._replace(intensity=counts), FOLDER / "potassium_tantalate.xy")
    crystal.to_structure().to(filename=str(FOLDER / "potassium_tantalate.cif"), fmt="cif")


if __name__ == "__main__":
    main()
