"""Sticks of real structures against pymatgen's calculator, an independent implementation."""

from pathlib import Path

import numpy as np
import pytest

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.pxrd import simulate

pytestmark = [pytest.mark.shared, pytest.mark.optimised]


def crystals_of(path: Path, num: int, most_atoms: int) -> list[Crystal]:
    data = np.load(path)
    candidates = np.flatnonzero(np.diff(data["offset"]) <= most_atoms)
    z, frac, offset, lattice = (
        data[name] for name in ("atomic_numbers", "frac_coords", "offset", "lattice")
    )
    chosen = np.random.default_rng(0).choice(candidates, num, replace=False)
    rows = [slice(offset[k], offset[k + 1]) for k in chosen]
    return [
        Crystal(z[r].astype(int), frac[r].astype(float), lattice[k]) for r, k in zip(rows, chosen)
    ]


def compare(crystals: list[Crystal], two_theta_range: tuple[float, float]) -> None:
    """Lines nearer than 0.01 degree are one here: which of them merge is a matter of rounding."""
    from pymatgen.analysis.diffraction.xrd import XRDCalculator

    calculator = XRDCalculator(1.54184)
    for crystal, ours in zip(crystals, simulate.simulate_peaks(crystals, 1.54184, two_theta_range)):
        theirs = calculator.get_pattern(crystal.to_structure(), two_theta_range=two_theta_range)
        angle = np.concatenate([ours.two_theta, theirs.x])
        order = np.argsort(angle)
        cluster = np.empty(len(angle), int)
        cluster[order] = np.cumsum(np.diff(angle[order], prepend=-1) > 0.01)
        n = len(ours.two_theta)

        def gather(weight, some, cluster=cluster):
            return np.bincount(cluster[some], weight, minlength=cluster.max() + 1)

        first, second = slice(0, n), slice(n, None)
        intensity = gather(ours.intensity, first), gather(theirs.y, second)
        # Splitting a line also changes what "strongest = 100" means: compare on one scale.
        intensity = [100 * i / i.max() for i in intensity]
        np.testing.assert_allclose(intensity[0], intensity[1], atol=0.1)
        moment = (
            gather(ours.intensity * ours.two_theta, first),
            gather(theirs.y * theirs.x, second),
        )
        strong = intensity[1] > 1
        mean = [
            m[strong] / gather(w, s)[strong]
            for m, w, s in zip(moment, (ours.intensity, theirs.y), (first, second))
        ]
        np.testing.assert_allclose(mean[0], mean[1], atol=0.01)


def test_inorganic_cells(structures):
    compare(crystals_of(structures / "mp20_val.npz", 40, 20), (5.0, 90.0))


def test_frameworks(structures):
    compare(crystals_of(structures / "qmof.npz", 4, 100), (3.0, 30.0))


@pytest.mark.slow
def test_many_inorganic_cells(structures):
    compare(crystals_of(structures / "mp20_val.npz", 500, 20), (5.0, 90.0))


@pytest.mark.slow
def test_many_frameworks(structures):
    compare(crystals_of(structures / "qmof.npz", 50, 100), (3.0, 30.0))
