"""Patterns as an ordinary laboratory measures them, to try the solver where the truth is known.

Unlike `augment`, which hands peak lists to a training step by the million, this makes whole
profiles, with K-alpha doublets, counting noise, backgrounds, March-Dollase texture and foreign
lines, one by one from the full simulator. No number here was fitted to a measured pattern.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.pxrd.instrument import Instrument
from xtalnet_jax.pxrd.pattern import Pattern
from xtalnet_jax.pxrd.readers.radiation import ANODES
from xtalnet_jax.pxrd.simulate import simulate_pattern

AXES = ((0, 0, 1), (1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 1, 1), (1, 0, 1))
"""Preferred planes."""


class Laboratory(NamedTuple):
    """What varies from pattern to pattern: spans are uniform, deviations normal; degrees."""

    start: tuple[float, float] = (5.0, 20.0)
    end: tuple[float, float] = (70.0, 90.0)
    steps: tuple[float, ...] = (0.01, 0.02, 0.03)
    fwhm: tuple[float, float] = (0.06, 0.25)
    size: tuple[float, float] = (0.01, 0.15)  # Lorentzian width / cos(theta)
    kalpha2: float = 0.75  # share of patterns with K-alpha2
    zero_shift: float = 0.02
    displacement: float = 0.06
    texture: float = 0.2  # of the logarithm of the March-Dollase parameter
    b_iso: tuple[float, float] = (0.1, 1.5)  # square angstrom
    background: tuple[float, float] = (0.01, 0.25)  # relative to the strongest peak, log-uniform
    counts: tuple[float, float] = (1e3, 1e5)  # in the strongest peak, log-uniform
    impure: float = 0.25  # share of patterns with foreign lines
    num_foreign: tuple[int, int] = (1, 5)
    foreign: tuple[float, float] = (0.01, 0.10)  # height relative to the strongest peak


DEFAULT = Laboratory()


def laboratory_patterns(
    crystals: Sequence[Crystal], seed: int = 0, ranges: Laboratory = DEFAULT
) -> list[Pattern]:
    """Measure every crystal once with copper radiation; the k-th depends on ``seed`` and k only.

    Args:
        crystals: at most as large as the simulator takes.
        seed: of everything that varies.
        ranges: see `Laboratory`.

    Returns:
        Counts, with the mean wavelength where both K-alpha lines are present.

    Raises:
        ValueError: a crystal that cannot be simulated.
    """
    return [_measured(np.random.default_rng([seed, k]), c, ranges) for k, c in enumerate(crystals)]


def _measured(rng: np.random.Generator, crystal: Crystal, ranges: Laboratory) -> Pattern:
    alpha1, alpha2 = ANODES["Cu"]
    both = rng.random() < ranges.kalpha2
    instrument = Instrument(
        w=rng.uniform(*ranges.fwhm) ** 2,
        x=rng.uniform(*ranges.size),
        y=rng.uniform(*ranges.size),
        zero_shift=rng.normal(0, ranges.zero_shift),
        displacement=rng.normal(0, ranges.displacement),
        kalpha2_ratio=0.5 * both,
        kalpha2_wavelength=alpha2,
        texture=float(np.exp(rng.normal(0, ranges.texture))),
        texture_axis=AXES[rng.integers(len(AXES))],
        b_iso=rng.uniform(*ranges.b_iso),
    )
    span = float(rng.uniform(*ranges.start)), float(rng.uniform(*ranges.end))
    step = float(rng.choice(ranges.steps))
    ideal = simulate_pattern(crystal, alpha1, span, step, instrument)
    x = ideal.two_theta
    y = ideal.intensity / 100 + _foreign(rng, x, ranges)
    y = y + _log_uniform(rng, ranges.background) * _background_shape(rng, x)
    counts = _log_uniform(rng, ranges.counts)
    wavelength = (2 * alpha1 + alpha2) / 3 if both else alpha1
    return Pattern(x, rng.poisson(counts * np.maximum(y, 0)).astype(float), wavelength)


def _foreign(rng: np.random.Generator, x: np.ndarray, ranges: Laboratory) -> np.ndarray:
    total = np.zeros_like(x)
    if rng.random() < ranges.impure:
        for _ in range(rng.integers(*ranges.num_foreign, endpoint=True)):
            height, place = rng.uniform(*ranges.foreign), rng.uniform(x[0], x[-1])
            total += height * np.exp(-4 * np.log(2) * ((x - place) / rng.uniform(0.1, 0.3)) ** 2)
    return total


def _background_shape(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """Air scatter that falls with the angle, a level, and a broad halo; about 1."""
    u = (x - x[0]) / (x[-1] - x[0])
    air, level, halo = rng.dirichlet(np.ones(3))
    centre, width = rng.uniform(0.1, 0.4), rng.uniform(0.08, 0.2)
    return air * np.exp(-6 * u) + level + halo * np.exp(-0.5 * ((u - centre) / width) ** 2)


def _log_uniform(rng: np.random.Generator, span: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(*np.log(span))))
