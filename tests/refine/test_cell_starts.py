import numpy as np
import pytest

from xtalnet_jax.crystals import bravais
from xtalnet_jax.crystals.reduction import niggli_transform
from xtalnet_jax.pxrd.hkl import hkl_table
from xtalnet_jax.pxrd.pattern import (
    CU_KALPHA,
    PeakBatch,
    inv_d_from_two_theta,
    two_theta_from_inv_d,
)
from xtalnet_jax.refine import cell_starts
from xtalnet_jax.refine.indexing import DEFAULT, SOLVED, index_cells
from xtalnet_jax.refine.positions import Observed, Precision, observed_positions

FIRST, LAST = (float(inv_d_from_two_theta(x, CU_KALPHA)) for x in (5.0, 75.0))
TRICLINIC = np.array([[4.9, 0.0, 0.0], [-0.9, 5.7, 0.0], [0.8, -1.3, 7.1]])


def peaks_at(inv_d: np.ndarray) -> PeakBatch:
    position = np.sort(inv_d).astype(np.float32)[None]
    mask = np.ones_like(position, bool)
    return PeakBatch(position, mask.astype(np.float32), mask, np.array([[FIRST, LAST]], np.float32))


def lines_of_cell(lattice: np.ndarray, num: int) -> np.ndarray:
    """Lowest 1/d of the cell; of lines closer than 0.1 degrees only the first."""
    two_theta = two_theta_from_inv_d(hkl_table(lattice[None], LAST).inv_d, CU_KALPHA)
    apart = np.concatenate([[True], np.diff(two_theta) > 0.1])
    return inv_d_from_two_theta(two_theta[apart][:num], CU_KALPHA)


def observed_from(lattice: np.ndarray, num: int = 24) -> Observed:
    return observed_positions(peaks_at(lines_of_cell(lattice, num)), CU_KALPHA, Precision(), num)


def error(found: np.ndarray, truth: np.ndarray) -> float:
    """Largest relative difference of the lengths of the reduced cells and of their volumes."""
    size = [
        np.append(np.sort(np.linalg.norm(niggli_transform(x) @ x, axis=1)), abs(np.linalg.det(x)))
        for x in (found, truth)
    ]
    return float(np.abs(size[0] / size[1] - 1).max())


@pytest.mark.parametrize("name", bravais.LATTICES)
def test_reciprocal_metrics_of_a_lattice_are_combinations_of_its_basis(name):
    kind = bravais.LATTICES[name]
    cells = bravais.random_cells(np.random.default_rng(0), name, np.full(20, 90.0))
    conventional = np.linalg.inv(bravais.CENTRINGS[kind.centring]) @ cells
    basis = bravais.metric_basis(name)
    assert basis.shape == (kind.num_free, 6)
    g = cell_starts.reciprocal_metrics(conventional)
    solution = np.linalg.lstsq(basis.T, g.T, rcond=None)[0]
    np.testing.assert_allclose(solution.T @ basis, g, atol=1e-12)


@pytest.mark.parametrize("name", ["cF", "tI", "hP", "hR", "oP", "oC", "mP", "mC", "aP"])
def test_the_true_cell_is_among_those_solved_from_its_peaks(name):
    rng = np.random.default_rng(3)
    truth = bravais.random_cells(rng, name, np.full(1, 110.0), ratio_sigma=0.2)[0]
    cells = cell_starts.from_peaks(
        rng, name, observed_from(truth), (95.0, 125.0), 40_000, 60, shift_sigma=0.0
    )
    volume = np.linalg.det(cells)
    assert ((volume > 95 * 0.999) & (volume < 125 * 1.001)).all()
    assert len(cells) <= 60
    assert min(error(c, truth) for c in cells) < 1e-4


def test_a_zero_shift_does_not_hide_the_cell():
    """Peaks 0.1 degrees off: with none of the draws shifted no solved cell is within 0.1 %."""
    truth = np.diag([4.1, 5.3, 6.2])
    angle = two_theta_from_inv_d(lines_of_cell(truth, 20), CU_KALPHA) + 0.1
    peaks = peaks_at(inv_d_from_two_theta(angle, CU_KALPHA))
    observed = observed_positions(peaks, CU_KALPHA, Precision(), 20)
    best = []
    for sigma in (0.0, 0.1):
        rng = np.random.default_rng(0)
        cells = cell_starts.from_peaks(
            rng, "oP", observed, (120.0, 150.0), 40_000, 40, shift_sigma=sigma
        )
        best.append(min(error(c, truth) for c in cells[:5]))
    assert best[1] < 2e-3
    assert best[1] < best[0]


def test_too_few_peaks_give_no_cell():
    observed = observed_from(np.diag([4.0, 5.0, 6.0]), 4)
    cells = cell_starts.from_peaks(
        np.random.default_rng(0), "mP", observed, (100.0, 140.0), 100, 10
    )
    assert cells.shape == (0, 3, 3)


def test_copies_of_a_guess_have_symmetric_strains_and_the_first_none():
    guesses = np.stack([TRICLINIC, np.diag([3.0, 4.0, 5.0])])
    copies = cell_starts.near_guesses(np.random.default_rng(0), guesses, 5, (0.05,))
    np.testing.assert_allclose(copies[[0, 5]], guesses)
    strain = np.linalg.inv(guesses)[:, None] @ copies.reshape(2, 5, 3, 3)
    np.testing.assert_allclose(strain, strain.swapaxes(-1, -2), atol=1e-12)


def test_a_triclinic_cell_is_found_from_its_peaks():
    """Guesses have wrong shapes and a volume 5 % off; peaks have errors, and two are foreign."""
    rng = np.random.default_rng(0)
    angle = two_theta_from_inv_d(lines_of_cell(TRICLINIC, 38), CU_KALPHA)
    angle = np.append(angle + rng.normal(0, 0.01, len(angle)), [22.31, 33.87])
    peaks = peaks_at(inv_d_from_two_theta(angle, CU_KALPHA))
    volume = 1.05 * np.linalg.det(TRICLINIC)
    guesses = bravais.random_cells(rng, "oP", np.full(4, volume))
    settings = SOLVED._replace(
        num_strained=2,
        num_random=(),
        num_solved=tuple(x for x in SOLVED.num_solved if x[0] == "aP"),
    )
    found = index_cells(list(guesses), peaks, CU_KALPHA, settings=settings)
    assert error(found[0].lattice, TRICLINIC) < 2e-3
    without = index_cells(
        list(guesses), peaks, CU_KALPHA, settings=settings._replace(num_solved=())
    )
    assert not without or found[0].score > without[0].score + 20
    assert DEFAULT.num_solved == ()
